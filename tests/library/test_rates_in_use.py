"""Learning rates in use: scaled, in 16 bits, frozen, scheduled, replicated, composed."""

import functools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from pfcore import learning_rates
from tests.conftest import flatten, small_network

METHODS = {
    "dal": learning_rates.dal,
    "difference": lambda *args, **options: learning_rates.dal(
        *args, product="finite_difference", **options
    ),
    "cdat": learning_rates.cdat,
    "sharpness": learning_rates.sharpness_rate,
}
RNG = np.random.default_rng(0)
ROOT = RNG.normal(size=(5, 5))
HESSIAN = ROOT @ ROOT.T / 5
START = RNG.normal(size=5)


@pytest.fixture(params=METHODS, ids=str)
def name(request):
    return request.param


def quadratic(x):
    return 0.5 * x @ jnp.asarray(HESSIAN, x.dtype) @ x


def rate_along(name, hessian, g, u):
    """The expected first rate of each method, unbounded, from dense computations."""
    if name in ("dal", "difference"):
        return 2 / (np.linalg.norm(hessian @ u) / np.linalg.norm(u))
    if name == "cdat":
        return 2 * (g @ u) / abs(u @ hessian @ u)
    return 2 / np.linalg.eigvalsh(hessian)[-1]


def unbounded(name, **options):
    """A method without smoothing or a maximum that matters, its search converged."""
    if name == "cdat":
        return learning_rates.cdat(2.0, 0.0, 1e6, **options)
    if name == "sharpness":
        return learning_rates.sharpness_rate(2.0, 1e6, tolerance=1e-4, max_products=100, **options)
    return METHODS[name](1.0, 1e6, **options)


# ---- scale


@functools.cache
def compiled_rates(name, most):
    """Of the first updates on c times a quadratic, of which three tenths are taken, as c · h."""
    tx = METHODS[name](max_learning_rate=most)

    @jax.jit
    def run(c, start):
        def loss(x):
            return c * quadratic(x)

        params, state, found = start, tx.init(start), []
        for _ in range(3):
            updates, state = tx.update(jax.grad(loss)(params), state, params, loss_fn=loss)
            params = params + jnp.asarray(0.3, start.dtype) * updates
            found.append(state.learning_rate)
        return jnp.stack(found)

    return run


def rates(name, most, c, dtype):
    found = compiled_rates(name, most)(jnp.asarray(c, dtype), jnp.asarray(START, dtype))
    return np.asarray(found, np.float64) * c


@pytest.mark.parametrize("name", METHODS)
@given(exponent=st.floats(-30, 30))
@settings(deadline=None, max_examples=20)
def test_the_scale_of_the_loss_in_single_precision(name, exponent):
    found = rates(name, 3e38, 10.0**exponent, jnp.float32)
    np.testing.assert_allclose(found, rates(name, 3e38, 1.0, jnp.float32), rtol=1e-4)


@pytest.mark.parametrize("exponent", [-300, -160, 160, 300])
def test_the_scale_of_the_loss_in_double_precision(name, exponent, x64):
    found = rates(name, 1e308, 10.0**exponent, jnp.float64)
    np.testing.assert_allclose(found, rates(name, 1e308, 1.0, jnp.float64), rtol=1e-8)


def test_cdat_averages_over_scales():
    """Losses ten powers of ten apart: the averages are those of all, none over- or underflows."""
    tx = learning_rates.scale_by_cdat(2.0, 0.9, 1e38)
    x = jnp.asarray(START, jnp.float32)
    state, slope, bend = tx.init(x), 0.0, 0.0
    for c in (1e20, 1e10, 1.0, 1e10):

        def loss(x, c=c):
            return jnp.float32(c) * quadratic(x)

        _, state = tx.update(jax.grad(loss)(x), state, x, loss_fn=loss)
        g = c * HESSIAN @ START
        slope, bend = 0.9 * slope + 0.1 * g @ g, 0.9 * bend + 0.1 * c * g @ HESSIAN @ g
        unit = 2.0 ** float(state.exponent)
        np.testing.assert_allclose(float(state.slope) * unit, slope, rtol=1e-5)
        np.testing.assert_allclose(float(state.bend) * unit, bend, rtol=1e-5)
        np.testing.assert_allclose(state.learning_rate, 2 * slope / bend, rtol=1e-5)


# ---- 16 bits


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("size", [1.0, 300.0])
def test_16_bits(name, dtype, size):
    """In float16 256² overflows; in bfloat16 a relative step of 1 % is lost."""
    x = jnp.asarray(size * START, dtype)
    g = jax.grad(quadratic)(x)
    tx = unbounded(name)
    updates, state = tx.update(g, tx.init(x), x, loss_fn=quadratic)
    hessian = np.asarray(jnp.asarray(HESSIAN, jnp.float32), np.float64)
    at, u = np.asarray(x, np.float64), np.asarray(g, np.float64)
    expected = rate_along(name, hessian, hessian @ at, u)
    tolerance = 1e-2 if name == "difference" else 1e-3
    np.testing.assert_allclose(state.learning_rate, expected, rtol=tolerance)
    assert state.learning_rate.dtype == jnp.float32 and updates.dtype == dtype
    np.testing.assert_allclose(
        np.asarray(updates, np.float64),
        -float(state.learning_rate) * u,
        rtol=float(jnp.finfo(dtype).eps),
    )
    assert all(a.dtype == b.dtype for a, b in zip(tx.init(x), state, strict=True))


