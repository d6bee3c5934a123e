import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pfcore
from pfcore.flows import EdgeState, Flow, edge_flow
from tests.conftest import flatten, flatten_path, mixed_loss, mixed_params
from tests.library.test_flows.edge_toys import TOYS, halfway, run

pytestmark = pytest.mark.usefixtures("x64")


def secant(loss, h):
    return edge_flow(loss, h, curvature="secant")


def test_starts_with_the_sharpest_part_of_the_first_step():
    params, h = mixed_params(), 0.3
    flow = edge_flow(mixed_loss, h)
    state = flow.init(params)
    assert isinstance(flow, Flow) and isinstance(state, EdgeState)
    first, second = flatten_path(pfcore.gradient_descent(mixed_loss, params, h, 1))
    centre = flatten(flow.position(state))
    np.testing.assert_allclose(centre, (first + second) / 2, rtol=1e-12)
    _, unravel = jax.flatten_util.ravel_pytree(params)
    hessian = jax.hessian(lambda x: mixed_loss(unravel(x)))(jnp.asarray(centre))
    top = np.linalg.eigh(hessian)[1][:, -1]
    expected = top * (top @ (first - second) / 2)
    np.testing.assert_allclose(flatten(flow.oscillation(state)), expected, rtol=1e-3, atol=1e-6)
    ends = [mixed_loss(unravel(jnp.asarray(centre + s * expected))) for s in (1, -1)]
    np.testing.assert_allclose(flow.expected_loss(state), np.mean(ends), rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(flatten(state.direction)), 1, rtol=1e-12)


@pytest.mark.parametrize("curvature", ["centre", "secant"])
@pytest.mark.parametrize("growth", ["log", "linear"])
def test_field_is_the_formula_of_dense_matrices(curvature, growth):
    params, h = mixed_params(), 0.3
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    along = lambda x: mixed_loss(unravel(x))  # noqa: E731
    grad, hessian = jax.jit(jax.grad(along)), jax.jit(jax.hessian(along))
    rng = np.random.default_rng(0)
    u = rng.normal(size=flat.size)
    u /= np.linalg.norm(u)
    rho = 0.2
    flow = edge_flow(mixed_loss, h, curvature=curvature, growth=growth)
    rate = flow.vector_field(0.0, EdgeState(params, unravel(jnp.asarray(u)), jnp.log(rho)))
    ends = flat + rho * u, flat - rho * u
    plus, minus = (np.asarray(grad(x)) for x in ends)
    bent = np.asarray(hessian(flat)) @ u if curvature == "centre" else (plus - minus) / (2 * rho)
    s = u @ bent
    slope = -(plus + minus) / 2
    slope -= h / 8 * np.asarray(hessian(ends[0]) + hessian(ends[1])) @ (plus + minus)
    np.testing.assert_allclose(flatten(rate.centre), slope, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(flatten(rate.direction), bent - s * u, rtol=1e-7, atol=1e-10)
    grown = np.log(abs(1 - h * s)) if growth == "log" else h * s - 2
    np.testing.assert_allclose(rate.log_magnitude, grown / h, rtol=1e-9)


def test_grows_as_gradient_descent_does_on_quadratics():
    """log ρ by log|1 - hλ| in a step, at any size: exactly the oscillation."""
    loss = lambda w: 0.5 * (w[0] ** 2 + 0.1 * w[1] ** 2)  # noqa: E731
    for h in (1.5, 2.0, 2.2):
        path = pfcore.integrate(secant(loss, h), jnp.array([1.0, 1.0]), h * np.arange(6))
        sizes = np.abs(np.asarray(path.oscillation)[:, 0])
        np.testing.assert_allclose(sizes, h / 2 * abs(1 - h) ** np.arange(6), rtol=1e-5)


def test_the_curvature_of_the_centre_has_not():
    """It rests at 2, where gradient descent is beyond, or grows for ever, and says so."""
    two = run("Q2", edge_flow, halfway)
    np.testing.assert_allclose(two.sharpness[-1], 1.99985, atol=1e-4)
    assert abs(two.distance - 0.145) < 0.2 * 0.145
    one = run("Q1", edge_flow, halfway, max_steps=500)
    assert not bool(one.path.completed)
    assert np.nanmax(one.amplitude) > 1  # gradient descent's is 0.447


@pytest.mark.parametrize("make", [edge_flow, secant])
def test_rings_at_the_edge_as_the_reference_does(make):
    for name, peak, when, distance in [("T1", 2.1186, 127, 0.344), ("T2", 2.0791, 185, 0.022)]:
        found = run(name, make, halfway)
        assert abs(found.sharpness.max() - peak) < 0.002
        assert abs(found.sharpness.argmax() - when) <= 2
        assert abs(found.distance - distance) < 0.2 * distance


def test_regrows_from_its_floor():
    """Gradient descent's oscillation dies out to rounding first: peak 2.2747 at 861."""
    cold = run("T2cold", lambda loss, h: edge_flow(loss, h, floor=1e-18), halfway)
    assert abs(cold.sharpness.max() - 2.2744) < 0.002
    assert abs(cold.sharpness.argmax() - 861) <= 2
    assert cold.amplitude.min() >= 1e-18 * (1 - 1e-9)


def test_batches_over_learning_rates_in_single_precision():
    loss, _, start, _ = TOYS["T2"]

    def end(h):
        start32 = jnp.array(start, jnp.float32)
        return pfcore.integrate(
            edge_flow(loss, h), start32, h * jnp.arange(1, 11, dtype=h.dtype), rtol=1e-4
        )

    rates = jnp.array([0.2, 0.3], jnp.float32)
    batched = jax.jit(jax.vmap(end))(rates)
    assert batched.params.dtype == jnp.float32
    np.testing.assert_allclose(batched.params[0], end(rates[0]).params, rtol=1e-4, atol=1e-5)


def test_refuses_wrong_options():
    with pytest.raises(ValueError, match=r"curvature.*'end'"):
        edge_flow(mixed_loss, 0.1, curvature="end")
    with pytest.raises(ValueError, match=r"growth.*'fast'"):
        edge_flow(mixed_loss, 0.1, growth="fast")
    with pytest.raises(TypeError, match=r"floor must be a number, got 'low'"):
        edge_flow(mixed_loss, 0.1, floor="low")
    with pytest.raises(ValueError, match=r"floor.*-1"):
        edge_flow(mixed_loss, 0.1, floor=-1.0)
