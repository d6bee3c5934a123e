import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pfcore
from pfcore.curvature import spectral_density
from tests.conftest import mixed_loss, mixed_params
from tests.library.test_curvature.test_krylov import symmetric

pytestmark = pytest.mark.usefixtures("x64")


@functools.cache
def estimator(num_probes, depth, batch_size=None):
    """Compiled once for all matrices of a size."""
    return jax.jit(
        lambda matrix, key: spectral_density(
            lambda x: 0.5 * x @ (matrix @ x),
            jnp.zeros(len(matrix), matrix.dtype),
            key=key,
            num_probes=num_probes,
            depth=depth,
            batch_size=batch_size,
        )
    )


def density_of(matrix, num_probes, depth, batch_size=None):
    return estimator(num_probes, depth, batch_size)(jnp.asarray(matrix), jax.random.key(0))


N, PROBES = 20, 400
SPECTRUM = np.concatenate([np.linspace(-1, 1, N - 3), [2.0, 2.5, 6.0]])


@functools.cache
def many():
    """Full depth, many probes."""
    return density_of(symmetric(SPECTRUM), PROBES, 99)


def test_nodes_at_full_depth_are_the_eigenvalues():
    density = many()
    assert density.nodes.shape == density.weights.shape == (PROBES, N)  # clipped to n
    assert int(density.num_products) == PROBES * N
    assert np.all(density.symmetric)
    np.testing.assert_allclose(density.nodes, np.tile(SPECTRUM, (PROBES, 1)), atol=1e-10)


@pytest.mark.parametrize(
    "eigenvalues",
    [SPECTRUM, np.ones(N), np.zeros(N), np.r_[5.0, np.zeros(N - 1)], np.resize([1.0, -2.0], N)],
    ids=["distinct", "identity", "zero", "rank one", "two values"],
)
def test_weights_are_probabilities(eigenvalues):
    """Also in an exhausted space, whose empty rows have zero weights."""
    density = density_of(symmetric(eigenvalues), 7, N)
    assert np.all(density.weights >= 0) and np.all(density.symmetric)
    np.testing.assert_allclose(np.sum(density.weights, axis=1), 1, rtol=1e-13)
    for value in np.unique(eigenvalues):
        near = np.abs(density.nodes - value) < 1e-9
        assert np.all(np.sum(np.where(near, density.weights, 0), axis=1) > 1e-8)
    somewhere = np.abs(np.asarray(density.nodes)[..., None] - eigenvalues).min(axis=2) < 1e-9
    np.testing.assert_allclose(np.where(somewhere, 0, density.weights), 0, atol=1e-13)


def test_moments_below_twice_the_depth_are_exact_for_each_probe():
    """The same probes in a space of 3 vectors and in the whole one: Gauss quadrature."""
    few, full = density_of(symmetric(SPECTRUM), PROBES, 3), many()
    for k in range(6):
        found = np.sum(few.weights * few.nodes**k, axis=1)
        expected = np.sum(full.weights * full.nodes**k, axis=1)
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)
    assert abs(float(few.moment(6) - full.moment(6))) > 1e-3


def test_moments_are_traces_of_powers():
    """vᵀAv on the unit sphere has variance 2/(n + 2) (tr A²/n − (tr A/n)²)."""
    density = many()
    for k in range(5):
        powers = SPECTRUM**k
        spread = np.sqrt(2 / (N + 2) * np.var(powers) / PROBES)
        assert abs(float(density.moment(k)) - powers.mean()) <= 4 * spread + 1e-12
        # The relative error of a standard deviation is about √(κ/4p), with kurtosis κ < 16.
        assert float(density.moment_error(k)) == pytest.approx(spread, rel=0.3, abs=1e-12)


def gaussians(axis, centres, width):
    distance = (axis[:, None] - centres) / width
    return np.exp(-0.5 * distance**2) / (width * np.sqrt(2 * np.pi))


def symlog(x, unit=1e-3):
    return np.sign(x) * np.log10(1 + np.abs(x) / unit)


