import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pfcore
from tests.conftest import flatten, flatten_path, mixed_loss, mixed_params

pytestmark = pytest.mark.usefixtures("x64")


def test_equals_a_plain_loop():
    params, h = mixed_params(), 0.3
    path = pfcore.gradient_descent(mixed_loss, params, h, 7)
    expected = [params]
    for _ in range(7):
        g = jax.grad(mixed_loss)(expected[-1])
        expected.append(jax.tree.map(lambda p, g: p - h * g, expected[-1], g))
    stacked = jax.tree.map(lambda *steps: jnp.stack(steps), *expected)
    np.testing.assert_allclose(flatten_path(path), flatten_path(stacked), rtol=1e-13)


def test_closed_form_on_a_quadratic():
    path = pfcore.gradient_descent(pfcore.objectives.quadratic, jnp.array([1.0, 1.0]), 0.9, 20)
    factors = 1 - 0.9 * np.array([2.0, 0.02])
    np.testing.assert_allclose(path, factors ** np.arange(21)[:, None], rtol=1e-12)


def test_no_steps_returns_the_start():
    path = pfcore.gradient_descent(mixed_loss, mixed_params(), 0.1, 0)
    assert jax.tree.map(jnp.shape, path)["w"] == (1, 2, 3)


@pytest.mark.parametrize("num_steps", [0, 7])
def test_the_last_iterate_alone(num_steps):
    path = pfcore.gradient_descent(mixed_loss, mixed_params(), 0.3, num_steps)
    last = pfcore.gradient_descent(mixed_loss, mixed_params(), 0.3, num_steps, keep_path=False)
    np.testing.assert_array_equal(flatten(last), flatten_path(path)[-1])


def test_divergence_is_visible():
    path = pfcore.gradient_descent(pfcore.objectives.banana, jnp.array([1.0, 2.0]), 1.0, 20)
    assert not np.all(np.isfinite(path))


def test_vmap_over_learning_rates():
    rates = jnp.array([0.1, 0.2])
    start = jnp.array([1.0, 1.0])
    quadratic = pfcore.objectives.quadratic
    paths = jax.vmap(lambda h: pfcore.gradient_descent(quadratic, start, h, 3))(rates)
    for h, path in zip(rates, paths, strict=True):
        np.testing.assert_allclose(path, pfcore.gradient_descent(quadratic, start, h, 3))


def test_compiled_once_for_all_learning_rates():
    traces = 0

    def loss(x):
        nonlocal traces
        traces += 1
        return jnp.sum(x**2)

    pfcore.gradient_descent(loss, jnp.ones(2), 0.1, 5)
    before = traces
    pfcore.gradient_descent(loss, jnp.zeros(2), 0.7, 5)
    # The check and the gradient trace the loss again, since it may read data that have changed;
    # compiled code does not.
    assert traces - before <= 2


def test_keeps_float32():
    path = pfcore.gradient_descent(lambda x: jnp.sum(x**2), jnp.ones(2, jnp.float32), 0.1, 2)
    assert path.dtype == jnp.float32


@pytest.mark.parametrize("h", [0.0, -0.1, float("nan"), float("inf")])
def test_rejects_invalid_learning_rates(h):
    with pytest.raises(ValueError, match="learning_rate"):
        pfcore.gradient_descent(mixed_loss, mixed_params(), h, 1)


def test_rejects_arrays_and_strings_as_learning_rate():
    with pytest.raises(ValueError, match="vmap"):
        pfcore.gradient_descent(mixed_loss, mixed_params(), jnp.array([0.1, 0.2]), 1)
    with pytest.raises(TypeError, match="fast"):
        pfcore.gradient_descent(mixed_loss, mixed_params(), "fast", 1)


def test_rejects_wrong_params_and_losses():
    loss = lambda x: jnp.sum(x**2)  # noqa: E731
    with pytest.raises(TypeError, match="int"):
        pfcore.gradient_descent(loss, jnp.arange(3), 0.1, 1)
    with pytest.raises(ValueError, match="no numbers"):
        pfcore.gradient_descent(loss, {}, 0.1, 1)
    with pytest.raises(ValueError, match=r"\(3,\)"):
        pfcore.gradient_descent(lambda x: x**2, jnp.ones(3), 0.1, 1)
    with pytest.raises(ValueError, match="nan"):
        pfcore.gradient_descent(lambda x: jnp.sum(jnp.log(x)), -jnp.ones(3), 0.1, 1)
    with pytest.raises(ValueError, match="-1"):
        pfcore.gradient_descent(loss, jnp.ones(3), 0.1, -1)
    with pytest.raises(TypeError, match=r"2\.5"):
        pfcore.gradient_descent(loss, jnp.ones(3), 0.1, 2.5)
    with pytest.raises(TypeError, match="loss"):
        pfcore.gradient_descent(3.0, jnp.ones(3), 0.1, 1)
