"""Data sharded over eight devices; `test_sharding.py` runs these tests in such a process."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import pfcore
from pfcore.losses import accuracy, full_batch
from tests.conftest import flatten

pytestmark = pytest.mark.usefixtures("x64")

N = 64
SHAPES = {"mlp": (6,), "conv": (8, 8, 1)}


def shards(axis_type=jax.sharding.AxisType.Auto):
    return jax.NamedSharding(jax.make_mesh((8,), ("data",), axis_types=(axis_type,)), jax.P("data"))


def data(name, num_samples=N):
    rng = np.random.default_rng(0)
    return rng.normal(size=(num_samples, *SHAPES[name])), rng.integers(0, 3, num_samples)


def model(name):
    options = {"param_dtype": jnp.float64, "rngs": nnx.Rngs(0)}
    if name == "mlp":
        return pfcore.networks.MLP((6, 5, 3), **options)
    return pfcore.networks.ConvNet(SHAPES[name], (3, 4), 3, **options)


def build(name, inputs, targets, microbatch=None):
    return full_batch(model(name), inputs, targets, kind="cross_entropy", microbatch=microbatch)


def everything(name, microbatch, params, inputs, targets):
    """Loss, gradient, and a Hessian product along the gradient."""
    loss, _ = build(name, inputs, targets, microbatch)
    gradient = jax.grad(loss)(params)
    return loss(params), gradient, pfcore.curvature.hvp(loss, params, gradient)


@functools.cache
def expected(name):
    """On one device, all at once."""
    _, params = build(name, *data(name))
    return params, jax.jit(functools.partial(everything, name, None))(params, *data(name))


def assert_equal(found, wanted):
    assert all(len(x.sharding.device_set) == 8 for x in jax.tree.leaves(found))
    for a, b in zip(found, wanted, strict=True):
        error = np.linalg.norm(flatten(a) - flatten(b))
        assert error < 1e-12 * np.linalg.norm(flatten(b))


def test_there_are_eight_devices():
    assert jax.device_count() == 8


# 24 does not divide the number of samples, so some move to a neighbouring device.
@pytest.mark.parametrize("microbatch", [None, 16, 24])
@pytest.mark.parametrize("name", SHAPES)
def test_data_as_arguments(name, microbatch):
    params, wanted = expected(name)
    arguments = params, *jax.device_put(data(name), shards())
    compiled = jax.jit(functools.partial(everything, name, microbatch)).lower(*arguments).compile()
    (_, *of_data), _ = compiled.input_shardings
    assert all(
        s.is_equivalent_to(shards(), x.ndim) for s, x in zip(of_data, arguments[1:], strict=True)
    )
    program = compiled.as_text()
    # Eight samples on each device, and only sums between them.
    assert f"f64[8,{','.join(map(str, SHAPES[name]))}]" in program
    assert "all-reduce" in program and "all-gather" not in program and "all-to-all" not in program
    assert ("collective-permute" in program) == (microbatch == 24)
    assert_equal(compiled(*arguments), wanted)


@pytest.mark.parametrize("built", ["before", "within"])
@pytest.mark.parametrize("microbatch", [None, 16, 24])
def test_data_closed_over(microbatch, built):
    """Every device computes its share, whether the loss is built outside or inside."""
    params, wanted = expected("mlp")
    sharded = jax.device_put(data("mlp"), shards())
    loss, _ = build("mlp", *sharded, microbatch)

    @jax.jit
    def function(params):
        if built == "within":
            return everything("mlp", microbatch, params, *sharded)
        gradient = jax.grad(loss)(params)
        return loss(params), gradient, pfcore.curvature.hvp(loss, params, gradient)

    assert "all-reduce" in function.lower(params).compile().as_text()
    assert_equal(function(params), wanted)


def test_eigenvalues():
    params, _ = expected("mlp")
    key = jax.random.key(0)

    def top(params, inputs, targets):
        loss, _ = build("mlp", inputs, targets, microbatch=16)
        return pfcore.curvature.top_eigenpairs(loss, params, 2, key=key, tolerance=1e-9).values

    dense = pfcore.curvature.spectrum(build("mlp", *data("mlp"))[0], params)[::-1][:2]
    found = jax.jit(top)(params, *jax.device_put(data("mlp"), shards()))
    assert len(found.sharding.device_set) == 8
    np.testing.assert_allclose(found, dense, rtol=1e-12)


@pytest.mark.parametrize("method", ["dal", "cdat", "sharpness_rate"])
def test_learning_rates(method):
    """Ten steps of training on sharded data are those on one device."""
    params, _ = expected("mlp")
    tx = getattr(pfcore.learning_rates, method)(max_learning_rate=0.5)

    @jax.jit
    def train(params, inputs, targets):
        loss, _ = build("mlp", inputs, targets, microbatch=16)

        def step(carry, _):
            params, state = carry
            updates, state = tx.update(jax.grad(loss)(params), state, params, loss_fn=loss)
            return (optax.apply_updates(params, updates), state), state.learning_rate

        (params, _), rates = jax.lax.scan(step, (params, tx.init(params)), length=10)
        return params, rates

    found = train(params, *jax.device_put(data("mlp"), shards()))
    assert all(len(x.sharding.device_set) == 8 for x in jax.tree.leaves(found))
    wanted = train(params, *data("mlp"))
    np.testing.assert_allclose(found[1], wanted[1], rtol=1e-8)
    np.testing.assert_allclose(flatten(found[0]), flatten(wanted[0]), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("mapped", ["pmap", "pmap, named", "shard_map", "shard_map, unchecked"])
@pytest.mark.parametrize("method", ["dal", "cdat", "sharpness_rate"])
def test_replicas_choose_one_learning_rate(method, mapped):
    """Each device has its share of the data; all take the step that one device takes."""
    n = 6
    rng = np.random.default_rng(0)
    inputs, targets = 3 * rng.normal(size=(8, 20, n)), rng.normal(size=(8, 20))
    params = jnp.full(n, 0.3)
    make = getattr(pfcore.learning_rates, method)
    tx = make(axis_name="i") if mapped == "pmap, named" else make()

    def loss(p, x, y):
        return 0.5 * jnp.mean((x @ p - y) ** 2)

    def whole(p):
        return jnp.mean(jax.vmap(loss, (None, 0, 0))(p, inputs, targets))

    def step(p, x, y):
        g = jax.lax.pmean(jax.grad(loss)(p, x, y), "i")

        def mean(q):
            return loss(q, x, y) if mapped == "pmap, named" else jax.lax.pmean(loss(q, x, y), "i")

        if mapped == "shard_map":
            g = jax.grad(mean)(p)
        updates, state = tx.update(g, tx.init(p), p, loss_fn=mean)
        return optax.apply_updates(p, updates), state.learning_rate

    if mapped.startswith("pmap"):
        stepped, rates = jax.pmap(step, axis_name="i", in_axes=(None, 0, 0))(
            params, inputs, targets
        )
        assert np.ptp(rates) == 0 and np.all(np.ptp(stepped, axis=0) == 0)
        stepped, rate = stepped[0], rates[0]
    else:
        mesh = jax.make_mesh((8,), ("i",), axis_types=(jax.sharding.AxisType.Auto,))
        stepped, rate = jax.jit(
            jax.shard_map(
                lambda p, x, y: step(p, x[0], y[0]),
                mesh=mesh,
                in_specs=(jax.P(), jax.P("i"), jax.P("i")),
                out_specs=jax.P(),
                check_vma=mapped == "shard_map",
            )
        )(params, inputs, targets)
    updates, state = make().update(
        jax.grad(whole)(params), make().init(params), params, loss_fn=whole
    )
    np.testing.assert_allclose(rate, state.learning_rate, rtol=1e-10)
    np.testing.assert_allclose(stepped, params + updates, rtol=1e-9)


@pytest.mark.parametrize("microbatch", [None, 16])
def test_accuracy(microbatch):
    params, _ = expected("mlp")
    inputs, targets = data("mlp")
    right = np.mean(np.asarray(model("mlp")(jnp.asarray(inputs))).argmax(axis=1) == targets)

    @jax.jit
    def share(params, inputs, targets):
        return accuracy(model("mlp"), inputs, targets, microbatch=microbatch)[0](params)

    sharded = jax.device_put((inputs, targets), shards())
    assert float(share(params, *sharded)) == pytest.approx(right, rel=1e-15)


def test_numbers_of_samples_not_divisible_by_devices():
    """JAX does not shard them; copies of all on every device give the same loss."""
    inputs, targets = data("mlp", N - 1)
    with pytest.raises(ValueError, match=r"\b8\b.*\b63\b"):
        jax.device_put(inputs, shards())
    loss, params = build("mlp", inputs, targets)
    copies = jax.device_put((inputs, targets), jax.NamedSharding(shards().mesh, jax.P()))
    value = jax.jit(lambda p, x, y: build("mlp", x, y)[0](p))(params, *copies)
    assert float(value) == pytest.approx(float(loss(params)), rel=1e-13)


@pytest.mark.parametrize("compiled", [False, True])
def test_explicit_meshes_are_rejected(compiled):
    sharded = jax.device_put(data("mlp"), shards(jax.sharding.AxisType.Explicit))
    params, _ = expected("mlp")

    def loss(inputs, targets):
        return build("mlp", inputs, targets)[0](params)

    with pytest.raises(ValueError, match=r"inputs are sharded over explicit mesh axes.*Auto"):
        (jax.jit(loss) if compiled else loss)(*sharded)
