// pusher.md §4: events that clients send to each other.
import assert from "node:assert/strict";
import { describe } from "node:test";

import { dial } from "../harness/raw.js";
import { everyWay, fresh } from "../harness/world.js";

const member = (channel, id) => (channel.startsWith("presence-") ? { user_id: id } : undefined);

async function pair({ world, transport, app = world.first, kind }) {
  const channel = fresh(kind);
  const [a, b] = await Promise.all([dial(world.node(1), app, transport), dial(world.node(2), app, transport)]);
  await a.subscribe(app, channel, member(channel, "ada"));
  await b.subscribe(app, channel, member(channel, "bob"));
  return { app, channel, a, b };
}

describe("§4 client events", { concurrency: 8 }, () => {
  for (const kind of ["private-", "presence-", "private-cache-", "presence-cache-"]) {
    everyWay(`${kind}: the others hear it, the sender does not; only presence says who sent it`, async (way) => {
      const { channel, a, b } = await pair({ ...way, kind });
      a.send("client-hello", { text: "hi 🦆", n: 1 }, channel);
      const event = await b.next("client-hello", channel);
      const data = typeof event.data === "string" ? JSON.parse(event.data) : event.data;
      assert.deepEqual(data, { text: "hi 🦆", n: 1 });
      assert.equal(event.user_id, kind.startsWith("presence-") ? "ada" : undefined);
      b.send("client-answer", "just text", channel);
      assert.equal((await a.next("client-answer", channel)).data, "just text");
      assert.equal(a.frames.filter((f) => f.event === "client-hello").length, 0, "not echoed");
      assert.equal(b.frames.filter((f) => f.event === "client-answer").length, 0, "not echoed");
    });
  }

  everyWay("refused, each with an error: on public and encrypted channels, before subscribing, after unsubscribing, without a channel", async ({ world, transport }) => {
    const app = world.first;
    const raw = await dial(world.node(1), app, transport);
    const witness = await dial(world.node(2), app);
    const channels = { open: fresh("public-"), cache: fresh("cache-"), encrypted: fresh("private-encrypted-"), never: fresh("private-"), left: fresh("private-") };
    for (const channel of Object.values(channels)) await witness.subscribe(app, channel);
    for (const channel of [channels.open, channels.cache, channels.encrypted, channels.left]) await raw.subscribe(app, channel);
    raw.send("pusher:unsubscribe", { channel: channels.left });
    for (const channel of [...Object.values(channels), undefined, 7, "#server-to-user-ada"]) {
      raw.send("client-bad", { a: 1 }, channel);
      const error = await raw.next("pusher:error");
      assert.equal(typeof error.data.message, "string");
    }
    await raw.fence();
    for (const channel of Object.values(channels)) await app.trigger(world.node(0), channel, "fence", "1");
    for (const channel of Object.values(channels)) await witness.next("fence", channel);
    assert.equal(witness.frames.filter((f) => f.event === "client-bad").length, 0);
  });

  everyWay("§3, §8, §11 more than ten in a second: 4301 inside pusher:error, and the connection stays", async (way) => {
    const { channel, a, b } = await pair({ ...way, kind: "private-" });
    for (let n = 0; n < 60; n++) a.send("client-n", { n }, channel); // at once: whatever a second holds, they are more
    const error = await a.next("pusher:error");
    assert.equal(error.data.code, 4301);
    await a.fence();
    await way.world.first.trigger(way.world.node(0), channel, "fence", "1");
    await a.next("fence", channel);
    const heard = b.frames.filter((f) => f.event === "client-n").length;
    assert.ok(heard >= 1 && heard < 60, `${heard} of 60 were heard`);
  });

  everyWay("§11 ten at once are heard", async (way) => {
    const { channel, a, b } = await pair({ ...way, kind: "private-" });
    for (let n = 0; n < 10; n++) a.send("client-n", { n }, channel);
    for (let n = 0; n < 10; n++) await b.next("client-n", channel);
    await a.fence();
    assert.equal(a.frames.filter((f) => f.event === "pusher:error").length, 0);
  });

  everyWay("§8, §11 data of more than 10 kB is refused", async (way) => {
    const { channel, a, b } = await pair({ ...way, kind: "private-" });
    a.send("client-large", "x".repeat(10_241), channel);
    await a.next("pusher:error");
    a.send("client-fits", "x".repeat(10_000), channel);
    await b.next("client-fits", channel);
    assert.equal(b.frames.filter((f) => f.event === "client-large").length, 0);
  });

  everyWay("an app that has them switched off refuses them", async ({ world, transport }) => {
    const app = await world.app({ client_events: false });
    const { channel, a, b } = await pair({ world, transport, app, kind: "private-" });
    a.send("client-off", {}, channel);
    await a.next("pusher:error");
    await app.trigger(world.node(0), channel, "fence", "1");
    await b.next("fence", channel);
    assert.equal(b.frames.filter((f) => f.event === "client-off").length, 0);
  }, { transports: ["ws"] });
});
