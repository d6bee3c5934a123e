import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pfcore
from pfcore import _programs
from pfcore.flows.coefficients import BRANCHES
from pfcore.stability import (
    coefficient,
    drift,
    principal_coefficient,
    regime,
    stability_coefficient,
)
from tests.conftest import flatten, mixed_loss, mixed_params

pytestmark = pytest.mark.usefixtures("x64")


def test_formulas():
    z = np.array([-1.0, 0.5, 3.0])
    np.testing.assert_allclose(coefficient("ngf", z), -np.ones(3))
    np.testing.assert_allclose(coefficient("igr", z), -(1 + z / 2))
    np.testing.assert_allclose(coefficient("third_order", z), -(1 + z / 2 + z**2 / 3))
    np.testing.assert_allclose(coefficient("principal", z), np.log(1 - z + 0j) / z, rtol=1e-14)


def test_principal_is_minus_one_at_zero_and_accurate_nearby():
    z = np.array([0.0, 1e-12, -1e-9, 1e-5])
    series = -(1 + z / 2 + z**2 / 3)
    np.testing.assert_allclose(coefficient("principal", z), series, rtol=1e-15)


def test_principal_on_the_cut_has_positive_argument():
    for z in (2.0, 2.0 + 0.0j, complex(2.0, -0.0)):
        np.testing.assert_allclose(principal_coefficient(z), 0.5j * np.pi, atol=1e-15)


def test_principal_off_the_axis():
    rng = np.random.default_rng(0)
    z = rng.normal(size=50) * 2 + 1j * rng.normal(size=50)
    np.testing.assert_allclose(principal_coefficient(z), np.log(1 - z) / z, rtol=1e-12)
    continued = np.asarray(principal_coefficient(z, branch="continued"))
    # Each branch solves exp(z φ) = 1 − z; the continued one is smooth across z > 1.
    np.testing.assert_allclose(np.exp(z * continued), 1 - z, rtol=1e-12)
    above, below = (principal_coefficient(2.0 + s * 1e-9j, branch="continued") for s in (1, -1))
    np.testing.assert_allclose(above, below, atol=1e-8)


def test_series_of_modified_flows_approaches_principal():
    z = 0.3
    partial = -sum(z**j / (j + 1) for j in range(60))
    np.testing.assert_allclose(coefficient("principal", z), partial, rtol=1e-14)


def test_derivatives_of_principal():
    """First and second, against the series and the quotient; at zero, and where the two meet."""

    def derivative(function):
        return lambda z: jax.jvp(function, (z,), (jnp.ones_like(z),))[1]

    first = derivative(principal_coefficient)
    z = np.array([0.0, 1e-12, -1e-9, 1e-3, -0.12, 0.12, 0.13, -0.3, 0.5])
    k = np.arange(1, 80)[:, None]
    np.testing.assert_allclose(first(z), -np.sum(k / (k + 1) * z ** (k - 1), 0), rtol=1e-14)
    series = -np.sum(k[1:] * (k[1:] - 1) / (k[1:] + 1) * z ** (k[1:] - 2), 0)
    np.testing.assert_allclose(derivative(first)(z), series, rtol=1e-13)
    for branch in BRANCHES:
        z = np.array([-3.0, 0.9, 2.5, 0.05 + 0.02j, 2 + 0.1j, 2 - 0.1j])
        phi = functools.partial(principal_coefficient, branch=branch)
        found = jnp.stack([derivative(phi)(jnp.asarray(x)) for x in z])
        np.testing.assert_allclose(found, -(phi(z) + 1 / (1 - z)) / z, rtol=1e-14)
    assert float(jax.grad(lambda z: principal_coefficient(z).real)(0.0)) == -0.5


def test_infinite_at_one():
    assert np.isneginf(coefficient("principal", 1.0).real)


