"""Gradients and products with the Hessian or another curvature, in flat coordinates.

Losses may be evaluated at complex parameters, other curvatures only at real ones.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pfcore import _programs
from pfcore._checks import Loss, check_vector, is_hosted
from pfcore._trees import Params, check_params, flat_of, in_single, is_complex, ravel

MODES = ("forward-over-reverse", "reverse-over-reverse")
Product = Callable[[Any], Any]  # v -> H v


class Flat(NamedTuple):
    """A loss or a curvature at its parameters, in flat coordinates."""

    gradient: Any  # of the loss, an array; None for a curvature without a loss
    product: Product
    params: jax.Array
    unravel: Callable[[jax.Array], Params]


class Part(NamedTuple):
    """A part of the parameters: the whole, and the maps from the part to the whole and back."""

    whole: Params
    fill: Callable[[Params], Params]
    take: Callable[[Params], Params]


class Curvature:
    """A symmetric matrix that depends on parameters, given by its products.

    The routines of `pfcore.curvature`, except `critical_learning_rate`, and
    `pfcore.learning_rates.sharpness_rate` take a curvature in place of a loss. It is created by
    `gauss_newton`, `fisher`, `empirical_fisher`, `preconditioned`, `symmetric`, `subset`,
    `over_batches` or `watched`.

    Attributes:
      positive_semidefinite: whether no eigenvalue is negative. Functions of the matrix are then
        evaluated at non-negative numbers only, also where rounding error makes an eigenvalue
        negative.
      has_gradient: whether it belongs to a loss, and provides the gradient of that loss.
    """

    positive_semidefinite: bool = False
    has_gradient: bool = False
    has_value: bool = False  # whether it can be called like a loss
    hosted: bool = False  # whether Python drives the products

    def check_at(self, params: Params) -> Params:
        """Return checked `params` at which the curvature can be evaluated."""
        raise NotImplementedError

    def at(self, params: Params) -> Flat:
        """Gradient and product in flat coordinates."""
        raise NotImplementedError

    def bound(self, batch: Any, index: Any) -> "Curvature":
        """The curvature of one batch, if its functions take a batch as a further argument."""
        raise NotImplementedError

    def restricted(self, part: Part) -> "Curvature":
        """The block that belongs to a part of the parameters."""
        raise NotImplementedError

    def constant(self, params: Params) -> Flat:
        """The same; see `Traced`."""
        return self.at(params)

    def differentiable(
        self, values: jax.Array, vectors: jax.Array, simple: jax.Array, params: Params
    ) -> jax.Array:
        """The values, without a derivative, since the products run in Python; see `Traced`."""
        return values


LossOrCurvature = Loss | Curvature


def gradient(loss: Loss, params: Params) -> Params:
    r"""$\nabla E(\theta)$; at complex parameters the derivative of the analytic continuation."""
    return jax.grad(loss, holomorphic=is_complex(params))(params)


def _reverse_only(linear: Product, params: Params) -> bool:
    """Whether a linearised function holds a primitive that JAX can only transpose."""
    traced = jax.make_jaxpr(linear)(params)
    return any(e.primitive.name == "custom_lin" for e in _programs.equations(traced.jaxpr))


def _forward_refused(error: Exception) -> bool:
    """Whether JAX raised this error because a function has a reverse-mode rule only."""
    text = str(error)
    return "forward-mode" in text or "jvp" in text.lower()


def _linearized(loss: Any, params: Params, mode: str | None = None) -> tuple[Params, Product]:
    """Gradient and Hessian product: forward over reverse if possible, else reverse over reverse."""
    if isinstance(loss, Curvature):
        g, product, _, unravel = loss.at(check_params(params))
        flat_gradient = None if g is None else unravel(g)
        return flat_gradient, lambda vector: unravel(product(ravel(in_single(vector))[0]))

    def of_loss(p: Params) -> Params:
        return gradient(loss, p)

    refused: Exception = TypeError("not requested.")
    if mode != MODES[1]:
        try:
            g, product = jax.linearize(of_loss, params)
            if not _reverse_only(product, params):
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
    """Gradient and Hessian product, reverse over reverse, after forward mode failed."""
    try:
        g, transposed = jax.vjp(of_loss, params)
        jax.eval_shape(transposed, params)  # some rules are evaluated only here
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
    loss: LossOrCurvature, params: Params, vector: Params, mode: str | None = None
) -> tuple[Params, Params]:
    """Gradient and Hessian product in one pass, with the structure of `params`.

    Outside compiled functions it is one program, shared by losses with the same computation.
    """
    if mode not in (None, *MODES):
        raise ValueError(f"mode must be None or one of {', '.join(MODES)}, got {mode!r}")
    if isinstance(loss, Curvature):
        if mode is not None:
            raise ValueError(
                f"mode says how the Hessian of a loss is differentiated, got {mode!r} with "
                f"{type(loss).__name__}; leave it at None"
            )
        if loss.hosted:
            return _both(loss, mode, params, vector)
    if _programs.is_traced(params, vector):
        return _both(loss, mode, params, vector)
    # Traced at every call: without `jax.jit` a loss may read a batch that has changed since.
    program = _programs.trace(functools.partial(_both, loss, mode), params, vector)
    return _programs.run(program, params, vector)


def _both(loss: Any, mode: str | None, params: Params, vector: Params) -> tuple[Params, Params]:
    g, product = _linearized(loss, params, mode)
    return g, product(vector)


@_programs.settings()
def hvp(
    loss: LossOrCurvature, params: Params, vector: Params, *, mode: str | None = None
) -> Params:
    r"""Hessian-vector product $H(\theta)\,v$, forward over reverse.

    If JAX has no forward mode for the loss (a `jax.custom_vjp` without a forward rule, or a kernel
    with a backward pass only), it is reverse over reverse. This takes more memory, and the backward
    pass must be differentiable.

    At complex parameters the Hessian is that of the analytic continuation: complex symmetric,
    not Hermitian.

    Args:
      loss: $E$, from `params` to a scalar, or a `Curvature` in place of its Hessian.
      params: any pytree of floating-point arrays, $\theta$.
      vector: $v$, with the structure and shapes of `params`; cast to their dtypes.
      mode: "forward-over-reverse" or "reverse-over-reverse"; None takes the first that works.

    Returns:
      $H v$, with the structure of `params`. Costs about two gradients.

    Raises:
      TypeError: the loss cannot be differentiated twice, or not in the requested mode.
      ValueError: `mode` is unknown or given for a `Curvature`, or a leaf of `vector` is missing or
        of another shape.

    Example:
      >>> import jax.numpy as jnp, pfcore
      >>> loss = lambda x: x[0] ** 2 + 3 * x[0] * x[1]
      >>> pfcore.curvature.hvp(loss, jnp.zeros(2), jnp.array([1.0, 0.0])).tolist()
      [2.0, 3.0]
    """
    vector = jax.tree.map(
        lambda v, p: v.astype(jnp.result_type(p)), check_vector("vector", vector, params), params
    )
    return gradient_and_hvp(loss, params, vector, mode)[1]


@_programs.settings()
def linearized_hvp(loss: LossOrCurvature, params: Params) -> tuple[Params, Product]:
    r"""$(g, v \mapsto Hv)$, linearised once: terms that do not depend on $v$ are not recomputed.

    Products at one point cost about a fifth less than calls of `hvp` (digits network, CPU). Like
    `hvp`, it is reverse over reverse if JAX has no forward mode for the loss.

    Args:
      loss: $E$, from `params` to a real scalar, or a `Curvature` in place of its Hessian.
      params: any pytree of floating-point arrays, $\theta$.

    Returns:
      The gradient, with the structure of `params` (None for a curvature without a gradient), and a
      linear function from vectors of that structure to products. `jax.vmap` of it multiplies a
      batch of vectors in one pass.

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


