"""The full spectrum of the Hessian during training."""

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from pfcore import curvature
from pfcore._checks import check_count, check_learning_rate
from pfcore._trees import num_entries
from pfcore.records import Record
from pfcore.runs import execution, training
from pfcore.runs.problems import PROBLEMS, Problem, build

NAME = "hessian-through-training"


@dataclass(frozen=True)
class Config:
    """The problem, and the steps at which the spectrum is computed.

    Attributes:
      problem: data, network and loss.
      learning_rate: $h$.
      steps: numbers of gradient descent steps after which the spectrum is computed, ascending.
      num_probes: number of random vectors for the spectral density.
      depth: number of Hessian products for each.
      num_eigenpairs: number of the largest eigenpairs; the smallest eigenvalue is computed too.
      tolerance: of their residuals.
      seed: of weights and random vectors.
    """

    problem: Problem = PROBLEMS["quick"]["digits-mlp"]
    learning_rate: float = 0.2
    steps: tuple[int, ...] = (0, 50, 150, 250, 300, 330, 360, 400, 600, 1000)
    num_probes: int = 6
    depth: int = 40
    num_eigenpairs: int = 10
    tolerance: float = 1e-3
    seed: int = 0


PROFILES = {
    "quick": Config(),
    "full": Config(
        problem=PROBLEMS["full"]["digits-mlp"],
        steps=tuple(range(0, 5001, 50)),
        num_probes=20,
        depth=80,
        num_eigenpairs=20,
    ),
}


def plan(config: Config) -> execution.Plan:
    """One piece for each step at which the spectrum is computed."""
    steps = [check_count("every step", s, minimum=0) for s in config.steps]
    if not steps or sorted(set(steps)) != steps:
        raise ValueError(f"steps must ascend, got {config.steps!r}")
    check_learning_rate(config.learning_rate)
    built = build(config.problem, seed=config.seed)
    trainer = training.Trainer(built, num_eigenpairs=1)
    loss, accuracy = built.loss(built.data), jax.jit(built.accuracy(built.data))
    value = jax.jit(loss)
    points, k = len(steps), config.num_eigenpairs
    nodes = (config.num_probes, min(config.depth, num_entries(built.params)))

    def start():
        def room(*shape):
            return np.full((points, *shape), np.nan, config.problem.dtype)

        arrays = {
            "loss": room(),
            "test_accuracy": room(),
            "eigenvalues": room(k),
            "residuals": room(k),
            "smallest": room(),
            "nodes": room(*nodes),
            "weights": room(*nodes),
            "trace": room(),
            "trace_error": room(),
        }
        return built.params, arrays

    def advance(state, piece: int):
        params, arrays = state
        arrays = {name: array.copy() for name, array in arrays.items()}
        params = trainer.descend(
            params, config.learning_rate, steps[piece] - (steps[piece - 1] if piece else 0)
        )
        new = {"loss": value(params), "test_accuracy": accuracy(params)}
        if np.isfinite(new["loss"]):
            keys = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), piece), 3)
            top = curvature.top_eigenpairs(loss, params, k, key=keys[0], tolerance=config.tolerance)
            low = curvature.top_eigenpairs(loss, params, 1, key=keys[1], which="smallest")
            density = curvature.spectral_density(
                loss, params, key=keys[2], num_probes=config.num_probes, depth=config.depth
            )
            new |= {
                "eigenvalues": top.values,
                "residuals": top.residuals,
                "smallest": low.values[0],
                "nodes": density.nodes,
                "weights": density.weights,
                "trace": density.moment(1) * num_entries(params),
                "trace_error": density.moment_error(1) * num_entries(params),
            }
        # Fetched first: during a wait for the device, NumPy turns Ctrl-C into a ValueError.
        for name, values in jax.device_get(new).items():
            arrays[name][piece] = values
        return params, arrays

    def count(arrays) -> int:
        return int(np.sum(~np.isnan(arrays["test_accuracy"])))

    def ended(state) -> bool:
        done = count(state[1])
        return done > 0 and not np.isfinite(state[1]["loss"][done - 1])

    def outcome(state) -> execution.Outcome:
        arrays = state[1]
        done = count(arrays)
        diverged = steps[done - 1] if ended(state) else None
        kept = {name: array[:done] for name, array in arrays.items()}
        return execution.Outcome({"step": np.array(steps[:done], np.int32)} | kept, diverged)

    def show(state) -> dict[str, str]:
        return training.shown(state[1]["loss"], state[1]["eigenvalues"], count(state[1]))

    return execution.Plan(built, points, start, advance, outcome, ended, show)


def run(config: Config = PROFILES["quick"], **options: Any) -> Record:
    r"""Compute the Hessian's spectrum in training.

    Its spectral density, its trace, and its largest and smallest eigenvalues.

    Args:
      config: see `Config`.
      **options: `out`, `resume` and `progress`, as for `pfcore.experiments.run`.

    Returns:
      A `Record` with, for each of P steps: `step`, `loss`, `test_accuracy`, `eigenvalues` and
      `residuals` [P, k], `smallest` (eigenvalue), `nodes` and `weights` [P, probes, depth] of the
      spectral density (`pfcore.curvature.SpectralDensity`), `trace` and `trace_error`. Its
      `diverged_at_step` is the first of these steps at which the loss is not finite.
    """
    return execution.execute(plan(config), {"experiment": NAME, "config": config}, **options)
