import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pfcore import objectives
from pfcore.objectives import ALL, quadratic_form

pytestmark = pytest.mark.usefixtures("x64")

every = pytest.mark.parametrize("objective", ALL, ids=lambda o: o.name)


def points(objective, count, seed=0):
    low, high = objective.domain.T
    return np.random.default_rng(seed).uniform(low, high, size=(count, len(low)))


@pytest.mark.parametrize(
    "name, point, value",
    [
        ("quadratic", [3.0, -5.0], 9.25),  # 9 + 0.01 · 25
        ("banana", [-1.0, 2.0], 104.0),  # 2² + 100 · 1²
        ("himmelblau", [0.0, 0.0], 170.0),  # 11² + 7²
        ("himmelblau", [1.0, 2.0], 68.0),  # (−8)² + (−2)²
        ("saddle", [2.0, 3.0], -2.5),
        ("double_well", [3.0, 2.0], 18.0),  # ¼ · 8² + ½ · 4
        ("cosine", [np.pi / 3], 0.5),
    ],
)
def test_formulas(name, point, value):
    assert float(getattr(objectives, name)(jnp.array(point))) == pytest.approx(value, rel=1e-14)


@every
def test_domain_and_minima_have_the_documented_shapes(objective):
    dimension = len(objective.domain)
    assert objective.domain.shape == (dimension, 2)
    assert objective.minima.shape[1:] == (dimension,)
    assert np.all(objective.domain[:, 0] < objective.domain[:, 1])


@every
def test_minima_are_minima_in_the_domain(objective):
    for minimum in objective.minima:
        assert np.all((objective.domain[:, 0] <= minimum) & (minimum <= objective.domain[:, 1]))
        gradient = jax.grad(objective)(jnp.asarray(minimum))
        np.testing.assert_allclose(gradient, 0, atol=1e-12)
        assert np.linalg.eigvalsh(jax.hessian(objective)(jnp.asarray(minimum)))[0] > 0


@pytest.mark.parametrize(
    "objective, num_stationary",
    [
        (objectives.quadratic, 1),
        (objectives.banana, 1),
        (objectives.himmelblau, 9),  # four minima, four saddles, one maximum
        (objectives.saddle, 1),
        (objectives.double_well, 3),
        (objectives.cosine, 5),  # from −2π to 2π
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_no_other_minimum_in_the_domain(objective, num_stationary):
    """Newton's method from a grid finds every stationary point; the minima among them are those
    that are listed."""
    axes = [np.linspace(low, high, 41) for low, high in objective.domain]
    starts = np.stack(np.meshgrid(*axes), axis=-1).reshape(-1, len(axes))

    @jax.jit
    @jax.vmap
    def newton(start):
        def step(_, x):
            return x - jnp.linalg.solve(jax.hessian(objective)(x), jax.grad(objective)(x))

        x = jax.lax.fori_loop(0, 60, step, start)
        return x, jax.grad(objective)(x), jnp.linalg.eigvalsh(jax.hessian(objective)(x))

    ends, gradients, eigenvalues = map(np.asarray, newton(jnp.asarray(starts)))
    inside = np.all(
        (objective.domain[:, 0] - 1e-9 <= ends) & (ends <= objective.domain[:, 1] + 1e-9), axis=1
    )
    converged = inside & (np.abs(gradients).max(axis=1) < 1e-9)
    found, first = np.unique(np.round(ends[converged], 6) + 0.0, axis=0, return_index=True)
    assert len(found) == num_stationary
    minima = found[eigenvalues[converged][first].min(axis=1) > 0]
    assert len(minima) == len(objective.minima)
    if len(minima):
        distances = np.linalg.norm(minima[:, None] - objective.minima[None], axis=-1)
        np.testing.assert_allclose(distances.min(axis=0), 0, atol=2e-6)


@every
def test_values_at_real_and_complex_arguments_agree(objective):
    for point in points(objective, 5):
        real, continued = objective(jnp.asarray(point)), objective(jnp.asarray(point + 0j))
        assert jnp.iscomplexobj(continued) and not jnp.iscomplexobj(real)
        np.testing.assert_allclose(continued, real, rtol=1e-14)


@every
def test_holomorphic_gradient_equals_cauchys_integral(objective):
    """∂_i E(θ) is the mean of E(θ + r e^{iφ} e_i) e^{−iφ}/r over a circle; a polynomial of degree
    below the number of points makes it exact, the cosine's remainder is r³²/33!."""
    circle, radius = np.exp(2j * np.pi * np.arange(32) / 32), 0.5
    rng = np.random.default_rng(1)
    for point in points(objective, 3):
        point = point + 0.3j * rng.normal(size=point.shape)
        expected = [
            np.mean(jax.vmap(objective)(jnp.asarray(point + radius * circle[:, None] * e)) / circle)
            / radius
            for e in np.eye(len(point))
        ]
        found = jax.grad(objective, holomorphic=True)(jnp.asarray(point))
        np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-11)


@every
def test_real_gradient_equals_the_complex_step_derivative(objective):
    """Im E(θ + iε e_j)/ε has no cancellation, so ε may be tiny."""
    for point in points(objective, 3):
        expected = [
            objective(jnp.asarray(point + 1e-30j * e)).imag / 1e-30 for e in np.eye(len(point))
        ]
        found = jax.grad(objective)(jnp.asarray(point))
        np.testing.assert_allclose(found, expected, rtol=1e-13, atol=1e-13)


@every
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.complex64])
def test_dtype_of_the_argument_is_kept(objective, dtype):
    assert objective(jnp.asarray(points(objective, 1)[0], dtype)).dtype == dtype


