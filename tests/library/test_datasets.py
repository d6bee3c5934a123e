import contextlib
import functools
import gc
import gzip
import hashlib
import http.server
import io
import logging
import shutil
import tarfile
import threading
from pathlib import Path

import numpy as np
import pooch
import pytest
import sklearn.datasets

from pfcore import _official, datasets
from pfcore._official import formats, manifest
from pfcore.datasets import Dataset, load

NAMES = ("breast_cancer", "digits")
RAW = {
    "breast_cancer": sklearn.datasets.load_breast_cancer,
    "digits": sklearn.datasets.load_digits,
}


@pytest.mark.parametrize(
    "name, num_train, num_test, features, classes",
    [("breast_cancer", 455, 114, 30, 2), ("digits", 1437, 360, 64, 10)],
)
def test_shapes_and_classes(name, num_train, num_test, features, classes):
    data = load(name)
    assert data.name == name
    assert data.train_inputs.shape == (num_train, features)
    assert data.test_inputs.shape == (num_test, features)
    for targets, count in ((data.train_targets, num_train), (data.test_targets, num_test)):
        assert targets.shape == (count,)
        assert np.issubdtype(targets.dtype, np.integer)
        assert set(targets.tolist()) == set(range(classes))


@pytest.mark.parametrize("name", NAMES)
def test_the_split_is_fixed(name):
    for first, second in zip(load(name)[1:], load(name)[1:], strict=True):
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("name", NAMES)
def test_every_sample_occurs_once_standardised_by_the_training_samples(name):
    """An increasing map of each feature keeps the lexical order of samples, which pairs them with
    the originals."""
    data = load(name, dtype=np.float64)
    inputs = np.concatenate([data.train_inputs, data.test_inputs])
    targets = np.concatenate([data.train_targets, data.test_targets])
    raw_inputs, raw_targets = RAW[name](return_X_y=True)
    assert len(inputs) == len(raw_inputs)
    raw_order = np.lexsort((raw_targets, *raw_inputs.T))
    order = np.lexsort((targets, *inputs.T))
    original = np.empty_like(raw_inputs)
    original[order] = raw_inputs[raw_order]
    np.testing.assert_array_equal(targets[order], raw_targets[raw_order])

    train = original[: len(data.train_inputs)]
    scale = 16.0 if name == "digits" else train.std(axis=0)
    np.testing.assert_allclose(
        inputs, (original - train.mean(axis=0)) / scale, rtol=1e-9, atol=1e-12
    )


def test_breast_cancer_has_mean_zero_and_deviation_one():
    inputs = load("breast_cancer", dtype=np.float64).train_inputs
    np.testing.assert_allclose(inputs.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(inputs.std(axis=0), 1, rtol=1e-12)


def test_digits_are_centred_and_one_pixel_step_is_a_sixteenth():
    inputs = load("digits", dtype=np.float64).train_inputs
    np.testing.assert_allclose(inputs.mean(axis=0), 0, atol=1e-12)
    assert np.abs(inputs).max() <= 1
    steps = 16 * (inputs - inputs.min(axis=0))
    np.testing.assert_allclose(steps, np.round(steps), atol=1e-10)
    assert np.round(steps).max() == 16


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, "float64"])
def test_the_requested_dtype_without_x64(name, dtype):
    data = load(name, dtype=dtype)
    assert data.train_inputs.dtype == np.dtype(dtype) == data.test_inputs.dtype


def test_float32_by_default_and_rounded_once():
    single, double = load("digits"), load("digits", dtype=np.float64)
    assert single.train_inputs.dtype == np.float32
    np.testing.assert_array_equal(single.train_inputs, double.train_inputs.astype(np.float32))


def test_wrong_names_and_dtypes_are_rejected():
    with pytest.raises(ValueError, match=r"'iris'.*breast_cancer, digits"):
        load("iris")
    for dtype in (np.int32, complex, bool):
        with pytest.raises(TypeError, match="floating-point dtype, got"):
            load("digits", dtype=dtype)


