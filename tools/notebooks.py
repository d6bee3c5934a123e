"""The book's notebooks: run them, store them normalised, check them, compare reruns.

    python tools/notebooks.py list
    python tools/notebooks.py execute --in-place            # to be committed
    python tools/notebooks.py execute --into _build/source  # in a copy; nothing tracked changes
    python tools/notebooks.py check
    python tools/notebooks.py compare --scratch _build/check

Which notebooks there are, and in which order, is read from `_toc.yml`. The notebook named `claims`
collects what the others found, so it runs after them.

A stored notebook is normalised: its metadata, cell ids and execution counts are functions of its
cells alone, so that running it twice on one machine gives the same bytes. How long it ran and how
much memory it took are kept beside them, in `book/times.json`.
"""

import argparse
import collections
import json
import multiprocessing
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple

import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode
from toc import chapters

ROOT = Path(__file__).resolve().parent.parent
COLLECTOR = "claims"
CELL_TIMEOUT = 600  # seconds, in the quick profile
# XLA's newer way to compile loops for CPUs takes longer than the small programs here run. Without
# it numbers differ by rounding, the same where they are stored and where they are compared.
COMPILE_FASTER = "--xla_cpu_use_fusion_emitters=false --xla_llvm_disable_expensive_passes=true"
TIMES = "times.json"  # beside the notebooks
STOPPED = 130  # what a shell reports for a command stopped by Ctrl-C
# What is kept of an earlier measurement that came out as long, or as large, up to this share.
SAME = 0.2
MAX_BYTES = 2_000_000
NOTEBOOK_METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
CELL_METADATA = ("mystnb", "tags")


def listed(root: Path = ROOT) -> list[Path]:
    """The notebooks under `root` that `_toc.yml` names, in its order."""

    paths = (root / f"{chapter.name}.ipynb" for chapter in chapters(root))
    return [path for path in paths if path.is_file()]


def split_collector(paths: Sequence[Path], seconds: Mapping[str, float]) -> list[list[Path]]:
    """What can run side by side, the longest first, so that no process works on one alone at the
    end; then what must wait for it.

    Args:
      paths: of the notebooks.
      seconds: that each takes, by name, as far as they are known.
    """
    unknown = float("inf")
    groups = [
        [path for path in paths if path.stem != COLLECTOR],
        [path for path in paths if path.stem == COLLECTOR],
    ]
    groups[0].sort(key=lambda path: seconds.get(path.stem, unknown), reverse=True)
    return [group for group in groups if group]


def last_time(profile: str) -> dict[str, float]:
    """Seconds that each notebook took when it was stored."""
    path = ROOT / "book" / TIMES
    stored = json.loads(path.read_text(encoding="utf-8"))["notebooks"] if path.is_file() else {}
    return {name: kinds[profile]["seconds"] for name, kinds in stored.items() if profile in kinds}


def shown(path: Path, root: Path = ROOT) -> str:
    """A path as a reader at `root` would type it."""
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


# ---- normal form


def _normalise_outputs(outputs: Sequence[NotebookNode], count: int) -> list[NotebookNode]:
    """Neighbouring pieces of one stream joined; the cell's own count; metadata left as it is."""
    joined: list[NotebookNode] = []
    for output in outputs:
        if output.output_type == "stream" and joined:
            last = joined[-1]
            if last.output_type == "stream" and last.name == output.name:
                last.text += output.text
                continue
        if output.output_type == "execute_result":
            output.execution_count = count
        joined.append(output)
    return joined


def normalise(notebook: NotebookNode) -> NotebookNode:
    """`notebook` with everything removed that a rerun could change without meaning to."""
    notebook = nbformat.from_dict(notebook)
    notebook.metadata = nbformat.from_dict(NOTEBOOK_METADATA)
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    count = 0
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number:03d}"
        cell.metadata = nbformat.from_dict(
            {key: cell.metadata[key] for key in CELL_METADATA if key in cell.metadata}
        )
        cell.source = "\n".join(line.rstrip() for line in cell.source.strip("\n").split("\n"))
        if cell.cell_type == "code":
            if cell.execution_count is not None:
                count += 1
                cell.execution_count = count
            cell.outputs = _normalise_outputs(cell.outputs, count)
    return notebook


