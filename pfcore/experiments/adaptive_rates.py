"""Methods of choosing the learning rate, compared on one problem with one budget."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from pfcore import curvature
from pfcore._checks import check_count
from pfcore._trees import Params, real_dtype
from pfcore.experiments import optimizers
from pfcore.records import Record
from pfcore.runs import execution
from pfcore.runs.problems import PROBLEMS, Data, Problem, TrainingProblem, build

NAME = "adaptive-rates"
UNITS = ("steps", "gradients")
SHARPNESS_TOLERANCE = 1e-2
AT_ONCE = 40  # simultaneous runs on an accelerator


@dataclass(frozen=True)
class Config:
    """The problem, the methods, and the budget.

    Attributes:
      problem: data, network and loss.
      methods: each as `name:option=value`, such as "dal:power=0.5" or "sgd:learning_rate=0.2".
      seeds: of the initial weights and the order of the samples; every method runs with each seed.
      batch_size: samples per step; None for all. Samples are reshuffled in every epoch, and an
        incomplete last batch is skipped.
      budget: of each run, in `unit`.
      unit: "steps", or "gradients", the cost of the method in gradients of one batch.
      every: number of units between measurements; divides the budget.
      sharpness: whether to measure the largest eigenvalue of the full-batch Hessian.
      each_step: whether to keep the loss and the learning rate of every step.
    """

    problem: Problem = PROBLEMS["quick"]["digits-mlp"]
    methods: tuple[str, ...] = (
        "dal",
        "cdat",
        "sharpness",
        "sgd:learning_rate=0.1",
        "sgd:learning_rate=0.2",
        "sgd:learning_rate=0.5",
    )
    seeds: tuple[int, ...] = (0,)
    batch_size: int | None = None
    budget: int = 600
    unit: str = "steps"
    every: int = 10
    sharpness: bool = False
    each_step: bool = True


PROFILES = {
    "quick": Config(),
    "full": Config(
        problem=PROBLEMS["full"]["cifar10-convnet"],
        methods=(
            "dal",
            "dal:power=0.5",
            "cdat",
            "sharpness",
            "polyak",
            "line-search",
            "schedule-free:learning_rate=1.0",
            "prodigy",
            "sgd:learning_rate=0.05",
            "sgd:learning_rate=0.1",
            "sgd:learning_rate=0.2",
            "adam:learning_rate=0.0003",
            "adam:learning_rate=0.001",
            "adam:learning_rate=0.003",
        ),
        seeds=(0, 1, 2, 3, 4),
        batch_size=256,
        budget=20_000,
        unit="gradients",
        every=200,
        each_step=False,
    ),
}


class Group(NamedTuple):
    """Simultaneous runs of some methods with some seeds, given by their places in the
    configuration."""

    methods: list[int]
    seeds: list[int]


class Setup(NamedTuple):
    """The static arguments of a compiled run."""

    built: TrainingProblem
    name: str
    choices: tuple[tuple[str, Any], ...]
    batch_size: int | None
    num_measurements: int
    unit: str
    every: int
    sharpness: bool


class Position(NamedTuple):
    """The state of a run.

    Attributes:
      params: parameters.
      state: state of the method.
      num_steps: number of steps so far.
      cost: their cost, in gradients.
      rises: number of steps whose loss was larger than that of the step before.
      loss: the loss of the last step, on its batch.
    """

    params: Params
    state: Any
    num_steps: Array
    cost: Array
    rises: Array
    loss: Array


class Measured(NamedTuple):
    """Measurements at M + 1 points of a run, and at the steps between them.

    Entries are NaN where no step was taken; a field is None if it was not requested.

    Attributes:
      step: [M + 1], number of steps.
      cost: [M + 1], their cost, in gradients.
      num_rises: [M + 1], number of steps whose loss was larger than that of the step before. With
        mini-batches the two losses are those of different batches.
      loss: [M + 1], on all training samples.
      test_loss: [M + 1].
      test_accuracy: [M + 1], between 0 and 1.
      sharpness: [M + 1], of the full-batch loss, with a relative residual of at most 1 %.
      loss_each_step: [M, every], the loss of the step on its batch.
      rate_each_step: [M, every], its learning rate; for methods without one, the norm of the step
        divided by that of the gradient.
    """

    step: Any
    cost: Any
    num_rises: Any
    loss: Any
    test_loss: Any
    test_accuracy: Any
    sharpness: Any
    loss_each_step: Any
    rate_each_step: Any


def _batches(setup: Setup, data: Data, key: Array) -> Callable[[Array], Data]:
    """A function from the step to its batch; the orders of all epochs are drawn beforehand."""
    size = setup.batch_size
    if size is None:
        return lambda step: data
    n = len(data.train_targets)
    per_epoch = n // size
    num_epochs = -(-setup.num_measurements * setup.every // per_epoch)

    def shuffled(epoch: Array) -> Array:
        return jax.random.permutation(jax.random.fold_in(key, epoch), n).astype(jnp.int32)

    orders = jax.lax.map(shuffled, jnp.arange(num_epochs, dtype=jnp.int32))

    def batch(step: Array) -> Data:
        place = (step // per_epoch, (step % per_epoch) * size)
        chosen = jax.lax.dynamic_slice(orders, place, (1, size))[0]
        return data._replace(
            train_inputs=data.train_inputs[chosen], train_targets=data.train_targets[chosen]
        )

    return batch


@functools.partial(jax.jit, static_argnums=0)
def _train_together(
    setup: Setup, data: Data, params: Params, keys: Array, numbers: dict[str, Array]
) -> Measured:
    """Simultaneous runs [variants, seeds] with several values of a method's numbers."""

    def with_seeds(numbers):
        return jax.vmap(lambda params, key: _train(setup, data, params, key, numbers))(params, keys)

    return jax.vmap(with_seeds)(numbers)


