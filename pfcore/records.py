"""A run's arrays and where they came from; checkpoints of a run that is not finished.

A record is a folder of two files: `arrays.npz`, and `record.json` beside it with the experiment,
its configuration, and what it was computed with. A run that is under way keeps its configuration
in `run.json` and its checkpoints, written by Orbax, in `checkpoints`.
"""

import dataclasses
import hashlib
import json
import math
import os
import shutil
import subprocess
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np

ARRAYS, RECORD, RUN, CHECKPOINTS = "arrays.npz", "record.json", "run.json", "checkpoints"
PACKAGES = ("pfcore", "jax", "jaxlib", "flax", "numpy")


@dataclasses.dataclass(frozen=True)
class Record:
    """What a run left.

    Attributes:
      arrays: NumPy arrays by name.
      info: what `record.json` holds: `experiment`, `config`, `data` (source and SHA-256),
        whether it `diverged` and `diverged_at_step`, `wall_time_s`, `device`, `versions`,
        `commit`.
    """

    arrays: dict[str, np.ndarray]
    info: dict[str, Any]

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.arrays:
            raise KeyError(f"no array {name!r} in this record; it has {', '.join(self.arrays)}")
        return self.arrays[name]

    @property
    def computed_on(self) -> str:
        """Where the numbers come from, in a few words for a figure."""
        return f"{self.info['device']}, JAX {self.info['versions']['jax']}"


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
        if not git("ls-files", "--", "records.py"):
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


