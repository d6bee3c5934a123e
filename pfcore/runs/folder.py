"""The folder of a run: what was begun in it, and checkpoints until the record is written.

A run that is under way keeps its configuration in `run.json` and its checkpoints, written by Orbax,
in `checkpoints`. Both are removed when its record is complete.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np

from pfcore._extras import optional
from pfcore.provenance import jsonable
from pfcore.records import RECORD, RUN, is_finished, write_json

CHECKPOINTS = "checkpoints"


def has_run(folder: str | Path) -> bool:
    """Whether a run was begun, or finished, in the folder."""
    return (Path(folder) / RUN).is_file() or is_finished(folder)


def forget_run(folder: str | Path) -> None:
    """Remove what only a run that is under way needs: checkpoints, and what the record repeats."""
    shutil.rmtree(Path(folder) / CHECKPOINTS, ignore_errors=True)
    (Path(folder) / RUN).unlink(missing_ok=True)


def reserve(folder: str | Path, run: dict[str, Any], *, resume: bool) -> None:
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
        write_json(folder / RUN, jsonable(run))


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
        with optional():
            import orbax.checkpoint as ocp  # slow to load, and only runs that are kept need it

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
