r"""What each flow says about stability, eigenvalue by eigenvalue.

Along an eigenvector with eigenvalue $\lambda$ a flow moves at $\alpha(h\lambda)$ times the
gradient. The sign of $\operatorname{Re}\alpha$ against that of $\lambda$ tells whether it is
attracted or repelled there; gradient descent's own answer is whether $|1 - h\lambda| < 1$.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pfcore._checks import ArrayLike, Loss, ScalarLike, check_learning_rate, check_loss
from pfcore._trees import Params, ravel
from pfcore.curvature.products import gradient, hvp

BRANCHES = ("principal", "continued")


def principal_coefficient(z: ArrayLike, *, branch: str = "principal") -> jax.Array:
    r"""$\varphi(z) = \log(1 - z)/z$ with $\varphi(0) = -1$; complex, accurate for small $z$.

    On the cut itself, real $z > 1$, the value is the one with $\operatorname{Im}\log = +\pi$.
    "continued" extends that value to both sides of the real axis, and leaves a cut at
    $\operatorname{Re} z = 1$, $\operatorname{Im} z > 0$.
    """
    z = jnp.asarray(z)
    x, y = (z.real, z.imag) if jnp.iscomplexobj(z) else (z, jnp.zeros_like(z))
    # log|1 - z| by log1p where 1 - z is near 1: log itself would lose the digits of z there.
    near_zero = jnp.hypot(x, y) < 0.5
    log_modulus = jnp.where(
        near_zero,
        0.5 * jnp.log1p(jnp.where(near_zero, x * (x - 2) + y * y, 0.0)),
        jnp.log(jnp.hypot(1 - x, y)),
    )
    # 0 - y has no negative zero: on the cut the argument is always +pi.
    argument = jnp.arctan2(0 - y, 1 - x)
    if branch == "continued":
        argument = jnp.where(argument < -jnp.pi / 2, argument + 2 * jnp.pi, argument)
    at_zero = (x == 0) & (y == 0)
    quotient = jax.lax.complex(log_modulus, argument) / jax.lax.complex(
        jnp.where(at_zero, 1.0, x), y
    )
    return jnp.where(at_zero, jnp.array(-1, quotient.dtype), quotient)


_COEFFICIENTS = {
    "ngf": lambda z: -jnp.ones_like(z),
    "igr": lambda z: -(1 + z / 2),
    "third_order": lambda z: -(1 + z / 2 + z**2 / 3),
    "principal": principal_coefficient,
}


def _as_inexact(value: ArrayLike) -> jax.Array:
    array = jnp.asarray(value)
    return array if jnp.issubdtype(array.dtype, jnp.inexact) else array.astype(float)


def coefficient(flow_name: str, z: ArrayLike) -> jax.Array:
    r"""How fast a flow moves along an eigenvector, as a multiple of the gradient there.

    With $z = h\lambda$: "ngf" $-1$; "igr" $-(1 + \frac z2)$; "third_order"
    $-(1 + \frac z2 + \frac{z^2}3)$, its principal part; "principal" $\log(1 - z)/z$.
    While the state is real, $\frac{dE}{dt} = \sum_i \alpha(h\lambda_i)(g^\top u_i)^2$.

    Args:
      flow_name: "ngf", "igr", "third_order" or "principal".
      z: $h\lambda$, any shape, real or complex; no unit.

    Returns:
      $\alpha(z)$, of the shape of `z`; complex for "principal" (with $\operatorname{Im} \ge 0$ at
      real $z > 1$, and an infinite real part at $z = 1$), else of the dtype of `z`.

    Raises:
      ValueError: the flow is not known.

    Example:
      >>> import pfcore
      >>> float(pfcore.stability.coefficient("igr", 1.0))
      -1.5

    References:
      Rosca, Wu, Qin, Dherin, TMLR 2023 (arXiv 2302.01952).
    """
    if flow_name not in _COEFFICIENTS:
        raise ValueError(f"unknown flow {flow_name!r}; choose one of {', '.join(_COEFFICIENTS)}")
    return _COEFFICIENTS[flow_name](_as_inexact(z))


def stability_coefficient(
    flow_name: str, learning_rate: ScalarLike, eigenvalue: ArrayLike
) -> jax.Array:
    r"""$\operatorname{sgn}(\lambda)\,\operatorname{Re}\alpha(h\lambda)$.

    Negative attracts, positive repels, zero at $\lambda = 0$. For the principal flow it changes
    sign at $h\lambda = 2$, where gradient descent becomes unstable; for NGF and IGR flow it is
    negative for every $\lambda > 0$.

    Args:
      flow_name: "ngf", "igr", "third_order" or "principal".
      learning_rate: $h > 0$.
      eigenvalue: $\lambda$, real, any shape.

    Returns:
      The coefficient, real, of the shape of `eigenvalue`.

    Raises:
      ValueError: the flow is not known, or the learning rate is not positive and finite.

    Example:
      >>> import pfcore
      >>> bool(pfcore.stability.stability_coefficient("principal", 0.5, 5.0) > 0)
      True
    """
    eigenvalue = _as_inexact(eigenvalue)
    h = check_learning_rate(learning_rate).astype(eigenvalue.dtype)
    return jnp.sign(eigenvalue) * coefficient(flow_name, h * eigenvalue).real


def regime(learning_rate: ScalarLike, eigenvalue: ArrayLike) -> str | np.ndarray:
    r"""How gradient descent, and the principal flow with it, behaves along an eigenvector.

    * $\lambda < 0$: "repelling"
    * $0 \le h\lambda \le 1$: "attracting"
    * $1 < h\lambda < 2$: "attracting, oscillating"
    * $h\lambda \ge 2$: "repelling, oscillating" (at 2 exactly it neither nears nor leaves)

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
    z = float(check_learning_rate(learning_rate)) * np.asarray(eigenvalue, float)
    if np.any(np.isnan(z)):
        raise ValueError(f"eigenvalue must be a number, got {eigenvalue!r}")
    names = np.select(
        [z < 0, z <= 1, z < 2],
        ["repelling", "attracting", "attracting, oscillating"],
        "repelling, oscillating",
    )
    return str(names) if names.ndim == 0 else names


