"""The folder of a run: its configuration, and checkpoints until the record is written.

An unfinished run stores its configuration in `run.json` and its Orbax checkpoints in `checkpoints`.
Both are removed when its record is complete. `.lock` keeps other processes out.
"""

import contextlib
import json
import logging
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from pfcore._extras import optional
from pfcore.provenance import jsonable
from pfcore.records import RECORD, RUN, is_finished, write_json

CHECKPOINTS = "checkpoints"
LOCK = ".lock"


def has_run(folder: str | Path) -> bool:
    """Whether the folder holds a started or finished run."""
    return (Path(folder) / RUN).is_file() or is_finished(folder)


def forget_run(folder: str | Path) -> None:
    """Remove the files that only an unfinished run needs."""
    shutil.rmtree(Path(folder) / CHECKPOINTS, ignore_errors=True)
    (Path(folder) / RUN).unlink(missing_ok=True)


@contextlib.contextmanager
def reserve(folder: str | Path, run: dict[str, Any], *, resume: bool) -> Iterator[None]:
    """Hold a folder for a run, after checks that the run can be stored there.

    Args:
      folder: folder for the run's checkpoints and record; created if necessary.
      run: the experiment and its configuration.
      resume: continue the run in the folder, which must have the same configuration; if there is
        none, start. If another process holds the folder, wait until it is done.

    Raises:
      FileExistsError: the folder holds a run, or another process holds the folder, and `resume` is
        false.
      ValueError: the run in the folder has another configuration.
      OSError: the folder cannot be written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(4096))
    except OSError as error:
        raise type(error)(
            error.errno, f"cannot write the run to {str(folder)!r}: {error.strerror}"
        ) from error
    with _held(folder, wait=resume):
        _check_same(folder, jsonable(run), resume=resume)
        yield


@contextlib.contextmanager
def _held(folder: Path, *, wait: bool) -> Iterator[None]:
    """Only one process at a time is in this context with a folder."""
    with optional():
        import filelock
    lock = filelock.FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        if not wait:
            raise FileExistsError(
                f"another process is computing the run in {str(folder)!r}; wait until it is done, "
                "or choose another folder (--out)"
            ) from None
        logging.getLogger("pfcore").warning(
            "Another process is computing the run in %s; waiting for it.", folder
        )
        lock.acquire()
    try:
        yield
    finally:
        if not (folder / RUN).is_file():
            # A process that waits for this file gets the lock, and finds the record.
            with contextlib.suppress(OSError):  # Windows keeps open files
                (folder / LOCK).unlink()
        lock.release()


def _check_same(folder: Path, run: dict[str, Any], *, resume: bool) -> None:
    """Check that a run in the folder, if there is one, may be resumed with this configuration."""
    if not has_run(folder):
        return
    if not resume:
        raise FileExistsError(
            f"{str(folder)!r} holds a run already; resume it (--resume) or choose another "
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
    """Record in a reserved folder that the run has started, unless it had already.

    Args:
      folder: the run's folder.
      run: the experiment and its configuration.
      num_bytes: the most bytes that the run will store.

    Raises:
      OSError: the disk does not have that much free space.
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
        write_json(folder / RUN, jsonable(run))


def _show(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _flat(stored: dict[str, Any], like: dict[str, Any]) -> dict[str, Any]:
    """Nested entries as `a.b`, restricted to the top-level keys of `like`."""

    def entries(prefix: str, value: Any):
        if isinstance(value, dict):
            for key, item in value.items():
                yield from entries(f"{prefix}.{key}" if prefix else key, item)
        else:
            yield prefix, value

    return dict(entries("", {key: value for key, value in stored.items() if key in like}))


class Checkpoints:
    """Checkpoints of a run's state, written atomically; the last two are kept.

    Args:
      folder: the run's folder; checkpoints go into a subfolder.
    """

    def __init__(self, folder: str | Path):
        with optional():
            import orbax.checkpoint as ocp  # slow to import, and needed only for stored runs

        self._folder = Path(folder).resolve() / CHECKPOINTS
        self._args = ocp.args
        self._manager = ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=2, enable_async_checkpointing=False, create=True
            ),
        )

    def save(self, number: int, state: Any) -> None:
        """Store a pytree of arrays under an increasing number."""
        if number == self._manager.latest_step():
            return
        self._manager.save(number, args=self._args.StandardSave(_storable(state)))

    def restore(self, like: Any) -> tuple[int, Any] | None:
        """The latest number and state, with structure, dtypes and sharding of `like`; or None."""
        number = self._manager.latest_step()
        if number is None:
            return None
        stored = self._manager.restore(number, args=self._args.StandardRestore(_storable(like)))
        return number, jax.tree.map(_as_before, like, stored)

    def close(self) -> None:
        """Stop Orbax's threads; saved checkpoints stay."""
        self._manager.close()


def _storable(state: Any) -> Any:
    """The state as Orbax accepts it: NumPy scalars as arrays."""
    return jax.tree.map(lambda x: np.asarray(x) if isinstance(x, np.generic) else x, state)


def _as_before(like: Any, stored: Any) -> Any:
    return like.dtype.type(stored) if isinstance(like, np.generic) else stored