def test_the_error_for_a_loss_without_float32_is_clear(name):
    data = jnp.ones(5, jnp.bfloat16)
    loss = lambda x: jnp.sum(jax.lax.mul(x, data))  # noqa: E731
    x, tx = jnp.ones(5, jnp.bfloat16), METHODS[name]()
    with pytest.raises(TypeError, match=r"cast to float32.*casting its data"):
        tx.update(jax.grad(loss)(x), tx.init(x), x, loss_fn=loss)


# ---- updates that are not the gradient


class Direction:
    """The updates that a rate received."""

    def __init__(self, scaling):
        self.scaling, self.seen = scaling, []

    def transformation(self):
        def update(updates, state, params=None, **extra):
            self.seen.append(updates)
            return self.scaling.update(updates, state, params, **extra)

        return optax.GradientTransformationExtraArgs(self.scaling.init, update)


@pytest.mark.parametrize(
    "before",
    [
        lambda tx: optax.chain(optax.clip(0.01), tx),
        lambda tx: optax.chain(optax.trace(0.9), tx),
        lambda tx: optax.chain(optax.scale_by_adam(), tx),
    ],
    ids=["clipping", "momentum", "adam"],
)
def test_after_other_transformations(name, before, x64):
    loss, params = small_network()
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    spy = Direction(unbounded(name))
    tx = before(spy.transformation())
    state = tx.init(params)
    with jax.numpy_dtype_promotion("standard"):  # Optax's Adam divides by integers
        for factor in (1.0, -0.5):
            grads = jax.tree.map(lambda g, f=factor: f * g, jax.grad(loss)(params))
            _, state = tx.update(grads, state, params, loss_fn=loss)
    hessian = np.asarray(jax.hessian(lambda v: loss(unravel(v)))(flat))
    u = flatten(spy.seen[-1])
    expected = max(0, rate_along(name, hessian, flatten(jax.grad(loss)(params)), u))
    tolerance = {"difference": 5e-3, "sharpness": 1e-5}.get(name, 1e-8)
    np.testing.assert_allclose(state[1].learning_rate, expected, rtol=tolerance)


def test_difference_under_accumulation():
    """Each update of MultiSteps sees the mean gradient and the loss of the last microbatch."""
    x = jnp.asarray(START, jnp.float32)
    tx = optax.MultiSteps(METHODS["difference"](), 3)
    state = tx.init(x)
    factors = [3.0, 2.0, 1.0]
    with jax.numpy_dtype_promotion("standard"):
        for factor in factors:

            def loss(x, c=factor):
                return c * quadratic(x)

            _, state = tx.update(jax.grad(loss)(x), state, x, loss_fn=loss)
    expected = rate_along("dal", factors[-1] * HESSIAN, None, HESSIAN @ START)
    np.testing.assert_allclose(state.inner_opt_state.learning_rate, expected, rtol=1e-3)


def test_a_difference_costs_one_gradient_in_a_compiled_step():
    loss, params = small_network(dtype=jnp.float32)
    tx = METHODS["difference"]()

    def flops(function, *args):
        return jax.jit(function).lower(*args).compile().cost_analysis()["flops"]

    def step(params, state):
        return tx.update(jax.grad(loss)(params), state, params, loss_fn=loss)

    one = flops(jax.grad(loss), params)
    assert flops(step, params, tx.init(params)) < 2.5 * one


def test_difference_step_is_larger_than_machine_epsilon():
    """Parameters of 10⁶, where single precision does not resolve 0.01."""
    x = jnp.asarray(1e6 * START, jnp.float32)
    _, state = METHODS["difference"]().update(
        jax.grad(quadratic)(x), METHODS["difference"]().init(x), x, loss_fn=quadratic
    )
    expected = rate_along("dal", HESSIAN, None, HESSIAN @ START)
    np.testing.assert_allclose(state.learning_rate, expected, rtol=1e-2)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_a_difference_where_the_loss_computes_in_16_bits(dtype):
    """Its step is not lost in the rounding of the loss, whose parameters are in float32."""
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (64, 20))
    params = [jax.random.normal(keys[1], (20, 32)) / 4, jax.random.normal(keys[2], (32, 5)) / 6]

    def loss(params):
        first, second = (p.astype(dtype) for p in params)
        outputs = (jnp.tanh(x.astype(dtype) @ first) @ second).astype(jnp.float32)
        return jnp.mean((outputs - x[:, :5]) ** 2)

    def curvature(product):
        rate = learning_rates.dal(product=product)
        _, state = rate.update(jax.grad(loss)(params), rate.init(params), params, loss_fn=loss)
        return float(optax.tree.get(state, "curvature"))

    assert curvature("finite_difference") == pytest.approx(curvature("exact"), rel=0.05)


