"""Under every figure of the built book: code, data, SVG, PDF, provenance and citation."""

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
import pages
import pytest
from bs4 import BeautifulSoup
from PIL import Image
from pybtex.database import parse_string

pytestmark = pytest.mark.browser

FOLDER = pages.HTML / "figures"
PAGE = "book/stability.html"
NAME = "fig-stability-coefficient"
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
def soup(page: str) -> BeautifulSoup:
    return BeautifulSoup((pages.HTML / page).read_text(encoding="utf-8"), "html.parser")


@functools.cache
def shown() -> list[Shown]:
    return [
        Shown(page, figure["id"], figure)
        for page in pages.in_toc()
        for figure in soup(page).select("article figure[id]")
    ]


@pytest.fixture(autouse=True)
def _the_book_is_there(address):
    """Says what is missing before a test fails for want of a file."""


def page_picture(name: str) -> Path:
    (figure,) = [figure for figure in shown() if figure.name == name]
    source = figure.node.select_one("img.only-light")["src"]
    return (pages.HTML / figure.page).parent / source


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
            cell = soup(figure.page).find(id=link[1:])
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
            with Image.open((pages.HTML / figure.page).parent / image["src"]) as opened:
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
    cards = soup("book/figures.html").select(".gallery-card p.gallery-caption > a")
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


# ---- under a reader's hands


@pytest.fixture
def opened(browser, address):
    """`opened(view, **options)` is the page of `NAME` in a context of its own."""
    contexts = []

    def open_page(view="desktop", **options):
        context = browser.new_context(**pages.VIEWS[view], **options)
        contexts.append(context)
        page = context.new_page()
        page.goto(address + PAGE, wait_until="load")
        return page

    yield open_page
    for context in contexts:
        context.close()


def line(page):
    return page.locator(f"#{NAME} + .figure-files")


def test_two_clicks_copy_the_citation(opened):
    page = opened(permissions=["clipboard-read", "clipboard-write"])
    line(page).get_by_text("cite", exact=True).click()
    box = page.locator(f"#cite-{NAME}")
    texts = box.locator("pre").all_text_contents()
    assert len(texts) == 3
    for number, text in enumerate(texts):
        box.get_by_role("button").nth(number).click()
        box.get_by_text("copied.").wait_for()
        assert page.evaluate("navigator.clipboard.readText()") == text
        page.evaluate("document.querySelector('.figure-status').textContent = ''")
    file = (FOLDER / f"{NAME}.bib").read_text(encoding="utf-8")
    assert file == f"{texts[0]}\n\n{texts[1]}\n"
    assert texts[2].endswith(f"/figures/{NAME}.html")
    assert box.locator(".figure-status").get_attribute("aria-live") == "polite"


def test_without_a_clipboard_the_text_is_selected(opened):
    page = opened()
    page.evaluate(
        """() => {
          Object.defineProperty(navigator, "clipboard", {value: undefined});
          document.execCommand = () => false;
        }"""
    )
    line(page).get_by_text("cite", exact=True).click()
    box = page.locator(f"#cite-{NAME}")
    box.get_by_role("button").first.click()
    box.get_by_text("selected. Copy it with").wait_for()
    selected = page.evaluate("document.getSelection().toString()")
    assert "".join(selected.split()) == "".join(box.locator("pre").first.text_content().split())


def test_one_click_opens_the_provenance_and_escape_closes_it(opened):
    page = opened("phone")
    word = line(page).get_by_text("provenance", exact=True)
    word.click()
    table = page.locator(f"#provenance-{NAME} table")
    assert table.is_visible() and "SHA-256" in table.text_content()
    page.keyboard.press("Escape")
    table.wait_for(state="hidden")
    # The keyboard is where it was, and opens it too.
    page.keyboard.press("Enter")
    table.wait_for(state="visible")


def test_only_one_box_of_a_figure_is_open(opened):
    page = opened()
    line(page).get_by_text("provenance", exact=True).click()
    line(page).get_by_text("cite", exact=True).click()
    assert page.locator(f"#cite-{NAME}").is_visible()
    assert not page.locator(f"#provenance-{NAME}").is_visible()


def test_code_unfolds_the_cell(opened):
    page = opened()
    cell = page.locator(f"#code-{NAME}")
    assert not cell.is_visible()
    line(page).get_by_text("code", exact=True).click()
    cell.wait_for(state="visible")


def test_everything_but_copying_works_without_scripts(opened):
    page = opened(java_script_enabled=False)
    pictures = page.locator(f"#{NAME} img")
    assert [picture.is_visible() for picture in pictures.all()] == [True, False]
    line(page).get_by_text("cite", exact=True).click()
    box = page.locator(f"#cite-{NAME}")
    assert box.locator("pre").first.is_visible()
    assert not box.get_by_role("button").first.is_visible()
    line(page).get_by_text("code", exact=True).click()
    assert page.url.endswith(f"#code-{NAME}")
    page.locator(f"#code-{NAME}").wait_for(state="visible")


def test_words_can_be_touched(opened):
    page = opened("phone")
    boxes = [item.bounding_box() for item in line(page).locator(":scope > a, summary").all()]
    assert len(boxes) >= len(WORDS)
    for box in boxes[: len(WORDS)]:
        assert box["height"] >= 24 and box["width"] >= 24
    rights = [box["x"] + box["width"] for box in boxes[: len(WORDS)]]
    assert max(rights) <= 390


def test_each_theme_shows_its_picture_and_loads_no_other(browser, address):
    with pages.opened(browser, address + PAGE, **pages.VIEWS["desktop"]) as (page, log):
        pages.set_theme(page, "light")
        light, dark = page.locator(f"#{NAME} img").all()
        light.scroll_into_view_if_needed()
        page.wait_for_load_state("networkidle")
        assert light.is_visible() and not dark.is_visible()
        assert light.evaluate("e => e.naturalWidth") > 0
        assert not [url for url in log.requests if "-dark.png" in url]
        height = light.bounding_box()["height"]
        pages.set_theme(page, "dark")
        page.wait_for_function("e => e.complete && e.naturalWidth > 0", arg=dark.element_handle())
        assert dark.is_visible() and not light.is_visible()
        # Nothing jumps: a border and its rounding, at most.
        assert abs(dark.bounding_box()["height"] - height) <= 2
        # The card is of the picture's own colour, which is the playground's too.
        background = dark.evaluate("e => getComputedStyle(e).backgroundColor")
        with Image.open(FOLDER / f"{NAME}-dark.png") as picture:
            corner = picture.convert("RGB").getpixel((0, 0))
        assert background == f"rgb({corner[0]}, {corner[1]}, {corner[2]})"
        assert log.errors == []


def test_a_citation_linked_from_elsewhere_is_open(browser, address):
    with pages.opened(browser, f"{address}{PAGE}#cite-{NAME}", **pages.VIEWS["desktop"]) as (
        page,
        _,
    ):
        page.locator(f"#cite-{NAME}").wait_for(state="visible")


@pytest.mark.parametrize("root", ["http", "file"])
def test_stable_address_leads_to_the_figure(browser, address, root):
    base = address if root == "http" else pages.HTML.as_uri() + "/"
    page = browser.new_page(**pages.VIEWS["desktop"])
    page.goto(f"{base}figures/{NAME}.html", wait_until="commit")
    page.wait_for_url(f"{base}{PAGE}#{NAME}", timeout=20_000)
    page.locator(f"#{NAME} img.only-light").wait_for(state="visible")
    page.close()
