import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

import pfcore
from pfcore.curvature import dense
from pfcore.curvature.dense import BLOCK, TRIAL_DEPTH, apply_to_vector, gradient_and_hessian
from pfcore.objectives import quadratic_form
from pfcore.stability import principal_coefficient
from tests.conftest import flatten, mixed_loss, mixed_params, small_network

pytestmark = pytest.mark.usefixtures("x64")


def orthogonal(n, seed=0):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(n, n)))[0]


def complex_symmetric(eigenvalues, seed=0):
    """Q diag(eigenvalues) Qᵀ with Q = exp(iS), S real and skew, so that QQᵀ = 1."""
    n = len(eigenvalues)
    s = np.random.default_rng(seed).normal(size=(n, n)) * 0.2 / n**0.5
    q = orthogonal(n, seed) @ scipy.linalg.expm(1j * (s - s.T))
    return (q * eigenvalues) @ q.T


def by_eigendecomposition(function, matrix, vector):
    values, vectors = np.linalg.eig(matrix)
    return vectors @ (function(values) * np.linalg.solve(vectors, vector))


@pytest.mark.parametrize("n", [5, BLOCK, BLOCK + 5])
@pytest.mark.parametrize("complex_state", [False, True])
def test_gradient_and_hessian_against_jax(n, complex_state):
    """Below, at and above the size from which columns are formed in blocks."""
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(n, n)) / n**0.5

    def loss(params):
        return jnp.sum(jnp.sin(jnp.asarray(mix, params.dtype) @ params) ** 3)

    params = rng.normal(size=n) + (0.1j * rng.normal(size=n) if complex_state else 0)
    params = jnp.asarray(params)
    g, hessian = gradient_and_hessian(loss, params)
    np.testing.assert_allclose(g, jax.grad(loss, holomorphic=complex_state)(params), rtol=1e-12)
    expected = jax.hessian(loss, holomorphic=complex_state)(params)
    np.testing.assert_allclose(hessian, expected, rtol=1e-11, atol=1e-12)
    np.testing.assert_array_equal(hessian, hessian.T)


def test_gradient_and_hessian_of_a_pytree():
    params = mixed_params()
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    g, hessian = gradient_and_hessian(mixed_loss, params)
    np.testing.assert_allclose(g, flatten(jax.grad(mixed_loss)(params)), rtol=1e-13)
    np.testing.assert_allclose(
        hessian, jax.hessian(lambda x: mixed_loss(unravel(x)))(flat), rtol=1e-11, atol=1e-13
    )


@pytest.mark.parametrize(
    "eigenvalues",
    [
        [-3.0, -1e-3, 0.0, 2.0, 50.0],
        [1.0, 1.0, 1.0],
        [7.0],
        list(np.geomspace(1e-4, 1e2, BLOCK + 4)),
    ],
    ids=["both signs", "repeated", "one", "wide"],
)
def test_spectrum_as_prescribed(eigenvalues):
    q = orthogonal(len(eigenvalues))
    matrix = (q * eigenvalues) @ q.T
    found = pfcore.curvature.spectrum(quadratic_form((matrix + matrix.T) / 2), jnp.ones(len(q)))
    np.testing.assert_allclose(found, eigenvalues, rtol=1e-12, atol=1e-13 * max(eigenvalues))


def test_spectrum_against_numpy_is_ascending():
    params = mixed_params()
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    hessian = np.asarray(jax.hessian(lambda x: mixed_loss(unravel(x)))(flat))
    found = pfcore.curvature.spectrum(mixed_loss, params)
    assert found.shape == (flat.size,)
    np.testing.assert_allclose(found, np.linalg.eigvalsh(hessian), rtol=1e-11, atol=1e-13)
    assert np.all(np.diff(found) >= 0)


def test_spectrum_of_a_network_has_the_trace_of_its_products():
    loss, params = small_network(sizes=(30, 2, 1))
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    found = pfcore.curvature.spectrum(loss, params)

    def entry(e):
        return e @ jax.flatten_util.ravel_pytree(pfcore.curvature.hvp(loss, params, unravel(e)))[0]

    diagonal = jax.lax.map(entry, jnp.eye(flat.size))
    assert float(found.sum()) == pytest.approx(float(diagonal.sum()), rel=1e-11)


def test_spectrum_keeps_single_precision():
    found = pfcore.curvature.spectrum(mixed_loss, mixed_params(jnp.float32))
    assert found.dtype == jnp.float32
    expected = pfcore.curvature.spectrum(mixed_loss, mixed_params())
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_spectrum_refuses_what_has_none():
    with pytest.raises(ValueError, match=r"one number, got \(2,\)"):
        pfcore.curvature.spectrum(lambda x: x, jnp.ones(2))
    with pytest.raises(ValueError, match="nan"):
        pfcore.curvature.spectrum(lambda x: jnp.sum(jnp.log(x)), -jnp.ones(2))


@pytest.mark.parametrize("dtype, width", [(jnp.float32, 4), (jnp.float64, 8)])
def test_spectrum_refuses_what_does_not_fit_into_memory(dtype, width, monkeypatch):
    """Before anything is allocated: the columns, the matrix and the eigensolver's copy."""
    monkeypatch.setattr(dense, "_eigenvalues", lambda *_: pytest.fail("was computed"))
    n = 3_000_000
    with pytest.raises(ValueError, match=f"3,000,000 parameters takes {3 * n * n * width:,} bytes"):
        pfcore.curvature.spectrum(lambda x: jnp.sum(x**2), jnp.zeros(n, dtype))


