import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pfcore
from pfcore.flows import Flow, igr_flow, negative_gradient_flow

pytestmark = pytest.mark.usefixtures("x64")

QUADRATIC = pfcore.objectives.quadratic
EIGENVALUES = np.array([2.0, 0.02])
START = np.array([1.0, 2.0])


def test_closed_form_of_gradient_flow():
    times = np.array([0.0, 0.1, 1.0, 1.0, 7.5])
    path = pfcore.integrate(negative_gradient_flow(QUADRATIC), START, times)
    np.testing.assert_allclose(
        path.params, np.exp(-np.outer(times, EIGENVALUES)) * START, rtol=2e-6, atol=1e-8
    )
    np.testing.assert_array_equal(path.times, times)
    assert bool(path.completed) and int(path.num_steps) < 40


def test_closed_form_of_igr_flow():
    h, times = 0.3, np.linspace(0.5, 3, 4)
    path = pfcore.integrate(igr_flow(QUADRATIC, h), START, times)
    rates = EIGENVALUES * (1 + h * EIGENVALUES / 2)
    np.testing.assert_allclose(
        path.params, np.exp(-np.outer(times, rates)) * START, rtol=2e-6, atol=1e-8
    )


@pytest.mark.parametrize("rtol", [1e-4, 1e-6, 1e-8, 1e-10])
def test_error_follows_the_tolerance(rtol):
    path = pfcore.integrate(
        negative_gradient_flow(QUADRATIC), START, [1.0, 3.0], rtol=rtol, atol=rtol * 1e-3
    )
    exact = np.exp(-np.outer([1.0, 3.0], EIGENVALUES)) * START
    assert float(jnp.max(jnp.abs(path.params - exact))) < 10 * rtol


def test_time_starts_at_zero_whatever_the_first_time():
    late = pfcore.integrate(negative_gradient_flow(QUADRATIC), START, [2.0])
    both = pfcore.integrate(negative_gradient_flow(QUADRATIC), START, [0.0, 2.0])
    np.testing.assert_allclose(late.params[0], both.params[1], rtol=1e-6)


def test_blow_up_is_reported_and_what_was_reached_is_kept():
    """E = −x⁴/4: x′ = x³ ends at t = 1/2 from x = 1."""
    flow = negative_gradient_flow(lambda x: -jnp.sum(x**4) / 4)
    path = pfcore.integrate(flow, jnp.array([1.0]), [0.0, 0.25, 0.49, 1.0])
    assert not bool(path.completed)
    expected = 1 / np.sqrt(1 - 2 * np.array([0.0, 0.25, 0.49]))
    np.testing.assert_allclose(path.params[:3, 0], expected, rtol=1e-5)
    assert np.isnan(path.params[3, 0])
    assert int(path.num_steps) < 1000


def test_running_out_of_steps_is_reported():
    flow = negative_gradient_flow(lambda x: jnp.sum(jnp.cos(20 * x)))
    path = pfcore.integrate(flow, jnp.array([0.01]), [0.0, 0.001, 10.0], max_steps=12)
    assert not bool(path.completed)
    assert int(path.num_steps) == 12
    assert np.all(np.isfinite(path.params[:2])) and np.isnan(path.params[2, 0])


def test_values_that_stop_being_finite_are_reported():
    """A field that is NaN past x = 0.5."""
    flow = Flow(
        init=lambda p: p,
        vector_field=lambda t, x: jnp.where(x < 0.5, jnp.nan, -jnp.ones_like(x)),
        position=lambda x: x,
    )
    path = pfcore.integrate(flow, jnp.array([1.0]), [0.0, 0.25, 2.0])
    assert not bool(path.completed)
    np.testing.assert_allclose(path.params[:2, 0], [1.0, 0.75], rtol=1e-9)
    assert np.isnan(path.params[2, 0])


def test_any_flow_with_more_state_than_parameters():
    """A flow of the user's own: position and velocity of a spring."""
    spring = Flow(
        init=lambda p: (p, jnp.zeros_like(p)),
        vector_field=lambda t, s: (s[1], -s[0]),
        position=lambda s: s[0],
    )
    path = pfcore.integrate(spring, jnp.array([1.0]), [1.0, 2.0])
    np.testing.assert_allclose(path.params[:, 0], np.cos([1.0, 2.0]), rtol=1e-6)


