"""Numbered equations: each has its number, and leads to code that leads back."""

import re

import pytest

from tests.pages import book

pytestmark = pytest.mark.pages

CODE = re.compile(r'<p class="equation-code">(.*?)</p>', re.S)
BACK = re.compile(r'<p class="in-equations">(.*?)</p>', re.S)
LINK = re.compile(r'href="([^"]+)"')


def test_every_number_is_there_and_there_once():
    bodies = [body for page in book.in_toc() for _, body in book.numbered_equations(page)]
    numbers = [
        number for body in bodies for number in re.findall(r'<span class="eqno">\(([\d.]+)\)', body)
    ]
    assert len(numbers) == len(bodies) > 0
    assert len(set(numbers)) == len(numbers)


@pytest.mark.parametrize("page", book.in_toc())
def test_code_of_an_equation_leads_to_an_entry_that_leads_back(page):
    anchors = [anchor for anchor, _ in book.numbered_equations(page)]
    lines = CODE.findall(book.text(page))
    assert len(lines) == len(anchors)
    for anchor, line in zip(anchors, lines, strict=True):
        links = LINK.findall(line)
        assert links, anchor
        for link in links:
            where, entry = book.target(page, link)
            after = book.text(where).partition(f'id="{entry}"')[2]
            assert after, f"{link} leads nowhere"
            back = [book.target(where, at) for at in LINK.findall(BACK.findall(after)[0])]
            assert (page, anchor) in back, f"{entry} does not say that it computes {anchor}"
