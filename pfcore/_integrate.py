"""Integrate a flow to given times, by Diffrax or by the flow's own steps."""

import enum
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from pfcore import _programs
from pfcore._checks import (
    ArrayLike,
    ScalarLike,
    check_count,
    check_learning_rate,
    check_positive,
)
from pfcore._trees import Params, in_single, real_dtype
from pfcore.flows.flow import Flow, State, SteppedFlow, shared, versioned

MAX_STEPS = 4096
# Errors of single steps add up over a trajectory. Holding each to a tenth of the tolerance keeps
# the total near the tolerance, at the cost of a third more steps of an 8th-order method.
LOCAL_SHARE = 0.1
# The largest residual of a step that counts as solved, and how far a step may exceed `max_step`:
# times in single precision are not exact multiples of the learning rate.
UNSOLVED = 1e-3
SLACK = 1e-3
# The pace of the integration is checked every WINDOW steps.
WINDOW = 128


class Reason(enum.IntEnum):
    """Why an integration stopped; the values of `Trajectory.reason`."""

    END = 0
    MAX_STEPS = 1
    PACE = 2
    STEP_SIZE = 3
    NOT_FINITE = 4
    SOLVER = 5
    UNSOLVED = 6


WHY = {
    Reason.END: "reached the end",
    Reason.MAX_STEPS: "max_steps: all were taken before the last time; raise max_steps",
    Reason.PACE: (
        "pace: at the present pace the rest would take more than max_steps. Where the field jumps, "
        "as at the kinks of relu and by the rounding of a loss that computes in bfloat16, no step "
        "is short enough for tight tolerances: pass rtol=1e-3, atol=1e-5, solver=diffrax.Tsit5(), "
        "or use a smooth activation and float32; on the branch cut of the "
        "principal flow pass branch='continued' or state='real'. Where the flow is stiff, pass an "
        "implicit solver, such as diffrax.Kvaerno5(). Otherwise raise max_steps or the tolerances"
    ),
    Reason.STEP_SIZE: (
        "step size: it fell below machine epsilon of the times, where the solution blows up or the "
        "field jumps; stop before, or use float64 or larger tolerances"
    ),
    Reason.NOT_FINITE: (
        "not finite: the next step met NaN or infinity, where the solution blows up or leaves the "
        "domain of the loss; stop before, or start elsewhere"
    ),
    Reason.SOLVER: (
        "solver: its implicit equations were not solved; use another solver or larger tolerances"
    ),
    Reason.UNSOLVED: (
        "unsolved: the equations of a step were not solved, and `residual` is their error; stop "
        "before, take shorter steps, or use another flow"
    ),
}


class Trajectory(NamedTuple):
    """The positions of a flow at given times.

    Attributes:
      times: [T], as requested.
      params: real positions, stacked along a new leading axis of length T; NaN at times that
        were not reached.
      completed: whether every time was reached with finite values.
      num_steps: steps taken, including rejected ones.
      reason: why it stopped, an integer that `why` explains: 0 the end, 1 `max_steps`, 2 the pace,
        3 the step size, 4 values that are not finite, 5 the solver, 6 a step of a `SteppedFlow`
        that was not solved.
      oscillation: the flow's `oscillation`, stacked as `params` is; None where the flow has none.
      expected_loss: [T], the flow's `expected_loss`; None where it has none.
      residual: [T], the largest `residual` of the steps between each time and the one before;
        None where the flow has none. It includes the step that stopped the integration, and is
        NaN after it.
    """

    times: jax.Array
    params: Params
    completed: jax.Array
    num_steps: jax.Array
    reason: jax.Array
    oscillation: Params | None = None
    expected_loss: jax.Array | None = None
    residual: jax.Array | None = None

    @property
    def why(self) -> str:
        """`reason` in words, with a remedy; for a batch of trajectories, each reason once."""
        if isinstance(self.reason, jax.core.Tracer):
            raise TypeError(
                "why is a string, which a compiled function cannot return; return the trajectory "
                "or its reason, and read why outside"
            )
        return "; ".join(WHY[Reason(int(code))] for code in np.unique(self.reason))


