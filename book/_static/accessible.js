// For readers who come by keyboard, by search, from a folder, or to print.
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

  // It quotes formulas as they are written, in TeX: a reader gets their letters.
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
    // From the innermost braces outwards.
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
  // Quoted is what the article says: no code, no title, no box beneath a figure.
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

  // Paper is light.
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