def linearized_function(
    function: Callable[[Params], Any], params: Params
) -> tuple[Any, Product, Product]:
    """Value, product with the Jacobian, and product with its transpose, linearised once."""
    refused: Exception
    try:
        value, forward = jax.linearize(function, params)
        if not _reverse_only(forward, params):
            return value, forward, lambda u: jax.linear_transpose(forward, params)(u)[0]
        refused = TypeError("a jax.custom_vjp in the function has no forward-mode rule.")
    except (TypeError, NotImplementedError, ValueError) as error:
        if not _forward_refused(error):
            raise
        refused = error
    value, pulled = jax.vjp(function, params)

    def backward(u: Any) -> Params:
        return pulled(u)[0]

    def transposed(v: Params) -> Any:
        return jax.vjp(backward, value)[1](v)[0]

    try:  # the transpose of this function, which is linear in the cotangent, is the Jacobian
        jax.eval_shape(transposed, params)
    except (TypeError, NotImplementedError, ValueError) as error:
        raise TypeError(
            "a product with the Jacobian needs forward mode, or a backward pass that can be "
            "differentiated, and a part of the function has neither "
            f"(forward: {_first_line(refused)} reverse: {_first_line(error)})"
        ) from error
    return value, transposed, backward


def flat_product(loss: Any, params: Params) -> Flat:
    """Gradient and product in flat coordinates, the flat parameters, and the inverse map.

    16-bit parameters are converted to float32, and results are float32.
    """
    if isinstance(loss, Curvature):
        return loss.at(params)
    params = in_single(params)
    flat, unravel = ravel(params)
    g, product = _linearized(loss, params)
    return Flat(
        flat_of(g, flat.dtype),
        lambda vector: flat_of(product(unravel(vector)), flat.dtype),
        flat,
        unravel,
    )


