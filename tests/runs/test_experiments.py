import dataclasses
import functools
import os
import signal
import subprocess
import sys
import threading
from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pfcore
from pfcore import experiments, records
from pfcore._trees import ravel
from pfcore.experiments import edge_of_stability, flows_at_the_edge
from pfcore.flows import named_flow
from pfcore.runs import execution, folder, overrides, training
from pfcore.runs.problems import PROBLEMS, Problem, build
from tests.conftest import flatten_path

# One process runs them: they share what is compiled, and runs.
pytestmark = pytest.mark.xdist_group("experiments")

# Small enough for dense Hessians. Gradient descent oscillates at h = 0.8, and diverges at 10⁴.
TINY = (
    "problem.data=breast_cancer",
    "problem.widths=4",
    "problem.num_train=64",
    "problem.num_test=30",
)
TOLERANCE = 1e-3  # on the residuals of eigenpairs
TRACKED = (
    "learning_rate=0.8",
    "num_eigenpairs=2",
    f"tolerance={TOLERANCE}",
    "every=1",
    "num_steps=20",
    "checkpoint_every=10",
)


def configure(name: str, *changes: str):
    return experiments.configure(name, *TINY, *changes, profile="quick")


def train(*changes: str, **options) -> records.Record:
    return experiments.run(
        "edge-of-stability", configure("edge-of-stability", *TRACKED, *changes), **options
    )


@pytest.fixture(scope="module", autouse=True)
def _compiled_once():
    """Runs whose compiled functions differ only in arguments share these."""
    build_once, trainer, trainers = functools.cache(build), training.Trainer, {}

    def trainer_once(built, **options):
        key = (id(built), *sorted(options.items()))
        if key not in trainers:
            trainers[key] = trainer(built, **options)
        return trainers[key]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(training, "Trainer", trainer_once)
        for module in experiments.EXPERIMENTS.values():
            patched.setattr(module, "build", build_once)
        patched.setattr(flows_at_the_edge, "named_flow", functools.cache(named_flow))
        yield


class Dense(NamedTuple):
    """An independent computation at every point of a path, from H and g in double precision."""

    losses: np.ndarray
    gradients: np.ndarray
    hessians: np.ndarray
    values: np.ndarray  # descending
    vectors: np.ndarray  # [T, k, n]
    accuracy: np.ndarray


def samples():
    return pfcore.datasets.load("breast_cancer", num_train=64, num_test=30)


def outputs(params, inputs, activation=jnp.tanh):
    first, last = params["layers"][0], params["layers"][1]
    return (activation(inputs @ first["kernel"] + first["bias"]) @ last["kernel"] + last["bias"])[
        :, 0
    ]


def written_out(params, activation=jnp.tanh):
    """The loss without the library."""
    data = samples()
    errors = outputs(params, data.train_inputs, activation) - data.train_targets.astype(np.float32)
    return 0.5 * jnp.mean(errors**2)


def initial_params(activation: str = "tanh"):
    config = configure("edge-of-stability", f"problem.activation={activation}")
    return build(config.problem, seed=0).params


def dense(path, activation=jnp.tanh) -> Dense:
    unravel = ravel(pfcore.paths.at(path, 0))[1]
    flat = jnp.asarray(flatten_path(path))

    def loss(x):
        return written_out(unravel(x), activation)

    at = jax.jit(lambda x: (loss(x), jax.grad(loss)(x), jax.hessian(loss)(x)))
    found = [np.asarray(x, np.float64) for x in jax.jit(lambda p: jax.lax.map(at, p))(flat)]
    values, vectors = np.linalg.eigh(found[2])
    data = samples()
    scores = np.array([outputs(unravel(x), data.test_inputs, activation) for x in flat])
    accuracy = np.mean((scores > 0.5) == data.test_targets, axis=1)
    return Dense(*found, values[:, ::-1], vectors.swapaxes(1, 2)[:, ::-1], accuracy)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("run") / "edge"


@pytest.fixture(scope="module")
def edge(run_folder) -> records.Record:
    return train(out=run_folder)


@pytest.fixture(scope="module")
def expected() -> Dense:
    """Dense results at every step of the same descent."""
    path = pfcore.gradient_descent(written_out, initial_params(), 0.8, 19)
    return dense(path)


# ---- settings


@dataclasses.dataclass(frozen=True)
class Small:
    rate: float = 0.5
    count: int = 3
    name: str = "a"
    some: int | None = None
    many: tuple[float, ...] = (1.0,)
    few: tuple[int, ...] | None = None
    problem: Problem = PROBLEMS["quick"]["digits-mlp"]


