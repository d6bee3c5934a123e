r"""The distribution of all eigenvalues, by stochastic Lanczos quadrature.

Lanczos iteration from a random vector $v$ gives a Gauss quadrature rule for the distribution of
eigenvalues weighted by $(u_i^\top v)^2$: nodes are the eigenvalues of the tridiagonal matrix,
weights the squares of the first components of its eigenvectors. Averaged over probes, this becomes
a quadrature rule for the spectral density $\frac1n \sum_i \delta(\lambda - \lambda_i)$.

matfree's quadrature returns the integral of one function. Here nodes and weights are kept, so that
one run gives every moment and every bandwidth.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pfcore import _programs
from pfcore._checks import (
    ArrayLike,
    KeyLike,
    ScalarLike,
    check_count,
    check_curvature,
    check_key,
    check_positive,
)
from pfcore._trees import Params, num_entries
from pfcore.curvature.krylov import eigh, is_symmetric, krylov_space, rounding
from pfcore.curvature.products import LossOrCurvature, compiled

SCALES = ("linear", "symlog")


@_programs.settings()
def spread(samples: jax.Array) -> jax.Array:
    """Standard error of the mean over the leading axis; NaN for a single sample."""
    count = len(samples)
    if count == 1:
        return jnp.full(samples.shape[1:], jnp.nan, samples.dtype)
    # Scaled, because squares of the samples may overflow or underflow.
    unit = jnp.max(jnp.abs(samples), axis=0)
    unit = jnp.where((unit > 0) & jnp.isfinite(unit), unit, 1)
    return unit * (jnp.std(samples / unit, axis=0, ddof=1) / math.sqrt(count))


class SpectralDensity(NamedTuple):
    r"""Quadrature rules for the spectral density, one for each of p probes.

    Attributes:
      nodes: [p, m]; NaN if the products were not finite or the matrix not symmetric.
      weights: [p, m], non-negative, each row sums to 1.
      symmetric: whether the products were finite and symmetric, [p].
      num_products: Hessian-vector products used.
      relative_rounding: rounding error of the nodes in units of $\|H\|$, a few machine epsilons.
    """

    nodes: Float[Array, "p m"]
    weights: Float[Array, "p m"]
    symmetric: Bool[Array, " p"]
    num_products: Int[Array, ""]
    relative_rounding: Float[Array, ""] | float = 0.0

    @property
    def rounding(self) -> jax.Array:
        r"""Rounding error of the nodes of each probe, a few machine epsilons times $\|H\|$.

        Eigenvalues closer to each other, or to zero, are not resolved: in single precision an
        outlier a million times the bulk blurs the bulk.
        """
        return self.relative_rounding * jnp.max(jnp.abs(self.nodes), axis=1)

    def _moments(self, k: int) -> jax.Array:
        k = check_count("k", k, minimum=0)
        return jnp.sum(self.weights * self.nodes**k, axis=1)

    def moment(self, k: int) -> jax.Array:
        r"""Estimate of $\frac1n \operatorname{tr} H^k$, unbiased for $k < 2m$."""
        return jnp.mean(self._moments(k))

    def moment_error(self, k: int) -> jax.Array:
        """Standard error of `moment` over the probes, including rounding error."""
        k = check_count("k", k, minimum=0)
        if k == 0:
            return spread(self._moments(0))
        slopes = jnp.sum(self.weights * jnp.abs(self.nodes) ** (k - 1), axis=1)
        return jnp.hypot(spread(self._moments(k)), jnp.mean(k * slopes * self.rounding))

    @_programs.settings()
    def _densities(
        self, grid: ArrayLike, bandwidth: ScalarLike, scale: str, linear_threshold: ScalarLike
    ) -> jax.Array:
        """Each probe's density on the grid, [p, g]."""
        if scale not in SCALES:
            raise ValueError(f"scale must be one of {', '.join(SCALES)}, got {scale!r}")
        dtype = self.nodes.dtype
        width = check_positive("bandwidth", bandwidth).astype(dtype)
        unit = check_positive("linear_threshold", linear_threshold).astype(dtype)

        def axis(x: jax.Array) -> jax.Array:
            return x if scale == "linear" else jnp.sign(x) * jnp.log10(1 + jnp.abs(x) / unit)

        points = axis(jnp.asarray(grid, dtype))
        probe_axes = tuple(range(1, 1 + points.ndim))  # [p, m] -> [p, 1, ..., m]

        distance = (points[..., None] - axis(jnp.expand_dims(self.nodes, probe_axes))) / width
        bells = jnp.exp(-0.5 * distance**2) / (width * math.sqrt(2 * math.pi))
        return jnp.sum(bells * jnp.expand_dims(self.weights, probe_axes), axis=-1)

    def evaluate(
        self,
        grid: ArrayLike,
        bandwidth: ScalarLike,
        *,
        scale: str = "linear",
        linear_threshold: ScalarLike = 1e-3,
    ) -> jax.Array:
        r"""The density, with each eigenvalue smoothed by a Gaussian, at the points of a grid.

        Args:
          grid: eigenvalues, any shape.
          bandwidth: standard deviation of the Gaussian, in units of the axis.
          scale: "linear", or "symlog": an axis $s = \operatorname{sgn}(\lambda)\log_{10}(1 +
            |\lambda|/\lambda_\text{lin})$, on which the density is per unit of $s$ (a decade).
          linear_threshold: $\lambda_\text{lin}$, below which that axis is linear.

        Returns:
          The mean over the probes, of the shape of `grid`; integrates to 1 over the axis.
        """
        return jnp.mean(self._densities(grid, bandwidth, scale, linear_threshold), axis=0)

    def standard_error(
        self,
        grid: ArrayLike,
        bandwidth: ScalarLike,
        *,
        scale: str = "linear",
        linear_threshold: ScalarLike = 1e-3,
    ) -> jax.Array:
        """Standard error of `evaluate` over the probes; NaN for a single probe."""
        return spread(self._densities(grid, bandwidth, scale, linear_threshold))


