import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

import pfcore
from pfcore._trees import to_complex
from pfcore.flows import principal_flow
from pfcore.stability import principal_coefficient
from tests.conftest import flatten, flatten_path, mixed_loss, mixed_params, small_network

pytestmark = pytest.mark.usefixtures("x64")


def complex_point(params, size=0.1):
    """`params` moved off the real axis."""
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: x + 1j * size * rng.normal(size=x.shape), to_complex(params))


def regular_loss(params):
    """`mixed_loss` with a Hessian that SciPy can invert."""
    return mixed_loss(params) + 0.05 * sum(jnp.sum(x**2) for x in jax.tree.leaves(params))


def dense_field(loss, h, state):
    """φ(hH) g by SciPy's matrix logarithm: another algorithm than either of ours."""
    flat, unravel = jax.flatten_util.ravel_pytree(state)
    along = lambda x: loss(unravel(x))  # noqa: E731
    g = np.asarray(jax.jit(jax.grad(along, holomorphic=True))(flat))
    hessian = np.asarray(jax.jit(jax.hessian(along, holomorphic=True))(flat))
    log = scipy.linalg.logm(np.eye(len(g)) - h * hessian)
    return scipy.linalg.solve(h * hessian, log @ g)


def eigen_field(loss, h, state):
    """φ(hH) g by NumPy's eigendecomposition of the whole Hessian."""
    flat, unravel = jax.flatten_util.ravel_pytree(state)
    along = lambda x: loss(unravel(x))  # noqa: E731
    g = np.asarray(jax.jit(jax.grad(along, holomorphic=True))(flat))
    hessian = np.asarray(jax.jit(jax.hessian(along, holomorphic=True))(flat))
    values, vectors = np.linalg.eig(hessian)
    return vectors @ (np.asarray(principal_coefficient(h * values)) * np.linalg.solve(vectors, g))


@pytest.mark.parametrize("depth", [None, 2])
def test_equals_gradient_descent_on_quadratics(depth):
    """C3: stable and oscillating (0.9), diverging (1.05, 1.5)."""
    loss, start = pfcore.objectives.quadratic, jnp.array([-0.35, -0.2])
    for h in (0.9, 1.05, 1.5):
        steps = pfcore.gradient_descent(loss, start, h, 10)
        path = pfcore.integrate(
            principal_flow(loss, h, depth=depth), start, h * np.arange(11), rtol=1e-10, atol=1e-12
        )
        assert bool(path.completed)
        np.testing.assert_allclose(path.params, steps, atol=1e-8 * float(jnp.max(jnp.abs(steps))))


@pytest.mark.parametrize("depth", [None, 4])
def test_equals_gradient_descent_on_rotated_quadratics_with_offset(depth):
    """hλ on both sides of 1 and 2, and below 0, along directions that are not the axes."""

    def both(matrix, offset, start):
        def loss(x):
            return 0.5 * x @ matrix.astype(x.dtype) @ x + offset.astype(x.dtype) @ x

        path = pfcore.integrate(
            principal_flow(loss, 1.0, depth=depth), start, np.arange(7.0), rtol=1e-10, atol=1e-12
        )
        return path, pfcore.gradient_descent(loss, start, 1.0, 6)

    rng = np.random.default_rng(0)
    rotations = [np.linalg.qr(rng.normal(size=(4, 4)))[0] for _ in range(3)]
    matrices = [r @ np.diag([-0.3, 0.4, 1.6, 2.2]) @ r.T for r in rotations]
    matrices = jnp.asarray([(m + m.T) / 2 for m in matrices])
    offsets, starts = jnp.asarray(rng.normal(size=(2, 3, 4)))
    path, steps = jax.jit(jax.vmap(both))(matrices, offsets, starts)
    assert np.all(path.completed)
    np.testing.assert_allclose(path.params, steps, atol=1e-6)


def test_speed_setting_of_the_released_notebooks():
    """Quadratic, h = 1.05, 5 steps: within 1e-6 of gradient descent in under 100 steps."""
    loss, start, h = pfcore.objectives.quadratic, jnp.array([-0.35, -0.2]), 1.05
    path = pfcore.integrate(principal_flow(loss, h), start, h * np.arange(6))
    steps = pfcore.gradient_descent(loss, start, h, 5)
    assert int(path.num_steps) < 100
    assert float(jnp.max(jnp.abs(path.params - steps))) < 1e-6