# ---- losses with a rule for reverse mode only


@jax.custom_vjp
def square(x):
    return x**2


# A common form: the rule calls the function, which forward mode does not support.
square.defvjp(lambda x: (square(x), x), lambda x, g: (2 * x * g,))


def test_a_loss_without_forward_mode(name):
    """A finite difference needs only gradients, a product is reverse over reverse."""
    loss = lambda x: jnp.sum(square(jnp.asarray(HESSIAN, x.dtype) @ x))  # noqa: E731
    x = jnp.asarray(START, jnp.float32)
    tx = unbounded(name)
    _, state = tx.update(jax.grad(loss)(x), tx.init(x), x, loss_fn=loss)
    hessian = 2 * HESSIAN @ HESSIAN
    expected = rate_along(name, hessian, hessian @ START, hessian @ START)
    np.testing.assert_allclose(state.learning_rate, expected, rtol=1e-3)


@jax.custom_vjp
def opaque(x):
    return jnp.sum(x**3)


@jax.custom_vjp
def opaque_derivative(x):
    return 3 * x**2


def _refused(*args):
    raise TypeError("can't apply forward-mode differentiation (jvp) to a custom_vjp function.")


opaque.defvjp(lambda x: (opaque(x), x), lambda x, g: (g * opaque_derivative(x),))
opaque_derivative.defvjp(_refused, _refused)


@pytest.mark.parametrize("name", ["dal", "cdat"])
def test_the_error_for_a_missing_second_derivative_suggests_a_fix(name):
    x, tx = jnp.ones(3), METHODS[name]()
    with pytest.raises(TypeError, match=r"dal\(product='finite_difference'\)"):
        tx.update(jax.grad(opaque)(x), tx.init(x), x, loss_fn=opaque)


# ---- frozen layers


def layered(p):
    head, body = p["head"], p["body"]
    coupling = 3 * jnp.sum(head) * jnp.sum(body["w"]) * body["b"]
    return jnp.sum((head * jnp.arange(1.0, 4.0) - 1) ** 4) + jnp.sum(body["w"] ** 4) + coupling


LAYERS = {"head": 0.5 * jnp.ones(3), "body": {"w": jnp.full(2, 0.3), "b": jnp.asarray(0.7)}}
LABELS = {"head": "train", "body": "freeze"}
FREEZING = {
    "partition": lambda tx: optax.partition({"train": tx, "freeze": optax.set_to_zero()}, LABELS),
    "partition by function": lambda tx: optax.partition(
        {"train": tx, "freeze": optax.set_to_zero()},
        lambda p: {key: LABELS[key] for key in p},
    ),
    "masked": lambda tx: optax.masked(tx, {"head": True, "body": {"w": False, "b": False}}),
    "selective_transform": lambda tx: optax.selective_transform(
        tx, freeze_mask={"head": False, "body": True}
    ),
    "chain": lambda tx: optax.chain(
        optax.masked(optax.chain(optax.trace(0.9), tx), {"head": True, "body": False}),
        optax.masked(optax.set_to_zero(), {"head": False, "body": True}),
    ),
}


def head_alone():
    hessian = np.asarray(jax.hessian(lambda a: layered({**LAYERS, "head": a}))(LAYERS["head"]))
    return hessian, np.asarray(jax.grad(layered)(LAYERS)["head"])


@pytest.mark.parametrize("freeze", FREEZING, ids=str)
def test_frozen_layers(name, freeze):
    hessian, g = head_alone()
    tx = FREEZING[freeze](unbounded(name))
    step = jax.jit(
        lambda p, s: tx.update(jax.grad(layered)(p), s, p, loss_fn=layered, full_params=p)
    )
    updates, _ = step(LAYERS, tx.init(LAYERS))
    expected = -rate_along(name, hessian, g, g) * g
    tolerance = 0.1 if name == "difference" else 1e-4  # its step is large for a quartic
    np.testing.assert_allclose(updates["head"], expected, rtol=tolerance)
    if freeze != "masked":  # which passes on the gradients of untrained parameters
        assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(updates["body"]))


