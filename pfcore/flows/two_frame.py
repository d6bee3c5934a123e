r"""The two-frame flow: gradient descent that oscillates, as two smooth curves.

Write the iterates of a map $w_{t+1} = G(w_t)$ as $w_t = C_t + (-1)^t A_t$. If $(C, A)$ follows

$$
F(C, A) = \tfrac12\bigl(G(C+A) + G(C-A),\; G(C-A) - G(C+A)\bigr)
$$

then $w_t$ are the iterates exactly, whatever the split at $t = 0$. Where an optimiser is at the
edge of stability $F$ is near the identity, though $G$ is not: directions of multipliers near 1 move
slowly in $C$, those of multipliers near -1 in $A$. Backward error analysis of $F$, as
`modified_flow` does it of gradient descent, then gives a flow of both.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pfcore import _programs
from pfcore._checks import (
    Loss,
    ScalarLike,
    check_count,
    check_learning_rate,
    check_loss,
    check_not_negative,
    check_path,
)
from pfcore._trees import (
    Params,
    add_scaled,
    check_params,
    in_single,
    norm,
    ravel,
    real_dtype,
    scale,
    weighted_sum,
)
from pfcore.curvature.krylov import krylov_apply
from pfcore.curvature.products import gradient
from pfcore.descent import gradient_descent
from pfcore.flows.coefficients import principal_coefficient
from pfcore.flows.flow import Flow, State, bind, identity
from pfcore.flows.modified import logarithm_coefficients

# Steps from which the oscillation at the start is taken, unless asked otherwise.
BURN_IN = 5
# How far a direction may be from the norm of the centre, either way, before it is scaled anew.
RANGE = 30.0


# Products with the Jacobian that the resummed series takes, unless asked otherwise.
DEPTH = 24
RESUMMED = "resummed"
# Multipliers this near 0 are between the frames. What has one is gone after a step or two.
WIDTH = 0.05
Order = tuple[int | str, int]  # the order, and the depth of a Krylov space if it is resummed


class TwoFrameState(NamedTuple):
    r"""A centre and an oscillation about it, $w_t = C + (-1)^t A$.

    The oscillation is kept as $A = e^s D$, so that one far below the rounding of $C$ survives.
    $s < 0$ where $A$ is so small that it moves by the linear part of the map; else $s = 0$.

    A flow of two frames takes one of these in place of the parameters as its start.

    Attributes:
      centre: $C$, of the structure of the parameters (or of the optimiser's whole state).
      oscillation: $D$, likewise.
      log_scale: $s$, a scalar.
    """

    centre: Any
    oscillation: Any
    log_scale: Any = 0.0


def position(state: TwoFrameState) -> Params:
    """The centre."""
    return state.centre


def oscillation(state: TwoFrameState) -> Params:
    r"""The oscillation $A = e^s D$; zero where that is below the smallest number."""
    return scale(jnp.exp(state.log_scale), state.oscillation)


def _add(a: State, b: State) -> State:
    return jax.tree.map(jnp.add, a, b)


def _subtract(a: State, b: State) -> State:
    return jax.tree.map(jnp.subtract, a, b)


def _half(a: State, b: State) -> State:
    return jax.tree.map(lambda x, y: (x + y) / 2, a, b)


Increment = Callable[[State], State]  # w -> G(w) - w


def _first_order(
    increment: Increment, log_scale: jax.Array, frames: tuple[State, State]
) -> tuple[State, State]:
    r"""$F - \mathrm{id}$ in the coordinates $(C, D)$, in which it does not depend on the unit of D
    but through what is not linear."""

    def linear(c: State, d: State) -> tuple[State, State]:
        slope, change = jax.jvp(increment, (c,), (d,))
        return slope, jax.tree.map(lambda x, y: -2 * x - y, d, change)

    def full(c: State, d: State) -> tuple[State, State]:
        size = jnp.exp(log_scale)
        swing = scale(size, d)
        plus, minus = increment(_add(c, swing)), increment(_subtract(c, swing))
        odd = jax.tree.map(
            lambda x, p, m: -2 * x - (p - m) / (2 * size.astype(x.dtype)), d, plus, minus
        )
        return _half(plus, minus), odd

    return jax.lax.cond(log_scale < 0, linear, full, *frames)


def _resummed_factor(x: jax.Array) -> jax.Array:
    r"""$\log(1 + x)/x$ where the multiplier $1 + x$ has a positive real part, else $1 - x/2$.

    A multiplier of the other half-plane belongs to the other frame. What is left of it in this one
    only has to die away, and to follow the rest: any positive factor does that. Between the two the
    factor is continuous, for no solver steps over a jump: the logarithm's weight is
    $1 - e^{-(\operatorname{Re}(1 + x)/w)^2}$ with $w$ = `WIDTH`.
    """
    # Where a multiplier is below machine epsilon, its logarithm has no weight.
    eps = float(jnp.finfo(x.dtype).eps)
    inside = jnp.where(jnp.abs(1 + x) < eps, -1 + eps, x)
    weight = -jnp.expm1(-((jnp.maximum((1 + x).real, 0) / WIDTH) ** 2)).astype(x.dtype)
    polynomial = 1 - x / 2
    return polynomial + weight * (-principal_coefficient(-inside) - polynomial)


def _resummed(
    first: Callable[[tuple[State, State]], tuple[State, State]],
    frames: tuple[State, State],
    depth: int,
) -> tuple[State, State]:
    r"""$\psi(J)\,V_1$ with the Jacobian $J$ of $V_1$ and $\psi$ above, in a Krylov space."""
    flat, unravel = ravel(frames)
    once, derivative = jax.linearize(lambda v: ravel(first(unravel(v)))[0], flat)

    def as_complex(v: jax.Array) -> jax.Array:
        return jax.lax.complex(v, jnp.zeros_like(v))

    # The Jacobian is real, but not symmetric; that is what complex vectors tell Arnoldi's method.
    found = krylov_apply(
        _resummed_factor, lambda v: as_complex(derivative(v.real)), as_complex(once), depth
    )
    return unravel(found.value.real)


def _field(
    increment: Increment, order: Order, unit: jax.Array, state: TwoFrameState
) -> TwoFrameState:
    """The modified field of the map of both frames, divided by the time that a step takes."""
    frames = (state.centre, state.oscillation)
    number, depth = order

    def first(frames: tuple[State, State]) -> tuple[State, State]:
        return _first_order(increment, state.log_scale, frames)

    if isinstance(number, str):
        rate = _resummed(first, frames, depth)
    elif number == 1:
        rate = first(frames)
    elif number == 2:
        once, derivative = jax.linearize(first, frames)
        rate = add_scaled(once, -0.5, derivative(once))
    else:
        terms = logarithm_coefficients(first, frames, number)
        rate = jax.tree.map(lambda f: jnp.sum(f, axis=0), terms)
    centre, direction = scale(1 / unit, rate)
    return TwoFrameState(centre, direction, jnp.zeros_like(state.log_scale))


def _renewed(floor: jax.Array, state: TwoFrameState) -> TwoFrameState:
    """The same state with a direction of a size that suits it, and no oscillation below `floor`."""
    c, d = norm(state.centre), norm(state.oscillation)
    s = state.log_scale
    c, d, floor = (x.astype(s.dtype) for x in (c, d, floor))
    usable = (d > 0) & jnp.isfinite(d) & jnp.isfinite(c)
    log_d = jnp.log(jnp.where(usable, d, 1))
    size = s + log_d
    least = jnp.log(jnp.where(floor > 0, floor, 1))
    raised = (floor > 0) & (size < least)
    size = jnp.where(raised, least, size)
    # The terms left out of the linear part are this squared, and the rounding of what is not
    # linear this divided into machine epsilon. Twice as much to go back: no jumping to and fro.
    # None is small beside a centre of zero.
    border = jnp.where(c > 0, jnp.log(jnp.where(c > 0, c, 1)), -jnp.inf)
    border = border + math.log(float(jnp.finfo(s.dtype).eps)) / 2
    linear = size < border + jnp.where(s < 0, math.log(2), 0)
    fits = (d > c / RANGE) & (d < c * RANGE) & (s < 0)
    factor = jnp.where(fits, 1, jnp.where(usable, c, 1) / jnp.where(usable, d, 1))
    factor = jnp.where(linear, factor, jnp.exp(size - log_d))
    kept = linear & fits & ~raised
    log_scale = jnp.where(linear, jnp.where(kept, s, size - log_d - jnp.log(factor)), 0)
    return TwoFrameState(
        state.centre,
        scale(jnp.where(usable, factor, 1), state.oscillation),
        jnp.where(usable, log_scale, s),
    )


def _start_weights(num_steps: int) -> list[float]:
    r"""$c_k$ with $A_0 = \sum_k c_k w_k$: 1 on $(-1)^t$ and 0 on constants, flat about both.

    $p(\mu) = \sum_k c_k\mu^k$ is what becomes of $\mu^t$, the polynomial of degree `num_steps`
    with as many derivatives as possible zero at $\mu = \pm 1$.
    """
    flat = (num_steps + 1) // 2
    zeros = num_steps + 1 - flat
    polynomial = [0.0] * (num_steps + 1)
    for k in range(flat):
        power = [1.0]  # of ((1 + μ)/2)^k ((1 - μ)/2)^zeros
        for sign in [1] * k + [-1] * zeros:
            shifted = [0.0, *power]
            power = [(a + sign * b) / 2 for a, b in zip([*power, 0.0], shifted, strict=True)]
        for j, value in enumerate(power):
            polynomial[j] += math.comb(zeros - 1 + k, k) * value
    return polynomial


def _split_of(iterates: State, num_steps: int) -> TwoFrameState:
    """Both frames at the first of these iterates; their sum is that iterate."""
    first = jax.tree.map(lambda w: w[0], iterates)
    if not num_steps:
        return _state(first, jax.tree.map(jnp.zeros_like, first))
    moves = jax.tree.map(lambda w: w[1:] - w[0], iterates)
    swings = weighted_sum(jnp.asarray(_start_weights(num_steps)[1:]), moves)
    _check_finite_start(swings, num_steps)
    return _state(_subtract(first, swings), swings)


def _state(centre: State, swing: State, log_scale: Any = 0.0) -> TwoFrameState:
    return TwoFrameState(centre, swing, jnp.asarray(log_scale, real_dtype(centre)))


def _check_finite_start(swings: State, num_steps: int) -> None:
    if _programs.is_traced(swings):
        return
    if not all(bool(jnp.all(jnp.isfinite(x))) for x in jax.tree.leaves(swings)):
        raise ValueError(
            f"the optimiser diverges within the {num_steps} steps from which the oscillation at "
            "the start is taken; pass a smaller burn_in, such as burn_in=1"
        )


def two_frame_start(iterates: Params) -> TwoFrameState:
    r"""Centre and oscillation at the middle one of an odd number of successive iterates.

    $A = (-1)^m \sum_{k=0}^{2m} \binom{2m}{k} \frac{(-1)^k}{4^m}\, w_k$ is the oscillation at $w_m$,
    and the centre what is left. A filter that looks both ways is more exact than the one that a
    two-frame flow uses where it is given the parameters alone.

    Args:
      iterates: $w_0, \dots, w_{2m}$, stacked along a leading axis of odd length, as
        `gradient_descent` returns them.

    Returns:
      A `TwoFrameState` with centre + oscillation $= w_m$: pass it to `integrate` in place of the
      parameters. Time 0 is then at $w_m$.

    Raises:
      ValueError: the number of iterates is even, or 1, or their leaves have no leading axis of
        one length.

    Example:
      >>> import jax.numpy as jnp, pfcore
      >>> iterates = jnp.array([[3.1], [2.9], [3.1], [2.9], [3.1]])
      >>> start = pfcore.flows.two_frame_start(iterates)
      >>> [round(float(x[0]), 6) for x in (start.centre, start.oscillation)]
      [3.0, 0.1]
    """
    iterates = in_single(check_path("iterates", iterates))
    length = len(jax.tree.leaves(iterates)[0])
    if length < 3 or length % 2 == 0:
        raise ValueError(
            f"iterates must be an odd number, at least 3, got {length}: as many before the middle "
            "one as after it"
        )
    m = length // 2
    weights = [(-1) ** (k + m) * math.comb(2 * m, k) / 4**m for k in range(length)]
    middle = jax.tree.map(lambda w: w[m], iterates)
    swings = weighted_sum(jnp.asarray(weights), _subtract(iterates, middle))
    return _state(_subtract(middle, swings), swings)


def _check_start(start: TwoFrameState, check: Callable[[State], State]) -> TwoFrameState:
    """A start that the user made, in the representation that the field expects."""
    centre = check(start.centre)
    given, wanted = (
        [(jax.tree_util.keystr(path), jnp.shape(x)) for path, x in leaves]
        for leaves in (
            jax.tree_util.tree_leaves_with_path(start.oscillation),
            jax.tree_util.tree_leaves_with_path(centre),
        )
    )
    if given != wanted:
        raise ValueError(
            "the oscillation of a start must have the structure and shapes of its centre; got "
            f"{given} beside {wanted}"
        )
    swings = jax.tree.map(lambda x, like: jnp.asarray(x, like.dtype), start.oscillation, centre)
    return _state(centre, swings, start.log_scale)


def _descent_init(
    loss: Loss, burn_in: int, learning_rate: jax.Array, floor: jax.Array, params: Params
) -> TwoFrameState:
    if isinstance(params, TwoFrameState):
        return _renewed(floor, _check_start(params, lambda p: check_loss(loss, p)))
    params = check_loss(loss, params)
    return _renewed(
        floor, _split_of(gradient_descent(loss, params, learning_rate, burn_in), burn_in)
    )


def _descent_field(
    loss: Loss, order: Order, learning_rate: jax.Array, t: Any, state: TwoFrameState
) -> TwoFrameState:
    del t

    def increment(params: Params) -> Params:
        return scale(-learning_rate, gradient(loss, params))

    return _field(increment, order, learning_rate, state)


def _mean_loss(loss: Loss, state: TwoFrameState) -> jax.Array:
    swing = oscillation(state)
    return (loss(_add(state.centre, swing)) + loss(_subtract(state.centre, swing))) / 2


def _check_options(
    order: Any, depth: Any, floor: ScalarLike, burn_in: Any
) -> tuple[Order, jax.Array, int]:
    if isinstance(order, str):
        if order != RESUMMED:
            raise ValueError(f"order must be an integer or {RESUMMED!r}, got {order!r}")
    else:
        order = check_count("order", order, minimum=1)
    if depth is not None and order != RESUMMED:
        raise ValueError(f"depth = {depth!r} is of order={RESUMMED!r}, not of order={order!r}")
    depth = DEPTH if depth is None else check_count("depth", depth, minimum=1)
    burn_in = BURN_IN if burn_in is None else check_count("burn_in", burn_in, minimum=0)
    least = check_not_negative("floor", floor)
    return (order, depth if order == RESUMMED else 0), least, burn_in


def two_frame_flow(
    loss: Loss,
    learning_rate: ScalarLike,
    *,
    order: int | str = 2,
    depth: int | None = None,
    floor: ScalarLike = 0.0,
    burn_in: int | None = None,
) -> Flow:
    r"""Two-frame flow of gradient descent, $w_t = C + (-1)^t A$ with smooth $C$ and $A$.

    With $g_\pm = \nabla E(C \pm A)$, the map of one step is near the identity where gradient
    descent is at the edge of stability, and

    $$
    \begin{aligned}
    V_1 &= \bigl(-\tfrac h2(g_+ + g_-),\\
        &\qquad -2A + \tfrac h2(g_+ - g_-)\bigr), \\
    (\dot C, \dot A) &= \tfrac1h\bigl(V_1 - \tfrac12 V_1' V_1 + \dots\bigr)
    \end{aligned}
    $$

    is its modified equation. With $A = 0$ orders 1, 2 and 3 are negative gradient flow, IGR flow
    and the third-order flow: the two-frame flow continues them through the edge. Iterate $k$ of
    gradient descent is predicted at time $kh$, as `position` + $(-1)^k$ `oscillation`. To our
    knowledge this flow has not been described elsewhere.

    Where it starts: from parameters $w_0$, `init` takes `burn_in` steps of gradient descent, and
    filters the oscillation at $w_0$ out of them. Time 0 is at $w_0$, and `position` +
    `oscillation` is $w_0$ there. Any other start is given as a `TwoFrameState` in place of the
    parameters; `two_frame_start` makes one of iterates on both sides of the start.

    `order="resummed"` keeps of every order what the Jacobian $J = V_1'$ says, as the principal flow
    keeps what the Hessian says: $(\dot C, \dot A) = \frac1h\psi(J)V_1$ with
    $\psi(x) = \log(1 + x)/x$ where $1 + x > 0$. It is the principal flow unwrapped into two real
    frames: directions of $h\lambda < 1$ are the centre's and those of $h\lambda > 1$ the
    oscillation's, so nothing is complex and there is no branch cut. On a quadratic whose start is
    split so it passes through every iterate. (Directions with $|1 - h\lambda|$ below about 0.2,
    which die within a step or two, are followed less exactly.) What a start leaves of a direction
    in the other frame dies away, by $\psi = 1 - x/2$.

    Orders above 2 are not better in general, and can diverge: the series is that of the
    logarithm of the map, and directions where $|F' - 1| \ge 1$ (curvature near $2/h$ in $C$, or
    far below it in $A$) are outside its radius. At orders 1 and 2 they only die away faster or
    slower than they should. Their rate is about $-4.3/h$, so the flow is somewhat stiff:
    `diffrax.Bosh3()` is the cheapest solver.

    Args:
      loss: $E$, from `params` to a real scalar.
      learning_rate: $h > 0$ of the gradient descent that is modelled.
      order: of the modified equation, or "resummed". Order 1 costs 2 gradients, order 2 about 5.
      depth: of order "resummed", how many products with $J$ it takes; each costs about 3 gradients.
        By default 24. Clipped to twice the number of parameters, at which it is exact.
      floor: smallest norm of the oscillation; the direction of a smaller one is kept at this
        size. Gradient descent's own oscillation is kept up by rounding, at about
        $0.08\,\varepsilon\|w\|$ where that was measured, which sets when an instability begins.
        0 lets it decay as far as it will. An oscillation that is exactly zero stays zero.
      burn_in: steps of gradient descent from which the oscillation at the start is taken; by
        default 5. 0 starts without oscillation, 1 with $A = \frac h2\nabla E(w_0)$. Fewer where
        gradient descent changes its regime within them.

    Returns:
      A `Flow` whose state is a `TwoFrameState`.

    Raises:
      ValueError: the learning rate is not a positive finite scalar, `order` or `depth` is below 1
        or a depth comes without order "resummed", `floor` or `burn_in` is negative; from `init`, a
        start that does not fit, or gradient descent that diverges within `burn_in` steps.
      TypeError: `order`, `depth` or `burn_in` is not an integer.

    Example:
      >>> import jax.numpy as jnp, pfcore
      >>> loss = lambda x: jnp.sum(1.1 * x**2 - x**4 / 4)  # hλ = 2.2: a cycle of two iterates
      >>> flow = pfcore.flows.two_frame_flow(loss, 1.0)
      >>> path = pfcore.integrate(flow, jnp.array([0.02]), jnp.array([0.0, 60.0]))
      >>> round(abs(float(path.oscillation[-1, 0])), 4)  # the square root of 1/5
      0.4472

    References:
      Hairer, Lubich, Wanner, *Geometric Numerical Integration*, chapter IX, for backward error
      analysis; Rosca, Wu, Dherin, Barrett, *Discretization drift in two-player games*, ICML 2021
      (arXiv 2105.13922): in the frames $C \pm A$ order 2 is its drift.
    """
    learning_rate = check_learning_rate(learning_rate)
    terms, least, burn_in = _check_options(order, depth, floor, burn_in)
    return Flow(
        init=bind(_descent_init, loss, burn_in, dynamic=(learning_rate, least)),
        vector_field=bind(_descent_field, loss, terms, dynamic=(learning_rate,)),
        position=position,
        oscillation=oscillation,
        expected_loss=bind(_mean_loss, loss),
        after_step=jax.tree_util.Partial(_renewed, least),
    )


# The unit of an optimiser's counts in the state of its map: a power of two, so nothing is rounded,
# and so small that counts add nothing to the size of the centre, with which that of the oscillation
# is compared.
COUNT = 2.0**-40


class Stepper(NamedTuple):
    """An optimiser as a map of its whole state.

    Attributes:
      init: `init(params) -> state`.
      step: `step(state) -> state`, one step.
      position: `position(state) -> params`.
      loss: the loss as a function of the parameters, or None.
    """

    init: Callable[[Params], State]
    step: Callable[[State], State]
    position: Callable[[State], Params]
    loss: Loss | None = None


def optax_step(tx: Any, loss: Loss) -> Stepper:
    r"""An Optax transformation as a map of parameters and optimiser state together.

    Counts are kept as real numbers, in units of $2^{-40}$, so that a flow may stand between two
    steps.

    Args:
      tx: an `optax.GradientTransformation` whose state is made of real numbers and counts, that
        depends on them smoothly, and asks for the gradient and the parameters alone.
      loss: $E$, from `params` to a real scalar.

    Returns:
      A `Stepper` for `two_frame_flow_of`. Its states are pairs: the parameters, and the leaves of
      the transformation's state.

    Raises:
      TypeError: from `init`, a state that holds what is neither real numbers nor counts, such as
        random keys.

    Example:
      >>> import jax.numpy as jnp, optax, pfcore
      >>> loss = lambda x: jnp.sum(x**2)
      >>> stepper = pfcore.flows.optax_step(optax.sgd(0.1, momentum=0.5), loss)
      >>> state = stepper.step(stepper.init(jnp.array([1.0])))
      >>> round(float(stepper.position(state)[0]), 6)
      0.8
    """
    if not (hasattr(tx, "init") and hasattr(tx, "update")):
        raise TypeError(f"tx must be an Optax transformation, got {tx!r}")

    def is_real(leaf: Any) -> bool:
        return bool(jnp.issubdtype(jnp.result_type(leaf), jnp.floating))

    def init(params: Params) -> State:
        params = check_loss(loss, in_single(check_params(params)))
        leaves = jax.tree.leaves(tx.init(params))
        for leaf in leaves:
            kind = jnp.result_type(leaf)
            if not (jnp.issubdtype(kind, jnp.floating) or jnp.issubdtype(kind, jnp.signedinteger)):
                raise TypeError(
                    f"the optimiser's state holds {kind}, for which there is nothing between two "
                    "steps; two frames need real numbers and counts"
                )
        dtype = real_dtype(params)
        return params, [x if is_real(x) else COUNT * jnp.asarray(x).astype(dtype) for x in leaves]

    def step(state: State) -> State:
        params, leaves = state
        kinds, structure = jax.tree.flatten(jax.eval_shape(tx.init, params))
        units = [1 if is_real(kind) else COUNT for kind in kinds]
        opt_state = jax.tree.unflatten(
            structure, [x / unit for x, unit in zip(leaves, units, strict=True)]
        )
        g = gradient(loss, params)
        with jax.numpy_dtype_promotion("standard"):  # Optax mixes dtypes, whatever the setting
            updates, opt_state = tx.update(g, opt_state, params)
        moved = jax.tree.map(lambda p, u: p + u.astype(p.dtype), params, updates)
        renewed = zip(jax.tree.leaves(opt_state), leaves, units, strict=True)
        return moved, [unit * new.astype(old.dtype) for new, old, unit in renewed]

    return Stepper(init, step, _params_of, loss)


def _params_of(state: State) -> Params:
    return state[0]


def _move(step: Callable[[State], State], state: State, num_steps: int) -> State:
    """`state` and what becomes of it in so many steps, stacked."""

    def body(state: State, _: None) -> tuple[State, State]:
        state = step(state)
        return state, state

    _, moved = jax.lax.scan(body, state, length=num_steps)
    return jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest]), state, moved)


_moved = jax.jit(_move, static_argnums=2)


def _mapped_init(stepper: Stepper, burn_in: int, floor: jax.Array, params: Params) -> TwoFrameState:
    if isinstance(params, TwoFrameState):
        start = _renewed(floor, _check_start(params, check_params))
        if not _programs.is_traced(start):
            _programs.renewed(stepper.step, start.centre)
            if stepper.loss is not None:
                _programs.renewed(stepper.loss, stepper.position(start.centre))
        return start
    state = check_params(stepper.init(params))
    shapes = jax.eval_shape(stepper.step, state)
    if jax.tree.map(lambda x: (x.shape, x.dtype), shapes) != jax.tree.map(
        lambda x: (x.shape, x.dtype), state
    ):
        raise ValueError(
            "step must return a state of the structure, shapes and dtypes of the one it takes; "
            f"from {jax.tree.map(jax.typeof, state)} it goes to {shapes}"
        )
    if _programs.is_traced(state):
        iterates = _move(stepper.step, state, burn_in)
    else:
        iterates = _moved(_programs.renewed(stepper.step, state), state, burn_in)
    return _renewed(floor, _split_of(iterates, burn_in))


def _mapped_field(
    step: Callable[[State], State], order: Order, t: Any, state: TwoFrameState
) -> TwoFrameState:
    del t

    def increment(at: State) -> State:
        return _subtract(step(at), at)

    return _field(increment, order, jnp.ones_like(state.log_scale), state)


def _mapped_position(read: Callable[[State], Params], state: TwoFrameState) -> Params:
    return read(state.centre)


def _mapped_oscillation(read: Callable[[State], Params], state: TwoFrameState) -> Params:
    """Half the distance between what is read in the two frames."""
    swing = oscillation(state)
    plus, minus = read(_add(state.centre, swing)), read(_subtract(state.centre, swing))
    return jax.tree.map(lambda p, m: (p - m) / 2, plus, minus)


def _mapped_mean_loss(
    loss: Loss, read: Callable[[State], Params], state: TwoFrameState
) -> jax.Array:
    swing = oscillation(state)
    plus, minus = read(_add(state.centre, swing)), read(_subtract(state.centre, swing))
    return (loss(plus) + loss(minus)) / 2


def two_frame_flow_of(
    step: Stepper | Callable[[State], State],
    *,
    order: int = 2,
    floor: ScalarLike = 0.0,
    burn_in: int | None = None,
) -> Flow:
    r"""Two-frame flow of any map $w_{t+1} = G(w_t)$, such as an optimiser's step.

    In the frames $E = C + A$ and $O = C - A$ order 1 is $\dot E = G(O) - E$,
    $\dot O = G(E) - O$. It describes maps whose multipliers are near 1 or near -1; momentum of 0.9
    has some near $\pm i$, which fit neither frame.

    Args:
      step: $G$, from a pytree of real floating-point arrays to another like it; or a `Stepper`, as
        `optax_step` makes one, whose states hold more than the parameters.
      order: as for `two_frame_flow`, an integer: resummed, the series of maps that are not gradient
        descent, whose multipliers are complex, is worse than order 2.
      floor: likewise, of the norm of the whole state's oscillation.
      burn_in: likewise, in steps of this map.

    Returns:
      A `Flow` whose state is a `TwoFrameState`. Its time counts steps: iterate $k$ is at time $k$.

    Raises:
      ValueError: `order` is below 1, `floor` or `burn_in` is negative; from `init`, a step that
        changes the structure of the state.
      TypeError: `order` or `burn_in` is not an integer, or `step` is not a function.

    Example:
      >>> import jax.numpy as jnp, optax, pfcore
      >>> loss = lambda x: jnp.sum(jnp.array([1.95, 0.1]) * x**2) / 2
      >>> stepper = pfcore.flows.optax_step(optax.sgd(1.0), loss)
      >>> flow = pfcore.flows.two_frame_flow_of(stepper)
      >>> path = pfcore.integrate(flow, jnp.array([1.0, 1.0]), jnp.array([0.0, 10.0]))
      >>> bool(path.completed)
      True
    """
    order = check_count("order", order, minimum=1)
    terms, least, burn_in = _check_options(order, None, floor, burn_in)
    if not isinstance(step, Stepper):
        if not callable(step):
            raise TypeError(f"step must be a function of a state, or a Stepper, got {step!r}")
        step = Stepper(identity, step, identity)
    mean_loss = None
    if step.loss is not None:
        mean_loss = bind(_mapped_mean_loss, step.loss, step.position)
    return Flow(
        init=bind(_mapped_init, step, burn_in, dynamic=(least,)),
        vector_field=bind(_mapped_field, step.step, terms),
        position=bind(_mapped_position, step.position),
        oscillation=bind(_mapped_oscillation, step.position),
        expected_loss=mean_loss,
        after_step=jax.tree_util.Partial(_renewed, least),
    )
