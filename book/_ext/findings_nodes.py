"""What the generated parts of pages are made of: HTML elements as nodes of the document, so that
links in them are resolved and checked, and words in them are found by the search."""

import html
from typing import Any

from docutils import nodes
from sphinx import addnodes

# A check, a half and a cross, each in a circle: told apart without colour.
_SHAPES = {
    "holds": '<path d="M6.4 10.2l2.6 2.6 4.8-5.4"/>',
    "holds in part": '<path d="M10 2.5a7.5 7.5 0 0 1 0 15z" fill="currentColor"/>',
    "fails": '<path d="M7 7l6 6m0-6l-6 6"/>',
}


class element(nodes.General, nodes.TextElement):
    """An HTML element; other writers see its children alone."""


def make(tag: str, *children: nodes.Node | str, **attributes: str | None) -> element:
    """An element with its children.

    Args:
      tag: such as "p".
      *children: nodes, or text.
      **attributes: of the element; `class_` is `class`, `data_x` is `data-x`, None a bare name.
    """
    named = {name.strip("_").replace("_", "-"): value for name, value in attributes.items()}
    made = element("", "", tag=tag, attributes_=named)
    made += [nodes.Text(child) if isinstance(child, str) else child for child in children]
    return made


def code(text: str, *classes: str) -> nodes.literal:
    """What is to be typed, or read, to the letter."""
    return nodes.literal("", text, classes=["to-the-letter", *classes])


def slug(verdict: str) -> str:
    """A verdict as part of a class's name."""
    return verdict.replace(" ", "-")


def mark(verdict: str) -> nodes.raw:
    """The verdict's sign; the word must stand beside it."""
    drawing = (
        f'<svg class="verdict-mark mark-{slug(verdict)}" viewBox="0 0 20 20" aria-hidden="true" '
        'fill="none" stroke="currentColor" stroke-width="2" stroke-linecap="round" '
        f'stroke-linejoin="round"><circle cx="10" cy="10" r="7.5"/>{_SHAPES[verdict]}</svg>'
    )
    return nodes.raw("", drawing, format="html")


def verdict_word(verdict: str) -> element:
    """The sign, then the word."""
    return make("span", mark(verdict), verdict, class_=f"verdict verdict-{slug(verdict)}")


def page_link(docname: str, page: str, text: str | None = None) -> addnodes.pending_xref:
    """A link to a page, by its title unless there is a text; Sphinx warns where there is no page.

    Args:
      docname: of the page that the link is on.
      page: of the page that it leads to.
      text: to be shown.
    """
    return _link(docname, "doc", "/" + page, text)


def figure_link(docname: str, anchor: str) -> addnodes.pending_xref:
    """A link to a figure, as "Fig. 3"; Sphinx warns where there is no such figure."""
    return _link(docname, "numref", anchor, None)


def _link(docname: str, kind: str, target: str, text: str | None) -> addnodes.pending_xref:
    link = addnodes.pending_xref(
        "",
        refdomain="std",
        reftype=kind,
        reftarget=target,
        refexplicit=text is not None,
        refwarn=True,
        refdoc=docname,
    )
    link += nodes.inline("", text or target, classes=["std", f"std-{kind}"])
    return link


def number(value: float) -> str:
    """Two digits, written as one writes them by hand: 170, 0.0028, 9×10⁻⁷."""
    rounded = float(f"{value:.2g}")
    if rounded == 0 or 1e-4 <= abs(rounded) < 1e5:
        return f"{rounded:,.6f}".rstrip("0").rstrip(".").replace("-", "−")
    mantissa, exponent = f"{rounded:.1e}".split("e")
    raised = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{mantissa.removesuffix('.0').replace('-', '−')}×10{raised}"


def duration(seconds: float) -> str:
    """Such as "40 s", "2 min 5 s" or "3 h 12 min"."""
    total = round(seconds)
    if total < 60:
        return f"{total} s"
    minutes, rest = divmod(total, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def megabytes(amount: float) -> str:
    """Such as "640 MB" or "1.2 GB"."""
    return f"{amount / 1000:.1f} GB" if amount >= 1000 else f"{round(amount, -1):.0f} MB"


def expectation(measured: dict[str, Any]) -> str:
    """What a page takes, such as "40 s and 640 MB", from its `seconds` and `peak_mb`."""
    seconds = duration(measured["seconds"])
    peak = measured["peak_mb"]
    return seconds if peak is None else f"{seconds} and {megabytes(peak)}"


def count(amount: int, one: str, many: str | None = None) -> str:
    """Such as "1 record" and "1,200 records"."""
    return f"{amount:,} {one if amount == 1 else many or one + 's'}"


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
