"""Closures that compute the same share compiled programs, which hold no data."""

import functools
import gc
import logging
import weakref

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import pfcore
from pfcore import _programs, curvature, learning_rates
from pfcore.flows.flow import bind

KEY = jax.random.key(0)
X = jnp.linspace(-1.0, 1.0, 5)


def rate(make):
    def call(loss):
        tx = make()  # compiling the gradient is up to the user
        return tx.update(X, tx.init(X), X, loss_fn=loss)[1].learning_rate

    return call


CALLS = {
    "gradient_descent": lambda loss: pfcore.gradient_descent(loss, X, 0.01, 2),
    "ngf": lambda loss: (
        pfcore.integrate(pfcore.flows.negative_gradient_flow(loss), X, [0.0, 0.1]).params
    ),
    "principal": lambda loss: (
        pfcore.integrate(pfcore.flows.principal_flow(loss, 0.1, state="real"), X, [0.0, 0.1]).params
    ),
    "two_frame": lambda loss: (
        pfcore.integrate(pfcore.flows.two_frame_flow(loss, 0.1), X, [0.0, 0.1]).expected_loss
    ),
    "spectrum": lambda loss: curvature.spectrum(loss, X),
    "top_eigenpairs": lambda loss: curvature.top_eigenpairs(loss, X, 1, key=KEY).values,
    "spectral_density": lambda loss: curvature.spectral_density(loss, X, key=KEY, depth=3).nodes,
    "function_product": lambda loss: curvature.function_product(jnp.exp, loss, X, X).value,
    "trace": lambda loss: curvature.trace(loss, X, key=KEY, num_probes=2).mean,
    "diagonal": lambda loss: curvature.diagonal(loss, X, key=KEY, num_probes=2).mean,
    "track": lambda loss: curvature.track(loss, jnp.stack([X, X]), 1, key=KEY).values,
    "subset": lambda loss: curvature.spectrum(*curvature.subset(loss, X, X > 0)),
    "dal": rate(learning_rates.dal),
    "cdat": rate(learning_rates.cdat),
    "sharpness_rate": rate(learning_rates.sharpness_rate),
}


def relu_network(data):
    """With custom rules, a compiled part that closes over data, and a scan."""
    part = jax.jit(lambda p: jax.nn.relu(data @ p))

    def loss(p):
        scanned = jax.lax.scan(lambda c, row: (c + jnp.tanh(row @ p), None), p[0], data)[0]
        return jnp.mean(part(p) ** 2) + optax.safe_norm(p, 1e-3) + 0.01 * scanned

    return loss


@pytest.fixture
def compilations(caplog):
    """How many programs XLA compiled."""
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        yield lambda: sum("Finished XLA compilation" in r.getMessage() for r in caplog.records)


@pytest.mark.parametrize("name", CALLS)
def test_closures_over_new_data_do_not_compile_or_hold_data(name, compilations):
    rng, alive, counts = np.random.default_rng(0), [], []
    for _ in range(3):
        data = jnp.asarray(rng.normal(size=(30, 5)), jnp.float32)
        alive.append(weakref.ref(data))
        loss = relu_network(data)
        jax.block_until_ready(CALLS[name](loss))
        counts.append(compilations())
        del data, loss
    gc.collect()
    assert counts[2] == counts[1]
    assert sum(ref() is not None for ref in alive) <= 1


def test_memory_over_fifty_batches():
    alive = []
    for seed in range(50):
        data = jnp.asarray(np.random.default_rng(seed).normal(size=(30, 5)), jnp.float32)
        alive.append(weakref.ref(data))
        curvature.trace(lambda p, d=data: jnp.mean((d @ p) ** 2), X, key=KEY, num_probes=2)
        del data
    gc.collect()
    assert sum(ref() is not None for ref in alive) <= 1


def test_a_full_batch_loss_is_traced_once_and_let_go():
    """Its closure cannot change; a function that reads data that change is traced again."""
    calls = []

    class Counted(nnx.Module):
        def __init__(self):
            self.layer = nnx.Linear(5, 1, rngs=nnx.Rngs(0))

        def __call__(self, x):
            calls.append(x.shape)
            return jnp.tanh(self.layer(x))

    rng, alive = np.random.default_rng(0), []
    for _ in range(3):
        inputs = jnp.asarray(rng.normal(size=(30, 5)), jnp.float32)
        alive.append(weakref.ref(inputs))
        loss, params = pfcore.losses.full_batch(Counted(), inputs, np.zeros(30, int), kind="mse")
        first = curvature.top_eigenpairs(loss, params, 1, key=KEY)
        calls.clear()
        again = curvature.top_eigenpairs(loss, params, 1, key=KEY)
        assert not calls and float(again.values[0]) == float(first.values[0])
        elsewhere = jax.tree.map(lambda p: 0.5 * p, params)
        assert not calls
        moved = curvature.top_eigenpairs(loss, elsewhere, 1, key=KEY)
        assert float(moved.values[0]) == pytest.approx(
            float(curvature.spectrum(loss, elsewhere)[-1]), rel=1e-4
        )
        del inputs, loss, first, again, moved
    gc.collect()
    assert sum(ref() is not None for ref in alive) <= 1

    scale = {"is": 1.0}

    def changing(x):
        return scale["is"] * jnp.sum(x**2)

    for scale["is"] in (1.0, 3.0):
        np.testing.assert_allclose(
            curvature.top_eigenpairs(changing, X, 1, key=KEY).values, 2 * scale["is"], rtol=1e-5
        )


