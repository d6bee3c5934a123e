"""The book's notebooks as files, and the form in which they are stored.

Stored notebooks are normalised: metadata, cell ids and execution counts depend only on the cells,
so that running a notebook twice on one machine gives the same bytes.
"""

from collections.abc import Sequence
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from toc import chapters

ROOT = Path(__file__).resolve().parent.parent
MAX_BYTES = 2_000_000
NOTEBOOK_METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
CELL_METADATA = ("mystnb", "tags")


def listed(root: Path = ROOT) -> list[Path]:
    """The notebooks under `root` that `_toc.yml` lists, in its order."""

    paths = (root / f"{chapter.name}.ipynb" for chapter in chapters(root))
    return [path for path in paths if path.is_file()]


def shown(path: Path, root: Path = ROOT) -> str:
    """A path relative to `root`, or unchanged if it is outside."""
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


def _normalise_outputs(outputs: Sequence[NotebookNode], count: int) -> list[NotebookNode]:
    """Join adjacent outputs of one stream, and set execution counts."""
    joined: list[NotebookNode] = []
    for output in outputs:
        if output.output_type == "stream" and joined:
            last = joined[-1]
            if last.output_type == "stream" and last.name == output.name:
                last.text += output.text
                continue
        if output.output_type == "execute_result":
            output.execution_count = count
        joined.append(output)
    return joined


def normalise(notebook: NotebookNode) -> NotebookNode:
    """`notebook` without details that differ between equivalent runs."""
    notebook = nbformat.from_dict(notebook)
    notebook.metadata = nbformat.from_dict(NOTEBOOK_METADATA)
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    count = 0
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number:03d}"
        cell.metadata = nbformat.from_dict(
            {key: cell.metadata[key] for key in CELL_METADATA if key in cell.metadata}
        )
        cell.source = "\n".join(line.rstrip() for line in cell.source.strip("\n").split("\n"))
        if cell.cell_type == "code":
            if cell.execution_count is not None:
                count += 1
                cell.execution_count = count
            cell.outputs = _normalise_outputs(cell.outputs, count)
    return notebook


def serialise(notebook: NotebookNode) -> str:
    """The text of the stored file."""
    return nbformat.writes(notebook, version=4).rstrip("\n") + "\n"


def faults(path: Path) -> list[str]:
    """The faults of a stored notebook, as sentences."""
    found = []
    text = path.read_text(encoding="utf-8")
    if len(text.encode()) > MAX_BYTES:
        found.append(f"is {len(text.encode()) / 1e6:.1f} MB; the limit is {MAX_BYTES / 1e6:.0f} MB")
    notebook = nbformat.reads(text, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    unrun = [number for number, cell in enumerate(code, 1) if cell.execution_count is None]
    counts = [cell.execution_count for cell in code]
    if unrun:
        found.append(f"code cells that were not run: {', '.join(map(str, unrun))}")
    elif counts != list(range(1, len(code) + 1)):
        found.append(f"code cells ran out of order: {counts}")
    for number, cell in enumerate(code, 1):
        for output in cell.outputs:
            if output.output_type == "error":
                found.append(f"code cell {number} ended in {output.ename}: {output.evalue}")
    if text != serialise(normalise(notebook)):
        found.append("is not stored normalised: make notebooks does that")
    return found


def check(paths: Sequence[Path]) -> int:
    """Print the faults of stored notebooks; returns the number of notebooks with faults."""
    wrong = 0
    for path in paths:
        found = faults(path)
        wrong += bool(found)
        for fault in found:
            print(f"{shown(path)}: {fault}")
    return wrong