def test_groups_with_separate_rates():
    groups = {"train": unbounded("dal"), "freeze": unbounded("cdat")}
    tx = optax.partition(groups, LABELS)
    updates, _ = tx.update(
        jax.grad(layered)(LAYERS), tx.init(LAYERS), LAYERS, loss_fn=layered, full_params=LAYERS
    )
    hessian, g = head_alone()
    np.testing.assert_allclose(updates["head"], -rate_along("dal", hessian, g, g) * g, rtol=1e-4)
    flat, unravel = jax.flatten_util.ravel_pytree(LAYERS["body"])
    body = lambda v: layered({**LAYERS, "body": unravel(v)})  # noqa: E731
    g, hessian = np.asarray(jax.grad(body)(flat)), np.asarray(jax.hessian(body)(flat))
    expected = -rate_along("cdat", hessian, g, g) * g
    np.testing.assert_allclose(flatten(updates["body"]), expected, rtol=1e-4)


def test_frozen_in_16_bits_and_integers():
    """A frozen table of integers, and a frozen body in bfloat16, as the loss wants them."""

    def loss(p):
        rows = p["table"].astype(p["head"].dtype)
        return jnp.sum((p["head"] * rows) ** 2) + jnp.sum(p["head"]) * p["body"].astype(
            p["head"].dtype
        )

    params = {
        "head": jnp.ones(3),
        "table": jnp.arange(3, dtype=jnp.int32),
        "body": jnp.asarray(0.5, jnp.bfloat16),
    }
    tx = optax.masked(unbounded("dal"), {"head": True, "table": False, "body": False})
    g = {"head": jax.grad(lambda h: loss({**params, "head": h}))(params["head"])}
    g = {**params, **g}
    updates, _ = tx.update(g, tx.init(params), params, loss_fn=loss, full_params=params)
    hessian, u = np.diag([0.0, 2.0, 8.0]), np.array([0.5, 2.5, 8.5])
    np.testing.assert_allclose(updates["head"], -rate_along("dal", hessian, u, u) * u, rtol=1e-5)


def test_the_error_for_frozen_layers_names_full_params(name):
    tx = FREEZING["partition"](METHODS[name]())
    grads, state = jax.grad(layered)(LAYERS), tx.init(LAYERS)
    with pytest.raises(ValueError, match=r"frozen.*\['body'\].*full_params=params"):
        tx.update(grads, state, LAYERS, loss_fn=layered)
    with pytest.raises(ValueError, match="full_params must have the structure"):
        tx.update(grads, state, LAYERS, loss_fn=layered, full_params={"head": LAYERS["head"]})
    tx = optax.masked(
        METHODS[name](), {"head": True, "body": False}, mask_compatible_extra_args=True
    )
    with pytest.raises(ValueError, match=r"full_params\['body'\] is masked"):
        tx.update(grads, tx.init(LAYERS), LAYERS, loss_fn=layered, full_params=LAYERS)


def test_frozen_layers_with_flax():
    class Model(nnx.Module):
        def __init__(self):
            self.body = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
            self.head = nnx.Linear(4, 1, rngs=nnx.Rngs(1))

        def __call__(self, x):
            return self.head(jnp.tanh(self.body(x)))

    model = Model()
    x, y = jax.random.normal(jax.random.key(0), (8, 3)), jnp.zeros((8, 1))
    graph, params = nnx.split(model, nnx.Param)

    def loss(params):
        return jnp.mean((nnx.merge(graph, params)(x) - y) ** 2)

    def labels(params):
        return jax.tree_util.tree_map_with_path(
            lambda path, _: "freeze" if "body" in jax.tree_util.keystr(path) else "train", params
        )

    rules = {"train": learning_rates.dal(max_learning_rate=0.2), "freeze": optax.set_to_zero()}
    optimizer = nnx.Optimizer(model, optax.partition(rules, labels), wrt=nnx.Param)
    before, body = loss(params), np.asarray(model.body.kernel[...])
    for _ in range(20):
        params = nnx.state(model, nnx.Param)
        optimizer.update(model, jax.grad(loss)(params), loss_fn=loss, full_params=params)
    assert loss(nnx.state(model, nnx.Param)) < 0.5 * before
    np.testing.assert_array_equal(model.body.kernel[...], body)


def test_the_page_on_frozen_layers():
    """Its example runs, and takes the step of the head's own block."""
    page = Path(__file__).resolve().parents[2] / "book" / "your_framework.md"
    shared, *_ = blocks = re.findall(
        r"^```python\n(.*?)^```$", page.read_text(encoding="utf-8"), re.M | re.S
    )
    (example,) = [block for block in blocks if "full_params" in block]
    names = {}
    with jax.numpy_dtype_promotion("standard"):
        exec(shared + example, names)
        params, loss = names["params"], names["loss"]
        stepped, _ = names["step"](params, names["state"])
        head = lambda v: loss({**params, "head": v.reshape(8, 2)})  # noqa: E731
        flat = params["head"].ravel()
        g, hessian = np.asarray(jax.grad(head)(flat)), np.asarray(jax.hessian(head)(flat))
    np.testing.assert_array_equal(stepped["body"], params["body"])
    expected = min(5.0, rate_along("dal", hessian, g, g))
    np.testing.assert_allclose(stepped["head"].ravel(), flat - expected * g, rtol=1e-4, atol=1e-6)
    assert expected < 5.0


