"""Contract tests for every learning rate, and tests of each formula."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

import pfcore
from pfcore import learning_rates
from tests.conftest import flatten, mixed_loss, mixed_params, small_network

METHODS = {
    "dal": learning_rates.dal,
    "dal, finite difference": lambda: learning_rates.dal(product="finite_difference"),
    "dal, every third": lambda: learning_rates.dal(refresh_every=3),
    "dal, smooth": lambda: learning_rates.dal(cap="smooth"),
    "dal, averaged": lambda: learning_rates.dal(cap="smooth", decay=0.9),
    "cdat": learning_rates.cdat,
    "sharpness": learning_rates.sharpness_rate,
}
MOST = 5.0


def quartic(x):
    return jnp.sum(jnp.array([2.0, 0.5, 0.1], x.dtype) * (x**2 + x**4))


def gentle(x):
    """Curvature of at most a half, so that every method's rates are stable on it."""
    return jnp.sum(jnp.array([0.5, 0.3, 0.1], x.dtype) * jnp.log(jnp.cosh(x)))


def one_step(tx, loss, params):
    return tx.update(jax.grad(loss)(params), tx.init(params), params, loss_fn=loss)


@pytest.fixture(params=METHODS, ids=str)
def method(request):
    return METHODS[request.param]


# ---- contract tests


def test_descends_and_reports_its_rate(method):
    params = jnp.array([1.0, -1.0, 0.5])
    updates, state = one_step(method(), quartic, params)
    gradient = jax.grad(quartic)(params)
    np.testing.assert_allclose(updates, -state.learning_rate * gradient, rtol=1e-6)
    assert 0 < state.learning_rate <= MOST and state.curvature > 0 and state.num_updates == 1


def test_structure_and_dtypes_are_kept(method, x64):
    params = mixed_params(jnp.float32)
    updates, state = one_step(method(), mixed_loss, params)
    assert jax.tree.structure(updates) == jax.tree.structure(params)
    for update, leaf in zip(jax.tree.leaves(updates), jax.tree.leaves(params), strict=True):
        assert update.dtype == leaf.dtype and update.shape == leaf.shape
    assert state.learning_rate.dtype == jnp.float32


def test_the_state_keeps_shapes_and_dtypes(method):
    """As scan and checkpoints require: no update changes shapes or dtypes."""
    tx, params = method(), jnp.array([1.0, -1.0, 0.5])
    before = tx.init(params)
    _, after = one_step(tx, quartic, params)
    assert jax.tree.structure(before) == jax.tree.structure(after)
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype


def test_compiles_once_and_scan_equals_a_python_loop(method):
    tx, start = method(), jnp.array([1.0, -1.0, 0.5])
    traced = 0

    def step(params, state):
        nonlocal traced
        traced += 1
        updates, state = tx.update(jax.grad(quartic)(params), state, params, loss_fn=quartic)
        return optax.apply_updates(params, updates), state

    compiled = jax.jit(step)
    params, state = start, tx.init(start)
    rates = []
    for _ in range(7):
        params, state = compiled(params, state)
        rates.append(float(state.learning_rate))
    assert traced == 1

    def body(carry, _):
        carry = step(*carry)
        return carry, carry[1].learning_rate

    _, scanned = jax.jit(lambda p: jax.lax.scan(body, (p, tx.init(p)), length=7))(start)
    np.testing.assert_allclose(scanned, rates, rtol=1e-4)


@pytest.mark.parametrize("missing", ["loss_fn", "params"])
def test_the_error_names_the_missing_argument(method, missing):
    tx, params = method(), jnp.ones(3)
    given = {"params": params, "loss_fn": quartic}
    given[missing] = None
    with pytest.raises(ValueError, match=f"loss_fn=loss.*{missing} is missing"):
        tx.update(
            jax.grad(quartic)(params), tx.init(params), given["params"], loss_fn=given["loss_fn"]
        )


def test_unknown_extras_are_ignored(method):
    tx, params = method(), jnp.ones(3)
    tx.update(jax.grad(quartic)(params), tx.init(params), params, loss_fn=quartic, value=1.0)


