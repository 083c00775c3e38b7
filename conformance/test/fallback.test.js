// pusher.md §10: the HTTP fallback exactly as pusher-js 8.6 does it. What all transports share stands in the other files.
import assert from "node:assert/strict";
import { connect as tcp } from "node:net";
import { describe } from "node:test";

import { connected, subscribed, heard, connect, state } from "../harness/client.js";
import { clientQuery, dial, open } from "../harness/raw.js";
import { wire } from "../harness/proxy.js";
import { poll } from "../harness/wait.js";
import { everyWay, fresh, onNodes } from "../harness/world.js";

const http = { transports: ["xhr_streaming", "xhr_polling"] };
const base = (node, app) => `http://${node.host}/pusher/app/${app.key}`;
const query = clientQuery.replace("&flash=false", "");

describe("§10 fallback", { concurrency: 8 }, () => {
  everyWay("F1: pusher-js over a closed WebSocket port comes in by HTTP, and stays", async ({ world }) => {
    const line = await wire(world.node(1));
    line.allow(false);
    const pusher = connect(line, world.first, "ws", undefined, { options: { enabledTransports: ["ws", "xhr_streaming", "xhr_polling"], httpPort: world.node(1).port } });
    await state(pusher, "connected");
    assert.match(pusher.connection.connection.transport.name, /^xhr_/);
    line.allow(true);
    const channel = await subscribed(pusher, fresh("f1-"));
    await world.first.trigger(world.node(0), channel.name, "e", "1");
    await heard(channel, "e");
  }, { transports: ["ws"], only: [1] });

  everyWay("F2: a handshake is answered in far less than the two seconds after which clients fall back", async ({ world }) => {
    // No clock: of many handshakes at once the client that prefers WebSocket gets one, and no fallback session is opened.
    const options = { enabledTransports: ["ws", "xhr_streaming", "xhr_polling"] };
    const pushers = await Promise.all(Array.from({ length: 20 }, (_, i) => connected(world.node(i), world.first, "ws", undefined, { options })));
    const used = pushers.map((p) => p.connection.connection.transport.name);
    assert.ok(used.filter((name) => name === "ws").length >= 1, used.join());
  }, { transports: ["ws"] });

  everyWay("F4, F5, F6, F9: a POST without a body opens a session and is greeted with o and the handshake", async ({ world, transport }) => {
    const raw = await dial(world.node(1), world.first, transport);
    assert.match(raw.chunks[0], /^o(\{.*\})?$/);
    assert.match(raw.chunks[1], /^[am]/);
    assert.equal(raw.responses[0].status, 200);
    const type = raw.responses[0].headers.get("content-type");
    assert.match(type, /^(application\/javascript|text\/plain|application\/json)/);
    assert.match(raw.responses[0].headers.get("cache-control") ?? "", /no-store|no-cache/);
  }, http);

  everyWay("F7: frames are sent as an array of strings, without a protocol in the address; the answer is a success", async ({ world, transport }) => {
    const app = world.first;
    const raw = await dial(world.node(1), app, transport);
    const channels = [fresh("a-"), fresh("b-")];
    const frames = channels.map((channel) => JSON.stringify({ event: "pusher:subscribe", data: { channel, auth: "" } }));
    const answer = await raw.post(JSON.stringify(frames)); // several at once
    assert.ok(answer.status === 204 || answer.status === 200, String(answer.status));
    for (const channel of channels) await raw.next("pusher_internal:subscription_succeeded", channel);
  }, http);

  everyWay("F7: what is no array of strings is refused, and the session goes on", async ({ world, transport }) => {
    const raw = await dial(world.node(1), world.first, transport);
    for (const body of ["", "nonsense", "{}", "[7]", '"x"', '["a"', "[[]]"]) {
      const answer = await raw.post(body);
      assert.ok(answer.status >= 400 && answer.status < 500, `${body}: ${answer.status}`);
    }
    await raw.fence();
  }, http);

  onNodes("F8: browsers ask first: OPTIONS is answered for every address, for any origin, without credentials", async ({ world }) => {
    const app = world.first;
    for (const what of ["xhr_streaming", "xhr", "xhr_send"]) {
      const answer = await fetch(`${base(world.node(1), app)}/1/abcdefgh/${what}?${query}`, {
        method: "OPTIONS",
        headers: { Origin: "https://shop.example", "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type" },
      });
      assert.ok(answer.status === 200 || answer.status === 204, `${what}: ${answer.status}`);
      assert.ok(["*", "https://shop.example"].includes(answer.headers.get("access-control-allow-origin")));
      assert.match(answer.headers.get("access-control-allow-headers").toLowerCase(), /content-type|\*/);
      assert.match(answer.headers.get("access-control-allow-methods"), /POST/);
      assert.equal(answer.headers.get("access-control-allow-credentials"), null);
      assert.ok(Number(answer.headers.get("access-control-max-age")) >= 600, "asked once, not before each poll");
    }
  });

  everyWay("F8: every answer may be read by any origin, refusals too", async ({ world, transport }) => {
    const what = transport === "xhr_polling" ? "xhr" : "xhr_streaming";
    const headers = { Origin: "https://shop.example" };
    const good = await fetch(`${base(world.node(1), world.first)}/1/${Math.random().toString(36).slice(2, 10)}/${what}?${query}`, { method: "POST", headers });
    assert.ok(["*", "https://shop.example"].includes(good.headers.get("access-control-allow-origin")));
    await good.body.cancel();
    const lost = await fetch(`${base(world.node(1), world.first)}/1/nowhere1/xhr_send`, { method: "POST", headers, body: '["{}"]' });
    assert.ok(lost.status >= 400);
    assert.ok(["*", "https://shop.example"].includes(lost.headers.get("access-control-allow-origin")));
  }, http);

  everyWay("F9: refusals are c[code, reason] in a 200, so that pusher-js knows what to do", async ({ world, transport }) => {
    const what = transport === "xhr_polling" ? "xhr" : "xhr_streaming";
    const answer = await fetch(`${base(world.node(1), { key: "unknown" })}/1/abcdefgh/${what}?${query}`, { method: "POST" });
    assert.equal(answer.status, 200);
    const text = await answer.text();
    assert.match(text, /(^|\n)c\[4001,"[^"]*"\]\n$/);
  }, http);

  onNodes("F10: a session that reaches another node goes on: it is told where it lives, or is forwarded", async ({ world }) => {
    // Each request of this session goes to the next node, as behind a balancer that knows nothing.
    const app = world.first;
    const raw = open(world.node(0), app, "xhr_polling");
    let i = 0;
    const address = raw.address.bind(raw);
    raw.address = (...args) => {
      const there = address(...args);
      return raw.hostname ? there : there.replace(world.node(0).host, world.node(++i).host);
    };
    await raw.established();
    const channel = fresh("f10-");
    await raw.subscribe(app, channel);
    for (let n = 0; n < 6; n++) {
      await app.trigger(world.node(n), channel, "n", String(n));
      await raw.next("n", channel, (f) => f.data === String(n));
    }
    assert.equal(raw.opens, 1);
  }, { only: [3] });

  everyWay("F11, F12: a stream that the client recycles after 256 KiB goes on without another o, and loses nothing", async ({ world }) => {
    const app = world.first;
    const channel = fresh("f12-");
    const raw = await dial(world.node(1), app, "xhr_streaming");
    await raw.subscribe(app, channel);
    const large = "x".repeat(9_990);
    for (let n = 0; n < 100; n++) await app.trigger(world.node(0), channel, "n", `${n} ${large}`);
    for (let n = 0; n < 100; n++) await raw.next("n", channel, (f) => f.data.startsWith(`${n} `));
    assert.deepEqual(raw.frames.filter((f) => f.event === "n").map((f) => parseInt(f.data)), Array.from({ length: 100 }, (_, n) => n));
    assert.equal(raw.opens, 1);
    assert.ok(raw.responses.length > 2, `${raw.responses.length} responses`);
  }, { transports: ["xhr_streaming"] });

  everyWay("F12, F13: pusher-js itself recycles after 256 KiB: nothing is lost, and the server never ends a stream", async ({ world, transport }) => {
    const app = world.first;
    const pusher = await connected(world.node(1), app, transport);
    const before = pusher.connection.socket_id;
    const channel = await subscribed(pusher, fresh("f13-"));
    const large = "x".repeat(10_000);
    const wanted = 80; // 800 kB
    for (let n = 0; n < wanted; n += 8) await Promise.all(Array.from({ length: 8 }, (_, i) => app.trigger(world.node(0), channel.name, "n", { n: n + i, large })));
    for (let n = 0; n < wanted; n++) await heard(channel, "n", (e) => e.data.n === n);
    assert.equal(channel.inbox.all.filter((e) => e.event === "n").length, wanted, "each once");
    assert.equal(pusher.connection.socket_id, before);
    assert.equal(pusher.states.count((s) => s.error), 0);
  }, http);

  everyWay("F14: a poll ends with 200 after at least one chunk, and the next one goes on", async ({ world }) => {
    const app = world.first;
    const channel = fresh("f14-");
    const raw = await dial(world.node(1), app, "xhr_polling");
    await raw.subscribe(app, channel);
    for (let n = 0; n < 10; n++) {
      await app.trigger(world.node(0), channel, "n", String(n));
      await raw.next("n", channel, (f) => f.data === String(n));
    }
    assert.equal(raw.opens, 1);
    assert.ok(raw.responses.length >= 5 && raw.responses.every((r) => r.status === 200));
    assert.equal(raw.frames.filter((f) => f.unreadable !== undefined).length, 0, "every chunk ends in a line feed");
  }, { transports: ["xhr_polling"] });

  everyWay("F14: what comes between two polls waits, in order", async ({ world }) => {
    const app = world.first;
    const channel = fresh("f14-");
    const raw = await dial(world.node(1), app, "xhr_polling");
    await raw.subscribe(app, channel);
    const release = raw.hold();
    await app.trigger(world.node(0), channel, "n", "0"); // ends the poll in flight, if there is one
    for (let n = 1; n < 30; n++) await app.trigger(world.node(0), channel, "n", String(n));
    release();
    await raw.next("n", channel, (f) => f.data === "29");
    assert.deepEqual(raw.frames.filter((f) => f.event === "n").map((f) => f.data), Array.from({ length: 30 }, (_, n) => String(n)));
  }, { transports: ["xhr_polling"] });

  everyWay("F15: [] is life, and answered by a heartbeat or something else", async ({ world, transport }) => {
    const raw = await dial(world.node(1), world.first, transport);
    const chunks = raw.chunks.length;
    const answer = await raw.post("[]");
    assert.ok(answer.status === 204 || answer.status === 200);
    await poll("an answer to []", () => raw.chunks.length > chunks);
  }, http);

  everyWay("F16: no clean session is seen as a death: after ten of them streaming is still allowed", async ({ world, transport }) => {
    const pusher = await connected(world.node(1), world.first, transport);
    for (let n = 0; n < 5; n++) {
      pusher.disconnect();
      pusher.connect();
      await state(pusher, "connected");
    }
    assert.equal(pusher.connection.connection.transport.name, transport);
  }, http);

  everyWay("a session that nobody knows is answered so that pusher-js begins anew", async ({ world, transport }) => {
    // After a restart of the server: the client polls a session that is gone, and must not hang or get nothing for ever.
    const what = transport === "xhr_polling" ? "xhr" : "xhr_streaming";
    const raw = await dial(world.node(1), world.first, transport);
    await raw.leave();
    const again = open(world.node(1), world.first, transport, { session: `7/${Math.random().toString(36).slice(2, 10)}` });
    await again.established();
    assert.notEqual(again.socketId, raw.socketId, what);
    const send = await fetch(`${base(world.node(1), world.first)}/1/gone1234/xhr_send`, { method: "POST", body: '["{}"]' });
    assert.equal(send.status, 404);
  }, http);

  everyWay("a second receiver of the same session takes over from the first", async ({ world }) => {
    const app = world.first;
    const channel = fresh("two-");
    const raw = await dial(world.node(1), app, "xhr_streaming");
    await raw.subscribe(app, channel);
    const second = await fetch(`${base(world.node(1), app)}/${raw.session}/xhr_streaming?${query}`, { method: "POST" });
    assert.equal(second.status, 200);
    await raw.close("the first stream to end");
    await app.trigger(world.node(0), channel, "after", "1");
    let text = "";
    for await (const part of second.body) if ((text += Buffer.from(part).toString()).includes('"after\\"')) break;
    assert.equal(/(^|\n)o/.test(text), false, "it goes on, it does not begin anew");
  }, { transports: ["xhr_streaming"] });

  everyWay("a session whose client never comes back is over: presence shows it", async ({ world, transport }) => {
    const app = world.first;
    const channel = fresh("presence-");
    const witness = await dial(world.node(2), app);
    await witness.subscribe(app, channel, { user_id: "witness" });
    const raw = await dial(world.node(1), app, transport);
    await raw.subscribe(app, channel, { user_id: "ada" });
    await witness.next("pusher_internal:member_added", channel);
    raw.drop();
    await witness.next("pusher_internal:member_removed", channel);
  }, http);

  onNodes("a fallback session by hand, byte by byte, over HTTP/1.1 in pieces", async ({ world }) => {
    const [host, port] = world.node(0).host.split(":");
    const socket = tcp(Number(port), host);
    const path = `/pusher/app/${world.first.key}/9/${Math.random().toString(36).slice(2, 10)}/xhr?${query}&t=1&n=1`;
    for (const part of [`POST ${path} HTTP/1.1\r\n`, `Host: ${world.node(0).host}\r\n`, "Content-Type: application/json\r\nContent-Length: 0\r\n", "\r\n"]) socket.write(part);
    let text = "";
    await new Promise((resolve, reject) => {
      socket.on("data", (data) => {
        text += data;
        if (/o(\{[^\n]*\})?\n[^]*connection_established[^]*\n/.test(text)) resolve();
      });
      socket.on("error", reject);
      socket.on("close", () => reject(new Error(`closed after ${text}`)));
    });
    assert.match(text, /^HTTP\/1\.1 200/);
    socket.destroy();
  });
});
