"""What the directives share: where the book's files are, and how verdicts are counted."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sphinx.util.docutils import SphinxDirective

from _ext.claims_pages import stored
from pfcore.claims import VERDICTS, Claim, collect


def verdict_counts(verdicts: Iterable[str]) -> list[str]:
    """ "7 hold", "8 hold in part", "1 fails": those that occur."""
    found = Counter(verdicts)
    plural = {"holds": "hold", "holds in part": "hold in part", "fails": "fail"}
    return [f"{found[v]} {v if found[v] == 1 else plural[v]}" for v in VERDICTS if found[v]]


class Generated(SphinxDirective):
    """What the directives share: where the book's files are, and that the page depends on them."""

    has_content = False

    @property
    def folder(self) -> Path:
        """The page's own folder; claims, records, times and notebooks are beside the page."""
        return Path(self.env.doc2path(self.env.docname)).parent

    def page(self, notebook: str) -> str:
        """The document's name of a notebook beside this page."""
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
        """What every notebook took, by profile; nothing where nothing has been measured."""
        self._depend(stored.TIMES)
        return stored.measured(self.folder)

    def _depend(self, pattern: str) -> None:
        for path in self.folder.glob(pattern):
            self.env.note_dependency(str(path))
