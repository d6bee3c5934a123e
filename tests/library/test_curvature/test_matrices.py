"""Every curvature against dense matrices in double precision, on every kind of network."""

import functools
import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree

from pfcore import curvature
from pfcore.curvature.products import Hessian, Traced
from tests.library.test_curvature.test_trust import answers, turned

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
SAMPLES, CLASSES = 6, 3


# ---- networks, losses, and their matrices


def linear(fan_in, fan_out, rngs):
    return nnx.Linear(fan_in, fan_out, param_dtype=np.float64, rngs=rngs)


class Attention(nnx.Module):
    """A class at each position of a sequence. Flax's own takes its softmax in single precision."""

    def __init__(self, rngs):
        self.queries, self.keys, self.values = (linear(3, 3, rngs) for _ in range(3))
        self.last = linear(3, CLASSES, rngs)

    def __call__(self, x):
        scores = jnp.einsum("nsi,nti->nst", self.queries(x), self.keys(x))
        return self.last(x + jax.nn.softmax(scores / 3**0.5) @ self.values(x))


class Recurrent(nnx.Module):
    def __init__(self, rngs):
        self.cells = nnx.RNN(nnx.LSTMCell(2, 2, param_dtype=np.float64, rngs=rngs))
        self.last = linear(2, CLASSES, rngs)

    def __call__(self, x):
        return self.last(self.cells(x)[:, -1])


