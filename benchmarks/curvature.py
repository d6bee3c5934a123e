"""What curvature costs, beside ARPACK, LOBPCG and matfree.

    python benchmarks/curvature.py              # everything, some ten minutes on two cores
    python benchmarks/curvature.py eigenpairs   # or units, kinds, tracking, density, trace,
    python benchmarks/curvature.py --repeats 3  # overhead, memory

On the digits network, MLP (64, 100, 100, 100, 10) with tanh, mean squared error over 1,437
samples, after 450 steps of gradient descent at h = 0.2; in single precision, on the processor
unless JAX_PLATFORMS says otherwise (on a GPU with products of matrices in float32, unless
JAX_DEFAULT_MATMUL_PRECISION does). All methods of a table are compiled first and then take turns,
forwards and backwards, so that noise hits all alike; times are medians, and start from the
parameters, with the linearisation.

"jvp of grad": the gradient and its derivative anew for each product. "kept": products of one
linearisation at each point, ARPACK's and LOBPCG's too. Products are counted where they happen
(ARPACK), by the method itself (pfcore), or follow from iterations (LOBPCG: k to start with, 4 k
for each) or depth (matfree). "error": the largest relative error of an eigenvalue against ARPACK
at 1e-6. "residual": the largest |Hu − λu| / |λ|, from products of its own.

Of ARPACK's subspace sizes and starts the three with the fewest products go into the comparison;
the fastest and the one with the fewest products are shown. matfree has no stopping criterion: it
gets the smallest depth at which its values, in rows of their own its residuals, are within 1e-3
everywhere, searched for beforehand, knowing the answer. The last column is a time over that of
the fastest peer, with the goal for pfcore in brackets; the one before it leaves out peers whose
residuals are above 1e-3.

"kinds" compares products with other curvatures of the same network. curvlinops is not installed
here. Version 3.0.1 with PyTorch 2.14.1, measured once on the same two busy cores for a network of
these sizes, took 115 ms for a Gauss-Newton product and 188 ms for a Hessian product, 3.0 and 4.9 of
its gradients, as it runs the network again for each product; pfcore took 12 ms and 18 ms, 1.1 and
1.7 of its gradients, with what does not depend on the vector kept.
Measured again beside ten other processes, best of seven: Hessian 348 ms, Gauss-Newton 266 ms,
Monte Carlo Fisher 137 ms, empirical Fisher 239 ms; pfcore 11.5, 4.9, 6.3 and 5.1 ms in turn with
them. Times under load, so read them as no more than an order of magnitude.
"""

import argparse
import bisect
from collections.abc import Callable
from functools import cache, partial
from types import SimpleNamespace
from typing import Any

from timing import Calls, print_machine, timed

# isort: split
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental.sparse.linalg import lobpcg_standard
from jax.flatten_util import ravel_pytree
from matfree import decomp, eig, stochtrace
from scipy.sparse.linalg import LinearOperator, eigsh
from tables import table

import pfcore
from pfcore import curvature

SIZES = (64, 100, 100, 100, 10)
LEARNING_RATE = 0.2
WARM_UP = 450  # steps of gradient descent before anything is measured
TRACKED_STEPS, TRACKED = 20, 2
TOLERANCE, REFERENCE_TOLERANCE = 1e-3, 1e-6
SUBSPACES = (None, 8, 12, 16, 24, 32)  # ARPACK's ncv, beside 2k + 1
PROBES, DEPTH = 10, 30  # of densities
TRACE_PROBES = 100
LARGE = 1_000_000  # parameters of the loss whose own memory is negligible
UNIT_REPEATS = 5  # cheap calls are repeated that many times more often
FEW, MANY = 5, 35  # products in the two loops whose difference is the cost of one
KEY = jax.random.key(0)

LINEARISATION = "gradient and linearisation, no product"


def network(microbatch: int | None = None):
    data = pfcore.datasets.load("digits")
    model = pfcore.networks.MLP(SIZES, rngs=nnx.Rngs(0))
    options = {"kind": "mse", "microbatch": microbatch}
    return pfcore.losses.full_batch(model, data.train_inputs, data.train_targets, **options)