@pytest.mark.parametrize(
    "setting, name, value",
    [
        ("rate=1e-2", "rate", 0.01),
        ("rate=2", "rate", 2.0),
        (" rate = 2 ", "rate", 2.0),
        ("count=-4", "count", -4),
        ("name=a=b", "name", "a=b"),
        ("some=3", "some", 3),
        ("some=None", "some", None),
        ("some=null", "some", None),
        ("many=1,2.5", "many", (1.0, 2.5)),
        ("many=(1, 2.5,)", "many", (1.0, 2.5)),
        ("many=[4]", "many", (4.0,)),
        ("many=", "many", ()),
        ("few=1,2", "few", (1, 2)),
        ("few=none", "few", None),
        ("problem=mnist-mlp", "problem", PROBLEMS["quick"]["mnist-mlp"]),
        ("problem.widths=50,40", "problem", Problem(widths=(50, 40))),
        ("problem.num_train=none", "problem", Problem()),
        ("problem.data=mnist", "problem", Problem(data="mnist")),
    ],
)
def test_setting_is_parsed_as_its_type(setting, name, value):
    changed = overrides.replace(Small(few=(7,)), [setting], profile="quick")
    found = getattr(changed, name)
    assert found == value and type(found) is type(value)
    assert changed == dataclasses.replace(Small(few=(7,)), **{name: value})


@pytest.mark.parametrize(
    "setting, message",
    [
        ("rat=1", r"unknown setting 'rat'; choose one of rate, count, .*problem\.data"),
        ("problem.wide=1", r"unknown setting 'problem\.wide'; choose one of problem\.data, "),
        ("rate.x=1", "'rate' has no parts, got 'rate.x'"),
        ("rate=fast", "rate must be of type float, got 'fast'"),
        ("count=1.5", r"count must be of type int, got '1\.5'"),
        ("some=", "some must be of type int, got ''"),
        ("many=1,x", "many must be of type float, got 'x'"),
        ("problem.widths=4,none", r"problem\.widths must be of type int, got 'none'"),
        ("problem=imagenet", "unknown problem 'imagenet'; choose one of digits-mlp, "),
        ("rate", "a setting has the form key=value, got 'rate'"),
        ("=1", "unknown setting ''"),
    ],
)
def test_invalid_setting_is_rejected(setting, message):
    with pytest.raises(ValueError, match=message):
        overrides.replace(Small(), [setting], profile="quick")


def test_settings_apply_in_order():
    config = experiments.configure(
        "edge-of-stability", "problem.widths=7", "problem=mnist-mlp", "problem.widths=8",
        "learning_rate=0.1", "learning_rate=0.3", profile="full",
    )  # fmt: skip
    mnist = PROBLEMS["full"]["mnist-mlp"]
    assert config.problem == dataclasses.replace(mnist, widths=(8,))
    assert config.learning_rate == 0.3


@pytest.mark.parametrize("name", experiments.EXPERIMENTS)
@pytest.mark.parametrize("profile", ["quick", "full"])
def test_every_profile_has_its_documented_settings(name, profile):
    config = experiments.configure(name, profile=profile)
    assert config == experiments.EXPERIMENTS[name].PROFILES[profile]
    for setting in overrides.names(config):
        value = functools.reduce(getattr, setting.split("."), config)
        if not dataclasses.is_dataclass(value):
            text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            assert overrides.replace(config, [f"{setting}={text}"], profile=profile) == config


def test_profile_from_the_environment(monkeypatch):
    monkeypatch.delenv("PFCORE_PROFILE", raising=False)
    quick, full = (edge_of_stability.PROFILES[name] for name in ("quick", "full"))
    assert experiments.configure("edge-of-stability") == quick
    monkeypatch.setenv("PFCORE_PROFILE", "")
    assert experiments.profile_in_force() == "quick"
    monkeypatch.setenv("PFCORE_PROFILE", "full")
    assert experiments.configure("edge-of-stability") == full
    assert experiments.configure("edge-of-stability", "problem=mnist-mlp").problem.num_train > 1000
    assert experiments.configure("edge-of-stability", profile="quick") == quick
    monkeypatch.setenv("PFCORE_PROFILE", "huge")
    with pytest.raises(ValueError, match="unknown profile 'huge'; choose one of quick, full"):
        experiments.configure("edge-of-stability")


def test_unknown_experiment():
    known = ", ".join(experiments.EXPERIMENTS)
    with pytest.raises(ValueError, match=f"unknown experiment 'edge'; choose one of {known}"):
        experiments.configure("edge")
    with pytest.raises(ValueError, match="unknown experiment"):
        experiments.run("edge", edge_of_stability.Config())


def test_summaries():
    for name in experiments.EXPERIMENTS:
        assert experiments.summary(name).endswith(".")


@pytest.mark.parametrize(
    "name, setting, message",
    [
        ("edge-of-stability", "num_steps=0", "num_steps must be at least 1, got 0"),
        ("edge-of-stability", "every=3", "num_steps must be a multiple of every = 3, got 1000"),
        ("edge-of-stability", "every=0", "every must be at least 1, got 0"),
        ("flows-at-the-edge", "learning_rate=0", "learning_rate must be positive"),
        ("hessian-through-training", "learning_rate=0", "learning_rate must be positive"),
        ("edge-of-stability", "num_eigenpairs=0", "num_eigenpairs must be at least 1"),
        ("edge-of-stability", "tolerance=0", "tolerance must be positive"),
        ("edge-of-stability", "learning_rate=0", "learning_rate must be positive"),
        ("edge-of-stability", "first_step=-1", "num_steps must be at least 0, got -1"),
        ("learning-rate-change", "change_at=900", "change_at must lie between 0 and num_steps"),
        ("learning-rate-change", "factors=", "factors must name at least one"),
        ("learning-rate-change", "factors=1,-1", "learning_rate must be positive"),
        ("flows-at-the-edge", "starts=3,2", "starts must ascend"),
        ("flows-at-the-edge", "num_steps=0", "num_steps must be at least 1"),
        ("hessian-through-training", "steps=2,2", "steps must ascend"),
        ("hessian-through-training", "steps=-1", "every step must be at least 0"),
        ("edge-of-stability", "problem.norm=group", "the MLP has no normalisation"),
    ],
)
def test_an_invalid_setting_is_rejected_before_anything_is_stored(tmp_path, name, setting, message):
    with pytest.raises(ValueError, match=message):
        experiments.run(name, configure(name, setting), out=tmp_path)
    assert not folder.has_run(tmp_path)  # which would block the next attempt


