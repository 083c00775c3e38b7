// What an app's owner runs: the auth endpoints that pusher-js asks, and the receiver of webhooks. Both on one port.
import { createServer } from "node:http";
import Pusher from "pusher";

import { hmac } from "./app.js";
import { cleanup } from "./world.js";
import { Inbox, poll } from "./wait.js";

/** The official server SDK, on one node. */
export function sdk(node, app, options = {}) {
  return new Pusher({ appId: app.id, key: app.key, secret: app.secret, host: "127.0.0.1", port: String(node.port), useTLS: false, ...options });
}

/** 32 bytes that end-to-end encrypted channels are derived from. */
export const masterKey = Buffer.from("a".repeat(32)).toString("base64");

function bodyOf(request) {
  return new Promise((resolve, reject) => {
    const parts = [];
    request.on("data", (part) => parts.push(part));
    request.on("end", () => resolve(Buffer.concat(parts).toString("utf8")));
    request.on("error", reject);
  });
}

/** Listens on a free port of this machine until the test file ends. */
export async function listen(handler) {
  const server = createServer((request, response) => {
    Promise.resolve(handler(request, response)).catch((error) => {
      if (!response.headersSent) response.writeHead(500);
      response.end(String(error));
    });
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  cleanup(() => new Promise((resolve) => {
    server.close(resolve);
    server.closeAllConnections();
  }));
  return { server, url: `http://127.0.0.1:${server.address().port}` };
}

/**
 * The auth endpoints of an app, answered by the official SDK, for whoever names himself in the parameter `user` of the
 * address. `asked` keeps every request.
 */
export async function backend(app) {
  const official = new Pusher({ appId: app.id, key: app.key, secret: app.secret, host: "127.0.0.1", port: "1", encryptionMasterKeyBase64: masterKey });
  const asked = [];
  const { url } = await listen(async (request, response) => {
    const address = new URL(request.url, "http://backend");
    const cors = { "Access-Control-Allow-Origin": request.headers.origin ?? "*", "Access-Control-Allow-Headers": "*", "Access-Control-Allow-Credentials": "true" };
    if (request.method === "OPTIONS") return response.writeHead(204, cors).end();
    const form = new URLSearchParams(await bodyOf(request));
    const user = address.searchParams.get("user") ?? "ada";
    asked.push({ path: address.pathname, user, ...Object.fromEntries(form) });
    const socket = form.get("socket_id");
    const channel = form.get("channel_name");
    let answer;
    if (address.pathname === "/pusher/user-auth") {
      answer = official.authenticateUser(socket, { id: user, user_info: { name: user }, watchlist: address.searchParams.getAll("watch") });
    } else if (address.pathname === "/pusher/auth" && !address.searchParams.has("deny")) {
      answer = official.authorizeChannel(socket, channel, channel.startsWith("presence-") ? { user_id: user, user_info: { name: `The ${user}` } } : undefined);
    } else {
      return response.writeHead(403, cors).end("no");
    }
    response.writeHead(200, { ...cors, "Content-Type": "application/json" }).end(JSON.stringify(answer));
  });
  return { url, asked, official };
}

/** A receiver of an app's webhooks. Every event goes into `events`, every call into `calls`. */
export async function receiver(app, { answer = () => 200 } = {}) {
  const events = new Inbox("the webhook receiver");
  const calls = [];
  const { url } = await listen(async (request, response) => {
    const body = await bodyOf(request);
    const call = {
      method: request.method, path: request.url, headers: request.headers, body,
      valid: request.headers["x-pusher-key"] === app.key && request.headers["x-pusher-signature"] === hmac(app.secret, body),
    };
    calls.push(call);
    const status = answer(call, calls.length);
    response.writeHead(status).end();
    if (status < 200 || status > 299) return;
    for (const event of JSON.parse(body).events) events.put({ ...event, valid: call.valid });
  });
  return { url, events, calls };
}

/** Sets a webhook of an app through Petrel's own API. */
export async function hook(node, app, id, settings) {
  let answer;
  await poll("a leader to take the webhook", async () => (answer = await put()).status !== 503);
  const text = await answer.text();
  if (!answer.ok) throw new Error(`PUT /v1/hooks/${id} answers ${answer.status}: ${text}`);
  return JSON.parse(text);

  function put() {
    return fetch(`${node.url}/v1/hooks/${id}`, {
      method: "PUT",
      headers: { Authorization: `Basic ${Buffer.from(`${app.key}:${app.secret}`).toString("base64")}`, "Content-Type": "application/json" },
      body: JSON.stringify(settings),
    });
  }
}
