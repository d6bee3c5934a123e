"""Figures that carry their data: taken apart, written as CSV, drawn again from it alone."""

import io
import os
import subprocess
import sys

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image
from typer.testing import CliRunner

from pfcore import figures, provenance
from pfcore.cli import app
from pfcore.figures.themes import themed
from pfcore.objectives import quadratic

X = np.linspace(0, 5, 41)
# Where glyphs and edges are anti-aliased, a pixel may fall to the other side of a rounding.
SAME = 2e-4


def lines():
    fig, axes = plt.subplots(2, 1, sharex=True)
    axes[0].plot(X, np.sin(X), color=figures.COLORS["ngf"], label="NGF")
    axes[0].plot(X, np.cos(X), "--", color="#123456", alpha=0.5, drawstyle="steps-post")
    figures.dots(axes[0], X[::8], np.sin(X[::8]))
    axes[0].axhline(0.25, color="#999999", lw=0.8)
    axes[0].axvline(2, ls=":")
    axes[0].legend(loc="lower left", title="flows")
    axes[1].semilogy(X, np.exp(-X), marker="x", lw=0)
    axes[1].set(ylabel="loss")
    figures.step_axis(axes[1])
    figures.label(axes[1], 2.0, float(np.exp(-2)), "igr")
    return fig


def areas():
    fig, axes = plt.subplots(1, 2)
    axes[0].fill_between(X, np.sin(X), np.cos(X), color="#009E73", alpha=0.3)
    axes[0].axvspan(1, 2, color="#D55E00", alpha=0.2, lw=0)
    axes[0].axhspan(0, 0.5, color="#dddddd")
    axes[0].set_title("area")
    axes[1].bar(["a", "b"], [3, 4], color="#cccccc")
    axes[1].hist([0.1, 0.2, 0.2, 0.9], bins=4, alpha=0.5)
    axes[1].errorbar([0, 1], [1, 2], yerr=[0.2, 0.3], fmt="o", capsize=3)
    return fig


def twins():
    fig, ax = plt.subplots()
    ax.plot(X, X**2)
    right = ax.twinx()
    right.semilogy(X, np.exp(X), color="#D55E00")
    right.set_ylabel("right", color="#D55E00")
    right.tick_params(axis="y", labelcolor="#D55E00")
    right.spines["right"].set_visible(True)
    right.grid(False)
    ax.plot(0.5, 0.93, "x", transform=ax.get_xaxis_transform())
    ax.set_xticks([0, 2, 5], ["none", "two", "five"], rotation=30)
    fig.legend(*ax.get_legend_handles_labels(), loc="outside lower center")
    return fig


def maps():
    fig, axes = plt.subplots(1, 2)
    values = np.add.outer(np.arange(4.0), np.arange(5.0))
    values[0, 0] = np.nan
    axes[0].imshow(values, extent=[0, 5, 0, 4], origin="lower", aspect="auto")
    shades = np.random.default_rng(0).uniform(size=(3, 3, 3))
    axes[1].imshow(shades, extent=[-1, 1, -1, 1])
    figures.contours(axes[1], quadratic, domain=[[-1, 1], [-1, 1]], levels=4, resolution=30)
    axes[0].scatter([1, 2], [1, 3], s=[20, 60], color=["#0072B2", "#D55E00"])
    axes[1].set_axis_off()
    return fig


def solid():
    fig = plt.figure()
    ax = fig.add_subplot(projection="3d", computed_zorder=False)
    ax.plot_surface(*np.meshgrid([0, 1], [0, 1]), np.ones((2, 2)), color="#bbbbbb", alpha=0.4)
    ax.plot(X / 5, np.sin(X), np.cos(X), color=figures.COLORS["principal"], label="PF")
    ax.view_init(elev=20, azim=-50)
    ax.set(xlabel="x", zlabel="z")
    ax.legend()
    return fig


