"""The precision of products: of float32 matrices, which JAX lowers on a GPU and on a TPU, and of
losses that compute in a coarser format than that of the parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.flatten_util import ravel_pytree

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


def mixed(dtype):
    """The loss of an MLP that multiplies in `dtype`, as networks in mixed precision do."""
    digits = pfcore.datasets.load("digits")
    x = jnp.asarray(digits.train_inputs[:128]).reshape(128, -1)
    y = jnp.asarray(digits.train_targets[:128])

    wide = jnp.float64 if jnp.dtype(dtype) == jnp.float64 else jnp.float32

    def loss(params):
        hidden = jnp.tanh(x.astype(dtype) @ params["w"].astype(dtype) + params["b"].astype(dtype))
        outputs = (hidden @ params["out"].astype(dtype)).astype(wide)
        return -jnp.mean(jax.nn.log_softmax(outputs)[jnp.arange(128), y])

    return loss


@pytest.fixture(scope="module")
def weights():
    keys = jax.random.split(KEY, 2)
    w = jax.random.normal(keys[0], (64, 8)) / 8
    return {"w": w, "b": jnp.zeros(8), "out": jax.random.normal(keys[1], (8, 10)) / 3}


def exact(weights, x64):
    """The Hessian in double precision, and the parameters there."""
    doubled = jax.tree.map(lambda x: x.astype(jnp.float64), weights)
    flat, unravel = ravel_pytree(doubled)
    return jax.hessian(lambda p: mixed(jnp.float64)(unravel(p)))(flat)


def flat64(tree):
    return np.asarray(ravel_pytree(tree)[0], np.float64)


@pytest.mark.parametrize(
    "dtype, way",
    [
        ("bfloat16", "alone"),
        ("float16", "alone"),
        ("float32", "alone"),
        ("bfloat16", "in a compiled function"),
        ("float16", "watched"),
        ("float16", "over batches"),
        ("float32", "over batches"),
    ],
)
def test_residuals_include_the_rounding_of_a_loss_in_mixed_precision(weights, dtype, way, x64):
    loss, hessian = mixed(dtype), exact(weights, x64)

    def search(params):
        of = {
            "watched": curvature.watched(loss, lambda count: None),
            "over batches": curvature.over_batches(
                lambda params, batch: loss(params), [np.zeros(1)]
            ),
        }.get(way, loss)
        return curvature.top_eigenpairs(of, params, 2, key=KEY)

    found = (jax.jit(search) if way.startswith("in ") else search)(weights)
    vectors = np.asarray(jax.vmap(lambda tree: ravel_pytree(tree)[0])(found.vectors), np.float64)
    values = np.asarray(found.values, np.float64)
    true = np.linalg.norm(vectors @ hessian - values[:, None] * vectors, axis=1)
    assert (np.asarray(found.residuals) >= true).all()
    narrow = dtype != "float32"
    assert bool(found.converged.any()) != narrow
    assert not narrow or int(found.num_products) < 60  # ends where rounding error does


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_every_error_includes_the_rounding_of_a_loss_in_mixed_precision(weights, dtype, x64):
    loss, hessian = mixed(dtype), exact(weights, x64)
    vector = jax.tree.map(jnp.ones_like, weights)
    start, scale = flat64(vector), np.linalg.norm(hessian, 2)
    options = {"key": KEY, "num_probes": 30}

    found = curvature.function_product(jnp.exp, loss, weights, vector)
    values, vectors = np.linalg.eigh(hessian)
    expected = vectors @ (np.exp(values) * (vectors.T @ start))
    assert np.linalg.norm(flat64(found.value) - expected) <= float(found.error)

    found = curvature.directional_sharpness(loss, weights, vector)
    expected = start @ hessian @ start / (start @ start)
    assert abs(float(found.value) - expected) <= float(found.rounding)
    assert float(found.rounding) > float(jnp.finfo(dtype).eps) * abs(expected)

    found = curvature.trace(loss, weights, **options)
    assert abs(float(found.mean) - np.trace(hessian)) <= 3 * float(found.standard_error)
    exactly = curvature.trace(mixed("float32"), weights, **options)
    assert abs(float(found.mean - exactly.mean)) <= float(found.standard_error)

    found = curvature.spectral_density(loss, weights, **options)
    assert bool(found.symmetric.all())
    assert float(found.rounding.min()) > 0.1 * float(jnp.finfo(dtype).eps) * scale
    tracker = curvature.tracker(loss, 2)
    state = tracker.update(weights, tracker.init(weights, KEY))
    assert not bool(state.pairs.converged.any())


def test_a_single_precision_loss_of_double_precision_parameters(weights, x64):
    """Its error is that of single precision."""
    doubled = jax.tree.map(lambda x: x.astype(jnp.float64), weights)
    found = curvature.top_eigenpairs(mixed(jnp.float32), doubled, 1, key=KEY, tolerance=1e-9)
    assert float(found.residuals[0] / found.values[0]) > float(jnp.finfo(jnp.float32).eps)
    assert not bool(found.converged[0])
    assert int(found.num_products) < 60


def test_formats_do_not_leak_to_the_next_call(weights):
    curvature.top_eigenpairs(mixed("bfloat16"), weights, 1, key=KEY)
    assert _programs.machine_epsilon(jnp.float32) == 2.0**-23
    assert bool(curvature.top_eigenpairs(mixed("float32"), weights, 1, key=KEY).converged[0])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_critical_learning_rate_of_a_loss_in_mixed_precision(dtype, x64):
    """Close to the minimum the rounding of the loss hides where it rises."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(64, 8))
    targets = inputs @ rng.normal(size=8) + rng.normal(size=64)
    hessian, best = inputs.T @ inputs / 64, np.linalg.lstsq(inputs, targets)[0]

    def loss(w):
        outputs = (jnp.asarray(inputs, dtype) @ w.astype(dtype)).astype(jnp.float32)
        return jnp.mean((outputs - jnp.asarray(targets, jnp.float32)) ** 2) / 2

    resolved = []
    for distance in (0.3, 0.1, 0.03, 0.01):
        for seed in range(3):
            apart = distance * np.random.default_rng(5 + seed).normal(size=8)
            g = hessian @ apart
            critical = 2 * g @ g / (g @ hessian @ g)
            found = curvature.critical_learning_rate(
                loss, jnp.asarray(best + apart, jnp.float32), jnp.asarray(-g, jnp.float32)
            )
            assert float(found.lower) <= critical <= float(found.upper), (distance, seed)
            resolved.append(bool(found.converged))
    assert any(resolved[:3]) and not any(resolved[-3:])
