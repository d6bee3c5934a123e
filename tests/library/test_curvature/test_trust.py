"""Error estimates of every routine: outliers, units, precisions, incorrect Hessians."""

import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pfcore import curvature

N = 120
KEY = jax.random.key(0)


@functools.cache
def turned(*eigenvalues: float, seed: int = 0) -> np.ndarray:
    """A symmetric matrix in single precision with about these eigenvalues, dense."""
    rotation = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(eigenvalues),) * 2))[0]
    return np.float32((rotation * np.array(eigenvalues)) @ rotation.T)


def loss_of(matrix):
    half = jnp.asarray(matrix, jnp.float32) / 2
    return lambda x: x @ (half @ x)


def exactly(function, matrix, vector):
    """f(H)v in double precision, of the matrix as it is stored."""
    values, vectors = np.linalg.eigh(np.float64(matrix))
    return vectors @ (function(values) * (vectors.T @ np.float64(vector)))


# ---- an outlier over a small bulk

BULK = np.linspace(0.5, 1.5, N - 1)


@pytest.mark.parametrize("outlier", [1e4, 1e5, 1e6])
def test_density_keeps_its_bulk_under_an_outlier(outlier):
    density = curvature.spectral_density(
        loss_of(turned(outlier, *BULK)), jnp.zeros(N), key=KEY, num_probes=4
    )
    blur = 2 * float(jnp.max(density.rounding))
    nodes, weights = np.asarray(density.nodes), np.asarray(density.weights)
    inside = (nodes > 0.5 - blur) & (nodes < 1.5 + blur)
    assert np.mean(np.sum(weights * inside, axis=1)) > 0.96
    # Several of the nodes lie in the bulk: it has a width, not a single value.
    assert np.sum(inside[0]) > 4


@pytest.mark.parametrize("outlier", [1e2, 1e4, 1e6, 1e8, 1e10])
@pytest.mark.parametrize("diagonal", [False, True], ids=["dense", "diagonal"])
@pytest.mark.parametrize(
    "function, exact",
    [
        (jnp.sqrt, np.sqrt),
        (lambda x: 1 / (1 + x), lambda x: 1 / (1 + x)),
        (lambda x: jnp.exp(-x), lambda x: np.exp(-x)),
    ],
    ids=["sqrt", "resolvent", "exp"],
)
def test_error_of_a_function_covers_rounding_under_an_outlier(outlier, diagonal, function, exact):
    values = np.array([outlier, *BULK])
    matrix = np.float32(np.diag(values)) if diagonal else turned(*values)
    vector = np.float32(np.random.default_rng(1).normal(size=N))
    found = curvature.function_product(function, loss_of(matrix), jnp.zeros(N), vector)
    if np.all(np.linalg.eigvalsh(np.float64(matrix)) > 0):
        wrong = np.linalg.norm(np.asarray(found.value) - exactly(exact, matrix, vector))
        # NaN (the root of an eigenvalue that rounding made negative) comes with no small error.
        assert not wrong > float(found.error)
    if bool(found.converged):
        assert float(found.error) <= 1e-5 * float(jnp.linalg.norm(found.value))
    assert not (bool(found.converged) and outlier >= 1e4)


def test_small_eigenvalues_beside_an_outlier_have_residuals_of_its_rounding():
    pairs = curvature.top_eigenpairs(loss_of(turned(1e6, *BULK)), jnp.zeros(N), 3, key=KEY)
    np.testing.assert_allclose(pairs.values[1:], [1.5, 1.4915], rtol=5e-3)
    assert np.all(np.asarray(pairs.residuals) > 1e6 * np.finfo(np.float32).eps)


# ---- the unit of the loss

EIGENVALUES = (5.0, 3.0, 2.5, -1.0, *np.linspace(-0.2, 0.4, 36))


