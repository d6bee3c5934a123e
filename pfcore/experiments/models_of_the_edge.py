"""Every model of gradient descent at the edge of stability, from one start on one network."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np

import pfcore
from pfcore import curvature, flows
from pfcore._checks import Loss, check_count, check_learning_rate
from pfcore._trees import Params, ravel, real_dtype
from pfcore.experiments.flows_at_the_edge import stacked
from pfcore.records import Record
from pfcore.runs import execution, training
from pfcore.runs.counting import counted, operations
from pfcore.runs.problems import Problem, build

NAME = "models-of-the-edge"
# Iterates before and after the start, of which its oscillation is filtered.
AROUND = 6
# What of gradient descent a position is compared with; see `Model`.
ITERATES, MIDPOINTS, HALFWAY = "iterates", "midpoints", "halfway"


class Model(NamedTuple):
    """A model of the comparison.

    Attributes:
      label: what tables call it.
      make: `make(loss, learning_rate, substeps) -> Flow` or `SteppedFlow`.
      follows: what of gradient descent its position is compared with: its iterates, its midpoints
        $(w_{k-1} + 2w_k + w_{k+1})/4$, or the points halfway between $w_k$ and $w_{k+1}$.
      two_frames: whether it starts from a centre and an oscillation.
      principal: whether it is followed for `Config.principal_steps` only.
    """

    label: str
    make: Callable[[Loss, Any, int], flows.Flow | flows.SteppedFlow]
    follows: str = MIDPOINTS
    two_frames: bool = False
    principal: bool = False


def _principal(loss: Loss, h: Any, non_principal: bool) -> flows.Flow:
    return flows.principal_flow(
        loss, h, depth=24, tolerance=1e-2, branch="continued", non_principal=non_principal
    )


MODELS: dict[str, Model] = {
    "ngf": Model("NGF", lambda loss, h, n: flows.negative_gradient_flow(loss)),
    "igr": Model("IGR flow", lambda loss, h, n: flows.igr_flow(loss, h)),
    "third_order": Model("third order", lambda loss, h, n: flows.third_order_flow(loss, h)),
    "principal": Model(
        "PF", lambda loss, h, n: _principal(loss, h, False), ITERATES, principal=True
    ),
    "principal_np": Model(
        "PF + non-principal", lambda loss, h, n: _principal(loss, h, True), ITERATES, principal=True
    ),
    "central": Model("central", lambda loss, h, n: flows.central_flow(loss, h)),
    "central_1": Model(
        "central, 1 direction", lambda loss, h, n: flows.central_flow(loss, h, max_k=1)
    ),
    "central_2": Model(
        "central, 2 directions", lambda loss, h, n: flows.central_flow(loss, h, max_k=2)
    ),
    "rod": Model("rod", lambda loss, h, n: flows.rod_flow(loss, h, substeps=n), HALFWAY),
    "rod_plain": Model(
        "rod, no correction",
        lambda loss, h, n: flows.rod_flow(loss, h, correction=False, substeps=max(1, n // 2)),
        HALFWAY,
    ),
    "edge": Model(
        "edge-type", lambda loss, h, n: flows.fixed_steps(flows.edge_flow(loss, h), h / n), HALFWAY
    ),
    "edge_plain": Model(
        "edge-type, cheap",
        lambda loss, h, n: flows.fixed_steps(
            flows.edge_flow(loss, h, curvature="secant", correction=False), h / max(1, n // 2)
        ),
        HALFWAY,
    ),
    "two_frame_1": Model(
        "two-frame, order 1",
        lambda loss, h, n: flows.fixed_steps(
            flows.two_frame_flow(loss, h, order=1, burn_in=1), h / max(1, n // 2)
        ),
        two_frames=True,
    ),
    "two_frame": Model(
        "two-frame, order 2",
        lambda loss, h, n: flows.fixed_steps(flows.two_frame_flow(loss, h, burn_in=1), h / n),
        two_frames=True,
    ),
}
DIGITS = Problem(num_train=300, widths=(16,), dtype="float64")
# All but the principal flow, which takes minutes, and central flow of fewer directions.
MOST = tuple(
    name for name, m in MODELS.items() if not (m.principal or name in ("central_1", "central_2"))
)


@dataclass(frozen=True)
class Config:
    """Where to start, what to follow, and how far.

    Attributes:
      problem: data, network and loss.
      learning_rate: $h$.
      start: steps of gradient descent after which the comparison begins.
      num_steps: how many steps further it goes.
      models: names, of `MODELS`.
      principal_steps: how many steps for the principal flow.
      substeps: steps of a solver for one of gradient descent; half as many for the cheap models. 2
        are stable up to $h\\lambda$ = 2.3, 4 up to 3.6. Central flow has its own, and NGF, IGR flow
        and third order adaptive steps.
      every: steps from one measurement of sharpness to the next.
      num_eigenpairs: how many eigenvalues are taken at the start.
      seed: of the initial weights.
    """

    problem: Problem = DIGITS
    learning_rate: float = 0.6
    start: int = 560
    num_steps: int = 200
    models: tuple[str, ...] = MOST
    principal_steps: int = 4
    substeps: int = 2
    every: int = 4
    num_eigenpairs: int = 4
    seed: int = 0


PROFILES = {"quick": Config(), "full": Config(num_steps=800)}


def plan(config: Config) -> execution.Plan:
    """One piece for gradient descent, and one for each model."""
    for name in config.models:
        if name not in MODELS:
            raise ValueError(f"unknown model {name!r}; choose some of {', '.join(MODELS)}")
    begun = check_count("start", config.start, minimum=0)
    steps = check_count("num_steps", config.num_steps, minimum=1)
    every = check_count("every", config.every, minimum=1)
    substeps = check_count("substeps", config.substeps, minimum=1)
    principal_steps = min(steps, check_count("principal_steps", config.principal_steps, minimum=1))
    check_learning_rate(config.learning_rate)
    built = build(config.problem, seed=config.seed)
    dtype = real_dtype(built.params)
    h = np.asarray(config.learning_rate, dtype)
    trainer = training.Trainer(built, num_eigenpairs=1)
    loss = built.loss(built.data)
    # Iterates before the start: as many as its filter takes, if there are so many; at least one.
    before = AROUND if begun >= AROUND else 1 if begun else 0
    seen = np.arange(0, steps + 1, every)
    shape = (len(config.models) + 1, steps + 1)
    flat, unravel = ravel(built.params)
    num_samples = len(built.data.train_inputs)
    at_a_time = min(config.problem.microbatch or num_samples, num_samples)
    # Products over samples are told from others by their length.
    lengths = [flat.size, *(size for x in jax.tree.leaves(built.params) for size in x.shape)]
    ambiguous = any(size % at_a_time == 0 for size in lengths)

    def start():
        nothing = np.full(shape, np.nan)
        arrays = {
            **{name: nothing for name in ("loss", "oscillation", "distance")},
            "eigenvalue": np.full((shape[0], len(seen)), np.nan),
            "completed": np.zeros(shape[0], bool),
            "gradients_per_step": np.full(shape[0], np.nan),
            "start_eigenvalues": np.full(config.num_eigenpairs, np.nan),
            "travel": np.array(np.nan),
        }
        length = before + steps + 1 + AROUND
        path = jax.tree.map(lambda x: jnp.zeros((length, *x.shape), x.dtype), built.params)
        return path, arrays, np.int32(-1)

    def sharpness(points: np.ndarray) -> np.ndarray:
        path = jax.vmap(unravel)(jnp.asarray(points, dtype))
        key = jax.random.key(config.seed)
        return np.asarray(jax.device_get(curvature.track(loss, path, 1, key=key).values[:, 0]))

    def halves(path: Params) -> dict[str, np.ndarray]:
        """What positions are compared with, [steps + 1, n]."""
        flat = stacked(path)
        after = flat[before : before + steps + 2]
        # At the initial weights nothing comes before; the next midpoint stands for the first.
        middle = (flat[:-2] + 2 * flat[1:-1] + flat[2:]) / 4
        middle = middle[before - 1 :] if before else np.concatenate([middle[:1], middle])
        return {
            ITERATES: after[:-1],
            MIDPOINTS: middle[: steps + 1],
            HALFWAY: (after[1:] + after[:-1]) / 2,
        }

    def descend(arrays: dict) -> Params:
        first = trainer.descend(built.params, h, begun - before)
        path = pfcore.gradient_descent(loss, first, h, before + steps + AROUND)
        points = halves(path)
        flat = stacked(path)
        losses = np.asarray(jax.device_get(jax.jit(lambda p: jax.lax.map(loss, p))(path)))
        two = losses[before : before + steps + 2]
        arrays["loss"][0] = (two[1:] + two[:-1]) / 2
        arrays["distance"][0] = 0
        arrays["gradients_per_step"][0] = 1
        swing = np.linalg.norm(points[ITERATES] - points[MIDPOINTS], axis=1)
        arrays["oscillation"][0] = swing
        finite = bool(np.all(np.isfinite(flat)))
        arrays["completed"][0] = finite
        ways = np.linalg.norm(np.diff(points[MIDPOINTS], axis=0), axis=1)
        arrays["travel"] = np.array(np.sum(ways))
        if finite:
            arrays["eigenvalue"][0] = sharpness(points[MIDPOINTS][seen])
            at = jax.tree.map(lambda x: x[before], path)
            found = curvature.top_eigenpairs(
                loss, at, config.num_eigenpairs, key=jax.random.key(config.seed)
            )
            arrays["start_eigenvalues"] = np.asarray(jax.device_get(found.values), float)
        return path

    def follow(name: str, path: Params) -> tuple[pfcore.Trajectory, float]:
        """A model's path, and the gradients that it cost, without its start."""
        model = MODELS[name]
        flow = model.make(loss, h, substeps)
        begin: Any = jax.tree.map(lambda x: x[before], path)
        if model.two_frames and before == AROUND:
            begin = flows.two_frame_start(jax.tree.map(lambda x: x[: 2 * AROUND + 1], path))
        count = principal_steps if model.principal else steps
        options: dict[str, Any] = {}
        if isinstance(flow, flows.Flow):
            solver = diffrax.Tsit5 if model.principal else diffrax.Bosh3
            options = {"rtol": 1e-3, "atol": 1e-6, "solver": solver(scan_kind="lax")}
            options["max_steps"] = 100 * (steps + 1)
        times = h * np.arange(count + 1, dtype=dtype)
        state = flow.init(begin)
        begun = flow._replace(init=lambda state: state)

        found = counted(
            lambda state: pfcore.integrate(begun, state, times, **options),
            state,
            num_samples=at_a_time,
        )
        if ambiguous:
            return found.value, np.nan
        count = found.operations
        if flow.expected_loss is not None:
            # Read at every time, for the comparison; the flow does not need it.
            count -= len(times) * operations(flow.expected_loss, state, num_samples=at_a_time)
        return found.value, count / operations(jax.grad(loss), built.params, num_samples=at_a_time)

    def advance(state, piece: int):
        path, arrays, lost = state
        arrays = {name: array.copy() for name, array in arrays.items()}
        if piece == 0:
            path = descend(arrays)
            # Means of two successive steps: of the first that is not finite, the later step is not.
            finite = np.isfinite(arrays["loss"][0])
            return path, arrays, np.int32(-1 if finite.all() else begun + np.argmin(finite) + 1)
        name = config.models[piece - 1]
        found, gradients = follow(name, path)
        flat = stacked(found.params)
        count = int(np.sum(np.all(np.isfinite(flat), axis=1)))
        if not count:
            return path, arrays, lost
        arrays["completed"][piece] = bool(found.completed)
        if found.completed:
            arrays["gradients_per_step"][piece] = gradients / (count - 1)
        wanted = halves(path)[MODELS[name].follows]
        apart = np.linalg.norm(flat[:count] - wanted[:count], axis=1)
        arrays["distance"][piece, :count] = apart / arrays["travel"]
        expected = found.expected_loss
        if expected is None:
            kept = jax.tree.map(lambda x: x[:count], found.params)
            expected = jax.jit(lambda p: jax.lax.map(loss, p))(kept)
        arrays["loss"][piece, :count] = np.asarray(jax.device_get(expected))[:count]
        if found.oscillation is not None:
            swings = np.linalg.norm(stacked(found.oscillation), axis=1)
            arrays["oscillation"][piece, :count] = swings[:count]
        looked = seen[seen < count]
        arrays["eigenvalue"][piece, : len(looked)] = sharpness(flat[looked])
        return path, arrays, lost

    def outcome(state) -> execution.Outcome:
        _, arrays, lost = state
        extra = {"measured_at": seen.astype(np.int32)}
        return execution.Outcome(extra | arrays, int(lost) if lost >= 0 else None)

    def ended(state) -> bool:
        return bool(state[-1] >= 0)

    return execution.Plan(built, len(config.models) + 1, start, advance, outcome, ended)


