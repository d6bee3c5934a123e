"""Sharpness along one direction: that of the gradient, of an update, of a mini-batch's gradient.

The largest eigenvalue is the worst case. What a step meets is the curvature along the step, which
costs one product, or the change of the loss itself, which costs forward passes only.
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
from pfcore.curvature.krylov import ROUNDINGS, normalised, rounding
from pfcore.curvature.products import (
    Curvature,
    Flat,
    LossOrCurvature,
    compiled,
    flat_product,
    of_batch,
)


class DirectionalSharpness(NamedTuple):
    r"""Curvature along one direction u.

    Attributes:
      value: $u^\top H u / u^\top u$, between the smallest and the largest eigenvalue; NaN for
        $u = 0$.
      rounding: how far the rounding of the product may have moved it.
      critical_learning_rate: $2\,(-g^\top u)/(u^\top H u)$, at which the quadratic model of the
        loss along $\theta + hu$ is back at its start; 2/value for the gradient itself. Infinite
        where the curvature is not positive, negative where u ascends, NaN for $u = 0$. None for a
        curvature that has no gradient, such as `fisher` or `symmetric`: it belongs to no loss.
    """

    value: Float[Array, ""]
    rounding: Float[Array, ""]
    critical_learning_rate: Float[Array, ""] | None


def _along(at: Flat, update: jax.Array) -> DirectionalSharpness:
    size = norm(update).astype(at.params.dtype)
    direction = normalised(update, size, size > 0)
    image = at.product(direction)
    value = jnp.where(size > 0, jnp.vdot(direction, image), jnp.nan)
    # A product is off by some roundings of ‖H‖, of which ‖Hu‖ is what is known.
    lost = rounding(norm(image).astype(value.dtype))
    if at.gradient is None:
        return DirectionalSharpness(value, lost, None)
    # Lengths and directions apart, and no quotient of a quotient, of which XLA would divide by
    # the product: they leave the range of the precision with the unit of the loss.
    steepest = norm(at.gradient).astype(size.dtype)
    cosine = -jnp.vdot(normalised(at.gradient, steepest, steepest > 0), direction)
    positive = value > 0
    bend = 2 * cosine / jnp.where(positive, value, 1)
    critical = (steepest / jnp.where(size > 0, size, 1)) * bend
    critical = jnp.where(positive, critical, jnp.inf)
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

    For one product. Along the gradient it is $g^\top H g / g^\top g$, and gradient descent's next
    step lowers the quadratic model of the loss where this is below $2/h$. For an adaptive
    optimiser, pass its update, and compare its learning rate with `critical_learning_rate`.

    Args:
      loss: $E$, from `params` to a real scalar, or a `Curvature` in place of its Hessian.
      params: any pytree of floating-point arrays, $\theta$.
      update: u, of the structure and shapes of `params`: what is added to them, of any length. By
        default $-g$; for a preconditioned curvature, that in its coordinates.

    Returns:
      A `DirectionalSharpness`.

    Raises:
      ValueError: the loss is not a finite scalar at `params`, the update does not fit, or is left
        out for a curvature that has no gradient.

    Example:
      >>> import jax.numpy as jnp, pfcore
      >>> loss = lambda x: 0.5 * (4 * x[0] ** 2 + x[1] ** 2)
      >>> found = pfcore.curvature.directional_sharpness(loss, jnp.array([1.0, 0.0]))
      >>> float(found.value), float(found.critical_learning_rate)
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
      lower: a step this long lowers the loss, by more than its rounding.
      upper: a step this long raises it, by more than its rounding, or makes it infinite or NaN.
      found: whether there are both; otherwise `lower` is 0, if no step tried lowered the loss, or
        `upper` is infinite, if none raised it.
      converged: whether `upper - lower` is at most `tolerance` times `upper`. Rounding may end the
        search before.
      num_evaluations: of the loss.
    """

    lower: Float[Array, ""]
    upper: Float[Array, ""]
    found: Bool[Array, ""]
    converged: Bool[Array, ""]
    num_evaluations: Int[Array, ""]

    @property
    def value(self) -> jax.Array:
        """The middle of the bracket; NaN where none was found."""
        return jnp.where(self.found, (self.lower + self.upper) / 2, jnp.nan)

    @property
    def sharpness(self) -> jax.Array:
        """The critical sharpness, 2 / value."""
        return 2 / self.value


class _Search(NamedTuple):
    rate: jax.Array  # to be tried next
    lower: jax.Array  # the longest that lowers the loss, 0 if none is known
    upper: jax.Array  # the shortest that raises it, infinite if none is known
    evaluations: jax.Array
    equal: jax.Array  # how many of the last rates, in a row, did neither
    middle: jax.Array  # one in the bracket that did neither, 0 if there is none
    done: jax.Array


def _search(
    loss: Callable[[Params], jax.Array],
    params: Params,
    update: Params,
    start: jax.Array,
    tolerance: jax.Array,
    most: int,
) -> CriticalLearningRate:
    begin = loss(params)
    dtype = start.dtype
    # What is closer than this may be equal.
    blur = ROUNDINGS * float(jnp.finfo(begin.dtype).eps) * jnp.abs(begin)

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
        # Halving, then bisection; where rounding hides the crossing, a step to either side of it.
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
        # A loss that stays the same over two halvings is not going to be seen to fall.
        blind = bounded & ~bracket & (equal >= 2)
        tried = (search.middle > 0) & (rate > search.middle)
        usable = (following > 0) & jnp.isfinite(following)
        done = is_narrow(lower, upper) | blind | tried | ~usable
        return _Search(following, lower, upper, search.evaluations + 1, equal, middle, done)

    zero = jnp.zeros((), dtype)
    found = jax.lax.while_loop(
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
        lower=found.lower,
        upper=found.upper,
        found=(found.lower > 0) & jnp.isfinite(found.upper),
        converged=is_narrow(found.lower, found.upper),
        num_evaluations=found.evaluations,
    )


