"""HTML elements as document nodes, for the generated parts of pages.

As nodes, their links are resolved and checked, and their words are indexed for the search.
"""

import html
from collections.abc import Iterable
from typing import Any

from docutils import nodes
from sphinx import addnodes


class element(nodes.General, nodes.TextElement):
    """An HTML element; other writers process only its children."""


def make(tag: str, *children: nodes.Node | str, **attributes: str | None) -> element:
    """An element with its children.

    Args:
      tag: such as "p".
      *children: nodes or text.
      **attributes: attributes; `class_` is `class`, `data_x` is `data-x`, None means no value.
    """
    named = {name.strip("_").replace("_", "-"): value for name, value in attributes.items()}
    made = element("", "", tag=tag, attributes_=named)
    made += [nodes.Text(child) if isinstance(child, str) else child for child in children]
    return made


def code(text: str, *classes: str) -> nodes.literal:
    """Text set as code."""
    return nodes.literal("", text, classes=["to-the-letter", *classes])


def page_link(docname: str, page: str, text: str | None = None) -> addnodes.pending_xref:
    """A link to a page, shown as its title or a given text; Sphinx warns if the page is missing.

    Args:
      docname: the page that contains the link.
      page: the target.
      text: the text, by default the title.
    """
    return _titled(docname, "doc", "/" + page, text)


def figure_link(docname: str, anchor: str) -> addnodes.pending_xref:
    """A link to a figure, shown as "Fig. 3"; Sphinx warns if the figure is missing."""
    return _titled(docname, "numref", anchor, None)


def _titled(docname: str, kind: str, target: str, text: str | None) -> addnodes.pending_xref:
    shown = nodes.inline("", text or target, classes=["std", f"std-{kind}"])
    return reference(f"std:{kind}", target, shown, docname=docname, explicit=text is not None)


def reference(
    role: str,
    target: str,
    shown: nodes.Node,
    *,
    docname: str | None = None,
    explicit: bool = True,
    warn: bool = True,
) -> addnodes.pending_xref:
    """A link that Sphinx resolves once all pages are read.

    Args:
      role: the role, such as "std:doc" or "py:obj".
      target: the target.
      shown: the content of the link.
      docname: the page that contains it, if it cannot be inferred.
      explicit: keep `shown` in place of the target's title or number.
      warn: whether to warn if the target is missing.
    """
    domain, kind = role.split(":")
    link = addnodes.pending_xref(
        "",
        shown,
        refdomain=domain,
        reftype=kind,
        reftarget=target,
        refexplicit=explicit,
        refwarn=warn,
    )
    if docname is not None:
        link["refdoc"] = docname
    return link


def joined(items: Iterable[Any], between: str = ", ", last: str | None = None) -> list[Any]:
    """Items with separators between them.

    Args:
      items: nodes or text.
      between: the separator.
      last: the separator before the last item, by default the same.
    """
    parts: list[Any] = []
    for item in (kept := list(items)):
        if parts:
            final = last is not None and item is kept[-1]
            parts.append(nodes.Text(str(last) if final else between))
        parts.append(item)
    return parts


def _visit(self: Any, node: element) -> None:
    attributes = "".join(
        f" {name}" if value is None else f' {name}="{html.escape(value)}"'
        for name, value in node["attributes_"].items()
    )
    self.body.append(f"<{node['tag']}{attributes}>")


def _depart(self: Any, node: element) -> None:
    self.body.append(f"</{node['tag']}>")


def _pass(self: Any, node: element) -> None:
    pass


def setup(app: Any) -> dict[str, Any]:
    others = {name: (_pass, _pass) for name in ("latex", "text", "man", "texinfo")}
    app.add_node(element, html=(_visit, _depart), **others)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
