import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pfcore
from pfcore.curvature import track, tracker
from pfcore.curvature.dense import gradient_and_hessian
from pfcore.curvature.eigenpairs import SMALL
from pfcore.curvature.tracking import CHECK_EVERY
from tests.conftest import flatten_path, small_network

pytestmark = pytest.mark.usefixtures("x64")


def assert_spectrum(values, eigenvalues, tolerance):
    """Those at the upper end, each to the tolerance of a converged pair; [T, k] and [T, n]."""
    norm = np.abs(eigenvalues).max(axis=1, keepdims=True)
    expected = np.sort(eigenvalues, axis=1)[:, ::-1][:, : values.shape[1]]
    allowed = tolerance * np.maximum(np.abs(expected), SMALL * norm) * 1.001
    np.testing.assert_array_less(np.abs(values - expected), allowed + 1e-13 * norm)


class Counted:
    """A loss that counts how often it is traced."""

    def __init__(self, loss):
        self.loss = loss
        self.traces = 0

    def __call__(self, params):
        self.traces += 1
        return self.loss(params)


@functools.cache
def descent():
    """A network of 129 parameters, 30 steps of gradient descent, and all Hessians on the way."""
    loss, params = small_network(kind="cross_entropy")
    path = pfcore.gradient_descent(loss, params, 0.2, 30)
    hessians = jax.jit(jax.vmap(lambda x: gradient_and_hessian(loss, x)[1]))(path)
    return loss, path, np.asarray(hessians)


def test_values_along_gradient_descent():
    loss, path, hessians = descent()
    found = track(loss, path, 3, key=jax.random.key(0))
    assert found.values.shape == (31, 3) and found.num_products.shape == (31,)
    assert np.all(found.converged) and np.all(found.num_tracked == 3)
    assert_spectrum(found.values, np.linalg.eigvalsh(hessians), 1e-3)
    np.testing.assert_array_equal(found.values[-1], found.state.pairs.values)
    vectors = flatten_path(found.state.pairs.vectors)
    residuals = vectors @ hessians[-1] - np.asarray(found.values)[-1][:, None] * vectors
    np.testing.assert_allclose(
        found.residuals[-1], np.linalg.norm(residuals, axis=1), rtol=1e-3, atol=1e-13
    )
    # A tighter tolerance is another argument, not another program.
    sharp = track(loss, path, 3, key=jax.random.key(0), tolerance=1e-7)
    assert np.all(sharp.converged)
    assert_spectrum(sharp.values, np.linalg.eigvalsh(hessians), 1e-7)


def test_tracking_takes_fewer_products_than_searching_at_every_point():
    loss, path, _ = descent()
    tracked = np.asarray(track(loss, path, 3, key=jax.random.key(0)).num_products)
    for i in (10, 20, 30):
        # Of the same length, to compile nothing anew: the first point is a search from nothing.
        rest = jax.tree.map(lambda x, i=i: jnp.concatenate([x[i:], x[:i]]), path)
        cold = int(track(loss, rest, 3, key=jax.random.key(0)).num_products[0])
        assert np.mean(tracked[i - 4 : i + 1]) < 0.75 * cold


def test_tracker_inside_a_training_loop():
    """Signs are carried on, the gradient comes for free, and nothing is compiled twice."""
    loss, path, hessians = descent()
    loss = Counted(loss)
    follow = tracker(loss, 3, tolerance=1e-5)

    @jax.jit
    def train(params, key):
        def step(carry, _):
            params, state = carry
            params = jax.tree.map(lambda x, g: x - 0.2 * g, params, state.gradient)
            state = follow.update(params, state)
            return (params, state), (
                params,
                state.pairs.values,
                state.pairs.vectors,
                state.gradient,
            )

        return jax.lax.scan(step, (params, follow.init(params, key)), length=30)[1]

    start = pfcore.paths.at(path, 0)
    params, values, vectors, gradients = train(start, jax.random.key(0))
    after = pfcore.paths.at(path, slice(1, None))
    np.testing.assert_allclose(flatten_path(params), flatten_path(after), rtol=1e-9, atol=1e-12)
    expected = jax.vmap(jax.grad(loss.loss))(after)
    np.testing.assert_allclose(
        flatten_path(gradients), flatten_path(expected), rtol=1e-8, atol=1e-12
    )
    assert_spectrum(values, np.linalg.eigvalsh(hessians[1:]), 1e-5)

    rows = np.concatenate([np.reshape(u, (30, 3, -1)) for u in jax.tree.leaves(vectors)], axis=2)
    images = np.einsum("tij,tkj->tki", hessians[1:], rows)
    np.testing.assert_allclose(images, np.asarray(values)[..., None] * rows, atol=1e-4)
    overlaps = np.sum(rows[1:] * rows[:-1], axis=2)
    assert overlaps.min() > 0

    traces = loss.traces
    train(jax.tree.map(lambda x: 1.1 * x, start), jax.random.key(1))
    assert loss.traces == traces


