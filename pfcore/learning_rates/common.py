"""Shared parts of the learning rates: arguments, bounds and application."""

import functools
import operator
from collections.abc import Callable, Hashable, Iterator
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax
from jax.extend.core import ClosedJaxpr, Literal
from jaxtyping import Array, Bool, Float

from pfcore import _programs
from pfcore._checks import Loss, ScalarLike, check_count, check_number, check_vector
from pfcore._trees import Params, check_params, in_single, norm, real_dtype
from pfcore.curvature.products import Curvature, Flat, Part, flat_product, gradient_and_hvp

AxisName = Hashable | tuple[Hashable, ...] | None
Measured = TypeVar("Measured")

# Primitives that combine replicas under pmap and vmap, where JAX does not track which values are
# the same on all of them. Under shard_map it does, and a sum is another primitive.
COMBINING = ("psum", "pmax", "pmin", "all_gather")
# Primitives that introduce axes of their own.
MAPPING = ("shard_map", "xla_pmap")


class Point(NamedTuple):
    """Where a rate is measured: the loss of the trained parameters, the parameters, a direction.

    All numbers have at least single precision.
    """

    loss: Any  # or a `Curvature`, where a rate takes one
    params: Params
    updates: Params


def required(
    name: str, loss_fn: Any, params: Params | None, *, curvature: bool = False
) -> tuple[Any, Params]:
    """The loss and the parameters, or an error if they are missing."""
    if loss_fn is None or params is None:
        missing = "loss_fn" if loss_fn is None else "params"
        raise ValueError(
            f"{name} needs the parameters and the loss: call "
            f"tx.update(grads, state, params, loss_fn=loss); {missing} is missing"
        )
    if not callable(loss_fn) and not (curvature and isinstance(loss_fn, Curvature)):
        raise TypeError(f"loss_fn must be a function of params, got {loss_fn!r}")
    return loss_fn, params


def trained(params: Params) -> Params:
    """The parameters that are not masked, in at least single precision; possibly none."""
    return params if is_empty(params) else in_single(check_params(params))


def state_dtype(params: Params) -> jnp.dtype:
    """The precision of a rate for these parameters, single where there are none."""
    return jnp.dtype(jnp.float32) if is_empty(params) else real_dtype(params)


def is_masked(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)


def _masks(tree: Params) -> list[str]:
    """The paths of masked leaves."""
    nodes = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_masked)
    return [jax.tree_util.keystr(path) for path, node in nodes if is_masked(node)]


def _filled(masked: Params, full: Params) -> Params:
    """`masked`, with masked leaves replaced by those of `full`."""
    return jax.tree.map(
        lambda node, whole: whole if is_masked(node) else node, masked, full, is_leaf=is_masked
    )


def _whole(name: str, params: Params, full_params: Params | None) -> Params:
    """All parameters including frozen ones, or an error if they are missing."""
    if full_params is None:
        raise ValueError(
            f"{name} is inside a mask that hides the frozen parameters params"
            f"{_masks(params)[0]}, but loss_fn is a function of all parameters: call "
            "tx.update(grads, state, params, loss_fn=loss, full_params=params)"
        )
    if _masks(full_params):
        raise ValueError(
            f"full_params{_masks(full_params)[0]} is masked, but it must hold all parameters: "
            "leave mask_compatible_extra_args of Optax's masks at False"
        )
    try:
        return _filled(params, full_params)
    except ValueError as error:
        raise ValueError(
            f"full_params must have the structure of the parameters before they are masked: {error}"
        ) from error


def _in_single(name: str, loss: Loss) -> Loss:
    """`loss`, with a helpful error if it rejects dtypes other than the user's."""

    def evaluate(params: Params) -> Array:
        try:
            return loss(params)
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"{name} evaluates loss_fn at 16-bit parameters cast to float32, because curvature "
                "is lost in 16 bits, and that failed: let loss_fn take both, for instance by "
                f"casting its data to the parameters' dtype. The error was: {error}"
            ) from error

    return evaluate


def _of_trained(loss: Any, masked: Params, whole: Params) -> Any:
    """A loss of the parameters that are not masked, with the others taken from `whole`."""

    def fill(params: Params) -> Params:
        return _filled(params, whole)

    def take(vector: Params) -> Params:
        return jax.tree.map(
            lambda p, v: p if is_masked(p) else v, masked, vector, is_leaf=is_masked
        )

    if isinstance(loss, Curvature):
        return loss.restricted(Part(whole, fill, take))
    return lambda params: loss(fill(params))


