"""A model and its data -> the full-batch loss as a function of the parameters alone."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from pfcore._checks import ArrayLike, Loss, check_count
from pfcore._trees import Params


def _mse(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """½ Σ_j (outputs_j − targets_j)² for each sample; shapes [n, k] -> [n]."""
    return 0.5 * jnp.sum((outputs - targets) ** 2, axis=-1)


def _log_sum_exp(x: jax.Array) -> jax.Array:
    """log Σ_j exp(x_j) over the last axis.

    Real logits get the usual shift by their maximum. Complex ones get none: a maximum is no
    analytic function, and near the real axis, where flows live, none is needed.
    """
    if jnp.iscomplexobj(x):
        return jnp.log(jnp.sum(jnp.exp(x), axis=-1))
    return jax.nn.logsumexp(x, axis=-1)


def _cross_entropy(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """−Σ_j targets_j log softmax(outputs)_j for each sample; shapes [n, k] -> [n]."""
    if outputs.shape[-1] == 1:
        # One logit for two classes: the softmax over (0, logit).
        outputs = jnp.concatenate([jnp.zeros_like(outputs), outputs], axis=-1)
        targets = jnp.concatenate([1 - targets, targets], axis=-1)
    # Shifting by the target's own logit is analytic, and keeps the exponentials small where the
    # network is right.
    reference = jnp.sum(targets * outputs, axis=-1, keepdims=True)
    return _log_sum_exp(outputs - reference)


_PER_SAMPLE = {"mse": _mse, "cross_entropy": _cross_entropy}


def _encode(targets: np.ndarray, num_outputs: int, kind: str) -> np.ndarray:
    """Targets as floats [n, num_outputs]; integer classes become one-hot (0/1 for one output)."""
    if np.issubdtype(targets.dtype, np.integer):
        if targets.ndim != 1:
            raise ValueError(f"integer targets must be class labels [n], got shape {targets.shape}")
        classes = max(num_outputs, 2)
        if targets.size and (targets.min() < 0 or targets.max() >= classes):
            raise ValueError(
                f"class labels run from {targets.min()} to {targets.max()}, but the model has "
                f"{num_outputs} output(s), which can tell {classes} classes apart"
            )
        if num_outputs == 1:
            return targets[:, None].astype(float)
        return np.eye(num_outputs)[targets]
    if targets.ndim == 1 and num_outputs == 1:
        targets = targets[:, None]
    if targets.shape[1:] != (num_outputs,):
        raise ValueError(
            f"targets have shape {targets.shape}, but the model's outputs have {num_outputs} "
            "column(s); pass [n, outputs] floats or [n] integer classes"
        )
    if kind == "cross_entropy":
        in_range = np.all((targets >= -1e-5) & (targets <= 1 + 1e-5))
        if not in_range or (num_outputs > 1 and not np.allclose(targets.sum(-1), 1, atol=1e-5)):
            raise ValueError(
                "cross_entropy targets must be probabilities, between 0 and 1, that sum to 1 in "
                f"each row; got values from {targets.min()} to {targets.max()}"
            )
    return targets


def full_batch(
    model: nnx.Module,
    inputs: ArrayLike,
    targets: ArrayLike,
    *,
    kind: str,
    microbatch: int | None = None,
) -> tuple[Loss, Params]:
    r"""Full-batch loss of a network, as a function of its parameters.

    * "mse": $E(\theta) = \frac1n \sum_i \tfrac12 \|f_\theta(x_i) - y_i\|^2$
    * "cross_entropy": $E(\theta) = -\frac1n \sum_i \sum_j y_{ij} \log
      \operatorname{softmax}(f_\theta(x_i))_j$; with one output, the logistic loss.

    Both are analytic in $\theta$ where the network is, and may be called at complex parameters.

    Args:
      model: a Flax NNX module, called on a batch of inputs. State other than `nnx.Param` is
        frozen at its present value.
      inputs: [n, ...] floats.
      targets: [n] integer classes (one-hot encoded; 0/1 for a single output), or [n, outputs]
        floats.
      kind: "mse" or "cross_entropy".
      microbatch: samples evaluated at a time. The sum over microbatches is exact up to rounding,
        and memory for derivatives is bounded by one microbatch. None: all at once.

    Returns:
      `(loss, params)`: `params` is a nested dict of arrays, `loss(params)` a scalar of their
      dtype.

    Raises:
      ValueError: unknown `kind`, targets that do not fit inputs or outputs, `microbatch` below 1.

    Example:
      >>> from flax import nnx
      >>> import jax.numpy as jnp, pfcore
      >>> model = pfcore.networks.MLP((2, 3, 1), rngs=nnx.Rngs(0))
      >>> loss, params = pfcore.losses.full_batch(
      ...     model, jnp.ones((4, 2)), jnp.zeros((4, 1)), kind="mse")
      >>> loss(params).shape
      ()
    """
    if kind not in _PER_SAMPLE:
        raise ValueError(f"unknown kind {kind!r}; choose one of {', '.join(_PER_SAMPLE)}")
    graph, param_state, rest = nnx.split(model, nnx.Param, ...)  # type: ignore[misc]
    # Arrays alone: a State shares its variables with the model, and would follow its changes.
    params, rest = nnx.to_pure_dict(param_state), nnx.to_pure_dict(rest)
    dtype = jax.tree.leaves(params)[0].dtype

    inputs = jnp.asarray(inputs, dtype)
    if inputs.ndim == 0 or inputs.shape[0] == 0:
        raise ValueError(f"inputs must hold at least one sample, got shape {inputs.shape}")
    num_samples = inputs.shape[0]
    outputs = jax.eval_shape(lambda x: nnx.merge(graph, param_state, rest)(x), inputs)
    encoded = jnp.asarray(_encode(np.asarray(targets), outputs.shape[-1], kind), dtype)
    if len(encoded) != num_samples:
        raise ValueError(f"{num_samples} inputs but {len(encoded)} targets")
    per_sample = _PER_SAMPLE[kind]

    def batch_sum(params: Params, x: jax.Array, y: jax.Array, weights) -> jax.Array:
        outputs = nnx.merge(graph, params, rest)(x)
        return jnp.sum(weights.astype(outputs.dtype) * per_sample(outputs, y.astype(outputs.dtype)))

    if microbatch is None:
        weights = jnp.full(num_samples, 1 / num_samples, dtype)
        return (lambda params: batch_sum(params, inputs, encoded, weights)), params

    microbatch = min(check_count("microbatch", microbatch, minimum=1), num_samples)
    num_batches = -(-num_samples // microbatch)
    # The last microbatch is filled up with repeated samples of weight zero.
    index = np.arange(num_batches * microbatch)
    weights = jnp.asarray(np.where(index < num_samples, 1 / num_samples, 0), dtype)
    index = np.minimum(index, num_samples - 1)
    batches = jax.tree.map(
        lambda x: x.reshape(num_batches, microbatch, *x.shape[1:]),
        (inputs[index], encoded[index], weights),
    )

    def loss(params: Params) -> jax.Array:
        @jax.checkpoint  # recomputed in the backward pass: nothing is kept between microbatches
        def step(total, batch):
            return total + batch_sum(params, *batch), None

        zero = jnp.zeros((), jax.tree.leaves(params)[0].dtype)
        return jax.lax.scan(step, zero, batches)[0]

    return loss, params
