r"""Numbered equations, each linked to the code that computes it, and back.

Display math that ends in the TeX comment `% \label{eq-x}` gets a number, the anchor
`#equation-eq-x`, and below it a line with links to the API entries that `book/equations.yml` lists
for the label. In MyST Markdown the role `eq` refers to it. API entries list their equations.

A label without an entry in the file, an entry whose label is not used, and a name without an API
entry are warnings, which are fatal in the build.
"""

import re
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from docutils import nodes
from sphinx import addnodes
from sphinx.transforms import SphinxTransform
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

from _ext.common.nodes import joined, page_link, reference

FILE = Path(__file__).resolve().parent.parent / "equations.yml"
LABEL = re.compile(r"\s*%?\s*\\label\{([^}]*)\}[ \t]*")
LOG = logging.getLogger(__name__)


class Equation(NamedTuple):
    """The description of an equation, and the public names that compute it."""

    what: str
    code: tuple[str, ...]


def read(path: Path = FILE) -> dict[str, Equation]:
    """The equations by label, in the file's order.

    Raises:
      ValueError: an entry does not consist of `what` and a list `code`.
    """
    found = {}
    for label, entry in yaml.safe_load(path.read_text(encoding="utf-8")).items():
        if set(entry) != {"what", "code"} or not isinstance(entry["code"], list):
            raise ValueError(f"{path.name}: {label} must have `what` and a list `code`: {entry!r}")
        found[label] = Equation(entry["what"], tuple(entry["code"]))
    return found


def unlabelled(latex: str) -> tuple[str, list[str]]:
    """Display math without its labels, and the labels."""
    return LABEL.sub("", latex), LABEL.findall(latex)


def anchor(label: str) -> str:
    """The id of the equation on its page, as Sphinx's references use it."""
    return nodes.make_id(f"equation-{label}")


def _code_line(names: tuple[str, ...]) -> nodes.paragraph:
    """`code: ` and a link for each name."""
    line = nodes.paragraph("", "", classes=["equation-code"])
    line += nodes.inline("", "code:", classes=["equation-code-key"])
    for name in names:
        line += nodes.Text(" ")
        line += reference("py:obj", name, _breakable(name))
    return line


def _breakable(name: str) -> nodes.literal:
    """A dotted name that may wrap after dots and underscores, for narrow screens."""
    code = nodes.literal("", "")
    for part in re.findall(r"[^._]*[._]?", name):
        code += [nodes.Text(part), nodes.raw("", "<wbr>", format="html")]
    return code


class Number(SphinxTransform):
    """Add number and line of code to labelled display math when a page is read."""

    default_priority = 400

    def apply(self, **kwargs: Any) -> None:
        for block in list(self.document.findall(nodes.math_block)):
            latex, labels = unlabelled(block.astext())
            if not labels:
                continue
            if len(labels) > 1:
                LOG.warning("one display has several labels: %s", labels, location=block)
            block.children = [nodes.Text(latex)]
            self._number(block, labels[0])

    def _number(self, block: nodes.math_block, label: str) -> None:
        domain: Any = self.env.get_domain("math")
        domain.note_equation(self.env.docname, label, location=block)
        block["label"], block["docname"] = label, self.env.docname
        block["number"] = domain.get_equation_number_for(label)
        block["ids"] = [anchor(label), *block["ids"]]
        block["classes"].append("numbered-equation")
        self.env.note_dependency(str(FILE))
        known = _listed(self.app).get(label)
        if known is None:
            LOG.warning("equation %s has no entry in %s", label, FILE.name, location=block)
        else:
            block.parent.insert(block.parent.index(block) + 1, _code_line(known.code))


def _listed(app: Any) -> dict[str, Equation]:
    """The entries of the file, by label."""
    return app.equations


def _numbered(env: Any) -> dict[str, Any]:
    """Page and number of each equation, by label; complete once all pages are read."""
    return env.get_domain("math").equations


# ---- from API entries to equations


class equations_of(nodes.General, nodes.Element):
    """Placeholder in the API entry `name` until all pages are read."""


class Back(SphinxPostTransform):
    """List the equations of an API entry, once these have numbers."""

    default_priority = 5  # before references are resolved, since it adds some

    def run(self, **kwargs: Any) -> None:
        for node in list(self.document.findall(equations_of)):
            node.replace_self(self._line(node["name"]))

    def _line(self, name: str) -> nodes.paragraph:
        pages: dict[str, list[str]] = {}
        where = _numbered(self.env)
        for label, equation in _listed(self.app).items():
            if name in equation.code and label in where:
                pages.setdefault(where[label][0], []).append(label)
        line = nodes.paragraph("", "", classes=["in-equations"])
        for number, (page, labels) in enumerate(pages.items()):
            many = "s" if len(labels) > 1 else ""
            line += nodes.Text(f"{'; equation' if number else 'Equation'}{many} ")
            line += joined((_number_of(label) for label in labels), last=" and ")
            line += nodes.Text(" in ")
            line += page_link(page)
        line += nodes.Text(".")
        return line


# ---- the list


class equation_list(nodes.General, nodes.Element):
    """Placeholder for the list of all equations, until they have numbers."""


class EquationList(SphinxDirective):
    """`{equation-list}`: every numbered equation, in the order of the book."""

    def run(self) -> list[nodes.Node]:
        self.env.note_dependency(str(FILE))
        return [equation_list()]


class Listed(SphinxPostTransform):
    """Fill the list with number, description and page of each equation."""

    default_priority = 5

    def run(self, **kwargs: Any) -> None:
        for node in list(self.document.findall(equation_list)):
            node.replace_self(self._list())

    def _list(self) -> nodes.bullet_list:
        listed = nodes.bullet_list("", classes=["equation-list"])
        where = _numbered(self.env)
        for label, equation in _listed(self.app).items():
            if label in where:
                line = nodes.paragraph("", "", _number_of(label), nodes.Text(f" {equation.what}"))
                listed += nodes.list_item("", line)
        return listed


def _number_of(label: str) -> addnodes.pending_xref:
    # The math domain replaces this content by the number.
    return reference("math:eq", label, nodes.inline("", label))


def _note(app: Any, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Insert the line on equations after the first paragraph of a docstring."""
    app.env.note_dependency(str(FILE))
    if not any(name in equation.code for equation in app.equations.values()):
        return
    end = lines.index("") if "" in lines else len(lines)
    lines[end:end] = ["", f".. equations-of:: {name}", ""]


class EquationsOf(SphinxDirective):
    """`.. equations-of:: NAME`, the line on equations in an API entry."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        return [equations_of("", name=self.arguments[0])]


def _check(app: Any, env: Any) -> None:
    for label in app.equations:
        if label not in env.get_domain("math").equations:
            LOG.warning("%s has an entry for %s, which is on no page", FILE.name, label)


def setup(app: Any) -> None:
    app.equations = read()
    app.add_transform(Number)
    app.add_node(equations_of)
    app.add_directive("equations-of", EquationsOf)
    app.add_post_transform(Back)
    app.add_node(equation_list)
    app.add_directive("equation-list", EquationList)
    app.add_post_transform(Listed)
    app.connect("autodoc-process-docstring", _note, priority=900)  # after Napoleon
    app.connect("env-check-consistency", _check)