def _equations(jaxpr: Any) -> Iterator[tuple[Any, bool]]:
    """The equations of a jaxpr and of those inside, and whether they are inside a mapped axis."""
    for equation in jaxpr.eqns:
        mapped = equation.primitive.name in MAPPING
        yield equation, mapped
        for inner in _programs.jaxprs(tuple(equation.params.values())):
            yield from ((e, mapped or within) for e, within in _equations(inner))


def _combined_axes(traced: ClosedJaxpr) -> tuple[Hashable, ...]:
    """The mapped axes over which a traced loss combines replicas."""
    axes: dict[Hashable, None] = {}
    for equation, mapped in _equations(traced.jaxpr):
        options = equation.params
        if mapped or equation.primitive.name not in COMBINING:
            continue
        if options.get("axis_index_groups") is None:
            names = options["axes"] if "axes" in options else options["axis_name"]
            for axis in names if isinstance(names, tuple) else (names,):
                if not isinstance(axis, int):
                    axes[axis] = None
    return tuple(axes)


def _constants(traced: ClosedJaxpr) -> list[Any]:
    """The numbers that a traced loss holds fixed."""
    literals = [
        variable.val
        for equation in _programs.equations(traced.jaxpr)
        for variable in equation.invars
        if isinstance(variable, Literal)
    ]
    return [*traced.consts, *literals]


def _differ(x: Any, y: Any) -> bool:
    """Whether two constants are known, comparable and different."""
    if x is y or is_traced(x, y):
        return False
    if jnp.shape(x) != jnp.shape(y) or jax.dtypes.result_type(x) != jax.dtypes.result_type(y):
        return False
    with jax.ensure_compile_time_eval():
        if jax.dtypes.issubdtype(jax.dtypes.result_type(x), jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        x, y = jnp.asarray(x), jnp.asarray(y)
        return not bool(jnp.all((x == y) | ((x != x) & (y != y))))  # NaN equals NaN here


def _traced_alike(loss: Loss, params: Params) -> ClosedJaxpr:
    """The jaxpr of a loss, or an error if tracing it again gives other constants.

    A compiled function would keep the constants of one trace, and the gradient and the Hessian
    product would be those of two losses.
    """
    # A function of its own for each trace: JAX keeps the jaxpr of one that it knows.
    first, second = (jax.make_jaxpr(lambda p: loss(p))(params) for _ in range(2))
    before, after = _constants(first), _constants(second)
    if len(before) == len(after) and any(map(_differ, before, after)):
        raise ValueError(
            "two evaluations of loss_fn in one update differ: it draws new random numbers, such as "
            "dropout masks, or a new batch, each time it is called. Draw them before the update, "
            "or pass the loss one key for each update, so that it is a function of params alone"
        )
    return first


class _MeanCurvature(Curvature):
    """The mean of a curvature over replicas."""

    def __init__(self, curvature: Curvature, axis_name: AxisName) -> None:
        self._curvature, self._axis_name = curvature, axis_name

    def at(self, params: Params) -> Flat:
        g, product, flat, unravel = flat_product(self._curvature, params)
        mean = functools.partial(jax.lax.pmean, axis_name=self._axis_name)
        return Flat(None if g is None else mean(g), lambda v: mean(product(v)), flat, unravel)


def _averaged(loss: Any, axis_name: AxisName) -> Any:
    """The mean loss over replicas, with the derivatives of the mean.

    Under pmap the derivative of a mean over replicas is that of this replica's share alone, because
    JAX treats the parameters of the other replicas as independent. Taking the mean over the
    parameters changes no value, and its transpose is the mean over gradients.
    """
    if isinstance(loss, Curvature):
        return _MeanCurvature(loss, axis_name)
    return lambda params: jax.lax.pmean(loss(jax.lax.pmean(params, axis_name)), axis_name)


def is_traced(*trees: Any) -> bool:
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(trees))


def point(
    name: str,
    updates: Params,
    params: Params | None,
    *,
    loss_fn: Any,
    full_params: Params | None,
    axis_name: AxisName,
    curvature: bool = False,
) -> Point:
    """The point at which `update` measures its rate; validates the arguments."""
    user_loss, params = required(name, loss_fn, params, curvature=curvature)
    whole = _whole(name, params, full_params) if _masks(params) else params
    visible = params
    if _masks(updates) and not _masks(params):
        visible = jax.tree.map(
            lambda u, p: u if is_masked(u) else p, updates, params, is_leaf=is_masked
        )
    checked = check_params(visible)
    single = in_single(checked)
    direction = jax.tree.map(
        lambda u, p: u.astype(p.dtype), check_vector("updates", updates, checked), single
    )
    # Pass the user's own function where possible: its compiled programs are then reused.
    loss = user_loss
    short = any(x.dtype != y.dtype for x, y in _pairs(single, checked))
    known = isinstance(loss, Curvature)
    if short and not known:
        loss = _in_single(name, loss)
    if _masks(single):
        whole = in_single(jax.tree.map(jnp.asarray, whole)) if short else whole
        loss = _of_trained(loss, single, whole)
    if is_traced(single, direction) and not known:
        traced = _traced_alike(loss, single)
        axis_name = _combined_axes(traced) if axis_name is None else axis_name
    if axis_name is not None and axis_name != ():
        loss = _averaged(loss, axis_name)
    return Point(loss, single, direction)


