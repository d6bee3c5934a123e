r"""Central flow: the path that gradient descent oscillates about at the edge of stability.

An oscillation of covariance $\Sigma$ adds $\tfrac12\langle\Sigma, H\rangle$ to the loss, and so
pushes towards smaller curvature. Central flow is gradient flow with just as much of it as keeps
every eigenvalue of $H$ from exceeding $2/h$.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from pfcore import _programs
from pfcore._checks import Loss, ScalarLike, check_count, check_learning_rate, check_loss
from pfcore._trees import Params, num_entries, ravel, weighted_sum
from pfcore.curvature.eigenpairs import ravelled_rows
from pfcore.curvature.tracking import TrackerState, tracker
from pfcore.flows.complementarity import solve
from pfcore.flows.flow import SteppedFlow, bind

REFRESHES = ("step", "substep")
# Eigenvectors are followed from hλ = 1.5 on, so that they are known before they are critical.
TRACKED = 1.5
# Where a loss is asked whether it has third derivatives: along segments that change every array of
# the parameters by this fraction. Their integrals give the change of the Hessian: to 1e-4 for
# networks of smooth activations in single precision, and to no better than 18 % with ReLU.
REACH = 0.05
SEGMENTS = 5
MISSED = 0.1
# How far off 2/h, relative to it, a substep may leave a curvature: beyond, its linear problem had
# nothing to do with the loss.
ASTRAY = 0.5


class CentralState(NamedTuple):
    r"""Where a central flow stands.

    Attributes:
      params: $w$, the parameters.
      tracker: `pfcore.curvature.tracker`'s state, where eigenvectors were last computed.
      variance: $X$, [k, k]: the oscillation has the covariance $\Sigma = UXU^\top$, where the
        columns of $U$ are `tracker.pairs.vectors`. Zero outside the critical directions.
      num_critical: how many directions are critical.
      residual: of the complementarity problems of the last step, the largest; see
        `pfcore.flows.complementarity`. Or, where a substep left a curvature off what it should be
        by more than half of $2/h$, how far off, relative to $2/h$.
    """

    params: Params
    tracker: TrackerState
    variance: Float[Array, "k k"]
    num_critical: Int[Array, ""]
    residual: Float[Array, ""]


def _pairs(k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows and columns of the pairs i ≥ j, those of fewer directions first; and where (i, j) is."""
    rows, columns = np.tril_indices(k)
    place = np.zeros((k, k), int)
    place[rows, columns] = place[columns, rows] = np.arange(len(rows))
    return rows.astype(np.int32), columns.astype(np.int32), place


def _tracked_from(learning_rate: jax.Array, threshold: jax.Array) -> jax.Array:
    """The eigenvalue from which on one more direction is followed."""
    return jnp.minimum(TRACKED, threshold) / learning_rate.astype(threshold.dtype)


def _known(state: TrackerState, count: jax.Array) -> TrackerState:
    """The state with zeros for the pairs that were not asked for: an integrator stops at NaN."""
    asked = jnp.arange(len(state.pairs.values), dtype=jnp.int32) < count
    pairs = state.pairs._replace(
        values=jnp.where(asked, state.pairs.values, 0),
        residuals=jnp.where(asked, state.pairs.residuals, 0),
    )
    return state._replace(pairs=pairs)


def _num_critical(
    state: TrackerState, learning_rate: jax.Array, threshold: jax.Array
) -> Int[Array, ""]:
    values = state.pairs.values
    beyond = learning_rate.astype(values.dtype) * values > threshold.astype(values.dtype)
    return jnp.sum(beyond, dtype=jnp.int32)


def _bend(loss: Loss, params: Params) -> Any:
    r"""$u^\top H v$ as a function of flat parameters, $u$ and $v$, by forward mode alone."""
    _, unravel = ravel(params)

    def bend(point: jax.Array, u: jax.Array, v: jax.Array) -> jax.Array:
        def slope(point: jax.Array) -> jax.Array:
            return jax.jvp(lambda x: loss(unravel(x)), (point,), (u,))[1]

        return jax.jvp(slope, (point,), (v,))[1]

    return bend


