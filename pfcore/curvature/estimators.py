"""Trace and diagonal of the Hessian from random probes, with error bars."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float
from matfree import stochtrace

from pfcore._checks import KeyLike, check_count, check_curvature, check_key
from pfcore._trees import Params, num_entries
from pfcore.curvature.density import spread
from pfcore.curvature.krylov import is_symmetric, over, rounding, unit_of
from pfcore.curvature.products import LossOrCurvature, Product, compiled

METHODS = ("hutchinson", "xtrace")


class Estimate(NamedTuple):
    """A mean over probes.

    Attributes:
      mean: the estimate; NaN if the products were not finite, or the matrix is not symmetric.
      standard_error: of the mean over the probes, including the rounding error of the products; NaN
        for a single probe.
    """

    mean: Any
    standard_error: Any


class Scaled(NamedTuple):
    r"""A Hessian, scaled to entries of order 1.

    Attributes:
      product: v ↦ Hv / unit.
      unit: the scale, a power of two.
      size: the root mean square of the entries of Hv / unit for random signs v, about
        $\|H\|_F/\sqrt n$; the larger of two.
      symmetric: whether two products with random signs are consistent with a symmetric matrix.
    """

    product: Product
    unit: Float[Array, ""]
    size: Float[Array, ""]
    symmetric: Bool[Array, ""]


def _scaled(product: Product, flat: jax.Array, key: jax.Array) -> Scaled:
    r"""The scale of the Hessian, and whether it is symmetric, from two products.

    For random signs, $u^\top H w - w^\top H u$ has the magnitude $\|H - H^\top\|_F$.
    """
    first, second = jax.random.split(key)

    def half(keys: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, ...]:
        """One of the two products: its unit, its norm, and its component along the other signs."""
        image = product(jax.random.rademacher(keys[0], flat.shape, flat.dtype))
        unit = unit_of(image, jnp.zeros((), flat.dtype))
        image = over(image, unit)
        length = jnp.linalg.norm(image)
        # The key depends on the image, so that XLA does not keep the other signs in memory
        # meanwhile.
        late = jnp.where(length < -1, keys[0], keys[1])
        signs = jax.random.rademacher(late, flat.shape, flat.dtype)
        return unit, length, jnp.sum(signs * image)

    # One after the other, so that only one image is in memory.
    keys = jnp.stack([first, second]), jnp.stack([second, first])
    units, lengths, along = jax.lax.map(half, keys)
    unit = jnp.max(units)
    shares = units / jnp.where(unit > 0, unit, 1)
    length = jnp.max(shares * lengths)  # signs may be orthogonal to all that H has
    defect = jnp.abs(shares[0] * along[0] - shares[1] * along[1])
    unit = jnp.where(unit > 0, unit, 1)
    return Scaled(
        lambda v: over(product(v), unit),
        unit,
        length / flat.size**0.5,
        is_symmetric(defect, length),
    )


def _one_by_one(product: Product) -> Product:
    """The same, for which `jax.vmap` is a loop.

    Unlike for `jax.custom_batching.sequential_vmap`, the loop itself may be under `jax.vmap`.
    """
    one = jax.custom_batching.custom_vmap(product)

    @one.def_vmap
    def _(size: int, batched: list[bool], vectors: jax.Array) -> tuple[jax.Array, bool]:
        return jax.lax.map(product, vectors), True

    return one


@compiled("num_probes", "method", "batch_size")
def _trace(hessian, params, key, *, num_probes, method, batch_size):
    _, product, flat, _ = hessian.at(params)
    key, subkey = jax.random.split(key)
    product, unit, size, symmetric = _scaled(product, flat, subkey)
    # The error of a product is a few machine epsilons times the largest terms of its sums, and may
    # be the same for all probes.
    lost = rounding(size * flat.size)

    def estimate(mean: jax.Array, error: jax.Array) -> Estimate:
        mean, error = unit * mean, unit * jnp.hypot(error, lost)
        known = symmetric & jnp.isfinite(mean)
        return Estimate(jnp.where(known, mean, jnp.nan), jnp.where(known, error, jnp.nan))

    if method == "xtrace":
        # matfree multiplies all vectors at once. One at a time bounds memory, and is faster on a
        # CPU. With at least half as many probes as parameters matfree forms the matrix, which is
        # then small.
        if 2 * num_probes < flat.size:
            product = _one_by_one(product)
        leave_one_out = stochtrace.estimator_leave_one_out_mean_and_sem(
            stochtrace.leave_one_out_xtrace(), stochtrace.sampler_normal(flat, num=num_probes)
        )
        mean, error = leave_one_out(product, key)
        return estimate(mean, error if num_probes > 1 else jnp.full_like(error, jnp.nan))

    def probe(key: jax.Array) -> jax.Array:
        vector = jax.random.rademacher(key, flat.shape, flat.dtype)
        return vector @ product(vector)

    samples = jax.lax.map(probe, jax.random.split(key, num_probes), batch_size=batch_size)
    return estimate(jnp.mean(samples), spread(samples))


def trace(
    loss: LossOrCurvature,
    params: Params,
    *,
    key: KeyLike,
    num_probes: int,
    method: str = "hutchinson",
    batch_size: int | None = None,
) -> Estimate:
    r"""Trace of the Hessian, $\operatorname{tr} H$, with its standard error.

    "hutchinson": the mean of $v^\top H v$ over random signs $v$, with variance
    $2\sum_{i \ne j} H_{ij}^2$ for each probe. It takes one product for each probe, in constant
    memory. Two more products, before the probes, determine the scale of $H$ and whether it is
    symmetric.

    "xtrace": the probes project out the large eigenvalues, and the rest is estimated (matfree's
    implementation). It takes two products for each probe, and memory for $3p$ vectors. On the
    digits network of the book, with 100 products each, its standard error is little more than half
    of Hutchinson's.

    matfree's own Hutchinson estimator multiplies all probes at once, which is slower on a CPU and
    takes memory proportional to the number of probes.

    Args:
      loss: $E$, from `params` to a real scalar, or a `Curvature` in place of its Hessian.
      params: any pytree of floating-point arrays.
      key: for the probes, `jax.random.key(seed)`.
      num_probes: p, at least 1 (2 for an error); for "xtrace" at most the number of parameters.
      method: "hutchinson" or "xtrace".
      batch_size: number of probes multiplied together, for "hutchinson" only; by default one.

    Returns:
      `Estimate(mean, standard_error)`, scalars.

    Raises:
      ValueError: `num_probes` is out of range, the method is unknown, `batch_size` is given for
        "xtrace", or the loss is not a finite scalar at `params`.
      TypeError: a count is not an integer.

    Example:
      >>> import jax, jax.numpy as jnp, pfcore
      >>> loss = lambda x: x[0] ** 2 + 3 * x[1] ** 2
      >>> pfcore.curvature.trace(loss, jnp.ones(2), key=jax.random.key(0), num_probes=2).mean
      Array(8., dtype=float32)

    References:
      Hutchinson, Commun. Stat. Simul. Comput. 18 (1989); Epperly, Tropp, Webber, *XTrace*, SIAM J.
      Matrix Anal. Appl. 45 (2024).
    """
    params = check_curvature(loss, params)
    num_probes = check_count("num_probes", num_probes, minimum=1)
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if method == "xtrace" and batch_size is not None:
        raise ValueError(f"batch_size = {batch_size!r} is an option of method='hutchinson'")
    if method == "xtrace" and num_probes > num_entries(params):
        raise ValueError(
            f"xtrace takes at most as many probes as there are parameters, "
            f"{num_entries(params)}, got num_probes = {num_probes}"
        )
    return _trace(
        loss,
        params,
        check_key(key),
        num_probes=num_probes,
        method=method,
        batch_size=None if batch_size is None else check_count("batch_size", batch_size, minimum=1),
    )


@compiled("num_probes")
def _diagonal(hessian, params, key, *, num_probes):
    _, product, flat, unravel = hessian.at(params)
    key, subkey = jax.random.split(key)
    product, unit, size, symmetric = _scaled(product, flat, subkey)

    # Welford's recursion: sums of squares would cancel, and storing all samples takes memory.
    def probe(carry, key):
        mean, squares, count = carry
        vector = jax.random.rademacher(key, flat.shape, flat.dtype)
        sample = vector * product(vector)
        change = sample - mean
        mean = mean + change / count
        return (mean, squares + change * (sample - mean), count + 1), None

    zero = jnp.zeros_like(flat)
    begin = (zero, zero, jnp.ones((), flat.dtype))
    (mean, squares, _), _ = jax.lax.scan(probe, begin, jax.random.split(key, num_probes))
    variance = squares / (num_probes - 1) if num_probes > 1 else jnp.full_like(flat, jnp.nan)
    lost = rounding(jnp.maximum(size, jnp.abs(mean)))
    error = jnp.hypot(jnp.sqrt(variance / num_probes), lost)
    mean, error = unit * mean, unit * error
    known = symmetric & jnp.isfinite(mean)
    return Estimate(
        unravel(jnp.where(known, mean, jnp.nan)), unravel(jnp.where(known, error, jnp.nan))
    )


def diagonal(loss: LossOrCurvature, params: Params, *, key: KeyLike, num_probes: int) -> Estimate:
    r"""Diagonal of the Hessian, $H_{ii}$, with standard errors.

    The mean of $v \odot Hv$ over random signs $v$; entry i has variance $\sum_{j \ne i} H_{ij}^2$
    for each probe. Takes memory for a few vectors, whatever the number of probes. As for `trace`,
    two more products check that $H$ is symmetric.

    Args:
      loss: $E$, from `params` to a real scalar, or a `Curvature` in place of its Hessian.
      params: any pytree of floating-point arrays.
      key: for the probes, `jax.random.key(seed)`.
      num_probes: at least 1 (2 for errors); one product each.

    Returns:
      `Estimate(mean, standard_error)`, each with the structure of `params`.

    Raises:
      ValueError: `num_probes` is below 1, or the loss is not a finite scalar at `params`.
      TypeError: `num_probes` is not an integer.

    Example:
      >>> import jax, jax.numpy as jnp, pfcore
      >>> loss = lambda x: x[0] ** 2 + 3 * x[1] ** 2
      >>> pfcore.curvature.diagonal(loss, jnp.ones(2), key=jax.random.key(0), num_probes=2).mean
      Array([2., 6.], dtype=float32)

    References:
      Bekas, Kokiopoulou, Saad, *An estimator for the diagonal of a matrix*, Appl. Numer. Math. 57
      (2007).
    """
    params = check_curvature(loss, params)
    num_probes = check_count("num_probes", num_probes, minimum=1)
    return _diagonal(loss, params, check_key(key), num_probes=num_probes)
