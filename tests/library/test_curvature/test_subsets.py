import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pfcore.curvature import spectrum, subset, top_eigenpairs, trace
from pfcore.curvature.dense import gradient_and_hessian
from tests.conftest import flatten, mixed_loss, mixed_params

pytestmark = pytest.mark.usefixtures("x64")

# Where the leaves of mixed_params lie in the flattened vector.
PLACES = {"layer/b": np.arange(3), "layer/s": np.array([3]), "w": np.arange(4, 10)}


@functools.cache
def whole():
    return jax.jit(lambda x: gradient_and_hessian(mixed_loss, x))(mixed_params())


def assert_block(where, indices, keys=None):
    """Loss, gradient and Hessian of the subset are those of the whole, at these indices."""
    loss, params = subset(mixed_loss, mixed_params(), where)
    g, hessian = whole()
    indices = np.asarray(indices)
    if keys is not None:
        assert list(params) == keys
    np.testing.assert_array_equal(flatten(params), flatten(mixed_params())[indices])
    assert float(loss(params)) == float(mixed_loss(mixed_params()))
    g_part, hessian_part = jax.jit(lambda x: gradient_and_hessian(loss, x))(params)
    np.testing.assert_allclose(g_part, g[indices], rtol=1e-12)
    np.testing.assert_allclose(
        hessian_part, np.asarray(hessian)[np.ix_(indices, indices)], rtol=1e-11, atol=1e-13
    )


@pytest.mark.parametrize(
    "where, names",
    [
        ("w", ["w"]),
        ("layer", ["layer/b", "layer/s"]),
        ("layer/", ["layer/b", "layer/s"]),
        ("layer/s", ["layer/s"]),
        (lambda path: path.endswith("b"), ["layer/b"]),
        (lambda path: len(path) % 2 == 1, ["layer/b", "layer/s", "w"]),
        ({"w": True, "layer": {"b": False, "s": True}}, ["layer/s", "w"]),
        ({"w": False, "layer": True}, ["layer/b", "layer/s"]),
        (True, ["layer/b", "layer/s", "w"]),
        ({"w": np.bool_(True), "layer": np.array(False)}, ["w"]),
    ],
    ids=[
        "path", "prefix", "with a slash", "deep", "function", "all by function", "booleans",
        "prefix of booleans", "one boolean", "NumPy",
    ],
)  # fmt: skip
def test_block_of_leaves(where, names):
    assert_block(where, np.concatenate([PLACES[name] for name in names]), names)


def test_block_of_entries():
    entries = np.array([[True, False, True], [False, False, True]])
    where = {"w": entries, "layer": {"b": jnp.array([False, True, False]), "s": True}}
    chosen = [1, 3, *(4 + np.flatnonzero(entries))]
    assert_block(where, chosen, ["layer/b", "layer/s", "w"])
    # A leaf of which nothing is chosen is left out.
    where["layer"] = {"b": np.zeros(3, bool), "s": False}
    assert_block(where, 4 + np.flatnonzero(entries), ["w"])


def test_paths_match_whole_names_only():
    params = {"a": jnp.ones(1), "ab": jnp.ones(2), "b": [jnp.ones(3), jnp.ones(4)]}

    def loss(params):
        return sum(jnp.sum(x**2) for x in jax.tree.leaves(params))

    assert list(subset(loss, params, "a")[1]) == ["a"]
    assert list(subset(loss, params, "b")[1]) == ["b/0", "b/1"]
    assert list(subset(loss, params, "b/1")[1]) == ["b/1"]


def test_routines_accept_a_subset():
    """And traces of the parts add up to the trace of the whole."""
    hessian = np.asarray(whole()[1])
    total = 0.0
    for name, places in (("layer", np.arange(4)), ("w", PLACES["w"])):
        part = subset(mixed_loss, mixed_params(), name)
        values = spectrum(*part)
        expected = np.linalg.eigvalsh(hessian[np.ix_(places, places)])
        np.testing.assert_allclose(values, expected, rtol=1e-9, atol=1e-13)
        total += float(values.sum())
    assert total == pytest.approx(np.trace(hessian), rel=1e-12)
    top = top_eigenpairs(*part, 2, key=jax.random.key(0), tolerance=1e-8)
    np.testing.assert_allclose(top.values, values[::-1][:2], rtol=1e-8)
    assert jax.tree.map(jnp.shape, top.vectors) == {"w": (2, 2, 3)}
    estimate = trace(*part, key=jax.random.key(0), num_probes=400)
    assert abs(float(estimate.mean) - float(values.sum())) < 4 * float(estimate.standard_error)


@pytest.mark.parametrize("entries", [True, np.array([True, False, True])])
def test_the_part_at_complex_values_is_the_analytic_continuation(entries):
    where = {"w": False, "layer": {"b": entries, "s": True}}
    loss, params = subset(mixed_loss, mixed_params(), where)
    moved = {name: jax.lax.complex(x, 0.1 * jnp.cos(x)) for name, x in params.items()}
    expected = jax.tree.map(lambda x: x.astype(complex), mixed_params())
    b = expected["layer"]["b"].at[jnp.asarray(entries) & jnp.ones(3, bool)].set(moved["layer/b"])
    expected["layer"] = {"b": b, "s": moved["layer/s"]}
    assert complex(loss(moved)) == pytest.approx(complex(mixed_loss(expected)), rel=1e-14)


def test_refusals():
    paths = "layer/b, layer/s, w"
    for nothing in ("layer/c", "lay", lambda path: False, False):
        with pytest.raises(ValueError, match=rf"selects none of the params, {paths}"):
            subset(mixed_loss, mixed_params(), nothing)
    none = {"w": np.zeros((2, 3), bool), "layer": False}
    with pytest.raises(ValueError, match=paths):
        subset(mixed_loss, mixed_params(), none)
    with pytest.raises(ValueError, match=r"'w' has shape \(3,\), its leaf \(2, 3\)"):
        subset(mixed_loss, mixed_params(), {"w": np.ones(3, bool), "layer": False})
    with pytest.raises(ValueError, match=r"'layer/b', 'layer/s', 'w'"):
        subset(mixed_loss, mixed_params(), {"w": True})
    with pytest.raises(ValueError, match="nan"):
        subset(lambda p: jnp.log(-jnp.abs(p["layer"]["s"])), mixed_params(), "w")
