"""Finding one's way: list of pages, previous and next, search, themes, launch buttons, folders."""

import functools
import re

import pages
import pytest
import visits
from bs4 import BeautifulSoup

pytestmark = pytest.mark.browser

DESKTOP, PHONE = pages.VIEWS["desktop"], pages.VIEWS["phone"]
TOC = pages.in_toc()


@functools.cache
def _around(name: str) -> BeautifulSoup:
    """What the page has around its article."""
    text = (pages.HTML / name).read_text(encoding="utf-8")
    return BeautifulSoup(re.sub(r"<article.*</article>", "", text, flags=re.S), "html.parser")


def _target(name: str, href: str) -> str:
    """The page that a link on page `name` leads to."""
    path = (pages.HTML / name).parent / href.partition("#")[0]
    return name if href.startswith("#") else path.resolve().relative_to(pages.HTML).as_posix()


@pytest.mark.parametrize("name", TOC)
def test_every_page_lists_all_pages_and_its_neighbours(name):
    soup, here = _around(name), TOC.index(name)
    listed = [_target(name, a["href"]) for a in soup.select("nav.bd-links a[href]")]
    assert listed == TOC
    before, after = TOC[max(here - 1, 0) : here], TOC[here + 1 : here + 2]
    assert [_target(name, a["href"]) for a in soup.select("a.left-prev")] == before
    assert [_target(name, a["href"]) for a in soup.select("a.right-next")] == after
    current = soup.select("nav.bd-links a.current")
    assert here == 0 or name in [_target(name, a["href"]) for a in current]


@pytest.mark.parametrize(
    "name", [n for n in TOC if (pages.ROOT / n).with_suffix(".ipynb").exists()]
)
def test_launch_buttons_lead_to_the_notebook(name):
    notebook = re.escape(str(name).replace(".html", ".ipynb"))
    menu = [a["href"] for a in _around(name).select(".dropdown-launch-buttons a[href]")]
    repository = r"principal-flow/pfcore"
    colab = rf"https://colab\.research\.google\.com/github/{repository}/blob/[^/]+/{notebook}"
    binder = rf"https://mybinder\.org/v2/gh/{repository}/[^/?]+\?urlpath=[^?]*{notebook}"
    for wanted in (colab, binder):
        assert any(re.fullmatch(wanted, link) for link in menu), (wanted, menu)


def test_links_to_elsewhere_are_well_formed():
    links = {
        (name, link)
        for name in pages.every()
        for link in re.findall(
            r'<a\s[^>]*href="(\w+:[^"]*)"', (pages.HTML / name).read_text(encoding="utf-8")
        )
    }
    assert len(links) > len(TOC)
    form = r"https?://[\w.-]+\.[a-z]+(:\d+)?(/\S*)?|mailto:\S+@\S+|data:text/\S+"
    assert [link for link in links if not re.fullmatch(form, link[1])] == []


def test_next_and_previous_turn_pages(browser, address):
    with pages.opened(browser, address + TOC[0], **DESKTOP) as (page, log):
        page.click("a.right-next")
        page.wait_for_url(address + TOC[1])
        page.click("a.left-prev")
        page.wait_for_url(address + TOC[0])
        assert log.errors == []


def test_list_of_pages_opens_and_closes_on_a_phone(browser, address):
    inside = """() => {
      const box = document.querySelector(".bd-sidebar-primary").getBoundingClientRect();
      return box.right > 50 && getComputedStyle(
        document.querySelector(".bd-sidebar-primary")).visibility === "visible";
    }"""
    with pages.opened(browser, address + TOC[1], **PHONE) as (page, log):
        assert not page.evaluate(inside)
        page.click("button.primary-toggle")
        page.wait_for_function(inside)
        # Beside it, the page.
        page.mouse.click(PHONE["viewport"]["width"] - 10, 400)
        page.wait_for_function(f"!({inside})()")
        page.click("button.primary-toggle")
        page.wait_for_function(inside)
        page.click(f"nav.bd-links a[href='{TOC[2].partition('/')[2]}']")
        page.wait_for_url(address + TOC[2])
        assert log.errors == []


