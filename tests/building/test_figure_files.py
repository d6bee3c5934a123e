"""Texts about a figure, and the drawings of the build."""

import hashlib
import html
import json
import os
import re
import time
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image
from pybtex.database import parse_string

from _ext.figures import drawings, texts
from pfcore import figures

ROOT = Path(__file__).resolve().parents[2]

PAPER = "@article{paper,\n  title = {On {GD}},\n  author = {A, B},\n  year = {2023},\n}\n"
BOOK = texts.Book(
    title="Descent & flow",
    author="{The authors}",
    year="2026",
    version="1.2.3",
    licence="Apache-2.0",
    address="https://example.org/book/",
    repository="https://example.org/repository",
    paper=PAPER,
)
CARRIED = {
    "versions": {"pfcore": "1.2.3", "jax": "0.10.2"},
    "device": "2 CPU cores",
    "commit": "0123456789abcdef0123456789abcdef01234567+",
    "profile": "quick",
    "jax_enable_x64": True,
    "sources": [
        {
            "kind": "stored record",
            "experiment": "edge-of-stability",
            "config": {"learning_rate": 0.2, "seed": 7, "problem": {"data": "digits"}},
            "device": "2 CPU cores",
            "commit": "89abcdef0123456789abcdef0123456789abcdef",
            "wall_time_s": 12.34,
            "data": {"source": "digits <of> a library", "sha256": "ab" * 32},
        }
    ],
}


def figure(name="fig-one", **changed):
    found = texts.Figure(
        name=name,
        page="book/stability",
        page_title="Stability & more",
        source="book/stability.ipynb",
        caption=r"Loss at $h\lambda_0 = 2.1$, 50% above_all. What follows is no title.",
        alt="A curve.",
        image="picture.png",
        size=(896, 560),
        code="draw()\n",
        csv_sha256="cd" * 32,
        provenance=CARRIED,
    )
    return found._replace(**changed)


# ---- words


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("At $h = 0.5$ all agree. Elsewhere, none do.", "At $h = 0.5$ all agree."),
        ("One sentence alone", "One sentence alone"),
        ("With $a. B$ inside. Then $c$.", "With $a. B$ inside."),
        ("A formula begins the next. $h$ is small.", "A formula begins the next."),
        ("MLP with 27,710 parameters. Top: eigenvalues.", "MLP with 27,710 parameters."),
        (
            "At 0.5 of the way, e.g. here, nothing ends.",
            "At 0.5 of the way, e.g. here, nothing ends.",
        ),
    ],
)
def test_first_sentence(text, first):
    assert texts.first_sentence(text) == first


# ---- citing


def test_bibtex_is_read_as_it_was_meant():
    found = figure()
    entries = parse_string(texts.bibtex_file(found, BOOK), "bibtex").entries
    assert list(entries) == ["pfcore-fig-one", "paper"]
    entry = entries["pfcore-fig-one"]
    assert entry.type == "misc"
    assert entry.fields["title"] == r"{Loss at $h\lambda_0 = 2.1$, 50\% above\_all}"
    assert entry.fields["url"] == "https://example.org/book/figures/fig-one.html"
    assert entry.fields["version"] == "1.2.3" and entry.fields["year"] == "2026"
    assert r"\emph{Descent \& flow}" in entry.fields["howpublished"]
    assert [str(person) for person in entry.persons["author"]] == ["{The authors}"]


def captions():
    """Name and caption of every figure of every notebook."""
    for path in sorted((ROOT / "book").glob("*.ipynb")):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            found = cell["metadata"].get("mystnb", {}).get("figure", {})
            if "name" in found:
                yield found["name"], found["caption"]


def test_every_figure_of_the_book_has_a_citation_of_its_own():
    named = list(captions())
    assert len(named) > 50
    whole = "\n".join(
        texts.figure_bibtex(figure(name, caption=caption), BOOK) for name, caption in named
    )
    # Raises where braces are not closed or a key comes twice.
    entries = parse_string(whole, "bibtex").entries
    assert len(entries) == len(named)
    for entry in entries.values():
        plain = re.sub(r"\$[^$]*\$", "", entry.fields["title"])
        assert not re.search(r"(?<!\\)[&%#_]", plain), entry.fields["title"]
        assert entry.fields["title"].count("$") % 2 == 0


