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

from pfcore._checks import Loss, ScalarLike, check_count, check_loss, check_positive
from pfcore._trees import Params, ravel
from pfcore.curvature.products import flat_product

MatVec = Callable[[jax.Array], jax.Array]
# Products between two evaluations of f on the projection, where the depth is adaptive.
STRIDE = 2


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


def _begin(vector: Inexact[Array, " n"], depth: int) -> tuple[jax.Array, jax.Array]:
    """An empty basis with the normalised vector as its first row, and an empty projection."""
    norm = jnp.linalg.norm(vector)
    first = normalised(vector, norm, norm > 0)
    basis = jnp.zeros((depth, vector.size), vector.dtype).at[0].set(first)
    return basis, jnp.zeros((depth, depth), vector.dtype)


def _step(
    matvec: MatVec, j: jax.Array, basis: jax.Array, hessenberg: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Arnoldi's step: one product, orthogonalised against all vectors before it."""
    eps = float(jnp.finfo(basis.dtype).eps)
    image = matvec(basis[j])
    size = jnp.linalg.norm(image)
    image, coordinates = orthogonalise(image, basis)
    hessenberg = hessenberg.at[:, j].add(coordinates)
    # A remainder at rounding level means that the space is invariant: H maps it into itself, the
    # projection is exact, and what follows stays zero and uncoupled.
    remainder = jnp.linalg.norm(image)
    alive = remainder > 10 * eps * jnp.maximum(size, jnp.max(jnp.abs(hessenberg)))
    direction = normalised(image, remainder, alive)
    # The last step has no next row: mode "drop" leaves both arrays as they are.
    basis = basis.at[j + 1].set(direction, mode="drop")
    coupling = jnp.where(alive, remainder, 0.0).astype(basis.dtype)
    return basis, hessenberg.at[j + 1, j].set(coupling, mode="drop")


def _tridiagonal(hessenberg: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The projection of a symmetric operator as it should be, and how far from it that was."""
    if jnp.iscomplexobj(hessenberg):
        return hessenberg, jnp.zeros((), hessenberg.real.dtype)
    below = jnp.diagonal(hessenberg, -1)
    symmetric = jnp.diag(jnp.diagonal(hessenberg)) + jnp.diag(below, -1) + jnp.diag(below, 1)
    return symmetric, jnp.max(jnp.abs(hessenberg - symmetric))


def krylov_space(matvec: MatVec, vector: Inexact[Array, " n"], depth: int) -> KrylovSpace:
    """Arnoldi's iteration with every new vector orthogonalised twice against all before it.

    For a real symmetric operator this is Lanczos with full reorthogonalisation: the projection
    is then symmetric up to rounding, and is returned exactly tridiagonal.
    """
    basis, hessenberg = jax.lax.fori_loop(
        0, depth, lambda j, carry: _step(matvec, j, *carry), _begin(vector, depth)
    )
    projected, asymmetry = _tridiagonal(hessenberg)
    return KrylovSpace(basis, projected, jnp.linalg.norm(vector), asymmetry)


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
        values, vectors = jnp.linalg.eigh(matrix)
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
    """`krylov_apply`'s answer: f(H)v, its error estimate, products used, whether H is symmetric."""

    value: Inexact[Array, " n"]
    error: Float[Array, ""]
    num_products: Int[Array, ""]
    symmetric: Bool[Array, ""]


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


def krylov_apply(
    function: Callable[[jax.Array], jax.Array],
    matvec: MatVec,
    vector: Inexact[Array, " n"],
    depth: int,
    tolerance: ScalarLike | None = None,
) -> KrylovProduct:
    r"""$f(H)v \approx \|v\|\,Q f(T) e_1$ with `depth` products, at most the dimension.

    The error estimate is the distance to the same with a quarter of the products less. With a
    tolerance the iteration ends when the estimate is below `tolerance` times the norm of the
    result.
    """
    depth = min(depth, vector.size)
    norm = jnp.linalg.norm(vector)
    basis, hessenberg = _begin(vector, depth)

    def grown(start, stop, basis, hessenberg):
        return jax.lax.fori_loop(
            start, stop, lambda j, carry: _step(matvec, j, *carry), (basis, hessenberg)
        )

    def error_of(size, hessenberg, coordinates, shorter):
        # An exhausted space holds the answer, and so does the whole one.
        led_out = hessenberg[jnp.minimum(size, depth - 1), size - 1] != 0
        exact = (size == vector.size) | ((size < depth) & ~led_out)
        return jnp.where(exact, 0.0, jnp.linalg.norm(coordinates - shorter))

    if tolerance is None:
        size = jnp.int32(depth)
        basis, hessenberg = grown(0, depth, basis, hessenberg)
        coordinates = leading_coordinates(function, hessenberg, size)
        shorter = leading_coordinates(function, hessenberg, size - lag(size))
        error = error_of(size, hessenberg, coordinates, shorter)
    else:

        def unconverged(carry):
            size, _, _, history, error = carry
            norm = jnp.linalg.norm(history[_evaluation(size)])
            return (size < depth) & ~(error <= tolerance * norm)

        def extend(carry):
            start, basis, hessenberg, history, _ = carry
            size = jnp.minimum(start + STRIDE, depth)
            basis, hessenberg = grown(start, size, basis, hessenberg)
            coordinates = leading_coordinates(function, hessenberg, size)
            error = error_of(size, hessenberg, coordinates, history[_evaluation(size - lag(size))])
            history = history.at[_evaluation(size)].set(coordinates)
            return size, basis, hessenberg, history, error

        size = jnp.int32(0)
        none = jnp.zeros_like(leading_coordinates(function, hessenberg, size))
        history = jnp.zeros((depth // STRIDE + 2, depth), none.dtype)
        size, basis, hessenberg, history, error = jax.lax.while_loop(
            unconverged, extend, (size, basis, hessenberg, history, jnp.full_like(norm, jnp.inf))
        )
        coordinates = history[_evaluation(size)]
    scaled = jnp.where(norm > 0, norm.astype(coordinates.dtype) * coordinates, 0)
    value = scaled @ basis.astype(scaled.dtype)
    # The last column is not complete: what it leads to has no product yet.
    inside = jnp.arange(depth, dtype=jnp.int32) < size
    projected, asymmetry = _tridiagonal(jnp.where(inside[:, None] & inside, hessenberg, 0))
    symmetric = is_symmetric(asymmetry, jnp.max(jnp.abs(projected)))
    return KrylovProduct(value, norm * error, size, symmetric)


class FunctionProduct(NamedTuple):
    """A function of the Hessian times a vector, and what is known about its error.

    Attributes:
      value: $f(H)v$, of the structure of the parameters; complex where $f$ is.
      error: estimate of the norm of its error: the distance to the same with a quarter of
        the products less.
      converged: whether the error is at most `tolerance` times the norm of `value`; false where
        the products were not finite, or not those of a symmetric matrix.
      num_products: Hessian-vector products used.
    """

    value: Params
    error: Float[Array, ""]
    converged: Bool[Array, ""]
    num_products: Int[Array, ""]


@functools.partial(jax.jit, static_argnames=("function", "loss", "depth"))
def _apply(function, loss, params, vector, tolerance, *, depth) -> FunctionProduct:
    _, product, flat, unravel = flat_product(loss, params)
    if tolerance is not None:
        tolerance = tolerance.astype(flat.dtype)
    start = ravel(vector)[0].astype(flat.dtype)
    found = krylov_apply(function, product, start, depth, tolerance)
    allowed = 0.0 if tolerance is None else tolerance * jnp.linalg.norm(found.value)
    value = found.value
    if jnp.iscomplexobj(value):
        tree = jax.tree.map(jax.lax.complex, unravel(value.real), unravel(value.imag))
    else:
        tree = unravel(value)
    return FunctionProduct(
        tree, found.error, (found.error <= allowed) & found.symmetric, found.num_products
    )


def function_product(
    function: Callable[[jax.Array], jax.Array],
    loss: Loss,
    params: Params,
    vector: Params,
    *,
    depth: int = 64,
    tolerance: ScalarLike = 1e-6,
) -> FunctionProduct:
    r"""$f(H)v$ for the Hessian $H$ of `loss` at `params`, with as many products as it takes.

    The Krylov space of $v$ grows until the last quarter of the products has changed the result by
    less than `tolerance`, relative to its norm.

    Args:
      function: $f$, elementwise on an array of eigenvalues; it may return complex values.
      loss: $E$, from `params` to a real scalar.
      params: any pytree of floating-point arrays, $\theta$.
      vector: $v$, of the structure and shapes of `params`.
      depth: at most so many Hessian-vector products; memory for as many vectors.
      tolerance: relative; single precision reaches about $10^{-6}$, double $10^{-14}$.

    Returns:
      A `FunctionProduct`.

    Raises:
      ValueError: `depth` is below 1, the tolerance is not positive, or the loss is not a finite
        scalar at `params`.
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
    tolerance = check_positive("tolerance", tolerance)
    params = check_loss(loss, params)
    return _apply(function, loss, params, vector, tolerance, depth=depth)


def apply_function(
    function: Callable[[jax.Array], jax.Array],
    loss: Loss,
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
      loss: $E$, from `params` to a real scalar.
      params: any pytree of floating-point arrays, $\theta$.
      vector: $v$, of the structure and shapes of `params`.
      depth: number of Hessian-vector products $m \ge 1$; clipped to $n$.

    Returns:
      $f(H)v$, of the structure of `params`; complex where $f$ is.

    Raises:
      ValueError: `depth` is below 1, or the loss is not a finite scalar at `params`.
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
    return _apply(function, loss, check_loss(loss, params), vector, None, depth=depth).value
