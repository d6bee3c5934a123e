import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import pfcore
from pfcore.curvature import apply_function, function_product
from pfcore.curvature.krylov import krylov_apply, krylov_space, matrix_function
from pfcore.objectives import quadratic_form
from pfcore.stability import principal_coefficient
from tests.conftest import flatten, mixed_loss, mixed_params
from tests.library.test_curvature.test_dense import complex_symmetric, orthogonal

pytestmark = pytest.mark.usefixtures("x64")


def symmetric(eigenvalues, seed=0):
    q = orthogonal(len(eigenvalues), seed)
    matrix = (q * eigenvalues) @ q.T
    return (matrix + matrix.T) / 2


def random_complex_symmetric(n, seed=0):
    rng = np.random.default_rng(seed)
    matrix = rng.normal(size=(n, n)) + 0.5j * rng.normal(size=(n, n))
    return (matrix + matrix.T) / (2 * n**0.5)


def vector_of(n, *, complex_values=False, seed=1):
    rng = np.random.default_rng(seed)
    return rng.normal(size=n) + (1j * rng.normal(size=n) if complex_values else 0)


def space_of(matrix, vector, depth):
    matrix, vector = jnp.asarray(matrix), jnp.asarray(vector)
    space = krylov_space(lambda v: matrix @ v, vector, depth)
    return jax.tree.map(np.asarray, space)


def matrices(n):
    return {
        "real": symmetric(np.linspace(-2, 5, n)),
        "wide": symmetric(np.geomspace(1e-6, 1e3, n)),
        "complex": random_complex_symmetric(n),
    }


@pytest.mark.parametrize("kind", ["real", "wide", "complex"])
@pytest.mark.parametrize("depth", [1, 2, 7, 20])
def test_space_is_orthonormal_and_holds_the_projection(kind, depth):
    matrix = matrices(20)[kind]
    vector = vector_of(20, complex_values=kind == "complex")
    space = space_of(matrix, vector, depth)
    q = space.basis
    assert q.shape == (depth, 20) and space.projected.shape == (depth, depth)
    np.testing.assert_allclose(q.conj() @ q.T, np.eye(depth), atol=1e-14)
    np.testing.assert_allclose(space.norm * q[0], vector, rtol=1e-14)
    np.testing.assert_allclose(
        space.projected, q.conj() @ matrix @ q.T, atol=1e-13 * np.abs(matrix).max() * 20
    )


@pytest.mark.parametrize("outlier", [1.0, 1e3, 1e6])
def test_space_is_orthonormal_in_single_precision(outlier):
    values = jnp.linspace(-1, 1, 3000, dtype=jnp.float32).at[0].set(outlier)
    start = jnp.asarray(np.random.default_rng(0).normal(size=3000), jnp.float32)
    space = jax.jit(lambda v: krylov_space(lambda v: values * v, v, 60))(start)
    q = np.asarray(space.basis, np.float64)
    filled = np.any(q != 0, axis=1)
    assert filled.sum() > 20
    np.testing.assert_allclose(q @ q.T, np.diag(1.0 * filled), atol=1e-6)


@pytest.mark.parametrize("kind", ["real", "wide", "complex"])
def test_residual_is_along_the_next_direction_alone(kind):
    """H Q − Q T = β q_{m+1} e_mᵀ."""
    matrix = matrices(20)[kind]
    vector = vector_of(20, complex_values=kind == "complex")
    space, longer = space_of(matrix, vector, 7), space_of(matrix, vector, 8)
    residual = matrix @ space.basis.T - space.basis.T @ space.projected
    size = np.abs(matrix).max()
    np.testing.assert_allclose(residual[:, :-1], 0, atol=1e-13 * size * 20)
    expected = longer.projected[7, 6] * longer.basis[7]
    np.testing.assert_allclose(residual[:, -1], expected, atol=1e-13 * size * 20)


def test_projection_is_tridiagonal_when_real_and_hessenberg_when_complex():
    real = space_of(matrices(12)["real"], vector_of(12), 8).projected
    np.testing.assert_array_equal(real, real.T)
    np.testing.assert_array_equal(np.triu(real, 2), 0)
    assert np.all(np.diagonal(real, 1) > 0)
    hessenberg = space_of(matrices(12)["complex"], vector_of(12, complex_values=True), 8).projected
    np.testing.assert_array_equal(np.tril(hessenberg, -2), 0)
    assert np.abs(np.triu(hessenberg, 2)).max() > 1e-3  # not tridiagonal: H is not Hermitian


