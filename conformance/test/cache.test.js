// pusher.md §5: cache channels.
import assert from "node:assert/strict";
import { describe } from "node:test";

import { dial } from "../harness/raw.js";
import { poll } from "../harness/wait.js";
import { everyWay, fresh, onNodes } from "../harness/world.js";

const member = (kind) => (kind.startsWith("presence-") ? { user_id: "ada" } : undefined);

describe("cache channels", { concurrency: 8 }, () => {
  for (const kind of ["cache-", "private-cache-", "presence-cache-", "private-encrypted-cache-"]) {
    everyWay(`${kind}: a miss is told, then the last event comes right after the subscription, on every node`, async ({ world, transport }) => {
      const app = world.first;
      const channel = fresh(kind);
      const early = await dial(world.node(1), app, transport);
      await early.subscribe(app, channel, member(kind));
      await early.next("pusher:cache_miss", channel);
      await app.trigger(world.node(0), channel, "tick", { n: 1 });
      await app.trigger(world.node(0), channel, "tick", { n: 2 });
      await early.next("tick", channel, (f) => f.data === '{"n":2}');
      for (const i of [0, 1, 2]) {
        const late = await dial(world.node(i), app, transport);
        await late.subscribe(app, channel, member(kind));
        assert.deepEqual(await late.next("tick", channel), { event: "tick", channel, data: '{"n":2}' });
        await late.fence();
        const after = late.frames.slice(late.frames.findIndex((f) => f.event === "pusher_internal:subscription_succeeded") + 1);
        assert.deepEqual(after.filter((f) => f.channel === channel).map((f) => f.event), ["tick"], "only the last, and no miss");
        await late.leave();
      }
    });
  }

  everyWay("what was published while nobody listened is there too", async ({ world, transport }) => {
    const app = world.first;
    const channel = fresh("cache-");
    await app.trigger(world.node(0), channel, "tick", "alone");
    const raw = await dial(world.node(2), app, transport);
    await raw.subscribe(app, channel);
    assert.equal((await raw.next("tick", channel)).data, "alone");
  });

  everyWay("§11 client events are not kept", async ({ world, transport }) => {
    const app = world.first;
    const channel = fresh("private-cache-");
    const [a, b] = await Promise.all([dial(world.node(1), app, transport), dial(world.node(2), app, transport)]);
    await a.subscribe(app, channel);
    await b.subscribe(app, channel);
    a.send("client-x", { a: 1 }, channel);
    await b.next("client-x", channel);
    const late = await dial(world.node(0), app, transport);
    await late.subscribe(app, channel);
    await late.next("pusher:cache_miss", channel);
    await late.fence();
    assert.equal(late.frames.filter((f) => f.event === "client-x").length, 0);
  });

  onNodes("§7 info=cache shows it with its time to live, and null while there is none", async ({ world }) => {
    const app = world.first;
    const channel = fresh("cache-");
    const raw = await dial(world.node(1), app);
    await raw.subscribe(app, channel);
    const ask = async (i) => (await app.call(world.node(i), "GET", `/channels/${channel}`, { query: { info: "cache" } })).json;
    assert.equal((await ask(2)).cache, null);
    await app.trigger(world.node(0), channel, "tick", { n: 7 });
    await raw.next("tick", channel);
    for (const i of [0, 1, 2]) {
      const { cache } = await ask(i);
      assert.equal(cache.data, '{"n":7}');
      assert.ok(cache.ttl > 0 && cache.ttl <= 1800, `ttl ${cache.ttl}`);
    }
  });

  everyWay("§11 what is too old is a miss again", async ({ world, transport }) => {
    const app = await world.app({ cache_ttl: 1 });
    const channel = fresh("cache-");
    await app.trigger(world.node(0), channel, "tick", "old");
    await poll("the event to be forgotten", async () => {
      const raw = await dial(world.node(2), app, transport);
      await raw.subscribe(app, channel);
      const what = await raw.inbox.take("an event or a miss", (f) => f.event === "tick" || f.event === "pusher:cache_miss");
      raw.drop();
      return what.event === "pusher:cache_miss";
    });
  });
});
