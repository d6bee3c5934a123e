"""Drift-adjusted learning rates: the step is as long as the drift allows."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from pfcore._checks import Loss, ScalarLike, check_count, check_positive
from pfcore._trees import Params, add_scaled, real_dtype
from pfcore.curvature import hvp
from pfcore.learning_rates.common import bounded, check_power, required, scaled

FINITE_DIFFERENCE = 0.01  # length of the step that the difference of gradients takes


class ScaleByDalState(NamedTuple):
    r"""State of `scale_by_dal`.

    Attributes:
      learning_rate: $h$ of the last update; the maximum before the first.
      curvature: $\|Hg\|/\|g\|$ as last measured; 0 before.
      num_updates: so far.
    """

    learning_rate: Float[Array, ""]
    curvature: Float[Array, ""]
    num_updates: Int[Array, ""]


def _stretch(kind: str, loss_fn: Loss, params: Params, g: Params) -> Array:
    """How much longer H makes g: the norm of H g over that of g; 0 where g is 0."""
    size = optax.tree.norm(g)
    divisor = jnp.where(size > 0, size, jnp.ones_like(size))
    if kind == "exact":
        return optax.tree.norm(hvp(loss_fn, params, g)) / divisor
    beyond = jax.grad(loss_fn)(add_scaled(params, FINITE_DIFFERENCE / divisor, g))
    difference = optax.tree.norm(jax.tree.map(jnp.subtract, beyond, g)) / FINITE_DIFFERENCE
    return jnp.where(size == 0, jnp.zeros_like(difference), difference)


def scale_by_dal(
    power: ScalarLike = 1.0,
    max_learning_rate: ScalarLike = 5.0,
    *,
    product: str = "exact",
    refresh_every: int = 1,
) -> optax.GradientTransformationExtraArgs:
    r"""Scale gradients by the drift-adjusted learning rate.

    $$h = \min\Bigl(\frac{2}{(\|Hg\|/\|g\|)^{p}},\; h_\text{max}\Bigr)$$

    In one step gradient descent departs from the negative gradient flow by $\frac{h^2}2 Hg$ to
    leading order; DAL ($p = 1$) keeps $\frac{h}{2}\|Hg\|$ at $\|g\|$. Where all of the gradient
    lies along one eigenvector, that is $h = 2/|\lambda|$, the edge of stability. $p = 0$ is the
    fixed rate $\min(2, h_\text{max})$.

    A gradient of zero, and a curvature of zero with $p > 0$, give $h_\text{max}$. Where $\|Hg\|$ or
    $\|g\|$ is not finite, h is 0 and the update is zero.

    Args:
      power: $p \ge 0$.
      max_learning_rate: $h_\text{max} > 0$.
      product: "exact" (forward over reverse, about two gradients) or "finite_difference" (one
        gradient, at $\theta + 0.01\,g/\|g\|$; takes the incoming updates for the gradient, so it
        has to come first in a chain).
      refresh_every: updates between measurements of the curvature; the rate is kept meanwhile.

    Returns:
      An Optax transformation with extra arguments: `update(updates, state, params, loss_fn=loss)`,
      where `loss` is a function of the parameters alone, in stochastic training that of the
      mini-batch. Its state is a `ScaleByDalState`. After momentum, it is the drift along the
      direction of the update that counts.

    Raises:
      ValueError: an option is not known or out of range; `loss_fn` or `params` is missing.

    Example:
      >>> import jax, jax.numpy as jnp, pfcore
      >>> loss = lambda x: 4.0 * x[0] ** 2
      >>> tx = pfcore.learning_rates.scale_by_dal()
      >>> x = jnp.array([1.0])
      >>> _, state = tx.update(jax.grad(loss)(x), tx.init(x), x, loss_fn=loss)
      >>> float(state.curvature), float(state.learning_rate)
      (8.0, 0.25)

    References:
      Rosca, Wu, Qin, Dherin, *On a continuous time model of gradient descent dynamics and
      instability in deep learning*, TMLR 2023; $h_\text{max} = 5$ and the finite difference are
      those of its released code.
    """
    check_power(power)
    check_positive("max_learning_rate", max_learning_rate)
    if product not in ("exact", "finite_difference"):
        raise ValueError(f"product must be 'exact' or 'finite_difference', got {product!r}")
    refresh_every = check_count("refresh_every", refresh_every, minimum=1)

    def init(params: Params) -> ScaleByDalState:
        dtype = real_dtype(params)
        return ScaleByDalState(
            learning_rate=jnp.asarray(max_learning_rate).astype(dtype),
            curvature=jnp.zeros((), dtype),
            num_updates=jnp.zeros((), jnp.int32),
        )

    def update(
        updates: Params,
        state: ScaleByDalState,
        params: Params | None = None,
        *,
        loss_fn: Loss | None = None,
        **extra: Any,
    ) -> tuple[Params, ScaleByDalState]:
        del extra
        loss, params = required("scale_by_dal", loss_fn, params)
        dtype = state.curvature.dtype

        def measure() -> Array:
            return _stretch(product, loss, params, updates).astype(dtype)

        if refresh_every == 1:
            curvature = measure()
        else:
            due = state.num_updates % refresh_every == 0
            curvature = jax.lax.cond(due, measure, lambda: state.curvature)
        rate = 2 / curvature ** jnp.asarray(power).astype(dtype)
        rate = bounded(rate, curvature, max_learning_rate)
        return scaled(updates, rate), ScaleByDalState(
            rate, curvature, optax.safe_increment(state.num_updates)
        )

    return optax.GradientTransformationExtraArgs(init, update)


def dal(
    power: ScalarLike = 1.0,
    max_learning_rate: ScalarLike = 5.0,
    *,
    product: str = "exact",
    refresh_every: int = 1,
) -> optax.GradientTransformationExtraArgs:
    """Gradient descent with the drift-adjusted learning rate: `scale_by_dal`, then descend.

    It keeps training at the edge of stability, not below: on a quadratic it ends in jumping between
    the walls of the steepest valley. `max_learning_rate`, or a scale after it, brings it to rest.

    Args:
      power, max_learning_rate, product, refresh_every: as for `scale_by_dal`.

    Returns:
      An Optax transformation with extra arguments; its state is that of `scale_by_dal`.

    Raises:
      ValueError: as for `scale_by_dal`.

    Example:
      >>> import jax, jax.numpy as jnp, pfcore
      >>> loss = lambda x: 4.0 * x[0] ** 2
      >>> tx = pfcore.learning_rates.dal()
      >>> x = jnp.array([1.0])
      >>> updates, _ = tx.update(jax.grad(loss)(x), tx.init(x), x, loss_fn=loss)
      >>> float(updates[0])  # to the valley's other wall: the edge of stability
      -2.0
    """
    scaling = scale_by_dal(power, max_learning_rate, product=product, refresh_every=refresh_every)
    return descending(scaling)


def descending(
    scaling: optax.GradientTransformationExtraArgs,
) -> optax.GradientTransformationExtraArgs:
    """`scaling` with its sign turned, and its state as it is."""

    def update(updates, state, params=None, **extra):
        updates, state = scaling.update(updates, state, params, **extra)
        return jax.tree.map(jnp.negative, updates), state

    return optax.GradientTransformationExtraArgs(scaling.init, update)
