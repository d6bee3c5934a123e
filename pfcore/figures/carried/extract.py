"""Take a finished Matplotlib figure apart into numbers and looks."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from matplotlib import colors, patheffects
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.collections import Collection, LineCollection, PathCollection, PolyCollection
from matplotlib.contour import ContourSet
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Polygon, Rectangle
from matplotlib.path import Path
from matplotlib.scale import SymmetricalLogTransform
from matplotlib.text import Text
from matplotlib.transforms import Transform
from mpl_toolkits.mplot3d import Axes3D, art3d

from pfcore.figures.carried.drawing import COORDINATES, Drawing, Part, hex_color, rounded


def _coordinates(artist: Artist, ax: Axes, transform: Transform | None = None) -> str | None:
    """The entry of `COORDINATES` in which an artist is drawn; None for any other."""
    transform = artist.get_transform() if transform is None else transform
    across, up = transform.contains_branch_seperately(ax.transData)
    if across and up:
        return COORDINATES[0]
    if across:
        return COORDINATES[1]
    if up:
        return COORDINATES[2]
    return COORDINATES[3] if transform.contains_branch(ax.transAxes) else None


def _line_look(line: Any) -> dict[str, Any]:
    pattern = line._unscaled_dash_pattern
    drawn = line.get_linestyle() not in ("None", "none", " ", "") and line.get_linewidth() > 0
    marker = line.get_marker()
    look: dict[str, Any] = {"color": hex_color(line.get_color(), line.get_alpha())}
    look["width"] = line.get_linewidth() if drawn else 0
    if drawn and pattern[1] is not None:
        look["dashes"] = [pattern[0], list(pattern[1])]
    if drawn and line.get_drawstyle() != "default":
        look["drawstyle"] = line.get_drawstyle()
    look["cap"] = line.get_dash_capstyle() if "dashes" in look else line.get_solid_capstyle()
    if marker not in (None, "None", "none", " ", ""):
        look["marker"] = {
            "shape": rounded(marker) if isinstance(marker, int | np.integer) else str(marker),
            "size": line.get_markersize(),
            "face": _face(line.get_markerfacecolor(), line.get_alpha()),
            "edge": hex_color(line.get_markeredgecolor(), line.get_alpha()),
            "edge_width": line.get_markeredgewidth(),
            "every": rounded(line.get_markevery()),
        }
    return look


def _face(color: Any, opacity: float | None = None) -> str | None:
    return None if isinstance(color, str) and color.lower() == "none" else hex_color(color, opacity)


def _piece_columns(pieces: Iterable[np.ndarray]) -> dict[str, np.ndarray]:
    """Pieces of [n, 2] or [n, 3] as columns."""
    kept = [np.asarray(piece, float) for piece in pieces if len(piece)]
    width = kept[0].shape[1] if kept else 2
    joined = np.concatenate(kept) if kept else np.zeros((0, width))
    number = np.repeat(np.arange(len(kept)), [len(piece) for piece in kept])
    return {"piece": number, **dict(zip("xyz", joined.T, strict=False))}


def _subpaths(path: Any) -> list[np.ndarray]:
    """The pieces of a path without curves; a closed piece ends at its start."""
    if path.codes is None:
        return [path.vertices]
    pieces: list[list[Any]] = []
    for vertex, code in zip(path.vertices, path.codes, strict=True):
        if code == Path.MOVETO:
            pieces.append([vertex])
        elif code == Path.LINETO:
            pieces[-1].append(vertex)
        elif code == Path.CLOSEPOLY:
            pieces[-1].append(pieces[-1][0])
        elif code != Path.STOP:
            raise TypeError("a figure that carries its data has no curved outlines")
    return [np.asarray(piece) for piece in pieces]


def _cycled(values: Any, place: int, default: Any) -> Any:
    """Collections cycle through values if there are too few."""
    return values[place % len(values)] if len(values) else default


def _collection(artist: Any) -> tuple[str, dict[str, np.ndarray], dict[str, Any]]:
    """Kind, columns and look of a collection whose pieces are drawn in place."""
    faces, edges = artist.get_facecolor(), artist.get_edgecolor()
    widths, styles = artist.get_linewidth(), artist.get_linestyle()
    if isinstance(artist, art3d.Poly3DCollection):
        points = np.asarray(artist._faces, float)
        pieces = [face[np.all(np.isfinite(face), axis=1)] for face in points]
        faces, edges = artist._facecolor3d, artist._edgecolor3d
        owners = list(range(len(pieces)))
    else:
        pieces, owners = [], []
        for i, path in enumerate(artist.get_paths()):
            parts = _subpaths(path)
            pieces += parts
            owners += [i] * len(parts)
    kept = [i for i, piece in enumerate(pieces) if len(piece)]

    def each(values: Any, convert: Any, default: Any) -> Any:
        """One value if all pieces share it, else a list."""
        converted = [convert(_cycled(values, owners[i], default)) for i in kept]
        same = converted and all(item == converted[0] for item in converted)
        return converted[0] if same else converted

    look = {
        "face": each(faces, hex_color, (0, 0, 0, 0)),
        "edge": each(edges, hex_color, (0, 0, 0, 0)),
        "width": each(widths, float, 0),
    }
    dashes = each(styles, lambda s: None if s[1] is None else [s[0], list(s[1])], (0, None))
    if dashes:
        look["dashes"] = dashes
    filled = isinstance(artist, PolyCollection) or look["face"] not in ("#00000000", [])
    surface = isinstance(artist, art3d.Poly3DCollection)
    kind = "surface" if surface else "area" if filled else "lines"
    columns = _piece_columns(pieces[i] for i in kept)
    if isinstance(artist, ContourSet):  # interpolated: more digits would carry no information
        columns |= {name: np.array(rounded(columns[name], 5)) for name in "xy"}
    return kind, columns, look


def _image(image: AxesImage) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """An image as a table with one row per pixel, at the pixel's centre."""
    values = np.asarray(image.get_array())
    left, right, bottom, top = image.get_extent()
    rows, cols = values.shape[:2]
    x = left + (np.arange(cols) + 0.5) / cols * (right - left)
    y = bottom + (np.arange(rows) + 0.5) / rows * (top - bottom)
    if image.origin == "upper":
        y = y[::-1]
    grid_y, grid_x = np.meshgrid(y, x, indexing="ij")
    look: dict[str, Any] = {
        "shape": [rows, cols],
        "extent": [left, right, bottom, top],
        "origin": image.origin,
        "interpolation": image.get_interpolation(),
        "opacity": image.get_alpha(),
    }
    if values.ndim == 3:
        if np.issubdtype(values.dtype, np.integer):
            values = values / 255
        value = np.array(
            [colors.to_hex(tuple(color))[1:] for color in values.reshape(rows * cols, -1)]
        )
    else:
        if type(image.norm) not in (colors.Normalize, colors.LogNorm):
            raise TypeError(
                f"an image's norm must be Normalize or LogNorm, got {type(image.norm).__name__}, "
                "whose parameters a figure does not carry"
            )
        value = np.ma.filled(values.astype(float), np.nan).ravel()
        look |= {
            "colors": image.get_cmap().name,
            "limits": list(image.get_clim()),
            "scale": type(image.norm).__name__,
        }
    return {"x": grid_x.ravel(), "y": grid_y.ravel(), "value": value}, look