def test_a_gradient_of_zero(method):
    updates, state = one_step(method(), quartic, jnp.zeros(3))
    assert np.all(updates == 0) and 0 <= state.learning_rate <= MOST


def test_no_curvature(method):
    updates, state = one_step(method(), lambda x: jnp.sum(x), jnp.ones(3))
    assert 0 < state.learning_rate <= MOST and np.all(np.isfinite(updates))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_values_give_a_zero_update(method, bad):
    tx, params = method(), jnp.array([1.0, -1.0, 0.5])
    update = jax.jit(
        lambda s, factor: tx.update(
            jax.grad(lambda x: factor * quartic(x))(params),
            s,
            params,
            loss_fn=lambda x: factor * quartic(x),
        )
    )
    updates, state = update(tx.init(params), jnp.float32(bad))
    assert state.learning_rate == 0 and np.all(updates == 0)
    # and the next batch works again
    for _ in range(3):
        updates, state = update(state, jnp.float32(1.0))
    assert state.learning_rate > 0 and np.all(np.isfinite(updates))


@pytest.mark.parametrize(
    "around",
    [
        lambda tx: optax.chain(optax.clip_by_global_norm(0.1), tx),
        lambda tx: optax.chain(optax.add_decayed_weights(1e-3), tx),
        lambda tx: optax.MultiSteps(tx, 2),
        lambda tx: optax.chain(tx, optax.scale(0.5)),
    ],
    ids=["clipping", "weight decay", "two steps at a time", "scaled after"],
)
@pytest.mark.parametrize("name", ["dal", "cdat", "sharpness"])
def test_composes_with_optax(name, around):
    tx, params = around(METHODS[name]()), jnp.array([1.0, -1.0, 0.5])
    state = tx.init(params)
    before = gentle(params)

    @jax.jit
    def step(params, state):
        updates, state = tx.update(jax.grad(gentle)(params), state, params, loss_fn=gentle)
        return optax.apply_updates(params, updates), state

    # Optax's MultiSteps counts in integers and divides by them.
    with jax.numpy_dtype_promotion("standard"):
        for _ in range(20):
            params, state = step(params, state)
    assert gentle(params) < before


@pytest.mark.parametrize(
    "scaling",
    [learning_rates.scale_by_dal, learning_rates.scale_by_cdat, learning_rates.scale_by_sharpness],
)
def test_after_momentum(scaling):
    tx = optax.chain(optax.trace(0.5), scaling(), optax.scale(-0.5))
    params = jnp.array([1.0, -1.0, 0.5])
    state, start = tx.init(params), gentle(params)
    update = jax.jit(lambda p, s: tx.update(jax.grad(gentle)(p), s, p, loss_fn=gentle))
    for _ in range(30):
        updates, state = update(params, state)
        params = optax.apply_updates(params, updates)
    assert gentle(params) < 0.3 * start


def test_injected_options_may_change_in_training():
    """inject_hyperparams: the options are then traced numbers in the state."""
    for method, options in (
        (learning_rates.dal, {"power": 1.0, "max_learning_rate": 0.01}),
        (learning_rates.cdat, {"scale": 2.0, "decay": 0.0, "max_learning_rate": 0.01}),
        (learning_rates.sharpness_rate, {"scale": 2.0, "max_learning_rate": 0.01}),
    ):
        tx = optax.inject_hyperparams(method)(**options)
        params = jnp.array([1.0, -1.0, 0.5])
        step = jax.jit(lambda p, s, tx=tx: tx.update(jax.grad(quartic)(p), s, p, loss_fn=quartic))
        _, state = step(params, tx.init(params))
        assert state.inner_state.learning_rate == np.float32(0.01)
        state.hyperparams["max_learning_rate"] = jnp.asarray(0.02)
        _, state = step(params, state)
        assert state.inner_state.learning_rate == np.float32(0.02)


