import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import pfcore
from pfcore.networks import (
    ACTIVATIONS,
    MLP,
    NORMS,
    VGG11,
    Conv,
    ConvNet,
    Norm,
    ResNet18,
    num_params,
    uses_batch_statistics,
)
from tests.conftest import flatten

NUMPY = {
    "tanh": np.tanh,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "softplus": lambda x: np.log(1 + np.exp(x)),
    "gelu": lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "swish": lambda x: x / (1 + np.exp(-x)),
    "relu": lambda x: np.maximum(x, 0),
    "identity": lambda x: x,
}
ANALYTIC = ("tanh", "sigmoid", "softplus", "gelu", "silu", "identity")
DEEP = {VGG11: (32, 32, 1), ResNet18: (8, 8, 1)}


# These tests spend nearly all of their time compiling.
quickly = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def numpy_forward(model, inputs, activation):
    x = np.asarray(inputs)
    *hidden, last = [(np.asarray(layer.kernel), np.asarray(layer.bias)) for layer in model.layers]
    for kernel, bias in hidden:
        x = activation(x @ kernel + bias)
    return x @ last[0] + last[1]


def randomised(model, seed=0):
    """The same network with nonzero biases."""
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


@pytest.mark.parametrize("activation", ANALYTIC)
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
    """Not analytic: flows with complex states must detect and reject it."""
    model = MLP((2, 3, 1), activation="relu", rngs=nnx.Rngs(0))
    loss, params = pfcore.losses.full_batch(model, np.ones((4, 2)), np.ones((4, 1)), kind="mse")
    with pytest.raises(ValueError, match="analytic"):
        pfcore.flows.principal_flow(loss, 0.1).init(params)


def test_float64_without_x64_is_rejected():
    with pytest.raises(ValueError, match=r"float64.*jax_enable_x64"):
        MLP((2, 1), param_dtype=jnp.float64, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    "sizes, activation, error, message",
    [
        ((3,), "tanh", ValueError, r"an input and an output, got \[3\]"),
        ((), "tanh", ValueError, "an input and an output"),
        ((3, 0), "tanh", ValueError, "at least 1, got 0"),
        ((3, -2, 1), "tanh", ValueError, "got -2"),
        ((3, 2.5, 1), "tanh", TypeError, r"2\.5"),
        ((3, 1), "swash", ValueError, "'swash'.*tanh.*or pass a function"),
    ],
)
def test_invalid_mlps_are_rejected(sizes, activation, error, message):
    with pytest.raises(error, match=message):
        MLP(sizes, activation=activation, rngs=nnx.Rngs(0))


def conv_net(image_shape=(8, 4, 2), channels=(3, 5), dtype=jnp.float64, **kwargs):
    return ConvNet(image_shape, channels, 4, param_dtype=dtype, rngs=nnx.Rngs(0), **kwargs)


def test_conv_net_against_xla_convolutions(x64):
    """An explicit version with `jax.lax.conv_general_dilated` in place of patches."""
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


def test_conv_net_parameter_count(x64):
    assert num_params(conv_net()) == 19 * 3 + 28 * 5 + 11 * 4


def test_invalid_conv_nets_are_rejected():
    with pytest.raises(ValueError, match=r"2 once for each block that pools, got \(8, 6, 1\)"):
        ConvNet((8, 6, 1), (2, 2), 3, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"pool says \(True,\) for 2 block\(s\)"):
        ConvNet((8, 8, 1), (2, 2), 3, pool=(True,), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="unknown norm 'layer'; choose one of none, group, batch"):
        ConvNet((8, 8, 1), (2,), 3, norm="layer", rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="unknown implementation 'fft'"):
        ConvNet((8, 8, 1), (2,), 3, implementation="fft", rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="channels must be at least 1, got 0"):
        ConvNet((8, 8, 1), (2, 0), 3, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="unknown activation 'gelu2'"):
        ConvNet((8, 8, 1), (2,), 3, activation="gelu2", rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="float64 is not available"):
        ConvNet((8, 8, 1), (2,), 3, param_dtype=jnp.float64, rngs=nnx.Rngs(0))


