"""The line under every figure: code, data, SVG, PDF, provenance, citation, and their files."""

import csv
import functools
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from pybtex.database import parse_string

from tests.pages import book

pytestmark = pytest.mark.pages

FOLDER = book.HTML / "figures"
WORDS = ["code", "data", "SVG", "PDF", "provenance", "cite"]
# One of each kind: lines, level lines beside lines, a surface in three dimensions, a map.
REDRAWN = ["fig-alpha", "fig-three-regimes", "fig-surface", "fig-map"]
# Share of the pixels in which a drawing may differ from the page's picture.
SAME = 0.002


class Shown(NamedTuple):
    """A figure as its page has it."""

    page: str
    name: str
    node: Any


@functools.cache
def shown() -> list[Shown]:
    return [
        Shown(page, figure["id"], figure)
        for page in book.in_toc()
        for figure in book.soup(page).select("article figure[id]")
    ]


def page_picture(name: str) -> Path:
    (figure,) = [figure for figure in shown() if figure.name == name]
    source = figure.node.select_one("img.only-light")["src"]
    return (book.HTML / figure.page).parent / source


# ---- what is published


def test_every_figure_has_its_line_and_both_pictures():
    assert len(shown()) > 50
    for figure in shown():
        light, dark = figure.node.select("img")
        assert light["class"] == ["only-light"] and dark["class"] == ["only-dark"]
        assert light["alt"] == dark["alt"] != ""
        assert (light["width"], light["height"]) == (dark["width"], dark["height"])
        line = figure.node.find_next_sibling()
        assert line["class"] == ["figure-files"], figure.name
        items = line.find_all(["a", "summary"], recursive=False) + line.select(
            ":scope > * > summary"
        )
        assert [item.get_text() for item in items] == WORDS, figure.name


def test_code_leads_to_the_cell_that_draws_the_figure():
    for figure in shown():
        link = figure.node.find_next_sibling().find("a")["href"]
        told = json.loads((FOLDER / f"{figure.name}.json").read_text(encoding="utf-8"))
        if link.startswith("#"):
            cell = book.soup(figure.page).find(id=link[1:])
            assert cell.get_text().strip() == told["code"].strip(), figure.name
            assert cell.find_parent("div", class_="cell").find(id=figure.name)
        else:
            assert link == told["source_address"]


def test_no_two_figures_have_one_name():
    names = [figure.name for figure in shown()]
    assert sorted(set(names)) == sorted(names)


def test_data_are_a_table_with_an_explained_header():
    for figure in shown():
        lines = (FOLDER / f"{figure.name}.csv").read_text(encoding="utf-8").splitlines()
        header = [line for line in lines if line.startswith("#")]
        rows = csv.reader(line for line in lines if not line.startswith("#"))
        columns = next(rows)
        assert {"panel", "series"} < set(columns), figure.name
        assert all(any(f"{column}:" in line for line in header) for column in columns[2:])
        count = 0
        for row in rows:
            assert len(row) == len(columns), figure.name
            count += 1
        assert count > 1, figure.name


def test_drawings_are_what_their_names_say():
    for figure in shown():
        root = ElementTree.parse(FOLDER / f"{figure.name}.svg").getroot()
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        pdf = (FOLDER / f"{figure.name}.pdf").read_bytes()
        assert pdf.startswith(b"%PDF") and pdf.rstrip().endswith(b"%%EOF")
        light, dark = figure.node.select("img")
        for image in (light, dark):
            with Image.open((book.HTML / figure.page).parent / image["src"]) as opened:
                assert opened.format == "PNG"
                assert opened.size == (int(image["width"]), int(image["height"])), figure.name


def test_provenance_is_complete_and_its_hashes_are_right():
    wanted = "figure title caption address page source code code_sha256 data pfcore licence"
    carried = "versions device commit profile jax_enable_x64 sources"
    for figure in shown():
        text = (FOLDER / f"{figure.name}.json").read_text(encoding="utf-8")
        told = json.loads(text)
        assert set(wanted.split()) | set(carried.split()) <= set(told), figure.name
        data = (FOLDER / told["data"]["file"]).read_bytes()
        assert told["data"]["sha256"] == hashlib.sha256(data).hexdigest()
        assert told["code_sha256"] == hashlib.sha256(told["code"].encode()).hexdigest()
        assert told["data"]["sha256"] in figure.node.find_next_sibling().get_text()
        for source in told["sources"]:
            assert {"kind"} <= set(source), figure.name
            if "record" in source["kind"]:
                assert {"experiment", "config", "device", "versions", "data"} <= set(source)


def test_citations_are_bibtex_with_the_stable_address():
    keys = []
    for figure in shown():
        text = (FOLDER / f"{figure.name}.bib").read_text(encoding="utf-8")
        entries = parse_string(text, "bibtex").entries
        (key,) = [key for key in entries if key.startswith("pfcore-")]
        assert entries[key].fields["url"].endswith(f"/figures/{figure.name}.html")
        assert "rosca2023continuous" in entries
        keys.append(key)
    assert len(set(keys)) == len(keys)


def test_gallery_shows_every_figure_once():
    cards = book.soup("book/figures.html").select(".gallery-card p.gallery-caption > a")
    linked = [card["href"].partition("#") for card in cards]
    assert [(f"book/{page}", name) for page, _, name in linked] == [
        (figure.page, figure.name) for figure in shown()
    ]


# ---- a drawing needs its data, and nothing else

REDRAW = """
import sys
from pathlib import Path
from pfcore import figures
for name in sys.argv[1:]:
    figures.save(figures.redraw(Path(f"{name}.csv")), f"{name}.png")
"""


def test_drawing_is_regenerated_from_its_csv_alone(tmp_path):
    for name in REDRAWN:
        shutil.copy(FOLDER / f"{name}.csv", tmp_path)
    bare = {key: value for key, value in os.environ.items() if not key.startswith("PFCORE_")}
    subprocess.run(
        [sys.executable, "-I", "-c", REDRAW, *REDRAWN],
        cwd=tmp_path,
        env=bare | {"JAX_PLATFORMS": "cpu"},
        check=True,
        timeout=120,
    )
    for name in REDRAWN:
        with Image.open(page_picture(name)) as one, Image.open(tmp_path / f"{name}.png") as other:
            stored, drawn = (np.asarray(image.convert("RGB"), int) for image in (one, other))
        assert stored.shape == drawn.shape, name
        assert np.mean(np.abs(stored - drawn).max(axis=-1) > 64) < SAME, name
        # Not because both are blank.
        assert np.mean(np.abs(drawn - 255).max(axis=-1) > 64) > 5 * SAME, name
