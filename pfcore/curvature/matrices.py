r"""Curvature matrices: Gauss-Newton, Fisher, preconditioned, and user-defined ones.

Several matrices have the form $J^\top M J$, with the Jacobian $J$ of a network's outputs and a
matrix $M$ in the space of outputs. $M$ is the Hessian of the loss for the generalised Gauss-Newton
matrix, the Fisher matrix of the predicted distribution for the Fisher matrix, and, with the losses
of the samples as outputs, a multiple of the identity for the empirical Fisher matrix. One class
implements them: a product with $J$, one with $M$, and one with $J^\top$.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pfcore import _programs
from pfcore._checks import (
    KeyLike,
    check_count,
    check_curvature,
    check_finite,
    check_key,
    check_vector,
)
from pfcore._trees import Params, flat_of, in_single, ravel
from pfcore.curvature.products import (
    Curvature,
    Flat,
    Part,
    Product,
    flat_product,
    has_gradient,
    is_positive_semidefinite,
    linearized_function,
    linearized_hvp,
    of_batch,
    of_part,
)

KINDS = ("cross_entropy", "mse")
Outputs = Any  # a pytree of floating-point arrays, or one array
# (outputs, index of the batch, *batch) -> gradient in the outputs or None, and product with M
AtOutputs = Callable[..., tuple[Outputs | None, Product]]


def _described(shapes: Any) -> str:
    return ", ".join(f"{x.dtype}{list(x.shape)}" for x in jax.tree.leaves(shapes)) or "nothing"


class Factored(Curvature):
    """$J^\top M J$ for the Jacobian of `predict` and a matrix in the space of its outputs."""

    def __init__(
        self,
        name: str,
        predict: Callable[..., Outputs],
        at_outputs: AtOutputs,
        check: Callable[[Any], None],
        loss: Callable[..., jax.Array] | None,
        positive_semidefinite: bool,
        has_gradient: bool,
        batch: tuple[Any, ...] = (),
        index: Any = 0,
    ) -> None:
        self._name, self._predict, self._at_outputs = name, predict, at_outputs
        self._check, self._loss, self._batch, self._index = check, loss, batch, index
        self.positive_semidefinite = positive_semidefinite
        self.has_gradient = has_gradient

    def __repr__(self) -> str:
        return f"{self._name}({self._predict!r})"

    def _with(self, **changes: Any) -> "Factored":
        kept = {
            "name": self._name,
            "predict": self._predict,
            "at_outputs": self._at_outputs,
            "check": self._check,
            "loss": self._loss,
            "positive_semidefinite": self.positive_semidefinite,
            "has_gradient": self.has_gradient,
            "batch": self._batch,
            "index": self._index,
        }
        return Factored(**(kept | changes))

    def bound(self, batch: Any, index: Any) -> "Factored":
        return self._with(batch=(batch,), index=index)

    def restricted(self, part: Part) -> "Factored":
        predict = self._predict
        return self._with(predict=lambda params, *batch: predict(part.fill(params), *batch))

    def _outputs(self, params: Params) -> Outputs:
        return self._predict(params, *self._batch)

    def check_at(self, params: Params) -> Params:
        shapes = jax.eval_shape(self._outputs, params)
        leaves = jax.tree.leaves(shapes)
        if not leaves or not all(jnp.issubdtype(x.dtype, jnp.floating) for x in leaves):
            raise TypeError(
                f"{self._name} needs real floating-point outputs, got {_described(shapes)}; let "
                "the function return them alone"
            )
        self._check(shapes)
        loss, batch = self._loss, self._batch
        if loss is not None:
            shape = jax.eval_shape(lambda y: loss(y, *batch), shapes)
            if getattr(shape, "shape", None) != ():
                raise ValueError(
                    f"loss_of_outputs must return one number, got {_described(shape)}; reduce it, "
                    "for instance with jnp.mean"
                )
            if not jnp.issubdtype(shape.dtype, jnp.floating):
                raise TypeError(f"loss_of_outputs must return a real number, got {shape.dtype}")
        if _programs.is_traced(params):
            return params

        def value(params: Params) -> jax.Array:
            outputs = self._outputs(params)
            if loss is not None:
                return loss(outputs, *batch)
            # Tested one by one, since a sum may overflow.
            finite = [jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(outputs)]
            return jnp.where(jnp.all(jnp.stack(finite)), 0.0, jnp.nan)

        check_finite(_programs.evaluate(value, params))
        return params

    def at(self, params: Params) -> Flat:
        params = in_single(params)
        flat, unravel = ravel(params)
        outputs, forward, backward = linearized_function(self._outputs, params)
        g, middle = self._at_outputs(outputs, self._index, *self._batch)

        def product(vector: jax.Array) -> jax.Array:
            return flat_of(backward(middle(forward(unravel(vector)))), flat.dtype)

        gradient = None if g is None else flat_of(backward(g), flat.dtype)
        return Flat(gradient, product, flat, unravel)


def gauss_newton(
    predict: Any,
    loss_of_outputs: Any,
    *,
    convex: bool = True,
) -> Curvature:
    r"""The generalised Gauss-Newton matrix, $G = J^\top H_\text{out} J$.

    $J$ is the Jacobian of `predict` at $\theta$ and $H_\text{out}$ the Hessian of
    `loss_of_outputs` at the outputs. It is the Hessian of $E = \ell \circ f$ without its second
    term, $\sum_j (\partial\ell/\partial f_j)\,\nabla^2 f_j$; the two are equal if the outputs are
    linear in the parameters. $G$ has the same normalisation as the Hessian of the loss: a mean, sum
    or factor in `loss_of_outputs` applies to both.

    A product takes one product each with $J$, $H_\text{out}$ and $J^\top$, which is less work than
    a Hessian product.

    Args:
      predict: $f$, from `params` to the outputs of all samples, any pytree of floats.
      loss_of_outputs: $\ell$, from the outputs to a real scalar.
      convex: whether $\ell$ is convex, as mean squared error and cross-entropy are. Then $G$ is
        positive semidefinite, and `positive_semidefinite` is true. Pass False for other losses.

    Returns:
      A `Curvature`, to pass in place of a loss. In `over_batches` both functions take a batch as a
      further argument.

    Raises:
      TypeError: an argument is not a function. When used: the outputs are not floating-point.
      ValueError: when used: `loss_of_outputs` does not return a finite scalar.

    Example:
      >>> import jax.numpy as jnp, pfcore
      >>> x, y = jnp.array([1.0, 2.0]), jnp.array([0.5, 0.0])
      >>> predict = lambda w: jnp.tanh(w * x)
      >>> G = pfcore.curvature.gauss_newton(predict, lambda f: 0.5 * jnp.sum((f - y) ** 2))
      >>> pfcore.curvature.spectrum(G, jnp.zeros(1)).tolist()  # 1 + 4
      [5.0]

    References:
      Schraudolph, *Fast curvature matrix-vector products for second-order gradient descent*, Neural
      Computation 14 (2002); Martens, *New insights and perspectives on the natural gradient
      method*, JMLR 21 (2020), section 8.
    """
    for name, function in {"predict": predict, "loss_of_outputs": loss_of_outputs}.items():
        if not callable(function):
            raise TypeError(f"{name} must be a function, got {function!r}")

    def at_outputs(outputs: Outputs, index: Any, *batch: Any) -> tuple[Outputs, Product]:
        return linearized_hvp(lambda y: loss_of_outputs(y, *batch), outputs)

    return Factored(
        "gauss_newton",
        predict,
        at_outputs,
        lambda shapes: None,
        loss_of_outputs,
        bool(convex),
        True,
    )


# ---- the Fisher matrix


def _positions(outputs: jax.Array) -> int:
    """The number of distributions: one for each sample, or for each position in a sequence."""
    return outputs.size // outputs.shape[-1]


def _with_two_classes(x: jax.Array) -> jax.Array:
    """A single logit z of two classes as the pair (0, z)."""
    return jnp.concatenate([jnp.zeros_like(x), x], axis=-1) if x.shape[-1] == 1 else x


def _drawn_classes(key: jax.Array, logits: jax.Array, samples: int) -> jax.Array:
    """The number of draws of each class, shaped like the logits, in the memory of one draw."""

    wide = in_single(logits)  # in bfloat16, counting ends at 256

    def draw(i: jax.Array | int, counts: jax.Array) -> jax.Array:
        classes = jax.random.categorical(jax.random.fold_in(key, i), wide)
        return counts + jax.nn.one_hot(classes, wide.shape[-1], dtype=wide.dtype)

    return jax.lax.fori_loop(0, samples, draw, jnp.zeros_like(wide)).astype(logits.dtype)


def _categorical(outputs: jax.Array, key: jax.Array | None, samples: int | None) -> Product:
    """u ↦ mean over positions of E[(p − e_y)(p − e_y)ᵀ]u, exact or over sampled classes y."""
    single = outputs.shape[-1] == 1
    logits = _with_two_classes(outputs)
    p = jax.nn.softmax(logits, axis=-1)
    counts = p if samples is None or key is None else _drawn_classes(key, logits, samples)
    weight = 1.0 / (_positions(outputs) * (samples or 1))

    def product(u: jax.Array) -> jax.Array:
        u = _with_two_classes(u)
        along = counts * (jnp.sum(p * u, axis=-1, keepdims=True) - u)  # count · (p − e)ᵀu
        image = weight * (p * jnp.sum(along, axis=-1, keepdims=True) - along)
        return image[..., 1:] if single else image

    return product


def _gaussian(outputs: jax.Array, key: jax.Array | None, samples: int | None) -> Product:
    """As `_categorical`, for a normal distribution of unit variance around the outputs."""
    weight = 1.0 / _positions(outputs)
    if samples is None or key is None:
        return lambda u: weight * u
    residuals = jax.random.normal(key, (samples, *outputs.shape), outputs.dtype)

    def product(u: jax.Array) -> jax.Array:
        along = jnp.sum(residuals * u[None], axis=-1, keepdims=True)
        return weight * jnp.mean(residuals * along, axis=0)

    return product


def fisher(
    predict: Any,
    kind: str,
    *,
    samples: int | None = None,
    key: KeyLike | None = None,
) -> Curvature:
    r"""The Fisher information matrix of the distribution that a network predicts.

    $$
    \begin{aligned}
    F &= \frac1N \sum_{i=1}^N \mathbb{E}_{y \sim p(\cdot \mid f_i)}
         \bigl[g_i(y)\,g_i(y)^\top\bigr], \\
    g_i(y) &= \nabla_\theta \log p(y \mid f_i),
    \end{aligned}
    $$

    the mean over the N positions of outputs $[n, \dots, k]$, given by all axes but the last. It
    does not depend on targets. The distribution is

    * "cross_entropy": $\operatorname{softmax} f$; with one output, $\operatorname{sigmoid} f$ for
      the second of two classes. F is the Gauss-Newton matrix of the mean cross-entropy.
    * "mse": normal around f with unit variance. F is the Gauss-Newton matrix of the mean of
      $\tfrac12\|f - y\|^2$, and half of that of the mean of $\|f - y\|^2$.

    Its scale is that of `pfcore.losses.full_batch` without weights.

    With `samples`, the expectation is a mean over that many draws of $y$ at each position. This
    estimate of F is unbiased, with variance proportional to 1/samples. The draws depend on `key`
    and on the parameters through $p$; another key gives an independent estimate, and the spread
    over keys is the error.

    Args:
      predict: $f$, from `params` to an array [n, ..., k]: logits for "cross_entropy".
      kind: "cross_entropy" or "mse".
      samples: number of draws for each position; None for the exact expectation, which is not more
        expensive.
      key: for the draws, `jax.random.key(seed)`.

    Returns:
      A positive semidefinite `Curvature`, without a gradient, since there is no loss. In
      `over_batches`, `predict` takes a batch as a further argument, and each batch has its own
      draws.

    Raises:
      ValueError: `kind` is unknown, `samples` is below 1, or only one of `samples` and `key` is
        given. When used: outputs have no axis of samples, or are not finite.
      TypeError: `predict` is not a function, `samples` is not an integer.

    Example:
      >>> import jax.numpy as jnp, pfcore
      >>> predict = lambda w: w[None]  # the logits themselves, of one sample
      >>> F = pfcore.curvature.fisher(predict, "cross_entropy")
      >>> values = pfcore.curvature.spectrum(F, jnp.zeros(2))  # of diag(p) − p pᵀ
      >>> [round(abs(float(value)), 6) for value in values]
      [0.0, 0.5]

    References:
      Martens, *New insights and perspectives on the natural gradient method*, JMLR 21 (2020);
      Kunstner, Balles, Hennig, *Limitations of the empirical Fisher approximation*, NeurIPS 2019
      (arXiv 1905.12558).
    """
    if not callable(predict):
        raise TypeError(f"predict must be a function of params, got {predict!r}")
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    if samples is not None:
        samples = check_count("samples", samples, minimum=1)
    if key is not None:
        key = check_key(key)
    if (samples is None) != (key is None):
        missing = "key" if key is None else "samples"
        raise ValueError(
            f"the Monte Carlo Fisher needs samples and key, and {missing} is missing; without "
            "both it is exact"
        )
    of = _categorical if kind == "cross_entropy" else _gaussian

    def check(shapes: Any) -> None:
        if not isinstance(shapes, jax.ShapeDtypeStruct) or len(shapes.shape) < 2:
            raise ValueError(
                "the outputs of fisher must be one array [n, ..., k] with the samples first, got "
                f"{_described(shapes)}; for one sample add an axis, outputs[None]"
            )

    def at_outputs(outputs: jax.Array, index: Any, *batch: Any) -> tuple[None, Product]:
        own = None if key is None else jax.random.fold_in(key, index)
        return None, of(outputs, own, samples)

    return Factored("fisher", predict, at_outputs, check, None, True, False)


def empirical_fisher(loss_per_sample: Any) -> Curvature:
    r"""The empirical Fisher, the mean of outer products of the samples' gradients.

    $$\frac1N \sum_i \nabla\ell_i\,\nabla\ell_i^\top,$$

    for the mean loss $E = \frac1N \sum_i \ell_i$. It uses the targets of the data rather than
    targets drawn from the predicted distribution. Therefore it is not the Fisher matrix, and it
    does not approximate the Hessian away from a perfect fit. It has the unit of the loss squared.

    Args:
      loss_per_sample: from `params` to the losses $\ell_i$, an array of N numbers of any shape.

    Returns:
      A positive semidefinite `Curvature`, with the gradient of the mean. In `over_batches`,
      `loss_per_sample` takes a batch as a further argument.

    Raises:
      TypeError: `loss_per_sample` is not a function.
      ValueError: when used: it returns a scalar, several arrays, or numbers that are not finite.

    Example:
      >>> import jax.numpy as jnp, pfcore
      >>> x = jnp.array([[1.0, 0.0], [0.0, 2.0]])
      >>> F = pfcore.curvature.empirical_fisher(lambda w: x @ w)  # gradients (1, 0) and (0, 2)
      >>> pfcore.curvature.spectrum(F, jnp.zeros(2)).tolist()
      [0.5, 2.0]

    References:
      Kunstner, Balles, Hennig, NeurIPS 2019 (arXiv 1905.12558).
    """
    if not callable(loss_per_sample):
        raise TypeError(f"loss_per_sample must be a function of params, got {loss_per_sample!r}")

    def check(shapes: Any) -> None:
        if not isinstance(shapes, jax.ShapeDtypeStruct) or shapes.shape == ():
            raise ValueError(
                f"loss_per_sample must return one array of losses, got {_described(shapes)}; "
                "return them before they are averaged"
            )

    def at_outputs(losses: jax.Array, index: Any, *batch: Any) -> tuple[jax.Array, Product]:
        weight = 1.0 / losses.size
        return jnp.full_like(losses, weight), lambda u: weight * u

    return Factored("empirical_fisher", loss_per_sample, at_outputs, check, None, True, True)


# ---- preconditioned


class Preconditioned(Curvature):
    """$S H S$; see `preconditioned`."""

    def __init__(self, loss: Any, scale: Params) -> None:
        if not callable(loss) and not isinstance(loss, Curvature):
            raise TypeError(f"loss must be a function of params or a Curvature, got {loss!r}")
        self._loss, self._scale = loss, scale
        self.positive_semidefinite = is_positive_semidefinite(loss)
        self.has_gradient = has_gradient(loss)
        self.hosted = getattr(loss, "hosted", False)

    def __repr__(self) -> str:
        return f"preconditioned({self._loss!r})"

    def _full_scale(self, params: Params) -> Params:
        """S with the structure and shapes of the parameters; raises an error if it has others."""
        try:
            scale = jax.tree.broadcast(self._scale, params)
            scale = jax.tree.map(
                lambda s, p: jnp.broadcast_to(s, p.shape) if jnp.ndim(s) == 0 else s, scale, params
            )
        except (ValueError, TypeError):
            scale = self._scale
        return check_vector("scale", scale, params)

    def check_at(self, params: Params) -> Params:
        params = check_curvature(self._loss, params)
        self._full_scale(params)
        for path, leaf in jax.tree_util.tree_leaves_with_path(self._scale):
            if isinstance(leaf, jax.core.Tracer):
                continue
            values = np.asarray(leaf, float)  # by NumPy, also within compiled functions
            if not np.all(np.isfinite(values) & (values >= 0)):
                raise ValueError(
                    f"scale{jax.tree_util.keystr(path)} must be finite and not negative, got "
                    f"values from {values.min()} to {values.max()}"
                )
        return params

    def at(self, params: Params) -> Flat:
        g, product, flat, unravel = flat_product(self._loss, params)
        s = ravel(in_single(self._full_scale(params)))[0].astype(flat.dtype)
        scaled = None if g is None else s * g
        return Flat(scaled, lambda vector: s * product(s * vector), flat, unravel)

    def bound(self, batch: Any, index: Any) -> "Preconditioned":
        return Preconditioned(of_batch(self._loss, batch, index), self._scale)

    def restricted(self, part: Part) -> "Preconditioned":
        scale = part.take(self._full_scale(part.whole))
        return Preconditioned(of_part(self._loss, part), scale)


def preconditioned(loss: Any, scale: Params) -> Curvature:
    r"""The curvature in the coordinates of an adaptive optimiser, $S H S$ with a diagonal S.

    An optimiser with updates $-h P^{-1} g$ is gradient descent in the coordinates $S^{-1}\theta$
    with $S = P^{-1/2}$, where the Hessian is $S H S$ and the gradient $S g$. Its eigenvalues are
    those of $P^{-1}H$. For constant P, steps are stable if they are below $2/h$, or below
    $(2 + 2\beta)/((1 - \beta)h)$ with momentum $\beta$ as an exponential moving average.

    Args:
      loss: $E$, from `params` to a real scalar, or a `Curvature` in place of its Hessian.
      scale: the diagonal of S, at least 0, with the structure and shapes of `params`. A number in
        place of a leaf or of a subtree applies to all of its entries. `optimizer_scale` returns the
        scale of Adam, RMSProp and AdaGrad. Zero excludes a parameter.

    Returns:
      A `Curvature`, positive semidefinite if the given one is. Eigenvectors are in the new
      coordinates; multiplied by `scale` they are directions of the parameters.

    Raises:
      TypeError: `loss` is neither a function nor a `Curvature`. When used: as for the loss.
      ValueError: when used: `scale` does not match `params`, is negative or not finite.

    Example:
      >>> import jax.numpy as jnp, pfcore
      >>> loss = lambda x: 0.5 * jnp.sum(jnp.array([100.0, 1.0]) * x**2)
      >>> curvature = pfcore.curvature.preconditioned(loss, jnp.array([0.1, 1.0]))
      >>> [round(float(value), 4) for value in pfcore.curvature.spectrum(curvature, jnp.ones(2))]
      [1.0, 1.0]

    References:
      Cohen et al., *Adaptive gradient methods at the edge of stability* (arXiv 2207.14484).
    """
    return Preconditioned(loss, scale)


# ---- user-defined


class Symmetric(Curvature):
    """A matrix defined by the user's products; see `symmetric`."""

    def __init__(
        self,
        matvec: Callable[..., Params],
        positive_semidefinite: bool,
        batch: tuple[Any, ...] = (),
    ) -> None:
        self._matvec, self._batch = matvec, batch
        self.positive_semidefinite = positive_semidefinite

    def __repr__(self) -> str:
        return f"symmetric({self._matvec!r})"

    def bound(self, batch: Any, index: Any) -> "Symmetric":
        return Symmetric(self._matvec, self.positive_semidefinite, (batch,))

    def restricted(self, part: Part) -> "Symmetric":
        matvec = self._matvec

        def block(params: Params, vector: Params, *batch: Any) -> Params:
            # The derivative of `fill` sets the other entries to zero.
            whole, filled = jax.jvp(part.fill, (params,), (vector,))
            return part.take(matvec(whole, filled, *batch))

        return Symmetric(block, self.positive_semidefinite, self._batch)

    def check_at(self, params: Params) -> Params:
        image = jax.eval_shape(lambda p: self._matvec(p, p, *self._batch), in_single(params))
        shapes = [dict(jax.tree_util.tree_leaves_with_path(tree)) for tree in (image, params)]
        if {path: x.shape for path, x in shapes[0].items()} != {
            path: x.shape for path, x in shapes[1].items()
        }:
            raise ValueError(
                "matvec must return a vector of the structure and shapes of params, got "
                f"{jax.tree.map(lambda x: x.shape, image)!r} for params of "
                f"{jax.tree.map(jnp.shape, params)!r}"
            )
        return params

    def at(self, params: Params) -> Flat:
        params = in_single(params)
        flat, unravel = ravel(params)

        def product(vector: jax.Array) -> jax.Array:
            image = self._matvec(params, unravel(vector), *self._batch)
            return flat_of(in_single(image), flat.dtype)

        return Flat(None, product, flat, unravel)


