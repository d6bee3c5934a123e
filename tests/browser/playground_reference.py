"""pfcore's numbers for the playground's landscapes, from which its page must not differ.

JAX takes seconds to start: this is imported by the tests that compare numbers, when they run, and
by no other.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import pfcore
from pfcore import objectives
from pfcore.flows import named_flow

# The name of a landscape, a start and a learning rate.
Setting = tuple[str, tuple[float, float], float]


def _valley(params: jax.Array) -> jax.Array:
    x, y = params
    return 0.5 * (x + 0.5 * y) * y**2 + 0.025 * (x - 3) ** 2


LANDSCAPES = {
    "quadratic": objectives.quadratic_form(np.diag([0.2, 2.0])),
    "banana": objectives.banana,
    "himmelblau": objectives.himmelblau.scaled(0.01),
    "double_well": objectives.double_well,
    "saddle": objectives.saddle,
    "valley": _valley,
}
# More than the default: beside the branch point hλ = 1 pfcore's pace is slow for a while, and it
# would give up on a few paths here that can be followed.
MAX_STEPS = 10**6


def _each(function: Callable, settings: Sequence[Setting]) -> Any:
    """`function(loss, start, learning_rate)` at all settings, compiled once.

    One after another: side by side, all would take as many steps as the slowest, some 10⁵.
    """
    names = sorted({name for name, _, _ in settings})

    def at(which, start, h):
        branches = [LANDSCAPES[name] for name in names]
        return function(lambda params: jax.lax.switch(which, branches, params), start, h)

    which, starts, rates = zip(*settings, strict=True)
    arguments = (
        jnp.asarray([names.index(name) for name in which]),
        jnp.asarray(starts),
        jnp.asarray(rates),
    )
    found = jax.jit(lambda *xs: jax.lax.map(lambda x: at(*x), xs))(*arguments)
    return jax.tree.map(np.asarray, found)


def steps(settings: Sequence[Setting], num_steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Gradient descent's positions, [settings, steps + 1, 2]; the eigenvalues at the starts."""

    def at_start(loss, start, h):
        values = jnp.linalg.eigvalsh(jax.hessian(loss)(start))
        return pfcore.gradient_descent(loss, start, h, num_steps), values

    return _each(at_start, settings)


def regimes(learning_rate: float, eigenvalues: np.ndarray) -> list[Any]:
    return pfcore.stability.regime(learning_rate, eigenvalues).tolist()


def path(
    flow: str, settings: Sequence[Setting], num_steps: int, **options: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Positions at t = kh, [settings, steps + 1, 2], and whether each path was completed.

    Also the oscillation about the positions, None for flows without one.
    """

    def follow(loss, start, h):
        followed = named_flow(flow, loss, h, **options)
        times = h * jnp.arange(num_steps + 1, dtype=h.dtype)
        path = pfcore.integrate(followed, start, times, rtol=1e-9, atol=1e-12, max_steps=MAX_STEPS)
        return path.params, path.completed, path.oscillation

    return _each(follow, settings)


def coefficient(flow: str, z: np.ndarray) -> np.ndarray:
    return np.asarray(pfcore.stability.coefficient(flow, z).real)
