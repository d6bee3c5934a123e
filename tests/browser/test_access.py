"""The book for readers who use a screen reader, a keyboard, or need contrast.

axe-core reads pages with all its rules, folds open: on a desktop and on a phone, and colours on the
desktop in both themes, since they are the same at every width. `make access` has it read all pages,
`make test` one of each kind.
"""

import pytest

from tests.browser import axe, tabs, visits

pytestmark = pytest.mark.browser


@pytest.mark.parametrize(
    "name, view",
    [
        pytest.param(name, view, marks=pytest.mark.xdist_group(name))
        for view in tabs.VIEWS
        for name in visits.read_by_axe(view)
    ],
)
def test_axe_finds_no_serious_violation(visit, name, view):
    found = visit(name, view).violations
    assert "light" in found
    serious = [
        (theme, violation["id"], violation["help"], violation["nodes"])
        for theme, violations in found.items()
        for violation in violations
        if violation["impact"] in ("serious", "critical")
    ]
    assert serious == []


# What a page might have, and must not.
WRONG = """() => document.querySelector("article").insertAdjacentHTML("afterbegin", `
  <p style="color: #999; background: rgba(255, 255, 255, 0.9)">Pale</p>
  <p style="opacity: 0.4">Faint <a href="#x" style="text-decoration: none">here</a></p>
  <p style="color: color-mix(in srgb, white, #777 30%)">Mixed</p>
  <button></button> <img src="x"> <div role="list"><b>No item</b></div>
  <a href="#a" style="font-size: 8px">a</a><a href="#b" style="font-size: 8px">b</a>`)"""


def test_axe_finds_what_it_finds_when_not_hurried(opened):
    with opened("book/api/command_line.html") as (page, _):
        page.evaluate(WRONG)
        page.evaluate(axe.source())
        in_peace = axe.run(page, axe.RULES)
        axe.load(page)
        assert axe.run(page, axe.RULES) == in_peace
    assert {violation["id"]: len(violation["nodes"]) for violation in in_peace} == {
        "aria-required-children": 1,
        "button-name": 1,
        "color-contrast": 4,
        "image-alt": 1,
        "link-in-text-block": 1,
        "target-size": 2,
    }


FOCUSED = """() => {
  const e = document.activeElement, style = getComputedStyle(e);
  const marks = {
    skip: ".skip-link a", search: ".search-button__button", list: "nav.bd-links a",
    theme: ".theme-switch-button", fold: ".cell details > summary", table: "article table a",
    neighbour: ".prev-next-area a",
  };
  const shadow = /[1-9]\\d*px/.test(style.boxShadow);
  return {
    what: Object.keys(marks).filter(name => e.matches(marks[name])),
    visible: shadow || (style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2),
    place: e.outerHTML.slice(0, 120),
  };
}"""


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("book/dal.html", {"skip", "search", "list", "theme", "fold", "neighbour"}),
        ("book/claims.html", {"skip", "search", "list", "theme", "fold", "table", "neighbour"}),
    ],
)
def test_keyboard_reaches_everything_and_shows_where_it_is(opened, name, wanted):
    reached, hidden = set(), []
    with opened(name) as (page, _):
        tabs.typeset(page)
        for _ in range(400):
            page.keyboard.press("Tab")
            focused = page.evaluate(FOCUSED)
            reached.update(focused["what"])
            if not focused["visible"]:
                hidden.append(focused["place"])
            if "neighbour" in reached:
                break
    assert reached == wanted
    assert hidden == []


def test_skip_link_leads_to_the_text(opened):
    with opened("book/dal.html") as (page, _):
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        page.keyboard.press("Tab")
        assert page.evaluate("document.querySelector('main').contains(document.activeElement)")


def test_keyboard_opens_a_fold(opened):
    with opened("book/dal.html") as (page, _):
        summary = page.locator(".cell details > summary").first
        code = page.locator(".cell details .cell_input").first
        assert not code.is_visible()
        summary.focus()
        page.keyboard.press("Enter")
        code.wait_for(state="visible")


@pytest.mark.parametrize("name", visits.each())
def test_every_formula_can_be_heard(visit, name):
    """Each has MathML beside its picture, for screen readers."""
    math = visit(name, "desktop").math
    assert math["silent"] == []
    assert name != "book/principal_flow.html" or math["rendered"] > 20


def test_what_scrolls_takes_the_focus(browser, address):
    """On a phone nothing need scroll; enlarged there, as for weak eyes, a formula does."""
    enlarged = {"viewport": {"width": 240, "height": 520}}
    with tabs.opened(browser, address + "book/drift.html", **enlarged) as (page, _):
        tabs.typeset(page)
        wide = "mjx-container[display='true']"
        page.wait_for_function(
            f'[...document.querySelectorAll("{wide}")].some(e => e.tabIndex === 0)'
        )
        assert page.evaluate(
            f"""[...document.querySelectorAll("{wide}")].every(
              e => (e.scrollWidth > e.clientWidth) === (e.tabIndex === 0))"""
        )
