"""Sharpness along one direction: of the gradient, an update, or a mini-batch's gradient.

The largest eigenvalue is the worst case. A step depends on the curvature along its own direction,
which costs one product, or on the change of the loss, which costs forward passes only.
"""

import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pfcore import _programs
from pfcore._checks import (
    ScalarLike,
    check_count,
    check_curvature,
    check_loss,
    check_positive,
    check_vector,
    is_hosted,
)
from pfcore._trees import Params, add_scaled, check_params, in_single, norm, ravel, real_dtype
from pfcore.curvature.density import spread
from pfcore.curvature.krylov import normalised, rounding
from pfcore.curvature.products import (
    Curvature,
    Flat,
    LossOrCurvature,
    Traced,
    compiled,
    of_batch,
)


class DirectionalSharpness(NamedTuple):
    r"""Curvature along one direction u.

    Attributes:
      value: $u^\top H u / u^\top u$, between the smallest and the largest eigenvalue; NaN for
        $u = 0$.
      rounding: rounding error of `value`, estimated by the size of $Hu$; too small where large
        terms cancel in it.
      critical_learning_rate: $2\,(-g^\top u)/(u^\top H u)$, at which the quadratic model of the
        loss along $\theta + hu$ returns to its initial value; 2/value for the gradient itself.
        Infinite where the curvature is not positive, negative where u ascends, NaN for $u = 0$ and
        where the curvature is NaN. None for a curvature without a gradient, such as `fisher` or
        `symmetric`.
    """

    value: Float[Array, ""]
    rounding: Float[Array, ""]
    critical_learning_rate: Float[Array, ""] | None


def _along(at: Flat, update: jax.Array) -> DirectionalSharpness:
    size = norm(update).astype(at.params.dtype)
    direction = normalised(update, size, size > 0)
    image = at.product(direction)
    value = jnp.where(size > 0, jnp.vdot(direction, image), jnp.nan)
    # The error of a product is a few machine epsilons times ‖H‖, estimated here by ‖Hu‖.
    lost = rounding(norm(image).astype(value.dtype))
    if at.gradient is None:
        return DirectionalSharpness(value, lost, None)
    # Norms and directions are kept apart: squares of gradients overflow or underflow with the unit
    # of the loss. So do nested quotients, since XLA divides by the product of the denominators.
    steepest = norm(at.gradient).astype(size.dtype)
    cosine = -jnp.vdot(normalised(at.gradient, steepest, steepest > 0), direction)
    positive = value > 0
    bend = 2 * cosine / jnp.where(positive, value, 1)
    critical = (steepest / jnp.where(size > 0, size, 1)) * bend
    critical = jnp.where(positive, critical, jnp.where(jnp.isnan(value), jnp.nan, jnp.inf))
    return DirectionalSharpness(value, lost, jnp.where(size > 0, critical, jnp.nan))


@compiled()
def _directional(hessian: Any, params: Params, update: Params | None) -> DirectionalSharpness:
    at = hessian.at(params)
    if update is None:
        return _along(at, -at.gradient)
    return _along(at, ravel(in_single(update))[0].astype(at.params.dtype))


def directional_sharpness(
    loss: LossOrCurvature, params: Params, update: Params | None = None
) -> DirectionalSharpness:
    r"""Curvature along the gradient or along an optimiser's update, $u^\top H u / u^\top u$.

    Costs one product. Along the gradient it is $g^\top H g / g^\top g$; if this is below $2/h$, the
    next step of gradient descent lowers the quadratic model of the loss. For an adaptive optimiser,
    pass its update, and compare its learning rate with `critical_learning_rate`.

    Args:
      loss: $E$, from `params` to a real scalar, or a `Curvature` in place of its Hessian.
      params: any pytree of floating-point arrays, $\theta$.
      update: u, with the structure and shapes of `params`, of any norm. By default $-g$; for a
        preconditioned curvature, $-g$ in its coordinates.

    Returns:
      A `DirectionalSharpness`.

    Raises:
      ValueError: the loss is not a finite scalar at `params`, the update does not match `params`,
        or it is missing for a curvature without a gradient.

    Example:
      >>> import jax.numpy as jnp, pfcore
      >>> loss = lambda x: 0.5 * (4 * x[0] ** 2 + x[1] ** 2)
      >>> along = pfcore.curvature.directional_sharpness(loss, jnp.array([1.0, 0.0]))
      >>> float(along.value), float(along.critical_learning_rate)
      (4.0, 0.5)

    References:
      Pan and Li, *Toward understanding why Adam converges faster than SGD for Transformers* (arXiv
      2306.00204); Roulet et al., NeurIPS 2024 (arXiv 2407.06183).
    """
    params = check_curvature(loss, params)
    if update is not None:
        update = check_vector("update", update, params)
    elif isinstance(loss, Curvature) and not loss.has_gradient:
        raise ValueError(f"{loss!r} has no gradient: pass the update along which to measure")
    return _directional(loss, params, update)


