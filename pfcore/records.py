"""The arrays of a run and their provenance, as two files in a folder.

`arrays.npz` holds the arrays; `record.json` holds the experiment, its configuration and its
provenance.
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
RUN = "run.json"  # in place of the record while a run is unfinished


@dataclasses.dataclass(frozen=True)
class Record:
    """The result of a run.

    Attributes:
      arrays: NumPy arrays by name.
      info: the content of `record.json`: `experiment`, `config`, `data` (source and SHA-256),
        whether it `diverged` and `diverged_at_step`, `wall_time_s`, `processes`, `device`,
        `matmul_precision`, `versions`, `commit`.
    """

    arrays: dict[str, np.ndarray]
    info: dict[str, Any]

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.arrays:
            raise KeyError(f"no array {name!r} in this record; it has {', '.join(self.arrays)}")
        return self.arrays[name]

    @property
    def computed_on(self) -> str:
        """Device and JAX version, as a short text for a figure."""
        return f"{self.info['device']}, JAX {self.info['versions']['jax']}"


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(partial, path)


def write(record: Record, folder: str | Path) -> None:
    """Store a record. `record.json` is written last: a folder that has one is complete.

    Args:
      record: the record; its arrays must be numbers or booleans.
      folder: created if it does not exist.

    Raises:
      TypeError: an array holds anything else, such as Python objects.
      OSError: the folder cannot be written.
    """
    folder = Path(folder)
    arrays = {name: np.asarray(array) for name, array in record.arrays.items()}
    for name, array in arrays.items():
        if array.dtype.kind not in "biufc":
            raise TypeError(
                f"array {name!r} is of dtype {array.dtype}; a record stores numbers and booleans"
            )
    folder.mkdir(parents=True, exist_ok=True)
    # An older record's arrays are about to be replaced.
    (folder / RECORD).unlink(missing_ok=True)
    # Entries of the archive carry no time: the same arrays give the same bytes.
    partial = folder / (ARRAYS + ".partial")
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, array, allow_pickle=False)
    os.replace(partial, folder / ARRAYS)
    described = {n: {"shape": list(a.shape), "dtype": str(a.dtype)} for n, a in arrays.items()}
    write_json(folder / RECORD, jsonable(record.info) | {"arrays": described})


def read(folder: str | Path) -> Record:
    """Read a record. Pickled content is rejected, not executed.

    Raises:
      FileNotFoundError: there is no finished record in the folder.
      ValueError: its files do not belong together, are damaged, or hold pickled objects.
    """
    folder = Path(folder)
    if not (folder / RECORD).is_file():
        begun = (
            " An unfinished run is there: resume it with --resume."
            if (folder / RUN).is_file()
            else ""
        )
        raise FileNotFoundError(f"no {RECORD} in {str(folder)!r}.{begun}")
    with open(folder / ARRAYS, "rb") as file:
        try:
            reading = RECORD
            info = json.loads((folder / RECORD).read_text(encoding="utf-8"))
            reading = ARRAYS
            with np.load(file, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
        # One wrong byte can select another decompressor, with errors of its own.
        except Exception as error:
            raise ValueError(f"{str(folder / reading)!r} cannot be read: {error}") from error
    described = info.pop("arrays", {})
    actual = {n: {"shape": list(a.shape), "dtype": str(a.dtype)} for n, a in arrays.items()}
    if actual != described:
        raise ValueError(
            f"{ARRAYS} and {RECORD} in {str(folder)!r} do not belong together: "
            f"the one holds {actual}, the other describes {described}"
        )
    note_source("stored record", **info, folder=folder.name)
    return Record(arrays, info)


def is_finished(folder: str | Path) -> bool:
    """Whether the folder holds a complete record."""
    return (Path(folder) / RECORD).is_file()


# Up to version 0.2 the names for the folder of an unfinished run were here.
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