def answers(loss, params):
    """What every routine says of a loss that is measured in some unit, in that unit."""
    v = jnp.ones_like(params)
    pairs = curvature.top_eigenpairs(loss, params, 2, key=KEY)
    density = curvature.spectral_density(loss, params, key=KEY, num_probes=3, depth=12)
    trace = curvature.trace(loss, params, key=KEY, num_probes=5)
    xtrace = curvature.trace(loss, params, key=KEY, num_probes=5, method="xtrace")
    diagonal = curvature.diagonal(loss, params, key=KEY, num_probes=5)
    path = jnp.stack([params, params])
    assert bool(jnp.all(pairs.converged)) and bool(density.symmetric[0])
    return {
        "values": pairs.values,
        "residuals": pairs.residuals,
        "nodes": density.nodes,
        "mean": density.moment(1),
        "its error": density.moment_error(1),
        "trace": trace.mean,
        "its error too": trace.standard_error,
        "xtrace": xtrace.mean,
        "error of xtrace": xtrace.standard_error,
        "diagonal": diagonal.mean,
        "error of the diagonal": diagonal.standard_error,
        "spectrum": curvature.spectrum(loss, params),
        "product": curvature.apply_function(lambda x: x, loss, params, v, depth=8),
        "function": curvature.function_product(lambda x: x, loss, params, v).value,
        "track": curvature.track(loss, path, 2, key=KEY).values,
    }


def compared(dtype, units):
    matrix = jnp.asarray(turned(*EIGENVALUES), dtype)
    params = jnp.zeros(len(EIGENVALUES), dtype)

    def at(unit):
        return answers(lambda x: unit * (x @ (matrix @ x)) / 2, params)

    expected = at(jnp.asarray(1.0, dtype))
    for unit in units:
        for name, value in at(jnp.asarray(unit, dtype)).items():
            one = np.asarray(expected[name], float)
            found = np.asarray(value, float) / unit
            allowed = 2e-4 * np.max(np.abs(one))
            if name == "residuals" and np.frexp(unit)[0] != 0.5:
                # Other units than powers of two round the matrix, by more than 2e-4 of a residual.
                allowed += float(jnp.finfo(dtype).eps) * max(map(abs, EIGENVALUES))
            assert np.all(np.abs(found - one) <= allowed), (name, unit, found, one)


def test_answers_do_not_depend_on_the_unit():
    compared(jnp.float32, [1e-30, 1e-12, 1e12, 1e30, 2.0**-100, 2.0**100])


@pytest.mark.parametrize("unit", [1e-30, 1e-12, 0.7, 1.0, 3.0, 1e12, 1e30])
def test_residuals_cover_those_in_double_precision(unit):
    """And exceed them by no more than rounding."""
    matrix, scale = jnp.asarray(turned(*EIGENVALUES), jnp.float32), jnp.float32(unit)
    params = jnp.zeros(len(EIGENVALUES), jnp.float32)
    pairs = curvature.top_eigenpairs(lambda x: scale * (x @ (matrix @ x)) / 2, params, 2, key=KEY)
    u, values = np.float64(pairs.vectors), np.float64(pairs.values) / float(scale)
    exact = np.linalg.norm(u @ np.float64(matrix) - values[:, None] * u, axis=1)
    beyond = np.float64(pairs.residuals) / float(scale) - exact
    epsilon = float(jnp.finfo(jnp.float32).eps) * max(map(abs, EIGENVALUES))
    assert np.all(beyond >= 0) and np.all(beyond <= 8 * epsilon), beyond / epsilon


@pytest.mark.usefixtures("x64")
def test_answers_do_not_depend_on_the_unit_in_double_precision():
    compared(jnp.float64, [1e-300, 1e300])


# ---- 16 bits


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_parameters_of_16_bits_are_taken_in_single_precision(dtype):
    weights = jnp.asarray([4.0, 2.0, 1.0, 0.5])
    params = {"w": jnp.ones(3, dtype), "b": jnp.ones((), dtype)}

    def loss(p):
        x = jnp.concatenate([p["w"], p["b"][None]]).astype(jnp.float32)
        return jnp.sum(weights * x**2) / 2

    pairs = curvature.top_eigenpairs(loss, params, 2, key=KEY)
    np.testing.assert_allclose(pairs.values, [4, 2], rtol=1e-5)
    assert jax.tree.leaves(pairs.vectors)[0].dtype == jnp.float32
    again = curvature.top_eigenpairs(loss, params, 2, key=KEY, start=pairs.vectors)
    np.testing.assert_allclose(again.values, [4, 2], rtol=1e-5)
    found = curvature.function_product(jnp.sqrt, loss, params, params).value
    np.testing.assert_allclose(found["w"], np.sqrt([4, 2, 1]), rtol=1e-5)
    np.testing.assert_allclose(curvature.spectrum(loss, params), [0.5, 1, 2, 4], rtol=1e-5)