@pytest.mark.parametrize("flow", ["ngf", "igr", "third_order", "principal"])
def test_energy_rate_is_the_sum_over_eigenvectors(flow):
    """dE/dt = Σ α(hλ_i)(gᵀu_i)² while the state is real, on a quadratic (no third derivatives)."""
    matrix = np.array([[1.0, 0.3], [0.3, -0.5]])
    loss, h = pfcore.objectives.quadratic_form(matrix), 0.4
    make = {
        "ngf": lambda: pfcore.flows.negative_gradient_flow(loss),
        "igr": lambda: pfcore.flows.igr_flow(loss, h),
        "third_order": lambda: pfcore.flows.third_order_flow(loss, h),
        "principal": lambda: pfcore.flows.principal_flow(loss, h),
    }[flow]()
    params = jnp.array([0.7, -1.1])
    rate = make.position(make.vector_field(0.0, make.init(params)))
    g = jax.grad(loss)(params)
    values, vectors = np.linalg.eigh(matrix)
    expected = np.sum(np.real(coefficient(flow, h * values)) * (vectors.T @ g) ** 2)
    np.testing.assert_allclose(g @ rate, expected, rtol=1e-12)


@pytest.mark.parametrize("z", [1.3, 2.0, 2.7])
def test_growth_of_rod_and_edge_type_is_that_of_their_states(z):
    loss = lambda x: jnp.sum(x**2) / 2  # noqa: E731
    rod = pfcore.flows.rod_flow(loss, z, rank=1)
    state = pfcore.flows.RodState(jnp.zeros(1), jnp.array([[0.1]]))
    grown = jnp.log(abs(rod.step(z / 64, state).factors[0, 0]) / 0.1) * 64
    assert float(coefficient("rod", z)) == pytest.approx(float(grown), abs=1e-5)
    edge = pfcore.flows.edge_flow(loss, z)
    state = pfcore.flows.EdgeState(jnp.zeros(1), jnp.ones(1), jnp.array(-1.0))
    rate = z * edge.vector_field(0.0, state).log_magnitude
    assert float(coefficient("edge", z)) == pytest.approx(float(rate))


def test_stability_coefficient_signs():
    h = 0.1
    eigenvalues = np.array([-5.0, 5.0, 15.0, 25.0])
    assert np.all(np.sign(stability_coefficient("principal", h, eigenvalues)) == [1, -1, -1, 1])
    for blind in ("ngf", "igr"):
        assert np.all(stability_coefficient(blind, h, eigenvalues[1:]) < 0)
    assert float(stability_coefficient("principal", h, 0.0)) == 0.0
    assert abs(float(stability_coefficient("principal", h, 20.0))) < 1e-15


def test_regimes():
    assert regime(0.5, -1.0) == "repelling"
    assert regime(0.5, 1.0) == "attracting"
    assert regime(0.5, 3.0) == "attracting, oscillating"
    assert regime(0.5, 5.0) == "repelling, oscillating"
    assert regime(0.5, np.array([[-1.0, 5.0]])).tolist() == [
        ["repelling", "repelling, oscillating"]
    ]


@settings(deadline=None, max_examples=60)
@given(st.floats(-3, 3).filter(lambda z: min(abs(z), abs(z - 1), abs(z - 2)) > 1e-3))
def test_regime_matches_gradient_descent(z):
    loss = pfcore.objectives.quadratic_form([[z]])
    x = np.asarray(pfcore.gradient_descent(loss, jnp.array([1.0]), 1.0, 1))[:, 0]
    name = regime(1.0, z)
    assert ("repelling" in name) == (abs(x[1]) > 1)
    assert ("oscillating" in name) == (x[1] < 0)
    assert (float(stability_coefficient("principal", 1.0, z)) > 0) == ("repelling" in name)


def test_drift_against_dense():
    params = mixed_params()
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    hessian = np.asarray(jax.hessian(lambda x: mixed_loss(unravel(x)))(flat))
    g = flatten(jax.grad(mixed_loss)(params))
    vectors = np.linalg.eigh(hessian)[1].T
    found = drift(mixed_loss, params, jax.vmap(unravel)(jnp.asarray(vectors)))
    np.testing.assert_allclose(found.norm, np.linalg.norm(hessian @ g), rtol=1e-12)
    np.testing.assert_allclose(
        found.relative, np.linalg.norm(hessian @ g) / np.linalg.norm(g), rtol=1e-12
    )
    np.testing.assert_allclose(found.share.sum(), 1.0, rtol=1e-12)
    np.testing.assert_allclose(
        found.share, (vectors @ hessian @ g) ** 2 / found.norm**2, rtol=1e-10, atol=1e-14
    )
    assert drift(mixed_loss, params).share.shape == (0,)


