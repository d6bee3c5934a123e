"""Sharpness along a direction: dense quotients, closed forms, and the loss itself along a step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pfcore import curvature
from tests.conftest import flatten, mixed_loss, mixed_params

KEY = jax.random.key(0)


def negative(tree):
    return jax.tree.map(jnp.negative, tree)


# ---- the quadratic model


@pytest.mark.usefixtures("x64")
def test_quotients_are_those_of_the_dense_hessian():
    params = mixed_params()
    hessian = np.asarray(
        jax.vmap(lambda v: jax.jvp(jax.grad(flat_loss), (flat_params(),), (v,))[1])(jnp.eye(10))
    )
    g = flatten(jax.grad(mixed_loss)(params))
    along = curvature.directional_sharpness(mixed_loss, params)
    quotient = g @ hessian @ g / (g @ g)
    assert float(along.value) == pytest.approx(quotient, rel=1e-12)
    assert float(along.critical_learning_rate) == pytest.approx(2 / quotient, rel=1e-12)
    assert 0 < float(along.rounding) < 1e-12
    # Any update, of any length; within a compiled function.
    update = jax.tree.map(lambda x: 100 * jnp.cos(3 * x), params)
    u = flatten(update)
    found = jax.jit(curvature.directional_sharpness, static_argnums=0)(mixed_loss, params, update)
    assert float(found.value) == pytest.approx(u @ hessian @ u / (u @ u), rel=1e-12)
    expected = 2 * -(g @ u) / (u @ hessian @ u) if u @ hessian @ u > 0 else np.inf
    assert float(found.critical_learning_rate) == pytest.approx(expected, rel=1e-12)


def flat_loss(x):
    return mixed_loss(jax.flatten_util.ravel_pytree(mixed_params())[1](x))


def flat_params():
    return jax.flatten_util.ravel_pytree(mixed_params())[0]


def test_preconditioned_gradient_has_the_quotient_of_its_update():
    """For the update −P⁻¹g: uᵀHu / (−gᵀu), which is to be compared with 2/h."""
    weights, scale = jnp.asarray([5.0, 1.0, 0.2]), jnp.asarray([0.3, 1.0, 2.0])
    x = jnp.asarray([1.0, -2.0, 3.0])

    def loss(x):
        return jnp.sum(weights * x**2) / 2 + jnp.prod(x)

    g, hessian = jax.grad(loss)(x), jax.hessian(loss)(x)
    u = -(scale**2) * g
    found = curvature.directional_sharpness(curvature.preconditioned(loss, scale), x)
    assert float(found.value) == pytest.approx(float(u @ hessian @ u / -(g @ u)), rel=1e-5)
    plain = curvature.directional_sharpness(loss, x, u)
    expected = float(plain.critical_learning_rate)
    assert float(found.critical_learning_rate) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("unit", [1e-30, 1e30])
def test_quotients_do_not_depend_on_the_unit(unit):
    loss = lambda x: jnp.float32(unit) * jnp.sum(jnp.asarray([3.0, 1.0]) * x**2) / 2  # noqa: E731
    x = jnp.asarray([1.0, 0.0])
    found = curvature.directional_sharpness(loss, x)
    assert float(found.value) / unit == pytest.approx(3, rel=1e-5)
    assert float(found.critical_learning_rate) * unit == pytest.approx(2 / 3, rel=1e-5)


def test_directions_without_a_quotient():
    at_rest = curvature.directional_sharpness(lambda x: jnp.sum(x**2), jnp.zeros(2))
    assert np.isnan(at_rest.value) and np.isnan(at_rest.critical_learning_rate)
    along = curvature.directional_sharpness(lambda x: -jnp.sum(x**2), jnp.ones(2))
    assert float(along.value) == pytest.approx(-2) and np.isinf(along.critical_learning_rate)
    uphill = curvature.directional_sharpness(lambda x: jnp.sum(x**2), jnp.ones(2), jnp.ones(2))
    assert float(uphill.critical_learning_rate) == pytest.approx(-2)
    with pytest.raises(ValueError, match=r"update has shape \(3,\)"):
        curvature.directional_sharpness(lambda x: jnp.sum(x**2), jnp.ones(2), jnp.ones(3))


def test_curvature_without_a_gradient_has_no_critical_rate():
    """None, and not NaN, which JAX may be asked to stop at; within compiled functions, too."""
    matrix = curvature.symmetric(lambda x, v: jnp.asarray([3.0, 1.0]) * v)
    x = jnp.asarray([2.0, 0.0])
    for found in (
        curvature.directional_sharpness(matrix, x, x),
        jax.jit(lambda x: curvature.directional_sharpness(matrix, x, x))(x),
    ):
        assert found.critical_learning_rate is None
        assert float(found.value) == pytest.approx(3) and float(found.rounding) > 0


# ---- the loss along a step

WEIGHTS = jnp.asarray([8.0, 3.0, 1.0])


def bowl(x):
    return jnp.sum(WEIGHTS * x**2) / 2


@pytest.mark.parametrize("start", [1.0, 1e-6, 1e6])
@pytest.mark.parametrize("tolerance", [0.0625, 1e-3])
def test_critical_rate_of_a_quadratic(start, tolerance):
    """Where the model is exact: 2 gᵀg / gᵀHg, which is 2/λ₀ along the top eigenvector."""
    for x in (jnp.asarray([0.7, 0.0, 0.0]), jnp.asarray([0.3, -1.2, 2.0])):
        g = jax.grad(bowl)(x)
        exact = float(2 * g @ g / (g @ (WEIGHTS * g)))
        found = curvature.critical_learning_rate(bowl, x, -g, start=start, tolerance=tolerance)
        assert bool(found.found) and bool(found.converged)
        assert float(found.lower) <= exact * (1 + 1e-5) and exact <= float(found.upper) * (1 + 1e-5)
        assert float(found.upper - found.lower) <= tolerance * float(found.upper)
        assert float(found.sharpness) == pytest.approx(2 / exact, rel=tolerance)
        # A doubling for each power of two between, and a halving for each of the width.
        doublings = abs(np.log2(start / exact)) + np.log2(1 / tolerance)
        assert int(found.num_evaluations) <= doublings + 6


def test_crossing_that_is_hit_exactly():
    """At 1/2 the loss is unchanged: neither lower nor higher."""
    x = jnp.ones(1)
    for start in (1.0, 0.5, 0.25, 2.0):
        found = curvature.critical_learning_rate(lambda x: 2 * x[0] ** 2, x, -4 * x, start=start)
        assert float(found.lower) < 0.5 < float(found.upper) and bool(found.converged)


def test_first_crossing_from_below():
    """Of a loss with a barrier, the one before it, if the search starts below."""

    def barrier(x):
        return -x[0] + 4 * jnp.exp(-10 * (x[0] - 1) ** 2)

    found = curvature.critical_learning_rate(barrier, jnp.zeros(1), jnp.ones(1), start=1e-3)

    def first(h):
        return float(barrier(jnp.asarray([h])) - barrier(jnp.zeros(1)))

    assert first(float(found.lower)) < 0 < first(float(found.upper)) and found.upper < 1


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["plain", "jit"])
def test_losses_that_no_step_raises_or_every_step_does(transform):
    def search(x, u, loss):
        return curvature.critical_learning_rate(loss, x, u)

    one = jnp.ones(2)
    up = transform(lambda x: search(x, x, bowl_of_two))(one)
    assert not bool(up.found) and float(up.lower) == 0 and np.isfinite(up.upper)
    assert np.isnan(up.value) and int(up.num_evaluations) <= 60
    down = transform(lambda x: search(x, -x, lambda x: jnp.sum(x)))(one)
    assert not bool(down.found) and np.isinf(down.upper) and float(down.lower) >= 1
    still = transform(lambda x: search(x, 0 * x, bowl_of_two))(one)
    assert not bool(still.found) and not bool(still.converged)


def bowl_of_two(x):
    return jnp.sum(x**2)


def test_steps_out_of_the_domain_raise_the_loss():
    """NaN past x = 0, and overflow."""
    found = curvature.critical_learning_rate(
        lambda x: jnp.sum(jnp.sqrt(x)), jnp.ones(1), -jnp.ones(1), start=8.0
    )
    assert bool(found.converged) and float(found.lower) <= 1 <= float(found.upper)


def test_pytrees_in_16_bits_and_batches_in_python():
    batches = [jnp.ones((2, 1)), 2 * jnp.ones((2, 1))]
    params = {"w": jnp.ones(1, jnp.bfloat16)}

    def loss(p, batch):
        return jnp.mean((batch @ p["w"].astype(jnp.float32)) ** 2)

    whole = curvature.over_batches(loss, batches)  # 2.5 w²: 2/λ₀ = 0.4
    found = curvature.critical_learning_rate(whole, params, {"w": -5 * jnp.ones(1, jnp.bfloat16)})
    assert float(found.lower) < 0.4 < float(found.upper) and bool(found.converged)


def test_no_critical_learning_rate_where_the_curvature_is_nan():
    found = curvature.directional_sharpness(
        lambda x: jnp.sum(jnp.abs(x) ** 1.5), jnp.array([0.0, 1.0])
    )
    assert np.isnan(found.value) and np.isnan(found.critical_learning_rate)


def test_options_out_of_range():
    x = jnp.ones(3)
    for options, message in (
        ({"start": 0.0}, "start must be positive"),
        ({"tolerance": -1.0}, "tolerance must be positive"),
        ({"max_evaluations": 1}, "must be at least 2"),
    ):
        with pytest.raises(ValueError, match=message):
            curvature.critical_learning_rate(bowl, x, -x, **options)
    few = curvature.critical_learning_rate(bowl, x, -x, start=1e-6, max_evaluations=3)
    assert not bool(few.found) and int(few.num_evaluations) == 3


# ---- mini-batches

RNG = np.random.default_rng(0)
ROWS = RNG.normal(size=(40, 3))


def regression(w, rows):
    return jnp.mean((rows @ w - 1) ** 2) / 2


@pytest.mark.usefixtures("x64")
def test_minibatches_have_the_quotients_of_their_own_hessians():
    w = jnp.asarray([0.5, -1.0, 2.0])
    batches = [ROWS[i : i + 8] for i in range(0, 40, 8)]
    found = curvature.minibatch_sharpness(regression, w, batches)
    bends, squares = [], []
    for rows in batches:
        hessian = rows.T @ rows / len(rows)
        g = rows.T @ (rows @ np.asarray(w) - 1) / len(rows)
        bends.append(g @ hessian @ g)
        squares.append(g @ g)
    bends, squares = np.array(bends), np.array(squares)
    values = bends / squares
    np.testing.assert_allclose(found.values, values, rtol=1e-12)
    np.testing.assert_allclose(found.mean, values.mean(), rtol=1e-12)
    np.testing.assert_allclose(found.standard_deviation, values.std(ddof=1), rtol=1e-10)
    np.testing.assert_allclose(found.standard_error, values.std(ddof=1) / 5**0.5, rtol=1e-10)
    np.testing.assert_allclose(found.ratio, bends.sum() / squares.sum(), rtol=1e-12)
    # The delta method, from covariances.
    x, y, cov = bends.mean(), squares.mean(), np.cov(bends, squares)
    slopes = np.array([1 / y, -x / y**2])
    np.testing.assert_allclose(found.ratio_error, np.sqrt(slopes @ cov @ slopes / 5), rtol=1e-9)
    # A linear model's Gauss-Newton matrix is its Hessian.
    gauss = curvature.gauss_newton(
        lambda w, rows: rows @ w, lambda y, rows: jnp.mean((y - 1) ** 2) / 2
    )
    again = curvature.minibatch_sharpness(gauss, w, iter(batches))
    np.testing.assert_allclose(again.values, found.values, rtol=1e-10)
    called = curvature.minibatch_sharpness(regression, w, lambda: iter(batches))
    np.testing.assert_array_equal(called.values, found.values)
    one = curvature.minibatch_sharpness(regression, w, batches[:1])
    assert np.isnan(one.standard_error) and float(one.mean) == pytest.approx(values[0])
    whole = curvature.directional_sharpness(lambda w: regression(w, ROWS), w)
    only = curvature.minibatch_sharpness(regression, w, [ROWS])
    np.testing.assert_allclose(only.mean, whole.value, rtol=1e-12)


def test_no_batches():
    with pytest.raises(ValueError, match="no batches"):
        curvature.minibatch_sharpness(regression, jnp.ones(3), [])
    with pytest.raises(TypeError, match="iterable of batches, got 3"):
        curvature.minibatch_sharpness(regression, jnp.ones(3), 3)
    with pytest.raises(TypeError, match="got None"):
        curvature.minibatch_sharpness(None, jnp.ones(3), [ROWS])
