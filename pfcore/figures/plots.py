"""Plots of this package's results on any axes: densities, eigenvalues, trajectories.

The functions add artists and label the axes, in the current style. They return the artists.
"""

from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from pfcore import paths
from pfcore._checks import ArrayLike, Loss, ScalarLike, check_count, check_positive
from pfcore._trees import Params, ravel
from pfcore.curvature import SpectralDensity, Track


def _axes(ax: Axes | None) -> Axes:
    return plt.gca() if ax is None else ax


def plot_density(
    density: SpectralDensity,
    ax: Axes | None = None,
    *,
    scale: str = "linear",
    linear_threshold: ScalarLike = 1e-3,
    bandwidth: ScalarLike | None = None,
    num_points: int | None = None,
    band: bool = True,
    **line: Any,
) -> list[Artist]:
    r"""Draw a density of eigenvalues, with a band of two standard errors on a logarithmic axis.

    Args:
      density: a result of `pfcore.curvature.spectral_density`.
      ax: axes to draw on; by default the current axes.
      scale: "linear", or "symlog" for eigenvalues over several decades of either sign.
      linear_threshold: $\lambda_\text{lin}$, below which "symlog" is linear.
      bandwidth: standard deviation of the Gaussian that replaces each eigenvalue, in units of the
        axis: of $\lambda$, or of decades. By default 1/100 of the visible range.
      num_points: number of grid points; by default four to a bandwidth, from 500 to 20,000.
      band: whether to draw the standard errors (with two probes or more).
      line: options of `Axes.plot`.

    Returns:
      The line, and the band if there is one.

    Raises:
      ValueError: `scale` is unknown, or the density has no finite eigenvalue (the products were not
        those of a symmetric matrix).

    Example:
      >>> import jax, jax.numpy as jnp, pfcore
      >>> loss = lambda x: 0.5 * jnp.sum(jnp.array([1.0, 2.0, 3.0]) * x**2)
      >>> density = pfcore.curvature.spectral_density(loss, jnp.ones(3), key=jax.random.key(0))
      >>> [type(artist).__name__ for artist in pfcore.figures.plot_density(density)]
      ['Line2D', 'FillBetweenPolyCollection']
    """
    if scale not in ("linear", "symlog"):
        raise ValueError(f"scale must be linear or symlog, got {scale!r}")
    threshold = float(check_positive("linear_threshold", linear_threshold))
    weighted = np.asarray(density.weights, float) > 1e-12
    nodes = np.asarray(density.nodes, float)[weighted]
    nodes = nodes[np.isfinite(nodes)]
    if not nodes.size:
        raise ValueError(
            "the density has no finite eigenvalue: its products were not those of a symmetric "
            "matrix"
        )
    # To the axis and back; the grid is even on the axis.
    symlog = scale == "symlog"

    def there(x: Any) -> Any:
        return np.sign(x) * np.log10(1 + np.abs(x) / threshold) if symlog else x

    def back(s: Any) -> Any:
        return np.sign(s) * threshold * (10 ** np.abs(s) - 1) if symlog else s

    low, high = there(nodes.min()), there(nodes.max())
    # What differs by rounding alone is one eigenvalue.
    rounding = 100 * float(jnp.finfo(density.nodes.dtype).eps) * max(abs(low), abs(high))
    extent = high - low if high - low > rounding else abs(high) or 1.0
    width = extent / 100 if bandwidth is None else float(check_positive("bandwidth", bandwidth))
    if num_points is None:
        num_points = min(max(500, int(4 * (extent / width + 8))), 20_000)
    num_points = check_count("num_points", num_points, minimum=2)
    grid = back(np.linspace(low - 4 * width, high + 4 * width, num_points))
    options: dict[str, Any] = {"scale": scale, "linear_threshold": threshold}
    values = np.asarray(density.evaluate(grid, width, **options))
    ax = _axes(ax)
    if symlog:
        ax.set_xscale("symlog", linthresh=threshold)
    ax.set_yscale("log")
    (drawn,) = ax.plot(grid, values, **line)
    artists: list[Artist] = [drawn]
    if band and len(density.nodes) > 1:
        error = 2 * np.asarray(density.standard_error(grid, width, **options))
        # A logarithmic axis cannot show values that are not positive.
        floor = np.maximum(values - error, 1e-3 * values)
        color, zorder = drawn.get_color(), drawn.get_zorder() - 0.1
        artists.append(
            ax.fill_between(
                grid, floor, values + error, color=color, alpha=0.25, lw=0, zorder=zorder
            )
        )
    # A single eigenvalue among as many as there are parameters must stay visible.
    top = float(values.max())
    ax.set_ylim(1e-6 * top, 2 * top)
    ax.set_xlabel(r"eigenvalue $\lambda$")
    ax.set_ylabel("density, per decade" if symlog else r"density, per unit of $\lambda$")
    return artists


