import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import pfcore
from pfcore.runs import counting
from pfcore.runs.counting import counted

NUM = 30  # no other dimension is a multiple
IMAGES = jnp.ones((NUM, 6, 6, 3), jnp.float32)


def operations(function, *args):
    return counted(function, *args, num_samples=NUM).operations


def product(x, w):
    return jnp.sum(jnp.tanh(x @ w))


ARGS = jnp.ones((NUM, 8), jnp.float32), jnp.ones((8, 4), jnp.float32)
ONE = 2 * NUM * 8 * 4


def test_counts_products_over_samples_alone():
    def both(x, w):
        return x @ w, w.T @ w

    found = counted(both, *ARGS, num_samples=NUM)
    assert found.operations == ONE
    for value, wanted in zip(found.value, both(*ARGS), strict=True):
        np.testing.assert_array_equal(value, wanted)
    assert operations(lambda x, w: x.astype(complex) @ w.astype(complex), *ARGS) == 4 * ONE
    assert operations(lambda x: 2 * x, ARGS[0]) == 0


def test_a_gradient_is_two_products_and_a_hessian_product_four():
    x, w = ARGS
    gradient = jax.grad(product, argnums=1)
    assert operations(gradient, x, w) == 2 * ONE
    # Forward and backward, value and derivative each; the data have no derivative.
    tangent = lambda x, w: jax.jvp(lambda w: gradient(x, w), (w,), (w,))  # noqa: E731
    assert operations(tangent, x, w) == 4 * ONE


def test_counts_loops_and_branches_as_they_turn_out():
    x, w = ARGS

    def branch(number, x, w):
        return jax.lax.switch(
            number, [lambda: jnp.float32(0), lambda: product(x, w), lambda: 2 * product(x, 2 * w)]
        )

    assert [operations(branch, np.int32(k), x, w) // ONE for k in (-1, 0, 1, 2, 5)] == [
        0,
        0,
        1,
        1,
        1,
    ]

    def until(number, x, w):
        return jax.lax.while_loop(lambda k: k < number, lambda k: k + 1 + 0 * product(x, w), 0.0)

    assert operations(until, np.float32(5), x, w) == 5 * ONE

    def asked(number, x, w):
        """The condition is asked once more than the body runs."""
        return jax.lax.while_loop(lambda k: k + 0 * product(x, w) < number, lambda k: k + 1, 0.0)

    assert operations(asked, np.float32(5), x, w) == 6 * ONE

    def each(x, w):
        rows = jnp.arange(7, dtype=jnp.float32)
        return jax.lax.scan(lambda s, k: (s + k * product(x, w), s), 0.0, rows, reverse=True)

    found = counted(each, x, w, num_samples=NUM)
    assert found.operations == 7 * ONE
    jax.tree.map(np.testing.assert_array_equal, found.value, jax.jit(each)(x, w))

    @jax.custom_jvp
    def custom(x, w):
        return jax.jit(product)(x, w)

    custom.defjvp(lambda primals, tangents: (custom(*primals), jnp.float32(0)))
    assert (
        operations(lambda x, w: jax.lax.map(lambda k: k * custom(x, w), w[:, 0]), x, w) == 8 * ONE
    )


@pytest.mark.parametrize("stride", [1, 2])
def test_counts_convolutions_as_the_matrix_products_that_they_are(stride):
    def gradient(implementation):
        layer = pfcore.networks.layers.Conv(
            3,
            5,
            stride=stride,
            implementation=implementation,
            param_dtype=jnp.float32,
            rngs=nnx.Rngs(0),
        )
        graph, params = nnx.split(layer)
        loss = lambda p, x: jnp.sum(nnx.merge(graph, p)(x) ** 2)  # noqa: E731
        return operations(jax.grad(loss, argnums=(0, 1)), params, IMAGES)

    forward = 2 * NUM * (6 // stride) ** 2 * 5 * (9 * 3)
    assert gradient("patches") == 3 * forward
    assert gradient("native") == 3 * forward


def test_counts_what_is_run_of_a_network():
    """Every step of a descent, and every iteration of a search for eigenvalues."""
    data = pfcore.datasets.load("breast_cancer", num_train=NUM)
    inputs = data.train_inputs[:, :7]  # has 30 features, as many as there are samples
    model = pfcore.networks.MLP((7, 4, 1), rngs=nnx.Rngs(0))
    loss, params = pfcore.losses.full_batch(model, inputs, data.train_targets, kind="mse")
    gradient = operations(jax.grad(loss), params)
    # Forward and to the weights in both layers, and back to the hidden layer.
    assert gradient == 2 * NUM * (2 * 7 * 4 + 3 * 4)
    assert operations(lambda p: pfcore.gradient_descent(loss, p, 0.1, 9), params) == 9 * gradient

    def search(params):
        return pfcore.curvature.top_eigenpairs(loss, params, 2, key=jax.random.key(0)).num_products

    found = counted(search, params, num_samples=NUM)
    # One linearisation, then its linear part for each product.
    _, linear = jax.linearize(jax.grad(loss), params)
    each = operations(linear, params)
    assert found.operations > int(found.value) * each
    assert found.operations < (int(found.value) + 4) * each + 2 * gradient


def test_straight_programs_are_counted_without_running_them():
    x, w = ARGS

    def each(x, w):
        gradient = jax.jit(jax.grad(product, argnums=1))
        return jax.lax.map(lambda k: jax.checkpoint(gradient)(k * x, w), w[:, 0])

    assert counting.operations(each, x, w, num_samples=NUM) == operations(each, x, w) == 16 * ONE
    until = lambda x, w: jax.lax.while_loop(lambda s: s < 9, lambda s: s + product(x, w), 0.0)  # noqa: E731
    with pytest.raises(ValueError, match="depends on how a while turns out"):
        counting.operations(until, x, w, num_samples=NUM)


def test_counts_beyond_32_bits():
    w = jnp.ones((8, 1024), jnp.float32)
    many = lambda x: jax.lax.map(lambda k: jnp.sum(x @ (k * w)), jnp.arange(9000.0))  # noqa: E731
    assert operations(many, ARGS[0]) == 9000 * 2 * NUM * 8 * 1024 > 2**32


def test_refuses_a_number_that_divides_everything():
    with pytest.raises(ValueError, match="num_samples"):
        counted(lambda x: x, 1.0, num_samples=1)
