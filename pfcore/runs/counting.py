"""How much of a loss a program computes: its products over samples, counted as it runs.

What a program costs depends on how its loops turn out: iterations of a search for eigenvalues,
rejected steps of a solver. So the program is rewritten to count while it runs, compiled, loops and
branches included. Counts depend on no machine and no load.
"""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from pfcore import _programs
from pfcore._checks import check_count

CALLS = ("jit", "pjit", "closed_call", "core_call", "remat", "remat2", "checkpoint")
CUSTOM = ("custom_jvp_call", "custom_vjp_call")
PRODUCTS = ("dot_general", "conv_general_dilated")
BITS = 30


class Counted(NamedTuple):
    """What a function returned, and what it computed.

    Attributes:
      value: what it returned.
      operations: floating-point operations of its products over samples.
    """

    value: Any
    operations: int


def _inner(equation: core.JaxprEqn) -> Iterator[core.Jaxpr]:
    """The jaxprs that an equation runs; what only derivatives would need is none of them."""
    for name, value in equation.params.items():
        if equation.primitive.name not in CUSTOM or name == "call_jaxpr":
            yield from _programs.jaxprs(value)


def _operations(equation: core.JaxprEqn, num_samples: int) -> int:
    """Floating-point operations of one equation, if it is a product over samples."""
    name, given = equation.primitive.name, equation.params
    if name not in PRODUCTS:
        return 0
    arguments: list[Any] = [v.aval for v in equation.invars]
    left, right = (argument.shape for argument in arguments)
    if not any(size and size % num_samples == 0 for size in (*left, *right)):
        return 0
    out: Any = equation.outvars[0].aval
    if name == "dot_general":
        (contracted, _), _ = given["dimension_numbers"]
        terms = out.size * math.prod(left[i] for i in contracted)
    else:
        terms = out.size * math.prod(right) // right[given["dimension_numbers"].rhs_spec[0]]
        # Of a stretched image all but every so many entries are zeros.
        terms //= math.prod(given["lhs_dilation"])
    # A product of complex numbers is four of real ones.
    return terms * (8 if jnp.issubdtype(out.dtype, jnp.complexfloating) else 2)


def _in_parts(count: int) -> np.ndarray:
    """A count as two numbers below 2³⁰, the higher first: 64 bits are not always to be had."""
    return np.array([count >> BITS, count & (2**BITS - 1)], np.int32)


def _plus(total: jax.Array, count: jax.Array | np.ndarray) -> jax.Array:
    high, low = total + count
    return jnp.stack([high + (low >> BITS), low & (2**BITS - 1)])


