"""Links: those within the book lead somewhere, those to elsewhere could."""

import re

import pytest

from tests.pages import book

pytestmark = pytest.mark.pages


@pytest.mark.parametrize("name", book.every())
def test_links_within_the_book_lead_somewhere(name):
    links = book.links(name)
    assert len(links) > len(book.in_toc())
    assert book.broken(name, links) == []


def test_links_to_elsewhere_are_well_formed():
    links = {
        (name, link)
        for name in book.every()
        for link in re.findall(r'<a\s[^>]*href="(\w+:[^"]*)"', book.text(name))
    }
    assert len(links) > len(book.in_toc())
    form = r"https?://[\w.-]+\.[a-z]+(:\d+)?(/\S*)?|mailto:\S+@\S+|data:text/\S+"
    assert [link for link in links if not re.fullmatch(form, link[1])] == []