def field_of(loss, **options):
    """(learning rate, state) -> PF's field there, flat; compiled once."""

    @jax.jit
    def field(h, state):
        rate = principal_flow(loss, h, **options).vector_field(0.0, state)
        return jax.flatten_util.ravel_pytree(rate)[0]

    return field


@pytest.mark.parametrize("depth", [None, 10, 99])  # 10 parameters: full depth, and clipped to it
def test_field_against_matrix_logarithm(depth):
    params = mixed_params()
    field = field_of(regular_loss, depth=depth)
    for h in (0.3, 1.3):
        for state in (complex_point(params), to_complex(params)):
            found, expected = field(h, state), dense_field(regular_loss, h, state)
            # Above 1 on the real axis SciPy's rounding chooses the side of the cut.
            if np.all(flatten(state).imag == 0):
                found, expected = found.real, expected.real
            np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-10)


def test_real_state_takes_the_upper_side_of_the_cut():
    loss = pfcore.objectives.quadratic_form([[3.0]])
    field = principal_flow(loss, 1.0).vector_field(0.0, jnp.array([1.0 + 0j]))
    np.testing.assert_allclose(field, [np.log(2.0) + 1j * np.pi], rtol=1e-14)


@pytest.mark.parametrize("kind", ["mse", "cross_entropy"])
def test_matrix_free_converges_to_dense_on_a_network(kind):
    loss, params = small_network(kind)
    exact, *shallow = (field_of(loss, depth=depth) for depth in (None, 2, 8, 40))
    for state in (complex_point(params, 1e-3), to_complex(params)):
        dense = eigen_field(loss, 0.2, state)
        np.testing.assert_allclose(exact(0.2, state), dense, rtol=1e-9, atol=1e-12)
        errors = [
            np.linalg.norm(field(0.2, state) - dense) / np.linalg.norm(dense) for field in shallow
        ]
        assert errors[0] > errors[1] > errors[2]
        assert errors[2] < 1e-9


