"""Data sets of real data with fixed splits, standardised, in a chosen dtype."""

import functools
import hashlib
import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from pfcore import _official, records
from pfcore._checks import check_count
from pfcore._extras import optional
from pfcore._official import manifest


class Dataset(NamedTuple):
    """A data set split into training and test samples.

    Attributes:
      name: the name passed to `load`.
      train_inputs: [n_train, ...] floats, standardised with the training samples' statistics.
      train_targets: [n_train] integer classes.
      test_inputs: [n_test, ...] floats, standardised with the same statistics.
      test_targets: [n_test] integer classes.
      source: the origin of the samples, and how many of how many, in a sentence.
      sha256: fingerprint of the samples before they were standardised, independent of the copy of
        the data that was read: the SHA-256 of training inputs (uint8 pixels [n, height, width,
        channels] or float64 features), training targets (int32), test inputs and test targets, in
        this order, little-endian.
    """

    name: str
    train_inputs: np.ndarray
    train_targets: np.ndarray
    test_inputs: np.ndarray
    test_targets: np.ndarray
    source: str = ""
    sha256: str = ""


TRAIN_SHARE = 0.8
SPLIT_SEED = 0
NUM_CLASSES = {"breast_cancer": 2, "digits": 10, "mnist": 10, "fashion_mnist": 10, "cifar10": 10}
EMBEDDED = ("breast_cancer", "digits")
SPLITS = ("official", "test")


class _Pool(NamedTuple):
    """The samples to draw from: those rows of `inputs` and `targets`."""

    inputs: np.ndarray
    targets: np.ndarray
    rows: np.ndarray


def _embedded(name: str) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], str]:
    """A fixed shuffle, then the first 80 % to train on."""
    with optional():
        from sklearn.datasets import load_breast_cancer, load_digits

    loader = load_breast_cancer if name == "breast_cancer" else load_digits
    inputs, targets = loader(return_X_y=True)
    if name == "digits":
        inputs = inputs / 16.0
    order = np.random.default_rng(SPLIT_SEED).permutation(len(inputs))
    inputs, targets = inputs[order], targets[order]
    n = int(TRAIN_SHARE * len(inputs))
    samples = {"train": (inputs[:n], targets[:n]), "test": (inputs[n:], targets[n:])}
    return samples, f"scikit-learn's {name}"


@functools.cache
def _warn_divided() -> None:  # cached: once per process
    logging.getLogger("pfcore").warning(
        "%s holds MNIST's test files but not its training files: the test file is divided into "
        "samples to train on and samples to test on. Add the training files, or ask for this "
        "division with split='test'.",
        manifest.VARIABLE,
    )


def _images(name: str, split: str) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], str]:
    divided = split == "test"
    why = ""
    if name == "mnist" and not divided and _official.only_mnist_test_files():
        divided, why = True, ", as there are no training files"
        _warn_divided()
    samples, remark = _official.read(name, ("test",) if divided else ("train", "test"))
    sizes = {part: len(labels) for part, (_, labels) in samples.items()}
    whole = all(sizes[part] == manifest.SIZES[name][part] for part in sizes)
    files = f"official {manifest.TITLES[name]} {'test file' if divided else 'files'}"
    if not whole:
        counts = " and ".join(
            f"{n:,} {'training' if part == 'train' else part}" for part, n in sizes.items()
        )
        files = f"{'head' if divided else 'heads'} of the {files} ({counts} samples found"
        files += f"; {remark})" if remark else ")"
    return samples, f"{files}, divided in file order{why}" if divided else files


def _check_classes(classes: Any, known: int) -> tuple[int, ...] | None:
    if classes is None:
        return None
    if isinstance(classes, str) or not np.iterable(classes):
        raise TypeError(f"classes must be a sequence of class labels, got {classes!r}")
    labels = tuple(check_count("each of classes", label, minimum=0) for label in classes)
    unknown = [label for label in labels if label >= known]
    if unknown:
        raise ValueError(f"classes must be from 0 to {known - 1}, got {unknown[0]} in {labels}")
    if len(set(labels)) < len(labels):
        raise ValueError(f"classes must differ from each other, got {labels}")
    if len(labels) < 2:
        raise ValueError(f"classes must be at least two, got {labels}")
    return labels


def _choose_classes(inputs, targets, classes: tuple[int, ...] | None) -> _Pool:
    if classes is None:
        return _Pool(inputs, targets.astype(np.int32), np.arange(len(targets)))
    relabelled = np.full(max(*classes, int(targets.max())) + 1, -1, np.int32)
    relabelled[list(classes)] = np.arange(len(classes))
    targets = relabelled[targets]
    return _Pool(inputs, targets, np.flatnonzero(targets >= 0))


