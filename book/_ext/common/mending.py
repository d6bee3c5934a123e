"""Replacements in pages that third-party code writes, where no setting exists.

A pattern may no longer match after an update of the theme. Therefore a build of the whole book
warns of each pattern that matched no page.
"""

import re
from collections.abc import Callable
from typing import Any

from sphinx.util import logging

logger = logging.getLogger(__name__)

Replacement = str | Callable[[re.Match[str]], str]


class Mends:
    """Patterns with their replacements, which keeps track of the patterns that matched.

    Args:
      pairs: pattern -> replacement, as for `re.sub`.
    """

    def __init__(self, pairs: dict[str, Replacement]) -> None:
        self._pairs = {re.compile(pattern, re.DOTALL): by for pattern, by in pairs.items()}
        self._unmatched = set(pairs)

    def __call__(self, page: str) -> str:
        """Apply all replacements to a page."""
        for pattern, replacement in self._pairs.items():
            page, count = pattern.subn(replacement, page)
            if count:
                self._unmatched.discard(pattern.pattern)
        return page

    @property
    def unmatched(self) -> list[str]:
        """The patterns that have not matched any page."""
        return sorted(self._unmatched)

    def watch(self, app: Any) -> None:
        """Warn of patterns without a match, at the end of a build of all pages."""
        written: set[str] = set()

        def note(app: Any, pagename: str, *rest: Any) -> None:
            written.add(pagename)

        def finish(app: Any, exception: Exception | None) -> None:
            whole = written >= set(app.env.found_docs)
            if exception is None and whole:
                for pattern in self.unmatched:
                    logger.warning("a pattern to be replaced matches no page: %s", pattern)

        app.connect("html-page-context", note)
        app.connect("build-finished", finish)