DRAWINGS = {f.__name__: f for f in (lines, areas, twins, maps, solid)}


@pytest.fixture(scope="module", params=list(DRAWINGS))
def picture(request):
    """The bytes of a picture that carries its data."""
    with mpl.rc_context():
        figures.use_style()
        fig = DRAWINGS[request.param]()
        data = figures.png(fig)
        plt.close(fig)
    return data


def test_a_drawing_comes_again_from_its_numbers_alone(picture):
    csv = figures.contents(picture).csv
    assert figures.difference(picture, figures.redraw(csv)) <= SAME


def test_a_change_of_one_number_can_be_seen():
    with mpl.rc_context():
        figures.use_style()
        fig, ax = plt.subplots()
        ax.plot([0, 1, 2], [0, 1, 0])
        data = figures.png(fig)
        plt.close(fig)
    csv = figures.contents(data).csv
    changed = csv.replace("\n0,line,1,1\n", "\n0,line,1,0.5\n")
    assert changed != csv
    assert figures.difference(data, figures.redraw(changed)) > 10 * SAME


def test_the_header_explains_and_the_rows_are_the_numbers():
    with mpl.rc_context():
        figures.use_style()
        fig = lines()
        csv = figures.contents(figures.png(fig)).csv
        plt.close(fig)
    header = [line for line in csv.splitlines() if line.startswith("#")]
    assert any("time, in steps of gradient descent" in line for line in header)
    assert any('y: "loss" (log scale)' in line for line in header)
    assert any('panel 0, "NGF": line, 41 rows' in line for line in header)
    assert any('"at y = 0.25": line, 2 rows, in share of the width and y' in h for h in header)
    names, *rows = [line.split(",") for line in csv.splitlines() if not line.startswith("#")]
    assert names == ["panel", "series", "x", "y"]
    ngf = np.array([row[2:] for row in rows if row[:2] == ["0", "NGF"]], float)
    np.testing.assert_allclose(ngf, np.stack([X, np.sin(X)], axis=1), rtol=1e-6, atol=1e-7)


def test_series_are_named_by_what_the_figure_says():
    """A colour means what a legend says it does, and a flow only where that is written."""
    ngf, igr, pf = (figures.COLORS[name] for name in ("ngf", "igr", "principal"))
    with mpl.rc_context():
        figures.use_style()
        fig, axes = plt.subplots(1, 3)
        axes[0].plot(X, X, color=ngf, label="sharpness")
        axes[0].plot(X, 2 * X, color="#123456", label="twice")
        axes[0].plot(X, 3 * X, "--", color="#123456", label="thrice")
        axes[0].legend()
        axes[1].plot(X, X, color=ngf)
        axes[1].plot(X, 2 * X, color="#123456")
        axes[1].plot(X, -X, color=pf)
        axes[2].plot(X, X, color=igr)
        axes[2].set_title(f"{figures.LABELS['igr']} alone")
        csv = figures.contents(figures.png(fig)).csv
        plt.close(fig)
    rows = [line.split(",")[:2] for line in csv.splitlines() if not line.startswith("#")]
    assert list(dict.fromkeys(map(tuple, rows[1:]))) == [
        *(("0", name) for name in ("sharpness", "twice", "thrice")),
        *(("1", name) for name in ("sharpness", "line", "line (2)")),
        ("2", figures.LABELS["igr"]),
    ]


