"""Read paths: pytrees of parameters stacked along a leading axis of time.

`gradient_descent` returns one; `params` and `oscillation` of a `Trajectory` are others.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pfcore._trees import Params, ravel


def at(path: Params, index: Any) -> Params:
    """The parameters at one place of a path, or the path of several places.

    Args:
      path: a pytree of arrays [T, ...].
      index: an integer, a slice or an array of integers, as for an array.

    Returns:
      The pytree of the leaves at `index`.

    Example:
      >>> import jax.numpy as jnp, pfcore
      >>> path = pfcore.gradient_descent(lambda p: 0.5 * p["x"] ** 2, {"x": jnp.array(1.0)}, 0.5, 3)
      >>> float(pfcore.paths.at(path, -1)["x"])
      0.125
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
      >>> pfcore.paths.as_matrix({"w": jnp.ones((4, 2, 3)), "b": jnp.ones(4)}).shape
      (4, 7)
    """
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(path)]
    if len({shape[:1] for shape in shapes}) != 1 or () in shapes:
        raise ValueError(
            f"the leaves of a path must have a leading axis of the same length; got shapes {shapes}"
        )
    return jax.vmap(lambda params: ravel(params)[0])(jax.tree.map(jnp.asarray, path))