# ---- the loss itself along a step


class CriticalLearningRate(NamedTuple):
    r"""The learning rate at which one step first raises the loss, between two bounds.

    Attributes:
      lower: a learning rate that lowers the loss, by more than its rounding error.
      upper: one that raises it, by more than its rounding error, or makes it infinite or NaN.
      found: whether both bounds exist. Otherwise `lower` is 0 if no step tried lowered the loss, or
        `upper` is infinite if none raised it.
      converged: whether `upper - lower` is at most `tolerance` times `upper`. Rounding error may
        end the search earlier.
      num_evaluations: number of evaluations of the loss.
    """

    lower: Float[Array, ""]
    upper: Float[Array, ""]
    found: Bool[Array, ""]
    converged: Bool[Array, ""]
    num_evaluations: Int[Array, ""]

    @property
    def value(self) -> jax.Array:
        """The middle of the bracket; NaN if there is none."""
        return jnp.where(self.found, (self.lower + self.upper) / 2, jnp.nan)

    @property
    def sharpness(self) -> jax.Array:
        """The critical sharpness, 2 / value."""
        return 2 / self.value


class _Search(NamedTuple):
    rate: jax.Array  # the next to try
    lower: jax.Array  # the largest rate known to lower the loss, or 0
    upper: jax.Array  # the smallest rate known to raise it, or infinity
    evaluations: jax.Array
    equal: jax.Array  # number of successive rates that did neither
    middle: jax.Array  # a rate within the bracket that did neither, or 0
    done: jax.Array


def _search(
    loss: Callable[[Params], jax.Array],
    params: Params,
    update: Params,
    start: jax.Array,
    tolerance: jax.Array,
    most: int,
) -> CriticalLearningRate:
    dtype = start.dtype
    # Smaller differences may be rounding error, of the coarsest format in which the loss computes.
    with _programs.products():
        if not is_hosted(loss):
            _programs.computed_by(jax.make_jaxpr(loss)(params).jaxpr)
        begin = loss(params)
        blur = rounding(jnp.abs(begin))

    def is_narrow(lower: jax.Array, upper: jax.Array) -> jax.Array:
        return (lower > 0) & jnp.isfinite(upper) & (upper - lower <= tolerance * upper)

    def step(search: _Search) -> _Search:
        rate = search.rate
        change = loss(add_scaled(params, rate, update)) - begin
        raised, lowered = ~(change <= blur), change < -blur
        neither = ~raised & ~lowered
        lower = jnp.where(lowered, rate, search.lower)
        upper = jnp.where(raised, rate, search.upper)
        bracket, bounded = (lower > 0) & jnp.isfinite(upper), jnp.isfinite(upper)
        # Halving, then bisection; if rounding hides the crossing, one rate on either side of it.
        hidden = bracket & neither & (search.middle == 0)
        middle = jnp.where(hidden, rate, search.middle)
        below, above = (1 - tolerance / 2) * middle, (1 + 0.49 * tolerance) * middle
        following = jnp.where(
            hidden,
            below,
            jnp.where(
                middle > 0,
                above,
                jnp.where(bracket, (lower + upper) / 2, jnp.where(bounded, rate / 2, 2 * rate)),
            ),
        )
        equal = jnp.where(neither, search.equal + 1, 0)
        # If the loss does not change over two halvings, a decrease is below rounding error.
        blind = bounded & ~bracket & (equal >= 2)
        tried = (search.middle > 0) & (rate > search.middle)
        usable = (following > 0) & jnp.isfinite(following)
        done = is_narrow(lower, upper) | blind | tried | ~usable
        return _Search(following, lower, upper, search.evaluations + 1, equal, middle, done)

    zero = jnp.zeros((), dtype)
    end = jax.lax.while_loop(
        lambda search: ~search.done & (search.evaluations < most),
        step,
        _Search(
            rate=start,
            lower=zero,
            upper=jnp.full_like(zero, jnp.inf),
            evaluations=jnp.int32(1),
            equal=jnp.int32(0),
            middle=zero,
            done=jnp.array(False),
        ),
    )
    return CriticalLearningRate(
        lower=end.lower,
        upper=end.upper,
        found=(end.lower > 0) & jnp.isfinite(end.upper),
        converged=is_narrow(end.lower, end.upper),
        num_evaluations=end.evaluations,
    )


