"""The line under a figure, as a reader uses it: code, data, SVG, PDF, provenance and citation."""

import contextlib

import pytest
from PIL import Image

from tests.browser import tabs
from tests.pages import book

pytestmark = pytest.mark.browser

FOLDER = book.HTML / "figures"
PAGE = "book/stability.html"
NAME = "fig-stability-coefficient"
WORDS = 6  # code, data, SVG, PDF, provenance, cite


@pytest.fixture
def figure_page(browser, address, opened):
    """`figure_page(view, **options)`: the page of `NAME`, with options in a context of its own."""
    with contextlib.ExitStack() as stack:

        def open_page(view="desktop", **options):
            if options:
                screen = {**tabs.VIEWS[view], **options}
                return stack.enter_context(tabs.opened(browser, address + PAGE, **screen))[0]
            return stack.enter_context(opened(PAGE, view))[0]

        yield open_page


def line(page):
    return page.locator(f"#{NAME} + .figure-files")


def test_two_clicks_copy_the_citation(figure_page):
    page = figure_page(permissions=["clipboard-read", "clipboard-write"])
    line(page).get_by_text("cite", exact=True).click()
    box = page.locator(f"#cite-{NAME}")
    texts = box.locator("pre").all_text_contents()
    assert len(texts) == 3
    for number, text in enumerate(texts):
        box.get_by_role("button").nth(number).click()
        box.get_by_text("copied.").wait_for()
        assert page.evaluate("navigator.clipboard.readText()") == text
        page.evaluate("document.querySelector('.figure-status').textContent = ''")
    file = (FOLDER / f"{NAME}.bib").read_text(encoding="utf-8")
    assert file == f"{texts[0]}\n\n{texts[1]}\n"
    assert texts[2].endswith(f"/figures/{NAME}.html")
    assert box.locator(".figure-status").get_attribute("aria-live") == "polite"


def test_without_a_clipboard_the_text_is_selected(figure_page):
    page = figure_page()
    page.evaluate(
        """() => {
          Object.defineProperty(navigator, "clipboard", {value: undefined});
          document.execCommand = () => false;
        }"""
    )
    line(page).get_by_text("cite", exact=True).click()
    box = page.locator(f"#cite-{NAME}")
    box.get_by_role("button").first.click()
    box.get_by_text("selected. Copy it with").wait_for()
    selected = page.evaluate("document.getSelection().toString()")
    assert "".join(selected.split()) == "".join(box.locator("pre").first.text_content().split())


def test_one_click_opens_the_provenance_and_escape_closes_it(figure_page):
    page = figure_page("phone")
    word = line(page).get_by_text("provenance", exact=True)
    word.click()
    table = page.locator(f"#provenance-{NAME} table")
    assert table.is_visible() and "SHA-256" in table.text_content()
    page.keyboard.press("Escape")
    table.wait_for(state="hidden")
    # The keyboard is where it was, and opens it too.
    page.keyboard.press("Enter")
    table.wait_for(state="visible")


def test_only_one_box_of_a_figure_is_open(figure_page):
    page = figure_page()
    line(page).get_by_text("provenance", exact=True).click()
    line(page).get_by_text("cite", exact=True).click()
    assert page.locator(f"#cite-{NAME}").is_visible()
    assert not page.locator(f"#provenance-{NAME}").is_visible()


def test_code_unfolds_the_cell(figure_page):
    page = figure_page()
    cell = page.locator(f"#code-{NAME}")
    assert not cell.is_visible()
    line(page).get_by_text("code", exact=True).click()
    cell.wait_for(state="visible")


def test_everything_but_copying_works_without_scripts(figure_page):
    page = figure_page(java_script_enabled=False)
    pictures = page.locator(f"#{NAME} img")
    assert [picture.is_visible() for picture in pictures.all()] == [True, False]
    line(page).get_by_text("cite", exact=True).click()
    box = page.locator(f"#cite-{NAME}")
    assert box.locator("pre").first.is_visible()
    assert not box.get_by_role("button").first.is_visible()
    line(page).get_by_text("code", exact=True).click()
    assert page.url.endswith(f"#code-{NAME}")
    page.locator(f"#code-{NAME}").wait_for(state="visible")


def test_words_can_be_touched(figure_page):
    page = figure_page("phone")
    boxes = [item.bounding_box() for item in line(page).locator(":scope > a, summary").all()]
    assert len(boxes) >= WORDS
    for box in boxes[:WORDS]:
        assert box["height"] >= 24 and box["width"] >= 24
    rights = [box["x"] + box["width"] for box in boxes[:WORDS]]
    assert max(rights) <= 390


def test_each_theme_shows_its_picture_and_loads_no_other(browser, address):
    with tabs.opened(browser, address + PAGE, **tabs.VIEWS["desktop"]) as (page, log):
        tabs.set_theme(page, "light")
        light, dark = page.locator(f"#{NAME} img").all()
        light.scroll_into_view_if_needed()
        page.wait_for_load_state("networkidle")
        assert light.is_visible() and not dark.is_visible()
        assert light.evaluate("e => e.naturalWidth") > 0
        assert not [url for url in log.requests if "-dark.png" in url]
        height = light.bounding_box()["height"]
        tabs.set_theme(page, "dark")
        page.wait_for_function("e => e.complete && e.naturalWidth > 0", arg=dark.element_handle())
        assert dark.is_visible() and not light.is_visible()
        # Nothing jumps: a border and its rounding, at most.
        assert abs(dark.bounding_box()["height"] - height) <= 2
        # The card is of the picture's own colour, which is the playground's too.
        background = dark.evaluate("e => getComputedStyle(e).backgroundColor")
        with Image.open(FOLDER / f"{NAME}-dark.png") as picture:
            corner = picture.convert("RGB").getpixel((0, 0))
        assert background == f"rgb({corner[0]}, {corner[1]}, {corner[2]})"
        assert log.errors == []


def test_a_citation_linked_from_elsewhere_is_open(opened):
    with opened(f"{PAGE}#cite-{NAME}") as (page, _):
        page.locator(f"#cite-{NAME}").wait_for(state="visible")


@pytest.mark.parametrize("root", ["http", "file"])
def test_stable_address_leads_to_the_figure(browser, address, root):
    base = address if root == "http" else book.HTML.as_uri() + "/"
    page = browser.new_page(**tabs.VIEWS["desktop"])
    page.goto(f"{base}figures/{NAME}.html", wait_until="commit")
    page.wait_for_url(f"{base}{PAGE}#{NAME}", timeout=20_000)
    page.locator(f"#{NAME} img.only-light").wait_for(state="visible")
    page.close()
