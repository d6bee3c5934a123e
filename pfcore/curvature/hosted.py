"""Losses and curvatures whose products run in Python: for data that do not fit into memory, or to
show progress.

The routines of `pfcore.curvature` that take several products accept them in place of a loss. Their
loop then runs in Python around compiled products, so that it can be interrupted at every batch.
"""

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from pfcore import _programs
from pfcore._checks import check_curvature, check_finite
from pfcore._extras import optional
from pfcore._trees import Params, in_single, ravel
from pfcore.curvature.products import (
    Curvature,
    Flat,
    Hessian,
    Part,
    flat_product,
    has_gradient,
    is_positive_semidefinite,
    of_batch,
    of_part,
)

Batch = Any  # a pytree of arrays with the samples along the leading axis
BatchLoss = Callable[[Any, Any], jax.Array]  # (params, batch) -> real scalar
Watch = bool | Callable[[int], None]


class _Count:
    """Counts products, with a progress bar or by calling a function."""

    def __init__(self, progress: Watch, unit: str) -> None:
        self._call = progress if callable(progress) else None
        self._bar: Any = None
        if progress is True:
            with optional():
                from tqdm import tqdm
            self._bar = tqdm(unit=f" {unit}")
        self._done = 0

    def one_more(self) -> None:
        self._done += 1
        if self._bar is not None:
            self._bar.update()
        if self._call is not None:
            self._call(self._done)


def _check_value(loss: Any) -> None:
    if isinstance(loss, Curvature):
        raise TypeError(f"{loss!r} is a curvature, which has no value; pass the loss")


class OverBatches(Curvature):
    """The result of `over_batches`. For a loss, calling it on parameters gives the loss."""

    hosted = True

    def __init__(
        self, loss: Any, batches: Any, *, average: bool = True, progress: Watch = False
    ) -> None:
        if not callable(loss) and not isinstance(loss, Curvature):
            raise TypeError(
                f"loss must be a function of (params, batch) or a Curvature, got {loss!r}"
            )
        if getattr(loss, "hosted", False):
            raise TypeError(
                f"loss is {type(loss).__name__}, whose products already run in Python; "
                "pass the loss or the curvature itself"
            )
        if not callable(batches) and isinstance(batches, Iterator):
            raise TypeError(
                f"every product iterates over the batches, and {type(batches).__name__} can be "
                "iterated over only once; pass a list, a data loader, or a function that returns a "
                "new iterator each time"
            )
        if not callable(batches) and not isinstance(batches, Iterable):
            raise TypeError(f"batches must be an iterable or a function, got {batches!r}")
        self._loss, self._batches, self._average = loss, batches, average
        self._progress = progress
        self.positive_semidefinite = is_positive_semidefinite(loss)
        self.has_gradient = has_gradient(loss)
        self.has_value = not isinstance(loss, Curvature)

    def _each(self) -> Iterator[tuple[Batch, jax.Array, float]]:
        """Batches with their indices and their weights in the sum."""
        count = 0
        for batch in self._batches() if callable(self._batches) else self._batches:
            batch = jax.tree.map(jnp.asarray, batch)
            leaves = jax.tree.leaves(batch)
            if not leaves or leaves[0].ndim == 0:
                raise ValueError(
                    "a batch must hold arrays with the samples along the leading axis, got shapes "
                    f"{[leaf.shape for leaf in leaves]}"
                )
            yield batch, jnp.uint32(count), float(len(leaves[0])) if self._average else 1.0
            count += 1
        if not count:
            raise ValueError("there are no batches: the iterable is empty or exhausted")

    def _sum(self, function: Callable[..., Any], *args: Any) -> Any:
        """Σ function(*args, batch, index), or its weighted mean if the loss is a mean.

        `function` is traced once for batches of one shape, for as long as it lives.
        """
        total, weights = None, 0.0
        for batch, index, weight in self._each():
            given = (*args, batch, index)
            program = _programs.remembered(
                "batch", function, given, functools.partial(_programs.trace, function, *given)
            )
            _programs.computed_by(program.code.jaxpr)
            part = _weighted(program, given, jnp.float32(weight))
            total = part if total is None else _added(total, part)
            weights += weight
        factor = 1 / weights if self._average else 1.0
        return jax.tree.map(lambda x: jnp.asarray(factor, x.dtype) * x, total)

    def __call__(self, params: Params) -> jax.Array:
        """The loss, by one pass over the batches."""
        _check_value(self._loss)
        return self._sum(lambda p, batch, index: self._loss(p, batch), params)

    def check_at(self, params: Params) -> Params:
        if not isinstance(self._loss, Curvature):
            check_finite(self(params))
            return params
        batch, index, _ = next(self._each())
        return check_curvature(self._loss.bound(batch, index), params)

    def restricted(self, part: Part) -> "OverBatches":
        loss = self._loss
        if isinstance(loss, Curvature):
            within: Any = loss.restricted(part)
        else:

            def within(params: Params, batch: Batch) -> jax.Array:
                return loss(part.fill(params), batch)

        return OverBatches(within, self._batches, average=self._average, progress=self._progress)

    def at(self, params: Params) -> Flat:
        flat, unravel = ravel(in_single(params))

        def gradient(params: Params, batch: Batch, index: jax.Array) -> jax.Array | None:
            return flat_product(of_batch(self._loss, batch, index), params).gradient

        def product(params: Params, vector: jax.Array, batch: Batch, index: jax.Array) -> jax.Array:
            return flat_product(of_batch(self._loss, batch, index), params).product(vector)

        count = _Count(self._progress, "products")

        def summed(vector: jax.Array) -> jax.Array:
            with jax.disable_jit(False):
                image = self._sum(product, params, vector)
            count.one_more()
            return image

        with jax.disable_jit(False):
            g = self._sum(gradient, params)
        return Flat(g, summed, flat, unravel)


