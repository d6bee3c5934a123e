r"""API pages from pfcore's docstrings: Google's layout, with Markdown's `$...$` and backticks.

Converts docstrings to reStructuredText, links names in backticks to their entries, omits the
docstrings of a NamedTuple's fields ("Alias for field number 0"), and links each entry to its source
lines in the repository, at the tag of the documented version.
"""

import collections
import dataclasses
import functools
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.domains.python import PyObject
from sphinx.ext.autodoc.preserve_defaults import update_defvalue
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.docutils import ReferenceRole, SphinxDirective
from sphinx.util.inspect import stringify_signature

from _ext.common.nodes import page_link, reference
from _ext.common.text import revision

MARKUP = re.compile(
    r"\$\$(?P<display>.+?)\$\$"
    r"|(?P<kept>``.+?``|:[\w:]+:`[^`]+`)"
    r"|\$(?P<math>[^$]+)\$"
    r"|`(?P<code>[^`]+)`",
    re.DOTALL,
)
DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
# Replaces a colon that Napoleon would read as the end of a type.
COLON = "\ue000"

# ---- docstrings


def _pieces(lines: list[str]) -> Iterator[tuple[bool, str]]:
    """Split a docstring into examples (true) and the text between them."""
    piece: list[str] = []
    inside = False
    for line in lines:
        starts = line.lstrip().startswith(">>>")
        if piece and starts != inside and (starts or not line.strip()):
            yield inside, "\n".join(piece)
            piece = []
        inside = starts or (inside and bool(line.strip()))
        piece.append(line)
    yield inside, "\n".join(piece)


def rewritten(lines: list[str], entry: str, literal: frozenset[str]) -> list[str]:
    """Convert the lines of a docstring to reStructuredText.

    Args:
      lines: the docstring, as processed by Napoleon.
      entry: the full name of the documented object, relative to which names are resolved.
      literal: names of the object's arguments, which are not linked.
    """

    def replace(match: re.Match[str]) -> str:
        if match["kept"]:
            return match[0]
        if match["display"]:
            line = match.string[: match.start()].rpartition("\n")[2]
            margin = " " * (len(line) - len(line.lstrip()))
            latex = " ".join(match["display"].split())
            return f"\n\n{margin}.. math::\n\n{margin}   {latex}\n\n{margin}"
        if match["math"]:
            inline = f":math:`{' '.join(match['math'].split())}`"
        else:
            code = " ".join(match["code"].split())
            link = DOTTED.fullmatch(code) and code not in literal
            inline = f":api:`{code} <{entry}>`" if link else f"``{code}``"
        # A role needs space around it; an escaped space is not shown.
        before = match.string[match.start() - 1 : match.start()].strip() and "\\ "
        after = match.string[match.end() : match.end() + 1].strip() and "\\ "
        return f"{before}{inline}{after}"

    text = [piece if code else MARKUP.sub(replace, piece) for code, piece in _pieces(lines)]
    return "\n".join(text).split("\n")


