// One node that becomes a cell of three under its clients, on a port where every node has an address of its own, as in production:
// what they see of that, of balancers, of a drain, and of a node that is full.
import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";

import { backend } from "../harness/backend.js";
import { site, tell, told, visit } from "../harness/browser.js";
import { connect, connected, heard, state, subscribed } from "../harness/client.js";
import { Installation } from "../harness/petrel.js";
import { wire } from "../harness/proxy.js";
import { dial } from "../harness/raw.js";
import { poll } from "../harness/wait.js";
import { fresh, transports } from "../harness/world.js";

const http = transports.filter((t) => t !== "ws");

describe("a cell under its clients", { concurrency: 1, timeout: 600_000 }, () => {
  let world, app, line;
  before(async () => {
    line = await wire({ host: "127.0.0.1:1" }); // the balancer: its port is everybody's
    world = await Installation.start(1, { port: line.port, args: ["--drain-timeout", "2s"] });
    app = await world.app();
    line.lead(world.node(0));
  });
  after(() => world?.stop());

  test("one node grows to three: clients come back once, lose nothing while the others join, and presence and counts are right on all", async () => {
    const { url } = await backend(app);
    const [name, open] = [fresh("presence-"), fresh("open-")];
    const pushers = await Promise.all(transports.map((t) => connected(line, app, t, { url }, { user: `over-${t}` })));
    const channels = await Promise.all(pushers.map((p) => subscribed(p, name)));
    const heardOpen = await Promise.all(pushers.map((p) => subscribed(p, open)));
    const before = pushers.map((p) => p.connection.socket_id);
    // It ran alone: it is started again as the first of a cell, with the same data.
    world.node(0).signal("SIGTERM");
    await world.node(0).exited;
    world.add(2);
    await world.up(0);
    await poll("every pusher-js to be back", () => pushers.every((p, i) => p.connection.state === "connected" && p.connection.socket_id !== before[i] && channels[i].subscribed && heardOpen[i].subscribed));
    const ids = pushers.map((p) => p.connection.socket_id);
    let joined = false;
    let n = 0;
    const publishing = (async () => {
      while (!joined) await app.trigger(world.node(0), open, "n", { n: n++ });
    })();
    await world.up(1);
    await world.up(2);
    await world.voting();
    joined = true;
    await publishing;
    await app.trigger(world.node(2), open, "last", {});
    for (const channel of heardOpen) {
      await heard(channel, "last");
      assert.deepEqual(channel.inbox.all.filter((e) => e.event === "n").map((e) => e.data.n), Array.from({ length: n }, (_, i) => i));
    }
    assert.deepEqual(pushers.map((p) => p.connection.socket_id), ids, "nobody is sent away by those who join");
    const late = await dial(world.node(2), app);
    const there = JSON.parse((await late.subscribe(app, name, { user_id: "late" })).data).presence;
    assert.deepEqual([...there.ids].sort(), ["late", ...transports.map((t) => `over-${t}`)].sort());
    for (const channel of channels) await poll("everybody to see the newcomer", () => channel.members.count === transports.length + 1);
    for (const node of world.nodes) {
      await poll("every node to count alike", async () => {
        const { json } = await app.call(node, "GET", `/channels/${name}`, { query: { info: "user_count,subscription_count" } });
        return json.user_count === transports.length + 1 && json.subscription_count === transports.length + 1;
      });
    }
    for (const p of pushers) p.disconnect();
    await late.leave();
  });

  for (const transport of http) {
    test(`F10: a session is told its node's own name, and lives there whatever the balancer does [${transport}]`, async () => {
      line.lead(world.node(1));
      const name = fresh("f10-");
      const raw = await dial(line, app, transport);
      assert.equal(raw.chunks[0], 'o{"hostname":"127.0.0.3"}');
      line.lead(world.node(2));
      if (transport === "xhr_polling") line.cut(); // the first stream goes on as long as it lasts: it came this way
      await raw.subscribe(app, name);
      await app.trigger(world.node(0), name, "e", "1");
      await raw.next("e", name);
      // What reaches another node all the same is forwarded.
      const elsewhere = raw.base.replace("127.0.0.3", "127.0.0.2");
      const answer = await fetch(`${elsewhere}/${raw.session}/xhr_send`, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify([JSON.stringify({ event: "pusher:ping", data: {} })]) });
      assert.equal(answer.status, 204);
      await raw.next("pusher:pong");
      assert.equal(raw.opens, 1);

      line.lead(world.node(1));
      const pusher = await connected(line, app, transport);
      const before = pusher.connection.socket_id;
      line.allow(false); // not even there any more
      if (transport === "xhr_polling") line.cut();
      const channel = await subscribed(pusher, name);
      await app.trigger(world.node(2), name, "f", { n: 1 });
      await heard(channel, "f");
      assert.equal(pusher.connection.socket_id, before);
      line.allow(true);
      pusher.disconnect();
    });
  }

  test("Chromium comes back after its node has drained, over every transport, with all of its channels", async () => {
    const place = await site(app);
    line.lead(world.node(1));
    const [room, secret] = [fresh("presence-"), fresh("private-")];
    const pages = await Promise.all(transports.map(async (transport) => {
      const page = await visit(place);
      await tell(page, "connect", app.key, { host: "127.0.0.1", port: line.port, transports: [transport], backend: place.backend.url, user: `at-${transport}` });
      await told(page, "state:connected");
      for (const name of [room, secret]) {
        await tell(page, "subscribe", name);
        await told(page, `${name}:pusher:subscription_succeeded`);
      }
      return { page, before: (await tell(page, "state")).socket };
    }));
    line.lead(world.node(2));
    world.node(1).signal("SIGTERM");
    await world.node(1).exited;
    for (const { page, before } of pages) {
      await page.waitForFunction((was) => window.conformance.state().state === "connected" && window.conformance.state().socket !== was, before);
      for (const name of [room, secret]) {
        await page.waitForFunction((n) => window.conformance.heard.filter((h) => h.event === `${n}:pusher:subscription_succeeded`).length === 2, name);
      }
    }
    await app.trigger(world.node(0), [room, secret], "after", { n: 1 });
    for (const { page } of pages) {
      for (const name of [room, secret]) await told(page, `${name}:after`);
      await page.waitForFunction(([n, count]) => window.conformance.members(n).count === count, [room, transports.length]);
      assert.deepEqual(page.wrong, []);
    }
    await Promise.all(pages.map(({ page }) => page.context().close()));
    await world.up(1);
  });
});

