// For readers who come by keyboard, from a folder, or to print.
(() => {
  "use strict";

  // What is wider than its place scrolls there; so that a keyboard can scroll it too, it takes the
  // focus, and says what it is. The theme does this for code and tables, before formulas are drawn.
  const WIDE = [
    ["mjx-container[display='true']", "Formula"],
    [".cell_output .output", "Output"],
    [".pst-scrollable-table-container", "Table"],
    ["pre", "Code"],
  ];

  function mark() {
    for (const [selector, label] of WIDE) {
      for (const element of document.querySelectorAll(`.bd-article ${selector}`)) {
        const style = getComputedStyle(element);
        const scrolls = (element.scrollWidth > element.clientWidth
            && /auto|scroll/.test(style.overflowX))
          || (element.scrollHeight > element.clientHeight && /auto|scroll/.test(style.overflowY));
        if (scrolls) {
          element.tabIndex = 0;
          if (!element.hasAttribute("role")) element.setAttribute("role", "group");
          if (!element.hasAttribute("aria-label")) element.setAttribute("aria-label", label);
        } else {
          element.removeAttribute("tabindex");
        }
      }
    }
  }

  // Sphinx's search reads the pages that it found to quote them, which a folder does not allow.
  if (location.protocol === "file:" && typeof DOCUMENTATION_OPTIONS === "object") {
    DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
  }

  // Paper is light.
  const root = document.documentElement;
  let shown = "light";
  window.addEventListener("beforeprint", () => {
    shown = root.dataset.theme;
    root.dataset.theme = "light";
  });
  window.addEventListener("afterprint", () => { root.dataset.theme = shown; });

  window.addEventListener("load", async () => {
    if (window.MathJax && MathJax.startup) await MathJax.startup.promise;
    await document.fonts.ready;
    mark();
    new ResizeObserver(mark).observe(document.body);
    document.addEventListener("toggle", mark, true); // a fold has been opened
  });
})();
