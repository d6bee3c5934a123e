"""The built book, read page by page in a browser, at the width of a desktop and of a phone.

Run by `make browser` after the pages are built.
"""

import pytest

from tests.browser import tabs, visits
from tests.pages import book

pytestmark = pytest.mark.browser

each_page = pytest.mark.parametrize("name", visits.each())
each_view = pytest.mark.parametrize("view", list(tabs.VIEWS))


@each_page
@each_view
def test_scripts_run_without_errors(visit, name, view):
    assert visit(name, view).log.errors == []


@each_page
@each_view
def test_no_request_leaves_this_machine(visit, name, view):
    assert visit(name, view).log.outside == []


@each_page
@each_view
def test_mathematics_is_rendered(visit, name, view):
    math = visit(name, view).math
    assert math["failed"] == []
    assert math["raw"] == []
    assert math["blank"] == []
    assert math["rendered"] >= math["source"]
    assert math["cut"] == [], "seen only by scrolling sideways"


@each_page
@each_view
def test_images_load_and_have_descriptions(visit, name, view):
    images = visit(name, view).images
    assert [i["src"] for i in images if i["width"] == 0] == []
    assert [i["src"] for i in images if not i["alt"] and not i["decorative"]] == []


@each_page
@each_view
def test_page_is_no_wider_than_the_screen(visit, name, view):
    for width, overflow in visit(name, view).overflow.items():
        assert overflow["page"] <= overflow["view"] + 1, (width, overflow["wide"])
        assert overflow["fallen"] == [], (width, "links that hang out of a signature's box")


@each_page
def test_links_within_the_book_lead_somewhere(visit, address, name):
    """Those that scripts have made or changed, too."""
    assert book.broken(name, visit(name, "desktop").links, address) == []


def test_search_finds_a_word(opened):
    with opened("search.html?q=gradient") as (page, _):
        page.wait_for_selector("#search-results li a", timeout=20_000)


def test_first_address_leads_to_the_book(opened, address):
    with opened("") as (page, _):
        page.wait_for_url(address + book.in_toc()[0], timeout=20_000)
