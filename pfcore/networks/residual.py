"""Residual networks."""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from pfcore._checks import check_count
from pfcore.networks.layers import Conv, activation_of, check_available, gain_of, linear


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
    second, third and fourth stages halve the image by a stride of 2 in their first block. The stem
    keeps the image size, where the original, for larger images, reduces it fourfold.

    Weights start at $N(0, \text{gain}/\text{fan-in})$, those of the last layer at
    $N(0, 1/\text{fan-in})$, and biases at zero. Without normalisation the signal would grow from
    block to block, so $c_2$ starts with an eighth of the variance.

    Args:
      image_shape: (height, width, channels), such as `(32, 32, 3)`.
      num_outputs: outputs of the last layer.
      width: w, 64 in the original.
      activation: as for `MLP`.
      norm: after every convolution: "none", "group" or "batch", as for `ConvNet`. The original has
        "batch".
      weight_gain: gain of the convolutions. None: 2 for "relu", "gelu", "silu" and "swish", which
        halve the signal's mean square, and 1 for all others, functions included.
      implementation: convolution implementation, as for `Conv`.
      param_dtype: dtype of the parameters; float64 needs `jax.config.jax_enable_x64`.
      rngs: source of the initial weights, `nnx.Rngs(seed)`.

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
      1/8 in the initial weights is from De, Smith, *Batch normalization biases residual blocks
      towards the identity function in deep networks*, NeurIPS 2020.
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
        check_available(param_dtype)
        self.activation = activation_of(activation)
        options: dict[str, Any] = dict(
            norm=norm,
            weight_gain=gain_of(activation, weight_gain),
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
        self.last = linear(8 * width, num_outputs, param_dtype, rngs)

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Outputs [n, num_outputs] for images [n, height, width, channels]."""
        x = self.activation(self.stem(inputs.astype(self.last.kernel.dtype)))
        for block in self.blocks:
            x = block(x)
        return self.last(x.mean(axis=(1, 2)))
