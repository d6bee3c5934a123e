"""What compiled programs ask for, beside their arguments and results."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import pfcore
from pfcore.curvature import diagonal, spectral_density, top_eigenpairs, trace

N = 200_000


def quartic(x):
    """Hessian products take a few vectors of the size of x."""
    return jnp.sum(0.25 * x**4)


def temporary_vectors(routine, *arguments, **options) -> float:
    """Temporary memory of the compiled routine, in vectors of N single-precision numbers."""
    compiled = (
        jax.jit(lambda x, key: routine(quartic, x, *arguments, key=key, **options))
        .lower(jax.ShapeDtypeStruct((N,), jnp.float32), jax.random.key(0))
        .compile()
    )
    return compiled.memory_analysis().temp_size_in_bytes / (4 * N)


@pytest.mark.parametrize("num_probes", [1, 10])
def test_spectral_density_holds_one_basis(num_probes):
    """Of m vectors, whatever the number of probes."""
    depth = 30
    found = temporary_vectors(spectral_density, num_probes=num_probes, depth=depth)
    assert depth < found < 1.2 * depth + 3


@pytest.mark.parametrize("k", [1, 5])
def test_top_eigenpairs_hold_what_is_documented(k):
    """And two vectors for the product."""
    assert temporary_vectors(top_eigenpairs, k) < max(20, 4 * k + 12) + 7.5


@pytest.mark.parametrize("routine", [trace, diagonal])
def test_estimates_hold_a_few_vectors(routine):
    few, many = (temporary_vectors(routine, num_probes=p) for p in (2, 200))
    assert many < 10 and many == pytest.approx(few, abs=0.1)


def network_memory(num_samples, microbatch, derivative):
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(num_samples, 8))
    model = pfcore.networks.MLP((8, 64, 64, 4), rngs=nnx.Rngs(0))
    loss, params = pfcore.losses.full_batch(
        model,
        inputs,
        rng.integers(0, 4, num_samples),
        kind="cross_entropy",
        microbatch=microbatch,
    )
    if derivative == "gradient":
        compiled = jax.jit(jax.grad(loss)).lower(params).compile()
    else:
        product = jax.jit(lambda p, v: pfcore.curvature.hvp(loss, p, v))
        compiled = product.lower(params, params).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("derivative", ["gradient", "product"])
def test_microbatches_bound_memory(derivative):
    """By the size of one, whatever the number of samples."""
    of = functools.partial(network_memory, derivative=derivative)
    whole, fourfold = of(2048, None), of(8192, None)
    assert fourfold == pytest.approx(4 * whole, rel=0.1)
    large, small = of(2048, 256), of(2048, 64)
    assert large < whole / 4 and small < large / 2
    assert of(8192, 256) < 1.1 * large
