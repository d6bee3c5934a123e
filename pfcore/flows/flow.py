"""What a flow is: an initial state, a vector field, and where the parameters stand."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, TypeVar, cast

import jax
import jax.numpy as jnp

from pfcore import _programs
from pfcore._trees import Params

State = Any


class Flow(NamedTuple):
    r"""A continuous-time model of an optimiser, $\dot s = f(t, s)$, as pure functions.

    The state may hold more than the parameters (the principal flow's is complex, the two-frame
    flow's has a centre and an oscillation), which is why it is made by `init` and read by
    `position`. Three functions make a flow; the others are optional.

    Attributes:
      init: `init(params) -> state`. Checks the loss and the parameters.
      vector_field: `vector_field(t, state) -> dstate/dt`, with its sign: gradient flow's is
        $-\nabla E$.
      position: `position(state) -> params`, real, comparable with gradient descent's.
      oscillation: `oscillation(state) -> params`, half the difference of successive iterates of an
        optimiser that oscillates about the position.
      expected_loss: `expected_loss(state) -> scalar`, the loss of the optimiser averaged over its
        oscillation.
      after_step: `after_step(state) -> state`, the same state in another representation, such as
        a unit vector normalised again; an integrator applies it after each step that it accepts.
    """

    init: Callable[[Params], State]
    vector_field: Callable[[Any, State], State]
    position: Callable[[State], Params]
    oscillation: Callable[[State], Params] | None = None
    expected_loss: Callable[[State], jax.Array] | None = None
    after_step: Callable[[State], State] | None = None


class SteppedFlow(NamedTuple):
    r"""A continuous-time model of an optimiser that brings its own steps.

    For flows that no solver of ordinary differential equations can follow: those whose rate solves
    an inclusion, as central flow's does, or jumps, as rod flow's.

    Attributes:
      init: `init(params) -> state`. Checks the loss and the parameters.
      step: `step(dt, state) -> state`, at time `dt` later, in the unit of the flows: one step of
        gradient descent takes the learning rate.
      position: `position(state) -> params`, as for a `Flow`.
      max_step: the longest `dt`; `pfcore.integrate` divides the time between two times that are
        asked for into equal steps no longer than this.
      oscillation: as for a `Flow`, or None.
      expected_loss: as for a `Flow`, or None.
      residual: `residual(state) -> scalar`, how far the last step was from solving its equations,
        relative to their size; None where there is nothing to solve. `pfcore.integrate` stops
        where it exceeds 1e-3 or is not a number.
      vector_field: as for a `Flow`, or None where the flow has no such function of the state.
    """

    init: Callable[[Params], State]
    step: Callable[[Any, State], State]
    position: Callable[[State], Params]
    max_step: Any
    oscillation: Callable[[State], Params] | None = None
    expected_loss: Callable[[State], jax.Array] | None = None
    residual: Callable[[State], jax.Array] | None = None
    vector_field: Callable[[Any, State], State] | None = None


AnyFlow = TypeVar("AnyFlow", bound=Flow | SteppedFlow)


@dataclasses.dataclass(frozen=True)
class _Bound:
    """A function with its leading arguments fixed, in full precision also outside `integrate`.

    It is equal to another with the same arguments: `functools.partial` objects compare by
    identity, and equal flows must compare equal, so that the integrator is compiled once for a loss
    and not once for each learning rate.
    """

    function: Callable
    arguments: tuple

    def __call__(self, *args):
        with _programs.settings():
            return self.function(*self.arguments, *args)


def bind(function: Callable, *static: Any, dynamic: tuple = ()) -> jax.tree_util.Partial:
    """`function(*static, *dynamic, ...)`: a pytree whose leaves are the `dynamic` arrays."""
    return jax.tree_util.Partial(_Bound(function, static), *dynamic)


class Composite:
    """What takes functions that `bind` made as its first arguments, in a `jax.tree_util.Partial`.

    Attributes:
      timed: of each of these functions, whether it takes the time before the state.
    """

    timed: ClassVar[tuple[bool, ...]]


def _program(function: Any, *args: Any) -> Any:
    """A function made by `bind` as a program apart from the data of its loss; others as they are.

    The first static argument of `bind` is what holds the data.
    """
    composite: Any = getattr(function, "func", None)
    if isinstance(composite, Composite):
        parts = zip(function.args, composite.timed, strict=True)
        programs = [f and _program(f, *(args if timed else args[1:])) for f, timed in parts]
        return jax.tree_util.Partial(composite, *programs)
    known = isinstance(function, jax.tree_util.Partial) and isinstance(function.func, _Bound)
    if not known or _programs.is_traced(args, function.args):
        return function
    loss, *options = function.func.arguments
    given = (*function.args, *args)
    program = _programs.remembered(
        (function.func.function, tuple(options)),
        loss,
        given,
        functools.partial(_programs.trace, function.func, *given),
    )
    return jax.tree_util.Partial(_called, program, *function.args)


def shared(flow: AnyFlow, state: State, time: jax.Array) -> AnyFlow:
    """The flow with its functions as programs, apart from the data of its loss.

    So flows whose losses compute the same on other data share what is compiled, and nothing holds
    the data. Functions that were not made by `bind` are left as they are. No derivatives can be
    taken of the programs (see `pfcore._programs`).
    """
    of_time = ("vector_field",) if isinstance(flow, Flow) else ("step",)
    of_state = ("expected_loss", "oscillation", "after_step", "residual")
    replaced = {name: _program(getattr(flow, name), time, state) for name in of_time}
    for name in of_state:
        if getattr(flow, name, None) is not None:
            replaced[name] = _program(getattr(flow, name), state)
    if not isinstance(flow, Flow):
        replaced["vector_field"] = None
    return cast(AnyFlow, flow._replace(init=identity, **replaced))


@dataclasses.dataclass(frozen=True)
class _Version:
    """A function of a flow, equal to another while its loss computes the same."""

    function: Any
    token: Any

    def __call__(self, *args):
        return self.function(*args)


def versioned(flow: Flow) -> Flow:
    """The flow with a field that compiled functions take for another once its loss has changed.

    For solvers that differentiate the field, which `shared` does not allow.
    """
    field: Any = flow.vector_field
    known = isinstance(field, jax.tree_util.Partial) and isinstance(field.func, _Bound)
    if not known:
        return flow
    token = _programs.remembered("version", field.func.arguments[0], (), object)
    return flow._replace(
        vector_field=jax.tree_util.Partial(_Version(field.func, token), *field.args)
    )


def _called(program: _programs.Program, *args: Any) -> State:
    # Constants come out of a program as NumPy has them.
    return jax.tree.map(jnp.asarray, program(*args))


def identity(state: State) -> Params:
    """The position of a flow whose state is the parameters."""
    return state
