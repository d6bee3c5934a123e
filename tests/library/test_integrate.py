import inspect
import os
import subprocess
import sys

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pfcore
from pfcore.flows import Flow, SteppedFlow, igr_flow, negative_gradient_flow, principal_flow
from tests.conftest import flatten, small_network

pytestmark = pytest.mark.usefixtures("x64")

QUADRATIC = pfcore.objectives.quadratic
EIGENVALUES = np.array([2.0, 0.02])
START = np.array([1.0, 2.0])


def quadratic_of(curvatures):
    return lambda x: 0.5 * jnp.sum(jnp.asarray(curvatures) * x**2)


def test_closed_form_of_gradient_flow():
    times = np.array([0.0, 0.1, 1.0, 1.0, 7.5])
    path = pfcore.integrate(negative_gradient_flow(QUADRATIC), START, times)
    np.testing.assert_allclose(
        path.params, np.exp(-np.outer(times, EIGENVALUES)) * START, rtol=2e-6, atol=1e-8
    )
    np.testing.assert_array_equal(path.times, times)
    assert bool(path.completed) and int(path.num_steps) < 40
    assert path.why == "reached the end" and path.reason.dtype == jnp.int32


def test_closed_form_of_igr_flow():
    h, times = 0.3, np.linspace(0.5, 3, 4)
    path = pfcore.integrate(igr_flow(QUADRATIC, h), START, times)
    rates = EIGENVALUES * (1 + h * EIGENVALUES / 2)
    np.testing.assert_allclose(
        path.params, np.exp(-np.outer(times, rates)) * START, rtol=2e-6, atol=1e-8
    )


@pytest.mark.parametrize("rtol", [1e-4, 1e-6, 1e-8, 1e-10])
def test_error_follows_the_tolerance(rtol):
    path = pfcore.integrate(
        negative_gradient_flow(QUADRATIC), START, [1.0, 3.0], rtol=rtol, atol=rtol * 1e-3
    )
    exact = np.exp(-np.outer([1.0, 3.0], EIGENVALUES)) * START
    assert float(jnp.max(jnp.abs(path.params - exact))) < 10 * rtol


def test_time_starts_at_zero_whatever_the_first_time():
    late = pfcore.integrate(negative_gradient_flow(QUADRATIC), START, [2.0])
    both = pfcore.integrate(negative_gradient_flow(QUADRATIC), START, [0.0, 2.0])
    np.testing.assert_allclose(late.params[0], both.params[1], rtol=1e-6)


def test_follows_to_the_times_of_steps():
    """On a quadratic the principal flow passes through the iterates of gradient descent."""
    h = 0.7
    path = pfcore.follow(principal_flow(QUADRATIC, h), START, h, 4, per_step=3, rtol=1e-9)
    np.testing.assert_allclose(path.times, h * np.arange(13) / 3, rtol=1e-15)
    steps = pfcore.gradient_descent(QUADRATIC, START, h, 4)
    np.testing.assert_allclose(path.params[::3], steps, atol=1e-8)


def test_follows_for_traced_learning_rates_of_another_precision():
    rates = jnp.array([0.25, 0.5], jnp.float32)
    start = jnp.array([1.0, 0.5])
    flow = negative_gradient_flow(quadratic_of(jnp.array([1.0, 3.0])))
    batched = jax.jit(jax.vmap(lambda h: pfcore.follow(flow, start, h, 2).params))(rates)
    for h, params in zip(rates, batched, strict=True):
        np.testing.assert_allclose(params, pfcore.follow(flow, start, h, 2).params, rtol=1e-7)


@pytest.mark.parametrize(
    ("learning_rate", "num_steps", "per_step", "message"),
    [(-0.1, 3, 1, "learning_rate"), (0.1, 0, 1, "num_steps"), (0.1, 3, 0, "per_step")],
)
def test_follow_rejects(learning_rate, num_steps, per_step, message):
    flow = negative_gradient_flow(lambda x: jnp.sum(x**2))
    with pytest.raises(ValueError, match=message):
        pfcore.follow(flow, jnp.ones(2), learning_rate, num_steps, per_step=per_step)


