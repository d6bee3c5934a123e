"""Gradient descent and flows from the same points before, at and after the edge of stability."""

import functools
from dataclasses import dataclass
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np

import pfcore
from pfcore import curvature, paths, stability
from pfcore._checks import check_count, check_learning_rate
from pfcore._trees import Params, add_scaled, ravel, real_dtype
from pfcore.flows import Flow, SteppedFlow, named_flow
from pfcore.records import Record
from pfcore.runs import execution, training
from pfcore.runs.problems import PROBLEMS, Problem, build

NAME = "flows-at-the-edge"


@dataclass(frozen=True)
class Config:
    """The starting points, the flows, and the length of the comparison.

    Attributes:
      problem: data, network and loss.
      learning_rate: $h$.
      starts: numbers of gradient descent steps after which the comparison starts.
      num_steps: its length in steps, for the real flows.
      principal_steps: its length for "principal" and "principal_np", whose fields take up to
        `depth` products for each evaluation, and complex ones if h λ₀ > 1.
      flows: names of flows without an oscillation, as for `pfcore.flows.named_flow`.
      depth: largest number of Hessian products for an evaluation of the principal flow.
      depth_tolerance: relative tolerance of its field.
      rtol: relative tolerance of the integration.
      reach: half-width of the slices of the loss along the top eigenvector, as a distance in
        parameter space.
      num_slice: number of points of a slice.
      seed: of the initial weights.
    """

    problem: Problem = PROBLEMS["quick"]["digits-mlp"]
    learning_rate: float = 0.2
    starts: tuple[int, ...] = (200, 345, 366, 450)
    num_steps: int = 10
    principal_steps: int = 2
    flows: tuple[str, ...] = ("ngf", "igr", "principal")
    depth: int = 24
    depth_tolerance: float = 1e-2
    rtol: float = 1e-3
    reach: float = 0.5
    num_slice: int = 81
    seed: int = 0


PROFILES = {
    "quick": Config(),
    "full": Config(
        problem=PROBLEMS["full"]["digits-mlp"], num_steps=40, principal_steps=10, depth=48
    ),
}


