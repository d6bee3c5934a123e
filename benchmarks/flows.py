"""How long the flows take, and how close they come to gradient descent.

    python benchmarks/flows.py              # everything, a few minutes on two cores
    python benchmarks/flows.py landscape    # the quadratic landscape, beside Euler's method
    python benchmarks/flows.py network      # the 431-parameter network
    python benchmarks/flows.py edge         # models of the edge of stability, in gradients

"Cold" is the first call in a process of its own: tracing and compilation are in it, the import of
JAX and pfcore is not. "Warm" is the median of three further calls. Everything is in double
precision and on the processor. Run it on a machine that does nothing else: eigendecompositions
whose threads have to wait for busy cores take up to a hundred times longer, which shows in the
dense rows; OPENBLAS_NUM_THREADS=1 in the environment avoids that.

"Euler" is explicit Euler's method with 105,000 steps for each step of gradient descent, once as a
compiled loop, its compilation in the time given, and once as a loop in Python with one compiled
evaluation of the field at each step.
Of the Python loop a few thousand steps are timed; its total is that time scaled up to all steps,
an extrapolation.

Models of the edge are measured in gradients for a unit of time, one step of gradient descent, on
the tanh network 64-16-10 with 300 digits, at the edge. "Counted" are the operations of
all matrix products over samples that the integration runs, whatever runs them: gradients, Hessian
products (1.2 gradients here beside the gradient at the same point), third derivatives (2.9). A
gradient has 1.5 million. "In time" is the integration's time over that of gradient descent, which
depends on the machine, and counts what is no product of the loss as well.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from tables import table

EULER_STEPS = 105_000  # for each step of gradient descent
PYTHON_STEPS = 2_000  # timed of the loop in Python

LANDSCAPE_START = (-0.35, -0.2)
LANDSCAPE_STEPS = 5
SETTINGS = {"converging": 0.9, "diverging": 1.05}
TIGHT = {"rtol": 1e-10, "atol": 1e-12}
FLOWS = ("ngf", "igr", "principal")
NAMES = {"ngf": "NGF", "igr": "IGR flow", "principal": "PF"}

NETWORK_SIZES = (30, 10, 10, 1)
NETWORK_WARM_UP = {"learning_rate": 0.2, "num_steps": 100}
NETWORK_STEPS = 20
NETWORK_RATES = (0.2, 0.6)
NETWORK_DEPTHS = (None, 40)

EDGE_RATE = 0.6
EDGE_SAMPLES = 300  # no other dimension has this length
EDGE_START = 580  # steps of gradient descent, where two directions are near 2 / h
EDGE_STEPS = 200
EDGE_CRITICAL = 12  # steps over which all directions of central flow are critical
EDGE_MODELS = (
    ("NGF", {}),
    ("IGR flow", {}),
    ("two-frame, order 1", {}),
    ("two-frame, order 1, adaptive", {}),
    ("two-frame, order 2", {}),
    ("two-frame, order 2, adaptive", {}),
    ("edge-type, secant, no correction", {}),
    ("edge-type, secant", {}),
    ("edge-type", {}),
    ("edge-type, adaptive", {}),
    ("rod, no correction, 1 step", {}),
    ("rod", {}),
    ("central, 1 direction", {"directions": 1}),
    ("central, 2 directions", {"directions": 2}),
    ("central, 3 directions", {"directions": 3}),
)


def ready(value: Any) -> Any:
    import jax

    return jax.block_until_ready(value)


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = ready(call())
    return time.perf_counter() - start, result


def cold_and_warm(call: Callable[[], Any]) -> dict[str, Any]:
    cold, result = timed(call)
    return {
        "cold": cold,
        "warm": statistics.median(timed(call)[0] for _ in range(3)),
        "result": result,
    }


# ---- what is measured, each in a process of its own


def landscape_flow(flow_name: str, learning_rate: float):
    import pfcore

    loss = pfcore.objectives.quadratic
    return {
        "ngf": lambda: pfcore.flows.negative_gradient_flow(loss),
        "igr": lambda: pfcore.flows.igr_flow(loss, learning_rate),
        "principal": lambda: pfcore.flows.principal_flow(loss, learning_rate),
    }[flow_name]()


def landscape_start():
    import jax.numpy as jnp

    return jnp.array(LANDSCAPE_START)


def landscape_times(learning_rate: float):
    import jax.numpy as jnp

    return learning_rate * jnp.arange(LANDSCAPE_STEPS + 1)


def distance_to_descent(params, learning_rate: float) -> float:
    import jax.numpy as jnp

    import pfcore

    steps = pfcore.gradient_descent(
        pfcore.objectives.quadratic, landscape_start(), learning_rate, LANDSCAPE_STEPS
    )
    return float(jnp.linalg.norm(params - steps[-1]))


def measure_integration(setting: str, flow_name: str, tight: bool) -> dict[str, Any]:
    import pfcore

    h = SETTINGS[setting]
    found = cold_and_warm(
        lambda: pfcore.integrate(
            landscape_flow(flow_name, h),
            landscape_start(),
            landscape_times(h),
            **(TIGHT if tight else {}),
        )
    )
    path = found.pop("result")
    return found | {
        "steps": int(path.num_steps),
        "completed": bool(path.completed),
        "error": distance_to_descent(path.params[-1], h),
    }


def measure_euler(setting: str, flow_name: str) -> dict[str, Any]:
    import jax

    h = SETTINGS[setting]
    flow = landscape_flow(flow_name, h)
    state = flow.init(landscape_start())
    dt = h / EULER_STEPS
    total = LANDSCAPE_STEPS * EULER_STEPS

    @jax.jit
    def field(state):
        return flow.vector_field(0.0, state)

    @jax.jit
    def compiled(state):
        return jax.lax.fori_loop(0, total, lambda _, s: s + dt * flow.vector_field(0.0, s), state)

    ready(field(state))

    def python_loop():
        s = state
        for _ in range(PYTHON_STEPS):
            s = s + dt * field(s)
        return s

    python_loop()
    python = timed(python_loop)[0] * total / PYTHON_STEPS
    cold, end = timed(lambda: compiled(state))
    return {
        "compiled": cold,
        "python_extrapolated": python,
        "error": distance_to_descent(flow.position(end), h),
    }


def measure_figure(setting: str) -> dict[str, Any]:
    """Gradient descent and all three flows, as a figure of the book needs them."""
    import pfcore

    h = SETTINGS[setting]

    def figure():
        steps = pfcore.gradient_descent(
            pfcore.objectives.quadratic, landscape_start(), h, LANDSCAPE_STEPS
        )
        paths = [
            pfcore.integrate(landscape_flow(name, h), landscape_start(), landscape_times(h))
            for name in FLOWS
        ]
        return steps, paths

    return {key: value for key, value in cold_and_warm(figure).items() if key != "result"}


def network():
    """Loss and parameters of the breast-cancer network after a hundred steps of descent."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from flax import nnx

    import pfcore

    data = pfcore.datasets.load("breast_cancer", dtype=np.float64)
    model = pfcore.networks.MLP(NETWORK_SIZES, param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    loss, params = pfcore.losses.full_batch(
        model, data.train_inputs, data.train_targets, kind="mse"
    )
    path = pfcore.gradient_descent(loss, params, **NETWORK_WARM_UP)
    return loss, jax.tree.map(lambda x: x[-1], path)


def measure_network(learning_rate: float, depth: int | None) -> dict[str, Any]:
    import jax
    import jax.numpy as jnp
    from jax.flatten_util import ravel_pytree

    import pfcore

    loss, params = network()
    sharpness = float(pfcore.curvature.spectrum(loss, params)[-1])
    jax.clear_caches()
    found = cold_and_warm(
        lambda: pfcore.integrate(
            pfcore.flows.principal_flow(loss, learning_rate, depth=depth, branch="continued"),
            params,
            learning_rate * jnp.arange(NETWORK_STEPS + 1),
        )
    )
    path = found.pop("result")
    steps = pfcore.gradient_descent(loss, params, learning_rate, NETWORK_STEPS)
    start, end, reached = (
        ravel_pytree(tree)[0]
        for tree in (
            params,
            jax.tree.map(lambda x: x[-1], steps),
            jax.tree.map(lambda x: x[-1], path.params),
        )
    )
    return found | {
        "z": learning_rate * sharpness,
        "steps": int(path.num_steps),
        "completed": bool(path.completed),
        "error": float(jnp.linalg.norm(reached - end) / jnp.linalg.norm(end)),
        "moved": float(jnp.linalg.norm(end - start) / jnp.linalg.norm(end)),
    }


def measure_field(depth: int | None) -> dict[str, Any]:
    """One evaluation of PF's field on the network, compiled, at a real and at a complex state."""
    import jax

    import pfcore

    loss, params = network()
    flow = pfcore.flows.principal_flow(loss, NETWORK_RATES[-1], depth=depth, branch="continued")
    real = flow.init(params)
    moved = jax.tree.map(lambda x: x + 1e-3j * x.real, real)
    field = jax.jit(flow.vector_field)
    return {
        name: cold_and_warm(lambda state=state: field(0.0, state))["warm"]
        for name, state in (("real", real), ("complex", moved))
    }


def edge_model(name: str, loss, rate: float, directions: int | None):
    """A model, options of `integrate`, and which midpoints of gradient descent it follows."""
    import diffrax

    from pfcore import flows

    adaptive = {"rtol": 1e-4, "atol": 1e-7, "solver": diffrax.Bosh3(scan_kind="lax")}
    fixed = flows.fixed_steps
    secant = {"curvature": "secant"}
    if directions is not None:
        return flows.central_flow(loss, rate, max_k=directions), {}, 1
    return {
        "NGF": lambda: (flows.negative_gradient_flow(loss), adaptive, 1),
        "IGR flow": lambda: (flows.igr_flow(loss, rate), adaptive, 1),
        "two-frame, order 1": lambda: (
            fixed(flows.two_frame_flow(loss, rate, order=1), rate),
            {},
            1,
        ),
        "two-frame, order 1, adaptive": lambda: (
            flows.two_frame_flow(loss, rate, order=1),
            adaptive,
            1,
        ),
        "two-frame, order 2": lambda: (fixed(flows.two_frame_flow(loss, rate), rate / 2), {}, 1),
        "two-frame, order 2, adaptive": lambda: (flows.two_frame_flow(loss, rate), adaptive, 1),
        "edge-type, secant, no correction": lambda: (
            fixed(flows.edge_flow(loss, rate, correction=False, **secant), rate),
            {},
            2,
        ),
        "edge-type, secant": lambda: (
            fixed(flows.edge_flow(loss, rate, **secant), rate / 2),
            {},
            2,
        ),
        "edge-type": lambda: (fixed(flows.edge_flow(loss, rate), rate / 2), {}, 2),
        "edge-type, adaptive": lambda: (flows.edge_flow(loss, rate), adaptive, 2),
        "rod, no correction, 1 step": lambda: (
            flows.rod_flow(loss, rate, correction=False, substeps=1),
            {},
            2,
        ),
        "rod": lambda: (flows.rod_flow(loss, rate), {}, 2),
    }[name]()


def measure_edge(name: str, directions: int | None = None) -> dict[str, Any]:
    import jax
    import jax.numpy as jnp
    import numpy as np
    from flax import nnx

    import pfcore
    from pfcore.runs.counting import counted

    data = pfcore.datasets.load("digits", dtype="float64", num_train=EDGE_SAMPLES)
    model = pfcore.networks.MLP((64, 16, 10), param_dtype=jnp.float64, rngs=nnx.Rngs(0))
    loss, params = pfcore.losses.full_batch(
        model, data.train_inputs, data.train_targets, kind="mse"
    )
    steps = pfcore.gradient_descent(loss, params, EDGE_RATE, EDGE_START + EDGE_STEPS + 8)

    around = np.asarray(pfcore.paths.as_matrix(steps))[EDGE_START - 1 : EDGE_START + EDGE_STEPS + 2]
    start = jax.tree.map(lambda x: x[EDGE_START], steps)
    rate = EDGE_RATE
    if directions is not None and directions > 2:
        # A larger rate, by which the third eigenvalue is critical as well.
        values = pfcore.curvature.top_eigenpairs(loss, start, directions, key=jax.random.key(0))
        rate = 2 / float(values.values[-1])
    flow, options, points = edge_model(name, loss, rate, directions)
    if name.startswith("two-frame"):
        around_start = jax.tree.map(lambda x: x[EDGE_START - 6 : EDGE_START + 7], steps)
        start = pfcore.flows.two_frame_start(around_start)

    def follow(start, num_steps):
        times = rate * np.arange(num_steps + 1)
        return pfcore.integrate(flow, start, times, **options)

    # What is done at the start is no part of a unit of time; nor is the mean loss, which
    # `integrate` reads at every time.
    state = flow.init(start)
    begun = flow._replace(init=lambda state: state, expected_loss=None)

    def count(function, argument):
        return counted(function, argument, num_samples=EDGE_SAMPLES).operations

    times = rate * np.arange(EDGE_STEPS + 1)
    num_counted = EDGE_STEPS if directions is None else EDGE_CRITICAL
    operations = count(
        lambda state: pfcore.integrate(begun, state, times[: num_counted + 1], **options), state
    )
    gradient = count(jax.grad(loss), jax.tree.map(lambda x: x[0], steps))
    path = follow(start, EDGE_STEPS)
    plain = jax.tree.map(lambda x: x[EDGE_START], steps)
    # Compiled as a whole: tracing and the checks of arguments are no part of a step.
    run = jax.jit(lambda state: pfcore.integrate(begun, state, times, **options).params)
    descend = jax.jit(lambda p: pfcore.gradient_descent(loss, p, EDGE_RATE, 10 * EDGE_STEPS))
    ready((run(state), descend(plain)))
    seconds = min(timed(lambda: run(state))[0] for _ in range(5))
    descent = min(timed(lambda: descend(plain))[0] for _ in range(5)) / 10
    middle = (around[:-2] + 2 * around[1:-1] + around[2:]) / 4
    wanted = middle if points == 1 else (around[1:-1] + around[2:]) / 2
    travel = float(np.sum(np.linalg.norm(np.diff(middle, axis=0), axis=1)))
    return {
        "counted": operations / gradient / num_counted,
        "time": seconds / descent,
        "completed": bool(path.completed),
        "error": float(
            np.linalg.norm(np.asarray(pfcore.paths.as_matrix(path.params))[-1] - wanted[-1])
        )
        / travel,
        "comparable": rate == EDGE_RATE,
    }


MEASURES = {
    "edge": measure_edge,
    "integration": measure_integration,
    "euler": measure_euler,
    "figure": measure_figure,
    "network": measure_network,
    "field": measure_field,
}


def in_fresh_process(measure: str, *arguments: Any) -> dict[str, Any]:
    command = [sys.executable, __file__, "--measure", json.dumps([measure, *arguments])]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(result.stdout.splitlines()[-1])


# ---- what is printed


def seconds(value: float) -> str:
    if value < 1e-3:
        return f"{1e6 * value:.0f} µs"
    if value < 1:
        return f"{1e3 * value:.0f} ms" if value >= 0.01 else f"{1e3 * value:.1f} ms"
    return f"{value:.1f} s" if value < 100 else f"{value:,.0f} s"


def print_landscape() -> None:
    for setting, h in SETTINGS.items():
        rows = []
        for name in FLOWS:
            for tight in (False, True) if name == "principal" else (False,):
                found = in_fresh_process("integration", setting, name, tight)
                rows.append(
                    (
                        f"{NAMES[name]}, adaptive" + (", rtol 1e-10" if tight else ""),
                        seconds(found["cold"]),
                        seconds(found["warm"]),
                        f"{found['steps']}",
                        f"{found['error']:.1e}" if name == "principal" else "",
                    )
                )
            euler = in_fresh_process("euler", setting, name)
            total = f"{LANDSCAPE_STEPS * EULER_STEPS:,}"
            error = f"{euler['error']:.1e}" if name == "principal" else ""
            rows.append(
                (f"{NAMES[name]}, Euler, compiled", seconds(euler["compiled"]), "", total, error)
            )
            rows.append(
                (
                    f"{NAMES[name]}, Euler, Python (extrapolated)",
                    seconds(euler["python_extrapolated"]),
                    "",
                    total,
                    "",
                )
            )
        figure = in_fresh_process("figure", setting)
        rows.append(
            (
                "the figure: GD, NGF, IGR flow, PF",
                seconds(figure["cold"]),
                seconds(figure["warm"]),
                "",
                "",
            )
        )
        table(
            f"Quadratic, {setting}: E = x² + 0.01 y², start {LANDSCAPE_START}, h = {h}, "
            f"{LANDSCAPE_STEPS} steps",
            ("", "cold", "warm", "steps", "PF's error to GD"),
            rows,
        )
    print(f"\n  Of the loops in Python {PYTHON_STEPS:,} steps were timed; the rest is scaled up.")


def depth_name(depth: int | None) -> str:
    return "dense" if depth is None else f"depth {depth}"


def print_network() -> None:
    rows = []
    for h in NETWORK_RATES:
        for depth in NETWORK_DEPTHS:
            found = in_fresh_process("network", h, depth)
            rows.append(
                (
                    f"h = {h}, {depth_name(depth)}",
                    f"{found['z']:.2f}",
                    seconds(found["cold"]),
                    seconds(found["warm"]),
                    f"{found['steps']}",
                    "yes" if found["completed"] else "no",
                    f"{found['error']:.1e}",
                    f"{found['moved']:.1e}",
                )
            )
    warm_up = f"{NETWORK_WARM_UP['num_steps']} steps at h = {NETWORK_WARM_UP['learning_rate']}"
    table(
        f"PF on the 431-parameter network over {NETWORK_STEPS} steps, after {warm_up} of descent",
        ("", "hλ at start", "cold", "warm", "steps", "completed", "error to GD", "GD moved"),
        rows,
    )
    print("\n  The last two columns are at the last step, relative to the norm of GD's parameters.")
    fields = {depth: in_fresh_process("field", depth) for depth in NETWORK_DEPTHS}
    table(
        "One evaluation of PF's field on the same network",
        ("", "real state", "complex state"),
        [
            (depth_name(depth), seconds(found["real"]), seconds(found["complex"]))
            for depth, found in fields.items()
        ],
    )


def print_edge() -> None:
    rows = []
    for name, options in EDGE_MODELS:
        found = in_fresh_process("edge", name, *options.values())
        shown = found["comparable"] and found["completed"]
        rows.append(
            (
                name,
                f"{found['counted']:.1f}",
                f"{found['time']:.0f}",
                f"{found['error']:.1e}" if shown else "",
            )
        )
    table(
        f"Models of the edge on the digits MLP 64-16-10, h = {EDGE_RATE}: gradients for a step of "
        f"gradient descent, and distance to it after {EDGE_STEPS}",
        ("", "counted", "in time", "distance / path"),
        rows,
    )
    print(
        "\n  Adaptive: diffrax.Bosh3, rtol 1e-4, atol 1e-7; else fixed steps of h (order 1 and"
        "\n  edge-type without correction) or h / 2. Central flow with three directions at a larger"
        "\n  rate, where the third is critical."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "part", nargs="?", choices=("all", "landscape", "network", "edge"), default="all"
    )
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()

    os.environ["JAX_PLATFORMS"] = "cpu"
    import diffrax
    import jax

    jax.config.update("jax_enable_x64", True)
    if arguments.measure:
        import pfcore  # noqa: F401 (imports are no part of what is timed)

        measure, *rest = json.loads(arguments.measure)
        print(json.dumps(MEASURES[measure](*rest)))
        return

    print(
        f"{os.cpu_count()} CPUs, Python {platform.python_version()}, jax {jax.__version__}, "
        f"diffrax {diffrax.__version__}, load {os.getloadavg()[0]:.1f}, OPENBLAS_NUM_THREADS "
        f"{os.environ.get('OPENBLAS_NUM_THREADS', 'not set')}\n"
        "cold: first call in a fresh process, compilation included; warm: median of 3 further calls"
    )
    if arguments.part in ("all", "landscape"):
        print_landscape()
    if arguments.part in ("all", "network"):
        print_network()
    if arguments.part in ("all", "edge"):
        print_edge()


if __name__ == "__main__":
    main()