def test_without_a_subset_the_numbers_equal_the_formula_bitwise():
    for name in NAMES:
        inputs, targets = RAW[name](return_X_y=True)
        inputs = inputs / 16.0 if name == "digits" else inputs
        order = np.random.default_rng(0).permutation(len(inputs))
        train, test = np.split(inputs[order], [int(0.8 * len(inputs))])
        scale = 1.0 if name == "digits" else train.std(axis=0)
        data = load(name)
        for found, raw in ((data.train_inputs, train), (data.test_inputs, test)):
            expected = ((raw - train.mean(axis=0)) / scale).astype(np.float32)
            np.testing.assert_array_equal(found, expected)
        both = np.concatenate([data.train_targets, data.test_targets])
        np.testing.assert_array_equal(both, targets[order])
        assert both.dtype == np.int32


# Subsets


def test_a_subset_is_the_head_of_the_split_standardised_separately():
    whole = load("breast_cancer", dtype=np.float64)
    part = load("breast_cancer", dtype=np.float64, num_train=200, num_test=50)
    head = whole.train_inputs[:200]
    mean, deviation = head.mean(axis=0), head.std(axis=0)
    np.testing.assert_allclose(part.train_inputs, (head - mean) / deviation, atol=1e-12)
    np.testing.assert_allclose(
        part.test_inputs, (whole.test_inputs[:50] - mean) / deviation, atol=1e-12
    )
    np.testing.assert_array_equal(part.train_targets, whole.train_targets[:200])
    np.testing.assert_array_equal(part.test_targets, whole.test_targets[:50])
    assert part.source == (
        "scikit-learn's breast_cancer: first 200 of 455 to train on, first 50 of 114 to test on"
    )


def test_classes_are_relabelled_in_the_order_given():
    whole, part = load("digits"), load("digits", classes=np.array([8, 3]))
    for side in ("train_targets", "test_targets"):
        labels = getattr(whole, side)
        kept = labels[(labels == 3) | (labels == 8)]
        np.testing.assert_array_equal(getattr(part, side), np.where(kept == 8, 0, 1))
    assert ", classes 8, 3: all " in part.source


def test_a_seed_draws_training_and_test_samples_independently():
    whole = load("digits", dtype=np.float64)
    few, many = (load("digits", seed=1, num_train=n, num_test=m) for n, m in ((20, 30), (50, 10)))
    order = np.random.default_rng(1).permutation(1437)
    np.testing.assert_array_equal(many.train_targets, whole.train_targets[order[:50]])
    np.testing.assert_array_equal(few.train_targets, many.train_targets[:20])
    np.testing.assert_array_equal(few.test_targets[:10], many.test_targets)
    assert "first 20 of 1,437 in the order of seed 1 to train on" in few.source
    assert load("digits", seed=2, num_train=20).sha256 != few.sha256


def test_the_fingerprint_is_of_the_raw_samples():
    inputs, targets = RAW["digits"](return_X_y=True)
    order = np.random.default_rng(0).permutation(len(inputs))
    inputs, targets = inputs[order] / 16, targets[order].astype("<i4")
    pieces = [inputs[:9], targets[:9], inputs[1437:1440], targets[1437:1440]]
    expected = hashlib.sha256(b"".join(piece.tobytes() for piece in pieces)).hexdigest()
    for dtype in (np.float32, np.float64):
        assert load("digits", dtype=dtype, num_train=9, num_test=3).sha256 == expected


def test_source_and_fingerprint_have_defaults():
    empty = np.zeros(0)
    assert Dataset("mine", empty, empty, empty, empty)[5:] == ("", "")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(num_train=2000), r"num_train is 2,000, but 1,437 samples are available"),
        (dict(num_test=74, classes=(3, 8)), r"num_test is 74, but 58 samples"),
        (dict(num_train=0), r"num_train must be at least 1, got 0"),
        (dict(num_test=-1), r"num_test must be at least 1, got -1"),
        (dict(seed=-1), r"seed must be at least 0, got -1"),
        (dict(classes=(1, 10)), r"classes must be from 0 to 9, got 10 in \(1, 10\)"),
        (dict(classes=(-1, 1)), r"each of classes must be at least 0, got -1"),
        (dict(classes=(1, 2, 1)), r"classes must differ.*\(1, 2, 1\)"),
        (dict(classes=(1,)), r"at least two.*\(1,\)"),
        (dict(classes=()), r"at least two.*\(\)"),
        (dict(split="validation"), r"unknown split 'validation'; choose one of official, test"),
        (dict(split="test"), r"'digits' has none, use split='official'"),
    ],
)
def test_impossible_subsets_are_rejected(arguments, message):
    with pytest.raises(ValueError, match=message):
        load("digits", **arguments)


