"""Matplotlib figures that carry their data: taken apart, written as CSV, and redrawn from it.

`extract` reads a finished figure into a `Drawing`: the place, axes and ticks of each panel, and for
each line, area, set of points and image its numbers (columns) and its appearance (look), all as
plain values. `csv` writes a drawing as text and reads it, and `render` draws the figure from it.

Nothing here knows what the figures show: names for colours, and the colours of a theme, are
arguments.
"""

from pfcore.figures.carried.csv import from_csv, to_csv
from pfcore.figures.carried.drawing import Drawing, Part, join, num_frames
from pfcore.figures.carried.extract import take_apart
from pfcore.figures.carried.render import Look, put_together

__all__ = [
    "Drawing",
    "Look",
    "Part",
    "from_csv",
    "join",
    "num_frames",
    "put_together",
    "take_apart",
    "to_csv",
]