def test_eigenvalues_at_full_depth():
    eigenvalues = np.array([-3.0, -0.1, 0.2, 1.0, 1.5, 40.0])
    space = space_of(symmetric(eigenvalues), vector_of(6), 6)
    np.testing.assert_allclose(np.linalg.eigvalsh(space.projected), eigenvalues, atol=1e-12)


@pytest.mark.parametrize(
    "eigenvalues, dimension",
    [
        ([5.0, 0, 0, 0, 0, 0], 2),  # rank one: v and Hv
        ([2.0, 2, 2, 2, 2, 2], 1),
        ([2.0, 2, 2, -1, -1, -1], 2),
        ([3.0, 3, 1, 1, 0, 0], 3),
        ([0.0, 0, 0, 0, 0, 0], 1),
        ([1e-8, 1e-8, 1e-8, 3e-8, 3e-8, 3e-8], 2),
        ([1e8, 1e8, 1e8, 3e8, 3e8, 3e8], 2),
    ],
)
@pytest.mark.parametrize("complex_values", [False, True])
def test_exhausted_space_ends_in_zeros(eigenvalues, dimension, complex_values):
    matrix = symmetric(eigenvalues).astype(complex if complex_values else float)
    space = space_of(matrix, vector_of(6, complex_values=complex_values), 6)
    gram = space.basis.conj() @ space.basis.T
    np.testing.assert_allclose(
        gram, np.diag([1.0] * dimension + [0.0] * (6 - dimension)), atol=1e-7
    )
    np.testing.assert_array_equal(space.basis[dimension:], 0)
    np.testing.assert_array_equal(space.projected[dimension:, :dimension], 0)
    inside = np.linalg.eigvals(space.projected[:dimension, :dimension])
    np.testing.assert_allclose(
        np.sort(inside.real), np.unique(eigenvalues), atol=1e-12 * max(eigenvalues)
    )


@pytest.mark.parametrize("complex_values", [False, True])
def test_zero_vector_gives_zero(complex_values):
    dtype = complex if complex_values else float
    matrix = symmetric([1.0, 2.0, 3.0]).astype(dtype)
    space = space_of(matrix, np.zeros(3, dtype), 3)
    for part in space:
        np.testing.assert_array_equal(part, 0)
    product = krylov_apply(jnp.exp, lambda v: jnp.asarray(matrix) @ v, jnp.zeros(3, dtype), 3).value
    np.testing.assert_array_equal(product, 0)


@pytest.mark.parametrize("name", ["exp", "sqrt"])
@pytest.mark.parametrize("kind", ["real", "complex"])
def test_matrix_function_against_scipy(name, kind):
    matrix = symmetric(np.linspace(0.1, 3, 12)) if kind == "real" else random_complex_symmetric(12)
    vector = vector_of(12, complex_values=kind == "complex")
    found = matrix_function(getattr(jnp, name), jnp.asarray(matrix), jnp.asarray(vector))
    dense = {"exp": scipy.linalg.expm, "sqrt": scipy.linalg.sqrtm}[name](matrix)
    np.testing.assert_allclose(found, dense @ vector, rtol=1e-10, atol=1e-11)


def test_matrix_function_of_a_complex_matrix_with_a_real_spectrum_stays_on_one_side_of_the_cut():
    """Rounding moves eigenvalues off the axis, to either side; the cut must not see it."""
    eigenvalues = np.linspace(-4, -1, 40)  # on the cut of the square root
    matrix, vector = complex_symmetric(eigenvalues), vector_of(40).astype(complex)
    rounding = np.linalg.eigvals(matrix).imag
    assert rounding.min() < 0 < rounding.max() < 1e-13
    found = matrix_function(jnp.sqrt, jnp.asarray(matrix), jnp.asarray(vector))
    expected = complex_symmetric(1j * np.sqrt(-eigenvalues)) @ vector
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-11)


def polynomial(coefficients, x):
    return functools.reduce(lambda total, c: total * x + c, coefficients, 0 * x)


@pytest.mark.parametrize("depth", [1, 2, 4, 6])
def test_polynomials_below_the_depth_are_exact(depth):
    matrix, vector = symmetric(np.linspace(-1, 2, 12)), vector_of(12)
    loss, params = quadratic_form(matrix), jnp.zeros(12)
    coefficients = np.random.default_rng(2).normal(size=depth).tolist()
    assert coefficients[0] != 0
    found = apply_function(
        lambda x: polynomial(coefficients, x), loss, params, jnp.asarray(vector), depth=depth
    )
    expected = functools.reduce(
        lambda total, c: matrix @ total + c * vector, coefficients, np.zeros(12)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-13)


