"""The playground page under a reader's hands; its numbers are test_playground_numbers.py's."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from tests.browser import tabs
from tests.pages import book

pytestmark = pytest.mark.browser

PAGE = "book/playground.html"


@pytest.fixture
def playground(browser: Any, address: str, opened: Callable) -> Callable:
    """`playground(view, **options)` is the page, drawn, in a `with`.

    It must make no error and ask no one else. With options, it has a context of its own.
    """
    if not (book.HTML / PAGE).is_file():
        pytest.skip(f"no {PAGE} in {book.HTML}; make html builds it")

    @contextlib.contextmanager
    def open_(view: str, **options: Any) -> Iterator[Any]:
        screen = {**tabs.VIEWS[view], **options}
        tab = tabs.opened(browser, address + PAGE, **screen) if options else opened(PAGE, view)
        with tab as (page, log):
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


@pytest.mark.parametrize("example", ["Oscillating", "At the edge"])
def test_mouse_drags_the_start(playground, example):
    with playground("desktop") as page:
        page.click(f".pg-presets >> text={example}")
        before = _settle(page)
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


def test_keys_move_the_start(playground):
    with playground("desktop") as page:
        page.focus("#pg-map")
        before = page.evaluate(STATE)
        page.keyboard.press("ArrowRight")
        right = _settle(page)
        assert right["x"] > before["x"] and right["y"] == before["y"]
        page.keyboard.press("Shift+ArrowUp")
        up = _settle(page)
        assert up["y"] - before["y"] > 5 * (right["x"] - before["x"])


def test_controls(playground):
    with playground("desktop") as page:
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
        assert "igr" in _settle(page)["hidden"]
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


def test_arrow_keys_reach_every_learning_rate(playground):
    """Also where three digits of the rate are coarser than a step of the slider."""
    with playground("desktop") as page:
        slider = page.locator("#pg-rate")
        for landscape in page.locator("#pg-select option").all():
            page.select_option("#pg-select", landscape.get_attribute("value"))
            _settle(page)
            for start in (None, 500, 800):
                if start is not None:
                    slider.fill(str(start))
                _settle(page)
                for key, by in (("ArrowRight", 1), ("ArrowLeft", -1)):
                    before = int(slider.input_value())
                    for _ in range(4):
                        slider.press(key)
                        _settle(page)
                    expected = min(max(before + 4 * by, 0), 1000)
                    assert int(slider.input_value()) == expected, (landscape, start, key)


def test_the_largest_zoom_survives_its_address(playground):
    with playground("desktop") as page:
        for button in page.locator(".pg-presets button").all():
            last = page.evaluate("location.hash")
            button.click()
            _settle(page)
            page.focus("#pg-in")
            while page.get_attribute("#pg-in", "aria-disabled") == "false":
                page.keyboard.press("Enter")
                state = _settle(page)
            assert page.evaluate("document.activeElement.id") == "pg-in"
            page.wait_for_function(
                "last => location.hash !== last && location.hash.includes('zoom=32')", arg=last
            )
            page.reload(wait_until="load")
            page.wait_for_function(READY)
            again = page.evaluate(STATE)
            for name in ("zoom", "cx", "cy"):
                assert again[name] == pytest.approx(state[name], rel=1e-3, abs=1e-6), name


def test_every_example_can_be_chosen(playground):
    with playground("desktop") as page:
        for button in page.locator(".pg-presets button").all():
            button.click()
            _settle(page)
            assert button.get_attribute("aria-pressed") == "true"


# How many pixels of the landscape have a colour near that of the two-frame flow's lines.
WINE = """() => {
  const map = document.querySelector("#pg-map");
  const pixels = map.getContext("2d").getImageData(0, 0, map.width, map.height).data;
  const near = i => [0x88, 0x22, 0x55].every((c, k) => Math.abs(pixels[i + k] - c) < 12);
  let count = 0;
  for (let i = 0; i < pixels.length; i += 4) count += near(i);
  return count;
}"""


def test_both_frames_are_drawn_and_told(playground):
    with playground("desktop") as page:
        assert page.evaluate(WINE) == 0
        page.click(".pg-presets >> text=At the edge")
        assert _settle(page)["hidden"] == ["principal"]
        page.wait_for_function("document.querySelector('#pg-words').innerText.startsWith('Valley')")
        words = page.inner_text("#pg-words")
        assert "two-frame flow 0.0" in words and "from the mean over the swing" in words
        shown = page.evaluate(WINE)
        page.uncheck("[data-curve=two_frame]")
        assert "two_frame" in _settle(page)["hidden"]
        assert page.evaluate(WINE) == 0 < 500 < shown
        # A reader who chooses the landscape itself sees them, too.
        page.select_option("#pg-select", "quadratic")
        page.select_option("#pg-select", "valley")
        assert "two_frame" not in _settle(page)["hidden"]


def test_a_finger_drags_the_start_on_a_phone(playground):
    with playground("phone", has_touch=True) as page:
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


def test_colours_follow_the_theme(playground):
    """The picture turns dark with the page, without a reload."""
    with playground("desktop") as page:
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
