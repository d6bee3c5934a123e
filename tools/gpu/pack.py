"""Create a folder with which an offline GPU machine computes the book's records.

    python tools/gpu/pack.py --to _build/gpu-job [--data fashion-mnist ...]

It contains the checkout (tracked and untracked files that git does not ignore), data sets from the
folder that `PFCORE_DATA` names (folders or files there, by default what all jobs but one need), and
wheels of the packages that are missing on a machine with
JAX, Flax, Optax, Diffrax, Orbax, scikit-learn and SciPy. Run `run.py` in that folder.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
# Pure Python packages that such a machine does not have.
WHEELS = ("matfree", "pooch", "platformdirs", "filelock")
NEEDED = ("pfcore", "tests", "benchmarks", "pyproject.toml")
DATA = ("fashion-mnist",)
LIMIT = 60 * 2**20


def copy_tree(to: Path) -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *NEEDED],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file() and not name.startswith("tests/browser"):
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, to / name)


def copy_data(to: Path, names: list[str]) -> None:
    folder = os.environ.get("PFCORE_DATA")
    if not folder:
        raise SystemExit("PFCORE_DATA names no folder; the job needs the data sets' official files")
    for name in names:
        source = Path(folder).expanduser() / name
        if source.is_dir():
            shutil.copytree(source, to / name)
        elif source.is_file():
            to.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, to / name)
        else:
            raise SystemExit(f"{source} does not exist; --data says which sets the job takes along")


def pinned(names: tuple[str, ...]) -> list[str]:
    """The versions in the lock file."""
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    pins = {line.partition("==")[0]: line.split()[0] for line in lines if "==" in line}
    return [pins[name] for name in names]


def download_wheels(to: Path) -> None:
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--quiet", "--no-deps"),
            *("--disable-pip-version-check", "--only-binary=:all:", "--dest", str(to)),
            *pinned(WHEELS),
        ],
        check=True,
    )


def commit() -> str | None:
    """The commit of the checkout; None if it has uncommitted changes."""

    def git(*words: str) -> str:
        found = subprocess.run(
            ["git", *words], cwd=ROOT, check=True, capture_output=True, text=True
        )
        return found.stdout.strip()

    return None if git("status", "--porcelain", "--", *NEEDED) else git("rev-parse", "HEAD")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--data", nargs="*", default=list(DATA), help="default: fashion-mnist")
    args = parser.parse_args()
    shutil.rmtree(args.to, ignore_errors=True)
    args.to.mkdir(parents=True)
    copy_tree(args.to / "tree")
    copy_data(args.to / "data", args.data)
    download_wheels(args.to / "wheels")
    for name in ("run.py", "jobs.toml"):
        shutil.copy(HERE / name, args.to / name)
    (args.to / "job.json").write_text(json.dumps({"commit": commit()}) + "\n", encoding="utf-8")
    size = sum(path.stat().st_size for path in args.to.rglob("*") if path.is_file())
    print(f"   {args.to}: {size / 2**20:.1f} MiB; there: python run.py --out results")
    if size > LIMIT:
        raise SystemExit(
            f"that is more than {LIMIT / 2**20:.0f} MiB; name fewer data sets: make gpu-job DATA=…"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
