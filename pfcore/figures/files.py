"""Pictures that carry their data, and files made from that data."""

import contextlib
import functools
import io
import json
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import matplotlib as mpl
import numpy as np
from matplotlib.backend_bases import FigureCanvasBase, get_registered_canvas_class
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import PlaceHolderLayoutEngine
from PIL import Image, ImageChops
from PIL.PngImagePlugin import PngInfo

from pfcore._checks import check_count
from pfcore.figures import carried
from pfcore.figures.style import COLORS, LABELS, STYLE
from pfcore.figures.themes import themed
from pfcore.provenance import provenance, sources
from pfcore.runs.profiles import profile_in_force

_DATA, _PROVENANCE = "pfcore-data", "pfcore-provenance"
ENDINGS = (".svg", ".pdf", ".png")
# Parts without a label in a flow's colour get its name, if the figure writes it.
_NAMES = {color.lower(): LABELS[name] for name, color in COLORS.items()}

Canvas = TypeVar("Canvas", bound=FigureCanvasBase)


class Contents(NamedTuple):
    """Data carried by a picture.

    Attributes:
      csv: the numbers that it shows, as the text of a CSV file with an explanatory header.
      provenance: versions, device, commit, profile, and the records and data sets that were used.
    """

    csv: str
    provenance: dict[str, Any]


def _look(theme: str) -> carried.Look:
    paper = themed("#ffffff", theme)  # rejects unknown themes
    return carried.Look(STYLE, paper, lambda color, fill: themed(color, theme, fill=fill))


def redraw(csv: str | Path, theme: str = "light", frame: int = -1) -> Figure:
    """Draw a figure again from its data alone.

    Args:
      csv: the text of a figure's CSV file, or the file's path.
      theme: "light", or "dark" for a dark page.
      frame: frame of an animation; by default the last.

    Returns:
      The Matplotlib figure, not registered with pyplot.

    Raises:
      ValueError: the text is not a figure's data, the theme is unknown, or there is no such frame.
      OSError: the file cannot be read.
    """
    drawing = carried.from_csv(csv)
    number = carried.num_frames(drawing)
    if not -number <= frame < number:
        raise ValueError(f"frame must be from {-number} to {number - 1}, got {frame!r}")
    return carried.put_together(drawing, _look(theme), frame)


def picture(csv: str | Path, theme: str = "light") -> bytes:
    """A PNG of a figure's data, without the data; for an animation, with all of its frames.

    Raises:
      ValueError, OSError: as for `redraw`.
    """
    drawing, look = carried.from_csv(csv), _look(theme)
    frames = [
        carried.put_together(drawing, look, frame) for frame in range(carried.num_frames(drawing))
    ]
    return _png([_pixels(figure) for figure in frames], drawing)


@contextlib.contextmanager
def _on(kind: type[Canvas], figure: Figure) -> Iterator[Canvas]:
    """A canvas on which to draw a figure once.

    `Figure.savefig` first draws a figure that has a layout engine on nothing, for its layout.
    """
    before, dpi = figure.canvas, figure.dpi
    try:
        yield kind(figure)
    finally:
        figure.set_canvas(before)
        figure.dpi = dpi


def _pixels(figure: Figure) -> Image.Image:
    with _on(FigureCanvasAgg, figure) as canvas:
        canvas.draw()
        return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def _png(frames: Sequence[Image.Image], drawing: carried.Drawing, chunks: Any = None) -> bytes:
    """One picture, or an animation that plays once and then stops."""
    out = io.BytesIO()
    dots = (drawing.page["dots"],) * 2
    moving: dict[str, Any] = {}
    if len(frames) > 1:
        moving = {
            "save_all": True,
            "append_images": frames[1:],
            "duration": drawing.page["moving"]["milliseconds"],
            "loop": 1,
        }
    frames[0].save(out, "PNG", pnginfo=chunks, dpi=dots, **moving)
    return out.getvalue()


def save(figure: Figure, path: str | Path) -> Path:
    """Write a figure as SVG, PDF or PNG; the same figure gives the same bytes.

    Raises:
      ValueError: another file extension.
    """
    path = Path(path)
    if path.suffix not in ENDINGS:
        raise ValueError(f"cannot write {path.name!r}: the ending must be one of {ENDINGS}")
    undated: dict[str, dict[str, Any]] = {
        ".svg": {"Date": None},
        ".pdf": {"CreationDate": None, "Producer": None, "Creator": "pfcore"},
        ".png": {"Software": None},
    }
    # Loaded only when it is used: Matplotlib's canvas for PDF takes a second.
    kind: Any = get_registered_canvas_class(path.suffix[1:])
    with (
        _on(kind, figure) as canvas,
        mpl.rc_context({"svg.hashsalt": STYLE["svg.hashsalt"]}),
    ):
        getattr(canvas, f"print_{path.suffix[1:]}")(path, metadata=undated[path.suffix])
    return path


