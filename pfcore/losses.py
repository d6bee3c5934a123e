"""Full-batch loss and accuracy of a model on its data, as functions of the parameters alone."""

import functools
import inspect
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from pfcore import _programs
from pfcore._checks import ArrayLike, Loss, check_count
from pfcore._trees import Params, in_single, is_complex, real_dtype, to_complex
from pfcore.networks import Norm

Model = Any  # a Flax NNX module: `_check_model` gives better errors than a type


def _mse(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """½ Σ_j (outputs_j − targets_j)² for each position; shapes [..., k] -> [...]."""
    return 0.5 * jnp.sum((outputs - targets) ** 2, axis=-1)


def _log_sum_exp(x: jax.Array) -> jax.Array:
    """log Σ_j exp(x_j) over the last axis.

    Real logits are shifted by their maximum, as usual. Complex ones are not: a maximum is not an
    analytic function, and near the real axis, where flows stay, no shift is needed.
    """
    if jnp.iscomplexobj(x):
        return jnp.log(jnp.sum(jnp.exp(x), axis=-1))
    return jax.nn.logsumexp(x, axis=-1)


def _cross_entropy(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """−Σ_j targets_j log softmax(outputs)_j for each position; shapes [..., k] -> [...]."""
    if outputs.shape[-1] == 1:
        # One logit for two classes: the softmax over (0, logit).
        outputs = jnp.concatenate([jnp.zeros_like(outputs), outputs], axis=-1)
        targets = jnp.concatenate([1 - targets, targets], axis=-1)
    # Shifting by the target's own logit is analytic, and keeps the exponentials small where the
    # network is correct.
    reference = jnp.sum(targets * outputs, axis=-1, keepdims=True)
    return _log_sum_exp(outputs - reference)


_PER_SAMPLE = {"mse": _mse, "cross_entropy": _cross_entropy}


def _stay_put(x: ArrayLike) -> ArrayLike:
    """`x` with its sharding kept: closed-over arrays would otherwise move to one device."""
    known = isinstance(x, jax.Array) and not isinstance(x, jax.core.Tracer)
    if known and len(x.sharding.device_set) > 1:
        return jax.lax.with_sharding_constraint(x, x.sharding)
    return x


def _correct(outputs: jax.Array, targets: jax.Array, threshold: float) -> jax.Array:
    """1 for each position whose class is correct, else 0; shapes [..., k] -> [...]."""
    outputs, targets = jnp.real(outputs), jnp.real(targets)
    if outputs.shape[-1] == 1:
        right = (outputs[..., 0] > threshold) == (targets[..., 0] > 0.5)
    else:
        right = jnp.argmax(outputs, axis=-1) == jnp.argmax(targets, axis=-1)
    # Comparisons with NaN would count as one of the classes.
    return (right & ~jnp.any(jnp.isnan(outputs), axis=-1)).astype(outputs.dtype)


def _known(x: ArrayLike | None) -> bool:
    return not isinstance(x, jax.core.Tracer)


def _as_array(x: ArrayLike) -> np.ndarray | jax.Array:
    return x if isinstance(x, jax.Array) else np.asarray(x)


def _kept(x: np.ndarray | jax.Array, dtype: Any) -> jax.Array:
    """An array of the loss's own. JAX may share memory with a NumPy array, whose owner may reuse
    it, as data loaders do."""
    return jnp.asarray(_stay_put(x.copy() if isinstance(x, np.ndarray) else x), dtype)


def _chosen(mask: np.ndarray | jax.Array, x: np.ndarray | jax.Array, other: float | int) -> Any:
    """`x` where `mask` is true, else `other`; the mask has the leading axes of `x`."""
    xp = jnp if isinstance(x, jax.Array) or isinstance(mask, jax.Array) else np
    mask = mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim))
    x = xp.asarray(x)  # in a precision that JAX supports
    return xp.where(mask, x, xp.asarray(other, x.dtype))


