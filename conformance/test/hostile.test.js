// Input that means harm, from outside and over every door that Pusher's clients use: memory stays bounded, the answer is a
// proper one, and somebody else is served meanwhile.
import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { connect as tcp } from "node:net";
import { after, before, describe, test } from "node:test";

import { signed } from "../harness/app.js";
import { Installation } from "../harness/petrel.js";
import { clientQuery, dial, open } from "../harness/raw.js";
import { poll, within } from "../harness/wait.js";
import { fresh } from "../harness/world.js";

/** What all attacks together may cost in memory. The heap of a busy server breathes; a leak of each attack would not fit. */
const mayGrow = 256 << 20;

let world, node, app;

/** Somebody else: while an attack goes on, an event goes round again and again. */
async function meanwhile(attack) {
  const channel = fresh("witness-");
  const raw = await dial(node, app);
  await raw.subscribe(app, channel);
  let rounds = 0;
  let peak = 0;
  let on = true;
  const serve = (async () => {
    do {
      await app.trigger(node, channel, "round", String(rounds));
      await raw.next("round", channel, (f) => f.data === String(rounds));
      rounds++;
      peak = Math.max(peak, node.memory());
    } while (on);
  })();
  try {
    await Promise.race([attack(), serve.then(() => new Promise(() => {}))]);
  } finally {
    on = false;
  }
  await serve;
  await raw.leave();
  assert.ok(rounds > 0);
  assert.ok(node.running, node.output);
  assert.ok(peak < before.memory + mayGrow, `memory grew from ${before.memory >> 20} MiB to ${peak >> 20} MiB`);
}

/** A WebSocket without a library: what a library would never write. */
async function bare(path = `/app/${app.key}?${clientQuery}`) {
  const [host, port] = node.host.split(":");
  const socket = tcp(Number(port), host);
  let received = Buffer.alloc(0);
  const ended = new Promise((resolve) => {
    socket.on("error", () => {});
    socket.on("close", resolve);
  });
  let check = () => {};
  socket.on("data", (data) => {
    received = Buffer.concat([received, data]).subarray(-65_536);
    check();
  });
  const until = (what, match) => within(what, new Promise((resolve, reject) => {
    check = () => match(received) && resolve();
    ended.then(() => (match(received) ? resolve() : reject(new Error(`it ended before ${what}`))));
    check();
  }), { explain: () => received.toString("latin1").slice(-2000) });
  socket.write(`GET ${path} HTTP/1.1\r\nHost: ${node.host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: ${randomBytes(16).toString("base64")}\r\n\r\n`);
  await until("the greeting", (r) => r.includes("connection_established"));
  return {
    socket,
    ended,
    until,
    /** One frame, with whatever header is wanted. */
    frame(opcode, payload, { fin = true, masked = true, rsv = 0, length = payload.length } = {}) {
      const head = [(fin ? 0x80 : 0) | rsv | opcode];
      if (length < 126) head.push((masked ? 0x80 : 0) | length);
      else if (length < 65_536) head.push((masked ? 0x80 : 0) | 126, length >> 8, length & 255);
      else {
        const wide = Buffer.alloc(8);
        wide.writeBigUInt64BE(BigInt(length));
        head.push((masked ? 0x80 : 0) | 127, ...wide);
      }
      const mask = randomBytes(4);
      const body = masked ? Buffer.concat([mask, Buffer.from(payload.map((b, i) => b ^ mask[i % 4]))]) : payload;
      return new Promise((resolve) => socket.write(Buffer.concat([Buffer.from(head), body]), () => resolve()));
    },
    /** The code of the close frame that it was sent. */
    async closed() {
      const code = () => {
        for (let i = received.length - 4; i >= 0; i--) {
          if (received[i] === 0x88 && (received[i + 1] & 0x80) === 0 && i + 2 + received[i + 1] === received.length) return received.readUInt16BE(i + 2);
        }
        return undefined;
      };
      await until("the close frame", () => code() !== undefined);
      return code();
    },
  };
}

