r"""Rod flow: gradient descent at the edge as a rod, two successive iterates and their midpoint.

The midpoint $\bar w$ of two iterates and half their difference $\delta$ obey exact recursions, of
which $\bar w$ and the covariance $\Sigma$ that $\delta\delta^\top$ fluctuates about are followed in
continuous time.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pfcore._checks import Loss, ScalarLike, check_count, check_learning_rate, check_loss
from pfcore._trees import Params, add_scaled, num_entries, ravel, scale, weighted_sum
from pfcore.curvature.products import gradient, linearized_hvp
from pfcore.flows.flow import SteppedFlow, bind


class RodState(NamedTuple):
    r"""Where a rod flow stands.

    Attributes:
      centre: $\bar w$, of the structure of the parameters: the midpoint of two successive iterates.
      factors: $f_1, \dots, f_r$ with $\Sigma = \sum_i f_i f_i^\top$, orthogonal, longest first, of
        the structure of the parameters with a leading axis of r. The first one is the rod.
    """

    centre: Params
    factors: Params


def _rod(state: RodState) -> Params:
    return jax.tree.map(lambda x: x[0], state.factors)


def _position(state: RodState) -> Params:
    return state.centre


def two_sided(loss: Loss, centre: Params, half: Params) -> jax.Array:
    """The mean of the loss at both ends of a rod."""
    ahead, behind = (loss(add_scaled(centre, sign, half)) for sign in (1.0, -1.0))
    return (ahead + behind) / 2


def _expected_loss(loss: Loss, state: RodState) -> jax.Array:
    return two_sided(loss, state.centre, _rod(state))


def drift(
    loss: Loss, centre: Params, half: Params, learning_rate: jax.Array, correction: bool
) -> tuple[Params, Params, Params]:
    r"""$\dot{\bar w} = -\tfrac12(g_+ + g_-) - \tfrac h8(H_+ + H_-)(g_+ + g_-)$, $g_+$ and $g_-$.

    The second term is left out without `correction`.
    """
    plus, minus = add_scaled(centre, 1.0, half), add_scaled(centre, -1.0, half)
    if not correction:
        ahead, behind = gradient(loss, plus), gradient(loss, minus)
        return scale(-0.5, add_scaled(ahead, 1.0, behind)), ahead, behind
    ahead, product_ahead = linearized_hvp(loss, plus)
    behind, product_behind = linearized_hvp(loss, minus)
    both = add_scaled(ahead, 1.0, behind)
    step = scale(learning_rate, both)
    bent = add_scaled(product_ahead(step), 1.0, product_behind(step))
    return add_scaled(scale(-0.5, both), -1 / 8, bent), ahead, behind


def _compressed(rows: jax.Array, rank: int) -> jax.Array:
    """The `rank` longest orthogonal factors of rowsᵀ rows, longest first."""
    unit = jnp.max(jnp.abs(rows))
    unit = jnp.where(unit > 0, unit, 1)
    rows = rows / unit
    gram = jnp.matmul(rows, rows.T, precision="highest")
    _, vectors = jnp.linalg.eigh(gram, symmetrize_input=True)
    return unit * jnp.matmul(vectors[:, ::-1][:, :rank].T, rows, precision="highest")


def _step(
    loss: Loss, correction: bool, learning_rate: jax.Array, dt: Any, state: RodState
) -> RodState:
    r"""One step of an exponential Runge-Kutta method with four stages.

    The decay of $\Sigma$ is solved exactly; its sources have the weights of the classical method
    of order 4, carried to the end of the step by that decay (Lawson), and scaled so that sources
    which do not change are integrated exactly. All are positive: $\Sigma$ keeps its factors.
    """
    _, unravel = ravel(state.centre)
    factors = jax.vmap(lambda row: ravel(row)[0])(state.factors)
    dtype = factors.dtype
    dt = jnp.asarray(dt)
    h = learning_rate.astype(dtype)
    s = dt.astype(dtype) / h

    def at(centre: Params, rod: jax.Array) -> tuple[Params, jax.Array]:
        r"""The centre's slope, and the two factors of $\Sigma$'s source."""
        slope, ahead, behind = drift(loss, centre, unravel(rod), learning_rate, correction)
        return slope, h / 2 * jnp.stack([ravel(ahead)[0], ravel(behind)[0]])

    def spread(length: jax.Array, sources: jax.Array, rank: int) -> jax.Array:
        """Factors after a time, with a source [2m, n] whose parts have their weights already."""
        weight = jnp.sqrt(-jnp.expm1(-2 * length) / 2)
        rows = jnp.concatenate([jnp.exp(-length) * factors, weight * sources])
        return _compressed(rows, rank)

    def stage(before: tuple[Params, jax.Array], fraction: jax.Array) -> tuple[Any, Any]:
        slope, source = before
        centre = add_scaled(state.centre, fraction * dt, slope)
        found = at(centre, spread(fraction * s, source, 1)[0])
        return found, found

    # In a loop, so that the slope is compiled once.
    nothing = jax.tree.map(jnp.zeros_like, state.centre), jnp.zeros((2, factors.shape[1]), dtype)
    fractions = jnp.array([0.0, 0.5, 0.5, 1.0], dtype)
    _, (slopes, sources) = jax.lax.scan(stage, nothing, fractions)
    weights = jnp.array([1.0, 2.0, 2.0, 1.0], dtype)
    decayed = weights * jnp.exp(-2 * s * (1 - fractions))
    shares = jnp.sqrt(decayed / jnp.sum(decayed))
    source = (shares[:, None, None] * sources).reshape(-1, factors.shape[1])
    centre = add_scaled(state.centre, dt, weighted_sum(weights / 6, slopes))
    return RodState(centre, jax.vmap(unravel)(spread(s, source, len(factors))))


def _init(loss: Loss, rank: int | None, learning_rate: jax.Array, params: Params) -> RodState:
    params = check_loss(loss, params)
    n = num_entries(params)
    rank = n if rank is None else min(rank, n)
    rod = scale(learning_rate / 2, gradient(loss, params))
    return RodState(
        centre=add_scaled(params, -1.0, rod),
        factors=jax.tree.map(lambda x: jnp.zeros((rank, *x.shape), x.dtype).at[0].set(x), rod),
    )


def rod_flow(
    loss: Loss,
    learning_rate: ScalarLike,
    *,
    rank: int | None = 4,
    correction: bool = True,
    substeps: int = 2,
) -> SteppedFlow:
    r"""Rod flow: the midpoint of two iterates, and the spread of the rod between them.

    With $g_\pm$ and $H_\pm$ at the rod's ends $\bar w \pm \delta$,

    $$
    \begin{aligned}
    \dot{\bar w} &= -\tfrac12(g_+ + g_-) \\
                 &\qquad - \tfrac h8(H_+ + H_-)(g_+ + g_-), \\
    h\dot\Sigma &= \tfrac{h^2}4(g_+g_+^\top + g_-g_-^\top) - 2\Sigma, \\
    \delta &= \sqrt{\lambda_1(\Sigma)}\,v_1(\Sigma).
    \end{aligned}
    $$

    It oscillates where gradient descent is unstable, $h\lambda > 2$, and has its two-cycles
    exactly on quartic losses. Nothing has to be chosen at the start: $\bar w_0 = w_0 - \tfrac h2 g$
    and $\Sigma_0 = \tfrac{h^2}4 gg^\top$, which is the rod between the first two iterates.

    **The position is a midpoint.** At time $kh$ compare it with $(w_k + w_{k+1})/2$ of gradient
    descent, not with $w_k$.

    The rod is the leading eigenvector of $\Sigma$, which jumps where two eigenvalues cross. So it
    is followed in fixed steps, by an exponential Runge-Kutta method whose stages cost two
    gradients and, for the correction, two Hessian products; there are four. For the same reason it
    can miss the edge: as long as the rod lies along a valley, the sharp direction across has no
    source, and decays whatever its curvature is.

    Args:
      loss: $E$, from `params` to a real scalar.
      learning_rate: $h > 0$ of the gradient descent that is modelled.
      rank: how many factors of $\Sigma$ are kept; $\Sigma$ forgets within half a step, so that few
        matter. None keeps all of it, as many as there are parameters, for toy problems.
      correction: include the second term of $\dot{\bar w}$, which makes up for following steps of
        length $h$ in continuous time.
      substeps: steps for one of gradient descent. Two give the loops of self-stabilisation to a
        few thousandths of the sharpness, and are stable up to $h\lambda \approx 2.4$; four are
        nearly exact, and stable up to 3.7.

    Returns:
      A `SteppedFlow` whose state is a `RodState`. Its `oscillation` is $\delta$, its
      `expected_loss` the mean of the loss at both ends of the rod.

    Raises:
      ValueError: the learning rate is not a positive finite scalar, or `rank` or `substeps` is
        below 1; from `init`, a loss that is not a finite scalar at the start.
      TypeError: `rank` is neither None nor an integer, or `substeps` is no integer.

    Example:
      >>> import jax.numpy as jnp, pfcore
      >>> loss = lambda x: 1.1 * x**2 - x**4 / 4  # gradient descent with h = 1: a two-cycle
      >>> flow = pfcore.flows.rod_flow(loss, 1.0)
      >>> path = pfcore.integrate(flow, jnp.array(0.02), jnp.array([0.0, 60.0]))
      >>> round(float(abs(path.oscillation[-1])), 4)  # √0.2
      0.4472

    References:
      Regis and Chewi, *Rod flow: a continuous-time model for gradient descent at the edge of
      stability*, 2026 (arXiv 2602.01480). The low-rank form is this project's own.
    """
    learning_rate = check_learning_rate(learning_rate)
    if rank is not None:
        rank = check_count("rank", rank, minimum=1)
    substeps = check_count("substeps", substeps, minimum=1)
    return SteppedFlow(
        init=bind(_init, loss, rank, dynamic=(learning_rate,)),
        step=bind(_step, loss, bool(correction), dynamic=(learning_rate,)),
        position=_position,
        max_step=learning_rate / substeps,
        oscillation=_rod,
        expected_loss=bind(_expected_loss, loss),
    )