def _check_classes(targets: np.ndarray | jax.Array, num_outputs: int) -> None:
    classes = max(num_outputs, 2)
    if targets.size and (targets.min() < 0 or targets.max() >= classes):
        raise ValueError(
            f"class labels run from {targets.min()} to {targets.max()}, but the model has "
            f"{num_outputs} output(s), which distinguish {classes} classes; exclude positions "
            "without a class with mask="
        )


def _check_probabilities(targets: np.ndarray | jax.Array) -> None:
    xp = jnp if isinstance(targets, jax.Array) else np
    in_range = xp.all((targets >= -1e-5) & (targets <= 1 + 1e-5))
    if not in_range or (targets.shape[-1] > 1 and not xp.allclose(targets.sum(-1), 1, atol=1e-5)):
        raise ValueError(
            "cross_entropy targets must be probabilities, between 0 and 1, that sum to 1 in "
            f"each row; got values from {targets.min()} to {targets.max()}"
        )


def _check_targets(
    targets: np.ndarray | jax.Array,
    outputs: tuple[int, ...],
    mask: np.ndarray | jax.Array | None,
    dtype: jnp.dtype,
    *,
    probabilities: bool,
) -> jax.Array:
    """Integer classes [...], or floats [..., k], for outputs of shape [..., k]."""
    rows, num_outputs = outputs[:-1], outputs[-1]
    classes = jnp.issubdtype(targets.dtype, jnp.integer)
    if classes and targets.ndim != len(rows):
        where = "[n]" if len(rows) == 1 else f"{rows}, one for each position"
        raise ValueError(f"integer targets must be class labels {where}, got shape {targets.shape}")
    if not classes and targets.ndim == len(rows) and num_outputs == 1:
        targets = targets[..., None]
    if targets.shape[1:] != (rows[1:] if classes else outputs[1:]):
        have = f"{num_outputs} column(s)" if len(rows) == 1 else f"shape {outputs}"
        want = "[n, outputs] floats or [n] integer classes"
        if len(rows) > 1:
            want = f"floats of that shape, or integer classes of shape {rows}"
        raise ValueError(
            f"targets have shape {targets.shape}, but the model's outputs have {have}; pass {want}"
        )
    if len(targets) != rows[0]:
        raise ValueError(f"{rows[0]} inputs but {len(targets)} targets")
    if mask is not None:  # masked positions hold padding, which need not be valid targets
        with jax.ensure_compile_time_eval():
            targets = _chosen(mask, targets, 0 if classes else 1 / num_outputs)
    if _known(targets):
        with jax.ensure_compile_time_eval():  # under tracing too
            if classes:
                _check_classes(targets, num_outputs)
            elif probabilities:
                _check_probabilities(targets.astype(dtype) if targets.dtype == bool else targets)
    return _kept(targets, jnp.int32 if classes else dtype)


def _encoded(targets: jax.Array, num_outputs: int, dtype: jnp.dtype) -> jax.Array:
    """Targets as floats [..., num_outputs]; classes become one-hot (0/1 for one output).

    Done for one microbatch at a time: for sequences over a large vocabulary, all would fill memory.
    """
    if not jnp.issubdtype(targets.dtype, jnp.integer):
        return targets.astype(dtype)
    if num_outputs == 1:
        return targets.astype(dtype)[..., None]
    return jax.nn.one_hot(targets, num_outputs, dtype=dtype)


def _check_mask(mask: ArrayLike, rows: tuple[int, ...]) -> np.ndarray | jax.Array:
    mask = _as_array(mask)
    _check_mesh("mask", mask)
    if mask.dtype != bool and not jnp.issubdtype(mask.dtype, jnp.integer):
        raise TypeError(
            f"mask must hold True and False, or 1 and 0, got dtype {mask.dtype}; "
            "pass fractions as weights="
        )
    if mask.shape != rows:
        raise ValueError(
            f"mask has shape {mask.shape}, but there is an output at each position of {rows}; "
            "pass True or False for each"
        )
    return mask.astype(bool)


