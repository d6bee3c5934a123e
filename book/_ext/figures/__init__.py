"""Code, data, SVG, PDF, provenance and citation under every figure, and dark versions of figures.

The picture of a figure contains the figure's data (`pfcore.figures`). During the build each named
figure is redrawn from these data alone. The drawing must look like the stored picture, and is
published with the data in `figures/`, under names that do not change when the figure moves to
another page. A figure without data, or one that differs from its drawing, is a warning, and
warnings are fatal.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator
from html import escape
from importlib import metadata
from itertools import groupby
from pathlib import Path
from typing import Any

from docutils import nodes
from PIL import Image
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective
from sphinx.util.osutil import relative_uri

from _ext.common.nodes import page_html
from _ext.figures.drawings import WRITTEN, Drawings
from _ext.figures.texts import (
    Book,
    Figure,
    bibtex_entry,
    bibtex_file,
    card_line,
    files_line,
    provenance_json,
    redirect_page,
)
from pfcore import figures

logger = logging.getLogger(__name__)

FOLDER = "figures"
PAPER = "rosca2023continuous"
# A drawing may differ from the stored picture in this share of its pixels, since edges of glyphs
# depend on the version of the font renderer.
MAX_DIFFERENCE = 0.002


# ---- nodes that only pages have


class picture(nodes.image):
    """A figure's picture, in light and in dark; still an image, so that Sphinx copies its file."""


class all_figures(nodes.General, nodes.Element):
    """Placeholder for the gallery, until all pages are read."""


def _visit_picture(self: Any, node: picture) -> None:
    light = f"{self.builder.imgpath}/{self.builder.images[node['uri']]}"
    width, height = node["size"]
    common = f'alt="{escape(node["alt"])}" width="{width}" height="{height}" loading="lazy"'
    # In a separate element, since the theme hides the caption of a picture that it hides.
    self.body.append(
        f'<div class="figure-picture"><img class="only-light" src="{light}" {common} />'
        f'<img class="only-dark" src="{node["dark"]}" {common} /></div>\n'
    )
    raise nodes.SkipNode


class AllFigures(SphinxDirective):
    """`{all-figures}`: a gallery of every named figure of the book."""

    def run(self) -> list[nodes.Node]:
        self.env.note_reread()
        return [all_figures()]


# ---- figures of the book


def _found(env: Any) -> dict[str, list[Figure]]:
    """Figures by page, kept with the environment from build to build."""
    if not hasattr(env, "figure_files"):
        env.figure_files = {}
    return env.figure_files


def _in_order(env: Any) -> Iterator[Figure]:
    """All figures in the order of the book."""
    pages = [env.config.root_doc]
    for page in pages:
        pages.extend(p for p in env.toctree_includes.get(page, []) if p not in pages)
        yield from _found(env).get(page, [])


def _named_pictures(doctree: nodes.document) -> Iterator[tuple[nodes.figure, nodes.image]]:
    for figure in doctree.findall(nodes.figure):
        image = next(iter(figure.findall(nodes.image)), None)
        if figure["ids"] and image is not None:
            yield figure, image


def _text(node: nodes.Node) -> str:
    """A caption as text, with mathematics between dollars."""
    if isinstance(node, nodes.math):
        return f"${node.astext()}$"
    if isinstance(node, nodes.Text):
        return node.astext()
    return "".join(_text(child) for child in node.children)


def _cell(figure: nodes.figure) -> nodes.Element | None:
    """The code cell that draws a figure."""
    node = figure.parent
    while node is not None and node.get("nb_element") != "cell_code":
        node = node.parent
    return node


def _cell_code(env: Any, page: str, index: int) -> str:
    notebook = json.loads(Path(env.doc2path(page)).read_text(encoding="utf-8"))
    return "".join(notebook["cells"][index]["source"])


def _script(app: Any, name: str) -> tuple[str, str] | None:
    """Path and text of the script that draws a figure of a page without cells.

    The script is searched in the repository, since the sources may be a copy of the book alone.
    """
    path = app.config.figure_scripts.get(name)
    if path is None:
        return None
    source = Path(app.srcdir).resolve()
    for folder in (source, *source.parents):
        if (folder / path).is_file():
            return path, (folder / path).read_text(encoding="utf-8")
    return None