def test_exhausted_krylov_space_is_exact():
    """g in a two-dimensional invariant subspace: depth 6 finds no more, and says the same."""
    loss = pfcore.objectives.quadratic_form(np.diag([2.0, 0.5, 1.0, 3.0, 0.1, 0.2]))
    start = jnp.array([1.0, 1.0, 0.0, 0.0, 0.0, 0.0])
    for state in (to_complex(start), to_complex(start) * (1 + 0.5j)):
        fields = [
            principal_flow(loss, 0.4, depth=depth).vector_field(0.0, state)
            for depth in (None, 2, 6)
        ]
        np.testing.assert_allclose(fields[1], fields[0], rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(fields[2], fields[0], rtol=1e-12, atol=1e-13)


def test_at_a_stationary_point_nothing_moves():
    loss = pfcore.objectives.quadratic
    for depth in (None, 2):
        field = principal_flow(loss, 1.7, depth=depth).vector_field(0.0, jnp.zeros(2, complex))
        np.testing.assert_array_equal(field, jnp.zeros(2, complex))


def one_step_slope(**options):
    loss = pfcore.objectives.himmelblau.scaled(0.01)
    start = jnp.array([1.0, 1.0])
    rates = jnp.geomspace(0.05, 0.3, 6)

    def error(h):
        path = pfcore.integrate(
            principal_flow(loss, h, **options), start, h[None], rtol=1e-12, atol=1e-14
        )
        return jnp.linalg.norm(path.params[0] - (start - h * jax.grad(loss)(start)))

    return np.polyfit(np.log(rates), np.log(jax.vmap(error)(rates)), 1)[0]


def test_one_step_error_orders():
    """Without the third-derivative term O(h³), with it O(h⁴)."""
    assert abs(one_step_slope() - 3) < 0.15
    assert abs(one_step_slope(non_principal=True) - 4) < 0.15


def test_numbers_of_the_design():
    """Errors to gradient descent on two landscapes, computed independently beforehand."""
    banana, himmelblau = pfcore.objectives.banana, pfcore.objectives.himmelblau.scaled(0.01)
    for loss, start, h, n, expected in (
        (banana, [-0.5, 0.5], 0.0015, 20, {False: 8.2e-4, True: 3.6e-4}),
        (himmelblau, [1.0, 1.0], 0.5, 5, {False: 5.9e-3, True: 7.5e-4}),
    ):
        start = jnp.array(start)
        end = pfcore.gradient_descent(loss, start, h, n)[-1]
        for non_principal, error in expected.items():
            flow = principal_flow(loss, h, non_principal=non_principal)
            path = pfcore.integrate(flow, start, [n * h])
            assert float(jnp.linalg.norm(path.params[0] - end)) == pytest.approx(error, rel=0.02)


def test_grinding_at_the_cut_is_reported():
    """Himmelblau, h = 1.5: caught on the cut after the second step; continued, it goes on."""
    loss, start, h = pfcore.objectives.himmelblau.scaled(0.01), jnp.array([1.0, 1.0]), 1.5
    stuck = pfcore.integrate(principal_flow(loss, h), start, h * np.arange(6))
    assert not bool(stuck.completed)
    assert np.all(np.isfinite(stuck.params[:3])) and np.all(np.isnan(stuck.params[-1]))
    assert int(stuck.num_steps) < 1000
    free = pfcore.integrate(principal_flow(loss, h, branch="continued"), start, h * np.arange(6))
    assert bool(free.completed)
    np.testing.assert_allclose(free.params[:3], stuck.params[:3], atol=1e-5)


def test_real_state_follows_the_real_part():
    loss, params = small_network(activation="relu")
    flow = principal_flow(loss, 0.5, state="real")
    state = flow.init(params)
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    hessian = np.asarray(jax.hessian(lambda x: loss(unravel(x)))(flat))
    values, vectors = np.linalg.eigh(hessian)
    phi = np.asarray(principal_coefficient(0.5 * values)).real
    expected = vectors @ (phi * (vectors.T @ flatten(jax.grad(loss)(params))))
    np.testing.assert_allclose(flatten(flow.vector_field(0.0, state)), expected, atol=1e-10)


def test_network_many_steps_dense_and_matrix_free_agree():
    loss, params = small_network()
    h = 0.2
    times = h * np.arange(6)
    dense = pfcore.integrate(principal_flow(loss, h), params, times)
    krylov = pfcore.integrate(principal_flow(loss, h, depth=40), params, times)
    assert bool(dense.completed) and bool(krylov.completed)
    np.testing.assert_allclose(
        flatten_path(dense.params), flatten_path(krylov.params), rtol=1e-5, atol=1e-7
    )


def test_a_tolerance_ends_the_products_early_within_it():
    """At real and at complex parameters."""
    full, loose, tight = (
        jax.jit(principal_flow(regular_loss, 0.3, depth=10, tolerance=tolerance).vector_field)
        for tolerance in (None, 1e-1, 1e-6)
    )
    params = mixed_params()
    for state in (to_complex(params), complex_point(params)):
        exact = flatten(full(0.0, state))
        size = np.linalg.norm(exact)
        assert 1e-9 * size < np.linalg.norm(flatten(loose(0.0, state)) - exact) < 1e-1 * size
        assert np.linalg.norm(flatten(tight(0.0, state)) - exact) < 1e-6 * size


def test_a_tolerance_out_of_reach_takes_all_products():
    loss = pfcore.objectives.quadratic_form(np.diag(np.linspace(0.1, 2.0, 12)))
    state = jnp.ones(12, complex)
    found, full = (
        principal_flow(loss, 0.4, depth=5, **options).vector_field(0.0, state)
        for options in ({"tolerance": 1e-15}, {})
    )
    np.testing.assert_allclose(found, full, rtol=1e-12)


def test_refuses_options():
    with pytest.raises(ValueError, match="0"):
        principal_flow(mixed_loss, 0.1, depth=0)
    with pytest.raises(TypeError, match=r"1\.5"):
        principal_flow(mixed_loss, 0.1, depth=1.5)
    with pytest.raises(ValueError, match=r"tolerance = 0\.1 needs a depth"):
        principal_flow(mixed_loss, 0.1, tolerance=0.1)
    with pytest.raises(ValueError, match="tolerance must be positive and finite, got 0"):
        principal_flow(mixed_loss, 0.1, depth=2, tolerance=0)
    with pytest.raises(ValueError, match="imaginary"):
        principal_flow(mixed_loss, 0.1, state="imaginary")
    with pytest.raises(ValueError, match="left"):
        principal_flow(mixed_loss, 0.1, branch="left")
    with pytest.raises(TypeError, match="float16"):
        principal_flow(lambda x: jnp.sum(x**2), 0.1).init(jnp.ones(2, jnp.float16))