def _read(artist: Any, ax: Axes) -> tuple[str, dict[str, np.ndarray], dict[str, Any]] | None:
    """Kind, columns and look of one artist; None if it shows nothing."""
    if isinstance(artist, Line2D):
        data = artist.get_data_3d() if isinstance(artist, art3d.Line3D) else artist.get_data()
        columns = {
            name: np.asarray(values, float) for name, values in zip("xyz", data, strict=False)
        }
        look = _line_look(artist)
        if not columns["x"].size or not (look["width"] or "marker" in look):
            return None
        return "line", columns, look | {"coordinates": _coordinates(artist, ax)}
    if isinstance(artist, AxesImage):
        return "image", *_image(artist)
    if isinstance(artist, PathCollection):
        points = np.ma.filled(artist.get_offsets(), np.nan)
        look = {
            "outline": rounded(artist.get_paths()[0].vertices),
            "sizes": rounded(artist.get_sizes()),
            "face": [hex_color(color) for color in artist.get_facecolor()],
            "edge": [hex_color(color) for color in artist.get_edgecolor()],
            "width": float(_cycled(artist.get_linewidth(), 0, 0)),
        }
        if not len(points):
            return None
        return "points", {"x": points[:, 0], "y": points[:, 1]}, look
    if isinstance(artist, Collection):
        kind, columns, look = _collection(artist)
        if not len(columns["x"]):
            return None
        return kind, columns, look | {"coordinates": _coordinates(artist, ax)}
    if isinstance(artist, Patch):
        path = artist.get_patch_transform().transform_path(artist.get_path())
        if not isinstance(artist, Rectangle | Polygon):
            path = path.interpolated(1).cleaned(curves=False)
        columns = _piece_columns(_subpaths(path))
        look = {
            "face": hex_color(artist.get_facecolor()),
            "edge": hex_color(artist.get_edgecolor()),
            "width": artist.get_linewidth(),
        }
        inside = artist.get_data_transform()
        return "area", columns, look | {"coordinates": _coordinates(artist, ax, inside)}
    raise TypeError(
        f"a figure that carries its data holds lines, areas, points and images, not a "
        f"{type(artist).__name__}"
    )


