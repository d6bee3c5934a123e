"""Running notebooks, some at a time, and what that took.

How long each ran and how much memory it took are kept in `book/times.json`.
"""

import collections
import json
import multiprocessing
import os
import platform
import re
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
from notebook_files import ROOT, normalise, serialise

COLLECTOR = "claims"
CELL_TIMEOUT = 600  # seconds, in the quick profile
# XLA's newer way to compile loops for CPUs takes longer than the small programs here run. Without
# it numbers differ by rounding, the same where they are stored and where they are compared.
COMPILE_FASTER = "--xla_cpu_use_fusion_emitters=false --xla_llvm_disable_expensive_passes=true"
TIMES = "times.json"  # beside the notebooks
# What is kept of an earlier measurement that came out as long, or as large, up to this share.
SAME = 0.2


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


def end_as_interrupted() -> None:
    """Let SIGTERM end this process as Ctrl-C does; else its notebooks would go on without it."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


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


def last_time(profile: str) -> dict[str, float]:
    """Seconds that each notebook took when it was stored."""
    path = ROOT / "book" / TIMES
    stored = json.loads(path.read_text(encoding="utf-8"))["notebooks"] if path.is_file() else {}
    return {name: kinds[profile]["seconds"] for name, kinds in stored.items() if profile in kinds}


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
