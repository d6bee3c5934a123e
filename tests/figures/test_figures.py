import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.contour import ContourSet

from pfcore.figures import COLORS, LABELS, WIDTH, contours, dots, key, label, use_style
from pfcore.objectives import banana, quadratic, saddle


@pytest.fixture
def ax():
    with mpl.rc_context():
        use_style()
        figure, axes = plt.subplots()
        yield axes
        figure.canvas.draw()  # what cannot be drawn warns or fails here
        plt.close(figure)


def level_lines(ax):
    (drawn,) = [artist for artist in ax.get_children() if isinstance(artist, ContourSet)]
    return drawn


def test_style_is_set_and_names_only_known_settings():
    with mpl.rc_context():
        mpl.rcdefaults()
        use_style()
        assert mpl.rcParams["figure.figsize"][0] == WIDTH
        assert mpl.rcParams["font.size"] >= 11
        assert mpl.rcParams["figure.constrained_layout.use"]
        assert not mpl.rcParams["axes.spines.top"]


def test_every_flow_has_one_colour_and_one_label():
    assert COLORS.keys() == LABELS.keys()
    assert len({to_hex(color) for color in COLORS.values()}) == len(COLORS)
    assert len(set(LABELS.values())) == len(LABELS)


def test_colours_are_told_apart_in_grey_or_by_hue():
    """Two colours of one lightness and one hue would be the same line on paper."""
    rgb = np.array([mpl.colors.to_rgb(color) for color in COLORS.values()])
    distances = np.linalg.norm(rgb[:, None] - rgb[None], axis=-1)
    assert distances[~np.eye(len(rgb), dtype=bool)].min() > 0.25


def test_contours_are_level_lines_of_the_objective(ax):
    contours(ax, quadratic, levels=6)
    drawn = level_lines(ax)
    assert len(drawn.levels) == 6
    np.testing.assert_allclose(np.diff(drawn.levels), np.diff(drawn.levels)[0], rtol=1e-5)
    for level, path in zip(drawn.levels, drawn.get_paths(), strict=True):
        x, y = path.vertices.T
        # Off by no more than linear interpolation between 160 points is.
        np.testing.assert_allclose(np.cbrt(x**2 + 0.01 * y**2), level, atol=0.02)


def test_contours_fill_the_domain_and_no_more(ax):
    contours(ax, banana)
    (x0, x1), (y0, y1) = banana.domain
    assert ax.get_xlim() == pytest.approx((x0, x1)) and ax.get_ylim() == pytest.approx((y0, y1))


def test_contours_of_a_domain_of_ones_own_with_values_of_both_signs(ax):
    contours(ax, saddle, domain=[[-2, 2], [-3, 1]])
    assert ax.get_xlim() == pytest.approx((-2, 2)) and ax.get_ylim() == pytest.approx((-3, 1))
    levels = level_lines(ax).levels
    assert levels[0] < 0 < levels[-1]


def test_swap_exchanges_the_axes(ax):
    contours(ax, quadratic, domain=[[-1, 1], [-4, 4]], swap=True, levels=3)
    assert ax.get_xlim() == pytest.approx((-4, 4)) and ax.get_ylim() == pytest.approx((-1, 1))
    drawn = level_lines(ax)
    for level, path in zip(drawn.levels, drawn.get_paths(), strict=True):
        horizontal, vertical = path.vertices.T
        np.testing.assert_allclose(np.cbrt(vertical**2 + 0.01 * horizontal**2), level, atol=0.02)


def test_dots_are_gradient_descents(ax):
    dots(ax, [0, 1, 2], [3, 4, 5], label="steps")
    (line,) = ax.lines
    np.testing.assert_array_equal(line.get_xydata(), [[0, 3], [1, 4], [2, 5]])
    assert line.get_color() == COLORS["gd"] and line.get_marker() == "o"
    assert line.get_label() == "steps"


def test_label_is_the_flows_name_in_its_colour_beside_the_point(ax):
    label(ax, 0.5, 0.25, "igr")
    label(ax, 0.1, 0.2, "ngf", "here", xytext=(0, 9), ha="right")
    first, second = ax.texts
    assert first.get_text() == LABELS["igr"] and first.get_color() == COLORS["igr"]
    assert first.xy == (0.5, 0.25) and first.xyann == (5, 0)
    assert first.get_path_effects()
    assert second.get_text() == "here" and second.get_color() == COLORS["ngf"]
    assert second.xyann == (0, 9) and second.get_ha() == "right"


def test_key_names_the_flows_in_order(ax):
    key(ax, ["gd", "principal", "ngf"], loc="upper left", title="flows")
    legend = ax.get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["gradient descent", "PF", "NGF"]
    assert [line.get_color() for line in legend.get_lines()] == [
        COLORS[name] for name in ("gd", "principal", "ngf")
    ]
    assert [line.get_marker() for line in legend.get_lines()] == ["o", "None", "None"]
    assert legend.get_title().get_text() == "flows"


def test_a_flow_without_a_colour_is_an_error(ax):
    with pytest.raises(KeyError, match="sgd"):
        label(ax, 0.0, 0.0, "sgd")
    with pytest.raises(KeyError, match="sgd"):
        key(ax, ["sgd"])
