"""Recompute the book, and compare every claim with the stored one.

    python tools/reproduce.py
    python tools/reproduce.py --records recompute
    python tools/reproduce.py --records short
    python tools/reproduce.py book/stability.ipynb

Every notebook runs in a copy, and writes its claims there. A claim is *reproduced* if its verdict
is the same and its number is within the claim's tolerance of the stored one, else *changed*. It is
*failed* if its notebook did not finish, or did not write it. The printed table is also written to
`report.json` and `report.md`, in `_build/reproduce`.

Results that take too long are read from stored records. `--records recompute` first recomputes
these, one after another; the same command resumes an interrupted computation, unless the code has
changed. Records that a GPU computed are recomputed if there is one here, else kept.
`--records short` recomputes those that a processor computed in two minutes from data that need no
download.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from check_claims import STORED, Claims, judge, ordered, read, show
from notebook_files import ROOT, listed
from notebook_runs import (
    COLLECTOR,
    COMPILE_FASTER,
    Run,
    end_as_interrupted,
    environment,
    executed,
    last_time,
    machine,
)
from notebooks import STOPPED, reason, stage
from tables import aligned, markdown

from pfcore.datasets import EMBEDDED
from pfcore.runs.durations import duration

OUT = ROOT / "_build" / "reproduce"
RECORDS = ROOT / "book" / "records"
SHORT = 120  # seconds that a record took
STATUSES = ("reproduced", "changed", "failed")


class Finding(NamedTuple):
    """The outcome of a claim.

    Attributes:
      claim: its id; "" for a page without claims that did not run.
      page: the notebook.
      stored: its stored number; None if it is not stored.
      fresh: its new number; None if it was not written.
      tolerance: relative tolerance of the number; None if only the verdict is compared.
      status: one of `STATUSES`.
      note: the difference; "" if there is none.
    """

    claim: str
    page: str
    stored: Any
    fresh: Any
    tolerance: float | None
    status: str
    note: str


# ---- comparing


def compare(
    stored: Claims, fresh: Claims, problems: dict[str, str], *, numbers: bool
) -> list[Finding]:
    """The outcome of each claim.

    Args:
      stored: stored claims, by page and id.
      fresh: new claims, by page and id.
      problems: the error of each page that was run; "" if there was none. Claims of other pages are
        ignored.
      numbers: whether to compare numbers as well as verdicts.
    """
    found = []
    keys = [key for key in ordered(stored.keys() | fresh.keys()) if key[0] in problems]
    for page, claim in keys:
        before, after = stored.get((page, claim)), fresh.get((page, claim))
        note = judge(before, after, numbers=numbers)
        status = STATUSES[1] if note else STATUSES[0]
        if problems[page]:
            status, note = STATUSES[2], f"the page stopped: {reason(problems[page])}"
        elif after is None:
            status = STATUSES[2]
        number = {name: c and c["number"] for name, c in (("stored", before), ("fresh", after))}
        tolerance = (before or after or {}).get("rerun_tolerance") if numbers else None
        found.append(
            Finding(claim, page, number["stored"], number["fresh"], tolerance, status, note)
        )
    pages = {page for page, _ in keys}
    for page, problem in problems.items():
        if problem and page not in pages:
            note = f"the page stopped: {reason(problem)}"
            found.append(Finding("", page, None, None, None, STATUSES[2], note))
    return found


def count(findings: Iterable[Finding]) -> dict[str, int]:
    """The number of claims with each status."""
    statuses = [finding.status for finding in findings]
    return {status: statuses.count(status) for status in STATUSES}


def rows(findings: Iterable[Finding]) -> list[tuple[str, ...]]:
    """A table of findings, header first."""
    table: list[tuple[str, ...]] = [
        ("claim", "page", "stored", "fresh", "tolerance", "result", "note")
    ]
    said = ""
    for finding in findings:
        verdict_only = finding.tolerance is None and finding.claim
        tolerance = "verdict" if verdict_only else f"{100 * (finding.tolerance or 0):g} %"
        # The error of a page is shown once.
        same = finding.status == STATUSES[2] and finding.note == said
        said = finding.note
        numbers = ("–" if n is None else show(n) for n in (finding.stored, finding.fresh))
        table.append(
            (
                finding.claim or "–",
                finding.page,
                *numbers,
                tolerance if finding.claim else "–",
                finding.status,
                "″" if same else finding.note,
            )
        )
    return table


# ---- running


def prepare(source: Path, records: Path | None) -> None:
    """A copy of the book without its claims; `records`, if given, replaces its records."""
    stage(source)
    shutil.rmtree(source / "book" / "claims", ignore_errors=True)
    if records is not None:
        shutil.rmtree(source / "book" / "records")
        (source / "book" / "records").symlink_to(records, target_is_directory=True)


def computed_on_cpu(info: dict[str, Any]) -> bool:
    """Whether a record was computed on a processor alone."""
    return re.fullmatch(r"\d+ CPU cores?", info["device"]) is not None


def is_short(info: dict[str, Any]) -> bool:
    """Whether a record is soon recomputed, on the kind of machine and from the data at hand."""
    embedded = info["config"]["problem"]["data"] in EMBEDDED
    return embedded and computed_on_cpu(info) and info["wall_time_s"] <= SHORT


def has_accelerator(env: dict[str, str]) -> bool:
    """Whether JAX finds more than a processor, in a process with the environment `env`."""
    code = "import jax; raise SystemExit(jax.default_backend() == 'cpu')"
    return not subprocess.run([sys.executable, "-c", code], env=env, check=False).returncode


def code_digest() -> str:
    """A digest of the sources of `pfcore`, which decide what a record holds."""
    sources = sorted((ROOT / "pfcore").rglob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:8]


def recompute(into: Path, env: dict[str, str], which: str) -> list[str]:
    """Recompute the stored records that are not in `into` yet; returns the names of failed ones.

    Each is computed on the kind of device that computed the stored one. Those of a GPU are copied
    if there is none here; with "short" in `which`, all that take longer are.
    """
    into.mkdir(parents=True, exist_ok=True)
    names = sorted(path.parent.name for path in RECORDS.glob("*/record.json"))
    took = {
        name: json.loads((RECORDS / name / "record.json").read_text(encoding="utf-8"))
        for name in names
    }
    # Without what `environment` chose for small programs on a processor.
    on_accelerator = {
        key: value
        for key, value in env.items()
        if key != "JAX_PLATFORMS" and (key, value) != ("XLA_FLAGS", COMPILE_FASTER)
    }
    if which == "short":
        kept = {name for name in names if not is_short(took[name])}
    elif has_accelerator(on_accelerator):
        kept = set()
    else:
        kept = {name for name in names if not computed_on_cpu(took[name])}
        print(f"   no GPU here: the {len(kept)} records that one computed are kept as stored")
    for name in kept:
        shutil.copytree(RECORDS / name, into / name, dirs_exist_ok=True)
    names = [name for name in names if name not in kept]
    todo = [name for name in names if not (into / name / "record.json").is_file()]
    total = sum(took[name]["wall_time_s"] for name in todo)
    if len(todo) < len(names):
        print(f"   {len(names) - len(todo)} of {len(names)} records are in {into} from before")
    print(f"   {len(todo)} records to compute; when they were stored they took {duration(total)}")
    failed = []
    for i, name in enumerate(todo, 1):
        info = took[name]
        before = f"{duration(info['wall_time_s'])} on {info['device']}"
        print(f"   [{i}/{len(todo)}] {name} (took {before})", flush=True)
        command = [sys.executable, str(ROOT / "tools" / "recompute.py"), str(RECORDS / name)]
        status = subprocess.run(
            [*command, "--out", str(into / name)],
            env=env if computed_on_cpu(info) else on_accelerator,
            check=False,
        )
        if status.returncode == STOPPED:
            raise KeyboardInterrupt
        if status.returncode:
            failed.append(name)
    return failed


def carry_out(
    paths: Sequence[Path], before: Sequence[Run], *, env: dict[str, str], profile: str, jobs: int
) -> tuple[list[Run], bool]:
    """Run notebooks and print a line for each.

    Returns the runs, those of `before` first, and whether none was interrupted.
    """
    runs = list(before)
    done = {run.path for run in runs}
    todo = [path for path in paths if path not in done]
    expected = last_time(profile)

    def starting(path: Path) -> None:
        seconds = expected.get(path.stem)
        usual = f" (usually about {duration(seconds)})" if seconds else ""
        print(f"   {path.stem} begins{usual}", flush=True)

    try:
        for run in executed(
            todo,
            env=env,
            jobs=jobs,
            fork=True,
            starting=starting,
        ):
            runs.append(run)
            print(f"   [{len(runs)}/{len(paths)}] {run.path.stem}  {run.words}", flush=True)
            if run.problem:
                print(run.problem, flush=True)
    except KeyboardInterrupt:
        return runs, False
    return runs, True


# ---- reporting


def summary(findings: Sequence[Finding], runs: Sequence[Run], num_pages: int) -> str:
    """The result, in a sentence."""
    numbers = count(findings)
    counted = ", ".join(f"{number} {status}" for status, number in numbers.items())
    seconds = sum(run.seconds for run in runs)
    claims = sum(bool(finding.claim) for finding in findings)
    of = f" of {num_pages}" if len(runs) < num_pages else ""
    where = f"{len(runs)}{of} page{'s' * (num_pages > 1)}"
    return f"{claims} claim{'s' * (claims != 1)} on {where}: {counted}; {duration(seconds)}"


def write_report(
    out: Path, setting: dict[str, Any], findings: Sequence[Finding], runs: Sequence[Run], said: str
) -> None:
    """Write `report.json` and `report.md` to the folder `out`."""
    content = setting | {
        "summary": count(findings),
        "claims": [finding._asdict() for finding in findings],
        "notebooks": [run._asdict() | {"path": run.path.stem} for run in runs],
    }
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    (out / "report.json").write_text(text, encoding="utf-8")
    lines = ["# What came out when the book was computed again", "", f"{said}.", ""]
    lines += [f"{key}: {value}  " for key, value in setting.items()]
    lines += ["", markdown(rows(findings)), ""]
    times = [("page", "seconds", "peak memory (MB)", "result")]
    times += [
        (r.path.stem, f"{r.seconds:.0f}", str(r.peak_mb or "–"), "failed" if r.problem else "ran")
        for r in runs
    ]
    lines += ["## Pages", "", markdown(times), ""]
    (out / "report.md").write_text("\n".join(lines), encoding="utf-8")


def finished_before(out: Path, source: Path, setting: dict[str, Any]) -> list[Run]:
    """Successful runs of an earlier call with the same settings, which are kept."""
    path = out / "report.json"
    if not path.is_file() or not source.is_dir():
        return []
    report = json.loads(path.read_text(encoding="utf-8"))
    if any(report.get(key) != value for key, value in setting.items()):
        return []
    entries = [entry for entry in report["notebooks"] if not entry["problem"]]
    # The page of claims collects the results of the others, so it always runs.
    return [
        Run(source / "book" / f"{entry['path']}.ipynb", entry["seconds"], entry["peak_mb"], "")
        for entry in entries
        if entry["path"] != COLLECTOR
    ]


def arguments() -> argparse.Namespace:
    """The arguments of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("paths", nargs="*", type=Path, help="notebooks (default: all)")
    parser.add_argument("--profile", default="quick", choices=["quick", "full"])
    parser.add_argument("--jobs", type=int, default=2, help="how many at a time (default 2)")
    parser.add_argument("--records", default="stored", choices=["stored", "short", "recompute"])
    parser.add_argument("--resume", action="store_true", help="keep the notebooks that ran before")
    parser.add_argument("--out", type=Path, default=OUT, help="default: _build/reproduce")
    args = parser.parse_args()
    args.out, args.whole = args.out.resolve(), not args.paths
    if args.paths and args.records != "stored":
        parser.error(f"--records {args.records} is for the whole book: name no notebooks")
    args.paths = [path.resolve() for path in args.paths] or listed()
    missing = [str(p) for p in args.paths if not p.is_file() or ROOT / "book" not in p.parents]
    if missing:
        parser.error(f"no such notebook in the book: {', '.join(missing)}")
    return args