def _check_weights(
    weights: ArrayLike | None,
    mask: np.ndarray | jax.Array | None,
    rows: tuple[int, ...],
    dtype: jnp.dtype,
) -> jax.Array | None:
    """The weight of each position, not normalised; None where all are equal."""
    if weights is None and mask is None:
        return None
    given = _as_array(np.ones(rows[0]) if weights is None else weights)
    _check_mesh("weights", given)
    if given.shape not in (rows, rows[:1]):
        ways = f"{rows[:1]}, one for each sample"
        if len(rows) > 1:
            ways += f", or {rows}, one for each position"
        raise ValueError(f"weights have shape {given.shape}; pass {ways}")
    if jnp.issubdtype(given.dtype, jnp.complexfloating):
        raise TypeError(f"weights must be real numbers, got dtype {given.dtype}")
    if _known(given):
        with jax.ensure_compile_time_eval():
            low, high = given.min(), given.max()
            if not (np.isfinite(low) and np.isfinite(high) and low >= 0):
                raise ValueError(
                    f"weights must be finite and non-negative, got values from {low} to {high}"
                )
    full = _kept(given, dtype)
    full = jnp.broadcast_to(full.reshape(full.shape + (1,) * (len(rows) - full.ndim)), rows)
    if mask is not None:
        full = jnp.where(mask, full, 0)
    if _known(full):
        with jax.ensure_compile_time_eval():
            if not full.max() > 0:
                raise ValueError("weights and mask leave nothing to average: every weight is 0")
    return full


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
    """[n, ...] -> [num_batches, microbatch, ...], the last rows padded with the first sample.

    Every num_batches-th sample goes into the same microbatch, so each microbatch is spread over all
    devices that hold samples. Consecutive samples would lie on one device.
    """
    missing = num_batches * microbatch - len(x)
    if missing:
        # Padding and selection keep a sharded axis sharded; indexing or concatenation gathers it.
        padded = jnp.pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1))
        real = jnp.arange(len(padded)).reshape(-1, *[1] * (x.ndim - 1)) < len(x)
        x = jnp.where(real, padded, x[:1])
    return x.reshape(microbatch, num_batches, *x.shape[1:]).swapaxes(0, 1)


def _check_model(model: Model) -> None:
    if not isinstance(model, nnx.Module):
        raise TypeError(
            f"model must be a Flax NNX module, got {type(model).__name__}; with Linen, Haiku or "
            "Equinox write loss(params) yourself, as the page 'Your framework' of the book shows"
        )
    if not callable(model):
        raise TypeError(
            f"the model, {type(model).__name__}, cannot be called on a batch of inputs; "
            "give it a method __call__(self, inputs)"
        )


def _check_outputs(outputs: Any, num_samples: int) -> tuple[int, ...]:
    """The shape of a model's outputs, if a loss can be computed from them."""
    if not isinstance(outputs, jax.ShapeDtypeStruct):
        raise TypeError(
            "the model must return one array of outputs, got "
            f"{jax.tree.map(lambda x: x.shape, outputs)!r} (shapes); wrap it in a module that "
            "returns the outputs alone (nnx.RNN: without return_carry=True)"
        )
    if outputs.ndim < 2 or outputs.shape[0] != num_samples:
        raise ValueError(
            f"the model's outputs have shape {outputs.shape} for {num_samples} inputs; they must "
            "be [n, outputs], or [n, T, outputs] for sequences, with the samples first"
        )
    return outputs.shape


def _is_key(x: jax.Array) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _for_sample(rest: Any, index: jax.Array) -> Any:
    """State other than parameters, with random keys folded with the sample's index."""

    def fold(x: jax.Array) -> jax.Array:
        if not _is_key(x):
            return x
        return jax.vmap(jax.random.fold_in, (0, None))(x.ravel(), index).reshape(x.shape)

    return jax.tree.map(fold, rest)


def _check_rngs(rngs: Any) -> nnx.Rngs:
    if isinstance(rngs, nnx.Rngs):
        return rngs
    try:
        return nnx.Rngs(rngs)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"rngs must be nnx.Rngs, a key or a seed, got {rngs!r}; pass rngs=nnx.Rngs(0)"
        ) from error