def plot_eigenvalues(
    track: Track | ArrayLike,
    ax: Axes | None = None,
    *,
    learning_rate: ArrayLike | None = None,
    steps: ArrayLike | None = None,
    **line: Any,
) -> list[Artist]:
    r"""Draw eigenvalues along training, and the edge of stability $2/h$.

    Args:
      track: a result of `pfcore.curvature.track`, or eigenvalues [T, k]; NaN is not drawn.
      ax: axes to draw on; by default the current axes.
      learning_rate: $h$, one number or T; None draws no edge.
      steps: [T], horizontal positions; by default 0, 1, …, T − 1.
      line: options of `Axes.plot` for the eigenvalues.

    Returns:
      A line for each eigenvalue, largest first; then one set of crosses where a search did not
      converge, if any; then the edge, if a learning rate was given.

    Raises:
      ValueError: the eigenvalues do not have the shape [T, k], or `steps` or `learning_rate` T; a
        learning rate is not positive.

    Example:
      >>> import jax.numpy as jnp, pfcore
      >>> lines = pfcore.figures.plot_eigenvalues(jnp.ones((5, 2)), learning_rate=0.1)
      >>> [line.get_label() for line in lines]
      ['$\\lambda_{0}$', '$\\lambda_{1}$', '$2/h$']
    """
    known = isinstance(track, Track)
    values = np.asarray(track.values if known else track, float)
    if values.ndim != 2:
        raise ValueError(f"eigenvalues must have the shape [T, k], got {values.shape}")
    places = np.arange(len(values)) if steps is None else np.asarray(steps)
    if places.shape != (len(values),):
        raise ValueError(f"steps have shape {places.shape}, but there are {len(values)} points")
    ax = _axes(ax)
    artists: list[Artist] = []
    for i, row in enumerate(values.T):
        artists += ax.plot(places, row, **({"label": rf"$\lambda_{{{i}}}$"} | line))
    if known:
        doubtful = ~np.asarray(track.converged) & np.isfinite(values)
        if doubtful.any():
            where, which = np.nonzero(doubtful)
            look: dict[str, Any] = {
                "ls": "none",
                "marker": "x",
                "color": "black",
                "label": "not converged",
            }
            artists += ax.plot(places[where], values[where, which], **look)
    if learning_rate is not None:
        rate = np.asarray(learning_rate, float)
        if rate.shape not in ((), (len(values),)):
            raise ValueError(
                f"learning_rate has shape {rate.shape}; pass one number, or one for each of the "
                f"{len(values)} points"
            )
        if not np.all(rate > 0):
            raise ValueError(f"learning_rate must be positive, got {learning_rate!r}")
        look = {"ls": "--", "color": "black", "lw": 1, "label": "$2/h$"}
        artists += ax.plot(places, np.broadcast_to(2 / rate, places.shape), **look)
    if steps is None:
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("training step")
    ax.set_ylabel(r"eigenvalue $\lambda$ (unit: $1/h$)")
    return artists