def _read_figure(
    app: Any, docname: str, title: str, node: nodes.figure, image: nodes.image
) -> Figure | None:
    """A figure with its data; None, with a warning, if it is not complete."""
    name = node["ids"][0]
    caption = next(iter(node.findall(nodes.caption)), nodes.caption())
    path = Path(app.srcdir, image["candidates"].get("*", image["uri"]))
    cell = _cell(node)
    drawn_by: tuple[str, str] | None
    if cell is not None:
        notebook = str(app.env.doc2path(docname, base=False))
        drawn_by = notebook, _cell_code(app.env, docname, cell["cell_index"])
    else:
        drawn_by = _script(app, name)
    if drawn_by is None:
        logger.warning(
            "figure %s: figure_scripts in _config.yml must name the script that draws it",
            name,
            location=node,
            type="figure_files",
        )
        return None
    try:
        carried = figures.contents(path)
    except (OSError, ValueError) as error:
        logger.warning("figure %s: %s", name, error, location=node, type="figure_files")
        return None
    with Image.open(path) as opened:
        size = opened.size
    return Figure(
        name=name,
        page=docname,
        page_title=title,
        source=drawn_by[0],
        caption=" ".join(_text(caption).split()),
        alt=image.get("alt", ""),
        image=str(image["candidates"].get("*", image["uri"])),
        size=size,
        code=drawn_by[1],
        csv_sha256=hashlib.sha256(carried.csv.encode()).hexdigest(),
        provenance=carried.provenance,
    )


# ---- building


def _read_page(app: Any, doctree: nodes.document) -> None:
    """Collect the figures of a page that was read, and start to draw them."""
    docname = app.env.docname
    heading = next(iter(doctree.findall(nodes.title)), None)
    title = docname if heading is None else heading.astext()
    read = []
    for node, image in _named_pictures(doctree):
        figure = _read_figure(app, docname, title, node, image)
        if figure is None:
            continue
        read.append(figure)
        cell = _cell(node)
        for source in () if cell is None else cell.children:
            if source.get("nb_element") == "cell_code_source":
                source["ids"].append(f"code-{figure.name}")
        app.figure_drawings.begin(Path(app.srcdir, figure.image))
    _found(app.env)[docname] = read
    if any(doctree.findall(all_figures)):
        # Its formulas are inserted with the captions, after Sphinx has searched for formulas.
        app.env.get_domain("math").data["has_equations"][docname] = True


def _book(app: Any) -> Book:
    config = app.config
    bibliography = "".join(
        Path(app.srcdir, name).read_text(encoding="utf-8") for name in config.bibtex_bibfiles
    )
    package = metadata.metadata("pfcore")
    return Book(
        title=config.html_title,
        author=f"{{{config.author}}}",
        year=config.copyright,
        version=package["Version"],
        licence=package["License-Expression"],
        address=config.html_baseurl.rstrip("/") + "/",
        repository=config.html_theme_options["repository_url"].rstrip("/"),
        paper=bibtex_entry(bibliography, PAPER),
    )


def _picture(figure: Figure, files: str) -> picture:
    return picture(
        uri=figure.image,
        candidates={"*": figure.image},
        alt=figure.alt,
        size=figure.size,
        dark=f"{files}/{figure.name}-dark.png",
    )


def _resolve_page(app: Any, doctree: nodes.document, docname: str) -> None:
    """Add dark pictures and lines to the page's figures, and insert galleries."""
    known = {figure.name: figure for figure in _found(app.env).get(docname, [])}
    files = relative_uri(app.builder.get_target_uri(docname), FOLDER)
    book = _book(app)
    for node, image in list(_named_pictures(doctree)):
        figure = known.get(node["ids"][0])
        if figure is not None:
            image.replace_self(_picture(figure, files))
            at = node.parent.index(node) + 1
            node.parent.insert(at, page_html(html=files_line(figure, book, files)))
    for place in list(doctree.findall(all_figures)):
        place.replace_self(_gallery(app, docname))


