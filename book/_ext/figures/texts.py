"""Texts about a figure: its citation, its provenance, its box on the page.

Pure functions of a `Figure` and a `Book`, independent of Sphinx and of drawing.
"""

import hashlib
import json
import re
from html import escape
from typing import Any, NamedTuple

from _ext.common.text import revision


class Book(NamedTuple):
    """Data shared by all figures of a build.

    Attributes:
      title: title of the book.
      author: author for BibTeX, in braces where capitals must be kept.
      year: year of this version.
      version: version of pfcore.
      licence: SPDX expression.
      address: URL of the book, ending in "/".
      repository: URL of its sources, without "/" at the end.
      paper: BibTeX entry of the paper that the book accompanies.
    """

    title: str
    author: str
    year: str
    version: str
    licence: str
    address: str
    repository: str
    paper: str


class Figure(NamedTuple):
    """One figure of one page.

    Attributes:
      name: its anchor on the page, and the stem of its files.
      page: docname of the page, such as "book/stability".
      page_title: title of the page.
      source: path of the notebook or script that draws it, relative to the repository.
      caption: the caption as text, with mathematics between dollars.
      alt: the alternative text.
      image: path of the picture, relative to the sources.
      size: width and height of the picture in pixels.
      code: source of the cell or script that draws it.
      csv_sha256: SHA-256 of the figure's data.
      provenance: the provenance stored in the picture.
    """

    name: str
    page: str
    page_title: str
    source: str
    caption: str
    alt: str
    image: str
    size: tuple[int, int]
    code: str
    csv_sha256: str
    provenance: dict[str, Any]

    @property
    def title(self) -> str:
        """The first sentence of the caption, without its full stop."""
        return first_sentence(self.caption).rstrip(".:;")

    @property
    def code_sha256(self) -> str:
        return hashlib.sha256(self.code.encode()).hexdigest()


# Up to a full stop outside of formulas, before a space and a capital, digit or formula.
SENTENCE = re.compile(r"(?:\$[^$]*\$|[^$])+?[.!?](?=\s+[A-Z0-9“$\\])", re.DOTALL)


def first_sentence(text: str) -> str:
    """The text up to its first full stop, ignoring dots inside `$…$`.

    Example:
      >>> first_sentence("At $h = 0.5$ all agree. Elsewhere, none do.")
      'At $h = 0.5$ all agree.'
    """
    found = SENTENCE.match(text)
    return found[0] if found else text


# ---- addresses


def stable_address(figure: Figure, book: Book) -> str:
    """An address that does not change when the figure moves to another page."""
    return f"{book.address}figures/{figure.name}.html"


def code_address(figure: Figure, book: Book) -> str:
    """The source that draws the figure, at the tag of this version."""
    return f"{book.repository}/blob/{revision(book.version)}/{figure.source}"


def redirect_page(figure: Figure, book: Book) -> str:
    """A page beside the figure's files that redirects to the figure, also from a local disk."""
    there = f"../{figure.page}.html#{figure.name}"
    title = escape(f"{figure.title} — {book.title}")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n"
        f'<link rel="canonical" href="{escape(book.address + figure.page)}.html">\n'
        f'<meta http-equiv="refresh" content="0; url={escape(there)}">\n'
        "</head>\n<body>\n"
        f'<p>This figure is on the page <a href="{escape(there)}">{escape(figure.page_title)}</a>.'
        "</p>\n</body>\n</html>\n"
    )


# ---- citing


def _bibtex_text(text: str) -> str:
    """Plain text with `$…$`, escaped for BibTeX and LaTeX."""
    special = {c: "\\" + c for c in "&%#_{}"} | {
        "~": "\\textasciitilde{}",
        "\\": "\\textbackslash{}",
    }
    pieces = re.split(r"(\$[^$]*\$)", text)
    return "".join(
        piece if piece.startswith("$") else "".join(special.get(c, c) for c in piece)
        for piece in pieces
    )


