"""Multilayer perceptrons."""

import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from pfcore._checks import check_count
from pfcore.networks.layers import activation_of, check_available, linear


class MLP(nnx.Module):
    r"""Multilayer perceptron, $x \mapsto W_L\,\sigma(\cdots\sigma(W_1 x + b_1)\cdots) + b_L$.

    Weights start at $N(0, 1/\text{fan-in})$ and biases at zero. Parameters may be replaced by
    complex ones: every operation is analytic where the activation is.

    Args:
      sizes: layer widths from input to output, at least two, such as `(30, 10, 10, 1)`.
      activation: "tanh" (default), "sigmoid", "softplus", "gelu" (tanh approximation), "silu" (also
        "swish"), "relu" (not analytic), "identity", or a function; applied after every layer but
        the last.
      param_dtype: dtype of the parameters; float64 needs `jax.config.jax_enable_x64`.
      rngs: source of the initial weights, `nnx.Rngs(seed)`.

    Raises:
      ValueError: fewer than two sizes, a size below 1, an unknown activation, or float64 without
        `jax_enable_x64`.

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
            raise ValueError(f"sizes must have at least an input and an output, got {sizes}")
        check_available(param_dtype)
        self.activation = activation_of(activation)
        self.layers = nnx.List(
            linear(fan_in, fan_out, param_dtype, rngs)
            for fan_in, fan_out in itertools.pairwise(sizes)
        )

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Outputs [..., sizes[-1]] for inputs [..., sizes[0]], in the dtype of the parameters."""
        x = inputs.astype(self.layers[0].kernel.dtype)
        *hidden, last = self.layers
        for layer in hidden:
            x = self.activation(layer(x))
        return last(x)