@cache
def digits() -> SimpleNamespace:
    """The loss of a pytree and of a flat vector, where it is looked at, and 20 steps from there."""
    loss, params = network()
    flat, unravel = ravel_pytree(params)

    def flat_loss(x):
        return loss(unravel(x))

    def step(x):
        return x - LEARNING_RATE * jax.grad(flat_loss)(x)

    @jax.jit
    def descend(x):
        x = jax.lax.fori_loop(0, WARM_UP, lambda _, x: step(x), x)
        return jax.lax.scan(lambda x, _: (step(x), x), x, length=TRACKED_STEPS + 1)[1]

    path = descend(flat)  # [21, n]
    at = {"flat": path[0], "params": unravel(path[0])}
    then = {"path": path[1:], "trees": jax.vmap(unravel)(path[1:])}
    return SimpleNamespace(loss=loss, flat_loss=flat_loss, unravel=unravel, **at, **then)


def anew(loss: Callable, x: jax.Array) -> Callable:
    return lambda v: jax.jvp(jax.grad(loss), (x,), (v,))[1]


def kept(loss: Callable, x: jax.Array) -> Callable:
    return jax.linearize(jax.grad(loss), x)[1]


PRODUCTS = {"jvp of grad": anew, "kept": kept}


def compiled(function: Callable, *arguments: Any) -> Callable[[], Any]:
    return partial(jax.jit(function), *arguments)


def seconds(value: float) -> str:
    return f"{1e3 * value:.2f} ms" if value < 0.1 else f"{1e3 * value:.0f} ms"


def ratio(times: dict[str, float], name: str, peers: list[str], goal: str | None = None):
    """A time over that of the fastest peer, with the goal."""
    value = f"{times[name] / min(times[peer] for peer in peers):.2f}"
    return f"{value} [<= {goal}]" if goal else value


def peers_in(names: Any) -> list[str]:
    return [name for name in names if not name.startswith("pfcore")]


# ---- unit costs


def unit_calls() -> Calls:
    loss, x = digits().flat_loss, digits().flat
    v = jax.random.normal(KEY, x.shape, x.dtype)

    def loop(count, x, v):
        product = kept(loss, x)
        # A tenth of a product is about as long as the vector before.
        return jax.lax.fori_loop(0, count, lambda _, v: 0.1 * product(v), v)

    return {
        "gradient": compiled(jax.grad(loss), x),
        "product, jvp of grad": compiled(lambda x, v: anew(loss, x)(v), x, v),
        "product, linearised for it alone": compiled(lambda x, v: kept(loss, x)(v), x, v),
        LINEARISATION: compiled(lambda x: jax.linearize(jax.grad(loss), x), x),
        "few": compiled(partial(loop, FEW), x, v),
        "many": compiled(partial(loop, MANY), x, v),
    }


def kept_product_time(times: dict[str, float]) -> float:
    return (times["many"] - times["few"]) / (MANY - FEW)


def print_units(repeats: int) -> None:
    times, _ = timed(unit_calls(), UNIT_REPEATS * repeats)
    costs = {name: t for name, t in times.items() if name not in ("few", "many")}
    costs[f"product, kept linearisation ({MANY} less {FEW})"] = kept_product_time(times)
    rows = [(name, seconds(t), f"{t / times['gradient']:.2f}") for name, t in costs.items()]
    table(f"Unit costs, {UNIT_REPEATS * repeats} repetitions", ("", "time", "gradients"), rows)


# ---- other curvatures


