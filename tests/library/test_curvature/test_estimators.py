import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pfcore.curvature import diagonal, trace
from tests.conftest import flatten, mixed_loss, mixed_params
from tests.library.test_curvature.test_krylov import symmetric

pytestmark = pytest.mark.usefixtures("x64")

N, PROBES = 12, 4000


def loss_of(matrix):
    return lambda x: 0.5 * x @ (matrix @ x)


@functools.cache
def estimator(routine, n, num_probes, **options):
    """Compiled once for all matrices of a size."""
    return jax.jit(
        lambda matrix, key: routine(
            loss_of(matrix), jnp.zeros(n, matrix.dtype), key=key, num_probes=num_probes, **options
        )
    )


@functools.cache
def matrix():
    return symmetric(np.concatenate([np.linspace(-1, 1, N - 2), [3.0, 6.0]]))


def off_diagonal(matrix):
    return matrix - np.diag(np.diag(matrix))


def test_hutchinson_has_the_mean_and_the_variance_of_random_signs():
    """2 Σ_{i≠j} H_ij² for each probe; the sample's own variance is within 4 √(κ/p) of it."""
    found = estimator(trace, N, PROBES)(jnp.asarray(matrix()), jax.random.key(0))
    error = np.sqrt(2 * np.sum(off_diagonal(matrix()) ** 2) / PROBES)
    assert abs(float(found.mean) - np.trace(matrix())) < 4 * error
    assert float(found.standard_error) == pytest.approx(error, rel=0.1)


def test_diagonal_has_the_mean_and_the_variance_of_random_signs():
    """Σ_{j≠i} H_ij² for each probe of entry i."""
    found = estimator(diagonal, N, PROBES)(jnp.asarray(matrix()), jax.random.key(0))
    errors = np.sqrt(np.sum(off_diagonal(matrix()) ** 2, axis=1) / PROBES)
    assert np.all(np.abs(found.mean - np.diag(matrix())) < 4.5 * errors)
    np.testing.assert_allclose(found.standard_error, errors, rtol=0.1)


def test_errors_are_the_spread_over_keys():
    keys = jax.random.split(jax.random.key(1), 300)
    small = estimator(trace, N, 20)
    found = jax.lax.map(lambda key: small(jnp.asarray(matrix()), key), keys)
    assert len(set(np.asarray(found.mean).tolist())) == len(keys)
    typical = np.sqrt(np.mean(found.standard_error**2))
    assert np.std(found.mean, ddof=1) == pytest.approx(typical, rel=0.2)
    error = typical / np.sqrt(len(keys))
    assert abs(np.mean(found.mean) - np.trace(matrix())) < 4 * error


def test_diagonal_hessians_are_exact():
    """The trace is a sum of numbers that add up without rounding."""
    entries = np.arange(-3.0, N - 3)
    found = estimator(trace, N, 20)(jnp.diag(entries), jax.random.key(0))
    assert float(found.mean) == entries.sum() and 0 < float(found.standard_error) < 1e-13
    found = estimator(diagonal, N, 20)(jnp.diag(entries), jax.random.key(0))
    np.testing.assert_array_equal(found.mean, entries)
    assert np.all((found.standard_error > 0) & (found.standard_error < 1e-14))


def test_error_of_a_diagonal_beside_large_entries():
    """Single precision: a mean of squares minus a squared mean would have lost all digits."""
    small = off_diagonal(matrix())
    large = jnp.asarray(small + 3e4 * np.eye(N), jnp.float32)
    found = estimator(diagonal, N, PROBES)(large, jax.random.key(0))
    assert found.mean.dtype == found.standard_error.dtype == jnp.float32
    # The rounding of the large entries may be the same for all probes.
    rounding = 4 * np.finfo(np.float32).eps * 3e4
    errors = np.hypot(np.sqrt(np.sum(small**2, axis=1) / PROBES), rounding)
    np.testing.assert_allclose(found.standard_error, errors, rtol=0.1)
    np.testing.assert_allclose(found.mean, 3e4, atol=5 * errors.max() + 0.01)


@pytest.mark.parametrize("rank", [0, 1, 4])
def test_xtrace_is_exact_below_full_rank(rank):
    """More probes than the rank: nothing is left to be estimated."""
    low = symmetric(np.r_[np.linspace(1, 5, rank), np.zeros(30 - rank)])
    found = estimator(trace, 30, 6, method="xtrace")(jnp.asarray(low), jax.random.key(0))
    assert float(found.mean) == pytest.approx(np.trace(low), rel=1e-12, abs=1e-13)
    assert float(found.standard_error) < 1e-12


def test_xtrace_is_unbiased_and_better_than_hutchinson():
    """A few large eigenvalues on a flat rest; 8 probes of two products against 16 of one."""
    large = symmetric(np.r_[np.linspace(-0.1, 0.1, 26), [5.0, 6.0, 7.0, 8.0]])
    keys = jax.random.split(jax.random.key(1), 200)
    xtrace = estimator(trace, 30, 8, method="xtrace")
    hutchinson = estimator(trace, 30, 16)
    found = jax.lax.map(lambda key: xtrace(jnp.asarray(large), key), keys)
    spread = np.std(found.mean, ddof=1)
    assert abs(np.mean(found.mean) - np.trace(large)) < 4 * spread / np.sqrt(len(keys))
    typical = np.sqrt(np.mean(found.standard_error**2))
    assert 0.5 < typical / spread < 2
    other = jax.lax.map(lambda key: hutchinson(jnp.asarray(large), key), keys)
    assert spread < 0.1 * np.std(other.mean, ddof=1)