AXES = {
    "linear": (np.linspace(-4, 9, 400), {"bandwidth": 0.4}),
    "symlog": (
        np.sign(np.linspace(-5, 5, 400)) * 1e-3 * (10 ** np.abs(np.linspace(-5, 5, 400)) - 1),
        {"bandwidth": 0.2, "scale": "symlog"},
    ),
    "wide linear part": (
        np.sign(np.linspace(-3, 3, 400)) * 0.1 * (10 ** np.abs(np.linspace(-3, 3, 400)) - 1),
        {"bandwidth": 0.1, "scale": "symlog", "linear_threshold": 0.1},
    ),
}


@pytest.mark.parametrize("name", AXES)
def test_density_is_the_smoothed_spectrum(name):
    """Within its error bars, and of integral one over the axis."""
    grid, options = AXES[name]
    if "scale" in options:
        unit = options.get("linear_threshold", 1e-3)
        axis, centres = symlog(grid, unit), symlog(SPECTRUM, unit)
    else:
        axis, centres = grid, SPECTRUM
    found = np.asarray(many().evaluate(grid, **options))
    error = np.asarray(many().standard_error(grid, **options))
    expected = gaussians(axis, centres, options["bandwidth"]).mean(axis=1)
    assert found.shape == error.shape == grid.shape
    assert np.trapezoid(found, axis) == pytest.approx(1, abs=1e-4)
    assert np.all(np.abs(found - expected) <= 4.5 * error + 1e-9)
    assert error.max() < 0.2 * expected.max()  # not vacuous


def test_grid_of_any_shape():
    grid = np.linspace(-1, 1, 12)
    flat = many().evaluate(grid, 0.3)
    np.testing.assert_allclose(many().evaluate(grid.reshape(3, 4), 0.3), flat.reshape(3, 4))
    assert many().evaluate(0.5, 0.3).shape == ()


def test_a_few_products_resolve_a_wide_bandwidth():
    """Twelve products for twenty eigenvalues; the error of quadrature is below the noise."""
    grid = np.linspace(-3, 8, 200)
    found = density_of(symmetric(SPECTRUM), PROBES, 12).evaluate(grid, 1.0)
    np.testing.assert_allclose(found, many().evaluate(grid, 1.0), atol=1e-3)


def test_standard_error_is_the_spread_over_independent_probes():
    density, grid = many(), np.array([-0.5, 0.0, 2.2, 6.0])
    groups = [
        density._replace(nodes=density.nodes[i : i + 10], weights=density.weights[i : i + 10])
        for i in range(0, PROBES, 10)
    ]
    curve = jax.jit(lambda d: (d.evaluate(grid, 0.4), d.standard_error(grid, 0.4)))
    means, errors = (np.array(x) for x in zip(*map(curve, groups), strict=True))
    typical = np.sqrt(np.mean(errors**2, axis=0))
    np.testing.assert_allclose(typical, means.std(axis=0, ddof=1), rtol=0.35)
    # Forty times as many probes: an error smaller by √40.
    ratio = typical / np.asarray(density.standard_error(grid, 0.4))
    np.testing.assert_allclose(ratio, np.sqrt(len(groups)), rtol=0.1)
    moments = np.sqrt(np.mean([float(group.moment_error(2)) ** 2 for group in groups]))
    assert moments / float(density.moment_error(2)) == pytest.approx(np.sqrt(40), rel=0.1)


def test_one_probe_has_no_error():
    one = many()._replace(nodes=many().nodes[:1], weights=many().weights[:1])
    assert np.isfinite(one.moment(1)) and np.isnan(one.moment_error(1))
    assert np.all(np.isnan(one.standard_error(np.zeros(3), 0.1)))
    assert np.all(np.isfinite(one.evaluate(np.zeros(3), 0.1)))


def test_batches_change_nothing():
    one_by_one = density_of(symmetric(SPECTRUM), 7, 5)
    in_batches = density_of(symmetric(SPECTRUM), 7, 5, 3)
    np.testing.assert_allclose(in_batches.nodes, one_by_one.nodes, rtol=1e-10)
    np.testing.assert_allclose(in_batches.weights, one_by_one.weights, rtol=1e-9, atol=1e-14)
    assert int(in_batches.num_products) == int(one_by_one.num_products) == 35


