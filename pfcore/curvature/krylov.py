r"""Functions of the Hessian times a vector, $f(H)v$, from Hessian-vector products alone.

A Krylov space of depth $m$ gives $f(H)v \approx \|v\|\,Q f(T) e_1$ with $T = Q^* H Q$ (Higham,
*Functions of Matrices*, section 13.2). It is implemented here rather than taken from matfree
because the principal flow also needs the complex symmetric case (Arnoldi iteration at complex
parameters), and exact results once the space is exhausted.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.lax.linalg import EighImplementation
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
# Error of a product, in units of machine epsilon times ‖H‖.
ROUNDINGS = 4
# A vector that Gram-Schmidt shortens by this factor may have lost its orthogonality to rounding.
CANCELS = 0.7
# Largest remainder of a product that counts as zero, in units of machine epsilon.
EXHAUSTED = 10


def lag(size: int | jax.Array) -> jax.Array:
    """Number of products between two results whose distance estimates the error: a quarter of all.

    A fixed number would suffice for errors that decrease geometrically. If f has a singularity
    among the eigenvalues, as log(1 - z)/z has at 1, they decrease like a power of the depth. The
    distance over two products was then up to nine times smaller than the error (digits networks,
    hλ₀ = 3). Over a quarter of the products it was never smaller, at the cost of about 30 % more
    products.
    """
    return STRIDE * jnp.maximum((size + 4 * STRIDE - 1) // (4 * STRIDE), 1)


class KrylovSpace(NamedTuple):
    """Orthonormal basis of span(v, Hv, …), and H projected onto it.

    Attributes:
      basis: [m, n], rows orthonormal; rows past an exhausted space are zero.
      projected: [m, m], $Q^* H Q$: tridiagonal for Lanczos, Hessenberg for Arnoldi.
      norm: the norm of the starting vector.
      asymmetry: largest deviation of a real $Q^* H Q$ from a symmetric tridiagonal matrix; for a
        symmetric H it is rounding error. NaN if a product was not finite. Zero if complex.
    """

    basis: Inexact[Array, "m n"]
    projected: Inexact[Array, "m m"]
    norm: Float[Array, ""]
    asymmetry: Float[Array, ""]


def is_symmetric(asymmetry: jax.Array, norm: jax.Array) -> jax.Array:
    """Whether a deviation is consistent with a symmetric matrix of this norm; false for NaN.

    The threshold of 1 % is far above the rounding error of 32 bits, and far below the asymmetry of
    other matrices. Products in 16 bits are allowed their own rounding error.
    """
    return asymmetry <= jnp.maximum(1e-2 * norm, rounding(norm))


def rounding(norm: jax.Array) -> jax.Array:
    """Rounding error of products with a matrix of this norm, and of their sums.

    It is a few machine epsilons times ‖H‖, even if the product is small. It cannot be estimated
    from the products themselves; ROUNDINGS was measured on networks, against double precision.
    """
    return ROUNDINGS * _programs.machine_epsilon(norm.dtype) * norm


def exhausted(size: jax.Array) -> jax.Array:
    """Largest remainder of a product of this size that counts as zero.

    In a coarser format than that of the vectors more of a remainder is rounding error, but it is
    not the sign of an exhausted space.
    """
    return EXHAUSTED * float(jnp.finfo(size.dtype).eps) * size


def is_nonnegative(lowest: jax.Array, asymmetry: jax.Array, norm: jax.Array) -> jax.Array:
    """Whether a matrix with this lowest eigenvalue and norm can be positive semidefinite.

    The tolerance is several times the rounding error, which `asymmetry` shows if the products have
    a lower precision than the parameters.
    """
    return lowest >= -(8 * rounding(norm) + 4 * asymmetry)


def on_domain(
    function: Callable[[jax.Array], jax.Array], positive_semidefinite: bool
) -> Callable[[jax.Array], jax.Array]:
    """`function`, with negative arguments of a positive semidefinite matrix replaced by zero.

    Its values are floating-point or complex numbers, also where those of `function` are integers or
    booleans, such as those of an indicator of an interval.
    """

    def of(values: jax.Array) -> jax.Array:
        found = function(jnp.maximum(values, 0) if positive_semidefinite else values)
        return found if jnp.issubdtype(found.dtype, jnp.inexact) else found.astype(values.dtype)

    return of


def unit_of(image: jax.Array, known: jax.Array) -> jax.Array:
    """`known`, or if that is 0, a power of two close to the largest entry of an image.

    Products are divided by it, so that squares of entries do not overflow or underflow, whatever
    the unit of the loss. 0 for an image of zeros.
    """
    largest = jnp.max(jnp.abs(image))
    usable = (largest >= jnp.finfo(largest.dtype).tiny) & jnp.isfinite(largest)
    new = jnp.where(usable, power_of_two(jnp.where(usable, largest, 1)), 0)
    return jnp.where(known > 0, known, new)


def over(vector: jax.Array, unit: jax.Array) -> jax.Array:
    """vector / unit, or the vector itself if the unit is 0."""
    return vector / jnp.where(unit > 0, unit, 1).astype(vector.dtype)


def orthogonalise(
    vector: Inexact[Array, " n"], basis: Inexact[Array, "m n"]
) -> tuple[Inexact[Array, " n"], Inexact[Array, " m"]]:
    """The component of a vector orthogonal to a basis, and its coordinates in that basis.

    Gram-Schmidt in two passes: "twice is enough" (Kahan and Parlett). Empty rows of the basis are
    zero.
    """
    first = basis.conj() @ vector
    vector = vector - first @ basis
    second = basis.conj() @ vector
    return vector - second @ basis, first + second


def reorthogonalise(
    vector: Float[Array, " n"], basis: Float[Array, "m n"]
) -> tuple[Float[Array, " n"], Float[Array, " m"]]:
    """The same for a vector of which large components along the basis have been subtracted.

    One pass, and a second one if the first cancels: where a component was not known.
    """
    first = basis @ vector
    left = vector - first @ basis

    def again() -> tuple[jax.Array, jax.Array]:
        second = basis @ left
        return left - second @ basis, first + second

    cancels = jnp.linalg.norm(left) < CANCELS * jnp.linalg.norm(vector)
    return jax.lax.cond(cancels, again, lambda: (left, first))


def normalised(vector: jax.Array, norm: jax.Array, nonzero: jax.Array) -> jax.Array:
    """vector / norm where `nonzero`, else the zero vector."""
    inverse = 1 / jnp.where(nonzero, norm, 1.0)
    return jnp.where(nonzero, vector * inverse.astype(vector.dtype), 0)  # NaN · 0 is NaN


class Growing(NamedTuple):
    """A Krylov space while it grows; see `KrylovSpace`."""

    basis: Inexact[Array, "m n"]
    hessenberg: Inexact[Array, "m m"]  # divided by unit
    unit: Float[Array, ""]  # scale of the products; 0 until one is not zero


def _begin(vector: Inexact[Array, " n"], depth: int) -> tuple[Growing, jax.Array]:
    """The normalised vector as the first row of an empty basis, and its norm."""
    size = norm(vector).astype(vector.real.dtype)
    first = normalised(vector, size, size > 0)
    basis = jnp.zeros((depth, vector.size), vector.dtype).at[0].set(first)
    return Growing(basis, jnp.zeros((depth, depth), vector.dtype), jnp.zeros_like(size)), size


def _step(matvec: MatVec, j: jax.Array | int, space: Growing) -> Growing:
    """One step of Arnoldi iteration: a product, orthogonalised against all earlier vectors."""
    basis, hessenberg, unit = space
    image = matvec(basis[j])
    unit = unit_of(image, unit)
    image = over(image, unit)
    size = jnp.linalg.norm(image)
    if jnp.iscomplexobj(image):
        image, coordinates = orthogonalise(image, basis)
    else:  # a symmetric H couples to the last two vectors alone
        last = jnp.maximum(j - 1, 0)
        before = jnp.where(j > 0, hessenberg[j, last], 0)
        along = basis[j] @ image
        image, rest = reorthogonalise(image - along * basis[j] - before * basis[last], basis)
        coordinates = rest.at[j].add(along).at[last].add(before)
    hessenberg = hessenberg.at[:, j].add(coordinates)
    # If the remainder is no larger than the rounding error of this product, the space is invariant
    # to working precision, and the following rows stay zero and uncoupled. Relative to ‖H‖, which
    # an outlier may make a million times the bulk, the iteration would end too early.
    remainder = jnp.linalg.norm(image)
    alive = remainder > exhausted(size)
    direction = normalised(image, remainder, alive)
    # The last step has no next row: mode "drop" leaves both arrays as they are.
    basis = basis.at[j + 1].set(direction, mode="drop")
    coupling = jnp.where(alive, remainder, 0.0).astype(basis.dtype)
    return Growing(basis, hessenberg.at[j + 1, j].set(coupling, mode="drop"), unit)


def _tridiagonal(hessenberg: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The projection of a symmetric operator, made symmetric tridiagonal, and its deviation."""
    if jnp.iscomplexobj(hessenberg):
        return hessenberg, jnp.zeros((), hessenberg.real.dtype)
    below = jnp.diagonal(hessenberg, -1)
    symmetric = jnp.diag(jnp.diagonal(hessenberg)) + jnp.diag(below, -1) + jnp.diag(below, 1)
    return symmetric, jnp.max(jnp.abs(hessenberg - symmetric))


