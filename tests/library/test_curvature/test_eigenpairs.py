import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse.linalg
from flax import nnx
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import pfcore
from pfcore.curvature import top_eigenpairs
from pfcore.curvature.dense import gradient_and_hessian
from pfcore.curvature.eigenpairs import SMALL, subspace_rows
from tests.conftest import flatten_path, mixed_loss, mixed_params
from tests.library.test_curvature.test_krylov import symmetric

pytestmark = pytest.mark.usefixtures("x64")

WHICH = ("largest", "smallest", "magnitude")
LARGE = 130  # more than the subspace has rows: thick restarts happen


@functools.cache
def solver(n, k, which, check=None):
    """Compiled once for every matrix of a size, key and tolerance."""

    @jax.jit
    def solve(matrix, key, tolerance):
        return top_eigenpairs(
            lambda x: 0.5 * x @ (matrix @ x),
            jnp.zeros(n, matrix.dtype),
            k,
            key=key,
            tolerance=tolerance,
            which=which,
            check=check,
            max_products=1000,
        )

    def solve_numpy(matrix, tolerance, seed=0):
        found = solve(jnp.asarray(matrix), jax.random.key(seed), tolerance)
        return jax.tree.map(np.asarray, found)

    return solve_numpy


def best(eigenvalues, which):
    """All of them, in the order asked for."""
    rank = {"largest": -eigenvalues, "smallest": eigenvalues, "magnitude": -np.abs(eigenvalues)}
    return eigenvalues[np.argsort(rank[which], kind="stable")]


def assert_values(values, eigenvalues, which, tolerance):
    """The right ones, each as often as it is there, to the tolerance."""
    norm = np.abs(eigenvalues).max(initial=0)
    expected = best(eigenvalues, which)[: len(values)]
    allowed = tolerance * np.maximum(np.abs(expected), SMALL * norm) * 1.001 + 1e-13 * norm
    if which != "magnitude":
        assert np.all(np.abs(values - expected) <= allowed), (values, expected)
        return
    # Of equal magnitudes either sign may come first; of one sign the order is fixed.
    assert np.all(np.abs(np.abs(values) - np.abs(expected)) <= allowed), (values, expected)
    for sign in (-1, 1):
        found = sign * values[sign * values > allowed]
        one_sided = np.sort(sign * eigenvalues)[::-1][: len(found)]
        assert np.all(np.abs(found - one_sided) <= allowed.max()), (values, eigenvalues)


def assert_honest(pairs, matrix, eigenvalues, tolerance):
    """The reported errors, against NumPy, of converged and of other pairs."""
    norm = np.abs(eigenvalues).max()
    rounding = 1e-13 * norm
    vectors = np.asarray(pairs.vectors)
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(len(vectors)), atol=1e-12)
    true = np.linalg.norm(vectors @ matrix - pairs.values[:, None] * vectors, axis=1)
    assert np.all(pairs.residuals >= 0.999 * true - rounding), (pairs.residuals, true)
    assert np.all(pairs.residuals <= 1.001 * true + rounding), (pairs.residuals, true)
    # ‖H‖ is known from within the subspace alone: at least the largest value, at most itself.
    assert np.all(
        pairs.residuals[pairs.converged]
        <= tolerance * np.maximum(np.abs(pairs.values), SMALL * norm)[pairs.converged] * 1.000001
    )
    assert np.all(
        pairs.residuals[~pairs.converged] > tolerance * np.abs(pairs.values)[~pairs.converged]
    )


def assert_found(pairs, matrix, which, tolerance):
    assert np.all(pairs.converged), pairs
    eigenvalues = np.linalg.eigvalsh(matrix)
    assert_values(pairs.values, eigenvalues, which, tolerance)
    assert_honest(pairs, matrix, eigenvalues, tolerance)


def ends(top, rest, n=LARGE):
    """`top` at the upper end, minus 0.9 of it at the lower, the rest spread in between."""
    top = np.asarray(top, float)
    return np.concatenate([top, -0.9 * top, np.linspace(-rest, rest, n - 2 * len(top))])