def _series(
    artist: Artist,
    kind: str,
    part: dict[str, np.ndarray],
    look: dict[str, Any],
    names: Mapping[str, str],
) -> str:
    """The name of a part: its label, or that of the error bars or bars that it belongs to."""
    groups: list[Any] = [] if artist.axes is None else artist.axes.containers
    owners = [group for group in groups if artist in group.get_children()]
    for label in (str(item.get_label()) for item in [artist, *owners]):
        if label and not label.startswith("_"):
            return _in_a_line(label)
    if kind == "line" and look["coordinates"] == COORDINATES[2] and len(part["x"]) == 2:
        return f"at y = {part['y'][0]:g}"
    if kind == "line" and look["coordinates"] == COORDINATES[1] and len(part["x"]) == 2:
        return f"at x = {part['x'][0]:g}"
    shown = (look.get(key) for key in ("color", "edge", "face"))
    color = next((c for c in shown if isinstance(c, str) and c and not c.endswith("00", 7)), "")
    return names.get(color[:7].lower()) or kind


def _place(transform: Transform, point: Any, figure: Figure) -> list[float]:
    """The position of a point on the figure, as fractions of its width and height."""
    return list(figure.transFigure.inverted().transform(transform.transform(point)))


def _text(text: Any, figure: Any) -> dict[str, Any]:
    """A text and its position on the figure."""
    if getattr(text, "arrow_patch", None) is not None:
        raise TypeError("a figure that carries its data has no arrows")
    found: dict[str, Any] = {
        "text": text.get_text(),
        "at": _place(text.get_transform(), text.get_unitless_position(), figure),
        "size": text.get_fontsize(),
        "color": hex_color(text.get_color(), text.get_alpha()),
        "align": [text.get_horizontalalignment(), text.get_verticalalignment()],
        "order": text.get_zorder(),
    }
    if text.get_fontweight() not in ("normal", 400):
        found["weight"] = text.get_fontweight()
    if text.get_fontstyle() != "normal":
        found["style"] = text.get_fontstyle()
    if text.get_rotation():
        found |= {"rotation": text.get_rotation(), "rotation_mode": text.get_rotation_mode()}
    if text.get_linespacing() != 1.2:
        found["spacing"] = text.get_linespacing()
    outline: list[Any] = [
        e for e in text.get_path_effects() if isinstance(e, patheffects.withStroke)
    ]
    if outline:
        found["outline"] = outline[0]._gc["linewidth"]
    box = text.get_bbox_patch()
    if box is not None:
        found["box"] = {
            "face": _face(box.get_facecolor()),
            "edge": _face(box.get_edgecolor()),
            "width": box.get_linewidth(),
            "style": str(box.get_boxstyle().__class__.__name__).lower(),
            "pad": box.get_boxstyle().pad,
        }
    return found


def _legend(legend: Legend, figure: Figure) -> dict[str, Any]:
    """A legend's frame, samples and texts, each with its position."""
    across = figure.transFigure.inverted()
    frame = legend.get_frame()
    box = frame.get_window_extent().transformed(across)
    samples: list[dict[str, Any]] = []
    for artist in legend.findobj(lambda a: isinstance(a, Line2D | Patch | LineCollection)):
        if artist is frame or not artist.get_visible():
            continue
        if isinstance(artist, Line2D):
            points = across.transform(artist.get_transform().transform(artist.get_xydata()))
            sample = {"kind": "line", "at": points, "look": _line_look(artist)}
        elif isinstance(artist, LineCollection):
            pieces = [
                across.transform(artist.get_transform().transform(piece))
                for piece in artist.get_segments()
            ]
            sample = {"kind": "lines", "at": pieces, "look": _collection(artist)[2]}
        elif isinstance(artist, Patch):
            path: Any = artist.get_transform().transform_path(artist.get_path())
            sample = {
                "kind": "area",
                "at": across.transform(path.vertices[:4]),
                "look": {
                    "face": hex_color(artist.get_facecolor()),
                    "edge": hex_color(artist.get_edgecolor()),
                    "width": artist.get_linewidth(),
                },
            }
        samples.append(sample)
    texts = [t for t in legend.findobj(Text) if t.get_visible() and t.get_text()]
    found: dict[str, Any] = {"samples": samples, "texts": [_text(text, figure) for text in texts]}
    if legend.get_frame_on():
        found["frame"] = {
            "box": list(box.bounds),
            "face": hex_color(frame.get_facecolor(), frame.get_alpha()),
        }
    return found


