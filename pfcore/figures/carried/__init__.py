"""Matplotlib figures that carry their data: taken apart, written as CSV, drawn again from it.

`extract` reads a finished figure into a `Drawing`: for every panel its place, axes and ticks, and
for every line, area, set of points and image the numbers that it shows (its columns) and the rest
(its look), all plain values. `csv` writes a drawing as text and reads it back, and `render` draws
the figure from it.

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
