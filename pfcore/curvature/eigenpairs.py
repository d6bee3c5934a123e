r"""The largest eigenvalues of the Hessian with their eigenvectors, certified by residuals.

A subspace grows by one Hessian-vector product at a time, in the direction of the residual of the
first wanted pair that has not converged. The eigenpairs of $H$ projected onto the subspace (Ritz
pairs) are the result. From one starting vector this is Lanczos iteration with full
reorthogonalisation and thick restarts. From several, such as the eigenvectors of an earlier point,
it is a block Krylov method that spends its products where they are needed.

It is implemented here because matfree's routine has a fixed depth and returns no residuals, and
`jax.experimental.sparse.linalg.lobpcg_standard` takes several times as many products
(`benchmarks/curvature.py`).
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from pfcore._checks import (
    KeyLike,
    ScalarLike,
    check_count,
    check_curvature,
    check_key,
    check_positive,
    check_vector,
)
from pfcore._trees import Params, in_single, num_entries, ravel
from pfcore._trees import norm as norm_of
from pfcore.curvature import krylov
from pfcore.curvature.krylov import (
    MatVec,
    exhausted,
    is_symmetric,
    normalised,
    orthogonalise,
    over,
    reorthogonalise,
    rounding,
    unit_of,
)
from pfcore.curvature.products import LossOrCurvature, compiled

WHICH = ("largest", "smallest", "magnitude")
# Eigenvalues smaller in magnitude than this fraction of the largest are resolved to an absolute
# error, since in finite precision no relative error can be guaranteed.
SMALL = 1e-3
# A residual of at most this many rounding errors of the products is not reduced further.
FLOOR = 1.25
# Probability, over the random start, that the check for missed eigenvalues ends too early.
MISS = 0.05
# Share of the tolerance within which an eigenvalue counts as a copy of another.
COPIES = 0.01
# Number of columns of the basis that a restart transforms at a time.
COLUMNS = 2**14
# Rows that a restart leaves for the Krylov space of a random vector that is to come.
CHAIN = 10
# Share of noise in a challenger, so that it has a component along every direction.
NOISE = 0.05


class Eigenpairs(NamedTuple):
    r"""Eigenvalues and eigenvectors of the Hessian, with error bounds.

    Attributes:
      values: $\lambda_i$, [k], in the requested order (largest, smallest or largest magnitude
        first); NaN if the products were not finite or the matrix is not symmetric.
      vectors: $u_i$, orthonormal, with the structure of the parameters and a leading axis of k.
      residuals: $\|Hu_i - \lambda_i u_i\|$, [k]. Some eigenvalue of $H$ lies within this distance
        of $\lambda_i$.
      converged: whether the residual is at most
        $\text{tolerance}\cdot\max(|\lambda_i|, 10^{-3}\|H\|)$, [k].
      num_products: Hessian-vector products used.
    """

    values: Float[Array, " k"]
    vectors: Params
    residuals: Float[Array, " k"]
    converged: Bool[Array, " k"]
    num_products: Int[Array, ""]


class Subspace(NamedTuple):
    """An orthonormal basis with `size` filled rows, and the directions in which H leaves its span.

    For q in the basis, H q lies in the span of `basis` and `outside`, whose rows together are
    orthonormal. `outside` also holds starting vectors that are not used yet. Empty rows are zero.
    The entries of the projected H are divided by `unit`.

    One array holds both sets of rows, so that a vector is orthogonalised against all of them in one
    pass: `outside` from the first row on, the basis from the last row backwards. They share the
    rows between, since the check for copies rarely needs many rows of `outside`.
    """

    vectors: Float[Array, "r n"]
    projected: Float[Array, "m m"]  # basis H basisᵀ
    coupling: Float[Array, "b m"]  # outside H basisᵀ
    occupied: Bool[Array, " b"]  # rows of `outside`
    size: Int[Array, ""]
    starts: Int[Array, ""]  # number of starting vectors
    started: Int[Array, ""]  # how many of them have been multiplied
    asymmetry: Float[Array, ""]  # largest asymmetry of basis H basisᵀ
    unit: Float[Array, ""]  # scale of the products; 0 until one is not zero
    reach: Float[Array, ""]  # the largest norm of a product with a unit vector

    @property
    def filled(self) -> jax.Array:
        return jnp.arange(len(self.projected), dtype=jnp.int32) < self.size

    def combined(self, coordinates: Float[Array, "m k"]) -> Float[Array, "k n"]:
        """Vectors with these coordinates in the basis; those of empty rows must be zero."""
        others = len(self.vectors) - len(coordinates)
        return jnp.pad(coordinates[::-1], ((others, 0), (0, 0))).T @ self.vectors

    def combined_outside(self, coordinates: Float[Array, " b"]) -> Float[Array, " n"]:
        """A vector with these coordinates in `outside`.

        They must be zero for rows that are not `occupied`, which may belong to the basis.
        """
        others = len(self.vectors) - len(coordinates)
        return jnp.pad(coordinates, (0, others)) @ self.vectors


class Ritz(NamedTuple):
    """Eigenpairs of the projection: coordinates in columns, best first; the rest are empty."""

    values: Float[Array, " m"]
    coordinates: Float[Array, "m m"]
    residuals: Float[Array, " m"]
    norm: Float[Array, ""]  # the largest |value|: an estimate of ‖H‖


class Next(NamedTuple):
    """The vector to multiply next."""

    residual: Float[Array, " b"]  # its direction, in coordinates of `outside`
    fresh: Bool[Array, ""]  # whether to take a random vector instead
    done: Bool[Array, ""]
    checking: Bool[Array, ""]  # whether a Krylov space of a random vector is being built
    chain: Int[Array, ""]  # the first row of that space
    mixed: Bool[Array, ""]  # whether a restart has mixed its rows since
    clear: Bool[Array, ""]  # whether such a space has shown that no eigenvalue was missed


class Search(NamedTuple):
    space: Subspace
    ritz: Ritz
    next: Next
    key: PRNGKeyArray
    num_products: Int[Array, ""]


def _start(vectors: Float[Array, "s n"], rows: int, slots: int) -> Subspace:
    """An empty basis, with linearly independent starting vectors in `outside`.

    There is room for as many vectors outside a full basis as there are starting vectors, or if the
    basis may span the whole space, for all.
    """
    dtype = vectors.dtype

    def add(i, carry):
        outside, count = carry
        length = norm_of(vectors[i])
        left, _ = orthogonalise(normalised(vectors[i], length, length > 0), outside)
        after = jnp.linalg.norm(left)
        enough = after > 100 * float(jnp.finfo(dtype).eps)
        outside = outside.at[count].set(normalised(left, after, enough))
        return outside, count + enough.astype(jnp.int32)

    # Rows of the basis are allocated as zeros, which orthogonalisation ignores.
    shared = rows + (len(vectors) if rows < vectors.shape[1] else slots)
    outside = jnp.zeros((shared, vectors.shape[1]), dtype)
    outside, count = jax.lax.fori_loop(0, len(vectors), add, (outside, jnp.int32(0)))
    return Subspace(
        vectors=outside,
        projected=jnp.zeros((rows, rows), dtype),
        coupling=jnp.zeros((slots, rows), dtype),
        occupied=jnp.arange(slots, dtype=jnp.int32) < count,
        size=jnp.int32(0),
        starts=count,
        started=jnp.int32(0),
        asymmetry=jnp.zeros((), dtype),
        unit=jnp.zeros((), dtype),
        reach=jnp.zeros((), dtype),
    )


def _combination(space: Subspace, known: Float[Array, " m"]) -> Float[Array, " n"]:
    """`combined` for one vector, which between restarts has no more than two coordinates."""

    def few() -> jax.Array:
        _, indices = jax.lax.top_k(jnp.abs(known), min(2, len(known)))
        last = len(space.vectors) - 1
        return functools.reduce(jnp.add, [known[i] * space.vectors[last - i] for i in indices])

    def many() -> jax.Array:
        return space.combined(known[:, None])[0]

    return jax.lax.cond(jnp.sum(known != 0) <= 2, few, many)


def _expanded(
    space: Subspace, slot: jax.Array, vector: Float[Array, " n"], product: MatVec
) -> Subspace:
    """Add a vector to the basis: the row `slot` of `outside`, or a new one; takes one product."""
    slots, rows = space.coupling.shape
    # Stored before the product, so that it need not stay in memory twice; first into its new row,
    # so that XLA writes in place after the old one is read.
    vectors = space.vectors.at[len(space.vectors) - 1 - space.size].set(vector).at[slot].set(0.0)
    image = product(vector)
    unit = unit_of(image, space.unit)
    image = over(image, unit)
    size = jnp.linalg.norm(image)
    # For a symmetric H the components along the basis are known from earlier products.
    known, own = space.coupling[slot], vector @ image
    left = image - own * vector - _combination(space._replace(vectors=vectors), known)
    left, rest = reorthogonalise(left, vectors)
    norm = jnp.linalg.norm(left)
    alive = norm > exhausted(size)
    occupied = space.occupied.at[slot].set(False)
    change = jnp.where(jnp.arange(rows, dtype=jnp.int32) <= space.size, rest[::-1][:rows], 0)
    row = (known + change).at[space.size].add(own)
    column = jnp.where(occupied, rest[:slots], 0).at[slot].set(jnp.where(alive, norm, 0.0))
    defect = jnp.linalg.norm(change.at[space.size].set(0.0))
    defect = jnp.where(jnp.isfinite(norm), defect, jnp.nan)
    return space._replace(
        vectors=vectors.at[slot].set(normalised(left, norm, alive)),
        projected=space.projected.at[space.size].set(row).at[:, space.size].set(row),
        coupling=space.coupling.at[slot].set(0.0).at[:, space.size].set(column),
        occupied=occupied.at[slot].set(alive),
        size=space.size + 1,
        asymmetry=jnp.maximum(space.asymmetry, defect),
        unit=unit,
        reach=jnp.maximum(space.reach, size),
    )


def _index(row: jax.Array) -> jax.Array:
    """Index of the largest entry, or of the first that is true, as a 32-bit integer."""
    return jnp.argmax(row).astype(jnp.int32)


def _aimed(space: Subspace, residual: Float[Array, " b"], turn: jax.Array) -> Subspace:
    """Rotate `outside` so that one of its rows lies along a residual.

    Applies the Householder reflection that maps the residual to a multiple of e_slot, row by row,
    to avoid a second copy of the rows in memory.
    """
    slot = _index(jnp.abs(residual))
    length = jnp.linalg.norm(residual)
    unit = normalised(residual, length, length > 0)
    # The sign avoids cancellation.
    mirror = unit.at[slot].add(jnp.where(unit[slot] < 0, -1.0, 1.0).astype(unit.dtype))
    mirror = jnp.where(turn, mirror, 0.0)
    scaled = 2 / jnp.maximum(jnp.sum(mirror**2), 1) * mirror
    along = jax.lax.cond(
        turn, lambda: space.combined_outside(mirror), lambda: jnp.zeros_like(space.vectors[0])
    )

    def reflected(row: jax.Array | int, vectors: jax.Array) -> jax.Array:
        return vectors.at[row].add(-scaled[row] * along)

    rows = jnp.where(turn, len(mirror), 0).astype(jnp.int32)
    return space._replace(
        vectors=jax.lax.fori_loop(jnp.int32(0), rows, reflected, space.vectors),
        coupling=space.coupling - scaled[:, None] * (mirror @ space.coupling),
    )


def _injected(space: Subspace, key: PRNGKeyArray) -> Float[Array, " n"]:
    """A random direction, orthogonal to the basis and `outside`."""
    vector = jax.random.normal(key, space.vectors.shape[1:], space.vectors.dtype)
    left, _ = orthogonalise(vector, space.vectors)
    return left / jnp.linalg.norm(left)


def _eigh(matrix: jax.Array, filled: jax.Array, which: str) -> tuple[jax.Array, jax.Array]:
    """Eigenpairs of the filled rows and columns, best first; -inf and zeros fill the rest."""
    bound = jnp.max(jnp.sum(jnp.abs(matrix), axis=1))
    sentinel = -2 * bound - 1  # for empty rows: below every eigenvalue
    values, vectors = krylov.eigh(matrix + jnp.diag(jnp.where(filled, 0.0, sentinel)))
    real = values > sentinel / 2
    rank = jnp.abs(values) if which == "magnitude" else values
    order = jnp.argsort(-jnp.where(real, rank, -jnp.inf))
    real = real[order]
    inside = filled[:, None] & real
    return jnp.where(real, values[order], -jnp.inf), jnp.where(inside, vectors[:, order], 0.0)


def _ritz(space: Subspace, which: str) -> Ritz:
    filled = space.filled
    values, coordinates = _eigh(space.projected, filled, which)
    norm = jnp.max(jnp.where(filled, jnp.abs(values), 0.0))
    residuals = jnp.linalg.norm(space.coupling @ coordinates, axis=0)
    # The projection does not show the rounding error of the products.
    residuals = jnp.where(filled, residuals + space.asymmetry + rounding(norm), jnp.inf)
    return Ritz(values, coordinates, residuals, norm)


def threshold(values: jax.Array, norm: jax.Array, tolerance: jax.Array) -> jax.Array:
    """Upper bound on the residual of a converged pair."""
    allowed = tolerance * jnp.maximum(jnp.abs(values), SMALL * norm)
    return jnp.where(jnp.isfinite(values), allowed, 0.0)


def _mixed(
    vectors: Float[Array, "r n"], mixing: Float[Array, "m m"], turn: Bool[Array, ""]
) -> Float[Array, "r n"]:
    """`vectors` with the last rows multiplied by a matrix if `turn`, a block of columns at a time.

    In place: the product of all columns at once would allocate a second basis, and so would a
    condition; without `turn` there are no blocks.
    """
    n = vectors.shape[1]
    first, whole = jnp.int32(len(vectors) - len(mixing)), n // COLUMNS * COLUMNS

    def block(vectors: jax.Array, start: jax.Array | int, width: int) -> jax.Array:
        corner = first, jnp.asarray(start, jnp.int32)  # without jit it may be a Python number
        old = jax.lax.dynamic_slice(vectors, corner, (len(mixing), width))
        return jax.lax.dynamic_update_slice(vectors, mixing @ old, corner)

    def blocks(number: int, start: int, width: int, vectors: jax.Array) -> jax.Array:
        stop = jnp.where(turn, number, 0).astype(jnp.int32)
        return jax.lax.fori_loop(
            jnp.int32(0), stop, lambda i, v: block(v, start + width * i, width), vectors
        )

    if whole:
        vectors = blocks(n // COLUMNS, 0, COLUMNS, vectors)
    return blocks(1, whole, n - whole, vectors) if whole < n else vectors


def _is_full(space: Subspace, following: Next) -> Bool[Array, ""]:
    """Whether there is no row for the next vector."""
    number = jnp.arange(1, len(space.occupied) + 1, dtype=jnp.int32)
    used = jnp.max(jnp.where(space.occupied, number, 0))
    used = jnp.where(following.fresh, jnp.maximum(used, _index(~space.occupied) + 1), used)
    rows = len(space.projected)
    return space.size >= jnp.minimum(rows, len(space.vectors) - used)


def _compressed(search: Search, wanted: jax.Array, keep: int) -> Search:
    """A thick restart of a full basis: the best Ritz vectors, in order, become the basis."""
    space, ritz = search.space, search.ritz
    turn, fresh = _is_full(space, search.next), search.next.fresh
    # The more vectors stay, the sooner a random vector shows that none was missed.
    most = jnp.where(fresh, max(keep, len(space.projected) - CHAIN), keep).astype(jnp.int32)
    size = jnp.minimum(space.size, most)
    number = jnp.arange(len(space.projected), dtype=jnp.int32)
    kept = number < size
    # Rows and columns from `keep` on are zero, so that these vectors become zero. Empty rows may
    # belong to `outside`, and stay.
    same = jnp.diag((~space.filled).astype(ritz.coordinates.dtype))
    mixing = jnp.where(kept, ritz.coordinates, 0.0) + same

    def either(new: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.where(turn, new, old)

    space = space._replace(
        vectors=_mixed(space.vectors, mixing.T[::-1, ::-1], turn),
        projected=either(jnp.diag(jnp.where(kept, ritz.values, 0.0)), space.projected),
        coupling=either(jnp.where(kept, space.coupling @ ritz.coordinates, 0.0), space.coupling),
        size=either(size, space.size),
    )
    # The rows of a random vector's Krylov space are now mixed with others: from here on it is taken
    # to be all rows that are not wanted. If the vector is still to come, its space starts after
    # the basis.
    following = search.next._replace(
        chain=jnp.where(fresh, space.size, either(wanted, search.next.chain)),
        mixed=~fresh & (turn | search.next.mixed),
    )
    return search._replace(space=space, next=following)


def _odds_of_a_miss(
    values: Float[Array, " m"],
    norms: Float[Array, " m"],
    residual: jax.Array,
    last: jax.Array,
    n: int,
    mixed: jax.Array,
    which: str,
) -> jax.Array:
    r"""Bound on the probability that an eigenvector with an eigenvalue beyond `last` was missed.

    Lanczos iteration from a random unit vector $w$, orthogonal to the subspace, has the Ritz values
    $\theta_j$ (`values`) and the norms $\beta_j$ of its remainders (`norms`). With the polynomial
    $p(x) = \prod_j (x - \theta_j)$, $\|p(H)w\| = \prod_j \beta_j$ (Parlett, section 12.3). For a
    missed eigenvector $u$ with eigenvalue $\lambda$, $u^\top p(H)w = p(\lambda)\,u^\top w$, and so
    $|u^\top w| \le \prod_j \beta_j/|\lambda - \theta_j|$, which has a probability of at most
    $\sqrt{2n/\pi}$ times that bound. Once a restart has mixed the rows, the bound is that of the
    first Ritz value and its residual alone, $r/|\lambda - \theta_0|$.

    Empty rows have a value of -inf.
    """
    real = jnp.isfinite(values)

    def bound(last: jax.Array) -> jax.Array:
        gaps = jnp.where(real, jnp.abs(last - values), 1)
        factors = jnp.where(real, norms / jnp.where(gaps > 0, gaps, 1), 1)
        return jnp.where(mixed, residual / jnp.where(gaps[0] > 0, gaps[0], 1), jnp.prod(factors))

    if which == "magnitude":
        gap = last - jnp.max(jnp.where(real, jnp.abs(values), 0))
        limit = jnp.maximum(bound(last), bound(-last))
    else:
        gap, limit = last - values[0], bound(last)
    odds = math.sqrt(2 * n / math.pi) * limit
    # In an exhausted space no eigenvector was missed.
    exhausted = (gap >= 0) & (residual <= 0)
    return jnp.where(gap > 0, odds, jnp.where(exhausted, 0.0, jnp.inf))


def _decide(
    space: Subspace,
    ritz: Ritz,
    before: Next,
    num_products: jax.Array,
    *,
    tolerance: jax.Array,
    max_products: jax.Array,
    wanted: jax.Array,
    which: str,
    check: bool | jax.Array,
) -> Next:
    rows, n = len(space.projected), space.vectors.shape[1]
    number = jnp.arange(rows, dtype=jnp.int32)
    # More products do not lower a residual that is mostly rounding error.
    allowed = threshold(ritz.values, ritz.norm, tolerance)
    enough = jnp.maximum(allowed, FLOOR * rounding(ritz.norm))
    unsettled = (ritz.residuals > enough) & (number < wanted)
    starting = space.started < space.starts
    converged = ~jnp.any(unsettled) & ~starting
    # The next direction is the residual of the first pair that has not converged, ...
    leak = space.coupling @ ritz.coordinates[:, _index(unsettled)]
    checking, clear = jnp.array(False), jnp.array(True)
    if check is not False:
        # ... or else, or where that pair had converged before, that of the best pair in the random
        # vector's Krylov space.
        size = jnp.abs if which == "magnitude" else lambda values: values
        place = jnp.maximum(wanted - 1, 0)
        last = size(ritz.values[place])
        # Further copies of the last eigenvalue, of which there may be hundreds, are not missed.
        beyond = last + COPIES * allowed[place]
        inside = (number >= before.chain) & (number < space.size)

        def of_chain() -> tuple[jax.Array, jax.Array, jax.Array]:
            """The direction in which it grows, the odds of a miss, and whether it found none."""
            part = jnp.where(inside[:, None] & inside, space.projected, 0.0)
            values, coordinates = _eigh(part, inside, which)
            chain_leak = space.coupling @ coordinates[:, 0]
            # The projection is tridiagonal; the last vector's remainder is outside.
            norms = jnp.pad(jnp.abs(jnp.diagonal(part, -1)), (0, 1))
            norms = norms.at[space.size - 1].set(jnp.linalg.norm(space.coupling[:, space.size - 1]))
            norms = jnp.roll(norms, -before.chain)  # in the order of `values`, real ones first
            residual = jnp.linalg.norm(chain_leak)
            odds = _odds_of_a_miss(values, norms, residual, beyond, n, before.mixed, which)
            return chain_leak, odds, size(values[0]) <= last

        nothing = jnp.zeros_like(leak), jnp.full_like(ritz.norm, jnp.inf), jnp.array(False)
        chain_leak, odds, none = jax.lax.cond(before.checking, of_chain, lambda: nothing)
        # Since eigenvalues of the projection only grow, a miss remains as unlikely.
        clear = before.clear | ~jnp.asarray(check) | (odds < MISS)
        checking = before.checking & (converged | none) & ~clear
        leak = jnp.where(checking, chain_leak, leak)
    stuck = jnp.linalg.norm(leak) <= 0
    fresh = ~starting & (stuck | (converged & ~checking & ~clear))
    # No dimension is left for a random vector: the rest of the space is spanned by `outside`.
    full = space.size + jnp.sum(space.occupied, dtype=jnp.int32) >= n
    leak = jnp.where(fresh & full, space.occupied.astype(leak.dtype), leak)
    fresh &= ~full
    # Starting vectors come first, in order.
    slots = jnp.arange(len(space.occupied), dtype=jnp.int32)
    leak = jnp.where(starting, (slots == space.started).astype(leak.dtype), leak)
    done = (
        (clear & converged)
        | (space.size >= n)
        | (fresh & jnp.all(space.occupied))
        | (num_products >= max_products)
        | ~is_symmetric(space.asymmetry, space.reach)
    )
    checking |= fresh & converged & ~clear
    return Next(
        residual=leak,
        fresh=fresh,
        done=done,
        checking=checking,
        chain=jnp.where(fresh, space.size, before.chain),
        mixed=before.mixed & ~fresh,
        clear=clear,
    )


def search_eigenpairs(
    product: MatVec,
    start: Float[Array, "s n"],
    *,
    key: PRNGKeyArray,
    tolerance: jax.Array,
    max_products: jax.Array,
    wanted: jax.Array,
    count: int,
    rows: int,
    which: str,
    check: bool | jax.Array,
) -> Search:
    """The first `wanted` pairs: values and coordinates in `ritz`.

    Args:
      product: v ↦ Hv in flat coordinates.
      start: starting vectors, at least one of them not zero.
      key: for the random vectors of the check.
      tolerance: of the residuals, relative.
      max_products: largest number of products.
      wanted: number of pairs that must converge, at most `count`; may be traced.
      count: number of vectors returned, at most `rows`.
      rows: size of the basis at which it is restarted.
      which: "largest" or "magnitude".
      check: whether to look for missed copies of multiple eigenvalues; may be traced.
    """
    dtype = start.dtype
    # A restart keeps more vectors than are returned, to preserve the progress of the next ones.
    keep = max(count, min((2 * count + rows) // 3, rows - 1))
    slots = len(start) + (1 if check is False else count + 1)
    decide = functools.partial(
        _decide,
        tolerance=tolerance,
        max_products=max_products,
        wanted=wanted,
        which=which,
        check=check,
    )

    def grow(search: Search) -> Search:
        key, subkey = jax.random.split(search.key)

        residual, fresh = search.next.residual, search.next.fresh
        slot = jnp.where(fresh, _index(~search.space.occupied), _index(jnp.abs(residual)))
        space = _aimed(search.space, residual, ~fresh & (jnp.sum(residual != 0) > 1))
        # The condition does not return the basis, which would copy it.
        vector = jax.lax.cond(fresh, lambda: _injected(space, subkey), lambda: space.vectors[slot])
        space = _expanded(space, slot, vector, product)
        space = space._replace(started=jnp.minimum(space.started + 1, space.starts))
        ritz = _ritz(space, which)
        num_products = search.num_products + 1
        following = decide(space, ritz, search.next, num_products)
        return Search(space, ritz, following, key, num_products)

    def cycle(search: Search) -> Search:
        search = _compressed(search, wanted, keep)
        return jax.lax.while_loop(lambda s: ~s.next.done & ~_is_full(s.space, s.next), grow, search)

    space = _start(start, rows, slots)
    begin = Search(
        space=space,
        ritz=Ritz(
            jnp.full(rows, -jnp.inf, dtype),
            jnp.zeros((rows, rows), dtype),
            jnp.full(rows, jnp.inf, dtype),
            jnp.zeros((), dtype),
        ),
        next=Next(
            residual=jnp.zeros(slots, dtype).at[0].set(1),
            fresh=space.starts == 0,
            done=jnp.array(False),
            checking=jnp.array(False),
            chain=jnp.int32(0),
            mixed=jnp.array(False),
            clear=jnp.array(False),
        ),
        key=key,
        num_products=jnp.int32(0),
    )
    return jax.lax.while_loop(lambda s: ~s.next.done, cycle, begin)


def subspace_rows(count: int, n: int) -> int:
    """Size of the basis at which it is restarted.

    Large enough that the top five of the digits network need no restart, small enough for the
    memory of a network with millions of parameters; the whole space if that is small.
    """
    return n if n <= 64 else min(n, max(20, 4 * count + 12))


def check_which(which: str) -> None:
    if which not in WHICH:
        raise ValueError(f"which must be one of {', '.join(WHICH)}, got {which!r}")


def _is_simple(ritz: Ritz, size: Int[Array, ""], count: int) -> Bool[Array, " k"]:
    """Whether each of the first `count` values is separated from all other Ritz values.

    Some eigenvalue lies within the residual of each value; for two values it may be the same one.
    """
    filled = jnp.arange(len(ritz.values), dtype=jnp.int32) < size
    values = jnp.where(filled, ritz.values, jnp.inf)  # far from all others
    reach = jnp.where(filled, ritz.residuals, 0.0)
    # The residual of the returned value counts, not that of its neighbour, which may not have
    # converged.
    apart = jnp.abs(values[:count, None] - values) > 2 * reach[:count, None]
    return jnp.all(apart | jnp.eye(count, len(values), dtype=bool), axis=1)


class Found(NamedTuple):
    """The result of `find_eigenpairs`.

    Attributes:
      pairs: in flat coordinates: `vectors` is [k, n].
      gradient: with the structure of the parameters; None for a curvature without a gradient.
      challenger: [n], the direction that may overtake next; see `_challenger`.
    """

    pairs: Eigenpairs
    gradient: Params
    challenger: Float[Array, " n"]


def _challenger(
    space: Subspace, ritz: Ritz, wanted: jax.Array, key: PRNGKeyArray, which: str
) -> Float[Array, " n"]:
    """A starting vector for eigenvalues beyond those wanted: one step of a power iteration.

    It multiplies the best unwanted Ritz vector by H + ‖H‖, a shift that favours large eigenvalues
    over negative ones, and adds noise. Passed from search to search, it converges to the largest
    unwanted eigenvector before that one overtakes.
    """
    rows, n = len(space.projected), space.vectors.shape[1]
    last = jnp.minimum(wanted, rows - 1)
    coordinates = ritz.coordinates[:, last]
    shift = jnp.zeros_like(ritz.norm) if which == "magnitude" else ritz.norm
    value = jnp.where(jnp.isfinite(ritz.values[last]), ritz.values[last], 0)
    left = jnp.where(space.occupied, space.coupling @ coordinates, 0)
    grown = (value + shift) * space.combined(coordinates[:, None])[0] + space.combined_outside(left)
    size = jnp.linalg.norm(grown)
    noise = jax.random.normal(key, (n,), grown.dtype) / n**0.5
    known = (space.size > wanted) & (size > 0) & jnp.isfinite(size)
    return jnp.where(known, normalised(grown, size, known) + NOISE * noise, noise)


def find_eigenpairs(
    loss: Any,
    params: Params,
    start: Float[Array, "s n"] | None,
    *,
    key: PRNGKeyArray,
    tolerance: jax.Array,
    max_products: jax.Array,
    wanted: jax.Array,
    count: int,
    which: str,
    check: bool | jax.Array,
    challenger: Float[Array, " n"] | None = None,
    renewed: jax.Array | None = None,
) -> Found:
    """`count` pairs, of which the first `wanted` must converge.

    Values are NaN if the products are not those of a symmetric matrix. The smallest eigenvalues are
    computed as the largest of −H. A given `challenger` is returned as it is unless `renewed`.
    """
    return _find(
        loss,
        params,
        start,
        key,
        tolerance,
        max_products,
        wanted,
        jnp.asarray(check),
        challenger,
        renewed,
        count=count,
        which=which,
        checks=check is not False,
    )


@compiled("count", "which", "checks")
def _find(
    hessian,
    params,
    start,
    key,
    tolerance,
    max_products,
    wanted,
    check,
    challenger,
    renewed,
    *,
    count,
    which,
    checks,
) -> Found:
    # The search is not differentiated: eigenvalues have a derivative rule of their own.
    g, product, flat, unravel = hessian.constant(params)
    sign = -1 if which == "smallest" else 1
    if start is None:
        key, subkey = jax.random.split(key)
        start = jax.random.normal(subkey, (1, flat.size), flat.dtype)
    tolerance = tolerance.astype(flat.dtype)
    search = search_eigenpairs(
        lambda v: sign * product(v),
        start.astype(flat.dtype),
        key=key,
        tolerance=tolerance,
        max_products=max_products,
        wanted=wanted,
        count=count,
        rows=subspace_rows(count, flat.size),
        which="magnitude" if which == "magnitude" else "largest",
        check=check if checks else False,
    )
    space, ritz = search.space, search.ritz
    values, residuals = ritz.values[:count], ritz.residuals[:count]
    known = jnp.isfinite(values) & is_symmetric(space.asymmetry, space.reach)
    unit = jnp.where(space.unit > 0, space.unit, 1)
    residuals = jnp.where(known, residuals, jnp.inf)
    vectors = space.combined(ritz.coordinates[:, :count])
    pairs = Eigenpairs(
        values=hessian.differentiable(
            jnp.where(known, sign * unit * values, jnp.nan),
            vectors,
            _is_simple(ritz, space.size, count),
            params,
        ),
        vectors=vectors,
        residuals=unit * residuals,
        converged=residuals <= threshold(values, ritz.norm, tolerance),
        num_products=search.num_products,
    )

    def renew() -> jax.Array:
        return _challenger(space, ritz, wanted, jax.random.fold_in(key, 1), which)

    if challenger is None:
        challenger = renew()
    else:
        challenger = jax.lax.cond(renewed, renew, lambda: challenger.astype(flat.dtype))
    return Found(pairs, None if g is None else unravel(g), challenger)


def ravelled_rows(vectors: Params) -> Float[Array, "k n"]:
    """Vectors stacked along a leading axis, each as one row."""
    return jax.vmap(lambda tree: ravel(tree)[0])(vectors)


def unravelled(pairs: Eigenpairs, params: Params) -> Eigenpairs:
    """Pairs whose vectors have the structure of the parameters."""
    return pairs._replace(vectors=jax.vmap(ravel(in_single(params))[1])(pairs.vectors))


@compiled("k", "which", "check")
def _top(hessian, params, start, key, tolerance, max_products, *, k, which, check) -> Eigenpairs:
    found = find_eigenpairs(
        hessian,
        params,
        None if start is None else ravelled_rows(start),
        key=key,
        tolerance=tolerance,
        max_products=max_products,
        wanted=jnp.int32(k),
        count=k,
        which=which,
        check=check,
    )
    return unravelled(found.pairs, params)


def top_eigenpairs(
    loss: LossOrCurvature,
    params: Params,
    k: int,
    *,
    key: KeyLike,
    tolerance: ScalarLike = 1e-3,
    which: str = "largest",
    start: Params | None = None,
    max_products: int | None = None,
    check: bool | None = None,
) -> Eigenpairs:
    r"""The k largest eigenvalues of the Hessian with eigenvectors, certified by their residuals.

    $Hu_i = \lambda_i u_i$ to within the reported $\|Hu_i - \lambda_i u_i\|$. The error of
    $\lambda_i$ is at most the residual $r$, and $O(r^2)$ if the eigenvalue is isolated. One
    compiled loop: Lanczos iteration with full reorthogonalisation and thick restarts from a random
    vector, or a block Krylov method from a given `start`.

    From one random vector, Lanczos iteration finds one direction of a multiple eigenvalue. With
    `check`, once k pairs have converged, it continues with further random vectors, orthogonal to
    the subspace, until each has found a missed pair or the probability that there is one, beyond
    the last by more than a hundredth of the tolerance, is bounded by 5 %. On the digits network of
    the book this takes 6 products after 32 (k = 5).

    The values are differentiable, in both modes, by $\partial\lambda_i = u_i^\top (\partial H)
    u_i$, at the cost of three gradients. Thus sharpness can be penalised, as in the last example.
    The rule requires a simple eigenvalue: if another computed value lies within twice its residual,
    `jax.grad` raises an error, and in a compiled function the derivative is NaN. A second copy is
    detected from k = 2 on. Vectors and residuals are treated as constants, so that second
    derivatives are incomplete.

    Memory: $\max(20, 4k + 12) + 5$ vectors of the size of the parameters (for n > 64), beside the
    result and what a product takes; restarts are in place.

    Args:
      loss: $E$, from `params` to a real scalar, or a `Curvature` in place of its Hessian.
      params: any pytree of floating-point arrays, $n$ numbers in all.
      k: number of pairs, at least 1 and at most n.
      key: for the random vectors, `jax.random.key(seed)`.
      tolerance: a pair has converged when its residual is at most
        $\text{tolerance}\cdot\max(|\lambda_i|, 10^{-3}\|H\|)$. The smallest tolerance that can be
        reached is about $10^{-6}$ in single precision and $10^{-14}$ in double precision, and 0.03
        if the loss computes in bfloat16; the search then ends at residuals of that size.
      which: "largest" (algebraically), "smallest", or "magnitude".
      start: vectors to start from, with the structure of `params` and a leading axis: the `vectors`
        of an earlier call at nearby parameters. An eigenvector orthogonal to them can be missed,
        unless `check` is set.
      max_products: largest number of Hessian-vector products, by default $100 + 40k$; pairs that
        have not converged by then have `converged` false.
      check: whether to look for missed copies of multiple eigenvalues; by default if k > 1 and
        there is no `start`.

    Returns:
      `Eigenpairs`. Values are NaN and residuals infinite, and `converged` is false, if the products
      are not finite or the matrix is not symmetric (a loss with an incorrect custom derivative).

    Raises:
      ValueError: k is not between 1 and n, `which` is unknown, the tolerance is not positive,
        `start` does not match `params`, or the loss is not a finite scalar at `params`.
      TypeError: `k` or `max_products` is not an integer.

    Example:
      >>> import jax, jax.numpy as jnp, pfcore
      >>> loss = lambda x: 0.5 * jnp.sum(jnp.array([1.0, 2.0, 5.0, 5.0]) * x**2)
      >>> pairs = pfcore.curvature.top_eigenpairs(loss, jnp.ones(4), 2, key=jax.random.key(0))
      >>> [round(float(x), 4) for x in pairs.values], bool(pairs.converged.all())
      ([5.0, 5.0], True)

      A loss with a penalty on sharpness above 4, and its gradient:

      >>> def penalised(x):
      ...     pairs = pfcore.curvature.top_eigenpairs(flat, x, 1, key=jax.random.key(0))
      ...     return flat(x) + 0.1 * jax.nn.relu(pairs.values[0] - 4.0)
      >>> flat = lambda x: 0.25 * x[0] ** 4 + 0.5 * x[1] ** 2  # λ₀ = 3 x₀² = 12 at x₀ = 2
      >>> [round(float(g), 3) for g in jax.grad(penalised)(jnp.array([2.0, 1.0]))]
      [9.2, 1.0]

    References:
      Wu and Simon, *Thick-restart Lanczos method for large symmetric eigenvalue problems*, SIAM J.
      Matrix Anal. Appl. 22 (2000); Parlett, *The Symmetric Eigenvalue Problem* (SIAM 1998).
    """
    params = check_curvature(loss, params)
    n = num_entries(params)
    k = check_eigenpair_count("k", k, n)
    max_products = default_products(max_products, k)
    check_which(which)
    if start is not None:
        start = check_vector("start", start, params, leading=True)
    return _top(
        loss,
        params,
        start,
        check_key(key),
        check_positive("tolerance", tolerance),
        jnp.int32(max_products),
        k=k,
        which=which,
        check=bool(start is None and k > 1) if check is None else bool(check),
    )


def check_eigenpair_count(name: str, k: int, n: int) -> int:
    k = check_count(name, k, minimum=1)
    if k > n:
        raise ValueError(f"{name} must be at most the number of parameters, {n}, got {k}")
    return k


def default_products(max_products: int | None, k: int) -> int:
    if max_products is None:
        return 100 + 40 * k
    return check_count("max_products", max_products, minimum=1)