@pytest.mark.parametrize(
    "arguments", [dict(num_train=1.5), dict(seed="0"), dict(classes=3), dict(classes=(0.5, 1))]
)
def test_non_integers_are_rejected(arguments):
    with pytest.raises(TypeError):
        load("digits", **arguments)


def test_constant_features_are_rejected_where_they_would_be_divided_by_zero():
    with pytest.raises(ValueError, match="30 of 30 features do not vary over the 1 samples"):
        load("breast_cancer", num_train=1)


# The official files: parsing


def idx(items: np.ndarray) -> bytes:
    header = np.array(items.shape, ">u4").tobytes()
    return bytes((0, 0, 8, items.ndim)) + header + items.astype(np.uint8).tobytes()


def random_images(number: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(number)
    return rng.integers(0, 256, (number, 28, 28)), rng.integers(0, 10, number)


def random_records(number: int, first_label: int = 0) -> bytes:
    records = np.random.default_rng(number).integers(0, 256, (number, 3073), np.uint8)
    records[:, 0] = (first_label + np.arange(number)) % 10
    return records.tobytes()


def write_mnist(folder: Path, *, compress: bool, name: str = "mnist", **numbers: int) -> None:
    """Files in MNIST's format."""
    (folder / name).mkdir(exist_ok=True)
    for prefix, number in numbers.items():
        images, labels = random_images(number)
        for stem, items in (("images-idx3", images), ("labels-idx1", labels)):
            path = folder / name / f"{prefix}-{stem}-ubyte{'.gz' * compress}"
            path.write_bytes(gzip.compress(idx(items)) if compress else idx(items))


def write_cifar(folder: Path, *numbers: int) -> None:
    (folder / "cifar-10-batches-bin").mkdir()
    files = manifest.FILES["train"] + manifest.FILES["test"]
    for first_label, (file, number) in enumerate(zip(files, numbers, strict=True)):
        path = folder / "cifar-10-batches-bin" / file
        path.write_bytes(random_records(number, first_label))


@pytest.fixture
def data_folder(tmp_path, monkeypatch):
    """An empty folder named by PFCORE_DATA; the warning of missing files is reset."""
    monkeypatch.setenv("PFCORE_DATA", str(tmp_path))
    datasets._warn_divided.cache_clear()
    return tmp_path


def test_idx_round_trip():
    images, labels = random_images(7)
    np.testing.assert_array_equal(formats.parse_idx(idx(images), "file", (28, 28)), images)
    np.testing.assert_array_equal(formats.parse_idx(idx(labels), "file", ()), labels)


IMAGES = idx(np.zeros((7, 28, 28)))


@pytest.mark.parametrize(
    "content, message",
    [
        (IMAGES[:-784], "file announces 7 items but holds 6;"),
        (IMAGES[:-1], "file announces 7 items but holds 6 and 783 bytes"),
        (IMAGES + b"0", "file announces 7 items but holds 7 and 1 bytes"),
        (IMAGES[:7] + bytes([9]) + IMAGES[8:], "file announces 9 items but holds 7;"),
        (IMAGES[:16], "file announces 7 items but holds 0;"),
        (idx(np.zeros((0, 28, 28))), "file announces 0 items"),
        (IMAGES[:15], "file is not an idx file .* 15 bytes and starts with '00 00 08 03'"),
        (b"", "file is not an idx file .* 0 bytes"),
        (b"<!DOCTYPE html><html></html>", "file is not an idx file"),
        (idx(np.zeros(7)), "file is not an idx file of bytes with 3 axes"),
        (idx(np.zeros((7, 32, 32))), r"items of shape \(32, 32\), not \(28, 28\)"),
    ],
)
def test_inconsistent_idx_files_are_rejected(content, message):
    with pytest.raises(ValueError, match=message):
        formats.parse_idx(content, "file", (28, 28))


def test_records_are_a_label_and_pixels_channels_first(data_folder):
    """The red, green and blue values of sample 0 are its channels 0, 1 and 2."""
    write_cifar(data_folder, 2, 2, 2, 2, 2, 2)
    raw = (data_folder / "cifar-10-batches-bin" / "data_batch_1.bin").read_bytes()
    samples, remark = _official.read("cifar10", ["train"])
    images, labels = samples["train"]
    assert images.shape == (10, 32, 32, 3)
    for channel in range(3):
        plane = raw[1 + 1024 * channel : 1 + 1024 * (channel + 1)]
        assert images[0, :, :, channel].tobytes() == plane
    np.testing.assert_array_equal(labels, [0, 1, 2, 3, 4, 1, 2, 3, 4, 5])
    assert remark is None


@pytest.mark.parametrize("number", [0, 1, 3072, 3074, 6145])
def test_truncated_records_are_rejected_with_name_and_size(number):
    with pytest.raises(ValueError, match=rf"batch.bin is truncated: {number:,} bytes"):
        formats.parse_records(bytes(number), "batch.bin")


def test_an_impossible_label_is_reported_as_damage():
    content = bytearray(random_records(3))
    content[3073] = 10
    with pytest.raises(ValueError, match=r"batch\.bin is damaged: sample 1 has the label 10"):
        formats.parse_records(bytes(content), "batch.bin")


def test_a_truncated_or_damaged_gzip_stream_is_rejected(tmp_path):
    path = tmp_path / "labels.gz"
    whole = gzip.compress(idx(random_images(20)[1]))
    for number in (*range(1, len(whole)), None):
        content = bytearray(whole[:number])
        if number is None:
            content[-6] ^= 1
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"labels\.gz is cut short or damaged"):
            formats.unzip(path)


