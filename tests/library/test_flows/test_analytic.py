"""Losses that cannot be continued analytically are recognised before anything is integrated."""

import jax
import jax.numpy as jnp
import pytest

import pfcore
from pfcore.flows import principal_flow
from tests.conftest import small_network

pytestmark = pytest.mark.usefixtures("x64")


@pytest.fixture
def jax_promotion():
    """JAX's own softplus and leaky_relu mix dtypes at complex arguments."""
    with jax.numpy_dtype_promotion("standard"):
        yield


ANALYTIC = {
    "polynomial": lambda x: jnp.sum(x**4),
    "tanh": lambda x: jnp.sum(jnp.tanh(x) ** 2),
    "sigmoid": lambda x: jnp.sum(jax.nn.sigmoid(x) ** 2),
    # JAX writes these with a maximum that cancels.
    "softplus": lambda x: jnp.sum(jax.nn.softplus(x) ** 2),
    "logsumexp": lambda x: jax.nn.logsumexp(x),
    "log_softmax": lambda x: -jax.nn.log_softmax(x)[0],
    "exp of cos": lambda x: jnp.sum(jnp.exp(jnp.cos(x))),
}
NOT_ANALYTIC = {
    "relu": lambda x: jnp.sum(jax.nn.relu(x) ** 2),
    "leaky relu": lambda x: jnp.sum(jax.nn.leaky_relu(x) ** 2),
    "abs": lambda x: jnp.sum(jnp.abs(x) ** 3),
    "norm": lambda x: jnp.linalg.norm(x),
    "max": lambda x: jnp.max(x) ** 2,
    "where": lambda x: jnp.sum(jnp.where(x > 0, x**2, 2 * x**2)),
    "real part": lambda x: jnp.sum(x.real**2),
    "conjugate": lambda x: jnp.sum(x * jnp.conj(x) * x),
    "variance": lambda x: jnp.var(x) + jnp.sum(x**4),
    "erf": lambda x: jnp.sum(jax.scipy.special.erf(x)),
    "inside jit and scan": lambda x: jax.lax.scan(
        lambda c, y: (c + jax.jit(jnp.abs)(y).astype(c.dtype), None), jnp.zeros((), x.dtype), x
    )[0],
}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("loss", ANALYTIC.values(), ids=ANALYTIC.keys())
def test_accepts(loss, dtype, jax_promotion):
    principal_flow(loss, 0.1).init(jnp.array([0.5, -1.0, 2.0], dtype))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("loss", NOT_ANALYTIC.values(), ids=NOT_ANALYTIC.keys())
def test_refuses_and_names_the_way_out(loss, dtype, jax_promotion):
    start = jnp.array([0.5, -1.0, 2.0], dtype)
    with pytest.raises(ValueError, match="state='real'"):
        principal_flow(loss, 0.1).init(start)
    principal_flow(loss, 0.1, state="real").init(start)


@pytest.mark.parametrize("kind", ["mse", "cross_entropy"])
@pytest.mark.parametrize("activation", ["tanh", "sigmoid", "softplus"])
def test_accepts_analytic_networks(kind, activation):
    loss, params = small_network(kind, activation)
    principal_flow(loss, 0.1).init(params)


@pytest.mark.parametrize("kind", ["mse", "cross_entropy"])
def test_refuses_relu_networks_before_integrating(kind):
    loss, params = small_network(kind, "relu")
    with pytest.raises(ValueError, match="max"):
        pfcore.integrate(principal_flow(loss, 0.1, depth=5), params, [0.1])


def test_the_same_under_tracing(jax_promotion):
    def completed(loss):
        def run(start):
            return pfcore.integrate(principal_flow(loss, 0.1), start, [0.1]).completed

        return jax.jit(jax.vmap(run))(jnp.ones((2, 3)))

    assert completed(ANALYTIC["softplus"]).tolist() == [True, True]
    with pytest.raises(ValueError, match="state='real'"):
        completed(NOT_ANALYTIC["relu"])


def test_whatever_a_loss_raises_at_complex_params_names_the_way_out():
    def loss(params):
        if jnp.iscomplexobj(params):
            raise RuntimeError("not for complex numbers")
        return jnp.sum(params**2)

    with pytest.raises(ValueError, match=r"not for complex numbers.*state='real'"):
        principal_flow(loss, 0.1).init(jnp.ones(2))
