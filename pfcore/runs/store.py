"""Find stored records, in a folder or in the repository at the tag of this version.

A record is identified by its configuration. `records.json` beside this file, which is part of the
package, lists the book's records and the SHA-256 of their files; downloads with other hashes are
rejected.
"""

import contextlib
import functools
import hashlib
import json
import logging
import os
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pfcore
from pfcore import records
from pfcore._download import download
from pfcore._extras import optional
from pfcore.runs.durations import duration

VARIABLE = "PFCORE_RECORDS"
ADDRESS = "https://raw.githubusercontent.com/principal-flow/pfcore/v{version}/book/records/"
REGISTRY = "records.json"
FILES = (records.ARRAYS, records.RECORD)
# Addresses that could not be read, and are not tried again in this process.
_unreachable: set[str] = set()


def find(folder: str | Path, wanted: dict[str, Any]) -> records.Record | None:
    """The record in a folder with the given experiment and configuration, if there is one.

    Args:
      folder: holds records, each in a subfolder of any name; it need not exist.
      wanted: the experiment and its configuration, as JSON would return them.

    Raises:
      ValueError, OSError: the matching record is damaged.
    """
    for path in sorted(Path(folder).glob(f"*/{records.RECORD}")):
        stored = json.loads(path.read_text(encoding="utf-8"))
        if {key: stored.get(key) for key in wanted} == wanted:
            return records.read(path.parent)
    return None


def elsewhere(wanted: dict[str, Any]) -> records.Record | None:
    """The record in the folder named by PFCORE_RECORDS, else the one in the repository, if any.

    Returns None also for a record that is listed but cannot be downloaded; a warning of the logger
    "pfcore" then gives the reason and the time that computing it took.

    Raises:
      FileNotFoundError: PFCORE_RECORDS does not name a directory.
      ValueError, OSError: the record in that folder is damaged.
    """
    folder = os.environ.get(VARIABLE)
    if folder:
        path = Path(folder).expanduser()
        if not path.is_dir():
            raise FileNotFoundError(
                f"{VARIABLE} is {folder!r}, which is not a directory; set it to a copy of the "
                "repository's book/records, or unset it to have the records downloaded"
            )
        record = find(path, wanted)
        if record is not None:
            return record
    listed = registry().get(records.digest(wanted))
    return None if listed is None else _download(listed)


@functools.cache
def registry() -> dict[str, dict[str, Any]]:
    """The book's stored records, by the digest of experiment and configuration.

    Each entry has its `folder`, the `sha256` of its files, and the `wall_time_s` and `device` of
    its computation.
    """
    text = resources.files(__package__).joinpath(REGISTRY).read_text(encoding="utf-8")
    return json.loads(text)


def describe(folder: str | Path) -> dict[str, dict[str, Any]]:
    """The entries of `registry` for a folder of records."""
    described = {}
    for path in sorted(Path(folder).glob(f"*/{records.RECORD}")):
        info = json.loads(path.read_text(encoding="utf-8"))
        key = records.digest({name: info[name] for name in ("experiment", "config")})
        described[key] = {
            "folder": path.parent.name,
            "wall_time_s": info["wall_time_s"],
            "device": info["device"],
            "sha256": {
                name: hashlib.sha256((path.parent / name).read_bytes()).hexdigest()
                for name in FILES
            },
        }
    return described


def _download(listed: dict[str, Any]) -> records.Record | None:
    """A record of the registry, from cache or repository; None, with a warning, if that fails."""
    address = ADDRESS.format(version=pfcore.__version__)
    name = listed["folder"]
    took = f"computing the stored one took {duration(listed['wall_time_s'])} on {listed['device']}"
    logger = logging.getLogger("pfcore")
    if address in _unreachable:
        logger.warning("The record %s is computed now as well; %s.", name, took)
        return None
    try:
        with _without_remarks():
            paths = [
                download((f"{address}{name}/",), file, sha256, f"records/{name}")
                for file, sha256 in listed["sha256"].items()
            ]
        return records.read(paths[0].parent)
    except (OSError, ValueError) as error:
        _unreachable.add(address)
        logger.warning(
            "The stored record %s cannot be read: %s. It is computed now; %s. To work offline, "
            "set the environment variable %s to a copy of the repository's book/records.",
            name,
            error,
            took,
            VARIABLE,
        )
        return None


@contextlib.contextmanager
def _without_remarks() -> Iterator[None]:
    """Silence Pooch, whose two lines for each record would bury a notebook's output."""
    with optional():
        import pooch

    logger = pooch.get_logger()
    # Not by its level: Pooch's logger remembers what the level allowed before.
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = False
