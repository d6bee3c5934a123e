"""Results drawn on any axes: the numbers that are shown, the artists, and no style of our own."""

import jax
import jax.numpy as jnp
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest

from pfcore import curvature, figures, gradient_descent

KEY = jax.random.key(0)
EIGENVALUES = jnp.asarray([100.0, 1.0, 0.5, 0.1, -0.2])


def loss(x):
    return jnp.sum(EIGENVALUES * x**2) / 2


@pytest.fixture
def ax():
    before = dict(mpl.rcParams)
    figure, axes = plt.subplots()
    yield axes
    figure.canvas.draw()  # what cannot be drawn warns or fails here
    plt.close(figure)
    assert dict(mpl.rcParams) == before


@pytest.fixture(scope="module")
def density():
    return curvature.spectral_density(loss, jnp.ones(5), key=KEY, num_probes=4)


@pytest.mark.parametrize("scale", ["linear", "symlog"])
def test_density_is_the_one_it_evaluates_to(ax, density, scale):
    line, band = figures.plot_density(density, ax, scale=scale, bandwidth=0.1, color="red")
    x, y = line.get_xdata(), line.get_ydata()
    np.testing.assert_allclose(y, density.evaluate(x, 0.1, scale=scale), rtol=1e-5)
    axis = x if scale == "linear" else np.sign(x) * np.log10(1 + np.abs(x) / 1e-3)
    np.testing.assert_allclose(np.diff(axis), np.diff(axis)[0], rtol=1e-3)
    np.testing.assert_allclose(np.trapezoid(y, axis), 1, rtol=2e-3)
    assert line.get_color() == "red" and ax.get_xscale() == scale and ax.get_yscale() == "log"
    corners = band.get_paths()[0].vertices
    top = y + 2 * np.asarray(density.standard_error(x, 0.1, scale=scale))
    assert np.max(corners[:, 1]) == pytest.approx(np.max(top), rel=1e-4)
    assert "per" in ax.get_ylabel() and r"\lambda" in ax.get_xlabel()


def test_density_of_one_eigenvalue_and_without_a_band():
    density = curvature.spectral_density(
        lambda x: jnp.sum(x**2), jnp.ones(3), key=KEY, num_probes=1
    )
    (line,) = figures.plot_density(density)
    assert line.axes is plt.gca()
    x, y = line.get_xdata(), line.get_ydata()
    assert x[np.argmax(y)] == pytest.approx(2, rel=1e-2)
    plt.close()


def test_density_of_eigenvalues_that_differ_by_rounding(ax):
    """An orthogonal factor: one eigenvalue, of which single precision makes several."""
    rotation = jnp.linalg.qr(jax.random.normal(KEY, (50, 50)))[0]
    density = curvature.spectral_density(
        lambda x: 0.5 * jnp.sum((rotation @ x) ** 2), jnp.ones(50), key=KEY
    )
    x, y = figures.plot_density(density, ax)[0].get_data()
    area = np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2)
    assert area == pytest.approx(1, rel=1e-2)
    assert x[np.argmax(y)] == pytest.approx(1, rel=1e-2)


def test_density_refuses_what_it_cannot_draw(ax, density):
    with pytest.raises(ValueError, match="got 'log'"):
        figures.plot_density(density, ax, scale="log")
    unknown = density._replace(nodes=jnp.full_like(density.nodes, jnp.nan))
    with pytest.raises(ValueError, match="not those of a symmetric matrix"):
        figures.plot_density(unknown, ax)