def _pairs(tree: Params, other: Params) -> zip:
    return zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True)


def is_empty(updates: Params) -> bool:
    """Whether there is nothing to update, as in an empty group."""
    return all(0 in getattr(leaf, "shape", ()) for leaf in jax.tree.leaves(updates))


def normalised(tree: Params) -> tuple[Params, Float[Array, ""]]:
    """The direction of a vector and its norm; both 0 if no entry is in the normal range."""
    size = norm(tree)
    usual = size >= jnp.finfo(size.dtype).tiny
    divisor = jnp.where(usual, size, jnp.ones_like(size))
    direction = jax.tree.map(
        lambda x: jnp.where(usual, x.astype(size.dtype) / divisor, 0).astype(x.dtype), tree
    )
    return direction, jnp.where(size < jnp.finfo(size.dtype).tiny, jnp.zeros_like(size), size)


def gradient_and_product(name: str, at: Point, direction: Params) -> tuple[Params, Params]:
    """The gradient and a Hessian product, or an error if second derivatives are missing."""
    try:
        return gradient_and_hvp(at.loss, at.params, direction)
    except TypeError as error:
        if "forward-mode" not in str(error):
            raise
        raise TypeError(
            f"{name} needs a Hessian product, and a part of loss_fn (a jax.custom_vjp, a "
            "solver's adjoint) can be differentiated only once: use "
            "dal(product='finite_difference'), which takes gradients alone, or another adjoint. "
            f"JAX's error: {error}"
        ) from error


def check_power(power: ScalarLike) -> None:
    """A non-negative real number; not checked under tracing."""
    check_number("power", power)
    if not isinstance(power, jax.core.Tracer) and not 0 <= float(power) < float("inf"):
        raise ValueError(f"power must be at least 0 and finite, got {power!r}")


def check_decay(decay: ScalarLike) -> None:
    """A number from 0 to below 1; not checked under tracing."""
    check_number("decay", decay)
    if not isinstance(decay, jax.core.Tracer) and not 0 <= float(decay) < 1:
        raise ValueError(f"decay must be at least 0 and below 1, got {decay!r}")


def check_scheduled_count(name: str, value: Any, *, minimum: int) -> Any:
    """An integer of at least `minimum`; under tracing (`inject_hyperparams`) any integer."""
    if not isinstance(value, jax.core.Tracer):
        return check_count(name, value, minimum=minimum)
    if value.shape != () or not jnp.issubdtype(value.dtype, jnp.integer):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    return value.astype(jnp.int32)


def refreshed(
    every: Any,
    num_updates: Array,
    known: Array,
    measure: Callable[[], Measured],
    kept: Callable[[], Measured],
) -> Measured:
    """`measure()` every `every` updates and where nothing is known yet; otherwise `kept()`.

    Outside compiled functions the branch is taken in Python, because `jax.lax.cond` would compile
    its branches again at each update.
    """
    if not is_traced(every) and operator.index(every) == 1:
        return measure()
    due = (num_updates % every == 0) | ~known
    if is_traced(due):
        return jax.lax.cond(due, measure, kept)
    return measure() if due else kept()


def bounded(rate: Array, sane: Bool[Array, ""], max_learning_rate: Any) -> Float[Array, ""]:
    """At most the maximum; 0 where the measurement is not finite."""
    most = jnp.asarray(max_learning_rate).astype(rate.dtype)
    return jnp.where(sane, jnp.minimum(rate, most), jnp.zeros_like(rate))


def scaled(updates: Params, rate: Array) -> Params:
    """rate · updates, multiplied in at least single precision, in the dtype of each leaf.

    Zeros where the rate is 0, which makes a bad batch harmless.
    """

    def product(leaf: Any) -> Array:
        x = jnp.asarray(leaf)
        wide = real_dtype(in_single([x, rate]))
        scaled_leaf = (rate.astype(wide) * x.astype(wide)).astype(x.dtype)
        return jnp.where(rate > 0, scaled_leaf, jnp.zeros_like(x))

    return jax.tree.map(product, updates)
