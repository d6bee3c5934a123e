"""Opening the built book's pages in a browser, with what each does noted.

Starting a tab costs a browser more than reading a page does: for each screen there is one, which
tests use in turn, and which each finds as if it were new.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from urllib.parse import urljoin, urlsplit

VIEWS = {
    "desktop": {"viewport": {"width": 1280, "height": 900}, "device_scale_factor": 1},
    "phone": {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2},
}
# A file of the book that runs nothing, where a tab waits for its next page.
REST = "_static/favicon.svg"


class Log(NamedTuple):
    """Events of a page while it was open."""

    errors: list[str]
    requests: list[str]

    @property
    def outside(self) -> list[str]:
        """The requests that went to another machine."""
        return [url for url in self.requests if not is_here(url)]


def is_here(url: str) -> bool:
    """Whether a request for `url` is answered by this machine."""
    return urlsplit(url).scheme in ("data", "blob", "file") or (
        urlsplit(url).hostname == "127.0.0.1"
    )


def listen(page: Any, log: Callable[[], Log]) -> None:
    """Notes what happens in a Playwright page in the log that is the current one at that time."""

    def error(text: str) -> None:
        log().errors.append(text)

    def failed(request: Any) -> None:
        if request.failure != "net::ERR_ABORTED":  # the page was left before it came
            error(f"{request.url} failed: {request.failure}")

    page.on("request", lambda request: log().requests.append(request.url))
    page.on("pageerror", lambda problem: error(str(problem)))
    page.on("console", lambda m: error(m.text) if m.type == "error" else None)
    page.on("requestfailed", failed)
    page.on("response", lambda r: error(f"{r.url}: status {r.status}") if r.status >= 400 else None)


@contextlib.contextmanager
def opened(browser: Any, url: str, **screen: Any) -> Iterator[tuple[Any, Log]]:
    """`url` in a tab of its own that is closed afterwards, and a log that fills meanwhile.

    Args:
      browser: a Playwright browser, or a context of one, whose tabs share what it has stored.
      url: the address.
      **screen: as in `VIEWS`, and what else a context can be; none for a context.
    """
    log = Log([], [])
    page = browser.new_page(**screen)
    listen(page, lambda: log)
    try:
        page.goto(url, wait_until="load")
        yield page, log
    finally:
        page.close()


class Tab:
    """A tab that opens page after page of one book.

    Args:
      browser: a Playwright browser.
      address: where the book is served.
      **screen: as in `VIEWS`.
    """

    def __init__(self, browser: Any, address: str, **screen: Any) -> None:
        self._context = browser.new_context(**screen)
        self._rest = urljoin(address, REST)
        self._viewport = screen["viewport"]
        self._log = Log([], [])
        self._page: Any = None

    @contextlib.contextmanager
    def opened(self, url: str) -> Iterator[tuple[Any, Log]]:
        """`url`, and a log that fills while it is open."""
        if self._page is None:
            self._page = self._context.new_page()
            listen(self._page, lambda: self._log)
        page = self._page
        self._log = log = Log([], [])
        try:
            page.goto(url, wait_until="load")
            yield page, log
            self._log = Log([], [])
            self._leave()
        except BaseException:
            # Nobody knows what state it is in.
            self._page = None
            page.close()
            raise

    def _leave(self) -> None:
        """Leaves nothing to the next page: no size, no place of the mouse, nothing stored."""
        page = self._page
        page.goto(self._rest)
        page.mouse.move(0, 0)
        if page.viewport_size != self._viewport:
            page.set_viewport_size(self._viewport)
        page.evaluate("() => { localStorage.clear(); sessionStorage.clear(); }")
        self._context.clear_cookies()

    def close(self) -> None:
        self._context.close()


def typeset(page: Any) -> None:
    """Waits until the page's mathematics has been rendered."""
    page.wait_for_function(
        "!document.querySelector('.math') || (window.MathJax && MathJax.startup "
        "&& MathJax.startup.promise)",
        timeout=20_000,
    )
    page.evaluate("async () => { if (window.MathJax) await MathJax.startup.promise; }")


def set_theme(page: Any, theme: str) -> None:
    """Shows the page light or dark, as its switch does."""
    page.evaluate(
        "t => Object.assign(document.documentElement.dataset, {theme: t, mode: t})", theme
    )