@jax.jit
def _weighted(program: _programs.Program, args: Any, weight: jax.Array) -> Any:
    return jax.tree.map(lambda x: weight.astype(x.dtype) * x, in_single(program(*args)))


@jax.jit
def _added(total: Any, part: Any) -> Any:
    return jax.tree.map(jnp.add, total, part)


def over_batches(
    loss: Any, batches: Any, *, average: bool = True, progress: Watch = False
) -> OverBatches:
    r"""The loss or curvature of data that do not fit into memory, for every routine.

    $$E(\theta) = \frac{\sum_b n_b\,E_b(\theta)}{\sum_b n_b},$$

    or the sum without `average`. Batches are read once for the loss, once for the gradient, and
    once for every product; one is in memory at a time. The results equal those of all data at once,
    up to rounding. Batches of one shape share a compiled program.

    A curvature is averaged or summed in the same way: the functions of `gauss_newton`, `fisher`,
    `empirical_fisher` and `symmetric` then take a batch as a further argument, such as
    `predict(params, batch)` and `loss_of_outputs(outputs, batch)`.

    Args:
      loss: $E_b$, `loss(params, batch)`, a real scalar: the mean over the batch's samples (with
        `average`) or their sum; or a `Curvature` of one batch.
      batches: an iterable that can be iterated over repeatedly (a list, a PyTorch `DataLoader`
        without shuffling, a Grain dataset), or a function that returns an iterator. Each batch is a
        pytree of arrays with its $n_b$ samples along the leading axis.
      average: whether batches are weighted by their number of samples.
      progress: True for a progress bar that counts products, which needs `pfcore[runs]`; or a
        function that is called with their number.

    Returns:
      A loss to pass to `top_eigenpairs`, `spectral_density`, `trace`, `diagonal`,
      `function_product`, `spectrum` or `track`, outside `jax.jit`. Ctrl-C stops between batches.

    Raises:
      TypeError: `loss` is not a function, or comes from `over_batches` or `watched`; `batches` is
        not an iterable, or can be iterated over only once.
      ValueError: when used: there are no batches, or one holds no arrays of samples.

    Example:
      >>> import jax, jax.numpy as jnp, pfcore
      >>> data = [jnp.array([[1.0], [2.0]]), jnp.array([[3.0]])]
      >>> loss = lambda w, x: jnp.mean((x @ w) ** 2)  # H = 2/3 (1 + 4 + 9)
      >>> whole = pfcore.curvature.over_batches(loss, data)
      >>> pairs = pfcore.curvature.top_eigenpairs(whole, jnp.ones(1), 1, key=jax.random.key(0))
      >>> round(float(pairs.values[0]), 4)
      9.3333
    """
    return OverBatches(loss, batches, average=average, progress=progress)


