"""The whole Hessian, for networks small enough to hold it."""

import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from pfcore import _programs
from pfcore._checks import check_curvature
from pfcore._trees import Params, in_single, num_entries, ravel, real_dtype
from pfcore.curvature.krylov import (
    MatVec,
    from_coordinates,
    function_coordinates,
    is_symmetric,
    krylov_space,
    matrix_function,
    over,
    unit_of,
)
from pfcore.curvature.products import LossOrCurvature, compiled, linearized_hvp

# Columns formed in one batch of products. Measured on the 431-parameter network, 2 cores: blocks
# of 8 to 64 are within 30 % of each other, all columns at once takes twice as long.
BLOCK = 16
# Depth of the Krylov space that is tried before a Hessian is diagonalised.
TRIAL_DEPTH = 64


def _columns(product: MatVec, size: int, dtype: jnp.dtype) -> jax.Array:
    """The matrix [size, size] of a linear map, transposed, by blocks of products."""
    basis = jnp.eye(size, dtype=dtype)
    if size <= BLOCK:
        return jax.vmap(product)(basis)
    return jax.lax.map(product, basis, batch_size=BLOCK)


def matrix_of(product: MatVec, size: int, dtype: jnp.dtype) -> jax.Array:
    """The symmetric matrix [size, size] of a linear map."""
    columns = _columns(product, size, dtype)
    return (columns + columns.T) / 2


def gradient_and_hessian(loss: Any, params: Params) -> tuple[jax.Array, jax.Array]:
    """Gradient [n] and Hessian [n, n] in flat coordinates, at real or complex parameters."""
    flat, unravel = ravel(params)
    g, product = linearized_hvp(lambda x: loss(unravel(x)), flat)
    return g, matrix_of(product, flat.size, flat.dtype)


def apply_to_vector(
    function: Callable[[jax.Array], jax.Array], product: MatVec, vector: jax.Array
) -> jax.Array:
    r"""$f(A)v$ to machine precision, for a symmetric (real or complex) $A$ given by its products.

    Forming and diagonalising $A$ is expensive: 0.3 s for a complex Hessian of size 431, against
    0.03 s for the Krylov space of v, which is tried first. If the coordinates of $f(A)v$ in that
    space decay to machine precision, they give the result; otherwise $A$ is formed and
    diagonalised.
    """

    def diagonalise() -> jax.Array:
        return matrix_function(function, matrix_of(product, vector.size, vector.dtype), vector)

    if vector.size <= TRIAL_DEPTH:
        return diagonalise()
    space = krylov_space(product, vector, TRIAL_DEPTH)
    coordinates = function_coordinates(function, space)
    tail = jnp.max(jnp.abs(coordinates[-8:]))
    resolved = tail <= 10 * _programs.machine_epsilon(vector.dtype) * jnp.max(jnp.abs(coordinates))
    return jax.lax.cond(resolved, lambda: from_coordinates(space, coordinates), diagonalise)


def _memory() -> int | None:
    """Memory of the default device in bytes; None if unknown."""
    stats = jax.devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"]
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def check_fits(n: int, dtype: jnp.dtype) -> None:
    """Raise an error if a dense matrix of size n does not fit into memory."""
    # The columns as they are formed, the matrix made symmetric, and the eigensolver's copy.
    needed, available = 3 * n * n * jnp.dtype(dtype).itemsize, _memory()
    if available is not None and needed > available:
        raise ValueError(
            f"the dense Hessian of {n:,} parameters takes {needed:,} bytes "
            f"({needed / 2**30:.1f} GiB) in {jnp.dtype(dtype)}, more than the "
            f"{available / 2**30:.1f} GiB of this device; use top_eigenpairs for the extreme "
            "eigenvalues, spectral_density for their distribution, or subset for some parameters"
        )


@compiled()
def _eigenvalues(hessian: Any, params: Params) -> jax.Array:
    _, product, flat, _ = hessian.at(params)
    columns = _columns(product, flat.size, flat.dtype)
    unit = unit_of(columns, jnp.zeros((), flat.dtype))
    columns = over(columns, unit)
    symmetric = is_symmetric(jnp.max(jnp.abs(columns - columns.T)), jnp.max(jnp.abs(columns)))
    values = jnp.linalg.eigvalsh((columns + columns.T) / 2) * jnp.where(unit > 0, unit, 1)
    return jnp.where(symmetric, values, jnp.nan)


def spectrum(loss: LossOrCurvature, params: Params) -> jax.Array:
    r"""All eigenvalues of the Hessian, ascending, from the dense matrix.

    Args:
      loss: $E$, from `params` to a real scalar, or a `Curvature` in place of its Hessian.
      params: any pytree of floating-point arrays with $n$ numbers in all.

    Returns:
      Eigenvalues $\lambda_{n-1} \le \dots \le \lambda_0$, shape [n], each to within a few machine
      epsilons times $\|H\|$. NaN if the products are not finite, or the matrix is not symmetric (a
      loss with an incorrect custom derivative).

    Raises:
      ValueError: the loss is not a finite scalar at `params`, or the matrix does not fit into
        memory; the message states the required bytes.

    Example:
      >>> import jax.numpy as jnp, pfcore
      >>> pfcore.curvature.spectrum(lambda x: x[0] ** 2 - x[1] ** 2, jnp.ones(2)).tolist()
      [-2.0, 2.0]
    """
    params = check_curvature(loss, params)
    check_fits(num_entries(params), real_dtype(in_single(params)))
    return _eigenvalues(loss, params)
