r"""Functions of the Hessian times a vector, $f(H)v$, from Hessian-vector products alone.

A Krylov space of depth $m$ gives $f(H)v \approx \|v\|\,Q f(T) e_1$ with $T = Q^* H Q$ (Higham,
*Functions of Matrices*, section 13.2). It is written here rather than taken from matfree because
the principal flow needs the complex symmetric case (Arnoldi at complex parameters) beside the
real one, and an exhausted space treated as the exact answer that it is.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact

from pfcore._checks import Loss, check_count, check_loss
from pfcore._trees import Params, ravel
from pfcore.curvature.products import linearized_hvp

MatVec = Callable[[jax.Array], jax.Array]


class KrylovSpace(NamedTuple):
    """Orthonormal basis of span(v, Hv, …), and H seen from within it.

    Attributes:
      basis: [m, n], rows orthonormal; rows past an exhausted space are zero.
      projected: [m, m], $Q^* H Q$: tridiagonal for Lanczos, Hessenberg for Arnoldi.
      norm: the norm of the starting vector.
    """

    basis: Inexact[Array, "m n"]
    projected: Inexact[Array, "m m"]
    norm: Float[Array, ""]


def _normalised(vector: jax.Array, norm: jax.Array, nonzero: jax.Array) -> jax.Array:
    """vector / norm where `nonzero`, else the zero vector."""
    inverse = jnp.where(nonzero, 1 / jnp.where(nonzero, norm, 1.0), 0.0)
    return vector * inverse.astype(vector.dtype)


def krylov_space(matvec: MatVec, vector: Inexact[Array, " n"], depth: int) -> KrylovSpace:
    """Arnoldi's iteration with every new vector orthogonalised twice against all before it.

    For a real symmetric operator this is Lanczos with full reorthogonalisation: the projection
    is then symmetric up to rounding, and is returned exactly tridiagonal.
    """
    dtype = vector.dtype
    eps = jnp.finfo(dtype).eps
    norm = jnp.linalg.norm(vector)
    first = _normalised(vector, norm, norm > 0)
    basis = jnp.zeros((depth, vector.size), dtype).at[0].set(first)
    hessenberg = jnp.zeros((depth, depth), dtype)

    def step(j, carry):
        basis, hessenberg = carry
        image = matvec(basis[j])
        size = jnp.linalg.norm(image)
        # Twice is enough (Kahan and Parlett); basis rows not yet filled are zero.
        first_pass = basis.conj() @ image
        image = image - first_pass @ basis
        second_pass = basis.conj() @ image
        image = image - second_pass @ basis
        hessenberg = hessenberg.at[:, j].add(first_pass + second_pass)
        # A remainder at rounding level means that the space is invariant: H maps it into
        # itself, the projection is exact, and what follows stays zero and uncoupled.
        remainder = jnp.linalg.norm(image)
        alive = remainder > 10 * float(eps) * jnp.maximum(size, jnp.max(jnp.abs(hessenberg)))
        direction = _normalised(image, remainder, alive)
        # The last step has no next row: mode "drop" leaves both arrays as they are.
        basis = basis.at[j + 1].set(direction, mode="drop")
        coupling = jnp.where(alive, remainder, 0.0).astype(dtype)
        hessenberg = hessenberg.at[j + 1, j].set(coupling, mode="drop")
        return basis, hessenberg

    basis, hessenberg = jax.lax.fori_loop(0, depth, step, (basis, hessenberg))
    if not jnp.issubdtype(dtype, jnp.complexfloating):
        below = jnp.diagonal(hessenberg, -1)
        hessenberg = jnp.diag(jnp.diagonal(hessenberg)) + jnp.diag(below, -1) + jnp.diag(below, 1)
    return KrylovSpace(basis, hessenberg, norm)


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


def krylov_apply(
    function: Callable[[jax.Array], jax.Array],
    matvec: MatVec,
    vector: Inexact[Array, " n"],
    depth: int,
) -> Inexact[Array, " n"]:
    r"""$f(H)v \approx \|v\|\,Q f(T) e_1$ with `depth` products, at most the dimension."""
    space = krylov_space(matvec, vector, min(depth, vector.size))
    return from_coordinates(space, function_coordinates(function, space))


def apply_function(
    function: Callable[[jax.Array], jax.Array],
    loss: Loss,
    params: Params,
    vector: Params,
    *,
    depth: int,
) -> Params:
    r"""$f(H)v$ for the Hessian $H$ of `loss` at `params`, by Lanczos.

    Exact for polynomials $f$ of degree below `depth`, and for every $f$ once the Krylov space
    of $v$ is exhausted (never later than the dimension $n$).

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
    flat, unravel = ravel(check_loss(loss, params))
    _, product = linearized_hvp(lambda x: loss(unravel(x)), flat)
    result = krylov_apply(function, product, ravel(vector)[0].astype(flat.dtype), depth)
    if jnp.iscomplexobj(result):
        return jax.tree.map(jax.lax.complex, unravel(result.real), unravel(result.imag))
    return unravel(result)
