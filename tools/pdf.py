"""Print the whole book to one PDF: `python tools/pdf.py --html FOLDER --to FILE`.

The articles of the built pages are joined on a single page, after a title page and a table of
contents, and headless Chromium prints that page. It prints twice: the first pass determines the
page number of each chapter.
"""

import argparse
import base64
import html
import os
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag, urlsplit

import chromium
import pypdf
import yaml
from address import GITHUB, current
from bs4 import BeautifulSoup
from toc import Chapter, chapters

import pfcore

ROOT = Path(__file__).resolve().parents[1]
PLAYGROUND = "book/playground"
# A4 with the margins of book/_static/print.css: 174 mm at 96 dots to the inch.
WIDTH, HEIGHT = 657, 980


# ---- one page from many

# Elements that are not printed.
UNPRINTED = (
    "script, .headerlink, details.hide, .toggle-details, .rerun, .figure-files, .figure-tools, "
    ".copybtn, img.only-dark, .only-dark"
)
# Folded elements that stay closed: the parts of claims, which the page of claims lists, and the
# settings of every record, which are longer than the book.
REPEATED = ".finding-parts, .report-record"


def article(root: Path, chapter: Chapter, names: set[str]) -> Any:
    """A chapter's article, adapted to the single page.

    Args:
      root: folder of the built pages.
      chapter: the chapter.
      names: all pages of the book. Links to them become links within the single page.
    """
    path = root / f"{chapter.name}.html"
    if not path.is_file():
        raise FileNotFoundError(f"no {path}: `make html` builds the pages")
    soup = BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
    found = soup.select_one("article.bd-article")
    if found is None:
        raise ValueError(f"{path} has no article")
    for unwanted in found.select(UNPRINTED):
        unwanted.decompose()
    for fold in found.select(f"details:not({REPEATED})"):
        fold["open"] = ""
    for element in found.select("[id]"):
        element["id"] = f"{chapter.anchor}--{element['id']}"
    for link in found.select("a[href]"):
        target = _within(root, path, str(link["href"]), names)
        if target is None:
            link.unwrap()  # a link to a file, which is useless on paper
        else:
            link["href"] = target
    for image in found.select("img[src]"):
        if not urlsplit(str(image["src"])).scheme:
            image["src"] = (path.parent / unquote(str(image["src"]))).resolve().as_uri()
        image.attrs.pop("loading", None)
    found["id"] = chapter.anchor
    return found


def _within(root: Path, page: Path, href: str, names: set[str]) -> str | None:
    """The target of a link on the single page; None if there is none."""
    if urlsplit(href).scheme:
        return href
    file, anchor = urldefrag(href)
    target = (page.parent / unquote(file)).resolve() if file else page
    name = target.relative_to(root).with_suffix("").as_posix() if root in target.parents else ""
    if target.suffix != ".html" or name not in names:
        return None
    place = Chapter(name).anchor
    return f"#{place}--{anchor}" if anchor else f"#{place}"


def head(root: Path, first: Chapter, target: Path) -> str:
    """The style sheets of the book, and its MathJax."""
    path = root / f"{first.name}.html"
    soup = BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
    kept = soup.select("head link[rel=stylesheet], head script")
    lines = []
    for element in kept:
        if element.name == "script" and "mathjax" not in str(element).lower():
            continue
        for name in ("href", "src"):
            if element.has_attr(name):
                file = urlsplit(str(element[name])).path
                element[name] = Path(os.path.relpath(path.parent / file, target)).as_posix()
        lines.append(str(element))
    return "\n".join(lines)


def title_page(title: str) -> str:
    """The title page: title, version, and the paper that the book accompanies."""
    repository = current()
    return f"""<section class="print-title" aria-label="Title page">
<p class="print-name">{html.escape(title)}</p>
<p class="print-subtitle">An executable companion to <em>On a continuous time model of gradient
descent dynamics and instability in deep learning</em><br>Rosca, Wu, Qin and Dherin, TMLR 2023</p>
<p class="print-version">Version {pfcore.__version__}<br>
<a href="{GITHUB}{repository}">{GITHUB.removeprefix("https://")}{repository}</a></p>
</section>"""


def contents_page(listed: list[tuple[Chapter, str]]) -> str:
    """The table of contents: titles, and empty places for page numbers."""
    rows = []
    for chapter, name in listed:
        if chapter.part is not None:
            rows.append(f'<p class="print-part">{html.escape(chapter.part)}</p>')
        rows.append(
            f'<p class="print-depth-{chapter.depth}"><a href="#{chapter.anchor}">'
            f"{html.escape(name)}</a><span></span></p>"
        )
    heading = '<p class="print-heading">Contents</p>'
    return f'<div class="print-contents">{heading}{"".join(rows)}</div>'


# ---- print


