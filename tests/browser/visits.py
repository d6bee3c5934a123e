"""One visit to a page of the book: all that the checks of the page ask of it, read at once."""

import os
from collections.abc import Iterable
from typing import Any, NamedTuple

import pytest

from tests.browser import axe, tabs
from tests.pages import book

SCREENSHOTS = book.HTML.parent / "screenshots"


def each(names: Iterable[str] | None = None) -> list[Any]:
    """Parameters for tests over pages: those of one page run in one process and share its visit."""
    return [
        pytest.param(name, marks=pytest.mark.xdist_group(name))
        for name in (book.every() if names is None else names)
    ]


# One page of each kind. axe-core takes seconds for a page, so `make test` has it read these, a few
# of them on a phone too, and `make access` all of them at both widths.
KINDS = [
    "book/intro.html",
    "book/reading.html",
    "book/principal_flow.html",
    "book/edge_of_stability.html",
    "book/playground.html",
    "book/your_own_loop.html",
    "book/claims.html",
    "book/figures.html",
    "book/symbols.html",
    "book/api/flows.html",
    "search.html",
]


ON_A_PHONE = ["book/principal_flow.html", "book/playground.html", "book/claims.html"]


def read_by_axe(view: str) -> list[str]:
    """The pages whose accessibility is checked in this run, at a width."""
    if os.environ.get("PFCORE_EVERY_PAGE"):
        return book.every()
    return KINDS if view == "desktop" else ON_A_PHONE


class Visit(NamedTuple):
    """Events and contents of one page at one width."""

    log: tabs.Log
    math: dict[str, Any]
    # Of each numbered equation: whether its number is beside or beneath it, how far it reaches, its
    # height.
    equations: list[dict[str, Any]]
    images: list[dict[str, Any]]
    links: list[str]
    # Width of the screen -> what is wider than it, or than its own box; the desktop's pages are
    # also read as on a tablet.
    overflow: dict[int, dict[str, Any]]
    # Colour theme -> what axe-core finds wrong: rule, impact, and where.
    violations: dict[str, list[dict[str, Any]]]


MATH = r"""() => {
  const article = document.querySelector("article") || document.body;
  const walker = document.createTreeWalker(article, NodeFilter.SHOW_TEXT);
  const outside = "pre, code, script, style, textarea, mjx-container";
  const raw = [];
  const tex = /\$\$|\\\(|\\\[|\\(frac|nabla|theta|lambda|begin)\b|\$[^$\n]*[\\_^][^$\n]*\$/;
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    if (node.parentElement.closest(outside)) continue;
    if (tex.test(node.data)) raw.push(node.data.trim().slice(0, 120));
  }
  return {
    source: article.querySelectorAll(".math").length,
    rendered: article.querySelectorAll("mjx-container").length,
    // For screen readers, each has MathML beside its picture.
    silent: [...article.querySelectorAll("mjx-container")]
      .filter(e => !e.querySelector(":scope > mjx-assistive-mml > math")?.textContent.trim())
      .map(e => (e.closest(".math") || e).textContent.slice(0, 120)),
    blank: [...article.querySelectorAll(".math")]
      .filter(e => !e.querySelector("mjx-container")).map(e => e.textContent.slice(0, 120)),
    failed: [...article.querySelectorAll("mjx-merror, merror, [data-mjx-error]")]
      .map(e => e.getAttribute("data-mjx-error") || e.textContent),
    // Within a line a formula has no width of its own to overflow, but a place where it ends.
    cut: [...article.querySelectorAll("mjx-container")]
      .filter(e => e.hasAttribute("display") ? e.scrollWidth > e.clientWidth + 1
        : e.checkVisibility()
          && e.getBoundingClientRect().right > document.scrollingElement.clientWidth + 1)
      .map(e => (e.querySelector("mjx-assistive-mml") || e).textContent.slice(0, 120)),
    raw,
  };
}"""

EQUATIONS = """() => [...document.querySelectorAll('.numbered-equation')].map(div => {
  const box = selector => div.querySelector(selector).getBoundingClientRect();
  const number = box('.eqno'), formula = box('mjx-container');
  const apart = number.left >= formula.right - 1 || number.top >= formula.bottom - 1;
  return {id: div.id, apart, right: number.right, tall: number.height};
})"""

# Pictures of the other theme are hidden, and not loaded before they are wanted.
IMAGES = """() => [...document.images].filter(i => i.checkVisibility()).map(i => ({
  src: i.getAttribute("src"), width: i.naturalWidth, alt: i.alt.trim(),
  decorative: i.getAttribute("aria-hidden") === "true" || i.getAttribute("role") === "presentation"
}))"""

