"""Argument checks that run before anything is compiled."""

import contextlib
import math
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from pfcore import _programs
from pfcore._trees import Params, check_params

Loss = Callable[[Any], jax.Array]  # params -> real scalar
# Arguments before validation: the checks below reject more, with better messages, than a type can.
ScalarLike = Any  # a number or an array of shape ()
ArrayLike = Any  # anything that jnp.asarray accepts
KeyLike = Any  # one key for random numbers


def _now(value: Any) -> contextlib.AbstractContextManager[Any]:
    """Where a value that is known is converted: within compiled functions, too."""
    known = not isinstance(value, jax.core.Tracer)
    return jax.ensure_compile_time_eval() if known else contextlib.nullcontext()


def check_number(name: str, value: ScalarLike, *, hint: str = "") -> jax.Array:
    """A real scalar as an array; traced values pass.

    Args:
      name: the argument's name, for the message.
      value: the user's value.
      hint: what to do with several values, for the message.
    """
    try:
        if value is None:
            raise TypeError("None is no number")
        with _now(value):
            array = jnp.asarray(value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be a number, got {value!r}") from error
    if array.ndim != 0:
        raise ValueError(f"{name} must be a scalar, got shape {array.shape}{hint}")
    if jnp.issubdtype(array.dtype, jnp.complexfloating) or array.dtype == jnp.bool_:
        raise TypeError(f"{name} must be a real number, got {value!r}")
    return array


def check_learning_rate(learning_rate: ScalarLike) -> jax.Array:
    """A positive, finite scalar as an array; a traced one is not checked."""
    array = check_number(
        "learning_rate", learning_rate, hint="; for several learning rates use jax.vmap"
    )
    if not isinstance(array, jax.core.Tracer):
        value = float(array)
        if not (math.isfinite(value) and value > 0):
            raise ValueError(
                f"learning_rate must be positive and finite, got {value!r}; "
                "the flows are functions of the step size of gradient descent"
            )
    return array if jnp.issubdtype(array.dtype, jnp.floating) else array.astype(float)


def check_positive(name: str, value: ScalarLike) -> jax.Array:
    """A positive, finite number as an array; a traced one is not checked."""
    with _now(value):
        array = jnp.asarray(check_number(name, value), float)
    if not isinstance(array, jax.core.Tracer) and not 0 < float(array) < math.inf:
        raise ValueError(f"{name} must be positive and finite, got {value!r}")
    return array


def check_not_negative(name: str, value: ScalarLike) -> jax.Array:
    """A finite number of at least zero as an array; a traced one is not checked."""
    with _now(value):
        array = jnp.asarray(check_number(name, value), float)
    if not isinstance(array, jax.core.Tracer) and not 0 <= float(array) < math.inf:
        raise ValueError(f"{name} must be finite and not negative, got {value!r}")
    return array


def check_count(name: str, value: Any, *, minimum: int) -> int:
    """An integer of at least `minimum`."""
    try:
        count = operator.index(value)
    except TypeError as error:
        raise TypeError(f"{name} must be an integer, got {value!r}") from error
    if count < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {count}")
    return count


def check_key(key: Any) -> PRNGKeyArray:
    """One key for random numbers, `jax.random.key(seed)` or the older `PRNGKey(seed)`."""
    what = repr(key)
    if isinstance(key, np.ndarray):
        key = jnp.asarray(key)
    if isinstance(key, jax.Array):
        typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
        if key.ndim == (0 if typed else 1) and (typed or key.dtype == jnp.uint32):
            return key
        what = f"an array of {key.dtype} of shape {key.shape}"
    raise TypeError(f"key must be one key, such as jax.random.key(0), got {what}")


def check_vector(name: str, vector: Any, params: Params, *, leading: bool = False) -> Params:
    """Return a vector as JAX arrays if its structure and shapes are those of the params.

    Args:
      name: the argument's name, for the message.
      vector: the user's value.
      params: checked parameters.
      leading: whether each leaf has an additional first axis, of the same length in all.

    Raises:
      ValueError: a leaf is missing, unexpected or of another shape; the message has its path.
      TypeError: a leaf is not a real number or array of numbers.
    """
    wanted = dict(jax.tree_util.tree_leaves_with_path(params))
    given = dict(jax.tree_util.tree_leaves_with_path(vector))
    like = "params with a leading axis of vectors" if leading else "params"
    for path in [*wanted, *given]:
        place = f"{name}{jax.tree_util.keystr(path)}"
        if path not in given:
            others = ", ".join(jax.tree_util.keystr(p) or "one array" for p in given) or "nothing"
            raise ValueError(
                f"{name} must have the structure of {like}; {place} is missing, there is {others}"
            )
        if path not in wanted:
            raise ValueError(
                f"{name} must have the structure of {like}; {place} has no counterpart"
            )
        dtype = jnp.result_type(given[path])
        complex_too = jnp.issubdtype(jnp.result_type(wanted[path]), jnp.complexfloating)
        kind = jnp.inexact if complex_too else jnp.floating
        if not (jnp.issubdtype(dtype, kind) or jnp.issubdtype(dtype, jnp.integer)):
            raise TypeError(f"{place} has dtype {dtype}; it must be real, like params")
        shape, want = jnp.shape(given[path]), jnp.shape(wanted[path])
        if leading and (shape[1:] != want or not shape or shape[0] == 0):
            raise ValueError(
                f"{place} has shape {shape}, but must have {('k', *want)} with k vectors, as "
                f"params{jax.tree_util.keystr(path)} has {want}"
            )
        if not leading and shape != want:
            raise ValueError(
                f"{place} has shape {shape}, but params{jax.tree_util.keystr(path)} has {want}; "
                f"{name} must have the structure and shapes of params"
            )
    lengths = [jnp.shape(x)[0] for x in given.values()] if leading else []
    if len(set(lengths)) > 1:
        raise ValueError(f"the leaves of {name} hold different numbers of vectors, {lengths}")
    structure = jax.tree.structure(params)
    return jax.tree.unflatten(structure, [jnp.asarray(given[path]) for path in wanted])


def check_path(name: str, path: Params) -> Params:
    """A pytree of arrays with a leading axis of one length, at least 1."""
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(path)]
    if len({shape[:1] for shape in shapes}) != 1 or shapes[0][:1] in ((), (0,)):
        raise ValueError(
            f"the leaves of {name} must have a leading axis of the same length, one entry for each "
            f"point; got shapes {shapes}"
        )
    return jax.tree.map(jnp.asarray, path)


