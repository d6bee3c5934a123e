"""House style of the book's figures, and figures that carry their data.

A notebook that calls `use_style` stores with each figure its numbers, as CSV, and their provenance.
`contents` extracts both from the picture, `redraw` draws it again from the CSV alone, in light or
dark colours, and `save` writes it as SVG, PDF or PNG.

`plot_density`, `plot_eigenvalues` and `plot_trajectory` draw results of this package on any axes,
in the current style.
"""

from pfcore._extras import optional

with optional():
    import matplotlib as mpl

    from pfcore.figures.files import (
        Contents,
        animation,
        carry_data,
        contents,
        difference,
        picture,
        png,
        redraw,
        save,
    )
    from pfcore.figures.plots import plot_density, plot_eigenvalues, plot_trajectory
    from pfcore.figures.style import (
        COLORS,
        LABELS,
        STYLE,
        WIDTH,
        contours,
        dots,
        key,
        label,
        step_axis,
    )
    from pfcore.figures.themes import BACKGROUND, THEMES


def use_style() -> None:
    """Set Matplotlib's defaults for the following figures; in a notebook, let them carry their
    data.

    Example:
      >>> import matplotlib as mpl
      >>> from pfcore import figures
      >>> with mpl.rc_context():
      ...     figures.use_style()
      ...     mpl.rcParams["figure.figsize"][0] == figures.WIDTH
      True
    """
    mpl.rcParams.update(STYLE)
    carry_data()


__all__ = [
    "BACKGROUND",
    "COLORS",
    "LABELS",
    "STYLE",
    "THEMES",
    "WIDTH",
    "Contents",
    "animation",
    "carry_data",
    "contents",
    "contours",
    "difference",
    "dots",
    "key",
    "label",
    "picture",
    "plot_density",
    "plot_eigenvalues",
    "plot_trajectory",
    "png",
    "redraw",
    "save",
    "step_axis",
    "use_style",
]