describe("hostile input", { concurrency: 1, timeout: 600_000 }, () => {
  before(async () => {
    world = await Installation.start(1);
    node = world.node(0);
    app = await world.app();
    await meanwhileOnce();
    before.memory = node.memory();
  });
  after(() => world?.stop());

  /** Warms the server up, so that the first attack does not pay for it. */
  async function meanwhileOnce() {
    const raws = await Promise.all(Array.from({ length: 50 }, () => dial(node, app)));
    const channel = fresh("warm-");
    await Promise.all(raws.map((r) => r.subscribe(app, channel)));
    await app.trigger(node, channel, "warm", "x".repeat(10_000));
    await Promise.all(raws.map((r) => r.next("warm")));
    for (const raw of raws) raw.drop();
  }

  for (const [what, name] of [["different channels", (i) => `flood-${i}-${"x".repeat(150)}`], ["one channel", () => "flood"], ["bad names", (i) => `b d ${i}`], ["forged private channels", (i) => `private-${i}`]]) {
    test(`100,000 subscribe frames on one socket: ${what}`, async () => {
      await meanwhile(async () => {
        const raw = await dial(node, app);
        const { socket } = raw;
        let answers = 0;
        raw.inbox.put = () => answers++; // 100,000 answers are not kept here either
        for (let i = 0; i < 100_000 && socket.readyState === 1; i++) {
          socket.send(JSON.stringify({ event: "pusher:subscribe", data: { channel: name(i), auth: "" } }));
          if (i % 1_000 === 999) await new Promise(setImmediate);
        }
        // The server may throw it out, or read it as slowly as it likes: then the flood waits in its sender's own socket.
        await poll("the server to have answered some thousand, or to have had enough", () => answers > 2_500 || socket.readyState !== 1);
        raw.drop();
      });
    });
  }

  test("a flood of pings, of events and of signatures on one socket", async () => {
    await meanwhile(async () => {
      for (const frame of ['{"event":"pusher:ping","data":{}}', '{"event":"client-x","channel":"private-a","data":{}}', '{"event":"pusher:signin","data":{"auth":"a:b","user_data":"{\\"id\\":\\"1\\"}"}}', '{"event":"nonsense"}']) {
        const raw = await dial(node, app);
        let answers = 0;
        raw.inbox.put = () => answers++;
        for (let i = 0; i < 50_000 && raw.socket.readyState === 1; i++) {
          raw.socket.send(frame);
          if (i % 1_000 === 999) await new Promise(setImmediate);
        }
        await poll("the server to have answered some thousand, or to have had enough", () => answers > 2_500 || raw.socket.readyState !== 1);
        raw.drop();
      }
      const pinger = await bare();
      for (let i = 0; i < 50_000 && !pinger.socket.destroyed; i++) {
        void pinger.frame(9, Buffer.from("ping"));
        if (i % 1_000 === 999) await new Promise(setImmediate);
      }
      pinger.socket.destroy();
    });
  });

  test("frames that no client may send are closed with the code of RFC 6455", async () => {
    await meanwhile(async () => {
      const text = Buffer.from('{"event":"pusher:ping","data":{}}');
      const cases = [
        ["not masked", [1002], (w) => w.frame(1, text, { masked: false })],
        ["a reserved bit", [1002], (w) => w.frame(1, text, { rsv: 0x40 })],
        ["an unknown opcode", [1002, 1003], (w) => w.frame(3, text)],
        ["a continuation of nothing", [1002], (w) => w.frame(0, text)],
        ["a text inside a fragmented text", [1002], async (w) => {
          await w.frame(1, text, { fin: false });
          await w.frame(1, text);
        }],
        ["a fragmented ping", [1002], (w) => w.frame(9, text.subarray(0, 5), { fin: false })],
        ["a ping of 126 bytes", [1002], (w) => w.frame(9, Buffer.alloc(126))],
        ["text that is no UTF-8", [1007], (w) => w.frame(1, Buffer.from([0x22, 0xff, 0xfe, 0x22]))],
        ["a length of 2^40", [1009], (w) => w.frame(1, Buffer.alloc(16), { length: 2 ** 40 })],
        ["a length with its highest bit", [1002, 1009], (w) => w.frame(1, Buffer.alloc(16), { length: Number.MAX_SAFE_INTEGER })],
        ["a frame of 4 MB", [1009], (w) => w.frame(1, Buffer.alloc(4 << 20, 0x61))],
        ["fragments without an end", [1009], async (w) => {
          await w.frame(1, Buffer.alloc(1024, 0x61), { fin: false });
          for (let i = 0; i < 4096 && !w.socket.destroyed; i++) await w.frame(0, Buffer.alloc(1024, 0x61), { fin: false });
        }],
        ["a close with half a code", [1002], (w) => w.frame(8, Buffer.from([3]))],
        ["a close with a forbidden code", [1002], (w) => w.frame(8, Buffer.from([3, 0xed]))],
      ];
      for (const [what, codes, attack] of cases) {
        const wire = await bare();
        const code = wire.closed();
        code.catch(() => {});
        await Promise.race([attack(wire), wire.ended]);
        // A peer that is thrown out while it still writes may lose the close frame to a reset: then it has ended all the same.
        const seen = await code.catch((error) => (/4 MB|without an end/.test(what) ? undefined : Promise.reject(new Error(`${what}: ${error.message}`))));
        if (seen !== undefined) assert.ok(codes.includes(seen), `${what}: closed with ${seen}`);
        await within(`${what}: the end`, wire.ended.then(() => {}), { ms: 60_000 }).catch(() => wire.socket.destroy());
      }
    });
  });

  test("one text in a thousand fragments, with pings between them, is one text", async () => {
    const wire = await bare();
    const text = Buffer.from(JSON.stringify({ event: "pusher:ping", data: { padding: "x".repeat(1000) } }));
    for (let i = 0; i < text.length; i++) {
      await wire.frame(i === 0 ? 1 : 0, text.subarray(i, i + 1), { fin: i === text.length - 1 });
      if (i % 100 === 50) await wire.frame(9, Buffer.from("between"));
    }
    await wire.until("the pong", (r) => r.includes("pusher:pong"));
    wire.socket.destroy();
  });

  test("deep, wide and odd JSON", async () => {
    await meanwhile(async () => {
      const odd = [
        "[".repeat(5_000), `{"event":${"[".repeat(2_000)}${"]".repeat(2_000)}}`, `{"event":"pusher:subscribe","data":${'{"a":'.repeat(1_500)}1${"}".repeat(1_500)}}`,
        '{"event":"pusher:subscribe","event":"pusher:ping","data":{"channel":"a","channel":"b d"}}', '{"event":"\\ud800","data":{}}', '{"event":"pusher:subscribe","data":{"channel":"\\u0000"}}',
        `{"event":"pusher:subscribe","data":{"channel":1e400}}`, '{"event":null,"data":null,"channel":null}',
      ];
      for (const text of odd) {
        const raw = await dial(node, app);
        raw.text(text);
        await raw.inbox.take(`an answer to ${text.slice(0, 40)}`, (f) => /^pusher/.test(f.event ?? ""));
        raw.drop();
      }
    });
  });

  test("channel names, event names and user ids from a fuzzer", async () => {
    await meanwhile(async () => {
      let raw = await dial(node, app);
      let seed = 20261121;
      const random = (n) => ((seed = (Math.imul(seed, 1103515245) + 12345) >>> 0) >>> 8) % n;
      const alphabet = ["a", "-", "_", "#", "private-", "presence-", "cache-", "encrypted-", "server-to-user-", " ", "/", "..", "%00", "\u0000", "ä", "🦆", "\u202e", "'", '"', "\\", "\n", "{}", "client-", "pusher:"];
      const word = () => Array.from({ length: 1 + random(12) }, () => alphabet[random(alphabet.length)]).join("");
      for (let i = 0; i < 1_500; i++) {
        if (i % 5 === 4) await Promise.race([raw.fence().catch(() => {}), raw.closed]);
        if (raw.inbox.ended !== undefined) raw = await dial(node, app); // too much nonsense on one connection: that is an answer
        const channel = word();
        const kind = random(4);
        if (kind === 0) raw.send("pusher:subscribe", { channel, auth: app.auth(raw.socketId, channel) });
        if (kind === 1) raw.send("pusher:subscribe", { channel, auth: app.auth(raw.socketId, channel, word()), channel_data: word() });
        if (kind === 2) raw.send(word(), word(), channel);
        if (kind === 3) raw.send("pusher:unsubscribe", { channel });
      }
      for (let i = 0; i < 200; i++) {
        const { status } = await app.call(node, "POST", "/events", { body: { name: word(), data: word(), channels: [word(), word()] } });
        assert.ok(status === 200 || (status >= 400 && status < 500), String(status));
      }
      raw.drop();
    });
  });

  test("a subscriber that reads nothing is let go, and costs no memory", async () => {
    await meanwhile(async () => {
      const channel = fresh("slow-");
      const wire = await bare();
      await wire.frame(1, Buffer.from(JSON.stringify({ event: "pusher:subscribe", data: { channel, auth: "" } })));
      await wire.until("the subscription", (r) => r.includes("subscription_succeeded"));
      wire.socket.pause();
      let gone = false;
      const reader = await dial(node, app);
      await reader.subscribe(app, channel);
      const large = "x".repeat(10_000);
      for (let i = 0; i < 4_000 && !gone; i++) { // 40 MB
        await app.trigger(node, channel, "n", `${i} ${large}`);
        await reader.next("n", channel, (f) => f.data.startsWith(`${i} `));
        reader.inbox.all.length = 0;
        if (i % 100 === 99) {
          const { json } = await app.call(node, "GET", "/channels", { query: {} });
          assert.ok(channel in json.channels);
        }
        if (i > 1_200) gone = await alone(channel);
      }
      assert.ok(gone, "it was never let go");
      wire.socket.destroy();
      reader.drop();
    });
  });

  /** Whether a channel has one subscriber left. */
  async function alone(channel) {
    const { json } = await app.call(node, "GET", `/channels/${channel}`, { query: { info: "subscription_count" } });
    return json?.subscription_count === 1;
  }

  test("slowloris: heads and bodies that never end, on every address, are ended by the server", async () => {
    await meanwhile(async () => {
      const [host, port] = node.host.split(":");
      const path = `/apps/${app.id}/events`;
      const body = JSON.stringify({ name: "e", data: "x", channels: ["a"] });
      const { params } = signed(app, "POST", path, { body });
      const starts = [
        `GET /app/${app.key}?${clientQuery} HTTP/1.1\r\nHost: x\r\nX-Slow: `,
        `POST ${path}?${new URLSearchParams(params)} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: ${body.length}\r\n\r\n{"na`,
        `POST ${path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{"na`,
        `POST /pusher/app/${app.key}/1/slowslow/xhr_streaming?${clientQuery} HTTP/1.1\r\nHost: x\r\nContent-Le`,
        `POST /pusher/app/${app.key}/1/slowslow/xhr_send HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n["`,
        `GET /apps/${app.id}/channels HTTP/1.1\r\n`,
        "G",
        "",
      ];
      const ends = [];
      for (const start of starts) {
        for (let i = 0; i < 25; i++) {
          const socket = tcp(Number(port), host);
          socket.on("error", () => {});
          socket.write(start || "\r\n");
          socket.resume();
          const drip = setInterval(() => socket.write("a"), 1_000);
          ends.push(new Promise((resolve) => socket.on("close", () => {
            clearInterval(drip);
            resolve();
          })));
        }
      }
      await within("every slow connection to be ended", Promise.all(ends), { ms: 120_000 });
    });
  });

  test("WebSockets whose client never finishes, or never says a word, are counted and bounded", async () => {
    await meanwhile(async () => {
      const raws = await Promise.all(Array.from({ length: 300 }, () => dial(node, app)));
      for (const raw of raws) raw.socket._socket.write(Buffer.from([0x81])); // half a head
      const after = await dial(node, app);
      await after.fence();
      for (const raw of raws) raw.drop();
      await after.leave();
    });
  });

  test("fallback sessions that are opened and left, and bodies too large for them", async () => {
    await meanwhile(async () => {
      const base = `${node.url}/pusher/app/${app.key}`;
      for (let i = 0; i < 500; i += 25) {
        await Promise.all(Array.from({ length: 25 }, async () => {
          const answer = await fetch(`${base}/1/${randomBytes(4).toString("hex")}/xhr?${clientQuery}`, { method: "POST" });
          await answer.body?.cancel();
        }));
      }
      const raw = await dial(node, app, "xhr_polling");
      const large = await fetch(`${base}/${raw.session}/xhr_send`, { method: "POST", body: JSON.stringify(["x".repeat(5_000_000)]) }).catch(() => ({ status: 413 }));
      assert.ok(large.status === 413 || large.status === 400, String(large.status));
      for (const path of ["/1/../xhr", "/x/abcdefgh/xhr", "/1/abcdefgh/eventsource", "/1/abcdefgh", `/1/${"a".repeat(5_000)}/xhr`, "/1//xhr"]) {
        const answer = await fetch(`${base}${path}?${clientQuery}`, { method: "POST", redirect: "manual" });
        assert.ok(answer.status < 500, `${path.slice(0, 40)}: ${answer.status}`);
        await answer.body?.cancel();
      }
      raw.drop();
    });
  });

  test("a session's name is no secret, but one key's session is not another's", async () => {
    const other = await world.app();
    const raw = await dial(node, app, "xhr_polling");
    const stolen = await fetch(`${node.url}/pusher/app/${other.key}/${raw.session}/xhr_send`, { method: "POST", body: '["{\\"event\\":\\"pusher:ping\\",\\"data\\":{}}"]' });
    assert.equal(stolen.status, 404);
    await raw.fence();
  });

  test("signatures that are replayed: to another socket, another channel, another request, or too late", async () => {
    const [mine, theirs] = await Promise.all([dial(node, app), dial(node, app)]);
    const channel = fresh("private-");
    const good = app.subscribe(mine.socketId, channel);
    await mine.subscribe(app, channel);
    await theirs.refused(good);
    await mine.leave();
    const again = await dial(node, app);
    await again.refused(good);
    const user = JSON.stringify({ id: "ada" });
    again.send("pusher:signin", { auth: app.signin(theirs.socketId, user), user_data: user });
    await again.next("pusher:error");
    // What was signed for one address or method opens no other.
    const path = `/apps/${app.id}/channels`;
    const { params } = signed(app, "GET", path);
    for (const [method, where] of [["GET", `/apps/${app.id}/channels/x`], ["POST", `/apps/${app.id}/users/x/terminate_connections`], ["POST", `/apps/${app.id}/events`]]) {
      const answer = await fetch(`${node.url}${where}?${new URLSearchParams(params)}`, { method });
      assert.equal(answer.status, 401, `${method} ${where}`);
    }
  });

  test("after all of it, the memory is near what it was, and nothing is left open", async () => {
    const raw = open(node, app);
    await raw.established();
    await raw.fence();
    await raw.leave();
    let left;
    await poll("the connections to be gone", async () => {
      left = Object.keys((await app.call(node, "GET", "/channels")).json.channels);
      return left.length === 0;
    }, { explain: () => left.map((name) => name.slice(0, 40)).join(), ms: 240_000 });
    assert.ok(node.memory() < before.memory + mayGrow);
  });
});