LINKS = """() => [...document.querySelectorAll("a[href]")].map(a => a.href)"""

OVERFLOW = """() => {
  const page = document.scrollingElement, width = page.clientWidth;
  const scrolls = e => { for (e = e.parentElement; e; e = e.parentElement) {
    if (e !== document.body && e !== page
        && /auto|scroll|hidden|clip/.test(getComputedStyle(e).overflowX)) return true; }
    return false; };
  const wide = [...document.querySelectorAll("article *")]
    .filter(e => e.getBoundingClientRect().right > width + 1 && !scrolls(e))
    .slice(0, 5).map(e => e.outerHTML.slice(0, 160));
  const inside = (e, box) => e.bottom <= box.bottom + 1 && e.right <= box.right + 1;
  const fallen = [...document.querySelectorAll("article dt.sig > a")]
    .filter(e => !inside(e.getBoundingClientRect(), e.parentElement.getBoundingClientRect()))
    .map(e => e.parentElement.id);
  return {page: page.scrollWidth, view: width, wide, fallen};
}"""

# Scrolls once through, a screen a frame, so that what happens to things when they are seen has
# happened and images that load then have loaded.
SCROLL = """async () => {
  const page = document.scrollingElement, frame = () => new Promise(requestAnimationFrame);
  const scroll = y => scrollTo({top: y, behavior: "instant"});
  for (let y = 0; y < page.scrollHeight; y += innerHeight) { await frame(); scroll(y); }
  await frame();
  scroll(0);
  const seen = [...document.images].filter(i => i.checkVisibility());
  for (const i of seen) i.loading = "eager";
  await Promise.all(seen.map(i => i.decode().catch(() => null)));
}"""


# A colour that is still fading is not the reader's. Not waited for: Chromium may put off for ever
# what fades where nobody sees it.
SETTLE = """() => document.getAnimations()
  .filter(a => Number.isFinite(a.effect.getComputedTiming().endTime))
  .forEach(a => a.finish())"""
# What is folded away is read too.
OPEN = """() => {
  document.querySelectorAll("article details").forEach(fold => { fold.open = true; });
  return new Promise(next => requestAnimationFrame(() => requestAnimationFrame(next)));
}"""
TABLET = {"width": 820, "height": 1180}


def _screenshots(page: Any, name: str, view: str) -> None:
    """Pictures of the page for people, in both themes, where `PFCORE_SCREENSHOTS` asks for them."""
    if not os.environ.get("PFCORE_SCREENSHOTS"):
        return
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    stem = f"{name.removesuffix('.html').replace('/', '-')}-{view}"
    for theme in ("dark", "light"):
        tabs.set_theme(page, theme)
        page.evaluate(SCROLL)
        page.evaluate(SETTLE)
        picture = SCREENSHOTS / f"{stem}-{theme}.jpg"
        page.screenshot(path=picture, full_page=True, scale="css", type="jpeg", quality=70)


def read(tab: tabs.Tab, address: str, name: str, view: str, *, thorough: bool) -> Visit:
    """Visits a page once for all the checks; `PFCORE_SCREENSHOTS` keeps pictures beside the book.

    Args:
      tab: where to open it, with the view's screen.
      address: where the book is served.
      name: the page, as in `book.every`.
      view: a name for the screen.
      thorough: whether to look at colours, in both themes, and at the width of a tablet too.
    """
    with tab.opened(address + name) as (page, log):
        tabs.typeset(page)
        equations = page.evaluate(EQUATIONS)
        page.evaluate(SCROLL)
        found = Visit(
            log=log,
            math=page.evaluate(MATH),
            equations=equations,
            images=page.evaluate(IMAGES),
            links=page.evaluate(LINKS),
            overflow={page.viewport_size["width"]: page.evaluate(OVERFLOW)},
            violations={},
        )
        _screenshots(page, name, view)
        page.evaluate(OPEN)
        page.evaluate(SETTLE)
        accessibility = name in read_by_axe(view)
        if accessibility:
            axe.load(page)
            found.violations["light"] = axe.run(page, axe.RULES if thorough else axe.LAYOUT)
        if thorough:
            tabs.set_theme(page, "dark")
            page.evaluate(SETTLE)
            if accessibility:
                found.violations["dark"] = axe.run(page, {"runOnly": axe.COLOURS})
            page.set_viewport_size(TABLET)
            found.overflow[TABLET["width"]] = page.evaluate(OVERFLOW)
    return found
