// The line under a figure: "code" unfolds the cell, buttons copy, Escape closes.
(() => {
  "use strict";

  function unfold(hash) {
    const target = hash.length > 1 && document.getElementById(decodeURIComponent(hash.slice(1)));
    if (!target || !/^(code|cite|provenance)-/.test(target.id)) return;
    for (let e = target.closest("details"); e; e = e.parentElement.closest("details")) e.open = true;
    target.scrollIntoView({block: "nearest"});
  }

  function select(element) {
    const range = document.createRange();
    range.selectNodeContents(element);
    const selection = getSelection();
    selection.removeAllRanges();
    selection.addRange(range);
  }

  // Without access to the clipboard (plain http), try the old command, else select the text.
  async function copy(element) {
    try {
      await navigator.clipboard.writeText(element.textContent);
      return true;
    } catch {
      select(element);
      try {
        return document.execCommand("copy");
      } catch {
        return false;
      }
    }
  }

  async function onCopy(button) {
    const box = button.closest(".figure-box");
    const label = button.parentElement.firstElementChild.textContent;
    const copied = await copy(button.closest(".figure-copied").querySelector("pre"));
    box.querySelector(".figure-status").textContent = copied
      ? `${label}: copied.`
      : `${label}: selected. Copy it with Ctrl+C or ⌘C.`;
    if (!copied) return;
    button.textContent = "Copied";
    button.classList.add("copied");
    setTimeout(() => {
      button.textContent = "Copy";
      button.classList.remove("copied");
    }, 2500);
  }

  document.addEventListener("click", event => {
    const button = event.target.closest(".figure-copy");
    if (button) onCopy(button);
    const link = event.target.closest('.figure-files a[href^="#code-"]');
    if (link) unfold(link.hash);
  });

  document.addEventListener("keydown", event => {
    const open = event.key === "Escape" && event.target.closest(".figure-files > details[open]");
    if (!open) return;
    open.open = false;
    open.querySelector("summary").focus();
  });

  addEventListener("hashchange", () => unfold(location.hash));
  addEventListener("DOMContentLoaded", () => {
    document.querySelectorAll(".figure-copy").forEach(button => { button.hidden = false; });
    unfold(location.hash);
  });
})();