def kinds() -> dict[str, Any]:
    """The loss, and curvatures of the same network in its place, of a flat vector."""
    data = pfcore.datasets.load("digits")
    inputs, targets = jnp.asarray(data.train_inputs), jax.nn.one_hot(data.train_targets, SIZES[-1])
    model = pfcore.networks.MLP(SIZES, rngs=nnx.Rngs(0))
    graph, _, rest = nnx.split(model, nnx.Param, ...)
    unravel = digits().unravel

    def predict(x):
        return nnx.merge(graph, unravel(x), rest)(inputs)

    def of_outputs(outputs):
        return 0.5 * jnp.mean(jnp.sum((outputs - targets) ** 2, axis=-1))

    def per_sample(x):
        return 0.5 * jnp.sum((predict(x) - targets) ** 2, axis=-1)

    def loss(x):
        return of_outputs(predict(x))

    scale = jnp.linspace(0.5, 1.5, digits().flat.size)
    fisher = partial(curvature.fisher, predict, "cross_entropy")
    return {
        "Hessian": loss,
        "gauss_newton": curvature.gauss_newton(predict, of_outputs),
        "fisher": fisher(),
        "fisher, samples = 1": fisher(samples=1, key=KEY),
        "empirical_fisher": curvature.empirical_fisher(per_sample),
        "preconditioned Hessian": curvature.preconditioned(loss, scale),
    }


def print_kinds(repeats: int) -> None:
    x = digits().flat
    v = jax.random.normal(KEY, x.shape, x.dtype)

    def loop(matrix, count, x, v):
        product = curvature.linearized_hvp(matrix, x)[1]
        # No power iteration: the vectors of any matrix stay in the range of the precision.
        return jax.lax.fori_loop(0, count, lambda _, v: v + 1e-3 * product(v), v)

    calls: Calls = {"gradient": compiled(jax.grad(digits().flat_loss), x)}
    for name, matrix in kinds().items():
        for count in (FEW, MANY):
            calls[f"{name}, {count}"] = compiled(partial(loop, matrix, count), x, v)
    times, _ = timed(calls, UNIT_REPEATS * repeats)
    kept = {
        name: (times[f"{name}, {MANY}"] - times[f"{name}, {FEW}"]) / (MANY - FEW)
        for name in kinds()
    }
    rows = []
    for name, t in kept.items():
        goal = " [<= 1]" if name == "gauss_newton" else ""
        compared = f"{t / kept['Hessian']:.2f}{goal}"
        rows.append((name, seconds(t), f"{t / times['gradient']:.2f}", compared))
    title = f"One product, kept linearisation ({MANY} less {FEW})"
    table(title, ("", "time", "gradients", "Hessian products"), rows)


# ---- eigenpairs, at one point or along a path: values [t, k], vectors [t, k, n], products [t]


def scanned(search: Callable) -> Callable:
    """Point by point in one compiled loop, each search started from the last vectors."""

    def step(last, point):
        values, vectors, count = search(point, last)
        return vectors, (values, vectors, count)

    return jax.jit(lambda points, start: jax.lax.scan(step, start, points)[1])


def arpack(k: int) -> Callable:
    linearised = jax.jit(lambda x: kept(digits().flat_loss, x))
    apply = jax.jit(lambda product, v: product(v))

    def search(x, v0, ncv, tolerance=TOLERANCE):
        product, count = linearised(x), 0

        def matvec(v):
            nonlocal count
            count += 1
            return np.asarray(apply(product, v))

        matrix = LinearOperator((x.size, x.size), matvec=matvec, dtype=np.dtype(x.dtype))
        values, vectors = eigsh(matrix, k, which="LA", v0=v0, ncv=ncv, tol=tolerance)
        order = np.argsort(-values)
        return values[order], vectors.T[order], count

    def along(points, start, single, *options):
        last, found = np.asarray(start), []
        for x in points:
            found.append(search(x, single(last), *options))
            last = found[-1][1]
        return tuple(map(np.array, zip(*found, strict=True)))

    return along


def lobpcg(x: jax.Array, start: jax.Array):
    """Its tolerance is a residual over 10 n (|λ| + |Hu|)."""
    product = jax.vmap(kept(digits().flat_loss, x), 1, 1)
    k, n = start.shape
    values, vectors, steps = lobpcg_standard(product, start.T, 100, TOLERANCE / (20 * n))
    return values, vectors.T, k * (1 + 4 * steps)