def test_lines_are_named_by_the_text_in_their_color_or_else_by_their_axis():
    with mpl.rc_context():
        figures.use_style()
        fig, axes = plt.subplots(1, 3)
        for i, (color, text) in enumerate((("#0072b2", "first"), ("#123456", "no\n#2"))):
            axes[0].plot(X, (i + 1) * X, color=color)
            axes[0].text(0, i, text, color=color)
        axes[0].text(0, 0, "a remark", color="#888888")
        axes[0].plot(X, -X, color="#888888")
        axes[0].set_ylabel("position")
        axes[1].plot(X, X, color="#123456")
        axes[1].plot(X, 2 * X, color="#aa0000")
        axes[1].plot(X, 3 * X, color="#00aa00")
        axes[2].plot(X, X, color="#123456")
        axes[2].text(0, 0, "another name", color="#123456")
        csv = figures.contents(figures.png(fig)).csv
        plt.close(fig)
    rows = [line.split(",")[:2] for line in csv.splitlines() if not line.startswith("#")]
    assert list(dict.fromkeys(map(tuple, rows[1:]))) == [
        *(("0", name) for name in ("first", "no no. 2", "position")),
        # Two panels give that colour two names: elsewhere it has none.
        *(("1", name) for name in ("line", "line (2)", "line (3)")),
        ("2", "another name"),
    ]


def test_an_area_takes_the_name_of_its_own_color_not_of_a_black_line():
    """Its edge is transparent, not black."""
    fig, ax = plt.subplots()
    ax.plot(X, X, color="k", label="bound")
    ax.fill_between(X, X, color="#123456", label="range")
    ax.axvspan(0.2, 0.4, facecolor="#aa0000")
    ax.axvspan(0.5, 0.6, facecolor="#123456", edgecolor="none")
    ax.legend()
    csv = figures.contents(figures.png(fig)).csv
    plt.close(fig)
    rows = [line.split(",")[1] for line in csv.splitlines() if not line.startswith("#")]
    assert list(dict.fromkeys(rows[1:])) == ["range", "area", "range (2)", "bound"]


def test_error_bars_and_bars_have_the_name_of_the_whole():
    fig, ax = plt.subplots()
    ax.errorbar([1, 2], [1, 2], [0.1, 0.2], capsize=2, label="mean", color="#123456")
    ax.bar([1, 2], [1, 2], label=["one", "two"])
    csv = figures.contents(figures.png(fig)).csv
    plt.close(fig)
    rows = [line.split(",")[1] for line in csv.splitlines() if not line.startswith("#")]
    assert {name.partition(" (")[0] for name in rows[1:]} == {"mean", "one", "two"}


def test_a_line_separator_of_unicode_is_text():
    end = "\u2028"
    fig, ax = plt.subplots()
    ax.plot(X, X, label=f"a{end}b")
    ax.text(0, 0, f"c{end}d")
    csv = figures.contents(figures.png(fig)).csv
    plt.close(fig)
    assert figures.redraw(csv).axes[0].texts[0].get_text() == f"c{end}d"


def test_a_figure_that_is_refused_keeps_its_layout():
    fig, ax = plt.subplots(layout="constrained")
    ax.annotate("no arrows", (0, 0), (1, 1), arrowprops={"arrowstyle": "->"})
    before = fig.get_layout_engine()
    with pytest.raises(TypeError, match="arrows"):
        figures.png(fig)
    assert fig.get_layout_engine() is before
    plt.close(fig)


