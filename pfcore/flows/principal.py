r"""The principal flow: what is left of the modified flow when only $g$ and $H$ are kept.

Of every order of backward error analysis the terms with first and second derivatives sum to
$\varphi(hH)\,g$ with $\varphi(z) = \log(1 - z)/z$. Past $h\lambda = 1$ the logarithm is complex,
and so is the state.
"""

from typing import Any

import jax
import jax.numpy as jnp

from pfcore._checks import (
    Loss,
    ScalarLike,
    check_count,
    check_learning_rate,
    check_loss,
    check_positive,
)
from pfcore._trees import Params, add_scaled, ravel, real_part, scale, to_complex
from pfcore.curvature.dense import apply_to_vector
from pfcore.curvature.krylov import krylov_apply
from pfcore.curvature.products import flat_product, gradient
from pfcore.flows.analytic import check_analytic
from pfcore.flows.coefficients import BRANCHES, principal_coefficient
from pfcore.flows.flow import Flow, bind, identity
from pfcore.flows.modified import third_derivative_term

STATES = ("complex", "real")
Krylov = tuple[int, float | None]  # products at most, and the tolerance that ends them earlier


def _principal_part(
    loss: Loss, krylov: Krylov | None, branch: str, learning_rate: jax.Array, params: Params
) -> jax.Array:
    """φ(hH) g in flat coordinates; complex, also at real parameters."""

    def phi(eigenvalues: jax.Array) -> jax.Array:
        h = learning_rate.astype(eigenvalues.dtype)
        return principal_coefficient(h * eigenvalues, branch=branch)

    g, product, _, _ = flat_product(loss, params)
    if krylov is None:
        return apply_to_vector(phi, product, g)
    return krylov_apply(phi, product, g, *krylov).value


def _add_non_principal(
    loss: Loss, learning_rate: jax.Array, params: Params, field: Params
) -> Params:
    step = scale(learning_rate, gradient(loss, params))
    return add_scaled(field, -1 / 12, third_derivative_term(loss, params, step))


def _complex_field(
    loss: Loss,
    krylov: Krylov | None,
    branch: str,
    non_principal: bool,
    learning_rate: jax.Array,
    t: Any,
    state: Params,
) -> Params:
    del t
    flat, unravel = ravel(state)
    # At a real state the Hessian is real symmetric: cheaper, and eigenvalues are on the real
    # axis exactly, so that hλ > 1 lies on the same side of the cut whatever the rounding.
    field = jax.lax.cond(
        jnp.all(flat.imag == 0),
        lambda s: _principal_part(loss, krylov, branch, learning_rate, real_part(s)),
        lambda s: _principal_part(loss, krylov, branch, learning_rate, s),
        state,
    )
    field = unravel(field)
    return _add_non_principal(loss, learning_rate, state, field) if non_principal else field


def _real_field(
    loss: Loss,
    krylov: Krylov | None,
    branch: str,
    non_principal: bool,
    learning_rate: jax.Array,
    t: Any,
    params: Params,
) -> Params:
    del t
    _, unravel = ravel(params)
    field = unravel(_principal_part(loss, krylov, branch, learning_rate, params).real)
    return _add_non_principal(loss, learning_rate, params, field) if non_principal else field


def _complex_init(loss: Loss, params: Params) -> Params:
    params = check_loss(loss, params)
    narrow = [x.dtype for x in jax.tree.leaves(params) if jnp.finfo(x.dtype).bits < 32]
    if narrow:
        raise TypeError(
            f"params have dtype {narrow[0]}, which has no complex counterpart; use float32, or "
            "principal_flow(..., state='real')"
        )
    check_analytic(loss, params)
    return to_complex(params)