def _publish(app: Any) -> Iterator[Any]:
    """Write the files of every figure; called when all pages are written."""
    book = _book(app)
    folder = Path(app.outdir, FOLDER)
    folder.mkdir(exist_ok=True)
    for figure in _in_order(app.env):  # those of pages that were not read again
        app.figure_drawings.begin(Path(app.srcdir, figure.image))
    published = set()
    for figure in _in_order(app.env):
        location = figure.page
        if figure.name in published:
            logger.warning("two figures are named %s", figure.name, location=location)
            continue
        published.add(figure.name)
        try:
            drawn = app.figure_drawings.result(Path(app.srcdir, figure.image))
        except Exception as error:  # any error of a drawing is reported for its figure
            logger.warning(
                "figure %s cannot be drawn from its data: %r", figure.name, error, location=location
            )
            continue
        if drawn.difference > MAX_DIFFERENCE:
            logger.warning(
                "figure %s drawn from its data differs from the stored picture in %.2f %% of the "
                "pixels; run its page again, or see what pfcore.figures does not keep",
                figure.name,
                100 * drawn.difference,
                location=location,
            )
        for suffix in WRITTEN:
            shutil.copyfile(drawn.folder / f"figure{suffix}", folder / f"{figure.name}{suffix}")
        for suffix, text in (
            (".json", provenance_json(figure, book)),
            (".bib", bibtex_file(figure, book)),
            (".html", redirect_page(figure, book)),
        ):
            (folder / f"{figure.name}{suffix}").write_text(text, encoding="utf-8")
    yield from ()


def _end(app: Any, error: Exception | None) -> None:
    app.figure_drawings.close()


# ---- the gallery


def _with_math(text: str) -> list[nodes.Node]:
    """Text with `$…$` as nodes."""
    pieces = text.split("$")
    return [
        nodes.math(piece, piece) if number % 2 else nodes.Text(piece)
        for number, piece in enumerate(pieces)
        if piece
    ]


def _label(app: Any, figure: Figure) -> str:
    """The figure's number in this build, as its caption shows it."""
    number = app.env.toc_fignumbers.get(figure.page, {}).get("figure", {}).get(figure.name, ())
    return app.config.numfig_format["figure"] % ".".join(map(str, number))


def _card(app: Any, figure: Figure, there: str, files: str) -> list[nodes.Node]:
    link = nodes.reference("", _label(app, figure), internal=True, refuri=there)
    text = [link, nodes.Text(" "), *_with_math(figure.title)]
    caption = nodes.paragraph("", "", *text, classes=["gallery-caption"])
    # The text beside it is the same link, for keyboards and screen readers.
    opening = f'<div class="gallery-card"><a href="{there}" tabindex="-1" aria-hidden="true">'
    return [
        page_html(html=opening),
        _picture(figure, files),
        page_html(html="</a>"),
        caption,
        page_html(html=card_line(figure, there.partition("#")[0], files) + "</div>\n"),
    ]


def _gallery(app: Any, docname: str) -> list[nodes.Node]:
    """Cards, grouped by page."""
    files = relative_uri(app.builder.get_target_uri(docname), FOLDER)
    made: list[nodes.Node] = []
    for page, found in groupby(_in_order(app.env), lambda figure: figure.page):
        address = app.builder.get_relative_uri(docname, page)
        group = list(found)
        title = escape(group[0].page_title)
        made.append(
            page_html(
                html=f'<h2 class="gallery-page"><a href="{address}">{title}</a></h2>\n'
                '<div class="gallery">\n'
            )
        )
        for figure in group:
            made += _card(app, figure, f"{address}#{figure.name}", files)
        made.append(page_html(html="</div>\n"))
    return made


def setup(app: Any) -> None:
    app.add_config_value("figure_scripts", {}, "env", dict)
    app.add_directive("all-figures", AllFigures)
    app.setup_extension("_ext.common.nodes")
    app.add_node(picture, html=(_visit_picture, None))
    app.add_node(all_figures)
    app.figure_drawings = Drawings(Path(app.doctreedir).parent / "drawings")
    app.connect("doctree-read", _read_page)
    # After the builder's assets are chosen, before pages are written.
    app.connect("doctree-resolved", _resolve_page)
    app.connect("html-collect-pages", _publish)
    app.connect("build-finished", _end)
