import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sympy

import pfcore
from pfcore.flows import igr_flow, modified_flow, negative_gradient_flow, third_order_flow
from pfcore.flows.modified import modified_coefficients, modified_coefficients_by_recursion
from tests.conftest import flatten, mixed_loss, mixed_params

pytestmark = pytest.mark.usefixtures("x64")


@pytest.mark.parametrize(
    ("order", "flow"),
    [(1, lambda loss, h: negative_gradient_flow(loss)), (2, igr_flow), (3, third_order_flow)],
)
def test_low_orders_agree_with_the_named_flows(order, flow):
    params, h = mixed_params(), 0.37
    general = modified_flow(mixed_loss, h, order).vector_field(0.0, params)
    named = flow(mixed_loss, h).vector_field(0.0, params)
    np.testing.assert_allclose(flatten(general), flatten(named), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_fast_coefficients_equal_the_recursion(order):
    params = mixed_params()
    fast = modified_coefficients(mixed_loss, params, order)
    slow = modified_coefficients_by_recursion(mixed_loss, params, order)
    for j, expected in enumerate(slow):
        found = jax.tree.map(lambda x, j=j: x[j], fast)
        np.testing.assert_allclose(flatten(found), flatten(expected), rtol=1e-9, atol=1e-11)


def test_fifth_coefficient_equals_the_recursion():
    loss, params = (lambda x: jnp.sum(jnp.sin(x) ** 2)), jnp.array([0.4])
    fast = modified_coefficients(loss, params, 5)
    slow = modified_coefficients_by_recursion(loss, params, 5)
    np.testing.assert_allclose(fast, jnp.stack(slow), rtol=1e-10)


@pytest.mark.parametrize("order", [2, 3, 4])
def test_symbolic_derivation_in_one_dimension(order):
    """Solve θ(h) = θ − h E′(θ) order by order for f₂ … f₄ with SymPy, from the Lie series alone."""
    x, h = sympy.symbols("x h")
    energy = sympy.sin(x) + x**4 / 5 + x**2
    unknown = sympy.symbols(f"a1:{order + 1}", cls=sympy.Function)
    field = sum(h ** (j - 1) * a(x) for j, a in enumerate(unknown, start=1))
    # exp(h f̃ ∂) x, with as many terms as can reach h^order.
    flowed, term = x, x
    for i in range(1, order + 1):
        term = sympy.expand(sympy.diff(term, x) * field * h / i)
        flowed += term
    difference = sympy.expand(flowed - (x - h * sympy.diff(energy, x)))
    solved = {}
    for j, a in enumerate(unknown, start=1):
        equation = difference.coeff(h, j)
        for known, value in solved.items():
            equation = equation.subs(known(x), value)
        solved[a] = sympy.solve(equation.doit(), a(x))[0]
    at = 0.3
    loss = lambda p: jnp.sum(jnp.sin(p) + p**4 / 5 + p**2)  # noqa: E731
    found = modified_coefficients(loss, jnp.array([at]), order)[:, 0]
    expected = [float(value.subs(x, at)) for value in solved.values()]
    np.testing.assert_allclose(found, expected, rtol=1e-10)


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
def test_one_step_error_order(order):
    """|flow(h) − one step| scales as h^(order + 1)."""
    loss = pfcore.objectives.himmelblau.scaled(0.01)
    start = jnp.array([1.0, 1.0])
    rates = jnp.geomspace(0.05, 0.4, 6)

    def error(h):
        path = pfcore.integrate(
            modified_flow(loss, h, order), start, h[None], rtol=1e-12, atol=1e-14
        )
        return jnp.linalg.norm(path.params[0] - (start - h * jax.grad(loss)(start)))

    errors = jax.vmap(error)(rates)
    slope = np.polyfit(np.log(rates), np.log(errors), 1)[0]
    assert abs(slope - (order + 1)) < 0.15, slope


def test_first_terms_on_a_quadratic_are_the_series_of_the_logarithm():
    params = jnp.array([1.0, 2.0])
    found = modified_coefficients(pfcore.objectives.quadratic, params, 5)
    eigenvalues = np.array([2.0, 0.02])
    for j in range(5):
        expected = -(eigenvalues**j) / (j + 1) * eigenvalues * params
        np.testing.assert_allclose(found[j], expected, rtol=1e-11)


@pytest.mark.parametrize("order", [0, -1])
def test_refuses_order(order):
    with pytest.raises(ValueError, match=str(order)):
        modified_flow(mixed_loss, 0.1, order)


def test_refuses_broken_order():
    with pytest.raises(TypeError, match=r"2\.5"):
        modified_flow(mixed_loss, 0.1, 2.5)
