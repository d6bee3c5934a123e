"""What runs on GitHub: pinned, with as few rights as it needs, calling what exists."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

import pfcore

ROOT = Path(__file__).resolve().parent.parent
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
PINNED = re.compile(r"uses: [\w.-]+/[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$")
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))

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
    workflow = read(path)
    assert all(0 < job["timeout-minutes"] <= 90 for job in workflow["jobs"].values())
    for step in steps(workflow):
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"] == {"persist-credentials": False}


@of_every_workflow
def test_no_script_has_an_expression_in_it(path):
    """What a tag or a branch is called would be run as part of it."""
    assert [script for script in scripts(read(path)) if "${{" in script] == []


@of_every_workflow
def test_scripts_call_what_exists(path):
    workflow = read(path)
    called = set(re.findall(r"^\s*make ([a-z-]+)$", "\n".join(scripts(workflow)), re.MULTILINE))
    for job in workflow["jobs"].values():
        for choice in job.get("strategy", {}).get("matrix", {}).get("include", ()):
            called.add(choice["target"])
    programs = {script for script in scripts(workflow) if script.startswith(".ci/")}
    assert called or programs
    assert called <= TARGETS
    assert all(os.access(ROOT / program, os.X_OK) for program in programs)


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
