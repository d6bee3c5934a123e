"""Full-batch gradient descent with certified measurements of the top of the Hessian's spectrum."""

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from pfcore import curvature, stability
from pfcore._checks import ScalarLike, check_count, check_learning_rate, check_positive
from pfcore._trees import Params, add_scaled, ravel, real_dtype
from pfcore.runs.execution import Outcome
from pfcore.runs.problems import Data, TrainingProblem


class TrainState(NamedTuple):
    """State of training.

    Attributes:
      params: current parameters.
      tracked: `curvature.TrackerState` at these parameters.
    """

    params: Params
    tracked: curvature.TrackerState


class Measured(NamedTuple):
    """Measurements at M steps, with k eigenpairs each.

    Attributes:
      loss: [M].
      loss_each_step: [M, every], the loss at the measured step and the following ones.
      eigenvalues: [M, k], the largest of the Hessian, descending.
      residuals: [M, k], residuals of the eigenpairs.
      converged: [M, k], whether the residuals are below the tolerance.
      num_products: [M], Hessian-vector products used for the eigenpairs.
      gradient_norm: [M].
      gradient_projections: [M, k], the gradient along each eigenvector, with consistent signs from
        step to step.
      stability_coefficient: [M], of the principal flow along the top eigenvector.
      drift: [M], norm of H g relative to that of g.
      test_accuracy: [M], between 0 and 1.
    """

    loss: Any
    loss_each_step: Any
    eigenvalues: Any
    residuals: Any
    converged: Any
    num_products: Any
    gradient_norm: Any
    gradient_projections: Any
    stability_coefficient: Any
    drift: Any
    test_accuracy: Any


@dataclass(frozen=True)
class Trainer:
    """Compiled training of one problem. The samples and the learning rate are arguments; trainers
    with equal settings share compiled programs.

    Attributes:
      built: the problem.
      num_eigenpairs: k, the number of eigenpairs to follow.
      every: steps between measurements.
      tolerance: bound on the residuals of the eigenpairs.
    """

    built: TrainingProblem
    num_eigenpairs: int
    every: int = 1
    tolerance: float = 1e-3

    def __post_init__(self) -> None:
        check_count("num_eigenpairs", self.num_eigenpairs, minimum=1)
        check_count("every", self.every, minimum=1)
        check_positive("tolerance", self.tolerance)

    def begin(self, params: Params, seed: int) -> TrainState:
        """State at the parameters, with eigenpairs from a cold start."""
        return self._begin(self.built.data, params, jax.random.key(seed))

    def advance(
        self, position: TrainState, learning_rate: ScalarLike, num_measurements: int
    ) -> tuple[TrainState, Measured]:
        """`num_measurements` times: measure, then `every` steps of gradient descent."""
        rate = check_learning_rate(learning_rate)
        return self._advance(self.built.data, position, rate, num_measurements)

    def descend(self, params: Params, learning_rate: ScalarLike, num_steps: int) -> Params:
        """The parameters after `num_steps` of gradient descent, without measurements."""
        steps = jnp.int32(check_count("num_steps", num_steps, minimum=0))
        return self._descend(self.built.data, params, check_learning_rate(learning_rate), steps)

    @functools.partial(jax.jit, static_argnums=0)
    def _descend(self, data: Data, params: Params, rate: Array, steps: Array) -> Params:
        loss = self.built.loss(data)
        return jax.lax.fori_loop(
            jnp.int32(0), steps, lambda _, p: add_scaled(p, -rate, jax.grad(loss)(p)), params
        )

    def _tracker(self, data: Data) -> curvature.Tracker:
        return curvature.tracker(
            self.built.loss(data), self.num_eigenpairs, tolerance=self.tolerance
        )

    @functools.partial(jax.jit, static_argnums=0)
    def _begin(self, data: Data, params: Params, key: Array) -> TrainState:
        return TrainState(params, self._tracker(data).init(params, key))

    @functools.partial(jax.jit, static_argnums=(0, 4))
    def _advance(
        self, data: Data, position: TrainState, rate: Array, num_measurements: int
    ) -> tuple[TrainState, Measured]:
        loss, accuracy = self.built.loss(data), self.built.accuracy(data)
        tracker = self._tracker(data)

        def measured(position: TrainState) -> dict[str, Any]:
            params, (pairs, _, gradient, *_) = position
            flat, _ = ravel(gradient)
            along = jax.vmap(lambda u: ravel(u)[0])(pairs.vectors) @ flat
            return {
                "loss": loss(params),
                "eigenvalues": pairs.values,
                "residuals": pairs.residuals,
                "converged": pairs.converged,
                "num_products": pairs.num_products,
                "gradient_norm": jnp.linalg.norm(flat),
                "gradient_projections": along,
                "stability_coefficient": stability.stability_coefficient(
                    "principal", rate, pairs.values[0]
                ),
                "drift": stability.drift(loss, params).relative,
                "test_accuracy": accuracy(params),
            }

        def plain_step(params: Params, _):
            value, gradient = jax.value_and_grad(loss)(params)
            return add_scaled(params, -rate, gradient), value

        def step(position: TrainState, _):
            measurement = measured(position)
            params = add_scaled(position.params, -rate, position.tracked.gradient)
            params, between = jax.lax.scan(plain_step, params, length=self.every - 1)
            each = jnp.concatenate([measurement["loss"][None], between])
            position = TrainState(params, tracker.update(params, position.tracked))
            return position, Measured(loss_each_step=each, **measurement)

        return jax.lax.scan(step, position, length=num_measurements)