# ---- empty groups, plain numbers


@pytest.mark.parametrize("make", [lambda: {}, lambda: {"w": jnp.zeros((0, 3))}], ids=["{}", "0"])
def test_empty_parameters(name, make):
    tx, params = METHODS[name](), make()
    updates, state = tx.update(params, tx.init(params), params)
    assert jax.tree.structure(updates) == jax.tree.structure(params)
    assert state.num_updates == 1 and np.isfinite(state.learning_rate)


def test_an_empty_group(name):
    tx = optax.partition({"used": optax.sgd(0.1), "unused": METHODS[name]()}, {"w": "used"})
    params = {"w": jnp.ones(2)}
    updates, _ = jax.jit(tx.update)(params, tx.init(params), params)
    np.testing.assert_allclose(updates["w"], -0.1, rtol=1e-6)


def test_plain_numbers(name):
    tx, params = METHODS[name](), {"w": 1.0}
    loss = lambda p: 4.0 * p["w"] ** 2  # noqa: E731
    updates, state = tx.update(jax.grad(loss)(params), tx.init(params), params, loss_fn=loss)
    np.testing.assert_allclose(state.learning_rate, 0.25, rtol=1e-3)
    np.testing.assert_allclose(updates["w"], -2.0, rtol=1e-3)


def test_integers_are_rejected(name):
    with pytest.raises(TypeError, match=r"params\['w'\] has dtype int32"):
        METHODS[name]().init({"w": jnp.arange(3, dtype=jnp.int32)})


@pytest.mark.parametrize(
    "spoilt, error, message",
    [
        (lambda g: {**g, "head": g["head"][None]}, ValueError, r"\['head'\] has shape \(1, 3\)"),
        (lambda g: {"tail": g["head"], "body": g["body"]}, ValueError, r"\['head'\] is missing"),
        (lambda g: jax.flatten_util.ravel_pytree(g)[0], ValueError, "is missing"),
        (
            lambda g: {**g, "head": g["head"].astype(complex)},
            TypeError,
            r"\['head'\] has dtype complex64",
        ),
    ],
    ids=["reshaped", "renamed", "flat", "complex"],
)
def test_updates_unlike_the_params_are_rejected(name, spoilt, error, message):
    tx, updates = METHODS[name](), spoilt(jax.grad(layered)(LAYERS))
    with pytest.raises(error, match=message):
        tx.update(updates, tx.init(LAYERS), LAYERS, loss_fn=layered)


# ---- options that change in training


FACTORIES = {
    "dal": learning_rates.dal,
    "scale_by_dal": learning_rates.scale_by_dal,
    "cdat": learning_rates.cdat,
    "scale_by_cdat": learning_rates.scale_by_cdat,
    "sharpness_rate": learning_rates.sharpness_rate,
    "scale_by_sharpness": learning_rates.scale_by_sharpness,
}


@pytest.mark.parametrize("factory", FACTORIES)
def test_injected_hyperparameters(factory):
    """Every number is then traced, including counts."""
    tx = optax.inject_hyperparams(FACTORIES[factory])(
        max_learning_rate=optax.linear_schedule(0.01, 0.03, 2)
    )
    x = jnp.asarray(START, jnp.float32)
    step = jax.jit(lambda p, s: tx.update(jax.grad(quadratic)(p), s, p, loss_fn=quadratic))
    state = tx.init(x)
    for expected in (0.01, 0.02, 0.03):
        _, state = step(x, state)
        np.testing.assert_allclose(state.inner_state.learning_rate, expected, rtol=1e-6)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("factory", ["dal", "sharpness_rate"])
def test_an_injected_count(factory, compiled, x64):
    tx = optax.inject_hyperparams(FACTORIES[factory])(refresh_every=3)

    def step(x, state, c):
        loss = lambda x: c * quadratic(x)  # noqa: E731
        return tx.update(jax.grad(loss)(x), state, x, loss_fn=loss)

    step = jax.jit(step) if compiled else step
    x = jnp.asarray(START)
    state, seen = tx.init(x), []
    for c in (1.0, 2.0, 3.0, 4.0):
        _, state = step(x, state, jnp.asarray(c))
        seen.append(float(state.inner_state.curvature))
    np.testing.assert_allclose(np.array(seen) / seen[0], [1, 1, 1, 4], rtol=1e-2)
    state.hyperparams["refresh_every"] = jnp.asarray(1)
    _, state = step(x, state, jnp.asarray(5.0))
    np.testing.assert_allclose(state.inner_state.curvature / seen[0], 5, rtol=1e-2)


def test_a_non_integer_count_is_rejected():
    tx = optax.inject_hyperparams(learning_rates.dal)(refresh_every=optax.linear_schedule(1, 9, 9))
    x = jnp.asarray(START, jnp.float32)
    with pytest.raises(TypeError, match="refresh_every must be an integer"):
        jax.jit(lambda x: tx.update(x, tx.init(x), x, loss_fn=quadratic))(x)


