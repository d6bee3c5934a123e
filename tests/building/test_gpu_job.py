"""The folder that a GPU machine without a network is given: from it alone, on the processor."""

import importlib.util
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from pfcore import records

ROOT = Path(__file__).resolve()
while not (ROOT / "pyproject.toml").is_file():
    ROOT = ROOT.parent
GPU = ROOT / "tools" / "gpu"


def module(name: str):
    spec = importlib.util.spec_from_file_location(f"gpu_{name}", GPU / f"{name}.py")
    assert spec is not None and spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """What `make gpu-job` makes, without the data sets and wheels."""
    folder = tmp_path_factory.mktemp("job")
    pack = module("pack")
    pack.copy_tree(folder / "tree")
    (folder / "wheels").mkdir()
    (folder / "data").mkdir()
    for name in ("run.py", "jobs.toml"):
        (folder / name).write_bytes((GPU / name).read_bytes())
    (folder / "job.json").write_text(json.dumps({"commit": "abc"}))
    return folder


def run(folder: Path, out: Path, *options: str) -> subprocess.CompletedProcess:
    # The digits stand in for images, which no reader has.
    tiny = ["problem.data=digits", "problem.num_train=64", "problem.num_test=32"]
    command = [sys.executable, "run.py", "--out", str(out), "--minutes", "9", "--skip-tests"]
    return subprocess.run(
        [*command, *options, "--set", *tiny, "problem.widths=8"],
        cwd=folder,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_every_listed_job_has_settings_that_are_known():
    listed = module("run")
    listed.ROOT = GPU
    from pfcore import experiments

    jobs = listed.jobs()
    assert len({job["name"] for job in jobs}) == len(jobs) > 5
    for job in jobs:
        config = experiments.configure(job["experiment"], *job["settings"], profile="full")
        assert not any("LIST" in text for text in getattr(config, "methods", ()))
    tests = tomllib.loads((GPU / "jobs.toml").read_text(encoding="utf-8"))["tests"]
    assert tests and all((ROOT / name).is_file() for name in tests)


@pytest.mark.slow
def test_the_job_runs_from_its_folder_alone_and_its_records_are_taken(job, tmp_path):
    out = tmp_path / "out"
    listed = (job / "jobs.toml").read_text()
    small = """
tests = []
[[job]]
name = "rates"
experiment = "adaptive-rates"
settings = ["methods=dal:power=1,sgd:learning_rate=0.1", "budget=6", "every=3", "seeds=0,1"]
[[job]]
name = "edge"
experiment = "edge-of-stability"
settings = ["num_steps=4", "every=2", "checkpoint_every=2", "num_eigenpairs=1"]
"""
    (job / "jobs.toml").write_text(small)
    try:
        done = run(job, out, "--lanes", "2", "--profile", "quick")
        again = run(job, tmp_path / "again", "--profile", "quick")
    finally:
        (job / "jobs.toml").write_text(listed)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list(out.iterdir())) <= 8
    table = (out / "table.md").read_text()
    assert "| rates | done |" in table and "| edge | done |" in table
    # Finished jobs are not computed again.
    assert again.returncode == 0 and "rates: 0" not in again.stdout
    taken = module("take").take(out, tmp_path / "records")
    assert len(taken) == 2
    for folder in taken:
        record = records.read(folder)
        assert record.info["commit"] == "abc"
        assert folder.name.startswith(record.info["experiment"])
        assert np.all(np.isfinite(record["loss"]))


def test_a_job_of_an_unknown_name_is_refused(job, tmp_path):
    done = run(job, tmp_path / "out", "--only", "nothing")
    assert done.returncode == 2 and "no job is called nothing" in done.stderr
