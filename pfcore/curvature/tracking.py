r"""The top of the spectrum along training: the result at one point starts the search at the next.

Eigenvectors change with the parameters, and at the edge of stability they oscillate from step to
step. Each search therefore starts from a linear prediction: the last differences between
eigenvectors are fitted by earlier ones, and the fit is extrapolated by one step. On the digits
network this takes half the products of a start from the last eigenvectors
(`benchmarks/curvature.py`).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from pfcore import _programs
from pfcore._checks import (
    KeyLike,
    ScalarLike,
    check_count,
    check_curvature,
    check_key,
    check_path,
    check_positive,
)
from pfcore._trees import Params, in_single, num_entries, ravel
from pfcore.curvature.eigenpairs import (
    COLUMNS,
    Eigenpairs,
    Found,
    check_eigenpair_count,
    check_which,
    default_products,
    find_eigenpairs,
    ravelled_rows,
    unravelled,
)
from pfcore.curvature.products import Hessian, LossOrCurvature, Traced, compiled

# Past points that the prediction uses: each of the last FITS differences is fitted by the ORDER
# differences before it. Measured on the digits network over 200 steps: 9.2 products a step without
# prediction, 5.1 with it.
ORDER = 3
FITS = 2
HISTORY = ORDER + FITS + 1
# Every so many updates, by default, the search also tries a challenger: the direction outside the
# tracked ones that may overtake them. It is kept from one trial to the next.
CHALLENGE_EVERY = 4
# Every so many updates a random vector checks that no direction was missed.
CHECK_EVERY = 16


class TrackerState(NamedTuple):
    """State of a tracker.

    Attributes:
      pairs: `Eigenpairs` at the last point, [max_k]; the values of those not tracked there are NaN.
        The signs of the vectors are continuous from point to point.
      num_tracked: number of pairs that the next update tracks.
      gradient: the gradient at the last point, with the structure of the parameters; None for a
        curvature without a gradient.
      history: the subspace at the last points, latest first, in aligned bases.
      updates: number of updates so far.
      key: for the random vectors.
      challenger: the direction that may overtake next, flat.
    """

    pairs: Eigenpairs
    num_tracked: Int[Array, ""]
    gradient: Params
    history: Float[Array, "h k n"]
    updates: Int[Array, ""]
    key: PRNGKeyArray
    challenger: Float[Array, " n"]


class Tracker(NamedTuple):
    """Pure functions that follow the top eigenpairs inside any compiled training loop.

    Attributes:
      init: `init(params, key) -> TrackerState`, a search from a random vector.
      update: `update(params, state) -> TrackerState`, at parameters near those of the last call.
    """

    init: Callable[[Params, KeyLike], TrackerState]
    update: Callable[[Params, TrackerState], TrackerState]


class Track(NamedTuple):
    """The top of the spectrum at T points, arrays with a leading axis of T.

    Attributes:
      values: [T, max_k], NaN past `num_tracked`.
      residuals: [T, max_k].
      converged: [T, max_k].
      num_products: [T], Hessian-vector products.
      num_tracked: [T], number of pairs tracked at each point.
      state: `TrackerState` after the last point: its eigenvectors, and the state to continue from.
    """

    values: Float[Array, "t k"]
    residuals: Float[Array, "t k"]
    converged: Array
    num_products: Int[Array, " t"]
    num_tracked: Int[Array, " t"]
    state: TrackerState


def _differences(history: Float[Array, "h k n"], known: Array) -> list[jax.Array]:
    return [jnp.where(known[i], history[i] - history[i + 1], 0.0) for i in range(len(known))]


def _gram(history: Float[Array, "h k n"], known: Array) -> Float[Array, "h-1 h-1"]:
    """Inner products of the differences, a block of columns at a time to save memory."""

    def of(part: jax.Array) -> jax.Array:
        differences = _differences(part, known)
        return jnp.stack([jnp.stack([jnp.sum(d * e) for e in differences]) for d in differences])

    n = history.shape[2]
    whole = n // COLUMNS
    gram = of(history[:, :, whole * COLUMNS :])

    def add(i: jax.Array, gram: jax.Array) -> jax.Array:
        return gram + of(jax.lax.dynamic_slice_in_dim(history, i * COLUMNS, COLUMNS, 2))

    return jax.lax.fori_loop(jnp.int32(0), jnp.int32(whole), add, gram) if whole else gram


def _predicted(history: Float[Array, "h k n"]) -> Float[Array, "k n"]:
    """The next subspace by linear prediction; the last one if there is no history."""
    known = jnp.any(history[1:] != 0, axis=(1, 2))
    gram = _gram(history, known)
    normal = sum(gram[f + 1 : f + 1 + ORDER, f + 1 : f + 1 + ORDER] for f in range(FITS))
    right = sum(gram[f, f + 1 : f + 1 + ORDER] for f in range(FITS))
    values, vectors = jnp.linalg.eigh(normal)
    trusted = values > 1e-5 * values[-1]
    inverse = jnp.where(trusted, 1 / jnp.where(trusted, values, 1.0), 0.0)
    coefficients = vectors @ (inverse * (vectors.T @ right))
    differences = _differences(history, known)
    return history[0] + sum(coefficients[i] * differences[i] for i in range(ORDER))


def _turned_to_fit(
    basis: Float[Array, "k n"], last: Float[Array, "k n"], active: Array
) -> tuple[Float[Array, "k n"], Array]:
    """The basis of the same subspace that is closest to an earlier one (Procrustes), and whether
    the two subspaces are close."""
    both = active[:, None] & active
    overlap = jnp.where(both, last @ basis.T, jnp.eye(len(basis), dtype=basis.dtype))
    left, cosines, right = jnp.linalg.svd(overlap)
    return (left @ right) @ basis, jnp.min(cosines) > 0.5


def _blank(params: Params, key: PRNGKeyArray, k: int, max_k: int) -> TrackerState:
    """The state before the first point, with a random vector as the challenger.

    An update from here is `init`, so that `track` compiles one search and not two.
    """
    flat, _ = ravel(in_single(params))
    pairs = Eigenpairs(
        values=jnp.full(max_k, jnp.nan, flat.dtype),
        vectors=jnp.zeros((max_k, flat.size), flat.dtype),
        residuals=jnp.full(max_k, jnp.inf, flat.dtype),
        converged=jnp.zeros(max_k, bool),
        num_products=jnp.int32(0),
    )
    return TrackerState(
        pairs=unravelled(pairs, params),
        num_tracked=jnp.int32(k),
        gradient=None,
        history=jnp.zeros((HISTORY, max_k, flat.size), flat.dtype),
        updates=jnp.int32(-1),
        key=key,
        challenger=jax.random.normal(jax.random.split(key)[0], flat.shape, flat.dtype),
    )


def tracker(
    loss: LossOrCurvature,
    k: int,
    *,
    max_k: int | None = None,
    threshold: ScalarLike | None = None,
    tolerance: ScalarLike = 1e-3,
    which: str = "largest",
    max_products: int | None = None,
    challenge_every: int = CHALLENGE_EVERY,
) -> Tracker:
    r"""Follow the top eigenpairs of the Hessian along training, inside a compiled loop.

    Residuals certify the tracked pairs. They do not show whether a larger eigenvalue has appeared
    elsewhere. Therefore the best direction outside, the challenger, is compared at every 4th point,
    at the cost of one product, and at every 16th point a random vector checks for missed
    eigenvalues. A direction that overtakes is thus missed at no more than 15 points, usually at no
    more than 3, and with `challenge_every=1` usually at none.

    Args:
      loss: $E$, from `params` to a real scalar, or a `Curvature` in place of its Hessian.
      k: number of pairs to follow, at least 1.
      max_k: the largest number, if `threshold` adds more; by default k.
      threshold: after each point, one more pair is followed than eigenvalues exceeded this (with
        "smallest": were below it; with "magnitude": exceeded it in magnitude), from k to `max_k`.
        $1/h$ follows all directions along which gradient descent oscillates.
      tolerance: of the residuals, as for `top_eigenpairs`.
      which: "largest", "smallest" or "magnitude".
      max_products: largest number of products at a point, by default
        $100 + 40\,\mathtt{max\_k}$.
      challenge_every: number of points from one comparison with the challenger to the next.

    Returns:
      A `Tracker`, (init, update).

    Raises:
      ValueError: as for `top_eigenpairs`; `max_k` below k, or `challenge_every` below 1.
      TypeError: as for `top_eigenpairs`, or a count is not an integer.

    Example:
      >>> import jax, jax.numpy as jnp, pfcore
      >>> loss = lambda x: jnp.sum(jnp.array([3.0, 2.0, 1.0]) * (x**2 + x**4))
      >>> sharpest = pfcore.curvature.tracker(loss, 1)
      >>> state = sharpest.init(jnp.ones(3), jax.random.key(0))
      >>> state = sharpest.update(0.9 * jnp.ones(3), state)
      >>> round(float(state.pairs.values[0]), 2)  # 3 (2 + 12 · 0.81)
      35.16
    """
    return _tracker(
        loss,
        k,
        max_k=max_k,
        threshold=threshold,
        tolerance=tolerance,
        which=which,
        max_products=max_products,
        challenge_every=challenge_every,
    )


def _tracker(
    loss: Any,
    k: int,
    *,
    max_k: int | None,
    threshold: ScalarLike | None,
    tolerance: ScalarLike,
    which: str,
    max_products: int | None,
    challenge_every: int,
) -> Tracker:
    """`tracker` of a loss, or of its Hessian within a compiled function."""
    k = check_count("k", k, minimum=1)
    max_k = k if max_k is None else check_count("max_k", max_k, minimum=1)
    challenge_every = check_count("challenge_every", challenge_every, minimum=1)
    check_which(which)
    if max_k < k:
        raise ValueError(f"max_k must be at least k = {k}, got {max_k}")
    sign = -1 if which == "smallest" else 1
    products = jnp.int32(default_products(max_products, max_k))
    tolerance = check_positive("tolerance", tolerance)

    def search(params, start, state, check, challenged) -> Found:
        return find_eigenpairs(
            loss,
            params,
            start,
            key=jax.random.fold_in(state.key, state.updates),
            tolerance=tolerance,
            max_products=products,
            wanted=state.num_tracked,
            count=max_k,
            which=which,
            check=check,
            challenger=state.challenger,
            renewed=challenged,
        )

    def next_count(pairs: Eigenpairs, count: jax.Array) -> jax.Array:
        if threshold is None:
            return count
        values = jnp.abs(pairs.values) if which == "magnitude" else pairs.values
        beyond = sign * values > sign * jnp.asarray(threshold, values.dtype)
        return jnp.clip(
            1 + jnp.sum(beyond & (jnp.arange(max_k, dtype=jnp.int32) < count), dtype=jnp.int32),
            k,
            max_k,
        )

    def shown(pairs: Eigenpairs, count: jax.Array) -> Eigenpairs:
        active = jnp.arange(max_k, dtype=jnp.int32) < count
        return pairs._replace(
            values=jnp.where(active, pairs.values, jnp.nan),
            residuals=jnp.where(active, pairs.residuals, jnp.inf),
            converged=active & pairs.converged,
        )

    @_programs.settings()
    def init(params: Params, key: KeyLike) -> TrackerState:
        if not isinstance(loss, Hessian | Traced):  # within `track`, which has checked it
            params = check_curvature(loss, params)
        check_eigenpair_count("max_k", max_k, num_entries(params))
        begin = _blank(params, check_key(key), k, max_k)
        start = jnp.concatenate([begin.history[0], begin.challenger[None]])
        result = search(params, start, begin, jnp.array(max_k > 1), jnp.array(True))
        pairs = unravelled(result.pairs, params)
        return begin._replace(
            pairs=shown(pairs, begin.num_tracked),
            num_tracked=next_count(pairs, begin.num_tracked),
            gradient=result.gradient,
            history=begin.history.at[0].set(result.pairs.vectors),
            updates=jnp.int32(0),
            challenger=result.challenger,
        )

    @_programs.settings()
    def update(params: Params, state: TrackerState) -> TrackerState:
        count, history = state.num_tracked, state.history
        active = jnp.arange(max_k, dtype=jnp.int32) < count
        start = jnp.where(active[:, None], _predicted(history), 0.0)
        challenged = state.updates % challenge_every == challenge_every - 1
        start = jnp.concatenate([start, jnp.where(challenged, state.challenger, 0.0)[None]])
        check = state.updates % CHECK_EVERY == CHECK_EVERY - 1
        check &= (state.updates >= 0) | (max_k > 1)
        result = search(params, start, state, check, challenged)
        # What is not finite is not the start of the next search.
        sane = jnp.all(jnp.isfinite(result.pairs.vectors) & jnp.isfinite(result.challenger))
        basis = jnp.where(sane, result.pairs.vectors, history[0])
        last = ravelled_rows(state.pairs.vectors)
        signs = jnp.where(jnp.sum(last * basis, axis=1) < 0, -1, 1).astype(basis.dtype)
        pairs = unravelled(result.pairs._replace(vectors=signs[:, None] * basis), params)
        latest, moved = _turned_to_fit(basis, history[0], active)
        grown = next_count(pairs, count)
        # A different subspace, or one of another size, has no history.
        past = jnp.where((grown == count) & moved, history[:-1], 0.0)
        return TrackerState(
            pairs=shown(pairs, count),
            num_tracked=grown,
            gradient=result.gradient,
            history=jnp.concatenate([latest[None], past]),
            updates=state.updates + 1,
            key=state.key,
            challenger=jnp.where(sane, result.challenger, state.challenger),
        )

    return Tracker(init, update)


@compiled("k", "max_k", "has_threshold", "which", "max_products", "challenge_every")
def _track(
    hessian,
    params,
    path,
    key,
    threshold,
    tolerance,
    *,
    k,
    max_k,
    has_threshold,
    which,
    max_products,
    challenge_every,
):
    along = _tracker(
        hessian,
        k,
        max_k=max_k,
        threshold=threshold if has_threshold else None,
        tolerance=tolerance,
        which=which,
        max_products=max_products,
        challenge_every=challenge_every,
    )

    def numbers(state: TrackerState):
        pairs = state.pairs
        count = jnp.sum(jnp.isfinite(pairs.values), dtype=jnp.int32)
        return pairs.values, pairs.residuals, pairs.converged, pairs.num_products, count

    def step(state, params):
        state = along.update(params, state)
        return state, numbers(state)

    check_eigenpair_count("max_k", max_k, num_entries(params))
    at = hessian.at(params)
    begin = _blank(params, key, k, max_k)
    if at.gradient is not None:
        begin = begin._replace(gradient=at.unravel(jnp.zeros_like(at.params)))
    final, stacked = jax.lax.scan(step, begin, path)
    values, residuals, converged, num_products, num_tracked = stacked
    return Track(values, residuals, converged, num_products, num_tracked, final)


def track(
    loss: LossOrCurvature,
    path: Params,
    k: int,
    *,
    key: KeyLike,
    max_k: int | None = None,
    threshold: ScalarLike | None = None,
    tolerance: ScalarLike = 1e-3,
    which: str = "largest",
    max_products: int | None = None,
    challenge_every: int = CHALLENGE_EVERY,
) -> Track:
    r"""The top eigenvalues of the Hessian at every point of a path, such as that of training.

    One compiled scan, in which each search starts from a prediction from the points before. To
    follow eigenvalues during training, without keeping the path, use `tracker` inside the loop.

    On a path whose points are far apart, such as every 100th step of training, an eigenvalue that
    overtakes is usually noticed up to three points late, and the values in between are too small,
    with small residuals. Call `top_eigenpairs` at each point there; `challenge_every=1` helps, but
    not always.

    Args:
      loss: $E$, from `params` to a real scalar, or a `Curvature` in place of its Hessian.
      path: parameters stacked along a leading axis of T points, such as the result of
        `pfcore.gradient_descent`.
      k, key, max_k, threshold, tolerance, which, max_products, challenge_every: as for `tracker`
        and `top_eigenpairs`.

    Returns:
      A `Track`.

    Raises:
      ValueError: as for `tracker`, or the leaves of `path` have no leading axis of one length.
      TypeError: as for `tracker`.

    Example:
      >>> import jax, jax.numpy as jnp, pfcore
      >>> loss = lambda x: jnp.sum(jnp.cosh(x))
      >>> path = pfcore.gradient_descent(loss, jnp.array([2.0, 1.0]), 0.1, 3)
      >>> tracked = pfcore.curvature.track(loss, path, 1, key=jax.random.key(0))
      >>> bool(jnp.allclose(tracked.values[:, 0], jnp.cosh(path[:, 0]), rtol=1e-4))
      True
    """
    path = check_path("path", path)
    return _track(
        loss,
        check_curvature(loss, jax.tree.map(lambda x: x[0], path)),
        path,
        check_key(key),
        jnp.asarray(0.0 if threshold is None else threshold),
        check_positive("tolerance", tolerance),
        k=k,
        max_k=k if max_k is None else max_k,
        has_threshold=threshold is not None,
        which=which,
        max_products=max_products,
        challenge_every=challenge_every,
    )
