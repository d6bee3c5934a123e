"""Read the official files of MNIST and CIFAR-10: `make test-images`, with PFCORE_DATA."""

import dataclasses
import gzip
import os
import shutil
import tracemalloc
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pfcore import _official
from pfcore._official import manifest
from pfcore.datasets import load
from pfcore.experiments import adaptive_rates
from pfcore.runs import memory, problems
from pfcore.runs.problems import PROBLEMS


@pytest.fixture
def image_data() -> Path:
    """The folder named by PFCORE_DATA, with official MNIST and CIFAR-10 files or their heads."""
    if not os.environ.get("PFCORE_DATA"):
        pytest.skip("needs real images: PFCORE_DATA names no folder with MNIST and CIFAR-10 files")
    folder = Path(os.environ["PFCORE_DATA"])
    for needed in ("mnist/t10k-labels-idx1-ubyte.gz", "cifar-10-batches-bin/test_batch.bin"):
        if not (folder / needed).is_file():
            pytest.skip(f"needs real images: there is no {needed} in PFCORE_DATA = {folder}")
    return folder


def test_first_labels_of_the_official_files(image_data):
    digits = load("mnist", split="test", num_train=10)
    assert digits.train_targets.tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    photographs = load("cifar10", num_train=25, num_test=1)
    assert photographs.train_targets[::5].tolist() == [6, 9, 9, 4, 1]
    for data in (digits, photographs):
        assert data.train_targets.dtype == np.int32
        assert str(image_data) not in data.source


def test_the_official_test_file_of_mnist_is_divided_into_8000_and_2000(image_data):
    data = load("mnist", split="test")
    assert data.source == (
        "official MNIST test file, divided in file order: "
        "all 8,000 to train on, last 2,000 of 10,000 to test on"
    )
    assert data.train_inputs.shape == (8000, 28, 28, 1)
    assert data.test_inputs.shape == (2000, 28, 28, 1)
    # Pixels are ink on a blank background: digits are in the middle.
    ink = data.train_inputs - data.train_inputs.min()
    assert ink[:, 7:21, 7:21].mean() > 10 * ink[:, :3].mean()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_images_are_standardised_per_channel_over_the_chosen_samples(image_data, dtype):
    """Against the formula in float64 on the file's own bytes."""
    data = load("cifar10", dtype=dtype, num_train=200, num_test=30)
    folder = image_data / "cifar-10-batches-bin"
    raw = [(folder / file).read_bytes() for file in manifest.FILES["train"]]
    records = [raw[i % 5][3073 * (i // 5) : 3073 * (i // 5 + 1)] for i in range(200)]
    test_records = (folder / "test_batch.bin").read_bytes()[: 30 * 3073]

    def pixels(content):
        planes = np.frombuffer(content, np.uint8).reshape(-1, 3073)[:, 1:]
        return planes.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1).astype(np.float64)

    train, test = pixels(b"".join(records)), pixels(test_records)
    mean, deviation = train.mean(axis=(0, 1, 2)), train.std(axis=(0, 1, 2))
    tolerance = 1e-12 if dtype == np.float64 else 1e-6
    for found, expected in ((data.train_inputs, train), (data.test_inputs, test)):
        assert found.dtype == dtype
        expected = (expected - mean) / deviation
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


def cut(image_data: Path, folder: Path, number: int) -> None:
    """Heads of `number` records of CIFAR-10's files and `number` samples of MNIST's test files."""
    (folder / "cifar-10-batches-bin").mkdir()
    for path in (image_data / "cifar-10-batches-bin").glob("*.bin"):
        with path.open("rb") as stream:
            head = stream.read(3073 * number)
        (folder / "cifar-10-batches-bin" / path.name).write_bytes(head)
    (folder / "mnist").mkdir()
    for path in (image_data / "mnist").glob("t10k-*.gz"):
        content, start = gzip.decompress(path.read_bytes()), 16 if "images" in path.name else 8
        size = 784 if "images" in path.name else 1
        header = content[:4] + number.to_bytes(4, "big") + content[8:start]
        head = header + content[start : start + size * number]
        (folder / "mnist" / path.name.removesuffix(".gz")).write_bytes(head)


def test_heads_and_whole_files_give_the_same_first_samples(image_data, tmp_path, monkeypatch):
    subset = dict(num_train=100, num_test=20)
    whole = load("cifar10", **subset), _official.read("mnist", ["test"])[0]["test"]
    cut(image_data, tmp_path, 40)
    monkeypatch.setenv("PFCORE_DATA", str(tmp_path))
    head = load("cifar10", **subset), _official.read("mnist", ["test"])[0]["test"]
    assert head[0].sha256 == whole[0].sha256
    np.testing.assert_array_equal(head[0].train_inputs, whole[0].train_inputs)
    np.testing.assert_array_equal(head[0].test_targets, whole[0].test_targets)
    assert "(200 training and 40 test samples found)" in head[0].source
    for part, all_of_it in zip(head[1], whole[1], strict=True):
        np.testing.assert_array_equal(part, all_of_it[:40])


def test_truncated_and_altered_files_are_rejected(image_data, tmp_path, monkeypatch):
    monkeypatch.setenv("PFCORE_DATA", str(tmp_path))
    cut(image_data, tmp_path, 40)
    batch = tmp_path / "cifar-10-batches-bin" / "data_batch_2.bin"
    batch.write_bytes(batch.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"data_batch_2\.bin is truncated: 122,919 bytes"):
        load("cifar10")

    shutil.rmtree(tmp_path / "mnist")
    shutil.copytree(image_data / "mnist", tmp_path / "mnist")
    labels = tmp_path / "mnist" / "t10k-labels-idx1-ubyte.gz"
    content = gzip.decompress(labels.read_bytes())
    labels.unlink()
    labels.write_bytes(gzip.compress(content[:-1] + bytes([(content[-1] + 1) % 10])))
    with pytest.raises(ValueError, match=r"t10k-labels.* is altered.*official file's is ff7bcfd4"):
        load("mnist", split="test")


def test_a_small_subset_needs_no_float64_copy_of_all_images(image_data):
    load("cifar10", num_train=10, num_test=10)  # imports are not counted
    files = sum(path.stat().st_size for path in image_data.glob("cifar-10-batches-bin/*.bin"))
    tracemalloc.start()
    try:
        load("cifar10", num_train=10, num_test=10)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3 * files


@pytest.mark.parametrize("name", [n for n in PROBLEMS["full"] if n != "digits-mlp"])
def test_two_steps_of_every_full_problem_on_a_few_samples(image_data, name):
    """The full-size network and its microbatches, which no quick run has."""
    problem = PROBLEMS["full"][name]
    folder = manifest.FOLDERS.get(problem.data, "cifar-10-batches-bin")
    if not (image_data / folder).is_dir():
        pytest.skip(f"needs real images: there is no {folder} in PFCORE_DATA = {image_data}")
    few = dataclasses.replace(
        problem,
        num_train=8,
        num_test=8,
        microbatch=4 if problem.microbatch else None,
    )
    config = adaptive_rates.Config(
        problem=few, methods=("dal",), batch_size=4, budget=2, every=1, unit="steps"
    )
    found = adaptive_rates.run(config, progress=False)
    assert found.info["diverged"] is False
    assert found["step"][0, 0].tolist() == [0, 1, 2]
    assert np.all(np.isfinite(found["loss"])) and found["loss"][0, 0, 2] != found["loss"][0, 0, 0]
    shapes = memory.shapes(few)
    built = problems.build(few, seed=0)
    assert jax.tree.map(jnp.shape, built.data) == jax.tree.map(lambda x: x.shape, shapes)
