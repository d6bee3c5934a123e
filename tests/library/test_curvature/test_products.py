import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pfcore
from pfcore import _programs
from pfcore.curvature.products import flat_product, gradient, hvp, linearized_hvp
from tests.conftest import flatten, mixed_loss, mixed_params, small_network

pytestmark = pytest.mark.usefixtures("x64")


def random_like(params, seed):
    """A random pytree; complex where `params` is."""
    rng = np.random.default_rng(seed)

    def draw(x):
        values = rng.normal(size=x.shape)
        if jnp.iscomplexobj(x):
            values = values + 1j * rng.normal(size=x.shape)
        return jnp.asarray(values, x.dtype)

    return jax.tree.map(draw, params)


def point(state):
    params = mixed_params()
    if state == "real":
        return params
    return jax.tree.map(lambda x, y: jax.lax.complex(x, 0.2 * y), params, random_like(params, 5))


def dense_hessian(loss, params):
    """By differentiating the flattened loss twice, another route than the one tested."""
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    holomorphic = jnp.iscomplexobj(flat)
    return np.asarray(
        jax.jacrev(
            jax.grad(lambda x: loss(unravel(x)), holomorphic=holomorphic), holomorphic=holomorphic
        )(flat)
    )


@pytest.mark.parametrize("state", ["real", "complex"])
def test_product_against_dense(state):
    params = point(state)
    v = random_like(params, 1)
    product = hvp(mixed_loss, params, v)
    assert jax.tree.structure(product) == jax.tree.structure(params)
    assert [x.dtype for x in jax.tree.leaves(product)] == [x.dtype for x in jax.tree.leaves(params)]
    expected = dense_hessian(mixed_loss, params) @ flatten(v)
    np.testing.assert_allclose(flatten(product), expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("state", ["real", "complex"])
def test_symmetry(state):
    """uᵀHv = vᵀHu, without conjugates also at complex parameters."""
    params = point(state)
    u, v = random_like(params, 1), random_like(params, 2)
    left = flatten(u) @ flatten(hvp(mixed_loss, params, v))
    right = flatten(v) @ flatten(hvp(mixed_loss, params, u))
    np.testing.assert_allclose(left, right, rtol=1e-12)


@pytest.mark.parametrize("state, factor", [("real", -1.7), ("complex", 0.4 - 1.1j)])
def test_linearity(state, factor):
    params = point(state)
    u, v = random_like(params, 1), random_like(params, 2)
    combined = hvp(mixed_loss, params, jax.tree.map(lambda x, y: x + factor * y, u, v))
    np.testing.assert_allclose(
        flatten(combined),
        flatten(hvp(mixed_loss, params, u)) + factor * flatten(hvp(mixed_loss, params, v)),
        rtol=1e-12,
        atol=1e-13,
    )


@pytest.mark.parametrize("state", ["real", "complex"])
def test_linearised_once(state):
    params = point(state)
    g, product = linearized_hvp(mixed_loss, params)
    np.testing.assert_allclose(flatten(g), flatten(gradient(mixed_loss, params)), rtol=1e-14)
    for seed in (1, 2):
        v = random_like(params, seed)
        np.testing.assert_allclose(
            flatten(product(v)), flatten(hvp(mixed_loss, params, v)), rtol=1e-12, atol=1e-14
        )


def test_gradient_at_complex_parameters_is_the_derivative_of_the_continuation():
    params, v = point("complex"), random_like(point("complex"), 1)
    step = 1e-5
    ahead, behind = (
        mixed_loss(jax.tree.map(lambda x, y, s=sign: x + s * step * y, params, v))
        for sign in (1, -1)
    )
    difference = (ahead - behind) / (2 * step)
    np.testing.assert_allclose(
        flatten(gradient(mixed_loss, params)) @ flatten(v), difference, rtol=1e-8
    )


def test_product_on_a_network_against_differences_of_gradients():
    loss, params = small_network()
    v = random_like(params, 1)
    step = 1e-5
    ahead, behind = (
        flatten(jax.grad(loss)(jax.tree.map(lambda x, y, s=sign: x + s * step * y, params, v)))
        for sign in (1, -1)
    )
    np.testing.assert_allclose(
        flatten(hvp(loss, params, v)), (ahead - behind) / (2 * step), rtol=1e-6, atol=1e-8
    )


def test_single_precision_is_kept():
    params = mixed_params(jnp.float32)
    product = pfcore.curvature.hvp(mixed_loss, params, random_like(params, 1))
    assert {x.dtype for x in jax.tree.leaves(product)} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize(
    "vector, message",
    [
        ({"w": np.ones(3)}, r"vector\['w'\] has shape \(3,\), but params\['w'\] has \(2,\)"),
        ({"v": np.ones(2)}, r"vector\['w'\] is missing, there is \['v'\]"),
    ],
)
def test_a_vector_of_another_shape_is_refused_by_name(vector, message):
    with pytest.raises(ValueError, match=message):
        hvp(lambda p: jnp.sum(p["w"] ** 3), {"w": jnp.ones(2)}, vector)


def test_a_vector_is_taken_in_the_dtype_of_the_parameters():
    params = {"w": jnp.ones(2, jnp.float32)}
    for dtype in (np.float64, np.int32):
        product = hvp(lambda p: jnp.sum(p["w"] ** 3), params, {"w": np.array([1, 2], dtype)})["w"]
        assert product.dtype == jnp.float32 and product.tolist() == [6.0, 12.0]


def test_leaves_of_a_flat_product_are_not_concatenated():
    """XLA would compute a bias's sum over samples for every entry of the vector."""
    loss, params = small_network()
    for matrix in (loss, pfcore.curvature.gauss_newton(lambda p: p, loss)):
        at = flat_product(matrix, params)
        traced = jax.make_jaxpr(at.product)(at.params)
        names = {e.primitive.name for e in _programs.equations(traced.jaxpr)}
        assert "concatenate" not in names and "dynamic_update_slice" in names
