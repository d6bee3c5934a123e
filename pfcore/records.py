"""A run's arrays and where they came from, as two files in a folder.

`arrays.npz` holds the arrays, and `record.json` beside it the experiment, its configuration, and
what it was computed with.
"""

import dataclasses
import importlib
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from pfcore.provenance import digest as digest
from pfcore.provenance import jsonable, note_source
from pfcore.provenance import provenance as provenance
from pfcore.provenance import sources as sources

ARRAYS, RECORD = "arrays.npz", "record.json"
RUN = "run.json"  # in place of the record, while a run is under way


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


def write_json(path: Path, content: Any) -> None:
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
    write_json(folder / RECORD, jsonable(record.info) | {"arrays": described})


def read(folder: str | Path) -> Record:
    """Read a record back. Pickled content is refused, not executed.

    Raises:
      FileNotFoundError: there is no finished record in the folder.
      ValueError: its files do not belong together, are damaged, or hold pickled objects.
    """
    folder = Path(folder)
    if not (folder / RECORD).is_file():
        begun = (
            " A run was begun there: finish it with --resume." if (folder / RUN).is_file() else ""
        )
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


# Up to version 0.2 what a folder holds while its run is under way stood here.
_MOVED = {
    "CHECKPOINTS": "CHECKPOINTS",
    "Checkpoints": "Checkpoints",
    "begin": "begin",
    "claim": "reserve",
    "forget_run": "forget_run",
    "has_run": "has_run",
}


def __getattr__(name: str) -> Any:
    if name in _MOVED:
        return getattr(importlib.import_module("pfcore.runs.folder"), _MOVED[name])
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
