"""What is changed in the pages that the theme and Jupyter Book write, for want of a setting.

For readers who listen to pages, and for those who wait for them; tests/browser/test_access.py
holds what comes of it. And without Thebe, which Jupyter Book always loads: it puts its settings
into every page, `const` declarations twice where a page is written twice, and names a script on
another server.
"""

from typing import Any

from _ext.common import mending

# What is replaced, by what.
MENDS: dict[str, mending.Replacement] = {
    # The book's name and its list of pages are outside every landmark.
    r'<div class="bd-sidebar-primary bd-sidebar': (
        r'<div role="region" aria-label="Book" class="bd-sidebar-primary bd-sidebar'
    ),
    r'<nav class="bd-toc-nav page-toc">': (
        r'<nav class="bd-toc-nav page-toc" aria-label="On this page">'
    ),
    # A label that hides what the reader sees: "Show code cell source".
    r'<summary aria-label="Toggle hidden content">': r"<summary>",
    # An arrow in the list of pages, which says nothing.
    r'<summary>(<span class="toctree-toggle")': r'<summary aria-label="Pages below">\1',
    # A list holds list items; the role of an entry in a bibliography is deprecated.
    r'role="doc-biblioentry"': r'role="listitem"',
    # An icon says nothing; its button has a label.
    r'<(i|span) class="((?:theme-switch )?fa[a-z]?[ -][^"]*)"': (
        r'<\1 aria-hidden="true" class="\2"'
    ),
    # Icons come as a font and once more as a script of 1.5 MB, which every page would run.
    r'<script src="[^"]*/fontawesome/[^"]*/all\.min\.js[^"]*"></script>': "",
    # Pages read from a folder may not ask for a font ahead of its use.
    r'<link rel="preload" as="font"[^>]*/fontawesome/[^>]*>': "",
}


def _mend_all(app: Any) -> None:
    templates = getattr(app.builder, "templates", None)
    if templates is None:  # this builder writes no pages
        return
    mend = mending.Mends(MENDS)
    mend.watch(app)
    render = templates.render
    templates.render = lambda template, context: mend(render(template, context))


def _without_thebe(
    app: Any, pagename: str, templatename: str, context: dict[str, Any], doctree: Any
) -> None:
    def unwanted(script: Any) -> bool:
        attributes = getattr(script, "attributes", {})
        return "THEBE_JS_URL" in str(attributes.get("body", "")) or "thebe" in str(
            getattr(script, "filename", script) or ""
        )

    context["script_files"] = [s for s in context.get("script_files", []) if not unwanted(s)]


def setup(app: Any) -> dict[str, Any]:
    app.connect("builder-inited", _mend_all)
    # After every extension that adds scripts to a page.
    app.connect("html-page-context", _without_thebe, priority=900)
    app.add_css_file("accessible.css", priority=900)
    app.add_js_file("accessible.js", loading_method="defer")
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