def _write_text(path: Path, content: Any) -> None:
    """JSON, whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(partial, path)


def write(record: Record, folder: str | Path) -> None:
    """Store a record; `record.json` comes last, so that a folder that has one is complete.

    Args:
      record: what to store; its arrays must be numbers or booleans.
      folder: made if it does not exist.

    Raises:
      TypeError: an array holds anything else, such as Python objects.
      OSError: the folder cannot be written.
    """
    folder = Path(folder)
    arrays = {name: np.asarray(array) for name, array in record.arrays.items()}
    for name, array in arrays.items():
        if array.dtype.kind not in "biufc":
            raise TypeError(
                f"array {name!r} is of dtype {array.dtype}; a record keeps numbers and booleans"
            )
    folder.mkdir(parents=True, exist_ok=True)
    # What an older record described is about to go.
    (folder / RECORD).unlink(missing_ok=True)
    # Entries of the archive carry no time, so that the same arrays give the same bytes.
    partial = folder / (ARRAYS + ".partial")
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            entry = zipfile.ZipInfo(f"{name}.npy")
            entry.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(entry, "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)
    os.replace(partial, folder / ARRAYS)
    described = {n: {"shape": list(a.shape), "dtype": str(a.dtype)} for n, a in arrays.items()}
    _write_text(folder / RECORD, jsonable(record.info) | {"arrays": described})


def read(folder: str | Path) -> Record:
    """Read a record back. Pickled content is refused, not executed.

    Raises:
      FileNotFoundError: there is no finished record in the folder.
      ValueError: its files do not belong together, are damaged, or hold pickled objects.
    """
    folder = Path(folder)
    if not (folder / RECORD).is_file():
        begun = " A run was begun there: finish it with --resume." if has_run(folder) else ""
        raise FileNotFoundError(f"no {RECORD} in {str(folder)!r}.{begun}")
    with open(folder / ARRAYS, "rb") as file:
        try:
            reading = RECORD
            info = json.loads((folder / RECORD).read_text(encoding="utf-8"))
            reading = ARRAYS
            with np.load(file, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
        # One wrong byte can pick another decompressor, with errors of its own.
        except Exception as error:
            raise ValueError(f"{str(folder / reading)!r} cannot be read: {error}") from error
    described = info.pop("arrays", {})
    found = {n: {"shape": list(a.shape), "dtype": str(a.dtype)} for n, a in arrays.items()}
    if found != described:
        raise ValueError(
            f"{ARRAYS} and {RECORD} in {str(folder)!r} do not belong together: "
            f"the one holds {found}, the other describes {described}"
        )
    note_source("stored record", **info, folder=folder.name)
    return Record(arrays, info)


def is_finished(folder: str | Path) -> bool:
    """Whether the folder holds a whole record."""
    return (Path(folder) / RECORD).is_file()


def has_run(folder: str | Path) -> bool:
    """Whether a run was begun, or finished, in the folder."""
    return (Path(folder) / RUN).is_file() or is_finished(folder)


def forget_run(folder: str | Path) -> None:
    """Remove what only a run that is under way needs: checkpoints, and what the record repeats."""
    shutil.rmtree(Path(folder) / CHECKPOINTS, ignore_errors=True)
    (Path(folder) / RUN).unlink(missing_ok=True)


def claim(folder: str | Path, run: dict[str, Any], *, resume: bool) -> None:
    """Say now why a run could not be stored in a folder.

    Args:
      folder: where the run will keep its checkpoints and its record; made if need be.
      run: the experiment and its configuration.
      resume: go on with the run that was begun there, which must be the same; without one, begin.

    Raises:
      FileExistsError: a run is there already, and `resume` was not asked for.
      ValueError: the run that is there has another configuration.
      OSError: the folder cannot be written.
    """
    folder = Path(folder)
    run = jsonable(run)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".probe"
        probe.write_bytes(bytes(4096))
        probe.unlink()
    except OSError as error:
        raise type(error)(
            error.errno, f"cannot write the run to {str(folder)!r}: {error.strerror}"
        ) from error
    if not has_run(folder):
        return
    if not resume:
        raise FileExistsError(
            f"{str(folder)!r} holds a run already; go on with it (--resume) or choose another "
            "folder (--out)"
        )
    source = folder / (RUN if (folder / RUN).is_file() else RECORD)
    stored = json.loads(source.read_text(encoding="utf-8"))
    changed = [
        f"{name} is {_show(new.get(name))}, was {_show(old.get(name))}"
        for old, new in [(_flat(stored, run), _flat(run, run))]
        for name in dict.fromkeys([*old, *new])
        if old.get(name) != new.get(name)
    ]
    if changed:
        raise ValueError(
            f"the run in {str(folder)!r} has another configuration: {'; '.join(changed)}; "
            "resume with the same settings, or choose another folder"
        )


def begin(folder: str | Path, run: dict[str, Any], *, num_bytes: int) -> None:
    """Note in a folder that was claimed that the run has begun, unless it had before.

    Args:
      folder: the run's.
      run: the experiment and its configuration.
      num_bytes: how much the run is going to store at most.

    Raises:
      OSError: the disk has no room for that.
    """
    folder = Path(folder)
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise OSError(
            f"{str(folder)!r} has {free / 1e6:.0f} MB free, and this run may need "
            f"{num_bytes / 1e6:.0f} MB for its checkpoints and record; free some, or choose "
            "another folder"
        )
    if not has_run(folder):
        _write_text(folder / RUN, jsonable(run))


def _show(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _flat(stored: dict[str, Any], like: dict[str, Any]) -> dict[str, Any]:
    """Nested entries as `a.b`; only what `like` has at the top."""

    def entries(prefix: str, value: Any):
        if isinstance(value, dict):
            for key, item in value.items():
                yield from entries(f"{prefix}.{key}" if prefix else key, item)
        else:
            yield prefix, value

    return dict(entries("", {key: value for key, value in stored.items() if key in like}))


class Checkpoints:
    """The state of a run on disk, written whole or not at all; the last two are kept.

    Args:
      folder: the run's; checkpoints go into a folder of their own in it.
    """

    def __init__(self, folder: str | Path):
        import orbax.checkpoint as ocp  # takes its time, and only runs that are kept need it

        self._folder = Path(folder).resolve() / CHECKPOINTS
        self._args = ocp.args
        self._manager = ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=2, enable_async_checkpointing=False, create=True
            ),
        )

    def save(self, number: int, state: Any) -> None:
        """Store a pytree of arrays under a number that grows."""
        if number == self._manager.latest_step():
            return
        self._manager.save(number, args=self._args.StandardSave(_storable(state)))

    def restore(self, like: Any) -> tuple[int, Any] | None:
        """The latest number and state, in the structure, dtypes and sharding of `like`; or None."""
        number = self._manager.latest_step()
        if number is None:
            return None
        stored = self._manager.restore(number, args=self._args.StandardRestore(_storable(like)))
        return number, jax.tree.map(_as_before, like, stored)

    def close(self) -> None:
        """End Orbax's threads; what was saved stays."""
        self._manager.close()


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _storable(state: Any) -> Any:
    """The state in what Orbax takes: keys as their data, NumPy's scalars as arrays."""

    def storable(leaf: Any) -> Any:
        if _is_key(leaf):
            return jax.random.key_data(leaf)
        return np.asarray(leaf) if isinstance(leaf, np.generic) else leaf

    return jax.tree.map(storable, state)


def _as_before(like: Any, stored: Any) -> Any:
    if _is_key(like):
        return jax.random.wrap_key_data(stored, impl=jax.random.key_impl(like))
    return like.dtype.type(stored) if isinstance(like, np.generic) else stored
