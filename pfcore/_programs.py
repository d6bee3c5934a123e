"""Compile functions once for all closures that compute the same.

`jax.jit` compiles again for every function object, and keeps each alive with the data that it
closes over. A loss that is a new closure over each mini-batch would compile for seconds at each,
and leave all batches in memory. Here a function is traced, and the arrays that it closes over
become arguments. Closures that compute the same on other data share one compiled program, which
holds no data.
"""

import contextlib
import contextvars
import functools
import weakref
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

_CALLS = ("jit", "pjit", "closed_call", "core_call")
_CUSTOM = ("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr")


class _Same:
    """Equal only to itself; keeps its value alive, so that its id is not reused."""

    def __init__(self, value: Any) -> None:
        self.value = value


def jaxprs(value: Any) -> Iterator[core.Jaxpr]:
    """The jaxprs in a parameter of a primitive."""
    if isinstance(value, core.ClosedJaxpr):
        yield value.jaxpr
    elif isinstance(value, core.Jaxpr):
        yield value
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from jaxprs(part)


def equations(jaxpr: core.Jaxpr) -> Iterator[core.JaxprEqn]:
    """The equations of a jaxpr and of the functions that it calls."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs(tuple(equation.params.values())):
            yield from equations(inner)


def bind(equation: core.JaxprEqn, args: list[Any]) -> list[Any]:
    """What an equation computes from its arguments."""
    bound = equation.primitive.get_bind_params(equation.params)
    # Older JAX returns functions beside the parameters.
    functions, params = bound if isinstance(bound, tuple) else ((), bound)
    found = equation.primitive.bind(*functions, *args, **params)
    return list(found) if equation.primitive.multiple_results else [found]


def _signature(value: Any) -> Hashable:
    """A key that is equal for equivalent parameters of primitives."""
    if isinstance(value, core.ClosedJaxpr):
        return "closed", _structure(value.jaxpr), tuple(_signature(c) for c in value.consts)
    if isinstance(value, core.Jaxpr):
        return _structure(value)
    if isinstance(value, (tuple, list)):
        return type(value), tuple(_signature(v) for v in value)
    if isinstance(value, (np.ndarray, np.generic)):
        return "array", value.dtype, value.shape, value.tobytes()
    if isinstance(value, jax.Array):
        return _Same(value)
    try:
        hash(value)
    except TypeError:
        return _Same(value)
    return type(value), value


def _structure(jaxpr: core.Jaxpr) -> Hashable:
    """A key that is equal for jaxprs that compute the same, variable by variable."""
    numbers: dict[Any, int] = {}

    def name(atom: Any) -> Hashable:
        if isinstance(atom, core.Literal):
            return _signature(np.asarray(atom.val)), atom.aval
        return numbers.setdefault(atom, len(numbers)), atom.aval

    def equation(eqn: core.JaxprEqn) -> Hashable:
        custom = eqn.primitive.name in _CUSTOM  # whose rules are no longer used
        params = tuple(
            (key, _signature(value))
            for key, value in sorted(eqn.params.items())
            if not (custom and key != "call_jaxpr")
        )
        inputs = tuple(name(v) for v in eqn.invars)
        return eqn.primitive, params, inputs, tuple(name(v) for v in eqn.outvars)

    inputs = tuple(name(v) for v in (*jaxpr.constvars, *jaxpr.invars))
    body = tuple(equation(eqn) for eqn in jaxpr.eqns)
    return len(jaxpr.constvars), inputs, body, tuple(name(v) for v in jaxpr.outvars)


def _holds_arrays(value: Any) -> bool:
    """Whether a compiled function among these holds constant arrays."""
    if isinstance(value, core.ClosedJaxpr | core.Jaxpr):  # since JAX 0.11 one class
        return bool(getattr(value, "consts", ())) or _hides_arrays(value)
    return isinstance(value, (tuple, list)) and any(_holds_arrays(v) for v in value)


def _hides_arrays(jaxpr: core.Jaxpr | core.ClosedJaxpr) -> bool:
    """Whether a compiled function that is called in a jaxpr holds constant arrays."""
    return any(_holds_arrays(v) for eqn in jaxpr.eqns for v in eqn.params.values())


def _without_arrays(closed: core.ClosedJaxpr) -> core.Jaxpr:
    """The jaxpr whose constants are arguments, as they always were before JAX 0.11."""
    jaxpr: Any = closed.jaxpr
    return jaxpr.with_consts([]) if getattr(jaxpr, "consts", ()) else jaxpr


def _opened(jaxpr: core.Jaxpr, consts: Any, *args: Any) -> list[Any]:
    """Evaluate the jaxpr, inlining calls of compiled functions that hold arrays, also in
    branches."""
    names = (*jaxpr.constvars, *jaxpr.invars)
    values: dict[Any, Any] = dict(zip(names, (*consts, *args), strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, core.Literal) else values[atom]

    for eqn in jaxpr.eqns:
        inputs = [read(v) for v in eqn.invars]
        inner: Any = eqn.params.get("call_jaxpr" if eqn.primitive.name in _CUSTOM else "jaxpr")
        if eqn.primitive.name in (*_CALLS, *_CUSTOM) and _holds_arrays(inner):
            outputs = _opened(inner.jaxpr, inner.consts, *inputs)
        elif eqn.primitive.name == "cond" and _holds_arrays(eqn.params["branches"]):
            branches = [
                functools.partial(_opened, branch.jaxpr, branch.consts)
                for branch in eqn.params["branches"]
            ]
            index, *operands = inputs
            outputs = jax.lax.switch(index, branches, *operands)
        else:
            outputs = bind(eqn, inputs)
        values.update(zip(eqn.outvars, outputs, strict=True))
    return [read(v) for v in jaxpr.outvars]


# Machine epsilon of the formats in which accelerators multiply float32 matrices, by setting of
# `jax_default_matmul_precision`, on a GPU and on a TPU. A CPU has float32 only.
_TF32, _BFLOAT16, _THREE_BFLOAT16 = 2.0**-10, 2.0**-7, 2.0**-16
_COARSE = {
    "default": (_TF32, _BFLOAT16),
    "fastest": (_TF32, _BFLOAT16),
    "bfloat16": (_TF32, _BFLOAT16),
    "high": (_TF32, _THREE_BFLOAT16),
    "tensorfloat32": (_TF32, _THREE_BFLOAT16),
    "bfloat16_3x": (_TF32, _THREE_BFLOAT16),
    "TF32_TF32_F32": (_TF32, _TF32),
    "BF16_BF16_F32": (_BFLOAT16, _BFLOAT16),
    "BF16_BF16_F32_X3": (_THREE_BFLOAT16, _THREE_BFLOAT16),
}
_FULL = "highest"


@contextlib.contextmanager
def settings() -> Iterator[None]:
    """The settings under which this library traces functions.

    Float32 matrices are multiplied in float32, unless the user has set
    `jax_default_matmul_precision`: JAX's default on a GPU is TF32, with a rounding error 8,000
    times larger, and bfloat16 on a TPU. Arrays of different ranks are allowed in an operation.
    """
    chosen = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    with jax.numpy_rank_promotion("allow"), jax.default_matmul_precision(chosen or _FULL):
        yield


# Machine epsilons of the products in the innermost scope of `products`.
_passed: contextvars.ContextVar[list[float] | None] = contextvars.ContextVar("passed", default=None)


@contextlib.contextmanager
def products() -> Iterator[None]:
    """A scope in which `machine_epsilon` includes the formats given to `computed_by`."""
    token = _passed.set([])
    try:
        yield
    finally:
        _passed.reset(token)


def coarsest(jaxpr: core.Jaxpr) -> float:
    """The largest machine epsilon of the formats in which a jaxpr computes; 0 if of none."""
    dtypes = {getattr(v.aval, "dtype", int) for e in equations(jaxpr) for v in e.outvars}
    inexact = [dtype for dtype in dtypes if jnp.issubdtype(dtype, jnp.inexact)]
    return max((float(jnp.finfo(dtype).eps) for dtype in inexact), default=0.0)


def computed_by(jaxpr: core.Jaxpr) -> None:
    """Say that products are computed by this jaxpr, often in a coarser format than that of the
    parameters: a network in mixed precision multiplies float32 parameters in bfloat16."""
    known = _passed.get()
    if known is not None:
        known.append(coarsest(jaxpr))


def machine_epsilon(dtype: Any) -> float:
    """That of `dtype`, or of a coarser format in which products are computed.

    This is the format in which an accelerator multiplies matrices, and in a scope of `products`
    the coarsest one that they pass through.
    """
    own = max([float(jnp.finfo(dtype).eps), *(_passed.get() or ())])
    chosen = jax.config.jax_default_matmul_precision or _FULL  # type: ignore[attr-defined]
    backend = jax.default_backend()
    if backend == "cpu" or jnp.finfo(dtype).bits != 32:
        return own
    return max(own, _COARSE.get(chosen, (own, own))[backend == "tpu"])


class Code:
    """A jaxpr without its arrays; equal to any other that computes the same."""

    def __init__(self, jaxpr: core.Jaxpr, out_tree: Any) -> None:
        self.jaxpr, self.out_tree = jaxpr, out_tree
        self._key = (_structure(jaxpr), out_tree)
        self._hash = hash(self._key)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or (
            isinstance(other, Code) and self._hash == other._hash and self._key == other._key
        )

    def __call__(self, consts: Any, *args: Any) -> Any:
        """Evaluate with the arrays `consts`; not differentiable, since custom rules are gone."""
        flat = jax.core.eval_jaxpr(self.jaxpr, consts, *jax.tree.leaves(args))
        return jax.tree.unflatten(self.out_tree, flat)


@jax.tree_util.register_pytree_node_class
class Program:
    """A function as an argument of compiled functions: its code is static, its arrays are not."""

    def __init__(self, code: Code, consts: Any) -> None:
        self.code, self.consts = code, consts

    def __call__(self, *args: Any) -> Any:
        return self.code(self.consts, *args)

    def tree_flatten(self) -> tuple[tuple[Any], Code]:
        return (self.consts,), self.code

    @classmethod
    def tree_unflatten(cls, code: Code, children: tuple[Any]) -> "Program":
        return cls(code, children[0])


def is_traced(*trees: Any) -> bool:
    """Whether some leaf is a tracer, as under a transformation or in a compiled function."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(trees))


