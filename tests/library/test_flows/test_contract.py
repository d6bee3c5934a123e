"""One battery over every flow: what a user may rely on, whichever flow it is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pfcore
from pfcore.flows import (
    Flow,
    igr_flow,
    modified_flow,
    negative_gradient_flow,
    principal_flow,
    third_order_flow,
)
from tests.conftest import flatten, mixed_loss, mixed_params

FLOWS = {
    "ngf": lambda loss, h: negative_gradient_flow(loss),
    "igr": igr_flow,
    "third order": third_order_flow,
    "order 4": lambda loss, h: modified_flow(loss, h, 4),
    "pf dense": principal_flow,
    "pf depth 3": lambda loss, h: principal_flow(loss, h, depth=3),
    "pf non-principal": lambda loss, h: principal_flow(loss, h, non_principal=True),
    "pf real": lambda loss, h: principal_flow(loss, h, state="real"),
    "pf continued": lambda loss, h: principal_flow(loss, h, depth=4, branch="continued"),
}
# Tests of one flow share a process, and what it has compiled there: the integrator for three times.
every_flow = pytest.mark.parametrize(
    "make",
    [
        pytest.param(make, id=name, marks=pytest.mark.xdist_group(f"flow {name}"))
        for name, make in FLOWS.items()
    ],
)
traces = 0


def counted_loss(params):
    """`mixed_loss`, and a count of how often it is traced."""
    global traces
    traces += 1
    return mixed_loss(params)


@every_flow
def test_is_three_functions_over_any_pytree(make, x64):
    params = mixed_params()
    flow = make(mixed_loss, 0.1)
    assert isinstance(flow, Flow) and flow._fields[:3] == ("init", "vector_field", "position")
    state = flow.init(params)
    rate = flow.vector_field(0.0, state)
    assert jax.tree.structure(rate) == jax.tree.structure(state)
    assert jax.tree.map(jnp.shape, rate) == jax.tree.map(jnp.shape, state)
    assert jax.tree.map(jnp.result_type, rate) == jax.tree.map(jnp.result_type, state)
    np.testing.assert_array_equal(flatten(flow.position(state)), flatten(params))
    assert not any(jnp.iscomplexobj(x) for x in jax.tree.leaves(flow.position(rate)))


@every_flow
def test_tends_to_negative_gradient_flow(make, x64):
    params = mixed_params()
    flow = make(mixed_loss, 1e-7)
    rate = flow.position(flow.vector_field(0.0, flow.init(params)))
    np.testing.assert_allclose(
        flatten(rate), -flatten(jax.grad(mixed_loss)(params)), rtol=1e-5, atol=1e-6
    )


@every_flow
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_keeps_precision(make, dtype, x64):
    params = mixed_params(dtype)
    h = 0.1
    path = pfcore.integrate(make(counted_loss, h), params, h * np.arange(3), rtol=1e-4)
    assert bool(path.completed)
    assert {x.dtype for x in jax.tree.leaves(path.params)} == {jnp.dtype(dtype)}


@every_flow
def test_jit_and_vmap_over_learning_rate_and_start(make, x64):
    starts = jax.tree.map(lambda x: jnp.stack([x, 0.5 * x]), mixed_params())
    rates = jnp.array([0.1, 0.3])

    def end(h, params):
        return pfcore.integrate(make(counted_loss, h), params, h * np.arange(1.0, 4.0)).params

    batched = jax.jit(jax.vmap(end))(rates, starts)
    for i in range(2):
        single = end(float(rates[i]), jax.tree.map(lambda x, i=i: x[i], starts))
        np.testing.assert_allclose(
            flatten(jax.tree.map(lambda x, i=i: x[i], batched)), flatten(single), rtol=1e-5
        )


@every_flow
def test_compiles_once_for_learning_rates_and_starts(make, x64):
    def run(h, params):
        pfcore.integrate(make(counted_loss, h), params, h * np.arange(3))
        return traces

    run(0.1, mixed_params())
    before = traces
    run(0.2, jax.tree.map(lambda x: 0.9 * x, mixed_params()))
    # What is traced again are the argument checks (shape and analyticity), not the integrator.
    assert traces - before <= 3


@every_flow
def test_one_step_is_closer_than_the_step_is_long(make, x64):
    params, h = mixed_params(), 0.2
    path = pfcore.integrate(make(counted_loss, h), params, [0.0, h / 2, h])
    end = jax.tree.map(lambda x: x[-1], path.params)
    step = pfcore.gradient_descent(mixed_loss, params, h, 1)
    step = jax.tree.map(lambda x: x[1], step)
    moved = np.linalg.norm(flatten(step) - flatten(params))
    assert np.linalg.norm(flatten(end) - flatten(step)) < 0.2 * moved


@pytest.mark.parametrize("make", [v for k, v in FLOWS.items() if k != "ngf"])
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
