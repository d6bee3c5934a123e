"""The methods that are compared, as text: `name:option=value` -> an Optax transformation.

Each method states its cost in gradients of its loss. By the number of operations, a forward pass
costs a third of a gradient, and a Hessian-vector product, forward over reverse, costs two. Times in
seconds are measured by `benchmarks/learning_rates.py`.
"""

import inspect
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from pfcore import learning_rates
from pfcore._checks import Loss, check_learning_rate, check_not_negative, check_positive
from pfcore._trees import Params
from pfcore.experiments.signal import scale_by_signal
from pfcore.runs.overrides import parsed

FORWARD, PRODUCT = 1 / 3, 2.0  # in gradients
MOST = 5.0  # the largest learning rate of adaptive methods

State = Any
Number = Annotated[Any, "a float in a method's text, and perhaps traced when it is built"]
NUMBERS = (Number, Number | None)


class Step(NamedTuple):
    """The inputs of a method: the loss of the current batch, its value and its gradient."""

    loss: Loss
    value: jax.Array
    gradient: Params


class Method(NamedTuple):
    """A training method.

    Attributes:
      scaling: an Optax transformation of the gradient; its result is subtracted from the
        parameters.
      rate: `rate(state)`, the learning rate of the last step; None for a method without one.
      cost: `cost(state)`, the cost of the last step, in gradients.
      extras: `extras(step)`, keyword arguments of the update.
      evaluated: `evaluated(state, params)`, the parameters at which to evaluate the model.
    """

    scaling: optax.GradientTransformation
    rate: Callable[[State], Any] | None
    cost: Callable[[State], Any] = lambda state: 1.0
    extras: Callable[[Step], dict[str, Any]] = lambda step: {}
    evaluated: Callable[[State, Params], Params] = lambda state, params: params


def _measured(
    scaling: optax.GradientTransformationExtraArgs,
    extra: Callable[[State], Any],
    *,
    every: int = 1,
    momentum: Number = 0.0,
    along: str = "gradient",
    damped: bool = False,
    cosine: Number = 0.0,
    signal: Number | None = None,
    signal_decay: Number = 0.9,
) -> Method:
    """A method whose rate is measured every `every` updates, at an extra cost.

    Heavy-ball momentum is applied after the rate, or before it if the rate is measured along the
    update. Damped momentum is an average of the updates, of the same length.
    """
    if along not in ("gradient", "update"):
        raise ValueError(f"along must be 'gradient' or 'update', got {along!r}")
    _check_momentum(momentum)
    before = [] if signal is None else [scale_by_signal(signal, signal_decay)]
    before += [optax.trace(momentum)] if along == "update" else []
    after = [optax.trace(momentum)] if along == "gradient" else []
    after += [optax.scale(1 - momentum)] if damped else []
    place = len(before)
    return Method(
        optax.chain(*before, scaling, *after, _cosine(cosine)),
        rate=lambda state: state[place].learning_rate,
        cost=lambda state: (
            1.0 + jnp.where((state[place].num_updates - 1) % every == 0, extra(state[place]), 0.0)
        ),
        extras=lambda step: {"loss_fn": step.loss},
    )


def _cosine(steps: Number) -> optax.GradientTransformation:
    """A factor that falls from 1 to 0 along half a cosine; constantly 1 for zero steps."""
    check_not_negative("cosine", steps)

    def factor(count):
        done = jnp.minimum(count / jnp.where(steps > 0, steps, 1.0), 1.0)
        return jnp.where(steps > 0, (1 + jnp.cos(jnp.pi * done)) / 2, 1.0)

    return optax.scale_by_schedule(factor)


def _dal(
    power: Number = 1.0,
    max_learning_rate: Number = MOST,
    product: str = "exact",
    refresh_every: int = 1,
    momentum: Number = 0.0,
    along: str = "gradient",
    damped: bool = False,
    cap: str = "hard",
    decay: Number | None = None,
    cosine: Number = 0.0,
    signal: Number | None = None,
    signal_decay: Number = 0.9,
) -> Method:
    return _measured(
        learning_rates.scale_by_dal(
            power,
            max_learning_rate,
            product=product,
            refresh_every=refresh_every,
            cap=cap,
            decay=decay,
        ),
        lambda state: PRODUCT if product == "exact" else 1.0,
        every=refresh_every,
        momentum=momentum,
        along=along,
        damped=damped,
        cosine=cosine,
        signal=signal,
        signal_decay=signal_decay,
    )


def _cdat(
    scale: Number = 2.0,
    decay: Number = 0.9,
    max_learning_rate: Number = MOST,
    momentum: Number = 0.0,
) -> Method:
    scaling = learning_rates.scale_by_cdat(scale, decay, max_learning_rate)
    return _measured(scaling, lambda state: PRODUCT, momentum=momentum)


def _sharpness(
    scale: Number = 2.0,
    max_learning_rate: Number = MOST,
    max_products: int = 20,
    refresh_every: int = 1,
    momentum: Number = 0.0,
) -> Method:
    return _measured(
        learning_rates.scale_by_sharpness(
            scale, max_learning_rate, max_products=max_products, refresh_every=refresh_every
        ),
        lambda state: PRODUCT * state.num_products,
        every=refresh_every,
        momentum=momentum,
    )


