import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import pfcore
from pfcore.flows import CentralState, SteppedFlow, central, central_flow
from tests.conftest import flatten, mixed_loss, mixed_params
from tests.library.test_flows.edge_toys import TOYS, averaged, digits_at_the_edge, run

pytestmark = pytest.mark.usefixtures("x64")


def one_direction(loss, h):
    return central_flow(loss, h, max_k=1)


def refreshed_each_substep(loss, h):
    return central_flow(loss, h, max_k=1, refresh="substep")


def test_state_is_a_pytree_of_the_parameters():
    params = mixed_params()
    flow = central_flow(mixed_loss, 0.3)
    state = flow.init(params)
    assert isinstance(flow, SteppedFlow) and isinstance(state, CentralState)
    np.testing.assert_array_equal(flatten(flow.position(state)), flatten(params))
    np.testing.assert_array_equal(flatten(flow.oscillation(state)), 0)
    np.testing.assert_allclose(flow.expected_loss(state), mixed_loss(params))
    after = jax.jit(flow.step)(0.3, state)
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
    assert jax.tree.map(jnp.result_type, after) == jax.tree.map(jnp.result_type, state)


def test_third_derivatives_are_those_of_the_dense_hessian():
    params = mixed_params()
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    vectors = np.linalg.qr(np.random.default_rng(0).normal(size=(flat.size, 3)))[0].T
    third = jax.jit(jax.jacfwd(jax.hessian(lambda x: mixed_loss(unravel(x)))))(flat)
    rows, columns, place = central._pairs(3)
    for count in range(4):
        values, slopes = jax.jit(central._bends, static_argnums=0)(
            mixed_loss, params, jnp.asarray(vectors), jnp.int32(count)
        )
        num = count * (count + 1) // 2
        expected = np.einsum("abc,pa,pb->pc", third, vectors[rows], vectors[columns])
        np.testing.assert_allclose(slopes[:num], expected[:num], rtol=1e-9, atol=1e-12)
        np.testing.assert_array_equal(slopes[num:], 0)
        hessian = np.asarray(jax.hessian(lambda x: mixed_loss(unravel(x)))(flat))
        bent = np.einsum("ab,pa,pb->p", hessian, vectors[rows], vectors[columns])
        np.testing.assert_allclose(values[:num], bent[:num], rtol=1e-9, atol=1e-12)
    assert all(place[i, j] == p for p, (i, j) in enumerate(zip(rows, columns, strict=True)))


def test_is_gradient_flow_below_the_edge():
    """Euler's steps of it, where no direction is critical."""
    params, h = mixed_params(), 0.05
    path = pfcore.integrate(central_flow(mixed_loss, h, substeps=3), params, h * np.arange(5))
    euler = pfcore.gradient_descent(mixed_loss, params, h / 3, 12)
    for i in range(5):
        np.testing.assert_allclose(
            flatten(pfcore.paths.at(path.params, i)),
            flatten(pfcore.paths.at(euler, 3 * i)),
            rtol=1e-9,
        )
    np.testing.assert_array_equal(flatten(path.oscillation), 0)


def test_one_direction_has_the_variance_of_the_closed_form():
    """X = max(0, -2⟨∇E, ∇λ⟩ / ‖∇λ‖²) on the edge; there hλ stays 2."""
    one = run("T1", one_direction, averaged)
    np.testing.assert_allclose(one.amplitude[-1] ** 2, 2 * 0.02, rtol=1e-6)
    np.testing.assert_allclose(one.sharpness.max(), 2, atol=1e-6)
    assert abs(one.distance - 0.330) < 0.2 * 0.330


def test_one_direction_has_the_variance_of_the_closed_form_in_a_slanted_valley():
    loss, h, _, _ = TOYS["T2"]
    two = run("T2", central_flow, averaged)
    end = two.path.params[-1]
    top = lambda w: jnp.linalg.eigvalsh(jax.hessian(loss)(w))[-1]  # noqa: E731
    slope, bend = jax.grad(loss)(end), jax.grad(top)(end)
    variance = -2 * slope @ bend / (bend @ bend)
    np.testing.assert_allclose(two.amplitude[-1] ** 2, variance, rtol=1e-2)
    np.testing.assert_allclose(two.amplitude[-1] ** 2, 0.019991, rtol=1e-4)
    np.testing.assert_allclose(two.sharpness[-1], 2, atol=1e-6)
    assert abs(two.distance - 0.102) < 0.2 * 0.102
    # The start is beyond the edge; one step, and it is there.
    assert two.sharpness[0] > 2.005 and np.all(two.sharpness[1:] < 2 + 1e-3)
    assert float(jnp.max(two.path.residual)) < 1e-10
    loss_there = loss(end) + two.amplitude[-1] ** 2 / h
    np.testing.assert_allclose(two.path.expected_loss[-1], loss_there, rtol=1e-9)


