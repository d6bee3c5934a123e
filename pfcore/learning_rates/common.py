"""What the learning rates share: what they need, how they are bounded and applied."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from pfcore._checks import Loss, ScalarLike
from pfcore._trees import Params, scale


def required(name: str, loss_fn: Loss | None, params: Params | None) -> tuple[Loss, Params]:
    """The loss and the parameters, or what to do about their absence."""
    if loss_fn is None or params is None:
        missing = "loss_fn" if loss_fn is None else "params"
        raise ValueError(
            f"{name} needs the parameters and the loss: call "
            f"tx.update(grads, state, params, loss_fn=loss); {missing} is missing"
        )
    return loss_fn, params


def check_power(power: ScalarLike) -> None:
    """A real number that is not negative; traced values are taken on trust."""
    if not isinstance(power, jax.core.Tracer) and not 0 <= float(power) < float("inf"):
        raise ValueError(f"power must be at least 0 and finite, got {power!r}")


def bounded(rate: Array, measured: Array, max_learning_rate: Any) -> Float[Array, ""]:
    """At most the maximum; 0 where what was measured is not finite."""
    most = jnp.asarray(max_learning_rate).astype(rate.dtype)
    rate = jnp.where(jnp.isnan(rate), most, jnp.minimum(rate, most))
    return jnp.where(jnp.isfinite(measured), rate, jnp.zeros_like(rate))


def scaled(updates: Params, rate: Array) -> Params:
    """rate · updates; zeros where the rate is 0, so that one bad batch does no harm."""
    return jax.tree.map(lambda x: jnp.where(rate > 0, x, jnp.zeros_like(x)), scale(rate, updates))