class Watched(Curvature):
    """The result of `watched`. For a loss, calling it on parameters gives the loss."""

    hosted = True

    def __init__(self, loss: Any, progress: Watch = True) -> None:
        if not callable(loss) and not isinstance(loss, Curvature):
            raise TypeError(f"loss must be a function of params or a Curvature, got {loss!r}")
        if getattr(loss, "hosted", False):
            raise TypeError(
                f"loss is {type(loss).__name__}, whose products already run in Python; "
                "over_batches counts them with progress="
            )
        self._loss, self._progress = loss, progress
        self.positive_semidefinite = is_positive_semidefinite(loss)
        self.has_gradient = has_gradient(loss)
        self.has_value = not isinstance(loss, Curvature)

    def __call__(self, params: Params) -> jax.Array:
        """The loss."""
        _check_value(self._loss)
        return _programs.evaluate(self._loss, params)

    def check_at(self, params: Params) -> Params:
        return check_curvature(self._loss, params)

    def restricted(self, part: Part) -> "Watched":
        return Watched(of_part(self._loss, part), self._progress)

    def at(self, params: Params) -> Flat:
        flat, unravel = ravel(in_single(params))
        count = _Count(self._progress, "products")
        with jax.disable_jit(False):
            hessian = Hessian.of(self._loss, params)
            _programs.computed_by(hessian.product.jaxpr)
            g, needed = _prepared(hessian, params)

        def product(vector: jax.Array) -> jax.Array:
            with jax.disable_jit(False):
                image = jax.block_until_ready(_applied(hessian, needed, vector))
            count.one_more()
            return image

        return Flat(g, product, flat, unravel)


@jax.jit
def _prepared(hessian: Hessian, params: Params) -> tuple[jax.Array | None, Any]:
    return hessian.forward(params)


@jax.jit
def _applied(hessian: Hessian, needed: Any, vector: jax.Array) -> jax.Array:
    return hessian.product(needed, vector)


def watched(loss: Any, progress: Watch = True) -> Watched:
    """A loss or curvature that counts its products, and that Ctrl-C interrupts between them.

    A routine of `pfcore.curvature` is usually one compiled program, which shows nothing until it
    ends. With a watched loss it runs in Python around compiled products. The overhead is negligible
    if a product takes more than a few milliseconds.

    Args:
      loss: from `params` to a real scalar, or a `Curvature`.
      progress: True for a progress bar that counts products, which needs `pfcore[runs]`; or a
        function that is called with their number.

    Returns:
      A loss to pass to the routines of `pfcore.curvature`, outside `jax.jit`.

    Raises:
      TypeError: `loss` is not a function, or comes from `over_batches` or `watched`.

    Example:
      >>> import jax, jax.numpy as jnp, pfcore
      >>> seen = []
      >>> loss = pfcore.curvature.watched(lambda x: jnp.sum(x**2), seen.append)
      >>> trace = pfcore.curvature.trace(loss, jnp.ones(3), key=jax.random.key(0), num_probes=2)
      >>> float(trace.mean), seen  # two products before the probes
      (6.0, [1, 2, 3, 4])
    """
    return Watched(loss, progress)