def test_eigenvalues_edge_and_what_did_not_converge(ax):
    path = jnp.stack([jnp.ones(5)] * 3)
    track = curvature.track(loss, path, 2, key=KEY)
    lines = figures.plot_eigenvalues(track, ax, learning_rate=0.01)
    assert [line.get_label() for line in lines] == [r"$\lambda_{0}$", r"$\lambda_{1}$", "$2/h$"]
    np.testing.assert_allclose(lines[0].get_ydata(), [100] * 3, rtol=1e-4)
    np.testing.assert_allclose(lines[2].get_ydata(), [200] * 3)
    assert lines[0].get_color() != lines[1].get_color() and "1/h" in ax.get_ylabel()
    # Rates of their own, places of their own, one value in doubt.
    doubtful = track._replace(converged=track.converged.at[1, 0].set(False))
    options = {"learning_rate": [0.1, 0.2, 0.4], "steps": [0, 10, 20], "color": "blue"}
    first, _, crosses, edge = figures.plot_eigenvalues(doubtful, ax, **options)
    assert first.get_color() == "blue" and list(edge.get_xdata()) == [0, 10, 20]
    np.testing.assert_allclose(edge.get_ydata(), [20, 10, 5])
    np.testing.assert_allclose(crosses.get_xydata(), [[10, track.values[1, 0]]])


@pytest.mark.parametrize(
    "values, options, message",
    [
        (np.ones(3), {}, r"shape \[T, k\], got \(3,\)"),
        (np.ones((3, 1)), {"steps": [1, 2]}, "there are 3 points"),
        (np.ones((3, 1)), {"learning_rate": [0.1, 0.2]}, "each of the 3 points"),
        (np.ones((3, 1)), {"learning_rate": 0.0}, "must be positive, got 0.0"),
    ],
)
def test_eigenvalues_refuse_what_does_not_fit(ax, values, options, message):
    with pytest.raises(ValueError, match=message):
        figures.plot_eigenvalues(values, ax, **options)


def test_trajectory_of_two_parameters_lies_on_level_lines_of_the_loss(ax):
    def bowl(params):
        return params["a"] ** 2 + 3 * params["b"] ** 2

    path = gradient_descent(bowl, {"a": jnp.ones(()), "b": jnp.ones(())}, 0.1, 12)
    contours, line = figures.plot_trajectory(bowl, path, ax, levels=6, resolution=100)
    np.testing.assert_allclose(line.get_xydata(), np.stack([path["a"], path["b"]], axis=1))
    assert len(contours.levels) == 6
    for level, level_line in zip(contours.levels, contours.get_paths(), strict=True):
        a, b = level_line.vertices.T
        np.testing.assert_allclose(a**2 + 3 * b**2, level, atol=0.01)
    assert ax.get_xlabel() == "first parameter"


def test_trajectory_of_many_parameters_is_seen_in_its_principal_plane(ax):
    """A path in a plane keeps its distances, and the level lines there are the loss's own."""
    path = gradient_descent(loss, jnp.asarray([0.0, 1.0, 2.0, 0.0, 0.0]), 0.5, 8)
    contours, line = figures.plot_trajectory(loss, path, ax, color="red")
    shown, moved = line.get_xydata(), np.asarray(path - path[-1])
    np.testing.assert_allclose(
        np.linalg.norm(shown, axis=1), np.linalg.norm(moved, axis=1), atol=1e-6
    )
    # The plane's directions, from the points.
    directions = np.linalg.lstsq(shown, moved)[0]
    for level, level_line in zip(contours.levels, contours.get_paths(), strict=True):
        where = np.asarray(path[-1]) + level_line.vertices @ directions
        np.testing.assert_allclose(jax.vmap(loss)(where), level, atol=0.01)
    assert line.get_color() == "red"
    assert ax.get_xlabel().startswith("first principal direction (")
    shares = [
        float(label.split("(")[1].split("%")[0]) for label in (ax.get_xlabel(), ax.get_ylabel())
    ]
    assert sum(shares) == pytest.approx(100, abs=1.01)


def test_trajectory_refuses_what_it_cannot_draw(ax):
    with pytest.raises(ValueError, match=r"at least 2 numbers, got \(4, 1\)"):
        figures.plot_trajectory(jnp.sum, jnp.ones((4, 1)), ax)
    diverged = jnp.ones((4, 2)).at[2:].set(jnp.inf)
    with pytest.raises(ValueError, match="not finite from point 2 on"):
        figures.plot_trajectory(jnp.sum, diverged, ax)
    with pytest.raises(ValueError, match="finite nowhere in the plane"):
        negative = -1 - jnp.arange(8.0).reshape(4, 2)
        figures.plot_trajectory(lambda x: jnp.sum(jnp.log(x)), negative, ax)