def _sgd(learning_rate: Number, momentum: Number = 0.0, cosine: Number = 0.0) -> Method:
    h = check_learning_rate(learning_rate)
    _check_momentum(momentum)
    return Method(
        optax.chain(optax.trace(momentum), optax.scale(h), _cosine(cosine)), rate=lambda state: h
    )


def _adam(learning_rate: Number = 1e-3, cosine: Number = 0.0) -> Method:
    h = check_learning_rate(learning_rate)
    return Method(optax.chain(optax.scale_by_adam(), optax.scale(h), _cosine(cosine)), rate=None)


def _check_momentum(momentum: Number) -> None:
    if not isinstance(momentum, jax.core.Tracer) and not 0 <= momentum < 1:
        raise ValueError(f"momentum must be at least 0 and less than 1, got {momentum!r}")


def _polyak(max_learning_rate: Number = MOST) -> Method:
    check_positive("max_learning_rate", max_learning_rate)
    return Method(
        optax.scale_by_polyak(max_learning_rate=max_learning_rate),
        rate=None,
        extras=lambda step: {"value": step.value},
    )


def _line_search(max_learning_rate: Number = MOST) -> Method:
    check_positive("max_learning_rate", max_learning_rate)
    search = optax.scale_by_backtracking_linesearch(30, max_learning_rate=max_learning_rate)
    down = optax.scale(-1.0)  # the line search takes a descent direction
    return Method(
        optax.chain(down, search, down),
        rate=lambda state: state[1].learning_rate,
        cost=lambda state: 1.0 + FORWARD * state[1].info.num_linesearch_steps,
        extras=lambda step: {
            "value": step.value,
            "grad": step.gradient,
            "value_fn": step.loss,
        },
    )


def _schedule_free(learning_rate: Number = 1.0) -> Method:
    h = check_learning_rate(learning_rate)
    return Method(
        optax.chain(contrib.schedule_free(optax.sgd(h), h), optax.scale(-1.0)),
        rate=None,
        evaluated=lambda state, params: contrib.schedule_free_eval_params(state[0], params),
    )


def _prodigy() -> Method:
    return Method(optax.chain(contrib.prodigy(), optax.scale(-1.0)), rate=None)


METHODS: dict[str, tuple[str, Callable[..., Method]]] = {
    "dal": ("DAL", _dal),
    "cdat": ("CDAT", _cdat),
    "sharpness": ("2/λ₀", _sharpness),
    "polyak": ("Polyak", _polyak),
    "line-search": ("line search", _line_search),
    "schedule-free": ("schedule-free", _schedule_free),
    "prodigy": ("Prodigy", _prodigy),
    "sgd": ("SGD", _sgd),
    "adam": ("Adam", _adam),
}


class Spec(NamedTuple):
    """A parsed method.

    Attributes:
      name: the method.
      numbers: options that are real numbers; one compiled function serves all their values.
      choices: the other options.
    """

    name: str
    numbers: dict[str, float]
    choices: tuple[tuple[str, Any], ...]


def read(text: str) -> Spec:
    """Parse a method such as `"dal:power=0.5:refresh_every=10"`.

    Raises:
      ValueError: the method or an option is unknown, missing, or out of range.
    """
    name, *options = text.split(":")
    if name not in METHODS:
        raise ValueError(f"unknown method {text!r}; choose one of {', '.join(METHODS)}")
    known = inspect.signature(METHODS[name][1]).parameters
    given: dict[str, Any] = {}
    for option in options:
        key, equals, value = option.partition("=")
        if not equals or key not in known:
            raise ValueError(
                f"{option!r} is not an option of {name}; "
                f"write {name}:KEY=VALUE with one of {', '.join(known) or 'none'}"
            )
        if key in given:
            raise ValueError(f"method {text!r} has {key} twice; give it once")
        kind = known[key].annotation
        given[key] = parsed(key, value, float if kind in NUMBERS else kind)
    for key, parameter in known.items():
        if parameter.default is inspect.Parameter.empty and key not in given:
            raise ValueError(f"method {text!r} needs {key}: write {name}:{key}=VALUE")
    METHODS[name][1](**given)
    numbers = {key: value for key, value in given.items() if known[key].annotation in NUMBERS}
    choices = tuple(sorted((key, given[key]) for key in given.keys() - numbers.keys()))
    return Spec(name, numbers, choices)


def build(name: str, numbers: dict[str, Any], choices: tuple[tuple[str, Any], ...]) -> Method:
    """Build a method; its numbers may be traced."""
    return METHODS[name][1](**numbers, **dict(choices))


def label(text: str) -> str:
    """The label of a method in figures and tables, such as "DAL-0.5" or "SGD, h = 0.2"."""
    name, numbers, choices = read(text)
    rest = dict(numbers) | dict(choices)
    shown = METHODS[name][0]
    if name == "dal" and "power" in rest:
        shown += f"-{rest.pop('power'):g}"
    if "learning_rate" in rest:
        shown += f", h = {rest.pop('learning_rate'):g}"
    return ", ".join([shown, *(f"{key.replace('_', ' ')} {value}" for key, value in rest.items())])