def conv(kernel_size=3, stride=1, **options):
    return Conv(
        2,
        3,
        kernel_size=kernel_size,
        stride=stride,
        param_dtype=jnp.float64,
        rngs=nnx.Rngs(0),
        **options,
    )


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel_size", [1, 3])
def test_both_convolution_implementations_agree(x64, kernel_size, stride):
    """In value, gradient and Hessian product, for even and odd sizes of images."""
    inputs = jnp.asarray(np.random.default_rng(0).normal(size=(2, 6, 5, 2)))

    def everything(implementation):
        graph, params = nnx.split(conv(kernel_size, stride, implementation=implementation))
        params = jax.tree.map(lambda x: x + 0.1, params)
        direction = jax.tree.map(lambda x: jnp.cos(jnp.arange(x.size)).reshape(x.shape), params)

        def loss(params):
            return jnp.sum(jnp.tanh(nnx.merge(graph, params)(inputs)) ** 2)

        value, gradient = jax.value_and_grad(loss)(params)
        product = pfcore.curvature.hvp(loss, params, direction)
        return np.concatenate([[value], flatten(gradient), flatten(product)])

    shape = conv(kernel_size, stride)(inputs).shape
    assert shape == ((2, 6, 5, 3) if stride == 1 else (2, 3, 3, 3))
    np.testing.assert_allclose(everything("native"), everything("patches"), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    "backend, dtype, native",
    [("cpu", jnp.float32, False), ("gpu", jnp.float32, True), ("gpu", jnp.complex64, False)],
)
def test_convolution_follows_the_backend(monkeypatch, backend, dtype, native):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    model = Conv(2, 3, param_dtype=dtype, rngs=nnx.Rngs(0))
    jaxpr = jax.make_jaxpr(lambda x: model(x))(jnp.ones((1, 4, 4, 2), dtype))
    assert ("conv_general_dilated" in str(jaxpr)) == native


def test_invalid_convolutions_are_rejected():
    with pytest.raises(
        ValueError, match="kernel_size must be 1 or 3 and stride 1 or 2, got 5 and 1"
    ):
        Conv(1, 1, kernel_size=5, param_dtype=jnp.float32, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="got 3 and 3"):
        Conv(1, 1, stride=3, param_dtype=jnp.float32, rngs=nnx.Rngs(0))


def deep(network, norm="none", width=2, dtype=jnp.float64, **options):
    # XLA compiles its own convolutions faster than patches.
    options = {"implementation": "native", **options}
    return network(
        DEEP[network], 10, width=width, norm=norm, param_dtype=dtype, rngs=nnx.Rngs(0), **options
    )


