// pusher.md §5: subscription_count, for the apps that want it.
import assert from "node:assert/strict";
import { describe } from "node:test";

import { dial } from "../harness/raw.js";
import { everyWay, fresh, onNodes } from "../harness/world.js";

const event = "pusher_internal:subscription_count";
const counted = { subscription_count: true };
const counts = (raw, channel) => raw.frames.filter((f) => f.event === event && f.channel === channel).map(count);
const count = (frame) => (typeof frame.data === "string" ? JSON.parse(frame.data) : frame.data).subscription_count;

describe("§5 subscription_count", { concurrency: 8 }, () => {
  for (const kind of ["", "private-", "cache-", "private-encrypted-"]) {
    everyWay(`${kind || "public"}: each subscriber is told, over all nodes`, async ({ world, transport }) => {
      const app = await world.app(counted);
      const channel = fresh(kind);
      const raws = [];
      for (let i = 1; i <= 3; i++) {
        const raw = await dial(world.node(i), app, transport);
        raws.push(raw);
        await raw.subscribe(app, channel);
        await Promise.all(raws.map((r) => r.next(event, channel, (f) => count(f) === i)));
      }
      await raws[0].leave();
      await raws[1].next(event, channel, (f) => count(f) === 2);
      raws[2].send("pusher:unsubscribe", { channel });
      await raws[1].next(event, channel, (f) => count(f) === 1);
      assert.deepEqual(new Set(counts(raws[1], channel)), new Set([1, 2, 3]));
    }, { transports: kind === "" ? undefined : ["ws"] });
  }

  onNodes("not by default, and never on presence channels", async ({ world }) => {
    const [quiet, app] = [world.first, await world.app(counted)];
    for (const [a, channel] of [[quiet, fresh("open-")], [app, fresh("presence-")]]) {
      const raws = await Promise.all([1, 2].map((i) => dial(world.node(i), a)));
      for (const [i, raw] of raws.entries()) await raw.subscribe(a, channel, channel.startsWith("presence-") ? { user_id: `u${i}` } : undefined);
      await a.trigger(world.node(0), channel, "fence", "1");
      for (const raw of raws) {
        await raw.next("fence", channel);
        assert.deepEqual(counts(raw, channel), []);
      }
    }
  });

  onNodes("§11 above a hundred subscribers it is told in steps, and the last count always arrives", async ({ world }) => {
    const app = await world.app(counted);
    const channel = fresh("crowd-");
    const witness = await dial(world.node(0), app);
    await witness.subscribe(app, channel);
    const raws = [];
    for (let i = 1; i < 100; i++) {
      const raw = await dial(world.node(i), app);
      await raw.subscribe(app, channel);
      raws.push(raw);
    }
    await witness.next(event, channel, (f) => count(f) === 100);
    const before = counts(witness, channel).length;
    const more = await Promise.all(Array.from({ length: 30 }, (_, i) => dial(world.node(i), app)));
    for (const raw of more) await raw.subscribe(app, channel);
    await witness.next(event, channel, (f) => count(f) === 130);
    assert.ok(counts(witness, channel).length - before < 30, "not each change");
    for (const raw of [...raws, ...more]) raw.drop();
  });
});
