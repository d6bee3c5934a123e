/* The report's filter. Folded elements open for links into them and for printing. */

(() => {
  "use strict";

  /* Buttons that show the parts of claims with one verdict. Without them everything is shown. */
  function addFilter(box) {
    const list = document.getElementById(box.dataset.for);
    const rows = [...list.querySelectorAll("[data-verdict]")];
    const groups = [...list.querySelectorAll(".report-group")];
    const folds = [...list.querySelectorAll("details")];
    const status = document.createElement("p");
    status.setAttribute("role", "status");

    function show(verdict) {
      for (const row of rows) row.hidden = verdict !== null && row.dataset.verdict !== verdict;
      for (const group of groups) {
        group.hidden = !group.querySelector("[data-verdict]:not([hidden])");
      }
      if (verdict !== null) for (const fold of folds) fold.open = true;
      for (const button of box.querySelectorAll("[aria-pressed]")) {
        button.setAttribute("aria-pressed", String(button.verdict === verdict));
      }
      const left = rows.filter((row) => !row.hidden).length;
      status.textContent = `${left} of ${rows.length} shown`;
    }

    function add(text, act) {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = text;
      button.addEventListener("click", act);
      box.append(button);
      return button;
    }

    for (const verdict of [null, ...box.dataset.verdicts.split(",")]) {
      const button = add(verdict ?? "all", () => show(verdict));
      button.verdict = verdict;
      button.setAttribute("aria-pressed", "false");
    }
    add("fold or unfold all", () => {
      const open = folds.some((fold) => !fold.open);
      for (const fold of folds) fold.open = open;
    });
    box.append(status);
    box.hidden = false;
    show(null);
  }

  /* A link to a folded or filtered element. */
  function openTarget() {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!target) return;
    if (target.hidden) document.querySelector(".report-filter button").click();  // all
    const folded = target.closest("details:not([open])");
    if (!folded) return;
    for (let at = target; at; at = at.parentElement) if (at.matches("details")) at.open = true;
    target.scrollIntoView();
  }

  function forPaper() {
    const ours = ".finding-parts, .findings-beyond, .report-group details, .report-record";
    const closed = [...document.querySelectorAll(ours)].filter((details) => !details.open);
    for (const details of closed) details.open = true;
    window.addEventListener("afterprint", () => {
      for (const details of closed) details.open = false;
    }, { once: true });
  }

  document.querySelectorAll(".report-filter").forEach(addFilter);
  window.addEventListener("hashchange", openTarget);
  window.addEventListener("beforeprint", forPaper);
  openTarget();
})();
