"""What runs on GitHub: pinned, with as few rights as it needs, calling what exists."""

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

import pfcore

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PINNED = re.compile(r"uses: [\w.-]+/[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = set(re.findall(r"^([a-z-]+):", MAKEFILE, flags=re.MULTILINE))

of_every_workflow = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)


def read(path):
    """A workflow; the loader takes its key `on` for the truth value."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def steps(workflow):
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


def scripts(workflow):
    return [step["run"] for step in steps(workflow) if "run" in step]


def test_which_there_are():
    assert {path.stem for path in WORKFLOWS} == {"check", "keep", "publish"}
    assert {path.suffix for path in WORKFLOWS[0].parent.iterdir()} == {".yml"}


@of_every_workflow
def test_actions_are_pinned_and_say_their_version(path):
    lines = [line for line in path.read_text().splitlines() if re.search(r"\buses:", line)]
    assert len(lines) == sum("uses" in step for step in steps(read(path))) > 0
    assert [line for line in lines if not PINNED.search(line)] == []


def test_a_pin_has_one_version_and_an_action_one_pin():
    """The comment is what people read, and the hash what runs."""
    text = "".join(path.read_text() for path in WORKFLOWS)
    pins = set(re.findall(r"uses: (\S+)@([0-9a-f]{40}) # (\S+)", text))
    assert len({action for action, *_ in pins}) == len(pins) == len({pin for _, pin, _ in pins})


@of_every_workflow
def test_rights_are_given_where_they_are_needed(path):
    workflow = read(path)
    assert workflow["permissions"] == {"contents": "read"}
    given = {
        name: job["permissions"] for name, job in workflow["jobs"].items() if "permissions" in job
    }
    writing = {
        "pages": {"pages": "write", "id-token": "write"},
        "release": {"contents": "write"},
        "pypi": {"id-token": "write"},
    }
    assert given == (writing if path.stem == "publish" else {})
    # A job that may write runs nothing of this repository or of its packages.
    assert all("checkout" not in str(workflow["jobs"][name]) for name in given)


@of_every_workflow
def test_jobs_end_and_checkouts_keep_no_credentials(path):
    for job in read(path)["jobs"].values():
        assert 0 < job["timeout-minutes"] <= 90
        within = [step["timeout-minutes"] for step in job["steps"] if "timeout-minutes" in step]
        assert all(0 < minutes <= job["timeout-minutes"] for minutes in within)
    for step in steps(read(path)):
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"] == {"persist-credentials": False}


@of_every_workflow
def test_nothing_but_what_pip_downloads_is_kept_between_jobs(path):
    """And not even that where something is published."""
    caches = [step.get("with", {}).get("cache") for step in steps(read(path))]
    assert {cache for cache in caches if cache} == ({"pip"} if path.stem != "publish" else set())
    assert "actions/cache" not in path.read_text()


@of_every_workflow
def test_no_script_has_an_expression_in_it(path):
    """The name of a tag or a branch would be run as part of the script."""
    assert [script for script in scripts(read(path)) if "${{" in script] == []


def called(job):
    """Targets of `make` that a job names, in its scripts and in its matrix."""
    text = "\n".join(scripts({"jobs": {"": job}}))
    names = set(" ".join(re.findall(r"^ *make ([a-z -]+)$", text, flags=re.MULTILINE)).split())
    matrix = job.get("strategy", {}).get("matrix", {})
    return names | {choice["target"] for choice in matrix.get("include", ())}


@of_every_workflow
def test_scripts_call_what_exists(path):
    workflow = read(path)
    named = set().union(*map(called, workflow["jobs"].values()))
    programs = {script for script in scripts(workflow) if script.startswith(".ci/")}
    assert named and named <= TARGETS
    assert all(os.access(ROOT / program, os.X_OK) for program in programs)
    # Every call of make was understood.
    lines = re.findall(r"^ *make (.*)$", "\n".join(scripts(workflow)), flags=re.MULTILINE)
    assert all(line == '"$TARGET"' or re.fullmatch(r"[a-z -]+", line) for line in lines)


def test_what_make_test_checks_is_checked_for_every_change():
    (parts,) = re.findall(r"^test: ([a-z -]+?) *##", MAKEFILE, flags=re.MULTILINE)
    jobs = read(ROOT / ".github/workflows/check.yml")["jobs"]
    by_job = {name: called(job) for name, job in jobs.items()}
    assert set(parts.split()) - {"timed"} <= set().union(*by_job.values())
    # Side by side: notebooks and browsers take longest.
    (notebooks,) = [name for name, named in by_job.items() if "nbval" in named]
    (pages,) = [name for name, named in by_job.items() if "browser" in named]
    assert notebooks != pages and not any("needs" in job for job in jobs.values())


def test_units_are_tested_on_the_oldest_python_and_a_new_one():
    jobs = read(ROOT / ".github/workflows/check.yml")["jobs"]
    (unit,) = [job for job in jobs.values() if "unit" in called(job)]
    pythons = unit["strategy"]["matrix"]["python"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert len(pythons) > 1 and f">={pythons[0]}" == project["requires-python"]
    listed = {line.rpartition(" ")[2] for line in project["classifiers"]}
    assert set(pythons) <= listed


@of_every_workflow
def test_tests_that_need_a_browser_may_not_be_skipped(path):
    """`.ci/run` sees to it by itself."""
    for job in read(path)["jobs"].values():
        if called(job) & {"test", "browser", "access"}:
            settings = [job.get("env", {}), *(step.get("env", {}) for step in job["steps"])]
            assert any(setting.get("PFCORE_REQUIRE_BROWSER") == "1" for setting in settings)


def test_every_week_all_is_checked_with_nothing_compiled_beforehand():
    (job,) = read(ROOT / ".github/workflows/keep.yml")["jobs"].values()
    (choice,) = [c for c in job["strategy"]["matrix"]["include"] if c.get("no_cache")]
    assert choice["target"] == "test" and choice["no_cache"] == "1"
    assert job["steps"][-1]["env"]["PFCORE_NO_CACHE"] == "${{ matrix.no_cache }}"
    assert "PFCORE_NO_CACHE" in MAKEFILE


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
@pytest.mark.parametrize(
    "tag, passes",
    [
        (f"v{pfcore.__version__}", True),
        (pfcore.__version__, False),
        (f"v{pfcore.__version__}1", False),
        ("v0.0.0", False),
    ],
)
def test_a_tag_that_is_not_the_version_is_refused(tag, passes):
    (step,) = [
        step
        for step in read(ROOT / ".github/workflows/publish.yml")["jobs"]["build"]["steps"]
        if step.get("name") == "the tag is the version"
    ]
    ran = subprocess.run(
        ["bash", "-e", "-c", step["run"]],
        cwd=ROOT,
        env=os.environ | {"GITHUB_REF_NAME": tag},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode == 0) == passes, ran.stderr
    assert passes or f"tag v{pfcore.__version__}, or change" in ran.stdout