def _ticks(axis: Axis) -> dict[str, Any]:
    """Positions, labels and look of an axis's ticks."""
    low, high = sorted(axis.get_view_interval())
    room = 1e-9 * (high - low)

    def inside(places: Any, labels: Any) -> tuple[np.ndarray, list[str]]:
        places = np.asarray(places, float)
        kept = (low - room <= places) & (places <= high + room)
        return places[kept], [t.get_text() for t, k in zip(labels, kept, strict=False) if k]

    at, labels = inside(axis.get_majorticklocs(), axis.get_majorticklabels())
    minor, written = inside(axis.get_minorticklocs(), axis.get_minorticklabels())
    tick = axis.get_major_ticks(1)[0]
    found: dict[str, Any] = {
        "at": at,
        "labels": labels,
        "minor": minor,
        "shown": [tick.label1.get_visible(), tick.label2.get_visible()],
        "marks": [tick.tick1line.get_visible(), tick.tick2line.get_visible()],
        "length": tick.tick1line.get_markersize(),
        "grid": bool(tick.gridline.get_visible()),
        "size": tick.label1.get_fontsize(),
        "color": hex_color(tick.label1.get_color()),
        "mark_color": hex_color(tick.tick1line.get_color()),
        "visible": axis.get_visible(),
        "label_side": axis.get_label_position(),
    }
    if tick.label1.get_rotation():
        found |= {
            "rotation": tick.label1.get_rotation(),
            "align": [tick.label1.get_horizontalalignment(), tick.label1.get_verticalalignment()],
        }
    if any(written):
        found["minor_labels"] = written
    offset = axis.get_offset_text()
    if offset.get_text():
        found["offset"] = offset.get_text()
    label = axis.get_label()
    if label.get_text():
        found |= {
            "label": label.get_text(),
            "label_size": label.get_fontsize(),
            "label_color": hex_color(label.get_color()),
            "label_pad": axis.labelpad,
        }
    return found


def _panel(ax: Any, figure: Figure) -> dict[str, Any]:
    solid = isinstance(ax, Axes3D)
    names = "xyz" if solid else "xy"
    found: dict[str, Any] = {
        "box": list(ax.get_position().bounds),
        "order": ax.get_zorder(),
        "axes": bool(ax._axis3don if solid else ax.axison),
        "paper": bool(ax.patch.get_visible()),
        "limits": {name: list(getattr(ax, f"get_{name}lim")()) for name in names},
        "scales": {name: getattr(ax, f"get_{name}scale")() for name in names},
        "bends": {
            name: {key: getattr(bend, key) for key in ("base", "linthresh", "linscale")}
            for name in names
            if isinstance(
                bend := getattr(ax, f"{name}axis").get_transform(), SymmetricalLogTransform
            )
        },
        "ticks": {name: _ticks(getattr(ax, f"{name}axis")) for name in names},
        "titles": {
            place: {
                "text": text,
                "size": title.get_fontsize(),
                "color": hex_color(title.get_color()),
            }
            for place, title in (
                ("left", ax._left_title),
                ("center", ax.title),
                ("right", ax._right_title),
            )
            if (text := title.get_text())
        },
        "texts": [
            _text(text, figure) for text in ax.texts if text.get_visible() and text.get_text()
        ],
    }
    if solid:
        found["view"] = {
            "elev": ax.elev,
            "azim": ax.azim,
            "roll": ax.roll,
            "aspect": list(ax._box_aspect),
            "computed_order": ax.computed_zorder,
        }
    else:
        found["spines"] = {
            side: hex_color(spine.get_edgecolor())
            for side, spine in ax.spines.items()
            if spine.get_visible()
        }
    legend = ax.get_legend()
    if legend is not None and legend.get_visible():
        found["legend"] = _legend(legend, figure)
    return found


def _drawn(ax: Axes) -> Iterable[Artist]:
    """The artists of a panel in drawing order."""
    data = {id(a) for a in [*ax.images, *ax.patches, *ax.collections, *ax.lines]}
    held = [a for a in ax.get_children() if id(a) in data and a.get_visible()]
    return sorted(held, key=lambda a: a.get_zorder())


