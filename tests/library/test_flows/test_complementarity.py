import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pfcore.flows import complementarity

solve = jax.jit(complementarity.solve, static_argnames="max_iterations")


def gram(k, n, rng, scale=1.0):
    """B of random G_ij in n dimensions."""
    G = rng.normal(size=(k, k, n))
    G = G + G.swapaxes(0, 1)
    return scale * np.einsum("ijn,kln->ijkl", G, G)


def with_solution(k, rank, B, rng):
    """A for which a random X of that rank is a solution: A = S - B[X] with XS = 0."""
    Q = np.linalg.qr(rng.normal(size=(k, k)))[0]
    values = rng.uniform(0.1, 3, size=k)
    X = (Q[:, :rank] * values[:rank]) @ Q[:, :rank].T
    image = np.einsum("ijkl,kl->ij", B, X)
    S = (Q[:, rank:] * values[rank:]) @ Q[:, rank:].T * (np.linalg.norm(image) or 1.0)
    return S - image, X


def test_finds_the_solution_that_problems_were_made_with(x64):
    """Over all ranks, with unique solutions: B is positive definite on symmetric matrices."""
    rng = np.random.default_rng(0)
    for k in (1, 2, 3, 4):
        for case in range(15):
            B = gram(k, 3 * k * k, rng, scale=10 ** rng.uniform(-8, 8))
            A, X = with_solution(k, case % (k + 1), B, rng)
            found = solve(A, B)
            assert found.residual < 1e-9
            np.testing.assert_allclose(found.X, X, atol=1e-6)


def test_meets_the_conditions_on_any_problem_that_has_a_solution(x64):
    """With A positive on what B does not reach, there is one, whatever A is elsewhere."""
    rng = np.random.default_rng(1)
    for k in (2, 3, 4, 5):
        for _ in range(15):
            B = gram(k, 4 * k * k, rng)
            A = rng.normal(size=(k, k))
            A = A + A.T
            found = solve(A, B)
            slack = A + np.einsum("ijkl,kl->ij", B, found.X)
            size = np.linalg.norm(A)
            assert found.residual < 1e-9 and found.iterations < complementarity.MAX_ITERATIONS
            np.testing.assert_allclose(found.X, found.X.T, rtol=1e-12, atol=1e-14)
            assert np.linalg.eigvalsh(found.X)[0] > -1e-14
            assert np.linalg.eigvalsh(slack)[0] > -1e-9 * size
            assert abs(np.sum(found.X * slack)) <= 1e-9 * size * max(1, np.trace(found.X))


@pytest.mark.parametrize("n", [1, 2, 4])
def test_images_agree_where_solutions_do_not(n, x64):
    """Dependent G_ij: many X, of which starts choose one, but one B[X]."""
    rng = np.random.default_rng(2)
    k = 3
    for rank in (1, 2):
        B = gram(k, n, rng)
        A, X = with_solution(k, rank, B, rng)
        other = rng.normal(size=(k, k))
        solutions = [solve(A, B), solve(A, B, start=other @ other.T)]
        image = np.einsum("ijkl,kl->ij", B, X)
        for found in solutions:
            assert found.residual < 1e-9
            np.testing.assert_allclose(
                np.einsum("ijkl,kl->ij", B, found.X), image, atol=1e-5 * np.linalg.norm(image)
            )


def test_one_direction_in_closed_form(x64):
    for a, b in [(-2.0, 4.0), (3.0, 4.0), (-1e-9, 1e5)]:
        found = solve(jnp.array([[a]]), jnp.full((1, 1, 1, 1), b))
        assert found.iterations == 0
        np.testing.assert_allclose(found.X, [[max(0.0, -a / b)]], rtol=1e-15)
        # The same among directions that take no part.
        many = solve(
            jnp.full((3, 3), a),
            jnp.full((3, 3, 3, 3), b),
            active=jnp.array([False, True, False]),
        )
        expected = np.zeros((3, 3))
        expected[1, 1] = max(0.0, -a / b)
        np.testing.assert_allclose(many.X, expected, rtol=1e-9)


def test_diagonal_problems_are_solved_entry_by_entry(x64):
    A = jnp.diag(jnp.array([-1.0, 2.0, -3.0]))
    B = jnp.einsum("ik,jl->ijkl", jnp.eye(3), jnp.eye(3))  # the identity: X is A's negative part
    np.testing.assert_allclose(solve(A, B).X, np.diag([1.0, 0.0, 3.0]), atol=1e-9)