class Convolutional(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Conv(1, 2, (3, 3), param_dtype=np.float64, rngs=rngs)
        self.last = linear(2, CLASSES, rngs)

    def __call__(self, x):
        return self.last(jax.nn.softplus(self.first(x)).mean((1, 2)))


def multilayer(rngs):
    return nnx.Sequential(linear(2, 4, rngs), jnp.tanh, linear(4, CLASSES, rngs))


def normalised(rngs):
    norm = nnx.BatchNorm(4, param_dtype=np.float64, rngs=rngs)
    model = nnx.Sequential(linear(2, 4, rngs), norm, jnp.tanh, linear(4, CLASSES, rngs))
    # As after training: not 0 and 1.
    norm.mean[...] = jnp.asarray(RNG.normal(size=4), norm.mean.dtype)
    norm.var[...] = jnp.asarray(RNG.uniform(0.5, 2, size=4), norm.var.dtype)
    model.eval()
    return model


NETWORKS = {
    "MLP": (multilayer, (2,)),
    "BatchNorm in evaluation": (normalised, (2,)),
    "convolution": (Convolutional, (4, 4, 1)),
    "attention": (Attention, (2, 3)),
    "LSTM": (Recurrent, (3, 2)),
}


def mean_squared_error(outputs, targets):
    return 0.5 * jnp.mean(jnp.sum((outputs - targets) ** 2, axis=-1))


def cross_entropy(outputs, targets):
    return -jnp.mean(jnp.sum(targets * jax.nn.log_softmax(outputs), axis=-1))


def log_cosh(outputs, targets):
    """A loss that is neither, summed and not averaged."""
    return jnp.sum(jnp.log(jnp.cosh(outputs - targets)))


LOSSES = {"mse": mean_squared_error, "cross_entropy": cross_entropy, "log cosh": log_cosh}


@functools.cache
def network(name):
    """(predict, flat parameters, targets), with what does not depend on the loss: J, [N k, P]."""
    make, shape = NETWORKS[name]
    model = make(nnx.Rngs(0))
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    params = nnx.to_pure_dict(params)
    params, rest = jax.tree.map(
        lambda x: x.astype(jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x,
        (params, nnx.to_pure_dict(rest)),
    )
    flat, unravel = ravel_pytree(params)
    flat = flat + 0.1 * jnp.asarray(RNG.normal(size=flat.size))  # biases, too
    inputs = jnp.asarray(RNG.normal(size=(SAMPLES, *shape)))

    def predict(x):
        return nnx.merge(graph, unravel(x), rest)(inputs)

    outputs = predict(flat)
    assert outputs.dtype == jnp.float64
    targets = jax.nn.softmax(jnp.asarray(RNG.normal(size=outputs.shape)))
    jacobian = jax.jit(jax.jacrev(predict))(flat).reshape(outputs.size, flat.size)
    return predict, flat, targets, np.asarray(jacobian)


def columns(matrix, x):
    """A curvature or the Hessian of a loss as it multiplies, [P, P]."""
    product = curvature.linearized_hvp(matrix, x)[1]
    return jax.vmap(product)(jnp.eye(x.size, dtype=x.dtype))


def dense(matrix, x):
    return np.asarray(jax.jit(lambda x: columns(matrix, x))(x))


def same(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-11 * np.max(np.abs(expected)))


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", NETWORKS)
def test_products_are_those_of_the_dense_matrices(name):
    predict, x, targets, jacobian = network(name)
    outputs = predict(x)
    scale = jnp.asarray(RNG.uniform(0.1, 2, size=x.size))
    s = np.asarray(scale)
    positions = outputs.size // CLASSES

    def each(x):
        return -jnp.sum(targets * jax.nn.log_softmax(predict(x)), axis=-1)

    def of(kind):
        return lambda y: LOSSES[kind](y, targets)

    def losses(kind):
        return lambda x: of(kind)(predict(x))

    kinds = [kind for kind in LOSSES if kind != "mse" or name != "LSTM"]  # which compiles long

    @jax.jit  # once for all
    def found(x):
        result = {"empirical": columns(curvature.empirical_fisher(each), x)}
        for kind in kinds:
            slopes = jax.grad(of(kind))(predict(x))
            matrix = curvature.gauss_newton(predict, of(kind))
            result[kind] = {
                "gauss_newton": columns(matrix, x),
                "hessian": columns(losses(kind), x),
                # Σ ∂ℓ/∂f_j ∇²f_j, the slopes held
                "residual": columns(lambda x, slopes=slopes: jnp.sum(slopes * predict(x)), x),
                "gradients": (curvature.linearized_hvp(matrix, x)[0], jax.grad(losses(kind))(x)),
                "in outputs": jax.hessian(of(kind))(predict(x)),
            }
        for kind in {"mse", "cross_entropy"} & set(kinds):
            result[kind]["fisher"] = columns(curvature.fisher(predict, kind), x)
        matrix = curvature.gauss_newton(predict, of("log cosh"))
        own = curvature.symmetric(lambda x, v: curvature.hvp(losses("log cosh"), x, v))
        result["log cosh"] |= {
            "scaled": columns(curvature.preconditioned(matrix, scale), x),
            "scaled hessian": columns(curvature.preconditioned(losses("log cosh"), scale), x),
            "own": columns(own, x),
        }
        return result

    matrices = jax.tree.map(np.asarray, found(x))
    for kind in kinds:
        these = matrices[kind]
        middle = these["in outputs"].reshape(outputs.size, outputs.size)
        same(these["gauss_newton"], jacobian.T @ middle @ jacobian)
        size = np.max(np.abs(these["gauss_newton"]))
        assert np.linalg.eigvalsh(these["gauss_newton"])[0] > -1e-10 * size
        same(these["hessian"], these["gauss_newton"] + these["residual"])
        assert np.max(np.abs(these["residual"])) > 1e-3 * size
        same(*these["gradients"])
        if "fisher" in these:
            same(these["fisher"], these["gauss_newton"])
    same(these["scaled"], s[:, None] * these["gauss_newton"] * s)
    same(these["scaled hessian"], s[:, None] * these["hessian"] * s)
    same(these["own"], these["hessian"])

    rows = np.asarray(targets.sum(-1, keepdims=True) * jax.nn.softmax(outputs) - targets)
    rows = rows.reshape(positions, CLASSES, 1) * jacobian.reshape(positions, CLASSES, x.size)
    gradients = rows.sum(axis=1)
    same(matrices["empirical"], gradients.T @ gradients / positions)


@pytest.mark.usefixtures("x64")
def test_gauss_newton_of_a_linear_model_is_the_hessian():
    inputs, targets = jnp.asarray(RNG.normal(size=(8, 4))), jnp.asarray(RNG.normal(size=(8, 2)))

    def predict(w):
        return inputs @ w.reshape(4, 2)

    for function in LOSSES.values():
        matrix = curvature.gauss_newton(predict, lambda y: function(y, targets))  # noqa: B023
        loss = lambda w: function(predict(w), targets)  # noqa: B023, E731
        x = jnp.asarray(RNG.normal(size=8))
        same(dense(matrix, x), dense(loss, x))


@pytest.mark.usefixtures("x64")
def test_one_output_is_the_logit_of_the_second_of_two_classes():
    def two(x):
        return jnp.stack([jnp.zeros(5), jnp.sin(jnp.arange(5.0) * x[0]) + x[1]], axis=-1)

    x = jnp.asarray([0.3, 0.2])
    one = curvature.fisher(lambda x: two(x)[:, 1:], "cross_entropy")
    same(dense(one, x), dense(curvature.fisher(two, "cross_entropy"), x))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    "kind, outputs", [("cross_entropy", CLASSES), ("cross_entropy", 1), ("mse", CLASSES)]
)
def test_monte_carlo_fisher_is_unbiased_and_its_variance_falls(kind, outputs):
    predict, x, _, _ = network("MLP")
    of = lambda x: predict(x)[:, :outputs]  # noqa: E731
    v = jnp.asarray(RNG.normal(size=x.size))

    def product(samples, key):
        matrix = curvature.fisher(of, kind, samples=samples, key=key)
        return curvature.linearized_hvp(matrix, x)[1](v)

    exact = np.asarray(curvature.hvp(curvature.fisher(of, kind), x, v))
    spreads = {}
    for samples in (1, 8):
        keys = jax.random.split(jax.random.key(samples), 400)
        found = np.asarray(jax.jit(jax.vmap(functools.partial(product, samples)))(keys))
        error = found.std(axis=0, ddof=1) / np.sqrt(len(keys))
        assert np.all(np.abs(found.mean(axis=0) - exact) <= 4.5 * error + 1e-14)
        spreads[samples] = found.var(axis=0).sum()
    assert spreads[1] / spreads[8] == pytest.approx(8, rel=0.35)
    again = product(1, KEY)
    np.testing.assert_array_equal(again, product(1, KEY))
    matrix = dense(curvature.fisher(of, kind, samples=2, key=KEY), x)
    assert np.linalg.eigvalsh(matrix)[0] > -1e-12 * np.max(matrix)


# ---- every routine takes each of them


SMALL = {name: RNG.normal(size=size) for name, size in {
    "inputs": (9, 2), "targets": (9, 2), "w": (2, 3), "v": (3, 2),
    "scale of w": (2, 3), "scale of v": (3, 2),
}.items()}  # fmt: skip
NAMES = (
    "gauss_newton",
    "fisher",
    "Monte Carlo fisher",
    "empirical_fisher",
    "preconditioned",
    "preconditioned Hessian",
    "symmetric",
)


@functools.cache
def small(dtype=np.float64):
    """Curvatures of a network with its parameters, twelve numbers in a pytree."""
    given = {name: jnp.asarray(x, dtype) for name, x in SMALL.items()}
    inputs, targets = given["inputs"], given["targets"]
    params = {"w": given["w"], "v": given["v"]}
    scale = {"w": jnp.exp(given["scale of w"] / 2), "v": jnp.exp(given["scale of v"] / 2)}

    def predict(p):
        return jnp.tanh(inputs @ p["w"]) @ p["v"]

    def loss(p):
        return mean_squared_error(predict(p), targets)

    gauss = curvature.gauss_newton(predict, lambda y: mean_squared_error(y, targets))
    matrices = (
        gauss,
        curvature.fisher(predict, "cross_entropy"),
        curvature.fisher(predict, "mse", samples=2, key=KEY),
        curvature.empirical_fisher(lambda p: jnp.sum((predict(p) - targets) ** 2, axis=-1)),
        curvature.preconditioned(gauss, scale),
        curvature.preconditioned(loss, scale),
        curvature.symmetric(lambda p, v: curvature.hvp(loss, p, v)),
    )
    return dict(zip(NAMES, matrices, strict=True)), params


def flat_dense(matrix, params):
    flat, unravel = ravel_pytree(params)
    product = curvature.linearized_hvp(matrix, params)[1]
    eye = jnp.eye(flat.size, dtype=flat.dtype)
    return np.asarray(jax.vmap(lambda v: ravel_pytree(product(unravel(v)))[0])(eye))


def share(values):
    return values / (values + 0.1)


def measured(matrix, params):
    """Numbers of every routine that follow from the dense matrix alone, and how far they may be."""
    count = sum(x.size for x in jax.tree.leaves(params))
    pairs = curvature.top_eigenpairs(matrix, params, 2, key=KEY, tolerance=1e-9)
    density = curvature.spectral_density(matrix, params, key=KEY, num_probes=3, depth=count)
    along = curvature.tracker(matrix, 1, tolerance=1e-9)
    trace = curvature.trace(matrix, params, key=KEY, num_probes=2 * count, method="hutchinson")
    diagonal = curvature.diagonal(matrix, params, key=KEY, num_probes=50)
    total = curvature.trace_function(share, matrix, params, key=KEY, num_probes=60)
    damped = {"damping": 0.1, "key": KEY, "num_probes": 60}
    result = {
        "top": pairs.values,
        "tracked": along.update(params, along.init(params, KEY)).pairs.values,
        "nodes": jnp.max(density.nodes, axis=1),
        "product": curvature.apply_function(share, matrix, params, params, depth=count),
        "trace": trace,
        "diagonal": diagonal,
        "trace of a function": total,
        "effective dimension": curvature.effective_dimension(matrix, params, **damped),
        "log-determinant": curvature.log_determinant(matrix, params, **damped),
        "along": curvature.directional_sharpness(matrix, params, params).value,
    }
    return result


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", NAMES)
def test_eigenvalues_of_every_curvature(name):
    matrices, params = small()
    exact = flat_dense(matrices[name], params)
    values = np.linalg.eigvalsh(exact)
    assert matrices[name].positive_semidefinite == (
        name not in ("preconditioned Hessian", "symmetric")
    )
    same(curvature.spectrum(matrices[name], params), values)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["gauss_newton", "symmetric"])