# ---- incorrect Hessians and vectors


@jax.custom_jvp
def skewed(x):
    return x @ x


@skewed.defjvp
def _(primals, tangents):
    shift = jnp.diag(jnp.full(len(primals[0]) - 1, 5.0), 1)
    return skewed(primals[0]), (shift @ primals[0]) @ tangents[0]


def test_what_is_not_symmetric_gives_no_number():
    x = jnp.ones(80)
    assert np.all(np.isnan(curvature.spectrum(skewed, x)))
    assert np.all(np.isnan(curvature.apply_function(jnp.exp, skewed, x, x, depth=4)))
    found = curvature.function_product(jnp.exp, skewed, x, x)
    assert np.all(np.isnan(found.value)) and np.isinf(found.error) and not bool(found.converged)
    for method in ("hutchinson", "xtrace"):
        found = curvature.trace(skewed, x, key=KEY, num_probes=3, method=method)
        assert np.isnan(found.mean) and np.isnan(found.standard_error)
    assert np.all(np.isnan(curvature.diagonal(skewed, x, key=KEY, num_probes=3).mean))
    pairs = curvature.top_eigenpairs(skewed, x, 5, key=KEY)
    assert np.all(np.isnan(pairs.values)) and not np.any(pairs.converged)
    assert int(pairs.num_products) <= 3  # and says so at once


def test_trace_that_overflows_is_nan():
    huge = lambda x: jnp.float32(1e38) * jnp.sum(x**2)  # noqa: E731
    found = curvature.trace(huge, jnp.zeros(50), key=KEY, num_probes=3)
    assert np.isnan(found.mean) and np.isnan(found.standard_error)


