"""What a step costs, against parameters and samples, and the memory it takes.

    python benchmarks/scaling.py               # everything, some minutes on two cores
    python benchmarks/scaling.py training      # or size, batch, samples, parameters, microbatch
    JAX_PLATFORMS=cuda python benchmarks/scaling.py

* training: the digits run of the book, 1,000 steps with the top two eigenpairs certified to 1e-3 at
  every step, and at every tenth; compiled first, then timed from the initial parameters.
* size: the top three eigenpairs of networks of 1, 10 and 20 million parameters, and following them,
  beside ARPACK (SciPy) over the same compiled product with the same tolerance.
* batch: Hessian products with 1, 4 and 16 vectors at once, on a GPU in float32 and in TF32.
* samples, parameters: one step of gradient descent, one Hessian product, and one step with the top
  two eigenvalues tracked, on images of CIFAR-10's shape or the digits; medians over interleaved
  rounds. The images are random numbers where no data is needed to know the cost.
* microbatch: the same loss in one piece and in pieces.

Memory is what XLA sets aside for temporaries of one compiled gradient or product, beyond arguments
and results. In single precision, on the processor unless JAX_PLATFORMS says otherwise.
"""

import argparse
import functools
from collections.abc import Callable
from typing import Any

from timing import print_machine, timed

# isort: split
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.flatten_util import ravel_pytree
from scipy.sparse.linalg import LinearOperator, eigsh
from tables import table

from pfcore import curvature, datasets, experiments, losses, networks
from pfcore._trees import add_scaled
from pfcore.curvature.products import Hessian
from pfcore.experiments import training
from pfcore.experiments.problems import build

RATE = np.float32(0.01)
ROUNDS, SLOW_ROUNDS = 5, 3
# Of three hidden layers: 0.9, 9.8 and 20.1 million parameters.
WIDTHS = (650, 2200, 3150)
# Of three hidden layers: 27,710 parameters, 0.9 and 9.8 million; the last on accelerators alone.
BATCHED_WIDTHS, BATCHES, PRODUCTS = (100, 650, 2200), (1, 4, 16), 5


def memory(function: Callable[..., Any], *arguments: Any) -> str:
    """Megabytes of temporaries that XLA plans for a call."""
    found = jax.jit(function).lower(*arguments).compile().memory_analysis()
    return "unknown" if found is None else f"{found.temp_size_in_bytes / 1e6:.1f}"


def costs(model: nnx.Module, inputs: np.ndarray, rounds: int, microbatch: int | None = None):
    """Milliseconds of a step, a product, a tracked step; megabytes of a gradient, a product."""
    targets = np.arange(len(inputs)) % 10
    data = (jnp.asarray(inputs), jnp.asarray(targets, dtype=jnp.int32))
    _, params = losses.full_batch(model, *data, kind="mse", microbatch=microbatch)

    def loss_of(data):
        return losses.full_batch(model, *data, kind="mse", microbatch=microbatch)[0]

    def gradient(data, params):
        return jax.grad(loss_of(data))(params)

    def product(data, params, vector):
        return curvature.hvp(loss_of(data), params, vector)

    @jax.jit
    def steps(data, params):
        return jax.lax.fori_loop(0, 5, lambda _, p: add_scaled(p, -RATE, gradient(data, p)), params)

    @jax.jit
    def products(data, params, vector):
        _, apply = curvature.linearized_hvp(loss_of(data), params)

        def body(_, v):
            return jax.tree.map(lambda x: x / jnp.float32(1000.0), apply(v))

        return jax.lax.fori_loop(0, 5, body, vector)

    @jax.jit
    def begin(data, params):
        return curvature.tracker(loss_of(data), 2).init(params, jax.random.key(0))

    @jax.jit
    def tracked(data, params, state):
        tracker = curvature.tracker(loss_of(data), 2)

        def body(_, both):
            params, state = both
            params = add_scaled(params, -RATE, state.gradient)
            return params, tracker.update(params, state)

        return jax.lax.fori_loop(0, 5, body, (params, state))

    state = begin(data, params)
    seconds, _ = timed(
        {
            "step": lambda: steps(data, params),
            "product": lambda: products(data, params, params),
            "tracked": lambda: tracked(data, params, state),
        },
        rounds,
    )
    return (
        *(f"{1e3 * value / 5:.1f}" for value in seconds.values()),
        memory(gradient, data, params),
        memory(product, data, params, params),
    )