@functools.partial(jax.jit, static_argnums=0)
def _train(
    setup: Setup, data: Data, params: Params, key: Array, numbers: dict[str, Array]
) -> Measured:
    """One run, until its budget is spent or the loss is not finite."""
    numbers = {key: value for key, value in numbers.items() if key}
    method = optimizers.build(setup.name, numbers, setup.choices)
    scaling = optax.with_extra_args_support(method.scaling)
    built, dtype = setup.built, real_dtype(params)
    whole, accuracy = built.loss(data), built.accuracy(data)
    unseen = built.loss(
        data._replace(train_inputs=data.test_inputs, train_targets=data.test_targets)
    )
    # Measurements are far apart, so that each looks for a direction that has overtaken.
    tracker = curvature.tracker(whole, 1, tolerance=SHARPNESS_TOLERANCE, challenge_every=1)
    batch = _batches(setup, data, key)

    def step(position: Position) -> tuple[Position, Array]:
        loss = built.loss(batch(position.num_steps))
        value, gradient = jax.value_and_grad(loss)(position.params)
        # Optax's methods mix dtypes, which needs standard promotion.
        with jax.numpy_dtype_promotion("standard"):
            updates, state = scaling.update(
                gradient,
                position.state,
                position.params,
                **method.extras(optimizers.Step(loss, value, gradient)),
            )
            if method.rate is None:
                rate = optax.tree.norm(updates) / optax.tree.norm(gradient)
            else:
                rate = jnp.asarray(method.rate(state))
            cost = jnp.asarray(method.cost(state), dtype)
            moved = jax.tree.map(lambda p, u: (p - u).astype(p.dtype), position.params, updates)
        return (
            Position(
                moved,
                state,
                position.num_steps + 1,
                position.cost + cost,
                position.rises + (value > position.loss).astype(jnp.int32),
                value.astype(dtype),
            ),
            rate.astype(dtype),
        )

    def stretch(position: Position, index: Array):
        """Steps until the next measurement."""
        end = (index + 1) * setup.every

        def unfinished(carry) -> Array:
            position, _, _, count = carry
            spent = position.num_steps.astype(dtype) if setup.unit == "steps" else position.cost
            return (spent < end.astype(dtype)) & (count < setup.every) & jnp.isfinite(position.loss)

        def body(carry):
            position, losses, rates, count = carry
            position, rate = step(position)
            return (
                position,
                losses.at[count].set(position.loss),
                rates.at[count].set(rate),
                count + 1,
            )

        empty = jnp.full(setup.every, jnp.nan, dtype)
        position, losses, rates, _ = jax.lax.while_loop(
            unfinished, body, (position, empty, empty, jnp.int32(0))
        )
        return position, (losses, rates)

    def measure(position: Position, tracked) -> dict[str, Any]:
        with jax.numpy_dtype_promotion("standard"):
            best = method.evaluated(position.state, position.params)
        return {
            "step": position.num_steps,
            "cost": position.cost,
            "num_rises": position.rises,
            "loss": whole(best),
            "test_loss": unseen(best),
            "test_accuracy": accuracy(best),
            "sharpness": None if tracked is None else tracked.pairs.values[0],
        }

    def body(carry, index: Array):
        position, tracked = carry
        position, each = stretch(position, index)
        if setup.sharpness:
            tracked = tracker.update(position.params, tracked)
        return (position, tracked), (measure(position, tracked), each)

    position = Position(
        params,
        scaling.init(params),
        jnp.int32(0),
        jnp.zeros((), dtype),
        jnp.int32(0),
        jnp.full((), jnp.finfo(dtype).max, dtype),
    )
    tracked = tracker.init(params, key) if setup.sharpness else None
    first = measure(position, tracked)
    _, (rest, (losses, rates)) = jax.lax.scan(
        body, (position, tracked), jnp.arange(setup.num_measurements, dtype=jnp.int32)
    )
    points = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), first, rest)
    return Measured(**points, loss_each_step=losses, rate_each_step=rates)


