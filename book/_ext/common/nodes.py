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


class page_html(nodes.General, nodes.Element):
    """HTML that is not part of the search index."""


def code(text: str) -> nodes.literal:
    """Text set as code."""
    return nodes.literal("", text, classes=["to-the-letter"])


def page_link(page: str) -> addnodes.pending_xref:
    """A link to a page, shown as its title; Sphinx warns if the page is missing."""
    return _titled("doc", "/" + page)


def figure_link(anchor: str) -> addnodes.pending_xref:
    """A link to a figure, shown as "Fig. 3"; Sphinx warns if the figure is missing."""
    return _titled("numref", anchor)


def _titled(kind: str, target: str) -> addnodes.pending_xref:
    shown = nodes.inline("", target, classes=["std", f"std-{kind}"])
    return reference(f"std:{kind}", target, shown, explicit=False)


def reference(
    role: str, target: str, shown: nodes.Node, *, explicit: bool = True, warn: bool = True
) -> addnodes.pending_xref:
    """A link that Sphinx resolves once all pages are read.

    Args:
      role: the role, such as "std:doc" or "py:obj".
      target: the target.
      shown: the content of the link.
      explicit: keep `shown` in place of the target's title or number.
      warn: whether to warn if the target is missing.
    """
    domain, kind = role.split(":")
    return addnodes.pending_xref(
        "",
        shown,
        refdomain=domain,
        reftype=kind,
        reftarget=target,
        refexplicit=explicit,
        refwarn=warn,
    )


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


def _visit_html(self: Any, node: page_html) -> None:
    self.body.append(node["html"])
    raise nodes.SkipNode


def setup(app: Any) -> None:
    app.add_node(element, html=(_visit, _depart))
    app.add_node(page_html, html=(_visit_html, None))
