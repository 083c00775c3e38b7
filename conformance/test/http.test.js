// pusher.md §7 and §8: the HTTP API, its signatures, answers and limits.
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { describe, test } from "node:test";

import { App, md5, now, signed } from "../harness/app.js";
import { masterKey, sdk } from "../harness/backend.js";
import { dial } from "../harness/raw.js";
import { poll } from "../harness/wait.js";
import { fresh, onNodes } from "../harness/world.js";

const event = (channel, more = {}) => ({ name: "e", data: "d", channels: [channel], ...more });
const counted = { subscription_count: true };

/** Subscribes some users on the nodes that are not node 0, and waits until node 0 counts them. */
async function audience(world, app, channel, users) {
  const raws = await Promise.all(users.map(async (user, i) => {
    const raw = await dial(world.node(i + 1), app);
    await raw.subscribe(app, channel, channel.startsWith("presence-") ? { user_id: user } : undefined);
    return raw;
  }));
  await poll(`node 0 to count ${users.length} subscriptions`, async () => {
    const info = channel.startsWith("presence-") ? "user_count" : "subscription_count";
    const { json } = await app.call(world.node(0), "GET", `/channels/${channel}`, { query: { info } });
    return json?.[info] === (channel.startsWith("presence-") ? new Set(users).size : users.length);
  });
  return raws;
}