def run_book(args: argparse.Namespace, setting: dict[str, Any]) -> tuple[list[Run], bool]:
    """Run the requested notebooks in `source` below `args.out`.

    Returns the runs, and whether all records and notebooks were done.

    Raises:
      KeyboardInterrupt: during the computation of records.
    """
    source, env = args.out / "source", environment(args.profile)
    before = finished_before(args.out, source, setting) if args.resume else []
    args.out.mkdir(parents=True, exist_ok=True)
    records = None
    if args.records != "stored":
        # What another version of the code computed is not resumed, nor what `short` copied.
        records = args.out / f"records-{args.records}-{setting['code']}"
        # Records that are missing there are computed, not searched elsewhere.
        env["PFCORE_KEEP_RECORDS"] = "1"
        failed = recompute(records, env, args.records)
        if failed:
            print(f"   could not be computed: {', '.join(failed)}")
    if not before:
        prepare(source, records)
    copies = [source / path.relative_to(ROOT) for path in args.paths]
    kept = [run for run in before if run.path in copies]
    done = {run.path for run in kept}
    for path, copy in zip(args.paths, copies, strict=True):
        if copy not in done:
            shutil.copy2(path, copy)  # which may have changed since the interruption
    return carry_out(copies, kept, env=env, profile=args.profile, jobs=args.jobs)


