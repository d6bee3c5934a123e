"""The playground's numbers against pfcore's; they need nothing but the page's script."""

import functools
import re
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tests.pages import book

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("pfcore")]

# As the page loads them, in this order.
SCRIPTS = re.findall(
    r'<script src="\.\./(_static/[^"]+)"', (book.ROOT / "book" / "playground.md").read_text("utf-8")
)
ONE_FRAME = ("ngf", "igr", "principal")
FLOWS = (*ONE_FRAME, "two_frame", "central")
NUM_STEPS = 8
# Landscape -> starts, learning rates: hλ at the starts from below 0 to above 2.
CASES = {
    "quadratic": (
        [(-1.0, 0.6), (0.3, -0.9), (1.1, 0.05), (-0.2, -0.2)],
        [0.1, 0.45, 0.9, 0.99, 1.3],
    ),
    "banana": (
        [(-0.5, 0.5), (0.9, 0.8), (1.2, 1.4), (0.0, 0.1), (-1.3, 1.9)],
        [0.0003, 0.0007, 0.0015, 0.0025, 0.0045],
    ),
    "himmelblau": (
        [(1.0, 1.0), (0.75, -1.75), (2.8, 1.7), (-2.5, 3.3), (-4.0, -1.0), (0.0, 4.5)],
        [0.2, 0.5, 0.9, 1.5, 2.6],
    ),
    "double_well": (
        [(0.2, 1.0), (0.98, 0.1), (-1.05, 0.3), (1.6, -0.7), (0.0, 0.5)],
        [0.1, 0.3, 0.6, 1.1, 1.5],
    ),
    "saddle": (
        [(1.0, 0.02), (0.5, 0.01), (-0.8, -0.3), (0.0, 0.4)],
        [0.2, 0.7, 1.3, 1.9, 2.4],
    ),
    "valley": (
        [(1.8, 0.3), (1.2, -0.4), (2.6, 0.05), (3.1, -0.6)],
        [0.3, 0.7, 0.95, 1.0, 1.3],
    ),
}


@pytest.fixture(scope="module")
def script(browser: Any) -> Iterator[Callable]:
    """`script(expression, argument)`, evaluated beside the page's scripts, on an empty page."""
    page = browser.new_page()
    for path in SCRIPTS:
        page.add_script_tag(content=(book.ROOT / "book" / path).read_text(encoding="utf-8"))
    yield page.evaluate
    page.close()


@pytest.fixture(scope="module")
def pfcore_numbers() -> Iterator[ModuleType]:
    """pfcore's, in double precision."""
    import jax

    from tests.browser import playground_reference

    jax.config.update("jax_numpy_dtype_promotion", "strict")
    jax.config.update("jax_enable_x64", True)
    yield playground_reference
    jax.config.update("jax_enable_x64", False)


COMPUTE = """cases => cases.map(([name, start, h, n, branch]) => {
  const {paths, frames, ...numbers} = pfcorePlayground.compute(name, start, h, n, {branch});
  return numbers;
})"""


@functools.cache
def _settings() -> list[tuple[str, tuple[float, float], float]]:
    return [(n, s, h) for n, (starts, rates) in CASES.items() for s in starts for h in rates]


def _assert_close(found, expected):
    """To 1e-6, relative to the size of positions so far where that is above one."""
    # Where a path is lost before its first step, pfcore keeps no start and the page does.
    found, expected = found[:, 1:], expected[:, 1:]
    there = np.isfinite(expected)
    np.testing.assert_array_equal(np.isfinite(found), there)
    size = np.where(there, np.abs(expected), 1.0).max(axis=2, keepdims=True)
    size = np.maximum(1.0, np.maximum.accumulate(size, axis=1))
    difference = np.subtract(found, expected, out=np.zeros_like(expected), where=there)
    assert np.all(np.abs(difference) <= 1e-6 * size), np.max(np.abs(difference) / size)


@pytest.fixture(scope="module")
def found(script) -> list[dict[str, Any]]:
    """The page's numbers at all settings."""
    cases = [[name, list(s), h, NUM_STEPS, "continued"] for name, s, h in _settings()]
    return script(COMPUTE, cases)


def test_steps_eigenvalues_and_regimes_are_those_of_pfcore(found, pfcore_numbers):
    steps, eigenvalues = pfcore_numbers.steps(_settings(), NUM_STEPS)
    _assert_close(np.array([f["gd"] for f in found], float), steps)
    here = np.array([f["eigenvalues"] for f in found])
    np.testing.assert_allclose(here, eigenvalues, rtol=1e-12, atol=1e-12)
    for f, (_, _, h), values in zip(found, _settings(), eigenvalues, strict=True):
        assert f["regimes"] == pfcore_numbers.regimes(h, values)


@pytest.mark.parametrize("flow", FLOWS)
def test_flows_are_those_of_pfcore(found, pfcore_numbers, flow):
    options = {"branch": "continued"} if flow == "principal" else {}
    expected, completed, oscillation = pfcore_numbers.path(flow, _settings(), NUM_STEPS, **options)
    flags = np.array([f["completed"][flow] for f in found])
    differ = [_settings()[i] for i in np.flatnonzero(flags != completed)]
    assert not differ, f"completed differs at {differ}"
    _assert_close(np.array([f[flow] for f in found], float), expected)
    if flow == "two_frame":
        swings = np.array([f["oscillation"] for f in found], float)
        _assert_close(swings, oscillation)
        signs = (-1.0) ** np.arange(NUM_STEPS + 1)[:, None]
        _assert_close(np.array([f["predicted"] for f in found], float), expected + signs * swings)
    # The settings try what they are meant to.
    assert completed.sum() > 60
    assert (~completed).sum() >= {"principal": 10, "central": 5}.get(flow, 0)


