"""Experiments, which take a frozen configuration and return a record.

Each module holds one experiment: a `Config`, a `quick` profile for a laptop and a `full` profile
for a GPU, a `plan` in pieces with checkpoints between them, and `run(config)`.
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


# Names of modules up to version 0.2.
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
    """A one-line summary of an experiment."""
    return (_experiment(name).run.__doc__ or "").splitlines()[0]


def _experiment(name: str) -> ModuleType:
    if name not in EXPERIMENTS:
        raise ValueError(f"unknown experiment {name!r}; choose one of {', '.join(EXPERIMENTS)}")
    return EXPERIMENTS[name]


def configure(name: str, *changes: str, profile: str | None = None) -> Any:
    """The configuration of an experiment: that of a profile, with some settings changed.

    Args:
      name: the experiment.
      *changes: such as `"learning_rate=0.1"`, `"problem=mnist-mlp"`, `"problem.widths=50,50"`.
      profile: "quick" or "full"; by default the value of `PFCORE_PROFILE`.

    Raises:
      ValueError: the experiment, the profile or a setting is unknown.

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
    """Run an experiment.

    Args:
      name: the experiment.
      config: its configuration; by default that of the current profile.
      out: a folder for checkpoints and the record; by default nothing is stored.
      resume: whether to resume an interrupted run in `out`.
      progress: whether to show a progress bar.

    Returns:
      The `pfcore.records.Record`.

    Raises:
      ValueError: a setting is invalid, `out` holds a run with other settings, or `resume` comes
        without `out`.
      FileExistsError: `out` holds a run, and `resume` is false.
      OSError: `out` cannot be written or its disk is full, or the data are not available.
      Interrupted: the run was stopped by Ctrl-C. With `out`, it can be resumed.
    """
    config = configure(name) if config is None else config
    return _experiment(name).run(config, out=out, resume=resume, progress=progress)


def load_or_run(name: str, config: Any = None, *, folder: str | Path = "records") -> records.Record:
    """Load the stored record of a configuration, or run the experiment if there is none.

    The record is searched in `folder`, then in the folder that the environment variable
    `PFCORE_RECORDS` names. A record of the book is then downloaded from the repository, at the tag
    of this version, and its SHA-256 is checked. If that fails too, a warning of the logger "pfcore"
    states the reason, and how long the computation took before.

    With the environment variable `PFCORE_KEEP_RECORDS` set, a record that is not in `folder` is
    computed and stored there, and an interrupted computation is resumed.

    Args:
      name: the experiment.
      config: its configuration; by default that of the current profile.
      folder: the folder of stored records, each in a subfolder of any name.

    Returns:
      The `pfcore.records.Record`; its `computed_on` describes where it was computed.

    Raises:
      FileNotFoundError: `PFCORE_RECORDS` is not a directory.
      ValueError, OSError: as for `run`, or the record is damaged.
    """
    config = configure(name) if config is None else config
    wanted = records.jsonable({"experiment": name, "config": config})
    keep = bool(os.environ.get(KEEP_VARIABLE))
    record = store.find(folder, wanted)
    if record is None and not keep:
        record = store.elsewhere(wanted)
    if record is not None:
        return record
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
