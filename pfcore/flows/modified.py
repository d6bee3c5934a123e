r"""Modified flows: differential equations whose solutions follow gradient descent more closely.

Backward error analysis of Euler's method on $\dot\theta = -\nabla E$ asks for the equation
$\dot\theta = \tilde f(\theta) = f_1 + h f_2 + h^2 f_3 + \dots$ whose exact solution passes through
the iterates of gradient descent (Hairer, Lubich, Wanner, *Geometric Numerical Integration*,
chapter IX). Truncated after $h^{n-1} f_n$, one step is predicted to $O(h^{n+1})$.
"""

import functools
import math
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp

from pfcore._checks import Loss, ScalarLike, check_count, check_learning_rate, check_loss
from pfcore._trees import Params, add_scaled, real_dtype, scale
from pfcore.curvature.products import gradient, hvp
from pfcore.flows.flow import Flow, bind, identity


def _flow(loss: Loss, field: Callable, *static, learning_rate: jax.Array | None = None) -> Flow:
    dynamic = () if learning_rate is None else (learning_rate,)
    return Flow(
        init=bind(check_loss, loss),
        vector_field=bind(field, loss, *static, dynamic=dynamic),
        position=identity,
    )


def _negative_gradient_field(loss: Loss, t, params: Params) -> Params:
    del t
    return scale(-1.0, gradient(loss, params))


def negative_gradient_flow(loss: Loss) -> Flow:
    r"""Negative gradient flow (NGF), $\dot\theta = -\nabla E(\theta)$.

    Predicts one step of gradient descent to $O(h^2)$ and knows nothing of its instabilities.

    Args:
      loss: $E$, from `params` to a real scalar.

    Returns:
      A `Flow` whose state is the parameters.

    Example:
      >>> import jax.numpy as jnp, pfcore
      >>> flow = pfcore.flows.negative_gradient_flow(lambda x: 0.5 * jnp.sum(x**2))
      >>> flow.vector_field(0.0, jnp.array([2.0])).tolist()
      [-2.0]
    """
    return _flow(loss, _negative_gradient_field)


def _igr_field(loss: Loss, learning_rate: jax.Array, t, params: Params) -> Params:
    del t
    g = gradient(loss, params)
    step = scale(learning_rate, g)  # Hg itself may leave the range, whatever the unit of hHg
    return scale(-1.0, add_scaled(g, 0.5, hvp(loss, params, step)))


def igr_flow(loss: Loss, learning_rate: ScalarLike) -> Flow:
    r"""Implicit gradient regularisation (IGR) flow, $\dot\theta = -g - \tfrac h2 Hg$.

    The gradient flow of $E + \tfrac h4\|\nabla E\|^2$; predicts one step to $O(h^3)$.

    Args:
      loss: $E$, from `params` to a real scalar.
      learning_rate: $h > 0$ of the gradient descent that is modelled.

    Returns:
      A `Flow` whose state is the parameters.

    Raises:
      ValueError: the learning rate is not a positive finite scalar.

    Example:
      >>> import jax.numpy as jnp, pfcore
      >>> flow = pfcore.flows.igr_flow(lambda x: 0.5 * jnp.sum(x**2), 0.5)
      >>> flow.vector_field(0.0, jnp.array([2.0])).tolist()
      [-2.5]

    References:
      Barrett and Dherin, *Implicit gradient regularization*, ICLR 2021 (arXiv 2009.11162).
    """
    return _flow(loss, _igr_field, learning_rate=check_learning_rate(learning_rate))


def third_derivative_term(loss: Loss, params: Params, g: Params) -> Params:
    r"""$\nabla_\theta(g^\top H g)$ with $g$ held fixed, the third derivative along $g$ twice."""
    return jax.jvp(lambda p: hvp(loss, p, g), (params,), (g,))[1]


def _third_order_field(loss: Loss, learning_rate: jax.Array, t, params: Params) -> Params:
    del t
    g = gradient(loss, params)
    step = scale(learning_rate, g)
    once = hvp(loss, params, step)
    twice = hvp(loss, params, scale(learning_rate, once))
    field = add_scaled(g, 1 / 2, once)
    field = add_scaled(field, 1 / 3, twice)
    field = add_scaled(field, 1 / 12, third_derivative_term(loss, params, step))
    return scale(-1.0, field)


