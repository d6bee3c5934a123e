import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate

import pfcore
from pfcore.flows import RodState, SteppedFlow, rod_flow
from tests.conftest import flatten, flatten_path, mixed_loss, mixed_params
from tests.library.test_flows.edge_toys import TOYS, halfway, run

pytestmark = pytest.mark.usefixtures("x64")


def covariance(state):
    rows = flatten_path(state.factors)
    return rows.T @ rows


def test_starts_as_the_rod_between_the_first_two_iterates():
    params, h = mixed_params(), 0.3
    flow = rod_flow(mixed_loss, h)
    state = flow.init(params)
    assert isinstance(flow, SteppedFlow) and isinstance(state, RodState)
    iterates = pfcore.gradient_descent(mixed_loss, params, h, 1)
    first, second = flatten_path(iterates)
    np.testing.assert_allclose(flatten(flow.position(state)), (first + second) / 2, rtol=1e-12)
    np.testing.assert_allclose(flatten(flow.oscillation(state)), (first - second) / 2, rtol=1e-12)
    losses = jax.vmap(mixed_loss)(iterates)
    np.testing.assert_allclose(flow.expected_loss(state), np.mean(losses), rtol=1e-12)


def dense_rate(loss, h, correction):
    """Rod flow's equations in the entries of Σ, by dense Hessians: nothing of `pfcore` in it."""
    grad, hessian = jax.jit(jax.grad(loss)), jax.jit(jax.hessian(loss))

    def rate(t, flat):
        w, sigma = flat[:2], flat[2:].reshape(2, 2)
        values, vectors = np.linalg.eigh(sigma)
        rod = np.sqrt(values[-1]) * vectors[:, -1]
        plus, minus = np.asarray(grad(w + rod)), np.asarray(grad(w - rod))
        slope = -(plus + minus) / 2
        if correction:
            slope = slope - h / 8 * np.asarray(hessian(w + rod) + hessian(w - rod)) @ (plus + minus)
        source = h**2 / 4 * (np.outer(plus, plus) + np.outer(minus, minus))
        return np.concatenate([slope, ((source - 2 * sigma) / h).ravel()])

    return rate


@pytest.mark.parametrize("correction", [True, False])
def test_follows_its_equations(correction):
    """Against SciPy on dense matrices, with an error that falls with the third power of steps."""
    loss, h, start, _ = TOYS["T2"]
    start = jnp.array(start)
    slope = np.asarray(jax.grad(loss)(start))
    begin = np.concatenate([start - h / 2 * slope, (h**2 / 4 * np.outer(slope, slope)).ravel()])
    times = h * np.array([0.0, 10.0, 30.0])
    exact = scipy.integrate.solve_ivp(
        dense_rate(loss, h, correction), (0, times[-1]), begin, t_eval=times, rtol=1e-10, atol=1e-13
    ).y.T
    errors = []
    for substeps in (2, 4, 8):
        flow = rod_flow(loss, h, correction=correction, substeps=substeps)
        path = pfcore.integrate(flow, start, times)
        errors.append(np.abs(path.params - exact[:, :2]).max())
        rods = np.linalg.norm(path.oscillation, axis=1)
        sizes = np.sqrt(np.linalg.eigvalsh(exact[:, 2:].reshape(-1, 2, 2))[:, -1])
        np.testing.assert_allclose(rods, sizes, rtol=0.2 / substeps**2)
    assert errors[2] < 1e-5
    assert np.polyfit(np.log([2, 4, 8]), np.log(errors), 1)[0] < -2.5


@pytest.mark.parametrize("z", [1.9, 2.0, 2.1])
def test_grows_on_quadratics_beyond_the_edge_alone(z):
    """log of the rod's length grows by z²/4 - 1 in a step."""
    loss = lambda w: 0.5 * jnp.sum(w**2)  # noqa: E731
    flow = rod_flow(loss, z, substeps=16)
    path = pfcore.integrate(flow, jnp.array([1.0]), z * np.arange(11))
    grown = np.log(np.abs(np.asarray(path.oscillation)[:, 0]))
    # The first steps have a centre that is not at rest yet.
    np.testing.assert_allclose(np.diff(grown)[3:], z**2 / 4 - 1, atol=1e-5)


def test_rings_at_the_edge_as_the_reference_does():
    one = run("T1", lambda loss, h: rod_flow(loss, h, substeps=16), halfway)
    assert abs(one.sharpness.max() - 2.1131) < 0.002
    assert abs(one.sharpness.argmax() - 279) <= 2
    assert abs(one.distance - 0.338) < 0.2 * 0.338
    for substeps in (2, 4):
        two = run("T2", lambda loss, h, n=substeps: rod_flow(loss, h, substeps=n), halfway)
        assert abs(two.sharpness.max() - 2.0760) < 0.002
        assert abs(two.sharpness.argmax() - 182) <= 2
        assert abs(two.distance - 0.032) < 0.2 * 0.032


def test_misses_the_edge_after_a_cold_start():
    """While the rod lies along the valley, nothing is left of the sharp direction."""
    cold = run("T2cold", lambda loss, h: rod_flow(loss, h, substeps=4), halfway)
    np.testing.assert_allclose(cold.sharpness.max(), 2.851, atol=2e-3)


def test_a_few_factors_do():
    """All of Σ, and what is left of it in four: of 10 parameters and of 2."""
    params, h = mixed_params(), 0.4
    ends = [
        pfcore.integrate(
            rod_flow(mixed_loss, h, rank=rank), params, h * np.arange(1.0, 21.0)
        ).params
        for rank in (None, 10, 99, 6)
    ]
    for end in ends[1:3]:
        np.testing.assert_array_equal(flatten(end), flatten(ends[0]))
    np.testing.assert_allclose(flatten(ends[3]), flatten(ends[0]), rtol=1e-3, atol=1e-4)
    assert rod_flow(TOYS["T2"].loss, 0.3, rank=None).init(jnp.ones(2)).factors.shape == (2, 2)


def test_batches_over_learning_rates():
    loss, _, start, _ = TOYS["T2"]

    def end(h):
        return pfcore.integrate(rod_flow(loss, h), jnp.array(start), h * jnp.arange(1.0, 11.0))

    rates = jnp.array([0.2, 0.3])
    batched = jax.jit(jax.vmap(end))(rates)
    for i, h in enumerate(rates):
        single = end(h)
        np.testing.assert_allclose(batched.params[i], single.params, rtol=1e-9)
        np.testing.assert_allclose(batched.expected_loss[i], single.expected_loss, rtol=1e-9)


def test_refuses_wrong_options():
    with pytest.raises(ValueError, match=r"rank.*0"):
        rod_flow(mixed_loss, 0.1, rank=0)
    with pytest.raises(TypeError, match=r"rank.*2\.5"):
        rod_flow(mixed_loss, 0.1, rank=2.5)
    with pytest.raises(ValueError, match=r"substeps.*0"):
        rod_flow(mixed_loss, 0.1, substeps=0)