describe("§7 signatures", { concurrency: 8 }, () => {
  test("the vectors of pusher.md §7 are what this suite computes", () => {
    const pd = { key: "278d425bdf160c739803", secret: "7ad3773142a6692b25b8" };
    const body = '{"name":"foo","channels":["project-3"],"data":"{\\"some\\":\\"data\\"}"}';
    assert.equal(md5(body), "ec365a775a4cd0599faeb73354201b6f");
    assert.equal(signed(pd, "POST", "/apps/3/events", { body, timestamp: 1353088179 }).params.auth_signature, "da454824c97ba181a32ccc17a72625ba02771f50b50e1e7430e47a1f3f457e6c");
    const petrel = { key: "petrel-key", secret: "petrel-secret" };
    const batch = '{"batch":[{"channel":"private-room-1","name":"message","data":"{\\"text\\":\\"hi\\"}"},{"channel":"cache-ticker","name":"tick","data":"{\\"p\\":42}","info":"subscription_count"}]}';
    assert.equal(md5(batch), "7b3f1cf49b4197806cd091d5b686e467");
    const at = { timestamp: 1700000000 };
    assert.equal(signed(petrel, "POST", "/apps/1001/batch_events", { body: batch, ...at }).params.auth_signature, "b0aac4edcec2c149773d575e9939e2a63990faa7215197f847dfba543331a1a4");
    assert.equal(signed(petrel, "GET", "/apps/1001/channels", { query: { info: "user_count", filter_by_prefix: "presence-" }, ...at }).params.auth_signature, "f3b59bd3ede21942d883e4cd47aa84441d6be5347f7b2bc498411ff550549b73");
    assert.equal(signed(petrel, "POST", "/apps/1001/users/u-42/terminate_connections", at).params.auth_signature, "f48a77c7e38b9483870ab443eb6510df9a5213413ec93db9ac84b9a5d58ea894");
    assert.equal(signed(petrel, "POST", "/apps/1001/users/u-42/terminate_connections", { body: "{}", ...at }).params.auth_signature, "33e7aa1c3336a87e73cd4e146777338fc4b48eec64e8ab8e7520e0fcc2dbc00a");
  });

  onNodes("401 for every signature that is not right, each with a sentence, and nothing is sent", async ({ world }) => {
    const app = world.first;
    const node = world.node(0);
    const channel = fresh("sig-");
    const raw = await dial(world.node(1), app);
    await raw.subscribe(app, channel);
    const body = event(channel, { name: "forged" });
    const refused = {
      "no query at all": { without: ["auth_key", "auth_timestamp", "auth_version", "auth_signature", "body_md5"] },
      "no key": { without: ["auth_key"] },
      "no signature": { without: ["auth_signature"] },
      "no timestamp": { without: ["auth_timestamp"] },
      "no version": { without: ["auth_version"] },
      "no body_md5": { without: ["body_md5"] },
      "another signature": { replace: { auth_signature: "0".repeat(64) } },
      "a short signature": { replace: { auth_signature: "0" } },
      "an unknown key": { replace: { auth_key: "unknown" } },
      "a query that was changed": { replace: { extra: "1" } },
      "an unreadable timestamp": { timestamp: "soon" },
      "another version": { version: "2.0" },
      "the md5 of another body": { bodyMD5: md5("other") },
      "another body under this md5": { sent: JSON.stringify(event(channel, { name: "forged", data: "x" })) },
      "ten minutes and a second ago": { timestamp: now() - 601 },
      "far ahead": { timestamp: now() + 700 },
      "in milliseconds": { timestamp: Date.now() },
    };
    for (const [what, options] of Object.entries(refused)) {
      const answer = await app.call(node, "POST", "/events", { body, ...options });
      assert.equal(answer.status, 401, `${what}: ${answer.status} ${answer.text}`);
      assert.ok(answer.text.length > 10, "a sentence");
      assert.equal(answer.text.includes(app.secret), false);
    }
    const stranger = new App({ ...app, secret: "wrong" });
    assert.equal((await stranger.call(node, "POST", "/events", { body })).status, 401);
    await app.trigger(node, channel, "fence", "1");
    await raw.next("fence", channel);
    assert.equal(raw.frames.filter((f) => f.event === "forged").length, 0);
  });

  onNodes("§8 a clock may be ten minutes off", async ({ world }) => {
    const app = world.first;
    for (const off of [-599, 599]) {
      await poll(`a signature ${off} s off to be taken`, async () => {
        const began = Date.now();
        const { status, text } = await app.call(world.node(0), "GET", "/channels", { timestamp: now() + off });
        if (Date.now() - began > 900) return false; // too slow to say anything about a second
        assert.equal(status, 200, text);
        return true;
      });
    }
  });

  onNodes("a key of one app opens no other", async ({ world }) => {
    const other = await world.app();
    const mixed = new App({ id: world.first.id, key: other.key, secret: other.secret });
    const { status } = await mixed.call(world.node(0), "GET", "/channels");
    assert.ok(status === 401 || status === 404, `answers ${status}`);
    const unknown = new App({ id: "99999999", key: other.key, secret: other.secret });
    const answer = await unknown.call(world.node(0), "GET", "/channels");
    assert.ok([401, 404].includes(answer.status), `answers ${answer.status}`);
  });

  onNodes("names of parameters are signed in lower case, values as they are, and lists may stand in the query", async ({ world }) => {
    const app = world.first;
    const channel = fresh("q-");
    const { status, text } = await app.call(world.node(0), "GET", `/channels`, { query: { filter_by_prefix: "a b&c=d/ä+" } });
    assert.equal(status, 200, text);
    assert.equal((await app.call(world.node(0), "GET", `/channels/${channel}`, { query: { info: "subscription_count" } })).status, 200);
  });

  onNodes("a suspended app is answered 403", async ({ world }) => {
    const app = await world.app();
    await world.node(0).cli("app", "suspend", app.id, "--reason", "conformance");
    await world.everywhere(app);
    for (const node of world.nodes) {
      const { status, text } = await app.call(node, "POST", "/events", { body: event(fresh("x-")) });
      assert.equal(status, 403, text);
    }
  });

  onNodes("a rotated key signs at once on every node, a retired one no more", async ({ world }) => {
    const app = await world.app();
    const { keys } = JSON.parse(await world.node(0).cli("app", "rotate", app.id, "--json"));
    await world.everywhere(app);
    for (const node of world.nodes) for (const k of keys) assert.equal((await new App({ id: app.id, ...k }).call(node, "GET", "/channels")).status, 200);
    await world.node(0).cli("app", "rotate", app.id, "--retire", app.key);
    await world.everywhere(app);
    for (const node of world.nodes) assert.equal((await app.call(node, "GET", "/channels")).status, 401);
  });
});