def test_every_routine_takes_a_curvature(name):
    """One that is positive semidefinite, and one that is not and has no gradient."""
    matrices, params = small()
    matrix = matrices[name]
    exact = flat_dense(matrix, params)
    values, vectors = np.linalg.eigh(exact)
    found = measured(matrix, params)
    vector = ravel_pytree(params)[0]
    largest = np.max(np.abs(values))
    same(found["top"], values[::-1][:2])
    same(found["tracked"], values[-1:])
    same(found["nodes"], np.full(3, values[-1]))
    same(curvature.spectrum(matrix, params), values)
    product = vectors @ (share(values) * (vectors.T @ vector))
    np.testing.assert_allclose(ravel_pytree(found["product"])[0], product, rtol=1e-6, atol=1e-9)
    same(found["along"], vector @ exact @ vector / (vector @ vector))

    def within(estimate, expected):
        """Five standard errors, since they are random; some errors are rounding alone."""
        error = np.asarray(estimate.standard_error)
        assert np.all(np.abs(np.asarray(estimate.mean) - expected) <= 5 * error + 1e-13 * largest)

    within(found["trace"], values.sum())
    within(jax.tree.map(lambda x: x, found["trace of a function"]), share(values).sum())
    diagonal = found["diagonal"]
    within(curvature.Estimate(*(ravel_pytree(x)[0] for x in diagonal)), np.diag(exact))
    if values[0] > -0.1:
        within(found["effective dimension"], share(values).sum())
        within(found["log-determinant"], np.log(values + 0.1).sum())
    else:
        assert np.isnan(found["log-determinant"].mean)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["Monte Carlo fisher", "preconditioned Hessian"])
