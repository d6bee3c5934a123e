"""Gradient descent, as a compiled loop."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from pfcore import _programs
from pfcore._checks import Loss, ScalarLike, check_count, check_learning_rate, check_loss
from pfcore._trees import Params, add_scaled


def _descend(
    gradient: Callable[[Params], Params],
    params: Params,
    learning_rate: jax.Array,
    num_steps: int,
    keep_path: bool,
) -> Params:
    def step(params, _):
        params = add_scaled(params, -learning_rate, gradient(params))
        return params, params if keep_path else None

    last, trajectory = jax.lax.scan(step, params, length=num_steps)
    if not keep_path:
        return last
    return jax.tree.map(
        lambda first, rest: jnp.concatenate([first[None], rest]), params, trajectory
    )


_compiled = jax.jit(_descend, static_argnums=(3, 4))


@_programs.settings()
def gradient_descent(
    loss: Loss,
    params: Params,
    learning_rate: ScalarLike,
    num_steps: int,
    *,
    keep_path: bool = True,
) -> Params:
    r"""Iterates of gradient descent, $\theta_{k+1} = \theta_k - h\,\nabla E(\theta_k)$.

    One scan, compiled once for each kind of `loss` and each `num_steps`; other learning rates and
    other data that the loss closes over reuse it. A run that diverges returns its infinities and
    NaNs.

    Args:
      loss: $E$, from `params` to a real scalar.
      params: any pytree of floating-point arrays, $\theta_0$.
      learning_rate: $h > 0$, a scalar (traced values allowed, so `jax.vmap` works over it).
      num_steps: number of steps, at least 0.
      keep_path: whether to return every iterate. If false, only the last one is kept in memory.

    Returns:
      `params` stacked along a new leading axis of length `num_steps + 1`; index 0 is the start.
      `pfcore.paths` reads such a path. With `keep_path=False`, the last iterate alone.

    Raises:
      ValueError: the learning rate is not positive and finite, `num_steps` is negative, or the
        loss is not a finite scalar at the start.
      TypeError: params or loss are not real floating point.

    Example:
      >>> import jax.numpy as jnp, pfcore
      >>> loss = lambda x: 0.5 * jnp.sum(x**2)
      >>> pfcore.gradient_descent(loss, jnp.array([1.0]), 0.5, 3)[:, 0].tolist()
      [1.0, 0.5, 0.25, 0.125]
    """
    num_steps = check_count("num_steps", num_steps, minimum=0)
    learning_rate = check_learning_rate(learning_rate)
    params, gradient = check_loss(loss, params), jax.grad(loss)
    if _programs.is_traced(params):
        return _descend(gradient, params, learning_rate, num_steps, keep_path)
    program = _programs.trace(gradient, params)
    return _compiled(program, params, learning_rate, num_steps, keep_path)
