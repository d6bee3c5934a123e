"""The stored records, as the report shows them: what was changed, from which profile, by whom used.

Only `record.json` is read of each record.
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
      name: of its folder.
      info: what its `record.json` holds.
      profile: whose configuration it is nearest to.
      changes: what was changed in that, each as `pfcore run … --set` takes it.
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
    """The profile that a configuration comes from, and how it differs from that.

    That is the one whose problem it has, or is nearest to, since sizes are what profiles are about;
    then the one that it differs less from.

    Args:
      name: of the experiment.
      config: as in `record.json`.
    """

    def distance(profile: str) -> tuple[int, int]:
        changes = every[profile]
        return sum(change.startswith("problem") for change in changes), len(changes)

    every = {profile: differences(name, config, profile) for profile in PROBLEMS}
    profile = min(every, key=distance)
    return profile, every[profile]


def differences(name: str, config: dict[str, Any], profile: str) -> list[str]:
    """What to change in an experiment's profile to have a configuration.

    `pfcore.experiments.configure(name, *differences(…), profile=profile)` gives it again.
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
    """The shortest way to say a problem: the profile's, or one of the named, and what differs."""
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
    """A change in one short line: of a long list, how many it has."""
    key, _, value = change.partition("=")
    if len(change) <= longest:
        return change
    return f"{key}: {len(value.split(','))} of them"


TIMES = "times.json"


def measured(folder: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """What the notebooks beside a file of times took: notebook -> profile -> what was measured.

    Returns:
      Nothing where there is no such file. Each entry has `seconds`, `peak_mb` (None where it is not
      known) and the `machine`, which the file names once for most of them.
    """
    path = folder / TIMES
    if not path.is_file():
        return {}
    content = json.loads(path.read_text(encoding="utf-8"))
    common = {"machine": content["machine"]}
    return {
        notebook: {profile: common | entry for profile, entry in profiles.items()}
        for notebook, profiles in content["notebooks"].items()
    }


MEMORY = "memory.json"


def predicted(folder: Path) -> dict[str, float]:
    """Megabytes that each problem of the full profile is predicted to take (`tools/memory.py`)."""
    path = folder / MEMORY
    if not path.is_file():
        return {}
    problems = json.loads(path.read_text(encoding="utf-8"))["problems"]
    return {name: entry["megabytes"] for name, entry in problems.items()}


def used_by(folder: Path) -> dict[str, list[str]]:
    """Names of records -> notebooks whose figures' provenance names the record.

    Args:
      folder: of the notebooks.
    """
    pages: dict[str, list[str]] = {}
    for path in sorted(folder.glob("*.ipynb")):
        for name in sorted(read_by(path)):
            pages.setdefault(name, []).append(path.stem)
    return pages


def read_by(notebook: Path) -> set[str]:
    """Names of the records that a notebook had read when it drew its figures."""
    return {name for image in _images(notebook) for name in _sources(image)}


def seconds_of(notebook: Path) -> float:
    """What the stored records that a notebook reads took to compute."""
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
    except ValueError:  # a picture that carries no data
        return
    yield from (source["folder"] for source in sources if source["kind"] == "stored record")
