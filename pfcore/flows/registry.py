"""Every flow that has a name, once: what makes it, what it is called, and how it is drawn.

`named_flow`, `pfcore.stability.coefficient`, the colours and labels of `pfcore.figures` and the
tests that run over every flow read this table.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax

from pfcore._checks import Loss, ScalarLike
from pfcore.flows import coefficients
from pfcore.flows.central import central_flow
from pfcore.flows.edge import edge_flow
from pfcore.flows.flow import Flow, SteppedFlow
from pfcore.flows.modified import igr_flow, negative_gradient_flow, third_order_flow
from pfcore.flows.principal import principal_flow
from pfcore.flows.rod import rod_flow
from pfcore.flows.two_frame import two_frame_flow


class FlowEntry(NamedTuple):
    r"""A flow, as the package knows it by its name.

    Attributes:
      label: what figures call it.
      make: `make(loss, learning_rate, **options) -> Flow` or `SteppedFlow`.
      color: the role of its colour, one of `pfcore.figures.style.PALETTE`.
      coefficient: its $\alpha(z)$ of `pfcore.stability.coefficient`; None if it has none.
      oscillates: whether this is the growth of an oscillation, not a multiple of the gradient.
    """

    label: str
    make: Callable[..., Flow | SteppedFlow]
    color: str
    coefficient: Callable[[jax.Array], jax.Array] | None = None
    oscillates: bool = False


FLOWS: dict[str, FlowEntry] = {
    "ngf": FlowEntry(
        "NGF",
        lambda loss, learning_rate: negative_gradient_flow(loss),
        "blue",
        coefficients.negative_gradient_coefficient,
    ),
    "igr": FlowEntry("IGR flow", igr_flow, "green", coefficients.igr_coefficient),
    "third_order": FlowEntry(
        "third order", third_order_flow, "sky", coefficients.third_order_coefficient
    ),
    "principal": FlowEntry("PF", principal_flow, "vermilion", coefficients.principal_coefficient),
    "principal_np": FlowEntry(
        "PF + non-principal",
        lambda *args, **options: principal_flow(*args, non_principal=True, **options),
        "pink",
    ),
    "two_frame": FlowEntry(
        "two-frame", two_frame_flow, "wine", coefficients.two_frame_growth, oscillates=True
    ),
    "rod": FlowEntry("rod", rod_flow, "amber", coefficients.rod_growth, oscillates=True),
    "edge": FlowEntry("edge-type", edge_flow, "olive", coefficients.edge_growth, oscillates=True),
    "central": FlowEntry("central", central_flow, "indigo"),
}


def named_flow(name: str, loss: Loss, learning_rate: ScalarLike, **options) -> Flow | SteppedFlow:
    """Construct a flow by its name.

    Args:
      name: one of `FLOWS`: "ngf", "igr", "third_order", "principal", "principal_np" for the
        principal flow with its first non-principal term, "two_frame", "rod", "edge" or "central".
      loss: from `params` to a real scalar.
      learning_rate: $h > 0$; unused by "ngf".
      **options: keyword options of the function that makes it.

    Returns:
      A `Flow`, or a `SteppedFlow`.

    Raises:
      ValueError: the name is not known.

    Example:
      >>> import jax.numpy as jnp, pfcore
      >>> flow = pfcore.flows.named_flow("igr", lambda x: 0.5 * jnp.sum(x**2), 0.5)
      >>> flow.vector_field(0.0, jnp.array([2.0])).tolist()
      [-2.5]
    """
    if name not in FLOWS:
        raise ValueError(f"unknown flow {name!r}; choose one of {', '.join(FLOWS)}")
    return FLOWS[name].make(loss, learning_rate, **options)
