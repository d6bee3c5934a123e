"""The numbered equations of the book, and the API pages that they lead to."""

import importlib
import re
import types
from pathlib import Path

import nbformat
import pytest
from toc import chapters

import pfcore
from _ext import equations
from _ext.api import command_line, docstrings

ROOT = Path(__file__).resolve().parents[2]
API = ROOT / "book" / "api"
REPOSITORY = "https://example.org/somebody/pfcore"

# The public names that compute a formula.
FORMULAS = {
    "pfcore.gradient_descent",
    "pfcore.flows.negative_gradient_flow",
    "pfcore.flows.igr_flow",
    "pfcore.flows.third_order_flow",
    "pfcore.flows.modified_flow",
    "pfcore.flows.principal_flow",
    "pfcore.curvature.hvp",
    "pfcore.curvature.top_eigenpairs",
    "pfcore.curvature.spectral_density",
    "pfcore.curvature.trace",
    "pfcore.curvature.apply_function",
    "pfcore.stability.coefficient",
    "pfcore.stability.stability_coefficient",
    "pfcore.stability.regime",
    "pfcore.learning_rates.scale_by_dal",
    "pfcore.learning_rates.dal",
    "pfcore.learning_rates.cdat",
    "pfcore.losses.full_batch",
}


def _pages() -> dict[str, str]:
    """The prose of every page in the order of the table of contents."""
    found = {}
    for name in (chapter.name for chapter in chapters(ROOT)):
        path = ROOT / f"{name}.ipynb"
        if path.is_file():
            cells = nbformat.read(path, as_version=4).cells
            found[name] = "\n\n".join(c.source for c in cells if c.cell_type == "markdown")
        else:
            found[name] = (ROOT / f"{name}.md").read_text(encoding="utf-8")
    return found


def _labels() -> list[str]:
    displays = (d for text in _pages().values() for d in re.findall(r"\$\$(.+?)\$\$", text, re.S))
    return [label for display in displays for label in equations.unlabelled(display)[1]]


def _named(name: str) -> object:
    """The object of a dotted name, every part of which is public."""
    first, *rest = name.split(".")
    found: object = importlib.import_module(first)
    for part in rest:
        assert not part.startswith("_"), name
        found = getattr(found, part)
    return found


def test_labels_in_the_pages_are_those_of_the_file_each_once_in_the_same_order():
    assert _labels() == list(equations.read())


def test_labels_are_in_comments_so_that_notebooks_show_nothing_of_them():
    text = "\n".join(_pages().values())
    assert text.count(r"\label{") == len(re.findall(r"^% \\label\{eq-[a-z-]+\}$", text, re.M))


@pytest.mark.parametrize(
    "label, name", [(label, n) for label, e in equations.read().items() for n in e.code]
)
def test_code_of_an_equation_is_public_and_on_an_api_page(label, name):
    assert callable(_named(name))
    assert name in _entries(), f"{label}: {name} has no entry in book/api"


def test_every_formula_of_the_contract_is_in_a_numbered_equation():
    named = {name for equation in equations.read().values() for name in equation.code}
    assert named >= FORMULAS


def _entries() -> set[str]:
    """Full names of the entries of the API pages."""
    found = set()
    for page in API.glob("*.md"):
        module = ""
        for line in page.read_text(encoding="utf-8").splitlines():
            if match := re.match(r"\.\. currentmodule:: (\S+)", line):
                module = match[1]
            elif match := re.match(r"\.\. auto(?:function|class|data|exception):: (\S+)", line):
                name = match[1]
                found.add(name if name.startswith("pfcore.") else f"{module}.{name}")
    return found


@pytest.mark.parametrize(
    "name", ["flows", "curvature", "learning_rates", "stability", "losses", "networks", "datasets"]
)
def test_every_public_name_of_a_module_has_an_entry(name):
    module = importlib.import_module(f"pfcore.{name}")
    own = [n for n, x in vars(module).items() if getattr(x, "__module__", "") == module.__name__]
    public = getattr(module, "__all__", [n for n in own if not n.startswith("_")])
    missing = {f"pfcore.{name}.{n}" for n in public} - _entries()
    assert missing == set()


