"""What a figure is made of, as plain values: numbers, and how they look."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colors

# Which coordinates a part's columns are in: the panel's own, or a share of its height or width.
COORDINATES = ("data", "x and share of the height", "share of the width and y", "share of both")


class Part(NamedTuple):
    """One thing that is drawn in a panel.

    Attributes:
      panel: of which panel, counted from 0.
      series: what it is called; unique in its panel.
      kind: "line", "lines", "area", "points", "image" or "surface".
      columns: numbers by the name of their column, all of one length. `piece` counts what is not
        joined; `value` is a colour's place on its scale, or the colour itself as six digits.
      look: how it is drawn.
    """

    panel: int
    series: str
    kind: str
    columns: dict[str, np.ndarray]
    look: dict[str, Any]


class Drawing(NamedTuple):
    """A figure in parts.

    Attributes:
      page: `size` in inches, `dots` per inch, and what is written outside of the panels.
      panels: place, axes, ticks and writing of each pair of axes; in an animation those of all
        frames, each with the number of its `frame`.
      parts: what is drawn in them.
    """

    page: dict[str, Any]
    panels: list[dict[str, Any]]
    parts: list[Part]


def rounded(value: Any, digits: int = 6) -> Any:
    """Plain numbers, lists and strings, with few digits."""
    if isinstance(value, dict):
        return {key: rounded(item, digits) for key, item in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [rounded(item, digits) for item in value]
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        return float(f"{float(value):.{digits}g}")
    return value


def hex_color(color: Any, opacity: float | None = None) -> str:
    """ "#rrggbb", with two more digits where it lets something through."""
    red, green, blue, alpha = colors.to_rgba(color)
    alpha = alpha if opacity is None else opacity
    return colors.to_hex((red, green, blue, alpha), keep_alpha=alpha < 1)


def join(frames: Sequence[Drawing], milliseconds: int) -> Drawing:
    """The drawings of an animation as one, which has the panels of all."""
    panels: list[dict[str, Any]] = []
    parts: list[Part] = []
    for number, frame in enumerate(frames):
        first = len(panels)
        panels += [panel | {"frame": number} for panel in frame.panels]
        parts += [part._replace(panel=part.panel + first) for part in frame.parts]
    moving = {"frames": len(frames), "milliseconds": milliseconds}
    return Drawing(frames[-1].page | {"moving": moving}, panels, parts)


def num_frames(drawing: Drawing) -> int:
    """How many pictures there are in it; 1 unless it is an animation."""
    return drawing.page.get("moving", {"frames": 1})["frames"]
