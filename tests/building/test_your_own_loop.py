"""The page that promises two lines: they are two, and the script runs from an empty file."""

import difflib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / "book" / "your_own_loop.ipynb"


def scripts() -> tuple[str, str]:
    """Before and after: the cells that import everything they use."""
    cells = json.loads(PAGE.read_text(encoding="utf-8"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    before, after = (text for text in sources if text.startswith("import jax\n"))
    return before, after


def test_two_lines_are_changed_and_shown():
    before, after = (text.splitlines() for text in scripts())
    changed = [
        line
        for line in difflib.unified_diff(before, after, lineterm="", n=0)
        if line[0] in "+-" and line[:3] not in ("+++", "---")
    ]
    # What is printed changes too, to show the rate.
    training = [line for line in changed if "print(" not in line and "rate = f" not in line]
    assert len(training) == 4 and sum(line[0] == "-" for line in training) == 2
    prose = json.loads(PAGE.read_text(encoding="utf-8"))["cells"]
    shown = next("".join(c["source"]) for c in prose if "```diff" in "".join(c["source"]))
    assert re.search(r"```diff\n(.*?)\n```", shown, re.DOTALL)[1].splitlines() == training


@pytest.mark.parametrize("which", ["before", "after"])
def test_the_script_needs_nothing_but_itself(which, tmp_path):
    """In an empty folder, one epoch; the output of the others is compared on the page."""
    script = scripts()[which == "after"]
    once = script.replace("range(1, 6)", "range(1, 2)")
    assert once != script
    file = tmp_path / "train.py"
    file.write_text(once, encoding="utf-8")
    ran = subprocess.run(
        [sys.executable, str(file)], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert ran.returncode == 0, ran.stderr
    (accuracy,) = re.findall(r"test accuracy ([\d.]+)%", ran.stdout)
    assert float(accuracy) > (85 if which == "after" else 25)
    assert ("learning rate" in ran.stdout) == (which == "after")


def test_mnist_is_one_changed_word():
    for script in scripts():
        line = next(line for line in script.splitlines() if "datasets.load" in line)
        assert line.startswith('data = pfcore.datasets.load("digits")') and '"mnist"' in line
        assert "64" not in script and "1797" not in script  # no size of the digits