class _Progress(NamedTuple):
    """State of an integration.

    Attributes:
      reached: the end time of the last accepted step.
      state: the state at that time, as one vector.
      proposed: the end time of the next step to try.
      last: start, end and dense output of the last accepted step.
      solver, controller: states of Diffrax's solver and step-size controller.
      num_steps: steps taken, including rejected ones.
      window_start: time at the start of the current window of `WINDOW` steps.
      slow_window: the longest of the immediately preceding windows that were too slow; negative if
        the last one was not.
      jumped: whether the state changed its representation after the last step, in which case the
        solver cannot reuse the slope at its end.
      met_nan: whether a step of the current window met values that are not finite.
      failed: the `Reason` to stop; 0 to continue.
    """

    reached: jax.Array
    state: jax.Array
    proposed: jax.Array
    last: tuple[jax.Array, jax.Array, Any]
    solver: Any
    controller: Any
    num_steps: jax.Array
    window_start: jax.Array
    slow_window: jax.Array
    jumped: jax.Array
    met_nan: jax.Array
    failed: jax.Array


def _flattened(state: State, dtype: jnp.dtype) -> jax.Array:
    """A state as one real vector of one precision, complex arrays as real and imaginary parts.

    Diffrax's error control is made for real states, and warns about complex ones. One vector also
    compiles faster than a state of many arrays.
    """

    def parts(x: jax.Array) -> list[jax.Array]:
        real = [x.real, x.imag] if jnp.iscomplexobj(x) else [x]
        return [part.ravel().astype(dtype) for part in real]

    return jnp.concatenate([part for x in jax.tree.leaves(state) for part in parts(x)])


