"""Pages without Thebe, whose script this book has no use for.

Jupyter Book loads `sphinx_thebe` always. It puts its settings into every page, `const`
declarations twice where a page is written twice, and names a script on another server.
"""

from typing import Any


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
    # After every extension that adds scripts to a page.
    app.connect("html-page-context", _without_thebe, priority=900)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