describe("§7 endpoints", { concurrency: 8 }, () => {
  onNodes("POST /events answers {}, and with info what was asked for", async ({ world }) => {
    const app = await world.app(counted);
    const [open, presence] = [fresh("open-"), fresh("presence-")];
    await audience(world, app, open, ["a", "b", "c"]);
    await audience(world, app, presence, ["ada", "bob", "ada"]);
    const plain = await app.call(world.node(0), "POST", "/events", { body: event(open) });
    assert.equal(plain.status, 200);
    assert.equal(plain.text.trim(), "{}");
    assert.match(plain.headers.get("content-type"), /^application\/json/);
    const { json } = await app.call(world.node(0), "POST", "/events", { body: event("x", { channels: [open, presence], info: "subscription_count,user_count" }) });
    assert.equal(json.channels[open].subscription_count, 3);
    assert.equal(json.channels[open].user_count, undefined);
    assert.equal(json.channels[presence].user_count, 2);
  });

  onNodes("POST /events takes its fields in any order, with unknown ones beside them, and any SDK's headers", async ({ world }) => {
    const app = world.first;
    const channel = fresh("order-");
    const raw = await dial(world.node(1), app);
    await raw.subscribe(app, channel);
    const body = `{ "data":"\\u0064",\n "unknown":{"a":[1]}, "channels":["${channel}"] ,"name":"e"}`;
    const answer = await app.call(world.node(0), "POST", "/events", { body, headers: { "X-Pusher-Library": "pusher-http-x 1.0", "Content-Type": "application/json; charset=utf-8" } });
    assert.equal(answer.status, 200, answer.text);
    assert.equal((await raw.next("e", channel)).data, "d");
  });

  onNodes("POST /batch_events publishes all, and answers info in the order of the batch", async ({ world }) => {
    const app = await world.app(counted);
    const [one, two] = [fresh("one-"), fresh("presence-")];
    const [raw] = await audience(world, app, one, ["a", "b"]);
    const [member] = await audience(world, app, two, ["ada"]);
    const send = (batch) => app.call(world.node(0), "POST", "/batch_events", { body: { batch } });
    assert.equal((await send([{ channel: one, name: "a", data: "1" }, { channel: two, name: "b", data: "2" }])).text.trim(), "{}");
    await raw.next("a", one);
    await member.next("b", two);
    const { json } = await send([{ channel: one, name: "a", data: "1", info: "subscription_count" }, { channel: fresh("none-"), name: "x", data: "" }, { channel: two, name: "b", data: "2", info: "user_count" }]);
    assert.equal(json.batch.length, 3);
    assert.equal(json.batch[0].subscription_count, 2);
    assert.deepEqual(json.batch[1], {});
    assert.equal(json.batch[2].user_count, 1);
  });

  onNodes("a batch leaves out the socket that each event names", async ({ world }) => {
    const app = world.first;
    const channel = fresh("b-");
    const [a, b] = await Promise.all([dial(world.node(1), app), dial(world.node(2), app)]);
    await a.subscribe(app, channel);
    await b.subscribe(app, channel);
    const batch = [{ channel, name: "not-a", data: "1", socket_id: a.socketId }, { channel, name: "not-b", data: "1", socket_id: b.socketId }, { channel, name: "all", data: "1" }];
    assert.equal((await sdk(world.node(0), app).triggerBatch(batch)).status, 200);
    await a.next("all", channel);
    await b.next("all", channel);
    assert.deepEqual(a.frames.filter((f) => f.channel === channel && !f.event.startsWith("pusher")).map((f) => f.event), ["not-b", "all"]);
    assert.deepEqual(b.frames.filter((f) => f.channel === channel && !f.event.startsWith("pusher")).map((f) => f.event), ["not-a", "all"]);
  });

  onNodes("GET /channels lists what is occupied on any node, by prefix, with counts for presence alone", async ({ world }) => {
    const app = await world.app(counted);
    const [open, first, second] = [fresh("open-"), fresh("presence-a-"), fresh("presence-b-")];
    await audience(world, app, open, ["x"]);
    await audience(world, app, first, ["ada", "bob", "bob"]);
    const [lonely] = await audience(world, app, second, ["ada"]);
    const get = async (query) => (await app.call(world.node(0), "GET", "/channels", { query })).json;
    assert.deepEqual(await get({}), { channels: { [open]: {}, [first]: {}, [second]: {} } });
    assert.deepEqual(await get({ filter_by_prefix: "presence-a" }), { channels: { [first]: {} } });
    assert.deepEqual(await get({ filter_by_prefix: "presence-", info: "user_count" }), { channels: { [first]: { user_count: 2 }, [second]: { user_count: 1 } } });
    assert.deepEqual(await get({ filter_by_prefix: "nothing-" }), { channels: {} });
    for (const query of [{ info: "user_count" }, { info: "user_count", filter_by_prefix: "open-" }, { info: "nonsense" }, { info: "user_count", filter_by_prefix: "pres" }]) {
      const { status, text } = await app.call(world.node(0), "GET", "/channels", { query });
      assert.equal(status, 400, `${JSON.stringify(query)}: ${text}`);
    }
    await lonely.leave();
    await poll("the channel to be vacated", async () => !(second in (await get({})).channels));
  });

  onNodes("GET /channels/{channel} tells what that kind of channel has, and 400 for what it has not", async ({ world }) => {
    const app = await world.app(counted);
    const [open, presence, empty] = [fresh("open-"), fresh("presence-"), fresh("empty-")];
    await audience(world, app, open, ["a", "b"]);
    await audience(world, app, presence, ["ada", "bob"]);
    const get = (channel, info) => app.call(world.node(0), "GET", `/channels/${channel}`, { query: info ? { info } : {} });
    assert.deepEqual((await get(open)).json, { occupied: true });
    assert.deepEqual((await get(open, "subscription_count")).json, { occupied: true, subscription_count: 2 });
    assert.deepEqual((await get(presence, "user_count")).json, { occupied: true, user_count: 2 });
    assert.deepEqual((await get(empty)).json, { occupied: false });
    assert.deepEqual((await get(empty, "subscription_count")).json, { occupied: false, subscription_count: 0 });
    for (const [channel, info] of [[open, "user_count"], [open, "cache"], [open, "nonsense"], ["b%20d", undefined], ["a".repeat(201), undefined]]) {
      const path = `/channels/${channel}`;
      const { status, text } = channel.includes("%") ? await plain(app, world.node(0), path) : await get(channel, info);
      assert.equal(status, 400, `${path.slice(0, 40)} ${info}: ${status} ${text}`);
    }
  });

  onNodes("GET /channels/{channel}/users lists each user once, of all nodes; 400 for other channels", async ({ world }) => {
    const app = world.first;
    const presence = fresh("presence-");
    await audience(world, app, presence, ["ada", "bob", "ada", "4"]);
    const { json } = await app.call(world.node(0), "GET", `/channels/${presence}/users`);
    assert.deepEqual(json.users.map((u) => u.id).sort(), ["4", "ada", "bob"]);
    assert.deepEqual(Object.keys(json), ["users"]);
    assert.deepEqual((await app.call(world.node(0), "GET", `/channels/${fresh("presence-")}/users`)).json, { users: [] });
    assert.equal((await app.call(world.node(0), "GET", `/channels/${fresh("open-")}/users`)).status, 400);
  });

  onNodes("POST /users/{user}/terminate_connections answers {} with and without a body, also for users who are not there", async ({ world }) => {
    const app = world.first;
    for (const options of [{}, { body: "{}" }]) {
      const answer = await app.call(world.node(0), "POST", `/users/${fresh("u")}/terminate_connections`, options);
      assert.equal(answer.status, 200, answer.text);
      assert.deepEqual(answer.json, {});
    }
  });

  onNodes("what is not there is 404, what takes no such method 405", async ({ world }) => {
    const app = world.first;
    for (const [method, path, status] of [["GET", "/nothing", 404], ["GET", "/events", 405], ["DELETE", "/channels", 405], ["POST", "/channels/x/users", 405], ["GET", "/users/u/terminate_connections", 405]]) {
      const answer = await app.call(world.node(0), method, path);
      assert.equal(answer.status, status, `${method} ${path}: ${answer.text}`);
    }
  });

  onNodes("a body that is no JSON object is 400", async ({ world }) => {
    for (const body of ["nonsense", "[]", "7", '"x"', "{", '{"name":7,"data":"","channels":["a"]}', '{"name":"e","data":"","channels":"a"}', '{"name":"e","data":"","channels":[7]}']) {
      const { status, text } = await world.first.call(world.node(0), "POST", "/events", { body });
      assert.equal(status, 400, `${body}: ${status} ${text}`);
    }
    for (const body of ['{"batch":{}}', "{}", '{"batch":[7]}', '{"batch":[{"name":"e","data":""}]}', '{"batch":[]}']) {
      const { status, text } = await world.first.call(world.node(0), "POST", "/batch_events", { body });
      assert.equal(status, 400, `${body}: ${status} ${text}`);
    }
    const bad = await world.first.call(world.node(0), "POST", "/events", { body: event(fresh("x-"), { socket_id: "nonsense" }) });
    assert.equal(bad.status, 400, bad.text);
  });
});