def _restored(flat: jax.Array, like: State) -> State:
    """Inverse of `_flattened`."""
    leaves, place = [], 0
    for x in jax.tree.leaves(like):
        parts = []
        for _ in range(2 if jnp.iscomplexobj(x) else 1):
            parts.append(flat[place : place + x.size].reshape(x.shape))
            place += x.size
        leaves.append(jax.lax.complex(*parts) if len(parts) == 2 else parts[0])
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _prepared(
    solver: diffrax.AbstractSolver, controller: diffrax.PIDController
) -> diffrax.AbstractSolver:
    """`solver`, set up for forward-mode derivatives and the controller's tolerances."""
    if getattr(solver, "scan_kind", "") is None:
        solver = eqx.tree_at(lambda s: s.scan_kind, solver, "lax", is_leaf=lambda x: x is None)
    if isinstance(solver, diffrax.AbstractImplicitSolver):
        unset = diffrax.with_stepsize_controller_tols(diffrax.VeryChord)().rtol
        names = [
            name
            for name in ("rtol", "atol", "norm")
            if getattr(solver.root_finder, name, None) is unset
        ]
        solver = eqx.tree_at(
            lambda s: [getattr(s.root_finder, name) for name in names],
            solver,
            [getattr(controller, name) for name in names],
        )
    return solver


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
    """Integrate with Diffrax's solver, step-size controller and dense output, in our own loop.

    `diffrax.diffeqsolve` checks its arguments by host callbacks within the compiled program. These
    prevent JAX from storing the program in its compilation cache. It also traces features that are
    not needed here.
    """
    like = jax.eval_shape(lambda s: s, state)
    dtype, end = times.dtype, times[-1]
    eps = float(jnp.finfo(dtype).eps)
    least = LOCAL_SHARE * atol
    if flow.oscillation is not None:
        # Differences and sums of gradients at two points have the rounding error of the gradients,
        # in small entries too. No step would be short enough for a smaller tolerance.
        sizes = jax.tree.leaves((flow.position(state), flow.oscillation(state)))
        largest = jnp.max(jnp.stack([jnp.max(jnp.abs(x)).astype(dtype) for x in sizes if x.size]))
        least = jnp.maximum(least, 8 * eps * largest)
    controller = diffrax.PIDController(
        # Below a few machine epsilons no step could ever be accepted.
        rtol=jnp.maximum(LOCAL_SHARE * rtol, 8 * eps),
        atol=least,
        dtmin=10 * eps * end,
        # By default Diffrax accepts a step of length `dtmin`, whatever its error.
        force_dtmin=False,
    )
    solver = _prepared(solver, controller)
    windows = max_steps / WINDOW
    # Under its own jit the field is traced once, however often the solver calls it.
    field = jax.jit(lambda t, y: _flattened(flow.vector_field(t, _restored(y, like)), dtype))
    terms = diffrax.ODETerm(lambda t, y, args: field(t, y))
    order: Any = solver.error_order(terms)

    def renewed(y: jax.Array) -> jax.Array:
        if flow.after_step is None:
            return y
        return _flattened(flow.after_step(_restored(y, like)), dtype)

    def attempt(progress: _Progress) -> tuple:
        return solver.step(
            terms,
            progress.reached,
            progress.proposed,
            progress.state,
            None,
            progress.solver,
            progress.jumped if flow.after_step is not None else False,
        )

    def step(progress: _Progress) -> _Progress:
        """Try one step; accept it if its error is small enough."""
        reached, proposed = progress.reached, progress.proposed
        candidate, error, dense, solver_state, solved = attempt(progress)
        finite = jnp.all(jnp.isfinite(error))
        error = jnp.where(jnp.isnan(error), jnp.inf, error)
        accepted, after, following, _, controller_state, controlled = controller.adapt_step_size(
            reached, proposed, progress.state, candidate, None, error, order, progress.controller
        )
        # Leave no remainder before the end that is lost in rounding.
        rest = jnp.where(accepted, end, after + (end - after) / 2)
        following = jnp.where(following > end - 100 * eps * end, rest, following)

        def keep(new, old):
            return jax.tree.map(lambda a, b: jnp.where(accepted, a, b), new, old)

        ended = renewed(candidate)
        jumped = jnp.where(accepted, jnp.any(ended != candidate), progress.jumped)
        num_steps = progress.num_steps + 1
        at_window_end = num_steps % WINDOW == 0
        window, before = after - progress.window_start, progress.slow_window
        slow = window * windows < end - after
        # A transient is slow, too, but its windows grow at a rate that, if it continued, would
        # give steps of any length before `max_steps` are used up.
        passing = (before < 0) | ((window - before) * windows > before)
        longest = jnp.where(slow, jnp.maximum(window, before), -1)
        met_nan = progress.met_nan | ~finite
        stuck = jnp.where(met_nan, int(Reason.NOT_FINITE), int(Reason.PACE))
        failed = jnp.where(at_window_end & slow & ~passing, stuck, int(Reason.END))
        too_small = jnp.where(met_nan, int(Reason.NOT_FINITE), int(Reason.STEP_SIZE))
        failed = jnp.where(controlled != diffrax.RESULTS.successful, too_small, failed)
        unsolved = accepted & (solved != diffrax.RESULTS.successful)
        failed = jnp.where(unsolved, int(Reason.SOLVER), failed)
        return _Progress(
            reached=jnp.asarray(after),
            state=keep(ended, progress.state),
            proposed=following,
            last=keep((reached, proposed, dense), progress.last),
            solver=keep(solver_state, progress.solver),
            controller=controller_state,
            num_steps=num_steps,
            window_start=jnp.where(at_window_end, after, progress.window_start),
            slow_window=jnp.where(at_window_end, longest, before),
            jumped=jumped,
            met_nan=met_nan & ~at_window_end,
            failed=failed.astype(jnp.int32),
        )

    def at(progress: _Progress, time: jax.Array) -> tuple[_Progress, tuple[jax.Array, _Read]]:
        """Step until `time` is reached; returns whether it was, and the values there."""
        progress = jax.lax.while_loop(
            lambda p: (p.reached < time) & (p.num_steps < max_steps) & (p.failed == 0),
            step,
            progress,
        )
        start, stop, dense = progress.last
        value = solver.interpolation_cls(t0=start, t1=stop, **dense).evaluate(time)
        value = jnp.where(time > 0, value, begun)
        return progress, (progress.reached >= time, _read(flow, _restored(value, like)))

    begun = _flattened(state, dtype)
    zero = jnp.zeros((), dtype)
    # A first guess of the step size, corrected at once.
    first, controller_state = controller.init(
        terms, zero, end, begun, end / (10 * times.size), None, solver.func, order
    )
    progress = _Progress(
        reached=zero,
        state=begun,
        proposed=jnp.minimum(first, end),
        last=(zero, end, None),
        solver=solver.init(terms, zero, first, begun, None),
        controller=controller_state,
        num_steps=jnp.int32(0),
        window_start=zero,
        slow_window=-end,
        jumped=jnp.bool_(False),
        met_nan=jnp.bool_(False),
        failed=jnp.int32(0),
    )
    nothing = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(lambda: attempt(progress)[2])
    )
    progress, (reached, read) = jax.lax.scan(
        at, progress._replace(last=(zero, end, nothing)), times
    )
    stopped = jnp.where(progress.failed == 0, int(Reason.MAX_STEPS), progress.failed)
    return _trajectory(times, reached, read, progress.num_steps, stopped)


class _Read(NamedTuple):
    """The quantities of a state that a trajectory keeps."""

    params: Params
    oscillation: Params | None
    expected_loss: jax.Array | None


