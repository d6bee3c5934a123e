"""What every page has around its article: the list of pages, its neighbours, launch buttons."""

import re

import address
import pytest

from tests.pages import book

pytestmark = pytest.mark.pages

TOC = list(book.in_toc())


def _listed(name: str, selector: str) -> list[str]:
    """The pages that links on page `name` lead to."""
    return [book.target(name, a["href"])[0] for a in book.soup(name).select(selector)]


@pytest.mark.parametrize("name", TOC)
def test_every_page_lists_all_pages_and_its_neighbours(name):
    here = TOC.index(name)
    assert _listed(name, "nav.bd-links a[href]") == TOC
    assert _listed(name, "a.left-prev") == TOC[max(here - 1, 0) : here]
    assert _listed(name, "a.right-next") == TOC[here + 1 : here + 2]
    assert here == 0 or name in _listed(name, "nav.bd-links a.current")


@pytest.mark.parametrize("name", [n for n in TOC if (book.ROOT / n).with_suffix(".ipynb").exists()])
def test_launch_buttons_lead_to_the_notebook(name):
    notebook = re.escape(name.replace(".html", ".ipynb"))
    menu = [a["href"] for a in book.soup(name).select(".dropdown-launch-buttons a[href]")]
    repository = re.escape(address.current())
    colab = rf"https://colab\.research\.google\.com/github/{repository}/blob/[^/]+/{notebook}"
    binder = rf"https://mybinder\.org/v2/gh/{repository}/[^/?]+\?urlpath=[^?]*{notebook}"
    for wanted in (colab, binder):
        assert any(re.fullmatch(wanted, link) for link in menu), (wanted, menu)