# A folder of official files or heads


@pytest.mark.parametrize(
    "name, folder, title",
    [("mnist", "mnist", "MNIST"), ("fashion_mnist", "fashion-mnist", "Fashion-MNIST")],
)
@pytest.mark.parametrize("compress", [True, False])
def test_heads_of_mnist_compressed_or_not(data_folder, compress, name, folder, title):
    write_mnist(data_folder, name=folder, compress=compress, train=30, t10k=20)
    data = load(name, num_test=4)
    assert data.train_inputs.shape == (30, 28, 28, 1)
    assert data.test_inputs.shape == (4, 28, 28, 1)
    np.testing.assert_array_equal(data.train_targets, random_images(30)[1])
    np.testing.assert_array_equal(data.test_targets, random_images(20)[1][:4])
    assert data.source == (
        f"heads of the official {title} files (30 training and 20 test samples found): "
        "all 30 to train on, first 4 of 20 to test on"
    )


def test_fashion_mnist_is_read_from_the_system_package(cache, tmp_path, monkeypatch):
    write_mnist(tmp_path, name="datasets", compress=True, train=30, t10k=20)
    monkeypatch.setitem(manifest.SYSTEM, "fashion_mnist", tmp_path / "datasets")
    data = load("fashion_mnist")
    assert data.train_inputs.shape == (30, 28, 28, 1)
    assert not cache.exists()


def test_unequal_heads_are_cut_to_the_shortest_with_a_remark(data_folder):
    write_cifar(data_folder, 4, 3, 5, 4, 4, 6)
    source = load("cifar10").source
    assert (
        "(15 training and 6 test samples found; the training files cut to the shortest, " in source
    )
    assert "3 records each)" in source


