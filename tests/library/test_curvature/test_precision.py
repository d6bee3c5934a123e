"""The precision of products of float32 matrices, which JAX lowers on a GPU and on a TPU."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import pfcore
from pfcore import _programs, curvature, flows

KEY = jax.random.key(0)
TIMES = jnp.array([0.0, 0.1])


@pytest.fixture(scope="module")
def network():
    model = pfcore.networks.ConvNet((8, 8, 1), (2,), 10, rngs=nnx.Rngs(0))
    digits = pfcore.datasets.load("digits")
    inputs = digits.train_inputs[:8].reshape(-1, 8, 8, 1)
    return pfcore.losses.full_batch(model, inputs, digits.train_targets[:8], kind="mse")


def tracked(loss, params):
    tracker = curvature.tracker(loss, 2)
    return tracker.update(params, tracker.init(params, KEY))


def integrated(flow):
    return lambda loss, params: pfcore.integrate(flow(loss), params, TIMES)


ROUTINES = {
    "hvp": lambda loss, params: curvature.hvp(loss, params, params),
    "linearized_hvp": lambda loss, params: curvature.linearized_hvp(loss, params)[1](params),
    "top_eigenpairs": lambda loss, params: curvature.top_eigenpairs(loss, params, 2, key=KEY),
    "tracker": tracked,
    "spectral_density": lambda loss, params: curvature.spectral_density(loss, params, key=KEY),
    "spectrum": curvature.spectrum,
    "trace": lambda loss, params: curvature.trace(loss, params, key=KEY, num_probes=2),
    "xtrace": lambda loss, params: curvature.trace(
        loss, params, key=KEY, num_probes=2, method="xtrace"
    ),
    "diagonal": lambda loss, params: curvature.diagonal(loss, params, key=KEY, num_probes=2),
    "function_product": lambda loss, params: curvature.function_product(
        jnp.exp, loss, params, params
    ),
    "directional_sharpness": curvature.directional_sharpness,
    "critical_learning_rate": lambda loss, params: curvature.critical_learning_rate(
        loss, params, jax.tree.map(jnp.negative, params)
    ),
    "gradient_descent": lambda loss, params: pfcore.gradient_descent(loss, params, 0.1, 2),
    "gradient flow": integrated(flows.negative_gradient_flow),
    "principal flow": integrated(lambda loss: flows.principal_flow(loss, 0.1, depth=4)),
    "central flow": integrated(lambda loss: flows.central_flow(loss, 0.1)),
}


def formats(jaxpr):
    """The precisions of all products of matrices and convolutions."""
    products = [
        equation.params["precision"]
        for equation in _programs.equations(jaxpr.jaxpr)
        if equation.primitive.name in ("dot_general", "conv_general_dilated")
    ]
    assert products
    return set(products)


@pytest.mark.parametrize("name", ROUTINES)
def test_products_are_in_full_precision_unless_another_is_chosen(name, network):
    loss, params = network
    highest = (jax.lax.Precision.HIGHEST,) * 2
    assert formats(jax.make_jaxpr(loss)(params)) == {None}
    traced = jax.make_jaxpr(lambda params: ROUTINES[name](loss, params))
    assert formats(traced(params)) == {highest}


def test_outside_compiled_functions_too(network):
    loss, params = network
    program = _programs.trace(jax.grad(loss), params)
    assert formats(program.code) == {(jax.lax.Precision.HIGHEST,) * 2}


def test_a_precision_that_is_chosen_is_kept(network):
    loss, params = network
    with jax.default_matmul_precision("tensorfloat32"):
        found = formats(jax.make_jaxpr(lambda p: curvature.hvp(loss, p, p))(params))
    assert found == {(jax.lax.Precision.HIGH,) * 2}


@pytest.mark.parametrize(
    "backend, chosen, expected",
    [
        ("cpu", "tensorfloat32", 2.0**-23),
        ("gpu", None, 2.0**-23),
        ("gpu", "float32", 2.0**-23),
        ("gpu", "default", 2.0**-10),
        ("gpu", "tensorfloat32", 2.0**-10),
        ("gpu", "BF16_BF16_F32", 2.0**-7),
        ("tpu", "default", 2.0**-7),
        ("tpu", "highest", 2.0**-23),
    ],
)
def test_machine_epsilon_is_that_of_the_products(monkeypatch, backend, chosen, expected):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    with jax.default_matmul_precision(chosen):
        assert _programs.machine_epsilon(jnp.float32) == expected
        assert _programs.machine_epsilon(jnp.float64) == 2.0**-52
