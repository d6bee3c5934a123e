"""The first page, the report and the box on notebooks' pages under a reader's hands."""

import contextlib

import pytest

from tests.browser import tabs

pytestmark = pytest.mark.browser

INTRO, REPORT, CHAPTER = "book/intro.html", "book/report.html", "book/stability.html"


each_view = pytest.mark.parametrize("view", list(tabs.VIEWS))


@pytest.fixture
def view():
    return "phone"


@pytest.fixture
def at(view, opened):
    """`at(name)` is the page of that name."""
    with contextlib.ExitStack() as stack:
        yield lambda name: stack.enter_context(opened(name, view))[0]


def box(page, selector):
    return page.locator(selector).first.bounding_box()


@each_view
def test_the_result_and_three_sentences_are_seen_without_scrolling(at):
    page = at(INTRO)
    picture, links = box(page, "#fig-intro img"), box(page, ".hero-links a")
    assert 0 < picture["y"] < links["y"]
    assert links["y"] + links["height"] <= page.viewport_size["height"]


def test_the_numbers_behind_a_verdict_open_by_keyboard(at):
    page = at(INTRO)
    first = page.locator(".finding").first
    assert not first.locator("ul").is_visible()
    first.locator("summary").focus()
    page.keyboard.press("Enter")
    assert first.locator("ul li").first.is_visible()


def test_the_report_is_filtered_by_verdict(at):
    page = at(REPORT)
    rows = page.locator("[data-verdict]")
    total = rows.count()
    page.get_by_role("button", name="fails", exact=True).click()
    shown = page.locator("[data-verdict]:visible")
    verdicts = shown.evaluate_all("rows => rows.map(row => row.dataset.verdict)")
    assert verdicts and set(verdicts) == {"fails"} and len(verdicts) < total
    assert page.locator(".report-filter [role=status]").inner_text() == (
        f"{len(verdicts)} of {total} shown"
    )
    page.get_by_role("button", name="all", exact=True).click()
    assert shown.count() == total


def test_a_link_to_what_is_folded_away_opens_it(at, address):
    page = at(REPORT)
    record = page.locator(".report-record").last
    assert not record.locator("dl").is_visible()
    name = record.get_attribute("id")
    page.goto(f"{address}{REPORT}#{name}", wait_until="load")
    page.evaluate("name => { location.hash = ''; location.hash = name; }", name)
    page.wait_for_function("name => document.getElementById(name).open", arg=name)


@each_view
def test_a_part_of_a_claim_is_a_readable_block_on_a_phone(at):
    page = at(REPORT)
    row = page.locator("[data-verdict]").first
    sentence = row.locator("td").nth(1).bounding_box()
    narrow = page.viewport_size["width"] < 600
    assert sentence["width"] > (0.8 if narrow else 0.25) * row.bounding_box()["width"]
    label = "cell => getComputedStyle(cell, '::before').content"
    assert ("Measured" in row.locator("td").nth(2).evaluate(label)) == narrow


@each_view
def test_the_box_on_a_chapter_is_small_and_opens(at):
    page = at(CHAPTER)
    aside = page.locator("aside.rerun")
    assert aside.bounding_box()["height"] < 130
    assert not aside.locator("details > div").first.is_visible()
    aside.locator("summary").click()
    assert aside.locator("details > div").first.is_visible()
    response = page.request.get(page.evaluate("document.querySelector('.rerun a[download]').href"))
    assert response.ok and response.json()["cells"]


def test_the_footer_leads_to_how_to_cite(at, address):
    page = at(CHAPTER)
    page.locator(".book-foot a", has_text="Cite").click()
    page.wait_for_url(f"{address}{INTRO}#cite")
    # The browser may glide there.
    page.wait_for_function(
        "() => { const top = document.querySelector('#cite-it h2').getBoundingClientRect().top;"
        " return 0 <= top && top < innerHeight; }"
    )
