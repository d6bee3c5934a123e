"""The line at the foot of every page: version, licence, changes, report, how to cite."""

import html
from collections.abc import Callable, Container
from importlib import metadata
from typing import Any

import pfcore
from _ext import launch_box

LINKS = {"book/changelog": "Changes", "book/report": "Reproducibility report"}
CITE = ("book/intro", "#cite", "Cite this book")


def footer(pages: Container[str], pathto: Callable[[str], str], repository: str) -> str:
    """The line as HTML.

    Args:
      pages: documents of the book; links to missing ones are omitted.
      pathto: from a document's name to its address, relative to the page.
      repository: URL of the repository.
    """
    source = f"{repository}/tree/{launch_box.revision()}"
    licence = metadata.metadata("pfcore")["License-Expression"]
    items = [
        _link(source, f"pfcore and this page: version {pfcore.__version__}"),
        _link(f"{repository}/blob/{launch_box.revision()}/LICENSE", f"Licence: {licence}"),
        *(_link(pathto(page), text) for page, text in LINKS.items() if page in pages),
    ]
    page, anchor, text = CITE
    if page in pages:
        # The address of a page relative to itself is "#".
        items.append(_link(pathto(page).removesuffix("#") + anchor, text))
    return f'<p class="book-foot">{" ".join(items)}</p>'


def _link(address: str, text: str) -> str:
    return f'<a href="{html.escape(address)}">{html.escape(text)}</a>'


def _add(app: Any, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    repository = app.config.html_theme_options["repository_url"]
    context["theme_extra_footer"] = footer(app.env.found_docs, context["pathto"], repository)


def setup(app: Any) -> None:
    app.connect("html-page-context", _add)
