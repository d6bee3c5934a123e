"""The playground page: its numbers against pfcore's, and what it does under a reader's hands.

The numbers need nothing but the page's script. The rest needs the page in the built book, and is
skipped without it.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pages
import pytest

import pfcore
from pfcore import objectives
from pfcore.flows import named_flow

pytestmark = pytest.mark.browser

SCRIPT = pages.ROOT / "book" / "_static" / "playground.js"
PAGE = "book/playground.html"
FLOWS = ("ngf", "igr", "principal")
NUM_STEPS = 8
# Landscape -> objective, starts, learning rates: hλ at the starts from below 0 to above 2.
CASES = {
    "quadratic": (
        objectives.quadratic_form(np.diag([0.2, 2.0])),
        [(-1.0, 0.6), (0.3, -0.9), (1.1, 0.05), (-0.2, -0.2)],
        [0.1, 0.45, 0.9, 0.99, 1.3],
    ),
    "banana": (
        objectives.banana,
        [(-0.5, 0.5), (0.9, 0.8), (1.2, 1.4), (0.0, 0.1), (-1.3, 1.9)],
        [0.0003, 0.0007, 0.0015, 0.0025, 0.0045],
    ),
    "himmelblau": (
        objectives.himmelblau.scaled(0.01),
        [(1.0, 1.0), (0.75, -1.75), (2.8, 1.7), (-2.5, 3.3), (-4.0, -1.0), (0.0, 4.5)],
        [0.2, 0.5, 0.9, 1.5, 2.6],
    ),
    "double_well": (
        objectives.double_well,
        [(0.2, 1.0), (0.98, 0.1), (-1.05, 0.3), (1.6, -0.7), (0.0, 0.5)],
        [0.1, 0.3, 0.6, 1.1, 1.5],
    ),
    "saddle": (
        objectives.saddle,
        [(1.0, 0.02), (0.5, 0.01), (-0.8, -0.3), (0.0, 0.4)],
        [0.2, 0.7, 1.3, 1.9, 2.4],
    ),
}
# More than the default: beside the branch point hλ = 1 pfcore's pace is slow for a while, and it
# would give up on a few paths here that can be followed.
MAX_STEPS = 10**6


@pytest.fixture(scope="module")
def script(browser) -> Callable:
    """`script(expression, argument)`, evaluated beside the script alone, on an empty page."""

    def evaluate(expression: str, argument: Any = None) -> Any:
        page = browser.new_page()
        page.add_script_tag(content=SCRIPT.read_text(encoding="utf-8"))
        found = page.evaluate(expression, argument)
        page.close()
        return found

    return evaluate


COMPUTE = """cases => cases.map(([name, start, h, n, branch]) => {
  const {gd, ngf, igr, principal, completed, eigenvalues, regimes} =
    pfcorePlayground.compute(name, start, h, n, {branch});
  return {gd, ngf, igr, principal, completed, eigenvalues, regimes};
})"""


@functools.cache
def _settings() -> list[tuple[str, tuple[float, float], float]]:
    return [(n, s, h) for n, (_, starts, rates) in CASES.items() for s in starts for h in rates]


def _each(function: Callable, settings: list) -> Any:
    """`function(loss, start, learning_rate)` at all settings at once, compiled once."""
    names = list(CASES)

    def at(which, start, h):
        branches = [CASES[name][0] for name in names]
        return function(lambda params: jax.lax.switch(which, branches, params), start, h)

    which, starts, rates = zip(*settings, strict=True)
    found = jax.jit(jax.vmap(at))(
        jnp.asarray([names.index(name) for name in which]), jnp.asarray(starts), jnp.asarray(rates)
    )
    return jax.tree.map(np.asarray, found)


def _follow(name: str, settings: list, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """pfcore's positions at t = kh, [settings, steps + 1, 2], and whether each was completed."""

    def follow(loss, start, h):
        flow = named_flow(name, loss, h, **options)
        times = h * jnp.arange(NUM_STEPS + 1, dtype=h.dtype)
        path = pfcore.integrate(flow, start, times, rtol=1e-9, atol=1e-12, max_steps=MAX_STEPS)
        return path.params, path.completed

    return _each(follow, settings)


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