# ---- resumable runs, on instant work

RUN = {"experiment": "counting", "config": {"pieces": 5}}


class Counting:
    """A plan that adds up random numbers, and counts the pieces that ran."""

    def __init__(self, pieces: int = 5, *, trouble=None, end: int | None = None):
        self.worked: list[int] = []

        def start():
            return {"key": jax.random.key(3), "sums": np.zeros(pieces), "done": np.int32(0)}

        def advance(state, piece):
            self.worked.append(piece)
            if trouble is not None:
                trouble(piece)
            key, draw = jax.random.split(state["key"])
            sums = state["sums"].copy()
            sums[piece] = sums[piece - 1] + float(jax.random.normal(draw))
            return {"key": key, "sums": sums, "done": np.int32(piece + 1)}

        def outcome(state):
            return execution.Outcome({"sums": state["sums"][: int(state["done"])]}, end)

        self.plan = execution.Plan(
            SimpleNamespace(source="a die", sha256="0"),
            pieces,
            start,
            advance,
            outcome,
            lambda state: end is not None and int(state["done"]) >= end,
            lambda state: {"done": f"{int(state['done'])}"},
        )

    def execute(self, **options) -> records.Record:
        return execution.execute(self.plan, RUN, **options)


def interrupt_at(*pieces):
    def trouble(piece):
        if piece in pieces:
            raise KeyboardInterrupt

    return trouble


@pytest.fixture(scope="module")
def sums():
    return Counting().execute()["sums"]


def test_a_run_is_stored_with_its_provenance(tmp_path, sums):
    record = Counting().execute(out=tmp_path)
    stored = records.read(tmp_path)
    assert stored.info == record.info
    np.testing.assert_array_equal(stored["sums"], sums)
    assert RUN.items() <= stored.info.items()
    assert stored.info["data"] == {"source": "a die", "sha256": "0"}
    assert stored.info["diverged"] is False and stored.info["diverged_at_step"] is None
    assert stored.info["wall_time_s"] >= 0
    assert records.provenance().items() <= stored.info.items()
    assert sorted(os.listdir(tmp_path)) == ["arrays.npz", "record.json"]


def test_nothing_is_stored_without_a_folder(tmp_path, monkeypatch, sums):
    monkeypatch.chdir(tmp_path)
    np.testing.assert_array_equal(Counting().execute()["sums"], sums)
    assert not os.listdir(tmp_path)
    with pytest.raises(ValueError, match="resume needs the folder"):
        Counting().execute(resume=True)


def test_an_interrupted_run_can_be_resumed(tmp_path, sums):
    worked = []
    for stopped_at in (0, 2, 3):
        counting = Counting(trouble=interrupt_at(stopped_at))
        with pytest.raises(experiments.Interrupted, match=f"stopped after {stopped_at} of 5"):
            counting.execute(out=tmp_path, resume=True)
        worked.append(counting.worked)
        assert not records.is_finished(tmp_path)
    last = Counting()
    record = last.execute(out=tmp_path, resume=True)
    assert [*worked, last.worked] == [[0], [0, 1, 2], [2, 3], [3, 4]]
    assert record["sums"].tobytes() == sums.tobytes()
    assert sorted(os.listdir(tmp_path)) == ["arrays.npz", "record.json"]
    # A finished run is read, and no piece runs.
    again = Counting()
    assert again.execute(out=tmp_path, resume=True).info == record.info
    assert again.worked == []


def test_wall_time_adds_up_over_interruptions(tmp_path, monkeypatch):
    now = [0.0]

    def trouble(piece):
        now[0] += 10
        if piece == 3 and now[0] < 45:
            raise KeyboardInterrupt

    monkeypatch.setattr(execution, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    with pytest.raises(KeyboardInterrupt):
        Counting(trouble=trouble).execute(out=tmp_path)
    record = Counting(trouble=trouble).execute(out=tmp_path, resume=True)
    assert record.info["wall_time_s"] == 50  # 30 s kept, 10 s lost, 20 s more


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_for_the_checkpoint(tmp_path, monkeypatch, sums, number):
    save = folder.Checkpoints.save

    def disturbed(self, done, state):
        if done == 3:
            signal.raise_signal(number)
        save(self, done, state)

    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with monkeypatch.context() as patched:
            patched.setattr(folder.Checkpoints, "save", disturbed)
            with pytest.raises(experiments.Interrupted, match="stopped after 3 of 5"):
                Counting().execute(out=tmp_path)
        assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGTERM, before)
    assert "3" in os.listdir(tmp_path / "checkpoints")
    last = Counting()
    assert last.execute(out=tmp_path, resume=True)["sums"].tobytes() == sums.tobytes()
    assert last.worked == [3, 4]


