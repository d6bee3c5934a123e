"""Run notebooks in parallel, and record their time and memory in `book/times.json`."""

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
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from kernel_server import ForkedKernel
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from notebook_files import ROOT, normalise, serialise

COLLECTOR = "claims"
CELL_TIMEOUT = 600  # seconds, in the quick profile
# XLA takes longer to compile these small programs than they run. The lower level of optimisation
# takes up to a third off that, and they run as fast; so do compiling without expensive passes and
# without fusion emitters for CPUs. Numbers differ by rounding, in stored and in rerun notebooks
# alike. XLA ends a process at a flag that it does not know, as the one on emitters since JAX 0.11.
COMPILE_FASTER = "--xla_backend_optimization_level=1 --xla_llvm_disable_expensive_passes=true"
if tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11):
    COMPILE_FASTER = f"--xla_cpu_use_fusion_emitters=false {COMPILE_FASTER}"
TIMES = "times.json"  # beside the notebooks
# A new measurement within this share of the stored one does not replace it.
SAME = 0.2


def environment(profile: str) -> dict[str, str]:
    """The environment of kernels: that of this interpreter, with the profile.

    Without inherited variables that would redirect claims or change drawings.
    """
    changed = ("PFCORE_CLAIMS_DIR", "MPLBACKEND")
    env = {key: value for key, value in os.environ.items() if key not in changed}
    env |= {"PFCORE_PROFILE": profile, "JUPYTER_PREFER_ENV_PATH": "1", "PYTHONHASHSEED": "0"}
    # XLA's warnings about slow compilation depend on the machine, and would be stored.
    env.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if profile == "quick":
        env.setdefault("JAX_PLATFORMS", "cpu")
    if env.get("JAX_PLATFORMS") == "cpu":
        env.setdefault("XLA_FLAGS", COMPILE_FASTER)
    return env


class Run(NamedTuple):
    """The outcome of running a notebook.

    Attributes:
      path: the notebook.
      seconds: time from the start of its kernel to the end of its last cell.
      peak_mb: peak memory of its kernel in megabytes; None if unknown.
      problem: the error; "" if there was none.
    """

    path: Path
    seconds: float
    peak_mb: int | None
    problem: str

    @property
    def words(self) -> str:
        """Time and memory for a line of progress."""
        memory = "" if self.peak_mb is None else f", {self.peak_mb:,} MB"
        return f"{'FAILED after ' if self.problem else ''}{self.seconds:.0f} s{memory}"


def peak_memory(pid: int | None) -> int | None:
    """Peak memory of a process in megabytes; None if the system does not provide it."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    found = re.search(r"^VmHWM:\s+(\d+) kB", status, flags=re.MULTILINE)
    return round(int(found[1]) * 1024 / 1e6) if found else None


def execute_one(
    path: Path,
    env: dict[str, str],
    *,
    kernels: Path | None = None,
    fork: bool = False,
) -> Run:
    """Run one notebook and store it.

    Args:
      path: the notebook, which is overwritten if all of its cells ran.
      env: environment of the kernel.
      kernels: folder of kernel specifications with a `python3`, by default this environment's.
      fork: as for `executed`.
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
    elif fork and sys.platform == "linux":
        km = options["km"] = AsyncKernelManager(kernel_name="python3")
        km.provisioner = ForkedKernel(kernel_id=km.kernel_id, kernel_spec=km.kernel_spec, parent=km)
    client = NotebookClient(
        notebook,
        kernel_name="python3",
        record_timing=False,
        timeout=CELL_TIMEOUT if env["PFCORE_PROFILE"] == "quick" else None,
        extra_arguments=["--log-level=ERROR"],
        resources={"metadata": {"path": str(path.parent)}},
        **options,
    )
    memory: list[int] = []

    def sample(**_: Any) -> None:
        # After every cell, since the kernel ends with the last cell or with an error.
        provisioner = client.km.provisioner if client.km is not None else None
        found = peak_memory(getattr(provisioner, "pid", None))
        memory.extend([] if found is None else [found])

    client.on_cell_executed = sample
    problem = ""
    try:
        client.execute(env=env, cleanup_kc=True)
    except (CellExecutionError, CellTimeoutError, DeadKernelError, RuntimeError) as error:
        # A RuntimeError is that of a kernel that does not start.
        problem = "\n".join(str(error).rstrip().splitlines()[-20:])
    else:
        path.write_text(serialise(normalise(notebook)), encoding="utf-8")
    return Run(path, time.perf_counter() - start, max(memory, default=None), problem)


def end_as_interrupted() -> None:
    """Handle SIGTERM like Ctrl-C, so that the notebooks end with this process."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def split_collector(paths: Sequence[Path], seconds: Mapping[str, float]) -> list[list[Path]]:
    """Notebooks that can run in parallel, longest first, and those that must run after them.

    Args:
      paths: the notebooks.
      seconds: time of each, by name, if known.
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
    kernels: Path | None = None,
    fork: bool = False,
    starting: Callable[[Path], None] = lambda path: None,
) -> Iterator[Run]:
    """Run notebooks, up to `jobs` at a time, and yield each as it ends.

    A failing notebook does not stop the others. An interruption first stops all notebooks and their
    kernels; for SIGTERM see `end_as_interrupted`.

    Args:
      paths: the notebooks.
      env: environment of the kernels.
      jobs: number of simultaneous notebooks.
      kernels: folder of kernel specifications with a `python3`, by default this environment's.
      fork: whether kernels begin with the libraries imported, on Linux; then neither their time nor
        their memory is that of a reader's run.
      starting: called with the path of each notebook when it starts.
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
                    # Only as many as there are processes, since queued ones cannot be cancelled.
                    while waiting and len(running) < jobs:
                        path = waiting.popleft()
                        starting(path)
                        future = pool.submit(execute_one, path, env, kernels=kernels, fork=fork)
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
    """Stored time of each notebook, in seconds."""
    path = ROOT / "book" / TIMES
    stored = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return {name: kinds[profile]["seconds"] for name, kinds in stored.items() if profile in kinds}


def machine(profile: str) -> str:
    """Device and versions of the kernels, in a few words."""
    code = "import json, pfcore; print(json.dumps(pfcore.records.provenance()))"
    # In a separate process, so that this one does not hold the accelerator's memory.
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
    """`old` if `new` is about the same, else `new`."""
    if old is None or new is None or abs(new - old) > SAME * old:
        return new
    return old


def note_times(path: Path, runs: Sequence[Run], profile: str, where: str) -> None:
    """Write time and memory of `runs` to the file of times; other entries are kept.

    A new measurement on the same machine that is about the same does not change the entry.

    Args:
      path: the file of times, which need not exist.
      runs: the runs; failed ones are ignored.
      profile: their profile.
      where: the machine, in a few words.
    """
    stored = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for run in runs:
        if run.problem:
            continue
        profiles = stored.setdefault(run.path.stem, {})
        old = profiles.get(profile, {})
        old = old if old.get("machine") == where else {}
        new = {"seconds": round(run.seconds, 1), "peak_mb": run.peak_mb}
        profiles[profile] = {name: _keep(old.get(name), value) for name, value in new.items()}
        profiles[profile]["machine"] = where
    text = json.dumps(stored, indent=1, ensure_ascii=False, sort_keys=True)
    path.write_text(text + "\n", encoding="utf-8")
