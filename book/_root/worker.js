// Serves pages from the saved copy of the book (book/_static/offline.js) if the network does not
// answer, else from the network.
"use strict";

const PATIENCE = 4000; // milliseconds for a network that is there and says nothing
const scope = self.registration.scope;

// The address of a page in the copy: without a query, and with the file name of a folder's page.
function plain(address) {
  const url = new URL(address);
  url.search = url.hash = "";
  if (url.pathname.endsWith("/")) url.pathname += "index.html";
  return url.href;
}

// While one copy replaces another, the older one is complete; it comes first.
async function kept(address) {
  for (const name of await caches.keys()) {
    if (!name.startsWith(`book ${scope} `)) continue;
    const found = await (await caches.open(name)).match(plain(address));
    if (found) return found;
  }
  return undefined;
}

async function answer(request) {
  // The browser's cache may contain a page that is older than the copy.
  const fresh = request.mode === "navigate" ? fetch(request, {cache: "no-cache"}) : fetch(request);
  try {
    const late = new Promise((_, reject) => setTimeout(reject, PATIENCE));
    return await Promise.race([fresh, late]);
  } catch {
    return (await kept(request.url)) || fresh;
  }
}

self.addEventListener("install", () => self.skipWaiting());
self.addEventListener("activate", event => event.waitUntil(self.clients.claim()));
self.addEventListener("fetch", event => {
  const {request} = event;
  // Requests that bypass caches come from the creation of a copy, and need the network.
  if (request.method !== "GET" || request.cache === "no-store") return;
  if (request.url.startsWith(scope)) event.respondWith(answer(request));
});