HEAD = ("step, ms", "product, ms", "tracked step, ms", "gradient, MB", "product, MB")


def random_images(count: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, 32, 32, 3)).astype(np.float32)


def by_samples(rounds: int) -> None:
    rows = []
    for count in (64, 128, 256, 512):
        model = networks.ConvNet((32, 32, 3), (8, 16), 10, rngs=nnx.Rngs(0))
        rows.append((f"{count:,}", *costs(model, random_images(count), rounds)))
    table("conv net, 11,642 parameters, images 32 × 32 × 3", ("samples", *HEAD), rows)


def by_parameters(rounds: int) -> None:
    digits = datasets.load("digits").train_inputs
    rows = []
    for width in (30, 100, 300, 600):
        model = networks.MLP((64, width, width, width, 10), rngs=nnx.Rngs(0))
        rows.append((f"MLP, {networks.num_params(model):,}", *costs(model, digits, rounds)))
    images = random_images(64)
    for name, network in (("VGG-11", networks.VGG11), ("ResNet-18", networks.ResNet18)):
        for width in (4, 8):
            model = network((32, 32, 3), 10, width=width, rngs=nnx.Rngs(0))
            count = f"{networks.num_params(model):,}"
            rows.append((f"{name}, {count}", *costs(model, images, rounds)))
    table("MLP on 1,437 digits, others on 64 images", ("parameters", *HEAD), rows)


def by_microbatch(rounds: int) -> None:
    rows = []
    for microbatch in (None, 256, 128, 64):
        model = networks.ConvNet((32, 32, 3), (8, 16), 10, rngs=nnx.Rngs(0))
        name = "all 512" if microbatch is None else str(microbatch)
        rows.append((name, *costs(model, random_images(512), rounds, microbatch)))
    table("conv net, 11,642 parameters, 512 images", ("microbatch", *HEAD), rows)


def by_training(rounds: int) -> None:
    built = build(experiments.PROBLEMS["quick"]["digits-mlp"], seed=0)
    rows = []
    for every in (1, 10):
        trainer = training.Trainer(built, num_eigenpairs=2, every=every)
        start = trainer.begin(built.params, 0)
        count = 1000 // every
        _, found = jax.block_until_ready(trainer.advance(start, 0.2, count))
        seconds, _ = timed(
            {"run": lambda t=trainer, s=start, c=count: t.advance(s, 0.2, c)}, rounds
        )
        rows.append(
            (
                f"every {every}",
                f"{seconds['run']:.1f}",
                f"{np.mean(found.num_products):.1f}",
                f"{np.max(found.residuals / found.eigenvalues[:, :1]):.0e}",
            )
        )
    head = ("measured", "1,000 steps, s", "products each time", "largest residual / sharpness")
    table("digits, MLP with 27,710 parameters, h = 0.2, top two eigenpairs", head, rows)


def arpack(product: Callable[[Any], Any], n: int, k: int, tolerance: float) -> tuple[Any, Any, int]:
    """Eigenvalues and vectors by SciPy's eigsh, largest first, and the products that it took."""
    count = 0

    def matvec(v: np.ndarray) -> np.ndarray:
        nonlocal count
        count += 1
        return np.asarray(product(jnp.asarray(v.ravel())))

    operator = LinearOperator((n, n), matvec=matvec, dtype=np.float32)
    start = np.random.default_rng(0).normal(size=n).astype(np.float32)
    values, vectors = eigsh(operator, k, which="LA", tol=tolerance, v0=start)
    return values[::-1], vectors[:, ::-1], count


def worst_residual(product: Callable[[Any], Any], values: Any, vectors: Any) -> float:
    """The largest |Hu − λu| / λ of some pairs, vectors in rows."""
    return max(
        float(np.linalg.norm(np.asarray(product(jnp.asarray(u))) - value * u) / value)
        for value, u in zip(np.asarray(values), np.asarray(vectors), strict=True)
    )


