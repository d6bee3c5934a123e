import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from typer.testing import CliRunner

import pfcore
from pfcore import cli, experiments, records
from pfcore.cli import app
from pfcore.experiments import edge_of_stability
from pfcore.runs import execution, folder


@pytest.fixture(autouse=True)
def _usual_signals():
    """The command handles SIGTERM in its process, which here is pytest's."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def invoke(*arguments: str):
    return CliRunner().invoke(app, arguments)


# ---- the commands, on instant work


@pytest.fixture
def instant(monkeypatch, tmp_path):
    """An experiment of three pieces, in an empty folder; yields the pieces that ran."""
    worked = []

    def plan(config):
        def advance(state, piece):
            worked.append(piece)
            if piece == 2 and config.learning_rate in (signal.SIGINT, signal.SIGTERM):
                signal.raise_signal(int(config.learning_rate))
            return np.asarray(state + config.learning_rate)

        return execution.Plan(
            SimpleNamespace(source="none", sha256=""),
            3,
            lambda: np.zeros(()),
            advance,
            lambda state: execution.Outcome({"x": state}, 2 if config.learning_rate > 10 else None),
        )

    monkeypatch.setattr(edge_of_stability, "plan", plan)
    monkeypatch.delenv("PFCORE_PROFILE", raising=False)
    monkeypatch.chdir(tmp_path)
    return worked


def test_list_shows_every_experiment():
    found = invoke("list")
    assert found.exit_code == 0
    for name in experiments.EXPERIMENTS:
        assert re.search(rf"^{name} +{re.escape(experiments.summary(name))}$", found.stdout, re.M)
    assert "Profiles: quick, full" in found.stdout
    for problem in experiments.PROBLEMS["quick"]:
        assert problem in found.stdout
    for setting in ("num_eigenpairs=2", "seed=0", "batch_size=none", "factors=(1.0, 0.5, 1.5)"):
        assert setting in found.stdout
    assert max(map(len, found.stdout.splitlines())) <= cli.WIDTH


def test_listed_settings_are_accepted():
    """Each is passed to `--set` as it is printed."""
    name = "adaptive-rates"
    listed = invoke("list").stdout.split(f"\n{name}\n")[1].split("\n\n")[0]
    listed = " ".join(listed.split())
    settings = re.findall(r"(\w+=(?:\([^()]*\)|[^ ,]+))(?:, |$)", listed)
    assert len(settings) >= 7
    assert experiments.configure(name, *settings, profile="quick") == experiments.configure(
        name, profile="quick"
    )


def test_version():
    found = invoke("--version")
    assert found.exit_code == 0 and found.stdout.strip() == f"pfcore {pfcore.__version__}"


def test_help_describes_each_command_without_truncation():
    found = invoke("--help")
    for command in ("list", "run", "redraw"):
        assert re.search(rf"^[ │]*{command} +[A-Z].*\.[ │]*$", found.stdout, re.M), found.stdout


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["list", "--help"]])
def test_help(arguments):
    found = invoke(*arguments)
    assert found.exit_code == 0 and "Usage" in found.stdout


def test_run_writes_a_record(instant):
    found = invoke("run", "edge-of-stability", "--out", "there", "--set", "learning_rate=0.5")
    assert found.exit_code == 0, found.output
    assert re.fullmatch(r"there: 1 arrays, \d+\.\d s, .+\n", found.stdout)
    record = records.read("there")
    assert record["x"] == 1.5
    assert record.info["config"]["learning_rate"] == 0.5


def test_run_reports_divergence(instant):
    found = invoke("run", "edge-of-stability", "--set", "learning_rate=20")
    assert found.exit_code == 0 and "diverged at step 2\n" in found.stdout


def test_default_folder_is_named_after_experiment_and_profile(instant, monkeypatch):
    assert invoke("run", "edge-of-stability").exit_code == 0
    assert invoke("run", "edge-of-stability", "--profile", "full").exit_code == 0
    assert sorted(os.listdir("runs")) == ["edge-of-stability-full", "edge-of-stability-quick"]
    record = records.read("runs/edge-of-stability-full")
    full = records.jsonable(edge_of_stability.PROFILES["full"])
    assert record.info["config"] == full
    # The environment's profile also applies to the command line, unless that names one.
    monkeypatch.setenv("PFCORE_PROFILE", "full")
    assert invoke("run", "edge-of-stability", "--resume").exit_code == 0
    assert sorted(os.listdir("runs")) == ["edge-of-stability-full", "edge-of-stability-quick"]
    assert len(instant) == 6
    invoke("run", "edge-of-stability", "--profile", "quick", "--out", "quick")
    assert records.read("quick").info["config"] == records.jsonable(
        edge_of_stability.PROFILES["quick"]
    )


KNOWN = ", ".join(experiments.EXPERIMENTS)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            ["edge"],
            f"unknown experiment 'edge'; choose one of {KNOWN}",
        ),
        (["edge-of-stability", "--set", "rate=1"], "unknown setting 'rate'; choose one of problem"),
        (["edge-of-stability", "--set", "learning_rate=x"], "must be of type float, got 'x'"),
        (["edge-of-stability", "--set", "learning_rate"], "a setting has the form key=value"),
        (["edge-of-stability", "--profile", "huge"], "unknown profile 'huge'; choose one of quick"),
        (["edge-of-stability", "--out", "file/below"], "cannot write the run to 'file/below'"),
    ],
)
def test_wrong_use_gives_a_one_line_error(instant, arguments, message):
    Path("file").write_text("")
    found = invoke("run", *arguments)
    assert found.exit_code == 2 and instant == []
    assert found.stderr.startswith("error: ") and message in found.stderr
    assert found.stderr.count("\n") == 1
    assert os.listdir() == ["file"]


def test_an_existing_run_is_not_overwritten(instant):
    assert invoke("run", "edge-of-stability").exit_code == 0
    found = invoke("run", "edge-of-stability")
    assert found.exit_code == 2
    assert "holds a run already; resume it (--resume)" in found.stderr
    found = invoke("run", "edge-of-stability", "--resume", "--set", "problem.widths=7")
    assert found.exit_code == 2
    assert "config.problem.widths is [7], was [100, 100, 100]" in found.stderr
    found = invoke("run", "edge-of-stability", "--resume")
    assert found.exit_code == 0 and len(instant) == 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_run_and_explains_how_to_resume(instant, number):
    arguments = ("run", "edge-of-stability", "--set", f"learning_rate={int(number)}")
    found = invoke(*arguments)
    assert found.exit_code == 130
    assert "stopped after 2 of 3 pieces; add --resume to the same command" in found.stderr
    assert invoke(*arguments, "--resume").exit_code == 130
    assert instant == [0, 1, 2, 2]


def test_an_interruption_before_the_first_piece(instant, monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(folder, "reserve", interrupted)
    found = invoke("run", "edge-of-stability")
    assert found.exit_code == 130
    assert "stopped; add --resume to the same command" in found.stderr


# ---- real runs, interrupted in every way

SETTINGS = (
    "problem.data=breast_cancer",
    "problem.widths=4",
    "problem.num_train=64",
    "num_eigenpairs=1",
    "learning_rate=0.8",
    "num_steps=200",
    "checkpoint_every=5",
)
MINUTES = 60


class Command:
    """`pfcore run` in a process of its own."""

    def __init__(self, out: Path, *options: str, environment: dict[str, str]):
        self.checkpoints = out / folder.CHECKPOINTS
        arguments = ["run", "edge-of-stability", "--out", str(out), *options]
        changes = [part for setting in SETTINGS for part in ("--set", setting)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pfcore.cli", *arguments, *changes],
            env=os.environ | {"JAX_PLATFORMS": "cpu"} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()

    def wait_until(self, happened) -> None:
        end = time.monotonic() + 5 * MINUTES
        while not happened():
            assert self.process.poll() is None, self.process.communicate()[1]
            assert time.monotonic() < end
            time.sleep(1e-3)

    def finish(self) -> tuple[int, str]:
        """Exit code and stderr."""
        _, errors = self.process.communicate(timeout=5 * MINUTES)
        return self.process.returncode, errors

    def names(self) -> list[str]:
        with contextlib.suppress(FileNotFoundError):
            return os.listdir(self.checkpoints)
        return []

    def latest(self) -> int:
        """Number of the last complete checkpoint, 0 if there is none."""
        return max((int(name) for name in self.names() if name.isdigit()), default=0)

    def is_saving(self) -> bool:
        return any("tmp" in name for name in self.names())


@pytest.mark.slow
def test_a_repeatedly_interrupted_run_is_bitwise_equal_to_an_uninterrupted_one(tmp_path):
    """The cache of compiled programs saves time; the uninterrupted run fills it."""
    environment = {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    out = tmp_path / "stopped"

    def start(*options: str, out=out) -> Command:
        return Command(out, *options, environment=environment)

    with start(out=tmp_path / "whole") as whole, start() as run:
        # Before the first checkpoint there is nothing to resume, and it starts again.
        run.wait_until(lambda: (out / folder.RUN).is_file())
        run.process.kill()
        assert run.finish()[0] == -signal.SIGKILL
        assert run.latest() == 0 and not records.is_finished(out)
        assert whole.finish()[0] == 0

    with start("--resume") as run:
        run.wait_until(lambda: run.latest() > 0)
        run.process.kill()
        assert run.finish()[0] == -signal.SIGKILL
        reached = run.latest()

    with start("--resume") as run:
        run.wait_until(lambda: run.latest() > reached and run.is_saving())
        run.process.kill()
        assert run.finish()[0] == -signal.SIGKILL
        assert run.latest() > reached

    with start("--resume") as run:
        reached = run.latest()
        run.wait_until(lambda: run.latest() > reached)
        run.process.send_signal(signal.SIGINT)
        code, errors = run.finish()
        assert code == 130, errors
        assert re.search(r"stopped after \d+ of 40 pieces; add --resume", errors)
        assert "Traceback" not in errors
        assert not records.is_finished(out)

    with start("--resume") as run:
        code, errors = run.finish()
        assert code == 0, errors
    assert sorted(os.listdir(out)) == [records.ARRAYS, records.RECORD]
    arrays = [(folder / records.ARRAYS).read_bytes() for folder in (out, tmp_path / "whole")]
    assert arrays[0] == arrays[1]
    record = records.read(out)
    assert record["loss"].shape == (200,) and np.all(np.isfinite(record["loss"]))
