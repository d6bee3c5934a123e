"""Diffrax: a flow -> where it is at given times."""

from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from pfcore._checks import ArrayLike, check_count
from pfcore._trees import Params, real_dtype
from pfcore.flows.flow import Flow, State

MAX_STEPS = 4096
# Errors of single steps add up over a trajectory; holding each to a tenth of the tolerance keeps
# the positions near it, at the cost of a third more steps of an 8th-order method.
LOCAL_SHARE = 0.1
# How often the pace of the integration is looked at, in steps.
WINDOW = 128


class Trajectory(NamedTuple):
    """Where a flow is at given times.

    Attributes:
      times: [T], as asked for.
      params: real positions, stacked along a new leading axis of length T; NaN at times that
        were not reached.
      completed: whether every time was reached with finite values.
      num_steps: adaptive steps taken, rejected ones included.
    """

    times: jax.Array
    params: Params
    completed: jax.Array
    num_steps: jax.Array


class _PacedController(diffrax.AbstractAdaptiveStepSizeController):
    """A step-size controller that gives up where the rest would take more than `max_steps`.

    Without it a flow that meets a discontinuity it cannot leave (the branch cut of the principal
    flow) or blows up in finite time spends its whole budget of steps on the spot.
    """

    controller: diffrax.PIDController
    end: jax.Array
    max_steps: int = eqx.field(static=True)
    # What the base class asks of every controller.
    rtol: Any
    atol: Any
    norm: Callable = eqx.field(static=True)

    def __init__(self, controller: diffrax.PIDController, end: jax.Array, max_steps: int):
        self.controller = controller
        self.end = end
        self.max_steps = max_steps
        self.rtol, self.atol, self.norm = controller.rtol, controller.atol, controller.norm

    def wrap(self, direction):
        return _PacedController(self.controller.wrap(direction), self.end, self.max_steps)

    def init(self, terms, t0, t1, y0, dt0, args, func, error_order):
        t1, inner = self.controller.init(terms, t0, t1, y0, dt0, args, func, error_order)
        return t1, (inner, jnp.zeros((), int), jnp.asarray(t0))

    def adapt_step_size(self, t0, t1, y0, y1_candidate, args, y_error, error_order, state):
        inner, count, window_start = state
        keep, next_t0, next_t1, jump, inner, result = self.controller.adapt_step_size(
            t0, t1, y0, y1_candidate, args, y_error, error_order, inner
        )
        count = count + 1
        at_end = count % WINDOW == 0
        pace = (next_t0 - window_start) / WINDOW
        hopeless = at_end & (pace * self.max_steps < self.end - next_t0)
        result = diffrax.RESULTS.where(hopeless, diffrax.RESULTS.max_steps_reached, result)
        window_start = jnp.where(at_end, next_t0, window_start)
        return keep, next_t0, next_t1, jump, (inner, count, window_start), result


def _split(state: State) -> Any:
    """Complex arrays as a leading axis of real and imaginary parts.

    Diffrax's error control is made for real states, and warns of complex ones.
    """
    return jax.tree.map(lambda x: jnp.stack([x.real, x.imag]) if jnp.iscomplexobj(x) else x, state)


def _join(split: Any, like: State) -> State:
    return jax.tree.map(
        lambda x, s: jax.lax.complex(s[0], s[1]) if jnp.iscomplexobj(x) else s, like, split
    )


@eqx.filter_jit
def _solve(
    flow: Flow,
    state: State,
    times: jax.Array,
    rtol: jax.Array,
    atol: jax.Array,
    solver: diffrax.AbstractSolver,
    max_steps: int,
) -> Trajectory:
    like = jax.eval_shape(lambda s: s, state)
    end = times[-1]
    controller = diffrax.PIDController(
        # Below a few roundings no step could ever be accepted.
        rtol=jnp.maximum(LOCAL_SHARE * rtol, 8 * float(jnp.finfo(times.dtype).eps)),
        atol=LOCAL_SHARE * atol,
        dtmin=10 * jnp.finfo(times.dtype).eps * end,
    )
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, y, args: _split(flow.vector_field(t, _join(y, like)))),
        solver,
        t0=jnp.zeros_like(end),
        t1=end,
        # A guess to be corrected at once; Diffrax's own would compile the field twice more.
        dt0=end / (10 * times.size),
        y0=_split(state),
        saveat=diffrax.SaveAt(ts=times, fn=lambda t, y, args: flow.position(_join(y, like))),
        stepsize_controller=_PacedController(controller, end, max_steps),
        adjoint=diffrax.ForwardMode(),
        max_steps=max_steps,
        throw=False,
    )
    reached = jnp.isfinite(solution.ts)

    def keep(x: jax.Array) -> jax.Array:
        mask = reached.reshape((-1,) + (1,) * (x.ndim - 1))
        return jnp.where(mask & jnp.isfinite(x), x, jnp.nan)

    params = jax.tree.map(keep, solution.ys)
    finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(params)]))
    completed = (solution.result == diffrax.RESULTS.successful) & finite
    return Trajectory(times, params, completed, solution.stats["num_steps"])