def test_an_oscillation_below_the_rounding_of_the_centre_grows_again(script, pfcore_numbers):
    """It dies away where hλ₀ = 1.2, and comes back past the edge."""
    setting, num_steps = ("valley", (1.2, 1e-12), 1.0), 40
    (found,) = script(COMPUTE, [[*setting, num_steps, "continued"]])
    _, (completed,), (swings,) = pfcore_numbers.path("two_frame", [setting], num_steps)
    assert completed and found["completed"]["two_frame"]
    sizes = np.linalg.norm(swings, axis=1)
    assert sizes.min() < 1e-14 and sizes[-1] > 100 * sizes.min()
    error = np.linalg.norm(np.subtract(found["oscillation"], swings), axis=1) / sizes
    assert error.max() < 1e-5


def test_central_flow_is_compared_with_the_mean_of_three_steps(found, script):
    n = NUM_STEPS
    cases = [[name, list(s), h, n + 1, "continued"] for name, s, h in _settings()]
    for f, on in zip(found, script(COMPUTE, cases), strict=True):
        gd = np.array(on["gd"], float)
        with np.errstate(all="ignore"):
            midpoint = (gd[n - 1] + 2 * gd[n] + gd[n + 1]) / 4
        if np.all(np.isfinite(midpoint)):
            np.testing.assert_allclose(f["targets"]["central"], midpoint, rtol=1e-12, atol=1e-12)
        assert f["targets"]["two_frame"] == f["gd"][n]


def test_principal_branch_is_caught_where_pfcore_is(script, pfcore_numbers):
    setting = ("himmelblau", (1.0, 1.0), 1.5)
    (found,) = script(COMPUTE, [[*setting, NUM_STEPS, "principal"]])
    path, completed, _ = pfcore_numbers.path("principal", [setting], NUM_STEPS)
    assert not completed[0] and not found["completed"]["principal"]
    _assert_close(np.array([found["principal"]], float), path)


def test_coefficients_are_those_of_pfcore(script, pfcore_numbers):
    z = np.linspace(-2.5, 3.5, 50)
    for flow in ONE_FRAME:
        found = script(
            "([flow, z]) => z.map(z => pfcorePlayground.coefficient(flow, z))", [flow, z.tolist()]
        )
        np.testing.assert_allclose(found, pfcore_numbers.coefficient(flow, z), rtol=1e-13)


def test_examples_show_what_they_say(script):
    """By the page's own numbers, which are pfcore's."""
    examples = script("""() => pfcorePlayground.PRESETS.map(({name, view}) => {
      const run = branch => pfcorePlayground.compute(
        view.landscape, [view.x, view.y], view.h, view.steps, {branch});
      const {paths, frames, ...numbers} = run(view.branch);
      return {name, view, ...numbers, other: run("continued").completed.principal};
    })""")
    runs = {e["name"]: e for e in examples}

    def distances(e):
        return {f: float(np.hypot(*np.subtract(e[f][-1], e["gd"][-1]))) for f in ONE_FRAME}

    for name in ("Oscillating", "Diverging", "Saddle"):
        assert distances(runs[name])["principal"] < 1e-7
    for name, grows in (("Oscillating", False), ("Diverging", True)):
        across = np.array(runs[name]["gd"])[:, 1]
        assert np.all(across[1:] * across[:-1] < 0)
        assert (abs(across[-1]) > abs(across[0])) == grows
        assert all(abs(runs[name][f][-1][1]) < 1e-6 for f in ("ngf", "igr"))
    minimum = {f: abs(runs["PF leaves a minimum"][f][-1][0] - 1) for f in ("gd", *ONE_FRAME)}
    assert minimum["gd"] > 0.1 and minimum["principal"] > 0.1
    assert minimum["ngf"] < 1e-4 and minimum["igr"] < 1e-4
    assert np.hypot(*runs["Saddle"]["igr"][-1]) < np.hypot(*runs["Saddle"]["igr"][0]) / 10
    assert np.hypot(*runs["Saddle"]["gd"][-1]) > 1
    banana = distances(runs["PF wins: banana"])
    assert banana["principal"] < banana["igr"] / 2 and banana["principal"] < banana["ngf"] / 5
    lost = distances(runs["PF loses: Himmelblau"])
    assert lost["principal"] > 4 * lost["ngf"] and lost["principal"] > 7 * lost["igr"]
    cut = runs["Caught on the cut"]
    assert not cut["completed"]["principal"] and cut["other"]
    edge = runs["At the edge"]
    sharpness, swing = np.array([p[0] for p in edge["gd"]]), np.diff(np.array(edge["gd"])[:, 1])
    widest = np.argmax(np.abs(swing))
    # Past the edge, and back, by a swing that alternates throughout.
    assert sharpness[0] < 2 < 2.2 < sharpness.max() and sharpness[-1] < 2
    assert np.argmax(sharpness) < widest < len(swing) - 2
    assert np.all(swing[1:] * swing[:-1] < 0)
    apart = np.hypot(*np.subtract(edge["predicted"], edge["gd"]).T)
    assert apart.max() < np.abs(swing).max() / 8
    assert all(edge[f][-1][0] > 2.5 and abs(edge[f][-1][1]) < 1e-3 for f in ("ngf", "igr"))
    x, y = edge["central"][-1]
    assert abs(x + 1.5 * y + y**2 / (x + 1.5 * y) - 2) < 0.01


def test_does_nothing_on_other_pages(script):
    assert script("() => document.body.childElementCount") == 0
