"""The flows by the short names that `stability` and `figures` use too."""

from collections.abc import Callable

from pfcore._checks import Loss, ScalarLike
from pfcore.flows.flow import Flow
from pfcore.flows.modified import igr_flow, negative_gradient_flow, third_order_flow
from pfcore.flows.principal import principal_flow

_FLOWS: dict[str, Callable[..., Flow]] = {
    "ngf": lambda loss, learning_rate: negative_gradient_flow(loss),
    "igr": igr_flow,
    "third_order": third_order_flow,
    "principal": principal_flow,
    "principal_np": lambda *args, **options: principal_flow(*args, non_principal=True, **options),
}
NAMES = tuple(_FLOWS)


def named_flow(name: str, loss: Loss, learning_rate: ScalarLike, **options) -> Flow:
    """The flow called `name`: one line where several are compared.

    Args:
      name: "ngf", "igr", "third_order", "principal", or "principal_np" for the principal flow
        with its first non-principal term.
      loss: from `params` to a real scalar.
      learning_rate: $h > 0$; unused by "ngf".
      **options: keyword options of `principal_flow`, for the two names that take them.

    Returns:
      A `Flow`.

    Raises:
      ValueError: the name is not known.

    Example:
      >>> import jax.numpy as jnp, pfcore
      >>> flow = pfcore.flows.named_flow("igr", lambda x: 0.5 * jnp.sum(x**2), 0.5)
      >>> flow.vector_field(0.0, jnp.array([2.0])).tolist()
      [-2.5]
    """
    if name not in _FLOWS:
        raise ValueError(f"unknown flow {name!r}; choose one of {', '.join(NAMES)}")
    return _FLOWS[name](loss, learning_rate, **options)