def test_the_error_for_missing_files_suggests_a_fix(data_folder):
    message = r"{}.* does not exist.*PFCORE_DATA is set.*'breast_cancer' and 'digits'"
    expected = data_folder / "mnist" / "train-images-idx3-ubyte.gz"
    with pytest.raises(FileNotFoundError, match=message.format(expected)):
        load("mnist")
    expected = data_folder / "mnist" / "t10k-images-idx3-ubyte.gz"
    with pytest.raises(FileNotFoundError, match=message.format(expected)):
        load("mnist", split="test")
    expected = data_folder / "cifar-10-batches-bin" / "data_batch_1.bin"
    with pytest.raises(FileNotFoundError, match=message.format(expected)):
        load("cifar10")
    write_mnist(data_folder, compress=False, train=30, t10k=20)
    (data_folder / "mnist" / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(FileNotFoundError, match=r"train-labels-idx1-ubyte\.gz does not exist"):
        load("mnist")


def test_different_numbers_of_images_and_labels_are_rejected(data_folder):
    write_mnist(data_folder, compress=False, t10k=20)
    path = data_folder / "mnist" / "t10k-labels-idx1-ubyte"
    path.write_bytes(idx(np.zeros(19)))
    with pytest.raises(ValueError, match="t10k files disagree: 20 images, 19 labels"):
        load("mnist", split="test")


def test_files_of_the_official_length_must_have_the_official_hash(data_folder):
    write_mnist(data_folder, compress=True, t10k=10_000)
    with pytest.raises(ValueError, match=r"t10k-images.* is altered: .* file's is 0fa7"):
        load("mnist", split="test")
    write_mnist(data_folder, name="fashion-mnist", compress=True, t10k=10_000)
    with pytest.raises(ValueError, match=r"t10k-images.* is altered: .* file's is 5b41"):
        load("fashion_mnist", split="test")
    write_mnist(data_folder, compress=True, t10k=10_001)
    with pytest.raises(ValueError, match=r"t10k-images.* holds 10,001 samples, more than 10,000"):
        load("mnist", split="test")


def test_the_test_file_is_divided_with_one_warning_or_on_request_without(data_folder, caplog):
    write_mnist(data_folder, compress=False, t10k=52)
    labels = random_images(52)[1]
    asked = load("mnist", split="test", num_test=12, num_train=30)
    assert not caplog.records
    np.testing.assert_array_equal(asked.train_targets, labels[:30])
    np.testing.assert_array_equal(asked.test_targets, labels[40:])
    assert asked.source == (
        "head of the official MNIST test file (52 test samples found), divided in file order: "
        "first 30 of 40 to train on, last 12 of 52 to test on"
    )
    with caplog.at_level(logging.WARNING, logger="pfcore"):
        found = load("mnist")
        load("mnist")
    assert len(caplog.records) == 1
    assert "split='test'" in caplog.text
    np.testing.assert_array_equal(found.test_targets, labels[-10:])  # a fifth
    assert "divided in file order, as there are no training files: all 42" in found.source

    (data_folder / "mnist" / "train-images-idx3-ubyte").write_bytes(IMAGES)
    with pytest.raises(FileNotFoundError, match="train-labels"):
        load("mnist")


def test_a_division_without_training_samples_is_rejected(data_folder):
    write_cifar(data_folder, 1, 1, 1, 1, 1, 20)
    assert len(load("cifar10", split="test", num_test=19).train_targets) == 1
    with pytest.raises(ValueError, match="num_test is 20, which leaves none of the 20"):
        load("cifar10", split="test", num_test=20)
    with pytest.raises(ValueError, match="num_train is 17, but 16 samples are available"):
        load("cifar10", split="test", num_train=17)


def archive_of(folder: Path, members: dict[str, bytes | None]) -> bytes:
    """`None` stands for a link."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name.removesuffix("*"))
            if content is None:
                member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
            member.size = len(content or b"")
            archive.addfile(member, io.BytesIO(content or b""))
    return stream.getvalue()


def batches_of(folder: Path) -> dict[str, bytes | None]:
    paths = sorted((folder / "cifar-10-batches-bin").iterdir())
    return {f"cifar-10-batches-bin/{path.name}": path.read_bytes() for path in paths}


def place_archive(folder: Path, monkeypatch, members) -> None:
    content = archive_of(folder, members)
    (folder / "cifar-10-binary.tar.gz").write_bytes(content)
    found = hashlib.sha256(content).hexdigest()
    monkeypatch.setitem(manifest.DOWNLOADS["cifar10"], "cifar-10-binary.tar.gz", found)


def test_the_archive_is_read_without_extraction(data_folder, monkeypatch):
    write_cifar(data_folder, 2, 2, 2, 2, 2, 3)
    expected = load("cifar10")
    members = {"cifar-10-batches-bin/readme.html": b"hello", "../../outside": b"no"}
    place_archive(data_folder, monkeypatch, members | batches_of(data_folder))
    shutil.rmtree(data_folder / "cifar-10-batches-bin")
    found = load("cifar10")
    assert found.sha256 == expected.sha256
    np.testing.assert_array_equal(found.train_inputs, expected.train_inputs)
    assert [path.name for path in data_folder.iterdir()] == ["cifar-10-binary.tar.gz"]


def test_an_altered_archive_or_one_with_odd_members_is_rejected(data_folder, monkeypatch):
    write_cifar(data_folder, 2, 2, 2, 2, 2, 3)
    batches = batches_of(data_folder)
    shutil.rmtree(data_folder / "cifar-10-batches-bin")
    name = "cifar-10-batches-bin/data_batch_3.bin"
    for odd, message in (
        (batches | {name: None}, "data_batch_3.bin twice, or not as a regular file"),
        (batches | {name + "*": b""}, "data_batch_3.bin twice"),
        ({key: value for key, value in batches.items() if key != name}, f"holds no {name}"),
        (batches | {name: bytes(3000)}, "data_batch_3.bin is truncated: 3,000 bytes"),
    ):
        place_archive(data_folder, monkeypatch, odd)
        with pytest.raises(ValueError, match=message):
            load("cifar10")
    place_archive(data_folder, monkeypatch, batches)
    monkeypatch.setitem(manifest.DOWNLOADS["cifar10"], "cifar-10-binary.tar.gz", 64 * "0")
    with pytest.raises(ValueError, match=r"tar\.gz is altered: the SHA-256 of .* is 0000"):
        load("cifar10")


# Downloads from a local server


@contextlib.contextmanager
def serve(folder: Path):
    """(Address, requested paths) of an HTTP server."""
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format, *args):
            asked.append(self.path)

    handler = functools.partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/", asked
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of downloads, and no PFCORE_DATA."""
    monkeypatch.delenv("PFCORE_DATA", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(pooch, "os_cache", lambda name: tmp_path / "cache" / name)
    return tmp_path / "cache" / "pfcore"


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A folder of small files, whose hashes replace the official ones."""
    folder = tmp_path / "published"
    folder.mkdir()
    write_mnist(folder, compress=True, train=30, t10k=20)
    write_mnist(folder, name="fashion-mnist", compress=True, train=30, t10k=20)
    write_cifar(folder, 2, 2, 2, 2, 2, 3)
    (folder / "cifar-10-binary.tar.gz").write_bytes(archive_of(folder, batches_of(folder)))
    for name, pattern in (
        ("mnist", "mnist/*.gz"),
        ("fashion_mnist", "fashion-mnist/*.gz"),
        ("cifar10", "cifar-10-binary.tar.gz"),
    ):
        algorithm, prefix = ("md5", "md5:") if name == "fashion_mnist" else ("sha256", "")
        for path in folder.glob(pattern):
            found = hashlib.new(algorithm, path.read_bytes()).hexdigest()
            monkeypatch.setitem(manifest.DOWNLOADS[name], path.name, prefix + found)
    monkeypatch.setitem(manifest.SYSTEM, "fashion_mnist", folder / "no package")
    return folder


def nowhere() -> str:
    """An address without a server."""
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        return f"http://127.0.0.1:{server.server_port}/"


def set_addresses(monkeypatch, **addresses: tuple[str, ...]) -> None:
    for name, values in addresses.items():
        monkeypatch.setitem(manifest.ADDRESSES, name, values)


def test_only_needed_files_are_downloaded_and_only_once(cache, published, monkeypatch):
    with serve(published) as (address, asked):
        set_addresses(monkeypatch, mnist=(address + "mnist/",), cifar10=(address,))
        divided = load("mnist", split="test")
        assert len(asked) == 2 and all("t10k" in path for path in asked)
        first, again = load("mnist"), load("mnist")
        assert len(asked) == 4
        photographs = [load("cifar10"), load("cifar10", split="test")]
        assert len(asked) == 5
        set_addresses(monkeypatch, fashion_mnist=(address + "fashion-mnist/",))
        clothes = [load("fashion_mnist"), load("fashion_mnist")]
        assert len(asked) == 9
    assert sorted(path.name for path in cache.iterdir()) == [
        "cifar-10-binary.tar.gz",
        "fashion-mnist",
        "mnist",
    ]
    assert clothes[0].sha256 == clothes[1].sha256
    assert first.sha256 == again.sha256
    monkeypatch.setenv("PFCORE_DATA", str(published))
    for name, data, split in (
        ("mnist", divided, "test"),
        ("mnist", first, "official"),
        ("cifar10", photographs[0], "official"),
        ("cifar10", photographs[1], "test"),
    ):
        assert load(name, split=split).sha256 == data.sha256


def test_the_second_address_is_tried_when_the_first_fails_or_serves_another_file(
    cache, published, tmp_path, monkeypatch
):
    altered = tmp_path / "altered"
    shutil.copytree(published, altered)
    path = altered / "mnist" / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    (altered / "mnist" / "t10k-labels-idx1-ubyte.gz").unlink()  # 404
    with serve(published) as (good, _), serve(altered) as (bad, asked):
        set_addresses(monkeypatch, mnist=(nowhere(), bad + "mnist/", good + "mnist/"))
        load("mnist", split="test")
    gc.collect()  # an open connection would be reported now
    assert any("images" in path for path in asked) and any("labels" in path for path in asked)


def test_the_error_for_an_altered_file_has_both_hashes(cache, published, monkeypatch):
    path = published / "cifar-10-binary.tar.gz"
    path.write_bytes(path.read_bytes() + b"!")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    expected = manifest.DOWNLOADS["cifar10"][path.name]
    with serve(published) as (address, _):
        set_addresses(monkeypatch, cifar10=(address,))
        message = rf"{path.name}.*expected {expected} but got {found}.*PFCORE_DATA"
        with pytest.raises(ValueError, match=message):
            load("cifar10")
    assert not list(cache.glob("*.gz"))


def test_a_file_altered_in_the_cache_is_downloaded_again(cache, published, monkeypatch):
    with serve(published) as (address, asked):
        set_addresses(monkeypatch, cifar10=(address,))
        expected = load("cifar10").sha256
        (cache / "cifar-10-binary.tar.gz").write_bytes(b"altered")
        assert load("cifar10").sha256 == expected
        assert len(asked) == 2


@pytest.mark.parametrize(
    "name, file, place",
    [
        ("mnist", "train-images-idx3-ubyte.gz", "mnist/train-images-idx3-ubyte.gz"),
        (
            "fashion_mnist",
            "train-images-idx3-ubyte.gz",
            "fashion-mnist/train-images-idx3-ubyte.gz",
        ),
        ("cifar10", "cifar-10-binary.tar.gz", "cifar-10-binary.tar.gz"),
    ],
)
def test_the_offline_error_suggests_a_fix(cache, monkeypatch, name, file, place):
    monkeypatch.setitem(manifest.SYSTEM, "fashion_mnist", Path("no package"))
    first, second = nowhere(), nowhere()
    set_addresses(monkeypatch, **{name: (first, second)})
    message = (
        rf"could not fetch {file}\. Tried {first}{file}.*{second}{file}.*as {place}, and set the "
        r"environment variable PFCORE_DATA to that folder\. 'breast_cancer' and 'digits' need no"
    )
    with pytest.raises(ConnectionError, match=message):
        load(name)