def test_routines_within_compiled_functions_say_the_same(name):
    matrices, params = small()
    matrix = matrices[name]

    def some(params):
        pairs = curvature.top_eigenpairs(matrix, params, 2, key=KEY, tolerance=1e-9)
        root = curvature.function_product(share, matrix, params, params)
        total = curvature.trace_function(share, matrix, params, key=KEY, num_probes=3)
        return pairs.values, root.value, total, curvature.spectrum(matrix, params)

    for inside, outside in zip(
        *(jax.tree.leaves(f(params)) for f in (jax.jit(some), some)), strict=True
    ):
        np.testing.assert_allclose(inside, outside, rtol=1e-7, atol=1e-9)


@pytest.mark.usefixtures("x64")
def test_largest_eigenvalue_of_a_curvature_can_be_differentiated():
    matrices, params = small()
    flat, unravel = ravel_pytree(params)

    @jax.jit
    def top(x):
        matrix = matrices["fisher"]
        pairs = curvature.top_eigenpairs(matrix, unravel(x), 1, key=KEY, tolerance=1e-10)
        return pairs.values[0]

    direction = jnp.cos(jnp.arange(float(flat.size)))
    step = 1e-5
    numeric = (top(flat + step * direction) - top(flat - step * direction)) / (2 * step)
    assert float(jax.grad(top)(flat) @ direction) == pytest.approx(float(numeric), rel=1e-5)


def test_multiple_eigenvalue_has_no_derivative():
    def loss(x):
        return jnp.sum(jnp.asarray([5.0, 5.0, 1.0]) * x**2) / 2 + jnp.sum(x**4) / 4

    def top(x, k=2):
        return curvature.top_eigenpairs(loss, x, k, key=KEY).values[0]

    double, simple = jnp.zeros(3), jnp.asarray([0.5, 0.1, 0.1])
    with pytest.raises(ValueError, match=r"\[[45]\..*\] of \[[45]\..*\] lie within .* not simple"):
        jax.grad(top)(double)
    assert np.all(np.isnan(jax.jit(jax.grad(top))(double)))
    np.testing.assert_allclose(jax.jit(jax.grad(top))(simple), [3, 0, 0], atol=1e-4)  # 6 x₀
    assert float(top(double)) == pytest.approx(5, rel=1e-5)


def test_gauss_newton_product_is_no_dearer_than_a_hessian_product():
    """Counted by the compiler, with what does not depend on the vector kept."""
    inputs, targets = jnp.ones((32, 12)), jnp.ones((32, 5))
    params = {"w": jnp.ones((12, 20)), "u": jnp.ones((20, 20)), "v": jnp.ones((20, 5))}

    def predict(p):
        return jnp.tanh(jnp.tanh(inputs @ p["w"]) @ p["u"]) @ p["v"]

    def of_outputs(y):
        return mean_squared_error(y, targets)

    def flops(matrix):
        product = curvature.linearized_hvp(matrix, params)[1]
        return jax.jit(product).lower(params).compile().cost_analysis()["flops"]

    hessian = flops(lambda p: of_outputs(predict(p)))
    assert flops(curvature.gauss_newton(predict, of_outputs)) < 0.8 * hessian
    assert flops(curvature.fisher(predict, "cross_entropy")) < 0.85 * hessian


# ---- what is known of positive semidefinite ones


def test_functions_are_asked_for_at_eigenvalues_of_at_least_zero():
    """A root of a matrix of rank 2 among 12 parameters, where rounding makes zeros negative."""
    inputs = jnp.asarray(RNG.normal(size=(2, 12)), jnp.float32)
    ones, x = jnp.ones(12), jnp.zeros(12)
    matrix = curvature.gauss_newton(lambda w: inputs @ w, lambda y: jnp.sum(y**2) / 2)
    expected = np.float64(inputs).T @ np.float64(inputs)
    values, vectors = np.linalg.eigh(expected)
    root = vectors @ (np.sqrt(np.maximum(values, 0)) * (vectors.T @ np.ones(12)))
    found = curvature.function_product(jnp.sqrt, matrix, x, ones)
    assert np.linalg.norm(found.value - root) <= float(found.error) < 1e-2 * np.linalg.norm(root)
    inverse = curvature.function_product(lambda x: (x + 1e-2) ** -0.5, matrix, x, ones)
    expected = vectors @ ((np.maximum(values, 0) + 1e-2) ** -0.5 * (vectors.T @ np.ones(12)))
    assert np.linalg.norm(inverse.value - expected) <= float(inverse.error)
    np.testing.assert_allclose(inverse.value, expected, rtol=1e-3)
    # Zeros are ten of the twelve, and have a logarithm with damping.
    found = curvature.log_determinant(matrix, x, damping=1e-2, key=KEY, num_probes=400)
    exact = np.sum(np.log(np.maximum(values, 0) + 1e-2))
    assert abs(float(found.mean) - exact) < 4 * float(found.standard_error)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", NAMES[:5])