def pieces(num_steps: int, checkpoint_every: int, every: int) -> list[int]:
    """The number of measurements in each piece of a run."""
    check_count("every", every, minimum=1)
    for name, value in (("num_steps", num_steps), ("checkpoint_every", checkpoint_every)):
        check_count(name, value, minimum=1)
        if value % every:
            raise ValueError(f"{name} must be a multiple of every = {every}, got {value}")
    whole, rest = divmod(num_steps, checkpoint_every)
    return [checkpoint_every // every] * whole + [rest // every] * (rest > 0)


def room(trainer: Trainer, num_measurements: int) -> Measured:
    """Host arrays for the given number of measurements, filled with NaN and zero."""
    m, k, every = num_measurements, trainer.num_eigenpairs, trainer.every
    dtype = real_dtype(trainer.built.params)

    def floats(*shape: int) -> np.ndarray:
        return np.full(shape, np.nan, dtype)

    return Measured(
        loss=floats(m),
        loss_each_step=floats(m, every),
        eigenvalues=floats(m, k),
        residuals=floats(m, k),
        converged=np.zeros((m, k), bool),
        num_products=np.zeros(m, np.int32),
        gradient_norm=floats(m),
        gradient_projections=floats(m, k),
        stability_coefficient=floats(m),
        drift=floats(m),
        test_accuracy=floats(m),
    )


def filled(room: Measured, start: int, measured: Measured) -> Measured:
    """A copy of `room` with the measurements written from index `start` on."""
    stop = start + len(measured.loss)

    def fill(old: np.ndarray, new: np.ndarray) -> np.ndarray:
        array = old.copy()
        array[start:stop] = new
        return array

    # Fetch first: NumPy would turn Ctrl-C, while it waits for the device, into a ValueError.
    return jax.tree.map(fill, room, jax.device_get(measured))


def shown(loss: np.ndarray, eigenvalues: np.ndarray, done: int) -> dict[str, str]:
    """Loss and sharpness at the last measurement, for a progress bar."""
    if done == 0:
        return {}
    return {"loss": f"{loss[done - 1]:.3g}", "sharpness": f"{eigenvalues[done - 1, 0]:.3g}"}


def outcome(measured: Measured, every: int, *, first: int = 0, trim: bool = True) -> Outcome:
    """Arrays for the record; with `trim`, nothing after the first loss that is not finite."""
    finite = np.isfinite(measured.loss_each_step).ravel()
    diverged = None if finite.all() else int(np.argmin(finite))
    kept = len(measured.loss) if diverged is None or not trim else diverged // every + 1
    arrays = {name: array[:kept] for name, array in measured._asdict().items()}
    each = arrays["loss_each_step"].ravel()
    arrays["loss_each_step"] = each if diverged is None or not trim else each[: diverged + 1]
    return Outcome(
        {
            "step": first + np.arange(0, kept * every, every, dtype=np.int32),
            **arrays,
            "gradient_along_top": arrays["gradient_projections"][:, 0],
        },
        None if diverged is None else first + diverged,
    )
