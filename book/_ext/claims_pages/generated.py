"""Base class of the directives, with the paths of the book's files; counts of verdicts."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sphinx.util.docutils import SphinxDirective

from _ext.claims_pages import stored
from pfcore.claims import VERDICTS, Claim, collect


def verdict_counts(verdicts: Iterable[str]) -> list[str]:
    """The verdicts that occur, such as "7 hold", "8 hold in part" and "1 fails"."""
    found = Counter(verdicts)
    plural = {"holds": "hold", "holds in part": "hold in part", "fails": "fail"}
    return [f"{found[v]} {v if found[v] == 1 else plural[v]}" for v in VERDICTS if found[v]]


class Generated(SphinxDirective):
    """A directive that reads the book's files, and records that the page depends on them."""

    has_content = False

    @property
    def folder(self) -> Path:
        """The page's folder, which also holds claims, records, times and notebooks."""
        return Path(self.env.doc2path(self.env.docname)).parent

    def page(self, notebook: str) -> str:
        """The document name of a notebook in the page's folder."""
        return str(Path(self.env.docname).with_name(notebook).as_posix())

    def claims(self) -> dict[str, list[Claim]]:
        """All claims by notebook."""
        self._depend("claims/*.json")
        return collect(self.folder / "claims")

    def records(self) -> list[stored.Stored]:
        """All stored records."""
        self._depend(f"records/*/{stored.records.RECORD}")
        return stored.stored(self.folder / "records")

    def times(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Measured times of every notebook, by profile; empty if nothing has been measured."""
        self._depend(stored.TIMES)
        return stored.measured(self.folder)

    def _depend(self, pattern: str) -> None:
        for path in self.folder.glob(pattern):
            self.env.note_dependency(str(path))
