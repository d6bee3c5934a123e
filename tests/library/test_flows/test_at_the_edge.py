"""Properties that several flows share at the edge of stability, against the same numbers."""

import functools

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pfcore
from pfcore.flows import central_flow, edge_flow, rod_flow
from tests.conftest import mixed_loss, mixed_params
from tests.library.test_flows.edge_toys import (
    digits_at_the_edge,
    energy_ratio,
    halfway,
    run,
    sharp_valley,
)

pytestmark = pytest.mark.usefixtures("x64")

secant = functools.partial(edge_flow, curvature="secant")


@pytest.mark.parametrize(
    ("make", "distance"),
    [pytest.param(rod_flow, 0.0112, id="rod"), pytest.param(secant, 0.0042, id="edge")],
)
def test_two_cycles_are_exact(make, distance):
    one = run("Q1", make, halfway)
    np.testing.assert_allclose(one.amplitude[-1], np.sqrt(0.2), rtol=1e-6)
    two = run("Q2", make, halfway)
    np.testing.assert_allclose(two.path.params[-1], [0, 8 / 15], atol=1e-6)
    np.testing.assert_allclose(two.amplitude[-1], np.sqrt(1 / 15), rtol=1e-6)
    np.testing.assert_allclose(two.sharpness[-1], 31 / 15, atol=1e-5)  # beyond 2
    assert abs(two.distance - distance) < 0.2 * distance


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "tolerance"),
    [
        pytest.param(functools.partial(rod_flow, substeps=8), 0.01, id="rod"),
        pytest.param(edge_flow, 0.005, id="edge"),
        pytest.param(functools.partial(secant, growth="linear"), 0.005, id="edge secant"),
    ],
)
def test_gains_energy_at_the_wrong_rate(make, tolerance):
    """9ζ² less than gradient descent's 2 - 9ζ², by 2."""
    h, epsilon, zeta = 0.3, 1e-4, 0.5
    start = jnp.array([1.6 * np.sqrt(2 * epsilon), 2 / h])
    path = pfcore.follow(make(sharp_valley(zeta, epsilon), h), start, h, 9000, max_steps=10**5)
    amplitude = np.linalg.norm(path.oscillation, axis=1)
    ratio = energy_ratio(np.asarray(path.params)[:, 1], amplitude, h, epsilon)
    np.testing.assert_allclose(ratio - (2 - 9 * zeta**2), -2, atol=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "options"),
    [
        pytest.param(rod_flow, {}, id="rod"),
        pytest.param(
            edge_flow, {"rtol": 1e-4, "solver": diffrax.Bosh3(scan_kind="lax")}, id="edge"
        ),
    ],
)
def test_follows_a_network(make, options):
    network = digits_at_the_edge()
    path = pfcore.follow(make(network.loss, network.h), network.params, network.h, 250, **options)
    apart, loss_error = network.compare(path, halfway)
    assert bool(path.completed)
    assert apart < 0.01 and loss_error < 0.01


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(central_flow, id="central"),
        pytest.param(edge_flow, id="edge"),
        pytest.param(rod_flow, id="rod"),
    ],
)
def test_double_precision_rate_leaves_single_precision_parameters(make):
    """Under strict promotion, in which a strongly typed rate may not meet them."""
    params, h = mixed_params(jnp.float32), jnp.array(0.1, jnp.float64)
    path = pfcore.integrate(make(mixed_loss, h), params, [0.0, 0.1], rtol=1e-3)
    assert bool(path.completed)
    assert {x.dtype for x in jax.tree.leaves((path.params, path.expected_loss))} == {
        jnp.dtype(jnp.float32)
    }