def _read(flow: Flow | SteppedFlow, state: State) -> _Read:
    return _Read(
        flow.position(state),
        None if flow.oscillation is None else flow.oscillation(state),
        None if flow.expected_loss is None else flow.expected_loss(state),
    )


def _trajectory(
    times: jax.Array,
    reached: jax.Array,
    read: _Read,
    num_steps: jax.Array,
    stopped: jax.Array,
    residual: jax.Array | None = None,
) -> Trajectory:
    """The trajectory, with NaN where it was not reached; `stopped` is the reason for that."""

    def kept(x: jax.Array) -> jax.Array:
        mask = reached.reshape((-1,) + (1,) * (x.ndim - 1))
        return jnp.where(mask & jnp.isfinite(x), x, jnp.nan)

    read = jax.tree.map(kept, read)
    finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(read.params)]))
    completed = jnp.all(reached) & finite
    reason = jnp.where(jnp.all(reached), int(Reason.NOT_FINITE), stopped)
    reason = jnp.where(completed, int(Reason.END), reason).astype(jnp.int32)
    return Trajectory(
        times,
        read.params,
        completed,
        num_steps,
        reason,
        read.oscillation,
        read.expected_loss,
        residual,
    )


class _Stepped(NamedTuple):
    """State of an integration by a flow's own steps; `failed` is a `Reason`, 0 to continue."""

    reached: jax.Array
    state: State
    residual: jax.Array
    num_steps: jax.Array
    failed: jax.Array


@eqx.filter_jit
def _take_steps(
    flow: SteppedFlow, state: State, times: jax.Array, max_steps: jax.Array
) -> Trajectory:
    """The flow's own steps, equal between two times and at most `max_step` long."""
    dtype = times.dtype
    longest = jnp.asarray(flow.max_step).astype(dtype)
    dtypes = jax.tree.map(lambda x: x.dtype, state)

    def step(dt: jax.Array, progress: _Stepped) -> _Stepped:
        state = jax.tree.map(
            lambda x, kept: x if x.dtype == kept else x.astype(kept),
            flow.step(dt, progress.state),
            dtypes,
        )
        inexact = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.inexact)]
        finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in inexact]))
        residual = progress.residual
        failed = jnp.where(finite, int(Reason.END), int(Reason.NOT_FINITE))
        if flow.residual is not None:
            latest = flow.residual(state).astype(dtype)
            residual = jnp.maximum(residual, latest)  # NaN is kept
            solved = latest <= UNSOLVED
            failed = jnp.where(solved, failed, int(Reason.UNSOLVED))
        return _Stepped(
            progress.reached + dt, state, residual, progress.num_steps + 1, failed.astype(jnp.int32)
        )

    def at(progress: _Stepped, time: jax.Array) -> tuple[_Stepped, tuple]:
        gap = time - progress.reached
        wanted = jnp.ceil(gap / longest - SLACK).astype(jnp.int32)
        wanted = jnp.where(gap > 0, jnp.maximum(wanted, 1), 0)
        dt = gap / jnp.maximum(wanted, 1).astype(dtype)
        last = progress.num_steps + wanted
        none = jnp.where(progress.failed == 0, 0, jnp.nan).astype(dtype)
        progress = progress._replace(residual=none)
        progress = jax.lax.while_loop(
            lambda p: (p.num_steps < last) & (p.num_steps < max_steps) & (p.failed == 0),
            lambda p: step(dt, p),
            progress,
        )
        there = (progress.num_steps == last) & (progress.failed == 0)
        # The sum of equal steps has a rounding error, which would accumulate over many times.
        progress = progress._replace(reached=jnp.where(there, time, progress.reached))
        stopped = (progress.failed == 0) & ~there
        failed = jnp.where(stopped, int(Reason.MAX_STEPS), progress.failed).astype(jnp.int32)
        progress = progress._replace(failed=failed)
        return progress, (there, _read(flow, progress.state), progress.residual)

    begun = _Stepped(jnp.zeros((), dtype), state, jnp.zeros((), dtype), jnp.int32(0), jnp.int32(0))
    progress, (reached, read, residual) = jax.lax.scan(at, begun, times)
    if flow.residual is None:
        residual = None
    return _trajectory(times, reached, read, progress.num_steps, progress.failed, residual)


def _check_times(times: ArrayLike, dtype: jnp.dtype) -> jax.Array:
    if not _programs.is_traced(times):
        try:
            values = np.asarray(times, float)
        except (TypeError, ValueError) as error:
            raise TypeError(f"times must be a vector of numbers, got {times!r}") from error
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


