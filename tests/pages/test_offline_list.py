"""The list of files for reading the book offline."""

import json
import re
from urllib.parse import urldefrag, urljoin, urlsplit

import pytest

from tests.pages import book

pytestmark = pytest.mark.pages


def test_all_that_pages_show_and_lead_to_is_listed():
    listed = json.loads(book.text("offline.json"))["files"]
    wanted = {*book.every(), "index.html"}
    for name in book.every():
        page = book.soup(name)
        shown = [e["src"] for e in page.select("img[src], script[src]")]
        shown += [e["href"] for e in page.select('link[rel~="stylesheet"], link[rel~="icon"]')]
        shown += [
            link for link in book.links(name) if re.search(r"\.(html|json|bib)(#|\?|$)", link)
        ]
        for link in shown:
            path = urlsplit(urldefrag(urljoin(f"http://here/{name}", link)).url)
            if path.netloc == "here":
                wanted.add(path.path.lstrip("/"))
    for name in [name for name in wanted if name.endswith(".css")]:
        for link in re.findall(r"url\([\"']?([^\"')]+\.woff2)", book.text(name)):
            wanted.add(urlsplit(urljoin(f"http://here/{name}", link)).path.lstrip("/"))
    # The first is written after the list, and is kept as it is found.
    assert sorted(wanted - listed.keys() - {"index.html"}) == []
    assert sorted(name for name in listed.keys() - wanted if name.startswith("_images/")) == []
    assert len(wanted) > 200 and sum(size for _, size in listed.values()) < 30e6