def test_rests_on_the_edge_where_gradient_descent_rests_beyond():
    two = run("Q2", one_direction, averaged)
    np.testing.assert_allclose(two.sharpness[-1], 2, atol=1e-4)  # gradient descent's is 31/15
    np.testing.assert_allclose(two.amplitude[-1] ** 2, 0.08, rtol=1e-4)
    assert abs(two.distance - 0.147) < 0.2 * 0.147


def test_meets_the_edge_at_once_after_a_cold_start():
    """It knows no onset: at 2 from 555 on, where gradient descent overshoots until 861."""
    cold = run("T2cold", refreshed_each_substep, averaged)
    assert abs(int(np.argmax(cold.sharpness > 1.9999)) - 555) <= 2
    assert cold.sharpness.max() < 2 + 1e-6


def stepped_by_the_dense_hessian(loss, h, params, num_steps, substeps=4):
    """Central flow where at most one direction is critical, in NumPy."""
    gradient, hessian = jax.jit(jax.grad(loss)), jax.jit(jax.hessian(loss))
    third, path = jax.jit(jax.jacfwd(jax.hessian(loss))), [np.asarray(params)]
    for _ in range(num_steps):
        w = path[-1]
        values, vectors = np.linalg.eigh(hessian(w))
        u, length = vectors[:, -1], h / substeps
        assert h * values[-2] < 1.95
        slope = np.einsum("abc,a,b->c", third(w), u, u) * (h * values[-1] > 1.95)
        for _ in range(substeps):
            g = np.asarray(gradient(w))
            over = u @ np.asarray(hessian(w)) @ u - length * slope @ g - 2 / h
            push = length / 2 * slope @ slope
            w = w - length * (g + slope / 2 * (max(0.0, over / push) if push > 0 else 0.0))
        path.append(w)
    return np.array(path)


def test_sees_at_once_which_direction_overtakes():
    """At the start x has the curvature -0.88 and y 1; three steps on, x is beyond the edge."""
    loss, h, start = pfcore.objectives.double_well, 1.5, jnp.array([0.2, 1.0])
    wanted = stepped_by_the_dense_hessian(loss, h, start, 8)
    assert h * np.linalg.eigvalsh(jax.hessian(loss)(wanted[2]))[-1] > 2.8
    path = pfcore.integrate(central_flow(loss, h), start, h * np.arange(9))
    assert bool(path.completed)
    np.testing.assert_allclose(path.params, wanted, rtol=1e-6, atol=1e-9)


def test_does_not_end_well_on_the_quartic():
    one = run("Q1", central_flow, averaged)
    assert not bool(one.path.completed)
    assert jnp.nanmax(one.path.residual) > 0.5 and "unsolved" in one.path.why


def test_says_where_no_oscillation_keeps_the_curvature_down():
    """The critical direction's curvature is constant: B = 0, A < 0."""
    loss = lambda w: 1.1 * w[0] ** 2 + w[1] ** 4 / 4  # noqa: E731
    path = pfcore.integrate(central_flow(loss, 1.0), jnp.array([0.1, 0.5]), jnp.arange(4.0))
    assert not bool(path.completed)
    assert path.residual[0] == 0 and path.residual[1] > 0.5
    assert np.all(np.isnan(path.residual[2:]))  # no step was taken
    assert "residual" in path.why
    state = central_flow(loss, 1.0).init(jnp.array([0.1, 0.5]))
    assert state.num_critical == 1


def two_valleys(w):
    """Two directions whose curvatures, w[2] and w[3], are both pushed to grow."""
    return (w[2] * w[0] ** 2 + w[3] * w[1] ** 2) / 2 - 0.02 * w[2] - 0.03 * w[3]


@pytest.mark.parametrize("max_k", [1, 2, 4])
def test_several_critical_directions(max_k):
    """Each has the variance of its own valley, if there is room for it."""
    h, start = 0.5, jnp.array([0.05, 0.05, 3.95, 3.9])
    flow = central_flow(two_valleys, h, max_k=max_k)
    state, step = flow.init(start), jax.jit(flow.step)
    for _ in range(60):
        state = step(h, state)
    sharp = h * np.asarray(state.params[2:])
    if max_k == 1:
        assert state.num_critical == 1 and sharp.max() > 2.005  # the other is ignored
        return
    assert state.num_critical == 2
    np.testing.assert_allclose(sharp, 2, atol=1e-8)
    np.testing.assert_allclose(np.trace(state.variance), 2 * (0.02 + 0.03), rtol=1e-6)
    vectors = np.asarray(state.tracker.pairs.vectors)
    # What is off the diagonal is free: the coupling of the directions has no third derivative.
    covariance = vectors.T @ np.asarray(state.variance) @ vectors
    np.testing.assert_allclose(np.diag(covariance), [0.04, 0.06, 0, 0], atol=1e-6)
    # The oscillation is along the largest variance, whatever that coupling is.
    swing, largest = np.asarray(flow.oscillation(state)), np.linalg.eigvalsh(covariance)[-1]
    assert 0.06 - 1e-6 <= largest <= 0.1 + 1e-6
    np.testing.assert_allclose(swing @ swing, largest, rtol=1e-6)
    np.testing.assert_allclose(covariance @ swing, largest * swing, atol=1e-5)


