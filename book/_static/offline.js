// "Keep this book on this device": a copy for reading offline, made only on request.
// offline.json (book/_ext/offline.py) lists its files, and worker.js (book/_root) reads from it. If the
// book has changed since, the next online visit updates the copy.
(() => {
  "use strict";

  const root = new URL("../", document.currentScript.src);
  const prefix = `book ${root.href} `;
  const LIST = new URL("offline.json", root).href;
  const AT_ONCE = 6;
  const served = /^https?:$/.test(root.protocol);
  const able = served && isSecureContext && "serviceWorker" in navigator && "caches" in window;

  // ---- copies

  async function fetched(address) {
    const response = await fetch(address, {cache: "no-store", redirect: "error"});
    if (!response.ok) throw new Error(`${address} answered ${response.status}`);
    return response;
  }

  async function digest(bytes) {
    const found = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
    return Array.from(found, byte => byte.toString(16).padStart(2, "0")).join("");
  }

  async function names() {
    return (await caches.keys()).filter(name => name.startsWith(prefix));
  }

  // The complete copy with its list, which is stored last; null if there is none.
  async function whole() {
    for (const name of await names()) {
      const cache = await caches.open(name);
      const list = await cache.match(LIST);
      if (list) return {cache, list: await list.json()};
    }
    return null;
  }

  async function add(path, cache, list, before) {
    const address = new URL(path, root).href;
    if (await cache.match(address)) return; // from an attempt that was broken off
    const [hash] = list.files[path];
    const same = before && path in before.list.files && before.list.files[path][0] === hash;
    const old = same && (await before.cache.match(address));
    if (old) return cache.put(address, old);
    const response = await fetched(address);
    if (!(await digest(await response.clone().arrayBuffer())).startsWith(hash)) {
      throw new Error("The book has just changed.");
    }
    return cache.put(address, response);
  }

  // Creates or updates the copy; `report` is called with the number of bytes so far.
  async function keep(report = () => {}) {
    const list = await (await fetched(LIST)).json();
    const before = await whole();
    if (before && before.list.version === list.version) return list;
    const current = prefix + list.version;
    const cache = await caches.open(current);
    const todo = Object.keys(list.files);
    let done = 0;
    const work = async () => {
      for (let path = todo.pop(); path !== undefined; path = todo.pop()) {
        await add(path, cache, list, before);
        done += list.files[path][1];
        report(done, list.bytes);
      }
    };
    await Promise.all(Array.from({length: AT_ONCE}, work));
    // The page that redirects to the first page is written last, and is not listed.
    const first = new URL("index.html", root).href;
    await cache.put(first, await fetched(first));
    const type = {headers: {"Content-Type": "application/json"}};
    await cache.put(LIST, new Response(JSON.stringify(list), type));
    for (const name of await names()) if (name !== current) await caches.delete(name);
    return list;
  }

  async function register() {
    await navigator.serviceWorker.register(new URL("worker.js", root), {scope: root.pathname});
    await navigator.serviceWorker.ready;
  }

  // Check for changes once per visit.
  async function refresh() {
    if (sessionStorage.getItem(LIST) || !(await whole())) return;
    sessionStorage.setItem(LIST, "seen");
    await register();
    await keep();
  }

  async function remove() {
    for (const name of await names()) await caches.delete(name);
    const registration = await navigator.serviceWorker.getRegistration(root.href);
    if (registration && registration.scope === root.href) await registration.unregister();
  }

  // ---- display

  const megabytes = bytes => `${Math.ceil(bytes / 1e6)} MB`;

  function show(place, text, action, onAction) {
    const said = document.createElement("p");
    said.setAttribute("role", "status");
    said.textContent = text;
    const shown = [said];
    if (action) {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "btn";
      button.textContent = action;
      button.addEventListener("click", onAction, {once: true});
      shown.unshift(button);
    }
    place.replaceChildren(...shown);
    return said;
  }

  async function onKeep(place) {
    const bar = document.createElement("progress");
    bar.setAttribute("aria-label", "Saved so far");
    show(place, "Saving the book …").before(bar);
    try {
      await keep((done, all) => Object.assign(bar, {value: done, max: all}));
      await register();
      // Otherwise the browser may delete the copy when storage is low.
      await navigator.storage?.persist?.();
      await present(place);
    } catch (error) {
      show(
        place,
        `Not all files could be saved: ${error.message} The saved files need not be downloaded again.`,
        "Try again",
        () => onKeep(place)
      );
    }
    (place.querySelector("button") || place).focus();
  }

  async function present(place) {
    const copy = await whole().catch(() => null); // some browsers deny access
    if (copy) {
      const {release, bytes} = copy.list;
      show(
        place,
        `The book (version ${release}, ${megabytes(bytes)}) is saved on this device for reading offline.`,
        "Remove it",
        async () => {
          await remove();
          await present(place);
          (place.querySelector("button") || place).focus();
        }
      );
      return;
    }
    try {
      const {bytes} = await (await fetched(LIST)).json();
      show(place, "", `Keep this book on this device (${megabytes(bytes)})`, () => onKeep(place));
    } catch {
      show(place, "You are offline. When online, you can save the book here for reading offline.");
    }
  }

  const place = document.getElementById("keep-offline");
  if (able) {
    refresh()
      .catch(() => {}) // the existing copy stays
      .then(() => place && present(place));
  } else if (place) {
    place.textContent = served
      ? "This browser cannot save these pages: this needs https, and no private window."
      : "You are reading a copy of your own, which needs no network.";
  }
})();