def test_blow_up_is_reported_and_earlier_positions_are_kept():
    """E = −x⁴/4: x′ = x³ ends at t = 1/2 from x = 1."""
    flow = negative_gradient_flow(lambda x: -jnp.sum(x**4) / 4)
    path = pfcore.integrate(flow, jnp.array([1.0]), [0.0, 0.25, 0.49, 1.0])
    assert not bool(path.completed)
    expected = 1 / np.sqrt(1 - 2 * np.array([0.0, 0.25, 0.49]))
    np.testing.assert_allclose(path.params[:3, 0], expected, rtol=1e-5)
    assert np.isnan(path.params[3, 0])
    assert int(path.num_steps) < 1000
    assert path.why.startswith("step size") and "blows up" in path.why


def test_running_out_of_steps_is_reported():
    flow = negative_gradient_flow(lambda x: jnp.sum(jnp.cos(20 * x)))
    path = pfcore.integrate(flow, jnp.array([0.01]), [0.0, 0.001, 10.0], max_steps=12)
    assert not bool(path.completed)
    assert int(path.num_steps) == 12
    assert path.why.startswith("max_steps") and "raise" in path.why
    assert np.all(np.isfinite(path.params[:2])) and np.isnan(path.params[2, 0])


def test_a_field_that_becomes_nan_is_reported():
    """A field that is NaN past x = 0.5."""
    flow = Flow(
        init=lambda p: p,
        vector_field=lambda t, x: jnp.where(x < 0.5, jnp.nan, -jnp.ones_like(x)),
        position=lambda x: x,
    )
    path = pfcore.integrate(flow, jnp.array([1.0]), [0.0, 0.25, 2.0])
    assert not bool(path.completed)
    np.testing.assert_allclose(path.params[:2, 0], [1.0, 0.75], rtol=1e-9)
    assert np.isnan(path.params[2, 0])
    assert path.why.startswith("not finite") and int(path.num_steps) < 1000


def test_positions_that_are_not_finite_are_reported():
    """The logarithm of x′ = −1 from 1, past 0."""
    flow = Flow(
        init=lambda p: p, vector_field=lambda t, x: -jnp.ones_like(x), position=lambda x: jnp.log(x)
    )
    path = pfcore.integrate(flow, jnp.array([1.0]), [0.5, 2.0])
    np.testing.assert_allclose(path.params[0], np.log(0.5), rtol=1e-9)
    assert not bool(path.completed) and path.why.startswith("not finite")


@pytest.mark.parametrize("jump", [1e6, 1e15, 1e25])
def test_a_jump_is_not_stepped_over(jump):
    """x′ = 1 up to x = 1/2, and strongly negative beyond: x stays there."""
    flow = Flow(
        init=lambda p: p,
        vector_field=lambda t, x: jnp.where(x < 0.5, jnp.ones_like(x), -jump),
        position=lambda x: x,
    )
    path = pfcore.integrate(flow, jnp.zeros(1), [0.25, 2.0])
    assert float(path.params[0, 0]) == pytest.approx(0.25, rel=1e-9)
    assert not bool(path.completed) and np.isnan(path.params[1, 0])
    assert path.why.startswith("step size" if jump > 1e10 else "pace")
    assert int(path.num_steps) < 1000


def test_reasons_under_tracing():
    """Each trajectory has its own: E = −x⁴/4 blows up at 1/(2 x²)."""
    flow = negative_gradient_flow(lambda x: -jnp.sum(x**4) / 4)

    def run(start):
        return pfcore.integrate(flow, start, [0.25, 1.0])

    paths = jax.jit(jax.vmap(run))(jnp.array([[0.5], [1.0]]))
    assert paths.completed.tolist() == [True, False]
    assert paths.reason[0] == 0 and paths.reason[1] != 0
    assert paths.why.startswith("reached the end; step size")
    with pytest.raises(TypeError, match="read why outside"):
        jax.jit(lambda x: [run(x).why and x])(jnp.array([0.5]))


def test_the_branch_cut_ends_early():
    loss, h = pfcore.objectives.himmelblau.scaled(0.01), 1.5
    path = pfcore.integrate(principal_flow(loss, h), jnp.ones(2), h * np.arange(6))
    assert path.why.startswith("pace") and "branch='continued'" in path.why
    assert int(path.num_steps) < 1000