@functools.partial(jax.jit, static_argnames="most")
def _compiled_search(program, params, update, start, tolerance, *, most):
    return _search(program, params, update, start, tolerance, most)


@_programs.settings()
def critical_learning_rate(
    loss: Any,
    params: Params,
    update: Params,
    *,
    start: ScalarLike = 1.0,
    tolerance: ScalarLike = 0.0625,
    max_evaluations: int = 60,
) -> CriticalLearningRate:
    r"""The smallest learning rate at which one step along an update raises the loss.

    $$h_c = \min\{h > 0 : E(\theta + hu) > E(\theta)\}$$

    by forward passes alone, without gradients or Hessian products, so that it works for models too
    large for either. The rate is doubled until the loss rises, or halved until it falls; then the
    bracket is bisected. For gradient descent, $u = -g$, it is $2/\lambda_0$ on a quadratic along
    the top eigenvector, and larger elsewhere.

    Rates are tried at powers of two times `start` until one raises the loss. A rise and fall
    between two of them is missed. A `start` far below $h_c$ makes that unlikely, at the cost of one
    evaluation for each doubling.

    Args:
      loss: $E$, from `params` to a real scalar.
      params: any pytree of floating-point arrays, $\theta$.
      update: u, which a step of learning rate 1 adds to the parameters: $-g$, or an optimiser's
        update divided by its learning rate.
      start: the first rate to try. In a training loop, pass the previous result.
      tolerance: width of the bracket, relative to its upper end; the default is 1/16, the paper's.
      max_evaluations: largest number of evaluations of the loss, at least 2.

    Returns:
      A `CriticalLearningRate`, with the bracket. `found` is False if u ascends, or if no step tried
      raises the loss.

    Raises:
      ValueError: the loss is not a finite scalar at `params`, the update does not match `params`,
        or an option is not positive.
      TypeError: `loss` is a `Curvature`, or `max_evaluations` is not an integer.

    Example:
      >>> import jax, jax.numpy as jnp, pfcore
      >>> loss = lambda x: 2.0 * x[0] ** 2
      >>> x = jnp.ones(1)
      >>> critical = pfcore.curvature.critical_learning_rate(loss, x, -jax.grad(loss)(x))
      >>> bool(critical.lower < 0.5 <= critical.upper), bool(critical.converged)  # 2/λ₀ = 2/4
      (True, True)

    References:
      Kalra et al., *A scalable measure of loss landscape curvature for analyzing the training
      dynamics of LLMs* (arXiv 2601.16979).
    """
    most = check_count("max_evaluations", max_evaluations, minimum=2)
    if isinstance(loss, Curvature) and not loss.has_value:
        raise TypeError(
            f"the critical learning rate is a property of a loss, and {loss!r} has no value; pass "
            "the loss"
        )
    params = check_curvature(loss, params) if is_hosted(loss) else check_loss(loss, params)
    update = in_single(check_vector("update", update, params))
    params = in_single(params)
    update = jax.tree.map(lambda u, p: u.astype(p.dtype), update, params)
    dtype = real_dtype(params)
    start = check_positive("start", start).astype(dtype)
    tolerance = check_positive("tolerance", tolerance).astype(dtype)
    if is_hosted(loss):
        with jax.disable_jit():
            return _search(loss, params, update, start, tolerance, most)
    if _programs.is_traced(params, update, start, tolerance):
        return _search(loss, params, update, start, tolerance, most)
    program = _programs.trace(loss, params)
    return _compiled_search(program, params, update, start, tolerance, most=most)


# ---- mini-batches


class MinibatchSharpness(NamedTuple):
    r"""Curvature of mini-batch losses along their own gradients.

    Attributes:
      mean: of $g_B^\top H_B\,g_B / g_B^\top g_B$ over the batches.
      standard_error: of the mean, including the rounding error of the products; NaN for a single
        batch.
      standard_deviation: over the batches; NaN for a single batch.
      ratio: $\sum_B g_B^\top H_B\,g_B / \sum_B g_B^\top g_B$, which weights batches by their
        squared gradient norms.
      ratio_error: standard error of the ratio, to first order; NaN for a single batch.
      values: for each batch, [b].
    """

    mean: Float[Array, ""]
    standard_error: Float[Array, ""]
    standard_deviation: Float[Array, ""]
    ratio: Float[Array, ""]
    ratio_error: Float[Array, ""]
    values: Float[Array, " b"]