def figure_bibtex(figure: Figure, book: Book) -> str:
    """The entry that cites one figure, at its stable address."""
    fields = {
        "author": book.author,
        "title": "{" + _bibtex_text(figure.title) + "}",
        "howpublished": (
            rf"Figure \texttt{{{figure.name}}} of \emph{{{_bibtex_text(book.title)}}}, "
            f"chapter ``{_bibtex_text(figure.page_title)}''"
        ),
        "version": book.version,
        "year": book.year,
        "url": stable_address(figure, book),
    }
    width = max(map(len, fields))
    lines = [f"  {key:<{width}} = {{{value}}}," for key, value in fields.items()]
    return "\n".join([f"@misc{{pfcore-{figure.name},", *lines, "}"]) + "\n"


def bibtex_entry(bibliography: str, key: str) -> str:
    """One entry of a BibTeX file, verbatim.

    Raises:
      ValueError: the key is missing, or braces are not closed.
    """
    found = re.search(rf"^@\w+\{{{re.escape(key)},", bibliography, re.MULTILINE)
    if found is None:
        raise ValueError(f"no entry {key!r} in the bibliography")
    depth = 0
    for position in range(found.start(), len(bibliography)):
        depth += {"{": 1, "}": -1}.get(bibliography[position], 0)
        if bibliography[position] == "}" and depth == 0:
            return bibliography[found.start() : position + 1] + "\n"
    raise ValueError(f"the braces of entry {key!r} are not closed")


def bibtex_file(figure: Figure, book: Book) -> str:
    """The figure's entry and the paper's."""
    return f"{figure_bibtex(figure, book)}\n{book.paper}"


# ---- provenance


def provenance(figure: Figure, book: Book) -> dict[str, Any]:
    """The provenance of a figure: data of the book, then data stored in the picture."""
    return {
        "figure": figure.name,
        "title": figure.title,
        "caption": figure.caption,
        "address": stable_address(figure, book),
        "page": figure.page_title,
        "page_address": f"{book.address}{figure.page}.html#{figure.name}",
        "source": figure.source,
        "source_address": code_address(figure, book),
        "code": figure.code,
        "code_sha256": figure.code_sha256,
        "data": {"file": f"{figure.name}.csv", "sha256": figure.csv_sha256},
        "pfcore": book.version,
        "licence": book.licence,
        **figure.provenance,
    }


def provenance_json(figure: Figure, book: Book) -> str:
    return json.dumps(provenance(figure, book), indent=1, ensure_ascii=False) + "\n"


# Labels of the keys of the provenance; other keys are shown by name.
_WORDS = {
    "config": "configuration",
    "jax_enable_x64": "double precision",
    "python": "Python",
    "sha256": "SHA-256",
    "wall_time_s": "computed in",
}
# The largest number of records and data sets that are shown unfolded.
_UNFOLDED = 3


def _word(key: str) -> str:
    return escape(_WORDS.get(key, key.replace("_", " ")))


def _commit(commit: str) -> str:
    """An abbreviated commit, with a "+" for uncommitted changes."""
    changed = ", with changes" if commit.endswith("+") else ""
    return f"<code>{escape(commit[:12].rstrip('+'))}</code>{changed}"


def _inline(value: Any, key: str = "") -> str:
    """A value of the provenance in a line of HTML."""
    if isinstance(value, dict):
        pairs = (f"<i>{_word(k)}</i>\N{NO-BREAK SPACE}{_inline(v, k)}" for k, v in value.items())
        inside = ", ".join(pairs)
        return inside if key in ("", "config", "data", "versions") else f"({inside})"
    if isinstance(value, list | tuple):
        return ", ".join(_inline(item, key) for item in value) or "none"
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g} s" if key == "wall_time_s" else f"{value:g}"
    if isinstance(value, str) and key == "commit":
        return _commit(value)
    return f"<code>{escape(value)}</code>" if key == "sha256" else escape(str(value))


def _source(source: dict[str, Any], folded: bool) -> str:
    """A data set or record that the figure uses."""
    rows = "".join(f"<dt>{_word(k)}</dt><dd>{_inline(v, k)}</dd>" for k, v in source.items())
    if not folded:
        return f"<dl>{rows}</dl>"
    told = (source.get(key) for key in ("kind", "experiment", "name", "folder"))
    name = escape(", ".join(str(word) for word in told if word))
    return f"<details><summary>{name}</summary><dl>{rows}</dl></details>"


