import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pfcore
from tests.conftest import flatten, flatten_path, mixed_loss, mixed_params

pytestmark = pytest.mark.usefixtures("x64")


def test_one_place_and_several():
    path = pfcore.gradient_descent(mixed_loss, mixed_params(), 0.3, 5)
    matrix = flatten_path(path)
    np.testing.assert_array_equal(flatten(pfcore.paths.at(path, 2)), matrix[2])
    for several in (slice(1, None, 2), np.array([0, 3])):
        np.testing.assert_array_equal(flatten_path(pfcore.paths.at(path, several)), matrix[several])


def test_rows_are_the_parameters_in_the_order_of_leaves():
    path = pfcore.gradient_descent(mixed_loss, mixed_params(), 0.3, 5)
    matrix = pfcore.paths.as_matrix(path)
    np.testing.assert_array_equal(matrix, flatten_path(path))
    row, _ = jax.flatten_util.ravel_pytree(mixed_params())
    np.testing.assert_array_equal(matrix[0], row)


def test_matrix_of_mixed_dtypes_has_the_widest():
    path = {"a": jnp.ones((2, 3), jnp.float32), "b": np.full(2, 1 / 3)}
    matrix = pfcore.paths.as_matrix(path)
    assert matrix.dtype == jnp.float64
    np.testing.assert_array_equal(matrix[0], [1, 1, 1, 1 / 3])


@pytest.mark.parametrize("path", [jnp.array(1.0), {"a": jnp.ones(2), "b": jnp.ones(3)}, {}])
def test_refuses_what_has_no_common_time(path):
    with pytest.raises(ValueError, match="leading axis of the same length"):
        pfcore.paths.as_matrix(path)