def run(config: Config = PROFILES["quick"], **options: Any) -> Record:
    r"""Compare all models of the edge from one start.

    Train at $h$ to the start; from there take $T$ more steps, and follow each of M models over the
    same time. Single precision is enough to follow them, but not to tell the closest apart; double
    precision needs `jax.config.update("jax_enable_x64", True)`.

    Args:
      config: see `Config`.
      **options: `out`, `resume` and `progress`, as for `pfcore.experiments.run`.

    Returns:
      A `Record`. Its arrays [M + 1, T + 1] are for gradient descent first and then the models of
      the configuration, NaN where a model was not followed: `loss`, the mean of two successive
      steps and what models expect for it; `oscillation`, its norm; `distance` from the points of
      gradient descent that a model follows (`MODELS`), over `travel`, the length of the path of
      gradient descent's midpoints. `eigenvalue` [M + 1, S] is the sharpness at the positions of the
      times `measured_at` [S]. Besides: `completed` [M + 1], `start_eigenvalues`, and
      `gradients_per_step` [M + 1], what a step cost: operations of the products over samples over
      those of a gradient, the start left out (`pfcore.runs.counting`); NaN if not completed, and
      where a length of the parameters is a multiple of the number of samples.
    """
    return execution.execute(plan(config), {"experiment": NAME, "config": config}, **options)


