"""The browser, and the built book's address, for every test that reads it.

With `PFCORE_REQUIRE_BROWSER` set, a machine without a browser fails instead of skipping.
"""

import functools
import os
from collections.abc import Callable, Iterator
from typing import Any

import chromium
import pages
import pytest
import serving
import visits


@pytest.fixture(scope="session")
def address() -> Iterator[str]:
    """The book, served to this machine alone: `http://127.0.0.1:…/`."""
    if not (pages.HTML / "index.html").is_file():
        pytest.fail(f"no book in {pages.HTML}; make html builds it")
    server = serving.Server(pages.HTML)
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
def visit(browser: Any, address: str) -> Iterator[Callable[[str, str], visits.Visit]]:
    """`visit(page, view)` is a `Visit`; each page is opened once at each width."""
    contexts = {view: browser.new_context(**screen) for view, screen in pages.VIEWS.items()}

    @functools.cache
    def read(name: str, view: str) -> visits.Visit:
        return visits.read(contexts[view], address, name, view, thorough=view == "desktop")

    yield read
    for context in contexts.values():
        context.close()