@_programs.settings()
def krylov_space(matvec: MatVec, vector: Inexact[Array, " n"], depth: int) -> KrylovSpace:
    """Arnoldi iteration with every new vector orthogonalised twice against all earlier ones.

    For a real symmetric operator this is Lanczos iteration with full reorthogonalisation: the
    projection is then tridiagonal up to rounding, and is returned exactly tridiagonal.
    """
    begun, size = _begin(vector, depth)
    space = jax.lax.fori_loop(0, depth, lambda j, space: _step(matvec, j, space), begun)
    projected, asymmetry = _tridiagonal(space.hessenberg)
    unit = jnp.where(space.unit > 0, space.unit, 1)
    return KrylovSpace(
        space.basis, unit.astype(projected.dtype) * projected, size, unit * asymmetry
    )


def eigh(matrix: Float[Array, "m m"]) -> tuple[jax.Array, jax.Array]:
    """`jnp.linalg.eigh` of a scaled matrix: not every solver scales the entries itself.

    On a GPU by QR iteration: the Jacobi method that small matrices get there by default stops at an
    error of some 40 machine epsilons.
    """
    unit = jnp.max(jnp.abs(matrix))
    unit = jnp.where((unit > 0) & jnp.isfinite(unit), unit, 1)
    method = EighImplementation.QR if jax.default_backend() == "gpu" else None
    vectors, values = jax.lax.linalg.eigh(matrix / unit, implementation=method)
    return unit * values, vectors


