"""Networks as Flax NNX modules, in the settings that the book uses."""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from pfcore._checks import check_count
from pfcore._trees import num_entries


def _softplus(x: jax.Array) -> jax.Array:
    """log(1 + exp(x)); at complex arguments without JAX's shift by a maximum."""
    if jnp.iscomplexobj(x):
        return x / 2 + jnp.log(2 * jnp.cosh(x / 2))
    return jax.nn.softplus(x)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
    "softplus": _softplus,
    "gelu": jax.nn.gelu,  # with tanh in place of the error function
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "relu": jax.nn.relu,  # not analytic: flows with complex states refuse it
    "identity": lambda x: x,
}

# Activations that pass about half of a signal's mean square on. Deep networks make up for it in
# the variance of their weights (He et al., 2015).
_HALVING = ("relu", "gelu", "silu", "swish")

NORMS = ("none", "group", "batch")
IMPLEMENTATIONS = ("patches", "native")


def _activation(activation: str | Callable[[jax.Array], jax.Array]) -> Callable:
    if callable(activation):
        return activation
    if activation not in ACTIVATIONS:
        raise ValueError(
            f"unknown activation {activation!r}; choose one of {', '.join(ACTIVATIONS)}, "
            "or pass a function"
        )
    return ACTIVATIONS[activation]


def _check_available(dtype: jax.typing.DTypeLike) -> None:
    if jax.dtypes.canonicalize_dtype(dtype) != jnp.dtype(dtype):
        raise ValueError(
            f"param_dtype {jnp.dtype(dtype)} is not available: JAX runs in 32 bits; "
            "call jax.config.update('jax_enable_x64', True) first"
        )


def _check_choice(name: str, value: str | None, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"unknown {name} {value!r}; choose one of {', '.join(choices)}")


def _linear(
    fan_in: int,
    fan_out: int,
    param_dtype,
    rngs: nnx.Rngs,
    *,
    gain: float = 1.0,
    use_bias: bool = True,
) -> nnx.Linear:
    """A linear layer with weights N(0, gain/fan-in) and biases zero."""
    return nnx.Linear(
        fan_in,
        fan_out,
        use_bias=use_bias,
        kernel_init=nnx.initializers.normal(stddev=(gain / fan_in) ** 0.5),
        param_dtype=param_dtype,
        rngs=rngs,
    )


class MLP(nnx.Module):
    r"""Multilayer perceptron, $x \mapsto W_L\,\sigma(\cdots\sigma(W_1 x + b_1)\cdots) + b_L$.

    Weights start at $N(0, 1/\text{fan-in})$ and biases at zero. Parameters may be replaced by
    complex ones: every operation is analytic where the activation is.

    Args:
      sizes: layer widths from input to output, at least two, such as `(30, 10, 10, 1)`.
      activation: "tanh" (default), "sigmoid", "softplus", "gelu" (in its form with tanh), "silu"
        (also "swish"), "relu" (not analytic), "identity", or a function; applied after every layer
        but the last.
      param_dtype: dtype of the parameters; float64 needs `jax.config.jax_enable_x64`.
      rngs: where the initial weights come from, `nnx.Rngs(seed)`.

    Raises:
      ValueError: fewer than two sizes, a size below 1, an unknown activation, or float64 asked
        for while JAX would silently give float32.

    Example:
      >>> from flax import nnx
      >>> import pfcore
      >>> model = pfcore.networks.MLP((30, 10, 10, 1), rngs=nnx.Rngs(0))
      >>> pfcore.networks.num_params(model)
      431
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        activation: str | Callable[[jax.Array], jax.Array] = "tanh",
        param_dtype: jax.typing.DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        sizes = [check_count("every layer size", size, minimum=1) for size in sizes]
        if len(sizes) < 2:
            raise ValueError(f"sizes must name input and output at least, got {sizes}")
        _check_available(param_dtype)
        self.activation = _activation(activation)
        self.layers = nnx.List(
            _linear(fan_in, fan_out, param_dtype, rngs)
            for fan_in, fan_out in itertools.pairwise(sizes)
        )

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Outputs [..., sizes[-1]] for inputs [..., sizes[0]], in the dtype of the parameters."""
        x = inputs.astype(self.layers[0].kernel.dtype)
        *hidden, last = self.layers
        for layer in hidden:
            x = self.activation(layer(x))
        return last(x)


