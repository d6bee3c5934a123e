"""How much of a loss a program computes: its matrix products are counted as they are run.

The program's jaxpr is interpreted, loops and branches as they turn out, so that the number of
iterations of an eigenvalue search or of rejected steps is what it is in use. Counts depend on no
machine and no load. A matrix product belongs to the loss if one of its dimensions is the number of
samples; choose one that no other dimension has.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.extend.core import Literal

INNER = ("jit", "pjit", "closed_call", "core_call", "remat", "checkpoint", "custom_jvp_call")


class _Interpreter:
    def __init__(self, num_samples: int):
        self.num_samples = num_samples
        self.operations = 0

    def closed(self, closed: Any, *args: Any) -> list[Any]:
        return self.run(closed.jaxpr, closed.consts, args)

    def run(self, jaxpr: Any, consts: Any, args: Any) -> list[Any]:
        known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))

        def read(variable: Any) -> Any:
            return variable.val if isinstance(variable, Literal) else known[variable]

        for equation in jaxpr.eqns:
            found = self.equation(equation, [read(v) for v in equation.invars])
            known.update(zip(equation.outvars, found, strict=True))
        return [read(v) for v in jaxpr.outvars]

    def equation(self, equation: Any, args: list[Any]) -> list[Any]:
        name, given = equation.primitive.name, equation.params
        if name == "cond":
            branches = given["branches"]
            return self.closed(branches[min(max(int(args[0]), 0), len(branches) - 1)], *args[1:])
        if name == "while":
            first, second = given["cond_nconsts"], given["cond_nconsts"] + given["body_nconsts"]
            asked, fixed, carry = args[:first], args[first:second], args[second:]
            while bool(self.closed(given["cond_jaxpr"], *asked, *carry)[0]):
                carry = self.closed(given["body_jaxpr"], *fixed, *carry)
            return carry
        if name == "scan":
            return self.scan(given, args)
        if name in INNER:
            inner = given.get("jaxpr", given.get("call_jaxpr"))
            return (
                self.closed(inner, *args) if hasattr(inner, "consts") else self.run(inner, (), args)
            )
        if name == "dot_general":
            (contracted, _), _ = given["dimension_numbers"]
            shapes = [v.aval.shape for v in equation.invars]
            if any(self.num_samples in shape for shape in shapes):
                inner = math.prod(shapes[0][i] for i in contracted)
                self.operations += 2 * inner * math.prod(equation.outvars[0].aval.shape)
        found = equation.primitive.bind(*args, **given)
        return list(found) if equation.primitive.multiple_results else [found]

    def scan(self, given: dict[str, Any], args: list[Any]) -> list[Any]:
        first, second = given["num_consts"], given["num_consts"] + given["num_carry"]
        fixed, carry, rows = args[:first], args[first:second], args[second:]
        stacked = []
        for i in reversed(range(given["length"])) if given["reverse"] else range(given["length"]):
            found = self.closed(given["jaxpr"], *fixed, *carry, *(row[i] for row in rows))
            carry = found[: given["num_carry"]]
            stacked.append(found[given["num_carry"] :])
        columns = zip(*(stacked[::-1] if given["reverse"] else stacked), strict=True)
        return [*carry, *(np.stack([np.asarray(x) for x in column]) for column in columns)]


def operations(function: Callable[..., Any], *args: Any, num_samples: int) -> int:
    """Floating-point operations of the matrix products over samples in `function(*args)`."""
    interpreter = _Interpreter(num_samples)
    interpreter.closed(jax.make_jaxpr(function)(*args), *jax.tree.leaves(args))
    return interpreter.operations