def is_hosted(loss: Any) -> bool:
    """Whether the products of this loss run in Python; see `pfcore.curvature.hosted`."""
    return getattr(loss, "hosted", False)


def check_curvature(loss: Any, params: Params) -> Params:
    """Return checked `params` at which a loss is finite, or a `Curvature` can be evaluated."""
    check = getattr(loss, "check_at", None)
    return check_loss(loss, params) if check is None else check(check_params(params))


def check_loss(loss: Loss, params: Params) -> Params:
    """Return checked `params` at which `loss` is one finite real number.

    Raises:
      TypeError: the loss is not callable, or not real.
      ValueError: the loss is not a scalar, or not finite at `params`.
    """
    if not callable(loss):
        raise TypeError(f"loss must be a function of params, got {loss!r}")
    params = check_params(params)
    shape = jax.eval_shape(loss, params)
    if not hasattr(shape, "shape") or shape.shape != ():
        raise ValueError(
            f"loss must return one number, got {getattr(shape, 'shape', shape)!r}; "
            "reduce it, for instance with jnp.mean; for a loss with has_aux pass only the first "
            "result: lambda params: loss(params)[0]"
        )
    if not jnp.issubdtype(shape.dtype, jnp.floating):
        raise TypeError(f"loss must return a real floating-point number, got dtype {shape.dtype}")
    if not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(params)):
        check_finite(_programs.evaluate(loss, params))
    return params


def check_finite(value: jax.Array) -> None:
    if not isinstance(value, jax.core.Tracer) and not bool(jnp.isfinite(value)):
        raise ValueError(
            f"loss at the starting params is {float(value)!r}; "
            "start where the loss is finite (check the data and the initial params)"
        )
