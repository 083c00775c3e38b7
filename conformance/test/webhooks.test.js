// pusher.md §9: webhooks, as an app's backend receives them, over all nodes.
import assert from "node:assert/strict";
import { describe } from "node:test";

import { hmac } from "../harness/app.js";
import { hook, receiver, sdk } from "../harness/backend.js";
import { dial } from "../harness/raw.js";
import { everyWay, fresh, onNodes } from "../harness/world.js";

const all = ["channel_occupied", "channel_vacated", "member_added", "member_removed", "client_event", "cache_miss"]; // a hook that asks for subscription_count gets it

async function listening(world, events, settings = {}, options = {}) {
  const app = await world.app(settings);
  const received = await receiver(app, options);
  await hook(world.node(0), app, "h1", { url: `${received.url}/hooks`, events });
  const next = (name, channel, match = () => true) => received.events.take(`${name} of ${channel}`, (e) => e.name === name && e.channel === channel && match(e));
  return { app, received, next };
}

const names = (received, channel) => received.events.all.filter((e) => e.channel === channel).map((e) => e.name);

describe("§9 webhooks", { concurrency: 12 }, () => {
  onNodes("the signature of pusher.md §6 is what this suite computes", async () => {
    const body = '{"time_ms":1327078148132,"events":[{"name":"channel_occupied","channel":"my-channel"}]}';
    assert.equal(hmac("7ad3773142a6692b25b8", body), "c19001ae3963ccb13bf618e5b16ba9848e7e74df0993aa0689168e341c6833cf");
  }, { only: [1] });

  onNodes("POST with time_ms, events, key and signature, which the official SDK takes", async ({ world }) => {
    const { app, received, next } = await listening(world, all);
    const channel = fresh("w-");
    const raw = await dial(world.node(1), app);
    await raw.subscribe(app, channel);
    await next("channel_occupied", channel);
    const [call] = received.calls;
    assert.equal(call.method, "POST");
    assert.equal(call.path, "/hooks");
    assert.match(call.headers["content-type"], /^application\/json/);
    assert.equal(call.valid, true);
    const parsed = JSON.parse(call.body);
    assert.deepEqual(Object.keys(parsed).sort(), ["events", "time_ms"]);
    assert.ok(Math.abs(parsed.time_ms - Date.now()) < 600_000);
    const { event_id: id, ...event } = parsed.events[0]; // an id that stays the same over attempts is Petrel's own addition
    assert.equal(typeof id, "string");
    assert.deepEqual(event, { name: "channel_occupied", channel });
    const official = sdk(world.node(0), app).webhook({ headers: call.headers, rawBody: call.body });
    assert.equal(official.isValid(), true);
    assert.deepEqual(official.getEvents(), parsed.events);
    assert.equal(sdk(world.node(0), { ...app, secret: "other" }).webhook({ headers: call.headers, rawBody: call.body }).isValid(), false);
  });

  everyWay("§11 a channel is occupied by the first subscriber and vacated by the last, once, over all nodes", async ({ world, transport }) => {
    const { app, received, next } = await listening(world, all);
    const channel = fresh("w-");
    const [a, b] = await Promise.all([dial(world.node(1), app, transport), dial(world.node(2), app, transport)]);
    await a.subscribe(app, channel);
    await b.subscribe(app, channel);
    await next("channel_occupied", channel);
    await a.leave();
    const other = fresh("w-"); // what comes later has overtaken nothing: its own hold-down begins later
    await b.subscribe(app, other);
    await next("channel_occupied", other);
    assert.deepEqual(names(received, channel), ["channel_occupied"], "one of two left");
    await b.leave();
    await next("channel_vacated", channel);
    await next("channel_vacated", other);
    assert.deepEqual(names(received, channel), ["channel_occupied", "channel_vacated"]);
  });

  everyWay("§8 a subscriber who is back within the hold-down has never been away", async ({ world, transport }) => {
    const { app, received, next } = await listening(world, all);
    const channel = fresh("w-");
    const raw = await dial(world.node(1), app, transport);
    await raw.subscribe(app, channel);
    await next("channel_occupied", channel);
    for (let i = 0; i < 3; i++) { // at once, in one breath: whatever a second is on this machine
      raw.send("pusher:unsubscribe", { channel });
      raw.send("pusher:subscribe", { channel });
      await raw.next("pusher_internal:subscription_succeeded", channel);
    }
    raw.send("pusher:unsubscribe", { channel });
    await next("channel_vacated", channel);
    assert.deepEqual(names(received, channel), ["channel_occupied", "channel_vacated"]);
  });

  everyWay("members of presence channels are added and removed once, whatever their number of tabs", async ({ world, transport }) => {
    const { app, received, next } = await listening(world, all);
    const channel = fresh("presence-");
    const tabs = await Promise.all([1, 2].map((i) => dial(world.node(i), app, transport)));
    for (const tab of tabs) await tab.subscribe(app, channel, { user_id: "ada", user_info: { secret: "not for hooks" } });
    assert.deepEqual(Object.keys(await next("member_added", channel)).sort(), ["channel", "event_id", "name", "user_id", "valid"]);
    const bob = await dial(world.node(0), app, transport);
    await bob.subscribe(app, channel, { user_id: "bob" });
    await next("member_added", channel, (e) => e.user_id === "bob");
    await tabs[0].leave();
    await bob.leave();
    await next("member_removed", channel, (e) => e.user_id === "bob");
    await tabs[1].leave();
    await next("member_removed", channel, (e) => e.user_id === "ada");
    await next("channel_vacated", channel);
    const seen = received.events.all.filter((e) => e.channel === channel && e.user_id).map((e) => `${e.name} ${e.user_id}`);
    assert.deepEqual(seen.sort(), ["member_added ada", "member_added bob", "member_removed ada", "member_removed bob"]);
  }, { transports: ["ws"] });

  onNodes("client events, with the sender's socket, and on presence channels its user", async ({ world }) => {
    const { app, next } = await listening(world, ["client_event"]);
    for (const kind of ["private-", "presence-"]) {
      const channel = fresh(kind);
      const raw = await dial(world.node(1), app);
      await raw.subscribe(app, channel, kind === "presence-" ? { user_id: "ada" } : undefined);
      raw.send("client-e", { n: 1 }, channel);
      const { valid, event_id: id, ...event } = await next("client_event", channel);
      assert.equal(valid, true);
      assert.equal(typeof id, "string");
      const data = typeof event.data === "string" ? JSON.parse(event.data) : event.data;
      assert.deepEqual({ ...event, data }, { name: "client_event", channel, event: "client-e", data: { n: 1 }, socket_id: raw.socketId, ...(kind === "presence-" ? { user_id: "ada" } : {}) });
    }
  });

  onNodes("cache misses, however many miss at once, are told once", async ({ world }) => {
    const { app, received, next } = await listening(world, ["cache_miss"]);
    const channel = fresh("cache-");
    const raws = await Promise.all([0, 1, 2].map((i) => dial(world.node(i), app)));
    await Promise.all(raws.map((r) => r.subscribe(app, channel)));
    await next("cache_miss", channel);
    const other = fresh("cache-");
    await raws[0].subscribe(app, other);
    await next("cache_miss", other);
    assert.deepEqual(names(received, channel), ["cache_miss"]);
  });

  onNodes("subscription counts, for apps that want them", async ({ world }) => {
    const { app, next } = await listening(world, ["subscription_count"], { subscription_count: true });
    const channel = fresh("w-");
    const raws = await Promise.all([1, 2].map((i) => dial(world.node(i), app)));
    for (const raw of raws) await raw.subscribe(app, channel);
    await next("subscription_count", channel, (e) => e.subscription_count === 2);
    await raws[0].leave();
    await next("subscription_count", channel, (e) => e.subscription_count === 1);
  });

  onNodes("a hook gets the events that it names, and no others; apps do not hear each other's", async ({ world }) => {
    const { app, received, next } = await listening(world, ["channel_vacated"]);
    const stranger = await listening(world, all);
    const channel = fresh("presence-");
    const raw = await dial(world.node(1), app);
    const witness = await receiver(app); // who comes and goes at once may never have been seen to be there
    await hook(world.node(0), app, "h2", { url: witness.url, events: ["channel_occupied"] });
    await raw.subscribe(app, channel, { user_id: "ada" });
    await witness.events.take("occupied", (e) => e.channel === channel);
    await raw.leave();
    await next("channel_vacated", channel);
    assert.deepEqual(names(received, channel), ["channel_vacated"]);
    assert.equal(stranger.received.calls.length, 0);
  });

  onNodes("what is answered with 500 comes again, the same event under the same id", async ({ world }) => {
    let refuse = 2;
    const { app, received, next } = await listening(world, ["channel_occupied"], {}, { answer: () => (refuse-- > 0 ? 500 : 200) });
    const channel = fresh("w-");
    const raw = await dial(world.node(1), app);
    await raw.subscribe(app, channel);
    await next("channel_occupied", channel);
    assert.equal(received.calls.length, 3);
    assert.equal(new Set(received.calls.map((c) => c.headers["petrel-event-id"])).size, 1);
    assert.equal(new Set(received.calls.map((c) => JSON.stringify(JSON.parse(c.body).events))).size, 1);
    assert.ok(received.calls.every((c) => c.valid));
  });
});
