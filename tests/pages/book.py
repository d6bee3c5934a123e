"""The built book: its folder, its pages and their contents.

Each page is read once and parsed once in a process. `PFCORE_BOOK_HTML` names another folder of
pages than `_build/html`.
"""

import functools
import html
import os
import re
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

from bs4 import BeautifulSoup
from toc import chapters

ROOT = Path(__file__).resolve().parents[2]
HTML = Path(os.environ.get("PFCORE_BOOK_HTML", ROOT / "_build" / "html")).resolve()


NUMBERED = re.compile(
    r'<div class="[^"]*numbered-equation[^"]*" id="(equation-[^"]+)">\s*(.*?)</div>', re.S
)


@functools.cache
def in_toc() -> tuple[str, ...]:
    """Every page that the table of contents names, in its order: `book/intro.html`, …"""
    return tuple(f"{chapter.name}.html" for chapter in chapters(ROOT))


def every() -> list[str]:
    """`in_toc()`, and the pages that Sphinx adds to them."""
    return [*in_toc(), *(n for n in ("search.html", "genindex.html") if (HTML / n).is_file())]


@functools.cache
def text(name: str) -> str:
    """The page as it was written."""
    return (HTML / name).read_text(encoding="utf-8")


@functools.cache
def soup(name: str) -> BeautifulSoup:
    """The page, parsed; tests share it, and must not change it."""
    return BeautifulSoup(text(name), "html.parser")


@functools.cache
def anchors(name: str) -> frozenset[str]:
    """Fragments that links to the page may have after `#`."""
    return frozenset(map(html.unescape, re.findall(r'\s(?:id|name)="([^"]*)"', text(name))))


def links(name: str) -> list[str]:
    """Targets of the page's links, as written."""
    return [tag["href"] for tag in soup(name).find_all("a", href=True)]


def target(name: str, link: str) -> tuple[str, str]:
    """The file of the book that a link on page `name` leads to, and the anchor in it."""
    url, anchor = urldefrag(link)
    path = (HTML / name).parent / unquote(url) if url else HTML / name
    return path.resolve().relative_to(HTML).as_posix(), unquote(anchor)


def broken(name: str, links: Iterable[str], address: str = "http://book/") -> list[str]:
    """Those of the links on page `name` that lead into the book and to nothing there.

    Args:
      name: the page.
      links: relative, or absolute as a browser gives them.
      address: where the book is served.
    """
    found = []
    for link in sorted(set(links)):
        url, anchor = urldefrag(urljoin(address + name, link))
        if not url.startswith(address):
            continue
        path = HTML / unquote(urlsplit(url).path).lstrip("/")
        if path.is_dir():
            path /= "index.html"
        inside = path.relative_to(HTML).as_posix()
        if not path.is_file() or (
            anchor and path.suffix == ".html" and unquote(anchor) not in anchors(inside)
        ):
            found.append(link)
    return found


@functools.cache
def numbered_equations(name: str) -> list[tuple[str, str]]:
    """The page's numbered equations: anchors and contents."""
    return NUMBERED.findall(text(name))


def with_numbered_equations() -> list[str]:
    """The pages that have some; none where no book has been built."""
    return [name for name in in_toc() if (HTML / name).is_file() and numbered_equations(name)]
