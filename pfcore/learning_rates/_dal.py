"""Drift-adjusted learning rates."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from pfcore import _programs
from pfcore._checks import Loss, ScalarLike, check_positive
from pfcore._trees import Params, add_scaled, norm
from pfcore.learning_rates.common import (
    AxisName,
    Point,
    bounded,
    check_decay,
    check_power,
    check_scheduled_count,
    gradient_and_product,
    is_empty,
    normalised,
    point,
    refreshed,
    scaled,
    state_dtype,
    trained,
)

CAPS = ("hard", "smooth")
FINITE_DIFFERENCE = 0.01  # step length of the finite difference of gradients
# Its length, at least, in units of the machine epsilon in which the loss computes.
ROUNDINGS = 8


class ScaleByDalState(NamedTuple):
    r"""State of `scale_by_dal`.

    Attributes:
      learning_rate: $h$ of the last update; the maximum before the first.
      curvature: $\|Hg\|/\|g\|$ as last measured, or its average; 0 before.
      num_updates: number of updates so far.
      weight: $\sum_k (1 - d)\,d^{\,n-k}\,\|g_k\|$ over the n measurements, with $d$ the `decay`; 0
        without averaging.
    """

    learning_rate: Float[Array, ""]
    curvature: Float[Array, ""]
    num_updates: Int[Array, ""]
    weight: Float[Array, ""]


def _difference(loss: Loss, params: Params, direction: Params) -> Array:
    """The norm of H times a direction, from two gradients a step apart."""
    eps = max(float(jnp.finfo(leaf.dtype).eps) for leaf in jax.tree.leaves(params))
    # A shorter step would be lost in rounding; this one has a relative error of about eps^(1/3).
    length = jnp.maximum(FINITE_DIFFERENCE, eps ** (2 / 3) * norm(params))
    # So would the difference of gradients that are computed in bfloat16.
    within = _programs.coarsest(jax.make_jaxpr(loss)(params).jaxpr)
    length = jnp.maximum(length, ROUNDINGS * within)
    beyond = add_scaled(params, length, direction)
    moved = norm(jax.tree.map(jnp.subtract, beyond, params))
    gradient = functools.partial(_programs.evaluate, jax.grad(loss))
    change = norm(jax.tree.map(jnp.subtract, gradient(beyond), gradient(params)))
    return change / jnp.where(moved > 0, moved, jnp.ones_like(moved))


def _averaged(
    decay: Array, old: tuple[Array, Array], new: tuple[Array, Array]
) -> tuple[Array, Array]:
    """The ratio of two moving averages and the denominator, from ratios and their denominators.

    The averages themselves are not used, because the numerator is a product that may leave the
    range. Values that are not finite, or with denominator zero, leave the averages unchanged.
    """
    ratio, weight = new
    kept = decay * old[1]
    total = kept + (1 - decay) * weight
    usable = jnp.isfinite(ratio) & jnp.isfinite(weight) & (total > 0)
    share = jnp.where(usable, kept / jnp.where(usable, total, 1), jnp.ones_like(total))
    ratio = jnp.where(usable, ratio, jnp.zeros_like(ratio))
    return share * old[0] + (1 - share) * ratio, jnp.where(usable, total, old[1])


def _stretch(kind: str, at: Point) -> tuple[Array, Array]:
    """The factor by which H lengthens the updates (0 where they are 0, not finite where they are
    not), and their norm."""
    direction, size = normalised(at.updates)
    if kind == "exact":
        # H times the direction, not the direction times H: their product may leave the range.
        stretch = norm(gradient_and_product("scale_by_dal", at, direction)[1])
    else:
        stretch = _difference(at.loss, at.params, direction)
    stretch = jnp.where(size > 0, stretch, jnp.zeros_like(stretch))
    return jnp.where(jnp.isfinite(size), stretch, size), size


def _rate(curvature: Array, power: Any, max_learning_rate: Any, cap: str) -> Array:
    exponent = jnp.asarray(power).astype(curvature.dtype)
    bent = curvature > 0
    bound = 2 / jnp.where(bent, curvature, jnp.ones_like(curvature)) ** exponent
    most = jnp.full_like(bound, jnp.finfo(bound.dtype).max)
    bound = jnp.where(bent | (exponent == 0), bound, most)
    if cap == "hard":
        return bound
    h_max = jnp.asarray(max_learning_rate).astype(bound.dtype)
    return h_max / (1 + h_max / bound)


def scale_by_dal(
    power: ScalarLike = 1.0,
    max_learning_rate: ScalarLike = 5.0,
    *,
    product: str = "exact",
    refresh_every: ScalarLike = 1,
    cap: str = "hard",
    decay: ScalarLike | None = None,
    axis_name: AxisName = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Scale gradients by the drift-adjusted learning rate.

    $$h = \min\Bigl(\frac{2}{(\|Hg\|/\|g\|)^{p}},\; h_\text{max}\Bigr)$$

    In one step gradient descent departs from the negative gradient flow by $\frac{h^2}2 Hg$ to
    leading order; DAL ($p = 1$) keeps $\frac{h}{2}\|Hg\|$ at $\|g\|$. Where the gradient lies along
    one eigenvector, this is $h = 2/|\lambda|$, the edge of stability. $p = 0$ is the fixed rate
    $\min(2, h_\text{max})$. `cap="smooth"` selects DALR,

    $$h = \frac{h_\text{max}}{1 + \frac{h_\text{max}}2 (\|Hg\|/\|g\|)^p} ,$$

    which is below both bounds, and half of them where they are equal.

    A gradient of zero, and a curvature of zero with $p > 0$, give $h_\text{max}$. Where $\|Hg\|$ or
    $\|g\|$ is not finite, h is 0 and the update is zero; the next update measures again. A
    preceding momentum keeps values that are not finite: wrap the chain in `optax.apply_if_finite`,
    or put `optax.zero_nans()` before the momentum.

    16-bit parameters and updates are cast to float32, `loss` is evaluated there, and updates are
    cast back to their own dtype.

    Args:
      power: $p \ge 0$.
      max_learning_rate: $h_\text{max} > 0$.
      product: "exact" (forward over reverse, about two gradients, or reverse over reverse where
        JAX does not support that) or "finite_difference" (gradients of `loss` at $\theta$ and at
        $\theta + 0.01\,g/\|g\|$, or farther where machine epsilon requires it, that of the
        parameters or of a loss that computes in 16 bits; a compiled step shares the gradient at
        $\theta$ with the user's own). Either may follow clipping, momentum or accumulation: $g$ is
        then the incoming update, and H is that of `loss`.
      refresh_every: updates between measurements of the curvature; the rate is kept in between.
      cap: "hard", the minimum above, or "smooth", DALR.
      decay: from 0 to below 1: $\|Hg\|$ and $\|g\|$ are averaged over the measurements, with this
        weight for the past, before their ratio is taken. Not averaged by default. In mini-batches
        of about a hundred samples and fewer, `cap="smooth", decay=0.99` reached a lower training
        loss than the default on fully connected networks, and a higher one on a convolutional
        network unless `power` was 0.75 (the book's page *A whole data set*).
      axis_name: mapped axes (of `jax.pmap`, or of `jax.vmap`) over whose replicas `loss` is
        averaged, so that all choose the rate of the whole batch. Not needed if `loss` itself calls
        `jax.lax.pmean`: by default the axes are those that its jaxpr sums over, and `()` means
        none. Also not needed under `jax.shard_map` with such a loss, or under `jax.jit` with
        sharded arrays. With a local `loss` and no `axis_name`, each replica has its own rate.

    Returns:
      An Optax transformation with extra arguments: `update(updates, state, params, loss_fn=loss)`,
      where `loss` is a function of the parameters alone; in stochastic training, that of the
      mini-batch. Its state is a `ScaleByDalState`. After momentum, the drift is measured along the
      direction of the update. Inside Optax's masks (`partition`, `masked`, `selective_transform`)
      it measures the block of the parameters that it trains; because masks hide the others, call
      `update(updates, state, params, loss_fn=loss, full_params=params)`.

    Raises:
      ValueError: an option is unknown or out of range; `loss_fn`, `params` or `full_params` is
        missing; updates do not have the structure and shapes of the parameters; two evaluations of
        `loss_fn` differ, as with random numbers drawn at each call (checked under tracing).
      TypeError: parameters or updates are not real; `loss` rejects float32 or cannot be
        differentiated as `product` requires.

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
      Dherin and others, 2025 (arXiv 2505.13397), for DALR.
    """
    check_power(power)
    check_positive("max_learning_rate", max_learning_rate)
    if product not in ("exact", "finite_difference"):
        raise ValueError(f"product must be 'exact' or 'finite_difference', got {product!r}")
    if cap not in CAPS:
        raise ValueError(f"cap must be 'hard' or 'smooth', got {cap!r}")
    if decay is not None:
        check_decay(decay)
    refresh_every = check_scheduled_count("refresh_every", refresh_every, minimum=1)

    def init(params: Params) -> ScaleByDalState:
        dtype = state_dtype(trained(params))
        return ScaleByDalState(
            learning_rate=jnp.asarray(max_learning_rate).astype(dtype),
            curvature=jnp.zeros((), dtype),
            num_updates=jnp.zeros((), jnp.int32),
            weight=jnp.zeros((), dtype),
        )

    def update(
        updates: Params,
        state: ScaleByDalState,
        params: Params | None = None,
        *,
        loss_fn: Loss | None = None,
        full_params: Params | None = None,
        **extra: Any,
    ) -> tuple[Params, ScaleByDalState]:
        del extra
        if is_empty(updates):
            return updates, state._replace(num_updates=optax.safe_increment(state.num_updates))
        at = point(
            "scale_by_dal",
            updates,
            params,
            loss_fn=loss_fn,
            full_params=full_params,
            axis_name=axis_name,
        )
        dtype = state.curvature.dtype

        def measure() -> tuple[Array, Array, Array]:
            latest, size = (x.astype(dtype) for x in _stretch(product, at))
            if decay is None:
                return latest, latest, state.weight
            old = (state.curvature, state.weight)
            return (latest, *_averaged(jnp.asarray(decay).astype(dtype), old, (latest, size)))

        latest, curvature, weight = refreshed(
            refresh_every,
            state.num_updates,
            # An average is finite where the last measurement was not.
            jnp.isfinite(state.curvature) & (state.learning_rate > 0),
            measure,
            lambda: (state.curvature, state.curvature, state.weight),
        )
        rate = _rate(curvature, power, max_learning_rate, cap)
        # Between two measurements, too, a batch may not be finite.
        sane = jnp.isfinite(latest) & jnp.isfinite(norm(at.updates))
        rate = bounded(rate, sane, max_learning_rate)
        return scaled(updates, rate), ScaleByDalState(
            rate, curvature, optax.safe_increment(state.num_updates), weight
        )

    return optax.GradientTransformationExtraArgs(init, update)