def test_positive_ones_have_roots_and_volumes_within_their_errors(name):
    matrices, params = small()
    matrix = matrices[name]
    values, vectors = np.linalg.eigh(flat_dense(matrix, params))
    values = values.clip(0)
    damping = 0.1 * values[-1]
    vector = ravel_pytree(params)[0]
    root = curvature.function_product(lambda x: (x + damping) ** -0.5, matrix, params, params)
    expected = vectors @ ((values + damping) ** -0.5 * (vectors.T @ vector))
    off = np.linalg.norm(ravel_pytree(root.value)[0] - expected)
    assert bool(root.converged)
    assert off <= float(root.error) + 1e-12 * np.linalg.norm(expected)
    options = {"damping": damping, "key": KEY, "num_probes": 60}
    for routine, true in (
        (curvature.effective_dimension, np.sum(values / (values + damping))),
        (curvature.log_determinant, np.sum(np.log(values + damping))),
    ):
        found = routine(matrix, params, **options)
        assert abs(float(found.mean) - true) <= 4 * float(found.standard_error)
        assert float(found.standard_error) < 0.2 * len(vector)


def test_promise_that_does_not_hold_gives_no_number():
    matrix = curvature.gauss_newton(lambda w: w, lambda y: jnp.sum(y**3))  # H = diag(6 w)
    w = jnp.asarray([1.0, -2.0, 3.0])
    found = curvature.function_product(jnp.sqrt, matrix, w, jnp.ones(3))
    assert np.all(np.isnan(found.value)) and np.isinf(found.error) and not bool(found.converged)
    total = curvature.log_determinant(matrix, w, damping=0.1, key=KEY)
    assert np.isnan(total.mean) and np.isnan(total.standard_error)
    honest = curvature.gauss_newton(lambda w: w, lambda y: jnp.sum(y**3), convex=False)
    assert not honest.positive_semidefinite
    np.testing.assert_allclose(curvature.spectrum(honest, w), [-12, 6, 18], rtol=1e-6)


# ---- units, precisions, programs


@pytest.mark.slow
def test_answers_do_not_depend_on_the_unit():
    """Of the loss, and of the parameters by the scale of an optimiser."""
    values = (5.0, 3.0, 2.5, *np.linspace(0.01, 0.4, 27))
    factor = jnp.asarray(np.linalg.cholesky(np.float64(turned(*values))).T, jnp.float32)
    x = jnp.zeros(len(values))

    def at(unit):
        return curvature.gauss_newton(lambda w: factor @ w, lambda y: unit * jnp.sum(y**2) / 2)

    expected = answers(at(jnp.float32(1)), x)
    for unit in (1e-30, 1e30):
        found = answers(at(jnp.float32(unit)), x)
        for name, one in expected.items():
            if name == "residuals":  # of the size of rounding, which is another
                continue
            difference = np.abs(np.asarray(found[name], float) / unit - np.asarray(one, float))
            assert np.all(difference <= 2e-4 * np.max(np.abs(one))), (unit, name)
    scaled = curvature.preconditioned(at(jnp.float32(2.0**-60)), jnp.float32(2.0**30))
    np.testing.assert_allclose(curvature.spectrum(scaled, x), expected["spectrum"], rtol=1e-4)
    pairs = curvature.top_eigenpairs(scaled, x, 2, key=KEY)
    np.testing.assert_allclose(pairs.values, expected["values"], rtol=1e-4)


def in_unit(name, unit):
    """A curvature of a network's data, measured in some unit; some know its root alone."""
    factor, x = jnp.asarray(SMALL["inputs"] @ SMALL["w"], jnp.float32), jnp.sqrt(unit)
    predict = lambda w: jnp.tanh(factor @ w)  # noqa: E731
    ones = {"w": jnp.ones(3)}
    scale = jax.tree.map(lambda leaf: x * (leaf + jnp.arange(3.0) / 3), ones)
    half = lambda y: unit * jnp.sum(y**2) / 2  # noqa: E731
    matrix = jnp.asarray(turned(3.0, 1.0, -0.5), jnp.float32)
    kinds = {
        "gauss_newton": curvature.gauss_newton(lambda p: predict(p["w"]), half),
        "fisher": curvature.fisher(lambda p: x * predict(p["w"])[:, None], "mse"),
        "Monte Carlo fisher": curvature.fisher(
            lambda p: x * predict(p["w"])[:, None], "mse", samples=2, key=KEY
        ),
        "empirical_fisher": curvature.empirical_fisher(lambda p: x * predict(p["w"])),
        "preconditioned": curvature.preconditioned(
            curvature.gauss_newton(lambda p: predict(p["w"]), lambda y: jnp.sum(y**2) / 2), scale
        ),
        "preconditioned Hessian": curvature.preconditioned(
            lambda p: jnp.sum(predict(p["w"]) ** 2) / 2, scale
        ),
        "symmetric": curvature.symmetric(lambda p, v: {"w": unit * (matrix @ v["w"])}),
    }
    return kinds[name], {"w": jnp.asarray([0.3, -0.2, 0.5])}


