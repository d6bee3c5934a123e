"""The box "Rerun this page" on every notebook's page, and the theme's launch buttons beside it.

Both link to the notebook at the tag of this version of `pfcore`, since the branch may change. The
box shows the measured time and memory of the page, and the settings that the full profile changes,
computed from the profiles of the experiments that the page's code names.
"""

import ast
import html
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from docutils import nodes

import pfcore
from _ext.claims_pages import stored
from _ext.common import text
from _ext.common.nodes import page_html
from _ext.common.text import revision
from pfcore import records
from pfcore.experiments import EXPERIMENTS, PROBLEMS, PROFILE_VARIABLE

esc = html.escape

# The function that loads a stored record, by its current name and that of version 0.2.
LOADS = ("load_or_run", "obtain")


def colab(repository: str, notebook: str, version: str = pfcore.__version__) -> str:
    """The address that opens a notebook on Colab.

    Args:
      repository: URL of the repository on GitHub.
      notebook: path in the repository.
      version: version of pfcore.
    """
    slug = repository.removeprefix("https://github.com/")
    return f"https://colab.research.google.com/github/{slug}/blob/{revision(version)}/{notebook}"


def binder(repository: str, notebook: str, version: str = pfcore.__version__) -> str:
    """The address that opens a notebook on Binder, together with the repository."""
    slug = repository.removeprefix("https://github.com/")
    return f"https://mybinder.org/v2/gh/{slug}/{revision(version)}?urlpath=lab/tree/{notebook}"


# ---- experiments in a page's code


class Asked(NamedTuple):
    """The use of `pfcore.experiments` in a notebook, by static analysis of its code.

    Attributes:
      experiments: by name, the settings that every use on the page sets explicitly.
      problems: names of the problems that occur.
      loads: whether stored records are loaded.
      collects: whether claims of other pages are collected.
    """

    experiments: dict[str, set[str]]
    problems: list[str]
    loads: bool
    collects: bool


