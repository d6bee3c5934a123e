"""What `make reproduce` says of claims that came out again, differently, or not at all; and the
times that running the book leaves behind."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import check_claims
import nbformat
import notebook_runs
import notebooks
import pytest
import reproduce

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / "tools"
BASE = {"statement": "a number", "tolerance": "< 1", "figure": "fig-a", "rerun_tolerance": 0.1}


def write(folder, page, **claims):
    """A page's claims; each a number, or a number, a verdict and perhaps a tolerance."""
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for name, value in claims.items():
        number, verdict, *rest = value if isinstance(value, tuple) else (value, "holds")
        claim = BASE | {"id": name, "number": number, "verdict": verdict}
        found.append(claim | ({"rerun_tolerance": rest[0]} if rest else {}))
    content = {"notebook": page, "claims": found}
    (folder / f"{page}.json").write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture
def compared(tmp_path):
    """Findings by claim, for the claims in `stored` and `fresh`."""

    def compare(problems, numbers=True):
        stored, fresh = (check_claims.read(tmp_path / name) for name in ("stored", "fresh"))
        return reproduce.compare(stored, fresh, problems, numbers=numbers)

    return compare


def statuses(findings):
    return {finding.claim: finding.status for finding in findings}


def test_a_number_within_its_own_tolerance_is_reproduced(tmp_path, compared):
    write(tmp_path / "stored", "page", C1=1.0, C2=1.0, C3=(1.0, "holds", 0.5), C4=0.0, C5=2)
    write(tmp_path / "fresh", "page", C1=1.09, C2=1.12, C3=(1.4, "holds", 0.5), C4=0.0, C5=2)
    found = compared({"page": ""})
    assert statuses(found) == {
        "C1": "reproduced",
        "C2": "changed",
        "C3": "reproduced",
        "C4": "reproduced",
        "C5": "reproduced",
    }
    assert found[1].note == "number differs by more than 0.1 relative"


def test_another_verdict_is_a_change_whatever_the_number(tmp_path, compared):
    write(tmp_path / "stored", "page", C1=1.0, C2=(1.0, "holds", None), C3=(1.0, "holds", None))
    write(tmp_path / "fresh", "page", C1=(1.0, "fails"), C2=(9.0, "holds", None), C3=(1.0, "fails"))
    found = compared({"page": ""})
    assert statuses(found) == {"C1": "changed", "C2": "reproduced", "C3": "changed"}
    assert found[0].note == "verdict was 'holds', is 'fails'"


def test_in_another_profile_only_verdicts_count(tmp_path, compared):
    write(tmp_path / "stored", "page", C1=1.0, C2=1.0)
    write(tmp_path / "fresh", "page", C1=50.0, C2=(50.0, "fails"))
    found = compared({"page": ""}, numbers=False)
    assert statuses(found) == {"C1": "reproduced", "C2": "changed"}
    assert {finding.tolerance for finding in found} == {None}


def test_a_claim_that_was_not_written_has_failed_and_one_that_came_is_a_change(tmp_path, compared):
    write(tmp_path / "stored", "page", C1=1.0, C2=1.0)
    write(tmp_path / "fresh", "page", C1=1.0, C3=1.0)
    found = compared({"page": ""})
    assert statuses(found) == {"C1": "reproduced", "C2": "failed", "C3": "changed"}


def test_a_page_that_stopped_fails_all_its_claims(tmp_path, compared):
    """Also those that it had written by then."""
    problem = "some lines\n\x1b[31mValueError\x1b[39m: no luck\n\n"
    write(tmp_path / "stored", "page", C1=1.0, C2=1.0)
    write(tmp_path / "stored", "other", C9=1.0)
    write(tmp_path / "fresh", "page", C1=1.0)
    write(tmp_path / "fresh", "other", C9=1.0)
    found = compared({"page": problem, "other": "", "text": problem})
    assert statuses(found) == {"C9": "reproduced", "C1": "failed", "C2": "failed", "": "failed"}
    assert {f.note for f in found[1:]} == {"the page stopped: ValueError: no luck"}


@pytest.fixture
def recomputed(monkeypatch):
    """The names of recomputed records, with JAX_PLATFORMS and XLA_FLAGS of each computation."""
    asked = {}

    def run(command, *, env, check):
        if command[1] == "-c":  # which looks for a GPU
            return subprocess.CompletedProcess(command, "gpu" not in env)
        asked[Path(command[2]).name] = env.get("JAX_PLATFORMS"), env.get("XLA_FLAGS")
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(reproduce.subprocess, "run", run)
    return asked


def stored_devices():
    return {
        path.parent.name: json.loads(path.read_text(encoding="utf-8"))["device"]
        for path in reproduce.RECORDS.glob("*/record.json")
    }