async function plain(app, node, path) {
  const { params } = signed(app, "GET", `/apps/${app.id}${decodeURIComponent(path)}`);
  const answer = await fetch(`${node.url}/apps/${app.id}${path}?${new URLSearchParams(params)}`);
  return { status: answer.status, text: await answer.text() };
}

describe("§8 limits", { concurrency: 8 }, () => {
  onNodes("data: 10,240 bytes are taken, 10,241 are 413", async ({ world }) => {
    const app = world.first;
    const channel = fresh("size-");
    const raw = await dial(world.node(1), app);
    await raw.subscribe(app, channel);
    const send = (data) => app.call(world.node(0), "POST", "/events", { body: event(channel, { data }) });
    assert.equal((await send("x".repeat(10_240))).status, 200);
    assert.equal((await raw.next("e", channel)).data.length, 10_240);
    assert.equal((await send("ü".repeat(5_120))).status, 200);
    const large = await send("x".repeat(10_241));
    assert.equal(large.status, 413, large.text);
    assert.equal((await send("ü".repeat(5_121))).status, 413, "bytes, not characters");
    const batch = await app.call(world.node(0), "POST", "/batch_events", { body: { batch: [{ channel, name: "e", data: "x".repeat(10_241) }] } });
    assert.equal(batch.status, 413, batch.text);
    const full = await app.call(world.node(0), "POST", "/batch_events", { body: { batch: Array.from({ length: 10 }, () => ({ channel, name: "full", data: "x".repeat(10_240) })) } });
    assert.equal(full.status, 200, full.text);
    assert.equal((await send("x".repeat(3_000_000))).status, 413, "however large");
  });

  onNodes("channels of one trigger: 100 are taken, 101 are 400", async ({ world }) => {
    const channels = Array.from({ length: 101 }, () => fresh("c-"));
    const send = (list) => world.first.call(world.node(0), "POST", "/events", { body: event("", { channels: list }) });
    assert.equal((await send(channels.slice(0, 100))).status, 200);
    assert.equal((await send(channels)).status, 400);
  });

  onNodes("events of one batch: 10 are taken, 11 are 400, and a bad one stops them all", async ({ world }) => {
    const app = world.first;
    const channel = fresh("batch-");
    const raw = await dial(world.node(1), app);
    await raw.subscribe(app, channel);
    const send = (batch) => app.call(world.node(0), "POST", "/batch_events", { body: { batch } });
    const one = { channel, name: "e", data: "1" };
    assert.equal((await send(Array(10).fill(one))).status, 200);
    assert.equal((await send(Array(11).fill(one))).status, 400);
    assert.equal((await send([{ ...one, name: "half" }, { ...one, channel: "b d" }])).status, 400);
    await app.trigger(world.node(0), channel, "fence", "1");
    await raw.next("fence", channel);
    assert.equal(raw.frames.filter((f) => f.event === "e").length, 10);
    assert.equal(raw.frames.filter((f) => f.event === "half").length, 0);
  });

  onNodes("limits are settings of the app", async ({ world }) => {
    const app = await world.app({ max_event_bytes: 20_000, max_channels: 2 });
    const node = world.node(2);
    assert.equal((await app.call(node, "POST", "/events", { body: event(fresh("x-"), { data: "x".repeat(20_000) }) })).status, 200);
    assert.equal((await app.call(node, "POST", "/events", { body: event(fresh("x-"), { data: "x".repeat(20_001) }) })).status, 413);
    assert.equal((await app.call(node, "POST", "/events", { body: event("", { channels: [fresh("a-"), fresh("b-"), fresh("c-")] }) })).status, 400);
  });
});