def test_batches_over_learning_rates_in_single_precision():
    loss, _, start, _ = TOYS["T1"]

    def end(h):
        start32 = jnp.array(start, jnp.float32)
        return pfcore.integrate(
            central_flow(loss, h), start32, h * jnp.arange(1, 41, dtype=h.dtype)
        )

    rates = jnp.array([0.45, 0.5], jnp.float32)
    batched = jax.jit(jax.vmap(end))(rates)
    assert batched.params.dtype == jnp.float32
    np.testing.assert_allclose(batched.params[0], end(rates[0]).params, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(rates[1] * batched.params[1, -1, 1], 2, rtol=1e-5)
    np.testing.assert_allclose(jnp.sum(batched.oscillation[1, -1] ** 2), 0.04, rtol=1e-2)


def test_other_data_compile_nothing_new():
    traces = 0

    def make(target):
        def loss(w):
            nonlocal traces
            traces += 1
            return w[1] * (w[0] - target) ** 2 / 2 - 0.02 * w[1]

        return loss

    def steps_of(target):
        start, times = jnp.array([0.1, 3.8]), 0.5 * np.arange(3)
        return pfcore.integrate(one_direction(make(target), 0.5), start, times)

    steps_of(jnp.array(0.0))
    compiled = pfcore._integrate._take_steps._cached._cache_size()
    before = traces
    moved = steps_of(jnp.array(0.01))
    assert pfcore._integrate._take_steps._cached._cache_size() == compiled
    assert bool(moved.completed) and traces > before  # traced, to see that it is the same


@pytest.mark.slow
def test_follows_a_network_at_the_edge():
    """It stays at 2 and predicts the mean loss; it does not ring."""
    network = digits_at_the_edge()
    times = network.h * np.arange(251)
    flow = central_flow(network.loss, network.h)
    path = pfcore.integrate(flow, network.params, times)
    apart, loss_error = network.compare(path, averaged)
    assert bool(path.completed) and float(jnp.max(path.residual)) < 1e-9
    assert apart < 0.03 and loss_error < 0.03
    one = pfcore.curvature.top_eigenpairs(
        network.loss, pfcore.paths.at(path.params, -1), 1, key=jax.random.key(0)
    )
    np.testing.assert_allclose(network.h * one.values[0], 2, atol=1e-4)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_refuses_losses_without_third_derivatives(dtype):
    quadratic = lambda w: jnp.sum(jnp.arange(1.0, 4.0, dtype=w.dtype) * w**2)  # noqa: E731
    with pytest.raises(ValueError, match="third derivative of the loss, which is zero"):
        central_flow(quadratic, 0.1).init(jnp.ones(3, dtype))
    data = pfcore.datasets.load("digits", dtype=np.dtype(dtype))
    for activation in ("relu", "tanh"):
        model = pfcore.networks.MLP(
            (64, 16, 10), activation=activation, param_dtype=dtype, rngs=nnx.Rngs(0)
        )
        loss, params = pfcore.losses.full_batch(
            model, data.train_inputs[:100], data.train_targets[:100], kind="mse"
        )
        if activation == "tanh":
            central._check_third_derivatives(loss, params)
        else:
            with pytest.raises(ValueError, match=r"kinks.*tanh or gelu"):
                central_flow(loss, 0.1).init(params)


def test_refuses_wrong_options():
    for options, message in [
        ({"max_k": 0}, r"max_k.*0"),
        ({"substeps": 0}, r"substeps.*0"),
        ({"threshold": 2.0}, r"threshold.*2\.0"),
        ({"threshold": -1}, r"threshold.*-1"),
        ({"refresh": "never"}, r"refresh.*'never'"),
    ]:
        with pytest.raises(ValueError, match=message):
            central_flow(mixed_loss, 0.1, **options)
    with pytest.raises(TypeError, match=r"max_k.*1\.5"):
        central_flow(mixed_loss, 0.1, max_k=1.5)
