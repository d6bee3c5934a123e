"""Data sets: real data, fixed splits, standardised, in the dtype that the caller chooses."""

from typing import NamedTuple

import numpy as np


class Dataset(NamedTuple):
    """A data set split into training and test samples.

    Attributes:
      name: what `load` was called with.
      train_inputs: [n_train, ...] floats, standardised with the training samples' statistics.
      train_targets: [n_train] integer classes.
      test_inputs: [n_test, ...] floats, standardised likewise.
      test_targets: [n_test] integer classes.
    """

    name: str
    train_inputs: np.ndarray
    train_targets: np.ndarray
    test_inputs: np.ndarray
    test_targets: np.ndarray


TRAIN_SHARE = 0.8
SPLIT_SEED = 0


def _split(name: str, inputs: np.ndarray, targets: np.ndarray, *, divide: bool, dtype) -> Dataset:
    """A fixed shuffle, then the first 80 % to train on; centred (and scaled) per feature."""
    order = np.random.default_rng(SPLIT_SEED).permutation(len(inputs))
    inputs, targets = inputs[order], targets[order].astype(np.int32)
    num_train = int(TRAIN_SHARE * len(inputs))
    train, test = inputs[:num_train], inputs[num_train:]
    mean = train.mean(axis=0)
    deviation = train.std(axis=0) if divide else 1.0
    return Dataset(
        name=name,
        train_inputs=((train - mean) / deviation).astype(dtype),
        train_targets=targets[:num_train],
        test_inputs=((test - mean) / deviation).astype(dtype),
        test_targets=targets[num_train:],
    )


def _breast_cancer(dtype) -> Dataset:
    from sklearn.datasets import load_breast_cancer

    inputs, targets = load_breast_cancer(return_X_y=True)
    return _split("breast_cancer", inputs, targets, divide=True, dtype=dtype)


def _digits(dtype) -> Dataset:
    from sklearn.datasets import load_digits

    inputs, targets = load_digits(return_X_y=True)
    # Border pixels never change, so that dividing by a deviation would divide by zero; all
    # pixels share one scale, 0 to 16.
    return _split("digits", inputs / 16.0, targets, divide=False, dtype=dtype)


_LOADERS = {"breast_cancer": _breast_cancer, "digits": _digits}


def load(name: str, *, dtype: np.typing.DTypeLike = np.float32) -> Dataset:
    """Load a data set, standardised and split the same way every time.

    * "breast_cancer": Wisconsin diagnostic breast cancer, 569 samples, 30 features with mean 0
      and deviation 1 over the training samples, 2 classes. 455 to train on, 114 to test.
    * "digits": 8 × 8 images of handwritten digits, 1,797 samples, 64 pixels divided by 16 and
      centred, 10 classes. 1,437 to train on, 360 to test.

    Both are embedded in scikit-learn: nothing is downloaded.

    Args:
      name: one of the names above.
      dtype: floating-point dtype of the inputs, float32 by default.

    Returns:
      A `Dataset` of NumPy arrays.

    Raises:
      ValueError: the name is not known.
      TypeError: `dtype` is not a floating-point dtype.

    Example:
      >>> import pfcore
      >>> pfcore.datasets.load("breast_cancer").train_inputs.shape
      (455, 30)

    References:
      Wolberg, Mangasarian, Street, Street, *Breast Cancer Wisconsin (Diagnostic)*, UCI 1993;
      Alpaydin, Kaynak, *Optical Recognition of Handwritten Digits*, UCI 1998.
    """
    if name not in _LOADERS:
        raise ValueError(f"unknown data set {name!r}; choose one of {', '.join(_LOADERS)}")
    if not np.issubdtype(np.dtype(dtype), np.floating):
        raise TypeError(f"dtype must be a floating-point dtype, got {dtype!r}")
    return _LOADERS[name](dtype)