def test_theme_switch_turns_through_three_and_is_kept(browser, address):
    mode = "document.documentElement.dataset.mode"
    theme = "document.documentElement.dataset.theme"
    context = browser.new_context(**DESKTOP, color_scheme="dark")
    with pages.opened(context, address + TOC[1]) as (page, log):
        assert (page.evaluate(mode), page.evaluate(theme)) == ("auto", "dark")
        seen = []
        for _ in range(3):
            page.click(".theme-switch-button")
            seen.append((page.evaluate(mode), page.evaluate(theme)))
        assert sorted(seen) == [("auto", "dark"), ("dark", "dark"), ("light", "light")]
        while page.evaluate(mode) != "light":
            page.click(".theme-switch-button")
        page.reload()
        assert page.evaluate(theme) == "light"
        page.goto(address + TOC[2])
        assert page.evaluate(theme) == "light"
        assert log.errors == []
    context.close()


def test_paper_is_light(browser, address):
    theme = "document.documentElement.dataset.theme"
    with pages.opened(browser, address + TOC[1], **DESKTOP, color_scheme="dark") as (page, _):
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert page.evaluate(theme) == "light"
        page.evaluate("dispatchEvent(new Event('afterprint'))")
        assert page.evaluate(theme) == "dark"


def test_launch_menu_opens(browser, address):
    with pages.opened(browser, address + "book/stability.html", **DESKTOP) as (page, log):
        link = page.locator(".dropdown-launch-buttons a[href*=colab]")
        assert not link.is_visible()
        page.click(".dropdown-launch-buttons button")
        link.wait_for(state="visible")
        assert log.errors == []


@pytest.mark.parametrize(
    ("words", "view"), [("Himmelblau", "desktop"), ("symmetric logarithm", "phone")]
)
def test_search_finds_what_a_page_says(browser, address, words, view):
    with pages.opened(browser, address + TOC[1], **pages.VIEWS[view]) as (page, log):
        page.keyboard.press("Control+k")
        page.keyboard.type(words)
        page.keyboard.press("Enter")
        page.wait_for_url("**/search.html?q=*")
        page.click("#search-results li a >> nth=0", timeout=20_000)
        page.wait_for_url("**/book/**")
        text = page.inner_text("article").lower()
        assert all(word.lower() in text for word in words.split())
        assert log.errors == []


def test_what_search_quotes_is_read_on_a_phone(browser, address):
    """In words and letters, not in TeX or code, and no wider than the screen."""
    found = f"{address}search.html?q=sharpness"
    with pages.opened(browser, found, **pages.VIEWS["phone"]) as (page, log):
        page.wait_for_function("document.querySelectorAll('#search-results .context').length > 15")
        quoted = page.locator("#search-results .context").all_text_contents()
        assert any("λ_0" in text for text in quoted)
        assert [text for text in quoted if "\\" in text or "import " in text] == []
        assert min(map(len, quoted)) > 100
        overflow = page.evaluate(visits.OVERFLOW)
        assert overflow["page"] <= overflow["view"], overflow["wide"]
        assert log.errors == []


# ---- from a folder, without a server


@pytest.mark.parametrize("name", [TOC[0], "book/principal_flow.html"])
def test_page_reads_from_a_folder(browser, name):
    with pages.opened(browser, (pages.HTML / name).as_uri(), **DESKTOP) as (page, log):
        pages.typeset(page)
        formulas = page.locator("article .math")
        assert formulas.count() > 0
        assert page.locator("article .math mjx-container").count() >= formulas.count()
        # The icons and the formulas have their fonts.
        loaded = page.evaluate(
            """() => document.fonts.ready.then(() =>
              [...document.fonts].filter(f => f.status === "loaded").map(f => f.family))"""
        )
        assert any("MJX" in family for family in loaded)
        assert any("Awesome" in family for family in loaded)
        assert log.errors == []
        assert log.outside == []


def test_search_works_from_a_folder(browser):
    address = (pages.HTML / "search.html").as_uri()
    with pages.opened(browser, f"{address}?q=himmelblau", **DESKTOP) as (page, log):
        page.click("#search-results li a >> nth=0", timeout=20_000)
        page.wait_for_url("file://**/book/**")
        assert "himmelblau" in page.inner_text("article").lower()
        assert log.errors == []
        assert log.outside == []