def test_a_polynomial_at_the_depth_is_not_exact():
    matrix, vector = symmetric(np.linspace(-1, 2, 12)), vector_of(12)
    found = apply_function(
        lambda x: x**3, quadratic_form(matrix), jnp.zeros(12), jnp.asarray(vector), depth=3
    )
    assert np.abs(found - np.linalg.matrix_power(matrix, 3) @ vector).max() > 1e-3


@pytest.mark.parametrize("name", ["exp", "sqrt"])
def test_exact_at_full_depth(name):
    matrix, vector = symmetric(np.linspace(0.1, 3, 12)), vector_of(12)
    found = apply_function(
        getattr(jnp, name), quadratic_form(matrix), jnp.zeros(12), jnp.asarray(vector), depth=12
    )
    dense = {"exp": scipy.linalg.expm, "sqrt": scipy.linalg.sqrtm}[name](matrix)
    np.testing.assert_allclose(found, dense @ vector, rtol=1e-11, atol=1e-12)


def test_error_falls_with_the_depth():
    """‖error‖ ≤ 2‖v‖ e^{λ_max} (½ρ)^m / m!, ρ = ½(λ_max − λ_min), for exp (Saad 1992)."""
    matrix, vector = symmetric(np.linspace(-2, 2, 30)), vector_of(30)
    exact = scipy.linalg.expm(matrix) @ vector
    for depth in (4, 8, 12, 16):
        found = apply_function(
            jnp.exp, quadratic_form(matrix), jnp.zeros(30), jnp.asarray(vector), depth=depth
        )
        bound = 2 * np.linalg.norm(vector) * np.exp(2) * 2.0**depth / scipy.special.factorial(depth)
        assert np.linalg.norm(found - exact) < bound + 1e-12


def test_pytree_against_dense():
    params, vector = mixed_params(), jax.tree.map(jnp.cos, mixed_params())
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    hessian = np.asarray(jax.hessian(lambda x: mixed_loss(unravel(x)))(flat))
    found = apply_function(jnp.exp, mixed_loss, params, vector, depth=flat.size)
    assert jax.tree.structure(found) == jax.tree.structure(params)
    assert [x.shape for x in jax.tree.leaves(found)] == [x.shape for x in jax.tree.leaves(params)]
    np.testing.assert_allclose(
        flatten(found), scipy.linalg.expm(hessian) @ flatten(vector), rtol=1e-11
    )


def test_depth_is_clipped_to_the_dimension():
    params, vector = mixed_params(), jax.tree.map(jnp.cos, mixed_params())
    clipped, full = (
        apply_function(jnp.exp, mixed_loss, params, vector, depth=depth) for depth in (10**9, 10)
    )
    np.testing.assert_array_equal(flatten(clipped), flatten(full))


def test_a_complex_function_gives_a_complex_pytree():
    params, vector = mixed_params(), jax.tree.map(jnp.cos, mixed_params())
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    hessian = np.asarray(jax.hessian(lambda x: mixed_loss(unravel(x)))(flat))
    found = apply_function(
        lambda x: jnp.exp(1j * x.astype(complex)), mixed_loss, params, vector, depth=flat.size
    )
    assert jax.tree.structure(found) == jax.tree.structure(params)
    assert {x.dtype for x in jax.tree.leaves(found)} == {jnp.dtype(jnp.complex128)}
    expected = scipy.linalg.expm(1j * hessian) @ flatten(vector)
    np.testing.assert_allclose(flatten(found), expected, rtol=1e-11, atol=1e-12)


def test_single_precision_is_kept():
    params = mixed_params(jnp.float32)
    found = apply_function(jnp.exp, mixed_loss, params, params, depth=10)
    assert {x.dtype for x in jax.tree.leaves(found)} == {jnp.dtype(jnp.float32)}
    double = apply_function(jnp.exp, mixed_loss, mixed_params(), mixed_params(), depth=10)
    np.testing.assert_allclose(flatten(found), flatten(double), rtol=1e-4, atol=1e-5)


def test_zero_vector():
    params = mixed_params()
    zero = jax.tree.map(jnp.zeros_like, params)
    np.testing.assert_array_equal(
        flatten(apply_function(jnp.exp, mixed_loss, params, zero, depth=5)), 0
    )