@cache
def matfree(k: int, single: Callable, kind: str, depth: int) -> Callable:
    eigh = eig.eigh_partial(decomp.tridiag_sym(depth))

    def search(x, last):
        values, vectors = eigh(PRODUCTS[kind](digits().flat_loss, x), single(last))
        return values[::-1][:k], vectors[::-1][:k], jnp.int32(depth)

    return scanned(search)


def relative_error(values: Any, expected: np.ndarray) -> float:
    return float(np.max(np.abs(np.asarray(values) / expected - 1)))


@jax.jit
def residual_at(x: jax.Array, values: jax.Array, vectors: jax.Array) -> jax.Array:
    images = jax.vmap(anew(digits().flat_loss, x))(vectors)
    left = jnp.linalg.norm(images - values[:, None] * vectors, axis=1)
    return jnp.max(left / jnp.abs(values) / jnp.linalg.norm(vectors, axis=1))


def largest_residual(points: Any, values: Any, vectors: Any) -> float:
    return max(float(residual_at(*each)) for each in zip(points, values, vectors, strict=True))


def reference(points: Any, k: int) -> np.ndarray:
    v0 = np.asarray(jax.random.normal(jax.random.key(1), (1, digits().flat.size)))
    options = (8 * k + 32, REFERENCE_TOLERANCE)
    return arpack(k)(list(points), v0, lambda last: last[0], *options)[0]


def peer_calls(k: int, points: jax.Array, start: jax.Array, starts: dict, expected) -> Calls:
    """ARPACK, LOBPCG and matfree over the points, from the rows of `start`."""
    along, separate = arpack(k), list(points)
    variants = {
        f"ARPACK{first}, ncv = {ncv}": partial(along, separate, start, single, ncv)
        for first, single in starts.items()
        for ncv in (2 * k + 1, *SUBSPACES)
    }
    spent = {name: call()[2].sum() for name, call in variants.items()}
    calls: Calls = {name: variants[name] for name in sorted(spent, key=spent.__getitem__)[:3]}
    calls["LOBPCG"] = partial(scanned(lobpcg), points, start)

    def reached(depth, criterion, single):
        values, vectors, _ = matfree(k, single, "kept", depth)(points, start)
        if criterion == "values":
            return relative_error(values, expected) <= TOLERANCE
        return largest_residual(points, values, vectors) <= TOLERANCE

    for criterion in ("values", "residuals"):
        depths = {}
        for first, single in starts.items():
            key = partial(reached, criterion=criterion, single=single)
            depths[first] = k + bisect.bisect_left(range(k, 64), True, key=key)
        first = min(depths, key=depths.__getitem__)
        for kind in PRODUCTS:
            name = f"matfree{first}, {criterion}, depth {depths[first]}, {kind}"
            scan = matfree(k, starts[first], kind, depths[first])
            calls[name] = partial(scan, points, start)
    return calls


def compare(title: str, calls: Calls, points: Any, expected, goals: dict, repeats: int) -> None:
    times, found = timed(calls, repeats)
    products = {name: float(np.mean(result[2])) for name, result in found.items()}
    quality = {}
    for name, (values, vectors, _) in found.items():
        values = jnp.reshape(values, expected.shape)
        if name.startswith("pfcore"):  # whose vectors are pytrees
            leaves = [np.reshape(x, (values.size, -1)) for x in jax.tree.leaves(vectors)]
            vectors = np.concatenate(leaves, axis=1)
        vectors = jnp.reshape(vectors, (*values.shape, -1))
        error = relative_error(values, expected)
        quality[name] = error, largest_residual(list(points), values, vectors)
    exact = [name for name in peers_in(times) if quality[name][1] <= TOLERANCE]
    sizes = [name for name in times if name.startswith("ARPACK")]
    shown = {min(sizes, key=times.__getitem__), min(sizes, key=products.__getitem__)}
    rows = []
    for name in [name for name in times if name not in sizes or name in shown]:
        count = f"{products[name]:.4g}{goals.get(f'{name} products', '')}"
        known = tuple(f"{value:.1e}" for value in quality[name])
        ratios = ratio(times, name, exact), ratio(times, name, peers_in(times), goals.get(name))
        rows.append((name, seconds(times[name] / len(points)), count, *known, *ratios))
    head = ("", "time", "products", "error", "residual", "ratio, residual <= 1e-3")
    table(title, (*head, "ratio to best peer"), rows)


