"""The page on frameworks: each recipe runs, and its loss matches its formula."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / "book" / "your_framework.md"
TEXT = PAGE.read_text(encoding="utf-8")
# By the heading above them; code above the first heading is shared.
BLOCKS = {
    section.split("\n", 1)[0]: re.findall(r"^```python\n(.*?)^```$", section, re.M | re.S)
    for section in re.split(r"^#+ ", TEXT, flags=re.MULTILINE)[1:]
}
SHARED, USE = BLOCKS["Your framework"]
RECIPES = ["Flax NNX", "Flax Linen", "Haiku", "Equinox"]
PACKAGES = {"Haiku": "haiku"}
# The result of each recipe on batches, against NumPy.
BATCHES = {
    "A new batch at each step": """
import numpy as np

x = np.asarray(batch, float)
np.testing.assert_allclose(sharpness, np.linalg.eigvalsh(x.T @ x / len(x))[-1], rtol=1e-4)
""",
    "Data that do not fit into memory": """
import numpy as np

x = np.asarray(inputs, float)
found = np.linalg.eigvalsh(x.T @ x / len(x))[-1]
np.testing.assert_allclose(pairs.values, [found, found], rtol=1e-3)
""",
}
# Kernels [in, out] and biases of the two linear layers, scale and shift between them.
WEIGHTS = {
    "Flax NNX": """
one, norm, two = (params["layers"][i] for i in (0, 1, 4))
weights = [one["kernel"], one["bias"], norm["scale"], norm["bias"], two["kernel"], two["bias"]]
""",
    "Flax Linen": """
one, norm, two = (params[name] for name in ("Dense_0", "BatchNorm_0", "Dense_1"))
weights = [one["kernel"], one["bias"], norm["scale"], norm["bias"], two["kernel"], two["bias"]]
""",
    "Haiku": """
one, norm, two = (params[name] for name in ("linear", "batch_norm", "linear_1"))
weights = [one["w"], one["b"], norm["scale"], norm["offset"], two["w"], two["b"]]
""",
    "Equinox": """
one, norm, _, _, two = params.layers
weights = [one.weight.T, one.bias, norm.weight, norm.bias, two.weight.T, two.bias]
""",
}
# The loss in NumPy, without dropout and for a given mask of what is kept.
FORMULA = """
import numpy as np

def by_hand(weights, kept):
    w1, b1, scale, shift, w2, b2 = (np.asarray(x, float) for x in weights)
    hidden = np.asarray(inputs, float) @ w1 + b1
    hidden = (hidden - hidden.mean(0)) / np.sqrt(hidden.var(0) + 1e-5) * scale + shift
    logits = (np.tanh(hidden) * kept) @ w2 + b2
    chosen = logits[np.arange(20), np.asarray(labels)]
    return np.mean(np.log(np.exp(logits).sum(1)) - chosen)
"""
# With dropout the same at every call; the Hessian's product against differences of gradients.
SAME = """
value = float(loss(params))
assert float(loss(params)) == value
assert abs(float(jax.jit(loss)(params)) / value - 1) < 1e-5
assert abs(value / by_hand(weights, 1.0) - 1) > 1e-3  # there is dropout
dense = jax.jit(jax.hessian(lambda x: loss(unravel(x))))(flat)
assert pairs.converged.all()
np.testing.assert_allclose(pairs.values[0], np.linalg.eigvalsh(dense)[-1], rtol=1e-3)
"""
# As a training loop would do between two calls.
MEANWHILE = {"Flax NNX": "model(inputs)\nassert float(loss(params)) == value\n"}


def run(tmp_path, script):
    path = tmp_path / "recipe.py"
    path.write_text(script, encoding="utf-8")
    silent = [
        f"ignore:Error {doing} persistent compilation cache entry"
        for doing in ("reading", "writing")
    ]
    warnings = [option for action in ("error", *silent) for option in ("-W", action)]
    ran = subprocess.run(
        [sys.executable, *warnings, str(path)],
        cwd=tmp_path,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-5000:]


def test_every_code_block_is_run():
    assert TEXT.count("```python") >= 7
    names = [*RECIPES, "Training with new state", *BATCHES]
    assert [len(BLOCKS[name]) for name in names] == [1] * len(names)


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_matches_its_formula(name, tmp_path):
    package = PACKAGES.get(name)
    if package and importlib.util.find_spec(package) is None:
        pytest.skip(f"{name} is not installed (no dependency of pfcore): its recipe was not run")
    (recipe,) = BLOCKS[name]
    assert recipe.count("0.5") == 1
    flat = "from jax.flatten_util import ravel_pytree\nflat, unravel = ravel_pytree(params)\n"
    without = recipe.replace("0.5", "0.0") + WEIGHTS[name]
    without += "assert abs(float(loss(params)) / by_hand(weights, 1.0) - 1) < 1e-5\n"
    dropping = recipe + USE + WEIGHTS[name] + flat + SAME + MEANWHILE.get(name, "")
    run(tmp_path, SHARED + FORMULA + without + dropping)


@pytest.mark.slow
def test_recipes_on_batches(tmp_path):
    script = SHARED + "from pfcore import curvature\n"
    for name, check in BATCHES.items():
        script += BLOCKS[name][0] + check
    run(tmp_path, script)


@pytest.mark.slow
def test_training_with_new_state(tmp_path):
    """A hundredth of the batch's mean after one step, a mask for each; and the loss falls."""
    checks = """
import numpy as np
initial, measured = params, rest


def without_dropout(params):
    model = nnx.merge(graph, params, measured)
    model.layers[3].deterministic = True
    return float(cross_entropy(model(inputs)))


start, path = without_dropout(params), []
for count in range(1, 41):
    old = rest
    params, rest, state = step(params, rest, state)
    path.append(without_dropout(params))
    if count == 1:
        w, b = (np.asarray(initial["layers"][0][k], float) for k in ("kernel", "bias"))
        mean = np.mean(np.asarray(inputs, float) @ w + b, axis=0)
        np.testing.assert_allclose(rest["layers"][1]["mean"], 0.01 * mean, rtol=1e-4, atol=1e-7)
    assert old["layers"][3]["rngs"]["count"] + 1 == rest["layers"][3]["rngs"]["count"]
assert np.mean(path[20:]) < 0.7 * start, (start, path)
assert np.isfinite(state.learning_rate)
"""
    (recipe,), (training,) = BLOCKS["Flax NNX"], BLOCKS["Training with new state"]
    run(tmp_path, SHARED + recipe + training + checks)
