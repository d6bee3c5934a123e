"""The diagonal scale of an adaptive optimiser, from its state in Optax."""

import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pfcore._checks import ScalarLike
from pfcore._trees import Params

# The name of an option of Optax -> its value.
Options = Mapping[str, Any]


class _Rule(NamedTuple):
    """How one of Optax's transformations makes P of what its state holds.

    Attributes:
      moments: the field of the state that holds the second moments.
      defaults: Optax's, of the options that are needed.
      scale: (moments, options, count) -> the diagonal of P.
    """

    moments: str
    defaults: Options
    diagonal: Callable[[jax.Array, Options, Any], jax.Array]


def _corrected(nu: jax.Array, decay: Any, count: Any) -> jax.Array:
    """Moments without their bias towards the zeros from which they started; NaN before a step."""
    kept = 1 - jnp.asarray(decay, jnp.float32) ** jnp.asarray(count, jnp.float32)
    return nu / kept.astype(nu.dtype)


def _adam(nu: jax.Array, options: Options, count: Any) -> jax.Array:
    nu = _corrected(nu, options["b2"], count)
    return jnp.sqrt(nu + options["eps_root"]) + options["eps"]


def _rmsprop(nu: jax.Array, options: Options, count: Any) -> jax.Array:
    if count is not None:
        nu = _corrected(nu, options["decay"], count)
    if options["eps_in_sqrt"]:
        return jnp.sqrt(nu + options["eps"])
    return jnp.sqrt(nu) + options["eps"]


def _adagrad(total: jax.Array, options: Options, count: Any) -> jax.Array:
    # Optax leaves a parameter alone whose gradient has always been zero.
    return jnp.where(total > 0, jnp.sqrt(total + options["eps"]), jnp.inf)


_RMSPROP = _Rule("nu", {"decay": 0.9, "eps": 1e-8, "eps_in_sqrt": True}, _rmsprop)
# By the name of the state's class: not all of them are public in Optax.
RULES = {
    "ScaleByAdamState": _Rule("nu", {"b2": 0.999, "eps": 1e-8, "eps_root": 0.0}, _adam),
    "ScaleByRmsState": _RMSPROP,
    "ScaleByRmsWithCountState": _RMSPROP,
    "ScaleByRssState": _Rule("sum_of_squares", {"eps": 1e-7}, _adagrad),
}


def _walked(node: Any, injected: Options) -> Iterator[tuple[Any, Options]]:
    """The states within a state, each with the options that are injected around it."""
    yield node, injected
    hyperparams = getattr(node, "hyperparams", None)
    if isinstance(hyperparams, Mapping):
        yield from _walked(node.inner_state, {**injected, **hyperparams})
        return
    if type(node).__name__ in RULES:
        return
    children = node.values() if isinstance(node, Mapping) else node
    if isinstance(node, tuple | list | Mapping):
        for child in children:
            yield from _walked(child, injected)


def _plain(x: Any) -> Any:
    """What `nnx.Optimizer` keeps in variables of its own, as arrays."""
    if not type(x).__module__.startswith("flax."):
        return x
    from flax import nnx  # loaded already, by who made the state

    return nnx.to_pure_dict(x) if isinstance(x, nnx.State) else x[...]


def _is_masked(node: Any) -> bool:
    return type(node).__name__ == "MaskedNode"