@pytest.mark.parametrize("end", [10.0, 1e4])
@pytest.mark.parametrize("rtol", [1e-6, 1e-8, 1e-10])
def test_a_transient_does_not_stop_the_integration(rtol, end):
    """Curvatures 1 and 10⁴: many short steps first, then long ones."""
    curvatures = np.array([1e4, 1.0])
    flow = negative_gradient_flow(quadratic_of(curvatures))
    path = pfcore.integrate(
        flow,
        np.ones(2),
        [1e-4, 1.0, end],
        rtol=rtol,
        atol=rtol * 1e-3,
        solver=diffrax.Kvaerno5(),
    )
    assert bool(path.completed), path.why
    exact = np.exp(-np.outer([1e-4, 1.0], curvatures))
    np.testing.assert_allclose(path.params[:2], exact, rtol=100 * rtol, atol=rtol)


def test_the_hint_for_stiff_flows_is_an_implicit_solver():
    flow = negative_gradient_flow(quadratic_of(np.array([1e4, 1.0])))
    path = pfcore.integrate(flow, np.ones(2), [100.0])
    assert path.why.startswith("pace") and "Kvaerno5" in path.why
    assert int(path.num_steps) < 1000


def test_kinks_of_relu():
    """Tight tolerances stop with a hint; following it gives gradient descent in tiny steps."""
    loss, params = small_network("cross_entropy", "relu", sizes=(30, 8, 1))
    flow, times = negative_gradient_flow(loss), np.array([1.0, 3.0])
    tight = pfcore.integrate(flow, params, times)
    assert not bool(tight.completed)
    hint = "rtol=1e-3, atol=1e-5, solver=diffrax.Tsit5()"
    assert tight.why.startswith("pace") and hint in tight.why and hint in pfcore.integrate.__doc__
    path = pfcore.integrate(flow, params, times, rtol=1e-3, atol=1e-5, solver=diffrax.Tsit5())
    assert bool(path.completed)
    h = 1e-3
    steps = pfcore.gradient_descent(loss, params, h, 3000)
    for place, time in enumerate(times):
        found = flatten(jax.tree.map(lambda x, i=place: x[i], path.params))
        wanted = flatten(jax.tree.map(lambda x, t=time: x[round(t / h)], steps))
        assert np.linalg.norm(found - wanted) < 3e-3 * np.linalg.norm(wanted)


def test_a_loss_that_computes_in_bfloat16():
    """Its rounding ends tight tolerances, with a hint that works."""
    plain, params = small_network("cross_entropy", "tanh", sizes=(30, 8, 1))

    def loss(params):  # the network at parameters rounded to 8 bits, so that it jumps
        rounded = jax.tree.map(lambda p: p.astype(jnp.bfloat16).astype(p.dtype), params)
        return plain(rounded)

    flow, times = negative_gradient_flow(loss), np.array([1.0, 3.0])
    tight = pfcore.integrate(flow, params, times)
    assert not bool(tight.completed) and "bfloat16" in tight.why
    path = pfcore.integrate(flow, params, times, rtol=1e-3, atol=1e-5, solver=diffrax.Tsit5())
    assert bool(path.completed)
    exact = pfcore.integrate(negative_gradient_flow(plain), params, times)
    found, wanted = (flatten(jax.tree.map(lambda x: x[-1], p.params)) for p in (path, exact))
    assert np.linalg.norm(found - wanted) < 1e-2 * np.linalg.norm(wanted)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("make", [negative_gradient_flow, lambda loss: principal_flow(loss, 0.1)])
def test_16_bit_params_are_integrated_in_single_precision(make, dtype):
    """E = x²: gradient flow is exp(−2t), and the principal flow (1 − 2h)^(t/h)."""
    flow, times = make(lambda p: jnp.sum(p["x"] ** 2)), np.linspace(0, 1, 5)
    path = pfcore.integrate(flow, {"x": jnp.ones(1, dtype)}, times)
    rate = 2 if make is negative_gradient_flow else -np.log1p(-0.2) / 0.1
    assert bool(path.completed) and path.params["x"].dtype == jnp.float32
    np.testing.assert_allclose(path.params["x"][:, 0], np.exp(-rate * times), rtol=5e-5)
    single = pfcore.integrate(flow, {"x": jnp.ones(1, jnp.float32)}, times)
    np.testing.assert_array_equal(path.params["x"], single.params["x"])


