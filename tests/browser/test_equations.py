"""Numbered equations in the built pages: each has its number, and leads to code that leads back."""

import re
from urllib.parse import urldefrag

import pages
import pytest

pytestmark = pytest.mark.browser

DISPLAY = re.compile(
    r'<div class="[^"]*numbered-equation[^"]*" id="(equation-[^"]+)">\s*(.*?)</div>', re.S
)
CODE = re.compile(r'<p class="equation-code">(.*?)</p>', re.S)
BACK = re.compile(r'<p class="in-equations">(.*?)</p>', re.S)
LINK = re.compile(r'href="([^"]+)"')

# Of each equation: whether its number is beside or beneath it, how far it reaches, its height.
BOXES = """[...document.querySelectorAll('.numbered-equation')].map(div => {
  const box = selector => div.querySelector(selector).getBoundingClientRect();
  const number = box('.eqno'), formula = box('mjx-container');
  const apart = number.left >= formula.right - 1 || number.top >= formula.bottom - 1;
  return {id: div.id, apart, right: number.right, tall: number.height};
})"""


def _text(page: str) -> str:
    return (pages.HTML / page).read_text(encoding="utf-8")


def _numbered() -> dict[str, list[str]]:
    """The anchors of the numbered equations on each page that has some."""
    found = {
        page: [anchor for anchor, _ in DISPLAY.findall(_text(page))] for page in pages.in_toc()
    }
    return {page: anchors for page, anchors in found.items() if anchors}


def _target(page: str, link: str) -> tuple[str, str]:
    url, anchor = urldefrag(link)
    path = (pages.HTML / page).parent / url if url else pages.HTML / page
    return str(path.resolve().relative_to(pages.HTML)), anchor


def test_every_number_is_there_and_there_once():
    numbers = [
        number
        for page in pages.in_toc()
        for _, body in DISPLAY.findall(_text(page))
        for number in re.findall(r'<span class="eqno">\(([\d.]+)\)', body)
    ]
    assert len(numbers) == sum(map(len, _numbered().values())) > 0
    assert len(set(numbers)) == len(numbers)


@pytest.mark.parametrize("page", pages.in_toc())
def test_code_of_an_equation_leads_to_an_entry_that_leads_back(page):
    text = _text(page)
    anchors = [anchor for anchor, _ in DISPLAY.findall(text)]
    lines = CODE.findall(text)
    assert len(lines) == len(anchors)
    for anchor, line in zip(anchors, lines, strict=True):
        links = LINK.findall(line)
        assert links, anchor
        for link in links:
            where, entry = _target(page, link)
            after = _text(where).partition(f'id="{entry}"')[2]
            assert after, f"{link} leads nowhere"
            back = [_target(where, at) for at in LINK.findall(BACK.findall(after)[0])]
            assert (page, anchor) in back, f"{entry} does not say that it computes {anchor}"


@pytest.mark.parametrize("view", list(pages.VIEWS))
def test_numbers_stay_beside_their_equations(browser, address, view):
    """No number leaves the page or lies over its formula, on the pages with the most of them."""
    found = _numbered()
    context = browser.new_context(**pages.VIEWS[view])
    for page in sorted(found, key=lambda page: -len(found[page]))[:3]:
        with pages.opened(context, address + page) as (tab, _):
            pages.typeset(tab)
            boxes = tab.evaluate(BOXES)
        width = pages.VIEWS[view]["viewport"]["width"]
        assert len(boxes) == len(found[page])
        assert [b["id"] for b in boxes if not b["apart"] or b["right"] > width] == []
        assert [b["id"] for b in boxes if b["tall"] > 40] == []  # one line of text
    context.close()
