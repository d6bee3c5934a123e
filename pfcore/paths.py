"""Read paths, which are pytrees of parameters stacked along a leading axis of time.

Paths are the result of `gradient_descent`, and the fields `params` and `oscillation` of a
`Trajectory`.
"""

from typing import Any

import jax

from pfcore._checks import check_path
from pfcore._trees import Params, ravel


def at(path: Params, index: Any) -> Params:
    """The parameters at one time of a path, or the path at several times.

    Args:
      path: a pytree of arrays [T, ...].
      index: an integer, a slice or an array of integers, as for an array.

    Returns:
      The pytree of the leaves at `index`.

    Example:
      >>> import jax.numpy as jnp, pfcore
      >>> path = {"x": jnp.array([1.0, 0.5, 0.25])}
      >>> float(pfcore.paths.at(path, -1)["x"])
      0.25
      >>> pfcore.paths.at(path, slice(0, 2))["x"].tolist()
      [1.0, 0.5]
    """
    return jax.tree.map(lambda leaf: leaf[index], path)


def as_matrix(path: Params) -> jax.Array:
    """A path as one matrix, a row for each time.

    Args:
      path: a pytree of arrays [T, ...], of the same length T.

    Returns:
      [T, n], the leaves in the order of `jax.tree.leaves`, in the widest of their dtypes.

    Raises:
      ValueError: leaves without a leading axis, or of different lengths, or no points.

    Example:
      >>> import jax.numpy as jnp, pfcore
      >>> path = {"w": jnp.ones((4, 2, 3)), "b": jnp.ones(4)}
      >>> pfcore.paths.as_matrix(path).shape
      (4, 7)
    """
    return jax.vmap(lambda params: ravel(params)[0])(check_path("path", path))
