"""Experiments: a frozen configuration in, a record out.

One module an experiment, each with a `Config`, a `quick` profile for a laptop and a `full` one for
a GPU, a `plan` in pieces that can be checkpointed, and `run(config)`.
"""

import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from pfcore import records
from pfcore.experiments import (
    adaptive_rates,
    analysis,
    edge_of_stability,
    flows_at_the_edge,
    hessian_through_training,
    learning_rate_change,
    models_of_the_edge,
    optimizers,
)
from pfcore.runs import execution, overrides, problems, store, training
from pfcore.runs.execution import Interrupted
from pfcore.runs.problems import PROBLEMS, Problem
from pfcore.runs.profiles import PROFILE_VARIABLE, profile_in_force

KEEP_VARIABLE = "PFCORE_KEEP_RECORDS"
EXPERIMENTS: dict[str, ModuleType] = {
    module.NAME: module
    for module in (
        edge_of_stability,
        flows_at_the_edge,
        models_of_the_edge,
        learning_rate_change,
        hessian_through_training,
        adaptive_rates,
    )
}


# Modules under the names that they had in this package up to version 0.2.
_MOVED = {
    "comparing": analysis,
    "methods": optimizers,
    "problems": problems,
    "running": execution,
    "settings": overrides,
    "stored": store,
    "training": training,
}
for _name, _module in _MOVED.items():
    sys.modules[f"{__name__}.{_name}"] = globals()[_name] = _module


def summary(name: str) -> str:
    """One line on what an experiment does."""
    return (_experiment(name).run.__doc__ or "").splitlines()[0]


def _experiment(name: str) -> ModuleType:
    if name not in EXPERIMENTS:
        raise ValueError(f"unknown experiment {name!r}; choose one of {', '.join(EXPERIMENTS)}")
    return EXPERIMENTS[name]


def configure(name: str, *changes: str, profile: str | None = None) -> Any:
    """An experiment's configuration: that of a profile, with settings changed.

    Args:
      name: of the experiment.
      *changes: such as `"learning_rate=0.1"`, `"problem=mnist-mlp"`, `"problem.widths=50,50"`.
      profile: "quick" or "full"; by default what `PFCORE_PROFILE` says.

    Raises:
      ValueError: the experiment, the profile or a setting is not known.

    Example:
      >>> import pfcore
      >>> config = pfcore.experiments.configure("edge-of-stability", "learning_rate=0.1")
      >>> config.learning_rate, config.problem.data
      (0.1, 'digits')
    """
    chosen = profile_in_force() if profile is None else profile
    known = _experiment(name).PROFILES
    if chosen not in known:
        raise ValueError(f"unknown profile {chosen!r}; choose one of {', '.join(known)}")
    return overrides.replace(known[chosen], changes, profile=chosen)


def run(
    name: str,
    config: Any = None,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    progress: bool = False,
) -> records.Record:
    """Carry out an experiment.

    Args:
      name: of the experiment.
      config: its configuration; by default that of the profile in force.
      out: a folder for checkpoints and the record; by default nothing is stored.
      resume: go on with the run that was begun in `out`.
      progress: show a progress bar.

    Returns:
      The `pfcore.records.Record`.

    Raises:
      ValueError: a setting makes no sense, or `out` holds a run with other settings.
      FileExistsError: `out` holds a run, and `resume` was not asked for.
      OSError: `out` cannot be written, has no room, or the data cannot be had.
      Interrupted: stopped by Ctrl-C; what was done is kept, where there is an `out`.
    """
    config = configure(name) if config is None else config
    return _experiment(name).run(config, out=out, resume=resume, progress=progress)


def load_or_run(name: str, config: Any = None, *, folder: str | Path = "records") -> records.Record:
    """The record of a configuration: a stored one if there is one, else it is computed now.

    It is looked for in `folder`, then in the folder that the environment variable `PFCORE_RECORDS`
    names, then, if it is one of the book's, at the repository, as of this version: downloaded once,
    its SHA-256 checked. If that fails too, a warning of the logger "pfcore" says so, and how long
    computing it took.

    With the environment variable `PFCORE_KEEP_RECORDS` set, what is not in `folder` is computed and
    stored there, and what is begun is taken up again.

    Args:
      name: of the experiment.
      config: its configuration; by default that of the profile in force.
      folder: where the stored records are, each in a folder of its own, whatever its name.

    Returns:
      The `pfcore.records.Record`; its `computed_on` says where its numbers come from.

    Raises:
      FileNotFoundError: `PFCORE_RECORDS` names no folder.
      ValueError, OSError: as for `run`, and where the record that was found is damaged.
    """
    config = configure(name) if config is None else config
    wanted = records.jsonable({"experiment": name, "config": config})
    keep = bool(os.environ.get(KEEP_VARIABLE))
    found = store.find(folder, wanted)
    if found is None and not keep:
        found = store.elsewhere(wanted)
    if found is not None:
        return found
    out = Path(folder) / f"{name}-{records.digest(wanted)}" if keep else None
    return run(name, config, out=out, resume=keep, progress=keep or profile_in_force() == "full")


obtain = load_or_run  # its name up to version 0.2

__all__ = [
    "EXPERIMENTS",
    "KEEP_VARIABLE",
    "PROBLEMS",
    "PROFILE_VARIABLE",
    "Interrupted",
    "Problem",
    "analysis",
    "configure",
    "load_or_run",
    "obtain",
    "optimizers",
    "profile_in_force",
    "run",
    "summary",
]
