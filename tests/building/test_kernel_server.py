"""Kernels that are forked from a process with the libraries imported."""

import json
import os
import subprocess
import sys
from pathlib import Path

import kernel_server
import nbformat
import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="kernels are forked on Linux only")


def notebook(path, *cells):
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbformat.write(book, path)
    return path


def test_kernels_share_imports_and_nothing_else(tmp_path):
    first = notebook(tmp_path / "a.ipynb", "import os, jax; jax.seen = True; os._exit(3)")
    second = notebook(
        tmp_path / "b.ipynb",
        "import os, sys; print('jax' in sys.modules, os.getcwd(), os.environ['PFCORE_PROFILE'])",
        "import jax; print(hasattr(jax, 'seen'), float(jax.numpy.ones(3).sum()), __name__)",
        "import matplotlib.pyplot as plt; _ = plt.plot([1, 2])",
    )
    # In a process of its own: this one may have started JAX, which a fork would break.
    code = "import json, sys; from pathlib import Path; from notebook_runs import *\n"
    code += "paths, env = [*map(Path, sys.argv[1:])], environment('quick')\n"
    code += "for run in executed(paths, env=env, jobs=1, fork=True):\n"
    code += "    print(json.dumps([run.peak_mb, run.problem]))"
    done = subprocess.run(
        [sys.executable, "-c", code, first, second],
        env=os.environ | {"PYTHONPATH": str(Path(kernel_server.__file__).parent)},
        capture_output=True,
        text=True,
        check=True,
    )
    (_, died), (memory, problem) = map(json.loads, done.stdout.splitlines())
    assert "died" in died.lower()
    assert problem == "" and memory > 50
    first, second, figure = (cell.outputs[0] for cell in nbformat.read(second, 4).cells)
    assert first.text == f"True {tmp_path} quick\n"
    assert second.text == "False 3.0 __main__\n"
    assert "image/png" in figure.data


def ended(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return True
    return state == "Z"


def test_a_kernel_ends_with_the_process_that_asked_for_it(tmp_path):
    argv = ["-f", str(tmp_path / "connection.json"), "--log-level=ERROR"]
    with subprocess.Popen(
        [sys.executable, kernel_server.__file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    ) as server:
        server.stdin.write(json.dumps({"argv": argv, "cwd": str(tmp_path)}) + "\n")
        server.stdin.flush()
        pid = int(server.stdout.readline())
        assert not ended(pid)
        server.stdin.close()
        assert server.wait(60) == 0
    assert ended(pid)
