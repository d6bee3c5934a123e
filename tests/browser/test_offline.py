"""Keeping the book on a device, and reading it there when its server is gone."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser import tabs, visits
from tests.browser.serving import Server
from tests.pages import book

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("offline")]

READING = "book/reading.html"
LIST = "offline.json"
# Formulas, pictures from notebooks and from elsewhere, tables, and something to play with.
READ = (
    "book/intro.html",
    "book/principal_flow.html",
    "book/playground.html",
    "book/figures.html",
    "book/symbols.html",
)


@pytest.fixture(scope="module")
def publisher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A copy of the book that tests may change, below a folder, as the pages of a project are."""
    folder = tmp_path_factory.mktemp("publisher")
    ignored = shutil.ignore_patterns("_sources", "*.pdf", "*.csv")
    shutil.copytree(book.HTML, folder / book.HTML.name, ignore=ignored)
    found = Server(folder)
    yield found
    found.stop()


def home(server: Server) -> str:
    """The book's address."""
    return f"{server.address}{book.HTML.name}/"


def phone(browser: Any) -> Iterator[Any]:
    """A phone, with what its browser stores."""
    context = browser.new_context(**tabs.VIEWS["phone"])
    yield context
    context.close()


device = pytest.fixture(phone)
# One that tests share: what one of them has kept, the next need not keep again.
reader = pytest.fixture(scope="module")(phone)


def keep(page: Any) -> str:
    """Press the button, unless it was pressed, and wait; returns the text of the page."""
    page.locator("#keep-offline button").wait_for()
    button = page.get_by_role("button", name="Keep this book")
    if button.is_visible():
        button.click()
    page.get_by_role("button", name="Remove it").wait_for(timeout=60_000)
    return page.locator("#keep-offline").inner_text()


def remove(page: Any) -> None:
    """Remove the saved copy, if there is one."""
    page.locator("#keep-offline button").wait_for()
    button = page.get_by_role("button", name="Remove it")
    if button.is_visible():
        button.click()
    page.get_by_role("button", name="Keep this book").wait_for()


def workers(page: Any) -> int:
    return page.evaluate("async () => (await navigator.serviceWorker.getRegistrations()).length")


def stored(page: Any) -> list[str]:
    """The addresses that are kept."""
    return page.evaluate("""async () => {
      const found = [];
      for (const name of await caches.keys())
        for (const request of await (await caches.open(name)).keys()) found.push(request.url);
      return found;
    }""")


# Resolves once another copy has taken the place of the first.
REPLACED = """async () => {
  for (const late = Date.now() + 60_000; Date.now() < late;) {
    const names = await caches.keys();
    if (names.length === 1 && names[0].endsWith("another")) return;
    await new Promise(next => setTimeout(next, 50));
  }
  throw new Error("the old copy is still there");
}"""


def change(folder: Path, name: str, old: str, new: str) -> None:
    """Publishes another version, in which one page differs."""
    path = folder / name
    path.write_text(path.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
    listed = json.loads((folder / LIST).read_text(encoding="utf-8"))
    content = path.read_bytes()
    listed["files"][name] = [hashlib.sha256(content).hexdigest()[:16], len(content)]
    listed["version"] = "another"
    (folder / LIST).write_text(json.dumps(listed), encoding="utf-8")


def test_nothing_is_kept_that_was_not_asked_for(device, address):
    with tabs.opened(device, address + READING) as (page, log):
        page.get_by_role("button", name="Keep this book").wait_for()
        assert workers(page) == 0
        assert stored(page) == [] and log.errors == []


def test_what_was_broken_off_goes_on_and_what_is_damaged_is_not_kept(reader, publisher):
    path = publisher.folder / book.HTML.name / READING
    whole = path.read_bytes()
    with tabs.opened(reader, home(publisher) + READING) as (page, _):
        remove(page)
        path.write_bytes(whole[:-10])
        page.get_by_role("button", name="Keep this book").click()
        again = page.get_by_role("button", name="Try again")
        again.wait_for(timeout=60_000)
        assert "has just changed" in page.locator("#keep-offline").inner_text()
        assert not any(url.endswith(READING) for url in stored(page))
        path.write_bytes(whole)
        publisher.asked.clear()
        again.click()
        page.get_by_role("button", name="Remove it").wait_for(timeout=60_000)
        listed = json.loads((path.parents[1] / LIST).read_text(encoding="utf-8"))["files"]
        wanted = {home(publisher) + name for name in (*listed, "index.html", LIST)}
        assert set(stored(page)) == wanted
        assert 0 < len(publisher.asked) < len(listed)


def test_the_book_is_read_and_played_without_its_server(reader, publisher):
    with tabs.opened(reader, home(publisher) + READING) as (page, log):
        assert "is saved on this device" in keep(page)
        assert log.errors == []
    publisher.stop()
    try:
        with tabs.opened(reader, home(publisher)) as (page, _):
            page.wait_for_url(f"**/{book.in_toc()[0]}")
            for name in READ:
                page.goto(home(publisher) + name)
                tabs.typeset(page)
                assert page.locator("article h1").is_visible(), name
                math = page.evaluate(visits.MATH)
                assert math["rendered"] == math["source"] and not math["failed"], name
                for theme in ("light", "dark"):
                    tabs.set_theme(page, theme)
                    page.evaluate(visits.SCROLL)
                    images = page.evaluate(visits.IMAGES)
                    assert [i["src"] for i in images if not i["width"]] == [], (name, theme)
                if name == "book/playground.html":
                    drawn = page.locator("article canvas, article svg").first
                    before = drawn.screenshot()
                    slider = page.locator('article input[type="range"]').first
                    for _ in range(20):
                        slider.press("ArrowRight")
                    assert drawn.screenshot() != before
            page.goto(home(publisher) + "search.html?q=sharpness")
            page.locator("#search-results li a").first.wait_for(timeout=20_000)
            page.goto(home(publisher) + "figures/fig-alpha.html")
            page.wait_for_url("**/book/principal_flow.html#fig-alpha")
    finally:
        publisher.start()


def test_the_copy_follows_the_book(reader, publisher):
    """Any online visit updates the copy, and fetches only changed files."""
    folder = publisher.folder / book.HTML.name
    with tabs.opened(reader, home(publisher) + READING) as (page, _):
        keep(page)
        before = stored(page)
    change(folder, READING, "How to read this book<a", "Another title<a")
    publisher.asked.clear()
    with tabs.opened(reader, home(publisher) + "book/claims.html") as (page, _):
        page.evaluate(REPLACED)
        assert sorted(stored(page)) == sorted(before)
    asked = {path.removeprefix(f"/{book.HTML.name}/") for path in publisher.asked}
    assert READING in asked and len(asked) < 100, "what had not changed was fetched again"
    publisher.stop()
    try:
        with tabs.opened(reader, home(publisher) + READING) as (page, _):
            assert page.locator("article h1").inner_text().startswith("Another title")
    finally:
        publisher.start()


def test_what_is_removed_is_gone(reader, publisher):
    with tabs.opened(reader, home(publisher) + READING) as (page, _):
        keep(page)
        page.get_by_role("button", name="Remove it").click()
        page.get_by_role("button", name="Keep this book").wait_for()
        assert page.evaluate("caches.keys()") == [] and workers(page) == 0


def test_a_copy_from_a_folder_says_that_it_needs_no_network(opened_from_folder):
    with opened_from_folder(READING) as (page, log):
        assert "needs no network" in page.locator("#keep-offline").inner_text()
        assert log.errors == []
