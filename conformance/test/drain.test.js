// A node that leaves, and one that dies: pusher.md §3 and §11, on a cell of its own.
import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";

import { backend, hook, receiver } from "../harness/backend.js";
import { connected, heard, subscribed } from "../harness/client.js";
import { Installation } from "../harness/petrel.js";
import { wire } from "../harness/proxy.js";
import { dial } from "../harness/raw.js";
import { poll } from "../harness/wait.js";
import { fresh, transports } from "../harness/world.js";

const crowd = 1_000;

describe("nodes that go", { concurrency: 1, timeout: 600_000 }, () => {
  let world, app, hooks;
  before(async () => {
    world = await Installation.start(3, { args: ["--drain-timeout", "10s"] });
    app = await world.app({ max_members: 1_000 });
    hooks = await receiver(app);
    await hook(world.node(0), app, "h1", { url: hooks.url, events: ["channel_occupied", "channel_vacated", "member_added", "member_removed"] });
  });
  after(() => world?.stop());

  test("a drain sends a thousand sockets away one after the other, and pusher-js comes back by itself over every transport", async () => {
    const leaving = world.node(1);
    const name = fresh("presence-");
    const { url } = await backend(app);
    const witness = await dial(world.node(0), app);
    await witness.subscribe(app, name, { user_id: "witness" });
    const line = await wire(leaving);
    const pushers = await Promise.all(transports.map((t) => connected(line, app, t, { url }, { user: `over-${t}` })));
    const channels = await Promise.all(pushers.map((p) => subscribed(p, name)));
    for (const t of transports) await witness.next("pusher_internal:member_added", name, (f) => JSON.parse(f.data).user_id === `over-${t}`);
    const ids = pushers.map((p) => p.connection.socket_id);

    const raws = [];
    for (let i = 0; i < crowd; i += 50) raws.push(...await Promise.all(Array.from({ length: 50 }, () => dial(leaving, app))));
    const closes = Promise.all(raws.map((r) => r.closed.then(({ code }) => ({ code, at: performance.now() }))));
    line.lead(world.node(2)); // as a balancer does that has heard of it
    leaving.signal("SIGTERM");
    const all = await closes;
    const codes = new Map();
    for (const { code } of all) codes.set(code, (codes.get(code) ?? 0) + 1);
    for (const code of codes.keys()) assert.ok(code >= 4200 && code <= 4299, `closes: ${JSON.stringify([...codes])}`);
    const at = all.map((c) => c.at).sort((a, b) => a - b);
    const spread = at[Math.floor(crowd * 0.95)] - at[Math.floor(crowd * 0.05)];
    assert.ok(spread > 1_000, `nine of ten left within ${Math.round(spread)} ms: they would all come back at once`);
    await leaving.exited;

    await poll("every pusher-js to be back", () => pushers.every((p, i) => p.connection.state === "connected" && p.connection.socket_id !== ids[i] && channels[i].subscribed));
    await app.trigger(world.node(0), name, "after", { n: 1 });
    for (const channel of channels) await heard(channel, "after");
    await poll("all of them to be there", async () => {
      const { json } = await app.call(world.node(0), "GET", `/channels/${name}/users`);
      return json.users.length === 4;
    });
    assert.equal(hooks.events.all.filter((e) => e.channel === name && e.name === "channel_vacated").length, 0);
    for (const p of pushers) p.disconnect();
    await witness.leave();
    await world.up(1);
  });

  test("a node that dies takes its members with it, once, and vacates only what nobody else is on", async () => {
    const dying = world.node(2);
    const [shared, own] = [fresh("presence-"), fresh("presence-")];
    const witness = await dial(world.node(0), app);
    await witness.subscribe(app, shared, { user_id: "witness" });
    const other = await dial(world.node(1), app);
    await other.subscribe(app, shared, { user_id: "twice" });
    const there = await Promise.all(Array.from({ length: 20 }, () => dial(dying, app)));
    for (const [i, raw] of there.entries()) await raw.subscribe(app, shared, { user_id: i === 0 ? "twice" : `u${i}` });
    await there[0].subscribe(app, own, { user_id: "ada" });
    for (let i = 0; i < 20; i++) await witness.next("pusher_internal:member_added", shared);
    await hooks.events.take("occupied", (e) => e.name === "channel_occupied" && e.channel === own);
    await dying.kill();
    for (let i = 1; i < 20; i++) await witness.next("pusher_internal:member_removed", shared);
    await hooks.events.take("vacated", (e) => e.name === "channel_vacated" && e.channel === own);
    const removed = witness.frames.filter((f) => f.event === "pusher_internal:member_removed").map((f) => JSON.parse(f.data).user_id);
    assert.equal(new Set(removed).size, 19);
    assert.equal(removed.length, 19);
    assert.equal(removed.includes("twice"), false);
    const { json } = await app.call(world.node(1), "GET", `/channels/${shared}/users`);
    assert.deepEqual(json.users.map((u) => u.id).sort(), ["twice", "witness"]);
    assert.equal(hooks.events.all.filter((e) => e.channel === shared && e.name === "channel_vacated").length, 0);
    await world.up(2);
    const back = await dial(world.node(2), app);
    await back.subscribe(app, shared, { user_id: "back" });
    await witness.next("pusher_internal:member_added", shared, (f) => JSON.parse(f.data).user_id === "back");
  });

  test("all nodes are restarted one after the other, and a pusher-js that goes on from one to the next misses no state", async () => {
    const { url } = await backend(app);
    const name = fresh("presence-");
    const line = await wire(world.node(0));
    const pusher = await connected(line, app, "ws", { url }, { user: "ada" });
    const channel = await subscribed(pusher, name);
    for (const i of [0, 1]) {
      const before = pusher.connection.socket_id;
      line.lead(world.node(i + 1));
      world.node(i).signal("SIGTERM");
      await poll("pusher-js to be back", () => pusher.connection.state === "connected" && pusher.connection.socket_id !== before && channel.subscribed);
      await world.node(i).exited;
      await world.up(i);
      await app.trigger(world.node(i), name, "n", { i });
      await heard(channel, "n", (e) => e.data.i === i);
      assert.equal(channel.members.count, 1);
    }
  });
});
