"""Networks as Flax NNX modules, in the settings that the book uses."""

import itertools
from collections.abc import Callable, Sequence

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
    "relu": jax.nn.relu,  # not analytic: flows with complex states refuse it
    "identity": lambda x: x,
}


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


def _linear(fan_in: int, fan_out: int, param_dtype, rngs: nnx.Rngs) -> nnx.Linear:
    """A linear layer with weights N(0, 1/fan-in) and biases zero."""
    return nnx.Linear(
        fan_in,
        fan_out,
        kernel_init=nnx.initializers.normal(stddev=fan_in**-0.5),
        param_dtype=param_dtype,
        rngs=rngs,
    )


class MLP(nnx.Module):
    r"""Multilayer perceptron, $x \mapsto W_L\,\sigma(\cdots\sigma(W_1 x + b_1)\cdots) + b_L$.

    Weights start at $N(0, 1/\text{fan-in})$ and biases at zero. Parameters may be replaced by
    complex ones: every operation is analytic where the activation is.

    Args:
      sizes: layer widths from input to output, at least two, such as `(30, 10, 10, 1)`.
      activation: "tanh" (default), "sigmoid", "softplus", "relu", "identity", or a function;
        applied after every layer but the last.
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


class PatchConv(nnx.Module):
    """Convolution, 3 × 3 and padded with zeros, as a matrix product with patches.

    The same numbers as `nnx.Conv`, whose convolution XLA runs slowly on a CPU inside compiled
    loops, where this library spends its time.

    Args:
      in_features, out_features: channels.
      param_dtype: dtype of the parameters.
      rngs: where the initial weights come from.
    """

    def __init__(self, in_features: int, out_features: int, *, param_dtype, rngs: nnx.Rngs):
        self.linear = _linear(9 * in_features, out_features, param_dtype, rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[n, height, width, in_features] -> [n, height, width, out_features]."""
        height, width = x.shape[1:3]
        padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        patches = [
            padded[:, row : row + height, column : column + width]
            for row in range(3)
            for column in range(3)
        ]
        return self.linear(jnp.concatenate(patches, axis=-1))


class ConvNet(nnx.Module):
    r"""Small convolutional network: blocks of 3 × 3 convolution, activation and 2 × 2 average
    pooling, then one linear layer.

    Weights start at $N(0, 1/\text{fan-in})$ and biases at zero. Average pooling, unlike that of
    maxima, keeps the network analytic where the activation is.

    Args:
      image_shape: (height, width, channels) of an image; height and width divisible by 2 for each
        block.
      channels: of each block, such as `(16, 32)`.
      num_outputs: of the last layer.
      activation: as for `MLP`.
      param_dtype: dtype of the parameters; float64 needs `jax.config.jax_enable_x64`.
      rngs: where the initial weights come from, `nnx.Rngs(seed)`.

    Raises:
      ValueError: a size below 1, an image that cannot be halved as often as there are blocks, an
        unknown activation, or float64 asked for while JAX would silently give float32.

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
        activation: str | Callable[[jax.Array], jax.Array] = "tanh",
        param_dtype: jax.typing.DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        height, width, first = image_shape
        sizes = [check_count("every number of channels", c, minimum=1) for c in (first, *channels)]
        num_outputs = check_count("num_outputs", num_outputs, minimum=1)
        factor = 2 ** len(channels)
        if height % factor or width % factor or not channels:
            raise ValueError(
                f"image_shape must be divisible by 2 once for each block, got {image_shape!r} for "
                f"{len(channels)} block(s)"
            )
        _check_available(param_dtype)
        self.activation = _activation(activation)
        self.blocks = nnx.List(
            PatchConv(fan_in, fan_out, param_dtype=param_dtype, rngs=rngs)
            for fan_in, fan_out in itertools.pairwise(sizes)
        )
        pixels = (height // factor) * (width // factor)
        self.last = _linear(pixels * sizes[-1], num_outputs, param_dtype, rngs)

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Outputs [n, num_outputs] for images [n, height, width, channels]."""
        x = inputs.astype(self.last.kernel.dtype)
        for block in self.blocks:
            x = self.activation(block(x))
            n, height, width, features = x.shape
            x = x.reshape(n, height // 2, 2, width // 2, 2, features).mean(axis=(2, 4))
        return self.last(x.reshape(len(x), -1))


def num_params(model: nnx.Module) -> int:
    """How many numbers the parameters of `model` hold."""
    return num_entries(nnx.state(model, nnx.Param))