def provenance_box(figure: Figure, book: Book, files: str) -> str:
    """The provenance as a table, with a link to the machine-readable file.

    Args:
      figure: the figure.
      book: its book.
      files: address of the folder `figures/`, relative to the page.
    """
    carried = dict(figure.provenance)
    sources = carried.pop("sources", [])
    folded = len(sources) > _UNFOLDED
    csv = f"{figure.name}.csv"
    rows = [
        (
            "drawn by",
            f'<a href="{escape(code_address(figure, book))}">{escape(figure.source)}</a>, '
            f"SHA-256 of the code <code>{figure.code_sha256}</code>",
        ),
        (
            "its data",
            f'<a href="{files}/{csv}" download>{csv}</a>, SHA-256 <code>{figure.csv_sha256}</code>',
        ),
        ("made of", "".join(_source(s, folded) for s in sources) or "nothing stored or measured"),
        *((_word(key), _inline(value, key)) for key, value in carried.items()),
        ("licence", escape(book.licence)),
    ]
    body = "".join(f'<tr><th scope="row">{key}</th><td>{value}</td></tr>' for key, value in rows)
    return (
        f'<table class="figure-provenance"><tbody>{body}</tbody></table>'
        f'<p><a href="{files}/{figure.name}.json">All of it, with the code, as JSON</a></p>'
    )


# ---- the line under a figure


def _copied(label: str, text: str, identity: str) -> str:
    """Text in a box with a copy button, which the script shows if JavaScript is available."""
    return (
        f'<div class="figure-copied"><div class="figure-copied-head">'
        f'<span id="{identity}-label">{escape(label)}</span>'
        f'<button type="button" class="figure-copy" hidden aria-describedby="{identity}-label">'
        "Copy</button></div>"
        f"<pre>{escape(text.rstrip())}</pre></div>"
    )


def cite_box(figure: Figure, book: Book, files: str) -> str:
    """The stable address and both BibTeX entries, each with a button that copies it."""
    name = figure.name
    return (
        _copied("BibTeX of this figure", figure_bibtex(figure, book), f"cite-{name}-figure")
        + _copied("BibTeX of the paper", book.paper, f"cite-{name}-paper")
        + _copied("Lasting address", stable_address(figure, book), f"cite-{name}-address")
        + f'<p><a href="{files}/{name}.bib" download>Both entries as a file</a></p>'
        '<p class="figure-status" role="status" aria-live="polite"></p>'
    )


def _link(word: str, href: str, label: str, extra: str = "") -> str:
    return f'<a href="{escape(href)}" aria-label="{label}"{extra}>{word}</a>'


def _file_links(figure: Figure, files: str) -> list[str]:
    name = figure.name
    return [
        _link("data", f"{files}/{name}.csv", f"data of {name}, CSV", " download"),
        _link("SVG", f"{files}/{name}.svg", f"SVG of {name}"),
        _link("PDF", f"{files}/{name}.pdf", f"PDF of {name}"),
    ]


def card_line(figure: Figure, page: str, files: str) -> str:
    """The line under a figure in the gallery, with its files and its citation.

    Args:
      figure: the figure.
      page: address of the figure's page.
      files: address of the folder `figures/`.
    """
    cite = _link("cite", f"{page}#cite-{figure.name}", f"cite {figure.name}")
    return f'<div class="figure-files">{"".join([*_file_links(figure, files), cite])}</div>'


def files_line(figure: Figure, book: Book, files: str) -> str:
    """The line *code · data · SVG · PDF · provenance · cite*, with its two boxes.

    It works without scripts, since the boxes are `details` elements.
    """
    name = figure.name
    code = f"#code-{name}" if figure.source.endswith(".ipynb") else code_address(figure, book)
    boxes = [
        ("provenance", provenance_box(figure, book, files)),
        ("cite", cite_box(figure, book, files)),
    ]
    return "\n".join(
        [
            f'<div class="figure-files" role="group" aria-label="files of {name}">',
            _link("code", code, f"code of {name}"),
            *_file_links(figure, files),
            *(
                f'<details name="box-{name}"><summary>{word}</summary>'
                f'<div class="figure-box" id="{word}-{name}">{content}</div></details>'
                for word, content in boxes
            ),
            "</div>",
        ]
    )