def test_steps_eigenvalues_and_regimes_are_those_of_pfcore(found, x64):
    def at_start(loss, start, h):
        values = jnp.linalg.eigvalsh(jax.hessian(loss)(start))
        return pfcore.gradient_descent(loss, start, h, NUM_STEPS), values

    steps, eigenvalues = _each(at_start, _settings())
    _assert_close(np.array([f["gd"] for f in found], float), steps)
    here = np.array([f["eigenvalues"] for f in found])
    np.testing.assert_allclose(here, eigenvalues, rtol=1e-12, atol=1e-12)
    for f, (_, _, h), values in zip(found, _settings(), eigenvalues, strict=True):
        assert f["regimes"] == pfcore.stability.regime(h, values).tolist()


@pytest.mark.parametrize("flow", FLOWS)
def test_flows_are_those_of_pfcore(found, x64, flow):
    options = {"branch": "continued"} if flow == "principal" else {}
    expected, completed = _follow(flow, _settings(), **options)
    flags = np.array([f["completed"][flow] for f in found])
    differ = [_settings()[i] for i in np.flatnonzero(flags != completed)]
    assert not differ, f"completed differs at {differ}"
    _assert_close(np.array([f[flow] for f in found], float), expected)
    # The settings try what they are meant to.
    assert completed.sum() > 60 and (flow != "principal" or (~completed).sum() > 10)


def test_principal_branch_is_caught_where_pfcore_is(script, x64):
    setting = ("himmelblau", (1.0, 1.0), 1.5)
    (found,) = script(COMPUTE, [[*setting, NUM_STEPS, "principal"]])
    path, completed = _follow("principal", [setting])
    assert not completed[0] and not found["completed"]["principal"]
    _assert_close(np.array([found["principal"]], float), path)


def test_coefficients_are_those_of_pfcore(script, x64):
    z = np.linspace(-2.5, 3.5, 50)
    for flow in FLOWS:
        found = script(
            "([flow, z]) => z.map(z => pfcorePlayground.coefficient(flow, z))", [flow, z.tolist()]
        )
        np.testing.assert_allclose(found, pfcore.stability.coefficient(flow, z).real, rtol=1e-13)


def test_examples_show_what_they_say(script):
    """By the page's own numbers, which are pfcore's."""
    examples = script("""() => pfcorePlayground.PRESETS.map(({name, view}) => {
      const run = branch => pfcorePlayground.compute(
        view.landscape, [view.x, view.y], view.h, view.steps, {branch});
      return {name, view, ...run(view.branch), other: run("continued").completed.principal};
    })""")
    runs = {e["name"]: e for e in examples}

    def distances(e):
        return {f: float(np.hypot(*np.subtract(e[f][-1], e["gd"][-1]))) for f in FLOWS}

    for name in ("Oscillating", "Diverging", "Saddle"):
        assert distances(runs[name])["principal"] < 1e-7
    for name, grows in (("Oscillating", False), ("Diverging", True)):
        across = np.array(runs[name]["gd"])[:, 1]
        assert np.all(across[1:] * across[:-1] < 0)
        assert (abs(across[-1]) > abs(across[0])) == grows
        assert all(abs(runs[name][f][-1][1]) < 1e-6 for f in ("ngf", "igr"))
    minimum = {f: abs(runs["PF leaves a minimum"][f][-1][0] - 1) for f in ("gd", *FLOWS)}
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


def test_does_nothing_on_other_pages(script):
    assert script("() => document.body.childElementCount") == 0


# ---- the page in the book


@pytest.fixture
def opened(browser, address) -> Callable:
    """`opened(view)` is the page, drawn, in a `with`; it must make no error and ask no one else."""
    if not (pages.HTML / PAGE).is_file():
        pytest.skip(f"no {PAGE} in {pages.HTML}; make html builds it")

    @contextlib.contextmanager
    def open_(view: str, **options: Any) -> Iterator[Any]:
        settings = {**pages.VIEWS[view], **options}
        with pages.opened(browser, address + PAGE, **settings) as (page, log):
            page.wait_for_function(READY)
            page.locator("#pg-map").scroll_into_view_if_needed()
            yield page
        assert log.errors == []
        assert log.outside == []

    return open_


READY = "window.pfcorePlayground && pfcorePlayground.frames > 0"
STATE = "() => pfcorePlayground.state"
# Resolves once what was asked for before has been drawn.
DRAWN = "() => new Promise(r => requestAnimationFrame(() => requestAnimationFrame(() => r(null))))"


def _settle(page: Any) -> dict[str, Any]:
    page.evaluate(DRAWN)
    return page.evaluate(STATE)


