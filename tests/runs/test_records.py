import json
import os
import re
import shutil
import threading
import zipfile
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pfcore import records
from pfcore.records import Record
from pfcore.runs import folder as run_folder
from pfcore.runs.folder import Checkpoints
from pfcore.runs.problems import Problem

RUN = {"experiment": "training", "config": {"rate": 0.5, "problem": {"widths": [4, 3]}}}


def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "loss": rng.normal(size=7).astype(np.float32),
        "double": rng.normal(size=(2, 3, 2)),
        "step": np.arange(7, dtype=np.int32),
        "long": np.array([-(2**62), 2**62]),
        "converged": np.array([[True], [False]]),
        "complex": np.array([1 + 2j], np.complex64),
        "number": np.array(2.5),
        "empty": np.zeros((0, 3), np.float32),
        "lost": np.array([np.nan, -np.inf, -0.0]),
        "column-major": np.asfortranarray(rng.normal(size=(3, 4))),
    }


def info(**changes) -> dict[str, Any]:
    return {**RUN, "diverged": False, "diverged_at_step": None, **changes}


def bits(tree) -> list:
    """Leaves as (dtype, shape, bytes), by which NaN equals itself and -0 is not 0."""
    return [(x.dtype, x.shape, x.tobytes()) for x in map(np.asarray, jax.tree.leaves(tree))]


# ---- records


def test_round_trip(tmp_path):
    records.write(Record(arrays(), info()), tmp_path / "not" / "yet")
    back = records.read(tmp_path / "not" / "yet")
    assert list(back.arrays) == list(arrays())
    assert bits(back.arrays) == bits(arrays())
    assert back.info == info()
    assert sorted(os.listdir(tmp_path / "not" / "yet")) == ["arrays.npz", "record.json"]
    with np.load(tmp_path / "not" / "yet" / "arrays.npz") as plain:
        np.testing.assert_array_equal(plain["double"], arrays()["double"])


def test_the_same_arrays_give_the_same_bytes(tmp_path, monkeypatch):
    records.write(Record(arrays(), info()), tmp_path / "a")
    monkeypatch.setattr("time.time", lambda: 1e9)
    records.write(Record(arrays(), info(wall_time_s=3.0)), tmp_path / "b")
    assert (tmp_path / "a/arrays.npz").read_bytes() == (tmp_path / "b/arrays.npz").read_bytes()


def test_getitem_error_lists_the_arrays():
    record = Record({"loss": np.ones(2), "drift": np.ones(2)}, {})
    assert record["loss"].sum() == 2
    with pytest.raises(KeyError, match=r"no array 'sharpness'.*loss, drift"):
        record["sharpness"]


def test_computed_on():
    record = Record({}, {"device": "2 CPU cores", "versions": {"jax": "1.2.3"}})
    assert record.computed_on == "2 CPU cores, JAX 1.2.3"


@pytest.mark.parametrize(
    "array",
    [
        np.array([{}], object),
        np.array([(1, None)], [("a", int), ("b", object)]),
        np.array(["text"]),
        np.array(["2026-01-01"], "datetime64[D]"),
        np.asarray(jnp.ones(2, jnp.bfloat16)),  # not representable in NumPy's format
    ],
    ids=lambda array: str(array.dtype),
)
def test_only_numbers_and_booleans_are_stored(tmp_path, array):
    with pytest.raises(TypeError, match="'odd' is of dtype"):
        records.write(Record({"fine": np.ones(2), "odd": array}, info()), tmp_path / "new")
    assert not (tmp_path / "new").exists()


class _Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


def test_pickled_content_is_rejected_and_not_executed(tmp_path):
    sprung = tmp_path / "sprung"
    trap = np.array([_Trap(str(sprung))], object)
    records.write(Record({"x": np.zeros(1)}, info()), tmp_path)
    np.savez(tmp_path / "arrays.npz", x=trap)
    described = {"x": {"shape": [1], "dtype": "object"}}
    (tmp_path / "record.json").write_text(json.dumps(info(arrays=described)))
    with pytest.raises(ValueError, match=r"arrays\.npz' cannot be read.*allow_pickle"):
        records.read(tmp_path)
    assert not sprung.exists()
    # The trap works if pickles are allowed.
    with np.load(tmp_path / "arrays.npz", allow_pickle=True) as archive:
        archive["x"][0].close()
    assert sprung.exists()


