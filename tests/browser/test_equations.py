"""Numbered equations, drawn: no number leaves the page or lies over its formula."""

import pytest

from tests.browser import tabs, visits
from tests.pages import book

pytestmark = pytest.mark.browser


@pytest.mark.parametrize("name", visits.each(book.with_numbered_equations()))
@pytest.mark.parametrize("view", list(tabs.VIEWS))
def test_numbers_stay_beside_their_equations(visit, name, view):
    boxes = visit(name, view).equations
    width = tabs.VIEWS[view]["viewport"]["width"]
    assert [b["id"] for b in boxes] == [anchor for anchor, _ in book.numbered_equations(name)]
    assert [b["id"] for b in boxes if not b["apart"] or b["right"] > width] == []
    assert [b["id"] for b in boxes if b["tall"] > 40] == []  # one line of text