def main() -> int:
    args = arguments()
    end_as_interrupted()
    quick = args.profile == "quick"
    setting = {"profile": args.profile, "records": args.records, "code": code_digest()}
    if not quick:
        print("   full profile: larger problems, whose numbers differ; only verdicts are compared")
    try:
        runs, complete = run_book(args, setting)
    except KeyboardInterrupt:
        print("\n   interrupted; the same command resumes the run")
        return STOPPED

    stored, fresh = read(STORED), read(args.out / "source" / "book" / "claims")
    # For the whole book, claims of removed pages count as missing, too.
    problems = {page: "" for page, _ in stored} if complete and args.whole else {}
    problems |= {run.path.stem: run.problem for run in runs}
    findings = compare(stored, fresh, problems, numbers=quick)
    some = not all(run.problem for run in runs)
    setting |= {
        "machine": machine(args.profile) if some else "unknown",
        "date": time.strftime("%Y-%m-%d"),
    }
    said = summary(findings, runs, len(args.paths))
    write_report(args.out, setting, findings, runs, said)
    print(aligned(rows(findings), right=(2, 3)))
    print(f"   {said}")
    print(f"   written to {os.path.relpath(args.out)}: report.md, report.json")
    if not complete:
        print("   interrupted; with --resume (RESUME=1) the notebooks that ran are kept")
        return STOPPED
    return int(any(finding.status != STATUSES[0] for finding in findings))


if __name__ == "__main__":
    sys.exit(main())
