"""Run each notebook in an environment like Colab's.

    python tools/colab.py
    python tools/colab.py book/stability.ipynb

A temporary folder contains the wheel of this tree; a new virtual environment with that wheel, its
dependencies (at the versions of `requirements.lock`) and a kernel; a copy of `book/records`; and,
for each notebook, a folder with only the notebook. On Colab, JAX, NumPy and Matplotlib are already
installed; here they are installed as dependencies of pfcore, so that a missing dependency is
detected.

There are two differences from Colab. The first cell finds pfcore installed, and must do nothing,
because the tag that it would install is published only after this check. For the same reason
PFCORE_RECORDS names the copy of the records, which a notebook on Colab takes from that tag. Data
sets are read from PFCORE_DATA if it is set, else downloaded.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import nbformat
from notebooks import (
    ROOT,
    STOPPED,
    Run,
    end_as_interrupted,
    environment,
    executed,
    listed,
)
from tables import aligned

# Sources of the wheel.
SOURCES = ("pfcore", "pyproject.toml", "README.md", "LICENSE")
# Variables that would give a kernel access to other packages, or redirect its results.
INHERITED = ("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "VIRTUAL_ENV", "JUPYTER_PATH")


def call(*command: str | Path, cwd: Path) -> str:
    """The output of a command, which must succeed."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=cleared(os.environ),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} failed:\n{done.stdout}")
    return done.stdout


def cleared(variables: Mapping[str, str]) -> dict[str, str]:
    """The environment without variables of this checkout, except PFCORE_DATA."""
    kept = {
        name: value
        for name, value in variables.items()
        if name not in INHERITED and (not name.startswith("PFCORE_") or name == "PFCORE_DATA")
    }
    if kept.get("PFCORE_DATA"):
        kept["PFCORE_DATA"] = str(Path(kept["PFCORE_DATA"]).expanduser().resolve())
    return kept | {"PYTHONNOUSERSITE": "1"}


def build_wheel(folder: Path) -> Path:
    """The wheel of this tree, built from a copy, so that the tree is not changed."""
    source = folder / "source"
    source.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, source / name, ignore=ignored)
        else:
            shutil.copy2(ROOT / name, source / name)
    options = ("--no-deps", "--no-build-isolation", "--disable-pip-version-check", "-w", folder)
    call(sys.executable, "-m", "pip", "wheel", source, *options, cwd=folder)
    shutil.rmtree(source)
    return next(folder.glob("pfcore-*.whl"))


def create_environment(folder: Path, wheel: Path) -> Path:
    """The interpreter of a new virtual environment with a wheel and a kernel."""
    made = folder / "environment"
    python = made / "bin" / "python"
    uv = Path(sys.executable).with_name("uv")
    call(uv, "venv", "--quiet", "--python", sys.executable, made, cwd=folder)
    install = (uv, "pip", "install", "--quiet", "--python", python)
    lock = ROOT / "requirements.lock"
    call(*install, "--constraint", lock, f"{wheel}[all]", "ipykernel", cwd=folder)
    found = call(python, "-c", "import pfcore; print(pfcore.__file__)", cwd=folder).strip()
    if not Path(found.splitlines()[-1]).is_relative_to(made):
        raise SystemExit(f"pfcore is imported from {found}, not from the fresh environment")
    return python


def kernel_specs(folder: Path, python: Path) -> Path:
    """A folder with the specification of the environment's kernel, named `python3`."""
    call(python, "-m", "ipykernel", "install", "--prefix", folder, "--name", "python3", cwd=folder)
    return folder / "share" / "jupyter" / "kernels"


def first_cell(path: Path) -> str:
    """The fault of the first code cell of a notebook that ran; "" if there is none."""
    notebook = nbformat.read(path, as_version=4)
    cell = next(cell for cell in notebook.cells if cell.cell_type == "code")
    if 'find_spec("pfcore")' not in cell.source or "%pip install" not in cell.source:
        return "the first code cell does not install pfcore where it is missing"
    if cell.outputs:
        return "the first code cell printed something although pfcore is installed"
    return ""


def alone(paths: Sequence[Path], folder: Path) -> list[Path]:
    """Copies of notebooks, each in a separate, otherwise empty folder."""
    copies = []
    for path in paths:
        (folder / path.stem).mkdir(parents=True)
        copies.append(Path(shutil.copy2(path, folder / path.stem)))
    return copies


def table(runs: Sequence[Run]) -> str:
    """A line for each notebook, and a summary."""
    rows = [("notebook", "seconds", "MB", "")]
    for run in runs:
        memory = "?" if run.peak_mb is None else f"{run.peak_mb:,}"
        rows.append(
            (run.path.stem, f"{run.seconds:.0f}", memory, "failed" if run.problem else "ok")
        )
    lines = [aligned(rows, right=(1, 2))]
    failed = sum(bool(run.problem) for run in runs)
    took = f"{sum(run.seconds for run in runs) / 60:.0f} min"
    lines.append(f"   {len(runs) - failed} of {len(runs)} notebooks ran, in {took} together")
    return "\n".join(lines)


def check(paths: Sequence[Path], folder: Path, profile: str, jobs: int) -> list[Run]:
    """Run notebooks in a new environment in `folder`, and print a line for each."""
    print("   building the wheel, filling a fresh environment", flush=True)
    python = create_environment(folder, build_wheel(folder))
    shutil.copytree(ROOT / "book" / "records", folder / "records")
    env = cleared(environment(profile)) | {
        "PFCORE_RECORDS": str(folder / "records"),
        "PFCORE_PROFILE": profile,
    }
    runs: list[Run] = []
    for run in executed(
        alone(paths, folder / "notebooks"),
        env=env,
        jobs=jobs,
        kernels=kernel_specs(folder, python),
    ):
        if not run.problem:
            run = run._replace(problem=first_cell(run.path))
        runs.append(run)
        print(f"   [{len(runs)}/{len(paths)}] {run.path.name}  {run.words}", flush=True)
        if run.problem:
            print(run.problem, flush=True)
    return runs


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("paths", nargs="*", type=Path, help="notebooks (default: all)")
    parser.add_argument("--profile", default="quick", choices=["quick", "full"])
    parser.add_argument("--jobs", type=int, default=1, help="how many at a time (default 1)")
    args = parser.parse_args()
    paths = [path.resolve() for path in args.paths] or listed()
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        parser.error(f"no such notebook: {', '.join(missing)}")
    end_as_interrupted()
    with tempfile.TemporaryDirectory(prefix="pfcore-colab-") as folder:
        try:
            runs = check(paths, Path(folder).resolve(), args.profile, args.jobs)
        except KeyboardInterrupt:
            print("   interrupted")
            return STOPPED
    print(table(runs))
    return int(any(run.problem for run in runs))


if __name__ == "__main__":
    sys.exit(main())