def _next_keys(rngs: nnx.Rngs) -> dict[str, jax.Array]:
    """The key that each stream would give next, without advancing the stream."""
    return {
        name: jax.random.fold_in(stream.key[...], stream.count[...])
        for name, stream in rngs.items()
    }


def _reseeded(rest: Any, rngs: nnx.Rngs) -> Any:
    """A model's streams restarted from those of `rngs`; others stay as they are."""
    keys, place = _next_keys(rngs), itertools.count()

    def fresh(variable: Any) -> Any:
        if not isinstance(variable, nnx.RngKey | nnx.RngCount):
            return variable
        key = keys.get(variable.tag, keys.get("default"))
        if key is None:
            return variable
        old = variable[...]
        if isinstance(variable, nnx.RngCount):
            return jnp.zeros_like(old)
        # Streams with the same name get different keys.
        key = jax.random.fold_in(key, next(place))
        return jax.random.split(key, old.shape) if old.shape else key

    return jax.tree.map(fresh, rest, is_leaf=lambda x: isinstance(x, nnx.Variable))


def _depends(function: Callable[[Any], Any], argument: Any) -> bool:
    """Whether the result of `function` depends on its argument.

    `jax.vmap` tracks the dependence through the whole program, and refuses to return a result that
    depends on the argument as if it did not. A function that can be evaluated raises nothing else.
    """
    two = jax.tree.map(lambda x: jax.ShapeDtypeStruct((2, *x.shape), x.dtype), argument)
    try:
        jax.eval_shape(jax.vmap(function, out_axes=None), two)
    except ValueError:
        return True
    return False


def _loss_dtype(params: Params) -> jnp.dtype:
    """The widest dtype among the parameters, and at least float32."""
    zero = in_single(jnp.zeros((), real_dtype(params)))
    return to_complex(zero).dtype if is_complex(params) else zero.dtype


class _Network:
    """A model as a pure function of its parameters: `network(params, inputs, index) -> outputs`.

    Attributes:
      params: a nested dict of arrays.
      dtype: real, of the loss: the widest among the parameters, and at least float32.
    """

    def __init__(self, model: Model, rngs: Any):
        _check_model(model)
        graph, params, rest = nnx.split(model, nnx.Param, ...)  # type: ignore[misc]
        self.keys: dict[str, jax.Array] = {}
        self.takes_rngs = False
        if rngs is not None:
            rngs = _check_rngs(rngs)
            rest = _reseeded(rest, rngs)
            self.keys = _next_keys(rngs)
            self.takes_rngs = "rngs" in inspect.signature(type(model).__call__).parameters
        # Plain arrays: a State would share its variables with the model and follow their changes,
        # and a call under a transformation could not change them.
        self.graph, self.params = graph, nnx.to_pure_dict(params)
        self.rest = nnx.to_pure_dict(rest)
        if not jax.tree.leaves(self.params):
            raise ValueError(
                f"the model, {type(model).__name__}, has no nnx.Param: there is nothing to "
                "differentiate by"
            )
        self.dtype = _loss_dtype(self.params)
        self.batch_norm = any(
            isinstance(module, Norm) and module.kind == "batch"
            for _, module in nnx.iter_modules(model)
        )

    def _called(self, params: Params, rest: Any, x: jax.Array, index: Any) -> tuple[Any, Any]:
        model: Any = nnx.merge(self.graph, params, rest)
        options = {}
        if self.takes_rngs:
            keys = {name: jax.random.fold_in(key, index) for name, key in self.keys.items()}
            options["rngs"] = nnx.Rngs(**keys)
        return model(self._cast(x, params), **options), model

    def _cast(self, x: jax.Array, params: Params) -> jax.Array:
        """Floats in the precision of the parameters; integers, which may be tokens, as they are."""
        floating = jnp.issubdtype(x.dtype, jnp.floating)
        return x.astype(real_dtype(params)) if floating else x

    def uses_statistics(self, x: jax.Array) -> bool:
        """Whether outputs depend on batch statistics that the model declares."""

        def statistics(x: jax.Array) -> Any:
            model = self._called(self.params, self.rest, x, 0)[1]
            return nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))

        return self.batch_norm or _depends(statistics, x)

    def draws(self, x: jax.Array) -> bool:
        """Whether outputs depend on random keys that the model holds."""
        leaves, structure = jax.tree.flatten(self.rest)

        def outputs(keys: list[jax.Array]) -> Any:
            rest = [keys.pop(0) if _is_key(leaf) else leaf for leaf in leaves]
            return self._called(self.params, jax.tree.unflatten(structure, rest), x, 0)[0]

        keys = [leaf for leaf in leaves if _is_key(leaf)]
        return bool(keys) and _depends(lambda keys: outputs(list(keys)), keys)

    def at_once(self, params: Params, x: jax.Array, index: jax.Array) -> Any:
        return self._called(params, self.rest, x, 0)[0]

    def one_by_one(self, params: Params, x: jax.Array, index: jax.Array) -> Any:
        """Each sample with random numbers that depend only on its index."""

        def outputs(x: jax.Array, index: jax.Array) -> Any:
            batch, _ = self._called(params, _for_sample(self.rest, index), x[None], index)
            return jax.tree.map(lambda y: y[0], batch)

        return jax.vmap(outputs)(x, index)