def test_an_isolated_eigenvalue_is_counted_once():
    """Single precision, full depth: where Lanczos alone would find it again and again.

    The weight is (uᵀv)²/‖v‖², which the projector on u gives in two products with the same v.
    """
    n = 100
    spectrum = np.r_[np.linspace(0, 1, n - 1), 1000.0]
    matrix = symmetric(spectrum)
    top = np.linalg.eigh(matrix)[1][:, -1]
    projector = jnp.asarray(np.outer(top, top), jnp.float32)
    density = estimator(3, n)(jnp.asarray(matrix, jnp.float32), jax.random.key(0))
    exact = estimator(3, 2)(projector, jax.random.key(0))
    assert density.nodes.dtype == jnp.float32 and np.all(density.symmetric)
    near = np.abs(density.nodes - 1000) < 1
    np.testing.assert_array_equal(np.sum(near, axis=1), 1)
    np.testing.assert_allclose(density.weights[near], exact.weights[:, 1], rtol=1e-3)
    assert np.all(density.nodes[~near] < 1.1)


def test_pytree():
    params = mixed_params()
    density = spectral_density(mixed_loss, params, key=jax.random.key(0), num_probes=2, depth=10)
    expected = pfcore.curvature.spectrum(mixed_loss, params)
    np.testing.assert_allclose(density.nodes, np.tile(expected, (2, 1)), atol=1e-9)


def test_the_key_decides():
    matrix = jnp.asarray(symmetric(SPECTRUM))
    first, again, other = (
        estimator(7, 5)(matrix, jax.random.key(seed)).nodes for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3
    assert np.ptp(first[:, 0]) > 1e-3  # probes differ from each other, too


def test_products_that_are_not_finite_are_reported():
    density = spectral_density(jnp.linalg.norm, jnp.zeros(5), key=jax.random.key(0), num_probes=3)
    assert not np.any(density.symmetric) and np.all(np.isnan(density.nodes))


@jax.custom_jvp
def skewed(x):
    return jnp.sum(x**2)


@skewed.defjvp
def _(primals, tangents):
    """The gradient is said to be Ax, with a matrix A that is not symmetric."""
    (x,) = primals
    return skewed(x), tangents[0] @ (x + jnp.roll(x, 1))


def test_products_of_no_symmetric_matrix_are_reported():
    density = spectral_density(skewed, jnp.ones(8), key=jax.random.key(0), num_probes=3)
    assert not np.any(density.symmetric) and np.all(np.isnan(density.nodes))


def test_refusals():
    def find(loss=mixed_loss, **options):
        return spectral_density(loss, mixed_params(), key=jax.random.key(0), **options)

    for name in ("num_probes", "depth", "batch_size"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            find(**{name: 0})
        with pytest.raises(TypeError, match=r"1\.5"):
            find(**{name: 1.5})
    with pytest.raises(ValueError, match=r"one number, got \(2, 3\)"):
        find(loss=lambda p: p["w"])
    with pytest.raises(ValueError, match="nan"):
        find(loss=lambda p: jnp.log(-jnp.abs(p["layer"]["s"])))
    density = many()
    with pytest.raises(ValueError, match="linear, symlog, got 'log'"):
        density.evaluate(np.zeros(2), 0.1, scale="log")
    for name in ("bandwidth", "linear_threshold"):
        options = {"bandwidth": 0.1, "scale": "symlog", name: 0}
        with pytest.raises(ValueError, match=f"{name} must be positive and finite, got 0"):
            density.evaluate(np.zeros(2), **options)
        with pytest.raises(ValueError, match=f"{name} must be positive and finite, got 0"):
            density.standard_error(np.zeros(2), **options)
    with pytest.raises(ValueError, match="k must be at least 0, got -1"):
        density.moment(-1)
    with pytest.raises(TypeError, match=r"0\.5"):
        density.moment_error(0.5)