def third_order_flow(loss: Loss, learning_rate: ScalarLike) -> Flow:
    r"""Third-order modified flow.

    $\dot\theta = -g - \tfrac h2 Hg - h^2 w$, where
    $w = \tfrac13 H^2 g + \tfrac1{12}\nabla_\theta(g^\top H g)|_{g\text{ fixed}}$. It predicts one
    step of gradient descent to $O(h^4)$.

    Args:
      loss: $E$, from `params` to a real scalar.
      learning_rate: $h > 0$ of the gradient descent that is modelled.

    Returns:
      A `Flow` whose state is the parameters.

    Raises:
      ValueError: the learning rate is not a positive finite scalar.

    References:
      Rosca, Wu, Qin, Dherin, TMLR 2023 (arXiv 2302.01952).
    """
    return _flow(loss, _third_order_field, learning_rate=check_learning_rate(learning_rate))


def _interpolation_weights(order: int) -> list[float]:
    r"""$w$ with $p'(0) = \sum_k w_k p(k)$ for every polynomial $p$ of degree at most `order`."""
    weights = [0.0] * (order + 1)
    for m in range(1, order + 1):
        for k in range(m + 1):
            weights[k] += (-1) ** (m - 1) / m * (-1) ** (m - k) * math.comb(m, k)
    return weights


def _taylor_coefficients(
    function: Callable[[Params], Params], series: list[Params]
) -> list[Params]:
    r"""Taylor coefficients in $s$ of `function` at $c_0 + c_1 s + c_2 s^2 + \dots$.

    As many as there are $c_i$, by nested forward mode along the one variable $s$.
    """

    def along(s: jax.Array) -> Params:
        point = series[-1]
        for coefficient in reversed(series[:-1]):
            point = add_scaled(coefficient, s, point)
        return function(point)

    # Level i maps s to (value, first, ..., i-th derivative) at s.
    def derivatives(level: int, s: jax.Array) -> list[Params]:
        if level == 0:
            return [along(s)]
        lower, tangents = jax.jvp(lambda s: derivatives(level - 1, s), (s,), (jnp.ones_like(s),))
        return [*lower, tangents[-1]]

    zero = jnp.zeros((), real_dtype(series[0]))
    found = derivatives(len(series) - 1, zero)
    return [scale(1 / math.factorial(i), derivative) for i, derivative in enumerate(found)]


def logarithm_coefficients(
    increment: Callable[[Params], Params], point: Params, order: int
) -> Params:
    r"""The coefficients $f_1, \dots, f_n$ of the logarithm of a near-identity map.

    The flow of $\sum_j \epsilon^j f_j$ for a unit of time is the map
    $F_\epsilon(x) = x + \epsilon V(x)$, to order $\epsilon^n$. For $V = -\nabla E$ they are the
    coefficients of the modified flow, for other maps $F = \mathrm{id} + V$ the same series at
    $\epsilon = 1$, whether it converges or not.

    The iterates are series in $\epsilon$, $x_k = \sum_j x_{k,j}\epsilon^j$, and $f_j$ is what the
    derivative at 0 of the polynomial in $k$ through $x_0, \dots, x_n$ has at $\epsilon^j$: the
    formal identity $\log(1 + \Delta)\,x = \sum_{m \ge 1} \frac{(-1)^{m-1}}m \Delta^m x_0$. It
    agrees with `modified_coefficients_by_recursion` and needs one Taylor expansion of $V$ for each
    iterate, where the recursion needs a number that explodes with the order.

    Args:
      increment: $V$, from a pytree of real arrays to another like it.
      point: where.
      order: $n \ge 1$.

    Returns:
      $f_1, \dots, f_n$ at `point`, stacked along axis 0.
    """
    weights = jnp.asarray(_interpolation_weights(order))

    def combine(total: Params, weight: jax.Array, series: list[Params]) -> Params:
        stacked = jax.tree.map(lambda *coefficients: jnp.stack(coefficients), *series[1:])
        return add_scaled(total, weight, stacked)

    def step(carry, weight):
        series, total = carry
        slopes = _taylor_coefficients(increment, series[:-1])
        series = [
            series[0],
            *(add_scaled(c, 1.0, slope) for c, slope in zip(series[1:], slopes, strict=True)),
        ]
        return (series, combine(total, weight, series)), None

    zero = jax.tree.map(jnp.zeros_like, point)
    start = [point, *[zero] * order]
    total = jax.tree.map(lambda x: jnp.zeros((order, *x.shape), x.dtype), point)
    (_, total), _ = jax.lax.scan(step, (start, total), weights[1:])
    return total


