"""Run the jobs that `jobs.toml` lists on an offline machine with a GPU.

    python run.py --out FOLDER [--minutes 9] [--lanes 4] [--only NAME ...] [--skip-tests]
    python run.py --out FOLDER [--minutes 9] --benchmarks

Runs in a folder created by `make gpu-job`: `tree` (the checkout), `wheels`, `data` and this file,
and, after an earlier call, `work`. Jobs are started in order, `lanes` at a time on the same device.
Unfinished jobs are stopped when the minutes are over, and resumed by the next call. Output consists
of at most six files: `records.tar.gz` (imported by `tools/gpu/take.py`), `unfinished.tar.gz`, to be
unpacked in `work` before the next call on another machine, `table.md`, `job.json`, `log.txt` and
`tests.txt`. With `--benchmarks`, the listed benchmarks run in place of the jobs, alone on the
device; output is `benchmarks.txt`.
"""

import argparse
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import tomllib
from concurrent import futures
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent
TREE, WHEELS, DATA, WORK = (ROOT / name for name in ("tree", "wheels", "data", "work"))
GRACE = 25  # seconds that a job has to write its checkpoint
TEST_SECONDS = 150


def jobs() -> list[dict[str, Any]]:
    """The jobs, with lists of methods expanded."""
    listed = tomllib.loads((ROOT / "jobs.toml").read_text(encoding="utf-8"))
    lists = {name: "".join(text.split()) for name, text in listed.get("lists", {}).items()}

    def filled(job: dict[str, Any]) -> dict[str, Any]:
        settings = list(job["settings"])
        budget = next((s.partition("=")[2] for s in settings if s.startswith("budget=")), "")
        for name, text in lists.items():
            settings = [s.replace(f"LIST:{name}", text) for s in settings]
        third = str(int(budget) // 3) if budget else ""
        return job | {
            "settings": [s.replace("BUDGET", budget).replace("THIRD", third) for s in settings]
        }

    return [filled(job) for job in listed["job"]]


def environment() -> dict[str, str]:
    """The environment of a job: tree and wheels first in the path, the data, no network."""
    site = ROOT / "site"
    for wheel in sorted(WHEELS.glob("*.whl")):
        shutil.unpack_archive(wheel, site, "zip")
    flags = "--xla_gpu_enable_triton_gemm=false"
    return os.environ | {
        "PYTHONPATH": f"{TREE}{os.pathsep}{site}",
        "PFCORE_DATA": str(DATA),
        "PYTHONUNBUFFERED": "1",
        "XLA_FLAGS": f"{flags} {os.environ.get('XLA_FLAGS', '')}".strip(),
        # Several processes share the device.
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        # Products of float32 matrices as float32, not as TF32.
        "JAX_DEFAULT_MATMUL_PRECISION": "highest",
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


def carry_out(name: str, profile: str, changes: list[str]) -> None:
    """One job, in a separate process."""
    job = next(job for job in jobs() if job["name"] == name)
    # What stops the job is a request, not the end.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    import jax

    from pfcore import experiments

    began = time.perf_counter()
    config = experiments.configure(job["experiment"], *job["settings"], *changes, profile=profile)
    state = "stopped"
    try:
        record = experiments.run(job["experiment"], config, out=WORK / name, resume=True)
        state = "diverged" if record.info["diverged"] else "done"
    except KeyboardInterrupt as stopped:
        state = str(stopped) or state
    device = jax.local_devices()[0]
    statistics = device.memory_stats() or {}
    report = {
        "state": state,
        "seconds": round(time.perf_counter() - began, 1),
        "device": device.device_kind,
        "peak_bytes": statistics.get("peak_bytes_in_use"),
    }
    (WORK / f"{name}.json").write_text(json.dumps(report), encoding="utf-8")


def run_tests(out: Path, env: dict[str, str], names: list[str]) -> str:
    """Run some of the unit tests on the device; returns pytest's last line."""
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-o", "addopts="]
    command += ["-o", "filterwarnings=default", "-p", "no:benchmark", "-p", "no:cacheprovider"]
    if importlib.util.find_spec("xdist"):
        command += ["-n", "4"]
    with open(out / "tests.txt", "w", encoding="utf-8") as log:
        try:
            subprocess.run(
                [*command, *names],
                cwd=TREE,
                env=env,
                stdout=log,
                stderr=subprocess.STDOUT,
                timeout=TEST_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            log.write(f"\nstopped after {TEST_SECONDS} s\n")
    lines = (out / "tests.txt").read_text(encoding="utf-8").strip().splitlines()
    return lines[-1] if lines else "no output"


def run_benchmarks(out: Path, env: dict[str, str], commands: list[str], deadline: float) -> None:
    """Run benchmarks in order; one that the deadline stops keeps what it has printed."""
    plain = {key: value for key, value in env.items() if key != "XLA_FLAGS"} | {"JAX_PLATFORMS": ""}
    with open(out / "benchmarks.txt", "w", encoding="utf-8") as log:
        for command in commands:
            left = deadline - time.monotonic()
            log.write(f"\n$ python benchmarks/{command}\n")
            log.flush()
            if left <= 0:
                log.write("no time left\n")
                continue
            script, *options = command.split()
            try:
                subprocess.run(
                    [sys.executable, str(TREE / "benchmarks" / script), *options],
                    env=plain,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    timeout=left,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                log.write("stopped: no time left\n")
    print((out / "benchmarks.txt").read_text(encoding="utf-8"))


def start(job: dict[str, Any], env: dict[str, str], options: list[str], log: Any):
    command = [sys.executable, str(ROOT / "run.py"), "--one", job["name"], *options]
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=subprocess.STDOUT)


def finished(name: str) -> bool:
    return (WORK / name / "record.json").is_file()


def work_through(
    queue: list[dict[str, Any]],
    env: dict[str, str],
    options: list[str],
    deadline: float,
    lanes: int,
    log: Any,
) -> None:
    """Run jobs in order, `lanes` at a time, until the deadline."""
    waiting = [job for job in queue if not finished(job["name"])]
    running: dict[str, subprocess.Popen] = {}
    while (waiting or running) and time.monotonic() < deadline:
        for name in [name for name, process in running.items() if process.poll() is not None]:
            print(f"{name}: {running.pop(name).returncode}", flush=True)
        while waiting and len(running) < lanes:
            job = waiting.pop(0)
            running[job["name"]] = start(job, env, options, log)
        time.sleep(0.5)
    for process in running.values():
        process.terminate()
    latest = time.monotonic() + GRACE
    for name, process in running.items():
        try:
            process.wait(max(0.0, latest - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
        print(f"{name}: stopped", flush=True)


def bundle(out: Path, name: str, folders: list[Path]) -> None:
    with tarfile.open(out / name, "w:gz") as archive:
        for folder in folders:
            archive.add(folder, folder.relative_to(WORK))


def table(queue: list[dict[str, Any]], tests: str) -> str:
    """The outcome of each job."""
    lines = [f"Unit tests: {tests}", "", "| job | state | seconds | peak GiB | device |"]
    lines.append("|---|---|---|---|---|")
    for job in queue:
        path = WORK / f"{job['name']}.json"
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        peak = found.get("peak_bytes")
        cells = [
            job["name"],
            found.get("state", "not begun"),
            str(found.get("seconds", "")),
            "" if peak is None else f"{peak / 2**30:.2f}",
            found.get("device", ""),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--lanes", type=int, default=4)
    parser.add_argument("--profile", default="full")
    parser.add_argument("--only", nargs="*", help="names of jobs")
    parser.add_argument(
        "--set", nargs="*", default=[], help="settings, such as problem.num_train=64"
    )
    parser.add_argument("--skip-tests", action="store_true")
    parser.add_argument("--benchmarks", action="store_true")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        carry_out(args.one, args.profile, args.set)
        return 0
    if args.out is None:
        parser.error("--out says where results go")
    deadline = time.monotonic() + 60 * args.minutes - GRACE
    args.out.mkdir(parents=True, exist_ok=True)
    WORK.mkdir(exist_ok=True)
    known = jobs()
    unknown = set(args.only or ()) - {job["name"] for job in known}
    if unknown:
        parser.error(f"no job is called {', '.join(sorted(unknown))}")
    queue = [job for job in known if not args.only or job["name"] in args.only]
    env = environment()
    listed = tomllib.loads((ROOT / "jobs.toml").read_text(encoding="utf-8"))
    if args.benchmarks:
        run_benchmarks(args.out, env, listed["benchmarks"], deadline)
        return 0
    # Together with the first jobs, since tests mostly wait for the compiler.
    with futures.ThreadPoolExecutor(1) as beside:
        tested = (
            None if args.skip_tests else beside.submit(run_tests, args.out, env, listed["tests"])
        )
        options = ["--profile", args.profile, *(["--set", *args.set] if args.set else [])]
        with open(args.out / "log.txt", "w", encoding="utf-8") as log:
            work_through(queue, env, options, deadline, args.lanes, log)
        tests = tested.result() if tested else "skipped"
    done = [WORK / job["name"] for job in queue if finished(job["name"])]
    begun = [WORK / job["name"] for job in queue if (WORK / job["name"]).is_dir()]
    bundle(args.out, "records.tar.gz", done)
    bundle(args.out, "unfinished.tar.gz", [path for path in begun if path not in done])
    (args.out / "table.md").write_text(table(queue, tests), encoding="utf-8")
    shutil.copy(ROOT / "job.json", args.out / "job.json")
    print((args.out / "table.md").read_text(encoding="utf-8"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
