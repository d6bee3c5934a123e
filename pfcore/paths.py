"""Read paths, which are pytrees of parameters stacked along a leading axis of time.

Paths are the result of `gradient_descent`, and the fields `params` and `oscillation` of a
`Trajectory`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

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
      ValueError: leaves without a leading axis, or of different lengths.

    Example:
      >>> import jax.numpy as jnp, pfcore
      >>> path = {"w": jnp.ones((4, 2, 3)), "b": jnp.ones(4)}
      >>> pfcore.paths.as_matrix(path).shape
      (4, 7)
    """
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(path)]
    if len({shape[:1] for shape in shapes}) != 1 or () in shapes:
        raise ValueError(
            f"the leaves of a path must have a leading axis of the same length; got shapes {shapes}"
        )
    return jax.vmap(lambda params: ravel(params)[0])(jax.tree.map(jnp.asarray, path))