def matrix_function(
    function: Callable[[jax.Array], jax.Array],
    matrix: Inexact[Array, "m m"],
    vector: Inexact[Array, " m"],
) -> Inexact[Array, " m"]:
    r"""$f(A)v$ for a dense $A$: real symmetric, or complex and diagonalisable.

    For a complex $A$, imaginary parts of eigenvalues within rounding error are set to zero, so that
    the side of a branch cut of $f$ does not depend on rounding. Where $v$ has no component along an
    eigenvector, $f$ may be infinite or undefined.
    """

    def times(coordinates: jax.Array, scale: jax.Array) -> jax.Array:
        return jnp.where(coordinates == 0, 0, scale * coordinates.astype(scale.dtype))

    if not jnp.iscomplexobj(matrix):
        values, vectors = eigh(matrix)
        scaled = times(vectors.T @ vector, function(values))
        return vectors.astype(scaled.dtype) @ scaled
    values, vectors = jnp.linalg.eig(matrix)
    rounding = 10 * matrix.shape[0] * _programs.machine_epsilon(matrix.dtype)
    on_axis = jnp.abs(values.imag) <= rounding * jnp.max(jnp.abs(values))
    values = jnp.where(on_axis, jax.lax.complex(values.real, jnp.zeros_like(values.real)), values)
    return vectors @ times(jnp.linalg.solve(vectors, vector), function(values))


