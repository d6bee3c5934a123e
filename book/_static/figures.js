// The line under a figure: "code" unfolds the cell, buttons copy, Escape closes.
(() => {
  "use strict";

  // Without access to the clipboard (plain http), try the old command, else select the text.
  async function copy(element) {
    try {
      await navigator.clipboard.writeText(element.textContent);
      return true;
    } catch {
      getSelection().selectAllChildren(element);
      return document.execCommand("copy");
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
    // Those of the address are unfolded by findings.js.
    const link = event.target.closest('.figure-files a[href^="#code-"]');
    const fold = link && document.getElementById(link.hash.slice(1))?.closest("details");
    if (fold) fold.open = true;
  });

  document.addEventListener("keydown", event => {
    const open = event.key === "Escape" && event.target.closest(".figure-files > details[open]");
    if (!open) return;
    open.open = false;
    open.querySelector("summary").focus();
  });

  for (const button of document.querySelectorAll(".figure-copy")) button.hidden = false;
})();
