r"""How fast flows move along an eigenvector: $\alpha(z)$ with $z = h\lambda$, in one dimension.

`pfcore.stability` says what they mean; each is listed with its flow in `pfcore.flows.registry`.
"""

import functools

import jax
import jax.numpy as jnp

from pfcore._checks import ArrayLike
from pfcore._trees import in_single

BRANCHES = ("principal", "continued")
# Where the derivative of φ is a sum of so many terms: the quotient loses digits, as 1/z.
NEAR_ZERO, TERMS = 1 / 8, 18


def principal_coefficient(z: ArrayLike, *, branch: str = "principal") -> jax.Array:
    r"""$\varphi(z) = \log(1 - z)/z$ with $\varphi(0) = -1$; complex, accurate for small $z$.

    So are its derivatives, $\varphi'(0) = -\frac12$.

    On the cut itself, real $z > 1$, the value is the one with $\operatorname{Im}\log = +\pi$.
    "continued" extends that value to both sides of the real axis, and leaves a cut at
    $\operatorname{Re} z = 1$, $\operatorname{Im} z > 0$.
    """
    z = jnp.asarray(z)
    if not jnp.issubdtype(z.dtype, jnp.inexact):
        z = z.astype(float)
    return _principal(in_single(z), branch)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _principal(z: jax.Array, branch: str) -> jax.Array:
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


@_principal.defjvp
def _principal_jvp(
    branch: str, primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    r"""$\varphi' = -(\varphi + \frac1{1 - z})/z = -\sum_{k \ge 1} \frac{k}{k + 1} z^{k - 1}$."""
    (z,), (dz,) = primals, tangents
    value = _principal(z, branch)
    z, dz = z.astype(value.dtype), dz.astype(value.dtype)
    near = jnp.abs(jax.lax.stop_gradient(z)) < NEAR_ZERO
    small, large = jnp.where(near, z, 0), jnp.where(near, 1, z)
    series = jnp.polyval(jnp.array([-k / (k + 1) for k in range(TERMS, 0, -1)], z.dtype), small)
    return value, jnp.where(near, series, -(value + 1 / (1 - large)) / large) * dz


def negative_gradient_coefficient(z: jax.Array) -> jax.Array:
    """$-1$."""
    return -jnp.ones_like(z)


def igr_coefficient(z: jax.Array) -> jax.Array:
    r"""$-(1 + \frac z2)$."""
    return -(1 + z / 2)


def third_order_coefficient(z: jax.Array) -> jax.Array:
    r"""$-(1 + \frac z2 + \frac{z^2}3)$."""
    return -(1 + z / 2 + z**2 / 3)


def two_frame_growth(z: jax.Array) -> jax.Array:
    r"""$(z - 2) - \frac{(z - 2)^2}2$, the series of $\log|1 - z|$ about 2 to the second order."""
    return (z - 2) - (z - 2) ** 2 / 2


def rod_growth(z: jax.Array) -> jax.Array:
    r"""$\frac{z^2}4 - 1$, half the growth of the rod's covariance, $\frac{z^2}2 - 2$."""
    return z**2 / 4 - 1


def edge_growth(z: jax.Array) -> jax.Array:
    r"""$\log|1 - z|$, that of gradient descent itself."""
    return jnp.log(jnp.abs(1 - z))