# Formulas and tables wider than the page are scaled down, since paper does not scroll; figures of
# many panels may be taller than others.
FIT = """() => {
  for (const image of document.querySelectorAll("figure img")) {
    image.classList.toggle("print-tall", image.naturalHeight > 1.4 * image.naturalWidth);
  }
  for (const box of document.querySelectorAll("mjx-container[display='true'], table")) {
    const room = box.parentElement.clientWidth, wide = box.scrollWidth;
    if (wide > room + 1 && room > 0) {
      const size = parseFloat(getComputedStyle(box).fontSize);
      box.style.fontSize = `${size * Math.max(0.45, 0.99 * room / wide)}px`;
    }
  }
}"""


def picture_of_playground(browser: Any, root: Path) -> str:
    """A picture of the playground's initial state."""
    page = browser.new_page(viewport={"width": 900, "height": 1000}, device_scale_factor=2)
    page.goto((root / f"{PLAYGROUND}.html").as_uri(), wait_until="load")
    page.wait_for_function("window.pfcorePlayground && pfcorePlayground.frames > 0")
    drawn = base64.b64encode(page.locator("#pg-map").screenshot(type="png")).decode()
    words = " ".join(page.inner_text("#pg-words").split())
    page.close()
    return (
        f'<figure><img alt="{html.escape(words, quote=True)}" src="data:image/png;base64,{drawn}">'
        "<figcaption><p>The playground as it opens. On the page itself, the start and the learning "
        "rate are yours to move.</p></figcaption></figure>"
    )


def assemble(root: Path, target: Path, browser: Any) -> tuple[str, list[tuple[Chapter, str]]]:
    """All chapters as one document, and their titles."""
    listed = chapters(ROOT)
    names = {chapter.name for chapter in listed}
    texts, titled = [], []
    for chapter in listed:
        found = article(root, chapter, names)
        if chapter.name == PLAYGROUND:
            place = found.select_one("[id$='--playground']")
            if place is None:
                raise ValueError(f"{chapter.name} has no element #playground")
            place.replace_with(BeautifulSoup(picture_of_playground(browser, root), "html.parser"))
        heading = found.select_one("h1")
        if heading is None:
            raise ValueError(f"{chapter.name} has no title")
        titled.append((chapter, heading.get_text()))
        if chapter.part is not None:
            part = f'<p class="print-part">{html.escape(chapter.part)}</p>'
            found.insert(0, BeautifulSoup(part, "html.parser"))
        texts.append(str(found))
    return "\n".join(texts), titled


def print_book(root: Path, target: Path) -> int:
    """Print the pages below `root` to `target`; returns the number of pages."""
    from playwright.sync_api import sync_playwright

    target.parent.mkdir(parents=True, exist_ok=True)
    single = target.with_suffix(".html")
    title = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))["title"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium.find())
        body, titled = assemble(root, target.parent, browser)
        document = f"""<!DOCTYPE html>
<html lang="en" data-theme="light" data-mode="light" class="whole-book"><head>
<meta charset="utf-8"><title>{html.escape(title)}</title>
<meta name="author" content="The pfcore authors">
{head(root, titled[0][0], target.parent)}
</head><body>{title_page(title)}{contents_page(titled)}
<main class="bd-main"><div class="bd-content"><div class="bd-article-container">
{body}
</div></div></main></body></html>"""

        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        page.emulate_media(media="print", color_scheme="light")
        single.write_text(document, encoding="utf-8")
        page.goto(single.as_uri(), wait_until="load")
        page.wait_for_function("window.MathJax && MathJax.startup && MathJax.startup.promise")
        page.evaluate("() => MathJax.startup.promise.then(() => document.fonts.ready)")
        page.evaluate("() => Promise.all([...document.images].map(i => i.decode()))")
        page.evaluate(FIT)

        def to_pdf() -> None:
            page.pdf(
                path=target, prefer_css_page_size=True, print_background=True,
                outline=True, tagged=True,
            )  # fmt: skip

        to_pdf()
        sheets = beginnings(target)
        page.evaluate(
            """sheets => document.querySelectorAll(".print-contents a").forEach(a => {
              a.nextElementSibling.textContent = sheets[decodeURIComponent(a.hash.slice(1))];
            })""",
            sheets,
        )
        to_pdf()
        browser.close()
    return len(pypdf.PdfReader(target).pages)


def beginnings(path: Path) -> dict[str, int]:
    """Targets of links within a PDF: anchor -> page number, from 1."""
    reader = pypdf.PdfReader(path)
    places = {
        name.lstrip("/"): reader.get_destination_page_number(place)
        for name, place in reader.named_destinations.items()
    }
    return {name: number + 1 for name, number in places.items() if number is not None}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--html", type=Path, default=ROOT / "_build" / "html")
    parser.add_argument("--to", type=Path, default=ROOT / "_build" / "pdf" / "pfcore-book.pdf")
    args = parser.parse_args()
    sheets = print_book(args.html.resolve(), args.to.resolve())
    print(f"   {sheets} pages: {args.to}")


if __name__ == "__main__":
    main()