@functools.partial(jax.jit, static_argnames="name")
def numbers_in_unit(name, unit):
    matrix, params = in_unit(name, unit)
    pairs = curvature.top_eigenpairs(matrix, params, 1, key=KEY)
    trace = curvature.trace(matrix, params, key=KEY, num_probes=3)
    along = curvature.directional_sharpness(matrix, params, params)
    spectrum = curvature.spectrum(matrix, params)
    return jnp.stack([pairs.values[0], trace.mean, along.value, *spectrum]), pairs.converged[0]


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(st.sampled_from(NAMES), st.integers(-28, 28))
@example("fisher", -28)
@example("empirical_fisher", 28)
@example("Monte Carlo fisher", 28)
def test_every_curvature_in_any_unit(name, power):
    """Numbers of the matrix times the unit are the unit times its numbers."""
    unit = 10.0**power
    (one, _), (found, converged) = (
        numbers_in_unit(name, jnp.asarray(u, jnp.float32)) for u in (1.0, unit)
    )
    assert bool(converged)
    one, found = np.asarray(one, float), np.asarray(found, float) / unit
    np.testing.assert_allclose(found, one, rtol=1e-3, atol=1e-4 * np.max(np.abs(one)))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_parameters_of_16_bits_are_taken_in_single_precision(dtype):
    params = {"w": jnp.ones(3, dtype), "b": jnp.ones((), dtype)}
    weights = jnp.asarray([4.0, 2.0, 1.0, 0.5])

    def predict(p):
        return jnp.concatenate([p["w"], p["b"][None]]).astype(jnp.float32)

    matrix = curvature.gauss_newton(predict, lambda y: jnp.sum(weights * y**2) / 2)
    np.testing.assert_allclose(curvature.spectrum(matrix, params), [0.5, 1, 2, 4], rtol=1e-5)
    scaled = curvature.preconditioned(matrix, jax.tree.map(lambda x: 2 * x, params))
    np.testing.assert_allclose(curvature.spectrum(scaled, params), [2, 4, 8, 16], rtol=1e-5)


def test_closures_over_other_data_share_a_program_and_hold_no_data():
    params = {"w": jnp.ones((2, 3)), "v": jnp.ones((3, 1))}

    def made(inputs):
        def predict(p):
            return jnp.tanh(inputs @ p["w"]) @ p["v"]

        scale = {"w": inputs[0, 0], "v": inputs[0, 1]}
        return [
            curvature.gauss_newton(predict, lambda y: jnp.mean((y - inputs[:, :1]) ** 2)),
            curvature.fisher(predict, "cross_entropy", samples=2, key=KEY),
            curvature.preconditioned(curvature.fisher(predict, "mse"), scale),
        ]

    first, second = (jnp.asarray(RNG.uniform(1, 2, size=(5, 2)), jnp.float32) for _ in range(2))
    for one, other in zip(made(first), made(second), strict=True):
        programs = [jax.tree.structure(Hessian.of(each, params)) for each in (one, other)]
        assert programs[0] == programs[1]
        curvature.top_eigenpairs(one, params, 1, key=KEY)
    alive = weakref.ref(first)
    del first, one, other, programs
    gc.collect()
    assert alive() is None


def test_reverse_mode_alone_is_enough():
    """A function with a backward pass that is differentiable, but no forward rule."""

    @jax.custom_vjp
    def squared(x):
        return x**2

    squared.defvjp(lambda x: (x**2, x), lambda x, g: (2 * x * g,))
    x = jnp.asarray([1.0, 2.0, -3.0])
    matrix = curvature.gauss_newton(squared, lambda y: jnp.sum(y**2) / 2)
    np.testing.assert_allclose(curvature.spectrum(matrix, x), [4, 16, 36], rtol=1e-5)


# ---- parts, batches, watching


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("entries", [False, True], ids=["leaf", "entries"])
def test_subset_is_a_block(name, entries):
    matrices, params = small(np.float32)
    mask = np.array([[True, False], [False, True], [True, True]])
    where = {"w": False, "v": mask} if entries else "v"
    places = np.flatnonzero(mask) if entries else np.arange(6)
    part, values = curvature.subset(matrices[name], params, where)
    assert part.positive_semidefinite == matrices[name].positive_semidefinite
    whole = flat_dense(matrices[name], params)
    block = flat_dense(part, values)
    if name != "Monte Carlo fisher":
        expected = whole[np.ix_(places, places)]
        np.testing.assert_allclose(block, expected, rtol=1e-4, atol=1e-5 * np.max(whole))
    assert isinstance(part, curvature.Curvature)
    np.testing.assert_allclose(
        curvature.spectrum(part, values), np.linalg.eigvalsh(block), atol=1e-5 * np.max(whole)
    )


INPUTS, TARGETS = np.float32(RNG.normal(size=(20, 2))), np.float32(RNG.normal(size=(20, 2)))
BATCHES = [(INPUTS[a:b], TARGETS[a:b]) for a, b in ((0, 8), (8, 16), (16, 20))]
PARAMS = {
    "w": jnp.asarray(RNG.normal(size=(2, 3)), jnp.float32),
    "v": jnp.asarray(RNG.normal(size=(3, 2)), jnp.float32),
}
SCALE = {"w": jnp.asarray(RNG.uniform(0.5, 2, size=(2, 3)), jnp.float32), "v": 0.7}


def predict_batch(p, batch):
    return jnp.tanh(batch[0] @ p["w"]) @ p["v"]


def loss_of_batch(y, batch):
    return mean_squared_error(y, batch[1])


def losses_of_batch(p, batch):
    return jnp.sum((predict_batch(p, batch) - batch[1]) ** 2, axis=-1)


def own_product(p, v, batch):
    return curvature.hvp(lambda p: jnp.mean(losses_of_batch(p, batch)), p, v)


