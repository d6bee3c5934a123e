"""Curvature-dynamics aware tuning: at the edge along the optimiser's own direction."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from pfcore._checks import Loss, ScalarLike, check_positive
from pfcore._trees import Params
from pfcore.learning_rates._dal import descending
from pfcore.learning_rates.common import (
    AxisName,
    bounded,
    check_decay,
    gradient_and_product,
    is_empty,
    normalised,
    point,
    scaled,
    state_dtype,
    trained,
)


class ScaleByCdatState(NamedTuple):
    r"""State of `scale_by_cdat`.

    Attributes:
      learning_rate: $h$ of the last update; the maximum before the first.
      curvature: $|u^\top Hu|/\|u\|^2$ along the last update's direction; 0 before.
      slope: smoothed $n = \max(-g^\top u, 0)$, divided by $2^\text{exponent}$.
      bend: smoothed $d = |u^\top Hu|$, divided by $2^\text{exponent}$.
      num_updates: number of updates so far.
      exponent: 0 unless an average is so large or so small that it might leave the range of its
        dtype.
    """

    learning_rate: Float[Array, ""]
    curvature: Float[Array, ""]
    slope: Float[Array, ""]
    bend: Float[Array, ""]
    num_updates: Int[Array, ""]
    exponent: Int[Array, ""]


def _dot(tree: Params, other: Params, dtype: jnp.dtype) -> Array:
    products = jax.tree.map(lambda x, y: jnp.sum(x * y).astype(dtype), tree, other)
    return sum(jax.tree.leaves(products), jnp.zeros((), dtype))


def _smoothed(
    state: ScaleByCdatState, keep: Array, slope: Array, bend: Array, size: Array
) -> tuple[Array, Array, Array]:
    """The averages of size · slope and size² · bend, and their common exponent.

    The products overflow or underflow where the gradient is large or small. Mantissas and exponents
    are therefore multiplied separately.
    """
    dtype = slope.dtype
    size, power = jnp.frexp(size)
    new = ((size * slope, power), (size * size * bend, 2 * power))
    old = ((state.slope, state.exponent), (state.bend, state.exponent))
    least = jnp.iinfo(jnp.int32).min // 2

    def top(number: Array, exponent: Array) -> Array:
        mine = (jnp.frexp(number)[1] + exponent).astype(jnp.int32)
        return jnp.where(number > 0, mine, jnp.int32(least))

    largest = functools.reduce(jnp.maximum, [top(*pair) for pair in (*new, *old)])
    far = (largest != least) & (jnp.abs(largest) > jnp.finfo(dtype).maxexp // 4)
    exponent = jnp.where(far, largest, jnp.int32(0))
    slope, bend = (
        keep * jnp.ldexp(before[0], before[1] - exponent)
        + (1 - keep) * jnp.ldexp(now[0], now[1] - exponent)
        for before, now in zip(old, new, strict=True)
    )
    return slope, bend, exponent


def scale_by_cdat(
    scale: ScalarLike = 2.0,
    decay: ScalarLike = 0.9,
    max_learning_rate: ScalarLike = 5.0,
    *,
    axis_name: AxisName = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Scale updates by CDAT's learning rate.

    Along the direction $u$ of the update, minus the incoming one,

    $$\begin{gathered}
    h = \min\Bigl(\sigma\,\frac{\bar n}{\bar d},\; h_\text{max}\Bigr), \\
    n = \max(-g^\top u, 0), \quad d = |u^\top H u| ,
    \end{gathered}$$

    where bars are exponential moving averages. At $\sigma = 2$, "on edge", the quadratic model of
    the loss along $u$ returns to its initial value; $\sigma = 1$ is its minimum. For gradient
    descent without smoothing and $\sigma = 2$, DAL at $p = 1$ never exceeds it, by the
    Cauchy-Schwarz inequality.

    Where $\bar d = 0$, h is $h_\text{max}$ if $\bar n > 0$, else 0. Where $n$ or $d$ is not
    finite, h is 0, the update is zero, and the averages are unchanged. On momentum and 16-bit
    parameters, see `scale_by_dal`.

    Args:
      scale: $\sigma > 0$.
      decay: weight of the past in the averages, in [0, 1); 0 for no smoothing.
      max_learning_rate: $h_\text{max} > 0$, this library's addition.
      axis_name: as for `scale_by_dal`.

    Returns:
      An Optax transformation with extra arguments, called as `scale_by_dal` is. It recomputes the
      gradient together with its one Hessian product, so it may follow momentum or Adam. Its state
      is a `ScaleByCdatState`.

    Raises:
      ValueError: an option is out of range; otherwise as for `scale_by_dal`.
      TypeError: as for `scale_by_dal`.

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
    check_decay(decay)

    def init(params: Params) -> ScaleByCdatState:
        dtype = state_dtype(trained(params))
        most = jnp.asarray(max_learning_rate).astype(dtype)
        # An array for each, so that the state can be donated.
        numbers = (jnp.zeros((), dtype) for _ in range(3))
        counts = (jnp.zeros((), jnp.int32) for _ in range(2))
        return ScaleByCdatState(most, *numbers, *counts)

    def update(
        updates: Params,
        state: ScaleByCdatState,
        params: Params | None = None,
        *,
        loss_fn: Loss | None = None,
        full_params: Params | None = None,
        **extra: Any,
    ) -> tuple[Params, ScaleByCdatState]:
        del extra
        if is_empty(updates):
            return updates, state._replace(num_updates=optax.safe_increment(state.num_updates))
        at = point(
            "scale_by_cdat",
            updates,
            params,
            loss_fn=loss_fn,
            full_params=full_params,
            axis_name=axis_name,
        )
        dtype = state.slope.dtype
        direction, size = normalised(at.updates)
        g, product = gradient_and_product("scale_by_cdat", at, direction)
        slope = jnp.maximum(_dot(g, direction, dtype), 0)
        bend = jnp.abs(_dot(direction, product, dtype))
        sane = jnp.isfinite(slope) & jnp.isfinite(bend) & jnp.isfinite(size)
        # The averages start at zero; the bias cancels in the ratio.
        keep = jnp.asarray(decay).astype(dtype)
        averages = _smoothed(state, keep, slope, bend, size.astype(dtype))
        mean_slope, mean_bend, exponent = (
            jnp.where(sane, new, old)
            for new, old in zip(averages, (state.slope, state.bend, state.exponent), strict=True)
        )
        bent = mean_bend > 0
        rate = jnp.asarray(scale).astype(dtype) * (
            mean_slope / jnp.where(bent, mean_bend, jnp.ones_like(mean_bend))
        )
        rate = jnp.where(bent, rate, jnp.full_like(rate, jnp.finfo(dtype).max))
        rate = jnp.where(mean_slope > 0, rate, jnp.zeros_like(rate))
        rate = bounded(rate, sane, max_learning_rate)
        return scaled(updates, rate), ScaleByCdatState(
            rate, bend, mean_slope, mean_bend, optax.safe_increment(state.num_updates), exponent
        )

    return optax.GradientTransformationExtraArgs(init, update)


def cdat(
    scale: ScalarLike = 2.0,
    decay: ScalarLike = 0.9,
    max_learning_rate: ScalarLike = 5.0,
    *,
    axis_name: AxisName = None,
) -> optax.GradientTransformationExtraArgs:
    """Gradient descent with CDAT's learning rate: `scale_by_cdat`, then descend.

    Args:
      scale, decay, max_learning_rate, axis_name: as for `scale_by_cdat`.

    Returns:
      An Optax transformation with extra arguments; its state is that of `scale_by_cdat`.

    Raises:
      ValueError, TypeError: as for `scale_by_cdat`.

    Example:
      >>> import jax, jax.numpy as jnp, pfcore
      >>> loss = lambda x: 4.0 * x[0] ** 2
      >>> tx = pfcore.learning_rates.cdat(scale=1.0, decay=0.0)
      >>> x = jnp.array([1.0])
      >>> updates, _ = tx.update(jax.grad(loss)(x), tx.init(x), x, loss_fn=loss)
      >>> float(updates[0])  # to the minimum in one step
      -1.0
    """
    return descending(scale_by_cdat(scale, decay, max_learning_rate, axis_name=axis_name))