def test_a_file_is_enough(tmp_path):
    """A fresh process, in a folder that holds the file and nothing else."""
    with mpl.rc_context():
        figures.use_style()
        fig = twins()
        data = figures.png(fig)
        plt.close(fig)
    (tmp_path / "figure.csv").write_text(figures.contents(data).csv, encoding="utf-8")
    script = (
        "from pathlib import Path; from pfcore import figures;"
        "[figures.save(figures.redraw(Path('figure.csv')), f'again{e}')"
        " for e in ('.png', '.svg', '.pdf')]"
    )
    env = {k: v for k, v in os.environ.items() if not k.startswith("PFCORE")}
    subprocess.run([sys.executable, "-I", "-c", script], cwd=tmp_path, env=env, check=True)
    with Image.open(tmp_path / "again.png") as again, Image.open(io.BytesIO(data)) as stored:
        apart = np.abs(np.asarray(again.convert("RGB"), int) - np.asarray(stored.convert("RGB")))
    assert np.mean(apart.max(axis=-1) > 64) <= SAME
    assert (tmp_path / "again.svg").read_text(encoding="utf-8").startswith("<?xml")
    assert (tmp_path / "again.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize("ending", figures.files.ENDINGS)
def test_the_same_figure_gives_the_same_bytes(picture, tmp_path, ending):
    csv = figures.contents(picture).csv
    one, other = (
        figures.save(figures.redraw(csv), tmp_path / f"{name}{ending}").read_bytes()
        for name in ("one", "other")
    )
    assert one == other


def test_a_file_is_what_matplotlib_writes_and_the_figure_is_left_as_it_was(picture, tmp_path):
    figure = figures.redraw(figures.contents(picture).csv)
    canvas, dots = figure.canvas, figure.dpi
    ours = figures.save(figure, tmp_path / "ours.svg")
    assert (figure.canvas, figure.dpi) == (canvas, dots)
    with mpl.rc_context({"svg.hashsalt": "pfcore"}):
        figure.savefig(tmp_path / "theirs.svg", dpi=dots, metadata={"Date": None})
    assert ours.read_bytes() == (tmp_path / "theirs.svg").read_bytes()


def test_dark_is_the_same_drawing_on_a_dark_page(picture, tmp_path):
    csv = figures.contents(picture).csv
    light = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"), int)
    dark = figures.save(figures.redraw(csv, "dark"), tmp_path / "dark.png")
    dark = np.asarray(Image.open(dark).convert("RGB"), int)
    assert dark.shape == light.shape
    paper = np.rint(255 * np.array(to_rgb(figures.BACKGROUND["dark"])))
    np.testing.assert_array_equal(dark[0, 0], paper)
    # What was ink still stands out from the paper; images keep their colours.
    ink = np.abs(light - 255).max(axis=-1) > 200
    assert np.mean(np.abs(dark - paper).max(axis=-1)[ink] > 60) > 0.92


def _contrast(one, other):
    def luminance(color):
        rgb = np.array(to_rgb(color))
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        return linear @ [0.2126, 0.7152, 0.0722]

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("name", list(figures.COLORS))
def test_flows_stand_out_from_a_dark_page(name):
    """As the accessibility guidelines ask of lines: a contrast of 3."""
    assert _contrast(themed(figures.COLORS[name], "dark"), figures.BACKGROUND["dark"]) >= 3


def test_dark_keeps_the_order_of_shades():
    shades = [mpl.colors.to_hex(c) for c in plt.cm.Blues(np.linspace(0.35, 0.95, 6))]
    contrasts = [_contrast(themed(s, "dark"), figures.BACKGROUND["dark"]) for s in shades]
    assert contrasts == sorted(contrasts) and contrasts[0] >= 3


def test_opacity_stays_and_white_is_the_page():
    assert themed("#0072b280", "dark")[-2:] == "80"
    assert themed("#ffffff", "dark") == figures.BACKGROUND["dark"]
    assert themed("#123456", "light") == "#123456"


def test_an_animation_carries_all_its_frames():
    with mpl.rc_context():
        figures.use_style()
        fig, ax = plt.subplots(figsize=(3, 2))

        def draw(i):
            ax.clear()
            ax.plot([0, 1], [0, i])
            ax.set(ylim=(0, 2), title=f"step {i}")

        data = figures.animation(fig, draw, 3)
        plt.close(fig)
    csv = figures.contents(data).csv
    assert '#   1: frame 1 of an animation; "step 1"' in csv
    assert figures.difference(data, figures.redraw(csv)) <= SAME
    with Image.open(io.BytesIO(figures.picture(csv, "dark"))) as dark:
        assert dark.n_frames == 3
    with (
        Image.open(io.BytesIO(data)) as stored,
        Image.open(io.BytesIO(figures.picture(csv))) as drawn,
    ):
        for frame in range(3):
            stored.seek(frame)
            drawn.seek(frame)
            one, other = (np.asarray(i.convert("RGB"), int) for i in (stored, drawn))
            assert np.mean(np.abs(one - other).max(axis=-1) > 64) <= SAME
    with pytest.raises(ValueError, match="frame must be from -3 to 2, got 3"):
        figures.redraw(csv, frame=3)
    with pytest.raises(ValueError, match="num_frames must be at least 1, got 0"):
        figures.animation(fig, draw, 0)
    titles = [figures.redraw(csv, frame=i).axes[0].get_title(loc="left") for i in (0, 2)]
    assert titles == ["step 0", "step 2"]


def test_provenance_names_what_was_used(monkeypatch):
    monkeypatch.setattr(provenance, "_sources", [])
    monkeypatch.setenv("PFCORE_PROFILE", "full")
    provenance.note_source("data set", name="digits", sha256="abc")
    provenance.note_source("data set", name="digits", sha256="abc")
    fig, ax = plt.subplots()
    ax.plot([0, 1])
    found = figures.contents(figures.png(fig)).provenance
    plt.close(fig)
    assert found["sources"] == [{"kind": "data set", "name": "digits", "sha256": "abc"}]
    assert found["profile"] == "full" and found["versions"]["jax"] and "commit" in found


def test_command_line(picture, tmp_path):
    (tmp_path / "a.png").write_bytes(picture)
    (tmp_path / "b.csv").write_text(figures.contents(picture).csv, encoding="utf-8")
    for source, target in (("a.png", "a.svg"), ("b.csv", "b.svg")):
        said = CliRunner().invoke(app, ["redraw", str(tmp_path / source), str(tmp_path / target)])
        assert said.exit_code == 0, said.output
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    said = CliRunner().invoke(app, ["redraw", str(tmp_path / "c.csv"), str(tmp_path / "c.svg")])
    assert said.exit_code == 2 and "c.csv" in said.output


def test_wrong_use_is_told(tmp_path):
    plain = tmp_path / "plain.png"
    Image.new("RGB", (4, 4)).save(plain)
    with pytest.raises(ValueError, match=r"plain\.png.*carries no data"):
        figures.contents(plain)
    with pytest.raises(ValueError, match="not a figure's data"):
        figures.redraw("x,y\n1,2\n")
    fig = lines()
    csv = figures.contents(figures.png(fig)).csv
    with pytest.raises(ValueError, match=r"one of \('light', 'dark'\), got 'sepia'"):
        figures.redraw(csv, "sepia")
    with pytest.raises(ValueError, match=r"'NGF' in panel 0"):
        figures.redraw(csv.replace("\n0,NGF,0,0\n", "\n", 1))
    with pytest.raises(ValueError, match="ending"):
        figures.save(fig, tmp_path / "figure.gif")
    fig.axes[0].annotate("", (0, 0), (1, 1), arrowprops={"arrowstyle": "->"})
    fig.axes[0].texts[-1].set_text("there")
    with pytest.raises(TypeError, match="no arrows"):
        figures.png(fig)
    plt.close(fig)


def test_an_image_of_whole_numbers_keeps_its_colours():
    fig, ax = plt.subplots()
    pixels = np.array([[[255, 0, 128], [0, 1, 0]]], np.uint8)
    ax.imshow(pixels)
    csv = figures.contents(figures.png(fig)).csv
    shown = figures.redraw(csv).axes[0].images[0].get_array()
    np.testing.assert_allclose(np.asarray(shown)[..., :3], pixels / 255, atol=1e-6)


def test_a_norm_that_is_not_carried_is_refused():
    fig, ax = plt.subplots()
    ax.imshow(np.eye(2), norm=mpl.colors.CenteredNorm())
    with pytest.raises(TypeError, match="Normalize or LogNorm, got CenteredNorm"):
        figures.png(fig)