def test_mouse_drags_the_start(opened):
    with opened("desktop") as page:
        before = page.evaluate(STATE)
        numbers = page.inner_text(".pg-curves"), page.inner_text("#pg-words")
        box = page.locator("#pg-map").bounding_box()
        page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 0.3 * box["height"])
        page.mouse.down()
        times = []
        for i in range(40):
            x, y = 0.3 + 0.4 * i / 40, 0.3 + 0.3 * i / 40
            page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
            page.evaluate(DRAWN)
            times.append(page.evaluate("pfcorePlayground.frame.total"))
        page.mouse.up()
        after = _settle(page)
        assert (before["x"], before["y"]) != (after["x"], after["y"])
        assert page.input_value("#pg-x") == str(after["x"])
        assert page.inner_text(".pg-curves") != numbers[0]
        page.wait_for_function("text => document.querySelector('#pg-words').innerText !== text",
                               arg=numbers[1])  # fmt: skip
        # Moving on without the button changes nothing.
        page.mouse.move(box["x"] + 20, box["y"] + 20)
        assert _settle(page)["x"] == after["x"]
        # The middle one: a loaded machine may hold up single frames.
        assert np.median(times) < 50, times


def test_keys_move_the_start(opened):
    with opened("desktop") as page:
        page.focus("#pg-map")
        before = page.evaluate(STATE)
        page.keyboard.press("ArrowRight")
        right = _settle(page)
        assert right["x"] > before["x"] and right["y"] == before["y"]
        page.keyboard.press("Shift+ArrowUp")
        up = _settle(page)
        assert up["y"] - before["y"] > 5 * (right["x"] - before["x"])


def test_controls(opened):
    with opened("desktop") as page:
        before = page.evaluate(STATE)
        page.focus("#pg-rate")
        page.keyboard.press("ArrowRight")
        assert _settle(page)["h"] > before["h"]
        page.focus("#pg-steps")
        page.keyboard.press("ArrowRight")
        assert _settle(page)["steps"] == before["steps"] + 1
        page.fill("#pg-x", "0.25")
        assert _settle(page)["x"] == 0.25
        page.uncheck("[data-curve=igr]")
        assert _settle(page)["hidden"] == ["igr"]
        page.select_option("#pg-select", "double_well")
        page.select_option("#pg-branch", "principal")
        page.click("#pg-in")
        state = _settle(page)
        assert (state["landscape"], state["branch"], state["zoom"]) == (
            "double_well",
            "principal",
            2,
        )
        # The address brings the same view back.
        page.wait_for_function("location.hash.includes('principal')")
        page.wait_for_function("location.hash.includes('zoom=2')")
        page.reload(wait_until="load")
        page.wait_for_function(READY)
        again = page.evaluate(STATE)
        for key in ("landscape", "h", "x", "y", "steps", "branch", "zoom", "hidden"):
            assert again[key] == state[key], key
        page.click("#pg-reset")
        assert _settle(page)["hidden"] == []


def test_every_example_can_be_chosen(opened):
    with opened("desktop") as page:
        for button in page.locator(".pg-presets button").all():
            button.click()
            _settle(page)
            assert button.get_attribute("aria-pressed") == "true"


def test_a_finger_drags_the_start_on_a_phone(opened):
    with opened("phone", has_touch=True) as page:
        before = page.evaluate(STATE)
        scroll = page.evaluate("scrollY")
        box = page.locator("#pg-map").bounding_box()
        touch = page.context.new_cdp_session(page)

        def send(kind, *at):
            points = [
                {"x": box["x"] + x * box["width"], "y": box["y"] + y * box["height"]} for x, y in at
            ]
            touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

        send("touchStart", (0.4, 0.4))
        for i in range(1, 9):
            send("touchMove", (0.4 + 0.03 * i, 0.4 + 0.03 * i))
        send("touchEnd")
        after = _settle(page)
        assert (before["x"], before["y"]) != (after["x"], after["y"])
        assert page.evaluate("scrollY") == scroll
        overflow = page.evaluate("document.scrollingElement.scrollWidth - innerWidth")
        assert overflow <= 1


def test_colours_follow_the_theme(opened):
    """The picture turns dark with the page, without a reload."""
    with opened("desktop") as page:
        brightness = {}
        for theme in ("light", "dark"):
            page.evaluate("theme => { document.documentElement.dataset.theme = theme; }", theme)
            page.evaluate(DRAWN)
            brightness[theme] = page.evaluate("""() => {
              const map = document.querySelector("#pg-map");
              const pixels = map.getContext("2d").getImageData(0, 0, map.width, map.height).data;
              let sum = 0;
              for (let i = 0; i < pixels.length; i += 4) sum += pixels[i];
              return sum / (pixels.length / 4);
            }""")
        assert brightness["dark"] < 100 < brightness["light"]
