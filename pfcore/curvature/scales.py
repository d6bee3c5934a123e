"""The diagonal scale of an adaptive optimiser, from its state in Optax."""

import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pfcore._checks import ScalarLike
from pfcore._trees import Params

# Name of an option of Optax -> value.
Options = Mapping[str, Any]


class _Rule(NamedTuple):
    """How one of Optax's transformations computes P from its state.

    Attributes:
      moments: the field of the state that holds the second moments.
      defaults: Optax's defaults of the options that are needed.
      diagonal: (moments, options, count) -> the diagonal of P.
    """

    moments: str
    defaults: Options
    diagonal: Callable[[jax.Array, Options, Any], jax.Array]


def _corrected(nu: jax.Array, decay: Any, count: Any) -> jax.Array:
    """Bias-corrected moments; NaN before the first step."""
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
    # Optax does not update a parameter whose gradient has always been zero.
    return jnp.where(total > 0, jnp.sqrt(total + options["eps"]), jnp.inf)


_RMSPROP = _Rule("nu", {"decay": 0.9, "eps": 1e-8, "eps_in_sqrt": True}, _rmsprop)
# By the name of the state's class, since some of the classes are not public in Optax.
RULES = {
    "ScaleByAdamState": _Rule("nu", {"b2": 0.999, "eps": 1e-8, "eps_root": 0.0}, _adam),
    "ScaleByRmsState": _RMSPROP,
    "ScaleByRmsWithCountState": _RMSPROP,
    "ScaleByRssState": _Rule("sum_of_squares", {"eps": 1e-7}, _adagrad),
}


def _walked(node: Any, injected: Options) -> Iterator[tuple[Any, Options]]:
    """The states nested in a state, each with the hyperparameters injected around it."""
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
    """Variables of `nnx.Optimizer` as arrays."""
    if not type(x).__module__.startswith("flax."):
        return x
    from flax import nnx  # already imported, since the state is Flax's

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

    The optimiser's next update is $-h P^{-1} g$, apart from momentum and from the change of its
    state by the next gradient, with

    * Adam (`adam`, `adamw`, `nadam`, `scale_by_adam`): $P = \sqrt{\hat\nu + \epsilon_\text{root}}
      + \epsilon$, $\hat\nu = \nu/(1 - \beta_2^t)$ corrected for bias as Optax does;
    * RMSProp (`rmsprop`, `scale_by_rms`): $P = \sqrt{\nu + \epsilon}$, or $\sqrt\nu + \epsilon$
      with `eps_in_sqrt=False`; with its option `bias_correction`, $\hat\nu$ for $\nu$;
    * AdaGrad (`adagrad`, `scale_by_rss`): $P = \sqrt{\textstyle\sum g^2 + \epsilon}$, and $S = 0$
      where that sum is 0.

    Adam also divides its momentum by $1 - \beta_1^t$. At $\beta_1 = 0.9$ this is 1 to within one
    percent from the 44th step on, and it is left out here.

    `adamax`, `yogi`, `radam` and `contrib.adopt` keep their state in Adam's class and cannot be
    told from it: they divide by something else, so compute their scale by hand.

    States nested in `chain`, `partition`, `masked`, `inject_hyperparams`, `MultiSteps`,
    `apply_if_finite` and similar wrappers are found, and states of parts of the parameters are
    combined. Optax does not store options in its states: pass those that differ from its defaults
    and are not injected.

    Args:
      state: the optimiser's state, after at least one update; `optimizer.opt_state` for an
        `nnx.Optimizer`.
      rest: the scale of parameters without such a state, as with `partition` or `masked`: 0
        excludes them, as if frozen; 1 is the scale of plain gradient descent.
      b2, eps, eps_root: Adam's options, by default 0.999, 1e-8 and 0. AdaGrad has `eps` too, by
        default 1e-7.
      decay, eps, eps_in_sqrt: RMSProp's options, by default 0.9 (used by bias correction only),
        1e-8 and True.

    Returns:
      A pytree with the structure of the parameters; leaves for which `rest` is used are numbers.

    Raises:
      ValueError: there is no such state (the message lists those that exist), there are several for
        one parameter, none for a parameter without `rest`, or no update yet. Under tracing, the
        scale before the first update is NaN.

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
    states = [(node, injected) for node, injected in nodes if type(node).__name__ in RULES]
    if not states:
        names = dict.fromkeys(type(node).__name__ for node, _ in nodes if hasattr(node, "_fields"))
        there = ", ".join(names) or repr(state)
        raise ValueError(
            f"found no state of Adam, RMSProp or AdaGrad, only {there}; "
            "pass the state of an optimiser such as optax.adam, or the scale itself to "
            "preconditioned"
        )
    used = {name for node, _ in states for name in RULES[type(node).__name__].defaults}
    if unused := given.keys() - used:
        raise ValueError(
            f"{', '.join(sorted(unused))}: not an option of {type(states[0][0]).__name__}, which "
            f"has {', '.join(RULES[type(states[0][0]).__name__].defaults)}"
        )
    scales = [_scale(node, injected, given) for node, injected in states]
    return _together(scales, rest)


def _scale(node: Any, injected: Options, given: Options) -> Params:
    """S of one state, with its masks."""
    rule = RULES[type(node).__name__]
    options = {
        name: given.get(name, injected.get(name, default))
        for name, default in rule.defaults.items()
    }
    # Tested by field, since tuples have a method `count`.
    count = _plain(node.count) if "count" in node._fields else None
    if count is not None and not isinstance(count, jax.core.Tracer) and operator.index(count) < 1:
        raise ValueError(
            f"{type(node).__name__} has seen no gradient yet, so its scale is not defined; call "
            "this after the first update"
        )

    def of_leaf(moments: Any) -> Any:
        if _is_masked(moments):
            return moments
        return 1 / jnp.sqrt(rule.diagonal(jnp.asarray(moments), options, count))

    return jax.tree.map(of_leaf, _plain(getattr(node, rule.moments)), is_leaf=_is_masked)


def _together(scales: list[Params], rest: ScalarLike | None) -> Params:
    """The scales of states of parts of the parameters, combined into one."""

    def one(path: Any, *leaves: Any) -> Any:
        name = jax.tree_util.keystr(path) or "the parameters"
        known = [leaf for leaf in leaves if not _is_masked(leaf)]
        if len(known) > 1:
            raise ValueError(
                f"{len(known)} states have a scale for {name}; pass one of them, such as state[0]"
            )
        if not known and rest is None:
            raise ValueError(
                f"no state has a scale for {name}: another optimiser updates it, or none; pass "
                "rest=0 to exclude such parameters, or rest=1 if they are updated by their gradient"
            )
        return known[0] if known else jnp.asarray(rest)

    try:
        return jax.tree_util.tree_map_with_path(one, *scales, is_leaf=_is_masked)
    except ValueError as error:
        if "scale for" in str(error):
            raise
        raise ValueError(
            f"{len(scales)} states of Adam, RMSProp or AdaGrad have parameters of different "
            f"structures; pass one of them: {error}"
        ) from error