def symmetric(matvec: Any, *, positive_semidefinite: bool = False) -> Curvature:
    r"""A user-defined symmetric matrix, given by its products.

    Args:
      matvec: `matvec(params, vector)`, the product $A(\theta)v$, with the structure of `params`;
        linear and symmetric in $v$, and traceable by JAX. Where it is not symmetric, routines that
        take several products return NaN; a single product, as in `hvp`, cannot tell.
      positive_semidefinite: whether no eigenvalue is negative.

    Returns:
      A `Curvature` without a gradient. In `over_batches`, `matvec` takes a batch as a further
      argument.

    Raises:
      TypeError: `matvec` is not a function.
      ValueError: when used: the product does not have the structure and shapes of `params`.

    Example:
      >>> import jax, jax.numpy as jnp, pfcore
      >>> loss = lambda x: jnp.sum(x**4) / 12
      >>> damped = lambda x, v: pfcore.curvature.hvp(loss, x, v) + 0.5 * v
      >>> A = pfcore.curvature.symmetric(damped)
      >>> pfcore.curvature.spectrum(A, jnp.array([1.0, 2.0])).tolist()
      [1.5, 4.5]
    """
    if not callable(matvec):
        raise TypeError(f"matvec must be a function of params and a vector, got {matvec!r}")
    return Symmetric(matvec, bool(positive_semidefinite))