OF_BATCHES = {
    "gauss_newton": curvature.gauss_newton(predict_batch, loss_of_batch),
    "fisher": curvature.fisher(predict_batch, "cross_entropy"),
    "empirical_fisher": curvature.empirical_fisher(losses_of_batch),
    "symmetric": curvature.symmetric(own_product),
}
OF_BATCHES["preconditioned"] = curvature.preconditioned(OF_BATCHES["gauss_newton"], SCALE)


@pytest.mark.parametrize("name", OF_BATCHES)
def test_batches_and_watching_change_no_number(name):
    matrix = OF_BATCHES[name]
    all_at_once = matrix.bound((INPUTS, TARGETS), 0)
    expected = curvature.trace(all_at_once, PARAMS, key=KEY, num_probes=3)
    products = []
    batched = curvature.over_batches(matrix, BATCHES, progress=products.append)
    assert batched.positive_semidefinite == matrix.positive_semidefinite
    for each in (batched, curvature.watched(all_at_once, products.append)):
        found = curvature.trace(each, PARAMS, key=KEY, num_probes=3)
        np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-4)
        assert products == [1, 2, 3, 4, 5]  # two before the probes
        products.clear()
    v = jax.tree.map(jnp.ones_like, PARAMS)
    for found, want in zip(
        *(jax.tree.leaves(curvature.hvp(m, PARAMS, v)) for m in (batched, all_at_once)), strict=True
    ):
        np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-5)


def test_preconditioning_a_sum_over_batches():
    """Also for a subset of a loss over batches, whose products run in Python as before."""

    def loss(p, batch):
        return loss_of_batch(predict_batch(p, batch), batch)

    def whole(p):
        return loss(p, (INPUTS, TARGETS))

    expected = curvature.spectrum(curvature.preconditioned(whole, SCALE), PARAMS)
    batched = curvature.preconditioned(curvature.over_batches(loss, BATCHES), SCALE)
    found = curvature.spectrum(batched, PARAMS)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)
    with pytest.raises(TypeError, match="products of Preconditioned run in Python"):
        jax.jit(lambda p: curvature.spectrum(batched, p))(PARAMS)
    part, values = curvature.subset(curvature.over_batches(loss, BATCHES), PARAMS, "v")
    np.testing.assert_allclose(part(values), whole(PARAMS), rtol=1e-5)
    block = curvature.spectrum(*curvature.subset(whole, PARAMS, "v"))
    np.testing.assert_allclose(curvature.spectrum(part, values), block, rtol=1e-3, atol=1e-5)
    watched = curvature.subset(curvature.watched(whole, False), PARAMS, "v")
    np.testing.assert_allclose(curvature.spectrum(*watched), block, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["preconditioned", "symmetric"])
def test_subset_of_a_sum_over_batches(name):
    matrix = OF_BATCHES[name]
    batched = curvature.subset(curvature.over_batches(matrix, BATCHES), PARAMS, "v")
    whole = curvature.subset(matrix.bound((INPUTS, TARGETS), 0), PARAMS, "v")
    found, expected = curvature.spectrum(*batched), curvature.spectrum(*whole)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * float(expected[-1]))


def test_batches_draw_for_themselves():
    """Two copies of one batch give independent draws: not the matrix of one of them."""
    matrix = curvature.fisher(predict_batch, "cross_entropy", samples=1, key=KEY)
    once, twice = (curvature.over_batches(matrix, BATCHES[:1] * n) for n in (1, 2))
    values = [curvature.spectrum(each, PARAMS) for each in (once, twice)]
    assert np.max(np.abs(values[0] - values[1])) > 1e-2 * float(values[0][-1])


# ---- refusals


def outputs(w):
    return w[None] * jnp.ones((2, 1))


@pytest.mark.parametrize(
    "make, error, message",
    [
        (
            lambda: curvature.gauss_newton(1, jnp.sum),
            TypeError,
            "predict must be a function, got 1",
        ),
        (lambda: curvature.gauss_newton(outputs, None), TypeError, "loss_of_outputs must be"),
        (lambda: curvature.fisher(outputs, "logistic"), ValueError, "got 'logistic'"),
        (lambda: curvature.fisher(outputs, "mse", samples=0, key=KEY), ValueError, "at least 1"),
        (lambda: curvature.fisher(outputs, "mse", samples=2), ValueError, "key is missing"),
        (lambda: curvature.fisher(outputs, "mse", key=KEY), ValueError, "samples is missing"),
        (lambda: curvature.empirical_fisher(3.0), TypeError, "got 3.0"),
        (lambda: curvature.preconditioned(None, 1.0), TypeError, "got None"),
        (lambda: curvature.symmetric(None), TypeError, "got None"),
        (lambda: curvature.over_batches(None, []), TypeError, "or a Curvature, got None"),
        (
            lambda: curvature.watched(curvature.over_batches(losses_of_batch, [])),
            TypeError,
            "OverBatches, whose products already run",
        ),
    ],
)
def test_curvatures_that_cannot_be(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    "matrix, error, message",
    [
        (curvature.gauss_newton(outputs, lambda y: y), ValueError, r"got float32\[2, 3\]"),
        (curvature.gauss_newton(lambda w: "no", jnp.sum), TypeError, "no"),
        (
            curvature.gauss_newton(lambda w: (w > 0).astype(int), jnp.sum),
            TypeError,
            r"floating-point outputs, got int",
        ),
        (curvature.gauss_newton(outputs, lambda y: jnp.log(-jnp.sum(y))), ValueError, "nan"),
        (curvature.fisher(lambda w: w, "mse"), ValueError, r"samples first, got float32\[3\]"),
        (curvature.fisher(lambda w: jnp.log(-w)[None], "mse"), ValueError, "nan"),
        (curvature.empirical_fisher(jnp.sum), ValueError, "before they are averaged"),
        (curvature.preconditioned(jnp.sum, jnp.ones(2)), ValueError, r"scale has shape \(2,\)"),
        (curvature.preconditioned(jnp.sum, -1.0), ValueError, "not negative, got values from -1"),
        (curvature.preconditioned(jnp.sum, np.nan), ValueError, "must be finite"),
        (curvature.symmetric(lambda w, v: v[:2]), ValueError, r"got \(2,\) for params of \(3,\)"),
    ],
)
def test_curvatures_that_do_not_fit_the_parameters(matrix, error, message):
    with pytest.raises(error, match=message):
        curvature.spectrum(matrix, jnp.ones(3))