class Drift(NamedTuple):
    r"""What one step of gradient descent leaves behind, to leading order $\frac{h^2}2 Hg$.

    Attributes:
      norm: $\|Hg\|$.
      relative: $\|Hg\|/\|g\|$, zero where $g = 0$; between zero and the largest $|\lambda|$.
      share: $(u_i^\top Hg)^2/\|Hg\|^2$ for each given eigenvector, [k]; zero where $Hg = 0$.
    """

    norm: jax.Array
    relative: jax.Array
    share: jax.Array


def drift(loss: Loss, params: Params, vectors: Params | None = None) -> Drift:
    r"""Drift of gradient descent from the negative gradient flow, $\|H g\|$, and where it points.

    After one step from the same point the two differ by $\frac{h^2}2 Hg + O(h^3)$.

    Args:
      loss: $E$, from `params` to a real scalar.
      params: any pytree of floating-point arrays.
      vectors: orthonormal directions, such as eigenvectors, of the structure of `params` with a
        leading axis of length k; by default none.

    Returns:
      A `Drift`.

    Raises:
      ValueError: the loss is not a finite scalar at `params`.

    Example:
      >>> import jax.numpy as jnp, pfcore
      >>> loss = lambda x: x[0] ** 2 + 0.5 * x[1] ** 2
      >>> found = pfcore.stability.drift(loss, jnp.array([1.0, 0.0]), jnp.eye(2))
      >>> float(found.norm), found.share.tolist()
      (4.0, [1.0, 0.0])
    """
    params = check_loss(loss, params)
    g = gradient(loss, params)
    flat_g, _ = ravel(g)
    hg, _ = ravel(hvp(loss, params, g))
    size, g_size = jnp.linalg.norm(hg), jnp.linalg.norm(flat_g)
    if vectors is None:
        share = jnp.zeros((0,), hg.dtype)
    else:
        along = jax.vmap(lambda u: ravel(u)[0])(vectors) @ hg
        share = (along / jnp.where(size > 0, size, 1)) ** 2
    return Drift(size, jnp.where(g_size > 0, size / jnp.where(g_size > 0, g_size, 1), 0), share)
