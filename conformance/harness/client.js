// Unmodified pusher-js in Node, over the transport that a test wants.
import nacl from "tweetnacl";
import { createRequire } from "node:module";

import { cleanup } from "./world.js";
import { Inbox, within } from "./wait.js";

const require = createRequire(import.meta.url);
export const Pusher = require("pusher-js");

/** What an app's page would write: the key, where the server is, and where its backend is. */
export function options(node, transport, backend, more = {}) {
  const port = Number(node.port);
  return {
    cluster: "petrel", // P8: mandatory, and without meaning here
    wsHost: "127.0.0.1", wsPort: port, httpHost: "127.0.0.1", httpPort: port,
    forceTLS: false, enabledTransports: [transport], nacl,
    ...(backend === undefined ? {} : {
      channelAuthorization: { endpoint: `${backend.url}/pusher/auth?user=${more.user ?? "ada"}`, transport: "ajax" },
      userAuthentication: { endpoint: `${backend.url}/pusher/user-auth?user=${more.user ?? "ada"}${(more.watch ?? []).map((w) => `&watch=${w}`).join("")}`, transport: "ajax" },
    }),
    ...more.options,
  };
}

/** Connects, and keeps everything that the connection tells. */
export function connect(node, app, transport, backend, more = {}) {
  const pusher = new Pusher(app.key, options(node, transport, backend, more));
  cleanup(() => pusher.disconnect());
  pusher.states = new Inbox(`pusher-js over ${transport}`);
  pusher.connection.bind("state_change", ({ current }) => pusher.states.put({ state: current }));
  pusher.connection.bind("error", (error) => pusher.states.put({ error: error?.error?.data ?? error?.data ?? error }));
  pusher.connection.bind("connecting_in", (seconds) => pusher.states.put({ connectingIn: seconds }));
  return pusher;
}

/** Waits until pusher-js is in that state. */
export async function state(pusher, name) {
  if (pusher.connection.state === name) return pusher;
  await pusher.states.take(name, (s) => s.state === name);
  return pusher;
}

export const connected = (node, app, transport, backend, more) => state(connect(node, app, transport, backend, more), "connected");

/** Subscribes and waits for it. The channel gets an inbox of everything that happens on it. */
export async function subscribed(pusher, name) {
  const channel = pusher.subscribe(name);
  channel.inbox ??= inbox(channel);
  await within(`a subscription of ${name}`, new Promise((resolve, reject) => {
    if (channel.subscribed) resolve();
    channel.bind("pusher:subscription_succeeded", resolve);
    channel.bind("pusher:subscription_error", (error) => reject(new Error(`${name} is refused: ${JSON.stringify(error)}`)));
  }));
  return channel;
}

export function inbox(channel) {
  const box = new Inbox(channel.name ?? "a channel");
  channel.bind_global((event, data) => box.put({ event, data }));
  return box;
}

export const heard = (channel, event, match = () => true) => channel.inbox.take(event, (e) => e.event === event && match(e));
