"""Learning rates from the sharpness, 2/λ₀."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from pfcore._checks import ScalarLike, check_positive
from pfcore._trees import Params, norm, num_entries
from pfcore.curvature.eigenpairs import find_eigenpairs
from pfcore.curvature.products import LossOrCurvature
from pfcore.learning_rates._dal import descending
from pfcore.learning_rates.common import (
    AxisName,
    bounded,
    check_scheduled_count,
    is_empty,
    point,
    refreshed,
    scaled,
    state_dtype,
    trained,
)


class ScaleBySharpnessState(NamedTuple):
    r"""State of `scale_by_sharpness`.

    Attributes:
      learning_rate: $h$ of the last update; the maximum before the first.
      curvature: $\lambda_0$ as last measured; 0 before.
      converged: whether its residual was below the tolerance.
      num_products: Hessian-vector products used by the last search.
      vector: $u_0$, the start of the next search, flat.
      num_updates: number of updates so far.
      challenger: the direction that may become sharper next, flat.
    """

    learning_rate: Float[Array, ""]
    curvature: Float[Array, ""]
    converged: Bool[Array, ""]
    num_products: Int[Array, ""]
    vector: Float[Array, " n"]
    num_updates: Int[Array, ""]
    challenger: Float[Array, " n"]


def scale_by_sharpness(
    scale: ScalarLike = 2.0,
    max_learning_rate: ScalarLike = 5.0,
    *,
    tolerance: ScalarLike = 1e-2,
    max_products: ScalarLike = 20,
    refresh_every: ScalarLike = 1,
    seed: ScalarLike = 0,
    axis_name: AxisName = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Scale updates by $h = \min(\sigma/\lambda_0,\, h_\text{max})$, $\lambda_0$ the sharpness.

    Each search for the top eigenvector starts from the last one, and stops at the tolerance or
    after `max_products`, whichever comes first. Ritz values never exceed $\lambda_0$, so a search
    that is cut short gives a rate that is too large, not too small. The search also follows a
    challenger, the best other direction, at the cost of one product per search; a direction that
    becomes sharper is thus detected early. Where $\lambda_0 \le 0$, h is $h_\text{max}$. Where it
    or the update is not finite, h is 0 and the update is zero; where $\lambda_0$ is not finite, the
    next update searches again. On momentum and
    16-bit parameters, see `scale_by_dal`.

    `loss_fn` may also be a `pfcore.curvature.Curvature`, whose largest eigenvalue is then
    $\lambda_0$: the Gauss-Newton matrix, or the Hessian in the coordinates of a preceding adaptive
    optimiser. Replicas combine it only if `axis_name` is given.

    Args:
      scale: $\sigma > 0$; 2 is the edge of stability.
      max_learning_rate: $h_\text{max} > 0$.
      tolerance: bound on the residual, relative to $\lambda_0$.
      max_products: the most Hessian-vector products for one search.
      refresh_every: updates between searches.
      seed: seed of the random vector that starts the first search.
      axis_name: as for `scale_by_dal`.

    Returns:
      An Optax transformation with extra arguments, called as `scale_by_dal` is. Its state is a
      `ScaleBySharpnessState`.

    Raises:
      ValueError: an option is out of range; otherwise as for `scale_by_dal`.
      TypeError: as for `scale_by_dal`.

    Example:
      >>> import jax, jax.numpy as jnp, pfcore
      >>> loss = lambda x: jnp.sum(jnp.array([4.0, 1.0]) * x**2)
      >>> tx = pfcore.learning_rates.scale_by_sharpness()
      >>> x = jnp.ones(2)
      >>> _, state = tx.update(jax.grad(loss)(x), tx.init(x), x, loss_fn=loss)
      >>> round(float(state.curvature), 3), round(float(state.learning_rate), 3)
      (8.0, 0.25)

    References:
      The classical bound for gradient descent on quadratics; as a baseline for adaptive rates in
      Roulet et al., NeurIPS 2024 (arXiv 2407.06183).
    """
    check_positive("scale", scale)
    check_positive("max_learning_rate", max_learning_rate)
    tolerance = check_positive("tolerance", tolerance)
    max_products = check_scheduled_count("max_products", max_products, minimum=2)
    refresh_every = check_scheduled_count("refresh_every", refresh_every, minimum=1)

    def init(params: Params) -> ScaleBySharpnessState:
        params = trained(params)
        dtype = state_dtype(params)
        vector = jax.random.normal(jax.random.key(seed), (num_entries(params),), dtype)
        return ScaleBySharpnessState(
            learning_rate=jnp.asarray(max_learning_rate).astype(dtype),
            curvature=jnp.zeros((), dtype),
            converged=jnp.zeros((), bool),
            num_products=jnp.zeros((), jnp.int32),
            vector=vector / jnp.linalg.norm(vector),
            num_updates=jnp.zeros((), jnp.int32),
            challenger=jnp.zeros_like(vector),  # none yet
        )

    def update(
        updates: Params,
        state: ScaleBySharpnessState,
        params: Params | None = None,
        *,
        loss_fn: LossOrCurvature | None = None,
        full_params: Params | None = None,
        **extra: Any,
    ) -> tuple[Params, ScaleBySharpnessState]:
        del extra
        if is_empty(updates):
            return updates, state._replace(num_updates=optax.safe_increment(state.num_updates))
        at = point(
            "scale_by_sharpness",
            updates,
            params,
            loss_fn=loss_fn,
            full_params=full_params,
            axis_name=axis_name,
            curvature=True,
        )
        dtype = state.curvature.dtype

        def search():
            pairs, _, challenger = find_eigenpairs(
                at.loss,
                at.params,
                jnp.stack([state.vector, state.challenger]),
                key=jax.random.fold_in(jax.random.key(seed), state.num_updates),
                tolerance=tolerance,
                max_products=jnp.int32(max_products),
                wanted=jnp.int32(1),
                count=1,
                which="largest",
                check=False,
            )
            vector, challenger = pairs.vectors[0].astype(dtype), challenger.astype(dtype)
            sane = jnp.isfinite(pairs.values[0]) & jnp.all(jnp.isfinite(vector))
            return (
                pairs.values[0].astype(dtype),
                pairs.converged[0],
                pairs.num_products,
                jnp.where(sane, vector, state.vector),
                jnp.where(sane, challenger, state.challenger),
            )

        def kept():
            return (
                state.curvature,
                state.converged,
                state.num_products,
                state.vector,
                state.challenger,
            )

        latest = refreshed(
            refresh_every, state.num_updates, jnp.isfinite(state.curvature), search, kept
        )
        curvature, converged, num_products, vector, challenger = latest
        positive = jnp.where(curvature > 0, curvature, jnp.ones_like(curvature))
        rate = jnp.where(
            curvature > 0,
            jnp.asarray(scale).astype(dtype) / positive,
            jnp.full_like(curvature, jnp.finfo(dtype).max),
        )
        sane = jnp.isfinite(curvature) & jnp.isfinite(norm(at.updates))
        rate = bounded(rate, sane, max_learning_rate)
        return scaled(updates, rate), ScaleBySharpnessState(
            rate,
            curvature,
            converged,
            num_products,
            vector,
            optax.safe_increment(state.num_updates),
            challenger,
        )

    return optax.GradientTransformationExtraArgs(init, update)


