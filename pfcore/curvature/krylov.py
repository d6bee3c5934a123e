r"""Functions of the Hessian times a vector, $f(H)v$, from Hessian-vector products alone.

A Krylov space of depth $m$ gives $f(H)v \approx \|v\|\,Q f(T) e_1$ with $T = Q^* H Q$ (Higham,
*Functions of Matrices*, section 13.2). It is written here rather than taken from matfree because
the principal flow needs the complex symmetric case (Arnoldi at complex parameters) beside the
real one, and an exhausted space treated as the exact answer that it is.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Inexact, Int

from pfcore import _programs
from pfcore._checks import (
    ScalarLike,
    check_count,
    check_curvature,
    check_positive,
    check_vector,
)
from pfcore._trees import Params, in_single, norm, power_of_two, ravel, real_dtype
from pfcore.curvature.products import LossOrCurvature, compiled

MatVec = Callable[[jax.Array], jax.Array]
# Products between two evaluations of f on the projection, where the depth is adaptive.
STRIDE = 2
# Roundings of ‖H‖ that a product may be off.
ROUNDINGS = 4
# Roundings of a product that may be left of it where nothing is.
EXHAUSTED = 10


def lag(size: int | jax.Array) -> jax.Array:
    """Products between two results whose distance estimates the error: a quarter of all.

    A fixed number would do where errors fall geometrically. Where f has a singularity among the
    eigenvalues, as log(1 - z)/z has at 1, they fall like a power of the depth, and the distance
    over two products was up to nine times smaller than the error (digits networks, hλ₀ = 3); over
    a quarter it was not smaller, for some 30 % more products.
    """
    return STRIDE * jnp.maximum((size + 4 * STRIDE - 1) // (4 * STRIDE), 1)


class KrylovSpace(NamedTuple):
    """Orthonormal basis of span(v, Hv, …), and H seen from within it.

    Attributes:
      basis: [m, n], rows orthonormal; rows past an exhausted space are zero.
      projected: [m, m], $Q^* H Q$: tridiagonal for Lanczos, Hessenberg for Arnoldi.
      norm: the norm of the starting vector.
      asymmetry: how far a real $Q^* H Q$ was from tridiagonal and symmetric, which it is up to
        rounding where H is symmetric; NaN where a product was not finite. Zero if complex.
    """

    basis: Inexact[Array, "m n"]
    projected: Inexact[Array, "m m"]
    norm: Float[Array, ""]
    asymmetry: Float[Array, ""]


def is_symmetric(asymmetry: jax.Array, norm: jax.Array) -> jax.Array:
    """Whether products can have been those of a symmetric matrix of this norm; false for NaN.

    One part in a hundred: rounding, also that of a single-precision loss of double-precision
    parameters, stays far below, and a matrix that is not symmetric far above.
    """
    return asymmetry <= 1e-2 * norm


def rounding(norm: jax.Array) -> jax.Array:
    """What products with a matrix of this norm, and their sums, lose in the working precision.

    The error of a product is some roundings of ‖H‖, however small the product is. It cannot be seen
    from inside; ROUNDINGS is what networks showed against double precision.
    """
    return ROUNDINGS * float(jnp.finfo(norm.dtype).eps) * norm


def is_nonnegative(lowest: jax.Array, asymmetry: jax.Array, norm: jax.Array) -> jax.Array:
    """Whether a matrix with this lowest eigenvalue and norm can be positive semidefinite.

    Several times what rounding does to it, which `asymmetry` shows if the products are of a lower
    precision than the parameters.
    """
    return lowest >= -(8 * rounding(norm) + 4 * asymmetry)


def on_domain(
    function: Callable[[jax.Array], jax.Array], positive_semidefinite: bool
) -> Callable[[jax.Array], jax.Array]:
    """`function`, asked for at 0 where rounding has made an eigenvalue of at least 0 negative."""
    if not positive_semidefinite:
        return function
    return lambda values: function(jnp.maximum(values, 0))


def unit_of(image: jax.Array, known: jax.Array) -> jax.Array:
    """`known`, or if that is 0 the power of two that brings an image's largest entry near 1.

    Products are divided by it, so that no square of an entry leaves the range of the precision,
    whatever the unit of the loss. 0 for an image of zeros.
    """
    largest = jnp.max(jnp.abs(image))
    usable = (largest >= jnp.finfo(largest.dtype).tiny) & jnp.isfinite(largest)
    found = jnp.where(usable, power_of_two(jnp.where(usable, largest, 1)), 0)
    return jnp.where(known > 0, known, found)


def over(vector: jax.Array, unit: jax.Array) -> jax.Array:
    """vector / unit; as it is where the unit is 0."""
    return vector / jnp.where(unit > 0, unit, 1).astype(vector.dtype)


def orthogonalise(
    vector: Inexact[Array, " n"], basis: Inexact[Array, "m n"]
) -> tuple[Inexact[Array, " n"], Inexact[Array, " m"]]:
    """What is left of a vector outside an orthonormal basis, and its coordinates inside.

    Two passes: twice is enough (Kahan and Parlett). Basis rows not yet filled are zero.
    """
    first = basis.conj() @ vector
    vector = vector - first @ basis
    second = basis.conj() @ vector
    return vector - second @ basis, first + second


def normalised(vector: jax.Array, norm: jax.Array, nonzero: jax.Array) -> jax.Array:
    """vector / norm where `nonzero`, else the zero vector."""
    inverse = jnp.where(nonzero, 1 / jnp.where(nonzero, norm, 1.0), 0.0)
    return vector * inverse.astype(vector.dtype)


class Growing(NamedTuple):
    """A Krylov space while it grows; see `KrylovSpace`."""

    basis: Inexact[Array, "m n"]
    hessenberg: Inexact[Array, "m m"]  # divided by unit
    unit: Float[Array, ""]  # of the products; 0 until there is one that is not zero


def _begin(vector: Inexact[Array, " n"], depth: int) -> tuple[Growing, jax.Array]:
    """The normalised vector as the first row of an empty basis, and its norm."""
    size = norm(vector).astype(vector.real.dtype)
    first = normalised(vector, size, size > 0)
    basis = jnp.zeros((depth, vector.size), vector.dtype).at[0].set(first)
    return Growing(basis, jnp.zeros((depth, depth), vector.dtype), jnp.zeros_like(size)), size


def _step(matvec: MatVec, j: jax.Array | int, space: Growing) -> Growing:
    """Arnoldi's step: one product, orthogonalised against all vectors before it."""
    basis, hessenberg, unit = space
    eps = float(jnp.finfo(basis.dtype).eps)
    image = matvec(basis[j])
    unit = unit_of(image, unit)
    image = over(image, unit)
    size = jnp.linalg.norm(image)
    image, coordinates = orthogonalise(image, basis)
    hessenberg = hessenberg.at[:, j].add(coordinates)
    # Where no more is left than the rounding of this product, the space is invariant as far as can
    # be seen: what follows stays zero and uncoupled. Compared with all of H, where an outlier may
    # be a million times the bulk, it would be judged so too early.
    remainder = jnp.linalg.norm(image)
    alive = remainder > EXHAUSTED * eps * size
    direction = normalised(image, remainder, alive)
    # The last step has no next row: mode "drop" leaves both arrays as they are.
    basis = basis.at[j + 1].set(direction, mode="drop")
    coupling = jnp.where(alive, remainder, 0.0).astype(basis.dtype)
    return Growing(basis, hessenberg.at[j + 1, j].set(coupling, mode="drop"), unit)


