// pusher.md §5 and §8: who is there, over all nodes.
import assert from "node:assert/strict";
import { describe } from "node:test";

import { dial } from "../harness/raw.js";
import { wire } from "../harness/proxy.js";
import { poll } from "../harness/wait.js";
import { everyWay, fresh, onNodes } from "../harness/world.js";

const who = (frame) => JSON.parse(frame.data).user_id;
const roster = (frame) => JSON.parse(frame.data).presence;
const join = (raw, app, channel, id, info) => raw.subscribe(app, channel, { user_id: id, ...(info === undefined ? {} : { user_info: info }) });
const comings = (raw, event) => raw.frames.filter((f) => f.event === `pusher_internal:${event}`).map(who);

describe("presence", { concurrency: 8 }, () => {
  everyWay("joining, being seen, leaving; in strings, as pusher-js reads them", async ({ world, transport }) => {
    const app = world.first;
    const channel = fresh("presence-");
    const [ada, bob] = await Promise.all([dial(world.node(1), app, transport), dial(world.node(2), app, transport)]);
    assert.deepEqual(roster(await join(ada, app, channel, "ada", { name: "Ada" })), { ids: ["ada"], hash: { ada: { name: "Ada" } }, count: 1 });
    const seen = roster(await join(bob, app, channel, "bob", { name: "Bob", deep: [1, { a: null }] }));
    assert.deepEqual(seen.hash, { ada: { name: "Ada" }, bob: { name: "Bob", deep: [1, { a: null }] } });
    assert.deepEqual([...seen.ids].sort(), ["ada", "bob"]);
    assert.equal(seen.count, 2);
    const added = await ada.next("pusher_internal:member_added", channel);
    assert.equal(typeof added.data, "string");
    assert.deepEqual(JSON.parse(added.data), { user_id: "bob", user_info: { name: "Bob", deep: [1, { a: null }] } });
    bob.send("pusher:unsubscribe", { channel });
    const removed = await ada.next("pusher_internal:member_removed", channel);
    assert.deepEqual(JSON.parse(removed.data), { user_id: "bob" });
    assert.deepEqual(comings(ada, "member_added"), ["bob"], "one is not told of oneself, and of others once");
    assert.deepEqual(comings(bob, "member_added"), []);
  });

  everyWay("§11 one user in several tabs, on several nodes, is there once: added by the first, removed by the last", async ({ world, transport }) => {
    const app = world.first;
    const channel = fresh("presence-");
    const witness = await dial(world.node(0), app, transport);
    await join(witness, app, channel, "witness");
    const tabs = await Promise.all([1, 2, 1].map((i) => dial(world.node(i), app, transport)));
    for (const tab of tabs) {
      const { ids, count } = roster(await join(tab, app, channel, "ada", { name: "Ada" }));
      assert.deepEqual([...ids].sort(), ["ada", "witness"]);
      assert.equal(count, 2, "unique users");
    }
    await tabs[0].leave();
    tabs[1].send("pusher:unsubscribe", { channel });
    await tabs[1].fence();
    await join(tabs[1], app, fresh("presence-"), "ada"); // elsewhere is not here
    const late = await dial(world.node(2), app, transport);
    assert.deepEqual([...roster(await join(late, app, channel, "late")).ids].sort(), ["ada", "late", "witness"]);
    await witness.next("pusher_internal:member_added", channel, (f) => who(f) === "late");
    assert.deepEqual(comings(witness, "member_removed"), []);
    await tabs[2].leave();
    await witness.next("pusher_internal:member_removed", channel, (f) => who(f) === "ada");
    assert.deepEqual(comings(witness, "member_added"), ["ada", "late"]);
    assert.deepEqual(comings(witness, "member_removed"), ["ada"]);
  });

  everyWay("a connection that is cut leaves", async ({ world, transport }) => {
    const app = world.first;
    const channel = fresh("presence-");
    const witness = await dial(world.node(0), app);
    await join(witness, app, channel, "witness");
    const raw = await dial(world.node(1), app, transport);
    await join(raw, app, channel, "ada");
    await witness.next("pusher_internal:member_added", channel);
    raw.drop();
    await witness.next("pusher_internal:member_removed", channel, (f) => who(f) === "ada");
  });

  everyWay("who moves to another node within the second shows nothing", async ({ world, transport }) => {
    const app = world.first;
    const channel = fresh("presence-");
    const witness = await dial(world.node(0), app);
    await join(witness, app, channel, "witness");
    let raw = await dial(world.node(1), app, transport);
    await join(raw, app, channel, "ada");
    await witness.next("pusher_internal:member_added", channel);
    for (const i of [2, 1, 2]) {
      const next = await dial(world.node(i), app, transport); // there first: this test is not about who is fast
      await join(next, app, channel, "ada");
      await raw.leave();
      raw = next;
    }
    const late = await dial(world.node(1), app);
    await join(late, app, channel, "late");
    await witness.next("pusher_internal:member_added", channel, (f) => who(f) === "late");
    assert.deepEqual(comings(witness, "member_removed"), []);
    assert.deepEqual(comings(witness, "member_added"), ["ada", "late"]);
  });

  everyWay("user ids are what the backend signed: numbers, addresses, other scripts", async ({ world, transport }) => {
    const app = world.first;
    const channel = fresh("presence-");
    const witness = await dial(world.node(0), app);
    await join(witness, app, channel, "witness");
    const ids = [10, "a@b.example", "name with spaces", "ünïcode-🦆", "x".repeat(128), "a/b:c?d#e", "__proto__"];
    await Promise.all(ids.map(async (id) => { // all at once: each departure is shown after a while
      const raw = await dial(world.node(1), app, transport);
      const { hash } = roster(await join(raw, app, channel, id, { of: id }));
      assert.ok(Object.hasOwn(hash, String(id)), `${id} is in ${JSON.stringify(hash)}`);
      await witness.next("pusher_internal:member_added", channel, (f) => String(who(f)) === String(id));
      await raw.leave();
      await witness.next("pusher_internal:member_removed", channel, (f) => String(who(f)) === String(id));
    }));
  });

  everyWay("§8 what is no member is refused", async ({ world, transport }) => {
    const app = world.first;
    const channel = fresh("presence-");
    const raw = await dial(world.node(1), app, transport);
    const sign = (text) => ({ channel, auth: app.auth(raw.socketId, channel, text), channel_data: text });
    for (const text of ["{}", "[]", "null", "nonsense", '{"user_id":""}', '{"user_id":null}', '{"user_id":{}}', '{"user_info":{}}', JSON.stringify({ user_id: "x".repeat(129) }), JSON.stringify({ user_id: "big", user_info: { x: "x".repeat(2048) } })]) {
      await raw.refused(sign(text));
    }
    await raw.refused({ channel, auth: app.auth(raw.socketId, channel) });
    await join(raw, app, channel, "ada", { x: "x".repeat(900) });
  });

  everyWay("§8, §11 the 101st member is refused, a second tab of a member is not", async ({ world, transport }) => {
    const app = await world.app();
    const channel = fresh("presence-");
    const raws = await Promise.all(Array.from({ length: 100 }, async (_, i) => {
      const raw = await dial(world.node(i), app);
      await join(raw, app, channel, `u${i}`);
      return raw;
    }));
    // The last of them is known everywhere.
    await poll("every node to know of 100 members", async () => {
      const answers = await Promise.all(world.nodes.map((n) => app.call(n, "GET", `/channels/${channel}`, { query: { info: "user_count" } })));
      return answers.every((a) => a.json?.user_count === 100);
    });
    const raw = await dial(world.node(1), app, transport);
    await raw.refused(app.subscribe(raw.socketId, channel, { user_id: "one-too-many" }));
    await join(raw, app, channel, "u7");
    for (const r of raws) r.drop();
  }, { transports: ["ws", "xhr_polling"] });

  onNodes("a cut wire to a node with many members removes each of them once", async ({ world }) => {
    const app = world.first;
    const channel = fresh("presence-");
    const witness = await dial(world.node(0), app);
    await join(witness, app, channel, "witness");
    const line = await wire(world.node(1));
    await Promise.all(Array.from({ length: 20 }, async (_, i) => join(await dial(line, app), app, channel, `u${i}`)));
    for (let i = 0; i < 20; i++) await witness.next("pusher_internal:member_added", channel);
    line.cut();
    for (let i = 0; i < 20; i++) await witness.next("pusher_internal:member_removed", channel);
    assert.equal(new Set(comings(witness, "member_removed")).size, 20);
  });
});
