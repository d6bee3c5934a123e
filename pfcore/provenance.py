"""What a result was computed with: versions, device, commit, and the data that was used.

A configuration is identified by the digest of its JSON.
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

PACKAGES = ("pfcore", "jax", "jaxlib", "flax", "numpy")


def jsonable(value: Any) -> Any:
    """A configuration as JSON would give it back: dataclasses as dicts, tuples as lists."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: jsonable(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: jsonable(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [jsonable(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value!r} has no place in JSON; use null")
    return value


def digest(value: Any) -> str:
    """Eight hexadecimal digits that tell one configuration from another."""
    text = json.dumps(jsonable(value), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _commit() -> str | None:
    """The commit that pfcore's own checkout stands at, "+" if it has been changed since."""
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
        # An installed copy inside somebody else's checkout has no commit of its own.
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
    """Versions, device, precision and commit of this process, as they stand in `record.json`."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    return {
        "device": _device(),
        # Of products of float32 matrices, where the device has a coarser kind, such as TF32.
        "matmul_precision": precision or "default",
        "processes": jax.process_count(),
        "versions": versions,
        "commit": _commit(),
    }


_sources: list[dict[str, Any]] = []


def note_source(kind: str, **described: Any) -> None:
    """Keep in mind that this process has used a data set or a record, or computed one."""
    source = {"kind": kind} | jsonable(described)
    if source not in _sources:
        _sources.append(source)


def sources() -> list[dict[str, Any]]:
    """The data sets and records that this process has used so far, each once, oldest first."""
    return [dict(source) for source in _sources]
