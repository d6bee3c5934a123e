"""Curvature over batches that need not be in memory at once, and of losses that are watched."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pfcore import curvature

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
INPUTS = np.float32(RNG.normal(size=(50, 3)))
TARGETS = np.float32(RNG.normal(size=(50, 2)))
PARAMS = {"w": jnp.asarray(RNG.normal(size=(3, 8)), jnp.float32), "v": jnp.full((8, 2), 0.3)}


def batch_loss(params, batch):
    inputs, targets = batch
    outputs = jnp.tanh(inputs @ params["w"]) @ params["v"]
    return jnp.mean(jnp.sum((outputs - targets) ** 2, axis=-1))


def whole(params):
    return batch_loss(params, (INPUTS, TARGETS))


def batches(*cuts):
    return [
        (INPUTS[a:b], TARGETS[a:b]) for a, b in zip((0, *cuts), (*cuts, len(INPUTS)), strict=True)
    ]


ROUTINES = {
    "eigenpairs": lambda loss: curvature.top_eigenpairs(loss, PARAMS, 2, key=KEY).values,
    "density": lambda loss: (
        curvature.spectral_density(loss, PARAMS, key=KEY, num_probes=2, depth=6).nodes
    ),
    "trace": lambda loss: curvature.trace(loss, PARAMS, key=KEY, num_probes=3).mean,
    "xtrace": lambda loss: (
        curvature.trace(loss, PARAMS, key=KEY, num_probes=3, method="xtrace").mean
    ),
    "diagonal": lambda loss: curvature.diagonal(loss, PARAMS, key=KEY, num_probes=3).mean,
    "function": lambda loss: curvature.function_product(jnp.exp, loss, PARAMS, PARAMS).value,
    "spectrum": lambda loss: curvature.spectrum(loss, PARAMS),
    "track": lambda loss: (
        curvature.track(
            loss, jax.tree.map(lambda x: jnp.stack([x, 1.01 * x]), PARAMS), 2, key=KEY
        ).values
    ),
}


@pytest.mark.parametrize("name", ROUTINES)
def test_batches_and_watching_change_no_number(name):
    """Batches of several sizes, the last one of a single sample."""
    expected = jax.tree.leaves(ROUTINES[name](whole))
    products = []
    for loss in (
        curvature.over_batches(batch_loss, batches(20, 40, 49)),
        curvature.watched(whole, products.append),
    ):
        for found, want in zip(jax.tree.leaves(ROUTINES[name](loss)), expected, strict=True):
            scale = float(jnp.max(jnp.abs(want)))
            np.testing.assert_allclose(found, want, rtol=2e-3, atol=2e-4 * scale)
    assert products and (name == "track" or products == list(range(1, len(products) + 1)))


def test_sum_of_sums():
    loss = curvature.over_batches(
        lambda p, batch: len(batch[0]) * batch_loss(p, batch), batches(30), average=False
    )
    found = curvature.top_eigenpairs(loss, PARAMS, 1, key=KEY).values
    expected = curvature.top_eigenpairs(whole, PARAMS, 1, key=KEY).values
    np.testing.assert_allclose(found, 50 * expected, rtol=1e-4)


def test_function_that_makes_batches():
    made = []

    def make():
        made.append(1)
        return iter(batches(10))

    loss = curvature.over_batches(batch_loss, make)
    np.testing.assert_allclose(loss(PARAMS), whole(PARAMS), rtol=1e-6)
    curvature.trace(loss, PARAMS, key=KEY, num_probes=2)
    assert len(made) == 7  # here, the loss and the gradient once, and two products more than probes


def test_one_batch_is_in_memory_at_a_time():
    alive = []

    class Data(np.ndarray):
        def __del__(self):
            alive.remove(id(self))

    def make():
        for a in range(0, 50, 10):
            part = INPUTS[a : a + 10].copy().view(Data)
            alive.append(id(part))
            assert len(alive) <= 2
            yield part, TARGETS[a : a + 10]
            del part

    loss = curvature.over_batches(batch_loss, make)
    curvature.trace(loss, PARAMS, key=KEY, num_probes=2)


def test_ctrl_c_stops_between_batches():
    seen = []

    def stop(count):
        seen.append(count)
        if count == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        curvature.spectral_density(curvature.watched(whole, stop), PARAMS, key=KEY)
    assert seen == [1, 2, 3]


@pytest.mark.parametrize(
    "made, message",
    [
        (lambda: iter(batches(10)), "list_iterator can be iterated over only once"),
        (lambda: (b for b in batches(10)), "generator can be iterated over only once"),
        (lambda: 3, "must be an iterable or a function, got 3"),
    ],
)
def test_batches_that_cannot_be_gone_through_again(made, message):
    with pytest.raises(TypeError, match=message):
        curvature.over_batches(batch_loss, made())


def test_no_batches_and_no_samples():
    with pytest.raises(ValueError, match="no batches"):
        curvature.over_batches(batch_loss, [])(PARAMS)
    with pytest.raises(ValueError, match=r"samples along the leading axis, got shapes \[\(\)\]"):
        curvature.over_batches(batch_loss, [1.0])(PARAMS)


def test_not_within_compiled_functions():
    loss = curvature.over_batches(batch_loss, batches(10))
    with pytest.raises(TypeError, match="call this outside"):
        jax.jit(lambda p: curvature.trace(loss, p, key=KEY, num_probes=2).mean)(PARAMS)