def principal_flow(
    loss: Loss,
    learning_rate: ScalarLike,
    *,
    non_principal: bool = False,
    depth: int | None = None,
    tolerance: ScalarLike | None = None,
    state: str = "complex",
    branch: str = "principal",
) -> Flow:
    r"""Principal flow (PF), $\dot\theta = \varphi(hH)\,g$ with $\varphi(z) = \log(1-z)/z$.

    In the eigenbasis of $H$ this is
    $\sum_i \frac{\log(1 - h\lambda_i)}{h\lambda_i}\,(g^\top u_i)\,u_i$. On quadratic losses it
    passes through every iterate of gradient descent, for every $h$.

    Where some $h\lambda_i > 1$ the field is complex. The state then leaves the real axis, the loss
    is continued analytically, and $H$ is complex symmetric; positions are real parts.

    Args:
      loss: $E$, from `params` to a real scalar; analytic, unless `state="real"`.
      learning_rate: $h > 0$ of the gradient descent that is modelled.
      non_principal: add the first term that PF leaves out,
        $-\frac{h^2}{12}\nabla_\theta(g^\top H g)|_{g\text{ fixed}}$, so that one step is predicted
        to $O(h^4)$ and not $O(h^3)$.
      depth: None is exact to rounding, and for a few hundred parameters: the Hessian is formed
        and diagonalised wherever 64 Hessian-vector products do not already give the field to the
        last digit. An integer $m$ uses $m$ products, by Lanczos at real states and Arnoldi at
        complex ones, clipped to the number of parameters, at which it is exact.
      tolerance: with a `depth`, stop at fewer products once the last quarter of them has changed
        the field by less than this fraction of its norm; None always takes all.
      state: "complex" follows the flow into the complex plane. "real" follows the real part of
        the field at real parameters: another flow wherever $h\lambda > 1$, and the only one for
        losses without an analytic continuation, such as those of ReLU networks.
      branch: where the logarithm's cut lies. "principal": on $h\lambda > 1$, the usual choice;
        the field jumps there with the sign of $\operatorname{Im}\lambda$, and an integration that
        is caught on the cut ends with `completed` false. "continued": the logarithm is
        continued across $h\lambda > 1$ and its cut moved to $\operatorname{Re} h\lambda = 1$,
        $\operatorname{Im} h\lambda > 0$. Both agree at real states.

    Returns:
      A `Flow` whose state is the parameters, as complex arrays unless `state="real"`.

    Raises:
      ValueError: the learning rate is not a positive finite scalar, `depth` is below 1, a
        tolerance is not positive or comes without a depth, `state`
        or `branch` is unknown; from `init`, a loss that is not a finite scalar at the start, or
        that has no analytic continuation.
      TypeError: `depth` is not an integer.

    Example:
      >>> import jax.numpy as jnp, pfcore
      >>> loss = lambda x: x[0] ** 2 + 0.01 * x[1] ** 2
      >>> start, h = jnp.array([1.0, 1.0]), 0.9  # hλ = 1.8: gradient descent oscillates
      >>> path = pfcore.integrate(pfcore.flows.principal_flow(loss, h), start, h * jnp.arange(3.0))
      >>> steps = pfcore.gradient_descent(loss, start, h, 2)
      >>> bool(jnp.allclose(path.params, steps, atol=1e-5))
      True

    References:
      Rosca, Wu, Qin, Dherin, *On a continuous time model of gradient descent dynamics and
      instability in deep learning*, TMLR 2023 (arXiv 2302.01952).
    """
    learning_rate = check_learning_rate(learning_rate)
    krylov = None
    if depth is not None:
        depth = check_count("depth", depth, minimum=1)
        allowed = None if tolerance is None else float(check_positive("tolerance", tolerance))
        krylov = (depth, allowed)
    elif tolerance is not None:
        raise ValueError(
            f"tolerance = {tolerance!r} needs a depth, the number of products not to exceed"
        )
    if state not in STATES:
        raise ValueError(f"state must be 'complex' or 'real', got {state!r}")
    if branch not in BRANCHES:
        raise ValueError(f"branch must be 'principal' or 'continued', got {branch!r}")
    static = (loss, krylov, branch, bool(non_principal))
    if state == "real":
        return Flow(
            init=bind(check_loss, loss),
            vector_field=bind(_real_field, *static, dynamic=(learning_rate,)),
            position=identity,
        )
    return Flow(
        init=bind(_complex_init, loss),
        vector_field=bind(_complex_field, *static, dynamic=(learning_rate,)),
        position=real_part,
    )
