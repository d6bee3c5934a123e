"""The scale of an optimiser against the updates that Optax takes with it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from pfcore import curvature, learning_rates, networks

PARAMS = {"a": jnp.arange(1.0, 4.0), "b": {"c": jnp.ones(2)}}
GRADIENTS = [
    jax.tree.map(lambda x, k=k: x * jnp.cos(k * x + 0.3), PARAMS)  # of all sizes and signs
    for k in range(1, 4)
]


@pytest.fixture(autouse=True)
def _promotion():
    """Optax raises a float to the power of an integer."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def run(optimizer, params=PARAMS):
    """The state after the last gradient, and the update that it gave."""
    state = optimizer.init(params)
    for gradient in GRADIENTS:
        update, state = optimizer.update(gradient, state, params)
    return state, update


def assert_scales(scale, update, rate):
    """update = −rate S² g for the last gradient."""
    for s, u, g in zip(*map(jax.tree.leaves, (scale, update, GRADIENTS[-1])), strict=True):
        np.testing.assert_allclose(-rate * s**2 * g, u, rtol=1e-5)


# Without momentum, so that an update is the preconditioned gradient.
OPTIMIZERS = {
    "Adam": (optax.adam(0.1, b1=0.0), {}),
    "Adam with options": (
        optax.adam(0.1, b1=0.0, b2=0.9, eps=1e-2, eps_root=1e-3),
        {"b2": 0.9, "eps": 1e-2, "eps_root": 1e-3},
    ),
    "RMSProp": (optax.rmsprop(0.1), {}),
    "RMSProp with eps outside": (
        optax.rmsprop(0.1, eps=1e-2, eps_in_sqrt=False),
        {"eps": 1e-2, "eps_in_sqrt": False},
    ),
    "RMSProp without bias": (
        optax.rmsprop(0.1, decay=0.8, bias_correction=True),
        {"decay": 0.8},
    ),
    "AdaGrad": (optax.adagrad(0.1, eps=1e-2), {"eps": 1e-2}),
    "in a chain": (optax.chain(optax.identity(), optax.adam(0.1, b1=0.0)), {}),
    "injected": (
        optax.inject_hyperparams(optax.adam)(0.1, b1=0.0, b2=0.9, eps=1e-2),
        {},
    ),
    "injected RMSProp": (optax.inject_hyperparams(optax.rmsprop)(0.1, eps=1e-2), {}),
    "injected, overridden": (
        optax.inject_hyperparams(optax.adam, static_args="b2")(0.1, b1=0.0, b2=0.9),
        {"b2": 0.9},
    ),
    "guarded": (optax.apply_if_finite(optax.adam(0.1, b1=0.0), 2), {}),
    "accumulated": (
        optax.MultiSteps(optax.adam(0.1, b1=0.0), 1).gradient_transformation(),
        {},
    ),
    "each its own": (
        optax.partition(
            {"one": optax.adam(0.1, b1=0.0), "two": optax.rmsprop(0.1)}, {"a": "one", "b": "two"}
        ),
        {},
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_scale_is_that_of_the_update(name):
    optimizer, options = OPTIMIZERS[name]
    state, update = run(optimizer)
    scale = curvature.optimizer_scale(state, **options)
    assert jax.tree.structure(scale) == jax.tree.structure(PARAMS)
    assert_scales(scale, update, 0.1)
    traced = jax.jit(lambda state: curvature.optimizer_scale(state, **options))(state)
    assert_scales(traced, update, 0.1)


def test_parameters_that_no_state_holds():
    mask = {"a": True, "b": False}
    state, _ = run(optax.masked(optax.adam(0.1), mask))
    whole, _ = run(optax.adam(0.1))
    with pytest.raises(ValueError, match=r"no state has a scale for \['b'\].*rest=0"):
        curvature.optimizer_scale(state)
    scale = curvature.optimizer_scale(state, rest=0)
    np.testing.assert_allclose(scale["a"], curvature.optimizer_scale(whole)["a"])

    def loss(p):
        return jnp.sum(p["a"] ** 4) + jnp.sum(p["b"]["c"] ** 2) * p["a"][0]

    # As if it were frozen: the block of the others, and zeros.
    values = curvature.spectrum(curvature.preconditioned(loss, scale), PARAMS)
    part, rest = curvature.subset(loss, PARAMS, "a")
    block = curvature.spectrum(curvature.preconditioned(part, {"a": scale["a"]}), rest)
    np.testing.assert_allclose(values, [0, 0, *block], rtol=1e-5, atol=1e-6)


def test_gradients_that_were_always_zero_have_no_scale_in_adagrad():
    optimizer = optax.adagrad(0.1, initial_accumulator_value=0.0)
    _, state = optimizer.update(jnp.asarray([0.0, 2.0]), optimizer.init(jnp.ones(2)))
    scale = curvature.optimizer_scale(state)
    np.testing.assert_allclose(scale, [0, 2**-0.5], rtol=1e-5)


def test_state_of_flax():
    model = networks.MLP((2, 3, 1), rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(0.1), wrt=nnx.Param)
    gradient = jax.tree.map(lambda x: x + 1, nnx.state(model, nnx.Param))
    optimizer.update(model, gradient)
    scale = curvature.optimizer_scale(optimizer.opt_state)
    pure = nnx.to_pure_dict(gradient)
    assert jax.tree.structure(scale) == jax.tree.structure(pure)
    for s, g in zip(jax.tree.leaves(scale), jax.tree.leaves(pure), strict=True):
        np.testing.assert_allclose(s, jnp.abs(g) ** -0.5, rtol=1e-5)


def nothing():
    return optax.adam(0.1).init(PARAMS)


@pytest.mark.parametrize(
    "state, options, message",
    [
        (lambda: run(optax.sgd(0.1, momentum=0.9))[0], {}, "only TraceState, EmptyState"),
        (lambda: 3, {}, "only 3"),
        (nothing, {}, "ScaleByAdamState has seen no gradient yet"),
        (
            lambda: run(optax.chain(optax.scale_by_adam(), optax.scale_by_rms()))[0],
            {},
            r"2 states have a scale for \['a'\]",
        ),
        (lambda: run(optax.adam(0.1))[0], {"decay": 0.9}, "decay: not an option of ScaleBy"),
    ],
    ids=["momentum", "number", "at the start", "twice", "option"],
)
def test_states_that_have_no_scale(state, options, message):
    with pytest.raises(ValueError, match=message):
        curvature.optimizer_scale(state(), **options)
    if state is nothing:
        scale = jax.jit(curvature.optimizer_scale)(state())
        assert all(np.all(np.isnan(x)) for x in jax.tree.leaves(scale))


# ---- a curvature as the measure of a learning rate

INPUTS = jnp.linspace(-1, 1, 12).reshape(6, 2)
NETWORK = {"w": jnp.full((2, 3), 0.3) + jnp.arange(6.0).reshape(2, 3) / 10, "v": jnp.ones((3, 1))}


def predict(p):
    return jnp.tanh(INPUTS @ p["w"]) @ p["v"]


def of_outputs(y):
    return jnp.mean((y - INPUTS[:, :1]) ** 2)


MATRIX = curvature.gauss_newton(predict, of_outputs)


def test_sharpness_rate_of_a_curvature():
    optimizer = learning_rates.sharpness_rate(tolerance=1e-4)
    gradient = jax.grad(lambda p: of_outputs(predict(p)))(NETWORK)
    state = optimizer.init(NETWORK)
    top = float(curvature.spectrum(MATRIX, NETWORK)[-1])

    def step(gradient, state, params):
        return optimizer.update(gradient, state, params, loss_fn=MATRIX)

    for each in (step, jax.jit(step)):
        update, new = each(gradient, state, NETWORK)
        assert float(new.curvature) == pytest.approx(top, rel=1e-4)
        np.testing.assert_allclose(update["w"], -2 / top * gradient["w"], rtol=1e-3)


def test_sharpness_rate_of_a_curvature_behind_a_mask_and_over_replicas():
    rules = {"train": learning_rates.sharpness_rate(tolerance=1e-4), "freeze": optax.set_to_zero()}
    optimizer = optax.partition(rules, {"w": "freeze", "v": "train"})
    state = optimizer.init(NETWORK)
    options = {"loss_fn": MATRIX, "full_params": NETWORK}
    _, state = optimizer.update(NETWORK, state, NETWORK, **options)
    block = curvature.spectrum(*curvature.subset(MATRIX, NETWORK, "v"))
    found = state.inner_states["train"].inner_state.curvature
    assert float(found) == pytest.approx(float(block[-1]), rel=1e-4)

    tx = learning_rates.sharpness_rate(tolerance=1e-4, axis_name="replicas")

    def replica(factor):
        matrix = curvature.gauss_newton(predict, lambda y: factor * of_outputs(y))
        return tx.update(NETWORK, tx.init(NETWORK), NETWORK, loss_fn=matrix)[1].curvature

    found = jax.vmap(replica, axis_name="replicas")(jnp.asarray([0.5, 2.5]))
    top = 1.5 * float(curvature.spectrum(MATRIX, NETWORK)[-1])
    np.testing.assert_allclose(found, [top, top], rtol=1e-3)


def test_other_rates_need_a_loss():
    optimizer = learning_rates.dal()
    with pytest.raises(TypeError, match="gauss_newton"):
        optimizer.update(NETWORK, optimizer.init(NETWORK), NETWORK, loss_fn=MATRIX)
