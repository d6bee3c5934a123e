r"""Traces of functions, $\operatorname{tr} f(H)$: the log-determinant, the effective dimension.

Computed by stochastic Lanczos quadrature, like the spectral density: each probe gives
$n\,e_1^\top f(T)e_1$. The error estimate combines the spread over the probes, the change over the
last quarter of the products, and the rounding error of the products.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from pfcore._checks import (
    KeyLike,
    ScalarLike,
    check_count,
    check_curvature,
    check_key,
    check_positive,
)
from pfcore._trees import Params, num_entries
from pfcore.curvature.density import spread
from pfcore.curvature.estimators import Estimate
from pfcore.curvature.krylov import (
    eigh,
    is_nonnegative,
    is_symmetric,
    krylov_space,
    lag,
    on_domain,
    rounding,
)
from pfcore.curvature.products import LossOrCurvature, compiled

Function = Callable[..., jax.Array]


def _log(values: jax.Array, damping: jax.Array) -> jax.Array:
    # Not the logarithm of a negative number: with jax_debug_nans its NaN would be an error.
    shifted = values + damping
    return jnp.where(shifted >= 0, jnp.log(jnp.maximum(shifted, 0)), jnp.nan)


def _share(values: jax.Array, damping: jax.Array) -> jax.Array:
    shifted = values + damping
    return jnp.where(shifted > 0, values / jnp.where(shifted > 0, shifted, 1), jnp.nan)


@compiled("function", "num_probes", "depth", "batch_size")
def _trace_of(hessian, params, function, key, damping, *, num_probes, depth, batch_size):
    _, product, flat, _ = hessian.at(params)
    nonnegative = hessian.positive_semidefinite
    options = () if damping is None else (damping.astype(flat.dtype),)
    of = on_domain(lambda values: function(values, *options), nonnegative)

    def quadrature(projected: jax.Array, size: jax.Array) -> tuple[jax.Array, ...]:
        """Σ w f(θ), nodes θ and weights w, from the leading rows."""
        inside = jnp.arange(depth, dtype=jnp.int32) < size
        # Other rows get the first diagonal entry, at which f is evaluated in any case.
        padding = jnp.diag(jnp.where(inside, 0, projected[0, 0]))
        nodes, vectors = eigh(jnp.where(inside[:, None] & inside, projected, 0) + padding)
        weights = vectors[0] ** 2
        total = jnp.sum(jnp.where(weights > 0, weights * of(nodes), 0))
        return total, nodes, weights

    def probe(key: jax.Array):
        vector = jax.random.normal(key, flat.shape, flat.dtype)
        space = krylov_space(product, vector, depth)
        size = jnp.sum(jnp.any(space.basis != 0, axis=1), dtype=jnp.int32)
        value, nodes, weights = quadrature(space.projected, size)
        reach = jnp.max(jnp.abs(nodes))
        # The result is exact in an exhausted or complete space.
        shorter, _, _ = quadrature(space.projected, jnp.maximum(size - lag(size), 1))
        # From a single product there is nothing shorter to compare with.
        cut = jnp.abs(value - jnp.where(size > 1, shorter, 0))
        cut = jnp.where((size < depth) | (size == flat.size), 0, cut)
        lost = rounding(reach) + space.asymmetry
        here = of(nodes)
        # A node within the error of 0 may be 0, near which f may have more to say than at its ends.
        others = (nodes - lost, nodes + lost, jnp.where(jnp.abs(nodes) <= lost, 0, nodes))
        moves = [jnp.abs(of(moved) - here) for moved in others]
        change = functools.reduce(jnp.fmax, moves)  # some may leave the domain of f
        change = jnp.where(weights > 0, weights * change, 0)
        known = is_symmetric(space.asymmetry, reach)
        if nonnegative:
            known &= is_nonnegative(jnp.min(nodes), space.asymmetry, reach)
        return value, cut, jnp.sum(change) + rounding(jnp.abs(value)), known

    keys = jax.random.split(key, num_probes)
    values, cuts, changes, known = jax.lax.map(probe, keys, batch_size=batch_size)
    n = flat.size
    mean = n * jnp.mean(values)
    error = n * jnp.hypot(spread(values), jnp.mean(cuts) + jnp.mean(changes))
    known = jnp.all(known) & jnp.isfinite(mean)
    return Estimate(jnp.where(known, mean, jnp.nan), jnp.where(known, error, jnp.nan))


def _checked(
    loss: Any,
    params: Params,
    function: Function,
    key: KeyLike,
    damping: jax.Array | None,
    num_probes: int,
    depth: int,
    batch_size: int | None,
) -> Estimate:
    params = check_curvature(loss, params)
    return _trace_of(
        loss,
        params,
        function,
        check_key(key),
        damping,
        num_probes=check_count("num_probes", num_probes, minimum=1),
        depth=min(check_count("depth", depth, minimum=1), num_entries(params)),
        batch_size=None if batch_size is None else check_count("batch_size", batch_size, minimum=1),
    )


def trace_function(
    function: Callable[[jax.Array], jax.Array],
    loss: LossOrCurvature,
    params: Params,
    *,
    key: KeyLike,
    num_probes: int = 10,
    depth: int = 30,
    batch_size: int | None = None,
) -> Estimate:
    r"""$\operatorname{tr} f(H) = \sum_i f(\lambda_i)$, with its standard error.

    Args:
      function: $f$, elementwise on an array of eigenvalues, with real values. For a positive
        semidefinite `Curvature` it is evaluated at non-negative numbers only. Static:
        pass the same function object, not a new lambda, to reuse the compiled program.
      loss: $E$, from `params` to a real scalar, or a `Curvature` in place of its Hessian.
      params: any pytree of floating-point arrays, $n$ numbers in all.
      key: for the probes, `jax.random.key(seed)`.
      num_probes: independent normal vectors, at least 1 (2 for an error).
      depth: products for each probe, clipped to n.
      batch_size: number of probes multiplied together; by default one at a time.

    Returns:
      `Estimate(mean, standard_error)`, scalars. The error includes the spread over the probes, the
      change over the last quarter of the products, and rounding error. NaN if f is not finite at an
      eigenvalue, the matrix is not symmetric, or a curvature declared positive semidefinite has a
      negative eigenvalue.

    Raises:
      ValueError: a count below 1, or the loss is not a finite scalar at `params`.
      TypeError: a count is not an integer.

    Example:
      >>> import jax, jax.numpy as jnp, pfcore
      >>> loss = lambda x: 0.5 * jnp.sum(jnp.array([1.0, 4.0, 9.0]) * x**2)
      >>> roots = pfcore.curvature.trace_function(
      ...     jnp.sqrt, loss, jnp.ones(3), key=jax.random.key(0), num_probes=1000)
      >>> bool(abs(roots.mean - 6.0) < 3 * roots.standard_error)
      True

    References:
      Ubaru, Chen, Saad, *Fast estimation of tr(f(A)) via stochastic Lanczos quadrature*, SIAM J.
      Matrix Anal. Appl. 38 (2017).
    """
    return _checked(loss, params, function, key, None, num_probes, depth, batch_size)


def log_determinant(
    loss: LossOrCurvature,
    params: Params,
    *,
    damping: ScalarLike,
    key: KeyLike,
    num_probes: int = 10,
    depth: int = 30,
    batch_size: int | None = None,
) -> Estimate:
    r"""$\log\det(H + \delta I) = \sum_i \log(\lambda_i + \delta)$, with its standard error.

    Laplace's approximation of the evidence contains half of it, with $\delta$ the precision of the
    prior.

    Args:
      loss: $E$, from `params` to a real scalar, or a `Curvature`. Unlike a Hessian, the
        Gauss-Newton and Fisher matrices have no negative eigenvalue.
      params: any pytree of floating-point arrays, $n$ numbers in all.
      damping: $\delta > 0$. If it is below the rounding error of the products, a few machine
        epsilons times $\|H\|$, small eigenvalues are not resolved, and the error is large.
      key, num_probes, depth, batch_size: as for `trace_function`.

    Returns:
      `Estimate(mean, standard_error)`; NaN if there is an eigenvalue below $-\delta$.

    Raises:
      ValueError: `damping` is not positive; otherwise as for `trace_function`.
      TypeError: a count is not an integer.

    Example:
      >>> import jax, jax.numpy as jnp, pfcore
      >>> loss = lambda x: 1.5 * jnp.sum(x**2)
      >>> estimate = pfcore.curvature.log_determinant(
      ...     loss, jnp.ones(4), damping=1.0, key=jax.random.key(0))
      >>> round(float(estimate.mean), 4)  # 4 log(3 + 1)
      5.5452

    References:
      MacKay, *A practical Bayesian framework for backpropagation networks*, Neural Computation 4
      (1992); for the method, see `trace_function`.
    """
    damping = check_positive("damping", damping)
    return _checked(loss, params, _log, key, damping, num_probes, depth, batch_size)


def effective_dimension(
    loss: LossOrCurvature,
    params: Params,
    *,
    damping: ScalarLike,
    key: KeyLike,
    num_probes: int = 10,
    depth: int = 30,
    batch_size: int | None = None,
) -> Estimate:
    r"""$\operatorname{tr} H(H + \delta I)^{-1} = \sum_i \lambda_i/(\lambda_i + \delta)$.

    The number of directions that are determined by the data rather than by a prior of precision
    $\delta$, with its standard error.

    Args:
      loss: $E$, from `params` to a real scalar, or a `Curvature`. The sum counts directions only
        for a positive semidefinite matrix, such as the Gauss-Newton or Fisher matrix.
      params: any pytree of floating-point arrays, $n$ numbers in all.
      damping: $\delta > 0$.
      key, num_probes, depth, batch_size: as for `trace_function`.

    Returns:
      `Estimate(mean, standard_error)`; NaN if there is an eigenvalue of at most $-\delta$.

    Raises:
      ValueError: `damping` is not positive; otherwise as for `trace_function`.
      TypeError: a count is not an integer.

    Example:
      >>> import jax, jax.numpy as jnp, pfcore
      >>> loss = lambda x: 1.5 * jnp.sum(x**2)
      >>> estimate = pfcore.curvature.effective_dimension(
      ...     loss, jnp.ones(4), damping=1.0, key=jax.random.key(0))
      >>> round(float(estimate.mean), 4)  # 4 · 3 / (3 + 1)
      3.0

    References:
      MacKay, Neural Computation 4 (1992), section 4; Maddox, Benton, Wilson, *Rethinking parameter
      counting* (arXiv 2003.02139).
    """
    damping = check_positive("damping", damping)
    return _checked(loss, params, _share, key, damping, num_probes, depth, batch_size)