def test_inactive_rows_take_no_part(x64):
    rng = np.random.default_rng(3)
    B = gram(4, 30, rng)
    A, _ = with_solution(4, 2, B, rng)
    active = jnp.arange(4) < 2
    found = solve(A, B, active=active)
    alone = solve(A[:2, :2], B[:2, :2, :2, :2])
    np.testing.assert_allclose(found.X[:2, :2], alone.X, rtol=1e-8, atol=1e-10)
    np.testing.assert_array_equal(found.X[2:], 0)


def test_says_where_there_is_no_solution(x64):
    A = jnp.diag(jnp.array([-1.0, 1.0]))
    nothing = jnp.zeros((2, 2, 2, 2))
    assert solve(A, nothing).residual > 0.5
    assert solve(A[:1, :1], nothing[:1, :1, :1, :1]).residual > 0.5
    # B reaches the second direction alone.
    one = nothing.at[1, 1, 1, 1].set(1.0)
    assert solve(A, one, max_iterations=200).residual > 0.5
    assert jnp.isnan(solve(A * jnp.nan, one).residual)


def test_does_not_depend_on_units(x64):
    rng = np.random.default_rng(4)
    B = gram(3, 20, rng)
    A, _ = with_solution(3, 1, B, rng)
    found = solve(A, B)
    for a, b in [(1e-12, 1e9), (1e10, 1e-8)]:
        scaled = solve(a * A, b * B)
        np.testing.assert_allclose(scaled.X * b / a, found.X, rtol=1e-7, atol=1e-9)
        assert scaled.residual < 1e-9


@pytest.mark.parametrize("unit", [1e-20, 1e20])
def test_squares_of_entries_may_leave_the_range(unit):
    """In single precision, also where there is no solution."""
    rng = np.random.default_rng(4)
    B = gram(3, 20, rng)
    A, _ = with_solution(3, 1, B, rng)
    A, B = jnp.asarray(A, jnp.float32), jnp.asarray(B, jnp.float32)
    found, scaled = solve(A, B), solve(unit * A, unit * B)
    np.testing.assert_allclose(scaled.X, found.X, rtol=1e-3, atol=1e-4)
    assert scaled.residual < 1e-4
    unsolved = solve(-unit * jnp.eye(2), jnp.zeros((2, 2, 2, 2)))
    assert float(unsolved.residual) == pytest.approx(2**-0.5)


def test_in_single_precision_and_batched():
    rng = np.random.default_rng(5)
    Bs = np.stack([gram(3, 20, rng) for _ in range(4)]).astype(np.float32)
    As, Xs = zip(*(with_solution(3, rank, B, rng) for rank, B in enumerate(Bs)), strict=True)
    found = jax.vmap(solve)(jnp.asarray(As, jnp.float32), jnp.asarray(Bs))
    assert found.X.dtype == jnp.float32 and found.X.shape == (4, 3, 3)
    assert jnp.all(found.residual < 1e-4)
    np.testing.assert_allclose(found.X, np.stack(Xs), atol=1e-2)


def test_a_start_near_the_solution_takes_fewer_iterations(x64):
    rng = np.random.default_rng(6)
    B = gram(4, 60, rng)
    A, X = with_solution(4, 2, B, rng)
    assert solve(A, B, start=X * (1 + 1e-6)).iterations < solve(A, B).iterations


def test_refuses_what_does_not_fit():
    A, B = jnp.eye(2), jnp.zeros((2, 2, 2, 2))
    with pytest.raises(ValueError, match=r"square.*\(2, 3\)"):
        complementarity.solve(jnp.ones((2, 3)), B)
    with pytest.raises(ValueError, match=r"\(3, 3, 3, 3\).*\(2, 2, 2, 2\)"):
        complementarity.solve(jnp.eye(3), B)
    with pytest.raises(ValueError, match=r"start.*\(3,\)"):
        complementarity.solve(A, B, start=jnp.ones(3))
    with pytest.raises(ValueError, match=r"active.*\(3,\)"):
        complementarity.solve(A, B, active=jnp.ones(3))
    with pytest.raises(ValueError, match=r"tolerance.*-1"):
        complementarity.solve(A, B, tolerance=-1.0)
    with pytest.raises(ValueError, match=r"max_iterations.*0"):
        complementarity.solve(A, B, max_iterations=0)
