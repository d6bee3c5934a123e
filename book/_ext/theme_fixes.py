"""Changes to the HTML of the theme and of Jupyter Book, where no setting exists.

They improve accessibility, which tests/browser/test_access.py checks, and loading times. The
scripts of Thebe, which Jupyter Book always loads, are removed: they add settings to every page,
with duplicate `const` declarations if a page is written twice, and refer to another server.
"""

import re
from typing import Any

from _ext.common import mending


def _plain(match: re.Match[str]) -> str:
    lines = match[2].replace("<dd>", "<div>").replace("</dd>", "</div>")
    return f'{match[1]}<div class="sig-arguments">{lines}</div>'


# Pattern -> replacement.
MENDS: dict[str, mending.Replacement] = {
    # The title of the book and the list of pages are outside all landmarks.
    r'<div class="bd-sidebar-primary bd-sidebar': (
        r'<div role="region" aria-label="Book" class="bd-sidebar-primary bd-sidebar'
    ),
    r'<nav class="bd-toc-nav page-toc">': (
        r'<nav class="bd-toc-nav page-toc" aria-label="On this page">'
    ),
    # A label that differs from the visible text, "Show code cell source".
    r'<summary aria-label="Toggle hidden content">': r"<summary>",
    # A decorative arrow in the list of pages.
    r'<summary>(<span class="toctree-toggle")': r'<summary aria-label="Pages below">\1',
    # A list must contain list items; the role of bibliography entries is deprecated.
    r'role="doc-biblioentry"': r'role="listitem"',
    # A decorative icon of a button that has a label.
    r'<(i|span) class="((?:theme-switch )?fa[a-z]?[ -][^"]*)"': (
        r'<\1 aria-hidden="true" class="\2"'
    ),
    # Sphinx writes multi-line arguments as a definition list without terms, which screen readers
    # announce as an error.
    r'(<span class="sig-paren">\(</span>\s*)<dl>(.*?)</dl>': _plain,
    # The icons are loaded as a font, and again as a script of 1.5 MB on every page.
    r'<script src="[^"]*/fontawesome/[^"]*/all\.min\.js[^"]*"></script>': "",
    # Pages read from a local folder cannot preload fonts.
    r'<link rel="preload" as="font"[^>]*/fontawesome/[^>]*>': "",
}


def _mend_all(app: Any) -> None:
    templates = app.builder.templates
    mend = mending.Mends(MENDS)
    mend.watch(app)
    render = templates.render
    templates.render = lambda template, context: mend(render(template, context))


def _without_thebe(
    app: Any, pagename: str, templatename: str, context: dict[str, Any], doctree: Any
) -> None:
    scripts = context.get("script_files", [])
    context["script_files"] = [s for s in scripts if "thebe" not in str(s).lower()]


def setup(app: Any) -> None:
    app.connect("builder-inited", _mend_all)
    # After all extensions that add scripts to a page.
    app.connect("html-page-context", _without_thebe, priority=900)
    app.add_css_file("accessible.css", priority=900)
    app.add_js_file("accessible.js", loading_method="defer")