def test_spectrum_takes_all_the_memory_there_is(monkeypatch):
    for memory in (3 * 10 * 10 * 8, None):  # None: a device that does not tell
        monkeypatch.setattr(dense, "_memory", lambda memory=memory: memory)
        assert pfcore.curvature.spectrum(mixed_loss, mixed_params()).shape == (10,)
    monkeypatch.setattr(dense, "_memory", lambda: 3 * 10 * 10 * 8 - 1)
    with pytest.raises(ValueError, match="2,400 bytes"):
        pfcore.curvature.spectrum(mixed_loss, mixed_params())


class Watched:
    """A function that keeps the sizes of the problems it is run on, not only traced for."""

    def __init__(self, function):
        self.function = function
        self.sizes = []

    def __call__(self, values):
        size = values.size
        jax.debug.callback(lambda: self.sizes.append(size))
        return self.function(values)


def run(function, matrix, vector):
    """`apply_to_vector` compiled, and the sizes that were diagonalised."""
    watched = Watched(function)
    found = jax.jit(lambda a, v: apply_to_vector(watched, lambda x: a @ x, v))(
        jnp.asarray(matrix), jnp.asarray(vector)
    )
    jax.effects_barrier()
    return np.asarray(found), sorted(watched.sizes)


SIZE = TRIAL_DEPTH + 24


def complex_vector(n, seed=3):
    rng = np.random.default_rng(seed)
    return rng.normal(size=n) + 1j * rng.normal(size=n)


def test_large_real_matrix_is_diagonalised_where_the_krylov_space_does_not_do():
    """exp is resolved in the space; log(1 − z)/z with eigenvalues all around 1 is not."""
    q, values = orthogonal(SIZE), np.linspace(-1, 2.01, SIZE)
    matrix, vector = (q * values) @ q.T, np.arange(1.0, SIZE + 1)
    matrix = (matrix + matrix.T) / 2
    found, sizes = run(jnp.exp, matrix, vector)
    assert sizes == [TRIAL_DEPTH]
    np.testing.assert_allclose(found, scipy.linalg.expm(matrix) @ vector, rtol=1e-11, atol=1e-10)
    found, sizes = run(principal_coefficient, matrix, vector)
    assert sizes == [TRIAL_DEPTH, SIZE]
    phi = np.log(1 - values + 0j) / values
    np.testing.assert_allclose(found, q @ (phi * (q.T @ vector)), rtol=1e-9, atol=1e-8)


def test_small_complex_matrix_is_diagonalised():
    values = complex_vector(TRIAL_DEPTH, 1)
    matrix, vector = complex_symmetric(values), complex_vector(TRIAL_DEPTH)
    found, sizes = run(jnp.exp, matrix, vector)
    assert sizes == [TRIAL_DEPTH]
    np.testing.assert_allclose(found, scipy.linalg.expm(matrix) @ vector, rtol=1e-9, atol=1e-9)


def test_large_complex_matrix_and_an_easy_function_need_no_eigendecomposition():
    values = np.random.default_rng(1).uniform(-1, 1, SIZE) * (1 + 0.1j)
    matrix, vector = complex_symmetric(values), complex_vector(SIZE)
    found, sizes = run(jnp.exp, matrix, vector)
    assert sizes == [TRIAL_DEPTH]
    np.testing.assert_allclose(
        found, by_eigendecomposition(np.exp, matrix, vector), rtol=1e-11, atol=1e-11
    )
    np.testing.assert_allclose(found, scipy.linalg.expm(matrix) @ vector, rtol=1e-11, atol=1e-11)


def test_large_complex_matrix_with_few_eigenvalues_ends_the_space_early():
    """Three eigenvalues: the space is exhausted after three products, and exact."""
    values = np.resize([0.5 + 0.1j, 2.5 - 0.3j, -1.0 + 0j], SIZE)
    matrix, vector = complex_symmetric(values), complex_vector(SIZE)
    found, sizes = run(principal_coefficient, matrix, vector)
    assert sizes == [TRIAL_DEPTH]
    # f as a polynomial through its three values.
    nodes = values[:3]
    coefficients = np.linalg.solve(np.vander(nodes), np.log(1 - nodes) / nodes)
    expected = coefficients[0] * (matrix @ (matrix @ vector)) + coefficients[1] * (matrix @ vector)
    np.testing.assert_allclose(found, expected + coefficients[2] * vector, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("branch", ["principal", "continued"])
def test_large_complex_matrix_around_the_branch_point_is_diagonalised(branch):
    """Eigenvalues on a ring around z = 1, which no polynomial of degree 63 of φ can serve."""
    angles = 2 * np.pi * (np.arange(SIZE) + 0.37) / SIZE
    values = 1 + 0.05 * np.exp(1j * angles)
    matrix, vector = complex_symmetric(values), complex_vector(SIZE)
    found, sizes = run(lambda z: principal_coefficient(z, branch=branch), matrix, vector)
    assert sizes == [TRIAL_DEPTH, SIZE]

    def phi(z):
        logarithm = np.log(1 - z)
        if branch == "continued":
            logarithm = np.where(logarithm.imag < -np.pi / 2, logarithm + 2j * np.pi, logarithm)
        return logarithm / z

    expected = by_eigendecomposition(phi, matrix, vector)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)
