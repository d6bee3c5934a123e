"""A part of the parameters, with the rest fixed: spectra of a layer, or of weights only."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pfcore._checks import check_curvature
from pfcore._trees import Params, in_single, is_complex, to_complex
from pfcore.curvature.products import Part, of_part

Where = Callable[[str], bool] | str | Params


def _chosen(where: Where, params: Params) -> list:
    """For each leaf, whether it is selected, or a mask of its selected entries."""
    paths = jax.tree_util.tree_leaves_with_path(params)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in paths]
    if isinstance(where, str):
        return [name == where or name.startswith(where.rstrip("/") + "/") for name in names]
    if callable(where):
        return [bool(where(name)) for name in names]
    masks = jax.tree.leaves(jax.tree.broadcast(where, params))
    return [mask if np.ndim(mask) else bool(mask) for mask in masks]


def subset(loss: Any, params: Params, where: Where) -> tuple[Any, Mapping[str, jax.Array]]:
    r"""A loss or curvature of some of the parameters, with the others fixed.

    Its matrix is the block of the full Hessian, or of the full curvature, that belongs to these
    parameters. Every routine that takes `(loss, params)` takes the result.

    Args:
      loss: $E$, from `params` to a real scalar, or a `Curvature`.
      params: any pytree of floating-point arrays.
      where: the selection: a path such as "layers/0", for that leaf or all leaves below it; a
        function of paths, such as `lambda path: path.endswith("kernel")`; or a pytree of booleans,
        or of boolean masks of entries, with the structure of `params` or a prefix of it.

    Returns:
      `(loss, params)`, where params is a dict from paths to arrays (one-dimensional where entries
      of a leaf were selected).

    Raises:
      ValueError: nothing is selected, or a mask does not match; the message has the paths.

    Example:
      >>> import jax.numpy as jnp, pfcore
      >>> loss = lambda p: jnp.sum(p["a"] ** 2 + 3 * p["b"] ** 2 + p["a"] * p["b"])
      >>> part = pfcore.curvature.subset(loss, {"a": jnp.ones(2), "b": jnp.ones(2)}, "b")
      >>> pfcore.curvature.spectrum(*part).tolist()
      [6.0, 6.0]
    """
    params = check_curvature(loss, params)
    leaves_with_path, structure = jax.tree_util.tree_flatten_with_path(params)
    names = [jax.tree_util.keystr(p, simple=True, separator="/") for p, _ in leaves_with_path]
    leaves = [leaf for _, leaf in leaves_with_path]
    try:
        chosen = _chosen(where, params)
    except ValueError as error:
        raise ValueError(f"the mask does not match the params, {names}: {error}") from error
    values = {}
    for name, leaf, mask in zip(names, leaves, chosen, strict=True):
        if np.ndim(mask):
            if np.shape(mask) != leaf.shape:
                raise ValueError(
                    f"the mask of {name!r} has shape {np.shape(mask)}, its leaf {leaf.shape}"
                )
            if np.any(mask):
                values[name] = leaf[np.asarray(mask, bool)]
        elif mask:
            values[name] = leaf
    if not values:
        raise ValueError(f"{where!r} selects none of the params, {', '.join(names)}")

    def fill(values: Mapping[str, jax.Array]) -> Params:
        filled = []
        # Where the chosen ones have been cast to single precision, so are the others.
        cast = all(jnp.finfo(value.dtype).bits >= 32 for value in values.values())
        fixed = in_single(leaves) if cast else leaves
        for name, leaf, mask in zip(names, fixed, chosen, strict=True):
            if name not in values:
                filled.append(to_complex(leaf) if is_complex(values) else leaf)
            elif np.ndim(mask):
                base = to_complex(leaf) if is_complex(values) else leaf
                filled.append(base.at[np.asarray(mask, bool)].set(values[name]))
            else:
                filled.append(values[name])
        return jax.tree.unflatten(structure, filled)

    def take(whole: Params) -> Mapping[str, jax.Array]:
        return {
            name: leaf[np.asarray(mask, bool)] if np.ndim(mask) else leaf
            for name, leaf, mask in zip(names, jax.tree.leaves(whole), chosen, strict=True)
            if name in values
        }

    return of_part(loss, Part(params, fill, take)), values
