"""The page for users of other tools: our code runs and gives the stated results."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

TEXT = (Path(__file__).resolve().parents[2] / "book" / "coming_from.md").read_text("utf-8")
SETUP, LAST = re.findall(r"^```python\n(.*?)^```$", TEXT, re.M | re.S)
# Title of the section -> (description, our code) of each row of its table.
ROWS = {
    section.split("\n", 1)[0]: [
        (what, code.strip().strip("`"))
        for what, _, code in re.findall(r"^\| (.+?) \| (.*?) ?\| (`.+`) \|$", section, re.MULTILINE)
    ]
    for section in re.split(r"^## ", TEXT, flags=re.MULTILINE)[1:]
}
TOOLS = ["PyHessian", "curvlinops", "hessian-eigenthings"]


@pytest.fixture(scope="module")
def names():
    # As in a user's script: strict promotion is a setting of this suite.
    with jax.numpy_dtype_promotion("standard"):
        found = {}
        exec(SETUP, found)
    return found


def dense(names):
    """The Hessian and the Gauss-Newton matrix, from JAX alone, in the order of the leaves."""
    flat, unravel = ravel_pytree(names["params"])
    hessian = jax.jit(jax.hessian(lambda x: names["loss"](unravel(x))))(flat)
    jacobian = jax.jit(jax.jacobian(lambda x: names["predict"](unravel(x)).ravel()))(flat)
    p = jax.nn.softmax(names["predict"](names["params"]))
    middle = [jnp.diag(row) - jnp.outer(row, row) for row in p]
    middle = jax.scipy.linalg.block_diag(*middle) / len(p)
    return np.asarray(hessian, float), np.asarray(jacobian.T @ middle @ jacobian, float)


def test_every_row_with_code_is_tested():
    """All rows that have code of ours, and no others."""
    tables = re.findall(r"^\|(?!---).*\|$", TEXT, re.MULTILINE)
    heads = [row for row in tables if row.endswith("| here |")]
    assert len(heads) == len(TOOLS)
    assert sum(len(ROWS[tool]) for tool in TOOLS) == len(tables) - len(heads)
    assert ROWS.keys() == {*TOOLS, "Features without a counterpart"}


@pytest.mark.slow
@pytest.mark.parametrize("tool", TOOLS)
def test_code_matches_dense_matrices(tool, names):
    names = dict(names)
    hessian, gauss = (np.linalg.eigvalsh(matrix) for matrix in dense(names))
    magnitude = hessian[np.argsort(-np.abs(hessian))]
    # Expected result by the first word of the row, within its own error or rounding.
    exact = gauss if tool == "curvlinops" else hessian
    share = {"damping": np.sum(np.log(gauss + 0.1)), "dimension": np.sum(gauss / (gauss + 0.1))}
    with jax.numpy_dtype_promotion("standard"):
        for what, code in ROWS[tool]:
            if re.match(r"^\w+ = ", code):
                exec(code, names)
                continue
            value = eval(code, names)
            if what == "Largest eigenvalues":
                expected = magnitude if tool == "PyHessian" else exact[::-1]
                assert bool(value.converged.all())
                np.testing.assert_allclose(value.values, expected[:2], rtol=2e-3)
            elif what.startswith("Trace"):
                assert abs(float(value.mean) - exact.sum()) < 5 * float(value.standard_error)
            elif what == "The matrix's eigenvalues":
                np.testing.assert_allclose(value, exact, rtol=1e-3, atol=1e-6)
            elif what.startswith("Inverse"):
                values, vectors = np.linalg.eigh(dense(names)[1])
                power = -1.0 if what == "Inverse" else -0.5
                flat, found = (ravel_pytree(x)[0] for x in (names["params"], value.value))
                expected = vectors @ ((values + 0.1) ** power * (vectors.T @ flat))
                error = np.linalg.norm(found - expected)
                assert error < 1e-4 * np.linalg.norm(expected) + float(value.error)
            elif what == "Log-determinant":
                assert abs(float(value.mean) - share["damping"]) < 5 * float(value.standard_error)
            elif what == "Effective dimension":
                error = 5 * float(value.standard_error)
                assert abs(float(value.mean) - share["dimension"]) < error
            elif what == "A product":
                flat, product = (ravel_pytree(x)[0] for x in (names["params"], value))
                np.testing.assert_allclose(product, dense(names)[1] @ flat, rtol=1e-3, atol=1e-5)
            elif what == "and its inverse":  # block by block: 15 numbers each
                flat = np.asarray(ravel_pytree(names["params"])[0], float)
                for at, name in ((slice(0, 15), "first"), (slice(15, 30), "last")):
                    block = dense(names)[1][at, at] + 0.1 * np.eye(15)
                    found = np.asarray(value[name].value[name]).ravel()
                    off = np.linalg.norm(found - np.linalg.solve(block, flat[at]))
                    assert bool(value[name].converged)
                    assert off < 1e-4 * np.linalg.norm(found) + float(value[name].error)
            elif what.startswith("and"):  # of the last layer, the last 15 of all
                block = np.linalg.eigvalsh(dense(names)[0 if tool != "curvlinops" else 1][15:, 15:])
                found = value if tool == "curvlinops" else value.values[::-1]
                expected = block if tool == "curvlinops" else block[-2:]
                np.testing.assert_allclose(found, expected, rtol=2e-3, atol=1e-6)
            elif what == "Diagonal":
                diagonal = np.diag(dense(names)[1])
                found, error = (ravel_pytree(x)[0] for x in value)
                assert np.all(np.abs(found - diagonal) < 5 * error)
            else:
                assert what in ("Of a data loader", "Its picture")
    plt.close()
    density = names["density"]
    assert abs(float(density.moment(1)) - exact.mean()) < 5 * float(density.moment_error(1))
    if tool == "PyHessian":
        batched = names["curvature"].over_batches(names["batch_loss"], names["batches"])
        assert float(batched(names["params"])) == pytest.approx(
            float(names["loss"](names["params"])), rel=1e-5
        )
    if tool == "curvlinops":
        curvature, params = names["curvature"], names["params"]
        fisher = curvature.spectrum(names["F"], params)
        np.testing.assert_allclose(fisher, gauss, rtol=1e-3, atol=1e-6)


@pytest.mark.slow
def test_features_without_counterpart(names):
    names = dict(names)
    with jax.numpy_dtype_promotion("standard"):
        exec(LAST, names)
    hessian, _ = dense(names)
    s = np.asarray(ravel_pytree(names["scale"])[0], float)
    top = np.linalg.eigvalsh(s[:, None] * hessian * s)[-1]
    assert float(names["sharpness"]) == pytest.approx(top, rel=1e-3)
    assert bool(names["limit"].found) and names["noisy"].values.shape == (5,)
    g = np.asarray(ravel_pytree(names["gradient"])[0], float)
    assert float(names["along"].value) == pytest.approx(g @ hessian @ g / (g @ g), rel=1e-3)
    # The penalty's share of the gradient, against a difference quotient of dense eigenvalues.
    flat, unravel = ravel_pytree(names["params"])
    share = (ravel_pytree(names["penalised"])[0] - jnp.asarray(g, flat.dtype)) / 0.1
    sharpest = jax.jit(
        lambda x: jnp.linalg.eigvalsh(jax.hessian(lambda x: names["loss"](unravel(x)))(x))[-1]
    )
    direction = share / jnp.linalg.norm(share)
    step = 1e-2
    slope = (sharpest(flat + step * direction) - sharpest(flat - step * direction)) / (2 * step)
    assert float(sharpest(flat)) > 0.1
    assert float(jnp.linalg.norm(share)) == pytest.approx(float(slope), rel=2e-2)
