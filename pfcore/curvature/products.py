"""Gradients and Hessian-vector products, at real and at complex parameters."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from pfcore import _programs
from pfcore._checks import Loss, is_hosted
from pfcore._trees import Params, in_single, is_complex, ravel

# What JAX leaves in a linearised function where a rule serves reverse mode alone.
REVERSE_ONLY = "custom_lin"
MODES = ("forward-over-reverse", "reverse-over-reverse")
Product = Callable[[Any], Any]  # v -> H v


def gradient(loss: Loss, params: Params) -> Params:
    r"""$\nabla E(\theta)$; at complex parameters the derivative of the analytic continuation."""
    return jax.grad(loss, holomorphic=is_complex(params))(params)


def _forward_refused(error: Exception) -> bool:
    """Whether this is how JAX says that a function has a rule for reverse mode only."""
    text = str(error)
    return "forward-mode" in text or "jvp" in text.lower()


def _linearized(loss: Loss, params: Params, mode: str | None = None) -> tuple[Params, Product]:
    """Gradient and Hessian product: forward over reverse, or else reverse over reverse."""

    def of_loss(p: Params) -> Params:
        return gradient(loss, p)

    refused: Exception = TypeError("not asked for.")
    if mode != MODES[1]:
        try:
            g, product = jax.linearize(of_loss, params)
            if not _programs.contains(jax.make_jaxpr(product)(params).jaxpr, REVERSE_ONLY):
                return g, product
            refused = TypeError("a jax.custom_vjp in the loss has no forward-mode rule.")
        except (TypeError, NotImplementedError, ValueError) as error:
            if not _forward_refused(error):
                raise
            refused = error
        if mode == MODES[0]:
            raise refused
    return _reversed(of_loss, params, refused)


def _reversed(
    of_loss: Callable[[Params], Params], params: Params, refused: Exception
) -> tuple[Params, Product]:
    """The same, reverse over reverse, where forward mode was refused."""
    try:
        g, transposed = jax.vjp(of_loss, params)
        jax.eval_shape(transposed, params)  # some rules are asked only now
    except (TypeError, NotImplementedError, ValueError) as error:
        raise TypeError(
            "a Hessian product needs a forward-mode derivative of the gradient, or a second "
            "reverse-mode one, and a part of the loss has neither "
            f"(forward: {_first_line(refused)} reverse: {_first_line(error)}) Give that part a "
            "rule that has, such as adjoint=diffrax.DirectAdjoint() for a Diffrax solver in the "
            "loss; the learning rate dal(product='finite_difference') needs gradients alone"
        ) from error
    return g, lambda vector: transposed(vector)[0]


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


def gradient_and_hvp(
    loss: Loss, params: Params, vector: Params, mode: str | None = None
) -> tuple[Params, Params]:
    """Gradient and Hessian product in one pass, of the structure of `params`.

    Outside compiled functions it is one program, which losses that compute the same share.
    """
    if mode not in (None, *MODES):
        raise ValueError(f"mode must be None or one of {', '.join(MODES)}, got {mode!r}")
    if _programs.is_traced(params, vector):
        return _both(loss, mode, params, vector)
    # Traced at every call: without `jax.jit` a loss may read a batch that has changed meanwhile.
    program = _programs.trace(functools.partial(_both, loss, mode), params, vector)
    return _programs.run(program, params, vector)


def _both(loss: Loss, mode: str | None, params: Params, vector: Params) -> tuple[Params, Params]:
    g, product = _linearized(loss, params, mode)
    return g, product(vector)


def hvp(loss: Loss, params: Params, vector: Params, *, mode: str | None = None) -> Params:
    r"""Hessian-vector product $H(\theta)\,v$, forward over reverse.

    Where JAX refuses forward mode (a `jax.custom_vjp` without a forward rule, kernels with a
    backward pass alone) it is reverse over reverse, which takes more memory, and needs a backward
    pass that can be differentiated.

    At complex parameters the Hessian is that of the analytic continuation: complex symmetric,
    not Hermitian.

    Args:
      loss: $E$, from `params` to a scalar.
      params: any pytree of floating-point arrays, $\theta$.
      vector: $v$, of the structure, shapes and dtypes of `params`.
      mode: "forward-over-reverse" or "reverse-over-reverse"; None takes the first that JAX can.

    Returns:
      $H v$, of the structure of `params`. Costs about two gradients.

    Raises:
      TypeError: the loss can be differentiated twice in neither way, or not in the one asked for.
      ValueError: `mode` is unknown.

    Example:
      >>> import jax.numpy as jnp, pfcore
      >>> loss = lambda x: x[0] ** 2 + 3 * x[0] * x[1]
      >>> pfcore.curvature.hvp(loss, jnp.zeros(2), jnp.array([1.0, 0.0])).tolist()
      [2.0, 3.0]
    """
    return gradient_and_hvp(loss, params, vector, mode)[1]


def linearized_hvp(loss: Loss, params: Params) -> tuple[Params, Product]:
    r"""$(g, v \mapsto Hv)$, linearised once: what does not depend on $v$ is not computed again.

    Many products at one point cost about a fifth less than as many calls of `hvp` (digits network,
    CPU). As `hvp`, it is reverse over reverse where JAX refuses forward mode.

    Args:
      loss: $E$, from `params` to a real scalar.
      params: any pytree of floating-point arrays, $\theta$.

    Returns:
      The gradient, of the structure of `params`, and a linear function from vectors of that
      structure to Hessian-vector products. `jax.vmap` of it takes a batch of vectors in one pass.

    Raises:
      TypeError: as for `hvp`.

    Example:
      >>> import jax, jax.numpy as jnp, pfcore
      >>> loss = lambda x: x[0] ** 2 + 3 * x[0] * x[1]
      >>> gradient, product = pfcore.curvature.linearized_hvp(loss, jnp.ones(2))
      >>> jax.vmap(product)(jnp.eye(2)).tolist()
      [[2.0, 3.0], [3.0, 0.0]]
    """
    return _linearized(loss, params)


class Flat(NamedTuple):
    """A loss at its parameters, in flat coordinates."""

    gradient: jax.Array
    product: Product
    params: jax.Array
    unravel: Callable[[jax.Array], Params]


def flat_product(loss: Loss, params: Params) -> Flat:
    """Gradient and Hessian product in flat coordinates, the flat parameters, and the way back.

    Parameters of 16 bits are taken as float32, and so is everything that comes of them.
    """
    flat, unravel = ravel(in_single(params))
    g, product = _linearized(lambda x: loss(unravel(x)), flat)
    return Flat(g, product, flat, unravel)


@jax.tree_util.register_pytree_node_class
class Hessian:
    """The Hessian of a loss in flat coordinates, as an argument of compiled functions.

    Two programs: one from the parameters to the gradient and what products need, one from that and
    a vector to the product.
    """

    def __init__(self, forward: _programs.Program, product: _programs.Code) -> None:
        self.forward, self.product = forward, product

    @classmethod
    def of(cls, loss: Loss, params: Params) -> "Hessian":
        codes = []

        def forward(params: Params) -> tuple[jax.Array, list[Any]]:
            g, product, flat, _ = flat_product(loss, params)
            inner = _programs.trace(product, flat)
            codes.append(inner.code)
            return g, inner.consts

        program = _programs.trace(forward, params)
        return cls(program, codes[0])

    def at(self, params: Params) -> Flat:
        """What `flat_product` returns."""
        flat, unravel = ravel(in_single(params))
        g, needed = self.forward(params)
        return Flat(g, lambda vector: self.product(needed, vector), flat, unravel)

    def differentiable(self, values: jax.Array, vectors: jax.Array, params: Params) -> jax.Array:
        """The values: where they were found without a transformation, there is no derivative."""
        return values

    def tree_flatten(self) -> tuple[tuple[_programs.Program], _programs.Code]:
        return (self.forward,), self.product

    @classmethod
    def tree_unflatten(cls, product: _programs.Code, children: tuple[Any]) -> "Hessian":
        return cls(children[0], product)


class Traced:
    """The Hessian of a loss where a transformation is at work, which needs the loss itself."""

    def __init__(self, loss: Loss) -> None:
        self._loss = loss

    def differentiable(self, values: jax.Array, vectors: jax.Array, params: Params) -> jax.Array:
        r"""Eigenvalues [k] with their derivative $\partial\lambda = u^\top(\partial H)u$.

        `vectors` [k, n] are taken to be the eigenvectors, and as constants.
        """
        loss = self._loss

        @jax.custom_jvp
        def of(params: Params, values: jax.Array, vectors: jax.Array) -> jax.Array:
            return values

        @of.defjvp
        def _(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
            params, values, vectors = primals

            def bends(params: Params) -> jax.Array:
                _, product, _, _ = flat_product(loss, params)
                return jax.vmap(lambda u: u @ product(u))(vectors)

            return values, jax.jvp(bends, (params,), (tangents[0],))[1].astype(values.dtype)

        return of(params, values, jax.lax.stop_gradient(vectors))

    def at(self, params: Params) -> Flat:
        """What `flat_product` returns."""
        return flat_product(self._loss, params)


def compiled(*static: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Compiles a function of (Hessian, params, …) so that it can be called with (loss, params, …).

    Losses that compute the same on other data share a program (see `pfcore._programs`). Under a
    transformation, or within a compiled function, it becomes a part of that.
    """

    def decorate(body: Callable[..., Any]) -> Callable[..., Any]:
        body = _programs.broadcasting()(body)
        jitted = jax.jit(body, static_argnames=static)

        @functools.wraps(body)
        def call(loss: Any, params: Params, *args: Any, **options: Any) -> Any:
            if isinstance(loss, Hessian | Traced):  # within another of these functions
                return body(loss, params, *args, **options)
            if is_hosted(loss):
                if _programs.is_traced(params):
                    raise TypeError(
                        f"{type(loss).__name__} goes through its batches in Python, which a "
                        "compiled function or a transformation cannot; call this outside them"
                    )
                with jax.disable_jit():
                    return body(loss, params, *args, **options)
            if _programs.is_traced(params):
                return body(Traced(loss), params, *args, **options)
            # Traced at every call, as in `gradient_and_hvp`; what it compiles is shared.
            hessian = Hessian.of(loss, params)
            return jitted(hessian, params, *args, **options)

        return call

    return decorate