SIZE = 80


def designed(params):
    """At x = 0 the eigenvalues are the curvatures, numbers from -0.5 to 0.5, and zeros.

    All but the zeros have for eigenvectors the columns of a reflection in the mirror.
    """
    x, mirror, few = params["x"], params["mirror"], params["curvatures"]
    x = x - 2 * mirror * (mirror @ x) / (mirror @ mirror)
    rest = jnp.linspace(-0.5, 0.5, SIZE - few.size, dtype=few.dtype)
    return 0.5 * jnp.sum(jnp.concatenate([few, rest]) * x**2)


def designed_path(curvatures, turning=1.0):
    """41 points, t from 0 to 1, with these curvatures of t; and the largest eigenvalues."""
    t = np.linspace(0, 1, 41)
    ends = np.random.default_rng(0).normal(size=(2, SIZE))
    curvatures = np.stack([np.broadcast_to(c, t.shape) for c in curvatures(t)], axis=1)
    path = {
        "x": np.zeros((len(t), SIZE)),
        "mirror": ends[0] + turning * t[:, None] * ends[1],
        "curvatures": curvatures,
    }
    return jax.tree.map(jnp.asarray, path), np.sort(curvatures, axis=1)[:, ::-1]


def test_as_many_are_tracked_as_are_beyond_the_threshold_and_one_more():
    """Along sin(πt) one to four eigenvalues are below -2, and one again; three at most are
    tracked."""
    path, true = designed_path(
        lambda t: [
            6.0,
            1.0 + 4 * np.sin(np.pi * t),
            0.9 + 3 * np.sin(np.pi * t),
            0.8 + 2 * np.sin(np.pi * t),
        ]
    )
    path["curvatures"] *= -1
    found = track(
        designed, path, 1, max_k=3, threshold=-2.0, which="smallest", key=jax.random.key(0)
    )
    assert set(np.sum(true > 2, axis=1)) == {1, 2, 3, 4}
    count, counts = 1, []
    for values in true:
        counts.append(count)
        count = int(np.clip(1 + np.sum(values[:count] > 2), 1, 3))
    assert set(counts) == {1, 2, 3}
    np.testing.assert_array_equal(found.num_tracked, counts)
    assert int(found.state.num_tracked) == count
    past = np.arange(3) >= np.array(counts)[:, None]
    assert np.all(np.isnan(found.values[past])) and np.all(np.isinf(found.residuals[past]))
    np.testing.assert_array_equal(found.converged, ~past)
    np.testing.assert_allclose(
        np.where(past, 0, found.values), np.where(past, 0, -true[:, :3]), rtol=1e-3
    )


def right_points(path, true):
    """Where both values are right; all say that they have converged."""
    found = track(designed, path, 2, key=jax.random.key(0))
    assert np.all(found.converged)
    return np.all(np.abs(found.values - true[:, :2]) < 0.01, axis=1)


def test_the_next_direction_overtakes():
    """Past the second at t = 3/11, then past the first; no eigenvector moves."""
    path, true = designed_path(lambda t: [5 + t, 4 - t, 1 + 10 * t], turning=0)
    right = right_points(path, true)
    crossing = int(np.ceil(3 / 11 * 40))
    assert np.all(right[:crossing]) and np.all(right[crossing + CHECK_EVERY + 1 :]), right