def test_a_bare_pickle_is_rejected(tmp_path):
    records.write(Record({"x": np.zeros(1)}, info()), tmp_path)
    sprung = tmp_path / "sprung"
    with open(tmp_path / "arrays.npz", "wb") as file:
        np.save(file, np.array([_Trap(str(sprung))], object), allow_pickle=True)
    with pytest.raises(ValueError, match="cannot be read"):
        records.read(tmp_path)
    assert not sprung.exists()


def test_truncated_arrays(tmp_path):
    records.write(Record(arrays(), info()), tmp_path)
    whole = (tmp_path / "arrays.npz").read_bytes()
    for length in [*range(0, len(whole), 97), len(whole) - 1]:
        (tmp_path / "arrays.npz").write_bytes(whole[:length])
        with pytest.raises(ValueError, match="cannot be read"):
            records.read(tmp_path)


def test_damaged_arrays_give_an_error_or_are_intact(tmp_path):
    """A flipped bit is detected by the archive's checksums, unless it is in unused bytes."""
    records.write(Record(arrays(), info()), tmp_path)
    whole = (tmp_path / "arrays.npz").read_bytes()
    rng = np.random.default_rng(0)
    found = 0
    for at in rng.integers(0, len(whole), 300):
        flipped = bytearray(whole)
        flipped[at] ^= 1 << int(rng.integers(8))
        (tmp_path / "arrays.npz").write_bytes(flipped)
        try:
            back = records.read(tmp_path)
        except ValueError:
            found += 1
        else:
            assert bits(back.arrays) == bits(arrays())
    assert found > 150


@pytest.mark.parametrize(
    "described",
    [
        {"x": {"shape": [4], "dtype": "float64"}},
        {"x": {"shape": [3], "dtype": "float32"}},
        {"y": {"shape": [3], "dtype": "float64"}},
        {},
    ],
)
def test_files_that_do_not_belong_together(tmp_path, described):
    records.write(Record({"x": np.zeros(3)}, info()), tmp_path)
    (tmp_path / "record.json").write_text(json.dumps(info(arrays=described)))
    with pytest.raises(ValueError, match="do not belong together"):
        records.read(tmp_path)


@pytest.mark.parametrize("text", ["", '{"experiment": ', "\udcff"])
def test_damaged_description(tmp_path, text):
    records.write(Record({"x": np.zeros(3)}, info()), tmp_path)
    (tmp_path / "record.json").write_text(text, errors="surrogateescape")
    with pytest.raises(ValueError, match=r"record\.json' cannot be read"):
        records.read(tmp_path)


