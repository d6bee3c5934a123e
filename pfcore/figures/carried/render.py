"""Draw a figure from its parts, in the colours of a theme."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib import colors, patheffects
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection, PathCollection, PolyCollection
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.layout_engine import PlaceHolderLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.path import Path
from matplotlib.ticker import FixedFormatter, FixedLocator
from matplotlib.transforms import Transform
from mpl_toolkits.mplot3d import Axes3D, art3d

from pfcore.figures.carried.drawing import COORDINATES, Drawing, Part, hex_color, num_frames


class Look(NamedTuple):
    """A theme, applied to every figure.

    Attributes:
      style: Matplotlib's settings.
      paper: background colour.
      color: `color(color, fill)` maps a colour of the light theme to this one; `fill` is true for
        areas.
    """

    style: Mapping[Any, Any]
    paper: str
    color: Callable[[str, bool], str]


_PIECES: dict[str, Any] = {
    "lines": LineCollection,
    "area": PolyCollection,
    "surface": art3d.Poly3DCollection,
}


class _Painter:
    """Draws parts in the colours of a theme."""

    def __init__(self, figure: Figure, theme: Look):
        self.figure, self.theme = figure, theme

    def color(self, color: Any, fill: bool = False) -> Any:
        """A colour, None, or a list of colours, mapped to the theme."""
        if color is None:
            return "none"
        if isinstance(color, str):
            return self.theme.color(color, fill)
        return [self.color(item, fill) for item in color]

    def line_look(self, look: dict[str, Any]) -> dict[str, Any]:
        options: dict[str, Any] = {
            "color": self.color(look["color"]),
            "linewidth": look["width"],
            "linestyle": (look["dashes"][0], look["dashes"][1]) if "dashes" in look else "-",
            "drawstyle": look.get("drawstyle", "default"),
            "dash_capstyle" if "dashes" in look else "solid_capstyle": look["cap"],
        }
        if not look["width"]:
            options["linestyle"] = "none"
        if "marker" in look:
            marker = look["marker"]
            options |= {
                "marker": marker["shape"],
                "markersize": marker["size"],
                "markerfacecolor": self.color(marker["face"]),
                "markeredgecolor": self.color(marker["edge"]),
                "markeredgewidth": marker["edge_width"],
                "markevery": marker["every"],
            }
        return options

    def collection_look(self, look: dict[str, Any]) -> dict[str, Any]:
        options = {"facecolors": self.color(look["face"], fill=True)}
        # The edge of an area in the area's own colour is mapped like the area.
        same = look["face"] == look["edge"]
        options["edgecolors"] = self.color(look["edge"], fill=same)
        options["linewidths"] = look["width"]
        if "dashes" in look:
            dashes = look["dashes"]
            each = [dashes] if isinstance(dashes[0], int | float) else dashes
            options["linestyles"] = ["-" if d is None else (d[0], d[1]) for d in each]
        return options

    def text(self, found: dict[str, Any], holder: Any) -> None:
        text = holder.text(
            *found["at"],
            found["text"],
            horizontalalignment=found["align"][0],
            verticalalignment=found["align"][1],
            rotation=found.get("rotation", 0),
            rotation_mode=found.get("rotation_mode"),
            linespacing=found.get("spacing", 1.2),
            transform=self.figure.transFigure,
            zorder=found["order"],
            fontsize=found["size"],
            color=self.color(found["color"]),
            fontweight=found.get("weight", "normal"),
            fontstyle=found.get("style", "normal"),
        )
        if "outline" in found:
            stroke = patheffects.withStroke(linewidth=found["outline"], foreground=self.theme.paper)
            text.set_path_effects([stroke])
        if "box" in found:
            box = found["box"]
            text.set_bbox(
                {
                    "boxstyle": f"{box['style']},pad={box['pad']}",
                    "facecolor": self.color(box["face"]),
                    "edgecolor": self.color(box["edge"]),
                    "linewidth": box["width"],
                }
            )

    def legend(self, found: dict[str, Any], holder: Any) -> None:
        where = self.figure.transFigure
        top = 5.0  # Matplotlib's default zorder of a legend
        if "frame" in found:
            left, bottom, width, height = found["frame"]["box"]
            # Rounded as in Matplotlib: a fifth of the legend's text size.
            across, up = self.figure.get_size_inches() * 72
            radius = 0.2 * (found["texts"][0]["size"] if found["texts"] else 10)
            frame = mpl.patches.FancyBboxPatch(
                (left * across, bottom * up),
                width * across,
                height * up,
                boxstyle=f"round,pad=0,rounding_size={radius}",
                facecolor=self.color(found["frame"]["face"]),
                edgecolor="none",
                transform=mpl.transforms.Affine2D().scale(1 / across, 1 / up) + where,
                zorder=top,
            )
            frame.set_clip_on(False)
            holder.add_artist(frame)
        for sample in found["samples"]:
            at, look = sample["at"], sample["look"]
            artist: Artist
            if sample["kind"] == "line":
                artist = Line2D(*np.transpose(at), **self.line_look(look))
            else:
                many = sample["kind"] == "lines"
                artist = (LineCollection if many else PolyCollection)(
                    at if many else [at], **self.collection_look(look)
                )
            artist.set(transform=where, zorder=top + 0.1)
            artist.set_clip_on(False)
            holder.add_artist(artist)
        for text in found["texts"]:
            self.text(text | {"order": top + 0.2}, holder)

    # ---- one panel

    def transform(self, ax: Axes, coordinates: str | None) -> Transform:
        return {
            COORDINATES[1]: ax.get_xaxis_transform(),
            COORDINATES[2]: ax.get_yaxis_transform(),
            COORDINATES[3]: ax.transAxes,
        }.get(coordinates or "", ax.transData)

    def pieces(self, columns: dict[str, np.ndarray]) -> list[np.ndarray]:
        names = [name for name in "xyz" if name in columns]
        points = np.stack([np.asarray(columns[name], float) for name in names], axis=1)
        number = np.asarray(columns["piece"], int)
        return np.split(points, np.flatnonzero(np.diff(number)) + 1)

    def part(self, ax: Any, part: Part) -> None:
        look, columns = part.look, part.columns
        where = self.transform(ax, look.get("coordinates"))
        artist: Artist
        if part.kind == "line":
            line = art3d.Line3D if isinstance(ax, Axes3D) else Line2D
            artist = line(*(columns[n] for n in "xyz" if n in columns), **self.line_look(look))
            artist.set_transform(where)
            ax.add_line(artist)
        elif part.kind in _PIECES:
            pieces = _PIECES[part.kind](self.pieces(columns), **self.collection_look(look))
            if part.kind == "lines":  # contours are paths too, and may be closed
                pieces.set_facecolor("none")
            pieces.set_transform(where)
            artist = ax.add_collection(pieces, autolim=False)
        elif part.kind == "points":
            artist = PathCollection(
                [Path(np.asarray(look["outline"]), closed=True)],
                sizes=look["sizes"],
                offsets=np.stack([columns["x"], columns["y"]], axis=1),
                offset_transform=ax.transData,
                facecolors=self.color(look["face"]),
                edgecolors=self.color(look["edge"]),
                linewidths=look["width"],
            )
            artist.set_transform(mpl.transforms.IdentityTransform())
            ax.add_collection(artist, autolim=False)
        elif part.kind == "image":
            artist = self.image(ax, columns, look)
        else:
            raise ValueError(f"unknown kind of part {part.kind!r} of series {part.series!r}")
        artist.set_zorder(look["order"])
        artist.set_clip_on(look.get("clip", True))
        artist.set_label(part.series)

    def image(self, ax: Axes, columns: dict[str, np.ndarray], look: dict[str, Any]) -> AxesImage:
        rows, cols = look["shape"]
        options: dict[str, Any] = {
            "origin": look["origin"],
            "extent": look["extent"],
            "aspect": "auto",
            "interpolation": look["interpolation"],
            "alpha": look["opacity"],
        }
        if "colors" not in look:
            shades = [colors.to_rgb(f"#{value}") for value in columns["value"]]
            return ax.imshow(np.reshape(shades, (rows, cols, 3)), **options)
        low, high = look["limits"]
        norm = getattr(colors, look["scale"])(vmin=low, vmax=high)
        values = np.reshape(np.asarray(columns["value"], float), (rows, cols))
        return ax.imshow(values, cmap=look["colors"], norm=norm, **options)

    def axis(self, axis: Axis, found: dict[str, Any], name: str, solid: bool) -> None:
        axis.set_major_locator(FixedLocator(found["at"]))
        written = FixedFormatter(found["labels"])
        if "offset" in found:
            written.set_offset_string(found["offset"])
        axis.set_major_formatter(written)
        axis.set_minor_locator(FixedLocator(found["minor"]))
        axis.set_minor_formatter(FixedFormatter(found.get("minor_labels", [])))
        first, second = ("bottom", "top") if name == "x" else ("left", "right")
        look: dict[str, Any] = {
            "labelsize": found["size"],
            "labelcolor": self.color(found["color"]),
            "color": self.color(found["mark_color"]),
        }
        if not solid:
            look |= {
                "length": found["length"],
                first: found["marks"][0],
                second: found["marks"][1],
                f"label{first}": found["shown"][0],
                f"label{second}": found["shown"][1],
                "gridOn": found["grid"],
                "grid_color": self.color(hex_color(self.theme.style["grid.color"])),
            }
        axis.set_tick_params(which="major", **look)
        if not solid:
            axis.set_tick_params(
                which="minor",
                color=look["color"],
                labelcolor=look["labelcolor"],
                labelsize=look["labelsize"],
                **{first: found["marks"][0], second: found["marks"][1]},
            )
            axis.set_label_position(found["label_side"])
        if "rotation" in found:
            for text in axis.get_majorticklabels():
                text.set(rotation=found["rotation"], ha=found["align"][0], va=found["align"][1])
        axis.get_offset_text().set(
            color=self.color(found["color"]), x=1.0 if found["label_side"] == "right" else 0.0
        )
        if "label" in found:
            axis.set_label_text(
                found["label"],
                fontsize=found["label_size"],
                color=self.color(found["label_color"]),
            )
            axis.labelpad = found["label_pad"]
        axis.set_visible(found["visible"])

    def panel(self, found: dict[str, Any]) -> Any:
        ax: Any
        solid = "view" in found
        if solid:
            view = found["view"]
            ax = self.figure.add_axes(
                found["box"], projection="3d", computed_zorder=view["computed_order"]
            )
            ax.set_box_aspect(None)
            ax._box_aspect = np.asarray(view["aspect"])
            ax.view_init(elev=view["elev"], azim=view["azim"], roll=view["roll"])
            for axis in (ax.xaxis, ax.yaxis, ax.zaxis):
                axis.set_pane_color(self.color(hex_color("#f2f2f2", 0.5)))
                axis.line.set_color(self.color("#000000"))
                axis._axinfo["grid"]["color"] = self.color(
                    hex_color(self.theme.style["grid.color"])
                )
        else:
            ax = self.figure.add_axes(found["box"])
            for side, spine in ax.spines.items():
                spine.set_visible(side in found["spines"])
                spine.set_edgecolor(self.color(found["spines"].get(side, "#000000")))
        ax.patch.set_facecolor(self.theme.paper)
        ax.patch.set_visible(found["paper"])
        ax.set_zorder(found["order"])
        return ax

    def finish(self, ax: Axes, found: dict[str, Any]) -> None:
        """Set limits, ticks and text, after the artists, which may change the limits."""
        for name, limits in found["limits"].items():
            if "view" not in found:
                bend = found["bends"].get(name, {})
                getattr(ax, f"set_{name}scale")(found["scales"][name], **bend)
            getattr(ax, f"set_{name}lim")(*limits)
            self.axis(getattr(ax, f"{name}axis"), found["ticks"][name], name, "view" in found)
        for place, title in found["titles"].items():
            ax.set_title(
                title["text"], loc=place, fontsize=title["size"], color=self.color(title["color"])
            )
        # A three-dimensional panel accepts no flat artists.
        holder = self.figure if "view" in found else ax
        for text in found["texts"]:
            self.text(text, holder)
        if "legend" in found:
            self.legend(found["legend"], holder)
        if not found["axes"]:
            ax.set_axis_off()


def put_together(drawing: Drawing, look: Look, frame: int = -1) -> Figure:
    """Draw a figure from its parts in the colours of a theme; of an animation, one frame."""
    frame = range(num_frames(drawing))[frame]
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update({**look.style, "figure.constrained_layout.use": False})
        figure = Figure(
            figsize=drawing.page["size"], dpi=drawing.page["dots"], facecolor=look.paper
        )
        # Not "none", which Matplotlib replaces by the user's default on saving.
        figure.set_layout_engine(PlaceHolderLayoutEngine(True, True))
        FigureCanvasAgg(figure)
        painter = _Painter(figure, look)
        shown = {n: p for n, p in enumerate(drawing.panels) if p.get("frame", frame) == frame}
        axes = {number: painter.panel(found) for number, found in shown.items()}
        for part in drawing.parts:
            if part.panel in axes:
                painter.part(axes[part.panel], part)
        for number, found in shown.items():
            painter.finish(axes[number], found)
        for text in drawing.page["texts"]:
            painter.text(text, figure)
        for legend in drawing.page["legends"]:
            painter.legend(legend, figure)
    return figure