@functools.partial(jax.jit, static_argnames="most")
def _compiled_search(program, params, update, start, tolerance, *, most):
    return _search(program, params, update, start, tolerance, most)


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

    by forward passes alone: no gradient, no Hessian product, so that it serves models too large
    for either. The rate is doubled until the loss rises, or halved until it falls, and then the
    bracket is halved. For gradient descent, $u = -g$, it is $2/\lambda_0$ on a quadratic along the
    top eigenvector, and more elsewhere.

    What is looked at are powers of two times `start`, until one raises the loss. A rise that is
    over before the next power of two is not seen; a `start` far below $h_c$ makes that unlikely to
    matter, at one evaluation for each doubling.

    Args:
      loss: $E$, from `params` to a real scalar.
      params: any pytree of floating-point arrays, $\theta$.
      update: u, what a step of learning rate 1 adds to the parameters: $-g$, or the update of an
        optimiser, over its learning rate.
      start: the first rate to try. In a training loop, the last one found.
      tolerance: width of the bracket, relative to its upper end; the default is 1/16, the paper's.
      max_evaluations: of the loss, at most, at least 2.

    Returns:
      A `CriticalLearningRate`, with the bracket. Where u ascends there is none: `found` is False,
      as it is where no step tried raises the loss.

    Raises:
      ValueError: the loss is not a finite scalar at `params`, the update does not fit, an option is
        not positive.
      TypeError: `loss` is a `Curvature`, or `max_evaluations` is not an integer.

    Example:
      >>> import jax, jax.numpy as jnp, pfcore
      >>> loss = lambda x: 2.0 * x[0] ** 2
      >>> x = jnp.ones(1)
      >>> found = pfcore.curvature.critical_learning_rate(loss, x, -jax.grad(loss)(x))
      >>> bool(found.lower < 0.5 <= found.upper), bool(found.converged)  # 2/λ₀ = 2/4
      (True, True)

    References:
      Kalra et al., *A scalable measure of loss landscape curvature for analyzing the training
      dynamics of LLMs* (arXiv 2601.16979).
    """
    most = check_count("max_evaluations", max_evaluations, minimum=2)
    if isinstance(loss, Curvature) and not is_hosted(loss):
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
      standard_error: of the mean, and what the rounding of the products adds; NaN for a single
        batch.
      standard_deviation: over the batches; NaN for a single batch.
      ratio: $\sum_B g_B^\top H_B\,g_B / \sum_B g_B^\top g_B$, in which batches with large gradients
        count more.
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


def minibatch_sharpness(
    loss: Any,
    params: Params,
    batches: Any,
) -> MinibatchSharpness:
    r"""Curvature of each mini-batch's loss along its own gradient, and the mean over mini-batches.

    $$\mathbb{E}_B\left[\frac{g_B^\top H_B\,g_B}{g_B^\top g_B}\right],$$

    which stochastic gradient descent brings to $2/h$, where full-batch gradient descent brings
    $\lambda_0$. Each batch costs a gradient and a product.

    The error bars take the batches for independent draws; drawn without replacement from a finite
    set, as in an epoch, they make them somewhat too long.

    Args:
      loss: `loss(params, batch)`, a real scalar; or a `Curvature` with a gradient, whose functions
        take a batch, in place of $H_B$, such as `gauss_newton`.
      params: any pytree of floating-point arrays, $\theta$.
      batches: what goes through mini-batches as large as those of training, once; each a pytree of
        arrays. Batches of one shape share a compiled program.

    Returns:
      A `MinibatchSharpness`: the mean, with its spread, and the ratio of means, the other
      definition in use.

    Raises:
      TypeError: `batches` is not iterable, or `loss` is not a function.
      ValueError: there is no batch, or a curvature has no gradient.

    Example:
      >>> import jax.numpy as jnp, pfcore
      >>> loss = lambda w, x: 0.5 * jnp.mean((x * w[0]) ** 2)  # H_B = mean of x²
      >>> batches = [jnp.array([1.0, 1.0]), jnp.array([2.0, 2.0])]
      >>> found = pfcore.curvature.minibatch_sharpness(loss, jnp.ones(1), batches)
      >>> found.values.tolist(), float(found.mean)
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
    if not isinstance(batches, Iterable):
        raise TypeError(f"batches must be an iterable of batches, got {batches!r}")
    params = check_params(params)

    def measured(params: Params, batch: Any, index: jax.Array) -> tuple[jax.Array, ...]:
        at = flat_product(of_batch(loss, batch, index), params)
        found = _along(at, at.gradient)
        return found.value, norm(at.gradient).astype(found.value.dtype), found.rounding

    rows = []
    for number, each in enumerate(batches):
        given = (params, jax.tree.map(jnp.asarray, each), jnp.uint32(number))
        if _programs.is_traced(given):
            rows.append(measured(*given))
        else:
            program = _programs.remembered(
                "minibatch sharpness",
                loss,
                given,
                functools.partial(_programs.trace, measured, *given),
            )
            rows.append(_programs.run(program, *given))
    if not rows:
        raise ValueError("there are no batches: the iterable is empty, or was gone through")
    values, sizes, lost = (jnp.stack(column) for column in zip(*rows, strict=True))
    largest = jnp.max(sizes)
    return _summary(values, (sizes / jnp.where(largest > 0, largest, 1)) ** 2, lost)