def trace(function: Callable[..., Any], *args: Any) -> Program:
    """The program of `function` at arguments of these shapes and dtypes.

    It can be evaluated, under transformations too, but its custom derivative rules are lost.
    """

    def new(*args: Any) -> Any:
        """The same, for which JAX does not remember what it traced: data may have changed."""
        return function(*args)

    with settings():
        closed, shape = jax.make_jaxpr(new, return_shape=True)(*args)
        if _hides_arrays(closed.jaxpr):
            opened = functools.partial(_opened, closed.jaxpr, closed.consts)
            closed = jax.make_jaxpr(opened)(*jax.tree.leaves(args))
    code = Code(_without_arrays(closed), jax.tree.structure(shape))
    return Program(code, list(closed.consts))


# Functions that will always compute the same: all that they close over is fixed.
_fixed: weakref.WeakSet[Any] = weakref.WeakSet()


def fixed(function: Callable[..., Any]) -> Callable[..., Any]:
    """Marks a function of this library's own making whose closure nobody changes, so that what is
    made of it can be remembered instead of traced at every call."""
    _fixed.add(function)
    return function


def is_fixed(function: Any) -> bool:
    try:
        return function in _fixed
    except TypeError:  # cannot be referred to weakly
        return False


# The programs made for each function, for as long as the function is alive elsewhere.
_known: weakref.WeakKeyDictionary[Any, dict[Hashable, Any]] = weakref.WeakKeyDictionary()
_SETTINGS = ("jax_enable_x64", "jax_default_matmul_precision", "jax_numpy_dtype_promotion")