def serialise(notebook: NotebookNode) -> str:
    """The text of the stored file."""
    return nbformat.writes(notebook, version=4).rstrip("\n") + "\n"


# ---- execute


def environment(profile: str) -> dict[str, str]:
    """What the kernels see: this interpreter's environment, the profile, nothing inherited that
    would send claims elsewhere or replace the notebook's own drawing."""
    changed = ("PFCORE_CLAIMS_DIR", "MPLBACKEND")
    env = {key: value for key, value in os.environ.items() if key not in changed}
    env |= {"PFCORE_PROFILE": profile, "JUPYTER_PREFER_ENV_PATH": "1", "PYTHONHASHSEED": "0"}
    # XLA's remarks on how long it compiled depend on the machine, and would be stored.
    env.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if profile == "quick":
        env.setdefault("JAX_PLATFORMS", "cpu")
    if env.get("JAX_PLATFORMS") == "cpu":
        env.setdefault("XLA_FLAGS", COMPILE_FASTER)
    return env


class Run(NamedTuple):
    """How running one notebook went.

    Attributes:
      path: of the notebook.
      seconds: from the start of its kernel to the end of its last cell.
      peak_mb: the most memory that its kernel held, in megabytes; None where that is not known.
      problem: what went wrong; "" if nothing did.
    """

    path: Path
    seconds: float
    peak_mb: int | None
    problem: str

    @property
    def words(self) -> str:
        """For a line of progress."""
        memory = "" if self.peak_mb is None else f", {self.peak_mb:,} MB"
        return f"{'FAILED after ' if self.problem else ''}{self.seconds:.0f} s{memory}"


def peak_memory(pid: int | None) -> int | None:
    """Megabytes of memory that a process has held at most; None where the system does not say."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    found = re.search(r"^VmHWM:\s+(\d+) kB", status, flags=re.MULTILINE)
    return round(int(found[1]) * 1024 / 1e6) if found else None


def execute_one(
    path: Path, env: dict[str, str], *, timeout: int | None, kernels: Path | None = None
) -> Run:
    """Run one notebook and store it.

    Args:
      path: of the notebook; it is stored there again if it ran to its end, and left alone if not.
      env: the kernel's environment.
      timeout: seconds for a cell; None for as long as it takes.
      kernels: folder of kernel specifications with a `python3`, by default this environment's.
    """
    start = time.perf_counter()
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    options: dict[str, Any] = {}
    if kernels is not None:
        specs = KernelSpecManager(kernel_dirs=[str(kernels)], ensure_native_kernel=False)
        options["km"] = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=specs)
    client = NotebookClient(
        notebook,
        kernel_name="python3",
        record_timing=False,
        timeout=timeout,
        extra_arguments=["--log-level=ERROR"],
        resources={"metadata": {"path": str(path.parent)}},
        **options,
    )
    memory: list[int] = []

    def sample(**_: Any) -> None:
        # After every cell: once the last has run, or one has failed, the kernel is gone.
        provisioner = client.km.provisioner if client.km is not None else None
        found = peak_memory(getattr(provisioner, "pid", None))
        memory.extend([] if found is None else [found])

    client.on_cell_executed = sample
    problem = ""
    try:
        client.execute(env=env, cleanup_kc=True)
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        problem = "\n".join(str(error).rstrip().splitlines()[-20:])
    else:
        path.write_text(serialise(normalise(notebook)), encoding="utf-8")
    return Run(path, time.perf_counter() - start, max(memory, default=None), problem)


def stage(into: Path) -> None:
    """A copy of the book's sources in the folder `into`, replacing what was there."""
    shutil.rmtree(into, ignore_errors=True)
    into.mkdir(parents=True)
    for name in ("_config.yml", "_toc.yml", "CHANGELOG.md"):
        shutil.copy2(ROOT / name, into / name)
    leave_out = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", "_build")
    shutil.copytree(ROOT / "book", into / "book", ignore=leave_out)