SPECTRA = {
    "separated": ends([10, 9, 8, 7, 6, 5], 3),
    "decaying": np.concatenate([np.geomspace(1e-6, 10, 65), -np.geomspace(1e-6, 7, 65)]),
    "even": np.linspace(-5, 6, LARGE),
    "clustered": ends(10 + 1e-9 * np.arange(7), 3),
    "double": ends([10, 10, 8, 8, 6, 6], 3),
    "triple below": ends([10, 8, 8, 8, 6], 3),
    "eightfold": ends([10] * 8, 3),
    "rank one": np.r_[5.0, np.zeros(LARGE - 1)],
    "rank three": np.r_[5.0, 5.0, -4.0, np.zeros(LARGE - 3)],
    "zero": np.zeros(LARGE),
    "identity": np.ones(LARGE),
    "two values": np.resize([3.0, -2.0], LARGE),
    "negative": -np.geomspace(0.1, 30, LARGE),
    "one below": np.r_[-1e3, np.linspace(0, 1, LARGE - 1)],
}


@functools.cache
def prescribed(name):
    eigenvalues = SPECTRA[name]
    # A multiple of the identity exactly: rotated, it would be one up to rounding only.
    return symmetric(eigenvalues) if np.ptp(eigenvalues) else np.diag(eigenvalues)


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize(
    "which, k",
    [
        ("largest", 1),
        ("largest", 3),
        ("largest", 5),
        ("smallest", 3),
        ("magnitude", 5),
    ],
)
def test_prescribed_spectra(which, k, name):
    """Counted with multiplicity: no ghosts, none missing."""
    assert subspace_rows(k, LARGE) < LARGE
    for tolerance in (1e-3, 1e-8):
        pairs = solver(LARGE, k, which)(prescribed(name), tolerance)
        assert_found(pairs, prescribed(name), which, tolerance)


def test_the_check_for_copies_takes_few_products():
    """Where there is a gap below the last eigenvalue, it is soon clear that none was missed."""
    matrix = prescribed("separated")
    without = solver(LARGE, 3, "largest", check=False)(matrix, 1e-3)
    with_check = solver(LARGE, 3, "largest")(matrix, 1e-3)
    assert with_check.num_products <= without.num_products + 12
    np.testing.assert_allclose(with_check.values, without.values, rtol=1e-3)


def test_further_copies_of_the_last_eigenvalue_are_not_looked_for():
    """Of forty equal eigenvalues two are wanted; the others would take all products."""
    matrix = symmetric(ends([10] * 40, 3))
    for seed in range(10):
        pairs = solver(LARGE, 2, "largest")(matrix, 1e-3, seed)
        assert pairs.num_products <= 60
        assert_found(pairs, matrix, "largest", 1e-3)


def test_a_zero_hessian_takes_few_products():
    """Every vector is an eigenvector: nothing better is there to be looked for."""
    pairs = solver(LARGE, 5, "largest")(np.zeros((LARGE, LARGE)), 1e-3)
    assert pairs.num_products <= 20


@pytest.mark.parametrize("tolerance", [1e-3, 1e-8])
def test_without_the_check_a_second_copy_is_missed(tolerance):
    """One starting vector sees one direction of a double eigenvalue: why the check is there."""
    matrix, expected = prescribed("double"), [10, 10, 8]
    missed = solver(LARGE, 3, "largest", check=False)(matrix, 1e-3)
    np.testing.assert_allclose(missed.values, [10, 8, 6], rtol=1e-3)
    assert np.all(missed.converged)  # they are eigenpairs, only not the first three
    assert_honest(missed, matrix, SPECTRA["double"], 1e-3)
    found = solver(LARGE, 3, "largest")(matrix, tolerance)
    np.testing.assert_allclose(found.values, expected, rtol=tolerance)