def by_size(rounds: int) -> None:
    """Three eigenpairs of large networks, cold and followed, beside SciPy's ARPACK."""
    digits, k, tolerance, key = datasets.load("digits"), 3, 1e-3, jax.random.key(0)
    data = (digits.train_inputs[:32], digits.train_targets[:32])
    for width in WIDTHS:
        model = networks.MLP((64, width, width, width, 10), rngs=nnx.Rngs(0))
        loss, params = losses.full_batch(model, *data, kind="mse")
        hessian = Hessian.of(loss, params)
        n = networks.num_params(model)
        needed = jax.jit(lambda h, p: h.forward(p))(hessian, params)[1]
        applied = jax.jit(lambda h, needed, v: h.product(needed, v))
        product = functools.partial(applied, hessian, needed)
        tracker = curvature.tracker(loss, k)
        state = jax.block_until_ready(jax.jit(tracker.init)(params, key))
        near = add_scaled(params, -RATE, state.gradient)
        update = jax.jit(tracker.update)
        search = functools.partial(curvature.top_eigenpairs, loss, params, k, key=key)
        ones = jnp.ones(n)
        seconds, found = timed(
            {
                "top_eigenpairs": search,
                "top_eigenpairs, check=False": functools.partial(search, check=False),
                "tracker.update": lambda u=update, p=near, s=state: u(p, s).pairs,
                "ARPACK": lambda f=product, n=n: arpack(f, n, k, tolerance),
                "one product": lambda f=product, v=ones: f(v),
            },
            rounds,
        )
        rows = []
        for name, result in found.items():
            products, residual = "1", ""
            if name == "ARPACK":
                values, vectors, count = result
                products, residual = str(count), f"{worst_residual(product, values, vectors.T):.0e}"
            elif name != "one product":
                products = str(int(result.num_products))
                residual = f"{float(np.max(result.residuals / result.values)):.0e}"
            compared = f"{seconds[name] / seconds['ARPACK']:.2f}"
            rows.append((name, f"{seconds[name]:.3f}", products, residual, compared))
        title = f"{n / 1e6:.1f} million parameters, MLP on 32 digits, k = {k}, tolerance 1e-3"
        table(title, ("", "s", "products", "residual", "ratio to ARPACK"), rows)


def by_batch(rounds: int) -> None:
    """Products with several vectors at once, in float32 and TF32."""
    digits = datasets.load("digits")
    on_cpu = jax.default_backend() == "cpu"
    for width in BATCHED_WIDTHS[:2] if on_cpu else BATCHED_WIDTHS:
        model = networks.MLP((64, width, width, width, 10), rngs=nnx.Rngs(0))
        loss, params = losses.full_batch(
            model, digits.train_inputs, digits.train_targets, kind="mse"
        )
        n = networks.num_params(model)
        vectors = jax.random.normal(jax.random.key(0), (max(BATCHES), n))
        flat, unravel = ravel_pytree(params)

        def products(flat, vectors, unravel=unravel, loss=loss):
            product = jax.vmap(jax.linearize(jax.grad(lambda x: loss(unravel(x))), flat)[1])
            # No power iteration: the vectors stay in the range of the precision.
            return jax.lax.fori_loop(0, PRODUCTS, lambda _, v: v + 1e-3 * product(v), vectors)

        calls = {}
        # What a CPU multiplies in float32 whatever is chosen.
        for precision in ("highest",) if on_cpu else ("highest", "tensorfloat32"):
            for batch in BATCHES:
                with jax.default_matmul_precision(precision):
                    program = jax.jit(products).lower(flat, vectors[:batch]).compile()
                calls[precision, batch] = functools.partial(program, flat, vectors[:batch])
        seconds, found = timed(calls, rounds)
        rows = []
        for (precision, batch), result in found.items():
            each = seconds[precision, batch] / (batch * PRODUCTS)
            exact, given = found["highest", batch], vectors[:batch]
            off = jnp.linalg.norm(result - exact) / jnp.linalg.norm(exact - given)
            rows.append(
                (
                    f"{'float32' if precision == 'highest' else 'TF32'}, {batch} at once",
                    f"{1e3 * each:.3f}",
                    f"{each * PRODUCTS / seconds['highest', 1]:.2f}",
                    "" if precision == "highest" else f"{float(off):.0e}",
                )
            )
        title = f"Hessian products, MLP with {n:,} parameters, {len(digits.train_targets):,} digits"
        head = ("", "ms a product", "ratio to float32, one at a time", "off float32")
        table(title, head, rows)


PARTS = {
    "training": by_training,
    "size": by_size,
    "batch": by_batch,
    "samples": by_samples,
    "parameters": by_parameters,
    "microbatch": by_microbatch,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; by default all")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"unknown part {', '.join(sorted(unknown))}; choose of {', '.join(PARTS)}")
    print_machine("scipy")
    for part in arguments.parts or PARTS:
        slow = part in ("training", "size")
        PARTS[part](min(arguments.rounds, SLOW_ROUNDS) if slow else arguments.rounds)


if __name__ == "__main__":
    main()