STRICT = """
import sys
import jax, jax.numpy as jnp, numpy as np, pfcore
jax.config.update(*{
    "rank": ("jax_numpy_rank_promotion", "raise"),
    "nan": ("jax_debug_nans", True),
    "dtype": ("jax_numpy_dtype_promotion", "strict"),
}[sys.argv[1]])
from pfcore import flows
d, h, times = np.array([1.0, 2.0, 5.0], np.float32), 0.1, 0.1 * np.arange(4)
# The principal flow calls it with complex params, to which strict promotion promotes no real data.
loss = lambda p: 0.5 * jnp.sum(jnp.asarray(d, p["x"].dtype) * p["x"] ** 2)
start = {"x": jnp.ones(3)}
steps = pfcore.gradient_descent(loss, start, h, 3)
np.testing.assert_allclose(steps["x"], (1 - h * d) ** np.arange(4)[:, None], rtol=1e-5)
second, third = 1 + h * d / 2, 1 + h * d / 2 + (h * d) ** 2 / 3
exact = -np.log1p(-h * d) / (h * d)
for flow, factor in (
    (flows.negative_gradient_flow(loss), 1),
    (flows.igr_flow(loss, h), second),
    (flows.third_order_flow(loss, h), third),
    (flows.modified_flow(loss, h, 3), third),
    (flows.principal_flow(loss, h), exact),
    (flows.principal_flow(loss, h, state="real"), exact),
    (flows.principal_flow(loss, h, depth=3), exact),
):
    path = pfcore.integrate(flow, start, times)
    assert path.completed and path.why == "reached the end"
    wanted = np.exp(-np.outer(times, d * factor))
    np.testing.assert_allclose(path.params["x"], wanted, rtol=1e-4, atol=1e-5)
"""


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["rank", "nan", "dtype"])
def test_strict_settings_of_jax(setting):
    """Closed forms of gradient descent and of the principal flow, in a separate process."""
    ran = subprocess.run(
        [sys.executable, "-c", STRICT, setting],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]


def test_any_flow_with_more_state_than_parameters():
    """A user-defined flow: position and velocity of a spring."""
    spring = Flow(
        init=lambda p: (p, jnp.zeros_like(p)),
        vector_field=lambda t, s: (s[1], -s[0]),
        position=lambda s: s[0],
    )
    path = pfcore.integrate(spring, jnp.array([1.0]), [1.0, 2.0])
    np.testing.assert_allclose(path.params[:, 0], np.cos([1.0, 2.0]), rtol=1e-6)


def decaying(**parts):
    """x′ = −x by exact steps, and how many there were."""
    flow = SteppedFlow(
        init=lambda p: (p, jnp.int32(0)),
        step=lambda dt, s: (s[0] * jnp.exp(-dt), s[1] + 1),
        position=lambda s: s[0],
        max_step=0.1,
    )
    return flow._replace(**parts)


def test_stepped_flow_divides_the_time_between_saves_into_equal_steps():
    flow = decaying(oscillation=lambda s: 2 * s[0], expected_loss=lambda s: s[1].astype(float))
    times = np.array([0.0, 0.2, 0.2, 0.55])
    path = pfcore.integrate(flow, START, times)
    assert bool(path.completed) and path.why == "reached the end"
    np.testing.assert_allclose(path.params, np.exp(-times)[:, None] * START, rtol=1e-14)
    np.testing.assert_allclose(path.oscillation, 2 * path.params, rtol=1e-15)
    assert path.expected_loss.tolist() == [0, 2, 2, 6] and int(path.num_steps) == 6
    assert path.residual is None
    single = pfcore.integrate(flow, START.astype(np.float32), 0.1 * np.arange(200))
    assert int(single.num_steps) == 199 and single.params.dtype == jnp.float32


def test_stepped_flow_stops_where_a_step_is_not_solved():
    flow = decaying(residual=lambda s: jnp.where(s[1] < 4, 1e-9, 0.3))
    path = pfcore.integrate(flow, START, [0.2, 0.5, 1.0])
    assert not bool(path.completed) and path.why.startswith("unsolved")
    np.testing.assert_allclose(path.residual, [1e-9, 0.3, np.nan])
    assert np.all(np.isfinite(path.params[0])) and np.all(np.isnan(path.params[1:]))
    assert int(path.num_steps) == 4


