"""Redraws figures from their data, in separate processes, once for each picture."""

import hashlib
import json
import os
import shutil
import sys
import time
from concurrent.futures import Future, ProcessPoolExecutor
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import pfcore

# Suffixes of the files that are written for a figure.
WRITTEN = (".csv", ".svg", ".pdf", "-dark.png")
_DONE = "drawn.json"
_KEPT = 7 * 86_400  # seconds after its last use


class Drawn(NamedTuple):
    """A redrawn figure.

    Attributes:
      folder: contains `figure` + each of `WRITTEN`.
      difference: share of pixels that differ from the stored picture.
    """

    folder: Path
    difference: float


def drawing_version() -> str:
    """A string that changes with the drawing code and with Matplotlib."""
    digest = hashlib.sha256(version("matplotlib").encode())
    package = Path(pfcore.__file__).parent / "figures"
    for path in [*sorted(package.rglob("*.py")), Path(__file__)]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def draw(picture: Path, folder: Path) -> None:
    """Draw the data that a picture contains, in all formats.

    Args:
      picture: a PNG that contains data.
      folder: the output folder, created if needed. It is complete once it contains `drawn.json`.

    Raises:
      ValueError: the picture contains no data, or they cannot be drawn.
    """
    from matplotlib import pyplot

    from pfcore import figures

    csv = figures.contents(picture).csv
    partial = folder.with_name(f"{folder.name}.{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    (partial / "figure.csv").write_text(csv, encoding="utf-8", newline="")
    # From the file, as a reader would do.
    light = figures.redraw(partial / "figure.csv")
    different = figures.difference(picture, light)
    # Pictures first, then vectors: Matplotlib keeps some fifty formulas at one resolution.
    (partial / "figure-dark.png").write_bytes(figures.picture(csv, theme="dark"))
    for suffix in (".svg", ".pdf"):
        figures.save(light, partial / f"figure{suffix}")
    pyplot.close("all")
    (partial / _DONE).write_text(json.dumps({"difference": different}), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


class Drawings:
    """The drawings of one build, started when their figures are read, and cached between builds.

    Args:
      folder: the folder of the cache.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._version = drawing_version()
        self._pool: ProcessPoolExecutor | None = None
        self._begun: dict[Path, Future | None] = {}

    def _place(self, picture: Path) -> Path:
        key = hashlib.sha256(self._version.encode() + picture.read_bytes()).hexdigest()[:20]
        return self._folder / key

    def begin(self, picture: Path) -> None:
        """Start to draw a picture's figure, unless it is drawn or being drawn."""
        place = self._place(picture)
        if place in self._begun:
            return
        if (place / _DONE).is_file():
            os.utime(place)
            self._begun[place] = None
            return
        if self._pool is None:
            # A forked process does not import the modules again, which takes longer than to draw a
            # figure. Forking is only safe on Linux.
            method = "fork" if sys.platform == "linux" else "spawn"
            workers = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
            self._pool = ProcessPoolExecutor(workers, mp_context=get_context(method))
        self._begun[place] = self._pool.submit(draw, picture, place)

    def result(self, picture: Path) -> Drawn:
        """The finished drawing; waits for it.

        Raises:
          Exception: the error of the drawing.
        """
        place = self._place(picture)
        self.begin(picture)
        future = self._begun[place]
        if future is not None:
            future.result()
        stored = json.loads((place / _DONE).read_text(encoding="utf-8"))
        return Drawn(place, stored["difference"])

    def close(self) -> None:
        """End the processes, and delete drawings that no build has used for a week.

        `make book` and `make html` build from different pictures, in turn.
        """
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        for place in self._folder.glob("*"):
            if time.time() - place.stat().st_mtime > _KEPT:
                shutil.rmtree(place, ignore_errors=True)