class Row(NamedTuple):
    r"""How a model did, beside gradient descent.

    Attributes:
      distance: at the end, over the length of the way.
      sharpness: error of $h\lambda_0$, root mean square.
      overshoot: of the largest $h\lambda_0$, the model's less gradient descent's.
      first_peak: steps by which the oscillation's first peak is late; NaN without oscillation.
      mean_loss: relative error of the mean loss of two steps, on average.
      gradients: what following it over one step of gradient descent costs, in gradients.
      steps: for how many it was followed.
      completed: whether all requested steps were reached.
    """

    distance: float
    sharpness: float
    overshoot: float
    first_peak: float
    mean_loss: float
    gradients: float
    steps: int
    completed: bool


def first_peak(oscillation: np.ndarray) -> float:
    """When an oscillation, smoothed over five steps, first has a maximum above where it began.

    NaN if it has none.
    """
    if not np.all(np.isfinite(oscillation)):
        return float("nan")
    smooth = np.convolve(oscillation, np.ones(5) / 5, mode="valid")
    peaks = np.flatnonzero((smooth[1:-1] > smooth[:-2]) & (smooth[1:-1] >= smooth[2:])) + 1
    peaks = peaks[smooth[peaks] > smooth[0]] if len(peaks) else peaks
    return float(peaks[0] + 2) if len(peaks) else float("nan")