def test_missing_record(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no record\.json in .*'\.$"):
        records.read(tmp_path)
    run_folder.begin(tmp_path, RUN, num_bytes=0)
    with pytest.raises(FileNotFoundError, match="resume it with --resume"):
        records.read(tmp_path)


def test_missing_arrays(tmp_path):
    records.write(Record({"x": np.zeros(3)}, info()), tmp_path)
    (tmp_path / "arrays.npz").unlink()
    with pytest.raises(FileNotFoundError, match=r"arrays\.npz"):
        records.read(tmp_path)


@pytest.mark.parametrize("name", ["arrays.npz", "record.json"])
@pytest.mark.parametrize("older", [False, True])
def test_an_interrupted_write_leaves_no_readable_record(tmp_path, monkeypatch, name, older):
    """Not even if an older record with arrays of the same shapes was there."""
    if older:
        records.write(Record({"x": np.zeros(3)}, info()), tmp_path)
    replace = os.replace

    def failing(source, target):
        if os.path.basename(target) == name:
            raise OSError("no space left on device")
        replace(source, target)

    with monkeypatch.context() as patched:
        patched.setattr("os.replace", failing)
        with pytest.raises(OSError, match="no space left"):
            records.write(Record({"x": np.ones(3)}, info()), tmp_path)
    assert not records.is_finished(tmp_path)
    with pytest.raises(FileNotFoundError):
        records.read(tmp_path)
    records.write(Record({"x": np.ones(3)}, info()), tmp_path)
    np.testing.assert_array_equal(records.read(tmp_path)["x"], np.ones(3))


def test_a_failed_write_keeps_the_older_arrays(tmp_path, monkeypatch):
    def failing(*arguments, **options):
        raise OSError("no space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "open", failing)
    with pytest.raises(OSError, match="no space left"):
        records.write(Record({"x": np.ones(3)}, info()), tmp_path)
    assert not (tmp_path / "arrays.npz").exists() and not records.is_finished(tmp_path)


def test_provenance():
    found = records.provenance()
    assert set(found) == {"device", "matmul_precision", "processes", "versions", "commit"}
    assert found["matmul_precision"] == "default"
    with jax.default_matmul_precision("highest"):
        assert records.provenance()["matmul_precision"] == "highest"
    assert found["versions"]["jax"] == jax.__version__
    assert found["versions"]["numpy"] == np.__version__
    assert {"pfcore", "flax", "jaxlib"} <= set(found["versions"])
    assert all(re.match(r"\d+\.\d+", version) for version in found["versions"].values())
    assert found["commit"] is None or re.fullmatch(r"[0-9a-f]{40}\+?", found["commit"])
    assert re.fullmatch(r"\d+ CPU cores|\d+ × .+", found["device"])


def test_without_git_there_is_no_commit(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert records.provenance()["commit"] is None


def test_jsonable_equals_the_json_round_trip():
    value = {"problem": Problem(widths=(4, 3)), "starts": (1, 2), "rate": 0.1, "none": None}
    found = records.jsonable(value)
    assert json.loads(json.dumps(found)) == found
    assert found["problem"]["widths"] == [4, 3]
    with pytest.raises(ValueError, match="nan cannot be stored in JSON"):
        records.jsonable({"rate": float("nan")})


def test_digest_distinguishes_configurations():
    assert records.digest({"a": 1, "b": (2,)}) == records.digest({"b": [2], "a": 1})
    assert records.digest(Problem(num_train=64)) != records.digest(Problem(num_train=65))
    assert re.fullmatch("[0-9a-f]{8}", records.digest(Problem()))


# ---- reserving a folder


def reserve(folder, run, *, resume):
    with run_folder.reserve(folder, run, resume=resume):
        pass


def test_reserve_begin_and_resume(tmp_path):
    folder = tmp_path / "not" / "yet"
    for resume in (False, True):
        reserve(folder, RUN, resume=resume)
        assert not run_folder.has_run(folder) and not os.listdir(folder)
    run_folder.begin(folder, RUN, num_bytes=10)
    assert run_folder.has_run(folder) and not records.is_finished(folder)
    assert os.listdir(folder) == ["run.json"]
    with pytest.raises(FileExistsError, match=r"holds a run already.*--resume.*--out"):
        reserve(folder, RUN, resume=False)
    reserve(folder, RUN, resume=True)
    run_folder.begin(folder, RUN, num_bytes=10)


@pytest.mark.parametrize("finished", [False, True])
def test_reserve_reports_differing_settings(tmp_path, finished):
    if finished:
        records.write(Record({"x": np.zeros(3)}, info()), tmp_path)
    else:
        run_folder.begin(tmp_path, RUN, num_bytes=10)
    reserve(tmp_path, RUN, resume=True)
    other = {"rate": 0.25, "problem": {"widths": (4, 5), "kind": "mse"}}
    with pytest.raises(ValueError, match="another configuration") as caught:
        reserve(tmp_path, {**RUN, "config": other}, resume=True)
    message = str(caught.value)
    assert "config.rate is 0.25, was 0.5" in message
    assert "config.problem.widths is [4, 5], was [4, 3]" in message
    assert 'config.problem.kind is "mse", was null' in message
    assert "experiment" not in message


@pytest.mark.parametrize("below", [".", "below"])
def test_reserve_rejects_an_impossible_folder(tmp_path, below):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot write the run to .*file"):
        reserve(tmp_path / "file" / below, RUN, resume=False)


def test_the_error_for_a_full_disk_has_both_sizes(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=12_000_000))
    with pytest.raises(OSError, match=r"12 MB free.*may need 34 MB"):
        run_folder.begin(tmp_path, RUN, num_bytes=34_000_000)
    assert not run_folder.has_run(tmp_path)
    run_folder.begin(tmp_path, RUN, num_bytes=12_000_000)


def test_forget_run_keeps_the_record(tmp_path):
    run_folder.begin(tmp_path, RUN, num_bytes=10)
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    records.write(Record({"x": np.zeros(3)}, info()), tmp_path)
    run_folder.forget_run(tmp_path)
    run_folder.forget_run(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["arrays.npz", "record.json"]


def test_one_process_at_a_time_holds_a_folder(tmp_path, caplog):
    """Another one is refused, or, if it would resume, waits and finds the record."""
    seen = []

    def other(resume: bool) -> None:
        with run_folder.reserve(tmp_path, RUN, resume=resume):
            seen.append(records.is_finished(tmp_path))

    with run_folder.reserve(tmp_path, RUN, resume=True):
        run_folder.begin(tmp_path, RUN, num_bytes=10)
        with pytest.raises(FileExistsError, match=r"another process is computing.*--out"):
            other(resume=False)
        waiting = threading.Thread(target=other, args=(True,))
        waiting.start()
        waiting.join(0.3)
        assert waiting.is_alive() and not seen
        records.write(Record({"x": np.zeros(3)}, info()), tmp_path)
        run_folder.forget_run(tmp_path)
    waiting.join(30)
    assert seen == [True]
    assert "Another process is computing the run" in caplog.text
    assert sorted(os.listdir(tmp_path)) == ["arrays.npz", "record.json"]


# ---- checkpoints


class Pair(NamedTuple):
    first: Any
    second: Any


def state(seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    return {
        "params": [jnp.asarray(rng.normal(size=(3, 2)), jnp.float32), jnp.float32(seed)],
        "pair": Pair(jax.random.key(seed), (np.array([True, False]), np.array([np.nan, seed]))),
        "keys": jax.random.split(jax.random.key(seed, impl="rbg"), 3),
        "done": np.int32(seed),
        "seconds": np.float64(seed + 0.1),
        "flag": np.bool_(seed % 2),
        "scalar": np.array(seed, np.int64),
    }


def as_data(tree):
    """Keys as numbers."""

    def data(leaf):
        is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return jax.random.key_data(leaf) if is_key else leaf

    return jax.tree.map(data, tree)


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert type(a) is type(b) and a.dtype == b.dtype
    assert bits(as_data(found)) == bits(as_data(expected))


def test_checkpoints_round_trip(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.restore(state()) is None
    for number in (1, 2, 3):
        checkpoints.save(number, state(number))
    checkpoints.save(3, state(4))  # exists already: no effect
    checkpoints.close()
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["2", "3"]
    again = Checkpoints(tmp_path)
    number, found = again.restore(state())
    assert number == 3
    assert_same(found, state(3))
    draws = jax.random.normal(found["pair"].first), jax.random.normal(found["keys"][1])
    like = state(3)
    assert draws == (
        jax.random.normal(like["pair"].first),
        jax.random.normal(like["keys"][1]),
    )
    again.save(4, found)
    assert_same(again.restore(state())[1], found)
    again.close()


@pytest.mark.parametrize("missing", [None, "_CHECKPOINT_METADATA", "default", "everything"])
def test_an_incomplete_checkpoint_is_ignored(tmp_path, missing):
    """It has Orbax's name of an unfinished checkpoint, and its number can be reused."""
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state(1))
    checkpoints.save(2, state(2))
    checkpoints.close()
    folder = tmp_path / "checkpoints"
    (folder / "2").rename(folder / "2.orbax-checkpoint-tmp")
    for path in sorted((folder / "2.orbax-checkpoint-tmp").iterdir()):
        if missing in (path.name, "everything"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    again = Checkpoints(tmp_path)
    number, found = again.restore(state())
    assert number == 1
    assert_same(found, state(1))
    again.save(2, state(5))
    assert again.restore(state())[0] == 2
    again.close()
    assert sorted(os.listdir(folder)) == ["1", "2"]
    last = Checkpoints(tmp_path)
    assert_same(last.restore(state())[1], state(5))
    last.close()