@every
@pytest.mark.parametrize("factor", [0.01, np.float64(0.01)])
def test_scaled_scales_values_and_eigenvalues(objective, factor):
    scaled = objective.scaled(factor)
    for point in map(jnp.asarray, points(objective, 3)):
        np.testing.assert_allclose(scaled(point), 0.01 * objective(point), rtol=1e-14)
        np.testing.assert_allclose(
            np.linalg.eigvalsh(jax.hessian(scaled)(point)),
            0.01 * np.linalg.eigvalsh(jax.hessian(objective)(point)),
            rtol=1e-10,
            atol=1e-13,
        )
    np.testing.assert_array_equal(scaled.minima, objective.minima)
    assert scaled(jnp.asarray(points(objective, 1)[0], jnp.float32)).dtype == jnp.float32


def test_quadratic_form_with_a_vector():
    matrix = np.array([[2.0, 0.5, 0.0], [0.5, 1.0, -0.3], [0.0, -0.3, 3.0]])
    vector = np.array([1.0, -2.0, 0.5])
    loss = quadratic_form(matrix, vector)
    np.testing.assert_allclose(loss.minima, [-np.linalg.solve(matrix, vector)], rtol=1e-12)
    np.testing.assert_allclose(loss.domain.mean(axis=1), loss.minima[0], rtol=1e-12)
    point = np.array([0.2, 0.7, -1.1])
    assert float(loss(jnp.asarray(point))) == pytest.approx(
        0.5 * point @ matrix @ point + vector @ point, rel=1e-14
    )
    np.testing.assert_allclose(
        jax.grad(loss)(jnp.asarray(point)), matrix @ point + vector, rtol=1e-13
    )
    np.testing.assert_allclose(jax.hessian(loss)(jnp.asarray(point)), matrix, rtol=1e-13)


@pytest.mark.parametrize(
    "matrix",
    [
        [[1.0, 0.0], [0.0, -1.0]],
        [[1.0, 0.0], [0.0, 0.0]],
        np.outer([0.3, 0.1], [0.3, 0.1]),  # whose smallest eigenvalue is 0 but for rounding
    ],
)
def test_quadratic_form_without_a_strict_minimum_lists_none(matrix):
    vector = np.asarray(matrix) @ [1.0, 0.0]
    loss = quadratic_form(matrix, vector)
    assert loss.minima.shape == (0, 2)
    np.testing.assert_allclose(np.asarray(matrix) @ loss.domain.mean(axis=1), -vector, atol=1e-14)


def test_quadratic_form_of_whole_numbers():
    loss = quadratic_form([[0.5, 0.0], [0.0, 0.02]])
    assert float(loss(jnp.array([1, 2]))) == float(loss(jnp.array([1.0, 2.0])))


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan"), float("inf")])
def test_scaled_rejects_invalid_factors(factor):
    with pytest.raises(ValueError, match=f"positive and finite, got {factor!r}"):
        objectives.banana.scaled(factor)


@pytest.mark.parametrize(
    "matrix, vector, message",
    [
        ([1.0, 2.0], None, "square, symmetric"),
        ([[1.0, 2.0]], None, "square, symmetric"),
        ([[1.0, 2.0], [0.0, 1.0]], None, "2.0"),
        ([[1e-10, 5e-10], [0.0, 1e-10]], None, "5e-10"),
        (np.zeros((0, 0)), None, "square, symmetric"),
        ([[float("nan")]], None, "nan"),
        ([[float("inf")]], None, "inf"),
        ([[1.0]], [1.0, 2.0], r"shape \(1,\) and be finite, got \[1.0, 2.0\]"),
        ([[1.0]], [float("inf")], "finite, got"),
    ],
)
def test_quadratic_form_rejects_invalid_arguments(matrix, vector, message):
    with pytest.raises(ValueError, match=message):
        quadratic_form(matrix, vector)
