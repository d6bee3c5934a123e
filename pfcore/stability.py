r"""Stability of each flow, eigenvalue by eigenvalue.

Along an eigenvector with eigenvalue $\lambda$ a flow moves at $\alpha(h\lambda)$ times the
gradient. The signs of $\operatorname{Re}\alpha$ and $\lambda$ determine whether it is attracted or
repelled; gradient descent is attracted if $|1 - h\lambda| < 1$.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pfcore import _programs
from pfcore._checks import (
    ArrayLike,
    Loss,
    ScalarLike,
    check_learning_rate,
    check_loss,
    check_vector,
)
from pfcore._trees import Params, in_single, norm, ravel
from pfcore.curvature.products import gradient, hvp
from pfcore.flows.coefficients import principal_coefficient
from pfcore.flows.registry import FLOWS

__all__ = [
    "Drift",
    "coefficient",
    "drift",
    "principal_coefficient",
    "regime",
    "stability_coefficient",
]

_COEFFICIENTS = {
    name: entry.coefficient for name, entry in FLOWS.items() if entry.coefficient is not None
}


def _as_inexact(value: ArrayLike) -> jax.Array:
    array = jnp.asarray(value)
    return array if jnp.issubdtype(array.dtype, jnp.inexact) else array.astype(float)


def coefficient(flow_name: str, z: ArrayLike) -> jax.Array:
    r"""Speed of a flow along an eigenvector, as a multiple of the gradient there.

    With $z = h\lambda$: "ngf" $-1$; "igr" $-(1 + \frac z2)$; "third_order"
    $-(1 + \frac z2 + \frac{z^2}3)$, its principal part; "principal" $\log(1 - z)/z$.
    While the state is real, $\frac{dE}{dt} = \sum_i \alpha(h\lambda_i)(g^\top u_i)^2$.

    For flows that carry an oscillation the coefficient is the oscillation's relative growth in one
    step of gradient descent, which is $\log|1 - z|$ for gradient descent itself: "two_frame"
    $(z - 2) - \frac{(z - 2)^2}2$, its default order 2 (order 1 is $z - 2$);
    "rod" $\frac{z^2}4 - 1$; "edge" $\log|1 - z|$.

    Args:
      flow_name: one of `pfcore.flows.FLOWS` that has a coefficient.
      z: $h\lambda$, dimensionless, any shape, real or complex.

    Returns:
      $\alpha(z)$, of the shape of `z`; complex for "principal" (with $\operatorname{Im} \ge 0$ at
      real $z > 1$, and an infinite real part at $z = 1$), else of the dtype of `z`.

    Raises:
      ValueError: unknown flow, or one without a coefficient.

    Example:
      >>> import pfcore
      >>> float(pfcore.stability.coefficient("igr", 1.0))
      -1.5

    References:
      Rosca, Wu, Qin, Dherin, TMLR 2023 (arXiv 2302.01952).
    """
    if flow_name not in _COEFFICIENTS:
        problem = "has no coefficient" if flow_name in FLOWS else "is unknown"
        raise ValueError(f"flow {flow_name!r} {problem}; choose one of {', '.join(_COEFFICIENTS)}")
    return _COEFFICIENTS[flow_name](_as_inexact(z))


def stability_coefficient(
    flow_name: str, learning_rate: ScalarLike, eigenvalue: ArrayLike
) -> jax.Array:
    r"""$\operatorname{sgn}(\lambda)\,\operatorname{Re}\alpha(h\lambda)$.

    Negative attracts, positive repels, zero at $\lambda = 0$. (For flows that carry an oscillation
    it is $\alpha(h\lambda)$, the growth of the oscillation, whatever the sign of $\lambda$.) For
    the principal flow it changes sign at $h\lambda = 2$, where gradient descent becomes unstable;
    for NGF and IGR flow it is negative for every $\lambda > 0$.

    Args:
      flow_name: as for `coefficient`.
      learning_rate: $h > 0$.
      eigenvalue: $\lambda$, real, any shape.

    Returns:
      The coefficient, real, of the shape of `eigenvalue`.

    Raises:
      ValueError: unknown flow, or a learning rate that is not positive and finite.

    Example:
      >>> import pfcore
      >>> bool(pfcore.stability.stability_coefficient("principal", 0.5, 5.0) > 0)
      True
    """
    eigenvalue = _as_inexact(eigenvalue)
    h = check_learning_rate(learning_rate).astype(eigenvalue.dtype)
    found = coefficient(flow_name, h * eigenvalue).real
    return found if FLOWS[flow_name].oscillates else jnp.sign(eigenvalue) * found


def regime(learning_rate: ScalarLike, eigenvalue: ArrayLike) -> str | np.ndarray:
    r"""Behaviour of gradient descent, and of the principal flow, along an eigenvector.

    * $\lambda < 0$: "repelling"
    * $0 \le h\lambda \le 1$: "attracting"
    * $1 < h\lambda < 2$: "attracting, oscillating"
    * $h\lambda \ge 2$: "repelling, oscillating" (at exactly 2 it keeps its distance)

    Args:
      learning_rate: $h > 0$.
      eigenvalue: $\lambda$, real; a number, or an array.

    Returns:
      One of the four names, or an array of them of the shape of `eigenvalue`.

    Raises:
      ValueError: the learning rate is not positive and finite, or an eigenvalue is NaN.

    Example:
      >>> import pfcore
      >>> pfcore.stability.regime(0.1, 15.0)
      'attracting, oscillating'
    """
    check_learning_rate(learning_rate)
    z = float(learning_rate) * np.asarray(eigenvalue, float)  # in double precision
    if np.any(np.isnan(z)):
        raise ValueError(f"eigenvalue must be a number, got {eigenvalue!r}")
    names = np.select(
        [z < 0, z <= 1, z < 2],
        ["repelling", "attracting", "attracting, oscillating"],
        "repelling, oscillating",
    )
    return str(names) if names.ndim == 0 else names


class Drift(NamedTuple):
    r"""Local error of one step of gradient descent, to leading order $\frac{h^2}2 Hg$.

    Attributes:
      norm: $\|Hg\|$.
      relative: $\|Hg\|/\|g\|$, zero where $g = 0$; between zero and the largest $|\lambda|$.
      share: $(u_i^\top Hg)^2/\|Hg\|^2$ for each given eigenvector, [k]; zero where $Hg = 0$.
    """

    norm: jax.Array
    relative: jax.Array
    share: jax.Array


@_programs.settings()
def drift(loss: Loss, params: Params, vectors: Params | None = None) -> Drift:
    r"""Drift of gradient descent from the negative gradient flow, $\|H g\|$, and its direction.

    After one step from the same point the two differ by $\frac{h^2}2 Hg + O(h^3)$.

    Args:
      loss: $E$, from `params` to a real scalar.
      params: any pytree of floating-point arrays; 16-bit ones are cast to float32.
      vectors: orthonormal directions, such as eigenvectors, with the structure of `params` and a
        leading axis of length k; none by default.

    Returns:
      A `Drift`.

    Raises:
      ValueError: the loss is not a finite scalar at `params`, or `vectors` do not match `params`.
      TypeError: `loss` or `vectors` are not real.

    Example:
      >>> import jax.numpy as jnp, pfcore
      >>> loss = lambda x: x[0] ** 2 + 0.5 * x[1] ** 2
      >>> result = pfcore.stability.drift(loss, jnp.array([1.0, 0.0]), jnp.eye(2))
      >>> float(result.norm), result.share.tolist()
      (4.0, [1.0, 0.0])
    """
    params = check_loss(loss, params)
    if vectors is not None:
        vectors = check_vector("vectors", vectors, params, leading=True)
    params = in_single(params)
    # H times the direction of g: the squares of g and of Hg may leave the range.
    g = gradient(loss, params)
    size = norm(g)
    direction = jax.tree.map(lambda x: x / jnp.where(size > 0, size, 1).astype(x.dtype), g)
    image, _ = ravel(hvp(loss, params, direction))
    relative = norm(image)
    if vectors is None:
        share = jnp.zeros((0,), image.dtype)
    else:
        unit = image / jnp.where(relative > 0, relative, 1)
        share = (jax.vmap(lambda u: ravel(u)[0])(vectors).astype(unit.dtype) @ unit) ** 2
    return Drift(relative * size, relative, share)