def _sum_over_samples(
    model: Model,
    inputs: ArrayLike,
    targets: ArrayLike,
    per_sample: Callable[[jax.Array, jax.Array], jax.Array],
    *,
    average: bool,
    probabilities: bool,
    microbatch: int | None,
    weights: ArrayLike | None,
    mask: ArrayLike | None,
    rngs: Any,
) -> tuple[Callable[[Params], jax.Array], Params, jax.Array | int]:
    """(params -> Σ_i w_i per_sample(f(x_i), y_i), params, Σ_i w_i), over Σ_i w_i if `average`."""
    network = _Network(model, rngs)
    params, dtype = network.params, network.dtype

    inputs, targets = _as_array(inputs), _as_array(targets)
    _check_mesh("inputs", inputs)
    _check_mesh("targets", targets)
    floating = jnp.issubdtype(inputs.dtype, jnp.floating)
    inputs = _kept(inputs, dtype if floating else None)
    if inputs.ndim == 0 or inputs.shape[0] == 0:
        raise ValueError(f"inputs must hold at least one sample, got shape {inputs.shape}")
    num_samples = inputs.shape[0]
    index = jnp.arange(num_samples, dtype=jnp.uint32)
    if microbatch is not None:
        microbatch = check_count("microbatch", microbatch, minimum=1)
    outputs = jax.eval_shape(lambda x: network.at_once(params, x, index), inputs)
    shape = _check_outputs(outputs, num_samples)
    split = microbatch is not None and microbatch < num_samples
    together = (split or rngs is not None) and network.uses_statistics(inputs)
    if split and together:
        raise ValueError(
            f"microbatch={microbatch} would normalise by the statistics of each microbatch, which "
            "is another loss; with batch normalisation pass microbatch=None, use norm='group', or "
            "call model.eval()"
        )
    if split and rngs is None and network.draws(inputs):
        raise ValueError(
            f"microbatch={microbatch} would draw the random numbers of the model, such as dropout "
            "masks, for each microbatch, which is another loss; pass rngs=nnx.Rngs(0), which makes "
            "a sample's numbers independent of the microbatch, or call model.eval()"
        )
    # Random numbers are drawn sample by sample, unless the outputs of samples depend on each other.
    call = network.at_once if rngs is None or together else network.one_by_one
    mask = None if mask is None else _check_mask(mask, shape[:-1])
    targets = _check_targets(targets, shape, mask, dtype, probabilities=probabilities)
    counts = _check_weights(weights, mask, shape[:-1], dtype)
    positions = math.prod(shape[:-1])
    if counts is None:
        full = jnp.full(shape[:-1], 1 / positions if average else 1, dtype)
        total_weight: jax.Array | int = positions
    else:
        total_weight = jnp.sum(counts)
        full = counts / total_weight if average else counts

    def batch_sum(params: Params, x, y, weights, index) -> jax.Array:
        outputs = in_single(call(params, x, index))
        values = per_sample(outputs, _encoded(y, shape[-1], outputs.dtype))
        result = jnp.sum(weights.astype(values.dtype) * values)
        return result.astype(_loss_dtype(params))

    data = (inputs, targets, full, index)
    if not split:
        whole = _programs.fixed(lambda params: batch_sum(params, *(_stay_put(x) for x in data)))
        return whole, params, total_weight

    num_batches = -(-num_samples // microbatch)
    real = np.arange(num_batches * microbatch) < num_samples
    x, y, shares, index = (_split(array, microbatch, num_batches) for array in data)
    real = real.reshape(microbatch, num_batches).T
    shares = jnp.where(real.reshape(real.shape + (1,) * (shares.ndim - 2)), shares, 0)
    batches = (x, y, shares, index)

    def total(params: Params) -> jax.Array:
        @jax.checkpoint  # recompute in the backward pass: nothing is stored between microbatches
        def step(total, batch):
            return total + batch_sum(params, *batch), None

        zero = jnp.zeros((), _loss_dtype(params))
        return jax.lax.scan(step, zero, jax.tree.map(_stay_put, batches))[0]

    return _programs.fixed(total), params, total_weight


def full_batch(
    model: Model,
    inputs: ArrayLike,
    targets: ArrayLike,
    *,
    kind: str,
    microbatch: int | None = None,
    weights: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    rngs: Any = None,
) -> tuple[Loss, Params]:
    r"""Full-batch loss of a network, as a function of its parameters.

    * "mse": $E(\theta) = \frac1n \sum_i \tfrac12 \|f_\theta(x_i) - y_i\|^2$
    * "cross_entropy": $E(\theta) = -\frac1n \sum_{i,j} y_{ij} \log p_{ij}$ with
      $p_i = \operatorname{softmax} f_\theta(x_i)$; with one output, the logistic loss.

    Both are analytic in $\theta$ where the network is, and may be called at complex parameters.
    For outputs [n, T, k], with further axes between samples and outputs, the mean is over all
    $nT$ positions. With weights $w$ it is $\sum_i w_i \ell_i / \sum_i w_i$: a sample of weight 2
    counts as if it were there twice.

    Inputs and targets may be sharded over devices along the samples, and keep their sharding.
    However, data that a compiled function closes over are copied to every device as constants, and
    data that span several processes cannot be closed over at all. Compile a function of the data
    that calls `full_batch`, as in the example. The values of targets and weights are not checked
    under tracing.

    Args:
      model: a Flax NNX module, called on a batch of inputs. State other than `nnx.Param` is
        frozen at its present value: running statistics, and random keys. Dropout that is not
        switched off by `model.eval()` therefore has the same mask at every call.
      inputs: [n, ...]. Floats get the precision of the parameters; integers, such as tokens, stay
        integers.
      targets: [n] integer classes (one-hot encoded; 0/1 for a single output), or [n, outputs]
        floats. For outputs [n, T, k]: [n, T] classes or [n, T, k] floats.
      kind: "mse" or "cross_entropy".
      microbatch: samples evaluated at a time. The sum over microbatches is exact up to rounding,
        and memory for derivatives is bounded by one microbatch. None: all at once. Every device
        works on every microbatch if `microbatch` is a multiple of the number of devices; no sample
        moves to another device if `microbatch` divides n.
      weights: [n], at least 0, or [n, T] for outputs [n, T, k]. None: all equal.
      mask: the outputs' shape without its last axis; False or 0 excludes a position, whatever its
        target. Its inputs must be finite, as those of weight 0, since 0 · NaN is NaN. None: every
        position counts.
      rngs: `nnx.Rngs`, a key or a seed. Each sample's random numbers are then drawn from its
        streams and the sample's index. They are the same at every call and for every `microbatch`,
        whatever else is drawn from `rngs`. A model whose `__call__` has an argument `rngs` receives
        them there. (With batch normalisation, they are drawn for all samples together.) None: the
        model's own streams, for all samples at once.

    Returns:
      `(loss, params)`: `params` is a nested dict of arrays, `loss(params)` a scalar of their
      widest dtype, at least float32.

    Raises:
      ValueError: unknown `kind`; targets, weights or a mask that do not fit inputs or outputs;
        `microbatch` below 1, with batch normalisation, or with random numbers and no `rngs`; data
        sharded over explicit mesh axes.
      TypeError: a model that is not an NNX module or returns more than one array, a mask of
        fractions.

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

      A class at each of three tokens; token 0 is padding:

      >>> tokens = jnp.array([[1, 5, 3], [4, 0, 0]])
      >>> model = nnx.Sequential(
      ...     nnx.Embed(6, 4, rngs=nnx.Rngs(0)), nnx.Linear(4, 2, rngs=nnx.Rngs(1)))
      >>> loss, params = pfcore.losses.full_batch(
      ...     model, tokens, [[0, 1, 1], [1, 0, 0]], mask=tokens != 0, kind="cross_entropy")
    """
    if kind not in _PER_SAMPLE:
        raise ValueError(f"unknown kind {kind!r}; choose one of {', '.join(_PER_SAMPLE)}")
    loss, params, _ = _sum_over_samples(
        model,
        inputs,
        targets,
        _PER_SAMPLE[kind],
        average=True,
        probabilities=kind == "cross_entropy",
        microbatch=microbatch,
        weights=weights,
        mask=mask,
        rngs=rngs,
    )
    return loss, params


def accuracy(
    model: Model,
    inputs: ArrayLike,
    targets: ArrayLike,
    *,
    threshold: float = 0.0,
    microbatch: int | None = None,
    weights: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    rngs: Any = None,
) -> tuple[Callable[[Params], jax.Array], Params]:
    r"""Fraction of samples classified correctly, as a function of the parameters of a network.

    The class is that of the largest output; with a single output it is 1 above `threshold`, else 0.
    The real part of complex outputs is used. A sample whose outputs are NaN is wrong. For outputs
    [n, T, k] it is the fraction of all positions.

    Args:
      model: as for `full_batch`.
      inputs: as for `full_batch`.
      targets: [n] integer classes, or [n, outputs] floats, of which the largest is the class (with
        a single output: 1 above 0.5, else 0); for sequences as for `full_batch`.
      threshold: for a single output: 0 (default) suits a logit, trained by "cross_entropy"; 0.5
        suits an output trained by "mse" on 0 and 1.
      microbatch: samples evaluated at a time, which bounds memory. None: all at once.
      weights: as for `full_batch`.
      mask: as for `full_batch`.
      rngs: as for `full_batch`.

    Returns:
      `(accuracy, params)`: `params` is a nested dict of arrays, `accuracy(params)` a real scalar
      between 0 and 1. It is piecewise constant, without useful gradients.

    Raises:
      ValueError: as for `full_batch`.
      TypeError: as for `full_batch`.

    Example:
      >>> from flax import nnx
      >>> import jax.numpy as jnp, pfcore
      >>> model = pfcore.networks.MLP((2, 3), rngs=nnx.Rngs(0))
      >>> share, params = pfcore.losses.accuracy(model, jnp.zeros((4, 2)), [0, 1, 0, 0])
      >>> float(share(params))
      0.75
    """
    count, params, total_weight = _sum_over_samples(
        model,
        inputs,
        targets,
        lambda outputs, targets: _correct(outputs, targets, threshold).astype(outputs.dtype),
        average=False,
        probabilities=False,
        microbatch=microbatch,
        weights=weights,
        mask=mask,
        rngs=rngs,
    )
    return (lambda params: jnp.real(count(params)) / total_weight), params