# ---- without jit


def test_nothing_is_recompiled_without_jit(caplog):
    tx = {
        "dal": learning_rates.dal(),
        "every third": learning_rates.dal(refresh_every=3),
        "difference": METHODS["difference"](),
        "cdat": learning_rates.cdat(),
        "16 bits": learning_rates.dal(),
    }
    for name, method in tx.items():
        dtype = jnp.bfloat16 if name == "16 bits" else jnp.float32
        x = jnp.asarray(START, dtype)
        state = method.init(x)
        for i in range(6):
            c = jnp.asarray(i + 1.0, dtype)

            def loss(p, c=c):
                # With control flow, which JAX compiles wherever it is evaluated.
                parts = jax.lax.scan(lambda s, y: (s + y**2, None), jnp.zeros((), p.dtype), p)
                return c.astype(p.dtype) * parts[0]

            if i == 3:
                caplog.clear()
            g = jax.grad(loss)(x)
            with jax.log_compiles():
                _, state = method.update(g, state, x, loss_fn=loss)
        found = [r.getMessage() for r in caplog.records if "XLA compilation" in r.getMessage()]
        assert not found, (name, found)


@pytest.mark.parametrize("name", METHODS)
def test_states_can_be_donated(name):
    tx, x = METHODS[name](), jnp.asarray(START, jnp.float32)

    def step(x, state):
        updates, state = tx.update(jax.grad(quadratic)(x), state, x, loss_fn=quadratic)
        return optax.apply_updates(x, updates), state

    kept, donated = jax.jit(step), jax.jit(step, donate_argnums=(0, 1))
    expected, state = x, tx.init(x)
    found = x.copy(), tx.init(x)
    for _ in range(3):
        expected, state = kept(expected, state)
        found = donated(*found)
    np.testing.assert_array_equal(found[0], expected)


def test_small_gradients_in_two_precisions(x64):
    """Whose norm is in the range of the wider one alone."""
    params = {"a": jnp.asarray(1e-39), "b": jnp.zeros(2, jnp.float32)}

    def loss(p):
        return 4 * p["a"] ** 2 + jnp.sum(p["b"]).astype(float) ** 2

    for name in METHODS:
        tx = METHODS[name]()
        _, state = tx.update(jax.grad(loss)(params), tx.init(params), params, loss_fn=loss)
        state = state if hasattr(state, "learning_rate") else state[0]
        assert float(state.learning_rate) > 0, name


def test_numbers_are_checked_within_compiled_functions():
    def init(x):
        return learning_rates.dal(max_learning_rate=-1.0).init(x)

    with pytest.raises(ValueError, match=r"max_learning_rate must be positive .*-1\.0"):
        jax.jit(init)(jnp.ones(2))


def test_skipped_steps_evaluate_nothing():
    evaluations = 0

    def loss(x):
        nonlocal evaluations
        evaluations += 1
        return quadratic(x)

    for method in (learning_rates.dal, learning_rates.sharpness_rate):
        tx, x = method(refresh_every=4), jnp.asarray(START, jnp.float32)
        g, state, counts = jax.grad(quadratic)(x), tx.init(x), []
        for _ in range(5):
            before = evaluations
            _, state = tx.update(g, state, x, loss_fn=loss)
            counts.append(evaluations - before)
        assert counts[0] > 0 and counts[1:4] == [0, 0, 0]


# ---- batches that are not finite


def test_the_update_after_a_bad_batch_measures_again(name):
    if name == "cdat":
        pytest.skip("measures at every update")
    tx, x = METHODS[name](refresh_every=10), jnp.asarray(START, jnp.float32)
    step = jax.jit(
        lambda s, c: tx.update(
            jax.grad(lambda x: c * quadratic(x))(x), s, x, loss_fn=lambda x: c * quadratic(x)
        )
    )
    _, state = step(tx.init(x), jnp.float32(np.nan))
    assert state.learning_rate == 0
    _, state = step(state, jnp.float32(1.0))
    assert state.learning_rate > 0


@pytest.mark.parametrize(
    "guard, bad",
    [
        (lambda tx: optax.apply_if_finite(tx, 5), np.nan),
        (lambda tx: optax.apply_if_finite(tx, 5), np.inf),
        (lambda tx: optax.chain(optax.zero_nans(), tx), np.nan),
    ],
)
def test_momentum_before_a_rate_recovers_from_a_bad_batch(name, guard, bad):
    scaling = {
        "cdat": learning_rates.scale_by_cdat,
        "sharpness": learning_rates.scale_by_sharpness,
        "dal": learning_rates.scale_by_dal,
        "difference": lambda: learning_rates.scale_by_dal(product="finite_difference"),
    }[name]()
    tx = guard(optax.chain(optax.trace(0.5), scaling, optax.scale(-0.3)))

    @jax.jit
    def step(x, state, c):
        loss = lambda x: c * quadratic(x)  # noqa: E731
        updates, state = tx.update(jax.grad(loss)(x), state, x, loss_fn=loss)
        return optax.apply_updates(x, updates), state

    x = jnp.asarray(START, jnp.float32)
    state = tx.init(x)
    for c in (1.0, bad, *[1.0] * 30):
        x, state = step(x, state, jnp.float32(c))
    assert quadratic(x) < 0.2 * quadratic(jnp.asarray(START, jnp.float32))


