// Chromium with the unmodified browser builds of pusher-js and laravel-echo, on a page of another origin than the server:
// preflights, CORS and mixed ports are the browser's own.
import { chromium } from "@playwright/test";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

import { listen, backend } from "./backend.js";
import { cleanup } from "./world.js";

const require = createRequire(import.meta.url);
const files = {
  "/": ["text/html", () => readFileSync(new URL("../page/index.html", import.meta.url))],
  "/page.js": ["text/javascript", () => readFileSync(new URL("../page/page.js", import.meta.url))],
  "/pusher.js": ["text/javascript", () => readFileSync(require.resolve("pusher-js/dist/web/pusher-with-encryption.js"))],
  "/echo.js": ["text/javascript", () => readFileSync(require.resolve("laravel-echo/iife"))],
};

let browser;
/** One Chromium for a test file. */
async function chrome() {
  browser ??= chromium.launch({
    executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
    args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"],
  }).then((made) => {
    cleanup(() => made.close());
    return made;
  });
  return browser;
}

/** A site of the app: its page and its backend. */
export async function site(app) {
  const { url } = await listen((request, response) => {
    const file = files[new URL(request.url, "http://site").pathname];
    if (!file) return response.writeHead(404).end();
    return response.writeHead(200, { "Content-Type": `${file[0]}; charset=utf-8` }).end(file[1]());
  });
  return { url, backend: await backend(app) };
}

/** A visitor: a browser context of its own with the page open, and whatever it complained about. */
export async function visit(site) {
  const context = await (await chrome()).newContext();
  const page = await context.newPage();
  page.wrong = [];
  page.on("pageerror", (error) => page.wrong.push(error.message));
  await page.goto(site.url);
  await page.waitForFunction("window.ready === true");
  return page;
}

/** Runs a function of page.js in the page. */
export const tell = (page, name, ...args) => page.evaluate(([n, a]) => window.conformance[n](...a), [name, args]);

/** Waits until the page has heard something: an event name and, if given, a part of it as JSON. */
export async function told(page, event, part = "") {
  const found = await page.waitForFunction(([e, p]) => window.conformance.heard.find((h) => h.event === e && JSON.stringify(h).includes(p)), [event, part], { timeout: 60_000 })
    .catch(async (error) => {
      const seen = await page.evaluate("JSON.stringify(window.conformance.heard.slice(-30))");
      throw new Error(`${event} ${part} did not come; the page heard ${seen}; it complained ${JSON.stringify(page.wrong)}; ${error.message}`);
    });
  return found.jsonValue();
}