def test_drift_is_computed_in_full_precision():
    """A GPU multiplies matrices in TF32 unless told otherwise."""
    matrix = jnp.diag(jnp.array([3.0, 1.0]))
    jaxpr = jax.make_jaxpr(lambda x: drift(lambda x: jnp.sum((matrix @ x) ** 2), x, matrix / 3))
    products = [
        equation.params["precision"]
        for equation in _programs.equations(jaxpr(jnp.ones(2)).jaxpr)
        if equation.primitive.name == "dot_general"
    ]
    assert len(products) > 3 and set(products) == {(jax.lax.Precision.HIGHEST,) * 2}


def test_drift_is_the_leading_difference_after_one_step():
    """GD − NGF after a step is −(h²/2) H g to leading order."""
    params, h = mixed_params(), 1e-3
    step = pfcore.gradient_descent(mixed_loss, params, h, 1, keep_path=False)
    flow = pfcore.flows.negative_gradient_flow(mixed_loss)
    path = pfcore.integrate(flow, params, [h], rtol=1e-12, atol=1e-14)
    difference = np.linalg.norm(flatten(step) - flatten(path.params))
    assert difference == pytest.approx(h**2 / 2 * float(drift(mixed_loss, params).norm), rel=0.01)


def test_drift_at_a_stationary_point():
    found = drift(pfcore.objectives.quadratic, jnp.zeros(2), jnp.eye(2))
    assert float(found.norm) == 0 and float(found.relative) == 0
    np.testing.assert_array_equal(found.share, [0, 0])


@pytest.mark.parametrize("unit", [1e-12, 1.0, 1e12])
def test_drift_in_any_unit_of_the_loss(unit):
    params = jnp.array([1.0, 0.5], jnp.float32)
    found = drift(lambda x: unit * (x[0] ** 2 + 0.5 * x[1] ** 2), params)
    gradient, image = np.hypot(2, 0.5), np.hypot(4, 0.5)
    np.testing.assert_allclose(float(found.norm) / unit / unit, image, rtol=1e-6)
    np.testing.assert_allclose(float(found.relative) / unit, image / gradient, rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_drift_at_16_bit_parameters_is_computed_in_single_precision(dtype):
    params = jnp.array([1.0, 0.5], dtype)
    found = drift(lambda x: 100 * (x[0] ** 2 + 0.5 * x[1] ** 2), params)
    assert found.norm.dtype == jnp.float32
    np.testing.assert_allclose(found.norm, 1e4 * np.hypot(4, 0.5), rtol=1e-6)


def test_drift_rejects_vectors_of_another_shape():
    with pytest.raises(ValueError, match=r"vectors has shape \(2, 3\)"):
        drift(pfcore.objectives.quadratic, jnp.ones(2), jnp.ones((2, 3)))


@pytest.mark.parametrize("name", ["edge", "rod", "two_frame"])
def test_growth_of_an_oscillation_has_no_sign_of_the_curvature(name):
    found = stability_coefficient(name, 0.5, jnp.array([-1.0, 3.0]))
    np.testing.assert_allclose(found, coefficient(name, jnp.array([-0.5, 1.5])))
    assert float(stability_coefficient("edge", 0.5, -1.0)) == pytest.approx(np.log(1.5))


@pytest.mark.parametrize(
    "h, value, name",
    [(0.1, 10.0, "attracting"), (0.7, 2 / 0.7, "repelling, oscillating"), (0.3, 0.0, "attracting")],
)
def test_regimes_at_their_boundaries(h, value, name):
    assert regime(h, value) == name


def test_principal_coefficient_of_whole_and_of_16_bit_numbers():
    assert complex(pfcore.stability.principal_coefficient(2)) == pytest.approx(np.pi / 2 * 1j)
    found = coefficient("principal", jnp.bfloat16(0.5))
    assert found.dtype == jnp.complex64 and complex(found) == pytest.approx(2 * np.log(0.5))


def test_invalid_arguments_are_rejected():
    with pytest.raises(ValueError, match="'sgd' is unknown"):
        coefficient("sgd", 1.0)
    with pytest.raises(ValueError, match="'central' has no coefficient"):
        coefficient("central", 1.0)
    with pytest.raises(ValueError, match="learning_rate"):
        stability_coefficient("ngf", -1.0, 1.0)
    with pytest.raises(ValueError, match="learning_rate"):
        regime(0.0, 1.0)
    with pytest.raises(ValueError, match="nan"):
        regime(0.1, float("nan"))