def sharpness_rate(
    scale: ScalarLike = 2.0,
    max_learning_rate: ScalarLike = 5.0,
    *,
    tolerance: ScalarLike = 1e-2,
    max_products: ScalarLike = 20,
    refresh_every: ScalarLike = 1,
    seed: ScalarLike = 0,
    axis_name: AxisName = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Gradient descent at $2/\lambda_0$: `scale_by_sharpness`, then descend.

    Args:
      scale, max_learning_rate, tolerance, max_products, refresh_every, seed, axis_name: as for
        `scale_by_sharpness`.

    Returns:
      An Optax transformation with extra arguments; its state is that of `scale_by_sharpness`.

    Raises:
      ValueError, TypeError: as for `scale_by_sharpness`.

    Example:
      >>> import jax, jax.numpy as jnp, pfcore
      >>> loss = lambda x: 4.0 * x[0] ** 2
      >>> tx = pfcore.learning_rates.sharpness_rate(scale=1.0)
      >>> x = jnp.array([1.0])
      >>> updates, _ = tx.update(jax.grad(loss)(x), tx.init(x), x, loss_fn=loss)
      >>> float(updates[0])  # to the minimum in one step
      -1.0
    """
    return descending(
        scale_by_sharpness(
            scale,
            max_learning_rate,
            tolerance=tolerance,
            max_products=max_products,
            refresh_every=refresh_every,
            seed=seed,
            axis_name=axis_name,
        )
    )
