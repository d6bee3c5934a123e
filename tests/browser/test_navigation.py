"""Finding one's way: list of pages, previous and next, search, themes, launch buttons, folders."""

import pytest

from tests.browser import tabs, visits
from tests.pages import book

pytestmark = pytest.mark.browser

DESKTOP, PHONE = tabs.VIEWS["desktop"], tabs.VIEWS["phone"]
TOC = book.in_toc()


def test_next_and_previous_turn_pages(opened, address):
    with opened(TOC[0]) as (page, log):
        page.click("a.right-next")
        page.wait_for_url(address + TOC[1])
        page.click("a.left-prev")
        page.wait_for_url(address + TOC[0])
        assert log.errors == []


def test_list_of_pages_opens_and_closes_on_a_phone(opened, address):
    inside = """() => {
      const box = document.querySelector(".bd-sidebar-primary").getBoundingClientRect();
      return box.right > 50 && getComputedStyle(
        document.querySelector(".bd-sidebar-primary")).visibility === "visible";
    }"""
    with opened(TOC[1], "phone") as (page, log):
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
    with tabs.opened(context, address + TOC[1]) as (page, log):
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
    with tabs.opened(browser, address + TOC[1], **DESKTOP, color_scheme="dark") as (page, _):
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert page.evaluate(theme) == "light"
        page.evaluate("dispatchEvent(new Event('afterprint'))")
        assert page.evaluate(theme) == "dark"


def test_launch_menu_opens(opened):
    with opened("book/stability.html") as (page, log):
        link = page.locator(".dropdown-launch-buttons a[href*=colab]")
        assert not link.is_visible()
        page.click(".dropdown-launch-buttons button")
        link.wait_for(state="visible")
        assert log.errors == []


@pytest.mark.parametrize(
    ("words", "view"), [("Himmelblau", "desktop"), ("symmetric logarithm", "phone")]
)
def test_search_finds_what_a_page_says(opened, words, view):
    with opened(TOC[1], view) as (page, log):
        page.keyboard.press("Control+k")
        page.keyboard.type(words)
        page.keyboard.press("Enter")
        page.wait_for_url("**/search.html?q=*")
        page.click("#search-results li a >> nth=0", timeout=20_000)
        page.wait_for_url("**/book/**")
        text = page.inner_text("article").lower()
        assert all(word.lower() in text for word in words.split())
        assert log.errors == []


def test_what_search_quotes_is_read_on_a_phone(opened):
    """In words and letters, not in TeX or code, and no wider than the screen."""
    with opened("search.html?q=sharpness", "phone") as (page, log):
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
def test_page_reads_from_a_folder(opened_from_folder, name):
    with opened_from_folder(name) as (page, log):
        tabs.typeset(page)
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


def test_search_works_from_a_folder(opened_from_folder):
    with opened_from_folder("search.html?q=himmelblau") as (page, log):
        page.click("#search-results li a >> nth=0", timeout=20_000)
        page.wait_for_url("file://**/book/**")
        assert "himmelblau" in page.inner_text("article").lower()
        assert log.errors == []
        assert log.outside == []