def test_refusals():
    loss, params = pfcore.objectives.quadratic, jnp.ones(2)
    with pytest.raises(ValueError, match="depth must be at least 1, got 0"):
        apply_function(jnp.exp, loss, params, params, depth=0)
    with pytest.raises(TypeError, match=r"1\.5"):
        apply_function(jnp.exp, loss, params, params, depth=1.5)
    with pytest.raises(ValueError, match="one number"):
        apply_function(jnp.exp, lambda x: x, params, params, depth=2)
    with pytest.raises(TypeError, match="int"):
        apply_function(jnp.exp, loss, jnp.ones(2, int), params, depth=2)


@jax.jit
def exponential(matrix, vector):
    return apply_function(
        jnp.exp,
        lambda x: 0.5 * x @ (matrix @ x),
        jnp.zeros_like(vector),
        vector,
        depth=vector.size,
    )


entries = st.one_of(
    st.sampled_from([0.0, 1.0, -1.0, 2.0]),
    st.floats(-3, 3, width=32, allow_subnormal=False),
)


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from([1, 2, 4]).flatmap(
        lambda n: st.tuples(
            arrays(float, (n, n), elements=entries), arrays(float, n, elements=entries)
        )
    )
)
@example((np.eye(4), np.ones(4)))
@example((np.ones((4, 4)), np.ones(4)))
@example((np.zeros((2, 2)), np.array([1e-30, 0.0])))
def test_any_small_matrix(problem):
    """Exhausted and nearly exhausted spaces included: rank-deficient matrices, vectors with few
    components, entries many orders apart."""
    half, vector = problem
    matrix = (half + half.T) / 2
    found = exponential(jnp.asarray(matrix), jnp.asarray(vector))
    values, vectors = np.linalg.eigh(matrix)
    expected = vectors @ (np.exp(values) * (vectors.T @ vector))
    size = np.exp(values[-1]) * np.linalg.norm(vector)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-11 * size)


@functools.cache
def product_of(function, depth=64):
    """Compiled once for all matrices of a size, vectors and tolerances."""
    return jax.jit(
        lambda matrix, vector, tolerance: function_product(
            function,
            lambda x: 0.5 * x @ (matrix @ x),
            jnp.zeros_like(vector),
            vector,
            depth=depth,
            tolerance=tolerance,
        )
    )


SIZE = 100  # more than the depth


def above(bulk, *top):
    return np.concatenate([np.linspace(*bulk, SIZE - len(top)), top])


CASES = {
    "exp": (jnp.exp, above((-2, 2))),
    "sqrt": (jnp.sqrt, above((0.5, 4))),
    "around 0.5": (principal_coefficient, above((-0.2, 0.4), 0.5, 0.55)),
    "around 1.5": (principal_coefficient, above((0.0, 0.4), 1.4, 1.5, 1.6)),
    "around 2.5": (principal_coefficient, above((0.0, 0.4), 0.5, 1.5, 2.4, 2.6)),
}


def exactly(function, eigenvalues, vector):
    q = orthogonal(SIZE)
    return q @ (np.asarray(function(jnp.asarray(eigenvalues))) * (q.T @ vector))


@pytest.mark.parametrize("case", CASES)
def test_function_product_is_as_good_as_it_says(case):
    """Below the tolerance, with an estimate that does not flatter, in a part of the products."""
    function, eigenvalues = CASES[case]
    matrix, vector = jnp.asarray(symmetric(eigenvalues)), vector_of(SIZE)
    exact = exactly(function, eigenvalues, vector)
    size, products = np.linalg.norm(exact), []
    for tolerance in (1e-2, 1e-5, 1e-9):
        found = product_of(function)(matrix, jnp.asarray(vector), tolerance)
        assert bool(found.converged) and int(found.num_products) < 50
        error = np.linalg.norm(found.value - exact)
        assert error <= tolerance * size
        assert 0.5 * error <= float(found.error) <= 1.01 * tolerance * size
        products.append(int(found.num_products))
    assert products[0] < products[1] < products[2]


@pytest.mark.parametrize("case", ["exp", "around 1.5"])
def test_function_product_at_too_small_a_depth_is_not_converged(case):
    function, eigenvalues = CASES[case]
    matrix, vector = jnp.asarray(symmetric(eigenvalues)), vector_of(SIZE)
    found = product_of(function, depth=7)(matrix, jnp.asarray(vector), 1e-9)
    assert not bool(found.converged) and int(found.num_products) == 7
    error = np.linalg.norm(found.value - exactly(function, eigenvalues, vector))
    assert 0.5 * error <= float(found.error) < 100 * error