def test_with_flax():
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    x, y = jax.random.normal(jax.random.key(0), (8, 3)), jnp.zeros((8, 2))
    optimizer = nnx.Optimizer(model, learning_rates.dal(max_learning_rate=0.2), wrt=nnx.Param)
    graph, _ = nnx.split(model, nnx.Param)

    def loss(params):
        return jnp.mean((nnx.merge(graph, params)(x) - y) ** 2)

    before = loss(nnx.state(model, nnx.Param))
    for _ in range(20):
        params = nnx.state(model, nnx.Param)
        optimizer.update(model, jax.grad(loss)(params), loss_fn=loss)
    assert loss(nnx.state(model, nnx.Param)) < 0.5 * before


# ---- formulas


def test_dal_against_its_formula(x64):
    loss, params = small_network()
    updates, state = one_step(learning_rates.scale_by_dal(0.7, 100.0), loss, params)
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    hessian = np.asarray(jax.hessian(lambda v: loss(unravel(v)))(flat))
    g = flatten(jax.grad(loss)(params))
    ratio = np.linalg.norm(hessian @ g) / np.linalg.norm(g)
    np.testing.assert_allclose(state.curvature, ratio, rtol=1e-10)
    np.testing.assert_allclose(state.learning_rate, 2 / ratio**0.7, rtol=1e-10)
    np.testing.assert_allclose(flatten(updates), 2 / ratio**0.7 * g, rtol=1e-9)


@pytest.mark.parametrize("power, h_max", [(1.0, 5.0), (0.5, 0.3)])
def test_the_smooth_cap_against_its_formula(power, h_max, x64):
    loss, params = small_network()
    _, state = one_step(learning_rates.dal(power, h_max, cap="smooth"), loss, params)
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    hessian = jax.hessian(lambda x: loss(unravel(x)))(flat)
    gradient = jax.grad(lambda x: loss(unravel(x)))(flat)
    stretch = np.linalg.norm(hessian @ gradient) / np.linalg.norm(gradient)
    expected = h_max / (1 + h_max / 2 * stretch**power)
    np.testing.assert_allclose(state.learning_rate, expected, rtol=1e-10)
    assert expected < min(h_max, 2 / stretch**power)


@pytest.mark.parametrize("scale", [1.0, 1e-200, 1e200])
def test_averages_are_taken_of_both_norms(scale, x64):
    """Against the two averages of dense products, for losses with very different gradients."""
    hessians = [np.diag([1.0, 9.0]), np.diag([4.0, 0.5]), np.diag([0.1, 2.0])]
    tx, decay = learning_rates.scale_by_dal(decay=0.8, max_learning_rate=1e300), 0.8
    params = jnp.array([1.0, 0.3])
    state, above, below = tx.init(params), 0.0, 0.0
    for factor, hessian in zip((1.0, 1e3, 1e-3), hessians, strict=True):
        matrix = factor * scale * hessian

        def loss(x, matrix=matrix):
            return 0.5 * x @ jnp.asarray(matrix) @ x

        gradient = matrix @ params
        _, state = tx.update(jnp.asarray(gradient), state, params, loss_fn=loss)
        with np.errstate(over="ignore", under="ignore"):
            size = np.linalg.norm(hessian @ params) * factor
            above = (
                decay * above + (1 - decay) * np.linalg.norm(hessian @ hessian @ params) * factor**2
            )
        below = decay * below + (1 - decay) * size
        np.testing.assert_allclose(state.curvature, above / below * scale, rtol=1e-10)
        np.testing.assert_allclose(state.learning_rate, 2 / (above / below * scale), rtol=1e-10)


def test_a_bad_batch_leaves_the_average_unchanged():
    tx, params = learning_rates.scale_by_dal(decay=0.9), jnp.array([1.0, -1.0, 0.5])
    good = jax.grad(quartic)(params)
    _, state = tx.update(good, tx.init(params), params, loss_fn=quartic)
    updates, after = tx.update(good * jnp.nan, state, params, loss_fn=quartic)
    assert after.learning_rate == 0 and not np.any(updates)
    assert after.curvature == state.curvature and after.weight == state.weight
    _, again = tx.update(good, after, params, loss_fn=quartic)
    np.testing.assert_allclose(again.curvature, state.curvature, rtol=1e-6)


