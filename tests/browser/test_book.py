"""The built book, read page by page in a browser, at the width of a desktop and of a phone.

Run by `make browser` after the pages are built. Screenshots are kept in `_build/screenshots`.
`PFCORE_BOOK_HTML` names another folder of pages; with `PFCORE_REQUIRE_BROWSER` set, a machine
without a browser fails instead of skipping.
"""

import functools
import os
import re
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

import chromium
import pytest
import yaml

pytestmark = pytest.mark.browser

ROOT = Path(__file__).resolve().parents[2]
HTML = Path(os.environ.get("PFCORE_BOOK_HTML", ROOT / "_build" / "html")).resolve()
SCREENSHOTS = ROOT / "_build" / "screenshots"
VIEWS = {
    "desktop": {"viewport": {"width": 1280, "height": 900}, "device_scale_factor": 1},
    "phone": {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2},
}


def _pages() -> list[str]:
    """Every page that the table of contents names, and what Sphinx adds to them."""
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

    extra = [name for name in ("search.html", "genindex.html") if (HTML / name).is_file()]
    return [*files(yaml.safe_load(toc)), *extra]


class Visit(NamedTuple):
    """What one page did and holds at one width."""

    errors: list[str]
    requests: list[str]
    math: dict[str, Any]
    images: list[dict[str, Any]]
    links: list[str]
    overflow: dict[str, Any]


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="session")
def address() -> Iterator[str]:
    """The book, served to this machine alone."""
    if not (HTML / "index.html").is_file():
        pytest.fail(f"no book in {HTML}; make html builds it")
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(HTML)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
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


MATH = r"""() => {
  const article = document.querySelector("article") || document.body;
  const walker = document.createTreeWalker(article, NodeFilter.SHOW_TEXT);
  const outside = "pre, code, script, style, textarea, mjx-container";
  const raw = [];
  const tex = /\$\$|\\\(|\\\[|\\(frac|nabla|theta|lambda|begin)\b|\$[^$\n]*[\\_^][^$\n]*\$/;
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    if (node.parentElement.closest(outside)) continue;
    if (tex.test(node.data)) raw.push(node.data.trim().slice(0, 120));
  }
  return {
    source: article.querySelectorAll(".math").length,
    rendered: article.querySelectorAll("mjx-container").length,
    blank: [...article.querySelectorAll(".math")]
      .filter(e => !e.querySelector("mjx-container")).map(e => e.textContent.slice(0, 120)),
    failed: [...article.querySelectorAll("mjx-merror, merror, [data-mjx-error]")]
      .map(e => e.getAttribute("data-mjx-error") || e.textContent),
    raw,
  };
}"""

IMAGES = """() => [...document.images].map(i => ({
  src: i.getAttribute("src"), width: i.naturalWidth, alt: i.alt.trim(),
  decorative: i.getAttribute("aria-hidden") === "true" || i.getAttribute("role") === "presentation"
}))"""

LINKS = """() => [...document.querySelectorAll("a[href]")].map(a => a.href)"""

OVERFLOW = """() => {
  const page = document.scrollingElement, width = page.clientWidth;
  const scrolls = e => { for (e = e.parentElement; e; e = e.parentElement) {
    if (e !== document.body && e !== page
        && /auto|scroll|hidden|clip/.test(getComputedStyle(e).overflowX)) return true; }
    return false; };
  const wide = [...document.querySelectorAll("article *")]
    .filter(e => e.getBoundingClientRect().right > width + 1 && !scrolls(e))
    .slice(0, 5).map(e => e.outerHTML.slice(0, 160));
  return {page: page.scrollWidth, view: width, wide};
}"""

# Scrolls once through, so that images which load when seen have been seen.
SCROLL = """async () => {
  for (let y = 0; y < document.scrollingElement.scrollHeight; y += 600) {
    window.scrollTo(0, y); await new Promise(r => setTimeout(r, 15));
  }
  window.scrollTo(0, 0);
  await Promise.all([...document.images].map(i => i.decode().catch(() => null)));
}"""


