"""Predicted memory of the full profiles."""

import json
from pathlib import Path

import jax
import pytest

from pfcore import records
from pfcore.runs import memory, problems
from pfcore.runs.problems import PROBLEMS, Problem

ROOT = Path(__file__).resolve().parents[2]
STORED = json.loads((ROOT / "book" / "memory.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("network", ["mlp", "convnet"])
@pytest.mark.parametrize("data", ["digits", "breast_cancer"])
def test_shapes_are_those_of_the_samples(data, network):
    if (data, network) == ("breast_cancer", "convnet"):
        pytest.skip("features are not images")
    problem = Problem(data=data, network=network, widths=(4, 4), num_train=40)
    built = problems.build(problem, seed=0)
    found = jax.tree.map(lambda x: (x.shape, x.dtype), memory.shapes(problem))
    assert found == jax.tree.map(lambda x: (x.shape, x.dtype), built.data)


def test_a_divided_problem_needs_its_numbers_of_samples():
    with pytest.raises(ValueError, match="set num_train and num_test: with split='test'"):
        memory.predict(Problem(data="mnist", split="test", num_train=100))


def test_double_precision_is_refused_where_jax_has_none():
    with pytest.raises(ValueError, match=r"the problem's dtype float64 is not available.*x64"):
        problems.build(Problem(dtype="float64"), seed=0)


def test_a_prediction_includes_samples_weights_and_the_eigenpair_search():
    problem = Problem(num_train=400, widths=(50,))
    found = memory.predict(problem, num_eigenpairs=2)
    num_params = 64 * 50 + 50 + 50 * 10 + 10
    assert found.num_params == num_params
    assert found.samples == 4 * ((400 + 360) * 64 + 400 + 360)
    # The subspace of 20 vectors, and the hidden layer of every sample.
    assert found.temporary > 4 * (20 * num_params + 400 * 50)
    assert found.samples + found.temporary < found.total < 100e6
    larger = memory.predict(problem, num_eigenpairs=12)
    assert larger.total > found.total + 4 * 30 * num_params


def test_a_microbatch_takes_less():
    whole = Problem(widths=(300,))
    assert (
        memory.predict(Problem(widths=(300,), microbatch=100)).temporary
        < 0.5 * memory.predict(whole).temporary
    )


def test_the_stored_predictions_are_those_of_the_full_profiles():
    """`tools/memory.py` wrote them for the current problems."""
    assert list(STORED["problems"]) == list(PROBLEMS["full"])
    for name, problem in PROBLEMS["full"].items():
        assert STORED["problems"][name]["problem"] == records.jsonable(problem)
    found = memory.predict(PROBLEMS["full"]["digits-mlp"], num_eigenpairs=STORED["num_eigenpairs"])
    stored = STORED["problems"]["digits-mlp"]
    assert found.num_params == stored["num_params"]
    # Other versions, and other flags of the compiler, need other temporary arrays.
    assert found.total == pytest.approx(1e6 * stored["megabytes"], rel=0.5)