def test_a_record_is_recomputed_on_the_kind_of_device_that_computed_it(tmp_path, recomputed):
    devices = stored_devices()
    on_gpu = {name for name, device in devices.items() if "NVIDIA" in device}
    assert on_gpu and devices.keys() - on_gpu
    env = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": notebook_runs.COMPILE_FASTER}
    assert reproduce.recompute(tmp_path / "with", env | {"gpu": ""}, "recompute") == []
    on_cpu = tuple(env.values())
    assert recomputed == {name: (None, None) if name in on_gpu else on_cpu for name in devices}


def test_without_a_gpu_its_records_are_kept_and_said_to_be(tmp_path, recomputed, capsys):
    devices = stored_devices()
    on_gpu = {name for name, device in devices.items() if "NVIDIA" in device}
    assert reproduce.recompute(tmp_path, {"JAX_PLATFORMS": "cpu"}, "recompute") == []
    assert recomputed.keys() == devices.keys() - on_gpu
    assert {path.name for path in tmp_path.iterdir()} == on_gpu
    assert f"the {len(on_gpu)} records that one computed are kept" in capsys.readouterr().out


def test_records_of_other_code_are_not_resumed(tmp_path, monkeypatch):
    (tmp_path / "pfcore").mkdir()
    monkeypatch.setattr(reproduce, "ROOT", tmp_path)
    source = tmp_path / "pfcore" / "flows.py"
    source.write_text("h = 1")
    before = reproduce.code_digest()
    assert before == reproduce.code_digest()
    source.write_text("h = 2")
    assert before != reproduce.code_digest()


def test_short_recomputes_what_a_processor_soon_does_and_copies_the_rest(tmp_path, recomputed):
    assert reproduce.recompute(tmp_path, {}, "short") == []
    infos = {
        path.parent.name: json.loads(path.read_text(encoding="utf-8"))
        for path in reproduce.RECORDS.glob("*/record.json")
    }
    short = {
        name
        for name, info in infos.items()
        if info["device"] == "2 CPU cores"
        and info["wall_time_s"] <= 120
        and info["data"]["source"].startswith("scikit-learn")
    }
    assert recomputed.keys() == short and short
    assert {path.name for path in tmp_path.iterdir()} == infos.keys() - short


def test_pages_that_were_not_run_are_passed_over(tmp_path, compared):
    write(tmp_path / "stored", "page", C1=1.0)
    write(tmp_path / "stored", "other", C2=1.0)
    write(tmp_path / "fresh", "page", C1=1.0)
    assert statuses(compared({"page": ""})) == {"C1": "reproduced"}


def test_claims_are_listed_by_page_number_and_part():
    keys = [("b", "C1"), ("a", "C10"), ("a", "C2b"), ("a", "C2"), ("a", "C10b")]
    assert [claim for _, claim in check_claims.ordered(keys)] == [
        "C2",
        "C2b",
        "C10",
        "C10b",
        "C1",
    ]


def test_a_resumed_rerun_keeps_what_ran_well_in_the_same_setting(tmp_path):
    source = tmp_path / "source"
    setting = {"profile": "quick", "records": "stored", "code": "1234"}
    good, bad, claims = (
        reproduce.Run(source / "book" / f"{name}.ipynb", 1.0, 2, problem)
        for name, problem in (("good", ""), ("bad", "no luck"), ("claims", ""))
    )
    assert reproduce.finished_before(tmp_path, source, setting) == []
    source.mkdir()
    reproduce.write_report(tmp_path, setting, [], [good, bad, claims], "said")
    # The page of claims runs again.
    assert reproduce.finished_before(tmp_path, source, setting) == [good]
    for other in ({"profile": "full"}, {"records": "short"}, {"code": "5678"}):
        assert reproduce.finished_before(tmp_path, source, setting | other) == []


# The tool as it is called, on a small book of its own


def notebook(*sources):
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    return nbformat.writes(nbformat.v4.new_notebook(cells=cells))


def writing(page, number):
    """A cell that writes a claim, as `pfcore.claims.report` would."""
    claim = BASE | {"id": "C1", "number": number, "verdict": "holds"}
    text = json.dumps({"notebook": page, "claims": [claim]})
    return (
        "from pathlib import Path\nPath('claims').mkdir(exist_ok=True)\n"
        f"Path('claims/{page}.json').write_text({text!r})"
    )