def test_copies_are_missed_as_rarely_as_said():
    """For one key in twenty at most."""
    misses = 0
    for name, expected in (("double", [10, 10, 8]), ("triple below", [10, 8, 8])):
        for seed in range(100):
            found = solver(LARGE, 3, "largest")(prescribed(name), 1e-8, seed)
            misses += not np.allclose(found.values, expected, rtol=1e-3)
    assert misses <= 10


SMALL_SPECTRA = {
    "one": [3.0],
    "one negative": [-3.0],
    "one zero": [0.0],
    "saddle": [1.0, -2.0],
    "equal and opposite": [2.0, -2.0],
    "twice": [2.0, 2.0],
    "singular": [2.0, 0.0],
    "nearly twice": [2.0, 2.0 + 1e-12],
    "three": [3.0, 0.5, -4.0],
    "twice of three": [1.0, 1.0, -1.0],
    "tiny": [3e-30, 2e-30, -1e-30],
    "huge": [3e30, 2e30, -1e30],
    "far apart": [1e12, 1.0, -1e-12],
}


@pytest.mark.parametrize("name", SMALL_SPECTRA)
def test_as_many_as_there_are_parameters(name):
    eigenvalues = np.array(SMALL_SPECTRA[name])
    n = len(eigenvalues)
    matrix = symmetric(eigenvalues)
    for tolerance in (1e-3, 1e-8):
        pairs = solver(n, n, "magnitude")(matrix, tolerance)
        assert_found(pairs, matrix, "magnitude", tolerance)
        assert pairs.num_products <= n


entries = st.one_of(
    st.sampled_from([0.0, 1.0, -1.0, 2.0]),
    st.floats(-3, 3, width=32, allow_subnormal=False),
)


@settings(deadline=None, max_examples=150)
@given(
    st.sampled_from([1, 2, 3, 8]).flatmap(lambda n: arrays(float, (n, n), elements=entries)),
    st.integers(0, 2**16),
)
@example(np.eye(8), 0)
@example(np.ones((8, 8)), 0)
@example(np.zeros((8, 8)), 0)
@example(np.kron(np.eye(4), np.array([[0.0, 1.0], [1.0, 0.0]])), 0)
@example(np.diag([1.0, 1.0, 1.0, 1.0, 1e-20, 1e-20, 0.0, 0.0]), 0)
def test_any_small_matrix(half, seed):
    """Multiple eigenvalues, invariant subspaces, entries many orders apart."""
    matrix, n = (half + half.T) / 2, len(half)
    pairs = solver(n, min(n, 3), "magnitude")(matrix, 1e-6, seed)
    assert_found(pairs, matrix, "magnitude", 1e-6)
    assert pairs.num_products <= n


def digits_loss(dtype):
    data = pfcore.datasets.load("digits", dtype=np.dtype(dtype))
    model = pfcore.networks.MLP((64, 4, 8, 10), param_dtype=dtype, rngs=nnx.Rngs(0))
    return pfcore.losses.full_batch(
        model, data.train_inputs[:256], data.train_targets[:256], kind="cross_entropy"
    )


@functools.cache
def digits():
    """A network of 390 parameters in both precisions at the same point, and its dense Hessian
    with the eigenvalues."""
    single, params = digits_loss(jnp.float32)
    double, _ = digits_loss(jnp.float64)
    params = jax.tree.map(lambda x: x.astype(jnp.float64), params)
    hessian = jax.jit(lambda x: gradient_and_hessian(double, x)[1])(params)
    hessian = np.asarray(hessian)
    return double, single, params, hessian, np.linalg.eigvalsh(hessian)


def in_matrix_form(pairs):
    """The vectors as rows."""
    pairs = jax.tree.map(np.asarray, pairs)
    return pairs._replace(vectors=flatten_path(pairs.vectors))


@pytest.mark.parametrize("tolerance", [1e-3, 1e-8])
def test_network_against_its_dense_spectrum(tolerance):
    loss, _, params, hessian, eigenvalues = digits()
    pairs = top_eigenpairs(loss, params, 5, key=jax.random.key(0), tolerance=tolerance)
    assert jax.tree.structure(pairs.vectors) == jax.tree.structure(params)
    assert np.all(pairs.converged)
    pairs = in_matrix_form(pairs)
    assert_values(pairs.values, eigenvalues, "largest", tolerance)
    assert_honest(pairs, hessian, eigenvalues, tolerance)
    if tolerance == 1e-3:
        assert pairs.num_products < 60