def end_as_interrupted() -> None:
    """Let SIGTERM end this process as Ctrl-C does; else its notebooks would go on without it."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def executed(
    paths: Sequence[Path],
    *,
    env: dict[str, str],
    jobs: int,
    timeout: int | None = CELL_TIMEOUT,
    kernels: Path | None = None,
    starting: Callable[[Path], None] = lambda path: None,
) -> Iterator[Run]:
    """Run notebooks, up to `jobs` at a time, and yield each as it ends.

    A failing notebook does not stop the others. An interruption stops all of them, and their
    kernels, before it is passed on; for SIGTERM see `end_as_interrupted`.

    Args:
      paths: of the notebooks.
      env: the kernels' environment.
      jobs: how many at a time.
      timeout: seconds for a cell; None for as long as it takes.
      kernels: folder of kernel specifications with a `python3`, by default this environment's.
      starting: called with the path of each notebook that begins.
    """
    for group in split_collector(paths, last_time(env["PFCORE_PROFILE"])):
        waiting = collections.deque(group)
        with ProcessPoolExecutor(
            max_workers=min(jobs, len(group)),
            initializer=signal.signal,
            initargs=(signal.SIGTERM, signal.SIG_DFL),
        ) as pool:
            running: dict[Future[Run], Path] = {}
            try:
                while waiting or running:
                    # No more than are worked on: what is queued could not be taken back.
                    while waiting and len(running) < jobs:
                        path = waiting.popleft()
                        starting(path)
                        future = pool.submit(
                            execute_one, path, env, timeout=timeout, kernels=kernels
                        )
                        running[future] = path
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        del running[future]
                        yield future.result()
            except (KeyboardInterrupt, GeneratorExit, BrokenProcessPool):
                # nbclient ends its kernel on this signal.
                for child in multiprocessing.active_children():
                    child.terminate()
                raise


def time_left(runs: Sequence[Run], paths: Sequence[Path], profile: str, jobs: int) -> str:
    """How long the notebooks that have not ended will take, in words; "" where that is not known.

    Those that ended say how this machine compares with the one that the stored times are from.
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


def execute(paths: Sequence[Path], *, root: Path, profile: str, jobs: int) -> list[Run]:
    """Run notebooks under `root`, up to `jobs` at a time, with a line for each."""
    runs: list[Run] = []
    width = len(str(len(paths)))
    timeout = CELL_TIMEOUT if profile == "quick" else None
    for run in executed(paths, env=environment(profile), jobs=jobs, timeout=timeout):
        runs.append(run)
        name, left = shown(run.path, root), time_left(runs, paths, profile, jobs)
        print(f"   [{len(runs):{width}}/{len(paths)}] {name}  {run.words}{left}", flush=True)
        if run.problem:
            print(run.problem, flush=True)
    return runs