def test_different_programs_are_distinguished():
    """Other constants, operations, shapes and custom rules are other programs."""

    def code(function, x=X):
        return _programs.trace(function, x).code

    data = np.arange(5.0, dtype=np.float32)
    assert code(lambda x: x * jnp.asarray(data)) == code(lambda x: x * jnp.asarray(data + 1))
    base = code(lambda x: jnp.sum(2.0 * x))
    assert base == code(lambda x: jnp.sum(2.0 * x)) and hash(base) == hash(
        code(lambda x: jnp.sum(2.0 * x))
    )
    for other in (lambda x: jnp.sum(3.0 * x), lambda x: jnp.prod(2.0 * x), lambda x: jnp.sum(x)):
        assert base != code(other)
    assert base != code(lambda x: jnp.sum(2.0 * x), jnp.ones(6))
    assert code(lambda x: x[1:3]) != code(lambda x: x[2:4])


def test_different_custom_rules_give_different_hessians():
    """Two functions with equal values and different derivatives share no program."""

    def squared(slope):
        @jax.custom_jvp
        def f(x):
            return jnp.sum(x**2)

        f.defjvp(lambda primals, tangents: (f(primals[0]), slope * primals[0] @ tangents[0]))
        return f

    for slope in (2.0, 6.0):
        np.testing.assert_allclose(curvature.spectrum(squared(slope), X), slope, rtol=1e-6)


def test_a_program_is_cached_while_its_function_computes_the_same():
    fields = []

    def loss(x):
        return scale * jnp.sum(jnp.cosh(x))

    def field(loss, x):
        fields.append(loss)
        return jax.grad(loss)(x)

    def slope():
        flow = pfcore.flows.negative_gradient_flow(loss)
        flow = flow._replace(vector_field=bind(timeless, loss, field))
        return pfcore.integrate(flow, X, [0.0, 0.1])

    for scale in (1.0, 1.0, 2.0, 2.0):  # noqa: B007, the loss reads it
        slope()
    assert len(fields) == 2


def timeless(loss, field, t, x):
    del t
    return field(loss, x)


ONES = jnp.ones(5)


def stepped(loss, start):
    """A map of the user's own: what it reads is not known to any loss."""
    step = pfcore.flows.Stepper(lambda x: x, lambda x: x - 0.1 * jax.grad(loss)(x), lambda x: x)

    def rate():
        path = pfcore.integrate(pfcore.flows.two_frame_flow_of(step), start, [0.0, 1.0])
        return float(1 - path.params[-1, 0]) / 0.1

    return rate


def over_one_batch(loss):
    whole = curvature.over_batches(lambda x, batch: loss(x), [X])
    return lambda: float(curvature.top_eigenpairs(whole, ONES, 1, key=KEY).values[0])


def in_batches(loss):
    def of_batch(x, batch):
        return loss(x)

    return lambda: float(curvature.minibatch_sharpness(of_batch, ONES, [X]).mean)


def along(make, **options):
    """Minus the slope of a flow at (1, 1, 1, 1, 1), from one small step."""

    def measured(loss):
        def rate():
            flow = make(loss)
            path = pfcore.integrate(flow, ONES, [0.0, 1e-2], **options)
            return -float(jnp.log(path.params[-1, 0])) / 1e-2

        return rate

    return measured


def by_rate(name):
    def measured(loss):
        def rate():
            tx = getattr(learning_rates, name)(max_learning_rate=1e3)
            return float(tx.update(X, tx.init(X), X, loss_fn=loss)[1].curvature)

        return rate

    return measured


def watched(measure):
    def measured(loss):
        hosted = curvature.watched(loss, lambda count: None)
        return lambda: float(measure(hosted))

    return measured


READERS = {
    "hvp": lambda loss: lambda: float(curvature.hvp(loss, X, ONES)[0]),
    "spectrum": lambda loss: lambda: float(curvature.spectrum(loss, X)[0]),
    "gradient_descent": lambda loss: (
        lambda: float(1 - pfcore.gradient_descent(loss, ONES, 0.01, 1)[-1, 0]) / 0.01
    ),
    "ngf": along(pfcore.flows.negative_gradient_flow),
    "implicit": along(
        pfcore.flows.negative_gradient_flow, solver=diffrax.Kvaerno5(scan_kind="lax")
    ),
    "central_flow": along(lambda loss: pfcore.flows.central_flow(loss, 0.01)),
    "two_frame_flow_of": functools.partial(stepped, start=ONES),
    "two_frame_flow_of, split": functools.partial(
        stepped, start=pfcore.flows.TwoFrameState(ONES, 1e-9 * ONES, jnp.zeros(()))
    ),
    "watched value": watched(lambda loss: 2 * loss(ONES) / 5),
    "watched density": watched(
        lambda loss: curvature.spectral_density(loss, X, key=KEY, depth=1).nodes[0, 0]
    ),
    "over_batches": over_one_batch,
    "minibatch_sharpness": in_batches,
    "dal": by_rate("dal"),
    "cdat": by_rate("cdat"),
    "sharpness_rate": by_rate("sharpness_rate"),
}


@pytest.mark.parametrize(
    "name, kind", [*((name, "array") for name in READERS), ("ngf", "number"), ("hvp", "number")]
)
def test_a_loss_that_reads_another_batch_is_not_cached(name, kind):
    """One function object, without `jax.jit`, and a variable that it reads changes."""
    scale = {}

    def loss(x):
        bend = (
            1e-4 * jnp.sum(x**3) if name == "central_flow" else 0.0
        )  # it needs a third derivative
        return jnp.sum(scale["now"] * x**2) / 2 + bend

    measured = READERS[name](loss)
    for number in (1.0, 3.0):
        scale["now"] = number if kind == "number" else jnp.full(5, number)
        assert measured() == pytest.approx(number, rel=0.05)