@jax.jit
def _summary(
    values: Float[Array, " b"], squares: Float[Array, " b"], lost: Float[Array, " b"]
) -> MinibatchSharpness:
    count, lost = len(values), jnp.mean(lost)
    error = spread(values)
    share = squares / jnp.mean(squares)
    ratio = jnp.mean(share * values)
    # A ratio of means has, to first order, the error of the mean of share · (value − ratio).
    ratio_error = spread(share * (values - ratio))
    return MinibatchSharpness(
        mean=jnp.mean(values),
        standard_error=jnp.hypot(error, lost),
        standard_deviation=count**0.5 * error,
        ratio=ratio,
        ratio_error=jnp.hypot(ratio_error, lost),
        values=values,
    )


@_programs.settings()
def minibatch_sharpness(
    loss: Any,
    params: Params,
    batches: Any,
) -> MinibatchSharpness:
    r"""Curvature of each mini-batch's loss along its own gradient, and its mean over mini-batches.

    $$\mathbb{E}_B\left[\frac{g_B^\top H_B\,g_B}{g_B^\top g_B}\right],$$

    which stochastic gradient descent drives to $2/h$, as full-batch gradient descent drives
    $\lambda_0$. Each batch costs a gradient and a product.

    The standard errors assume independent batches. For batches drawn without replacement from a
    finite set, as in an epoch, they are somewhat too large.

    Args:
      loss: `loss(params, batch)`, a real scalar; or a `Curvature` with a gradient, whose functions
        take a batch, in place of $H_B$, such as `gauss_newton`.
      params: any pytree of floating-point arrays, $\theta$.
      batches: an iterable of mini-batches as large as those of training, or a function that returns
        one; each is a pytree of arrays. Batches of one shape share a compiled program.

    Returns:
      A `MinibatchSharpness`: the mean with its spread, and the ratio of means, which is another
      definition in use.

    Raises:
      TypeError: `batches` is not iterable, or `loss` is not a function.
      ValueError: there are no batches, or a curvature has no gradient.

    Example:
      >>> import jax.numpy as jnp, pfcore
      >>> loss = lambda w, x: 0.5 * jnp.mean((x * w[0]) ** 2)  # H_B = mean of x²
      >>> batches = [jnp.array([1.0, 1.0]), jnp.array([2.0, 2.0])]
      >>> sharpness = pfcore.curvature.minibatch_sharpness(loss, jnp.ones(1), batches)
      >>> sharpness.values.tolist(), float(sharpness.mean)
      ([1.0, 4.0], 2.5)

    References:
      Andreyev and Beneventano, *Edge of stochastic stability* (arXiv 2412.20553).
    """
    if is_hosted(loss) or (not callable(loss) and not isinstance(loss, Curvature)):
        raise TypeError(
            f"loss must be a function of (params, batch) or a Curvature of them, got {loss!r}"
        )
    if isinstance(loss, Curvature) and not loss.has_gradient:
        raise ValueError(f"{loss!r} has no gradient along which to measure")
    batches = batches() if callable(batches) and not isinstance(batches, Iterable) else batches
    if not isinstance(batches, Iterable):
        raise TypeError(f"batches must be an iterable of batches, got {batches!r}")
    params = check_params(params)

    @_programs.products()
    def measured(params: Params, batch: Any, index: jax.Array) -> tuple[jax.Array, ...]:
        at = Traced(of_batch(loss, batch, index)).at(params)
        along = _along(at, at.gradient)
        return along.value, norm(at.gradient).astype(along.value.dtype), along.rounding

    rows = []
    for number, each in enumerate(batches):
        given = (params, jax.tree.map(jnp.asarray, each), jnp.uint32(number))
        if _programs.is_traced(given):
            rows.append(measured(*given))
        else:
            # For as long as this call lasts: the loss may read data that change.
            program = _programs.remembered(
                "batch", measured, given, functools.partial(_programs.trace, measured, *given)
            )
            rows.append(_programs.run(program, *given))
    if not rows:
        raise ValueError("there are no batches: the iterable is empty or exhausted")
    values, sizes, lost = (jnp.stack(column) for column in zip(*rows, strict=True))
    largest = jnp.max(sizes)
    return _summary(values, (sizes / jnp.where(largest > 0, largest, 1)) ** 2, lost)
