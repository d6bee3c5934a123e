"""The book as a PDF, which `make pdf` prints and checks; `PFCORE_BOOK_PDF` names another one."""

import os
import re
import unicodedata
from pathlib import Path

import pytest
from bs4 import BeautifulSoup
from pypdf import PdfReader

import pfcore
from tests.pages import book

pytestmark = pytest.mark.browser

PDF = Path(os.environ.get("PFCORE_BOOK_PDF", book.ROOT / "_build" / "pdf" / "pfcore-book.pdf"))


@pytest.fixture(scope="module")
def pdf() -> PdfReader:
    if not PDF.is_file():
        pytest.skip(f"no {PDF}: make pdf prints it")
    return PdfReader(PDF)


@pytest.fixture(scope="module")
def texts(pdf) -> list[str]:
    """The text of each sheet, in single spaces."""
    return [" ".join(sheet.extract_text().split()) for sheet in pdf.pages]


@pytest.fixture(scope="module")
def articles() -> list[tuple[str, BeautifulSoup]]:
    """Title and article of every page."""
    found = []
    for name in book.in_toc():
        text = book.text(name)
        text = text[text.index("<article") : text.index("</article>")]
        article = BeautifulSoup(text, "html.parser")
        for mark in article.select(".headerlink"):
            mark.decompose()
        found.append((" ".join(article.select_one("h1").get_text().split()), article))
    return found


def _close(text: str) -> str:
    """Without spaces, which a PDF sets as it likes, and without ligatures."""
    return re.sub(r"\s", "", unicodedata.normalize("NFKC", text))


def test_is_a_book_of_a4_sheets(pdf, articles):
    assert 3 * len(articles) < len(pdf.pages) < 12 * len(articles)
    sizes = {tuple(round(float(x)) for x in sheet.mediabox[2:]) for sheet in pdf.pages}
    assert {abs(w - 595) <= 1 and abs(h - 842) <= 1 for w, h in sizes} == {True}


def test_says_what_it_is(pdf, texts):
    assert pdf.metadata.title == "Gradient descent in continuous time"
    assert f"Version {pfcore.__version__}" in texts[0]
    assert pdf.trailer["/Root"]["/Lang"] == "en"
    assert pdf.trailer["/Root"]["/MarkInfo"]["/Marked"]


def test_contents_and_bookmarks_lead_to_every_chapter(pdf, texts, articles):
    titles = [title for title, _ in articles]
    bookmarks = [mark for mark in pdf.outline if not isinstance(mark, list)]
    assert [_close(mark.title) for mark in bookmarks] == [_close(t) for t in titles]
    contents = " ".join(texts[1:4])
    for title, mark in zip(titles, bookmarks, strict=True):
        sheet = pdf.get_destination_page_number(mark)
        assert _close(title) in _close(texts[sheet]), title
        assert f"{_close(title)}{sheet + 1}" in _close(contents), title


def test_links_within_it_lead_somewhere(pdf):
    places, lost = set(pdf.named_destinations), set()
    for sheet in pdf.pages:
        for note in sheet.get("/Annots", []):
            target = note.get_object().get("/Dest")
            if isinstance(target, str) and target not in places:
                lost.add(target)
            uri = note.get_object().get("/A", {}).get("/URI", "https://")
            if not uri.startswith(("http://", "https://", "mailto:")):
                lost.add(uri)
    assert len(places) > 100
    assert lost == set()


def test_formulas_are_set(texts):
    raw = re.compile(r"\$\$|\\\(|\\\[|\\(frac|nabla|theta|lambda|begin|label)\b")
    assert [(i + 1, raw.search(t).group()) for i, t in enumerate(texts) if raw.search(t)] == []


def test_every_figure_is_there_and_shows_something(pdf, texts, articles):
    captions = [
        " ".join(caption.get_text().split())
        for _, article in articles
        for caption in article.select("figcaption .caption-number")
    ]
    assert len(captions) > 20
    whole = _close(" ".join(texts))
    assert [c for c in captions if _close(c) not in whole] == []
    pictures = [image for sheet in pdf.pages for image in sheet.images]
    assert len(pictures) >= len(captions)
    blank = []
    for picture in pictures:
        # Transparency is kept apart from the colours.
        bands = picture.image.convert("RGB").reduce(4).getextrema()
        if all(low == high for low, high in bands):
            blank.append(picture.name)
    assert blank == []


def test_code_stays_folded_and_boxes_for_the_screen_away(texts):
    whole = " ".join(texts)
    for word in ("Hide code cell source", "Open in Colab", "Copy to clipboard"):
        assert word not in whole
