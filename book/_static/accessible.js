// For keyboards, search, pages read from a local folder, and printing.
(() => {
  "use strict";

  // Elements that scroll get focus and a label, so that they can be scrolled by keyboard. The theme does
  // this for code and tables only, before formulas are drawn.
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

  // Sphinx's search reads pages to quote them, which browsers do not allow in a local folder.
  if (location.protocol === "file:" && typeof DOCUMENTATION_OPTIONS === "object") {
    DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
  }

  // It quotes formulas as TeX, which is converted to plain letters.
  const LETTERS = {
    alpha: "α", beta: "β", gamma: "γ", delta: "δ", Delta: "Δ", epsilon: "ε", varepsilon: "ε",
    lambda: "λ", Lambda: "Λ", mu: "μ", nabla: "∇", phi: "φ", varphi: "φ", pi: "π", rho: "ρ",
    sigma: "σ", Sigma: "Σ", tau: "τ", theta: "θ", xi: "ξ", sum: "∑", int: "∫", partial: "∂",
    infty: "∞", cdot: "·", cdots: "…", ldots: "…", dots: "…", times: "×", pm: "±", top: "ᵀ",
    le: "≤", leq: "≤", ge: "≥", geq: "≥", ne: "≠", neq: "≠", approx: "≈", sim: "∼", in: "∈",
    to: "→", mapsto: "↦", quad: " ", qquad: " ", log: "log", exp: "exp", min: "min", max: "max",
    Re: "Re", Im: "Im", cos: "cos", sin: "sin", tanh: "tanh",
  };
  const whole = part => (/^[^\s+\-−·/]*$/.test(part) ? part : `(${part})`);
  function letters(tex) {
    let text = tex
      .replace(/\\(begin|end)\{[a-z]+\*?\}|\\(label|tag)\{[^}]*\}|\\[()[\]]|\\(left|right)\b/g, "")
      .replace(/\\([dt]?frac)\s*(\w)\s*(\w)/g, "\\$1{$2}{$3}")
      .replace(/\\([A-Za-z]+)\s*/g, (all, name) => LETTERS[name] ?? (/frac$/.test(name) ? all : ""))
      .replace(/\\[,;:!\\ ]|~|&/g, " ")
      .replace(/\\\|/g, "‖");
    // From the innermost braces outward.
    for (let before = ""; before !== text;) {
      before = text;
      text = text
        .replace(/\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}/g,
          (_, over, under) => `${whole(over)}/${whole(under)}`)
        .replace(/([\^_])\{([^{}]*)\}/g, (_, mark, part) => mark + whole(part))
        .replace(/(\\[dt]?frac\s*|\})?\{([^{}]*)\}(?!\s*\{)/g,
          (all, fraction, part) => (fraction ? all : part));
    }
    return text.replace(/\\|[{}]/g, "");
  }
  // Quote only the article's text, without code, titles and boxes below figures.
  const PASSED = ".cell_input, .figure-files, .rerun, .eqno, .equation-code, .headerlink, h1,"
    + " summary, script, style";
  if (typeof Search === "object") {
    Search.htmlToText = (html, anchor) => {
      const page = new DOMParser().parseFromString(html, "text/html");
      for (const passed of page.querySelectorAll(PASSED)) passed.remove();
      for (const math of page.querySelectorAll(".math")) {
        math.textContent = letters(math.textContent);
      }
      const article = page.querySelector("article") || page.body;
      const part = (anchor && article.querySelector(anchor)) || article;
      return part.textContent.replace(/\s+/g, " ").trim();
    };
  }

  // Print the light theme.
  const root = document.documentElement;
  let shown = "light";
  window.addEventListener("beforeprint", () => {
    shown = root.dataset.theme;
    root.dataset.theme = "light";
  });
  window.addEventListener("afterprint", () => { root.dataset.theme = shown; });

  window.addEventListener("load", async () => {
    await window.MathJax?.startup?.promise;
    await document.fonts.ready;
    mark();
    new ResizeObserver(mark).observe(document.body);
    document.addEventListener("toggle", mark, true); // a fold has been opened
  });
})();
