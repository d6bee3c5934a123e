"""Replacements in the theme's pages, and warnings of patterns that no longer match."""

import logging
from types import SimpleNamespace

import pytest

from _ext.common import mending


class App(SimpleNamespace):
    """The parts of Sphinx that replacements use: events, and the pages of a build."""

    def __init__(self, pages: set[str]):
        super().__init__(env=SimpleNamespace(found_docs=pages), handlers={})

    def connect(self, event: str, handler) -> None:
        self.handlers[event] = handler

    def build(self, pages: set[str], exception: Exception | None = None) -> None:
        for page in pages:
            self.handlers["html-page-context"](self, page, "page.html", {}, None)
        self.handlers["build-finished"](self, exception)


@pytest.fixture
def warnings(monkeypatch):
    found = []
    monkeypatch.setattr(mending.logger, "warning", lambda text, *args: found.append(text % args))
    return found


def test_everything_is_replaced():
    mend = mending.Mends({r"<i>(.*?)</i>": r"<b>\1</b>", "b>x": lambda match: match[0].upper()})
    assert mend("<i>x\n</i> <i>y</i>") == "<B>X\n</b> <b>y</b>"


def test_a_build_of_every_page_warns_of_patterns_that_no_page_has(warnings):
    mend = mending.Mends({"old": "new", "gone": "", "rare": ""})
    app = App({"a", "b"})
    mend.watch(app)
    assert [mend("an old page"), mend("a rare page")] == ["an new page", "a  page"]
    app.build({"a", "b", "genindex"})
    assert warnings == ["a pattern to be replaced matches no page: gone"]
    assert mend.unmatched == ["gone"]


@pytest.mark.parametrize(
    ("pages", "exception"),
    [
        ({"a"}, None),  # the others are as they were
        ({"a", "b"}, RuntimeError()),
    ],
)
def test_a_build_that_does_not_see_every_page_does_not_warn(warnings, pages, exception):
    mend = mending.Mends({"gone": ""})
    app = App({"a", "b"})
    mend.watch(app)
    app.build(pages, exception)
    assert warnings == []


def test_a_warning_is_one_of_sphinx_which_a_build_with_W_fails_on():
    assert isinstance(mending.logger, logging.LoggerAdapter)
    assert mending.logger.logger.name.startswith("sphinx.")
