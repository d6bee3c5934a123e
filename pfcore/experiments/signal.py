"""The share of a mini-batch's gradient that belongs to the gradient of the full loss.

It did not improve the drift-adjusted rate (see the book's chapter *A whole data set*), and is
therefore not part of `pfcore.learning_rates`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from pfcore._checks import ScalarLike
from pfcore._trees import Params, in_single, norm
from pfcore.learning_rates.common import check_decay, check_power, scaled, state_dtype, trained


class ScaleBySignalState(NamedTuple):
    r"""State of `scale_by_signal`.

    Attributes:
      mean: moving average $m$ of the gradients.
      square: moving average $v$ of their squared norms.
      signal: $s$, the share of the gradient that is not noise; 1 before there are two.
      num_updates: so far.
    """

    mean: Params
    square: Float[Array, ""]
    signal: Float[Array, ""]
    num_updates: Int[Array, ""]


def scale_by_signal(
    power: ScalarLike = 1.0, decay: ScalarLike = 0.9
) -> optax.GradientTransformation:
    r"""Scale gradients by the share of their squared norm that is not noise.

    $$s = \frac{\|m\|^2 - r\,v}{(1 - r)\,v} ,\qquad r = \sum_k w_k^2 ,$$

    clipped to $[0, 1]$, where $m = \sum_k w_k g_k$ and $v = \sum_k w_k \|g_k\|^2$ are exponential
    moving averages with weights $w_k$ that sum to one. If the gradient of the full loss is constant
    over the last steps and the noise of the steps is independent, the expected numerator and
    denominator are $1 - r$ times $\|\mathbb E g\|^2$ and $\mathbb E\|g\|^2$. An oscillation from
    step to step, as at the edge of stability, counts as noise.

    Args:
      power: $q \ge 0$; updates are multiplied by $s^q$.
      decay: of the averages, in [0, 1).

    Returns:
      An Optax transformation; its state is a `ScaleBySignalState`.
    """
    check_power(power)
    check_decay(decay)

    def init(params: Params) -> ScaleBySignalState:
        single = trained(params)
        dtype = state_dtype(single)
        return ScaleBySignalState(
            jax.tree.map(jnp.zeros_like, single),
            jnp.zeros((), dtype),
            jnp.ones((), dtype),
            jnp.zeros((), jnp.int32),
        )

    def update(
        updates: Params, state: ScaleBySignalState, params: Params | None = None, **extra: Any
    ) -> tuple[Params, ScaleBySignalState]:
        del params, extra
        dtype = state.square.dtype
        keep = jnp.asarray(decay).astype(dtype)
        count = optax.safe_increment(state.num_updates)
        new = jax.tree.map(lambda u, m: u.astype(m.dtype), in_single(updates), state.mean)
        mean = jax.tree.map(
            lambda m, u: keep.astype(m.dtype) * m + (1 - keep).astype(m.dtype) * u, state.mean, new
        )
        square = keep * state.square + (1 - keep) * norm(new).astype(dtype) ** 2
        left = 1 - keep ** count.astype(dtype)
        spread = (1 - keep) / (1 + keep) * (1 + keep ** count.astype(dtype)) / left
        known = (count > 1) & (square > 0)
        ratio = norm(mean).astype(dtype) ** 2 / jnp.where(known, square * left, 1)
        signal = jnp.clip((ratio - spread) / jnp.where(known, 1 - spread, 1), 0, 1)
        signal = jnp.where(known, signal, jnp.ones_like(signal))
        rate = signal ** jnp.asarray(power).astype(dtype)
        return scaled(updates, rate), ScaleBySignalState(mean, square, signal, count)

    return optax.GradientTransformation(init, update)
