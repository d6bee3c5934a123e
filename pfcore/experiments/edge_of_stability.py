"""Full-batch gradient descent up to and at the edge of stability."""

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from pfcore._checks import check_learning_rate
from pfcore.records import Record
from pfcore.runs import execution, training
from pfcore.runs.problems import PROBLEMS, Problem, build

NAME = "edge-of-stability"


@dataclass(frozen=True)
class Config:
    """The problem, and the measurements during training.

    Attributes:
      problem: data, network and loss.
      learning_rate: $h$.
      num_steps: number of recorded steps of gradient descent.
      first_step: number of steps before them.
      every: number of steps between measurements.
      num_eigenpairs: number of the largest eigenpairs of the Hessian at each measurement.
      tolerance: of their residuals, relative to the largest eigenvalue.
      checkpoint_every: number of steps between checkpoints; a multiple of `every`.
      seed: of the initial weights and the first search for eigenpairs.
    """

    problem: Problem = PROBLEMS["quick"]["digits-mlp"]
    learning_rate: float = 0.2
    num_steps: int = 1000
    first_step: int = 0
    every: int = 1
    num_eigenpairs: int = 2
    tolerance: float = 1e-3
    checkpoint_every: int = 50
    seed: int = 0


PROFILES = {
    "quick": Config(),
    "full": Config(
        problem=PROBLEMS["full"]["digits-mlp"],
        num_steps=5000,
        num_eigenpairs=10,
        checkpoint_every=250,
    ),
}


def plan(config: Config) -> execution.Plan:
    """The run, in pieces of `checkpoint_every` steps."""
    check_learning_rate(config.learning_rate)
    cuts = training.pieces(config.num_steps, config.checkpoint_every, config.every)
    built = build(config.problem, seed=config.seed)
    trainer = training.Trainer(
        built,
        num_eigenpairs=config.num_eigenpairs,
        every=config.every,
        tolerance=config.tolerance,
    )

    def start():
        empty = training.room(trainer, sum(cuts))
        params = trainer.descend(built.params, config.learning_rate, config.first_step)
        return trainer.begin(params, config.seed), empty, np.int32(0)

    def advance(state, piece: int):
        position, measured, done = state
        position, new = trainer.advance(position, config.learning_rate, cuts[piece])
        return position, training.filled(measured, int(done), new), np.int32(done + cuts[piece])

    def ended(state) -> bool:
        _, measured, done = state
        return bool(done) and not np.all(np.isfinite(measured.loss_each_step[done - 1]))

    def show(state) -> dict[str, str]:
        _, measured, done = state
        return training.shown(measured.loss, measured.eigenvalues, int(done))

    def outcome(state) -> execution.Outcome:
        _, measured, done = state
        return training.outcome(
            jax.tree.map(lambda x: x[:done], measured), config.every, first=config.first_step
        )

    return execution.Plan(built, len(cuts), start, advance, outcome, ended, show)


def run(config: Config = PROFILES["quick"], **options: Any) -> Record:
    r"""Train at one rate and follow the sharpness.

    Gradient descent $\theta_{k+1} = \theta_k - h\,g(\theta_k)$ on the full batch. Every measurement
    consists of the loss, the largest eigenvalues $\lambda_i$ of the Hessian with residuals, the
    gradient along their eigenvectors, the principal flow's stability coefficient
    $\operatorname{Re} \log(1 - h\lambda_0)/(h\lambda_0)$, and the drift
    $\|Hg\|/\|g\|$.

    Args:
      config: see `Config`.
      **options: `out`, `resume` and `progress`, as for `pfcore.experiments.run`.

    Returns:
      A `Record` with the arrays of `training.Measured`, and also `step` [M], the measured steps,
      and `gradient_along_top` [M], the gradient along the top eigenvector. A run that diverges ends
      with the first loss that is not finite.
    """
    return execution.execute(plan(config), {"experiment": NAME, "config": config}, **options)