def test_entry_of_a_bibliography():
    bibliography = "@book{other,\n  title = {Paper},\n}\n\n" + PAPER + "\n@misc{last, year = {1}}\n"
    assert texts.bibtex_entry(bibliography, "paper") == PAPER
    with pytest.raises(ValueError, match="'pap'"):
        texts.bibtex_entry(bibliography, "pap")
    with pytest.raises(ValueError, match="not closed"):
        texts.bibtex_entry("@article{paper,\n  title = {a},\n", "paper")


def test_the_papers_entry_is_in_the_books_bibliography():
    entry = texts.bibtex_entry(
        (ROOT / "book" / "references.bib").read_text(encoding="utf-8"), "rosca2023continuous"
    )
    read = parse_string(entry, "bibtex").entries["rosca2023continuous"]
    assert read.fields["year"] == "2023" and len(read.persons["author"]) == 4


# ---- provenance


def test_provenance_has_all_that_is_known_and_all_that_the_picture_carries():
    found = figure()
    told = json.loads(texts.provenance_json(found, BOOK))
    assert told["figure"] == "fig-one" and told["source"] == "book/stability.ipynb"
    assert told["address"] == "https://example.org/book/figures/fig-one.html"
    assert told["page_address"] == "https://example.org/book/book/stability.html#fig-one"
    assert told["source_address"].endswith("/blob/v1.2.3/book/stability.ipynb")
    assert told["code"] == "draw()\n"
    assert told["code_sha256"] == hashlib.sha256(b"draw()\n").hexdigest()
    assert told["data"] == {"file": "fig-one.csv", "sha256": "cd" * 32}
    assert told["pfcore"] == "1.2.3" and told["licence"] == "Apache-2.0"
    assert {key: told[key] for key in CARRIED} == CARRIED
    assert texts.provenance_json(found, BOOK) == texts.provenance_json(figure(), BOOK)