def convolved(x, conv, kernel_size, stride=1):
    """XLA's convolution followed by an explicit normalisation."""
    kernel = conv.linear.kernel[...].reshape(kernel_size, kernel_size, x.shape[-1], -1)
    x = jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        [(kernel_size // 2,) * 2] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    if conv.norm is None:
        return x + conv.linear.bias[...]
    if conv.norm.kind == "batch":
        mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
    else:  # as narrow as here, all channels of an image are one group
        mean, var = (f((1, 2, 3))[:, None, None, None] for f in (x.mean, x.var))
    return (x - mean) / jnp.sqrt(var + 1e-5) * conv.norm.scale[...] + conv.norm.bias[...]


def pooled(x):
    return jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID") / 4


def vgg_by_hand(model, x):
    for i, block in enumerate(model.blocks):
        x = jnp.tanh(convolved(x, block, 3))
        x = pooled(x) if i in (0, 1, 3, 5, 7) else x
    return x.reshape(len(x), -1) @ model.last.kernel[...] + model.last.bias[...]


def resnet_by_hand(model, x):
    x = jnp.tanh(convolved(x, model.stem, 3))
    for i, block in enumerate(model.blocks):
        stride = 2 if i in (2, 4, 6) else 1
        added = convolved(jnp.tanh(convolved(x, block.first, 3, stride)), block.second, 3)
        past = x if stride == 1 else convolved(x, block.shortcut, 1, 2)
        x = jnp.tanh(past + added)
    return x.mean((1, 2)) @ model.last.kernel[...] + model.last.bias[...]


@pytest.mark.parametrize(
    "network, by_hand, norm",
    [
        (VGG11, vgg_by_hand, "none"),
        (VGG11, vgg_by_hand, "group"),
        (ResNet18, resnet_by_hand, "none"),
        (ResNet18, resnet_by_hand, "batch"),
    ],
)
def test_deep_networks_against_their_formulas(x64, network, by_hand, norm):
    model = deep(network, norm)
    inputs = jnp.asarray(np.random.default_rng(0).normal(size=(3, *DEEP[network])))
    expected = quickly(by_hand)(model, inputs)
    outputs = quickly(lambda m, x: m(x))(model, inputs)
    assert outputs.shape == (3, 10)
    np.testing.assert_allclose(outputs, expected, rtol=1e-10, atol=1e-12)


# He et al.'s 18 layers, with a 3 × 3 stem, and the same less 4,800 scales where biases take the
# place of the shifts.
RESNET = 11_173_962
VGG = (
    (3 * 64 * 9 + 64)
    + (64 * 128 * 9 + 128)
    + (128 * 256 * 9 + 256)
    + (256 * 256 * 9 + 256)
    + (256 * 512 * 9 + 512)
    + 3 * (512 * 512 * 9 + 512)
    + (512 * 10 + 10)
)


@pytest.mark.parametrize(
    "network, norm, count",
    [
        (ResNet18, "batch", RESNET),
        (ResNet18, "group", RESNET),
        (ResNet18, "none", RESNET - 4_800),
        (VGG11, "none", VGG),
        (VGG11, "batch", VGG + 64 + 128 + 2 * 256 + 4 * 512),
    ],
)
def test_deep_network_parameter_counts(network, norm, count):
    shapes = nnx.eval_shape(lambda: network((32, 32, 3), 10, norm=norm, rngs=nnx.Rngs(0)))
    assert num_params(shapes) == count


def test_groups_hold_16_channels_or_more():
    for channels, groups in ((4, 1), (16, 1), (17, 1), (40, 2), (48, 3), (64, 4), (512, 32)):
        norm = nnx.eval_shape(lambda n=channels: Norm("group", n, param_dtype=jnp.float32))
        assert norm.num_groups == groups


@pytest.mark.parametrize("kind, channels, groups", [("group", 40, 2), ("batch", 40, None)])
def test_normalisation_against_flax(x64, kind, channels, groups):
    rng = np.random.default_rng(0)
    norm = Norm(kind, channels, param_dtype=jnp.float64)
    norm.scale[...], norm.bias[...] = jnp.asarray(rng.normal(size=(2, channels)))
    options = {"epsilon": 1e-5, "param_dtype": jnp.float64, "rngs": nnx.Rngs(0)}
    if kind == "group":
        flax = nnx.GroupNorm(channels, groups, **options)
    else:
        flax = nnx.BatchNorm(channels, use_running_average=False, **options)
        flax.mean, flax.var = (nnx.BatchStat(jnp.zeros(channels, float)) for _ in range(2))
    flax.scale[...], flax.bias[...] = norm.scale[...], norm.bias[...]
    inputs = jnp.asarray(rng.normal(size=(3, 4, 2, channels)))
    with jax.numpy_dtype_promotion("standard"):
        expected = flax(inputs)
    np.testing.assert_allclose(norm(inputs), expected, rtol=1e-10, atol=1e-12)


def test_which_networks_use_the_statistics_of_a_batch():
    for norm in NORMS:
        model = ConvNet((4, 4, 1), (2,), 2, norm=norm, rngs=nnx.Rngs(0))
        assert uses_batch_statistics(model) == (norm == "batch")
    for running in (False, True):
        layer = nnx.BatchNorm(2, use_running_average=running, rngs=nnx.Rngs(0))
        assert uses_batch_statistics(nnx.Sequential(layer)) == (not running)


@pytest.mark.parametrize(
    "network, options, gain, branch",
    [
        (VGG11, {}, 1, None),
        (VGG11, {"activation": "gelu", "weight_gain": 3.0}, 3, None),
        (ResNet18, {}, 1, 1 / 8),
        (ResNet18, {"activation": "relu"}, 2, 2 / 8),
        (ResNet18, {"activation": "relu", "norm": "batch"}, 2, 2),
    ],
)
def test_initial_weights_of_deep_networks(network, options, gain, branch):
    """N(0, gain/fan-in), within five deviations."""
    model = deep(network, dtype=jnp.float32, **options)
    first = model.blocks[-1] if network is VGG11 else model.blocks[-1].first
    kernels = [(first, gain)] + ([] if branch is None else [(model.blocks[-1].second, branch)])
    for layer, expected in kernels:
        kernel = np.asarray(layer.linear.kernel)
        found = np.var(kernel) * len(kernel)
        assert found == pytest.approx(expected, rel=5 * (2 / kernel.size) ** 0.5)
        np.testing.assert_array_equal((layer.norm or layer.linear).bias, 0)


def analytic_everywhere(x):
    return sum(ACTIVATIONS[name](x) for name in ANALYTIC)


@pytest.mark.parametrize(
    "network, norm",
    [
        *((ConvNet, norm) for norm in NORMS),
        (VGG11, "none"),
        (ResNet18, "none"),
        (ResNet18, "batch"),
    ],
)
def test_convolutional_networks_are_analytic(x64, network, norm):
    """Cauchy and Riemann's equations by differences, and Schwarz' reflection."""
    if network is ConvNet:
        model = conv_net(norm=norm, activation=analytic_everywhere)
        inputs = np.random.default_rng(0).normal(size=(2, 8, 4, 2))
    else:
        model = deep(network, norm)
        inputs = np.random.default_rng(0).normal(size=(2, *DEEP[network]))
    loss, params = pfcore.losses.full_batch(model, inputs, [0, 1], kind="mse")
    rng = np.random.default_rng(1)
    v = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape)), params)

    @quickly
    def along(z):
        return loss(jax.tree.map(lambda x, d: x.astype(complex) + z * d.astype(complex), params, v))

    center, step = 0.001 + 0.001j, 1e-7
    slope = (along(center + step) - along(center - step)) / (2 * step)
    to_the_side = (along(center + 1j * step) - along(center - 1j * step)) / (2j * step)
    assert abs(slope.real) > 1e-3 and abs(slope.imag) > 1e-3
    assert complex(to_the_side) == pytest.approx(complex(slope), rel=1e-5)
    reflected = along(center.conjugate()).conj()
    assert complex(reflected) == pytest.approx(complex(along(center)), rel=1e-12)


