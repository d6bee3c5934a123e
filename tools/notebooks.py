"""The book's notebooks: run them, store them normalised, check them, compare reruns.

    python tools/notebooks.py execute --in-place            # to be committed
    python tools/notebooks.py execute --into _build/source  # in a copy, not in tracked files
    python tools/notebooks.py check
    python tools/notebooks.py compare --scratch _build/check

Notebooks and their order are read from `_toc.yml`. The notebook `claims` collects the results of
the others, so it runs last.
"""

import argparse
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import nbformat
from notebook_files import ROOT, check, listed, serialise, shown
from notebook_runs import (
    TIMES,
    Run,
    end_as_interrupted,
    environment,
    executed,
    last_time,
    machine,
    note_times,
    split_collector,
)

STOPPED = 130  # exit status of a command stopped by Ctrl-C


def stage(into: Path) -> None:
    """Copy the book's sources to the folder `into`, which is replaced."""
    if ROOT.is_relative_to(into.resolve()) or into.resolve().is_relative_to(ROOT / "book"):
        raise SystemExit(
            f"{into} holds the sources that would be copied there; name another folder"
        )
    shutil.rmtree(into, ignore_errors=True)
    into.mkdir(parents=True)
    for name in ("_config.yml", "_toc.yml", "CHANGELOG.md"):
        shutil.copy2(ROOT / name, into / name)
    leave_out = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", "_build")
    shutil.copytree(ROOT / "book", into / "book", ignore=leave_out)


def time_left(runs: Sequence[Run], paths: Sequence[Path], profile: str, jobs: int) -> str:
    """The estimated remaining time, in words; "" if unknown.

    Finished notebooks give the speed of this machine relative to that of the stored times.
    """
    known = last_time(profile)
    done = {run.path.stem: run.seconds for run in runs}
    compared = [name for name in done if name in known]
    waiting = [path.stem for path in paths if path.stem not in done]
    if not compared or any(name not in known for name in waiting):
        return ""
    pace = sum(done[name] for name in compared) / sum(known[name] for name in compared)
    seconds = pace * sum(known[name] for name in waiting) / min(jobs, max(len(waiting), 1))
    if not waiting:
        return ""
    return (
        f"; about {seconds:.0f} s left" if seconds < 90 else f"; about {seconds / 60:.0f} min left"
    )


def execute(paths: Sequence[Path], *, root: Path, profile: str, jobs: int, fork: bool) -> list[Run]:
    """Run notebooks under `root`, up to `jobs` at a time, and print a line for each."""
    runs: list[Run] = []
    width = len(str(len(paths)))
    for run in executed(paths, env=environment(profile), jobs=jobs, fork=fork):
        runs.append(run)
        name, left = shown(run.path, root), time_left(runs, paths, profile, jobs)
        print(f"   [{len(runs):{width}}/{len(paths)}] {name}  {run.words}{left}", flush=True)
        if run.problem:
            print(run.problem, flush=True)
    return runs


def reason(problem: str) -> str:
    """The last non-empty line of an error's report, shortened."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", problem)
    lines = [line.strip() for line in plain.splitlines() if line.strip()]
    text = lines[-1] if lines else "no reason was given"
    return text if len(text) <= 200 else text[:199] + "…"


def note_not_recomputed(path: Path, problem: str) -> None:
    """Add a note below a page's title that it shows stored outputs."""
    notebook = nbformat.read(path, as_version=4)
    why = reason(problem).replace("`", "'")
    notice = (
        ":::{warning}\n**Not recomputed here.** Numbers and figures on this page are those stored "
        f"with the book: its notebook did not run to its end on this machine.\n\n`{why}`\n:::"
    )
    first = notebook.cells[0]
    if first.cell_type == "markdown" and first.source.startswith("# "):
        title, _, rest = first.source.partition("\n")
        first.source = f"{title}\n\n{notice}\n{rest}"
    else:
        notebook.cells.insert(0, nbformat.v4.new_markdown_cell(notice))
    path.write_text(serialise(notebook), encoding="utf-8")


def long() -> set[Path]:
    """The notebooks listed in `tests/long.txt`, which are rerun only with EVERY=1."""
    lines = (ROOT / "tests" / "long.txt").read_text(encoding="utf-8").splitlines()
    return {ROOT / line for line in lines if line.endswith(".ipynb")}


