"""Curvature-dynamics aware tuning: on edge along the optimiser's own direction."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from pfcore._checks import Loss, ScalarLike, check_positive
from pfcore._trees import Params, real_dtype
from pfcore.learning_rates.common import bounded, required, scaled
from pfcore.learning_rates.dal import descending


class ScaleByCdatState(NamedTuple):
    r"""State of `scale_by_cdat`.

    Attributes:
      learning_rate: $h$ of the last update; the maximum before the first.
      curvature: $|u^\top Hu|/\|u\|^2$ along the last update's direction; 0 before.
      slope: smoothed $n = \max(-g^\top u, 0)$.
      bend: smoothed $d = |u^\top Hu|$.
      num_updates: so far.
    """

    learning_rate: Float[Array, ""]
    curvature: Float[Array, ""]
    slope: Float[Array, ""]
    bend: Float[Array, ""]
    num_updates: Int[Array, ""]


def scale_by_cdat(
    scale: ScalarLike = 2.0, decay: ScalarLike = 0.9, max_learning_rate: ScalarLike = 5.0
) -> optax.GradientTransformationExtraArgs:
    r"""Scale updates by CDAT's learning rate.

    Along the direction $u$ that the update will take, minus what comes in,

    $$\begin{gathered}
    h = \min\Bigl(\sigma\,\frac{\bar n}{\bar d},\; h_\text{max}\Bigr), \\
    n = \max(-g^\top u, 0), \quad d = |u^\top H u| ,
    \end{gathered}$$

    where bars are exponential moving averages. $\sigma = 2$ is "on edge": the loss's quadratic
    model along $u$ ends where it began; $\sigma = 1$ is its minimum. For gradient descent without
    smoothing, DAL at $p = 1$ never exceeds it at $\sigma = 2$, by Cauchy and Schwarz.

    Where $\bar d = 0$, h is $h_\text{max}$ if $\bar n > 0$, else 0. Where one of them is not
    finite, h is 0, the update is zero, and the averages are kept as they were.

    Args:
      scale: $\sigma > 0$.
      decay: of the averages, in [0, 1); 0 for no smoothing.
      max_learning_rate: $h_\text{max} > 0$, this library's addition.

    Returns:
      An Optax transformation with extra arguments, called as `scale_by_dal` is; it computes the
      gradient anew, at the price of one product, so it may stand after momentum or Adam. Its state
      is a `ScaleByCdatState`.

    Raises:
      ValueError: an option is out of range; `loss_fn` or `params` is missing.

    Example:
      >>> import jax, jax.numpy as jnp, pfcore
      >>> loss = lambda x: 4.0 * x[0] ** 2
      >>> tx = pfcore.learning_rates.scale_by_cdat()
      >>> x = jnp.array([1.0])
      >>> _, state = tx.update(jax.grad(loss)(x), tx.init(x), x, loss_fn=loss)
      >>> float(state.curvature), float(state.learning_rate)
      (8.0, 0.25)

    References:
      Roulet, Agarwala, Grill, Swirszcz, Blondel, Pedregosa, *Stepping on the edge: curvature aware
      learning rate tuners*, NeurIPS 2024 (arXiv 2407.06183).
    """
    check_positive("scale", scale)
    check_positive("max_learning_rate", max_learning_rate)
    if not isinstance(decay, jax.core.Tracer) and not 0 <= float(decay) < 1:
        raise ValueError(f"decay must be at least 0 and below 1, got {decay!r}")

    def init(params: Params) -> ScaleByCdatState:
        zero = jnp.zeros((), real_dtype(params))
        most = jnp.asarray(max_learning_rate).astype(zero.dtype)
        return ScaleByCdatState(most, zero, zero, zero, jnp.zeros((), jnp.int32))

    def update(
        updates: Params,
        state: ScaleByCdatState,
        params: Params | None = None,
        *,
        loss_fn: Loss | None = None,
        **extra: Any,
    ) -> tuple[Params, ScaleByCdatState]:
        del extra
        loss, params = required("scale_by_cdat", loss_fn, params)
        dtype = state.slope.dtype
        g, product = jax.jvp(jax.grad(loss), (params,), (updates,))
        slope = jnp.maximum(optax.tree.vdot(g, updates), 0).astype(dtype)
        bend = jnp.abs(optax.tree.vdot(updates, product)).astype(dtype)
        sane = jnp.isfinite(slope) & jnp.isfinite(bend)
        # Before the first the averages are zero: what is missing cancels in the ratio.
        keep = jnp.asarray(decay).astype(dtype)
        mean_slope = jnp.where(sane, keep * state.slope + (1 - keep) * slope, state.slope)
        mean_bend = jnp.where(sane, keep * state.bend + (1 - keep) * bend, state.bend)
        rate = jnp.asarray(scale).astype(dtype) * mean_slope / mean_bend
        rate = jnp.where(mean_slope > 0, rate, jnp.zeros_like(rate))
        rate = bounded(rate, slope + bend, max_learning_rate)
        size = optax.tree.vdot(updates, updates).astype(dtype)
        curvature = bend / jnp.where(size > 0, size, jnp.ones_like(size))
        return scaled(updates, rate), ScaleByCdatState(
            rate, curvature, mean_slope, mean_bend, optax.safe_increment(state.num_updates)
        )

    return optax.GradientTransformationExtraArgs(init, update)


def cdat(
    scale: ScalarLike = 2.0, decay: ScalarLike = 0.9, max_learning_rate: ScalarLike = 5.0
) -> optax.GradientTransformationExtraArgs:
    """Gradient descent with CDAT's learning rate: `scale_by_cdat`, then descend.

    Args:
      scale, decay, max_learning_rate: as for `scale_by_cdat`.

    Returns:
      An Optax transformation with extra arguments; its state is that of `scale_by_cdat`.

    Raises:
      ValueError: as for `scale_by_cdat`.

    Example:
      >>> import jax, jax.numpy as jnp, pfcore
      >>> loss = lambda x: 4.0 * x[0] ** 2
      >>> tx = pfcore.learning_rates.cdat(scale=1.0, decay=0.0)
      >>> x = jnp.array([1.0])
      >>> updates, _ = tx.update(jax.grad(loss)(x), tx.init(x), x, loss_fn=loss)
      >>> float(updates[0])  # to the minimum in one step
      -1.0
    """
    return descending(scale_by_cdat(scale, decay, max_learning_rate))