def _time_dtype(state: State) -> jnp.dtype:
    """The precision of times: the widest of the state's floating-point arrays."""
    leaves = jax.tree.leaves(state)
    return real_dtype([x for x in leaves if jnp.issubdtype(x.dtype, jnp.inexact)])


def _in_one_precision(params: Params) -> Params:
    """Real arrays in the widest of their dtypes, at least float32; not yet validated."""

    def is_real(x: Any) -> bool:
        return jnp.issubdtype(getattr(x, "dtype", bool), jnp.floating)

    real = [jnp.asarray(x) for x in jax.tree.leaves(params) if is_real(x)]
    if not real:
        return params
    widest = real_dtype(in_single(real))
    return jax.tree.map(lambda x: jnp.asarray(x).astype(widest) if is_real(x) else x, params)


@_programs.settings()
def integrate(
    flow: Flow | SteppedFlow,
    params: Params,
    times: ArrayLike,
    *,
    rtol: ScalarLike = 1e-6,
    atol: ScalarLike = 1e-9,
    max_steps: int | None = None,
    solver: diffrax.AbstractSolver | None = None,
) -> Trajectory:
    r"""Integrate a flow from `params` at time 0, and return its positions at the given times.

    Gradient descent's step $k$ is compared with time $kh$: pass `h * jnp.arange(n + 1)`, or call
    `follow`.

    The step size is adapted to the tolerances. If the integration ends early, `completed` is false
    and the positions reached are kept. `path.why` gives the reason and a remedy:

    * max_steps: all are used up. Raise `max_steps`.
    * pace: `max_steps` would not suffice. Every 128 steps, from the 256th on, the integration ends
      if the rest would take more than `max_steps` and the pace does not grow. This happens where
      the field jumps, because no step is short enough for tight tolerances there. A network of
      relu crosses kinks all the time, and rounding makes a loss that computes in bfloat16 jump:
      pass `rtol=1e-3, atol=1e-5, solver=diffrax.Tsit5()`, with errors of about the tolerances, or
      use a smooth activation and float32. The principal flow meets its
      branch cut: pass `branch="continued"` or `state="real"`. It also happens for stiff flows
      (pass an implicit solver, such as `diffrax.Kvaerno5()`) and very tight tolerances (raise
      `max_steps`).
    * step size: it fell below machine epsilon of the times. The solution blows up there, or the
      field jumps. Stop before, or use float64 or larger tolerances.
    * not finite: the next step met NaN or infinity. The solution blows up there, or leaves the
      domain of the loss. Stop before, or start elsewhere.
    * solver: its implicit equations were not solved. Use another solver, or larger tolerances.
    * unsolved: a `SteppedFlow` did not solve the equations of a step. `residual` is their error.

    A `SteppedFlow` takes its own steps, of equal length between two times, and ignores tolerances.

    Compiled once for each kind of flow, loss and shape: other learning rates, starting points
    and times reuse it. Works under `jax.jit` and `jax.vmap`, and with forward-mode derivatives.

    Args:
      flow: one of `pfcore.flows`, or any `Flow` or `SteppedFlow`.
      params: any pytree of floating-point arrays. The widest precision among them, at least
        float32, is that of the integration, of the parameters with which the loss is called and of
        the positions: in fewer bits steps of a flow would be lost.
      times: [T], at least 0, not decreasing, the last one above 0. In units of the learning
        rate times steps.
      rtol: relative tolerance on the positions. Each step is held to a tenth of it, and to no
        less than 8 machine epsilons: 1e-6 in single precision.
      atol: absolute tolerance, used in the same way; for flows with an oscillation no less than 8
        machine epsilons of the largest parameter.
      max_steps: the most steps to take; by default 4,096 adaptive ones, and without limit for a
        `SteppedFlow`.
      solver: a Diffrax solver for ordinary differential equations; by default `Dopri8`, an
        explicit Runge-Kutta method of order 8 with an interpolation of order 8. Not for a
        `SteppedFlow`.

    Returns:
      A `Trajectory`.

    Raises:
      ValueError: times that are empty, negative, decreasing or not finite, tolerances that are
        not positive, `max_steps` below 1, a solver for a `SteppedFlow`, or a loss or parameters
        that `flow.init` rejects.
      TypeError: `flow` is not a flow, times or tolerances are not numbers, `solver` is not a solver
        that estimates its error, `max_steps` is not an integer, or `flow.init` rejects the loss or
        the parameters.

    Example:
      >>> import jax.numpy as jnp, pfcore
      >>> flow = pfcore.flows.negative_gradient_flow(lambda x: 0.5 * jnp.sum(x**2))
      >>> path = pfcore.integrate(flow, jnp.array([1.0]), jnp.array([0.0, 1.0]))
      >>> bool(path.completed), round(float(path.params[-1, 0]), 4)
      (True, 0.3679)
      >>> path.why
      'reached the end'

    References:
      Prince and Dormand, *High order embedded Runge-Kutta formulae*, 1981; Kidger, *On neural
      differential equations*, 2021 (arXiv 2202.02435), for Diffrax.
    """
    if not isinstance(flow, Flow | SteppedFlow):
        raise TypeError(
            "flow must be a Flow, such as pfcore.flows.principal_flow(loss, learning_rate), "
            f"got {flow!r}"
        )
    if max_steps is not None:
        max_steps = check_count("max_steps", max_steps, minimum=1)
    if isinstance(flow, SteppedFlow) and solver is not None:
        raise ValueError(
            f"this flow takes its own steps and cannot use {solver!r}; leave solver out"
        )
    if solver is not None and not issubclass(type(solver), diffrax.AbstractAdaptiveSolver):
        raise TypeError(
            "solver must be a Diffrax solver that estimates its error, such as diffrax.Tsit5() or "
            f"diffrax.Kvaerno5(), got {solver!r}; for steps of equal length see "
            "pfcore.flows.fixed_steps"
        )
    state = in_single(flow.init(_in_one_precision(params)))
    dtype = _time_dtype(state)
    times = _check_times(times, dtype)
    relative = check_positive("rtol", rtol).astype(dtype)
    absolute = check_positive("atol", atol).astype(dtype)
    if not isinstance(solver, diffrax.AbstractImplicitSolver):
        flow = shared(flow, state, times[0])
    elif isinstance(flow, Flow):  # its field is differentiated
        flow = versioned(flow)
    if isinstance(flow, SteppedFlow):
        most = jnp.iinfo(jnp.int32).max if max_steps is None else max_steps
        return _take_steps(flow, state, times, jnp.int32(most))
    return _solve(
        flow,
        state,
        times,
        relative,
        absolute,
        diffrax.Dopri8(scan_kind="lax") if solver is None else solver,
        MAX_STEPS if max_steps is None else max_steps,
    )


