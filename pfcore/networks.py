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
        if jax.dtypes.canonicalize_dtype(param_dtype) != jnp.dtype(param_dtype):
            raise ValueError(
                f"param_dtype {jnp.dtype(param_dtype)} is not available: JAX runs in 32 bits; "
                "call jax.config.update('jax_enable_x64', True) first"
            )
        self.activation = _activation(activation)
        self.layers = nnx.List(
            nnx.Linear(
                fan_in,
                fan_out,
                kernel_init=nnx.initializers.normal(stddev=fan_in**-0.5),
                param_dtype=param_dtype,
                rngs=rngs,
            )
            for fan_in, fan_out in itertools.pairwise(sizes)
        )

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Outputs [..., sizes[-1]] for inputs [..., sizes[0]], in the dtype of the parameters."""
        x = inputs.astype(self.layers[0].kernel.dtype)
        *hidden, last = self.layers
        for layer in hidden:
            x = self.activation(layer(x))
        return last(x)


def num_params(model: nnx.Module) -> int:
    """How many numbers the parameters of `model` hold."""
    return num_entries(nnx.state(model, nnx.Param))