def test_power_zero_is_a_fixed_rate():
    for most, expected in ((5.0, 2.0), (0.3, 0.3)):
        _, state = one_step(learning_rates.dal(0.0, most), quartic, jnp.array([1.0, -1.0, 0.5]))
        np.testing.assert_allclose(state.learning_rate, expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["scale_by_dal", "scale_by_sharpness", "scale_by_cdat"])
def test_a_bad_batch_between_two_measurements_changes_nothing(name):
    options = {} if name == "scale_by_cdat" else {"refresh_every": 10}
    tx = getattr(learning_rates, name)(**options)
    state, x = tx.init(jnp.ones(1)), jnp.ones(1)
    for count, update in enumerate((8.0, jnp.nan, jnp.inf, 8.0)):
        given = jnp.full(1, update)
        updates, state = tx.update(given, state, x, loss_fn=lambda p: 4 * jnp.sum(p**2))
        if count in (1, 2):
            assert float(updates[0]) == 0 and float(state.learning_rate) == 0
        else:
            assert float(updates[0]) == pytest.approx(8 * float(state.learning_rate))
            assert float(state.learning_rate) == pytest.approx(0.25, rel=1e-3)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("first", [0, 4])
def test_after_a_bad_batch_the_next_update_measures_again(compiled, first):
    """An average is finite even where the last measurement was not."""
    tx = learning_rates.scale_by_dal(decay=0.9, refresh_every=4)

    def step(state, x):
        return tx.update(x, state, jnp.ones(1), loss_fn=lambda p: 4 * jnp.sum(p**2))[1]

    step = jax.jit(step) if compiled else step
    state = tx.init(jnp.ones(1))
    for count in range(first + 3):
        bad = count == first
        state = step(state, jnp.full(1, jnp.nan if bad else 8.0))
        assert float(state.learning_rate) == (0 if bad else pytest.approx(0.25))


@given(
    curvature=st.floats(0.5, 100.0),
    start=st.floats(0.1, 10.0),
    factor=st.floats(0.1, 10.0),
)
@settings(deadline=None, max_examples=6)
def test_one_curved_direction_and_the_scale_of_the_loss(curvature, start, factor):
    """All curvature in one direction: h = 2/λ; c · E: h/c."""

    def loss(x):
        return jnp.float32(0.5 * curvature) * x[0] ** 2

    params = jnp.array([start, 1.0], jnp.float32)
    rates = {}
    for c in (1.0, factor):
        tx = learning_rates.dal(1.0, 1e6)
        _, state = one_step(tx, lambda x, c=c: jnp.float32(c) * loss(x), params)
        rates[c] = float(state.learning_rate)
    np.testing.assert_allclose(rates[1.0], 2 / curvature, rtol=1e-5)
    np.testing.assert_allclose(rates[factor], rates[1.0] / factor, rtol=1e-5)


@given(seed=st.integers(0, 10_000))
@settings(deadline=None, max_examples=6)
def test_dal_never_exceeds_unsmoothed_cdat(seed):
    rng = np.random.default_rng(seed)
    matrix = rng.normal(size=(4, 4))
    hessian = jnp.asarray(matrix + matrix.T, jnp.float32)
    params = jnp.asarray(rng.normal(size=4), jnp.float32)

    def loss(x):
        return 0.5 * x @ hessian @ x

    _, dal = one_step(learning_rates.dal(1.0, 1e6), loss, params)
    _, cdat = one_step(learning_rates.cdat(2.0, 0.0, 1e6), loss, params)
    assert dal.learning_rate <= cdat.learning_rate * 1.0001


def test_exact_and_finite_difference_agree():
    loss, params = small_network(dtype=jnp.float32)
    _, exact = one_step(learning_rates.dal(), loss, params)
    _, difference = one_step(learning_rates.dal(product="finite_difference"), loss, params)
    np.testing.assert_allclose(difference.curvature, exact.curvature, rtol=2e-2)


