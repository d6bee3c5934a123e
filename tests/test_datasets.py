import numpy as np
import pytest
import sklearn.datasets

from pfcore.datasets import load

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
def test_every_sample_is_there_once_standardised_by_the_training_samples(name):
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
def test_the_dtype_asked_for_without_x64(name, dtype):
    data = load(name, dtype=dtype)
    assert data.train_inputs.dtype == np.dtype(dtype) == data.test_inputs.dtype


def test_float32_by_default_and_rounded_once():
    single, double = load("digits"), load("digits", dtype=np.float64)
    assert single.train_inputs.dtype == np.float32
    np.testing.assert_array_equal(single.train_inputs, double.train_inputs.astype(np.float32))


def test_refusals():
    with pytest.raises(ValueError, match=r"'iris'.*breast_cancer, digits"):
        load("iris")
    for dtype in (np.int32, complex, bool):
        with pytest.raises(TypeError, match="floating-point dtype, got"):
            load("digits", dtype=dtype)
