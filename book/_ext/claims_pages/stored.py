"""Stored records as shown in the report: profile, changed settings, and notebooks that use them.

Only the `record.json` of each record is read.
"""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pfcore import experiments, figures, records
from pfcore.experiments import PROBLEMS


class Stored(NamedTuple):
    """A stored record.

    Attributes:
      name: name of its folder.
      info: the content of its `record.json`.
      profile: the profile with the closest configuration.
      changes: settings that differ from the profile, in the form of `pfcore run … --set`.
    """

    name: str
    info: dict[str, Any]
    profile: str
    changes: list[str]


def stored(folder: Path) -> list[Stored]:
    """All finished records in a folder, by experiment and name."""
    found = []
    for path in sorted(folder.glob(f"*/{records.RECORD}")):
        info = json.loads(path.read_text(encoding="utf-8"))
        profile, changes = nearest(info["experiment"], info["config"])
        found.append(Stored(path.parent.name, info, profile, changes))
    order = list(experiments.EXPERIMENTS)
    return sorted(found, key=lambda record: (order.index(record.info["experiment"]), record.name))


def nearest(name: str, config: dict[str, Any]) -> tuple[str, list[str]]:
    """The profile closest to a configuration, and the settings that differ.

    The problem is compared first, since profiles mainly differ in sizes, then the number of
    differing settings.

    Args:
      name: the experiment.
      config: as in `record.json`.
    """

    def distance(profile: str) -> tuple[int, int]:
        changes = every[profile]
        return sum(change.startswith("problem") for change in changes), len(changes)

    every = {profile: differences(name, config, profile) for profile in PROBLEMS}
    profile = min(every, key=distance)
    return profile, every[profile]


def differences(name: str, config: dict[str, Any], profile: str) -> list[str]:
    """The changes that turn an experiment's profile into a configuration.

    The inverse of `pfcore.experiments.configure(name, *changes, profile=profile)`.
    """
    base = records.jsonable(experiments.configure(name, profile=profile))
    changed = []
    for key, value in config.items():
        if key == "problem":
            changed += _problem(value, base[key], profile)
        elif value != base[key]:
            changed.append(f"{key}={text(value)}")
    return changed


def _problem(problem: dict[str, Any], base: dict[str, Any], profile: str) -> list[str]:
    """The shortest form of a problem: the profile's or a named one, and the differences."""
    starts = {"": base}
    starts |= {f"problem={name}": records.jsonable(p) for name, p in PROBLEMS[profile].items()}
    ways = []
    for start, known in starts.items():
        fields = [f"problem.{k}={text(v)}" for k, v in problem.items() if v != known[k]]
        ways.append([start, *fields] if start else fields)
    return min(ways, key=len)


def text(value: Any) -> str:
    """A setting's value as text that `pfcore.experiments.configure` reads."""
    if isinstance(value, list):
        return ",".join(map(text, value))
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return str(value)


def abridged(change: str, longest: int = 44) -> str:
    """A change in one short line; long lists are replaced by their length."""
    key, _, value = change.partition("=")
    if len(change) <= longest:
        return change
    return f"{key}: {len(value.split(','))} of them"


TIMES = "times.json"


def measured(folder: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """Measured times: notebook -> profile -> measurement.

    Returns:
      Empty if the file does not exist. Each measurement has `seconds`, `peak_mb` (None if unknown)
      and `machine`.
    """
    path = folder / TIMES
    if not path.is_file():
        return {}
    return json.loads(path.read_text(encoding="utf-8"))


MEMORY = "memory.json"


def predicted(folder: Path) -> dict[str, float]:
    """Predicted memory of each problem of the full profile, in megabytes (`tools/memory.py`)."""
    path = folder / MEMORY
    if not path.is_file():
        return {}
    problems = json.loads(path.read_text(encoding="utf-8"))["problems"]
    return {name: entry["megabytes"] for name, entry in problems.items()}


def used_by(folder: Path) -> dict[str, list[str]]:
    """Names of records -> notebooks with figures whose provenance names the record.

    Args:
      folder: the folder of the notebooks.
    """
    pages: dict[str, list[str]] = {}
    for path in sorted(folder.glob("*.ipynb")):
        for name in sorted(read_by(path)):
            pages.setdefault(name, []).append(path.stem)
    return pages


def read_by(notebook: Path) -> set[str]:
    """Names of the records that a notebook read before it drew its figures."""
    return {name for image in _images(notebook) for name in _sources(image)}


def seconds_of(notebook: Path) -> float:
    """Total computation time of the stored records that a notebook reads."""
    folder = notebook.parent / "records"
    found = [folder / name / records.RECORD for name in read_by(notebook)]
    texts = [path.read_text(encoding="utf-8") for path in found if path.is_file()]
    return sum(json.loads(text)["wall_time_s"] for text in texts)


def _images(notebook: Path) -> Iterator[bytes]:
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                yield base64.b64decode(output["data"]["image/png"])


def _sources(image: bytes) -> Iterator[str]:
    try:
        sources = figures.contents(image).provenance.get("sources", [])
    except ValueError:  # a picture without data
        return
    yield from (source["folder"] for source in sources if source["kind"] == "stored record")
