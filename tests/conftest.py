"""Settings that every test runs under, and losses that many share."""

import collections
import ctypes
import gc
import os
import signal
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import pytest
from flax import nnx

import pfcore

matplotlib.use("Agg")

MOST_MEMORY = 2e9  # bytes of a process, before it forgets what it compiled


def memory() -> int:
    """Bytes that this process holds; 0 where the system does not say."""
    status = Path("/proc/self/statm")
    return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if status.exists() else 0


def pytest_configure():
    """Mixing dtypes by accident is an error, in the examples of docstrings too."""
    jax.config.update("jax_numpy_dtype_promotion", "strict")


LISTED = {
    mark: Path(__file__).with_name(f"{mark}.txt").read_text(encoding="utf-8").splitlines()
    for mark in ("long", "slow")
}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Mark those listed, and run the slowest first: no process works on one alone at the end."""
    marks = collections.defaultdict(list)
    for mark, names in LISTED.items():
        for name in names:
            marks[name].append(mark)
    for item in items:
        for mark in marks[item.nodeid.partition("@")[0]]:
            item.add_marker(mark)
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(autouse=True, scope="session")
def _ctrl_c():
    """Handle Ctrl-C, which processes in the background of a shell, and their children, ignore."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _bounded_memory():
    """Limit the memory of compiled programs, which JAX keeps: gigabytes over thousands of tests."""
    yield
    if memory() > MOST_MEMORY:
        jax.clear_caches()
        gc.collect()
        # What was freed stays with the C library of Linux until it is asked to return it.
        if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
            libc.malloc_trim(0)


@pytest.fixture
def x64():
    """Double precision for claims about exactness."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


def mixed_loss(params) -> jax.Array:
    """A smooth, analytic loss over a pytree of mixed shapes; coupled, not quadratic."""
    w, b, s = params["w"], params["layer"]["b"], params["layer"]["s"]
    hidden = jnp.tanh(w @ b)
    return 0.5 * jnp.sum(hidden**2) + 0.25 * jnp.sum(b**2) * s**2 + 0.5 * jnp.cos(s)


def mixed_params(dtype=jnp.float64):
    rng = np.random.default_rng(0)
    return {
        "w": jnp.asarray(rng.normal(size=(2, 3)), dtype),
        "layer": {"b": jnp.asarray(rng.normal(size=3), dtype), "s": jnp.asarray(0.7, dtype)},
    }


def small_network(kind="mse", activation="tanh", sizes=(30, 4, 1), dtype=jnp.float64):
    """A network on real data that is small enough for a dense Hessian: (loss, params)."""
    data = pfcore.datasets.load("breast_cancer", dtype=np.dtype(dtype))
    model = pfcore.networks.MLP(sizes, activation=activation, param_dtype=dtype, rngs=nnx.Rngs(0))
    return pfcore.losses.full_batch(
        model, data.train_inputs[:64], data.train_targets[:64], kind=kind
    )


def flatten(tree) -> np.ndarray:
    """Leaves in one vector; with a leading time axis use `flatten_path`."""
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def flatten_path(tree) -> np.ndarray:
    leaves = jax.tree.leaves(tree)
    return np.concatenate([np.reshape(leaf, (len(leaf), -1)) for leaf in leaves], axis=1)
