// pusher.md §4, §5, §6 and §8: channels of all kinds, who may listen to them, and what they are called.
import assert from "node:assert/strict";
import { describe } from "node:test";

import { hmac } from "../harness/app.js";
import { backend, sdk } from "../harness/backend.js";
import { dial } from "../harness/raw.js";
import { everyWay, fresh, onNodes } from "../harness/world.js";

const kinds = ["", "private-", "presence-", "private-encrypted-", "cache-", "private-cache-", "presence-cache-", "private-encrypted-cache-"];
const member = (kind, id = "ada", info = { name: "Ada" }) => (kind.startsWith("presence-") ? { user_id: id, user_info: info } : undefined);

describe("§5 subscribing and being told", { concurrency: 8 }, () => {
  for (const kind of kinds) {
    everyWay(`a ${kind || "public"} channel: subscribe, hear, unsubscribe`, async ({ world, transport }) => {
      const app = world.first;
      const channel = fresh(kind);
      const raw = await dial(world.node(2), app, transport);
      const answer = await raw.subscribe(app, channel, member(kind));
      assert.equal(answer.channel, channel);
      assert.equal(typeof answer.data, "string");
      assert.deepEqual(JSON.parse(answer.data), kind.startsWith("presence-") ? { presence: { ids: ["ada"], hash: { ada: { name: "Ada" } }, count: 1 } } : {});
      if (kind.includes("cache-")) assert.deepEqual(await raw.next("pusher:cache_miss", channel), { event: "pusher:cache_miss", channel });

      await app.trigger(world.node(0), channel, "news", { n: 1, text: "grüße 🦆 \u2028" });
      const event = await raw.next("news", channel);
      assert.deepEqual(event, { event: "news", channel, data: JSON.stringify({ n: 1, text: "grüße 🦆 \u2028" }) }, "data stays the string that was sent");

      raw.send("pusher:unsubscribe", { channel });
      await raw.fence();
      const count = raw.frames.length;
      const other = fresh("");
      await raw.subscribe(app, other);
      await app.trigger(world.node(0), [channel, other], "later", "x");
      await raw.next("later", other);
      assert.deepEqual(raw.frames.slice(count).map((f) => f.event), ["pusher_internal:subscription_succeeded", "later"], "§4: unsubscribe has no answer, and nothing comes after it");
    });
  }

  everyWay("data that is no JSON arrives as it was sent", async ({ world, transport }) => {
    const app = world.first;
    const channel = fresh("plain-");
    const raw = await dial(world.node(1), app, transport);
    await raw.subscribe(app, channel);
    for (const data of ["just text", "{broken", "", "null", '"quoted"', "\u0000\u001f\u007f", "a\nb\r\n"]) {
      await app.trigger(world.node(0), channel, "raw", data);
      assert.equal((await raw.next("raw", channel)).data, data);
    }
  });

  everyWay("events of one sender arrive in their order, each once", async ({ world, transport }) => {
    const app = world.first;
    const channel = fresh("order-");
    const raws = await Promise.all([0, 1, 2].map((i) => dial(world.node(i), app, transport)));
    await Promise.all(raws.map((r) => r.subscribe(app, channel)));
    const wanted = Array.from({ length: 50 }, (_, n) => String(n));
    for (const n of wanted) await app.trigger(world.node(0), channel, "n", n);
    for (const raw of raws) {
      await raw.next("n", channel, (f) => f.data === "49");
      assert.deepEqual(raw.frames.filter((f) => f.event === "n").map((f) => f.data), wanted);
    }
  });

  everyWay("§11 a second subscription to the same channel doubles nothing", async ({ world, transport }) => {
    const app = world.first;
    for (const kind of ["", "private-", "presence-"]) {
      const channel = fresh(kind);
      const raw = await dial(world.node(1), app, transport);
      await raw.subscribe(app, channel, member(kind));
      raw.send("pusher:subscribe", app.subscribe(raw.socketId, channel, member(kind)));
      await raw.fence();
      await app.trigger(world.node(0), channel, "once", "1");
      await app.trigger(world.node(0), channel, "fence", "1");
      await raw.next("fence", channel);
      assert.equal(raw.frames.filter((f) => f.event === "once").length, 1);
      assert.equal(raw.frames.filter((f) => f.event === "pusher_internal:member_added").length, 0);
      raw.send("pusher:unsubscribe", { channel });
      await raw.fence();
      const before = raw.frames.length;
      await app.trigger(world.node(0), channel, "gone", "1");
      await raw.subscribe(app, fresh("x-"));
      assert.equal(raw.frames.slice(before).filter((f) => f.event === "gone").length, 0, "one unsubscribe ends it");
    }
  });

  everyWay("unsubscribing from a channel that one is not on changes nothing", async ({ world, transport }) => {
    const raw = await dial(world.node(0), world.first, transport);
    raw.send("pusher:unsubscribe", { channel: fresh("never-") });
    raw.send("pusher:unsubscribe", { channel: fresh("never-") });
    await raw.fence();
    assert.equal(raw.frames.filter((f) => f.event === "pusher_internal:subscription_succeeded").length, 0);
  });

  everyWay("a socket id given to a trigger is left out, wherever it is connected", async ({ world, transport }) => {
    const app = world.first;
    const channel = fresh("except-");
    const [a, b] = await Promise.all([dial(world.node(1), app, transport), dial(world.node(2), app, transport)]);
    await Promise.all([a, b].map((r) => r.subscribe(app, channel)));
    await app.trigger(world.node(0), channel, "all-but-a", "1", { socket_id: a.socketId });
    await app.trigger(world.node(0), channel, "all", "1");
    await b.next("all-but-a", channel);
    await a.next("all", channel);
    assert.equal(a.frames.filter((f) => f.event === "all-but-a").length, 0);
  });

  everyWay("apps do not hear each other", async ({ world, transport }) => {
    const other = await world.app();
    const channel = fresh("shared-name-");
    const mine = await dial(world.node(1), world.first, transport);
    const theirs = await dial(world.node(1), other, transport);
    await mine.subscribe(world.first, channel);
    await theirs.subscribe(other, channel);
    await other.trigger(world.node(0), channel, "secret", "1");
    await theirs.next("secret", channel);
    await world.first.trigger(world.node(0), channel, "fence", "1");
    await mine.next("fence", channel);
    assert.equal(mine.frames.filter((f) => f.event === "secret").length, 0);
  });
});