def compare(record: Record) -> dict[str, Row]:
    """A `Row` for each model of a record of this experiment.

    Args:
      record: of this experiment.
    """
    config = record.info["config"]
    h, rows = config["learning_rate"], {}
    gd_eigenvalue, gd_loss = record["eigenvalue"][0], record["loss"][0]
    gd_peak = first_peak(record["oscillation"][0])
    for i, name in enumerate(config["models"], start=1):
        reached = np.isfinite(record["distance"][i])
        seen = np.isfinite(record["eigenvalue"][i])
        if not reached.any():
            nan = float("nan")
            rows[name] = Row(nan, nan, nan, nan, nan, nan, steps=0, completed=False)
            continue
        values, wanted = record["eigenvalue"][i][seen], gd_eigenvalue[seen]
        rows[name] = Row(
            distance=float(record["distance"][i][reached][-1]),
            sharpness=float(h * np.sqrt(np.mean((values - wanted) ** 2))),
            overshoot=float(h * (values.max() - wanted.max())),
            first_peak=first_peak(record["oscillation"][i]) - gd_peak,
            mean_loss=float(np.mean(np.abs(record["loss"][i] / gd_loss - 1)[reached])),
            gradients=float(record["gradients_per_step"][i]),
            steps=int(np.flatnonzero(reached)[-1]),
            completed=bool(record["completed"][i]),
        )
    return rows