def dal(
    power: ScalarLike = 1.0,
    max_learning_rate: ScalarLike = 5.0,
    *,
    product: str = "exact",
    refresh_every: ScalarLike = 1,
    cap: str = "hard",
    decay: ScalarLike | None = None,
    axis_name: AxisName = None,
) -> optax.GradientTransformationExtraArgs:
    """Gradient descent with the drift-adjusted learning rate: `scale_by_dal`, then descend.

    It trains at the edge of stability, not below it: on a quadratic it ends up jumping between the
    walls of the steepest valley. `max_learning_rate`, or a scale after it, lets it converge.

    Args:
      power, max_learning_rate, product, refresh_every, cap, decay, axis_name: as for
        `scale_by_dal`.

    Returns:
      An Optax transformation with extra arguments; its state is that of `scale_by_dal`.

    Raises:
      ValueError, TypeError: as for `scale_by_dal`.

    Example:
      >>> import jax, jax.numpy as jnp, pfcore
      >>> loss = lambda x: 4.0 * x[0] ** 2
      >>> tx = pfcore.learning_rates.dal()
      >>> x = jnp.array([1.0])
      >>> updates, _ = tx.update(jax.grad(loss)(x), tx.init(x), x, loss_fn=loss)
      >>> float(updates[0])  # to the opposite wall of the valley: the edge of stability
      -2.0
    """
    scaling = scale_by_dal(
        power,
        max_learning_rate,
        product=product,
        refresh_every=refresh_every,
        cap=cap,
        decay=decay,
        axis_name=axis_name,
    )
    return descending(scaling)


def descending(
    scaling: optax.GradientTransformationExtraArgs,
) -> optax.GradientTransformationExtraArgs:
    """`scaling` with its sign reversed and its state unchanged."""

    def update(updates, state, params=None, **extra):
        updates, state = scaling.update(updates, state, params, **extra)
        return jax.tree.map(jnp.negative, updates), state

    return optax.GradientTransformationExtraArgs(scaling.init, update)