def test_what_the_package_exports_is_covered():
    modules = {
        name for name in pfcore.__all__ if isinstance(getattr(pfcore, name), types.ModuleType)
    }
    assert {path.stem for path in API.glob("*.md")} >= modules
    assert {f"pfcore.{n}" for n in pfcore.__all__ if n not in modules} <= _entries()


# ---- the parts of the extensions


def test_label_is_taken_off_display_math():
    latex = "\n\\dot\\theta = -g ,\n% \\label{eq-ngf}\n"
    assert equations.unlabelled(latex) == ("\n\\dot\\theta = -g ,\n", ["eq-ngf"])
    assert equations.unlabelled(r"x\label{eq-a}") == ("x", ["eq-a"])
    assert equations.unlabelled(r"50\% x") == (r"50\% x", [])


def test_file_with_a_wrong_entry_is_refused(tmp_path):
    wrong = tmp_path / "equations.yml"
    wrong.write_text("eq-a: {what: something, code: pfcore.integrate}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"eq-a must have `what` and a list `code`"):
        equations.read(wrong)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("the rate $h > 0$ of", "the rate :math:`h > 0` of"),
        ("DAL-$p$, and", "DAL-\\ :math:`p`\\ , and"),
        ("over\n  $a\n  + b$ two", "over\n  :math:`a + b` two"),
        ("see `dal` and `params`", "see :api:`dal <pfcore.x>` and ``params``"),
        ("`run(config)` here", "``run(config)`` here"),
        ("already ``literal`` or :math:`x`", "already ``literal`` or :math:`x`"),
        (">>> f('$x$', `y`)\n$z$", ">>> f('$x$', `y`)\n$z$"),
        (">>> f('$x$')\n\n$z$", ">>> f('$x$')\n\n:math:`z`"),
    ],
)
def test_docstrings_are_rewritten(text, expected):
    found = docstrings.rewritten(text.split("\n"), "pfcore.x", frozenset({"params"}))
    assert "\n".join(found) == expected


def test_display_math_of_a_docstring_becomes_a_block():
    found = docstrings.rewritten(["  $$a", "  = b$$"], "pfcore.x", frozenset())
    assert "\n".join(found).split() == ["..", "math::", "a", "=", "b"]
    assert [line for line in found if line.strip()] == ["  .. math::", "     a = b"]


def test_source_of_an_entry_is_its_lines_at_the_tag():
    address = docstrings.source_of(
        REPOSITORY, "py", {"module": "pfcore", "fullname": "gradient_descent"}
    )
    match = re.fullmatch(r"(.+)/blob/v(.+)/(pfcore/.+)#L(\d+)-L(\d+)", address)
    assert match is not None and match[1] == REPOSITORY
    assert match[2] == pfcore.__version__
    lines = (ROOT / match[3]).read_text(encoding="utf-8").splitlines()
    assert lines[int(match[4]) - 1].startswith("@")
    assert lines[int(match[4])].startswith("def gradient_descent(")
    assert "_compiled(" in lines[int(match[5]) - 1]
    assert (
        docstrings.source_of(REPOSITORY, "py", {"module": "pfcore", "fullname": "nothing"}) is None
    )


def test_default_that_is_a_configuration_is_shown_by_its_name():
    from pfcore.experiments import edge_of_stability

    shown, _ = docstrings._call_of(None, "class", "Config", edge_of_stability.Config, None, "", "")
    assert shown.startswith("(problem=Problem(...), learning_rate=")
    assert docstrings._call_of(None, "class", "Path", Path, None, "", "") is None


def test_command_line_page_has_every_command():
    documented = command_line.documented()
    assert list(documented) == ["pfcore", "pfcore list", "pfcore run", "pfcore redraw"]
    assert "`--resume`" in documented["pfcore run"]
    assert "edge-of-stability" in command_line.printed("list")
    with pytest.raises(RuntimeError, match="pfcore nonsense failed"):
        command_line.printed("nonsense")