def compare(paths: Sequence[Path], *, scratch: Path, jobs: int) -> int:
    """Rerun notebooks with nbval, and compare them with their stored outputs.

    Claims are written to `scratch`. Stored claims of notebooks that are not rerun are copied there.
    """
    env = environment("quick")
    folder = scratch / "claims"
    folder.mkdir(parents=True, exist_ok=True)
    for left in set(listed()) - set(paths):
        stored = ROOT / "book" / "claims" / f"{left.stem}.json"
        if stored.is_file():
            shutil.copy(stored, folder)
    env["PFCORE_CLAIMS_DIR"] = str(folder.resolve())
    status = 0
    for group in split_collector(paths, last_time("quick")):
        command = [sys.executable, "-m", "pytest", "-q", "--nbval", "--nbval-current-env"]
        command += ["--nbval-cell-timeout=300"]
        if len(group) > 1:
            if sys.platform == "linux":
                command += ["-p", "tools.forked_kernels"]
            # One worker for each file, since the cells of a notebook share a kernel.
            command += ["-n", str(jobs), "--dist", "loadfile", "--no-loadscope-reorder"]
        command += [str(path) for path in group]
        status = subprocess.run(command, cwd=ROOT, env=env, check=False).returncode or status
    return status


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)

    run = commands.add_parser("execute", help="run notebooks and store them normalised")
    target = run.add_mutually_exclusive_group(required=True)
    target.add_argument("--in-place", action="store_true", help="where they are, to be committed")
    target.add_argument("--into", type=Path, metavar="DIR", help="in a copy of the book's sources")
    run.add_argument("--profile", default="quick", choices=["quick", "full"])
    run.add_argument("--jobs", type=int, default=2, help="how many at a time (default 2)")
    run.add_argument(
        "--report",
        type=Path,
        metavar="FILE",
        help="with --into: a notebook that fails keeps its stored outputs, under a notice; it is "
        "listed in FILE with the reason, and the exit status is 0",
    )

    checked = commands.add_parser("check", help="stored notebooks: complete, in order, normalised")

    rerun = commands.add_parser("compare", help="rerun with nbval against the stored outputs")
    rerun.add_argument("--scratch", type=Path, required=True, help="where the rerun writes")
    rerun.add_argument("--jobs", type=int, default=2, help="how many at a time (default 2)")
    rerun.add_argument("--every", action="store_true", help="those listed in tests/long.txt, too")

    for command in (run, checked, rerun):
        command.add_argument("paths", nargs="*", type=Path, help="notebooks (default: all)")

    args = parser.parse_args()
    if args.command == "execute" and args.report is not None and args.into is None:
        parser.error("--report goes with --into: in place, a notebook that fails is left alone")

    paths = [path.resolve() for path in args.paths] or listed()
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        parser.error(f"no such notebook: {', '.join(missing)}")
    if args.command == "check":
        return min(check(paths), 1)
    if args.command == "compare":
        if not args.paths and not args.every:
            left = [path for path in paths if path in long()]
            paths = [path for path in paths if path not in left]
            print("   not rerun without EVERY=1:", *map(shown, left))
        return compare(paths, scratch=args.scratch, jobs=args.jobs)
    root = ROOT
    if args.into is not None:
        root = args.into.resolve()
        stage(root)
        paths = [root / path.relative_to(ROOT) for path in paths]
    end_as_interrupted()
    try:
        # In place, times and memory are measured for the pages.
        runs = execute(
            paths, root=root, profile=args.profile, jobs=args.jobs, fork=not args.in_place
        )
    except KeyboardInterrupt:
        print("   interrupted")
        return STOPPED
    if args.in_place and not all(run.problem for run in runs):
        note_times(ROOT / "book" / TIMES, runs, args.profile, machine(args.profile))
    failed = [run for run in runs if run.problem]
    if args.report is None:
        return int(bool(failed))
    for failure in failed:
        note_not_recomputed(failure.path, failure.problem)
    lines = [f"   {shown(f.path, root)}: {reason(f.problem)}\n" for f in failed]
    args.report.write_text("".join(lines), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
