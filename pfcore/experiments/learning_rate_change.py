"""Training to the edge of stability, continued from there at other learning rates."""

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from pfcore._checks import check_learning_rate
from pfcore.records import Record
from pfcore.runs import execution, training
from pfcore.runs.problems import PROBLEMS, Problem, build

NAME = "learning-rate-change"


@dataclass(frozen=True)
class Config:
    """The problem, and the changes of the learning rate.

    Attributes:
      problem: data, network and loss.
      learning_rate: h before the change.
      change_at: the step at which it changes; a multiple of `every`.
      factors: factors of the change; a run with each continues from the same point.
      num_steps: total number of steps of each run; a multiple of `every`.
      every: number of steps between measurements.
      num_eigenpairs: number of the largest eigenpairs of the Hessian at each measurement.
      tolerance: of their residuals, relative to the largest eigenvalue.
      checkpoint_every: number of steps between checkpoints; a multiple of `every`.
      seed: of the initial weights and the first search for eigenpairs.
    """

    problem: Problem = PROBLEMS["quick"]["digits-mlp"]
    learning_rate: float = 0.2
    change_at: int = 500
    factors: tuple[float, ...] = (1.0, 0.5, 1.5)
    num_steps: int = 900
    every: int = 4
    num_eigenpairs: int = 1
    tolerance: float = 1e-3
    checkpoint_every: int = 100
    seed: int = 0


PROFILES = {
    "quick": Config(),
    "full": Config(
        problem=PROBLEMS["full"]["digits-mlp"],
        factors=(1.0, 0.25, 0.5, 0.75, 1.25, 1.5, 2.0),
        change_at=2000,
        num_steps=5000,
        every=1,
        num_eigenpairs=4,
        checkpoint_every=250,
    ),
}


def plan(config: Config) -> execution.Plan:
    """The part before the change, then one branch for each factor, in pieces."""
    every = config.every
    if not 0 < config.change_at < config.num_steps:
        raise ValueError(
            f"change_at must lie between 0 and num_steps = {config.num_steps}, "
            f"got {config.change_at}"
        )
    if not config.factors:
        raise ValueError(f"factors must name at least one, got {config.factors!r}")
    for factor in config.factors:
        check_learning_rate(factor * config.learning_rate)
    before = training.pieces(config.change_at, config.checkpoint_every, every)
    after = training.pieces(config.num_steps - config.change_at, config.checkpoint_every, every)
    cuts = before + after * len(config.factors)
    built = build(config.problem, seed=config.seed)
    trainer = training.Trainer(
        built, num_eigenpairs=config.num_eigenpairs, every=every, tolerance=config.tolerance
    )

    def start():
        position = trainer.begin(built.params, config.seed)
        return position, position, training.room(trainer, sum(cuts))

    def advance(state, piece: int):
        position, change, measured = state
        branch, place = divmod(piece - len(before), len(after))
        rate = config.learning_rate
        if piece >= len(before):
            rate = config.factors[branch] * config.learning_rate
            if place == 0:
                change = position if branch == 0 else change
                position = change
        position, new = trainer.advance(position, rate, cuts[piece])
        return position, change, training.filled(measured, sum(cuts[:piece]), new)

    def outcome(state) -> execution.Outcome:
        *_, measured = state
        common, rest = sum(before), sum(after)
        branches = [
            jax.tree.map(
                lambda x, s=common + b * rest: np.concatenate([x[:common], x[s : s + rest]]),
                measured,
            )
            for b in range(len(config.factors))
        ]
        outcomes = [training.outcome(branch, every, trim=False) for branch in branches]
        arrays = {
            name: np.stack([outcome.arrays[name] for outcome in outcomes])
            for name in outcomes[0].arrays
        }
        step = arrays["step"][0]
        arrays["step"] = step
        arrays["learning_rate"] = config.learning_rate * np.where(
            step < config.change_at, 1.0, np.array(config.factors)[:, None]
        )
        ends = [o.diverged_at_step for o in outcomes if o.diverged_at_step is not None]
        return execution.Outcome(arrays, min(ends, default=None))

    def show(state) -> dict[str, str]:
        *_, measured = state
        done = int(np.sum(measured.num_products > 0))
        return training.shown(measured.loss, measured.eigenvalues, done)

    return execution.Plan(built, len(cuts), start, advance, outcome, show=show)


def run(config: Config = PROFILES["quick"], **options: Any) -> Record:
    r"""Change the learning rate at the edge.

    Gradient descent at $h$ until `change_at`, and from that point once at each
    $\text{factor}\cdot h$.

    Args:
      config: see `Config`.
      **options: `out`, `resume` and `progress`, as for `pfcore.experiments.run`.

    Returns:
      A `Record` with the arrays of edge-of-stability, with a leading axis for the factors (`step`
      without it), and `learning_rate`. After a divergence `loss` and the measured curvature are
      not finite, and `test_accuracy` is 0; `diverged_at_step` is that of the first divergence.
    """
    return execution.execute(plan(config), {"experiment": NAME, "config": config}, **options)