class Norm(nnx.Module):
    r"""Batch or group normalisation of images, $(x - m)/\sqrt{v + 10^{-5}}\cdot\text{scale} +
    \text{bias}$ with means $m$ and variances $v$.

    Unlike Flax's it is analytic, by squares in place of moduli, and keeps no running statistics,
    which a full-batch loss has no use for.

    Args:
      kind: "batch": $m$ and $v$ of each channel over the batch that it is called with, always.
        "group": of each image over groups of 16 or more channels.
      channels: in all.
      param_dtype: dtype of scale and bias, which start at 1 and 0.
    """

    def __init__(self, kind: str, channels: int, *, param_dtype):
        _check_choice("kind", kind, NORMS[1:])
        self.kind = kind
        self.num_groups = math.gcd(max(channels // 16, 1), channels)
        self.scale = nnx.Param(jnp.ones(channels, param_dtype))
        self.bias = nnx.Param(jnp.zeros(channels, param_dtype))

    def __call__(self, x: jax.Array) -> jax.Array:
        """[n, height, width, channels] -> the same."""
        grouped = x.reshape(*x.shape[:3], self.num_groups, -1) if self.kind == "group" else x
        axes = (1, 2, 4) if self.kind == "group" else (0, 1, 2)
        centred = grouped - grouped.mean(axes, keepdims=True)
        normalised = centred / jnp.sqrt((centred**2).mean(axes, keepdims=True) + 1e-5)
        return normalised.reshape(x.shape) * self.scale[...] + self.bias[...]


def uses_batch_statistics(model: nnx.Module) -> bool:
    """Whether a sample's output depends on the other samples, by batch normalisation."""
    return any(
        (isinstance(module, nnx.BatchNorm) and not module.use_running_average)
        or (isinstance(module, Norm) and module.kind == "batch")
        for _, module in nnx.iter_modules(model)
    )


class Conv(nnx.Module):
    """Convolution, 1 × 1 or 3 × 3 and padded with zeros, and the normalisation after it, if any.

    It comes in two implementations, equal up to rounding and with the same parameters: a matrix
    product with patches, since XLA runs convolutions slowly on a CPU inside compiled loops, where
    this library spends its time; and XLA's own convolution, for everything else.

    Args:
      in_features, out_features: channels.
      kernel_size: 1 or 3.
      stride: 1 or 2; of n rows, n/stride are left, rounded up.
      norm: "none" (default), "group" or "batch", as for `ConvNet`. With a normalisation, whose own
        bias takes its place, the convolution has no bias.
      weight_gain: weights start at N(0, weight_gain/fan-in).
      implementation: "patches", "native", or None (default): native, but patches where JAX's
        default backend is the CPU or where numbers are complex, which not every backend convolves.
      param_dtype: dtype of the parameters.
      rngs: where the initial weights come from.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        kernel_size: int = 3,
        stride: int = 1,
        norm: str = "none",
        weight_gain: float = 1.0,
        implementation: str | None = None,
        param_dtype,
        rngs: nnx.Rngs,
    ):
        if kernel_size not in (1, 3) or stride not in (1, 2):
            raise ValueError(
                f"kernel_size must be 1 or 3 and stride 1 or 2, got {kernel_size!r} and {stride!r}"
            )
        _check_choice("norm", norm, NORMS)
        if implementation is not None:
            _check_choice("implementation", implementation, IMPLEMENTATIONS)
        self.kernel_size, self.stride, self.implementation = kernel_size, stride, implementation
        self.linear = _linear(
            kernel_size**2 * in_features,
            out_features,
            param_dtype,
            rngs,
            gain=weight_gain,
            use_bias=norm == "none",
        )
        self.norm = None if norm == "none" else Norm(norm, out_features, param_dtype=param_dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[n, height, width, in_features] -> [n, height/stride, width/stride, out_features]."""
        implementation = self.implementation
        if implementation is None:
            native = jax.default_backend() != "cpu" and not jnp.iscomplexobj(x)
            implementation = "native" if native else "patches"
        x = self._native(x) if implementation == "native" else self._patches(x)
        return x if self.norm is None else self.norm(x)

    def _patches(self, x: jax.Array) -> jax.Array:
        height, width = x.shape[1:3]
        size, stride, padding = self.kernel_size, self.stride, self.kernel_size // 2
        padded = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
        patches = [
            padded[:, row : row + height : stride, column : column + width : stride]
            for row in range(size)
            for column in range(size)
        ]
        return self.linear(jnp.concatenate(patches, axis=-1))

    def _native(self, x: jax.Array) -> jax.Array:
        size, padding = self.kernel_size, self.kernel_size // 2
        kernel = self.linear.kernel[...].reshape(size, size, x.shape[-1], -1)
        x = jax.lax.conv_general_dilated(
            x,
            kernel,
            (self.stride, self.stride),
            [(padding, padding)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return x if self.linear.bias is None else x + self.linear.bias[...]


def _halved(x: jax.Array) -> jax.Array:
    """Means over 2 × 2 pixels."""
    n, height, width, features = x.shape
    return x.reshape(n, height // 2, 2, width // 2, 2, features).mean(axis=(2, 4))


def _weight_gain(activation: str | Callable[[jax.Array], jax.Array], gain: float | None) -> float:
    if gain is None:
        return 2.0 if activation in _HALVING else 1.0
    return gain


class ConvNet(nnx.Module):
    r"""Convolutional network: blocks of 3 × 3 convolution, normalisation if asked for, activation
    and 2 × 2 average pooling, then one linear layer.

    Weights start at $N(0, \text{gain}/\text{fan-in})$, those of the last layer at
    $N(0, 1/\text{fan-in})$, and biases at zero. Average pooling, unlike that of maxima, keeps the
    network analytic where the activation is.

    Args:
      image_shape: (height, width, channels) of an image; height and width divisible by 2 for each
        pooling.
      channels: of each block, such as `(16, 32)`.
      num_outputs: of the last layer.
      pool: for each block whether it pools; None: every one does.
      activation: as for `MLP`.
      norm: "none" (default), "group" or "batch", as for `Norm`. A full-batch loss with "batch" is a
        function of the parameters alone, but cannot be split into microbatches.
      weight_gain: gain of the convolutions, 1 by default.
      implementation: of the convolutions, as for `Conv`.
      param_dtype: dtype of the parameters; float64 needs `jax.config.jax_enable_x64`.
      rngs: where the initial weights come from, `nnx.Rngs(seed)`.

    Raises:
      ValueError: a size below 1, an image that cannot be halved as often as there are poolings, an
        unknown activation, norm or implementation, or float64 asked for while JAX would silently
        give float32.

    Example:
      >>> from flax import nnx
      >>> import jax.numpy as jnp, pfcore
      >>> model = pfcore.networks.ConvNet((8, 8, 1), (16, 32), 10, rngs=nnx.Rngs(0))
      >>> pfcore.networks.num_params(model), model(jnp.zeros((2, 8, 8, 1))).shape
      (6090, (2, 10))
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        channels: Sequence[int],
        num_outputs: int,
        *,
        pool: Sequence[bool] | None = None,
        activation: str | Callable[[jax.Array], jax.Array] = "tanh",
        norm: str = "none",
        weight_gain: float = 1.0,
        implementation: str | None = None,
        param_dtype: jax.typing.DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        height, width, first = image_shape
        sizes = [check_count("every number of channels", c, minimum=1) for c in (first, *channels)]
        num_outputs = check_count("num_outputs", num_outputs, minimum=1)
        self.pool = tuple(pool) if pool is not None else (True,) * len(channels)
        if len(self.pool) != len(channels):
            raise ValueError(f"pool says {pool!r} for {len(channels)} block(s); one for each")
        factor = 2 ** sum(self.pool)
        if height % factor or width % factor or not channels:
            raise ValueError(
                f"image_shape must be divisible by 2 once for each block that pools, got "
                f"{image_shape!r} for {sum(self.pool)} such block(s)"
            )
        _check_available(param_dtype)
        self.activation = _activation(activation)
        self.blocks = nnx.List(
            Conv(
                fan_in,
                fan_out,
                norm=norm,
                weight_gain=weight_gain,
                implementation=implementation,
                param_dtype=param_dtype,
                rngs=rngs,
            )
            for fan_in, fan_out in itertools.pairwise(sizes)
        )
        pixels = (height // factor) * (width // factor)
        self.last = _linear(pixels * sizes[-1], num_outputs, param_dtype, rngs)

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Outputs [n, num_outputs] for images [n, height, width, channels]."""
        x = inputs.astype(self.last.kernel.dtype)
        for block, pool in zip(self.blocks, self.pool, strict=True):
            x = self.activation(block(x))
            x = _halved(x) if pool else x
        return self.last(x.reshape(len(x), -1))


class VGG11(ConvNet):
    r"""VGG-11 for small images: eight convolutions with w, 2w, 4w, 4w, 8w, 8w, 8w and 8w channels.

    A `ConvNet` that pools after the first, second, fourth, sixth and eighth convolution, and has
    one linear layer at the end where the original, for larger images, has three. Unlike the
    original it pools by averages and uses tanh, which makes it analytic.

    Args:
      image_shape: (height, width, channels); height and width divisible by 32, such as
        `(32, 32, 3)`.
      num_outputs: of the last layer.
      width: w, 64 in the original.
      activation: as for `MLP`.
      norm: as for `ConvNet`.
      weight_gain: gain of the convolutions. None: 2 for "relu", "gelu" and "silu", which halve the
        signal's mean square, and 1 for all others.
      implementation: of the convolutions, as for `Conv`.
      param_dtype: dtype of the parameters; float64 needs `jax.config.jax_enable_x64`.
      rngs: where the initial weights come from, `nnx.Rngs(seed)`.

    Raises:
      ValueError: as for `ConvNet`.

    Example:
      >>> from flax import nnx
      >>> import jax.numpy as jnp, pfcore
      >>> model = pfcore.networks.VGG11((32, 32, 3), 10, width=4, rngs=nnx.Rngs(0))
      >>> pfcore.networks.num_params(model), model(jnp.zeros((2, 32, 32, 3))).shape
      (36610, (2, 10))

    References:
      Simonyan, Zisserman, *Very deep convolutional networks for large-scale image recognition*,
      ICLR 2015, configuration A.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_outputs: int,
        *,
        width: int = 64,
        activation: str | Callable[[jax.Array], jax.Array] = "tanh",
        norm: str = "none",
        weight_gain: float | None = None,
        implementation: str | None = None,
        param_dtype: jax.typing.DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        width = check_count("width", width, minimum=1)
        super().__init__(
            image_shape,
            [width * factor for factor in (1, 2, 4, 4, 8, 8, 8, 8)],
            num_outputs,
            pool=(True, True, False, True, False, True, False, True),
            activation=activation,
            norm=norm,
            weight_gain=_weight_gain(activation, weight_gain),
            implementation=implementation,
            param_dtype=param_dtype,
            rngs=rngs,
        )


class _Residual(nnx.Module):
    """σ(shortcut(x) + second(σ(first(x)))), the shortcut a 1 × 1 projection where shapes differ."""

    def __init__(
        self,
        in_features,
        out_features,
        *,
        activation,
        stride,
        weight_gain,
        branch_gain,
        **options: Any,
    ):
        self.activation = activation
        conv: Callable[..., Conv] = functools.partial(Conv, weight_gain=weight_gain, **options)
        self.first = conv(in_features, out_features, stride=stride)
        self.second = conv(out_features, out_features, weight_gain=branch_gain * weight_gain)
        same = stride == 1 and in_features == out_features
        self.shortcut = (
            None if same else conv(in_features, out_features, kernel_size=1, stride=stride)
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        past = x if self.shortcut is None else self.shortcut(x)
        return self.activation(past + self.second(self.activation(self.first(x))))


class ResNet18(nnx.Module):
    r"""ResNet-18 for small images: a 3 × 3 convolution, four stages of two residual blocks with w,
    2w, 4w and 8w channels, the mean over all pixels, and one linear layer.

    A block is $x \mapsto \sigma(s(x) + c_2(\sigma(c_1(x))))$ with 3 × 3 convolutions $c_1$, $c_2$
    and a shortcut $s$, which is the identity, or a 1 × 1 convolution where the shape changes. The
    second, third and fourth stage halve the image by a stride of 2 in their first block. The stem
    keeps its size, where the original, for larger images, reduces it fourfold.

    Weights start at $N(0, \text{gain}/\text{fan-in})$, those of the last layer at
    $N(0, 1/\text{fan-in})$, and biases at zero. Without normalisation, what the eight blocks add
    would grow from block to block: there $c_2$ starts with an eighth of the variance.

    Args:
      image_shape: (height, width, channels), such as `(32, 32, 3)`.
      num_outputs: of the last layer.
      width: w, 64 in the original.
      activation: as for `MLP`.
      norm: after every convolution: "none", "group" or "batch", as for `ConvNet`. The original has
        "batch".
      weight_gain: gain of the convolutions. None: 2 for "relu", "gelu" and "silu", which halve the
        signal's mean square, and 1 for all others.
      implementation: of the convolutions, as for `Conv`.
      param_dtype: dtype of the parameters; float64 needs `jax.config.jax_enable_x64`.
      rngs: where the initial weights come from, `nnx.Rngs(seed)`.

    Raises:
      ValueError: as for `ConvNet`, for images of any size.

    Example:
      >>> from flax import nnx
      >>> import pfcore
      >>> shapes = nnx.eval_shape(
      ...     lambda: pfcore.networks.ResNet18((32, 32, 3), 10, norm="batch", rngs=nnx.Rngs(0)))
      >>> pfcore.networks.num_params(shapes)
      11173962

    References:
      He, Zhang, Ren, Sun, *Deep residual learning for image recognition*, CVPR 2016. The factor
      1/8 is that of De, Smith, *Batch normalization biases residual blocks towards the identity
      function in deep networks*, NeurIPS 2020, in the initial weights.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        num_outputs: int,
        *,
        width: int = 64,
        activation: str | Callable[[jax.Array], jax.Array] = "tanh",
        norm: str = "none",
        weight_gain: float | None = None,
        implementation: str | None = None,
        param_dtype: jax.typing.DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        *_, channels = (
            check_count("every side and channel of image_shape", n, minimum=1) for n in image_shape
        )
        width = check_count("width", width, minimum=1)
        num_outputs = check_count("num_outputs", num_outputs, minimum=1)
        _check_available(param_dtype)
        self.activation = _activation(activation)
        options: dict[str, Any] = dict(
            norm=norm,
            weight_gain=_weight_gain(activation, weight_gain),
            implementation=implementation,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        self.stem = Conv(channels, width, **options)
        sizes = [width, *(width * factor for factor in (1, 1, 2, 2, 4, 4, 8, 8))]
        self.blocks = nnx.List(
            _Residual(
                fan_in,
                fan_out,
                activation=self.activation,
                stride=1 if fan_in == fan_out else 2,
                branch_gain=1 / 8 if norm == "none" else 1.0,
                **options,
            )
            for fan_in, fan_out in itertools.pairwise(sizes)
        )
        self.last = _linear(8 * width, num_outputs, param_dtype, rngs)

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Outputs [n, num_outputs] for images [n, height, width, channels]."""
        x = self.activation(self.stem(inputs.astype(self.last.kernel.dtype)))
        for block in self.blocks:
            x = block(x)
        return self.last(x.mean(axis=(1, 2)))


def num_params(model: nnx.Module) -> int:
    """How many numbers the parameters of `model` hold."""
    return num_entries(nnx.state(model, nnx.Param))
