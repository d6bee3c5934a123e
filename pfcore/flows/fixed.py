"""Runge-Kutta steps of a fixed length for flows whose stiffness, not accuracy, limits the step."""

import dataclasses
from typing import Any

import diffrax
import jax
import jax.numpy as jnp

from pfcore._checks import ScalarLike, check_positive
from pfcore._trees import add_scaled, weighted_sum
from pfcore.flows.flow import Composite, Flow, State, SteppedFlow


@dataclasses.dataclass(frozen=True)
class Tableau:
    """An explicit Runge-Kutta method of s stages.

    Attributes:
      stages: the weights of the slopes in each stage, [s, s]; those of later slopes are zero.
      weights: of all slopes, at the end of the step.
      nodes: the times of all stages, as parts of the step.
    """

    stages: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]
    nodes: tuple[float, ...]


def tableau(known: diffrax.ButcherTableau) -> Tableau:
    """The method without what estimates its error, and without stages that only that needs."""
    weights = [float(w) for w in known.b_sol]
    while len(weights) > 1 and weights[-1] == 0:
        weights.pop()
    size = len(weights)
    rows = ((), *(tuple(float(a) for a in row) for row in known.a_lower))
    stages = tuple((*row, *[0.0] * (size - len(row))) for row in rows[:size])
    nodes = (0.0, *(float(c) for c in known.c))
    return Tableau(stages, tuple(weights), nodes[:size])


@dataclasses.dataclass(frozen=True)
class FixedStep(Composite):
    """One step of a method, in a loop over its stages: the field is compiled once."""

    timed = (True, False)
    tableau: Tableau

    def __call__(self, field: Any, after_step: Any, dt: Any, state: State) -> State:
        dt = jnp.asarray(dt)
        stages, weights, nodes = (
            jnp.asarray(x, dt.dtype)
            for x in (self.tableau.stages, self.tableau.weights, self.tableau.nodes)
        )

        def moved(weights: jax.Array, slopes: State) -> State:
            return add_scaled(state, dt, weighted_sum(weights, slopes))

        def stage(slopes: State, now: tuple[jax.Array, ...]) -> tuple[State, None]:
            i, weights, node = now
            slope = field(node * dt, moved(weights, slopes))
            return jax.tree.map(lambda x, y: x.at[i].set(y), slopes, slope), None

        none = jax.tree.map(lambda x: jnp.zeros((len(nodes), *x.shape), x.dtype), state)
        slopes, _ = jax.lax.scan(stage, none, (jnp.arange(len(nodes)), stages, nodes))
        end = moved(weights, slopes)
        return end if after_step is None else after_step(end)


def fixed_steps(
    flow: Flow | SteppedFlow,
    length: ScalarLike,
    *,
    solver: diffrax.AbstractSolver | None = None,
) -> SteppedFlow:
    r"""Integrate a flow by a Runge-Kutta method of fixed step length.

    Where a flow is stiff, stability limits the steps and not accuracy: an adaptive controller finds
    the limit by rejecting steps, and estimates errors that are far below its tolerance. Steps just
    below the limit need neither. The longest stable steps of `diffrax.Bosh3`, which evaluates the
    field three times a step:

    * two-frame flow of order 1, edge-type flow without correction: $h$, up to $h\lambda = 2.5$;
    * two-frame flow of order 2, edge-type flow: $h/2$, up to $h\lambda = 2.3$; $h/4$ up to 3.6.

    There is no error control: compare with half the step length.

    Args:
      flow: a `Flow` whose field does not depend on time.
      length: step length in units of the flow's time. A step of gradient descent takes $h$; for
        `two_frame_flow_of`, a step of the map takes 1.
      solver: an explicit Runge-Kutta method of Diffrax, by default `diffrax.Bosh3()`.

    Returns:
      A `SteppedFlow` for `pfcore.integrate`.

    Raises:
      TypeError: `flow` is no `Flow`, or `solver` no explicit Runge-Kutta method.
      ValueError: the length is not positive and finite.

    Example:
      >>> import jax.numpy as jnp, pfcore
      >>> loss = lambda x: jnp.sum(1.1 * x**2 - x**4 / 4)
      >>> flow = pfcore.flows.fixed_steps(pfcore.flows.two_frame_flow(loss, 1.0), 0.5)
      >>> path = pfcore.integrate(flow, jnp.array([0.02]), jnp.array([0.0, 60.0]))
      >>> round(abs(float(path.oscillation[-1, 0])), 4), int(path.num_steps)
      (0.4472, 120)
    """
    if not isinstance(flow, Flow):
        raise TypeError(f"flow must be a Flow, got {type(flow).__name__}, which has its own steps")
    solver = diffrax.Bosh3() if solver is None else solver
    known = getattr(solver, "tableau", None)
    explicit = isinstance(solver, diffrax.AbstractERK)
    if not explicit or not isinstance(known, diffrax.ButcherTableau):
        raise TypeError(f"solver must be an explicit Runge-Kutta method of Diffrax, got {solver!r}")
    return SteppedFlow(
        init=flow.init,
        step=jax.tree_util.Partial(FixedStep(tableau(known)), flow.vector_field, flow.after_step),
        position=flow.position,
        max_step=check_positive("length", length),
        oscillation=flow.oscillation,
        expected_loss=flow.expected_loss,
    )