class Shape(HTMLParser):
    """Reads HTML, and that every element is closed in its turn."""

    EMPTY = ("meta", "link", "img", "br")

    def __init__(self, source):
        super().__init__()
        self.open, self.text, self.tags = [], [], []
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    def found(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


def leaves(value):
    if isinstance(value, dict):
        for item in value.values():
            yield from leaves(item)
    elif isinstance(value, list):
        for item in value:
            yield from leaves(item)
    else:
        yield value


@pytest.mark.parametrize("num_sources", [0, 1, 6])
def test_provenance_box_shows_every_value(num_sources):
    carried = CARRIED | {"sources": CARRIED["sources"] * num_sources}
    shape = Shape(texts.provenance_box(figure(provenance=carried), BOOK, "../figures"))
    shown = "".join(shape.text)
    for value in leaves(carried):
        word = {True: "yes", 12.34: "12.3 s"}.get(value, str(value))
        # Commits are shown in short.
        assert (word[:12] if len(word) in (40, 41) else word) in shown
    assert ", with changes" in shown
    assert "cd" * 32 in shown and hashlib.sha256(b"draw()\n").hexdigest() in shown
    # A long list is folded.
    assert len(shape.found("details")) == (6 if num_sources == 6 else 0)
    assert {"href": "../figures/fig-one.json"} in shape.found("a")


# ---- pages


def test_redirect_leads_to_the_anchor_and_names_the_page():
    shape = Shape(texts.redirect_page(figure(), BOOK))
    assert {"href": "../book/stability.html#fig-one"} in shape.found("a")
    (refresh,) = [m for m in shape.found("meta") if m.get("http-equiv") == "refresh"]
    assert refresh["content"] == "0; url=../book/stability.html#fig-one"
    assert shape.found("link") == [
        {"rel": "canonical", "href": "https://example.org/book/book/stability.html"}
    ]
    assert "Stability & more" in shape.text


def test_line_has_the_words_in_order_and_both_boxes():
    line = texts.files_line(figure(), BOOK, "../figures")
    shape = Shape(line)
    links = {a["aria-label"]: a["href"] for a in shape.found("a") if "aria-label" in a}
    assert list(links.values()) == ["#code-fig-one"] + [
        f"../figures/fig-one.{ending}" for ending in ("csv", "svg", "pdf")
    ]
    words = ["code", "data", "SVG", "PDF", "provenance", "cite"]
    assert re.findall(r"(?:aria-label=[^>]*|<summary)>(\w+)<", line) == words
    # Each link's name begins with the word that is seen.
    assert [label.split()[0] for label in links] == words[:4]
    assert "".join(shape.text).count(texts.figure_bibtex(figure(), BOOK).rstrip()) == 1
    assert PAPER.rstrip() in "".join(shape.text)


def test_code_of_a_script_is_where_it_was_in_this_version():
    line = texts.files_line(figure(source="tools/draw.py"), BOOK, "../figures")
    assert 'href="https://example.org/repository/blob/v1.2.3/tools/draw.py"' in line


def test_nothing_in_a_caption_becomes_markup():
    bad = figure(caption='<script>"&</script>. Next.', page_title="<b>", source="a<b>.py", alt="<")
    for written in (
        texts.files_line(bad, BOOK, "../figures"),
        texts.redirect_page(bad, BOOK),
        texts.card_line(bad, "page.html", "../figures"),
    ):
        assert "<script" not in written and "<b>" not in written
        Shape(written)
    assert html.escape(bad.title) in texts.redirect_page(bad, BOOK)


# ---- drawing


@pytest.fixture
def stored(tmp_path):
    """A picture that carries its data, as a notebook stores it."""
    with mpl.rc_context():
        figures.use_style()
        drawn, ax = plt.subplots(figsize=(3, 2))
        ax.plot(np.arange(5), np.arange(5) ** 2, color=figures.COLORS["ngf"], label="NGF")
        ax.set(xlabel="step", ylabel="loss")
        path = tmp_path / "picture.png"
        path.write_bytes(figures.png(drawn))
        plt.close(drawn)
    return path


def test_drawing_writes_the_data_and_what_is_drawn_from_them(stored, tmp_path):
    place = tmp_path / "place"
    drawings.draw(stored, place)
    assert (place / "figure.csv").read_bytes().decode() == figures.contents(stored).csv
    assert ElementTree.parse(place / "figure.svg").getroot().tag.endswith("svg")
    assert (place / "figure.pdf").read_bytes().startswith(b"%PDF")
    with Image.open(stored) as light, Image.open(place / "figure-dark.png") as dark:
        assert light.size == dark.size
        assert dark.convert("RGB").getpixel((0, 0)) == tuple(
            bytes.fromhex(figures.BACKGROUND["dark"][1:])
        )
    assert json.loads((place / "drawn.json").read_text())["difference"] < 0.002


def test_drawing_twice_gives_the_same_bytes(stored, tmp_path):
    for name in ("one", "other"):
        drawings.draw(stored, tmp_path / name)
    written = [
        {p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("one", "other")
    ]
    assert written[0] == written[1]
    assert len(written[0]) == len(drawings.WRITTEN) + 1


def test_a_picture_without_data_is_refused_and_leaves_nothing(tmp_path):
    plain = tmp_path / "plain.png"
    Image.new("RGB", (4, 4)).save(plain)
    with pytest.raises(ValueError, match="no data"):
        drawings.draw(plain, tmp_path / "place")
    assert [path.name for path in tmp_path.iterdir()] == ["plain.png"]


def test_drawings_are_kept_until_no_build_has_used_them_for_a_week(stored, tmp_path, monkeypatch):
    kept = tmp_path / "kept"
    first = drawings.Drawings(kept)
    place = first._place(stored)
    drawings.draw(stored, place)
    for name in ("of yesterday", "of last month"):
        drawings.draw(stored, kept / name)
    now = time.time()
    for old, days in ((place, 30), (kept / "of yesterday", 1), (kept / "of last month", 30)):
        os.utime(old, (now - 86_400 * days,) * 2)

    def no_pool(*arguments, **options):
        raise AssertionError("drawn again")

    monkeypatch.setattr(drawings, "ProcessPoolExecutor", no_pool)
    again = drawings.Drawings(kept)
    again.begin(stored)
    assert again.result(stored).folder == place
    again.close()
    assert {path.name for path in kept.iterdir()} == {place.name, "of yesterday"}

    monkeypatch.setattr(drawings, "drawing_version", lambda: "another")
    with pytest.raises(AssertionError, match="drawn again"):
        drawings.Drawings(kept).begin(stored)