def of_batch(loss: Any, batch: Any, index: Any) -> Any:
    """A loss or a curvature of one batch, of number `index`."""
    if isinstance(loss, Curvature):
        return loss.bound(batch, index)
    return lambda params: loss(params, batch)


def of_part(loss: Any, part: Part) -> Any:
    """A loss or a curvature of a part of the parameters."""
    if isinstance(loss, Curvature):
        return loss.restricted(part)
    return lambda params: loss(part.fill(params))


def has_gradient(loss: Any) -> bool:
    return not isinstance(loss, Curvature) or loss.has_gradient


def is_positive_semidefinite(loss: Any) -> bool:
    """Whether a curvature is declared positive semidefinite; false for a loss."""
    return isinstance(loss, Curvature) and loss.positive_semidefinite


@jax.tree_util.register_pytree_node_class
class Hessian:
    """The Hessian of a loss, or another curvature, as an argument of compiled functions.

    Two programs: one from the parameters to the gradient and the data that products need, and one
    from those data and a vector to the product.
    """

    def __init__(
        self, forward: _programs.Program, product: _programs.Code, positive_semidefinite: bool
    ) -> None:
        self.forward, self.product = forward, product
        self.positive_semidefinite = positive_semidefinite

    @classmethod
    def of(cls, loss: Any, params: Params) -> "Hessian":
        """Traced at every call, since a function may read data that change, unless the function is
        known not to."""
        if _programs.is_fixed(loss):
            return _programs.remembered("hessian", loss, params, lambda: cls._traced(loss, params))
        return cls._traced(loss, params)

    @classmethod
    def _traced(cls, loss: Any, params: Params) -> "Hessian":
        codes = []

        def forward(params: Params) -> tuple[jax.Array | None, list[Any]]:
            g, product, flat, _ = flat_product(loss, params)
            inner = _programs.trace(product, flat)
            codes.append(inner.code)
            return g, inner.consts

        program = _programs.trace(forward, params)
        return cls(program, codes[0], is_positive_semidefinite(loss))

    def at(self, params: Params) -> Flat:
        """The same as `flat_product`."""
        _programs.computed_by(self.product.jaxpr)
        flat, unravel = ravel(in_single(params))
        g, needed = self.forward(params)
        return Flat(g, lambda vector: self.product(needed, vector), flat, unravel)

    constant = at

    def differentiable(
        self, values: jax.Array, vectors: jax.Array, simple: jax.Array, params: Params
    ) -> jax.Array:
        """The values, without a derivative: no transformation is active."""
        return values

    def tree_flatten(self) -> tuple[tuple[_programs.Program], tuple[_programs.Code, bool]]:
        return (self.forward,), (self.product, self.positive_semidefinite)

    @classmethod
    def tree_unflatten(cls, static: tuple[_programs.Code, bool], children: tuple[Any]) -> "Hessian":
        return cls(children[0], *static)