def _merged(parts: Iterable[Part]) -> list[Part]:
    """Merge consecutive areas that look the same, such as a histogram's, into one series."""
    found: list[Part] = []
    for part in parts:
        last = found[-1] if found else None
        if (
            last is None
            or part.kind != "area"
            or last._replace(columns={}) != part._replace(columns={})
        ):
            found.append(part)
            continue
        number = part.columns["piece"] + last.columns["piece"][-1] + 1
        columns = {
            name: np.concatenate([last.columns[name], number if name == "piece" else values])
            for name, values in part.columns.items()
        }
        found[-1] = last._replace(columns=columns)
    return found


def _told_apart(parts: Iterable[Part]) -> list[Part]:
    """Give the series of a panel unique names."""
    taken: dict[str, int] = {}
    found = []
    for part in parts:
        taken[part.series] = count = taken.get(part.series, 0) + 1
        series = part.series if count == 1 else f"{part.series} ({count})"
        found.append(part._replace(series=series))
    return found


def _names_by_color(figure: Any, names: Mapping[str, str]) -> dict[str, str]:
    """What a colour stands for in a figure: by its legends, or else by those of `names` that are
    written in it. A colour of two legend entries has no name: ""."""
    written = [text.get_text() for text in figure.findobj(Text)]
    known = {c: name for c, name in names.items() if any(name in text for text in written)}
    entries: list[tuple[Any, str]] = []
    for legend in figure.findobj(Legend):
        for handle, text in zip(legend.legend_handles, legend.get_texts(), strict=True):
            color = getattr(handle, "get_color", getattr(handle, "get_facecolor", None))
            if color is not None:
                entries.append((color(), text.get_text()))
    return known | _unique_names(entries)


def _unique_names(entries: Iterable[tuple[Any, str]]) -> dict[str, str]:
    """The name of each colour; "" if it has several."""
    found: dict[str, set[str]] = {}
    for color, name in entries:
        if len(drawn := colors.to_rgba_array(color)) == 1:
            found.setdefault(colors.to_hex(drawn[0]), set()).add(name)
    return {c: _in_a_line(next(iter(of))) if len(of) == 1 else "" for c, of in found.items()}


def _in_a_line(text: str) -> str:
    """A text as the name of a series, which is written behind the mark #."""
    return " ".join(text.replace("#", "no. ").split())


def _names_by_text(axes: Iterable[Any]) -> dict[str, str]:
    """What colours other than grey stand for by the texts in panels, which label their lines."""
    hued = [t for ax in axes for t in ax.texts if np.ptp(colors.to_rgb(t.get_color())) > 0.1]
    return _unique_names((text.get_color(), text.get_text()) for text in hued)


def _named_by_axis(parts: list[Part], ax: Any) -> list[Part]:
    """Name the only nameless line of a panel by what its vertical axis shows."""
    nameless = [part for part in parts if part.series == part.kind == "line"]
    label = _in_a_line(ax.get_ylabel())
    if len(nameless) != 1 or not label:
        return parts
    return [part._replace(series=label) if part is nameless[0] else part for part in parts]


def take_apart(figure: Any, names: Mapping[str, str] | None = None) -> Drawing:
    """Take a finished figure apart.

    Args:
      figure: a Matplotlib figure.
      names: names for artists without a label, by colour, such as {"#0072b2": "NGF"}; a name is
        used where the figure writes it, and its legends name the colour no other way.

    Raises:
      TypeError: it holds an artist that is not a line, area, set of points or image.
    """
    figure.draw_without_rendering()
    page: dict[str, Any] = {
        "size": figure.get_size_inches(),
        "dots": figure.dpi,
        "texts": [_text(t, figure) for t in figure.texts if t.get_visible() and t.get_text()],
        "legends": [_legend(legend, figure) for legend in figure.legends],
    }
    panels: list[dict[str, Any]] = []
    parts: list[Part] = []
    of_figure = (_names_by_color(figure, names or {}), _names_by_text(figure.axes))
    for number, ax in enumerate(a for a in figure.axes if a.get_visible()):
        panels.append(rounded(_panel(ax, figure), 8))
        known: dict[str, str] = {}
        for source in (*of_figure[1:], _names_by_text([ax]), of_figure[0]):
            known |= {color: name for color, name in source.items() if name}
        found: list[Part] = []
        for artist in _drawn(ax):
            read = _read(artist, ax)
            if read is None:
                continue
            kind, columns, look = read
            look["order"] = artist.get_zorder()
            if not artist.get_clip_on():
                look["clip"] = False
            name = _series(artist, kind, columns, look, known)
            found.append(Part(number, name, kind, columns, rounded(look)))
        parts += _told_apart(_named_by_axis(_merged(found), ax))
    return Drawing(rounded(page, 8), panels, parts)