_computer = functools.cache(provenance)


def _origin() -> dict[str, Any]:
    """Provenance of the figures drawn by this process."""
    return _computer() | {
        "python": platform.python_version(),
        "profile": profile_in_force(),
        "jax_enable_x64": jax.config.read("jax_enable_x64"),
        "sources": sources(),
    }


def png(figure: Figure) -> bytes:
    """A picture of a figure that carries its data and provenance.

    Raises:
      TypeError: the figure holds an artist that is not a line, area, set of points or image.
    """
    layout = figure.get_layout_engine()
    pixels = _pixels(figure)
    if layout is not None:
        # A second layout would move artists by a pixel.
        figure.set_layout_engine(PlaceHolderLayoutEngine(True, True))
    try:
        drawing = carried.take_apart(figure, _NAMES)
    finally:
        if layout is not None:
            figure.set_layout_engine(layout)
    return _png([pixels], drawing, _chunks(drawing))


def animation(
    figure: Figure, draw: Callable[[int], None], num_frames: int, *, milliseconds: int = 450
) -> bytes:
    """An animation that carries the data of all its frames and plays once.

    Args:
      figure: the figure to draw on.
      draw: draws a frame, given its number, over the previous one.
      num_frames: the number of frames.
      milliseconds: how long each frame is shown.

    Returns:
      The bytes of an animated PNG.

    Raises:
      ValueError: `num_frames` is below 1.
      TypeError: `num_frames` is not an integer.
    """
    num_frames = check_count("num_frames", num_frames, minimum=1)
    drawings, frames = [], []
    for number in range(num_frames):
        draw(number)
        drawings.append(carried.take_apart(figure, _NAMES))
        frames.append(_pixels(figure))
    drawing = carried.join(drawings, milliseconds)
    return _png(frames, drawing, _chunks(drawing))


def _chunks(drawing: carried.Drawing) -> PngInfo:
    chunks = PngInfo()
    chunks.add_itxt(_DATA, carried.to_csv(drawing, program="pfcore.figures.redraw"), zip=True)
    chunks.add_itxt(_PROVENANCE, json.dumps(_origin(), ensure_ascii=False), zip=True)
    return chunks


def _picture(source: bytes | str | Path) -> Image.Image:
    return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)


def contents(picture: bytes | str | Path) -> Contents:
    """The data carried by a PNG.

    Args:
      picture: a PNG's bytes, or its path.

    Raises:
      ValueError: the PNG carries no data.
    """
    with _picture(picture) as image:
        image.load()  # text may follow the image data
        texts = getattr(image, "text", {})
    if _DATA not in texts:
        name = "this picture" if isinstance(picture, bytes) else f"{str(picture)!r}"
        raise ValueError(f"{name} carries no data: it was not stored by pfcore.figures")
    return Contents(str(texts[_DATA]), json.loads(texts.get(_PROVENANCE, "{}")))


def difference(picture: bytes | str | Path, figure: Figure, tolerance: int = 64) -> float:
    """The fraction of pixels in which a drawing differs from a stored picture.

    Args:
      picture: a PNG's bytes, or its path; for an animation, the last frame is compared.
      figure: the drawing.
      tolerance: difference of a colour channel, of 255, above which a pixel counts as different.

    Returns:
      The fraction of pixels that differ; 1 if the sizes differ by more than two pixels.
    """
    with _picture(picture) as stored:
        stored.seek(getattr(stored, "n_frames", 1) - 1)
        one, other = stored.convert("RGB"), _pixels(figure)
    if np.abs(np.subtract(one.size, other.size)).max() > 2:
        return 1.0
    common = (0, 0, *np.minimum(one.size, other.size).tolist())
    apart = np.asarray(ImageChops.difference(one.crop(common), other.crop(common)))
    return float(np.mean(np.any(apart > tolerance, axis=-1)))


def carry_data() -> None:
    """In a notebook, store with each displayed figure the numbers that it shows."""
    if "IPython" not in sys.modules:
        return
    shell = sys.modules["IPython"].get_ipython()
    if shell is None or not hasattr(shell, "kernel"):
        return
    # Load the notebook's backend first, because it sets a formatter of its own when loaded.
    import matplotlib.pyplot as plt

    plt.switch_backend(mpl.get_backend())
    shell.display_formatter.formatters["image/png"].for_type(Figure, png)
