"""Gradients and Hessian-vector products, at real and at complex parameters."""

from collections.abc import Callable

import jax

from pfcore._checks import Loss
from pfcore._trees import Params, is_complex


def gradient(loss: Loss, params: Params) -> Params:
    r"""$\nabla E(\theta)$; at complex parameters the derivative of the analytic continuation."""
    return jax.grad(loss, holomorphic=is_complex(params))(params)


def hvp(loss: Loss, params: Params, vector: Params) -> Params:
    r"""Hessian-vector product $H(\theta)\,v$, forward over reverse.

    At complex parameters the Hessian is that of the analytic continuation: complex symmetric,
    not Hermitian.

    Args:
      loss: $E$, from `params` to a scalar.
      params: any pytree of floating-point arrays, $\theta$.
      vector: $v$, of the structure, shapes and dtypes of `params`.

    Returns:
      $H v$, of the structure of `params`. Costs about two gradients.

    Example:
      >>> import jax.numpy as jnp, pfcore
      >>> loss = lambda x: x[0] ** 2 + 3 * x[0] * x[1]
      >>> pfcore.curvature.hvp(loss, jnp.zeros(2), jnp.array([1.0, 0.0])).tolist()
      [2.0, 3.0]
    """
    return jax.jvp(lambda p: gradient(loss, p), (params,), (vector,))[1]


def linearized_hvp(loss: Loss, params: Params) -> tuple[Params, Callable[[Params], Params]]:
    r"""$(g, v \mapsto Hv)$, linearised once: what does not depend on $v$ is not computed again."""
    return jax.linearize(lambda p: gradient(loss, p), params)
