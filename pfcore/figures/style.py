"""Style of the book's figures: one colour for each flow, legible on a phone."""

from typing import Any

import jax
import jax.numpy as jnp
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes

from pfcore._checks import ArrayLike
from pfcore.flows.registry import FLOWS
from pfcore.objectives import Objective

# The two variants of each colour, for a white and a dark background. The first six are Okabe and
# Ito's palette, distinguishable with any colour vision; the others are Paul Tol's, and differ from
# those in lightness. The playground uses the same colours.
PALETTE = {
    "black": ("#1a1a1a", "#f2f2f2"),
    "blue": ("#0072B2", "#52aee8"),
    "green": ("#009E73", "#2fc79a"),
    "sky": ("#56B4E9", "#a6d8f7"),
    "vermilion": ("#D55E00", "#ff8a3d"),
    "pink": ("#CC79A7", "#eaa4cb"),
    "amber": ("#E69F00", "#ffc14d"),
    "wine": ("#882255", "#d9578f"),
    "indigo": ("#332288", "#9b8cf2"),
    "olive": ("#999933", "#c9c96a"),
}
ROLES = {"gd": "black", **{name: entry.color for name, entry in FLOWS.items()}}
COLORS = {name: PALETTE[role][0] for name, role in ROLES.items()}
LABELS = {"gd": "gradient descent", **{name: entry.label for name, entry in FLOWS.items()}}
# A page is about 7 inches wide; a phone shows it at half that, where 12 points become 6.
WIDTH = 6.4


# Matplotlib's defaults for the book.
STYLE: dict[Any, Any] = {
    "figure.figsize": (WIDTH, 4.0),
    "figure.dpi": 140,
    "figure.constrained_layout.use": True,
    "savefig.facecolor": "white",
    "font.size": 12,
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "axes.labelsize": 12,
    "xtick.labelsize": 11,
    "ytick.labelsize": 11,
    "legend.fontsize": 11,
    "legend.facecolor": "white",
    "legend.edgecolor": "none",
    "legend.framealpha": 0.85,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "axes.axisbelow": True,
    "lines.linewidth": 2,
    "svg.hashsalt": "pfcore",
}


def contours(
    ax: Axes,
    objective: Objective,
    *,
    domain: ArrayLike | None = None,
    levels: int = 14,
    swap: bool = False,
    resolution: int = 160,
) -> None:
    """Draw a two-parameter landscape as grey level lines, evenly spaced in the cube root.

    Args:
      ax: axes to draw on.
      objective: the landscape.
      domain: [2, 2] if not the objective's own.
      levels: the number of lines.
      swap: put the second parameter on the horizontal axis.
      resolution: points along each axis.
    """
    (x0, x1), (y0, y1) = objective.domain if domain is None else np.asarray(domain)
    x, y = np.meshgrid(np.linspace(x0, x1, resolution), np.linspace(y0, y1, resolution))
    roots = np.cbrt(jax.vmap(jax.vmap(objective))(jnp.stack([x, y], axis=-1)))
    ticks = np.linspace(roots.min(), roots.max(), levels + 2)[1:-1]
    if swap:
        x, y = y, x
    ax.contour(x, y, roots, levels=ticks, colors="#b5b5b5", linewidths=0.8, linestyles="solid")
    ax.grid(False)


def label(ax: Axes, x: float, y: float, name: str, text: str | None = None, **kwargs) -> None:
    """Write a flow's name in its colour beside its line, with a white outline.

    Args:
      ax: the axes.
      x, y: the end of the line, in the units of the data.
      name: "gd" or one of `pfcore.flows.FLOWS`, a key of `COLORS`.
      text: what to write; by default `LABELS[name]`.
      **kwargs: options of `ax.annotate`.
    """
    written = ax.annotate(
        LABELS[name] if text is None else text,
        (x, y),
        color=COLORS[name],
        fontsize=11,
        fontweight="bold",
        **{"xytext": (5, 0), "textcoords": "offset points", "va": "center", **kwargs},
    )
    written.set_path_effects([patheffects.withStroke(linewidth=3, foreground="white")])


def dots(ax: Axes, x: ArrayLike, y: ArrayLike, **kwargs) -> None:
    """Iterates of gradient descent: black dots joined by a thin line.

    Args:
      ax: the axes.
      x, y: coordinates, as for `ax.plot`.
      **kwargs: options of `ax.plot`.
    """
    look: dict[str, Any] = {"color": COLORS["gd"], "lw": 0.8, "marker": "o", "ms": 5, "zorder": 5}
    ax.plot(x, y, **(look | kwargs))


def step_axis(ax: Axes) -> None:
    """Time on the horizontal axis, counted in steps of gradient descent."""
    ax.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
    ax.set_xlabel("time, in steps of gradient descent ($t/h$)")


def key(ax: Axes, names: list[str], **kwargs) -> None:
    """One legend for several flows, where labels beside the lines would collide.

    Args:
      ax: the axes.
      names: keys of `COLORS`, as for `label`.
      **kwargs: options of `ax.legend`.
    """
    handles = [
        plt.Line2D(
            [], [], color=COLORS[n], lw=0.8 if n == "gd" else 2, marker="o" if n == "gd" else None
        )
        for n in names
    ]
    ax.legend(handles, [LABELS[n] for n in names], **kwargs)