def plot_trajectory(
    loss: Loss,
    path: Params,
    ax: Axes | None = None,
    *,
    levels: int = 15,
    resolution: int = 80,
    margin: float = 0.25,
    **line: Any,
) -> list[Artist]:
    r"""Draw a path of parameters on level lines of the loss.

    Two parameters are the axes. More are projected on the plane through the last point along the
    two principal directions of the path, and the level lines are those of the loss in that plane;
    the labels state the directions' share of the path's variance. Points outside the plane have
    losses that differ from the level lines under them.

    Args:
      loss: $E$, from `params` to a real scalar.
      path: parameters stacked along a leading axis, at least 3 points of at least 2 numbers, such
        as the result of `pfcore.gradient_descent`.
      ax: axes to draw on; by default the current axes.
      levels: the number of level lines, at equally spaced quantiles of the loss.
      resolution: points along each axis at which the loss is evaluated.
      margin: margin around the path, as a fraction of its extent.
      line: options of `Axes.plot` for the path.

    Returns:
      The level lines (`ContourSet`), and the path.

    Raises:
      ValueError: the path has too few points or numbers, or is not finite, or the loss is finite
        nowhere around it.

    Example:
      >>> import jax.numpy as jnp, pfcore
      >>> loss = lambda x: x[0] ** 2 + 3 * x[1] ** 2
      >>> path = pfcore.gradient_descent(loss, jnp.ones(2), 0.1, 10)
      >>> [type(artist).__name__ for artist in pfcore.figures.plot_trajectory(loss, path)]
      ['QuadContourSet', 'Line2D']

    References:
      Li et al., *Visualizing the loss landscape of neural nets*, NeurIPS 2018 (arXiv 1712.09913).
    """
    levels = check_count("levels", levels, minimum=1)
    resolution = check_count("resolution", resolution, minimum=2)
    path = jax.tree.map(jnp.asarray, path)
    flat = paths.as_matrix(path)
    points = np.asarray(flat, float)
    if points.shape[0] < 3 or points.shape[1] < 2:
        raise ValueError(
            f"a trajectory needs at least 3 points of at least 2 numbers, got {points.shape}"
        )
    if not np.all(np.isfinite(points)):
        first = int(np.argmin(np.isfinite(points).all(axis=1)))
        raise ValueError(f"the path is not finite from point {first} on; pass the part before it")
    unravel = ravel(paths.at(path, 0))[1]
    if points.shape[1] == 2:
        origin, directions = np.zeros(2), np.eye(2)
        names = ["first parameter", "second parameter"]
    else:
        origin = points[-1]
        _, sizes, directions = np.linalg.svd(points - points.mean(axis=0), full_matrices=False)
        directions, total = directions[:2], np.sum(sizes**2) or 1.0
        names = [
            f"{name} principal direction ({size**2 / total:.0%} of the variance)"
            for name, size in zip(("first", "second"), sizes, strict=False)
        ]
    projected = (points - origin) @ directions.T
    low, high = projected.min(axis=0), projected.max(axis=0)
    extent = np.where(high > low, high - low, max(np.max(high - low), 1e-6))
    ticks = [
        np.linspace(a - margin * e, b + margin * e, resolution)
        for a, b, e in zip(low, high, extent, strict=True)
    ]
    x, y = np.meshgrid(*ticks)
    start, plane = (jnp.asarray(array, flat.dtype) for array in (origin, directions))
    grid = jnp.asarray(np.stack([x.ravel(), y.ravel()], axis=1), flat.dtype)
    values = jax.jit(
        lambda grid: jax.lax.map(lambda at: loss(unravel(start + at @ plane)), grid, batch_size=64)
    )(grid)
    heights = np.ma.masked_invalid(np.asarray(values, float).reshape(x.shape))
    if not heights.count():
        raise ValueError(
            "the loss is finite nowhere in the plane of the path; pass a path around which it is"
        )
    shares = np.linspace(0, 1, levels + 2)[1:-1]
    ranks = np.unique(np.quantile(heights.compressed(), shares))
    ax = _axes(ax)
    contours = ax.contour(x, y, heights, levels=ranks, colors="0.7", linewidths=0.8)
    drawn = ax.plot(*projected.T, **({"marker": ".", "color": "C0"} | line))
    ax.set_xlabel(names[0])
    ax.set_ylabel(names[1])
    return [contours, *drawn]