class _Counter:
    """Runs jaxprs and counts."""

    def __init__(self, num_samples: int) -> None:
        self.num_samples = num_samples

    def _every(self, jaxpr: core.Jaxpr) -> Iterator[int]:
        for equation in jaxpr.eqns:
            yield _operations(equation, self.num_samples)
            for inner in _inner(equation):
                yield from self._every(inner)

    def counts(self, *jaxprs: core.Jaxpr) -> bool:
        """Whether there is anything to count in them."""
        return any(count for jaxpr in jaxprs for count in self._every(jaxpr))

    def known(self, jaxpr: core.Jaxpr) -> int:
        """The count of a jaxpr, where it depends on no value."""
        total = 0
        for equation in jaxpr.eqns:
            total += _operations(equation, self.num_samples)
            inner = list(_inner(equation))
            name = equation.primitive.name
            if name in ("cond", "while") and self.counts(*inner):
                raise ValueError(f"the count depends on how a {name} turns out; use counted")
            times = equation.params["length"] if name == "scan" else 1
            total += times * sum(self.known(part) for part in inner)
        return total

    def run(self, jaxpr: core.Jaxpr, consts: Any, args: Any) -> tuple[jax.Array, list[Any]]:
        """The count, and what the jaxpr returns."""
        known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))
        total = jnp.asarray(_in_parts(0))

        def read(atom: Any) -> Any:
            return atom.val if isinstance(atom, core.Literal) else known[atom]

        for equation in jaxpr.eqns:
            count, found = self.equation(equation, [read(v) for v in equation.invars])
            total = _plus(total, count)
            known.update(zip(equation.outvars, found, strict=True))
        return total, [read(v) for v in jaxpr.outvars]

    def closed(self, closed: Any, *args: Any) -> tuple[jax.Array, list[Any]]:
        consts = closed.consts if isinstance(closed, core.ClosedJaxpr) else ()
        jaxpr = closed.jaxpr if isinstance(closed, core.ClosedJaxpr) else closed
        return self.run(jaxpr, consts, args)

    def equation(self, equation: core.JaxprEqn, args: list[Any]) -> tuple[Any, list[Any]]:
        name, given = equation.primitive.name, equation.params
        if self.counts(*_inner(equation)):
            if name == "cond":
                branches = [functools.partial(self.closed, b) for b in given["branches"]]
                index = jnp.clip(args[0].astype(jnp.int32), 0, len(branches) - 1)
                return jax.lax.switch(index, branches, *args[1:])
            if name == "while":
                return self.loop(given, args)
            if name == "scan":
                return self.scan(equation, args)
            if name in CALLS or name in CUSTOM:
                return self.closed(given["call_jaxpr" if "call_jaxpr" in given else "jaxpr"], *args)
            raise NotImplementedError(f"products over samples within {name} cannot be counted")
        count = _in_parts(_operations(equation, self.num_samples))
        return count, _programs.bind(equation, args)

    def loop(self, given: dict[str, Any], args: list[Any]) -> tuple[Any, list[Any]]:
        first, second = given["cond_nconsts"], given["cond_nconsts"] + given["body_nconsts"]
        asked, fixed, carry = args[:first], args[first:second], args[second:]

        def ask(carry: list[Any]) -> tuple[jax.Array, jax.Array]:
            count, (more,) = self.closed(given["cond_jaxpr"], *asked, *carry)
            return count, more

        def body(state: Any) -> Any:
            total, _, carry = state
            count, carry = self.closed(given["body_jaxpr"], *fixed, *carry)
            asking, more = ask(carry)
            return _plus(_plus(total, count), asking), more, carry

        # The condition is asked in the body, where what it costs can be added.
        total, _, carry = jax.lax.while_loop(lambda s: jnp.any(s[1]), body, (*ask(carry), carry))
        return total, carry

    def scan(self, equation: core.JaxprEqn, args: list[Any]) -> tuple[Any, list[Any]]:
        given = equation.params
        # Told by their dimensions: parameters that count them have changed from JAX to JAX.
        once, whole = given["jaxpr"], cast(Any, equation)
        carried = zip(whole.outvars, once.out_avals, strict=True)
        num_carry = sum(outside.aval.ndim == inside.ndim for outside, inside in carried)
        given_in_rows = zip(whole.invars, once.in_avals, strict=True)
        num_rows = sum(outside.aval.ndim > inside.ndim for outside, inside in given_in_rows)
        second = len(args) - num_rows
        first = second - num_carry
        fixed, carry, rows = args[:first], args[first:second], args[second:]

        def body(state: Any, row: Any) -> Any:
            total, carry = state
            count, found = self.closed(given["jaxpr"], *fixed, *carry, *row)
            return (_plus(total, count), found[:num_carry]), found[num_carry:]

        (total, carry), columns = jax.lax.scan(
            body,
            (jnp.asarray(_in_parts(0)), carry),
            rows,
            length=given["length"],
            reverse=given["reverse"],
        )
        return total, [*carry, *columns]


def counted(function: Callable[..., Any], *args: Any, num_samples: int) -> Counted:
    r"""Run a function, compiled, and count the products over samples that it computes.

    A matrix product or convolution is one over samples if one of the dimensions of its arguments is
    a multiple of their number: such are the products of a full-batch loss, its gradients and higher
    derivatives. A multiplication and an addition are two operations, of complex numbers eight.

    Args:
      function: of arrays and trees of arrays, which it may be traced with.
      *args: its arguments.
      num_samples: number of samples in the loss. Choose one of which no other dimension is a
        multiple.

    Returns:
      `Counted`: what the function returned, and the operations.

    Raises:
      ValueError: `num_samples` is below 2: one divides every dimension.
      NotImplementedError: there are products over samples inside a primitive other than a loop,
        branch or call.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> x, w = jnp.ones((300, 8)), jnp.ones((8, 2))
      >>> found = counted(jax.grad(lambda w: jnp.sum((x @ w) ** 2)), w, num_samples=300)
      >>> found.operations == 2 * (2 * 300 * 8 * 2)  # one product forward, one backward
      True
    """
    num_samples = check_count("num_samples", num_samples, minimum=2)
    closed, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
    counter = _Counter(num_samples)
    # The arrays of the loss are arguments: as constants, XLA would compute with them for minutes.
    run = jax.jit(functools.partial(counter.run, closed.jaxpr))
    total, leaves = run(closed.consts, jax.tree.leaves(args))
    value = jax.tree.unflatten(jax.tree.structure(shapes), leaves)
    high, low = (int(part) for part in total)
    return Counted(value, (high << BITS) + low)


def operations(function: Callable[..., Any], *args: Any, num_samples: int) -> int:
    """The operations that `counted` counts, without running anything: of straight programs.

    Args:
      function: as for `counted`.
      *args: as for `counted`.
      num_samples: as for `counted`.

    Raises:
      ValueError: as for `counted`, or the count depends on how a loop or a branch turns out.
    """
    num_samples = check_count("num_samples", num_samples, minimum=2)
    return _Counter(num_samples).known(jax.make_jaxpr(function)(*args).jaxpr)