def code(notebook: Path) -> str:
    """A notebook's code, without lines that are not Python."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    sources = ("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    return re.sub(r"(?m)^(\s*)[%!].*$", r"\1pass", "\n".join(sources))


def asked(source: str) -> Asked:
    """The use of `pfcore.experiments` in Python code."""
    tree = ast.parse(source)
    constants = set(_texts(ast.walk(tree)))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    used: dict[str, set[str]] = {}
    # `configure` sets them; `run` and `load_or_run` without it take those of the profile.
    for name, call in _experiments(calls, "configure"):
        # Settings passed by a variable are strings elsewhere on the page.
        given = _texts(call.args[1:])
        keys = _keys(constants if len(given) < len(call.args[1:]) else given)
        used[name] = used[name] & keys if name in used else keys
    for name, call in [found for way in ("run", *LOADS) for found in _experiments(calls, way)]:
        if len(call.args) == 1:
            used[name] = set()
    named = {text.removeprefix("problem=") for text in constants}
    return Asked(
        experiments=used,
        problems=[name for name in PROBLEMS["quick"] if name in named],
        loads=any(_called(call) in LOADS for call in calls),
        collects=any(_called(call) == "collect" for call in calls),
    )


def _called(call: ast.Call) -> str:
    function = call.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _experiments(calls: list[ast.Call], function: str) -> Iterator[tuple[str, ast.Call]]:
    for call in calls:
        if _called(call) == function:
            for name in _texts(call.args[:1]):
                if name in EXPERIMENTS:
                    yield name, call


def _keys(settings: Iterable[str]) -> set[str]:
    return {key for key, equals, _ in (text.partition("=") for text in settings) if equals}


def _texts(found: Any) -> list[str]:
    """The string literals among syntax nodes; of an f-string, its beginning."""
    texts = []
    for node in found:
        first = node.values[0] if isinstance(node, ast.JoinedStr) and node.values else node
        if isinstance(first, ast.Constant) and isinstance(first.value, str):
            texts.append(first.value)
    return texts


def larger(page: Asked) -> dict[str, list[str]]:
    """The settings that the full profile changes on a page, by experiment and problem."""
    found = {}
    for name, own in page.experiments.items():
        full = records.jsonable(EXPERIMENTS[name].PROFILES["full"])
        changes = stored.differences(name, full, "quick")
        kept = [c for c in changes if c.partition("=")[0].partition(".")[0] not in own]
        if kept:
            found[name] = kept
    for name in page.problems:
        quick, full = (records.jsonable(PROBLEMS[profile][name]) for profile in PROBLEMS)
        changes = [f"{k}={stored.text(v)}" for k, v in full.items() if v != quick[k]]
        if changes:
            found[name] = changes
    return found


COLAB_MB = 16_000  # memory of Colab's free GPU
LARGE_MB = 40_000


def memory(page: Asked, predicted: dict[str, float]) -> str:
    """The predicted GPU memory of the full profile, and a GPU with that much memory."""
    problems = PROBLEMS["full"]
    asked = [problems[name] for name in page.problems]
    asked += [
        EXPERIMENTS[name].PROFILES["full"].problem
        for name, own in page.experiments.items()
        if not any(key.partition(".")[0] == "problem" for key in own)
    ]
    needed = {n: predicted[n] for n, p in problems.items() if p in asked and n in predicted}
    if not needed:
        return ""
    listed = ", ".join(f"{esc(n)} {text.megabytes(size)}" for n, size in needed.items())
    largest = max(needed.values())
    if largest <= COLAB_MB:
        fits = "which Colab's GPU with 16 GB has"
    elif largest <= LARGE_MB:
        fits = "which needs a GPU with 40 GB; Colab's with 16 GB is too small for the largest"
    else:
        fits = "more than a GPU with 40 GB has"
    return (
        f"Memory of the GPU, predicted from the compiled programs: {listed}, {fits}. "
        "<code>problem.microbatch</code> trades it for time."
    )


# ---- the box


class Facts(NamedTuple):
    """The data shown in the box of a page.

    Attributes:
      notebook: path in the repository.
      repository: URL of the repository.
      asked: the use of experiments in the page's code.
      measured: time, memory and machine of this page, by profile.
      seconds: computation time of the stored records that it reads; 0 if unknown.
      predicted: GPU memory in megabytes, by problem of the full profile.
    """

    notebook: str
    repository: str
    asked: Asked
    measured: dict[str, Any]
    seconds: float
    predicted: dict[str, float]


def summary(facts: Facts) -> str:
    """Time and memory in a few words."""
    quick = facts.measured.get("quick")
    words = f"about {text.expectation(quick)}" if quick else "time not measured"
    return words + (" with its stored records" if facts.asked.loads else "") + ", no GPU needed"


def sentences(facts: Facts) -> list[str]:
    """The explanation in the box, as HTML, one item for each paragraph."""
    said = []
    quick, full = facts.measured.get("quick"), facts.measured.get("full")
    if quick:
        said.append(f"As it stands it took {text.expectation(quick)} on {esc(quick['machine'])}.")
    if facts.asked.collects:
        said.append(
            "It reads what the other chapters found, from the folder <code>claims</code> beside "
            "it: run it on Binder or in a clone, since Colab opens the notebook alone."
        )
    if facts.asked.loads:
        took = f", and took {text.duration(facts.seconds)} in all" if facts.seconds else ""
        said.append(
            "Some of its experiments are stored records, computed beforehand"
            f"{took}: read from the folder <code>records</code> beside it or, where that is "
            "missing, as on Colab, fetched from this version's repository."
        )
    changes = larger(facts.asked)
    if not changes:
        said.append(
            f"<code>{PROFILE_VARIABLE}=full</code> changes nothing here: there is one size, and it "
            "needs no GPU."
        )
        return said
    items = "".join(f"<li>{esc(name)}: {_codes(found)}</li>" for name, found in changes.items())
    said.append(
        f"With <code>{PROFILE_VARIABLE}=full</code> it takes sizes for a GPU, except in what the "
        f"page sets itself:<ul>{items}</ul>"
    )
    said.append(
        f"That took {text.expectation(full)} on {esc(full['machine'])}."
        if full
        else "How long that takes has not been measured."
    )
    predicted = memory(facts.asked, facts.predicted)
    if predicted:
        said.append(predicted)
    said.append(
        "On Colab, choose a runtime with a GPU, and put this in a cell before the first: "
        f'<code class="line">%env {PROFILE_VARIABLE}=full</code>'
    )
    return said


def _codes(settings: list[str]) -> str:
    return " ".join(f"<code>{esc(stored.abridged(setting))}</code>" for setting in settings)


def rendered(facts: Facts, download: str) -> str:
    """The box as HTML.

    Args:
      facts: its data.
      download: address of the notebook in the built book.
    """
    anchors = [
        f'<a href="{esc(colab(facts.repository, facts.notebook))}">Open in Colab</a>',
        f'<a href="{esc(binder(facts.repository, facts.notebook))}">Open in Binder</a>',
        f'<a href="{esc(download)}" download>Download</a>',
    ]
    said = "".join(f"<div>{sentence}</div>" for sentence in sentences(facts))
    return (
        '<aside class="rerun" aria-label="Rerun this page">'
        f"<p><b>Rerun this page</b> {' '.join(anchors)}</p>"
        f"<details><summary>{summary(facts)}</summary>{said}</details></aside>"
    )


def _insert(app: Any, doctree: nodes.document) -> None:
    """Insert the box below the title."""
    docname = app.env.docname
    path = Path(app.env.doc2path(docname))
    if path.suffix != ".ipynb":
        return
    for name in (stored.TIMES, stored.MEMORY):
        if (path.parent / name).is_file():
            app.env.note_dependency(str(path.parent / name))
    facts = Facts(
        notebook=f"{docname}.ipynb",
        repository=app.config.html_theme_options["repository_url"],
        asked=asked(code(path)),
        measured=stored.measured(path.parent).get(path.stem, {}),
        seconds=stored.seconds_of(path),
        predicted=stored.predicted(path.parent),
    )
    # The theme's download button has the same target.
    download = f"{'../' * docname.count('/')}_sources/{docname}.ipynb"
    section = next(doctree.findall(nodes.section))
    section.insert(1, page_html(html=rendered(facts, download)))


def _launch_from_the_tag(app: Any, config: Any) -> None:
    """Set the branch of the theme's launch buttons, which is used for nothing else."""
    config.html_theme_options["repository_branch"] = revision()


def setup(app: Any) -> None:
    app.setup_extension("_ext.common.nodes")
    app.connect("config-inited", _launch_from_the_tag)
    app.connect("doctree-read", _insert)