@functools.cache
def digits(side, num_samples=16):
    data = pfcore.datasets.load("digits")
    images = data.train_inputs[:num_samples].reshape(-1, 8, 8, 1)
    images = np.kron(images, np.ones((1, side // 8, side // 8, 1), np.float32))
    return 3 * images, data.train_targets[:num_samples]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("network", [ConvNet, *DEEP])
def test_training_lowers_the_loss(network, norm):
    """By thirty steps of gradient descent in single precision."""
    if network is ConvNet:
        model = conv_net((8, 8, 1), (3, 5), norm=norm, dtype=jnp.float32)
        inputs, targets = digits(8)
        targets = targets % 4
    else:
        model = deep(network, norm, dtype=jnp.float32)
        inputs, targets = digits(DEEP[network][0])
    loss, params = pfcore.losses.full_batch(model, inputs, targets, kind="cross_entropy")
    step = quickly(jax.value_and_grad(loss))
    losses = []
    for _ in range(31):
        value, gradient = step(params)
        assert all(np.all(np.isfinite(g)) and np.any(g != 0) for g in jax.tree.leaves(gradient))
        losses.append(float(value))
        params = jax.tree.map(lambda x, g: x - 0.01 * g, params, gradient)
    # Without normalisation averages of averages leave VGG-11 a small signal, and small gradients.
    assert losses[-1] < losses[0] * (0.8 if norm != "none" else 1)


@pytest.mark.parametrize("network, norm", [(ConvNet, "group"), (ResNet18, "batch")])
def test_curvature_against_differences_of_gradients(x64, network, norm):
    if network is ConvNet:
        model = conv_net((8, 8, 1), (16, 32), norm=norm)
    else:
        model = deep(network, norm)
    inputs, targets = digits(8, 4)
    targets = targets % 4
    loss, params = pfcore.losses.full_batch(model, inputs, targets, kind="cross_entropy")
    rng = np.random.default_rng(0)
    v = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape)), params)
    # Gradient and product in one, to compile once.
    both = quickly(lambda p: jax.jvp(jax.grad(loss), (p,), (v,)))
    _, product = both(params)
    step = 1e-7
    ahead = both(jax.tree.map(lambda x, d: x + step * d, params, v))[0]
    behind = both(jax.tree.map(lambda x, d: x - step * d, params, v))[0]
    differences = (flatten(ahead) - flatten(behind)) / (2 * step)
    error = np.linalg.norm(flatten(product) - differences)
    assert error < 1e-5 * np.linalg.norm(differences)


def test_invalid_deep_networks_are_rejected():
    with pytest.raises(ValueError, match=r"block that pools, got \(28, 28, 1\) for 5 such"):
        VGG11((28, 28, 1), 10, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="width must be at least 1, got 0"):
        VGG11((32, 32, 3), 10, width=0, rngs=nnx.Rngs(0))
    for network in DEEP:
        with pytest.raises(ValueError, match="unknown norm 'layer'"):
            network((32, 32, 3), 10, norm="layer", rngs=nnx.Rngs(0))
        with pytest.raises(ValueError, match="unknown activation 'gelu2'"):
            network((32, 32, 3), 10, activation="gelu2", rngs=nnx.Rngs(0))
        with pytest.raises(ValueError, match="float64 is not available"):
            network((32, 32, 3), 10, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    with pytest.raises(
        ValueError, match="side and channel of image_shape must be at least 1, got 0"
    ):
        ResNet18((0, 32, 3), 10, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="num_outputs must be at least 1, got 0"):
        ResNet18((32, 32, 3), 0, rngs=nnx.Rngs(0))
