// pusher.md §1 to §5 through the real pusher-js in Node, over each of its transports.
import assert from "node:assert/strict";
import { describe } from "node:test";

import { backend, masterKey, sdk } from "../harness/backend.js";
import { Pusher, connect, connected, heard, inbox, options, state, subscribed } from "../harness/client.js";
import { wire } from "../harness/proxy.js";
import { poll } from "../harness/wait.js";
import { everyWay, fresh, onNodes } from "../harness/world.js";

describe("pusher-js", { concurrency: 8 }, () => {
  everyWay("P1, P8, F1: connects over the transport it may use, and says so", async ({ world, transport }) => {
    const pusher = await connected(world.node(1), world.first, transport);
    assert.match(pusher.connection.socket_id, /^\d+\.\d+$/);
    assert.equal(pusher.connection.connection.transport.name, transport);
    pusher.disconnect();
    assert.equal(pusher.connection.state, "disconnected");
  });

  onNodes("P8: the option cluster is mandatory in pusher-js, whatever it holds", async ({ world }) => {
    assert.throws(() => new Pusher(world.first.key, { ...options(world.node(0), "ws"), cluster: undefined }), /cluster/);
  }, { only: [1] });

  everyWay("public, private, presence and encrypted channels, and their cache kinds", async ({ world, transport }) => {
    const app = world.first;
    const { url, asked } = await backend(app);
    const pusher = await connected(world.node(1), app, transport, { url }, { user: "ada" });
    const other = await connected(world.node(2), app, transport, { url }, { user: "bob" });
    const official = sdk(world.node(0), app, { encryptionMasterKeyBase64: masterKey });
    for (const kind of ["", "private-", "presence-", "private-encrypted-", "cache-", "private-cache-", "presence-cache-", "private-encrypted-cache-"]) {
      const name = fresh(kind);
      const channel = await subscribed(pusher, name);
      if (kind.includes("cache-")) await heard(channel, "pusher:cache_miss");
      await official.trigger(name, "news", { kind, text: "grüße 🦆" });
      assert.deepEqual((await heard(channel, "news")).data, { kind, text: "grüße 🦆" });
      if (kind.includes("cache-")) {
        const late = other.subscribe(name);
        late.inbox = inbox(late);
        assert.deepEqual((await heard(late, "news")).data, { kind, text: "grüße 🦆" });
      }
      pusher.unsubscribe(name);
    }
    assert.ok(asked.every((a) => a.path === "/pusher/auth" && a.socket_id && a.channel_name));
  });

  everyWay("presence: members, me, added, removed; client events with the sender's id", async ({ world, transport }) => {
    const app = world.first;
    const { url } = await backend(app);
    const name = fresh("presence-");
    const ada = await subscribed(await connected(world.node(1), app, transport, { url }, { user: "ada" }), name);
    assert.equal(ada.members.count, 1);
    assert.deepEqual(ada.members.me, { id: "ada", info: { name: "The ada" } });
    const bobs = await connected(world.node(2), app, transport, { url }, { user: "bob" });
    const bob = await subscribed(bobs, name);
    assert.equal(bob.members.count, 2);
    assert.deepEqual((await heard(ada, "pusher:member_added")).data, { id: "bob", info: { name: "The bob" } });
    assert.equal(ada.members.count, 2);
    const sender = new Promise((resolve) => ada.bind("client-wave", (_, metadata) => resolve(metadata.user_id))); // bind_global is not told
    assert.equal(bob.trigger("client-wave", { to: "ada" }), true);
    assert.deepEqual((await heard(ada, "client-wave")).data, { to: "ada" });
    assert.equal(await sender, "bob");
    bobs.disconnect();
    assert.equal((await heard(ada, "pusher:member_removed")).data.id, "bob");
    assert.equal(ada.members.count, 1);
  });

  everyWay("signin: the user's events, his watchlist, and the end of his connections", async ({ world, transport }) => {
    const app = world.first;
    const { url } = await backend(app);
    const [ada, bob] = [fresh("ada"), fresh("bob")];
    const pusher = await connected(world.node(1), app, transport, { url }, { user: ada, watch: [bob] });
    const watch = inbox(pusher.user.watchlist);
    pusher.user.inbox = inbox(pusher.user);
    pusher.signin();
    await pusher.user.signinDonePromise;
    await poll("the user to be signed in", () => pusher.user.user_data !== null);
    assert.equal(pusher.user.user_data.id, ada);
    await poll("the user's own channel to be subscribed", () => pusher.user.serverToUserChannel?.subscribed);
    await sdk(world.node(0), app).sendToUser(ada, "letter", { n: 1 });
    assert.deepEqual((await heard(pusher.user, "letter")).data, { n: 1 });
    const friend = await connected(world.node(2), app, transport, { url }, { user: bob });
    friend.signin();
    await watch.take("online", (e) => e.event === "online" && e.data.user_ids.includes(bob));
    friend.disconnect();
    await watch.take("offline", (e) => e.event === "offline" && e.data.user_ids.includes(bob));
    await sdk(world.node(0), app).terminateUserConnections(ada);
    await state(pusher, "disconnected"); // and it stays so: §3, 4009
    const { error } = await pusher.states.take("the reason", (s) => s.error);
    assert.equal(error.code, 4009);
  });

  everyWay("a backend that says no: subscription_error, and everything else goes on", async ({ world, transport }) => {
    const app = world.first;
    const { url } = await backend(app);
    const pusher = await connected(world.node(1), app, transport, { url }, {
      options: { channelAuthorization: { endpoint: `${url}/pusher/auth?deny=1`, transport: "ajax" } },
    });
    const refused = pusher.subscribe(fresh("private-"));
    refused.inbox = inbox(refused);
    const { data } = await heard(refused, "pusher:subscription_error");
    assert.equal(data.status, 403);
    await subscribed(pusher, fresh("open-"));
  });

  everyWay("a backend with another secret: the server refuses, and everything else goes on", async ({ world, transport }) => {
    const app = world.first;
    const { url } = await backend({ ...app, secret: "another" });
    const pusher = await connected(world.node(1), app, transport, { url });
    pusher.subscribe(fresh("private-"));
    const told = await pusher.states.take("an error", (s) => s.error);
    assert.ok(told.error.code === undefined || told.error.code === null || (told.error.code >= 4000 && told.error.code < 5000), JSON.stringify(told));
    await subscribed(pusher, fresh("open-"));
    assert.equal(pusher.connection.state, "connected");
  });

  everyWay("P9: after the wire was cut it is back with another socket id, all channels and fresh signatures", async ({ world, transport }) => {
    const app = world.first;
    const { url, asked } = await backend(app);
    const line = await wire(world.node(1));
    const pusher = await connected(line, app, transport, { url });
    const names = [fresh("open-"), fresh("private-"), fresh("presence-")];
    const channels = await Promise.all(names.map((n) => subscribed(pusher, n)));
    const before = pusher.connection.socket_id;
    line.lead(world.node(2)); // it comes back on another node
    line.cut();
    // A poll that broke off before its answer is repeated by Node's XMLHttpRequest itself: such a session goes on where it was.
    if (transport !== "xhr_polling") await poll("a new socket id", () => pusher.connection.state === "connected" && pusher.connection.socket_id !== before);
    await poll("every channel to be heard again", async () => {
      for (const channel of channels) await app.trigger(world.node(0), channel.name, "again", { n: 1 });
      return channels.every((c) => c.subscribed && c.inbox.all.some((e) => e.event === "again"));
    });
    if (pusher.connection.socket_id !== before) assert.deepEqual(new Set(asked.map((a) => a.socket_id)), new Set([before, pusher.connection.socket_id]));
  });

  everyWay("H2, F15: a client that hears nothing asks, and is answered", async ({ world, transport }) => {
    const pusher = await connected(world.node(1), world.first, transport, undefined, { options: { activityTimeout: 500, pongTimeout: 30_000 } });
    const before = pusher.connection.socket_id;
    const pongs = new Promise((resolve) => {
      let n = 0;
      const one = () => ++n === 3 && resolve();
      pusher.connection.bind("pong", one);
      pusher.connection.bind("message", (m) => m.event === "pusher:pong" && one());
      pusher.connection.connection.transport.bind("activity", one); // the fallback's answer to [] is any chunk
    });
    await pongs;
    assert.equal(pusher.connection.socket_id, before, "no reconnect");
  });

  everyWay("H5: the client takes the shorter of its own activity timeout and the server's", async ({ world, transport }) => {
    const pusher = await connected(world.node(1), world.first, transport, undefined, { options: { activityTimeout: 9_999_000 } });
    assert.ok(pusher.connection.activityTimeout < 9_999_000 && pusher.connection.activityTimeout > 0);
    const short = await connected(world.node(1), world.first, transport, undefined, { options: { activityTimeout: 1_234 } });
    assert.equal(short.connection.activityTimeout, 1_234);
  });

  onNodes("events that were sent before pusher-js was connected are dropped by it, not by the server; bind_global hears all others", async ({ world }) => {
    const app = world.first;
    const { url } = await backend(app);
    const pusher = connect(world.node(1), app, "ws", { url });
    const channel = pusher.subscribe(fresh("private-"));
    assert.equal(pusher.send_event("client-early", {}, channel.name), false);
    await state(pusher, "connected");
    await subscribed(pusher, channel.name);
  });
});

