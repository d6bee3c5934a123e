r"""Test landscapes: losses of one or two parameters with a name, a domain and their minima.

Each is called like any loss, at real or complex parameters.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from pfcore._checks import ArrayLike


@dataclasses.dataclass(frozen=True, eq=False)
class Objective:
    """A loss of few parameters, with the data needed to draw it.

    Attributes:
      name: a name for figures.
      function: from an array of shape [d] to a scalar.
      domain: [d, 2], lower and upper end of each coordinate to draw.
      minima: [m, d], every local minimum in the domain; m = 0 where there is none.
    """

    name: str
    function: Callable[[jax.Array], jax.Array]
    domain: np.ndarray
    minima: np.ndarray

    def __call__(self, params: jax.Array) -> jax.Array:
        """The value at `params`, shape [d]."""
        return self.function(params)

    def scaled(self, factor: float) -> "Objective":
        """The same landscape with values, and so eigenvalues, multiplied by `factor`."""
        if not (np.isfinite(factor) and factor > 0):
            raise ValueError(f"factor must be positive and finite, got {factor!r}")
        function = self.function
        # A NumPy float would promote single-precision parameters.
        factor = float(factor)
        return dataclasses.replace(self, function=lambda params: factor * function(params))


def _array(rows: list) -> np.ndarray:
    return np.array(rows, dtype=float)


def quadratic_form(matrix: ArrayLike, vector: ArrayLike | None = None) -> Objective:
    r"""$E(\theta) = \frac12\theta^\top M\theta + b^\top\theta$.

    Args:
      matrix: $M$, [d, d], symmetric.
      vector: $b$, [d]; zero by default.

    Returns:
      An `Objective` on $[-1, 1]^d$ around its stationary point.

    Raises:
      ValueError: the matrix is not square, symmetric and finite, or the vector does not fit.
    """
    m = np.asarray(matrix, float)
    square = m.ndim == 2 and m.shape[0] == m.shape[1] and m.size > 0
    if not (square and np.all(np.isfinite(m)) and np.all(np.abs(m - m.T) <= 1e-8 * np.max(abs(m)))):
        raise ValueError(f"matrix must be square, symmetric and finite, got {matrix!r}")
    b = np.zeros(len(m)) if vector is None else np.asarray(vector, float)
    if b.shape != (len(m),) or not np.all(np.isfinite(b)):
        raise ValueError(f"vector must have shape ({len(m)},) and be finite, got {vector!r}")
    centre = -np.linalg.lstsq(m, b, rcond=None)[0]
    values = np.linalg.eigvalsh(m)
    strict = np.all(values > len(m) * np.finfo(float).eps * np.max(np.abs(values)))

    def function(params: jax.Array) -> jax.Array:
        if not jnp.issubdtype(params.dtype, jnp.inexact):
            params = params.astype(float)
        matrix, vector = jnp.asarray(m, params.dtype), jnp.asarray(b, params.dtype)
        return 0.5 * params @ (matrix @ params) + vector @ params

    return Objective(
        "quadratic",
        function,
        domain=centre[:, None] + _array([[-1, 1]]),
        minima=centre[None] if strict else np.zeros((0, len(m))),
    )


quadratic = quadratic_form(np.diag([2.0, 0.02]))
r"""$E(x, y) = x^2 + 0.01\,y^2$, with one steep direction ($\lambda = 2$) and one flat
($\lambda = 0.02$). Minimum at (0, 0)."""


def _banana(params: jax.Array) -> jax.Array:
    x, y = params
    return (1 - x) ** 2 + 100 * (y - x**2) ** 2


banana = Objective("banana", _banana, _array([[-1.5, 1.5], [-0.5, 2]]), _array([[1, 1]]))
r"""Rosenbrock's function, $E(x, y) = (1 - x)^2 + 100\,(y - x^2)^2$, a curved, flat valley.
Minimum 0 at (1, 1)."""


def _himmelblau(params: jax.Array) -> jax.Array:
    x, y = params
    return (x**2 + y - 11) ** 2 + (x + y**2 - 7) ** 2


himmelblau = Objective(
    "Himmelblau",
    _himmelblau,
    _array([[-5, 5], [-5, 5]]),
    _array(
        [
            [3, 2],
            [-2.805118086952745, 3.131312518250573],
            [-3.779310253377747, -3.283185991286170],
            [3.584428340330492, -1.848126526964404],
        ]
    ),
)
r"""Himmelblau's function, $E(x, y) = (x^2 + y - 11)^2 + (x + y^2 - 7)^2$, with four minima of
value 0, one of them at (3, 2)."""


def _saddle(params: jax.Array) -> jax.Array:
    x, y = params
    return 0.5 * (x**2 - y**2)


saddle = Objective("saddle", _saddle, _array([[-1, 1], [-1, 1]]), np.zeros((0, 2)))
r"""$E(x, y) = \frac12(x^2 - y^2)$, with eigenvalues 1 and -1, stationary at (0, 0), without a
minimum."""


def _double_well(params: jax.Array) -> jax.Array:
    x, y = params
    return 0.25 * (x**2 - 1) ** 2 + 0.5 * y**2


double_well = Objective(
    "double well", _double_well, _array([[-1.8, 1.8], [-1.2, 1.2]]), _array([[-1, 0], [1, 0]])
)
r"""$E(x, y) = \frac14(x^2 - 1)^2 + \frac12 y^2$, with minima of value 0 at (-1, 0) and (1, 0),
where the eigenvalues are 2 and 1, and a saddle at (0, 0)."""


def _cosine(params: jax.Array) -> jax.Array:
    (x,) = params
    return jnp.cos(x)


cosine = Objective(
    "cosine", _cosine, _array([[-2 * np.pi, 2 * np.pi]]), _array([[-np.pi], [np.pi]])
)
r"""$E(x) = \cos x$ in one dimension, with minima of value -1 at odd multiples of $\pi$, all
with $\lambda = 1$."""

ALL = (quadratic, banana, himmelblau, saddle, double_well, cosine)