# ---- replicas

INPUTS = np.asarray(3 * RNG.normal(size=(2, 20, 5)), np.float32)


def share(x, inputs):
    return 0.5 * jnp.mean((inputs @ x - 1) ** 2)


@pytest.mark.parametrize("how", ["the loss averages", "named"])
def test_replicas_choose_the_rate_of_the_whole_batch(name, how):
    """jax.vmap on one device behaves as jax.pmap on several."""
    tx = unbounded(name, **({"axis_name": "i"} if how == "named" else {}))
    x = jnp.asarray(START, jnp.float32)

    def whole(x):
        return (share(x, INPUTS[0]) + share(x, INPUTS[1])) / 2

    def step(inputs):
        loss = lambda x: share(x, inputs)  # noqa: E731
        g = jax.lax.pmean(jax.grad(loss)(x), "i")
        mean = lambda x: jax.lax.pmean(loss(x), "i")  # noqa: E731
        of_step = mean if how == "the loss averages" else loss
        return tx.update(g, tx.init(x), x, loss_fn=of_step)[1].learning_rate

    found = jax.jit(jax.vmap(step, axis_name="i"))(INPUTS)
    hessian, g = np.asarray(jax.hessian(whole)(x)), np.asarray(jax.grad(whole)(x))
    tolerance = 1e-2 if name == "difference" else 1e-4
    np.testing.assert_allclose(found, rate_along(name, hessian, g, g), rtol=tolerance)
    assert found[0] == found[1]


def in_a_scan(mean):
    return lambda x: jax.lax.scan(lambda carry, _: (mean(x), None), jnp.zeros(()), length=2)[0]


@pytest.mark.parametrize(
    "within",
    [in_a_scan, jax.checkpoint, jax.jit, lambda f: lambda x: jax.lax.cond(x[0] < 9, f, f, x)],
    ids=["scan", "checkpoint", "jit", "cond"],
)
def test_a_mean_over_replicas_is_detected(within):
    tx, x = unbounded("dal"), jnp.asarray(START, jnp.float32)

    def step(inputs):
        mean = within(lambda x: jax.lax.pmean(share(x, inputs), "i"))
        g = jax.lax.pmean(jax.grad(mean)(x), "i")
        return tx.update(g, tx.init(x), x, loss_fn=mean)[1].learning_rate

    found = jax.jit(jax.vmap(step, axis_name="i"))(INPUTS)
    assert found[0] == found[1]


def test_axes_inside_the_loss_are_ignored():
    """A shard_map within the loss has its own axis; () ignores all axes."""
    x = jnp.asarray(START, jnp.float32)
    mesh = jax.make_mesh((1,), ("i",), axis_types=(jax.sharding.AxisType.Auto,))
    within = jax.shard_map(
        lambda x, y: jax.lax.pmean(share(x, y[0]), "i"),
        mesh=mesh,
        in_specs=(jax.P(), jax.P("i")),
        out_specs=jax.P(),
        check_vma=False,
    )
    loss = lambda x: within(x, INPUTS[:1])  # noqa: E731
    tx = unbounded("dal")
    update = jax.jit(lambda x: tx.update(jax.grad(loss)(x), tx.init(x), x, loss_fn=loss)[1])
    plain = lambda x: share(x, INPUTS[0])  # noqa: E731
    g, hessian = np.asarray(jax.grad(plain)(x)), np.asarray(jax.hessian(plain)(x))
    expected = rate_along("dal", hessian, g, g)
    np.testing.assert_allclose(update(x).learning_rate, expected, rtol=1e-4)

    def step(inputs):
        mean = lambda x: jax.lax.pmean(share(x, inputs), "i")  # noqa: E731
        tx = unbounded("dal", axis_name=())
        return tx.update(jax.grad(mean)(x), tx.init(x), x, loss_fn=mean)[1].learning_rate

    found = jax.jit(jax.vmap(step, axis_name="i"))(INPUTS)
    np.testing.assert_allclose(found[0], expected, rtol=1e-4)


def test_replicas_without_a_mean_have_separate_rates(name):
    """An axis that the loss does not sum over is ignored."""
    tx, x = unbounded(name), jnp.asarray(START, jnp.float32)

    def step(inputs):
        loss = lambda x: share(x, inputs)  # noqa: E731
        return tx.update(jax.grad(loss)(x), tx.init(x), x, loss_fn=loss)[1].learning_rate

    found = jax.jit(jax.vmap(step, axis_name="i"))(INPUTS)
    apart = [step(inputs) for inputs in INPUTS]
    np.testing.assert_allclose(found, apart, rtol=1e-3)
    assert abs(apart[0] / apart[1] - 1) > 1e-2