def function_coordinates(
    function: Callable[[jax.Array], jax.Array], space: KrylovSpace
) -> Inexact[Array, " m"]:
    r"""$f(T) e_1$: the coordinates of $f(H)v/\|v\|$ in the basis of the space."""
    projected = space.projected
    first = jnp.zeros(len(space.basis), space.basis.dtype).at[0].set(1)
    # At a padded row f is multiplied by 0.
    padding = jnp.where(_taken(projected), jnp.zeros((), projected.dtype), projected[0, 0])
    return matrix_function(function, projected + jnp.diag(padding), first)


def _taken(hessenberg: jax.Array) -> jax.Array:
    """Rows that a space has taken: those of an exhausted space are zero, and no eigenvalues."""
    coupled = jnp.any(hessenberg != 0, axis=0) | jnp.any(hessenberg != 0, axis=1)
    return coupled | (jnp.arange(len(hessenberg)) == 0)


def from_coordinates(space: KrylovSpace, coordinates: Inexact[Array, " m"]) -> Inexact[Array, " n"]:
    """The vector with these coordinates, times the norm of the starting vector."""
    dtype = coordinates.dtype
    return (space.norm.astype(dtype) * coordinates) @ space.basis.astype(dtype)


class KrylovProduct(NamedTuple):
    """The result of `krylov_apply`: f(H)v, its error estimate, and the number of products.

    Also whether H is symmetric, and whether its projection has no negative eigenvalue, to within
    rounding error.
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
    inside = (rows < size) & _taken(hessenberg)
    # The other rows get the first diagonal entry, at which f is evaluated in any case.
    padding = jnp.where(inside, jnp.zeros((), hessenberg.dtype), hessenberg[0, 0])
    projected, _ = _tridiagonal(jnp.where(inside[:, None] & inside, hessenberg, 0))
    first = jnp.zeros(len(rows), hessenberg.dtype).at[0].set(1)
    return jnp.where(inside, matrix_function(function, projected + jnp.diag(padding), first), 0)


def _evaluation(size: jax.Array) -> jax.Array:
    """The index of the evaluation at this size, or of the first one after it."""
    return (size + STRIDE - 1) // STRIDE


def _change(
    function: Callable[[jax.Array], jax.Array], matrix: Inexact[Array, "m m"], lost: jax.Array
) -> Float[Array, ""]:
    """The change of f(T) e₁ when the eigenvalues of T change by up to `lost`.

    Infinite if f is not finite on either side of an eigenvalue.
    """
    if jnp.iscomplexobj(matrix):
        values, vectors = jnp.linalg.eig(matrix)
        weights = jnp.abs(jnp.linalg.solve(vectors, jnp.eye(len(matrix), dtype=matrix.dtype)[0]))
    else:
        values, vectors = eigh(matrix)
        weights = jnp.abs(vectors[0])
    moves = [s * lost.astype(values.dtype) for s in (-1.0, -0.25, 0.25, 1.0)]
    # An eigenvalue that is zero to within the error is also moved to zero.
    moves.append(jnp.where(jnp.abs(values) <= lost, -values, moves[0]))
    here = function(values)
    sizes = [jnp.abs(function(values + move) - here) for move in moves]
    size = functools.reduce(jnp.fmax, sizes)  # one side may leave the domain of f
    size = jnp.where(weights > 0, jnp.where(jnp.isnan(size), jnp.inf, size), 0)
    return jnp.linalg.norm(jnp.where(weights > 0, size * weights, 0))


@_programs.settings()
def krylov_apply(
    function: Callable[[jax.Array], jax.Array],
    matvec: MatVec,
    vector: Inexact[Array, " n"],
    depth: int,
    tolerance: ScalarLike | None = None,
) -> KrylovProduct:
    r"""$f(H)v \approx \|v\|\,Q f(T) e_1$ with `depth` products, at most the dimension.

    The error estimate is the distance to the result with a quarter fewer products, plus the effect
    of rounding error in the products. With a tolerance the iteration ends when the distance is
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
        # The result is exact in an exhausted or complete space.
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
    # Leading rows and columns: the last vector of the basis has not been multiplied yet.
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
    error = jnp.where(size_of_vector > 0, size_of_vector * (error + change + own), 0)
    nonnegative = jnp.array(True)
    if not jnp.iscomplexobj(projected):
        # Empty rows have the first diagonal entry, which is at least the smallest eigenvalue.
        lowest = jnp.min(eigh(projected + jnp.diag(first * jnp.where(inside, 0, 1)))[0])
        nonnegative = is_nonnegative(lowest, asymmetry, reach)
    return KrylovProduct(value, error, size, is_symmetric(asymmetry, reach), nonnegative)