def test_function_product_in_an_exhausted_space_is_exact():
    """Three eigenvalues: three products hold the answer, for every function and tolerance."""
    matrix = symmetric(np.resize([0.3, 1.7, 2.9], SIZE))
    found = product_of(principal_coefficient)(jnp.asarray(matrix), jnp.ones(SIZE), 1e-14)
    assert bool(found.converged) and int(found.num_products) <= 4
    assert 0 < float(found.error) < 1e-14 * np.linalg.norm(found.value)  # rounding alone
    expected = exactly(principal_coefficient, np.resize([0.3, 1.7, 2.9], SIZE), np.ones(SIZE))
    np.testing.assert_allclose(found.value, expected, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("kind", [int, bool])
def test_an_indicator_projects_and_counts(kind):
    loss, x = lambda x: jnp.sum(jnp.array([2.0, 5.0, 7.0]) * x**2) / 2, jnp.ones(3)

    def large(values):
        return (values > 3).astype(kind)

    np.testing.assert_allclose(apply_function(large, loss, x, x, depth=3), [0, 1, 1], atol=1e-12)
    found = function_product(large, loss, x, x)
    np.testing.assert_allclose(found.value, [0, 1, 1], atol=1e-12)
    assert bool(found.converged)
    count = pfcore.curvature.trace_function(large, loss, x, key=jax.random.key(0), num_probes=200)
    assert abs(float(count.mean) - 2) < 4 * float(count.standard_error)


def test_a_function_may_be_infinite_where_the_vector_has_no_component():
    loss = lambda x: jnp.sum(x**2) / 2  # noqa: E731
    found = function_product(lambda values: 1 / values, loss, jnp.zeros(3), jnp.zeros(3))
    assert not np.any(found.value) and float(found.error) == 0 and bool(found.converged)
    # φ(1) = -∞, and the gradient is zero there.
    field = pfcore.flows.principal_flow(loss, 1.0, state="real").vector_field(0.0, jnp.zeros(2))
    np.testing.assert_array_equal(field, 0)
    for dtype in (float, complex):
        matrix, vector = jnp.diag(jnp.array([1.0, 4.0], dtype)), jnp.array([0.0, 1.0], dtype)
        found = matrix_function(lambda z: 1 / (1 - z), matrix, vector)
        np.testing.assert_allclose(found, [0, -1 / 3], rtol=1e-14)


def test_function_product_of_zero_is_zero():
    matrix = jnp.asarray(symmetric(CASES["exp"][1]))
    found = product_of(jnp.exp)(matrix, jnp.zeros(SIZE), 1e-6)
    assert bool(found.converged) and float(found.error) == 0
    np.testing.assert_array_equal(found.value, 0)


def test_function_product_of_no_symmetric_or_finite_matrix_is_not_converged():
    """A derivative that is none, and one that is infinite."""

    @jax.custom_jvp
    def skewed(x):
        return jnp.sum(x**2)

    skewed.defjvp(lambda x, v: (skewed(*x), v[0] @ (x[0] + jnp.roll(x[0], 1))))
    for loss in (skewed, jnp.linalg.norm):
        found = function_product(jnp.exp, loss, jnp.zeros(5), jnp.arange(1.0, 6))
        assert not bool(found.converged)


def test_function_product_of_a_pytree():
    params, vector = mixed_params(), jax.tree.map(jnp.cos, mixed_params())
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    hessian = np.asarray(jax.jit(jax.hessian(lambda x: mixed_loss(unravel(x))))(flat))
    found = function_product(
        lambda x: jnp.exp(1j * x.astype(complex)), mixed_loss, params, vector, tolerance=1e-12
    )
    assert jax.tree.structure(found.value) == jax.tree.structure(params)
    assert {x.dtype for x in jax.tree.leaves(found.value)} == {jnp.dtype(complex)}
    assert bool(found.converged) and int(found.num_products) <= flat.size
    expected = scipy.linalg.expm(1j * hessian) @ flatten(vector)
    np.testing.assert_allclose(flatten(found.value), expected, rtol=1e-10, atol=1e-11)


def test_function_product_refusals():
    loss, params = pfcore.objectives.quadratic, jnp.ones(2)
    with pytest.raises(ValueError, match="depth must be at least 1, got 0"):
        function_product(jnp.exp, loss, params, params, depth=0)
    with pytest.raises(TypeError, match=r"1\.5"):
        function_product(jnp.exp, loss, params, params, depth=1.5)
    for tolerance in (0, -1.0, np.nan):
        with pytest.raises(ValueError, match="tolerance must be positive and finite"):
            function_product(jnp.exp, loss, params, params, tolerance=tolerance)
    with pytest.raises(ValueError, match="one number"):
        function_product(jnp.exp, lambda x: x, params, params)