def _check(config: Config) -> None:
    check_count("budget", config.budget, minimum=1)
    check_count("every", config.every, minimum=1)
    if config.budget % config.every:
        raise ValueError(
            f"budget must be a multiple of every = {config.every}, got {config.budget}"
        )
    if config.unit not in UNITS:
        raise ValueError(f"unit must be one of {', '.join(UNITS)}, got {config.unit!r}")
    for field in ("methods", "seeds"):
        if not getattr(config, field):
            raise ValueError(f"{field} must name at least one, got {getattr(config, field)!r}")


def _has_accelerator() -> bool:
    return jax.default_backend() != "cpu"


def _groups(specs: list[optimizers.Spec], num_seeds: int, together: bool) -> list[Group]:
    """Groups of simultaneous runs: single runs, or all seeds of several variants of one method.

    A group has up to `AT_ONCE` runs, because one small network leaves most of an accelerator idle.
    """
    if not together:
        return [Group([i], [j]) for i in range(len(specs)) for j in range(num_seeds)]
    alike: dict[Any, list[int]] = {}
    for i, spec in enumerate(specs):
        alike.setdefault((spec.name, spec.choices, tuple(sorted(spec.numbers))), []).append(i)
    most = max(1, AT_ONCE // num_seeds)
    return [
        Group(numbers[first : first + most], list(range(num_seeds)))
        for numbers in alike.values()
        for first in range(0, len(numbers), most)
    ]


def plan(config: Config) -> execution.Plan:
    """All methods with all seeds; a piece is one run, or several on an accelerator."""
    _check(config)
    built = build(config.problem, seed=config.seeds[0])
    num_samples = len(built.data.train_targets)
    if config.batch_size is not None:
        check_count("batch_size", config.batch_size, minimum=1)
        if config.batch_size > num_samples:
            raise ValueError(
                f"batch_size must be at most the {num_samples} training samples, "
                f"got {config.batch_size}"
            )
    specs = [optimizers.read(text) for text in config.methods]
    num_measurements = config.budget // config.every
    shape = (len(specs), len(config.seeds))
    # Not for convolutional networks: convolutions batched over weights are slow.
    together = _has_accelerator() and config.problem.network == "mlp"
    groups = _groups(specs, shape[1], together)
    dtype = real_dtype(built.params)

    def start() -> Measured:
        def floats(*rest: int) -> np.ndarray:
            return np.full(shape + rest, np.nan, dtype)

        points = num_measurements + 1
        counts = np.zeros((*shape, points), np.int32)
        return Measured(
            step=counts,
            cost=floats(points),
            num_rises=counts.copy(),
            loss=floats(points),
            test_loss=floats(points),
            test_accuracy=floats(points),
            sharpness=floats(points) if config.sharpness else None,
            loss_each_step=floats(config.budget) if config.each_step else None,
            rate_each_step=floats(config.budget) if config.each_step else None,
        )

    def unfinished(measured: Measured) -> list[Group]:
        return [g for g in groups if not np.all(measured.step[np.ix_(*g)][..., -1])]

    def advance(measured: Measured, piece: int) -> Measured:
        del piece  # `measured` shows the finished runs, also those grouped on another machine
        group = unfinished(measured)[0]
        spec = specs[group.methods[0]]
        seeds = [config.seeds[place] for place in group.seeds]
        weights = [
            built.params if seed == config.seeds[0] else build(config.problem, seed=seed).params
            for seed in seeds
        ]
        setup = Setup(
            built,
            spec.name,
            spec.choices,
            config.batch_size,
            num_measurements,
            config.unit,
            config.every,
            config.sharpness,
        )
        numbers = {
            key: jnp.asarray([specs[i].numbers[key] for i in group.methods], dtype)
            for key in spec.numbers
        }
        if len(group.methods) == len(seeds) == 1:
            new = _train(
                setup,
                built.data,
                weights[0],
                jax.random.key(seeds[0]),
                jax.tree.map(lambda x: x[0], numbers),
            )
            new = jax.tree.map(lambda x: x[None, None], new)
        else:
            # The extra entry gives the number of variants of a method without numbers.
            new = _train_together(
                setup,
                built.data,
                jax.tree.map(lambda *x: jnp.stack(x), *weights),
                jax.vmap(jax.random.key)(np.asarray(seeds)),
                numbers | {"": jnp.zeros(len(group.methods), dtype)},
            )
        if not config.each_step:
            new = new._replace(loss_each_step=None, rate_each_step=None)

        def fill(old: np.ndarray, part: np.ndarray) -> np.ndarray:
            array = old.copy()
            array[np.ix_(*group)] = np.reshape(part, (*part.shape[:2], -1))
            return array

        # Fetched first: during a wait for the device, NumPy turns Ctrl-C into a ValueError.
        return jax.tree.map(fill, measured, jax.device_get(new))

    def outcome(measured: Measured) -> execution.Outcome:
        diverged = ~np.isfinite(measured.loss[..., -1])
        # A run ends with the step whose loss is not finite. If only the last measurement is not
        # finite, it is the step before that measurement.
        ends = np.where(diverged, measured.step[..., -1] - 1, -1).astype(np.int32)
        arrays = {name: array for name, array in measured._asdict().items() if array is not None}
        return execution.Outcome(
            arrays | {"diverged_at_step": ends},
            int(ends[diverged].min()) if diverged.any() else None,
        )

    def ended(measured: Measured) -> bool:
        return not unfinished(measured)

    def show(measured: Measured) -> dict[str, str]:
        left = unfinished(measured)
        return {"next": config.methods[left[0].methods[0]]} if left else {}

    # At most one piece for each run: the pieces may be grouped otherwise where a run is resumed.
    return execution.Plan(built, math.prod(shape), start, advance, outcome, ended, show)


def run(config: Config = PROFILES["quick"], **options: Any) -> Record:
    r"""Compare learning-rate methods on one budget.

    For the same seed all methods start from the same weights, and see the same batches in the same
    order. A run ends when its budget is spent, or at the first loss that is not finite.

    Args:
      config: see `Config`.
      **options: `out`, `resume` and `progress`, as for `pfcore.experiments.run`.

    Returns:
      A `Record` with the arrays of `Measured`, with leading axes for methods and seeds.
      `loss_each_step` and `rate_each_step` have one axis for all steps, with NaN where a step cost
      more than one unit. `diverged_at_step` [methods, seeds] is -1 if training did not diverge.
    """
    return execution.execute(plan(config), {"experiment": NAME, "config": config}, **options)