def _bends(
    loss: Loss, params: Params, vectors: Float[Array, "k n"], count: jax.Array
) -> tuple[Float[Array, " p"], Float[Array, "p n"]]:
    r"""$u_i^\top H u_j$ and its gradient $G_{ij}$ for the pairs of the first `count` vectors.

    As many third derivatives are computed as there are pairs: none for `count` = 0. Zeros for the
    rest.
    """
    flat, _ = ravel(params)
    rows, columns, _ = _pairs(len(vectors))
    bend = _bend(loss, params)

    def add(p: jax.Array | int, found: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        values, slopes = found
        u, v = vectors[jnp.asarray(rows)[p]], vectors[jnp.asarray(columns)[p]]
        value, slope = jax.value_and_grad(bend)(flat, u, v)
        return values.at[p].set(value.astype(flat.dtype)), slopes.at[p].set(slope)

    nothing = jnp.zeros(len(rows), flat.dtype), jnp.zeros((len(rows), flat.size), flat.dtype)
    return jax.lax.fori_loop(jnp.int32(0), count * (count + 1) // 2, add, nothing)


def _curvatures(
    loss: Loss, params: Params, vectors: Float[Array, "k n"], count: jax.Array
) -> tuple[Float[Array, " n"], Float[Array, "k k"]]:
    r"""The gradient, and $u_i^\top H u_j$ of the first `count` vectors; zeros for the rest."""
    flat, unravel = ravel(params)
    gradient, product = jax.linearize(jax.grad(lambda x: loss(unravel(x))), flat)

    def add(i: jax.Array | int, bends: jax.Array) -> jax.Array:
        row = jnp.matmul(vectors, product(vectors[i]), precision="highest")
        return bends.at[i].set(row)

    k = len(vectors)
    bends = jax.lax.fori_loop(jnp.int32(0), count, add, jnp.zeros((k, k), flat.dtype))
    critical = jnp.arange(k, dtype=jnp.int32) < count
    return gradient, jnp.where(critical & critical[:, None], (bends + bends.T) / 2, 0)


def _along(
    loss: Loss, params: Params, vectors: Float[Array, "k n"], count: jax.Array
) -> Float[Array, " k"]:
    r"""$u_i^\top H u_i$ of the first `count` vectors; zeros for the rest."""
    flat, _ = ravel(params)
    bend = _bend(loss, params)

    def add(i: jax.Array | int, values: jax.Array) -> jax.Array:
        return values.at[i].set(bend(flat, vectors[i], vectors[i]).astype(flat.dtype))

    return jax.lax.fori_loop(jnp.int32(0), count, add, jnp.zeros(len(vectors), flat.dtype))


def _off(
    bends: Float[Array, " k"],
    foreseen: Float[Array, " k"],
    count: jax.Array,
) -> Float[Array, ""]:
    r"""How far the first `count` curvatures, times $h$, are from what was foreseen, relative to 2.

    Zero where that is no more than `ASTRAY`, as it is in sound steps.
    """
    critical = jnp.arange(len(bends), dtype=jnp.int32) < count
    off = jnp.max(jnp.where(critical, jnp.abs(bends - foreseen), 0)) / 2
    return jnp.where(off <= ASTRAY, 0, off)


def _step(
    loss: Loss,
    substeps: int,
    refresh: str,
    learning_rate: jax.Array,
    threshold: jax.Array,
    dt: Any,
    state: CentralState,
) -> CentralState:
    k = len(state.variance)
    _, unravel = ravel(state.params)
    _, _, place = _pairs(k)
    dtype = state.variance.dtype
    h = learning_rate.astype(dtype)
    length = jnp.asarray(dt).astype(dtype) / h / substeps  # of a substep, in units of h
    # A direction may overtake those followed within a step. Found late, it would be beyond the edge
    # by as much as it grew in the meantime.
    follower = tracker(
        loss,
        1,
        max_k=k,
        threshold=_tracked_from(learning_rate, threshold),
        challenge_every=1,
    )
    number = jnp.arange(k, dtype=jnp.int32)

    def refreshed(at: CentralState) -> CentralState:
        before = ravelled_rows(at.tracker.pairs.vectors)
        following = _known(follower.update(at.params, at.tracker), at.tracker.num_tracked)
        turn = jnp.matmul(
            ravelled_rows(following.pairs.vectors), before.T, precision="highest"
        ).astype(dtype)
        variance = jnp.einsum("ia,ab,jb->ij", turn, at.variance, turn, precision="highest")
        count = _num_critical(following, learning_rate, threshold)
        return CentralState(at.params, following, variance, count, at.residual)

    def worse(residual: jax.Array, found: jax.Array) -> jax.Array:
        """The larger, NaN included; but what follows a step that went astray says nothing."""
        return jnp.where(residual > ASTRAY, residual, jnp.maximum(residual, found))

    def vectors_of(at: CentralState) -> Float[Array, "k n"]:
        return ravelled_rows(at.tracker.pairs.vectors).astype(dtype)

    def substep(
        slopes: jax.Array | None,
        i: jax.Array | int,
        carry: tuple[CentralState, Float[Array, " k"]],
    ) -> tuple[CentralState, Float[Array, " k"]]:
        at, foreseen = carry
        flat, _ = ravel(at.params)
        if slopes is None:
            at = refreshed(at)
            gradient = jax.grad(lambda x: loss(unravel(x)))(flat)
            bends, slopes = _bends(loss, at.params, vectors_of(at), at.num_critical)
            bends = bends[place]
        else:
            gradient, bends = _curvatures(loss, at.params, vectors_of(at), at.num_critical)
            # The same vectors as one substep before: whether that one did what was foreseen.
            off = jnp.where(i > 0, _off(h * jnp.diag(bends), foreseen, at.num_critical), 0)
            at = at._replace(residual=worse(at.residual, off))
        # The slack 2 - hH on the critical directions, at the end of this substep. With h in each
        # factor, since products of two may leave the range.
        gradient, bends, slopes = h.astype(flat.dtype) * gradient, h * bends, h * slopes
        along = jnp.matmul(slopes, gradient, precision="highest")
        drift = length * along[place] - bends
        reaction = length / 2 * jnp.matmul(slopes, slopes.T, precision="highest")
        reaction = reaction[place[:, :, None, None], place]
        found = solve(
            2 * jnp.eye(k, dtype=dtype) + drift,
            reaction,
            active=number < at.num_critical,
            start=at.variance,
        )
        weights = jnp.zeros(len(slopes), dtype).at[place].add(found.X)
        push = jnp.matmul(weights, slopes, precision="highest") / 2
        params = unravel(flat - length.astype(flat.dtype) * (gradient + push))
        foreseen = -jnp.diag(drift + jnp.einsum("ijkl,kl->ij", reaction, found.X))
        at = at._replace(
            params=params, variance=found.X, residual=worse(at.residual, found.residual)
        )
        return (checked(at, foreseen) if refresh == "substep" else at), foreseen

    def checked(at: CentralState, foreseen: Float[Array, " k"]) -> CentralState:
        bends = _along(loss, at.params, vectors_of(at), at.num_critical)
        off = _off(h * bends, foreseen, at.num_critical)
        return at._replace(residual=worse(at.residual, off))

    state = state._replace(residual=jnp.zeros_like(state.residual))
    nothing = jnp.zeros(k, dtype)
    if refresh == "substep":
        return jax.lax.fori_loop(0, substeps, functools.partial(substep, None), (state, nothing))[0]
    state = refreshed(state)
    # Third derivatives are what is expensive, and they change as slowly as the eigenvectors.
    _, slopes = _bends(loss, state.params, vectors_of(state), state.num_critical)
    state, foreseen = jax.lax.fori_loop(
        0, substeps, functools.partial(substep, slopes), (state, nothing)
    )
    return checked(state, foreseen)


def _segments(loss: Loss, params: Params) -> tuple[jax.Array, jax.Array, jax.Array]:
    r"""$v^\top H v$, its change along segments in directions $v$, and the integral of its slope."""
    flat, unravel = ravel(params)
    whole = jnp.sqrt(jnp.mean(flat**2))
    whole = jnp.where(whole > 0, whole, 1)

    def sizes(x: jax.Array) -> jax.Array:
        own = jnp.sqrt(jnp.mean(x.astype(flat.dtype) ** 2)) if x.size else whole
        return jnp.full(x.shape, jnp.where(own > 0, own, whole))

    size = ravel(jax.tree.map(sizes, params))[0]
    nodes, weights = np.polynomial.legendre.leggauss(6)

    def along(key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        v = size * jax.random.normal(key, flat.shape, flat.dtype)

        def bend(s: jax.Array) -> jax.Array:
            def slope(s: jax.Array) -> jax.Array:
                return jax.jvp(lambda s: loss(unravel(flat + s * v)), (s,), (jnp.ones_like(s),))[1]

            return jax.jvp(slope, (s,), (jnp.ones_like(s),))[1]

        ends = jax.lax.map(bend, jnp.array([0.0, REACH], flat.dtype))
        points = jnp.asarray(REACH * (nodes + 1) / 2, flat.dtype)
        slopes = jax.lax.map(lambda s: jax.jvp(bend, (s,), (jnp.ones_like(s),))[1], points)
        total = jnp.sum(jnp.asarray(REACH * weights / 2, slopes.dtype) * slopes)
        return jnp.max(jnp.abs(ends)), ends[1] - ends[0], total

    return jax.lax.map(along, jax.random.split(jax.random.key(0), SEGMENTS))


def _check_third_derivatives(loss: Loss, params: Params) -> None:
    """Raise an error where there is no third derivative, or JAX's is not that of the Hessian."""
    found = _once(_segments, loss, (), params)
    if _programs.is_traced(found):  # the loss reads data that have no values yet
        return
    bends, changes, integrals = (np.asarray(x, float) for x in found)
    if not np.all(np.isfinite([bends, changes, integrals])):
        return  # is met in the first step, which says so
    rounding = 100 * float(jnp.finfo(ravel(params)[0].dtype).eps) * bends
    moved = np.maximum(np.abs(changes), np.abs(integrals))
    if np.all(moved <= rounding):
        raise ValueError(
            "central_flow needs a third derivative of the loss, which is zero here: nothing that "
            "the parameters do changes the Hessian. So it is for quadratic losses, and within the "
            "linear pieces of relu networks. Use a loss that is not quadratic, and a smooth "
            "activation such as tanh or gelu"
        )
    clear = moved > rounding
    missed = np.abs(changes - integrals)[clear] / moved[clear]
    if np.median(missed) > MISSED:
        raise ValueError(
            "central_flow needs the third derivative of the loss, and the one that JAX returns "
            f"misses {np.median(missed):.0%} of the change of the Hessian (median over "
            f"{clear.sum()} random segments that change the parameters by {REACH:.0%}): the loss "
            "has kinks, as those of relu, abs or max. Use a smooth activation such as tanh or gelu"
        )


def _once(function: Any, loss: Loss, options: tuple, *args: Any) -> Any:
    """`function(loss, *options, *args)`, compiled; traced once for each loss and shapes."""
    program = _programs.remembered(
        (function, *options),
        loss,
        args,
        lambda: _programs.trace(functools.partial(function, loss, *options), *args),
    )
    return _programs.run(program, *args)


def _begin(
    loss: Loss, k: int, learning_rate: jax.Array, threshold: jax.Array, params: Params
) -> CentralState:
    # All at once, so that directions that are critical already are known from the first step on.
    state = _known(tracker(loss, k).init(params, jax.random.key(0)), jnp.int32(k))
    dtype = state.pairs.values.dtype
    beyond = state.pairs.values > _tracked_from(learning_rate, threshold).astype(dtype)
    num_tracked = jnp.minimum(1 + jnp.sum(beyond, dtype=jnp.int32), k)
    state = state._replace(num_tracked=num_tracked)
    dtype = ravel(params)[0].dtype
    return CentralState(
        params=params,
        tracker=state,
        variance=jnp.zeros((k, k), dtype),
        num_critical=_num_critical(state, learning_rate, threshold),
        residual=jnp.zeros((), dtype),
    )


def _init(
    loss: Loss, max_k: int, learning_rate: jax.Array, threshold: jax.Array, params: Params
) -> CentralState:
    params = check_loss(loss, params)
    k = min(max_k, num_entries(params))
    if _programs.is_traced(params, learning_rate, threshold):
        return _begin(loss, k, learning_rate, threshold, params)
    _check_third_derivatives(loss, params)
    return _once(_begin, loss, (k,), learning_rate, threshold, params)


def _position(state: CentralState) -> Params:
    return state.params


def _residual(state: CentralState) -> jax.Array:
    return state.residual


def _oscillation(state: CentralState) -> Params:
    values, vectors = jnp.linalg.eigh(state.variance, symmetrize_input=True)
    along = jnp.sqrt(jnp.maximum(values[-1], 0)) * vectors[:, -1]
    return weighted_sum(along, state.tracker.pairs.vectors)


def _expected_loss(loss: Loss, learning_rate: jax.Array, state: CentralState) -> jax.Array:
    value, spread = loss(state.params), jnp.trace(state.variance)
    return value + (spread / learning_rate.astype(spread.dtype)).astype(value.dtype)


def central_flow(
    loss: Loss,
    learning_rate: ScalarLike,
    *,
    max_k: int = 4,
    threshold: ScalarLike = 1.95,
    substeps: int = 4,
    refresh: str = "step",
) -> SteppedFlow:
    r"""Central flow: gradient flow that oscillates just enough to stay at the edge of stability.

    $$
    \begin{aligned}
    \dot w &= -\nabla\left[E + \tfrac12\langle\Sigma, H\rangle\right], \\
    \Sigma &\succeq 0, \quad H \preceq \tfrac2h I, \\
    0 &= \langle\Sigma, \tfrac2h I - H\rangle,
    \end{aligned}
    $$

    where $\Sigma$ is not differentiated. It models the time average of gradient descent's
    iterates, and its oscillation by the covariance $\Sigma$ alone: where gradient descent's
    sharpness overshoots $2/h$ and rings about it, central flow's stays at $2/h$.

    On the critical eigenvectors $U$, those with $h\lambda >$ `threshold`, $\Sigma = UXU^\top$, and
    in each substep $X$ solves a complementarity problem (`pfcore.flows.complementarity`): with
    $G_{ij} = \nabla(u_i^\top H u_j)$, no direction is to exceed $2/h$ at the end of the substep.
    For one critical direction $X = \max(0, -2\langle\nabla E, \nabla\lambda\rangle /
    \|\nabla\lambda\|^2)$ on the edge. The step is a projection: a flow started beyond the edge is
    on it after one substep. Where no oscillation can keep the curvature from growing, because
    $\nabla\lambda = 0$, the problem has no solution; then `pfcore.integrate` ends with `completed`
    false, and says by `residual` how much is left.

    With k critical directions a step of gradient descent costs $k(k+1)/2$ third derivatives, and
    for each substep a gradient and k Hessian products; about five Hessian products follow the
    eigenvectors. Of a network of 1,210 parameters that is 21 gradients for one and 32 for two
    directions, of one of 27,710 parameters 59 for up to four.

    Args:
      loss: $E$, from `params` to a real scalar, with third derivatives: no ReLU.
      learning_rate: $h > 0$ of the gradient descent that is modelled.
      max_k: largest number of critical directions; further ones are ignored, and may exceed the
        edge. At most as many as there are parameters are used.
      threshold: of $h\lambda$, between 0 and 2: directions above take part. The default is that of
        the authors.
      substeps: Euler steps for one of gradient descent; the default is that of the authors.
      refresh: "step" computes eigenvectors and $G_{ij}$ once for each step of gradient descent,
        "substep" anew for each substep, at three times the cost. With "step" the curvature along
        the eigenvectors follows the parameters nevertheless.

    Returns:
      A `SteppedFlow` whose state is a `CentralState`. Its `expected_loss` is
      $E + \operatorname{tr}\Sigma/h$. Its `oscillation` is $\sqrt{\lambda_1}\,v_1$ with the
      leading eigenpair of $\Sigma$: all of the oscillation where one direction is critical, and
      the largest part of it where there are more. It is zero at the start, before the first step.

    Raises:
      ValueError: the learning rate is not a positive finite scalar, `max_k` or `substeps` is below
        1, `threshold` is not between 0 and 2, `refresh` is unknown; from `init`, a loss whose third
        derivative is zero, or has kinks near the parameters (neither is looked for under tracing).
      TypeError: `max_k` or `substeps` is not an integer.

    Example:
      >>> import jax.numpy as jnp, pfcore
      >>> loss = lambda w: w["y"] * w["x"] ** 2 / 2 - 0.02 * w["y"]  # sharpness y, pushed to grow
      >>> start = {"x": jnp.array(0.1), "y": jnp.array(3.8)}
      >>> flow = pfcore.flows.central_flow(loss, 0.5)
      >>> path = pfcore.integrate(flow, start, 0.5 * jnp.arange(101.0))
      >>> bool(path.completed), round(float(path.params["y"][-1]), 3)  # 2 / 0.5
      (True, 4.0)
      >>> round(float(path.oscillation["x"][-1]) ** 2, 4)  # what keeps y there
      0.04

    References:
      Cohen, Damian, Talwalkar, Kolter, Lee, *Understanding optimization in deep learning with
      central flows*, ICLR 2025 (arXiv 2410.24206).
    """
    learning_rate = check_learning_rate(learning_rate)
    max_k = check_count("max_k", max_k, minimum=1)
    substeps = check_count("substeps", substeps, minimum=1)
    if not isinstance(threshold, jax.core.Tracer) and not 0 < float(threshold) < 2:
        raise ValueError(
            f"threshold must lie between 0 and 2, where directions are critical, got {threshold!r}"
        )
    if refresh not in REFRESHES:
        raise ValueError(f"refresh must be 'step' or 'substep', got {refresh!r}")
    dynamic = (learning_rate, jnp.asarray(threshold, learning_rate.dtype))
    return SteppedFlow(
        init=bind(_init, loss, max_k, dynamic=dynamic),
        step=bind(_step, loss, substeps, refresh, dynamic=dynamic),
        position=_position,
        max_step=learning_rate,
        oscillation=_oscillation,
        expected_loss=bind(_expected_loss, loss, dynamic=(learning_rate,)),
        residual=_residual,
    )
