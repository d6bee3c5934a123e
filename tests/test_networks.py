import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import pfcore
from pfcore.networks import ACTIVATIONS, MLP, ConvNet, num_params

NUMPY = {
    "tanh": np.tanh,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "softplus": lambda x: np.log(1 + np.exp(x)),
    "relu": lambda x: np.maximum(x, 0),
    "identity": lambda x: x,
}


def numpy_forward(model, inputs, activation):
    x = np.asarray(inputs)
    *hidden, last = [(np.asarray(layer.kernel), np.asarray(layer.bias)) for layer in model.layers]
    for kernel, bias in hidden:
        x = activation(x @ kernel + bias)
    return x @ last[0] + last[1]


def randomised(model, seed=0):
    """The same network with biases that are not zero."""
    rng = np.random.default_rng(seed)
    for layer in model.layers:
        layer.bias[...] = jnp.asarray(rng.normal(size=layer.bias.shape), layer.bias.dtype)
    return model


def complexified(model, imaginary):
    """The same network with `imaginary(shape)` as imaginary parts of its parameters."""
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    params = jax.tree.map(
        lambda x: jax.lax.complex(x, jnp.asarray(imaginary(x.shape), x.dtype)), params
    )
    return nnx.merge(graph, params, rest)


@pytest.mark.parametrize(
    "sizes, count",
    [((30, 10, 10, 1), 431), ((2, 1), 3), ((64, 100, 100, 100, 10), 27710)],
)
def test_parameter_count(sizes, count):
    model = MLP(sizes, rngs=nnx.Rngs(0))
    assert num_params(model) == count
    assert count == sum((a + 1) * b for a, b in itertools.pairwise(sizes))


def test_initial_weights():
    """N(0, 1/fan-in): over n weights the deviation's own deviation is 1/√(2n), relative."""
    model = MLP((400, 100, 25), rngs=nnx.Rngs(0))
    for layer, fan_in in zip(model.layers, (400, 100), strict=True):
        kernel = np.asarray(layer.kernel)
        assert kernel.std() * fan_in**0.5 == pytest.approx(1, abs=5 / (2 * kernel.size) ** 0.5)
        assert abs(kernel.mean()) * fan_in**0.5 < 5 / kernel.size**0.5
        np.testing.assert_array_equal(layer.bias, 0)