def test_network_in_single_precision():
    """Converges in single precision where possible, and reports where it does not."""
    _, loss, params, hessian, eigenvalues = digits()
    params = jax.tree.map(lambda x: x.astype(jnp.float32), params)
    pairs = top_eigenpairs(loss, params, 5, key=jax.random.key(0))
    assert {x.dtype for x in jax.tree.leaves(pairs)} == {jnp.dtype(t) for t in ("f4", "i4", "?")}
    assert np.all(pairs.converged)
    assert_values(np.asarray(pairs.values), eigenvalues, "largest", 1e-3)
    vectors = flatten_path(pairs.vectors).astype(float)
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(5), atol=1e-5)
    true = np.linalg.norm(vectors @ hessian - np.asarray(pairs.values)[:, None] * vectors, axis=1)
    np.testing.assert_allclose(
        pairs.residuals, true, rtol=0.02, atol=2e-6 * np.abs(eigenvalues).max()
    )

    out_of_reach = top_eigenpairs(loss, params, 5, key=jax.random.key(0), tolerance=1e-9)
    assert not np.any(out_of_reach.converged)
    assert_values(np.asarray(out_of_reach.values), eigenvalues, "largest", 1e-5)


def test_network_against_scipy():
    loss, _, params, hessian, _ = digits()
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    product = jax.jit(
        lambda v: jax.flatten_util.ravel_pytree(
            pfcore.curvature.hvp(loss, params, unravel(v)),
        )[0]
    )
    operator = scipy.sparse.linalg.LinearOperator(
        hessian.shape, matvec=lambda v: np.asarray(product(v)), dtype=float
    )
    v0 = np.random.default_rng(0).normal(size=flat.size)
    values = scipy.sparse.linalg.eigsh(operator, 5, which="LA", v0=v0)[0]
    pairs = top_eigenpairs(loss, params, 5, key=jax.random.key(0), tolerance=1e-8)
    np.testing.assert_allclose(pairs.values, values[::-1], rtol=1e-8)


def test_warm_start_takes_fewer_products():
    loss, _, params, *_ = digits()
    key = jax.random.key(0)
    start = top_eigenpairs(loss, params, 5, key=key, tolerance=1e-8).vectors
    moved = jax.tree.map(lambda x, g: x - 1e-3 * g, params, jax.grad(loss)(params))
    for tolerance in (1e-3, 1e-8):
        cold = top_eigenpairs(loss, moved, 5, key=key, tolerance=tolerance)
        warm = top_eigenpairs(loss, moved, 5, key=key, tolerance=tolerance, start=start)
        assert np.all(cold.converged) and np.all(warm.converged)
        np.testing.assert_allclose(warm.values, cold.values, rtol=2 * tolerance)
        if tolerance == 1e-3:
            assert int(warm.num_products) < 0.5 * int(cold.num_products)


@pytest.mark.parametrize("which", WHICH)
@pytest.mark.parametrize("check", [False, True])
def test_more_starts_than_the_basis_has_rows(which, check):
    """Eigenvectors, which leave nothing behind when they have been multiplied."""
    eigenvalues = np.linspace(1, 3, LARGE)
    starts = np.arange(10, 50)
    assert len(starts) > subspace_rows(2, LARGE)
    pairs = top_eigenpairs(
        lambda x: 0.5 * jnp.sum(eigenvalues * x**2),
        jnp.zeros(LARGE),
        2,
        key=jax.random.key(0),
        which=which,
        start=jnp.eye(LARGE)[starts],
        check=check,
        max_products=1000,
    )
    assert np.all(pairs.converged)
    among = eigenvalues if check else eigenvalues[starts]
    np.testing.assert_allclose(pairs.values, best(among, which)[:2], rtol=1e-5)