def _check_times(times: ArrayLike, dtype: jnp.dtype) -> jax.Array:
    if not isinstance(times, jax.core.Tracer):
        values = np.asarray(times)
        if values.ndim != 1 or values.size == 0:
            raise ValueError(f"times must be a non-empty vector, got shape {values.shape}")
        if not np.all(np.isfinite(values)):
            raise ValueError(f"times must be finite, got {values}")
        if values[0] < 0:
            raise ValueError(f"times must not be negative, got {values[0]}; flows start at time 0")
        if np.any(np.diff(values) < 0):
            raise ValueError(f"times must not decrease, got {values}; sort them")
        if values[-1] == 0:
            raise ValueError(f"times must reach past 0, where the flow starts, got {values}")
    return jnp.asarray(times).astype(dtype)


def _check_tolerance(name: str, value: Any, dtype: jnp.dtype) -> jax.Array:
    if not isinstance(value, jax.core.Tracer) and not (np.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be positive and finite, got {value!r}")
    return jnp.asarray(value, dtype)


def integrate(
    flow: Flow,
    params: Params,
    times: ArrayLike,
    *,
    rtol: float = 1e-6,
    atol: float = 1e-9,
    max_steps: int = MAX_STEPS,
    solver: diffrax.AbstractSolver | None = None,
) -> Trajectory:
    r"""Follow a flow from `params` at time 0, and return where it is at the given times.

    Gradient descent's step $k$ is compared with time $kh$: pass `h * jnp.arange(n + 1)`.

    The step size is adapted to the tolerances. The integration ends early, with `completed`
    false, when values stop being finite, when `max_steps` are used up, or when at the present
    pace they would be; what was reached is kept.

    Compiled once for each kind of flow, loss and shape: other learning rates, starting points
    and times reuse it. Works under `jax.jit` and `jax.vmap`, and with forward-mode derivatives.

    Args:
      flow: one of `pfcore.flows`, or any `Flow`.
      params: any pytree of floating-point arrays; the precision of the integration is theirs.
      times: [T], at least 0, not decreasing, the last one above 0. In units of the learning
        rate times steps.
      rtol: relative tolerance on the positions (each step is held to a tenth of it, and to no
        less than 8 roundings: 1e-6 in single precision).
      atol: absolute tolerance, likewise.
      max_steps: most adaptive steps to be taken.
      solver: a Diffrax solver for ordinary differential equations; by default `Dopri8`, an
        explicit Runge-Kutta method of order 8 with an interpolation of order 8.

    Returns:
      A `Trajectory`.

    Raises:
      ValueError: times that are empty, negative, decreasing or not finite, tolerances that are
        not positive, or what `flow.init` refuses.

    Example:
      >>> import jax.numpy as jnp, pfcore
      >>> flow = pfcore.flows.negative_gradient_flow(lambda x: 0.5 * jnp.sum(x**2))
      >>> path = pfcore.integrate(flow, jnp.array([1.0]), jnp.array([0.0, 1.0]))
      >>> bool(path.completed), round(float(path.params[-1, 0]), 4)
      (True, 0.3679)

    References:
      Prince and Dormand, *High order embedded Runge-Kutta formulae*, 1981; Kidger, *On neural
      differential equations*, 2021 (arXiv 2202.02435), for Diffrax.
    """
    max_steps = check_count("max_steps", max_steps, minimum=1)
    state = flow.init(params)
    dtype = real_dtype(state)
    return _solve(
        flow,
        state,
        _check_times(times, dtype),
        _check_tolerance("rtol", rtol, dtype),
        _check_tolerance("atol", atol, dtype),
        diffrax.Dopri8(scan_kind="lax") if solver is None else solver,
        max_steps,
    )