def _before_napoleon(
    app: Any, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Protect colons in the first line of Returns, which has no type before a colon."""
    for number, line in enumerate(lines[:-1]):
        if line.strip() == "Returns:":
            lines[number + 1] = lines[number + 1].replace(":", COLON)


def _after_napoleon(
    app: Any, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    restored = [line.replace(COLON, ":") for line in lines]
    lines[:] = rewritten(restored, name, _arguments(obj))


def _arguments(obj: object) -> frozenset[str]:
    try:
        return frozenset(inspect.signature(obj).parameters)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return frozenset()


def _skip(app: Any, what: str, name: str, obj: object, skip: bool, options: object) -> bool | None:
    """Skip the fields of a NamedTuple, whose docstrings are "Alias for field number 0"."""
    return True if type(obj).__name__ == "_tuplegetter" else None


def _call_of(
    app: Any, what: str, name: str, obj: Any, options: object, signature: str, returns: str
) -> tuple[str, str] | None:
    """The signature of a class, if Sphinx's own is too long or not informative.

    A default that is a dataclass is abbreviated to `Name(...)`. A Flax module, whose metaclass
    accepts any arguments, has the signature of its `__init__`.
    """
    if what != "class":
        return None
    if dataclasses.is_dataclass(obj):
        return f"({', '.join(map(_field, dataclasses.fields(obj)))})", returns
    if signature == "(*args, **kwargs)":
        update_defvalue(app, obj.__init__, bound_method=True)
        arguments = inspect.signature(obj.__init__).parameters.values()
        kept = [argument for argument in arguments if argument.name != "self"]
        return stringify_signature(inspect.Signature(kept), show_annotation=False), returns
    return None


def _field(field: dataclasses.Field[Any]) -> str:
    if dataclasses.is_dataclass(field.default):
        return f"{field.name}={type(field.default).__name__}(...)"
    if field.default is not dataclasses.MISSING:
        return f"{field.name}={field.default!r}"
    return field.name if field.default_factory is dataclasses.MISSING else f"{field.name}=..."


# ---- names in backticks


class api_name(nodes.Inline, nodes.TextElement):
    """A name that may have an API entry; `entry` is the object whose docstring contains it."""


class ApiRole(ReferenceRole):
    """`shown <entry>`: a name, and the object whose docstring contains it."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        return [api_name(self.rawtext, self.title, entry=self.target)], []


def _entries(env: Any) -> dict[str, Any]:
    """All entries of the API, by full name."""
    return env.get_domain("py").objects


class Links(SphinxPostTransform):
    """Link names that have an entry, and show others as code."""

    default_priority = 5  # before references are resolved

    def run(self, **kwargs: Any) -> None:
        for node in list(self.document.findall(api_name)):
            shown = node.astext()
            target = self._target(shown, node["entry"])
            if target is None:
                node.replace_self(nodes.literal("", shown))
            else:
                node.replace_self(_to_entry(target, shown))

    def _target(self, shown: str, entry: str) -> str | None:
        """The full name of the entry: in an enclosing scope, as given, or by its unique class."""
        known = _entries(self.env)
        scopes = entry.split(".")
        near = [".".join([*scopes[:n], shown]) for n in range(len(scopes), 0, -1)]
        found = [name for name in [*near, shown] if name in known]
        if not found and shown[0].isupper():
            found = [name for name in known if name.rpartition(".")[2] == shown]
            found = found if len(found) == 1 else []
        return found[0] if found and found[0] != entry else None


# ---- an overview


class api_overview(nodes.General, nodes.Element):
    """Placeholder for the list of the entries of `pages`, filled once all pages are read."""


class Overview(SphinxDirective):
    """`.. api-overview::`, followed by names of pages in the same folder, one per line."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        folder = self.env.docname.rpartition("/")[0]
        return [api_overview("", pages=[f"{folder}/{page}" for page in self.content if page])]


class Overviews(SphinxPostTransform):
    """List the entries of each page under a link to it."""

    default_priority = 5

    def run(self, **kwargs: Any) -> None:
        for node in list(self.document.findall(api_overview)):
            listed = nodes.definition_list("", classes=["api-overview"])
            for page in node["pages"]:
                item = nodes.definition_list_item("", nodes.term("", "", page_link(page)))
                item += nodes.definition("", nodes.paragraph("", "", *self._entries(page)))
                listed += item
            node.replace_self(listed)

    def _entries(self, page: str) -> Iterator[nodes.Node]:
        """Links labelled by the last part of the name, or by two parts where that is ambiguous."""
        shown = ("function", "class", "data", "exception")
        names = [
            name
            for name, entry in _entries(self.env).items()
            if entry.docname == page and entry.objtype in shown and not entry.aliased
        ]
        ends = collections.Counter(name.split(".")[-1] for name in names)
        for name in names:
            *_, module, end = name.split(".")
            alone = ends[end] == 1 or f"pfcore.{module}.{end}" == name
            yield _to_entry(name, end if alone else f"{module}.{end}")
            yield nodes.Text(" ")


def _to_entry(name: str, shown: str) -> addnodes.pending_xref:
    return reference("py:obj", name, nodes.literal("", shown), warn=False)


# ---- links to the source


def source_of(repository: str, domain: str, info: dict[str, str]) -> str | None:
    """The URL of the source lines of an entry; None if they cannot be determined.

    Args:
      repository: URL of the repository.
      domain: Sphinx domain of the entry.
      info: `module` and `fullname` of the entry.
    """
    import pfcore

    if domain != "py" or not info["module"]:
        return None
    obj: Any = importlib.import_module(info["module"])
    try:
        for part in info["fullname"].split("."):
            obj = getattr(obj, part)
        obj = inspect.unwrap(obj)
        lines, first = inspect.getsourcelines(obj)
        file = Path(inspect.getsourcefile(obj) or "").resolve()
    except (AttributeError, TypeError, OSError):
        return None
    root = Path(pfcore.__file__).resolve().parent.parent
    if not file.is_relative_to(root):
        return None
    path = file.relative_to(root).as_posix()
    where = f"L{first}-L{first + len(lines) - 1}"
    return f"{repository}/blob/{revision()}/{path}#{where}"


def _call_attributes_fields() -> None:
    """Title the attributes of a NamedTuple "Fields" instead of "Variables"."""
    for field in PyObject.doc_field_types:
        if field.name == "variable":
            field.label = "Fields"


def _link_sources(app: Any, config: Any) -> None:
    repository = config.html_theme_options["repository_url"]
    config.linkcode_resolve = functools.partial(source_of, repository)


def setup(app: Any) -> None:
    _call_attributes_fields()
    app.connect("config-inited", _link_sources)
    app.connect("autodoc-process-docstring", _before_napoleon, priority=400)
    app.connect("autodoc-process-docstring", _after_napoleon, priority=600)
    app.connect("autodoc-process-signature", _call_of)
    app.connect("autodoc-skip-member", _skip)
    app.add_node(api_name)
    app.add_role("api", ApiRole())
    app.add_post_transform(Links)
    app.add_node(api_overview)
    app.add_directive("api-overview", Overview)
    app.add_post_transform(Overviews)