def optimizer_scale(
    state: Any,
    *,
    rest: ScalarLike | None = None,
    b2: ScalarLike | None = None,
    decay: ScalarLike | None = None,
    eps: ScalarLike | None = None,
    eps_root: ScalarLike | None = None,
    eps_in_sqrt: bool | None = None,
) -> Params:
    r"""The scale $S = P^{-1/2}$ of Adam, RMSProp or AdaGrad, for `preconditioned`.

    The optimiser's next update is $-h P^{-1} g$, apart from momentum and from what the next
    gradient does to its state, with

    * Adam (`adam`, `adamw`, `nadam`, `scale_by_adam`): $P = \sqrt{\hat\nu + \epsilon_\text{root}}
      + \epsilon$, $\hat\nu = \nu/(1 - \beta_2^t)$ corrected for bias as Optax does;
    * RMSProp (`rmsprop`, `scale_by_rms`): $P = \sqrt{\nu + \epsilon}$, or $\sqrt\nu + \epsilon$
      with `eps_in_sqrt=False`; with its option `bias_correction`, $\hat\nu$ for $\nu$;
    * AdaGrad (`adagrad`, `scale_by_rss`): $P = \sqrt{\textstyle\sum g^2 + \epsilon}$, and $S = 0$
      where that sum is 0.

    Adam also divides its momentum by $1 - \beta_1^t$, which is 1 to within one percent from the
    44th step on at $\beta_1 = 0.9$, and is left out here.

    The state is looked for within `chain`, `partition` and `masked`, `inject_hyperparams`,
    `MultiSteps`, `apply_if_finite` and the like; parts of the parameters with a state each are put
    together. Optax keeps no options in its states: where yours are not its defaults and not
    injected, pass them here.

    Args:
      state: of the optimiser, after at least one update; `optimizer.opt_state` of an
        `nnx.Optimizer`.
      rest: the scale of parameters that no such state holds, as behind `partition` or `masked`: 0
        leaves them out, as if frozen; 1 is that of plain gradient descent.
      b2, eps, eps_root: Adam's options, by default 0.999, 1e-8 and 0.
      decay, eps, eps_in_sqrt: RMSProp's, by default 0.9 (which bias correction alone needs), 1e-8
        and True.

    Returns:
      A pytree of the structure of the parameters; what `rest` stands for is a number.

    Raises:
      ValueError: there is no such state (the message says what there is), more than one for a
        parameter, none for a parameter without `rest`, or no update yet. Under tracing, a scale
        before the first update is NaN.

    Example:
      >>> import jax, jax.numpy as jnp, optax, pfcore
      >>> loss = lambda x: 0.5 * jnp.sum(jnp.array([100.0, 1.0]) * x**2)
      >>> x, optimizer = jnp.ones(2), optax.rmsprop(0.01)
      >>> _, state = optimizer.update(jax.grad(loss)(x), optimizer.init(x))
      >>> scale = pfcore.curvature.optimizer_scale(state)  # (0.1 g²)^(-1/4) after one step
      >>> H = pfcore.curvature.preconditioned(loss, scale)
      >>> [round(float(value), 4) for value in pfcore.curvature.spectrum(H, x)]
      [3.1623, 3.1623]
    """
    given = {
        "b2": b2,
        "decay": decay,
        "eps": eps,
        "eps_root": eps_root,
        "eps_in_sqrt": eps_in_sqrt,
    }
    given = {name: value for name, value in given.items() if value is not None}
    nodes = list(_walked(state, {}))
    found = [(node, injected) for node, injected in nodes if type(node).__name__ in RULES]
    if not found:
        names = dict.fromkeys(type(node).__name__ for node, _ in nodes if hasattr(node, "_fields"))
        there = ", ".join(names) or repr(state)
        raise ValueError(
            f"there is no state of Adam, RMSProp or AdaGrad, only {there}; "
            "pass the state of an optimiser such as optax.adam, or the scale itself to "
            "preconditioned"
        )
    used = {name for node, _ in found for name in RULES[type(node).__name__].defaults}
    if unused := given.keys() - used:
        raise ValueError(
            f"{', '.join(sorted(unused))}: no option of {type(found[0][0]).__name__}, which has "
            f"{', '.join(RULES[type(found[0][0]).__name__].defaults)}"
        )
    scales = [_scale(node, injected, given) for node, injected in found]
    return _together(scales, rest)


def _scale(node: Any, injected: Options, given: Options) -> Params:
    """S of one state, with its masks where they are."""
    rule = RULES[type(node).__name__]
    options = {
        name: given.get(name, injected.get(name, default))
        for name, default in rule.defaults.items()
    }
    # Tuples have a method of this name.
    count = _plain(node.count) if "count" in node._fields else None
    if count is not None and not isinstance(count, jax.core.Tracer) and operator.index(count) < 1:
        raise ValueError(
            f"{type(node).__name__} has seen no gradient yet, and its scale is not defined; take "
            "it after the first update"
        )

    def of_leaf(moments: Any) -> Any:
        if _is_masked(moments):
            return moments
        return 1 / jnp.sqrt(rule.diagonal(jnp.asarray(moments), options, count))

    return jax.tree.map(of_leaf, _plain(getattr(node, rule.moments)), is_leaf=_is_masked)


def _together(scales: list[Params], rest: ScalarLike | None) -> Params:
    """One scale of those that states of parts of the parameters have."""

    def one(path: Any, *leaves: Any) -> Any:
        name = jax.tree_util.keystr(path) or "the parameters"
        known = [leaf for leaf in leaves if not _is_masked(leaf)]
        if len(known) > 1:
            raise ValueError(
                f"{len(known)} states have a scale for {name}; pass the one that is meant, such as "
                "state[0]"
            )
        if not known and rest is None:
            raise ValueError(
                f"no state has a scale for {name}: another optimiser has it, or none; pass rest=0 "
                "to leave such parameters out, or rest=1 if they are updated by their gradient"
            )
        return known[0] if known else jnp.asarray(rest)

    try:
        return jax.tree_util.tree_map_with_path(one, *scales, is_leaf=_is_masked)
    except ValueError as error:
        if "scale for" in str(error):
            raise
        raise ValueError(
            f"{len(scales)} states of Adam, RMSProp or AdaGrad have parameters of different "
            f"structures; pass the one that is meant: {error}"
        ) from error
