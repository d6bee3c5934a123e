"""The parts of `make colab` that need no environment of their own."""

from pathlib import Path

import colab
import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[2]
INSTALLS = (
    "import importlib.util\n\n"
    'if importlib.util.find_spec("pfcore") is None:\n    %pip install --quiet "pfcore"'
)


def test_nothing_of_this_checkout_is_inherited(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    inherited = {"PYTHONPATH": "here", "PFCORE_RECORDS": "here", "PFCORE_PROFILE": "full"}
    kept = colab.cleared(inherited | {"HOME": "/home/me", "PFCORE_DATA": "data"})
    assert kept.pop("PYTHONNOUSERSITE") == "1"
    assert kept == {"HOME": "/home/me", "PFCORE_DATA": str(tmp_path / "data")}


@pytest.mark.parametrize(
    "source, outputs, problem",
    [
        (INSTALLS, [], ""),
        ("1 + 1", [], "does not install pfcore"),
        (INSTALLS, [nbformat.v4.new_output("stream", text="Collecting")], "printed something"),
    ],
)
def test_the_first_cell_must_install_pfcore_and_do_nothing_where_it_is(
    tmp_path, source, outputs, problem
):
    cells = [
        nbformat.v4.new_markdown_cell("# A title"),
        nbformat.v4.new_code_cell(source, outputs=outputs, execution_count=1),
    ]
    path = tmp_path / "page.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    found = colab.first_cell(path)
    assert problem in found if problem else found == ""


@pytest.mark.parametrize(
    "path", sorted((ROOT / "book").glob("*.ipynb")), ids=lambda path: path.stem
)
def test_every_notebook_has_such_a_first_cell(path):
    assert colab.first_cell(path) == ""


def test_each_notebook_is_copied_alone(tmp_path):
    paths = sorted((ROOT / "book").glob("*.ipynb"))[:2]
    copies = colab.alone(paths, tmp_path)
    assert [list(copy.parent.iterdir()) for copy in copies] == [[copy] for copy in copies]
    assert [copy.read_bytes() for copy in copies] == [path.read_bytes() for path in paths]


def test_the_table_counts_what_ran():
    runs = [
        colab.Run(Path("good.ipynb"), 61.4, 1234, ""),
        colab.Run(Path("bad.ipynb"), 9.0, None, "ValueError: no luck"),
    ]
    assert colab.table(runs).splitlines() == [
        "   notebook  seconds     MB",
        "   good           61  1,234  ok",
        "   bad             9      ?  failed",
        "   1 of 2 notebooks ran, in 1 min together",
    ]
