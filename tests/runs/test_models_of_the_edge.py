import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pfcore
from pfcore import experiments
from pfcore.experiments import models_of_the_edge
from pfcore.runs.problems import build
from tests.conftest import flatten_path

TINY = (
    "problem.data=breast_cancer", "problem.widths=4", "problem.num_train=64",
    "problem.num_test=30", "learning_rate=0.8", "num_eigenpairs=1", "every=2",
)  # fmt: skip


def test_first_peak():
    time = np.arange(60.0)
    assert models_of_the_edge.first_peak(np.exp(-(((time - 20) / 5) ** 2))) == 20
    assert np.isnan(models_of_the_edge.first_peak(np.exp(-time / 10)))
    assert np.isnan(models_of_the_edge.first_peak(np.full(60, np.nan)))


@pytest.mark.parametrize("start", [0, 10])
def test_measures_gradient_descent_and_models_against_it(start, x64):
    config = experiments.configure(
        "models-of-the-edge",
        *TINY,
        f"start={start}",
        "num_steps=8",
        "models=ngf,edge_plain",
        profile="quick",
    )
    record = experiments.run("models-of-the-edge", config)
    built = build(config.problem, seed=config.seed)
    loss, h = built.loss(built.data), config.learning_rate
    path = pfcore.gradient_descent(loss, built.params, h, start + 10)
    at = jax.tree.map(lambda x: x[start], path)
    flat, losses = flatten_path(path), np.asarray(jax.vmap(loss)(path))
    np.testing.assert_allclose(
        record["loss"][0], (losses[start : start + 9] + losses[start + 1 : start + 10]) / 2
    )
    middle = (flat[:-2] + 2 * flat[1:-1] + flat[2:]) / 4
    middle = np.concatenate([middle[:1], middle])[start : start + 9]
    way = np.linalg.norm(np.diff(middle, axis=0), axis=1).sum()
    assert float(record["travel"]) == pytest.approx(way)
    ngf = pfcore.integrate(
        pfcore.flows.negative_gradient_flow(loss), at, h * np.arange(9), rtol=1e-6, atol=1e-9
    )
    apart = np.linalg.norm(flatten_path(ngf.params) - middle, axis=1) / way
    np.testing.assert_allclose(record["distance"][1], apart, atol=1e-3)  # dense output
    unravel = jax.flatten_util.ravel_pytree(at)[1]
    dense = jax.jit(jax.hessian(lambda x: loss(unravel(x))))
    for k, seen in enumerate(record["measured_at"]):
        wanted = np.linalg.eigvalsh(dense(jnp.asarray(middle[seen])))[-1]
        assert record["eigenvalue"][0, k] == pytest.approx(wanted, rel=2e-3)
    row = models_of_the_edge.compare(record)["ngf"]
    assert row.completed and row.distance == pytest.approx(apart[-1], abs=1e-3)
    assert row.steps == 8
    # Three fields for each step, of two gradients.
    assert record["gradients_per_step"][0] == 1
    assert models_of_the_edge.compare(record)["edge_plain"].gradients == pytest.approx(6)


def test_refuses_unknown_models():
    config = experiments.configure("models-of-the-edge", *TINY, "models=newton", profile="quick")
    with pytest.raises(ValueError, match="unknown model 'newton'"):
        experiments.run("models-of-the-edge", config)
