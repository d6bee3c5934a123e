"""The browser, and the built book's address, for every test that reads it.

With `PFCORE_REQUIRE_BROWSER` set, a machine without a browser fails instead of skipping.
"""

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import chromium
import pytest

from tests.browser import serving, tabs, visits
from tests.pages import book

# What takes longest starts first, so that no process works on one thing alone at the end: groups of
# tests before tests on their own, and of groups those whose pages are longest.
FIRST = ("pfcore", "offline")
FOLDER = book.HTML.as_uri() + "/"


def pytest_configure(config: pytest.Config) -> None:
    """pytest-xdist takes the groups in the order of the tests, not by how many these are."""
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def _work(item: pytest.Item) -> float:
    marks = [mark.args[0] for mark in item.iter_markers("xdist_group")]
    if not marks:
        return 0
    if marks[0] in FIRST:
        return float("inf")
    page = book.HTML / marks[0]
    size = page.stat().st_size if page.is_file() else 1
    return size + 1e6 * (marks[0] in visits.read_by_axe("desktop"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=_work, reverse=True)


@pytest.fixture(scope="session")
def address() -> Iterator[str]:
    """The book, served to this machine alone: `http://127.0.0.1:…/`."""
    if not (book.HTML / "index.html").is_file():
        pytest.fail(f"no book in {book.HTML}; make html builds it")
    server = serving.Server(book.HTML)
    yield server.address
    server.stop()


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A Chromium for all tests: Playwright's synchronous interface lives once in a thread."""
    path = chromium.find()
    if path is None:
        reason = (
            "no Chromium: set CHROMIUM, install Debian's package chromium, "
            "or run playwright install chromium"
        )
        if os.environ.get("PFCORE_REQUIRE_BROWSER"):
            pytest.fail(reason)
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(
            executable_path=path, args=["--disable-dev-shm-usage", "--disable-gpu"]
        )
        yield running
        running.close()


@pytest.fixture(scope="session")
def _tabs(browser: Any, address: str) -> Iterator[dict[str, tabs.Tab]]:
    found = {view: tabs.Tab(browser, address, **screen) for view, screen in tabs.VIEWS.items()}
    found["folder"] = tabs.Tab(browser, FOLDER, **tabs.VIEWS["desktop"])
    yield found
    for tab in found.values():
        tab.close()


@pytest.fixture
def opened(_tabs: dict[str, tabs.Tab], address: str) -> Callable[..., AbstractContextManager]:
    """`with opened(page, view) as (page, log)`: a page of the book, in a tab as if new."""
    return lambda name, view="desktop": _tabs[view].opened(address + name)


@pytest.fixture
def opened_from_folder(_tabs: dict[str, tabs.Tab]) -> Callable[[str], AbstractContextManager]:
    """`with opened_from_folder(page) as (page, log)`: the same without a server."""
    return lambda name: _tabs["folder"].opened(FOLDER + name)


@pytest.fixture(scope="session")
def visit(_tabs: dict[str, tabs.Tab], address: str) -> Callable[[str, str], visits.Visit]:
    """`visit(page, view)` is a `Visit`; each page is opened once at each width."""

    @functools.cache
    def read(name: str, view: str) -> visits.Visit:
        return visits.read(_tabs[view], address, name, view, thorough=view == "desktop")

    return read
