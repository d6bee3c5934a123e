// Where the network does not answer, answers for it from the copy of the book that a reader has asked
// to keep (book/_static/offline.js). Where it does, what is read comes from the network.
"use strict";

const PATIENCE = 4000; // milliseconds for a network that is there and says nothing
const scope = self.registration.scope;

// The page's address as the copy has it: without a query, and with the name of a folder's page.
function plain(address) {
  const url = new URL(address);
  url.search = url.hash = "";
  if (url.pathname.endsWith("/")) url.pathname += "index.html";
  return url.href;
}

// Of two copies, while one replaces the other, the older is the whole one; it comes first.
async function kept(address) {
  for (const name of await caches.keys()) {
    if (!name.startsWith(`book ${scope} `)) continue;
    const found = await (await caches.open(name)).match(plain(address));
    if (found) return found;
  }
  return undefined;
}

async function answer(request) {
  // The browser's own store may hold a page that is older than the copy.
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
  // What is asked for past every store is meant to come from the network: a copy is being made.
  if (request.method !== "GET" || request.cache === "no-store") return;
  if (request.url.startsWith(scope)) event.respondWith(answer(request));
});
