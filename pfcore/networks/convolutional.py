"""Plain convolutional networks, including VGG-11."""

import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from pfcore._checks import check_count
from pfcore.networks.layers import Conv, activation_of, check_available, gain_of, halved, linear


class ConvNet(nnx.Module):
    r"""Convolutional network: blocks of 3 × 3 convolution, optional normalisation, activation and
    2 × 2 average pooling, followed by one linear layer.

    Weights start at $N(0, \text{gain}/\text{fan-in})$, those of the last layer at
    $N(0, 1/\text{fan-in})$, and biases at zero. Average pooling, unlike max pooling, keeps the
    network analytic where the activation is.

    Args:
      image_shape: (height, width, channels) of an image; height and width divisible by 2 for each
        pooling.
      channels: channels of each block, such as `(16, 32)`.
      num_outputs: outputs of the last layer.
      pool: whether each block pools; None: all do.
      activation: as for `MLP`.
      norm: "none" (default), "group" or "batch", as for `Norm`. A full-batch loss with "batch" is a
        function of the parameters alone, but cannot be split into microbatches.
      weight_gain: gain of the convolutions, 1 by default.
      implementation: convolution implementation, as for `Conv`.
      param_dtype: dtype of the parameters; float64 needs `jax.config.jax_enable_x64`.
      rngs: source of the initial weights, `nnx.Rngs(seed)`.

    Raises:
      ValueError: a size below 1, an image that cannot be halved by every pooling, an unknown
        activation, norm or implementation, or float64 without `jax_enable_x64`.

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
        if not channels:
            raise ValueError("channels must name at least one block, got ()")
        if height % factor or width % factor:
            raise ValueError(
                f"image_shape must be divisible by 2 once for each block that pools, got "
                f"{image_shape!r} for {sum(self.pool)} such block(s)"
            )
        check_available(param_dtype)
        self.activation = activation_of(activation)
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
        self.last = linear(pixels * sizes[-1], num_outputs, param_dtype, rngs)

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Outputs [n, num_outputs] for images [n, height, width, channels]."""
        x = inputs.astype(self.last.kernel.dtype)
        for block, pool in zip(self.blocks, self.pool, strict=True):
            x = self.activation(block(x))
            x = halved(x) if pool else x
        return self.last(x.reshape(len(x), -1))


class VGG11(ConvNet):
    r"""VGG-11 for small images: eight convolutions with w, 2w, 4w, 4w, 8w, 8w, 8w and 8w channels.

    A `ConvNet` that pools after the first, second, fourth, sixth and eighth convolution, and has
    one linear layer at the end, where the original, for larger images, has three. Unlike the
    original it uses average pooling and tanh, which makes it analytic.

    Args:
      image_shape: (height, width, channels); height and width divisible by 32, such as
        `(32, 32, 3)`.
      num_outputs: outputs of the last layer.
      width: w, 64 in the original.
      activation: as for `MLP`.
      norm: as for `ConvNet`.
      weight_gain: gain of the convolutions. None: 2 for "relu", "gelu", "silu" and "swish", which
        halve the signal's mean square, and 1 for all others, functions included.
      implementation: convolution implementation, as for `Conv`.
      param_dtype: dtype of the parameters; float64 needs `jax.config.jax_enable_x64`.
      rngs: source of the initial weights, `nnx.Rngs(seed)`.

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
            weight_gain=gain_of(activation, weight_gain),
            implementation=implementation,
            param_dtype=param_dtype,
            rngs=rngs,
        )