describe("docs/pusher.md", { concurrency: 2 }, () => {
  onNodes("the trigger by hand works as it is printed, with key, secret and address filled in", async ({ world }) => {
    const app = world.first;
    const text = readFileSync(new URL("../../docs/pusher.md", import.meta.url), "utf8");
    const block = /A trigger by hand[^]*?```console\n([^]*?)```/.exec(text)[1];
    const channel = fresh("news-");
    const raw = await dial(world.node(1), app);
    await raw.subscribe(app, channel);
    const script = block.replaceAll(/^\$ /gm, "").replaceAll("KEY", app.key).replaceAll("SECRET", app.secret).replaceAll("1001", app.id).replaceAll("127.0.0.1:8080", world.node(0).host).replaceAll('"news"', `"${channel}"`);
    const answer = execFileSync("bash", ["-euo", "pipefail", "-c", script], { encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] });
    assert.deepEqual(JSON.parse(answer), {});
    assert.equal((await raw.next("hello", channel)).data, "{}");
  });
});

describe("the official server SDK", { concurrency: 8 }, () => {
  onNodes("everything that `pusher` for Node can ask", async ({ world }) => {
    const app = await world.app(counted);
    const official = sdk(world.node(0), app, { encryptionMasterKeyBase64: masterKey });
    const [open, presence, encrypted] = [fresh("open-"), fresh("presence-"), fresh("private-encrypted-")];
    const [raw] = await audience(world, app, open, ["a"]);
    await audience(world, app, presence, ["ada"]);
    const secret = await dial(world.node(2), app);
    await secret.subscribe(app, encrypted);
    assert.deepEqual(await (await official.trigger([open, presence], "e", { a: 1 }, { info: "subscription_count,user_count" })).json().then((j) => j.channels[presence].user_count), 1);
    await raw.next("e", open);
    await official.trigger(encrypted, "e", { a: 1 });
    const sealed = JSON.parse((await secret.next("e", encrypted)).data);
    assert.deepEqual(Object.keys(sealed).sort(), ["ciphertext", "nonce"]);
    await official.triggerBatch([{ channel: open, name: "b", data: { n: 1 } }]);
    assert.equal((await raw.next("b", open)).data, '{"n":1}');
    assert.deepEqual(await (await official.get({ path: "/channels", params: { filter_by_prefix: "presence-", info: "user_count" } })).json(), { channels: { [presence]: { user_count: 1 } } });
    assert.deepEqual(await (await official.get({ path: `/channels/${presence}/users` })).json(), { users: [{ id: "ada" }] });
    await official.sendToUser("nobody", "e", {});
    await official.terminateUserConnections("nobody");
    await assert.rejects(sdk(world.node(0), new App({ ...app, secret: "wrong" })).trigger(open, "e", {}), (error) => error.status === 401);
  });
});