describe("a node at its limit of connections", { concurrency: 1, timeout: 300_000 }, () => {
  let world;
  before(async () => {
    world = await Installation.start(1, { args: ["--max-connections", "3"] }); // of which it gives 95 % away: two
  });
  after(() => world?.stop());

  for (const transport of transports) {
    test(`answers 4100: pusher-js waits, comes again, and is in when there is room [${transport}]`, async () => {
      const app = world.first;
      const there = [];
      await poll("the clients before to be gone", async () => {
        const raw = await dial(world.node(0), app).catch(() => undefined);
        if (raw) there.push(raw);
        return there.length === 2;
      });
      const pusher = connect(world.node(0), app, transport);
      await pusher.states.take("4100", (s) => s.error?.code === 4100);
      const { connectingIn } = await pusher.states.take("a pause", (s) => s.connectingIn !== undefined);
      assert.ok(connectingIn >= 1, `it comes again after ${connectingIn} s`);
      await pusher.states.take("4100 again", (s) => s.error?.code === 4100);
      await there[0].leave();
      await state(pusher, "connected");
      const channel = await subscribed(pusher, fresh("in-"));
      await app.trigger(world.node(0), channel.name, "e", "1");
      await heard(channel, "e");
      pusher.disconnect();
      await there[1].leave();
    });
  }
});