describe("§3 what close codes do to pusher-js", { concurrency: 8 }, () => {
  everyWay("4001: an unknown key keeps it down", async ({ world, transport }) => {
    const pusher = connect(world.node(1), { key: "unknown" }, transport);
    await state(pusher, "disconnected");
    const { error } = await pusher.states.take("the reason", (s) => s.error);
    assert.equal(error.code, 4001);
  });

  everyWay("4003: a suspended app's connections end and stay down, and new ones are refused, on every node", async ({ world, transport }) => {
    const app = await world.app();
    const pushers = await Promise.all(world.nodes.map((n) => connected(n, app, transport)));
    await world.node(0).cli("app", "suspend", app.id, "--reason", "conformance");
    for (const pusher of pushers) {
      await state(pusher, "disconnected");
      assert.equal((await pusher.states.take("the reason", (s) => s.error)).error.code, 4003);
    }
    const late = connect(world.node(2), app, transport);
    await state(late, "disconnected");
    assert.equal((await late.states.take("the reason", (s) => s.error)).error.code, 4003);
  });

  everyWay("4004: over the app's number of connections it is refused and stays down", async ({ world, transport }) => {
    const app = await world.app({ max_connections: 2 });
    await Promise.all([0, 0].map((i) => connected(world.node(i), app, transport)));
    const third = connect(world.node(0), app, transport);
    await state(third, "disconnected");
    assert.equal((await third.states.take("the reason", (s) => s.error)).error.code, 4004);
  }, { transports: ["ws", "xhr_polling"], only: [1] });

});