@compiled("num_probes", "depth", "batch_size")
def _spectral_density(hessian, params, key, *, num_probes, depth, batch_size):
    _, product, flat, _ = hessian.at(params)

    def probe(key: jax.Array):
        vector = jax.random.normal(key, flat.shape, flat.dtype)
        space = krylov_space(product, vector, depth)
        return space.projected, space.asymmetry

    keys = jax.random.split(key, num_probes)
    projected, asymmetry = jax.lax.map(probe, keys, batch_size=batch_size)
    nodes, vectors = jax.vmap(eigh)(projected)
    symmetric = is_symmetric(asymmetry, jnp.max(jnp.abs(nodes), axis=1))
    return SpectralDensity(
        nodes=jnp.where(symmetric[:, None], nodes, jnp.nan),
        weights=vectors[:, 0, :] ** 2,
        symmetric=symmetric,
        num_products=jnp.int32(num_probes * depth),
        relative_rounding=rounding(jnp.ones((), flat.dtype)),
    )


def spectral_density(
    loss: LossOrCurvature,
    params: Params,
    *,
    key: KeyLike,
    num_probes: int = 10,
    depth: int = 30,
    batch_size: int | None = None,
) -> SpectralDensity:
    r"""Density of the Hessian's eigenvalues, by stochastic Lanczos quadrature.

    Args:
      loss: $E$, from `params` to a real scalar, or a `Curvature` in place of its Hessian.
      params: any pytree of floating-point arrays, $n$ numbers in all.
      key: for the probes, `jax.random.key(seed)`.
      num_probes: p, independent normal vectors; errors fall as $1/\sqrt p$, and as $1/\sqrt n$.
      depth: m, products for each probe, clipped to n. Doubling it halves the resolved spacing. Full
        reorthogonalisation ensures that no eigenvalue is counted twice.
      batch_size: number of probes multiplied together. By default one at a time, which needs memory
        for $m + 3$ vectors and is fastest on a CPU.

    Returns:
      A `SpectralDensity`.

    Raises:
      ValueError: a count below 1, or the loss is not a finite scalar at `params`.
      TypeError: a count is not an integer.

    Example:
      >>> import jax, jax.numpy as jnp, pfcore
      >>> loss = lambda x: 0.5 * jnp.sum(jnp.array([1.0, 2.0, 3.0]) * x**2)
      >>> density = pfcore.curvature.spectral_density(loss, jnp.ones(3), key=jax.random.key(0))
      >>> [round(float(x), 4) for x in density.nodes[0]]
      [1.0, 2.0, 3.0]

    References:
      Golub and Meurant, *Matrices, Moments and Quadrature* (Princeton 2010); Ghorbani, Krishnan,
      Xiao, *An investigation into neural net optimization via Hessian eigenvalue density*, ICML
      2019 (arXiv 1901.10159).
    """
    params = check_curvature(loss, params)
    return _spectral_density(
        loss,
        params,
        check_key(key),
        num_probes=check_count("num_probes", num_probes, minimum=1),
        depth=min(check_count("depth", depth, minimum=1), num_entries(params)),
        batch_size=None if batch_size is None else check_count("batch_size", batch_size, minimum=1),
    )