@pytest.fixture(scope="session")
def visit(browser: Any, address: str) -> Any:
    """page, view -> Visit; each is opened once."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)

    @functools.cache
    def read(name: str, view: str) -> Visit:
        errors: list[str] = []
        requests: list[str] = []
        page = browser.new_page(**VIEWS[view])
        page.on("request", lambda request: requests.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on(
            "console",
            lambda message: errors.append(message.text) if message.type == "error" else None,
        )
        page.on("requestfailed", lambda request: errors.append(f"{request.url} failed"))
        page.on(
            "response",
            lambda r: errors.append(f"{r.url}: status {r.status}") if r.status >= 400 else None,
        )
        page.goto(address + name, wait_until="load")
        page.wait_for_function(
            "!document.querySelector('.math') || (window.MathJax && MathJax.startup "
            "&& MathJax.startup.promise)",
            timeout=20_000,
        )
        page.evaluate("async () => { if (window.MathJax) await MathJax.startup.promise; }")
        page.evaluate(SCROLL)
        page.wait_for_load_state("networkidle")
        found = Visit(
            errors=errors,
            requests=requests,
            math=page.evaluate(MATH),
            images=page.evaluate(IMAGES),
            links=page.evaluate(LINKS),
            overflow=page.evaluate(OVERFLOW),
        )
        picture = name.removesuffix(".html").replace("/", "-")
        page.screenshot(path=SCREENSHOTS / f"{picture}-{view}.png", full_page=True)
        page.close()
        return found

    return read


each_page = pytest.mark.parametrize("name", _pages())
each_view = pytest.mark.parametrize("view", list(VIEWS))


@each_page
@each_view
def test_scripts_run_without_errors(visit, name, view):
    assert visit(name, view).errors == []


@each_page
@each_view
def test_no_request_leaves_this_machine(visit, name, view):
    outside = [
        url
        for url in visit(name, view).requests
        if urlsplit(url).scheme not in ("data", "blob") and urlsplit(url).hostname != "127.0.0.1"
    ]
    assert outside == []


@each_page
@each_view
def test_mathematics_is_rendered(visit, name, view):
    math = visit(name, view).math
    assert math["failed"] == []
    assert math["raw"] == []
    assert math["blank"] == []
    assert math["rendered"] >= math["source"]


@each_page
@each_view
def test_images_load_and_have_descriptions(visit, name, view):
    images = visit(name, view).images
    assert [i["src"] for i in images if i["width"] == 0] == []
    assert [i["src"] for i in images if not i["alt"] and not i["decorative"]] == []


@each_page
@each_view
def test_page_is_no_wider_than_the_screen(visit, name, view):
    overflow = visit(name, view).overflow
    assert overflow["page"] <= overflow["view"] + 1, overflow["wide"]


@each_page
def test_links_within_the_book_lead_somewhere(visit, address, name):
    broken = []
    for link in sorted(set(visit(name, "desktop").links)):
        url, anchor = urldefrag(urljoin(address + name, link))
        if not url.startswith(address):
            continue
        target = HTML / unquote(urlsplit(url).path).lstrip("/")
        if target.is_dir():
            target /= "index.html"
        if not target.is_file():
            broken.append(link)
        elif anchor and target.suffix == ".html":
            text = target.read_text(encoding="utf-8")
            if not re.search(rf'\b(?:id|name)="{re.escape(unquote(anchor))}"', text):
                broken.append(link)
    assert broken == []


def test_search_finds_a_word(browser, address):
    page = browser.new_page(**VIEWS["desktop"])
    page.goto(address + "search.html?q=gradient", wait_until="load")
    page.wait_for_selector("#search-results li a", timeout=20_000)
    page.close()


def test_first_address_leads_to_the_book(browser, address):
    page = browser.new_page(**VIEWS["desktop"])
    page.goto(address, wait_until="load")
    page.wait_for_url(address + _pages()[0], timeout=20_000)
    page.close()
