"""A figure's parts as CSV: a header for readers, one line for the look, then the numbers."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from pfcore.figures.carried.drawing import COORDINATES, Drawing, Part

_LOOK = "# look: "
_MEANING = {
    "panel": "which pair of axes, as listed below",
    "series": "what the numbers belong to within the panel, as listed below",
    "piece": "counts the pieces of a series that are not joined",
    "x": "horizontal coordinate, in the units of the panel's axis",
    "y": "vertical coordinate, likewise",
    "z": "third coordinate, likewise",
    "value": "an image's value at (x, y), or its colour as rrggbb",
}


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _axis_label(drawing: Drawing, panel: dict[str, Any], name: str) -> str:
    """An axis's label, or that of an aligned panel if it has none."""
    side = slice(0, 4, 2) if name == "x" else slice(1, 4, 2)  # of left, bottom, width, height
    shared = [
        other
        for other in drawing.panels
        if other["box"][side] == panel["box"][side]
        and other["limits"].get(name) == panel["limits"][name]
    ]
    labels = (other["ticks"][name].get("label", "") for other in [panel, *shared])
    return _one_line(next(filter(None, labels), ""))


def _axis_words(drawing: Drawing, panel: dict[str, Any], name: str) -> str:
    label = _axis_label(drawing, panel, name)
    scale = panel["scales"][name]
    words = f'"{label}"' if label else "without a label"
    return f"{name}: {words}" + ("" if scale == "linear" else f" ({scale} scale)")


def _header(drawing: Drawing, columns: list[str], program: str) -> list[str]:
    """An explanation of the numbers."""
    lines = [
        "The numbers that a figure shows. Lines that begin with this mark are the header.",
        "",
        "Columns",
        *(f"  {name}: {_MEANING[name]}" for name in columns),
        "Panels",
    ]
    for number, panel in enumerate(drawing.panels):
        frame = f"frame {panel['frame']} of an animation; " if "frame" in panel else ""
        titles = [_one_line(title["text"]) for title in panel["titles"].values()]
        title = f'"{" / ".join(titles)}"; ' if titles else ""
        axes = "; ".join(_axis_words(drawing, panel, name) for name in panel["limits"])
        lines.append(f"  {number}: {frame}{title}{axes}")
    lines.append("Series")
    for part in drawing.parts:
        where = part.look.get("coordinates", COORDINATES[0])
        note = "" if where in (COORDINATES[0], None) else f", in {where}"
        count = len(part.columns["x"])
        rows = f"{count} row" + "s" * (count != 1)
        lines.append(f'  panel {part.panel}, "{_one_line(part.series)}": {part.kind}, {rows}{note}')
    lines += [
        "",
        f"{program} draws the figure from this file alone. The next line is its look,",
        "as JSON: everything but the numbers.",
    ]
    return [f"# {line}".rstrip() for line in lines]


def _cell(value: Any) -> str:
    if isinstance(value, str):
        return value
    return f"{int(value)}" if isinstance(value, int | np.integer) else f"{float(value):.7g}"


def to_csv(drawing: Drawing, *, program: str) -> str:
    """The parts of a figure as the text of a CSV file.

    Args:
      drawing: the parts.
      program: the program that redraws the figure, named in the header.
    """
    used = [name for name in list(_MEANING)[2:] if any(name in p.columns for p in drawing.parts)]
    columns = ["panel", "series", *used]
    look = {
        "page": drawing.page,
        "panels": drawing.panels,
        "parts": [
            {"panel": p.panel, "series": p.series, "kind": p.kind, "columns": list(p.columns)}
            | {"rows": len(p.columns["x"]), "look": p.look}
            for p in drawing.parts
        ],
    }
    out = io.StringIO()
    out.write("\n".join(_header(drawing, columns, program)) + "\n")
    out.write(_LOOK + json.dumps(look, ensure_ascii=False, separators=(",", ":")) + "\n")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    for part in drawing.parts:
        filled = [part.columns.get(name) for name in used]
        for row in range(len(part.columns["x"])):
            cells = ["" if values is None else _cell(values[row]) for values in filled]
            writer.writerow([part.panel, _one_line(part.series), *cells])
    return out.getvalue()


def from_csv(source: str | Path) -> Drawing:
    """Read the parts of a figure from the text of a CSV file, or from the file.

    Raises:
      ValueError: it is not a figure's data, or its rows do not match its header.
    """
    if isinstance(source, Path) or "\n" not in source:
        text, origin = Path(source).read_text(encoding="utf-8"), f"{str(source)!r}"
    else:
        text, origin = source, "this text"
    lines = text.rstrip("\n").split("\n")  # not at every kind of line end in Unicode
    looks = [line for line in lines if line.startswith(_LOOK)]
    if len(looks) != 1:
        raise ValueError(f"{origin} is not a figure's data: no line begins with {_LOOK!r}")
    try:
        look = json.loads(looks[0].removeprefix(_LOOK))
    except json.JSONDecodeError as error:
        raise ValueError(f"the look in {origin} cannot be read: {error}") from error
    columns, *rows = csv.reader(line for line in lines if not line.startswith("#"))
    parts, begin = [], 0
    for found in look["parts"]:
        end = begin + found["rows"]
        mine = rows[begin:end]
        labels = {(row[0], row[1]) for row in mine}
        if len(mine) != found["rows"] or labels != {
            (str(found["panel"]), _one_line(found["series"]))
        }:
            raise ValueError(
                f"{origin}: rows {begin} to {end} should be those of {found['series']!r} in panel "
                f"{found['panel']}; were rows removed, added or reordered?"
            )
        # An image without a colour map holds the colours themselves.
        kinds = {} if "colors" in found["look"] else {"value": str}
        table = dict(zip(columns, zip(*mine, strict=True), strict=True))
        parts.append(
            Part(
                found["panel"],
                found["series"],
                found["kind"],
                {name: np.array(table[name], kinds.get(name, float)) for name in found["columns"]},
                found["look"],
            )
        )
        begin = end
    if begin != len(rows):
        raise ValueError(f"{origin} has {len(rows)} rows, but its header announces {begin}")
    return Drawing(look["page"], look["panels"], parts)