@pytest.mark.parametrize("max_products", [3, 5, 6, 12, 40])
def test_too_few_products_are_reported(max_products):
    """No more products are used, and the reported errors stay correct."""
    loss, _, params, hessian, eigenvalues = digits()
    pairs = top_eigenpairs(
        loss, params, 5, key=jax.random.key(0), tolerance=1e-8, max_products=max_products
    )
    assert pairs.num_products == max_products and not np.all(pairs.converged)
    pairs = in_matrix_form(pairs)
    there = min(max_products, 5)
    assert np.all(np.isnan(pairs.values[there:])) and np.all(np.isinf(pairs.residuals[there:]))
    assert not np.any(pairs.converged[there:])
    honest = pfcore.paths.at(pairs._replace(num_products=np.zeros(there)), slice(there))
    assert_honest(honest, hessian, eigenvalues, 1e-8)


@functools.cache
def solver_with_products_of():
    """Like `solver`, but for a loss whose Hessian products are those of any matrix."""

    @jax.custom_jvp
    def loss(x, matrix):
        return 0.5 * x @ (matrix @ x)

    @loss.defjvp
    def wrong(primals, tangents):
        x, matrix = primals
        return loss(x, matrix), tangents[0] @ (matrix @ x)

    return jax.jit(
        lambda matrix: top_eigenpairs(
            lambda x: loss(x, matrix), jnp.zeros(LARGE), 3, key=jax.random.key(0)
        )
    )


@pytest.mark.parametrize("defect", ["asymmetric", "infinite", "NaN"])
def test_products_of_no_symmetric_matrix(defect):
    """The derivative of a custom gradient that is incorrect, or not finite."""
    matrix = prescribed("separated").copy()
    if defect == "asymmetric":
        matrix += 0.1 * np.triu(np.random.default_rng(0).normal(size=matrix.shape), 1)
    else:
        matrix[17, 17] = float(defect[:3])
    pairs = solver_with_products_of()(jnp.asarray(matrix))
    assert np.all(np.isnan(pairs.values)) and not np.any(pairs.converged)
    assert np.all(np.isinf(pairs.residuals))
    if defect != "asymmetric":
        assert pairs.num_products == 1  # it ends there
    pairs = solver_with_products_of()(jnp.asarray(prescribed("separated")))
    np.testing.assert_allclose(pairs.values, [10, 9, 8], rtol=1e-3)


def test_pytree_of_two_precisions():
    """Vectors come back leaf by leaf in the dtypes of the params."""
    params = mixed_params()
    params["layer"]["b"] = params["layer"]["b"].astype(jnp.float32)

    def loss(params):
        return mixed_loss(jax.tree.map(lambda x: x.astype(jnp.float64), params))

    pairs = top_eigenpairs(loss, params, 4, key=jax.random.key(0), tolerance=1e-5)
    assert jax.tree.structure(pairs.vectors) == jax.tree.structure(params)
    assert jax.tree.map(lambda u, x: u.shape == (4, *x.shape), pairs.vectors, params)
    assert jax.tree.map(lambda u: u.dtype, pairs.vectors) == jax.tree.map(lambda x: x.dtype, params)
    assert pairs.values.dtype == jnp.float64 and np.all(pairs.converged)
    in_double = jax.tree.map(lambda x: x.astype(jnp.float64), params)
    eigenvalues = np.asarray(pfcore.curvature.spectrum(mixed_loss, in_double))
    assert_values(np.asarray(pairs.values), eigenvalues, "largest", 1e-5)
    vectors = flatten_path(pairs.vectors).astype(float)
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(4), atol=1e-6)


