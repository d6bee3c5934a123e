"""One battery over every flow: what a user may rely on, whichever flow it is."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pfcore
from pfcore import _programs
from pfcore.flows import (
    FLOWS,
    Flow,
    SteppedFlow,
    modified_flow,
    named_flow,
    principal_flow,
    two_frame_flow,
)
from tests.conftest import flatten, flatten_path, mixed_loss, mixed_params

# Every flow that has a name, and others of their families.
MAKERS = {name: functools.partial(named_flow, name) for name in FLOWS} | {
    "order 4": lambda loss, h: modified_flow(loss, h, 4),
    "pf depth 3": lambda loss, h: principal_flow(loss, h, depth=3),
    "pf real": lambda loss, h: principal_flow(loss, h, state="real"),
    "pf continued": lambda loss, h: principal_flow(loss, h, depth=4, branch="continued"),
    "two-frame order 1": lambda loss, h: two_frame_flow(loss, h, order=1),
    "two-frame resummed": lambda loss, h: two_frame_flow(loss, h, order="resummed", depth=4),
}
# Their positions are those of the midpoints of two iterates.
MIDPOINTS = ("rod", "edge")
# Tests of one flow share a process, and what it has compiled there: the integrator for three times.
every_flow = pytest.mark.parametrize(
    "make",
    [
        pytest.param(make, id=name, marks=pytest.mark.xdist_group(f"flow {name}"))
        for name, make in MAKERS.items()
    ],
)
traces = 0


def counted_loss(params):
    """`mixed_loss`, and a count of how often it is traced."""
    global traces
    traces += 1
    return mixed_loss(params)


def change(flow, state, h):
    """How fast the position moves, by the field or by a short step of the flow's own."""
    if isinstance(flow, Flow):
        return flow.position(flow.vector_field(0.0, state))
    moved = flow.step(h / 8, state)
    return jax.tree.map(
        lambda new, old: (new - old) / (h / 8), flow.position(moved), flow.position(state)
    )


def predicted(path):
    """Iterates 0, 1, ... of gradient descent, or of flows in `MIDPOINTS` of what they predict."""
    position = flatten_path(path.params)
    if path.oscillation is None:
        return position
    return position + (-1.0) ** np.arange(len(position))[:, None] * flatten_path(path.oscillation)


def same_shapes(a, b):
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        x.shape == y.shape and x.dtype == y.dtype
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


@every_flow
def test_is_functions_over_any_pytree(make, x64):
    params, h = mixed_params(), 0.1
    flow = make(mixed_loss, h)
    state = flow.init(params)
    if isinstance(flow, Flow):
        assert flow._fields[:3] == ("init", "vector_field", "position")
        assert same_shapes(flow.vector_field(0.0, state), state)
    else:
        assert isinstance(flow, SteppedFlow) and 0 < float(flow.max_step) <= h
        assert same_shapes(flow.step(h / 8, state), state)
    assert same_shapes(flow.position(state), params)
    if flow.oscillation is None:
        np.testing.assert_array_equal(flatten(flow.position(state)), flatten(params))
    else:
        assert same_shapes(flow.oscillation(state), params)
        assert flow.expected_loss(state).shape == ()
    rate = change(flow, state, h)
    assert not any(jnp.iscomplexobj(x) for x in jax.tree.leaves(rate))


@every_flow
def test_tends_to_negative_gradient_flow(make, x64):
    params = mixed_params()
    flow = make(mixed_loss, 1e-7)
    state = flow.init(params)
    start = flow.position(state)
    np.testing.assert_allclose(flatten(start), flatten(params), atol=1e-6)
    np.testing.assert_allclose(
        flatten(change(flow, state, 1e-7)),
        -flatten(jax.grad(mixed_loss)(params)),
        rtol=1e-5,
        atol=1e-6,
    )
    if flow.expected_loss is not None:
        assert float(flow.expected_loss(state)) == pytest.approx(float(mixed_loss(params)))


@every_flow
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_keeps_precision(make, dtype, x64):
    params = mixed_params(dtype)
    h = 0.1
    path = pfcore.integrate(make(counted_loss, h), params, h * np.arange(3), rtol=1e-4)
    assert bool(path.completed)
    told = (path.params, path.oscillation, path.expected_loss)
    assert {x.dtype for x in jax.tree.leaves(told)} == {jnp.dtype(dtype)}


@every_flow
def test_arrays_of_two_precisions_are_followed_in_the_wider(make, x64):
    """The path is that from the same numbers in float64 throughout."""
    wide = mixed_params(jnp.float64)
    wide["w"] = jnp.round(wide["w"], 2).astype(jnp.float32).astype(jnp.float64)
    params = wide | {"w": wide["w"].astype(jnp.float32)}
    found, expected = (pfcore.follow(make(mixed_loss, 0.1), p, 0.1, 3) for p in (params, wide))
    assert bool(found.completed)
    assert {leaf.dtype for leaf in jax.tree.leaves(found.params)} == {jnp.dtype("float64")}
    jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)