def test_challenged_at_every_point_it_misses_no_overtaking():
    path, true = designed_path(lambda t: [5 + t, 4 - t, 1 + 10 * t], turning=0)
    follower = tracker(designed, 2, challenge_every=1)

    def step(state, params):
        state = follower.update(params, state)
        return state, state.pairs.values

    first, rest = (jax.tree.map(lambda x, s=s: x[s], path) for s in (0, slice(1, None)))
    state = follower.init(first, jax.random.key(0))
    _, values = jax.jit(lambda s: jax.lax.scan(step, s, rest))(state)
    np.testing.assert_allclose(values, true[1:, :2], atol=0.01)
    whole = track(designed, path, 2, key=jax.random.key(0), challenge_every=1).values
    np.testing.assert_allclose(whole, true[:, :2], atol=0.01)
    np.testing.assert_allclose(whole[1:], values, rtol=1e-5)


@pytest.mark.parametrize("turning", [1.0, 0.0], ids=["turning", "fixed"])
def test_a_direction_from_far_below_overtakes(turning):
    """At first it is the last of all, and only the check can find it."""
    path, true = designed_path(lambda t: [5 + t, 4 - t, 10 * t - 1], turning)
    right = right_points(path, true)
    crossing = int(np.ceil(5 / 11 * 40))
    assert np.all(right[:crossing]) and np.all(right[crossing + CHECK_EVERY + 1 :]), right


def test_refusals():
    path = {"x": jnp.ones((4, 3))}

    def loss(params):
        return jnp.sum(params["x"] ** 4)

    def follow(k, path=path, **options):
        return track(loss, path, k, key=jax.random.key(0), **options)

    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        follow(0)
    with pytest.raises(ValueError, match="at most the number of parameters, 3, got 4"):
        follow(4)
    with pytest.raises(ValueError, match="at most the number of parameters, 3, got 4"):
        follow(1, max_k=4)
    with pytest.raises(ValueError, match="max_k must be at least k = 2, got 1"):
        follow(2, max_k=1)
    with pytest.raises(TypeError, match=r"1\.5"):
        follow(1.5)
    with pytest.raises(ValueError, match="largest, smallest, magnitude, got 'top'"):
        follow(1, which="top")
    with pytest.raises(ValueError, match="tolerance must be positive and finite, got 0"):
        follow(1, tolerance=0)
    with pytest.raises(ValueError, match="max_products must be at least 1, got 0"):
        follow(1, max_products=0)
    with pytest.raises(ValueError, match="nan"):
        follow(1, path={"x": jnp.full((4, 3), jnp.nan)})
    with pytest.raises(ValueError, match=r"one number, got \(3,\)"):
        track(lambda p: p["x"], path, 1, key=jax.random.key(0))
    with pytest.raises(ValueError, match=r"leaves of path must have a leading axis .* \[\(\)\]"):
        follow(1, path={"x": 1.0})


def test_counts_are_checked():
    with pytest.raises(ValueError, match="challenge_every must be at least 1, got 0"):
        tracker(lambda x: jnp.sum(x**4), 1, challenge_every=0)
    with pytest.raises(ValueError, match="challenge_every must be at least 1, got 0"):
        track(
            lambda x: jnp.sum(x**4), jnp.ones((2, 3)), 1, key=jax.random.key(0), challenge_every=0
        )
    with pytest.raises(ValueError, match="k must be at least 1"):
        tracker(lambda x: jnp.sum(x**4), 0, max_k=2).init(jnp.ones(3), jax.random.key(0))


def test_a_threshold_is_compared_with_magnitudes_where_they_order_the_spectrum():
    slope = jnp.array([-100.0, 50.0, 1.0])
    follow = tracker(
        lambda x: jnp.sum(slope * x**2) / 2, 1, max_k=2, threshold=10.0, which="magnitude"
    )
    state = follow.init(jnp.ones(3), jax.random.key(0))
    assert int(state.num_tracked) == 2
    state = follow.update(jnp.ones(3), state)
    np.testing.assert_allclose(state.pairs.values, [-100, 50], rtol=1e-4)