def _tridiagonal(hessenberg: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The projection of a symmetric operator as it should be, and how far from it that was."""
    if jnp.iscomplexobj(hessenberg):
        return hessenberg, jnp.zeros((), hessenberg.real.dtype)
    below = jnp.diagonal(hessenberg, -1)
    symmetric = jnp.diag(jnp.diagonal(hessenberg)) + jnp.diag(below, -1) + jnp.diag(below, 1)
    return symmetric, jnp.max(jnp.abs(hessenberg - symmetric))


@_programs.broadcasting()
def krylov_space(matvec: MatVec, vector: Inexact[Array, " n"], depth: int) -> KrylovSpace:
    """Arnoldi's iteration with every new vector orthogonalised twice against all before it.

    For a real symmetric operator this is Lanczos with full reorthogonalisation: the projection
    is then symmetric up to rounding, and is returned exactly tridiagonal.
    """
    begun, size = _begin(vector, depth)
    space = jax.lax.fori_loop(0, depth, lambda j, space: _step(matvec, j, space), begun)
    projected, asymmetry = _tridiagonal(space.hessenberg)
    unit = jnp.where(space.unit > 0, space.unit, 1)
    return KrylovSpace(
        space.basis, unit.astype(projected.dtype) * projected, size, unit * asymmetry
    )


def eigh(matrix: Float[Array, "m m"]) -> tuple[jax.Array, jax.Array]:
    """`jnp.linalg.eigh`, whatever the unit of the entries: not every solver scales them."""
    unit = jnp.max(jnp.abs(matrix))
    unit = jnp.where((unit > 0) & jnp.isfinite(unit), unit, 1)
    values, vectors = jnp.linalg.eigh(matrix / unit)
    return unit * values, vectors


def matrix_function(
    function: Callable[[jax.Array], jax.Array],
    matrix: Inexact[Array, "m m"],
    vector: Inexact[Array, " m"],
) -> Inexact[Array, " m"]:
    r"""$f(A)v$ for a dense $A$: real symmetric, or complex and diagonalisable.

    A complex $A$ gets eigenvalues whose imaginary part is no more than rounding put back on the
    real axis, so that $f$ sees them on the same side of a branch cut, whatever the rounding.
    """
    if not jnp.iscomplexobj(matrix):
        values, vectors = eigh(matrix)
        scaled = function(values)
        scaled = scaled * (vectors.T @ vector).astype(scaled.dtype)
        return vectors.astype(scaled.dtype) @ scaled
    values, vectors = jnp.linalg.eig(matrix)
    rounding = 10 * matrix.shape[0] * float(jnp.finfo(matrix.dtype).eps)
    on_axis = jnp.abs(values.imag) <= rounding * jnp.max(jnp.abs(values))
    values = jnp.where(on_axis, jax.lax.complex(values.real, jnp.zeros_like(values.real)), values)
    return vectors @ (function(values) * jnp.linalg.solve(vectors, vector))


def function_coordinates(
    function: Callable[[jax.Array], jax.Array], space: KrylovSpace
) -> Inexact[Array, " m"]:
    r"""$f(T) e_1$: the coordinates of $f(H)v/\|v\|$ in the basis of the space."""
    first = jnp.zeros(len(space.basis), space.basis.dtype).at[0].set(1)
    return matrix_function(function, space.projected, first)


def from_coordinates(space: KrylovSpace, coordinates: Inexact[Array, " m"]) -> Inexact[Array, " n"]:
    """The vector with these coordinates, times the norm of the starting vector."""
    dtype = coordinates.dtype
    return (space.norm.astype(dtype) * coordinates) @ space.basis.astype(dtype)


class KrylovProduct(NamedTuple):
    """`krylov_apply`'s answer: f(H)v, its error estimate, products used, whether H is symmetric.

    And whether what was seen of H has no eigenvalue below zero, as far as rounding can tell.
    """

    value: Inexact[Array, " n"]
    error: Float[Array, ""]
    num_products: Int[Array, ""]
    symmetric: Bool[Array, ""]
    nonnegative: Bool[Array, ""]


def leading_coordinates(
    function: Callable[[jax.Array], jax.Array], hessenberg: jax.Array, size: jax.Array
) -> jax.Array:
    """f(T) e₁ for the leading `size` rows and columns of T, zeros after them."""
    rows = jnp.arange(len(hessenberg), dtype=jnp.int32)
    inside = rows < size
    # The other rows get the first diagonal entry: a value at which f is asked for anyway.
    padding = jnp.where(inside, jnp.zeros((), hessenberg.dtype), hessenberg[0, 0])
    projected, _ = _tridiagonal(jnp.where(inside[:, None] & inside, hessenberg, 0))
    first = jnp.zeros(len(rows), hessenberg.dtype).at[0].set(1)
    return jnp.where(inside, matrix_function(function, projected + jnp.diag(padding), first), 0)


def _evaluation(size: jax.Array) -> jax.Array:
    """The number of the evaluation at this size, or the first after it."""
    return (size + STRIDE - 1) // STRIDE


def _change(
    function: Callable[[jax.Array], jax.Array], matrix: Inexact[Array, "m m"], lost: jax.Array
) -> Float[Array, ""]:
    """How much f(T) e₁ owes to the last digits of T: f over eigenvalues that are `lost` off.

    Infinite where f is not finite there on either side.
    """
    if jnp.iscomplexobj(matrix):
        values, vectors = jnp.linalg.eig(matrix)
        weights = jnp.abs(jnp.linalg.solve(vectors, jnp.eye(len(matrix), dtype=matrix.dtype)[0]))
    else:
        values, vectors = eigh(matrix)
        weights = jnp.abs(vectors[0])
    moves = [s * lost.astype(values.dtype) for s in (-1.0, -0.25, 0.25, 1.0)]
    # An eigenvalue that may as well be zero is tried there.
    moves.append(jnp.where(jnp.abs(values) <= lost, -values, moves[0]))
    here = function(values)
    sizes = [jnp.abs(function(values + move) - here) for move in moves]
    size = functools.reduce(jnp.fmax, sizes)  # one side may leave the domain of f
    size = jnp.where(weights > 0, jnp.where(jnp.isnan(size), jnp.inf, size), 0)
    return jnp.linalg.norm(jnp.where(weights > 0, size * weights, 0))


@_programs.broadcasting()
def krylov_apply(
    function: Callable[[jax.Array], jax.Array],
    matvec: MatVec,
    vector: Inexact[Array, " n"],
    depth: int,
    tolerance: ScalarLike | None = None,
) -> KrylovProduct:
    r"""$f(H)v \approx \|v\|\,Q f(T) e_1$ with `depth` products, at most the dimension.

    The error estimate is the distance to the same with a quarter of the products less, and what the
    rounding of the products may change. With a tolerance the iteration ends when the distance is
    below `tolerance` times the norm of the result.
    """
    depth = min(depth, vector.size)
    begun, size_of_vector = _begin(vector, depth)

    def grown(start, stop, space):
        return jax.lax.fori_loop(start, stop, lambda j, space: _step(matvec, j, space), space)

    def coordinates_of(space, size):
        unit = jnp.where(space.unit > 0, space.unit, 1)
        return leading_coordinates(
            lambda values: function(unit.astype(values.dtype) * values), space.hessenberg, size
        )

    def error_of(size, space, coordinates, shorter):
        # An exhausted space holds the answer, and so does the whole one.
        led_out = space.hessenberg[jnp.minimum(size, depth - 1), size - 1] != 0
        exact = (size == vector.size) | ((size < depth) & ~led_out)
        return jnp.where(exact, 0.0, jnp.linalg.norm(coordinates - shorter))

    if tolerance is None:
        size = jnp.int32(depth)
        space = grown(0, depth, begun)
        coordinates = coordinates_of(space, size)
        shorter = coordinates_of(space, size - lag(size))
        error = error_of(size, space, coordinates, shorter)
    else:

        def unconverged(carry):
            size, _, history, error = carry
            allowed = tolerance * jnp.linalg.norm(history[_evaluation(size)])
            return (size < depth) & ~(error <= allowed)

        def extend(carry):
            start, space, history, _ = carry
            size = jnp.minimum(start + STRIDE, depth)
            space = grown(start, size, space)
            coordinates = coordinates_of(space, size)
            error = error_of(size, space, coordinates, history[_evaluation(size - lag(size))])
            history = history.at[_evaluation(size)].set(coordinates)
            return size, space, history, error

        size = jnp.int32(0)
        none = jnp.zeros_like(coordinates_of(begun, size))
        history = jnp.zeros((depth // STRIDE + 2, depth), none.dtype)
        size, space, history, error = jax.lax.while_loop(
            unconverged, extend, (size, begun, history, jnp.full_like(size_of_vector, jnp.inf))
        )
        coordinates = history[_evaluation(size)]
    scaled = jnp.where(
        size_of_vector > 0, size_of_vector.astype(coordinates.dtype) * coordinates, 0
    )
    value = scaled @ space.basis.astype(scaled.dtype)
    # The last column is not complete: what it leads to has no product yet.
    inside = jnp.arange(depth, dtype=jnp.int32) < size
    projected, asymmetry = _tridiagonal(jnp.where(inside[:, None] & inside, space.hessenberg, 0))
    reach = jnp.max(jnp.abs(projected))
    unit = jnp.where(space.unit > 0, space.unit, 1)
    first = projected[0, 0] * (1 - inside.astype(projected.dtype))
    change = _change(
        function,
        unit.astype(projected.dtype) * (projected + jnp.diag(first)),
        unit * (asymmetry + rounding(reach)),
    )
    own = rounding(jnp.linalg.norm(coordinates))
    error = size_of_vector * (error + change + own)
    nonnegative = jnp.array(True)
    if not jnp.iscomplexobj(projected):
        # Rows that are not filled have the first diagonal entry, which is no lower than the lowest.
        lowest = jnp.min(eigh(projected + jnp.diag(first * jnp.where(inside, 0, 1)))[0])
        nonnegative = is_nonnegative(lowest, asymmetry, reach)
    return KrylovProduct(value, error, size, is_symmetric(asymmetry, reach), nonnegative)


class FunctionProduct(NamedTuple):
    r"""A function of the Hessian times a vector, and what is known about its error.

    Attributes:
      value: $f(H)v$, of the structure of the parameters; complex where $f$ is. NaN where the
        products were not finite, not those of a symmetric matrix, or showed a negative eigenvalue
        of a curvature that says it has none.
      error: estimate of the norm of its error: the distance to the same with a quarter of
        the products less, and what moving all eigenvalues by the rounding of the products, some
        roundings of $\|H\|$, changes.
      converged: whether the error is at most `tolerance` times the norm of `value`.
      num_products: Hessian-vector products used.
    """

    value: Params
    error: Float[Array, ""]
    converged: Bool[Array, ""]
    num_products: Int[Array, ""]


@compiled("function", "depth")
def _apply(hessian, params, function, vector, tolerance, *, depth) -> FunctionProduct:
    _, product, flat, unravel = hessian.at(params)
    if tolerance is not None:
        tolerance = tolerance.astype(flat.dtype)
    start = ravel(in_single(vector))[0].astype(flat.dtype)
    nonnegative = hessian.positive_semidefinite
    found = krylov_apply(on_domain(function, nonnegative), product, start, depth, tolerance)
    allowed = 0.0 if tolerance is None else tolerance * norm(found.value)
    known = found.symmetric & found.nonnegative if nonnegative else found.symmetric
    value = jnp.where(known, found.value, jnp.nan)
    if jnp.iscomplexobj(value):
        tree = jax.tree.map(jax.lax.complex, unravel(value.real), unravel(value.imag))
    else:
        tree = unravel(value)
    error = jnp.where(known, found.error, jnp.inf)
    return FunctionProduct(tree, error, error <= allowed, found.num_products)


def function_product(
    function: Callable[[jax.Array], jax.Array],
    loss: LossOrCurvature,
    params: Params,
    vector: Params,
    *,
    depth: int = 64,
    tolerance: ScalarLike | None = None,
) -> FunctionProduct:
    r"""$f(H)v$ for the Hessian $H$ of `loss` at `params`, with as many products as it takes.

    The Krylov space of $v$ grows until the last quarter of the products has changed the result by
    less than `tolerance`, relative to its norm.

    For a positive semidefinite `Curvature`, f is asked for at eigenvalues of at least 0 only, so
    that roots are defined: $(G + \delta)^{-1/2}v$ is
    `function_product(lambda x: (x + delta) ** -0.5, G, params, v)`.

    Args:
      function: $f$, elementwise on an array of eigenvalues; it may return complex values.
      loss: $E$, from `params` to a real scalar, or a `Curvature` in place of its Hessian.
      params: any pytree of floating-point arrays, $\theta$.
      vector: $v$, of the structure and shapes of `params`.
      depth: at most so many Hessian-vector products; memory for as many vectors.
      tolerance: of the error, relative to the norm of the value; by default $10^{-5}$ in single
        precision and $10^{-6}$ in double, which reach about $10^{-6}$ and $10^{-14}$ where f is
        smooth on the scale of $\|H\|$.

    Returns:
      A `FunctionProduct`.

    Raises:
      ValueError: `depth` is below 1, the tolerance is not positive, the vector does not fit the
        params, or the loss is not a finite scalar at `params`.
      TypeError: `depth` is not an integer.

    Example:
      >>> import jax.numpy as jnp, pfcore
      >>> loss = lambda x: 0.5 * (4 * x[0] ** 2 + 9 * x[1] ** 2)
      >>> root = pfcore.curvature.function_product(jnp.sqrt, loss, jnp.ones(2), jnp.ones(2))
      >>> [round(float(x), 3) for x in root.value], bool(root.converged), int(root.num_products)
      ([2.0, 3.0], True, 2)

    References:
      Higham, *Functions of Matrices* (SIAM 2008), section 13.2.
    """
    depth = check_count("depth", depth, minimum=1)
    params = check_curvature(loss, params)
    if tolerance is None:
        tolerance = 1e-6 if jnp.finfo(real_dtype(params)).bits > 32 else 1e-5
    tolerance = check_positive("tolerance", tolerance)
    vector = check_vector("vector", vector, params)
    return _apply(loss, params, function, vector, tolerance, depth=depth)


def apply_function(
    function: Callable[[jax.Array], jax.Array],
    loss: LossOrCurvature,
    params: Params,
    vector: Params,
    *,
    depth: int,
) -> Params:
    r"""$f(H)v$ for the Hessian $H$ of `loss` at `params`, by Lanczos, with a fixed depth.

    Exact for polynomials $f$ of degree below `depth`, and for every $f$ once the Krylov space
    of $v$ is exhausted (never later than the dimension $n$). `function_product` does the same to a
    given tolerance, and reports an error estimate.

    Args:
      function: $f$, elementwise on an array of eigenvalues; it may return complex values.
      loss: $E$, from `params` to a real scalar, or a `Curvature` in place of its Hessian.
      params: any pytree of floating-point arrays, $\theta$.
      vector: $v$, of the structure and shapes of `params`.
      depth: number of Hessian-vector products $m \ge 1$; clipped to $n$.

    Returns:
      $f(H)v$, of the structure of `params`; complex where $f$ is. NaN where the products were not
      finite, or not those of a symmetric matrix.

    Raises:
      ValueError: `depth` is below 1, the vector does not fit the params, or the loss is not a
        finite scalar at `params`.
      TypeError: `depth` is not an integer.

    Example:
      >>> import jax.numpy as jnp, pfcore
      >>> loss = lambda x: 0.5 * (4 * x[0] ** 2 + 9 * x[1] ** 2)
      >>> root = pfcore.curvature.apply_function(
      ...     jnp.sqrt, loss, jnp.ones(2), jnp.array([1.0, 1.0]), depth=2)
      >>> [round(float(x), 3) for x in root]
      [2.0, 3.0]

    References:
      Higham, *Functions of Matrices* (SIAM 2008), section 13.2.
    """
    depth = check_count("depth", depth, minimum=1)
    params = check_curvature(loss, params)
    vector = check_vector("vector", vector, params)
    return _apply(loss, params, function, vector, None, depth=depth).value
