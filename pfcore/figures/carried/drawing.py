"""A figure as plain values: numbers, and how they look."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colors

# The coordinates of a part's columns: the panel's own, or fractions of its height or width.
COORDINATES = ("data", "x and share of the height", "share of the width and y", "share of both")


class Part(NamedTuple):
    """One artist of a panel.

    Attributes:
      panel: number of the panel, from 0.
      series: name, unique in its panel.
      kind: "line", "lines", "area", "points", "image" or "surface".
      columns: numbers by the name of their column, all of one length. `piece` numbers pieces that
        are not joined; `value` is a colour's place on its scale, or the colour as six digits.
      look: appearance.
    """

    panel: int
    series: str
    kind: str
    columns: dict[str, np.ndarray]
    look: dict[str, Any]


class Drawing(NamedTuple):
    """A figure in parts.

    Attributes:
      page: `size` in inches, `dots` per inch, and text outside the panels.
      panels: place, axes, ticks and text of each pair of axes; in an animation those of all frames,
        each with the number of its `frame`.
      parts: the artists of all panels.
    """

    page: dict[str, Any]
    panels: list[dict[str, Any]]
    parts: list[Part]


def rounded(value: Any, digits: int = 6) -> Any:
    """Plain numbers, lists and strings, rounded to few digits."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, dict):
        return {key: rounded(item, digits) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item, digits) for item in value]
    if isinstance(value, float):
        return float(f"{value:.{digits}g}")
    return value


def hex_color(color: Any, opacity: float | None = None) -> str:
    """ "#rrggbb", with two more digits if it is not opaque."""
    rgba = colors.to_rgba(color, opacity)
    return colors.to_hex(rgba, keep_alpha=rgba[3] < 1)


def join(frames: Sequence[Drawing], milliseconds: int) -> Drawing:
    """Combine the drawings of an animation into one with the panels of all frames."""
    panels: list[dict[str, Any]] = []
    parts: list[Part] = []
    for number, frame in enumerate(frames):
        first = len(panels)
        panels += [panel | {"frame": number} for panel in frame.panels]
        parts += [part._replace(panel=part.panel + first) for part in frame.parts]
    moving = {"frames": len(frames), "milliseconds": milliseconds}
    return Drawing(frames[-1].page | {"moving": moving}, panels, parts)


def num_frames(drawing: Drawing) -> int:
    """The number of frames; 1 unless the drawing is an animation."""
    return drawing.page.get("moving", {"frames": 1})["frames"]
