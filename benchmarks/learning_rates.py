"""What an adaptive learning rate costs: a step of DAL against a plain step of gradient descent.

    python benchmarks/learning_rates.py             # some minutes on two cores
    python benchmarks/learning_rates.py digits-mlp  # one problem
    JAX_PLATFORMS=cuda python benchmarks/learning_rates.py

Every method trains in the same compiled loop: one `lax.scan` over Optax updates on the full batch,
compiled first, then timed; methods take turns, and the table shows medians over the rounds, as
ratios to plain gradient descent in the same run. The goals: 3.3 for the exact product, 2.1 for a
difference of gradients, 1.3 for an exact product at every tenth step. `parts` are the pieces that
a step is made of, each in a loop of its own: a gradient, a Hessian product, both at once.
In single precision, on the processor unless JAX_PLATFORMS says otherwise. The deep networks
need CIFAR-10, from the folder PFCORE_DATA or downloaded (162 MB), and are left out without it.
"""

import argparse
from collections.abc import Callable
from typing import Any

from timing import print_machine, timed

# isort: split
import jax
import jax.numpy as jnp
import optax
from tables import table

from pfcore import curvature, experiments, learning_rates
from pfcore._trees import add_scaled
from pfcore.experiments.problems import Problem, build

PROBLEMS = {
    "digits-mlp": (experiments.PROBLEMS["quick"]["digits-mlp"], 100),
    "digits-convnet": (Problem(network="convnet", widths=(8, 16)), 40),
    "cifar10-convnet": (experiments.PROBLEMS["quick"]["cifar10-convnet"], 10),
    "cifar10-resnet18": (experiments.PROBLEMS["quick"]["cifar10-resnet18"], 10),
}
RATE = 0.01  # of what is compared with; and the most that the others may take, for a like path
METHODS: dict[str, Callable[[], optax.GradientTransformation]] = {
    "gradient descent": lambda: optax.sgd(RATE),
    "DAL, exact": lambda: learning_rates.dal(max_learning_rate=RATE),
    "DAL, finite difference": lambda: learning_rates.dal(
        max_learning_rate=RATE, product="finite_difference"
    ),
    "DAL, exact, every tenth": lambda: learning_rates.dal(max_learning_rate=RATE, refresh_every=10),
    "CDAT": lambda: learning_rates.cdat(max_learning_rate=RATE),
    "2/λ₀, every tenth": lambda: learning_rates.sharpness_rate(
        max_learning_rate=RATE, refresh_every=10
    ),
}
GOALS = {
    "DAL, exact": 3.3,
    "DAL, finite difference": 2.1,
    "DAL, exact, every tenth": 1.3,
}


def loops(problem: Problem, num_steps: int) -> tuple[dict[str, Any], dict[str, Any], int]:
    """Compiled loops of the methods, and of the parts that they are made of."""
    built = build(problem, seed=0)

    def training(make: Callable[[], optax.GradientTransformation]):
        tx = optax.with_extra_args_support(make())

        @jax.jit
        def train(data, params):
            loss = built.loss(data)

            def step(carry, _):
                params, state = carry
                value, grads = jax.value_and_grad(loss)(params)
                updates, state = tx.update(grads, state, params, loss_fn=loss)
                return (optax.apply_updates(params, updates), state), value

            return jax.lax.scan(step, (params, tx.init(params)), length=num_steps)

        return lambda: train(built.data, built.params)

    def part(compute):
        @jax.jit
        def repeat(data, params):
            loss = built.loss(data)
            vector = jax.tree.map(jnp.ones_like, params)
            return jax.lax.scan(
                lambda p, _: (add_scaled(p, -1e-6, compute(loss, p, vector)), None),
                params,
                length=num_steps,
            )[0]

        return lambda: repeat(built.data, built.params)

    def both(loss, params, vector):
        gradient, product = jax.jvp(jax.grad(loss), (params,), (vector,))
        return jax.tree.map(jnp.add, gradient, product)

    parts = {
        "gradient": part(lambda loss, p, v: jax.grad(loss)(p)),
        "Hessian product": part(curvature.hvp),
        "both at once": part(both),
    }
    size = sum(leaf.size for leaf in jax.tree.leaves(built.params))
    return {name: training(make) for name, make in METHODS.items()}, parts, size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("problems", nargs="*", default=list(PROBLEMS), help=", ".join(PROBLEMS))
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    print_machine("optax")
    for name in arguments.problems:
        problem, num_steps = PROBLEMS[name]
        try:
            methods, parts, size = loops(problem, num_steps)
        except OSError as error:
            print(f"\n{name}: left out, {error}")
            continue
        found, _ = timed(methods | parts, arguments.rounds)
        for title, rows, unit in (
            ("methods", methods, "gradient descent"),
            ("parts", parts, "gradient"),
        ):
            table(
                f"{name}, {size:,} parameters: {title}",
                ("", "ms a step", "ratio", "goal"),
                [
                    (
                        row,
                        f"{1e3 * found[row] / num_steps:.2f}",
                        f"{found[row] / found[unit]:.2f}",
                        f"{GOALS[row]}" if row in GOALS else "",
                    )
                    for row in rows
                ],
            )


if __name__ == "__main__":
    main()