def test_a_run_in_another_thread(tmp_path, sums):
    found = []
    thread = threading.Thread(target=lambda: found.append(Counting().execute(out=tmp_path)))
    thread.start()
    thread.join()
    np.testing.assert_array_equal(found[0]["sums"], sums)


def test_a_diverging_run_ends_early(tmp_path, sums):
    counting = Counting(end=2, trouble=interrupt_at(1))
    with pytest.raises(KeyboardInterrupt):
        counting.execute(out=tmp_path)
    counting = Counting(end=2)
    record = counting.execute(out=tmp_path, resume=True)
    assert counting.worked == [1]
    assert record.info["diverged"] is True and record.info["diverged_at_step"] == 2
    np.testing.assert_array_equal(record["sums"], sums[:2])


def test_a_run_that_cannot_be_stored_does_not_start(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    counting = Counting()
    plain_start, started = counting.plan.start, []
    counting.plan = counting.plan._replace(start=lambda: started.append(1) or plain_start())
    with pytest.raises(OSError, match="cannot write the run"):
        counting.execute(out=tmp_path / "file" / "below")
    with monkeypatch.context() as patched:
        patched.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=100))
        with pytest.raises(OSError, match="has 0 MB free, and this run may need 1 MB"):
            counting.execute(out=tmp_path / "full")
    (tmp_path / "other").mkdir()
    folder.begin(tmp_path / "other", {**RUN, "config": {"pieces": 4}}, num_bytes=0)
    with pytest.raises(ValueError, match=r"config\.pieces is 5, was 4"):
        counting.execute(out=tmp_path / "other", resume=True)
    with pytest.raises(FileExistsError, match="--resume"):
        counting.execute(out=tmp_path / "other")
    # Only its size has to be measured.
    assert counting.worked == [] and started == [1]


@pytest.mark.parametrize("name", ["arrays.npz", "record.json"])
def test_a_record_that_could_not_be_written_is_written_on_resume(tmp_path, monkeypatch, sums, name):
    replace = os.replace

    def failing(source, target):
        if os.path.basename(target) == name:
            raise OSError("no space left on device")
        replace(source, target)

    with monkeypatch.context() as patched:
        patched.setattr("os.replace", failing)
        with pytest.raises(OSError, match="no space left"):
            Counting().execute(out=tmp_path)
    assert not records.is_finished(tmp_path)
    last = Counting()
    assert last.execute(out=tmp_path, resume=True)["sums"].tobytes() == sums.tobytes()
    assert last.worked == []
    assert sorted(os.listdir(tmp_path)) == ["arrays.npz", "record.json"]