def _divide(pool: _Pool, num_test: int | None) -> dict[str, _Pool]:
    """The last `num_test` rows to test on, the ones before them to train on."""
    available = len(pool.rows)
    num_test = max(1, available // 5) if num_test is None else num_test
    if num_test >= available:
        raise ValueError(
            f"num_test is {num_test:,}, which leaves none of the {available:,} samples available "
            "to train on; ask for fewer"
        )
    first, last = pool.rows[:-num_test], pool.rows[-num_test:]
    return {"train": pool._replace(rows=first), "test": pool._replace(rows=last)}


def _draw(
    part: str, pool: _Pool, number: int | None, seed: int | None
) -> tuple[np.ndarray, np.ndarray, str]:
    """Inputs, targets, and a description of the selection."""
    available = len(pool.rows)
    wanted = available if number is None else number
    if wanted > available or not available:
        raise ValueError(
            f"num_{part} is {wanted:,}, but {available:,} samples are available; ask for fewer, "
            "or for other classes"
        )
    rows, words = pool.rows[:wanted], f"first {wanted:,} of {available:,}"
    if wanted == available:
        words = f"all {available:,}"
    if seed is not None:
        rows = pool.rows[np.random.default_rng(seed).permutation(available)[:wanted]]
        words += f" in the order of seed {seed}"
    return np.ascontiguousarray(pool.inputs[rows]), pool.targets[rows], words


def _fingerprint(*arrays: np.ndarray) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(array.astype(array.dtype.newbyteorder("<"), copy=False).data)
    return digest.hexdigest()


def _refuse_constant(kind: str, deviation: np.ndarray, number: int) -> None:
    if not np.all(deviation):
        raise ValueError(
            f"{np.sum(deviation == 0)} of {deviation.size} {kind} do not vary over the {number:,} "
            "samples chosen to train on, and cannot be scaled to deviation 1; choose more samples"
        )


def _standardise_features(train, test, dtype, *, divide: bool) -> tuple[np.ndarray, np.ndarray]:
    mean, deviation = train.mean(axis=0), np.float64(1.0)
    if divide:
        deviation = train.std(axis=0)
        _refuse_constant("features", deviation, len(train))
    return ((train - mean) / deviation).astype(dtype), ((test - mean) / deviation).astype(dtype)


def _standardise_images(train, test, dtype) -> tuple[np.ndarray, np.ndarray]:
    """By a table of 256 values per channel, without a float64 copy of the images."""
    channels, values = train.shape[-1], np.arange(256.0)
    counts = np.zeros((channels, 256), np.int64)
    for start in range(0, len(train), 1000):
        for c in range(channels):
            counts[c] += np.bincount(train[start : start + 1000, ..., c].ravel(), minlength=256)
    mean = counts @ values / counts.sum(axis=1)
    squares = (values - mean[:, np.newaxis]) ** 2
    deviation = np.sqrt(np.sum(counts * squares, axis=1) / counts.sum(axis=1))
    _refuse_constant("channels", deviation, len(train))
    table = ((values - mean[:, np.newaxis]) / deviation[:, np.newaxis]).astype(dtype)
    scaled = []
    for images in (train, test):
        scaled.append(np.empty(images.shape, dtype))
        for c in range(channels):
            scaled[-1][..., c] = table[c][images[..., c]]
    return scaled[0], scaled[1]


def load(
    name: str,
    *,
    dtype: np.typing.DTypeLike = np.float32,
    num_train: int | None = None,
    num_test: int | None = None,
    classes: Sequence[int] | np.ndarray | None = None,
    seed: int | None = None,
    split: str = "official",
) -> Dataset:
    r"""Load a data set, standardised and split in the same way every time.

    Two are embedded in scikit-learn and need no download:

    * "breast_cancer": Wisconsin diagnostic breast cancer, 569 samples, 30 features with mean 0
      and deviation 1 over the training samples, 2 classes. 455 to train on, 114 to test.
    * "digits": 8 × 8 images of handwritten digits, 1,797 samples, 64 pixels divided by 16 and
      centred, 10 classes. 1,437 to train on, 360 to test.

    Three are read from their official files, downloaded once, and checked by hash:

    * "mnist": 28 × 28 × 1 images of handwritten digits, 10 classes. 60,000 to train on, 10,000 to
      test; 11 MB.
    * "fashion_mnist": 28 × 28 × 1 images of clothing, 10 classes. 60,000 to train on, 10,000 to
      test; 31 MB. Read from Debian's package `dataset-fashion-mnist` where that is installed.
    * "cifar10": 32 × 32 × 3 photographs (height, width, channels), 10 classes. 50,000 to train on,
      10,000 to test; 162 MB. Training samples are ordered by taking record $i$ of each of the five
      batch files in turn; heads of the files thus hold a head of the samples.

    Images are standardised per channel, $x = (p - m_c) / s_c$ with the pixel $p$ and the mean and
    deviation $m_c$, $s_c$ of channel $c$ over all pixels of the training samples chosen, in
    float64.

    **Offline use**: set the environment variable `PFCORE_DATA` to a folder that holds the official
    files, and nothing is downloaded: `mnist/train-images-idx3-ubyte.gz` and its three siblings (or
    the same without `.gz`), the same four in `fashion-mnist/`,
    `cifar-10-batches-bin/data_batch_1.bin` and its five siblings (or `cifar-10-binary.tar.gz`).
    The files may be heads of the official ones: a whole number of records, with the header's count
    adjusted for MNIST's format. Files with all samples must have the official content when
    decompressed; they may be compressed differently. If MNIST's training files are missing, its
    test file is divided as with `split="test"`; a warning of the logger "pfcore" and `source`
    report this.

    Args:
      name: one of the names above.
      dtype: floating-point dtype of the inputs, float32 by default.
      num_train: how many samples to train on, by default all.
      num_test: how many samples to test on, by default all.
      classes: labels of the classes to keep, two or more, which become 0, 1, ... in the given
        order; by default all.
      seed: by default the first samples in the data set's order are taken. An integer takes the
        first of `np.random.default_rng(seed).permutation(n)` instead, where n is the number of
        training samples, or of test samples.
      split: "official", or for the three sets of images also "test", which reads only the test file
        (1.6 MB for MNIST). In the file's order, the last `num_test` samples (by default a fifth,
        2,000 of 10,000) are for testing, and those before them for training.

    Returns:
      A `Dataset` of NumPy arrays: inputs of the given dtype, features [n, d] or images [n, height,
      width, channels], and int32 targets [n]; with `source` and `sha256`.

    Raises:
      ValueError: unknown name, split or class; more samples requested than there are; a feature or
        channel that is constant over the training samples; or a file that is truncated, altered or
        of another format than its name implies.
      TypeError: `dtype` is not a floating-point dtype, or a number is not an integer.
      FileNotFoundError: `PFCORE_DATA` is set, and a file is missing there.
      ConnectionError: a file could not be downloaded.

    Example:
      >>> import pfcore
      >>> pfcore.datasets.load("breast_cancer").train_inputs.shape
      (455, 30)
      >>> data = pfcore.datasets.load("digits", classes=(3, 8), num_train=100)
      >>> data.source
      "scikit-learn's digits, classes 3, 8: first 100 of 299 to train on, all 58 to test on"

    References:
      Wolberg, Mangasarian, Street, Street, *Breast Cancer Wisconsin (Diagnostic)*, UCI 1993;
      Alpaydin, Kaynak, *Optical Recognition of Handwritten Digits*, UCI 1998;
      LeCun, Bottou, Bengio, Haffner, *Gradient-based learning applied to document recognition*,
      Proc. IEEE 86 (1998); Xiao, Rasul, Vollgraf, *Fashion-MNIST*, 2017 (arXiv 1708.07747);
      Krizhevsky, *Learning multiple layers of features from tiny images*,
      University of Toronto 2009.
    """
    if name not in NUM_CLASSES:
        raise ValueError(f"unknown data set {name!r}; choose one of {', '.join(NUM_CLASSES)}")
    if not np.issubdtype(np.dtype(dtype), np.floating):
        raise TypeError(f"dtype must be a floating-point dtype, got {dtype!r}")
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; choose one of {', '.join(SPLITS)}")
    if split == "test" and name in EMBEDDED:
        raise ValueError(
            f"split='test' divides a test file of images; {name!r} has none, use split='official'"
        )
    if num_train is not None:
        num_train = check_count("num_train", num_train, minimum=1)
    if num_test is not None:
        num_test = check_count("num_test", num_test, minimum=1)
    if seed is not None:
        seed = check_count("seed", seed, minimum=0)
    classes = _check_classes(classes, NUM_CLASSES[name])

    samples, source = _embedded(name) if name in EMBEDDED else _images(name, split)
    pools = {part: _choose_classes(*pair, classes) for part, pair in samples.items()}
    divided = "train" not in pools
    if divided:
        total = len(pools["test"].rows)
        pools = _divide(pools["test"], num_test)
    train, train_targets, train_words = _draw("train", pools["train"], num_train, seed)
    test, test_targets, test_words = _draw("test", pools["test"], num_test, seed)
    if divided:
        test_words = test_words.replace(f"all {len(test):,}", f"last {len(test):,} of {total:,}")
    if name in EMBEDDED:
        # Border pixels of digits never change, so their deviation is zero; all pixels share one
        # scale.
        inputs = _standardise_features(train, test, dtype, divide=name == "breast_cancer")
    else:
        inputs = _standardise_images(train, test, dtype)
    if classes is not None:
        source += f", classes {', '.join(map(str, classes))}"
    data = Dataset(
        name=name,
        train_inputs=inputs[0],
        train_targets=train_targets,
        test_inputs=inputs[1],
        test_targets=test_targets,
        source=f"{source}: {train_words} to train on, {test_words} to test on",
        sha256=_fingerprint(train, train_targets, test, test_targets),
    )
    records.note_source("data set", name=name, source=data.source, sha256=data.sha256)
    return data