@pytest.fixture
def small_book(tmp_path):
    """A tree with the tools and two pages: one that comes out as stored, and one that stops."""
    root = tmp_path / "tree"
    shutil.copytree(TOOLS, root / "tools", ignore=shutil.ignore_patterns("__pycache__"))
    (root / "book").mkdir()
    (root / "_config.yml").write_text("title: small\n")
    (root / "_toc.yml").write_text("root: book/good\nchapters:\n- file: book/bad\n")
    (root / "CHANGELOG.md").write_text("# Changelog\n")
    (root / "book" / "good.ipynb").write_text(notebook("1 + 1", writing("good", 1.05)))
    (root / "book" / "bad.ipynb").write_text(notebook("raise ValueError('no luck')"))
    write(root / "book" / "claims", "good", C1=1.0)
    write(root / "book" / "claims", "bad", C2=1.0)
    return root


def setting(root, tool):
    """The command of one of the tools of `root`, and what its process is started with."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PFCORE_")}
    options = {"env": environment | {"JAX_PLATFORMS": "cpu"}, "cwd": root}
    return [sys.executable, str(root / "tools" / f"{tool}.py")], options


def call(root, *arguments):
    command, options = setting(root, "reproduce")
    return subprocess.run(
        [*command, *map(str, arguments)],
        **options,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_exit_status_and_the_reports_say_what_came_out(small_book):
    done = call(small_book)
    assert done.returncode == 1, done.stderr
    assert "2 claims on 2 pages: 1 reproduced, 0 changed, 1 failed" in done.stdout
    out = small_book / "_build" / "reproduce"
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    found = {claim["claim"]: claim for claim in report["claims"]}
    assert found["C1"]["status"] == "reproduced" and found["C1"]["fresh"] == 1.05
    assert found["C2"]["status"] == "failed" and "no luck" in found["C2"]["note"]
    assert report["summary"] == {"reproduced": 1, "changed": 0, "failed": 1}
    ran = {entry["path"]: entry for entry in report["notebooks"]}
    assert ran["good"]["problem"] == "" and ran["good"]["seconds"] > 0
    assert "| C2 | bad |" in (out / "report.md").read_text(encoding="utf-8")
    # What is stored is left alone.
    assert 'execution_count": null' in (small_book / "book" / "good.ipynb").read_text()

    (small_book / "book" / "bad.ipynb").write_text(notebook(writing("bad", 1.0)))
    again = call(small_book, "book/good.ipynb")
    assert again.returncode == 0, again.stdout
    assert "1 claim on 1 page: 1 reproduced" in again.stdout


def gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_is_stopped_leaves_nothing_that_runs(small_book, number):
    """A signal to the tool alone ends its workers and their kernels, and nothing is stored."""
    path = small_book / "book" / "bad.ipynb"
    path.write_text(
        notebook(
            "import os, time\nfrom pathlib import Path\n"
            "Path('pid.part').write_text(str(os.getpid()))\nos.rename('pid.part', 'pid')\n"
            "time.sleep(300)"
        )
    )
    before = path.read_bytes()
    command, options = setting(small_book, "notebooks")
    running = subprocess.Popen(
        [*command, "execute", "--in-place", str(path)], **options, stdout=subprocess.PIPE, text=True
    )
    try:
        pid = small_book / "book" / "pid"
        wait_until(pid.is_file)
        running.send_signal(number)
        # Its workers write to the same pipe, which ends when the last of them does.
        printed, _ = running.communicate(timeout=60)
    finally:
        running.kill()
    assert running.returncode == 130 and printed.endswith("interrupted\n")
    wait_until(lambda: gone(int(pid.read_text())))
    assert path.read_bytes() == before


# A notebook that fails


def test_a_notebook_that_fails_costs_its_page_only_the_recomputing(small_book):
    """The others run; its page shows stored outputs, with a note, and is listed with the reason."""
    command, options = setting(small_book, "notebooks")
    into, report = small_book / "_build" / "source", small_book / "_build" / "report.txt"
    page = nbformat.reads(notebook("raise ValueError('no luck')"), as_version=4)
    page.cells[0].outputs = [nbformat.v4.new_output("stream", text="as stored")]
    page.cells.insert(0, nbformat.v4.new_markdown_cell("# Bad\n\nIts text."))
    nbformat.write(page, small_book / "book" / "bad.ipynb")
    before = (small_book / "book" / "bad.ipynb").read_bytes()
    done = subprocess.run(
        [*command, "execute", "--into", str(into), "--report", str(report)],
        **options,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert report.read_text(encoding="utf-8") == "   book/bad.ipynb: ValueError: no luck\n"
    good = nbformat.read(into / "book" / "good.ipynb", as_version=4)
    assert good.cells[-1].execution_count is not None
    assert "Not recomputed" not in good.cells[0].source
    bad = nbformat.read(into / "book" / "bad.ipynb", as_version=4)
    title, blank, directive, *_ = bad.cells[0].source.splitlines()
    assert (title, blank, directive) == ("# Bad", "", ":::{warning}")
    assert bad.cells[0].source.endswith("Its text.")
    assert "**Not recomputed here.**" in bad.cells[0].source
    assert "`ValueError: no luck`" in bad.cells[0].source
    assert bad.cells[1:] == page.cells[1:] and bad.cells[1].outputs[0].text == "as stored"
    assert (small_book / "book" / "bad.ipynb").read_bytes() == before


def test_a_report_needs_a_copy_to_write_notices_into(small_book):
    command, options = setting(small_book, "notebooks")
    done = subprocess.run(
        [*command, "execute", "--in-place", "--report", "report.txt"],
        **options,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2 and "--report goes with --into" in done.stderr


def test_the_reason_is_the_last_line_that_says_anything():
    reason = notebooks.reason
    assert reason("Traceback\n\x1b[31mValueError\x1b[0m: no luck\n\n") == "ValueError: no luck"
    assert len(reason("x" * 500)) == 200 and reason("") == "no reason was given"


def test_the_time_left_is_that_of_the_stored_times_at_this_machine_s_pace(monkeypatch):
    known = {"a": 10.0, "b": 20.0, "c": 40.0, "d": 400.0}
    monkeypatch.setattr(notebooks, "last_time", lambda profile: known)
    paths = [Path(f"{name}.ipynb") for name in known]
    runs = [run_of("a", 20.0), run_of("b", 40.0)]
    # Twice as slow: 2 (40 + 400) s over two processes.
    assert notebooks.time_left(runs, paths, "quick", 2) == "; about 7 min left"
    assert notebooks.time_left(runs, paths[:3], "quick", 2) == "; about 80 s left"
    assert notebooks.time_left(runs, paths[:2], "quick", 2) == ""
    assert notebooks.time_left(runs, [*paths, Path("new.ipynb")], "quick", 2) == ""


# Times


def run_of(name, seconds, peak=1000, problem=""):
    return notebook_runs.Run(Path(f"{name}.ipynb"), seconds, peak, problem)


def times(path, *runs, profile="quick", where="2 CPU cores"):
    notebook_runs.note_times(path, runs, profile, where)
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("folder", [ROOT, ROOT.parent, ROOT / "book", ROOT / "book" / "new"])
def test_the_sources_are_not_copied_over_themselves(folder):
    with pytest.raises(SystemExit, match="name another folder"):
        notebooks.stage(folder)
    assert (ROOT / "book" / "intro.md").is_file()


def test_the_longest_run_first_and_the_collector_when_they_are_done():
    paths = [Path(f"{name}.ipynb") for name in ("claims", "short", "new", "long")]
    groups = notebook_runs.split_collector(paths, {"short": 1.0, "long": 9.0, "claims": 99.0})
    assert [[path.stem for path in group] for group in groups] == [
        ["new", "long", "short"],
        ["claims"],
    ]


def test_times_change_only_where_they_differ_by_more_than_a_fifth(tmp_path):
    path = tmp_path / "times.json"
    times(path, run_of("a", 10.04), run_of("b", 20.0))
    before = path.read_bytes()
    times(path, run_of("a", 11.9, peak=810))
    assert path.read_bytes() == before
    found = times(path, run_of("a", 12.1, peak=1201))
    cores = {"machine": "2 CPU cores"}
    assert found["a"]["quick"] == cores | {"seconds": 12.1, "peak_mb": 1201}
    assert found["b"]["quick"] == cores | {"seconds": 20.0, "peak_mb": 1000}


def test_times_of_other_profiles_and_machines_stand_side_by_side(tmp_path):
    path = tmp_path / "times.json"
    times(path, run_of("a", 10.0), run_of("b", 10.0))
    gpu = {"profile": "full", "where": "1 × GPU"}
    found = times(path, run_of("b", 10.0, peak=None), **gpu)
    assert found["b"] == {
        "full": {"machine": "1 × GPU", "seconds": 10.0, "peak_mb": None},
        "quick": {"machine": "2 CPU cores", "seconds": 10.0, "peak_mb": 1000},
    }
    # About as long, but elsewhere: that is another measurement.
    found = times(path, run_of("a", 10.5), where="8 CPU cores")
    assert found["a"]["quick"]["seconds"] == 10.5


def test_what_stopped_leaves_no_time(tmp_path):
    path = tmp_path / "times.json"
    found = times(path, run_of("a", 10.0), run_of("b", 1.0, problem="stopped"))
    assert list(found) == ["a"]


def test_peak_memory_where_the_system_says_it():
    """Against the measurement of the process itself, if available."""
    peak = notebook_runs.peak_memory
    assert peak(None) is None and peak(2**30) is None
    found = peak(os.getpid())
    if found is None:
        pytest.skip("there is no /proc here")
    import resource

    assert found == pytest.approx(
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 976.6, rel=0.05
    )
