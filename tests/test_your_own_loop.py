"""The page that promises two lines: they are two, and the script runs from an empty file."""

import difflib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parent.parent / "book" / "your_own_loop.ipynb"


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


@pytest.mark.skipif(
    "PFCORE_DATA" not in os.environ,
    reason="needs MNIST: PFCORE_DATA names no folder with its files",
)
@pytest.mark.parametrize("which", ["before", "after"])
def test_the_script_runs_from_an_empty_file(which, tmp_path):
    file = tmp_path / "train.py"
    file.write_text(scripts()[which == "after"], encoding="utf-8")
    ran = subprocess.run(
        [sys.executable, str(file)], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert ran.returncode == 0, ran.stderr
    accuracies = [float(x) for x in re.findall(r"test accuracy ([\d.]+)%", ran.stdout)]
    assert len(accuracies) == 5
    assert accuracies[-1] > (92 if which == "after" else 80)
    assert ("learning rate" in ran.stdout) == (which == "after")
