"""What a flow is: an initial state, a vector field, and where the parameters stand."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from pfcore import _programs
from pfcore._trees import Params

State = Any


class Flow(NamedTuple):
    r"""A continuous-time model of an optimiser, $\dot s = f(t, s)$, as three pure functions.

    The state may hold more than the parameters (the principal flow's is complex), which is why
    it is made by `init` and read by `position`.

    Attributes:
      init: `init(params) -> state`. Checks the loss and the parameters.
      vector_field: `vector_field(t, state) -> dstate/dt`, with its sign: gradient flow's is
        $-\nabla E$.
      position: `position(state) -> params`, real, comparable with gradient descent's.
    """

    init: Callable[[Params], State]
    vector_field: Callable[[Any, State], State]
    position: Callable[[State], Params]


@dataclasses.dataclass(frozen=True)
class _Bound:
    """A function with its leading arguments fixed, equal to another with the same ones.

    `functools.partial` objects compare by identity; equal flows must compare equal, so that the
    integrator is compiled once for a loss and not once for each learning rate.
    """

    function: Callable
    arguments: tuple

    def __call__(self, *args):
        return self.function(*self.arguments, *args)


def bind(function: Callable, *static: Any, dynamic: tuple = ()) -> jax.tree_util.Partial:
    """`function(*static, *dynamic, ...)`: a pytree whose leaves are the `dynamic` arrays."""
    return jax.tree_util.Partial(_Bound(function, static), *dynamic)


def shared(flow: Flow, state: State, time: jax.Array) -> Flow:
    """The flow with its vector field as a program, apart from the data of its loss.

    So flows whose losses compute the same on other data share what is compiled, and nothing holds
    the data. A flow that was not made by `bind` is returned as it is. No derivatives can be taken
    of the program (see `pfcore._programs`).
    """
    field: Any = flow.vector_field
    known = isinstance(field, jax.tree_util.Partial) and isinstance(field.func, _Bound)
    if not known or _programs.is_traced(state, time, field.args):
        return flow
    loss, *options = field.func.arguments
    given = (*field.args, time, state)
    program = _programs.remembered(
        (field.func.function, tuple(options)),
        loss,
        given,
        functools.partial(_programs.trace, field.func, *given),
    )
    return Flow(identity, jax.tree_util.Partial(_called, program, *field.args), flow.position)


def _called(program: _programs.Program, *args: Any) -> State:
    return program(*args)


def identity(state: State) -> Params:
    """The position of a flow whose state is the parameters."""
    return state
