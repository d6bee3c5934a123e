"""A model and its data -> full-batch loss and accuracy as functions of the parameters alone."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from pfcore._checks import ArrayLike, Loss, check_count
from pfcore._trees import Params
from pfcore.networks import uses_batch_statistics


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


def _stay_put(x: ArrayLike) -> ArrayLike:
    """`x` where it lies: what a compiled function closes over comes to one device otherwise."""
    known = isinstance(x, jax.Array) and not isinstance(x, jax.core.Tracer)
    if known and len(x.sharding.device_set) > 1:
        return jax.lax.with_sharding_constraint(x, x.sharding)
    return x


def _correct(outputs: jax.Array, targets: jax.Array, threshold: float) -> jax.Array:
    """1 for each sample whose class is right, else 0; shapes [n, k] -> [n]."""
    outputs, targets = jnp.real(outputs), jnp.real(targets)
    if outputs.shape[-1] == 1:
        right = (outputs[:, 0] > threshold) == (targets[:, 0] > 0.5)
    else:
        right = jnp.argmax(outputs, axis=-1) == jnp.argmax(targets, axis=-1)
    # Comparisons with NaN would make it one of the classes.
    return (right & ~jnp.any(jnp.isnan(outputs), axis=-1)).astype(outputs.dtype)


def _check_classes(targets: np.ndarray | jax.Array, num_outputs: int) -> None:
    classes = max(num_outputs, 2)
    if targets.size and (targets.min() < 0 or targets.max() >= classes):
        raise ValueError(
            f"class labels run from {targets.min()} to {targets.max()}, but the model has "
            f"{num_outputs} output(s), which can tell {classes} classes apart"
        )


def _check_probabilities(targets: np.ndarray | jax.Array) -> None:
    xp = jnp if isinstance(targets, jax.Array) else np
    in_range = xp.all((targets >= -1e-5) & (targets <= 1 + 1e-5))
    if not in_range or (targets.shape[1] > 1 and not xp.allclose(targets.sum(-1), 1, atol=1e-5)):
        raise ValueError(
            "cross_entropy targets must be probabilities, between 0 and 1, that sum to 1 in "
            f"each row; got values from {targets.min()} to {targets.max()}"
        )


def _encode(
    targets: np.ndarray | jax.Array, num_outputs: int, dtype, *, probabilities: bool
) -> jax.Array:
    """Targets as floats [n, num_outputs]; integer classes become one-hot (0/1 for one output)."""
    known = not isinstance(targets, jax.core.Tracer)
    if jnp.issubdtype(targets.dtype, jnp.integer):
        if targets.ndim != 1:
            raise ValueError(f"integer targets must be class labels [n], got shape {targets.shape}")
        if known:
            with jax.ensure_compile_time_eval():  # under tracing too
                _check_classes(targets, num_outputs)
        targets = _stay_put(targets)
        if num_outputs == 1:
            return jnp.asarray(targets, dtype)[:, None]
        return jax.nn.one_hot(jnp.asarray(targets, jnp.int32), num_outputs, dtype=dtype)
    if targets.ndim == 1 and num_outputs == 1:
        targets = targets.reshape(-1, 1)
    if targets.shape[1:] != (num_outputs,):
        raise ValueError(
            f"targets have shape {targets.shape}, but the model's outputs have {num_outputs} "
            "column(s); pass [n, outputs] floats or [n] integer classes"
        )
    if probabilities and known and targets.dtype != bool:
        with jax.ensure_compile_time_eval():
            _check_probabilities(targets)
    return jnp.asarray(_stay_put(targets), dtype)


def _check_mesh(name: str, array: ArrayLike) -> None:
    if not isinstance(array, jax.Array):
        return
    sharding = jax.typeof(array).sharding
    if any(axes is not None for axes in sharding.spec):
        raise ValueError(
            f"{name} are sharded over explicit mesh axes, {sharding.spec}, which would need a "
            "sharding for every intermediate result; pass "
            "axis_types=(jax.sharding.AxisType.Auto,) to jax.make_mesh"
        )


@functools.partial(jax.jit, static_argnums=(1, 2))
def _split(x: jax.Array, microbatch: int, num_batches: int) -> jax.Array:
    """[n, ...] -> [num_batches, microbatch, ...], the last rows filled up with the first sample.

    Every num_batches-th sample goes into the same microbatch. So each one is spread over all
    devices that hold the samples, where consecutive ones would lie on one device after another.
    """
    missing = num_batches * microbatch - len(x)
    if missing:
        # Padding and choosing leave a sharded axis sharded; indices or concatenation gather it.
        padded = jnp.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1))
        real = jnp.arange(len(padded)).reshape(-1, *[1] * (x.ndim - 1)) < len(x)
        x = jnp.where(real, padded, x[:1])
    return x.reshape(microbatch, num_batches, *x.shape[1:]).swapaxes(0, 1)


def _sum_over_samples(
    model: nnx.Module,
    inputs: ArrayLike,
    targets: ArrayLike,
    per_sample: Callable[[jax.Array, jax.Array], jax.Array],
    *,
    average: bool,
    probabilities: bool,
    microbatch: int | None,
) -> tuple[Callable[[Params], jax.Array], Params]:
    """(params -> Σ_i per_sample(f(x_i), y_i), params), over n if `average`, in microbatches."""
    graph, param_state, rest = nnx.split(model, nnx.Param, ...)  # type: ignore[misc]
    # Arrays alone: a State shares its variables with the model, and would follow its changes.
    params, rest = nnx.to_pure_dict(param_state), nnx.to_pure_dict(rest)
    dtype = jax.tree.leaves(params)[0].dtype

    targets = targets if isinstance(targets, jax.Array) else np.asarray(targets)
    _check_mesh("inputs", inputs)
    _check_mesh("targets", targets)
    inputs = jnp.asarray(_stay_put(inputs), dtype)
    if inputs.ndim == 0 or inputs.shape[0] == 0:
        raise ValueError(f"inputs must hold at least one sample, got shape {inputs.shape}")
    num_samples = inputs.shape[0]
    if microbatch is not None:
        microbatch = check_count("microbatch", microbatch, minimum=1)
    split = microbatch is not None and microbatch < num_samples
    if split and uses_batch_statistics(model):
        raise ValueError(
            f"microbatch={microbatch} would normalise by the statistics of each microbatch, which "
            "is another loss; with batch normalisation pass microbatch=None, or use norm='group'"
        )
    outputs = jax.eval_shape(lambda x: nnx.merge(graph, param_state, rest)(x), inputs)
    encoded = _encode(targets, outputs.shape[-1], dtype, probabilities=probabilities)
    if len(encoded) != num_samples:
        raise ValueError(f"{num_samples} inputs but {len(encoded)} targets")

    def batch_sum(params: Params, x: jax.Array, y: jax.Array, weights: jax.Array) -> jax.Array:
        outputs = nnx.merge(graph, params, rest)(x)
        values = per_sample(outputs, y.astype(outputs.dtype))
        return jnp.sum(weights.astype(values.dtype) * values)

    weights = jnp.full(num_samples, 1 / num_samples if average else 1, dtype)
    if not split:
        return (
            lambda params: batch_sum(params, _stay_put(inputs), _stay_put(encoded), weights)
        ), params

    num_batches = -(-num_samples // microbatch)
    real = np.arange(num_batches * microbatch) < num_samples
    batches = (
        _split(inputs, microbatch, num_batches),
        _split(encoded, microbatch, num_batches),
        jnp.where(real, weights[0], 0).reshape(microbatch, num_batches).T,
    )

    def total(params: Params) -> jax.Array:
        @jax.checkpoint  # recomputed in the backward pass: nothing is kept between microbatches
        def step(total, batch):
            return total + batch_sum(params, *batch), None

        zero = jnp.zeros((), jax.tree.leaves(params)[0].dtype)
        return jax.lax.scan(step, zero, jax.tree.map(_stay_put, batches))[0]

    return total, params


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
    * "cross_entropy": $E(\theta) = -\frac1n \sum_{i,j} y_{ij} \log p_{ij}$ with
      $p_i = \operatorname{softmax} f_\theta(x_i)$; with one output, the logistic loss.

    Both are analytic in $\theta$ where the network is, and may be called at complex parameters.

    Inputs and targets may be sharded over devices along the samples, and stay so. Data that a
    compiled function closes over are copied to every device as constants, though, and data that
    span several processes cannot be closed over at all: compile a function of the data that calls
    `full_batch`, as in the example. There the targets' values are taken on trust.

    Args:
      model: a Flax NNX module, called on a batch of inputs. State other than `nnx.Param` is
        frozen at its present value.
      inputs: [n, ...] floats.
      targets: [n] integer classes (one-hot encoded; 0/1 for a single output), or [n, outputs]
        floats.
      kind: "mse" or "cross_entropy".
      microbatch: samples evaluated at a time. The sum over microbatches is exact up to rounding,
        and memory for derivatives is bounded by one microbatch. None: all at once. Every device
        works on every microbatch if the number of devices divides this one; no sample moves to
        another device if this one divides n.

    Returns:
      `(loss, params)`: `params` is a nested dict of arrays, `loss(params)` a scalar of their
      dtype.

    Raises:
      ValueError: unknown `kind`, targets that do not fit inputs or outputs, `microbatch` below 1
        or with batch normalisation, data sharded over explicit mesh axes.

    Example:
      >>> from flax import nnx
      >>> import jax, jax.numpy as jnp, pfcore
      >>> model = pfcore.networks.MLP((2, 3, 1), rngs=nnx.Rngs(0))
      >>> loss, params = pfcore.losses.full_batch(
      ...     model, jnp.ones((4, 2)), jnp.zeros((4, 1)), kind="mse")
      >>> loss(params).shape
      ()

      >>> @jax.jit
      ... def gradient(params, inputs, targets):
      ...     loss, _ = pfcore.losses.full_batch(model, inputs, targets, kind="mse")
      ...     return jax.grad(loss)(params)
      >>> mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
      >>> shards = jax.NamedSharding(mesh, jax.P("data"))  # of the first axis, over all devices
      >>> data = jax.device_put((jnp.ones((4, 2)), jnp.zeros((4, 1))), shards)
      >>> gradient(params, *data)["layers"][0]["kernel"].shape
      (2, 3)
    """
    if kind not in _PER_SAMPLE:
        raise ValueError(f"unknown kind {kind!r}; choose one of {', '.join(_PER_SAMPLE)}")
    return _sum_over_samples(
        model,
        inputs,
        targets,
        _PER_SAMPLE[kind],
        average=True,
        probabilities=kind == "cross_entropy",
        microbatch=microbatch,
    )