def reason(problem: str) -> str:
    """The last line of an error's report that says anything, short enough for a sentence."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", problem)
    lines = [line.strip() for line in plain.splitlines() if line.strip()]
    text = lines[-1] if lines else "no reason was given"
    return text if len(text) <= 200 else text[:199] + "…"


def note_not_recomputed(path: Path, problem: str) -> None:
    """Say at the top of a page, below its title, that it shows the outputs that were stored."""
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


# ---- times


def machine(profile: str) -> str:
    """Device and versions that the kernels have, in a few words."""
    code = "import json, pfcore; print(json.dumps(pfcore.records.provenance()))"
    # In a process of its own: this one would keep the memory of an accelerator from the kernels.
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(profile),
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    versions = f"JAX {found['versions']['jax']}, Python {platform.python_version()}"
    return f"{found['device']}, {versions}"


def _keep(old: int | float | None, new: int | float | None) -> int | float | None:
    """`old` where `new` is about the same."""
    if old is None or new is None or abs(new - old) > SAME * old:
        return new
    return old


def note_times(path: Path, runs: Sequence[Run], profile: str, where: str) -> None:
    """Write what `runs` took into the file of times; other notebooks' entries stay.

    An entry names its machine where that is not the machine of most of the others, which is named
    once, at the top. Measured again on the same machine and about the same, it stays as it was.

    Args:
      path: of the file of times, which need not exist.
      runs: those that went wrong are passed over.
      profile: that they ran in.
      where: the machine, in a few words.
    """
    stored = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    common = stored.get("machine")
    entries: dict[tuple[str, str], dict[str, Any]] = {
        (name, kind): {"machine": common} | entry
        for name, kinds in stored.get("notebooks", {}).items()
        for kind, entry in kinds.items()
    }
    for run in runs:
        if run.problem:
            continue
        key = (run.path.stem, profile)
        old = entries.get(key, {})
        old = old if old.get("machine") == where else {}
        new = {"seconds": round(run.seconds, 1), "peak_mb": run.peak_mb}
        entries[key] = {"machine": where} | {
            name: _keep(old.get(name), value) for name, value in new.items()
        }
    if not entries:
        return
    machines = collections.Counter(entry["machine"] for entry in entries.values())
    common = machines.most_common(1)[0][0]
    notebooks: dict[str, dict[str, Any]] = {}
    for (name, kind), entry in sorted(entries.items()):
        measured = {k: v for k, v in entry.items() if k != "machine" or v != common}
        notebooks.setdefault(name, {})[kind] = measured
    content = {"machine": common, "notebooks": notebooks}
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


# ---- check


def faults(path: Path) -> list[str]:
    """What is wrong with a stored notebook, as sentences; empty if nothing is."""
    found = []
    text = path.read_text(encoding="utf-8")
    if len(text.encode()) > MAX_BYTES:
        found.append(f"is {len(text.encode()) / 1e6:.1f} MB; the limit is {MAX_BYTES / 1e6:.0f} MB")
    notebook = nbformat.reads(text, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    unrun = [number for number, cell in enumerate(code, 1) if cell.execution_count is None]
    counts = [cell.execution_count for cell in code]
    if unrun:
        found.append(f"code cells that were not run: {', '.join(map(str, unrun))}")
    elif counts != list(range(1, len(code) + 1)):
        found.append(f"code cells ran out of order: {counts}")
    for number, cell in enumerate(code, 1):
        for output in cell.outputs:
            if output.output_type == "error":
                found.append(f"code cell {number} ended in {output.ename}: {output.evalue}")
    if text != serialise(normalise(notebook)):
        found.append("is not stored normalised: make notebooks does that")
    return found


def check(paths: Sequence[Path]) -> int:
    """Print every fault of the stored notebooks; how many notebooks have one."""
    wrong = 0
    for path in paths:
        found = faults(path)
        wrong += bool(found)
        for fault in found:
            print(f"{shown(path)}: {fault}")
    return wrong


# ---- compare


def compare(paths: Sequence[Path], *, scratch: Path, jobs: int, timeout: int) -> int:
    """Rerun notebooks with nbval against their stored outputs; claims are written to `scratch`."""
    env = environment("quick")
    folder = scratch / "claims"
    folder.mkdir(parents=True, exist_ok=True)
    env["PFCORE_CLAIMS_DIR"] = str(folder.resolve())
    status = 0
    for group in split_collector(paths, last_time("quick")):
        command = [sys.executable, "-m", "pytest", "-q", "--nbval", "--nbval-current-env"]
        command += [f"--nbval-cell-timeout={timeout}"]
        if len(group) > 1:
            # A notebook's cells share a kernel, hence one worker for each file; in the order given.
            command += ["-n", str(jobs), "--dist", "loadfile", "--no-loadscope-reorder"]
        command += [str(path) for path in group]
        status = subprocess.run(command, cwd=ROOT, env=env, check=False).returncode or status
    return status


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)

    commands.add_parser("list", help="print the notebooks in the order of _toc.yml")

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
    rerun.add_argument("--timeout", type=int, default=300, help="seconds for a cell (default 300)")

    for command in (run, checked, rerun):
        command.add_argument("paths", nargs="*", type=Path, help="notebooks (default: all)")

    args = parser.parse_args()
    if args.command == "execute" and args.report is not None and args.into is None:
        parser.error("--report goes with --into: in place, a notebook that fails is left alone")
    if args.command == "list":
        print(*map(shown, listed()), sep="\n")
        return 0

    paths = [path.resolve() for path in args.paths] or listed()
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        parser.error(f"no such notebook: {', '.join(missing)}")
    if args.command == "check":
        return min(check(paths), 1)
    if args.command == "compare":
        return compare(paths, scratch=args.scratch, jobs=args.jobs, timeout=args.timeout)
    root = ROOT
    if args.into is not None:
        root = args.into.resolve()
        stage(root)
        paths = [root / path.relative_to(ROOT) for path in paths]
    end_as_interrupted()
    try:
        runs = execute(paths, root=root, profile=args.profile, jobs=args.jobs)
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
