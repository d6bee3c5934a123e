"""The built book's pages, the screens they are read on, and opening one with what it does noted.

`PFCORE_BOOK_HTML` names another folder of pages than `_build/html`.
"""

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
HTML = Path(os.environ.get("PFCORE_BOOK_HTML", ROOT / "_build" / "html")).resolve()
VIEWS = {
    "desktop": {"viewport": {"width": 1280, "height": 900}, "device_scale_factor": 1},
    "phone": {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2},
}


def in_toc() -> list[str]:
    """Every page that the table of contents names, in its order: `book/intro.html`, …"""
    toc = (ROOT / "_toc.yml").read_text(encoding="utf-8")

    def files(node: Any) -> Iterator[str]:
        if isinstance(node, dict):
            for key, value in node.items():
                if key in ("root", "file"):
                    yield str(Path(value).with_suffix(".html"))
                else:
                    yield from files(value)
        elif isinstance(node, list):
            for item in node:
                yield from files(item)

    return list(files(yaml.safe_load(toc)))


def every() -> list[str]:
    """`in_toc()`, and the pages that Sphinx adds to them."""
    return [*in_toc(), *(n for n in ("search.html", "genindex.html") if (HTML / n).is_file())]


class Log(NamedTuple):
    """What a page did while it was open."""

    errors: list[str]
    requests: list[str]

    @property
    def outside(self) -> list[str]:
        """The requests that went to another machine."""
        return [url for url in self.requests if not is_here(url)]


def is_here(url: str) -> bool:
    """Whether a request for `url` is answered by this machine."""
    return urlsplit(url).scheme in ("data", "blob", "file") or (
        urlsplit(url).hostname == "127.0.0.1"
    )


@contextlib.contextmanager
def opened(browser: Any, url: str, **view: Any) -> Iterator[tuple[Any, Log]]:
    """`url` in a page of its own that is closed afterwards, and a log that fills meanwhile.

    Args:
      browser: a Playwright browser, or a context of one, whose pages share what it has cached.
      url: the address.
      **view: the screen, as in `VIEWS`; none for a context.
    """
    log = Log([], [])

    def failed(request: Any) -> None:
        if request.failure != "net::ERR_ABORTED":  # the page was left before it came
            log.errors.append(f"{request.url} failed: {request.failure}")

    page = browser.new_page(**view)
    page.on("request", lambda request: log.requests.append(request.url))
    page.on("pageerror", lambda error: log.errors.append(str(error)))
    page.on("console", lambda m: log.errors.append(m.text) if m.type == "error" else None)
    page.on("requestfailed", failed)
    page.on(
        "response",
        lambda r: log.errors.append(f"{r.url}: status {r.status}") if r.status >= 400 else None,
    )
    try:
        page.goto(url, wait_until="load")
        yield page, log
    finally:
        page.close()


def typeset(page: Any) -> None:
    """Waits until the page's mathematics has been rendered."""
    page.wait_for_function(
        "!document.querySelector('.math') || (window.MathJax && MathJax.startup "
        "&& MathJax.startup.promise)",
        timeout=20_000,
    )
    page.evaluate("async () => { if (window.MathJax) await MathJax.startup.promise; }")


def set_theme(page: Any, theme: str) -> None:
    """Shows the page light or dark, as its switch does."""
    page.evaluate(
        "t => Object.assign(document.documentElement.dataset, {theme: t, mode: t})", theme
    )


def each(names: Iterable[str] | None = None) -> list[Any]:
    """Parameters for tests over pages: those of one page run in one process and share its visit."""
    return [
        pytest.param(name, marks=pytest.mark.xdist_group(name))
        for name in (every() if names is None else names)
    ]


# One page of each kind. axe-core takes seconds for a page, so `make test` has it read these, and
# `make access` all of them.
KINDS = [
    "book/intro.html",
    "book/reading.html",
    "book/principal_flow.html",
    "book/edge_of_stability.html",
    "book/playground.html",
    "book/your_own_loop.html",
    "book/claims.html",
    "book/report.html",
    "book/figures.html",
    "book/symbols.html",
    "book/api/flows.html",
    "search.html",
]


def read_by_axe() -> list[str]:
    """The pages whose accessibility is checked in this run."""
    return every() if os.environ.get("PFCORE_EVERY_PAGE") else KINDS