def test_refresh_every():
    tx = learning_rates.dal(refresh_every=3)
    params = jnp.array([1.0, -1.0, 0.5])
    state = tx.init(params)
    seen = []
    for _ in range(7):
        updates, state = tx.update(jax.grad(quartic)(params), state, params, loss_fn=quartic)
        params = params + 0.1 * updates
        seen.append(float(state.curvature))
    assert seen[0] == seen[1] == seen[2] != seen[3] == seen[4] == seen[5] != seen[6]


def test_cdat_against_its_formula(x64):
    loss, params = small_network()
    tx = learning_rates.scale_by_cdat(1.5, 0.9, 1e6)
    state = tx.init(params)
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    direction = unravel(jnp.linspace(-1.0, 1.0, flat.size))
    g = flatten(jax.grad(loss)(params))
    g = g if g @ flatten(direction) > 0 else -g
    hessian = np.asarray(jax.hessian(lambda v: loss(unravel(v)))(flat))
    u = np.linspace(-1.0, 1.0, flat.size)
    sign = np.sign(u @ flatten(jax.grad(loss)(params)))
    direction = jax.tree.map(lambda x: x * sign, direction)
    _, state = tx.update(direction, state, params, loss_fn=loss)
    slope, bend = abs(u @ g), abs(u @ hessian @ u)
    np.testing.assert_allclose(state.learning_rate, 1.5 * slope / bend, rtol=1e-9)
    np.testing.assert_allclose(state.slope, 0.1 * slope, rtol=1e-9)
    np.testing.assert_allclose(state.curvature, bend / (u @ u), rtol=1e-9)
    # uphill: a slope of zero, smoothed by the average
    _, after = tx.update(jax.tree.map(jnp.negative, direction), state, params, loss_fn=loss)
    expected = 1.5 * 0.09 * slope / (0.09 * bend + 0.1 * bend)
    np.testing.assert_allclose(after.learning_rate, expected, rtol=1e-9)


def test_sharpness_against_the_dense_spectrum(x64):
    loss, params = small_network()
    _, state = one_step(
        learning_rates.scale_by_sharpness(tolerance=1e-6, max_products=200), loss, params
    )
    top = pfcore.curvature.spectrum(loss, params)[-1]
    np.testing.assert_allclose(state.curvature, top, rtol=1e-6)
    assert state.converged and state.num_products <= 200


def test_sharpness_search_is_warm_started(x64):
    loss, params = small_network()
    tx = learning_rates.scale_by_sharpness(tolerance=1e-4, max_products=200)
    grads = jax.grad(loss)(params)
    _, first = tx.update(grads, tx.init(params), params, loss_fn=loss)
    _, second = tx.update(grads, first, params, loss_fn=loss)
    assert second.converged and second.num_products < first.num_products


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: learning_rates.dal(-1.0), "power must be at least 0 and finite, got -1.0"),
        (lambda: learning_rates.dal(1.0, 0.0), "max_learning_rate must be positive"),
        (lambda: learning_rates.dal(product="lanczos"), "got 'lanczos'"),
        (lambda: learning_rates.dal(cap="soft"), "cap must be 'hard' or 'smooth', got 'soft'"),
        (lambda: learning_rates.dal(decay=1.0), "decay must be at least 0 and below 1, got 1.0"),
        (lambda: learning_rates.dal(refresh_every=0), "refresh_every must be at least 1, got 0"),
        (lambda: learning_rates.cdat(0.0), "scale must be positive"),
        (lambda: learning_rates.cdat(2.0, 1.0), "decay must be at least 0 and below 1, got 1.0"),
        (lambda: learning_rates.sharpness_rate(max_products=1), "max_products must be at least 2"),
    ],
)
def test_options_out_of_range_are_rejected(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: learning_rates.dal(power=None), "power must be a number, got None"),
        (lambda: learning_rates.dal(decay="0.9"), "decay must be a number, got '0.9'"),
        (lambda: learning_rates.dal(max_learning_rate="1"), "rate must be a number, got '1'"),
        (lambda: learning_rates.cdat(1j), "scale must be a real number, got 1j"),
    ],
)
def test_options_that_are_no_numbers_are_rejected(call, message):
    with pytest.raises(TypeError, match=message):
        call()
