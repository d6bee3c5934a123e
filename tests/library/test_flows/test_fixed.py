import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pfcore
from pfcore import _programs
from pfcore.flows import edge_flow, fixed_steps, negative_gradient_flow, rod_flow, two_frame_flow


def quartic(w):
    return jnp.sum(1.05 * w**2 - w**4 / 4 + 0.1 * w**3)


@pytest.mark.parametrize(
    ("solver", "order"), [(None, 3), (diffrax.Heun(), 2), (diffrax.Tsit5(), 5)]
)
def test_one_step_is_the_method_s_polynomial(solver, order, x64):
    """On a linear field a method of s = p stages is the Taylor polynomial of its order."""
    rates, step = jnp.array([0.3, 1.0, 2.0]), 0.7
    flow = fixed_steps(
        negative_gradient_flow(lambda w: jnp.sum(rates * w**2) / 2), step, solver=solver
    )
    z = -step * np.asarray(rates)
    taylor = sum(z**k / np.prod(np.arange(1, k + 1)) for k in range(order + 1))
    found = flow.step(step, jnp.ones(3))
    # Tsit5 has six stages: its polynomial has one more term, 1/1,000 of it different.
    np.testing.assert_allclose(
        found, taylor, atol=1e-14 if order < 4 else 2e-3 * np.abs(z**6).max()
    )


def test_error_falls_with_the_order_of_the_method(x64):
    loss, h, start = quartic, 1.0, jnp.array([0.15, -0.1])
    flow = two_frame_flow(loss, h, burn_in=1)
    times = h * np.arange(5)
    exact = pfcore.integrate(flow, start, times, rtol=1e-12, atol=1e-13)
    errors = []
    for parts in (8, 16):
        path = pfcore.integrate(fixed_steps(flow, h / parts), start, times)
        assert bool(path.completed) and int(path.num_steps) == 4 * parts
        errors.append(float(jnp.max(jnp.abs(path.oscillation - exact.oscillation))))
    assert np.log2(errors[0] / errors[1]) == pytest.approx(3, abs=0.4)


def test_stages_are_combined_in_full_precision():
    """As in `test_contract`: no matrix product in the precision that a GPU has by default."""
    flow = fixed_steps(negative_gradient_flow(quartic), 0.5)
    jaxpr = jax.make_jaxpr(flow.step)(0.5, flow.init(jnp.array([0.15, -0.1])))
    highest = (jax.lax.Precision.HIGHEST,) * 2
    for equation in _programs.equations(jaxpr.jaxpr):
        if equation.primitive.name == "dot_general":
            assert equation.params["precision"] == highest


def test_compiles_once_for_data_learning_rates_and_lengths(x64):
    traces = 0

    def on(data):
        def loss(w):
            nonlocal traces
            traces += 1
            return jnp.sum(jnp.cosh(data @ w))

        return loss

    def run(data, h, parts):
        flow = fixed_steps(edge_flow(on(data), h, correction=False), h / parts)
        before = traces
        assert bool(pfcore.integrate(flow, jnp.array([0.3, 0.1]), [0.0, h]).completed)
        return traces - before

    run(jnp.eye(2), 0.1, 1)
    # What is traced again are checks, and the programs that are compared.
    assert run(2.0 * jnp.eye(2), 0.2, 2) <= 12


def test_edge_flow_without_correction_has_two_cycles_at_two_gradients_a_field(x64):
    loss = lambda w: 1.1 * w**2 - w**4 / 4  # noqa: E731
    flow = fixed_steps(edge_flow(loss, 1.0, curvature="secant", correction=False), 1.0)
    path = pfcore.integrate(flow, jnp.array(0.02), [0.0, 80.0])
    assert abs(float(path.oscillation[-1])) == pytest.approx(0.2**0.5, abs=1e-6)
    products = str(
        jax.make_jaxpr(edge_flow(loss, 1.0, curvature="secant", correction=False).vector_field)(
            0.0, flow.init(jnp.array(0.02))
        )
    )
    assert products.count("integer_pow[y=3]") == 2


@pytest.mark.parametrize(
    ("flow", "options", "error", "message"),
    [
        (rod_flow(quartic, 1.0), {}, TypeError, "SteppedFlow"),
        (two_frame_flow(quartic, 1.0), {"solver": diffrax.Kvaerno3()}, TypeError, "explicit"),
        (two_frame_flow(quartic, 1.0), {"length": 0.0}, ValueError, "length must be positive"),
    ],
)
def test_refuses(flow, options, error, message):
    with pytest.raises(error, match=message):
        fixed_steps(flow, **({"length": 0.5} | options))