@pytest.mark.parametrize("num_probes", [N // 2, N])
def test_xtrace_takes_as_many_probes_as_there_are_parameters(num_probes):
    found = estimator(trace, N, num_probes, method="xtrace")(
        jnp.asarray(matrix()), jax.random.key(0)
    )
    assert abs(float(found.mean) - np.trace(matrix())) < 5 * float(found.standard_error) + 1e-10


def test_batches_change_nothing():
    one_by_one = estimator(trace, N, 20)(jnp.asarray(matrix()), jax.random.key(0))
    in_batches = estimator(trace, N, 20, batch_size=6)(jnp.asarray(matrix()), jax.random.key(0))
    np.testing.assert_allclose(in_batches, one_by_one, rtol=1e-12)


def test_xtrace_at_several_points():
    """Under `jax.vmap`, the same as at each point."""

    def loss(x):
        return jnp.sum(x**4) + jnp.sum(jnp.where(x > 0, x, 0)) ** 2

    def estimate(x):
        return trace(loss, x, key=jax.random.key(0), num_probes=4, method="xtrace")

    points = jnp.arange(1.0, 4.0)[:, None] * jnp.linspace(-1, 1, 40)
    found = jax.vmap(estimate)(points)
    for i, point in enumerate(points):
        np.testing.assert_allclose(found.mean[i], estimate(point).mean, rtol=1e-9)
        np.testing.assert_allclose(found.standard_error[i], estimate(point).standard_error)


def test_the_key_decides():
    first, again, other = (
        float(estimator(trace, N, 20)(jnp.asarray(matrix()), jax.random.key(seed)).mean)
        for seed in (0, 0, 1)
    )
    assert first == again != other


@pytest.mark.parametrize("method", ["hutchinson", "xtrace"])
def test_one_probe_has_no_error(method):
    found = estimator(trace, N, 1, method=method)(jnp.asarray(matrix()), jax.random.key(0))
    assert np.isfinite(found.mean) and np.isnan(found.standard_error)


def test_diagonal_of_one_probe_has_no_error():
    found = estimator(diagonal, N, 1)(jnp.asarray(matrix()), jax.random.key(0))
    assert np.all(np.isfinite(found.mean)) and np.all(np.isnan(found.standard_error))


def test_pytree():
    params = mixed_params()
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    hessian = np.asarray(jax.jit(jax.hessian(lambda x: mixed_loss(unravel(x))))(flat))
    key = jax.random.key(0)
    found = diagonal(mixed_loss, params, key=key, num_probes=500)
    for part in found:
        assert jax.tree.structure(part) == jax.tree.structure(params)
        assert jax.tree.map(jnp.shape, part) == jax.tree.map(jnp.shape, params)
    errors = np.sqrt(np.sum(off_diagonal(hessian) ** 2, axis=1) / 500)
    np.testing.assert_array_less(
        np.abs(flatten(found.mean) - np.diag(hessian)), 4.5 * errors + 1e-12
    )
    np.testing.assert_allclose(flatten(found.standard_error), errors, rtol=0.25, atol=1e-12)
    whole = trace(mixed_loss, params, key=key, num_probes=500)
    assert abs(float(whole.mean) - np.trace(hessian)) < 4 * float(whole.standard_error)


@pytest.mark.parametrize(
    "estimate",
    [
        trace,
        functools.partial(trace, method="xtrace"),
        diagonal,
    ],
    ids=["hutchinson", "xtrace", "diagonal"],
)
def test_products_that_are_not_finite(estimate):
    found = estimate(jnp.linalg.norm, jnp.zeros(9), key=jax.random.key(0), num_probes=3)
    assert np.all(np.isnan(found.mean))


@pytest.mark.parametrize("routine", [trace, diagonal])
def test_refusals(routine):
    def find(loss=mixed_loss, num_probes=2, **options):
        return routine(
            loss, mixed_params(), key=jax.random.key(0), num_probes=num_probes, **options
        )

    with pytest.raises(ValueError, match="num_probes must be at least 1, got 0"):
        find(num_probes=0)
    with pytest.raises(TypeError, match=r"1\.5"):
        find(num_probes=1.5)
    with pytest.raises(ValueError, match=r"one number, got \(2, 3\)"):
        find(loss=lambda p: p["w"])
    with pytest.raises(ValueError, match="nan"):
        find(loss=lambda p: jnp.log(-jnp.abs(p["layer"]["s"])))
    if routine is trace:
        with pytest.raises(ValueError, match="hutchinson, xtrace, got 'exact'"):
            find(method="exact")
        with pytest.raises(ValueError, match="parameters, 10, got num_probes = 11"):
            find(method="xtrace", num_probes=11)
        with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
            find(batch_size=0)