def test_weights_follow_the_seed():
    kernels = [np.asarray(MLP((3, 2), rngs=nnx.Rngs(s)).layers[0].kernel) for s in (0, 0, 1)]
    np.testing.assert_array_equal(kernels[0], kernels[1])
    assert np.all(kernels[0] != kernels[2])


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_forward_against_numpy(x64, activation):
    model = randomised(
        MLP((3, 5, 4, 2), activation=activation, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    )
    inputs = np.random.default_rng(1).normal(size=(7, 3))
    outputs = model(jnp.asarray(inputs))
    assert outputs.shape == (7, 2) and outputs.dtype == jnp.float64
    np.testing.assert_allclose(
        outputs, numpy_forward(model, inputs, NUMPY[activation]), rtol=1e-12, atol=1e-14
    )


def test_activation_may_be_a_function(x64):
    model = MLP((3, 5, 2), activation=jnp.sin, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    inputs = np.random.default_rng(1).normal(size=(4, 3))
    np.testing.assert_allclose(
        model(jnp.asarray(inputs)), numpy_forward(model, inputs, np.sin), rtol=1e-12, atol=1e-14
    )


def test_one_layer_is_affine_whatever_the_activation(x64):
    model = randomised(MLP((3, 2), activation="relu", param_dtype=jnp.float64, rngs=nnx.Rngs(0)))
    inputs = np.random.default_rng(1).normal(size=(4, 3))
    expected = inputs @ np.asarray(model.layers[0].kernel) + np.asarray(model.layers[0].bias)
    np.testing.assert_allclose(model(jnp.asarray(inputs)), expected, rtol=1e-12)


@pytest.mark.parametrize("activation", ["tanh", "sigmoid", "softplus", "identity"])
def test_complex_parameters(x64, activation):
    real = randomised(
        MLP((3, 5, 2), activation=activation, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    )
    inputs = np.random.default_rng(1).normal(size=(4, 3))
    on_axis = complexified(real, np.zeros)(jnp.asarray(inputs))
    assert on_axis.dtype == jnp.complex128
    np.testing.assert_allclose(on_axis, real(jnp.asarray(inputs)), rtol=1e-13, atol=1e-15)

    rng = np.random.default_rng(2)
    moved = complexified(real, lambda shape: 0.1 * rng.normal(size=shape))
    expected = numpy_forward(moved, inputs, NUMPY[activation])
    assert np.abs(expected.imag).min() > 1e-4
    np.testing.assert_allclose(moved(jnp.asarray(inputs)), expected, rtol=1e-12)


def test_softplus_at_complex_arguments(x64):
    softplus = ACTIVATIONS["softplus"]
    rng = np.random.default_rng(0)
    z = rng.uniform(-4, 4, 200) + 1j * rng.uniform(-2, 2, 200)
    np.testing.assert_allclose(softplus(jnp.asarray(z)), np.log(1 + np.exp(z)), rtol=1e-12)
    slope = jax.vmap(jax.grad(softplus, holomorphic=True))(jnp.asarray(z))
    np.testing.assert_allclose(slope, 1 / (1 + np.exp(-z)), rtol=1e-12)


def test_relu_has_no_continuation():
    """Not analytic: the flows with complex states must be able to tell, and refuse it."""
    model = MLP((2, 3, 1), activation="relu", rngs=nnx.Rngs(0))
    loss, params = pfcore.losses.full_batch(model, np.ones((4, 2)), np.ones((4, 1)), kind="mse")
    with pytest.raises(ValueError, match="analytic"):
        pfcore.flows.principal_flow(loss, 0.1).init(params)


def test_float64_without_x64_is_refused():
    with pytest.raises(ValueError, match=r"float64.*jax_enable_x64"):
        MLP((2, 1), param_dtype=jnp.float64, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    "sizes, activation, error, message",
    [
        ((3,), "tanh", ValueError, r"input and output at least, got \[3\]"),
        ((), "tanh", ValueError, "input and output"),
        ((3, 0), "tanh", ValueError, "at least 1, got 0"),
        ((3, -2, 1), "tanh", ValueError, "got -2"),
        ((3, 2.5, 1), "tanh", TypeError, r"2\.5"),
        ((3, 1), "swish", ValueError, "'swish'.*tanh.*or pass a function"),
    ],
)
def test_refusals(sizes, activation, error, message):
    with pytest.raises(error, match=message):
        MLP(sizes, activation=activation, rngs=nnx.Rngs(0))


def conv_net(image_shape=(8, 4, 2), channels=(3, 5), dtype=jnp.float64, **kwargs):
    return ConvNet(image_shape, channels, 4, param_dtype=dtype, rngs=nnx.Rngs(0), **kwargs)


def test_conv_net_against_xla_convolutions(x64):
    """The same with `jax.lax.conv_general_dilated` in place of patches, written out."""
    model = conv_net()
    inputs = jnp.asarray(np.random.default_rng(0).normal(size=(6, 8, 4, 2)))
    x = inputs
    for block in model.blocks:
        kernel = block.linear.kernel[...]
        kernel = kernel.reshape(3, 3, -1, kernel.shape[-1])
        x = jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = jnp.tanh(x + block.linear.bias[...])
        x = jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID") / 4
    expected = x.reshape(6, -1) @ model.last.kernel[...] + model.last.bias[...]
    np.testing.assert_allclose(model(inputs), expected, rtol=1e-12, atol=1e-13)


def test_conv_net_counts_its_parameters(x64):
    assert num_params(conv_net()) == 19 * 3 + 28 * 5 + 11 * 4


def test_conv_net_is_analytic(x64):
    """Along a direction into the complex plane it obeys Cauchy and Riemann's equations."""
    inputs = np.random.default_rng(0).normal(size=(3, 8, 4, 2))
    loss, params = pfcore.losses.full_batch(conv_net(), inputs, np.array([0, 1, 2]), kind="mse")
    rng = np.random.default_rng(1)
    direction = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(complex), params)

    def along(z):
        return loss(jax.tree.map(lambda x, d: x.astype(complex) + z * d, params, direction))

    step = 1e-4
    slope = (along(step) - along(-step)) / (2 * step)
    to_the_side = (along(1j * step) - along(-1j * step)) / (2j * step)
    assert complex(to_the_side) == pytest.approx(complex(slope), rel=1e-6)


def test_conv_net_refusals():
    with pytest.raises(ValueError, match=r"divisible by 2 once for each block, got \(8, 6, 1\)"):
        ConvNet((8, 6, 1), (2, 2), 3, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="channels must be at least 1, got 0"):
        ConvNet((8, 8, 1), (2, 0), 3, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="unknown activation 'gelu2'"):
        ConvNet((8, 8, 1), (2,), 3, activation="gelu2", rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="float64 is not available"):
        ConvNet((8, 8, 1), (2,), 3, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