class FunctionProduct(NamedTuple):
    r"""A function of the Hessian times a vector, with an error estimate.

    Attributes:
      value: $f(H)v$, with the structure of the parameters; complex if $f$ is. NaN if the products
        were not finite, the matrix is not symmetric, or a curvature declared positive semidefinite
        has a negative eigenvalue.
      error: estimate of the norm of its error: the distance to the result with a quarter fewer
        products, plus the effect of rounding error in the products, a few machine epsilons times
        $\|H\|$.
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
    result = krylov_apply(on_domain(function, nonnegative), product, start, depth, tolerance)
    allowed = 0.0 if tolerance is None else tolerance * norm(result.value)
    known = result.symmetric & result.nonnegative if nonnegative else result.symmetric
    value = jnp.where(known, result.value, jnp.nan)
    if jnp.iscomplexobj(value):
        tree = jax.tree.map(jax.lax.complex, unravel(value.real), unravel(value.imag))
    else:
        tree = unravel(value)
    error = jnp.where(known, result.error, jnp.inf)
    return FunctionProduct(tree, error, error <= allowed, result.num_products)


def function_product(
    function: Callable[[jax.Array], jax.Array],
    loss: LossOrCurvature,
    params: Params,
    vector: Params,
    *,
    depth: int = 64,
    tolerance: ScalarLike | None = None,
) -> FunctionProduct:
    r"""$f(H)v$ for the Hessian $H$ of `loss` at `params`, to a given tolerance.

    The Krylov space of $v$ grows until the last quarter of the products has changed the result by
    less than `tolerance`, relative to its norm.

    For a positive semidefinite `Curvature`, f is evaluated at non-negative numbers only, so that
    roots are defined: $(G + \delta)^{-1/2}v$ is
    `function_product(lambda x: (x + delta) ** -0.5, G, params, v)`.

    Args:
      function: $f$, elementwise on an array of eigenvalues; it may return complex values.
        Static: pass the same function object, not a new lambda, to reuse the compiled program.
      loss: $E$, from `params` to a real scalar, or a `Curvature` in place of its Hessian.
      params: any pytree of floating-point arrays, $\theta$.
      vector: $v$, of the structure and shapes of `params`.
      depth: largest number of Hessian-vector products; takes memory for as many vectors.
      tolerance: of the error, relative to the norm of the value; by default $10^{-5}$ in single
        precision and $10^{-6}$ in double precision. If f is smooth on the scale of $\|H\|$, about
        $10^{-6}$ and $10^{-14}$ can be reached.

    Returns:
      A `FunctionProduct`.

    Raises:
      ValueError: `depth` is below 1, the tolerance is not positive, the vector does not match the
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
    r"""$f(H)v$ for the Hessian $H$ of `loss` at `params`, by Lanczos iteration of fixed depth.

    Exact for polynomials $f$ of degree below `depth`, and for every $f$ once the Krylov space
    of $v$ is exhausted (at the latest at depth $n$). `function_product` computes it to a given
    tolerance, with an error estimate.

    Args:
      function: $f$, elementwise on an array of eigenvalues; it may return complex values.
        Static: pass the same function object, not a new lambda, to reuse the compiled program.
      loss: $E$, from `params` to a real scalar, or a `Curvature` in place of its Hessian.
      params: any pytree of floating-point arrays, $\theta$.
      vector: $v$, of the structure and shapes of `params`.
      depth: number of Hessian-vector products $m \ge 1$; clipped to $n$.

    Returns:
      $f(H)v$, with the structure of `params`; complex if $f$ is. NaN if the products were not
      finite, or the matrix is not symmetric.

    Raises:
      ValueError: `depth` is below 1, the vector does not match the params, or the loss is not a
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