describe("§6 who may listen", { concurrency: 8 }, () => {
  for (const kind of kinds.filter((k) => /^(private|presence)-/.test(k))) {
    everyWay(`${kind}: a wrong signature is refused, and the connection goes on`, async ({ world, transport }) => {
      const app = world.first;
      const channel = fresh(kind);
      const raw = await dial(world.node(1), app, transport);
      const good = app.subscribe(raw.socketId, channel, member(kind));
      const wrong = [
        { ...good, auth: undefined },
        { ...good, auth: "" },
        { ...good, auth: "nonsense" },
        { ...good, auth: `${app.key}:` },
        { ...good, auth: `${app.key}:${"0".repeat(64)}` },
        { ...good, auth: `other-key:${good.auth.split(":")[1]}` },
        { ...good, auth: `${good.auth}0` },
        { ...good, auth: app.subscribe("1.1", channel, member(kind)).auth }, // of another socket
        { ...good, auth: app.subscribe(raw.socketId, `${channel}x`, member(kind)).auth }, // of another channel
        ...(good.channel_data ? [{ ...good, channel_data: good.channel_data.replace("ada", "bob") }, { ...good, channel_data: undefined }] : []),
      ];
      for (const data of wrong) {
        const refusal = await raw.refused(data);
        if (refusal.event === "pusher:error") assert.equal(typeof refusal.data.message, "string");
        else assert.equal(refusal.channel, channel);
      }
      await app.trigger(world.node(0), channel, "secret", "1");
      await raw.fence();
      assert.equal(raw.frames.filter((f) => f.event === "secret").length, 0);
      await raw.subscribe(app, channel, member(kind));
      await app.trigger(world.node(0), channel, "fence", "1");
      await raw.next("fence", channel);
      if (!kind.includes("cache-")) assert.equal(raw.frames.filter((f) => f.event === "secret").length, 0);
      assert.equal(raw.frames.filter((f) => f.event === "pusher_internal:subscription_succeeded").length, 1);
    }, { transports: kind === "private-" || kind === "presence-" ? undefined : ["ws"] });
  }

  everyWay("what the official server SDK signs is taken", async ({ world, transport }) => {
    const app = world.first;
    const { official } = await backend(app);
    const raw = await dial(world.node(1), app, transport);
    for (const kind of kinds.filter((k) => /^(private|presence)-/.test(k))) {
      const channel = fresh(kind);
      const data = kind.startsWith("presence-") ? { user_id: "u/1 ü", user_info: { name: "Ü", deep: { a: [1, null] } } } : undefined;
      const { auth, channel_data } = official.authorizeChannel(raw.socketId, channel, data);
      raw.send("pusher:subscribe", { channel, auth, channel_data });
      const { data: answer } = await raw.next("pusher_internal:subscription_succeeded", channel);
      if (data) assert.deepEqual(JSON.parse(answer).presence.hash, { [data.user_id]: data.user_info });
    }
  });

  onNodes("the signatures of pusher.md §6 are what this suite computes", async () => {
    const secret = "7ad3773142a6692b25b8";
    const vectors = {
      "1234.1234:private-foobar": "58df8b0c36d6982b82c3ecf6b4662e34fe8c25bba48f5369f135bf843651c3a4",
      '1234.1234:presence-foobar:{"user_id":10,"user_info":{"name":"Mr. Channels"}}': "31935e7d86dba64c2a90aed31fdc61869f9b22ba9d8863bba239c03ca481bc80",
      '1234.1234::user::{"id":"12345"}': "4708d583dada6a56435fb8bc611c77c359a31eebde13337c16ab43aa6de336ba",
    };
    for (const [text, want] of Object.entries(vectors)) assert.equal(hmac(secret, text), want);
  }, { only: [1] });

  onNodes("an older key's signature is good until the key is retired, on every node", async ({ world }) => {
    const app = await world.app();
    const rotated = JSON.parse(await world.node(0).cli("app", "rotate", app.id, "--json"));
    await world.everywhere(app);
    const newer = rotated.keys.find((k) => k.key !== app.key);
    const raw = await dial(world.node(1), newer); // whoever came by a key goes with it
    for (const { key, secret } of rotated.keys) {
      const channel = fresh("private-");
      raw.send("pusher:subscribe", { channel, auth: `${key}:${hmac(secret, `${raw.socketId}:${channel}`)}` });
      await raw.next("pusher_internal:subscription_succeeded", channel);
    }
    await world.node(0).cli("app", "rotate", app.id, "--retire", app.key);
    await world.everywhere(app);
    const channel = fresh("private-");
    await raw.refused({ channel, auth: app.auth(raw.socketId, channel) });
    raw.send("pusher:subscribe", { channel, auth: `${newer.key}:${hmac(newer.secret, `${raw.socketId}:${channel}`)}` });
    await raw.next("pusher_internal:subscription_succeeded", channel);
  });
});