def follow(
    flow: Flow | SteppedFlow,
    params: Params,
    learning_rate: ScalarLike,
    num_steps: int,
    *,
    per_step: int = 1,
    **options: Any,
) -> Trajectory:
    r"""Integrate a flow to the times of gradient descent's steps, $t_k = kh$.

    Positions are returned at the same times as those of `gradient_descent`. (The time of
    `two_frame_flow_of` counts steps: pass 1 as its learning rate.)

    Args:
      flow: one of `pfcore.flows`, or any `Flow` or `SteppedFlow`.
      params: any pytree of floating-point arrays, the position at time 0.
      learning_rate: $h > 0$, a scalar (traced values allowed).
      num_steps: number of steps, at least 1.
      per_step: positions for each step; with more than one, also times between the steps.
      **options: `rtol`, `atol`, `max_steps` and `solver` of `integrate`.

    Returns:
      A `Trajectory` of `num_steps * per_step + 1` positions; position `k * per_step` is that at
      step `k`.

    Raises:
      ValueError: the learning rate is not positive and finite, a count is below 1, or `integrate`
        rejects the flow, the parameters or an option.
      TypeError: a count is not an integer, or as for `integrate`.

    Example:
      >>> import jax.numpy as jnp, pfcore
      >>> loss, start, h = lambda x: 0.5 * jnp.sum(x**2), jnp.array([1.0]), 0.5
      >>> steps = pfcore.gradient_descent(loss, start, h, 3)
      >>> path = pfcore.follow(pfcore.flows.principal_flow(loss, h), start, h, 3)
      >>> bool(jnp.allclose(path.params, steps, atol=1e-5))
      True
    """
    rate = check_learning_rate(learning_rate)
    num_steps = check_count("num_steps", num_steps, minimum=1)
    per_step = check_count("per_step", per_step, minimum=1)
    steps = np.arange(num_steps * per_step + 1) / per_step
    if isinstance(rate, jax.core.Tracer):
        return integrate(flow, params, rate * jnp.asarray(steps, rate.dtype), **options)
    return integrate(flow, params, float(learning_rate) * steps, **options)
