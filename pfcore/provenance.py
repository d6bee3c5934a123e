"""Provenance of a result: versions, device, commit and data.

A configuration is identified by a digest of its JSON.
"""

import dataclasses
import hashlib
import json
import math
import os
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

import pfcore

PACKAGES = ("jax", "jaxlib", "flax", "numpy")


def jsonable(value: Any) -> Any:
    """A configuration as JSON would return it: dataclasses as dicts, tuples as lists."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: jsonable(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: jsonable(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [jsonable(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value!r} cannot be stored in JSON; use null")
    return value


def digest(value: Any) -> str:
    """Eight hexadecimal digits that identify a configuration."""
    text = json.dumps(jsonable(value), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _commit() -> str | None:
    """The commit of pfcore's own checkout, with "+" if it has uncommitted changes."""
    folder = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        ).stdout.strip()

    try:
        # A copy installed inside another checkout has no commit of its own.
        if not git("ls-files", "--", "provenance.py"):
            return None
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _device() -> str:
    first = jax.devices()[0]
    if first.platform == "cpu":
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        return f"{cores} CPU cores"
    return f"{jax.device_count()} × {first.device_kind}"


def provenance() -> dict[str, Any]:
    """Versions, device, precision and commit of this process, as stored in `record.json`."""
    versions = {"pfcore": pfcore.__version__}  # from its source: it may run without installation
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    return {
        "device": _device(),
        # Of float32 matrix products, on devices with a less precise format, such as TF32.
        "matmul_precision": precision or "default",
        "processes": jax.process_count(),
        "versions": versions,
        "commit": _commit(),
    }


_sources: list[dict[str, Any]] = []


def note_source(kind: str, **described: Any) -> None:
    """Register a data set or record that this process used or computed."""
    source = {"kind": kind} | jsonable(described)
    if source not in _sources:
        _sources.append(source)


def sources() -> list[dict[str, Any]]:
    """The data sets and records used by this process so far, each once, oldest first."""
    return [dict(source) for source in _sources]