def ours(params: Any, k: int, **options: Any):
    found = curvature.top_eigenpairs(digits().loss, params, k, key=KEY, **options)
    return found.values, found.vectors, found.num_products


def print_eigenpairs(repeats: int) -> None:
    x, params = digits().flat, digits().params
    for k in (1, 5):
        expected = reference([x], k)
        # The start of top_eigenpairs with this key; LOBPCG gets k of them.
        v0 = jax.random.normal(jax.random.split(KEY)[1], (1, x.size))
        start = jax.random.normal(jax.random.key(2), (k, x.size)).at[0].set(v0[0])
        name = "pfcore.top_eigenpairs"
        calls: Calls = {name: partial(ours, params, k)}
        if k > 1:
            calls[f"{name}, check=False"] = partial(ours, params, k, check=False)
        calls |= peer_calls(k, x[None], start, {"": lambda last: last[0]}, expected)
        listed = ", ".join(f"{value:.4g}" for value in expected[0])
        goals = dict.fromkeys((name, f"{name}, check=False"), "1.0")
        title = f"Largest {k} at tolerance {TOLERANCE:g}: {listed}"
        compare(title, calls, x[None], expected, goals, repeats)


@cache
def tracking() -> tuple[Callable, Any]:
    """Updates of a tracker over points, and its state at the point before them."""
    along = curvature.tracker(digits().loss, TRACKED, tolerance=TOLERANCE)

    def step(state, params):
        state = along.update(params, state)
        return state, (state.pairs.values, state.pairs.vectors, state.pairs.num_products)

    state = jax.jit(along.init)(digits().params, KEY)
    return jax.jit(lambda points, state: jax.lax.scan(step, state, points)[1]), state


def print_tracking(repeats: int) -> None:
    points, trees, (updates, state) = digits().path, digits().trees, tracking()
    expected = reference(points, TRACKED)
    pairs = state.pairs
    start = jax.vmap(lambda tree: ravel_pytree(tree)[0])(pairs.vectors)
    again = scanned(lambda params, last: ours(params, TRACKED, start=last))
    calls: Calls = {
        "pfcore.track": partial(updates, trees, state),
        "pfcore.top_eigenpairs(start=last)": partial(again, trees, pairs.vectors),
    }
    starts = {" from u₁": lambda last: last[0], " from u₁ + u₂": lambda last: last.sum(0)}
    calls |= peer_calls(TRACKED, points, start, starts, expected)
    title = f"Top {TRACKED} over {TRACKED_STEPS} steps of gradient descent at h = {LEARNING_RATE}"
    goals = {"pfcore.track": "0.5", "pfcore.track products": " [<= 6]"}
    compare(f"{title}, for each step", calls, points, expected, goals, repeats)
    cold = f"The point before the {TRACKED_STEPS} took {int(pairs.num_products)} products"
    print(f"\n  {cold}, in no row. All start from the last eigenvectors, or one or their sum.")


# ---- density, trace