def plan(config: Config) -> execution.Plan:
    """One piece for each starting point and each of gradient descent and the flows."""
    starts = [check_count("every start", s, minimum=0) for s in config.starts]
    if not starts or sorted(starts) != starts:
        raise ValueError(f"starts must ascend, got {config.starts!r}")
    names = ("gd", *config.flows)
    steps = check_count("num_steps", config.num_steps, minimum=1)
    principal_steps = min(steps, check_count("principal_steps", config.principal_steps, minimum=1))
    check_learning_rate(config.learning_rate)
    built = build(config.problem, seed=config.seed)
    dtype = real_dtype(built.params)
    h = np.asarray(config.learning_rate, dtype)[()]  # hashable
    trainer = training.Trainer(built, num_eigenpairs=1)
    loss = built.loss(built.data)
    for name in config.flows:
        if named_flow(name, loss, h).oscillation is not None:
            raise ValueError(
                f"flows are compared with the iterates of gradient descent, and {name!r} follows "
                "the centre of an oscillation: use the experiment models-of-the-edge"
            )
    value = jax.jit(loss)
    shape = (len(starts), len(names), steps + 1)

    def start():
        nothing = np.full(shape, np.nan)
        arrays = {
            **{name: nothing for name in ("loss", "eigenvalue", "coordinate", "distance")},
            "completed": np.zeros(shape[:2], bool),
            "start_eigenvalue": nothing[:, 0, 0],
            "gradient_share": nothing[:, 0, 0],
            "slice_offset": np.full((shape[0], config.num_slice), np.nan),
            "slice_loss": np.full((shape[0], config.num_slice), np.nan),
        }
        # The parameters at a starting point, the eigenvector there, and gradient descent's path.
        path = jax.tree.map(lambda x: jnp.zeros((steps + 1, *x.shape), x.dtype), built.params)
        return built.params, built.params, path, arrays, np.int32(-1)

    def begin(params: Params, point: int, arrays: dict) -> tuple[Params, Params]:
        """Measure the curvature at a starting point, and the loss along the top eigenvector."""
        pairs = curvature.top_eigenpairs(loss, params, 1, key=jax.random.key(config.seed))
        vector = paths.at(pairs.vectors, 0)
        gradient = ravel(jax.grad(loss)(params))[0]
        along = float(gradient @ ravel(vector)[0])
        # The vector points in the direction of gradient descent's step.
        vector = jax.tree.map(lambda x: -x if along > 0 else x, vector)
        offsets = config.reach * np.linspace(-1, 1, config.num_slice)
        arrays["start_eigenvalue"][point] = jax.device_get(pairs.values[0])
        arrays["gradient_share"][point] = along**2 / float(gradient @ gradient)
        arrays["slice_offset"][point] = offsets
        # Fetched first: during a wait for the device, NumPy turns Ctrl-C into a ValueError.
        arrays["slice_loss"][point] = jax.device_get(
            jax.jit(lambda s: jax.lax.map(lambda o: loss(add_scaled(params, o, vector)), s))(
                offsets.astype(dtype)
            )
        )
        return vector, pfcore.gradient_descent(loss, params, h, steps)

    @functools.cache  # a flow is compiled once for all starting points
    def flow_of(name: str, analytic: bool) -> Flow | SteppedFlow:
        if not name.startswith("principal"):
            return named_flow(name, loss, h)
        return named_flow(
            name,
            loss,
            h,
            depth=config.depth,
            tolerance=config.depth_tolerance,
            state="complex" if analytic else "real",
            branch="continued",
        )

    def follow(name: str, params: Params, path: Params, eigenvalue: float) -> tuple[Params, bool]:
        """The path of a flow at the times of gradient descent's steps."""
        if name == "gd":
            return path, True
        principal = name.startswith("principal")
        count = principal_steps if principal else steps
        # Below 1 the principal flow is real, and a complex state would only be more expensive.
        flow = flow_of(name, principal and bool(h * eigenvalue > 0.95))
        trajectory = pfcore.integrate(
            flow,
            params,
            h * np.arange(count + 1, dtype=dtype),
            rtol=config.rtol,
            atol=1e-6,
            # At this low accuracy a method of order 5 takes half the evaluations of one of order 8.
            solver=diffrax.Tsit5(scan_kind="lax"),
        )
        return trajectory.params, bool(trajectory.completed)

    def advance(state, piece: int):
        params, vector, path, arrays, lost = state
        arrays = {name: array.copy() for name, array in arrays.items()}
        point, which = divmod(piece, len(names))
        if which == 0:
            params = trainer.descend(params, h, starts[point] - (starts[point - 1] if point else 0))
            if not np.isfinite(value(params)):
                return params, vector, path, arrays, np.int32(starts[point])
            vector, path = begin(params, point, arrays)
        reached, completed = follow(names[which], params, path, arrays["start_eigenvalue"][point])
        arrays["completed"][point, which] = completed
        flat, steps_of = stacked(reached), stacked(path)
        count = int(np.sum(np.all(np.isfinite(flat), axis=1)))
        kept = paths.at(reached, slice(count))
        gone = np.linalg.norm(steps_of - steps_of[0], axis=1)
        at = (point, which, slice(count))
        arrays["loss"][at] = jax.device_get(jax.jit(lambda p: jax.lax.map(loss, p))(kept))
        arrays["coordinate"][at] = (flat[:count] - flat[0]) @ np.asarray(ravel(vector)[0])
        arrays["distance"][at] = (
            np.linalg.norm(flat[:count] - steps_of[:count], axis=1)
            / np.where(gone > 0, gone, 1)[:count]
        )
        tracked = curvature.track(loss, kept, 1, key=jax.random.key(config.seed))
        arrays["eigenvalue"][at] = jax.device_get(tracked.values[:, 0])
        return params, vector, path, arrays, lost

    def outcome(state) -> execution.Outcome:
        *_, arrays, lost = state
        gone = ~np.isfinite(arrays["loss"][:, 0])
        first = min((starts[p] + k for p, k in np.argwhere(gone).tolist()), default=None)
        first = int(lost) if lost >= 0 else first
        extra = {
            "start": np.array(starts, np.int32),
            "time": np.arange(steps + 1, dtype=np.int32),
            "stability_coefficient": np.asarray(
                stability.stability_coefficient("principal", h, arrays["start_eigenvalue"])
            ),
        }
        return execution.Outcome(extra | arrays, first)

    def ended(state) -> bool:
        return bool(state[-1] >= 0)

    return execution.Plan(built, len(starts) * len(names), start, advance, outcome, ended)


def stacked(path: Params) -> np.ndarray:
    """A path as a matrix [time, n] in double precision."""
    return np.asarray(paths.as_matrix(path), np.float64)


def run(config: Config = PROFILES["quick"], **options: Any) -> Record:
    r"""Follow descent and flows from the same points.

    Train at $h$ to each of P starting points. From there take $T$ more steps, and follow each flow
    over the same times $t = kh$.

    Args:
      config: see `Config`.
      **options: `out`, `resume` and `progress`, as for `pfcore.experiments.run`.

    Returns:
      A `Record`. Its arrays [P, F, T + 1] hold gradient descent first and then the flows of the
      configuration, with NaN where a flow was not followed or not completed: `loss`; `eigenvalue`,
      the sharpness along the path; `coordinate`, the position along the top eigenvector of the
      starting point, in the direction of gradient descent's step; `distance` to gradient descent,
      relative to the distance that it has travelled. Other arrays: `start`, `time`, `completed`
      [P, F], `start_eigenvalue`, `stability_coefficient` (of the principal flow), `gradient_share`
      (the share of the squared norm along that eigenvector), `slice_offset` and `slice_loss`
      [P, S], the loss along the eigenvector.
    """
    return execution.execute(plan(config), {"experiment": NAME, "config": config}, **options)