# ---- strict settings


@pytest.mark.parametrize(
    "strictly",
    [
        lambda: jax.numpy_rank_promotion("raise"),
        lambda: jax.debug_nans(True),
        lambda: jax.debug_infs(True),
        lambda: jax.numpy_dtype_promotion("strict"),
    ],
    ids=["ranks", "NaN", "infinity", "dtypes"],
)
@pytest.mark.parametrize("flat", [False, True], ids=["curved", "flat"])
def test_strict_settings(name, strictly, flat):
    x = {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}
    curvature = jnp.asarray([1.0, 2.0, 5.0])

    def loss(p):
        if flat:
            return jnp.sum(p["w"]) * 0
        return 0.5 * (jnp.sum(curvature[None] * p["w"] ** 2) + jnp.sum(curvature * p["b"] ** 2))

    tx = METHODS[name](max_learning_rate=3.0)
    with strictly():
        updates, state = tx.update(jax.grad(loss)(x), tx.init(x), x, loss_fn=loss)
    assert np.isfinite(state.learning_rate) and np.all(np.isfinite(flatten(updates)))


# ---- a direction that becomes sharper


@pytest.mark.parametrize(
    "rising, delay",
    [
        (lambda t: 0.5 + 2.5 * t, 0),  # gradually, detected as it overtakes
        (
            lambda t: jnp.where(t > 0.5, 3.0, -0.3),
            12,
        ),  # from the other end, in one step
    ],
    ids=["gradually", "at once"],
)
def test_sharpness_detects_an_overtaking_eigenvalue(rising, delay):
    """100 steps, in which one eigenvalue overtakes the one being followed."""
    n, rng = 60, np.random.default_rng(0)
    turn = jnp.asarray(np.linalg.qr(rng.normal(size=(n, n)))[0], jnp.float32)
    bulk = jnp.asarray(rng.uniform(-0.3, 0.5, n), jnp.float32)
    tx, params = learning_rates.sharpness_rate(), jnp.zeros(n)

    def eigenvalues(t):
        return bulk.at[0].set(2.0).at[1].set(rising(t))

    def step(state, t):
        def loss(p):
            return jnp.sum(eigenvalues(t) * (turn.T @ p) ** 2) / 2

        _, state = tx.update(jnp.ones(n), state, params, loss_fn=loss)
        return state, (state.curvature, state.num_products)

    times = jnp.linspace(0.0, 1.0, 100)
    _, (found, products) = jax.jit(lambda s: jax.lax.scan(step, s, times))(tx.init(params))
    true = np.array([float(jnp.max(eigenvalues(t))) for t in times])
    assert np.sum(np.abs(np.asarray(found) / true - 1) > 0.011) <= delay
    assert np.mean(products) < 3


# ---- a loss that changes from one evaluation to the next


class FromNumPy:
    """Masks of NumPy's generator."""

    def __init__(self):
        self.generator = np.random.default_rng(0)

    def __call__(self):
        return self.generator.integers(0, 2, 5).astype(np.float32)


class FromKeys:
    """Masks of a key that is split at every call, as by Haiku's `PRNGSequence`."""

    def __init__(self):
        self.key = jax.random.key(0)

    def __call__(self):
        with jax.ensure_compile_time_eval():
            self.key, now = jax.random.split(self.key)
        return jax.random.bernoulli(now, 0.5, (5,)).astype(np.float32)


class FromPython:
    """A scalar that Python draws."""

    def __init__(self):
        self.drawn = 0.0

    def __call__(self):
        self.drawn += 1.0
        return self.drawn


@pytest.mark.parametrize("draw", [FromNumPy, FromKeys, FromPython])
def test_a_loss_that_draws_random_numbers_at_each_call_is_refused(name, draw):
    """Compiled, it would be one mask for ever, and another one for the Hessian product."""
    mask, start = draw(), jnp.asarray(START, np.float32)
    tx = METHODS[name]()

    def loss(x):
        return quadratic(x * mask())

    update = jax.jit(lambda g, state, x: tx.update(g, state, x, loss_fn=loss))
    with pytest.raises(ValueError, match="two evaluations of loss_fn in one update differ"):
        update(start, tx.init(start), start)


def test_a_loss_that_is_given_the_key_of_the_update_is_accepted(name):
    start, key = jnp.asarray(START, np.float32), jax.random.key(1)
    tx = METHODS[name]()

    @jax.jit
    def step(state, x, key):
        def loss(x):
            mask = jax.random.bernoulli(key, 0.5, (5,)).astype(x.dtype)
            return quadratic(x * mask)

        return tx.update(jax.grad(loss)(x), state, x, loss_fn=loss)

    step(tx.init(start), start, key)
