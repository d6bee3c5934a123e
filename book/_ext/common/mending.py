"""Replacing what somebody else's programs write into pages, for want of a setting.

A pattern that fits nothing any more, after a new version of the theme, would fail without a word:
a build of the whole book warns of each that no page needed.
"""

import re
from collections.abc import Callable
from typing import Any

from sphinx.util import logging

logger = logging.getLogger(__name__)

Replacement = str | Callable[[re.Match[str]], str]


class Mends:
    """Patterns with what replaces them, and which of them have matched.

    Args:
      pairs: pattern -> replacement, as `re.sub` takes them.
    """

    def __init__(self, pairs: dict[str, Replacement]) -> None:
        self._pairs = {re.compile(pattern, re.DOTALL): by for pattern, by in pairs.items()}
        self._unmatched = set(pairs)

    def __call__(self, page: str) -> str:
        """The page with everything replaced."""
        for pattern, replacement in self._pairs.items():
            page, count = pattern.subn(replacement, page)
            if count:
                self._unmatched.discard(pattern.pattern)
        return page

    @property
    def unmatched(self) -> list[str]:
        """The patterns that no page has had so far."""
        return sorted(self._unmatched)

    def watch(self, app: Any) -> None:
        """At the end of a build of every page, warn of the patterns that none had."""
        written: set[str] = set()

        def note(app: Any, pagename: str, *rest: Any) -> None:
            written.add(pagename)

        def finish(app: Any, exception: Exception | None) -> None:
            # Processes that write pages side by side do not tell each other what they found.
            whole = app.parallel < 2 and written >= set(app.env.found_docs)
            if exception is None and app.builder.name == "html" and whole:
                for pattern in self.unmatched:
                    logger.warning("no page has what is to be replaced: %s", pattern)

        app.connect("html-page-context", note)
        app.connect("build-finished", finish)
