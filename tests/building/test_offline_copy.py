"""The list of files for reading offline; tests/browser/test_offline.py reads from a copy."""

import hashlib

import pytest

import pfcore
from _ext.offline import listed, remove_old_pictures

KEPT = {
    "search.html": b"<p>",
    "searchindex.js": b"index",
    "book/api/flows.html": b"flows",
    "_images/a.png": b"light",
    "_static/book.css": b"style",
    "_static/fonts/a.woff2": b"font",
    "figures/fig-a-dark.png": b"dark",
    "figures/fig-a.json": b"{}",
    "figures/fig-a.bib": b"@software",
}
LEFT_OUT = (
    "worker.js",
    "objects.inv",
    "offline.json",
    "_sources/book/flows.ipynb",
    "_static/vendor/js/all.min.js",
    "_static/styles/book.css.map",
    "figures/fig-a.csv",
    "figures/fig-a.pdf",
    "figures/fig-a.svg",
)


@pytest.fixture
def folder(tmp_path):
    for name, content in KEPT.items() | {(name, b"left out") for name in LEFT_OUT}:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    return tmp_path


def test_pages_and_what_they_show_are_listed_with_their_hashes(folder):
    found = listed(folder)
    assert found["files"] == {
        name: (hashlib.sha256(content).hexdigest()[:16], len(content))
        for name, content in KEPT.items()
    }
    assert found["bytes"] == sum(map(len, KEPT.values()))
    assert found["release"] == pfcore.__version__


def test_the_version_changes_with_what_is_kept_and_only_then(folder):
    before = listed(folder)["version"]
    assert listed(folder)["version"] == before
    (folder / "figures" / "fig-a.csv").write_bytes(b"other data")
    assert listed(folder)["version"] == before
    (folder / "book" / "api" / "flows.html").write_bytes(b"Flows")
    assert listed(folder)["version"] != before


def test_pictures_of_an_earlier_build_are_removed(folder):
    (folder / "_images" / "earlier.png").write_bytes(b"before")
    remove_old_pictures(folder / "_images", {"a.png", "not-drawn.png"})
    assert [path.name for path in (folder / "_images").iterdir()] == ["a.png"]
    remove_old_pictures(folder / "_nothing", set())