def test_rounding_of_the_narrower_precision_is_no_asymmetry():
    """Products are as accurate as the narrowest dtype on their way, not as the widest."""
    half = np.random.default_rng(0).normal(size=(1600, 400)) / 40

    def loss(params):
        image = jnp.asarray(half, jnp.float32) @ params["single"]
        squares = jnp.sum(image**2).astype(jnp.float64)
        return 0.5 * (squares + jnp.sum(params["double"] ** 2))

    params = {"single": jnp.zeros(400, jnp.float32), "double": jnp.zeros(3, jnp.float64)}
    pairs = top_eigenpairs(loss, params, 5, key=jax.random.key(0))
    assert np.all(pairs.converged)
    expected = np.linalg.svd(half, compute_uv=False)[:5] ** 2
    np.testing.assert_allclose(pairs.values, expected, rtol=1e-3)


def test_vmap_over_learning_rates():
    """h times the sharpness after one step of gradient descent with h."""
    start = mixed_params()
    gradient = jax.grad(mixed_loss)(start)

    def sharpness(h):
        moved = jax.tree.map(lambda x, g: x - h * g, start, gradient)
        pairs = top_eigenpairs(mixed_loss, moved, 2, key=jax.random.key(0), tolerance=1e-6)
        return h * pairs.values, moved, pairs.converged

    rates = jnp.array([0.01, 0.1, 0.5, 1.0])
    scaled, moved, converged = jax.jit(jax.vmap(sharpness))(rates)
    assert np.all(converged)
    for i, h in enumerate(rates):
        dense = pfcore.curvature.spectrum(mixed_loss, pfcore.paths.at(moved, i))
        np.testing.assert_allclose(scaled[i], h * dense[::-1][:2], rtol=1e-6)


def test_the_key_decides():
    matrix = prescribed("even")
    solve = solver(LARGE, 3, "largest")
    first, again, other = solve(matrix, 1e-3), solve(matrix, 1e-3), solve(matrix, 1e-3, seed=1)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert np.abs(first.vectors - other.vectors).max() > 1e-6
    np.testing.assert_allclose(first.values, other.values, rtol=1e-3)


@pytest.mark.parametrize(
    "reshaped, message",
    [
        (
            lambda shape: shape,
            r"start\['layer'\]\['b'\] has shape \(3,\), but must have \('k', 3\)",
        ),
        (lambda shape: (1, *shape, 1), r"\(1, 3, 1\), but must have \('k', 3\)"),
        (lambda shape: (0, *shape), r"\(0, 3\), but must have \('k', 3\)"),
        (lambda shape: (len(shape) + 1, *shape), r"different numbers of vectors, \[2, 1, 3\]"),
        (None, r"start\['layer'\]\['b'\] is missing, there is \['w'\]"),
    ],
    ids=["no axis", "shapes", "none", "lengths", "structure"],
)
def test_start_that_does_not_fit(reshaped, message):
    params = mixed_params()
    if reshaped is None:
        start = {"w": jnp.ones((2, 2, 3))}
    else:
        start = jax.tree.map(lambda x: jnp.ones(reshaped(x.shape)), params)
    with pytest.raises(ValueError, match=message):
        top_eigenpairs(mixed_loss, params, 2, key=jax.random.key(0), start=start)


def test_refusals():
    def find(k=1, loss=mixed_loss, **options):
        return top_eigenpairs(loss, mixed_params(), k, key=jax.random.key(0), **options)

    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        find(0)
    with pytest.raises(ValueError, match="at most the number of parameters, 10, got 11"):
        find(11)
    with pytest.raises(TypeError, match=r"1\.5"):
        find(1.5)
    with pytest.raises(ValueError, match="largest, smallest, magnitude, got 'top'"):
        find(which="top")
    for tolerance in (0, -1e-3, np.nan, np.inf):
        with pytest.raises(ValueError, match="tolerance must be positive and finite"):
            find(tolerance=tolerance)
    with pytest.raises(ValueError, match="max_products must be at least 1, got 0"):
        find(max_products=0)
    with pytest.raises(TypeError, match=r"9\.5"):
        find(max_products=9.5)
    with pytest.raises(ValueError, match=r"one number, got \(2, 3\)"):
        find(loss=lambda p: p["w"])
    with pytest.raises(ValueError, match="nan"):
        find(loss=lambda p: jnp.log(-jnp.abs(p["layer"]["s"])))
