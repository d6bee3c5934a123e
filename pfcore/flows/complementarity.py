r"""Linear complementarity on the cone of positive semidefinite matrices.

Gradient descent at the edge of stability oscillates along each critical direction as much as keeps
its curvature from growing, and no more. Which oscillation that is, is a complementarity problem,
as small as there are critical directions.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pfcore import _programs
from pfcore._checks import ArrayLike, ScalarLike, check_count, check_positive
from pfcore.curvature.krylov import unit_of

MAX_ITERATIONS = 4000


class Complementarity(NamedTuple):
    r"""A solution of $X \succeq 0$, $S = A + B[X] \succeq 0$, $\langle X, S\rangle = 0$.

    Attributes:
      X: [k, k], symmetric positive semidefinite. Where $B$ is singular there may be others;
        $B[X]$ is the same for all.
      residual: the larger of $\max(0, -\lambda_{\min}(S))/\|A\|$ and
        $|\langle X, S\rangle| / (\|A\|\max(\operatorname{tr} X, \|A\|/\|B\|))$: free of the scales
        of $A$ and $B$. Of the order of 1 where the problem has no solution.
      iterations: how many were needed, 0 for k = 1.
    """

    X: Float[Array, "k k"]
    residual: Float[Array, ""]
    iterations: Int[Array, ""]


class _Iteration(NamedTuple):
    """Where the accelerated gradient method stands."""

    X: jax.Array
    ahead: jax.Array  # X moved on along its last change
    momentum: jax.Array
    change: jax.Array  # of the last step, in the unit of the gradient and relative to A
    number: jax.Array


def _times(B: Float[Array, "k k k k"], X: Float[Array, "k k"]) -> Float[Array, "k k"]:
    return jnp.einsum("ijkl,kl->ij", B, X, precision="highest")


def _projected(X: Float[Array, "k k"]) -> Float[Array, "k k"]:
    """The closest positive semidefinite matrix."""
    values, vectors = jnp.linalg.eigh(X, symmetrize_input=True)
    kept = vectors * jnp.maximum(values, 0)
    return jnp.matmul(kept, vectors.T, precision="highest")


def _unit(x: jax.Array) -> jax.Array:
    """A power of two close to the largest entry, so that squares neither overflow nor vanish."""
    unit = unit_of(x, jnp.zeros((), x.dtype))
    return jnp.where(unit > 0, unit, 1)


def _residual(
    A: Float[Array, "k k"], B: Float[Array, "k k k k"], X: Float[Array, "k k"]
) -> Float[Array, ""]:
    slack = A + _times(B, X)
    size, stiffness = jnp.linalg.norm(A), jnp.linalg.norm(B.ravel())
    size = jnp.where(size > 0, size, 1)
    negative = jnp.maximum(-jnp.min(jnp.linalg.eigvalsh(slack, symmetrize_input=True)), 0) / size
    natural = size / jnp.where(stiffness > 0, stiffness, 1)
    mass = jnp.where(stiffness > 0, jnp.maximum(jnp.trace(X), natural), jnp.trace(X))
    product = jnp.abs(jnp.sum(X * slack)) / (size * jnp.where(mass > 0, mass, 1))
    return jnp.maximum(negative, product)


def _single(A: Float[Array, "1 1"], B: Float[Array, "1 1 1 1"]) -> Float[Array, "1 1"]:
    stiffness = B[0, 0]
    return jnp.where(stiffness > 0, jnp.maximum(-A / jnp.where(stiffness > 0, stiffness, 1), 0), 0)


def _accelerated(
    A: Float[Array, "k k"],
    B: Float[Array, "k k k k"],
    start: Float[Array, "k k"],
    tolerance: jax.Array,
    max_iterations: int,
) -> tuple[Float[Array, "k k"], Int[Array, ""]]:
    """Accelerated projected gradient with restarts on ½⟨X, B[X]⟩ + ⟨A, X⟩."""
    k = len(A)
    # Congruent with a diagonal matrix, so that all directions have curvatures of the same size:
    # solutions stay solutions, and there are less iterations by orders of magnitude.
    diagonal = jnp.einsum("ijij->ij", B)
    largest = jnp.max(diagonal, axis=1)
    largest = jnp.where(largest > 0, largest, jnp.where(jnp.max(largest) > 0, jnp.max(largest), 1))
    unit = largest**-0.25
    A = A * unit[:, None] * unit
    B = B * (unit[:, None] * unit)[:, :, None, None] * (unit[:, None] * unit)
    stiffest = jnp.linalg.eigvalsh(B.reshape(k * k, k * k), symmetrize_input=True)[-1]
    rate = 1 / jnp.where(stiffest > 0, stiffest, 1)
    size = jnp.linalg.norm(A)
    size = jnp.where(size > 0, size, 1)

    def step(at: _Iteration) -> _Iteration:
        X = _projected(at.ahead - rate * (A + _times(B, at.ahead)))
        moved, ahead = X - at.X, X - at.ahead
        momentum = (1 + jnp.sqrt(1 + 4 * at.momentum**2)) / 2
        # Momentum that points uphill is given up.
        restart = jnp.sum(ahead * moved) < 0
        momentum = jnp.where(restart, 1, momentum)
        inertia = jnp.where(restart, 0, (at.momentum - 1) / momentum)
        change = jnp.linalg.norm(ahead) / (rate * size)
        return _Iteration(X, X + inertia * moved, momentum, change, at.number + 1)

    def goes_on(at: _Iteration) -> jax.Array:
        return (at.change > tolerance) & (at.number < max_iterations)

    start = _projected(start / (unit[:, None] * unit))
    begin = _Iteration(
        start, start, jnp.ones_like(size), jnp.full_like(size, jnp.inf), jnp.int32(0)
    )
    end = jax.lax.while_loop(goes_on, step, begin)
    return end.X * (unit[:, None] * unit), end.number


@_programs.settings()
def solve(
    A: ArrayLike,
    B: ArrayLike,
    *,
    active: ArrayLike | None = None,
    start: ArrayLike | None = None,
    tolerance: ScalarLike | None = None,
    max_iterations: int = MAX_ITERATIONS,
) -> Complementarity:
    r"""The symmetric $X \succeq 0$ with $A + B[X] \succeq 0$ and $\langle X, A + B[X]\rangle = 0$.

    $B[X]_{ij} = \sum_{kl} B_{ijkl} X_{kl}$ is self-adjoint and positive semidefinite, as
    $B_{ijkl} = \langle G_{ij}, G_{kl}\rangle$ is. Then $X$ minimises
    $\tfrac12\langle X, B[X]\rangle + \langle A, X\rangle$ over the cone, and accelerated projected
    gradient with restarts finds it. For k = 1 it is $\max(0, -A/B)$.

    Works under `jax.jit` and `jax.vmap`. Meant for k up to 10 or so.

    Args:
      A: [k, k], symmetric.
      B: [k, k, k, k], with $B_{ijkl} = B_{jikl} = B_{ijlk} = B_{klij}$.
      active: [k] of booleans; $X$ is zero outside these rows and columns, which take no part. By
        default all are active.
      start: [k, k], where to begin, such as the solution of a similar problem; by default 0.
      tolerance: of the residual; by default $\epsilon^{3/4}$, 2e-12 in double precision.
      max_iterations: when to give up.

    Returns:
      A `Complementarity`. Where no $X$ solves the problem, its residual says so.

    Raises:
      ValueError: shapes that do not fit, a tolerance that is not positive.

    Example:
      >>> import jax.numpy as jnp
      >>> from pfcore.flows import complementarity
      >>> A, B = jnp.diag(jnp.array([-1.0, 2.0])), jnp.einsum("ik,jl->ijkl", jnp.eye(2), jnp.eye(2))
      >>> complementarity.solve(A, B).X.round(4).tolist()
      [[1.0, 0.0], [0.0, 0.0]]

    References:
      Beck and Teboulle, *A fast iterative shrinkage-thresholding algorithm*, 2009; O'Donoghue and
      Candès, *Adaptive restart for accelerated gradient schemes*, 2015.
    """
    A, B = jnp.asarray(A), jnp.asarray(B)
    if A.ndim != 2 or A.shape[0] != A.shape[1] or A.size == 0:
        raise ValueError(f"A must be a square matrix, got shape {A.shape}")
    k = len(A)
    if B.shape != (k, k, k, k):
        raise ValueError(f"B must have shape {(k, k, k, k)}, as A has {A.shape}, got {B.shape}")
    max_iterations = check_count("max_iterations", max_iterations, minimum=1)
    A = A if jnp.issubdtype(A.dtype, jnp.floating) else A.astype(float)
    B = B.astype(A.dtype)
    if tolerance is None:
        tolerance = float(jnp.finfo(A.dtype).eps) ** (3 / 4)
    tolerance = check_positive("tolerance", tolerance).astype(A.dtype)
    A = (A + A.T) / 2
    begin = jnp.zeros_like(A) if start is None else jnp.asarray(start, A.dtype)
    if begin.shape != A.shape:
        raise ValueError(f"start must have shape {A.shape}, as A has, got {begin.shape}")
    if active is not None:
        mask = jnp.asarray(active, bool)
        if mask.shape != (k,):
            raise ValueError(f"active must have shape {(k,)}, got {mask.shape}")
        both = mask[:, None] & mask
        A, begin = jnp.where(both, A, 0), jnp.where(both, begin, 0)
        B = jnp.where(both[:, :, None, None] & both, B, 0)
    size, stiffness = _unit(A), _unit(B)
    A, B, natural = A / size, B / stiffness, size / stiffness
    if k == 1:
        X, iterations = _single(A, B), jnp.int32(0)
    else:
        X, iterations = _accelerated(A, B, begin / natural, tolerance, max_iterations)
    return Complementarity(natural * X, _residual(A, B, X), iterations)