describe("§8 names", { concurrency: 8 }, () => {
  everyWay("names of channels: 200 characters of the documented set are good, anything else is refused", async ({ world, transport }) => {
    const app = world.first;
    const raw = await dial(world.node(0), app, transport);
    for (const channel of ["aZ09_-=@,.;", "a".repeat(200), "private-", "x"]) await raw.subscribe(app, channel);
    for (const channel of ["a".repeat(201), "", "a b", "a/b", "ä", "a\u0000", "#private", "#server-to-user-ada", "a:b", "a\n", "a*"]) {
      const refusal = await raw.refused(app.subscribe(raw.socketId, channel));
      assert.ok(refusal, channel);
    }
    await raw.fence();
  });

  onNodes("names of channels and events are checked at the HTTP API too", async ({ world }) => {
    const app = world.first;
    const channel = fresh("names-");
    const trigger = (body) => app.call(world.node(0), "POST", "/events", { body: { name: "e", data: "d", channels: [channel], ...body } });
    for (const good of [{ name: "e".repeat(200) }, { name: "any thing: ä/*" }, { channels: ["c".repeat(200)] }, { channels: undefined, channel }]) {
      const answer = await trigger(good);
      assert.equal(answer.status, 200, `${JSON.stringify(good).slice(0, 60)}: ${answer.text}`);
    }
    for (const bad of [{ name: "e".repeat(201) }, { name: "" }, { name: undefined }, { channels: ["c".repeat(201)] }, { channels: [""] }, { channels: ["a b"] }, { channels: [] }, { channels: undefined }, { data: undefined }, { name: "pusher:x" }, { name: "pusher_internal:x" }]) {
      const answer = await trigger(bad);
      assert.equal(answer.status, 400, `${JSON.stringify(bad).slice(0, 60)}: ${answer.status} ${answer.text}`);
      assert.ok(answer.text.length > 0, "a sentence says why");
    }
  });

  onNodes("the official server SDK's own checks and Petrel's agree", async ({ world }) => {
    const official = sdk(world.node(0), world.first);
    const answer = await official.trigger(fresh("sdk-"), "event", { a: 1 });
    assert.equal(answer.status, 200);
  });
});