def test_stepped_flow_stops_where_it_is_not_finite_or_out_of_steps():
    flow = decaying(step=lambda dt, s: (jnp.where(s[1] < 3, s[0], jnp.nan), s[1] + 1))
    path = pfcore.integrate(flow, START, [0.3, 0.5])
    assert path.why.startswith("not finite") and np.all(np.isfinite(path.params[0]))
    short = pfcore.integrate(decaying(), START, [0.3, 0.6], max_steps=5)
    assert short.why.startswith("max_steps") and int(short.num_steps) == 5
    assert np.all(np.isfinite(short.params[0])) and np.all(np.isnan(short.params[1]))


def test_stepped_flow_under_jit_and_vmap():
    def end(longest, start):
        path = pfcore.integrate(decaying(max_step=longest), start, [1.0])
        return path.params[0], path.num_steps

    found, steps = jax.jit(jax.vmap(end))(jnp.array([0.5, 0.25]), jnp.stack([START, 2 * START]))
    np.testing.assert_allclose(found, np.exp(-1) * np.stack([START, 2 * START]), rtol=1e-14)
    assert steps.tolist() == [2, 4]


def test_stepped_flow_rejects_a_solver():
    with pytest.raises(ValueError, match="its own steps"):
        pfcore.integrate(decaying(), START, [1.0], solver=diffrax.Tsit5())


@pytest.mark.parametrize("solver", [diffrax.Dopri8(), diffrax.Bosh3(), diffrax.Tsit5()])
def test_state_in_another_representation_after_each_step(solver):
    """x = m e^s, m′ = −3m, s′ = 0, with s moved to keep m near 1: the slope at a step's end,
    which some solvers use again, is another one then."""

    def after_step(state):
        m, s = state
        return jnp.sign(m), s + jnp.log(jnp.abs(m))

    flow = Flow(
        init=lambda p: (p, jnp.zeros_like(p)),
        vector_field=lambda t, state: (-3 * state[0], jnp.zeros_like(state[1])),
        position=lambda state: state[0] * jnp.exp(state[1]),
        oscillation=lambda state: state[0],
        expected_loss=lambda state: state[1][0],
        after_step=after_step,
    )
    times = np.array([0.0, 1.0, 40.0])
    path = pfcore.integrate(flow, START, times, rtol=1e-5, solver=solver, max_steps=20_000)
    assert bool(path.completed), path.why
    np.testing.assert_allclose(path.params, np.exp(-3 * times)[:, None] * START, rtol=1e-3)
    assert path.expected_loss[-1] < -100 and path.oscillation[-1, 0] > 0.1


def test_complex_states():
    """x′ = i x: a rotation; the position is the cosine."""
    rotation = Flow(
        init=lambda p: jax.lax.complex(p, jnp.zeros_like(p)),
        vector_field=lambda t, z: 1j * z,
        position=lambda z: z.real,
    )
    path = pfcore.integrate(rotation, jnp.array([1.0]), np.linspace(0, 10, 11))
    np.testing.assert_allclose(path.params[:, 0], np.cos(np.linspace(0, 10, 11)), atol=1e-5)


def test_other_solvers():
    path = pfcore.integrate(negative_gradient_flow(QUADRATIC), START, [1.0], solver=diffrax.Tsit5())
    np.testing.assert_allclose(path.params[0], np.exp(-EIGENVALUES) * START, rtol=1e-5)


def test_solvers_must_estimate_their_error():
    with pytest.raises(TypeError, match=r"estimates its error, such as diffrax\.Tsit5\(\).*got"):
        pfcore.integrate(negative_gradient_flow(QUADRATIC), START, [1.0], solver=diffrax.Euler())


def test_implicit_solvers_for_stiff_flows():
    """Curvatures 1 and 10⁴; the tolerances of the implicit equations are the controller's."""
    curvatures = np.array([1.0, 1e4])
    flow = negative_gradient_flow(lambda x: 0.5 * jnp.sum(curvatures * x**2))
    path = pfcore.integrate(
        flow, jnp.ones(2), [0.5, 1.0], rtol=1e-5, solver=diffrax.Kvaerno5(), max_steps=500
    )
    assert bool(path.completed)
    # Kvaerno5 interpolates within a step to the third order only.
    np.testing.assert_allclose(path.params[:, 0], np.exp([-0.5, -1.0]), rtol=1e-4)
    np.testing.assert_allclose(path.params[1], [np.exp(-1), 0], rtol=1e-5, atol=1e-5)