@pytest.mark.parametrize(
    "vector, message",
    [
        ({"w": jnp.ones((3, 2)), "b": jnp.ones(2)}, r"vector\['w'\] has shape \(3, 2\)"),
        ({"v": jnp.ones((2, 3)), "b": jnp.ones(2)}, r"vector\['w'\] is missing"),
        (jnp.ones(8), r"vector\['b'\] is missing, there is one array"),
        ({"w": jnp.ones((2, 3)), "b": jnp.ones(2, jnp.complex64)}, r"\['b'\] has dtype complex64"),
    ],
    ids=["transposed", "renamed", "flat", "complex"],
)
def test_vectors_that_do_not_fit_are_named(vector, message):
    params = {"w": jnp.ones((2, 3)), "b": jnp.ones(2)}
    loss = lambda p: jnp.sum(p["w"] ** 2) + jnp.sum(p["b"] ** 2)  # noqa: E731
    for call in (
        lambda: curvature.function_product(jnp.exp, loss, params, vector),
        lambda: curvature.apply_function(jnp.exp, loss, params, vector, depth=2),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            call()


def test_leaf_that_is_no_array_is_named():
    params = {"w": jnp.ones(2), "activation": jax.nn.relu}
    with pytest.raises(TypeError, match=r"params\['activation'\] is .*, which is not an array"):
        curvature.spectrum(lambda p: jnp.sum(p["w"] ** 2), params)


# ---- rules of JAX


@pytest.mark.parametrize(
    "setting",
    [
        ("jax_numpy_rank_promotion", "raise"),
        ("jax_debug_nans", True),
        ("jax_numpy_dtype_promotion", "strict"),
    ],
    ids=lambda setting: setting[0],
)
def test_strict_settings(setting):
    code = f"""
import jax, jax.numpy as jnp
jax.config.update(*{setting!r})
from pfcore import curvature as c
d, x, key = jnp.array([1.0, 2.0, 5.0]), jnp.ones(3), jax.random.key(0)
loss = lambda x: jnp.float32(0.5) * jnp.sum(d * x * x)
for k, which in ((1, "largest"), (2, "smallest"), (2, "magnitude")):
    c.top_eigenpairs(loss, x, k, key=key, which=which)
density = c.spectral_density(loss, x, key=key, num_probes=2)
density.evaluate(jnp.ones((2, 2)), 0.5), density.standard_error(jnp.ones((2, 2)), 0.5)
density.moment(2), density.moment_error(2), density.evaluate(jnp.ones(3), 0.5, scale="symlog")
c.function_product(jnp.exp, loss, x, x), c.apply_function(jnp.exp, loss, x, x, depth=2)
c.trace(loss, x, key=key, num_probes=2), c.trace(loss, x, key=key, num_probes=2, method="xtrace")
c.diagonal(loss, x, key=key, num_probes=2), c.spectrum(loss, x)
c.track(loss, jnp.stack([x, x]), 2, key=key), c.spectrum(*c.subset(loss, x, d > 1))
own = c.symmetric(lambda p, v: d * v, positive_semidefinite=True)
for matrix in (own, c.empirical_fisher(lambda x: d * x * x), c.preconditioned(loss, d)):
    c.top_eigenpairs(matrix, x, 1, key=key), c.directional_sharpness(matrix, x, x)
    c.log_determinant(matrix, x, damping=0.1, key=key, num_probes=2)
    c.effective_dimension(matrix, x, damping=0.1, key=key, num_probes=2)
c.directional_sharpness(loss, x), c.critical_learning_rate(loss, x, -d * x).value
c.minibatch_sharpness(lambda x, b: jnp.mean(b) * loss(x), x, [x, d])
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_reverse_over_reverse_where_forward_mode_is_refused():
    """A backward pass that has itself a rule for reverse mode alone, as some kernels have."""

    @jax.custom_vjp
    def squared(x):
        return x**2

    @jax.custom_vjp
    def cubed(x):
        return x**3

    squared.defvjp(lambda x: (x**2, x), lambda x, g: (2 * x * g,))
    cubed.defvjp(lambda x: (x**3, x), lambda x, g: (3 * squared(x) * g,))
    x = jnp.array([1.0, 2.0, -3.0])
    loss = lambda x: jnp.sum(cubed(x))  # noqa: E731
    np.testing.assert_allclose(curvature.hvp(loss, x, jnp.ones(3)), 6 * x)
    np.testing.assert_allclose(curvature.linearized_hvp(loss, x)[1](jnp.ones(3)), 6 * x)
    np.testing.assert_allclose(curvature.spectrum(loss, x), np.sort(6 * x), rtol=1e-6)
    reverse = curvature.hvp(loss, x, jnp.ones(3), mode="reverse-over-reverse")
    np.testing.assert_allclose(reverse, 6 * x)
    with pytest.raises(TypeError, match="forward-mode"):
        curvature.hvp(loss, x, jnp.ones(3), mode="forward-over-reverse")
    with pytest.raises(ValueError, match="got 'forward'"):
        curvature.hvp(loss, x, jnp.ones(3), mode="forward")


def test_sharpness_can_be_differentiated():
    matrix = jnp.asarray(turned(*np.linspace(-1, 3, 8)))

    def loss(x):
        return x @ (matrix @ x) / 2 + jnp.sum(x**4) / 4

    def top(x, which="largest"):
        return curvature.top_eigenpairs(loss, x, 1, key=KEY, tolerance=1e-5, which=which).values[0]

    def dense(x, place=-1):
        return jnp.linalg.eigvalsh(jax.hessian(loss)(x))[place]

    x = jnp.linspace(-1, 1, 8)
    np.testing.assert_allclose(jax.grad(top)(x), jax.grad(dense)(x), atol=1e-3)
    low = functools.partial(top, which="smallest")
    np.testing.assert_allclose(jax.grad(low)(x), jax.grad(dense)(x, 0), atol=1e-3)
    moved = jax.jit(lambda x: jax.jvp(top, (x,), (x,)))(x)
    np.testing.assert_allclose(moved[1], jax.grad(dense)(x) @ x, rtol=1e-3)


def test_sharpness_of_a_loss_that_reads_what_is_differentiated():
    """Scales that it closes over, and the parameters that `subset` keeps fixed."""
    at = {"a": jnp.asarray([1.0, 1.0, 1.5]), "b": jnp.asarray([1.0, 2.0, 3.0])}

    def loss(p):
        return jnp.sum(p["a"] ** 4 * p["b"] ** 2) / 12 + jnp.prod(p["a"])

    def top(loss, params):
        return curvature.top_eigenpairs(loss, params, 1, key=KEY, tolerance=1e-5).values[0]

    def scaled(scale, params, top=top):
        return top(lambda a: scale * loss({**params, "a": a}), params["a"])

    def dense(loss, x):
        return jnp.linalg.eigvalsh(jax.hessian(loss)(x))[-1]

    expected = jax.grad(functools.partial(scaled, top=dense), argnums=(0, 1))(2.0, at)
    for found in (
        jax.jit(jax.grad(scaled, argnums=(0, 1)))(2.0, at),
        (expected[0], jax.grad(lambda p: 2 * top(*curvature.subset(loss, p, "a")))(at)),
    ):
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-3), found, expected)

    # A curvature closes over its functions in the same way.
    def of_outputs(scale):
        matrix = curvature.gauss_newton(
            lambda a: a**2, lambda z: scale * jnp.sum(z * jnp.asarray([1.0, 2.0, 3.0]) * z) / 2
        )
        return top(matrix, at["a"])

    slope = jax.grad(of_outputs)(2.0)
    np.testing.assert_allclose(slope, of_outputs(1.0), rtol=1e-4)


# ---- every result says how far it can be trusted

# Where all samples agree, and no space is left to search, rounding alone is left.
EXACT = jnp.asarray([4.0, 2.0, 1.0, 0.1])
AT = jnp.full(4, 0.3)


def diagonal_loss(x):
    return jnp.sum(EXACT * x**2) / 2


def isotropic_loss(x):
    return 1.5 * jnp.sum(x**2)


def tracked():
    along = curvature.tracker(diagonal_loss, 2)
    return along.update(AT, along.init(AT, KEY)).pairs


# For each routine its numbers, what they should be, and what it says that they are off by.
SAYS = {
    "top_eigenpairs": lambda: (
        (pairs := curvature.top_eigenpairs(diagonal_loss, AT, 2, key=KEY)).values,
        [4, 2],
        pairs.residuals,
    ),
    "track": lambda: (
        (track := curvature.track(diagonal_loss, jnp.stack([AT, AT]), 2, key=KEY)).values,
        [[4, 2], [4, 2]],
        track.residuals,
    ),
    "tracker": lambda: ((pairs := tracked()).values, [4, 2], pairs.residuals),
    "spectral_density": lambda: (
        (density := curvature.spectral_density(diagonal_loss, AT, key=KEY)).nodes,
        np.tile(np.float32([0.1, 1, 2, 4]), (10, 1)),
        density.rounding[:, None],
    ),
    "trace": lambda: (
        (trace := curvature.trace(diagonal_loss, AT, key=KEY, num_probes=3)).mean,
        7.1,
        trace.standard_error,
    ),
    "diagonal": lambda: (
        (entries := curvature.diagonal(diagonal_loss, AT, key=KEY, num_probes=3)).mean,
        EXACT,
        entries.standard_error,
    ),
    "trace_function": lambda: (
        (total := curvature.trace_function(jnp.sqrt, isotropic_loss, AT, key=KEY)).mean,
        4 * np.sqrt(3),
        total.standard_error,
    ),
    "log_determinant": lambda: (
        (log := curvature.log_determinant(isotropic_loss, AT, damping=1, key=KEY)).mean,
        4 * np.log(4),
        log.standard_error,
    ),
    "effective_dimension": lambda: (
        (share := curvature.effective_dimension(isotropic_loss, AT, damping=1, key=KEY)).mean,
        3,
        share.standard_error,
    ),
    "directional_sharpness": lambda: (
        (along := curvature.directional_sharpness(diagonal_loss, AT)).value,
        np.sum(np.float64(EXACT) ** 3) / np.sum(np.float64(EXACT) ** 2),
        along.rounding,
    ),
    "critical_learning_rate": lambda: (
        (
            rate := curvature.critical_learning_rate(isotropic_loss, AT, -3 * AT, tolerance=1e-4)
        ).value,
        2 / 3,
        (rate.upper - rate.lower) / 2,
    ),
    "minibatch_sharpness": lambda: (
        (
            batches := curvature.minibatch_sharpness(
                lambda x, scale: jnp.mean(scale) * isotropic_loss(x), AT, [jnp.ones(2)] * 2
            )
        ).mean,
        3,
        batches.standard_error,
    ),
    "function_product": lambda: (
        (root := curvature.function_product(jnp.sqrt, diagonal_loss, AT, AT)).value,
        0.3 * np.sqrt(EXACT),
        root.error,
    ),
}
# Routines that return arrays alone: their docstrings say what the numbers may be off by, or that
# they are the user's own function's.
ARRAYS = {
    "apply_function": "NaN if",
    "spectrum": "machine epsilons",
    "hvp": "two gradients",
    "linearized_hvp": "linearised once",
    "subset": "the block of the full Hessian",
    "over_batches": "up to rounding",
    "gauss_newton": "without its second",
    "fisher": "the spread over",
    "empirical_fisher": "does not approximate the Hessian",
    "preconditioned": "For constant P",
    "optimizer_scale": "left out here",
    "symmetric": "not symmetric, routines that take several products return NaN",
    "watched": "loss",
}


def test_every_routine_is_asked():
    routines = {name for name in curvature.__all__ if name[0].islower()}
    assert routines == {*SAYS, *ARRAYS}
    for name, words in ARRAYS.items():
        assert words in " ".join(getattr(curvature, name).__doc__.split())


@pytest.mark.parametrize("name", SAYS)
def test_no_number_without_its_error(name):
    found, true, error = (np.asarray(x, float) for x in SAYS[name]())
    assert np.all(error > 0) and np.all(np.abs(found - true) <= error)
    assert np.all(error < 1e-4)


# ---- keys

TAKES_KEY = {
    "top_eigenpairs": lambda key: curvature.top_eigenpairs(diagonal_loss, AT, 2, key=key),
    "track": lambda key: curvature.track(diagonal_loss, jnp.stack([AT, AT]), 2, key=key),
    "tracker": lambda key: curvature.tracker(diagonal_loss, 2).init(AT, key),
    "spectral_density": lambda key: curvature.spectral_density(diagonal_loss, AT, key=key),
    "trace": lambda key: curvature.trace(diagonal_loss, AT, key=key, num_probes=3),
    "diagonal": lambda key: curvature.diagonal(diagonal_loss, AT, key=key, num_probes=3),
    "trace_function": lambda key: curvature.trace_function(jnp.exp, diagonal_loss, AT, key=key),
    "log_determinant": lambda key: curvature.log_determinant(
        isotropic_loss, AT, damping=1, key=key
    ),
    "effective_dimension": lambda key: curvature.effective_dimension(
        isotropic_loss, AT, damping=1, key=key
    ),
    "fisher": lambda key: curvature.fisher(
        lambda x: x[None], kind="cross_entropy", samples=1, key=key
    ),
}


@pytest.mark.parametrize("name", TAKES_KEY)
def test_what_is_not_one_key_is_named(name):
    for key, shown in [
        (0, "got 0"),
        ("seed", "got 'seed'"),
        (jax.random.split(KEY, 3), r"got an array of key<fry> of shape \(3,\)"),
        (jnp.zeros(2), r"got an array of float32 of shape \(2,\)"),
    ]:
        with pytest.raises(TypeError, match=rf"key must be one key, such as .*key\(0\), {shown}"):
            TAKES_KEY[name](key)
    TAKES_KEY[name](jax.random.PRNGKey(0))


# ---- at the ends of what is representable, and of spaces


def test_functions_that_are_not_finite_at_zero_of_an_exhausted_space():
    """Rows that an exhausted space has not taken are no eigenvalues of zero."""
    triple = lambda x: 1.5 * jnp.sum(x**2)  # noqa: E731
    ones = jnp.ones(4)
    found = curvature.function_product(jnp.log, triple, ones, ones)
    assert bool(found.converged)
    np.testing.assert_allclose(found.value, np.log(3), rtol=1e-5)
    applied = curvature.apply_function(jnp.log, triple, ones, ones, depth=3)
    np.testing.assert_allclose(applied, np.log(3), rtol=1e-5)


def test_one_product_leaves_a_whole_error():
    slope = jnp.concatenate([jnp.zeros(500), jnp.full(500, 2.0)])
    loss = lambda x: 0.5 * jnp.sum(slope * x * x)  # noqa: E731
    found = curvature.trace_function(jnp.square, loss, jnp.ones(1000), key=KEY, depth=1)
    assert abs(float(found.mean) - 2000) < 3 * float(found.standard_error)


def test_an_eigenvalue_that_may_be_zero_counts_in_the_error():
    x = jax.random.normal(jax.random.key(1), (2, 4))  # rank 2 of 4
    loss = lambda w: 0.5 * jnp.sum((x @ w) ** 2)  # noqa: E731
    found = curvature.effective_dimension(loss, jnp.ones(4), damping=1e-10, key=KEY, num_probes=2)
    assert np.isnan(found.mean) or abs(float(found.mean) - 2) < 3 * float(found.standard_error)


def test_draws_are_counted_where_outputs_have_16_bits():
    x = jax.random.normal(KEY, (3, 5))
    options = {"kind": "cross_entropy", "samples": 2000, "key": KEY}
    wide = curvature.fisher(lambda w: x @ w, **options)
    short = curvature.fisher(lambda w: (x @ w).astype(jnp.bfloat16), **options)
    at = jnp.zeros((5, 2))
    np.testing.assert_allclose(
        curvature.spectrum(short, at)[-1], curvature.spectrum(wide, at)[-1], rtol=0.1
    )


def test_losses_of_16_bits_are_summed_in_single_precision():
    whole = curvature.over_batches(
        lambda w, b: jnp.bfloat16(1) + 0 * w[0], [np.zeros((64, 1), "f4")] * 500
    )
    assert float(whole(jnp.ones(1, jnp.bfloat16))) == pytest.approx(1)


@pytest.mark.parametrize("seed", range(6))
def test_signs_orthogonal_to_the_whole_hessian_are_no_asymmetry(seed):
    found = curvature.trace(
        lambda x: jnp.mean(x) ** 2, jnp.ones(4), key=jax.random.key(seed), num_probes=10
    )
    assert abs(float(found.mean) - 0.5) <= 4 * float(found.standard_error)


def test_rounding_that_is_the_same_for_all_probes_is_not_averaged():
    found = curvature.trace(
        lambda x: jnp.sum(jnp.cosh(x)), jnp.array([0.7]), key=KEY, num_probes=1000
    )
    assert abs(float(found.mean) - np.cosh(0.7)) <= float(found.standard_error)
    assert float(found.standard_error) >= np.finfo(np.float32).eps * np.cosh(0.7)


def test_frozen_layers_of_16_bits_are_taken_in_single_precision():
    params = {"a": jnp.full((3, 3), 0.3, jnp.float16), "b": jnp.ones(3, jnp.float16)}
    loss = lambda p: jnp.sum(jnp.tanh(p["a"] @ p["b"]) ** 2)  # noqa: E731
    whole = {name: leaf.astype(jnp.float32) for name, leaf in params.items()}
    found = curvature.spectrum(*curvature.subset(loss, params, "b"))
    np.testing.assert_allclose(found, curvature.spectrum(*curvature.subset(loss, whole, "b")))


def test_a_tracker_recovers_from_a_point_that_is_not_finite():
    follow = curvature.tracker(lambda x: jnp.sum(x**4), 1)
    state = follow.init(jnp.ones(3), KEY)
    state = follow.update(jnp.full(3, jnp.nan), state)
    assert np.isnan(state.pairs.values[0]) and not bool(state.pairs.converged[0])
    state = follow.update(jnp.ones(3), state)
    assert float(state.pairs.values[0]) == pytest.approx(12, rel=1e-3)