def print_density(repeats: int) -> None:
    x, top = digits().flat, reference([digits().flat], 1)[0]

    def quadrature(kind, over, x, key):
        product = PRODUCTS[kind](digits().flat_loss, x)

        def probe(v):
            values, vectors = jnp.linalg.eigh(decomp.tridiag_sym(DEPTH)(product, v).J_small)
            return values, vectors[0] ** 2

        return over(probe, stochtrace.sampler_normal(x, num=PROBES)(key))

    def density(**options):
        options |= {"key": KEY, "num_probes": PROBES, "depth": DEPTH}
        found = curvature.spectral_density(digits().loss, digits().params, **options)
        return found.nodes, found.weights

    name = "pfcore.spectral_density"
    together = f"{name}, batch_size = {PROBES}"
    calls: Calls = {name: density, together: partial(density, batch_size=PROBES)}
    for way, over in {"vmap": lambda f, v: jax.vmap(f)(v), "lax.map": jax.lax.map}.items():
        for kind in PRODUCTS:
            search = partial(quadrature, kind, over)
            calls[f"matfree, {way}, {kind}"] = compiled(search, x, KEY)
    times, found = timed(calls, repeats)
    vmapped, mapped = ([name for name in times if way in name] for way in ("vmap", "lax.map"))
    rows = []
    for name, (nodes, weights) in found.items():
        error = f"{relative_error(np.max(nodes, axis=1), top):.1e}"
        mean = f"{x.size * float(jnp.mean(jnp.sum(weights * nodes, axis=1))):.0f}"
        goal = "0.5" if name.startswith("pfcore") else None
        ratios = ratio(times, name, mapped), ratio(times, name, vmapped, goal)
        rows.append((name, seconds(times[name]), f"{PROBES * DEPTH}", error, mean, *ratios))
    head = ("", "time", "products", "error of λ₀", "trace", "ratio to best lax.map")
    title = f"Density, {PROBES} probes, {DEPTH} steps"
    table(title, (*head, "ratio to best peer (vmap)"), rows)
    print("\n  vmap is what matfree's documentation does; lax.map, a probe at a time, a variant.")


