"""Building blocks of networks: activations, linear layers, convolutions and normalisation."""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx


def softplus(x: jax.Array) -> jax.Array:
    """log(1 + exp(x)); at complex arguments without JAX's shift by a maximum."""
    if jnp.iscomplexobj(x):
        return x / 2 + jnp.log(2 * jnp.cosh(x / 2))
    return jax.nn.softplus(x)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
    "softplus": softplus,
    "gelu": jax.nn.gelu,  # the tanh approximation
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "relu": jax.nn.relu,  # not analytic: flows with complex states reject it
    "identity": lambda x: x,
}

# Activations that transmit about half of a signal's mean square. Deep networks compensate in the
# variance of their weights (He et al., 2015).
_HALVING = ("relu", "gelu", "silu", "swish")

NORMS = ("none", "group", "batch")
IMPLEMENTATIONS = ("patches", "native")


def activation_of(activation: str | Callable[[jax.Array], jax.Array]) -> Callable:
    if callable(activation):
        return activation
    if activation not in ACTIVATIONS:
        raise ValueError(
            f"unknown activation {activation!r}; choose one of {', '.join(ACTIVATIONS)}, "
            "or pass a function"
        )
    return ACTIVATIONS[activation]


def check_available(dtype: jax.typing.DTypeLike, name: str = "param_dtype") -> None:
    if jax.dtypes.canonicalize_dtype(dtype) != jnp.dtype(dtype):
        raise ValueError(
            f"{name} {jnp.dtype(dtype)} is not available: JAX runs in 32 bits; "
            "call jax.config.update('jax_enable_x64', True) first"
        )


def check_choice(name: str, value: str | None, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"unknown {name} {value!r}; choose one of {', '.join(choices)}")


def linear(
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


class Norm(nnx.Module):
    r"""Batch or group normalisation of images, $(x - m)/\sqrt{v + 10^{-5}}\cdot\text{scale} +
    \text{bias}$ with means $m$ and variances $v$.

    Unlike Flax's it is analytic, with squares in place of moduli, and keeps no running statistics,
    which a full-batch loss does not need.

    Args:
      kind: "batch": $m$ and $v$ of each channel over the current batch, always. "group": of each
        image over groups of at least 16 channels, or over all channels if there are fewer.
      channels: total number of channels.
      param_dtype: dtype of scale and bias, which start at 1 and 0.
    """

    def __init__(self, kind: str, channels: int, *, param_dtype):
        check_choice("kind", kind, NORMS[1:])
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
    """Whether a sample's output depends on other samples through batch normalisation."""
    return any(
        (isinstance(module, nnx.BatchNorm) and not module.use_running_average)
        or (isinstance(module, Norm) and module.kind == "batch")
        for _, module in nnx.iter_modules(model)
    )


class Conv(nnx.Module):
    """Convolution, 1 × 1 or 3 × 3 with zero padding, followed by an optional normalisation.

    Two implementations are equal up to rounding and have the same parameters: a matrix product with
    patches, because XLA's convolutions are slow on a CPU inside compiled loops, where this library
    spends its time; and XLA's own convolution everywhere else.

    Args:
      in_features, out_features: channels.
      kernel_size: 1 or 3.
      stride: 1 or 2; n rows become n/stride, rounded up.
      norm: "none" (default), "group" or "batch", as for `ConvNet`. A normalisation has its own
        bias, so the convolution then has none.
      weight_gain: weights start at N(0, weight_gain/fan-in).
      implementation: "patches", "native", or None (default): native, but patches if JAX's default
        backend is the CPU or numbers are complex, which not every backend can convolve.
      param_dtype: dtype of the parameters.
      rngs: source of the initial weights.
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
        check_choice("norm", norm, NORMS)
        if implementation is not None:
            check_choice("implementation", implementation, IMPLEMENTATIONS)
        self.kernel_size, self.stride, self.implementation = kernel_size, stride, implementation
        self.linear = linear(
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


def halved(x: jax.Array) -> jax.Array:
    """Means over 2 × 2 pixels."""
    n, height, width, features = x.shape
    return x.reshape(n, height // 2, 2, width // 2, 2, features).mean(axis=(2, 4))


def gain_of(activation: str | Callable[[jax.Array], jax.Array], gain: float | None) -> float:
    if gain is None:
        return 2.0 if activation in _HALVING else 1.0
    return gain
