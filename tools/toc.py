"""The book's table of contents: its pages, in order."""

from pathlib import Path
from typing import Any, NamedTuple

import yaml


class Chapter(NamedTuple):
    """A page of the book: its name, the title of the part that it starts, and its depth."""

    name: str
    part: str | None = None
    depth: int = 0

    @property
    def anchor(self) -> str:
        """Its anchor on the single page."""
        return self.name.replace("/", "-")


def chapters(root: Path) -> list[Chapter]:
    """The pages in the order of the table of contents, `_toc.yml` under `root`."""
    contents = yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))
    found = [Chapter(contents["root"])]

    def add(nodes: list[dict[str, Any]], part: str | None = None, depth: int = 0) -> None:
        for node in nodes:
            found.append(Chapter(str(Path(node["file"]).with_suffix("")), part, depth))
            part = None
            add(node.get("sections", []), depth=depth + 1)

    for part in contents.get("parts", []):
        add(part["chapters"], part.get("caption"))
    add(contents.get("chapters", []))
    return found