def test_checkpoints_of_a_written_record_are_removed_on_resume(tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(folder, "forget_run", lambda folder: None)
        record = Counting().execute(out=tmp_path)
    assert "checkpoints" in os.listdir(tmp_path)
    assert Counting().execute(out=tmp_path, resume=True).info == record.info
    assert sorted(os.listdir(tmp_path)) == ["arrays.npz", "record.json"]


def test_progress_bar_shows_the_plans_numbers(capsys):
    Counting().execute(progress=True)
    assert "done=5" in capsys.readouterr().err
    Counting().execute()
    assert capsys.readouterr().err == ""


# ---- edge-of-stability


def test_edge_losses_and_gradients(edge, expected):
    np.testing.assert_array_equal(edge["step"], np.arange(20))
    np.testing.assert_allclose(edge["loss"], expected.losses, rtol=1e-5)
    np.testing.assert_array_equal(edge["loss_each_step"], edge["loss"])
    sizes = np.linalg.norm(expected.gradients, axis=1)
    np.testing.assert_allclose(edge["gradient_norm"], sizes, rtol=1e-4)


def test_edge_eigenvalues_against_a_dense_computation(edge, expected):
    """The error of an eigenvalue is at most its residual."""
    assert edge["converged"].all()
    assert np.all(edge["residuals"] <= TOLERANCE * edge["eigenvalues"][:, :1])
    off = np.abs(edge["eigenvalues"] - expected.values[:, :2])
    assert np.all(off < 1.1 * TOLERANCE * expected.values[:, :1])
    assert edge["num_products"].min() >= 2
    # The run must oscillate and become unstable, or the test below would be trivial.
    assert (0.8 * edge["eigenvalues"][:, 0]).max() > 2


def test_edge_drift_against_a_dense_computation(edge, expected):
    hg = np.einsum("tij,tj->ti", expected.hessians, expected.gradients)
    relative = np.linalg.norm(hg, axis=1) / np.linalg.norm(expected.gradients, axis=1)
    np.testing.assert_allclose(edge["drift"], relative, rtol=1e-3)


def test_edge_stability_coefficient_is_its_formula(edge):
    z = 0.8 * edge["eigenvalues"][:, 0].astype(float)
    np.testing.assert_allclose(edge["stability_coefficient"], np.log(np.abs(1 - z)) / z, rtol=1e-4)


def test_edge_gradient_along_eigenvectors(edge, expected):
    """The error of an eigenvector is at most its residual over the gap to other eigenvalues."""
    np.testing.assert_array_equal(edge["gradient_along_top"], edge["gradient_projections"][:, 0])
    along = np.abs(np.einsum("tkn,tn->tk", expected.vectors[:, :2], expected.gradients))
    gap = -np.diff(expected.values[:, :3], axis=1)
    gap[:, 1] = gap.min(axis=1)
    size = edge["gradient_norm"][:, None]
    bound = size * (1e-5 + edge["residuals"] / gap)
    assert np.all(np.abs(np.abs(edge["gradient_projections"]) - along) < bound)
    assert np.all(np.sum(edge["gradient_projections"] ** 2, axis=1) <= 1.0001 * size[:, 0] ** 2)


def test_edge_gradient_projections_have_consistent_signs(edge):
    """On a quadratic a step multiplies the gradient along an eigenvector by 1 - hλ."""
    along = edge["gradient_along_top"]
    z = 0.8 * edge["eigenvalues"][:, 0]
    plain = np.abs(along) > 0.01 * edge["gradient_norm"]
    stage = np.flatnonzero((z > 1.2) & plain)
    assert len(stage) > 10 and np.array_equal(stage, np.arange(len(stage)))
    np.testing.assert_array_equal(np.sign(along[stage[1:]]), -np.sign(along[stage[:-1]]))


def test_edge_accuracy_against_a_direct_computation(edge, expected):
    np.testing.assert_allclose(edge["test_accuracy"], expected.accuracy, atol=1e-6)


def test_edge_record(edge, run_folder):
    info = edge.info
    assert info["experiment"] == "edge-of-stability"
    assert info["config"]["problem"]["widths"] == [4] and info["config"]["seed"] == 0
    data = samples()
    assert info["data"] == {"source": data.source, "sha256": data.sha256}
    assert info["diverged"] is False and info["wall_time_s"] > 0
    assert {"device", "versions", "commit"} <= set(info)
    stored = records.read(run_folder)
    assert stored.info == info
    for name, array in edge.arrays.items():
        np.testing.assert_array_equal(stored[name], array)


def test_edge_seed_draws_other_weights(edge):
    first, other = (
        edge_of_stability.plan(configure("edge-of-stability", f"seed={seed}")).built.params
        for seed in (0, 1)
    )
    np.testing.assert_allclose(edge["loss"][0], written_out(first), rtol=1e-5)
    assert abs(written_out(other) - written_out(first)) > 1e-3


def test_edge_measured_from_a_later_step(edge):
    late = train("first_step=5", "num_steps=10")
    np.testing.assert_array_equal(late["step"], np.arange(5, 15))
    np.testing.assert_allclose(late["loss"], edge["loss"][5:15], rtol=1e-4)
    off = np.abs(late["eigenvalues"] - edge["eigenvalues"][5:15])
    assert np.all(off < 2 * TOLERANCE * edge["eigenvalues"][5:15, :1])
    lost = train("first_step=3", "learning_rate=1e4")
    unbroken = train("learning_rate=1e4")
    assert lost.info["diverged_at_step"] == unbroken.info["diverged_at_step"] == lost["step"][-1]


def test_outcome_of_divergence_between_two_measurements():
    found = training.Measured(**dict.fromkeys(training.Measured._fields, np.zeros((4, 2))))
    each = np.arange(12, dtype=np.float32).reshape(4, 3)
    each[2:] = np.nan
    each[1, 1:] = np.inf
    found = found._replace(loss_each_step=each, loss=each[:, 0])
    arrays, diverged = training.outcome(found, 3)
    assert diverged == 4
    np.testing.assert_array_equal(arrays["step"], [0, 3])
    np.testing.assert_array_equal(arrays["loss"], [0, 3])
    np.testing.assert_array_equal(arrays["loss_each_step"], [0, 1, 2, 3, np.inf])
    assert arrays["eigenvalues"].shape == (2, 2)
    arrays, diverged = training.outcome(found, 3, first=100, trim=False)
    assert diverged == 104
    np.testing.assert_array_equal(arrays["step"], [100, 103, 106, 109])
    np.testing.assert_array_equal(arrays["loss_each_step"], each.ravel())


def test_edge_divergence_ends_the_run(tmp_path):
    record = train("learning_rate=1e4", "num_steps=1000", out=tmp_path)
    path = pfcore.gradient_descent(written_out, initial_params(), 1e4, 9)
    losses = np.array(jax.lax.map(written_out, path))
    first = int(np.argmin(np.isfinite(losses)))
    assert first > 2 and record.info["diverged"] is True
    assert record.info["diverged_at_step"] == first
    for name, array in record.arrays.items():
        assert len(array) == first + 1, name
        assert np.all(np.isfinite(array[:-1])), name
    assert not np.isfinite(record["loss"][-1])
    np.testing.assert_allclose(record["loss"][:-1], losses[:first], rtol=1e-3)
    assert records.read(tmp_path).info == record.info


SEVERAL_DEVICES = """
import sys
from pfcore import experiments
from pfcore.runs.problems import build

config = experiments.configure("edge-of-stability", *sys.argv[2:])
data = build(config.problem, seed=0).data
assert len(data.train_inputs.sharding.device_set) == 8
assert not data.train_inputs.sharding.is_fully_replicated
assert data.test_inputs.sharding.is_fully_replicated  # 8 does not divide them
experiments.run("edge-of-stability", config, out=sys.argv[1])
"""


@pytest.mark.slow
def test_edge_on_several_devices_measured_every_third_step(edge, tmp_path):
    """Neither sharding nor the times of measurement change results, up to rounding."""
    changes = (*TINY, *TRACKED, "every=3", "num_steps=18", "checkpoint_every=9")
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", "")
        + " --xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0",
    }
    done = subprocess.run(
        [sys.executable, "-c", SEVERAL_DEVICES, str(tmp_path), *changes],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    sparse = records.read(tmp_path)
    np.testing.assert_array_equal(sparse["step"], np.arange(0, 18, 3))
    np.testing.assert_allclose(sparse["loss_each_step"], edge["loss"][:18], rtol=1e-4)
    np.testing.assert_array_equal(sparse["loss"], sparse["loss_each_step"][::3])
    dense_enough = {name: array[:18:3] for name, array in edge.arrays.items()}
    np.testing.assert_allclose(sparse["drift"], dense_enough["drift"], rtol=1e-3)
    np.testing.assert_allclose(sparse["test_accuracy"], dense_enough["test_accuracy"], rtol=1e-6)
    off = np.abs(sparse["eigenvalues"] - dense_enough["eigenvalues"])
    assert np.all(off < 2 * TOLERANCE * dense_enough["eigenvalues"][:, :1])


# ---- learning-rate-change


def test_learning_rate_change(edge, expected):
    """A branch at the same learning rate is the run without a change; they part where it changes;
    one that is lost is NaN from there on, and the others are not."""
    config = configure("learning-rate-change", *TRACKED, "change_at=10", "factors=1,0.25,1e5")
    record = experiments.run("learning-rate-change", config)
    np.testing.assert_array_equal(record["step"], edge["step"])
    rates = np.array([0.8] * 10 + [1.0] * 10) * np.ones((3, 1))
    rates[:, 10:] = 0.8 * np.array([[1], [0.25], [1e5]])
    np.testing.assert_allclose(record["learning_rate"], rates, rtol=1e-12)
    assert set(record.arrays) == {*edge.arrays, "learning_rate"}
    for name, unbroken in edge.arrays.items():
        if name != "step":
            assert record[name].shape == (3, *unbroken.shape)
            np.testing.assert_array_equal(record[name][0], unbroken, err_msg=name)
            np.testing.assert_array_equal(record[name][1][:10], unbroken[:10], err_msg=name)
            np.testing.assert_array_equal(record[name][2][:10], unbroken[:10], err_msg=name)
    # The other branch, by plain descent from the same point.
    path = pfcore.gradient_descent(written_out, initial_params(), 0.8, 10)
    after = pfcore.gradient_descent(written_out, pfcore.paths.at(path, 10), 0.2, 9)
    slower = dense(after)
    np.testing.assert_allclose(record["loss"][1][10:], slower.losses, rtol=1e-4)
    off = np.abs(record["eigenvalues"][1][10:, 0] - slower.values[:, 0])
    assert np.all(off < 1.1 * TOLERANCE * slower.values[:, 0])
    z = 0.2 * record["eigenvalues"][1][10:, 0]
    np.testing.assert_allclose(
        record["stability_coefficient"][1][10:], np.log(np.abs(1 - z)) / z, rtol=1e-4
    )
    lost = record["loss"][2]
    first = int(np.argmin(np.isfinite(lost)))
    assert first > 10 and not np.any(np.isfinite(lost[first:]))
    assert record.info["diverged"] is True and record.info["diverged_at_step"] == first


# ---- flows-at-the-edge


@pytest.fixture(scope="module")
def descent():
    return pfcore.gradient_descent(written_out, initial_params(), 0.1, 6)


@pytest.mark.slow
def test_flows_at_the_edge(descent):
    """From two points where h λ₀ is about 0.4, so each flow is close, in its order."""
    config = configure(
        "flows-at-the-edge", "learning_rate=0.1", "starts=0,4", "num_steps=2", "principal_steps=2",
        "depth=8", "depth_tolerance=1e-4", "num_slice=5", "reach=0.3",
        "rtol=1e-5",
    )  # fmt: skip
    record = experiments.run("flows-at-the-edge", config)
    assert record.info["diverged"] is False
    assert record["completed"].shape == (2, 4) and record["completed"].all()
    np.testing.assert_array_equal(record["start"], [0, 4])
    np.testing.assert_array_equal(record["time"], np.arange(3))
    z = 0.1 * record["start_eigenvalue"]
    np.testing.assert_allclose(record["stability_coefficient"], np.log(1 - z) / z, rtol=1e-5)
    expected = dense(descent)
    for point, start in enumerate((0, 4)):
        check_descent_itself(record, point, start, expected)
        check_gradient_flow(record, point, jax.tree.map(lambda x, s=start: x[s : s + 3], descent))
        check_slice(record, point, jax.tree.map(lambda x, s=start: x[s], descent), expected, start)
    ngf, igr, principal = record["distance"][:, 1:].swapaxes(0, 1)
    assert np.all(ngf[:, 0] == 0) and np.all(igr[:, 0] == 0) and np.all(principal[:, 0] == 0)
    assert np.all(igr[:, 1:] < 0.5 * ngf[:, 1:])
    assert np.all(principal[:, 1:] < 0.5 * ngf[:, 1:])


def check_descent_itself(record, point: int, start: int, expected: Dense):
    np.testing.assert_array_equal(record["distance"][point, 0], np.zeros(3))
    steps = slice(start, start + 3)
    np.testing.assert_allclose(record["loss"][point, 0], expected.losses[steps], rtol=1e-5)
    sharpness, near = expected.values[steps, 0], 1.1 * TOLERANCE
    np.testing.assert_allclose(record["eigenvalue"][point, 0], sharpness, rtol=near)
    np.testing.assert_allclose(record["start_eigenvalue"][point], sharpness[0], rtol=near)
    gradient = expected.gradients[start]
    along = abs(expected.vectors[start, 0] @ gradient)
    share = along**2 / (gradient @ gradient)
    np.testing.assert_allclose(record["gradient_share"][point], share, atol=5e-3)
    # The first step is h |g·u| along the eigenvector, on the side to which it points.
    np.testing.assert_allclose(record["coordinate"][point, 0, 1], 0.1 * along, rtol=2e-2)


def check_gradient_flow(record, point: int, path):
    """Its loss never rises; and against steps of Runge and Kutta."""
    assert np.all(np.diff(record["loss"][point, 1]) < 0)
    unravel = ravel(pfcore.paths.at(path, 0))[1]
    slope = jax.jit(lambda x: -jax.grad(lambda x: written_out(unravel(x)))(x))
    steps, dt = flatten_path(path), np.float32(0.1 / 5)
    x = jnp.asarray(steps[0])
    for k in (1, 2):
        for _ in range(5):
            a = slope(x)
            b = slope(x + dt / 2 * a)
            c = slope(x + dt / 2 * b)
            x = x + dt / 6 * (a + 2 * b + 2 * c + slope(x + dt * c))
        np.testing.assert_allclose(record["loss"][point, 1, k], written_out(unravel(x)), rtol=1e-4)
        distance = np.linalg.norm(x - steps[k]) / np.linalg.norm(steps[k] - steps[0])
        np.testing.assert_allclose(record["distance"][point, 1, k], distance, rtol=1e-2)


def check_slice(record, point: int, params, expected: Dense, start: int):
    """Along the top eigenvector, on the side of gradient descent's last step."""
    offset, loss = record["slice_offset"][point], record["slice_loss"][point]
    np.testing.assert_allclose(offset, [-0.3, -0.15, 0, 0.15, 0.3], rtol=1e-6)
    np.testing.assert_allclose(loss[2], record["loss"][point, 0, 0], rtol=1e-6)
    vector = expected.vectors[start, 0] * -np.sign(
        expected.vectors[start, 0] @ expected.gradients[start]
    )
    flat, unravel = ravel(params)
    direct = [written_out(unravel(jnp.asarray(flat + o * vector, jnp.float32))) for o in offset]
    np.testing.assert_allclose(loss, direct, rtol=2e-3)


def test_flows_that_follow_midpoints_are_not_compared_with_iterates():
    config = configure("flows-at-the-edge", "flows=ngf,rod")
    with pytest.raises(ValueError, match=r"'rod' follows the centre.*models-of-the-edge"):
        experiments.run("flows-at-the-edge", config)


def test_every_principal_flow_is_followed_without_the_matrix():
    changes = "learning_rate=0.1", "starts=1", "num_steps=3", "principal_steps=1", "num_slice=3"
    config = configure(
        "flows-at-the-edge", *changes, "flows=principal,principal_np", "depth=4", "rtol=1e-3"
    )
    record = experiments.run("flows-at-the-edge", config)
    assert record["completed"].all()
    assert np.isfinite(record["loss"][0, 1:]).sum(axis=1).tolist() == [2, 2]


# ---- hessian-through-training


def test_the_density_has_at_most_as_many_nodes_as_there_are_parameters():
    config = configure(
        "hessian-through-training", "problem.widths=1", "steps=0", "num_probes=2",
        "num_eigenpairs=1", "depth=80",
    )  # fmt: skip
    record = experiments.run("hessian-through-training", config)
    assert record["nodes"].shape == (1, 2, 33) and np.isfinite(record["nodes"]).all()


@pytest.mark.slow
def test_hessian_through_training():
    """On a deep linear network that diverges before the fourth measured step."""
    steps = (0, 3, 4000, 4001)
    config = configure(
        "hessian-through-training", "problem.activation=identity", "learning_rate=0.5",
        "num_probes=8", "num_eigenpairs=3", f"tolerance={TOLERANCE}", "depth=12",
        f"steps={','.join(map(str, steps))}",
    )  # fmt: skip
    record = experiments.run("hessian-through-training", config)
    path = pfcore.gradient_descent(
        lambda p: written_out(p, lambda x: x), initial_params("identity"), 0.5, 3
    )
    found = dense(pfcore.paths.at(path, np.array([0, 3])), lambda x: x)
    np.testing.assert_array_equal(record["step"], steps[:3])
    assert record.info["diverged"] is True and record.info["diverged_at_step"] == 4000
    assert not np.isfinite(record["loss"][2]) and np.isnan(record["eigenvalues"][2]).all()
    kept = {name: array[:2] for name, array in record.arrays.items()}
    assert all(np.isfinite(array).all() for array in kept.values())
    np.testing.assert_allclose(kept["loss"], found.losses, rtol=1e-5)
    bound = TOLERANCE * np.abs(found.values).max(axis=1)
    assert np.all(np.abs(kept["eigenvalues"] - found.values[:, :3]) < 1.1 * bound[:, None])
    assert np.all(np.abs(kept["smallest"] - found.values[:, -1]) < 1.1 * bound)
    assert np.all(kept["residuals"] <= bound[:, None])
    trace = found.values.sum(axis=1)
    assert np.all(kept["trace_error"] > 0)
    assert np.all(np.abs(kept["trace"] - trace) < 4 * kept["trace_error"])
    # A quadrature for each probe: weights sum to one, and the first moment gives the trace.
    np.testing.assert_allclose(kept["weights"].sum(axis=-1), 1, rtol=1e-4)
    n = found.values.shape[1]
    moments = n * np.sum(kept["weights"] * kept["nodes"], axis=-1)
    np.testing.assert_allclose(moments.mean(axis=1), kept["trace"], rtol=1e-3)
    np.testing.assert_allclose(
        moments.std(axis=1, ddof=1) / np.sqrt(8), kept["trace_error"], rtol=1e-3
    )


# ---- stored records


@pytest.fixture
def counted_runs(monkeypatch):
    """How often an experiment ran."""
    calls = []
    run = edge_of_stability.run

    def counted(config, **options):
        calls.append(options)
        return run(config, **options)

    monkeypatch.setattr(edge_of_stability, "run", counted)
    monkeypatch.delenv("PFCORE_KEEP_RECORDS", raising=False)
    return calls


def test_load_or_run_finds_a_stored_record_in_any_folder(tmp_path, edge, counted_runs):
    other = dataclasses.replace(edge, info=edge.info | {"experiment": "flows-at-the-edge"})
    records.write(other, tmp_path / "another-experiment")
    records.write(edge, tmp_path / "a name of its own")
    (tmp_path / "begun").mkdir()
    config = configure("edge-of-stability", *TRACKED)
    found = experiments.load_or_run("edge-of-stability", config, folder=tmp_path)
    assert found.info == edge.info and counted_runs == []
    np.testing.assert_array_equal(found["loss"], edge["loss"])


def test_load_or_run_computes_what_is_not_stored(tmp_path, edge, counted_runs, monkeypatch):
    records.write(edge, tmp_path / "edge")
    config = configure("edge-of-stability", *TRACKED, "num_steps=10")
    computed = experiments.load_or_run("edge-of-stability", config, folder=tmp_path)
    np.testing.assert_array_equal(computed["loss"], edge["loss"][:10])
    assert len(counted_runs) == 1 and os.listdir(tmp_path) == ["edge"]
    monkeypatch.setenv("PFCORE_KEEP_RECORDS", "1")
    kept = experiments.load_or_run("edge-of-stability", config, folder=tmp_path)
    assert len(counted_runs) == 2 and len(os.listdir(tmp_path)) == 2
    monkeypatch.delenv("PFCORE_KEEP_RECORDS")
    again = experiments.load_or_run("edge-of-stability", config, folder=tmp_path)
    assert len(counted_runs) == 2 and again.info == kept.info


def test_load_or_run_resumes_an_unfinished_run(tmp_path, edge, monkeypatch):
    asked = {}
    monkeypatch.setattr(experiments, "run", lambda *_, **options: asked.update(options) or edge)
    monkeypatch.setenv("PFCORE_KEEP_RECORDS", "1")
    config = configure("edge-of-stability", *TRACKED)
    assert experiments.load_or_run("edge-of-stability", config, folder=tmp_path) is edge
    wanted = records.jsonable({"experiment": "edge-of-stability", "config": config})
    assert asked["resume"] is True
    assert asked["out"] == tmp_path / f"edge-of-stability-{records.digest(wanted)}"


class Interrupting:
    """A device array for which NumPy waits when Ctrl-C arrives."""

    def __array__(self, *args, **kwargs):
        raise KeyboardInterrupt

    def __len__(self):
        return 2


def test_interruption_while_fetching_results_is_reported_as_such():
    """NumPy alone raises a ValueError when a JAX scalar is assigned to an array."""
    room = training.Measured(*[np.zeros(2)] * len(training.Measured._fields))
    found = training.Measured(*[Interrupting()] * len(training.Measured._fields))
    with pytest.raises(KeyboardInterrupt):
        training.filled(room, 0, found)