class Traced:
    """The Hessian or curvature under a transformation, which needs the loss itself."""

    def __init__(self, loss: Any) -> None:
        self._loss = loss
        self.positive_semidefinite = is_positive_semidefinite(loss)

    def differentiable(
        self, values: jax.Array, vectors: jax.Array, simple: jax.Array, params: Params
    ) -> jax.Array:
        r"""Eigenvalues [k] with their derivative $\partial\lambda = u^\top(\partial H)u$.

        `vectors` [k, n] are assumed to be the eigenvectors, and treated as constants. An eigenvalue
        that is not `simple` [k] has no derivative: this raises an error if the values are known, as
        under `jax.grad` alone, and gives NaN within compiled functions.
        """
        loss = self._loss

        def bends(params: Params, vectors: jax.Array) -> jax.Array:
            _, product, _, _ = flat_product(loss, params)
            return jax.vmap(lambda u: u @ product(u))(vectors)

        # A derivative rule must not read tracers: what the loss closes over becomes an argument.
        closed = jax.make_jaxpr(bends)(params, vectors)

        @jax.custom_jvp
        def of(params: Params, read: list[Any], values: Any, vectors: Any, simple: Any):
            return values

        @of.defjvp
        def _(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
            params, read, values, vectors, simple = primals
            if not _programs.is_traced(simple, values) and not bool(simple.all()):
                doubtful = [float(x) for x in values[~simple]]
                raise ValueError(
                    f"the eigenvalues {doubtful} of {[float(x) for x in values]} lie within twice "
                    "their residual of another one, and an eigenvalue that is not simple has no "
                    "derivative; ask for fewer of them, or for a smaller tolerance if they are "
                    "close and not equal"
                )

            def along(params: Params, read: list[Any]) -> jax.Array:
                leaves = jax.tree.leaves((params, vectors))
                return jax.core.eval_jaxpr(closed.jaxpr, read, *leaves)[0]

            moved = jax.jvp(along, (params, read), tangents[:2])[1].astype(values.dtype)
            # As a factor, so that it also applies to the transposed rule.
            return values, jnp.where(simple, 1, jnp.nan).astype(values.dtype) * moved

        return of(params, closed.consts, values, jax.lax.stop_gradient(vectors), simple)

    def at(self, params: Params) -> Flat:
        """The same as `flat_product`."""
        flat = flat_product(self._loss, params)
        _programs.computed_by(jax.make_jaxpr(flat.product)(flat.params).jaxpr)
        return flat

    def constant(self, params: Params) -> Flat:
        """The same, without derivatives, also with respect to what the loss closes over."""
        g, product, flat, unravel = flat_product(self._loss, jax.lax.stop_gradient(params))
        program = _programs.trace(product, flat)
        _programs.computed_by(program.code.jaxpr)
        program, g = jax.lax.stop_gradient((program, g))
        return Flat(g, program, flat, unravel)


def compiled(*static: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Compile a function of (Hessian, params, …) to be called with (loss, params, …).

    A `Curvature` may take the place of the loss. Losses with the same computation on other data
    share a program (see `pfcore._programs`). Under a transformation or within a compiled function,
    the body becomes part of that.
    """

    def decorate(body: Callable[..., Any]) -> Callable[..., Any]:
        body = _programs.products()(_programs.settings()(body))
        jitted = jax.jit(body, static_argnames=static)

        @functools.wraps(body)
        def call(loss: Any, params: Params, *args: Any, **options: Any) -> Any:
            if isinstance(loss, Hessian | Traced):  # within another of these functions
                return body(loss, params, *args, **options)
            if is_hosted(loss):
                if _programs.is_traced(params):
                    raise TypeError(
                        f"the products of {type(loss).__name__} run in Python, which is not "
                        "possible in a compiled function or under a transformation; call this "
                        "outside them"
                    )
                with jax.disable_jit():
                    return body(loss, params, *args, **options)
            if _programs.is_traced(params):
                return body(Traced(loss), params, *args, **options)
            hessian = Hessian.of(loss, params)
            if _programs.is_traced(hessian):  # a loss that reads what is being transformed
                return body(Traced(loss), params, *args, **options)
            return jitted(hessian, params, *args, **options)

        return call

    return decorate