def modified_coefficients(loss: Loss, params: Params, order: int) -> Params:
    r"""The coefficients $f_1, \dots, f_n$ of the modified vector field, stacked along axis 0.

    `logarithm_coefficients` of a step of gradient descent: $\tilde f = \sum_j h^{j-1} f_j$.
    """
    return logarithm_coefficients(lambda p: scale(-1.0, gradient(loss, p)), params, order)


def _compositions(total: int, parts: int) -> Iterator[tuple[int, ...]]:
    """All ways to write `total` as an ordered sum of `parts` positive integers."""
    if parts == 1:
        yield (total,)
        return
    for first in range(1, total - parts + 2):
        for rest in _compositions(total - first, parts - 1):
            yield (first, *rest)


def modified_coefficients_by_recursion(loss: Loss, params: Params, order: int) -> list[Params]:
    r"""The coefficients $f_1, \dots, f_n$ by the recursion of backward error analysis.

    $f_1 = -\nabla E$ and
    $f_j = -\sum_{i=2}^{j} \frac1{i!} \sum D_{k_1}\cdots D_{k_{i-1}} f_{k_i}$, the inner sum over
    all $k_1 + \dots + k_i = j$, where $(D_k v)(\theta) = v'(\theta)\,f_k(\theta)$ is one
    forward-mode derivative. The textbook's way, to read and to test `modified_coefficients`
    against: at order 5 it takes minutes to compile.
    """
    terms: list[Callable[[Params], Params]] = [lambda p: scale(-1.0, gradient(loss, p))]

    def derivative_along(k: int, v: Callable[[Params], Params]) -> Callable[[Params], Params]:
        return lambda p: jax.jvp(v, (p,), (terms[k - 1](p),))[1]

    def term(j: int, p: Params) -> Params:
        total = jax.tree.map(jnp.zeros_like, p)
        for i in range(2, j + 1):
            for *along, last in _compositions(j, i):
                v = terms[last - 1]
                for k in reversed(along):
                    v = derivative_along(k, v)
                total = add_scaled(total, -1 / math.factorial(i), v(p))
        return total

    terms.extend(functools.partial(term, j) for j in range(2, order + 1))
    return [f(params) for f in terms]


def _modified_field(loss: Loss, order: int, learning_rate: jax.Array, t, params: Params) -> Params:
    del t
    # Those of h f̃, whose size does not depend on the unit of the loss.
    parts = logarithm_coefficients(
        lambda p: scale(-learning_rate, gradient(loss, p)), params, order
    )
    return jax.tree.map(
        lambda f: jnp.sum(f, axis=0, dtype=f.dtype) / learning_rate.astype(f.dtype), parts
    )


def modified_flow(loss: Loss, learning_rate: ScalarLike, order: int) -> Flow:
    r"""Modified flow of any order, $\dot\theta = \sum_{j=1}^{n} h^{j-1} f_j(\theta)$.

    Orders 1, 2 and 3 are negative gradient flow, IGR flow and the third-order flow. One step is
    predicted to $O(h^{n+1})$. The coefficients of backward error analysis are computed from Taylor
    expansions of $n$ steps of gradient descent in $h$ (see `modified_coefficients`), by forward
    mode nested $n - 1$ deep; a field costs of the order of $n\,2^n$ gradients.

    Args:
      loss: $E$, from `params` to a real scalar, differentiable `order` times.
      learning_rate: $h > 0$ of the gradient descent that is modelled.
      order: $n \ge 1$.

    Returns:
      A `Flow` whose state is the parameters.

    Raises:
      ValueError: the learning rate is not a positive finite scalar, or `order` is below 1.
      TypeError: `order` is not an integer.

    References:
      Hairer, Lubich, Wanner, *Geometric Numerical Integration*, chapter IX.
    """
    learning_rate = check_learning_rate(learning_rate)
    order = check_count("order", order, minimum=1)
    return _flow(loss, _modified_field, order, learning_rate=learning_rate)
