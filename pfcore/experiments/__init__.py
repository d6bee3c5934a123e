"""Experiments: a frozen configuration in, a record out.

One module an experiment, each with a `Config`, a `quick` profile for a laptop and a `full` one for
a GPU, a `plan` in pieces that can be checkpointed, and `run(config)`.
"""

import os
from pathlib import Path
from types import ModuleType
from typing import Any

from pfcore import records
from pfcore.experiments import (
    adaptive_rates,
    comparing,
    edge_of_stability,
    flows_at_the_edge,
    hessian_through_training,
    learning_rate_change,
    methods,
    running,
    settings,
    stored,
)
from pfcore.experiments.problems import PROBLEMS, Problem
from pfcore.experiments.running import Interrupted

PROFILE_VARIABLE = "PFCORE_PROFILE"
KEEP_VARIABLE = "PFCORE_KEEP_RECORDS"
EXPERIMENTS: dict[str, ModuleType] = {
    module.NAME: module
    for module in (
        edge_of_stability,
        flows_at_the_edge,
        learning_rate_change,
        hessian_through_training,
        adaptive_rates,
    )
}


def profile_in_force() -> str:
    """The profile asked for by the environment variable `PFCORE_PROFILE`; "quick" if none is."""
    return os.environ.get(PROFILE_VARIABLE) or "quick"


def summary(name: str) -> str:
    """One line on what an experiment does."""
    return (_module(name).run.__doc__ or "").splitlines()[0]


def _module(name: str) -> ModuleType:
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
    known = _module(name).PROFILES
    if chosen not in known:
        raise ValueError(f"unknown profile {chosen!r}; choose one of {', '.join(known)}")
    return settings.replace(known[chosen], changes, profile=chosen)


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
    return _module(name).run(config, out=out, resume=resume, progress=progress)


def obtain(name: str, config: Any = None, *, folder: str | Path = "records") -> records.Record:
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
    found = stored.find(folder, wanted)
    if found is None and not keep:
        found = stored.elsewhere(wanted)
    if found is not None:
        return found
    out = Path(folder) / f"{name}-{records.digest(wanted)}" if keep else None
    return run(name, config, out=out, resume=keep, progress=keep or profile_in_force() == "full")


__all__ = [
    "EXPERIMENTS",
    "PROBLEMS",
    "Interrupted",
    "Problem",
    "comparing",
    "configure",
    "methods",
    "obtain",
    "profile_in_force",
    "run",
    "running",
    "summary",
]