def test_state_of_many_arrays_and_dtypes():
    """Real and complex arrays, a scalar and an empty array in one state."""
    flow = Flow(
        init=lambda p: {"z": jax.lax.complex(p, -p), "none": jnp.zeros((0, 2)), "s": p[0]},
        vector_field=lambda t, s: {"z": 1j * s["z"], "none": s["none"], "s": -s["s"]},
        position=lambda s: (s["z"].real, s["none"], s["s"]),
    )
    real, none, scalar = pfcore.integrate(flow, jnp.array([1.0, 2.0]), [0.0, 2.0]).params
    np.testing.assert_allclose(real[1], (np.cos(2) + np.sin(2)) * np.array([1, 2]), rtol=1e-6)
    np.testing.assert_allclose(scalar, np.exp([0.0, -2.0]), rtol=1e-6)
    assert none.shape == (2, 0, 2)


def test_compiled_program_calls_nothing_on_the_host():
    """JAX's compilation cache stores no program with host callbacks."""

    def end(x):
        return pfcore.integrate(pfcore.flows.principal_flow(QUADRATIC, 0.9), x, [1.0]).params

    text = jax.jit(end).lower(jnp.asarray(START)).as_text()
    assert "while" in text and "callback" not in text


def test_derivative_through_the_integration():
    def end(x):
        return pfcore.integrate(negative_gradient_flow(QUADRATIC), x, [1.0]).params[0]

    np.testing.assert_allclose(
        jax.jacfwd(end)(jnp.asarray(START)), np.diag(np.exp(-EIGENVALUES)), atol=1e-5
    )


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ([0.0, 2.0, 1.0], "not decrease"),
        ([-1.0, 1.0], "negative"),
        ([], "non-empty"),
        ([[0.0, 1.0]], r"\(1, 2\)"),
        ([0.0, float("nan")], "finite"),
        ([0.0], "past 0"),
    ],
)
def test_rejects_invalid_times(times, message):
    with pytest.raises(ValueError, match=message):
        pfcore.integrate(negative_gradient_flow(QUADRATIC), START, times)


def test_times_in_a_list_may_be_traced():
    def end(h):
        return pfcore.integrate(igr_flow(QUADRATIC, h), START, [0.0, h]).params[-1]

    np.testing.assert_allclose(jax.jit(end)(0.1), end(0.1), rtol=1e-12)


@pytest.mark.parametrize(
    "times, options, message",
    [
        (["a", "b"], {}, r"times must be a vector of numbers, got \['a', 'b'\]"),
        ([1.0], {"rtol": None}, "rtol must be a number, got None"),
        ([1.0], {"atol": "small"}, "atol must be a number, got 'small'"),
    ],
)
def test_rejects_what_is_no_number(times, options, message):
    with pytest.raises(TypeError, match=message):
        pfcore.integrate(negative_gradient_flow(QUADRATIC), START, times, **options)


@pytest.mark.parametrize("options", [{"rtol": 0.0}, {"atol": -1.0}, {"rtol": float("nan")}])
def test_rejects_invalid_tolerances(options):
    with pytest.raises(ValueError, match="tol"):
        pfcore.integrate(negative_gradient_flow(QUADRATIC), START, [1.0], **options)


def test_rejects_invalid_max_steps():
    with pytest.raises(ValueError, match="max_steps"):
        pfcore.integrate(negative_gradient_flow(QUADRATIC), START, [1.0], max_steps=0)


@pytest.mark.parametrize("flow", ["principal", pfcore.flows.principal_flow], ids=["name", "maker"])
def test_what_is_not_a_flow_is_refused(flow):
    # As users call it: the tests' type checks would refuse it first.
    integrate = inspect.unwrap(pfcore.integrate)
    with pytest.raises(TypeError, match=r"flow must be a Flow, such as .*principal_flow\(loss"):
        integrate(flow, jnp.ones(2), [1.0])