@every_flow
@pytest.mark.parametrize("unit", [1e-20, 1e20])
def test_does_not_depend_on_the_unit_of_the_loss(make, unit):
    """In single precision, where the unit squared is out of range: E/unit at unit·h is E at h."""
    start = jnp.array([0.1, 3.8])

    def valley(w):
        return w[1] * w[0] ** 2 / 2 - 0.02 * w[1] + 0.01 * w[0] ** 3

    def moved(unit):
        """Change of the position in a time of h."""
        flow = make(lambda w: unit * valley(w), 0.5 / unit)
        slope = change(flow, flow.init(start), jnp.float32(0.5 / unit))
        return np.asarray(slope.real * jnp.float32(0.5 / unit))

    np.testing.assert_allclose(moved(unit), moved(1.0), rtol=1e-4, atol=1e-7)


@every_flow
def test_ensemble_over_data(make, x64):
    """Losses that close over what is being transformed, from a start that is not."""
    start, data = jnp.array([0.3, -0.2]), jnp.array([[1.0, 2.0], [0.5, 1.0]])

    def end(data):
        def loss(w):
            return jnp.sum(jax.nn.softplus(data.astype(w.dtype) * w)) + 0.1 * jnp.sum(w**2)

        return pfcore.integrate(make(loss, 0.1), start, [0.0, 0.1]).params[-1]

    alone = jnp.stack([end(d) for d in data])
    np.testing.assert_allclose(jax.vmap(end)(data), alone, rtol=1e-6)


@every_flow
def test_computes_in_full_precision(make):
    """Outside `integrate` too: a GPU multiplies matrices in TF32 unless told otherwise."""
    flow = make(lambda w: jnp.sum(1.05 * w**2 - w**4 / 4 + 0.1 * w**3), 0.5)

    def use(params):
        state = flow.init(params)
        read = None if flow.oscillation is None else flow.oscillation(state)
        return flow.position(state), read, change(flow, state, 0.5)

    jaxpr = jax.make_jaxpr(use)(jnp.array([0.15, -0.1])).jaxpr
    products = [e for e in _programs.equations(jaxpr) if e.primitive.name == "dot_general"]
    assert all(e.params["precision"] == (jax.lax.Precision.HIGHEST,) * 2 for e in products)


@every_flow
def test_jit_and_vmap_over_learning_rate_and_start(make, x64):
    starts = jax.tree.map(lambda x: jnp.stack([x, 0.5 * x]), mixed_params())
    rates = jnp.array([0.1, 0.3])

    def end(h, params):
        return pfcore.integrate(make(counted_loss, h), params, h * np.arange(1.0, 4.0)).params

    batched = jax.jit(jax.vmap(end))(rates, starts)
    for i in range(2):
        single = end(float(rates[i]), pfcore.paths.at(starts, i))
        np.testing.assert_allclose(flatten(pfcore.paths.at(batched, i)), flatten(single), rtol=1e-5)


@every_flow
def test_compiles_once_for_learning_rates_and_starts(make, x64):
    def run(h, params):
        pfcore.integrate(make(counted_loss, h), params, h * np.arange(3))
        return traces

    run(0.1, mixed_params())
    before = traces
    run(0.2, jax.tree.map(lambda x: 0.9 * x, mixed_params()))
    # What is traced again are the argument checks (shape, value, analyticity), not the integrator.
    assert traces - before <= 4


@pytest.mark.parametrize(
    ("name", "make"),
    [pytest.param(k, v, marks=pytest.mark.xdist_group(f"flow {k}")) for k, v in MAKERS.items()],
)
def test_one_step_is_closer_than_the_step_is_long(name, make, x64):
    params, h = mixed_params(), 0.2
    path = pfcore.integrate(make(counted_loss, h), params, [0.0, h])
    steps = flatten_path(pfcore.gradient_descent(mixed_loss, params, h, 2))
    if name in MIDPOINTS:
        found, wanted = flatten_path(path.params)[-1], (steps[1] + steps[2]) / 2
    else:
        found, wanted = predicted(path)[-1], steps[1]
    assert np.linalg.norm(found - wanted) < 0.2 * np.linalg.norm(steps[1] - steps[0])


@pytest.mark.parametrize("make", [v for k, v in MAKERS.items() if k != "ngf"])
@pytest.mark.parametrize("h", [0.0, -1.0, float("nan")])
def test_refuses_learning_rate(make, h):
    with pytest.raises(ValueError, match="learning_rate"):
        make(mixed_loss, h)


@every_flow
def test_refuses_wrong_starts(make):
    loss = lambda x: jnp.sum(x**2)  # noqa: E731
    flow = make(loss, 0.1)
    with pytest.raises(TypeError, match="int32"):
        flow.init(jnp.arange(3))
    with pytest.raises(ValueError, match="no numbers"):
        flow.init([])
    with pytest.raises(ValueError, match="nan"):
        flow.init(jnp.array([jnp.nan]))
    with pytest.raises(ValueError, match=r"\(2,\)"):
        make(lambda x: x, 0.1).init(jnp.ones(2))


def test_equal_flows_compare_equal():
    assert principal_flow(mixed_loss, 0.1).vector_field.func == (
        principal_flow(mixed_loss, 0.2).vector_field.func
    )