def print_trace(repeats: int) -> None:
    def estimated(kind, x, key):
        sampler = stochtrace.sampler_signs(x, num=TRACE_PROBES)
        integrand = stochtrace.monte_carlo_trace()
        estimate = stochtrace.estimator_monte_carlo_mean_and_sem(integrand, sampler)
        return estimate(PRODUCTS[kind](digits().flat_loss, x), key)

    trace = partial(curvature.trace, digits().loss, digits().params, key=KEY)
    calls: Calls = {
        "pfcore.trace": partial(trace, num_probes=TRACE_PROBES),
        "pfcore.trace, xtrace": partial(trace, num_probes=TRACE_PROBES // 2, method="xtrace"),
    }
    for kind in PRODUCTS:
        call = compiled(partial(estimated, kind), digits().flat, KEY)
        calls[f"matfree, hutchinson, {kind}"] = call
    times, found = timed(calls, repeats)
    rows = []
    for name, (mean, error) in found.items():
        compared = ratio(times, name, peers_in(times), "0.7" if name == "pfcore.trace" else None)
        shown = (f"{TRACE_PROBES}", f"{float(mean):.1f}", f"{float(error):.2f}")
        rows.append((name, seconds(times[name]), *shown, compared))
    head = ("", "time", "products", "trace", "standard error", "ratio to best peer")
    table(f"Trace, {TRACE_PROBES} products", head, rows)


# ---- overhead, memory


def print_overhead(repeats: int) -> None:
    loss, params = digits().loss, digits().params
    updates, state = tracking()
    vector = digits().unravel(jax.random.normal(KEY, digits().flat.shape))
    cosine = partial(curvature.apply_function, jnp.cos, loss, depth=DEPTH)

    def at(routine, **options):
        return partial(routine, loss, params, key=KEY, **options)

    half, density = TRACE_PROBES // 2, {"num_probes": PROBES, "depth": DEPTH}
    calls: Calls = {
        "top_eigenpairs, k = 1": at(curvature.top_eigenpairs, k=1),
        "top_eigenpairs, k = 5": at(curvature.top_eigenpairs, k=5),
        "top_eigenpairs, k = 5, check=False": at(curvature.top_eigenpairs, k=5, check=False),
        f"tracker, {TRACKED_STEPS} updates": partial(updates, digits().trees, state),
        f"spectral_density, {PROBES} × {DEPTH}": at(curvature.spectral_density, **density),
        f"apply_function, depth {DEPTH}": compiled(cosine, params, vector),
        "trace": at(curvature.trace, num_probes=TRACE_PROBES),
        "trace, xtrace": at(curvature.trace, num_probes=half, method="xtrace"),
        "diagonal": at(curvature.diagonal, num_probes=TRACE_PROBES),
    }
    times, found = timed(calls | unit_calls(), repeats)
    product, linearisation = kept_product_time(times), times[LINEARISATION]
    rows = []
    for name in calls:
        points, products = 1, getattr(found[name], "num_products", TRACE_PROBES)
        if name.startswith("tracker"):
            points, products = TRACKED_STEPS, np.sum(found[name][2])
        elif name.startswith("apply"):
            products = DEPTH
        bare = int(products) * product
        raw, without = times[name] / bare, (times[name] - points * linearisation) / bare
        ratios = (f"{raw:.2f} [<= 1.3]", f"{without:.2f} [<= 1.3]")
        rows.append((f"pfcore.{name}", seconds(times[name]), f"{products}", f"{points}", *ratios))
    head = ("", "time", "products", "linearisations", "time / products", "less linearisations")
    costs = f"{seconds(product)} for each; a gradient and linearisation {seconds(linearisation)}"
    table(f"Overhead: time over that of its products alone, {costs}", head, rows)


def temporaries(function: Callable, *arguments: Any) -> float:
    memory = jax.jit(function).lower(*arguments).compile().memory_analysis()
    return float(memory.temp_size_in_bytes)


def print_memory(_: int) -> None:
    def elementwise(x):
        return jnp.sum(jnp.cosh(x))

    def density(x):
        return curvature.spectral_density(elementwise, x, key=KEY, num_probes=1, depth=DEPTH)

    def peer(kind, x):
        vector = jax.random.normal(KEY, x.shape)
        tridiagonal = decomp.tridiag_sym(DEPTH)(PRODUCTS[kind](elementwise, x), vector).J_small
        return jnp.linalg.eigh(tridiagonal)

    x = jnp.zeros(LARGE)
    sizes = {"pfcore.spectral_density": temporaries(density, x)}
    for kind in PRODUCTS:
        sizes[f"matfree, {kind}"] = temporaries(partial(peer, kind), x)
    rows = []
    for name, size in sizes.items():
        multiple = f"{size / (DEPTH * x.nbytes):.3f}"
        goal = "" if name in peers_in(sizes) else " [<= 1.2]"
        compared = ratio(sizes, name, peers_in(sizes))
        rows.append((name, f"{size / 2**20:.1f}", multiple + goal, compared))
    title = f"Temporary memory of Lanczos, depth m = {DEPTH}, n = {LARGE:,}, one probe"
    table(title, ("", "MiB", "of m n numbers", "ratio to best peer"), rows)

    needed = {}
    for microbatch in (None, 256, 64):
        loss, params = network(microbatch)
        name = f"microbatch = {microbatch}" if microbatch else "full batch"
        needed[name] = temporaries(partial(curvature.hvp, loss), params, params)
    full = needed["full batch"]
    rows = [(name, f"{size / 2**20:.2f}", f"{size / full:.3f}") for name, size in needed.items()]
    table("Temporary memory of one product, hvp", ("", "MiB", "of the full batch's"), rows)


PARTS = {
    name[6:]: part
    for name, part in list(globals().items())
    if name.startswith("print_") and part is not print_machine
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", nargs="?", choices=("all", *PARTS), default="all")
    parser.add_argument("--repeats", type=int, default=7, help="of everything that is timed")
    arguments = parser.parse_args()
    print_machine("scipy", "matfree")
    print(f"repeats {arguments.repeats}")
    loss = float(digits().flat_loss(digits().flat))
    print(f"{digits().flat.size:,} parameters, loss {loss:.4f} after {WARM_UP} steps")
    for name, part in PARTS.items():
        if arguments.part in ("all", name):
            part(arguments.repeats)


if __name__ == "__main__":
    main()
