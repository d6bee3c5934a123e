"""Keeping the book on a device, and reading it there when its server is gone."""

import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urldefrag, urljoin, urlsplit

import pages
import pytest
import visits
from bs4 import BeautifulSoup
from serving import Server

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


@pytest.fixture
def server() -> Iterator[Server]:
    """The book below a folder, as the pages of a project are."""
    found = Server(pages.HTML.parent)
    yield found
    found.stop()


@pytest.fixture
def publisher(tmp_path: Path) -> Iterator[Server]:
    """The same from a copy that a test may change."""
    ignored = shutil.ignore_patterns("_sources", "*.pdf", "*.csv")
    shutil.copytree(pages.HTML, tmp_path / pages.HTML.name, ignore=ignored)
    found = Server(tmp_path)
    yield found
    found.stop()


def book(server: Server) -> str:
    """The book's address."""
    return f"{server.address}{pages.HTML.name}/"


@pytest.fixture
def device(browser: Any) -> Iterator[Any]:
    """A phone, with what its browser stores."""
    context = browser.new_context(**pages.VIEWS["phone"])
    yield context
    context.close()


def keep(page: Any) -> str:
    """Presses the button and waits; what the page then says."""
    page.get_by_role("button", name="Keep this book").click()
    page.get_by_role("button", name="Remove it").wait_for(timeout=60_000)
    return page.locator("#keep-offline").inner_text()


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


def change(folder: Path, name: str, old: str, new: str) -> None:
    """Publishes another version, in which one page differs."""
    path = folder / name
    path.write_text(path.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
    listed = json.loads((folder / LIST).read_text(encoding="utf-8"))
    content = path.read_bytes()
    listed["files"][name] = [hashlib.sha256(content).hexdigest()[:16], len(content)]
    listed["version"] = "another"
    (folder / LIST).write_text(json.dumps(listed), encoding="utf-8")


def test_all_that_pages_show_and_lead_to_is_listed():
    listed = json.loads((pages.HTML / LIST).read_text(encoding="utf-8"))["files"]
    wanted = {*pages.every(), "index.html"}
    for name in pages.every():
        page = BeautifulSoup((pages.HTML / name).read_text(encoding="utf-8"), "html.parser")
        shown = [e["src"] for e in page.select("img[src], script[src]")]
        shown += [e["href"] for e in page.select('link[rel~="stylesheet"], link[rel~="icon"]')]
        led = [e["href"] for e in page.select("a[href]")]
        shown += [link for link in led if re.search(r"\.(html|json|bib)(#|\?|$)", link)]
        for link in shown:
            path = urlsplit(urldefrag(urljoin(f"http://here/{name}", link)).url)
            if path.netloc == "here":
                wanted.add(path.path.lstrip("/"))
    for name in [name for name in wanted if name.endswith(".css")]:
        style = (pages.HTML / name).read_text(encoding="utf-8")
        for link in re.findall(r"url\([\"']?([^\"')]+\.woff2)", style):
            wanted.add(urlsplit(urljoin(f"http://here/{name}", link)).path.lstrip("/"))
    # The first is written after the list, and is kept as it is found.
    assert sorted(wanted - listed.keys() - {"index.html"}) == []
    assert len(wanted) > 200 and sum(size for _, size in listed.values()) < 30e6


def test_nothing_is_kept_that_was_not_asked_for(device, address):
    with pages.opened(device, address + READING) as (page, log):
        page.get_by_role("button", name="Keep this book").wait_for()
        assert workers(page) == 0
        assert stored(page) == [] and log.errors == []


def test_the_book_is_read_and_played_without_its_server(device, server):
    with pages.opened(device, book(server) + READING) as (page, log):
        assert "is on this device" in keep(page)
        assert log.errors == []
    server.stop()
    try:
        with pages.opened(device, book(server)) as (page, _):
            page.wait_for_url(f"**/{pages.in_toc()[0]}")
        for name in READ:
            with pages.opened(device, book(server) + name) as (page, _):
                pages.typeset(page)
                assert page.locator("article h1").is_visible(), name
                math = page.evaluate(visits.MATH)
                assert math["rendered"] == math["source"] and not math["failed"], name
                for theme in ("light", "dark"):
                    pages.set_theme(page, theme)
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
        with pages.opened(device, book(server) + "search.html?q=sharpness") as (page, _):
            page.locator("#search-results li a").first.wait_for(timeout=20_000)
        with pages.opened(device, book(server) + "figures/fig-alpha.html") as (page, _):
            page.wait_for_url("**/book/principal_flow.html#fig-alpha")
    finally:
        server.start()


def test_the_copy_follows_the_book(device, publisher):
    """Any visit with a network brings it up to date, and fetches only what has changed."""
    folder = publisher.folder / pages.HTML.name
    with pages.opened(device, book(publisher) + READING) as (page, _):
        keep(page)
        before = stored(page)
    change(folder, READING, "How to read this book<a", "Another title<a")
    publisher.asked.clear()
    with pages.opened(device, book(publisher) + "book/claims.html") as (page, _):
        for _ in range(240):
            page.wait_for_timeout(250)
            names = page.evaluate("caches.keys()")
            if len(names) == 1 and names[0].endswith("another"):
                break
        assert sorted(stored(page)) == sorted(before)
    asked = {path.removeprefix(f"/{pages.HTML.name}/") for path in publisher.asked}
    assert READING in asked and len(asked) < 100, "what had not changed was fetched again"
    publisher.stop()
    try:
        with pages.opened(device, book(publisher) + READING) as (page, _):
            assert page.locator("article h1").inner_text().startswith("Another title")
    finally:
        publisher.start()


def test_what_was_broken_off_goes_on_and_what_is_damaged_is_not_kept(device, publisher):
    path = publisher.folder / pages.HTML.name / READING
    whole = path.read_bytes()
    with pages.opened(device, book(publisher) + READING) as (page, _):
        button = page.get_by_role("button", name="Keep this book")
        button.wait_for()
        path.write_bytes(whole[:-10])
        button.click()
        again = page.get_by_role("button", name="Try again")
        again.wait_for(timeout=60_000)
        assert "has just changed" in page.locator("#keep-offline").inner_text()
        assert not any(url.endswith(READING) for url in stored(page))
        path.write_bytes(whole)
        publisher.asked.clear()
        again.click()
        page.get_by_role("button", name="Remove it").wait_for(timeout=60_000)
        listed = json.loads((path.parents[1] / LIST).read_text(encoding="utf-8"))["files"]
        wanted = {book(publisher) + name for name in (*listed, "index.html", LIST)}
        assert set(stored(page)) == wanted
        assert 0 < len(publisher.asked) < len(listed)


def test_what_is_removed_is_gone(device, server):
    with pages.opened(device, book(server) + READING) as (page, _):
        keep(page)
        page.get_by_role("button", name="Remove it").click()
        page.get_by_role("button", name="Keep this book").wait_for()
        assert page.evaluate("caches.keys()") == [] and workers(page) == 0


def test_a_copy_from_a_folder_says_that_it_needs_no_network(browser):
    with pages.opened(browser, (pages.HTML / READING).as_uri()) as (page, log):
        assert "needs no network" in page.locator("#keep-offline").inner_text()
        assert log.errors == []