def _key(kind: Hashable, params: Any) -> Hashable:
    leaves, structure = jax.tree.flatten(params)
    return (
        kind,
        structure,
        tuple(jax.typeof(leaf) for leaf in leaves),
        tuple(getattr(jax.config, name) for name in _SETTINGS),
        jax.sharding.get_abstract_mesh(),
    )


def remembered(kind: Hashable, function: Any, params: Any, make: Callable[[], Any]) -> Any:
    """`make()`, cached for the same function and parameters of the same kind.

    `kind` names the result. Nothing is cached for functions that close over tracers, or that
    cannot be referenced weakly. Call `renewed` first unless the function `is_fixed`: it may read
    data that have changed.
    """
    key = _key(kind, params)
    try:
        made = _known.setdefault(function, {})
    except TypeError:
        return make()
    if key not in made:
        new = make()
        if is_traced(new):
            return new
        made[key] = new
    return made[key]


@jax.jit
def run(program: Program, *args: Any) -> Any:
    """Evaluate the program, compiled."""
    return program(*args)


def renewed(function: Any, *args: Any) -> Program:
    """The program of a function as it is now; where it was another one before, in its code or in
    the arrays that it reads, whatever was remembered for the function is forgotten."""
    key = _key("renewed", args)
    if is_fixed(function):
        return remembered("renewed", function, args, lambda: trace(function, *args))
    program = trace(function, *args)
    try:
        made = _known.setdefault(function, {})
    except TypeError:
        return program
    if not is_traced(program):
        if key in made and not _alike(made[key], program):
            made.clear()
        made[key] = program
    return program


_SMALL = 1000  # arrays of more numbers are not compared by value


def _alike(old: Program, new: Program) -> bool:
    """Whether two programs compute the same on the same arrays."""

    def same(a: Any, b: Any) -> bool:
        if a is b:
            return True
        small = isinstance(b, (np.ndarray, np.generic)) or jnp.issubdtype(b.dtype, np.number)
        return small and b.size <= _SMALL and np.array_equal(a, b, equal_nan=b.dtype.kind in "fc")

    return old.code == new.code and all(map(same, old.consts, new.consts))


def evaluate(function: Callable[[Any], Any], params: Any) -> Any:
    """`function(params)`, compiled once for all functions that compute the same."""
    if is_traced(params):
        return function(params)
    return run(renewed(function, params), params)