def test_curvatures_are_no_losses():
    matrix = curvature.fisher(outputs, "mse")
    w = jnp.ones(3)
    with pytest.raises(ValueError, match="has no gradient: pass the update"):
        curvature.directional_sharpness(matrix, w)
    of_batches = curvature.fisher(lambda w, x: outputs(w), "mse")
    hosted = curvature.watched(matrix), curvature.over_batches(of_batches, [w])
    for each in (matrix, *hosted):
        with pytest.raises(TypeError, match="pass the loss"):
            curvature.critical_learning_rate(each, w, w)
    for each in hosted:
        with pytest.raises(TypeError, match="pass the loss"):
            each(w)
    with pytest.raises(ValueError, match="has no gradient along which"):
        curvature.minibatch_sharpness(matrix, w, [w])
    with pytest.raises(ValueError, match="leave it at None"):
        curvature.hvp(matrix, w, w, mode="forward-over-reverse")
    assert curvature.linearized_hvp(matrix, w)[0] is None
    assert curvature.tracker(matrix, 1).init(w, KEY).gradient is None
    with pytest.raises(TypeError, match="is a curvature, which has no value"):
        curvature.over_batches(matrix, [])(w)
    assert Traced(matrix).positive_semidefinite and not Traced(jnp.sum).positive_semidefinite


# ---- an independent library


@pytest.mark.usefixtures("x64")
def test_lanczos_of_matfree_sees_the_same_matrix():
    """From the same start, and as deep as there are dimensions: all eigenvalues."""
    decomp = pytest.importorskip("matfree.decomp")
    matrices, params = small()
    flat, unravel = ravel_pytree(params)
    for name in ("gauss_newton", "empirical_fisher", "preconditioned Hessian"):
        product = curvature.linearized_hvp(matrices[name], params)[1]
        tridiagonal = decomp.tridiag_sym(flat.size, reortho="full")
        theirs = tridiagonal(lambda v: ravel_pytree(product(unravel(v)))[0], flat).J_small  # noqa: B023
        ours = np.asarray(curvature.spectrum(matrices[name], params))
        # Lanczos stops at an invariant space: what it has are eigenvalues, the largest among them.
        found = np.linalg.eigvalsh(np.asarray(theirs))
        assert found[-1] == pytest.approx(ours[-1], rel=1e-9)
        gaps = np.min(np.abs(found[:, None] - ours[None]), axis=1)
        assert np.max(gaps) < 1e-6 * ours[-1]


@pytest.mark.usefixtures("x64")
def test_products_are_those_of_curvlinops():
    curvlinops = pytest.importorskip("curvlinops")
    torch = pytest.importorskip("torch")
    inputs, labels = RNG.normal(size=(7, 2)), RNG.integers(0, CLASSES, 7)
    first, last = RNG.normal(size=(4, 2)), RNG.normal(size=(CLASSES, 4))
    layers = [torch.nn.Linear(2, 4, bias=False), torch.nn.Tanh()]
    model = torch.nn.Sequential(*layers, torch.nn.Linear(4, CLASSES, bias=False)).double()
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), (first, last), strict=True):
            parameter.copy_(torch.tensor(value))
    data = [(torch.tensor(inputs), torch.tensor(labels))]
    params = [jnp.asarray(first), jnp.asarray(last)]

    def predict(p):
        return jnp.tanh(inputs @ p[0].T) @ p[1].T

    def each(p):
        return -jax.nn.log_softmax(predict(p))[np.arange(7), labels]

    targets = jax.nn.one_hot(labels, CLASSES, dtype=jnp.float64)
    names = {
        "HessianLinearOperator": lambda p: jnp.mean(each(p)),
        "GGNLinearOperator": curvature.gauss_newton(predict, lambda y: cross_entropy(y, targets)),
        "EFLinearOperator": curvature.empirical_fisher(each),
    }
    eye = torch.eye(8 + 4 * CLASSES, dtype=torch.float64)
    for name, matrix in names.items():
        make = getattr(curvlinops, name)
        operator = make(model, torch.nn.CrossEntropyLoss(), list(model.parameters()), data)
        np.testing.assert_allclose(operator @ eye, flat_dense(matrix, params), atol=1e-10)