def test_complex_states():
    """x′ = i x: a rotation; the position is the cosine."""
    rotation = Flow(
        init=lambda p: jax.lax.complex(p, jnp.zeros_like(p)),
        vector_field=lambda t, z: 1j * z,
        position=lambda z: z.real,
    )
    path = pfcore.integrate(rotation, jnp.array([1.0]), np.linspace(0, 10, 11))
    np.testing.assert_allclose(path.params[:, 0], np.cos(np.linspace(0, 10, 11)), atol=1e-5)


def test_other_solvers():
    path = pfcore.integrate(negative_gradient_flow(QUADRATIC), START, [1.0], solver=diffrax.Tsit5())
    np.testing.assert_allclose(path.params[0], np.exp(-EIGENVALUES) * START, rtol=1e-5)


def test_implicit_solvers_for_stiff_flows():
    """Curvatures 1 and 10⁴; the tolerances of the implicit equations are the controller's."""
    curvatures = np.array([1.0, 1e4])
    flow = negative_gradient_flow(lambda x: 0.5 * jnp.sum(curvatures * x**2))
    path = pfcore.integrate(
        flow, jnp.ones(2), [0.5, 1.0], rtol=1e-5, solver=diffrax.Kvaerno5(), max_steps=500
    )
    assert bool(path.completed)
    # Kvaerno5 interpolates within a step to the third order only.
    np.testing.assert_allclose(path.params[:, 0], np.exp([-0.5, -1.0]), rtol=1e-4)
    np.testing.assert_allclose(path.params[1], [np.exp(-1), 0], rtol=1e-5, atol=1e-5)


def test_state_of_many_arrays_and_dtypes():
    """Real and complex arrays, a scalar and an empty array in one state."""
    flow = Flow(
        init=lambda p: {"z": jax.lax.complex(p, -p), "none": jnp.zeros((0, 2)), "s": p[0]},
        vector_field=lambda t, s: {"z": 1j * s["z"], "none": s["none"], "s": -s["s"]},
        position=lambda s: (s["z"].real, s["none"], s["s"]),
    )
    real, none, scalar = pfcore.integrate(flow, jnp.array([1.0, 2.0]), [0.0, 2.0]).params
    np.testing.assert_allclose(real[1], (np.cos(2) + np.sin(2)) * np.array([1, 2]), rtol=1e-6)
    np.testing.assert_allclose(scalar, np.exp([0.0, -2.0]), rtol=1e-6)
    assert none.shape == (2, 0, 2)


def test_compiled_program_calls_nothing_on_the_host():
    """JAX's compilation cache keeps no program that does."""

    def end(x):
        return pfcore.integrate(pfcore.flows.principal_flow(QUADRATIC, 0.9), x, [1.0]).params

    text = jax.jit(end).lower(jnp.asarray(START)).as_text()
    assert "while" in text and "callback" not in text


def test_derivative_through_the_integration():
    def end(x):
        return pfcore.integrate(negative_gradient_flow(QUADRATIC), x, [1.0]).params[0]

    np.testing.assert_allclose(
        jax.jacfwd(end)(jnp.asarray(START)), np.diag(np.exp(-EIGENVALUES)), atol=1e-5
    )


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ([0.0, 2.0, 1.0], "not decrease"),
        ([-1.0, 1.0], "negative"),
        ([], "non-empty"),
        ([[0.0, 1.0]], r"\(1, 2\)"),
        ([0.0, float("nan")], "finite"),
        ([0.0], "past 0"),
    ],
)
def test_refuses_times(times, message):
    with pytest.raises(ValueError, match=message):
        pfcore.integrate(negative_gradient_flow(QUADRATIC), START, times)


@pytest.mark.parametrize("options", [{"rtol": 0.0}, {"atol": -1.0}, {"rtol": float("nan")}])
def test_refuses_tolerances(options):
    with pytest.raises(ValueError, match="tol"):
        pfcore.integrate(negative_gradient_flow(QUADRATIC), START, [1.0], **options)


def test_refuses_max_steps():
    with pytest.raises(ValueError, match="max_steps"):
        pfcore.integrate(negative_gradient_flow(QUADRATIC), START, [1.0], max_steps=0)
