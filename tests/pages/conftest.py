"""Checks of the built book's files, without a browser: `make html` builds what they read."""

import pytest

from tests.pages import book


@pytest.fixture(autouse=True, scope="session")
def _the_book_is_there() -> None:
    """Fail with an explanation if the book is not built."""
    if not (book.HTML / "index.html").is_file():
        pytest.fail(f"no book in {book.HTML}; make html builds it")