def accuracy(
    model: nnx.Module,
    inputs: ArrayLike,
    targets: ArrayLike,
    *,
    threshold: float = 0.0,
    microbatch: int | None = None,
) -> tuple[Callable[[Params], jax.Array], Params]:
    r"""Share of samples classified right, as a function of the parameters of a network.

    The class is that of the largest output; of a single output it is 1 above `threshold`, else 0.
    Of complex outputs the real part counts. A sample whose outputs are NaN is wrong.

    Args:
      model: as for `full_batch`.
      inputs: [n, ...] floats.
      targets: [n] integer classes, or [n, outputs] floats, of which the largest is the class (of
        a single one: 1 above 0.5, else 0).
      threshold: for a single output: 0 (default) suits a logit, trained by "cross_entropy"; 0.5
        suits an output trained by "mse" on 0 and 1.
      microbatch: samples evaluated at a time, which bounds memory. None: all at once.

    Returns:
      `(accuracy, params)`: `params` is a nested dict of arrays, `accuracy(params)` a real scalar
      between 0 and 1. No gradients: it is piecewise constant.

    Raises:
      ValueError: as for `full_batch`.

    Example:
      >>> from flax import nnx
      >>> import jax.numpy as jnp, pfcore
      >>> model = pfcore.networks.MLP((2, 3), rngs=nnx.Rngs(0))
      >>> share, params = pfcore.losses.accuracy(model, jnp.zeros((4, 2)), [0, 1, 0, 0])
      >>> float(share(params))
      0.75
    """
    count, params = _sum_over_samples(
        model,
        inputs,
        targets,
        lambda outputs, targets: _correct(outputs, targets, threshold).astype(outputs.dtype),
        average=False,
        probabilities=False,
        microbatch=microbatch,
    )
    num_samples = np.shape(inputs)[0]
    return (lambda params: jnp.real(count(params)) / num_samples), params
