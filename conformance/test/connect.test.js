// pusher.md §1 and §2: how a connection begins, and what keeps it alive.
import assert from "node:assert/strict";
import { describe } from "node:test";

import { sdk } from "../harness/backend.js";
import { dial, open } from "../harness/raw.js";
import { everyWay, fresh, onNodes } from "../harness/world.js";

describe("§1 connect", { concurrency: 8 }, () => {
  everyWay("P1, P4, P5, P6: the address of pusher-js 8.6 is greeted with a socket id and an activity timeout, in a string", async ({ world, size, transport }) => {
    const app = world.first;
    const raw = await dial(world.node(size - 1), app, transport);
    const [hello] = raw.frames;
    assert.deepEqual(Object.keys(hello).sort(), ["data", "event"]);
    assert.equal(hello.event, "pusher:connection_established");
    assert.equal(typeof hello.data, "string", "P4: data is a string");
    assert.deepEqual(Object.keys(raw.hello).sort(), ["activity_timeout", "socket_id"]);
    assert.match(raw.socketId, /^\d+\.\d+$/, "P6");
    assert.ok(Number.isInteger(raw.hello.activity_timeout) && raw.hello.activity_timeout > 0, "P5");
    await raw.leave();
  });

  onNodes("compression is agreed to where it is allowed, and a client reads what was compressed", async ({ world, size }) => {
    const app = world.first;
    const raw = await dial(world.node(size - 1), app, "ws", { perMessageDeflate: true });
    assert.equal(raw.socket.extensions, size > 1 ? "permessage-deflate" : "");
    const channel = fresh("large-");
    await raw.subscribe(app, channel);
    const text = "grüße 🦆 ".repeat(400);
    await sdk(world.node(0), app).trigger(channel, "news", { text });
    assert.deepEqual(JSON.parse((await raw.next("news", channel)).data), { text });
    await raw.leave();
  });

  onNodes("P1: the order of the parameters, and unknown ones, do not matter", async ({ world }) => {
    const raw = await dial(world.node(0), world.first, "ws", { query: "flash=false&x=1&version=8.6.0&client=js&protocol=7" });
    await raw.leave();
  });

  everyWay("P2: protocols 4 to 7 are spoken, older ones closed with 4007", async ({ world, transport }) => {
    for (const protocol of [4, 5, 6, 7]) {
      const raw = await dial(world.node(0), world.first, transport, { query: `protocol=${protocol}&client=js&version=8.6.0` });
      await raw.leave();
    }
    for (const protocol of [1, 2, 3, 8, 70]) {
      const raw = open(world.node(0), world.first, transport, { query: `protocol=${protocol}&client=js&version=8.6.0` });
      assert.equal((await raw.close()).code, 4007, `protocol ${protocol}`);
    }
  });

  everyWay("P2: without a protocol the version tells it; without both it is 4008; an unreadable one is 4006", async ({ world, transport }) => {
    const inferred = await dial(world.node(0), world.first, transport, { query: "client=js&version=8.6.0" });
    await inferred.leave();
    const nothing = open(world.node(0), world.first, transport, { query: "" });
    assert.equal((await nothing.close()).code, 4008);
    const unreadable = open(world.node(0), world.first, transport, { query: "client=js&version=eight" });
    assert.equal((await unreadable.close()).code, 4006);
  });

  onNodes("P3: frames are text; a binary one ends the connection", async ({ world }) => {
    const raw = await dial(world.node(0), world.first);
    raw.socket.send(Buffer.from(JSON.stringify({ event: "pusher:ping", data: {} })), { binary: true });
    const { code } = await raw.close();
    assert.ok(code === 1003 || code === 4200 || code === 1008, `closed with ${code}`);
    assert.equal(raw.binary, 0, "the server sends no binary frame");
  });

  everyWay("P3: what is no event is answered with an error, and the connection goes on", async ({ world, transport }) => {
    const raw = await dial(world.node(0), world.first, transport);
    for (const text of ["nonsense", "[1,2]", '"text"', "{}", '{"event":7}', '{"event":"pusher:subscribe"}', '{"event":"pusher:subscribe","data":{"channel":7}}']) {
      raw.text(text);
      const error = await raw.next("pusher:error");
      assert.equal(typeof error.data.message, "string", text);
    }
    await raw.fence();
  });

  everyWay("P3: an event that the server does not know is answered with an error or left alone, and the connection goes on", async ({ world, transport }) => {
    const raw = await dial(world.node(0), world.first, transport);
    raw.send("pusher:no-such-thing", {});
    raw.send("something", {});
    await raw.fence();
  });

  everyWay("P9: every connection has a socket id of its own", async ({ world, transport }) => {
    const raws = await Promise.all(Array.from({ length: 6 }, (_, i) => dial(world.node(i), world.first, transport)));
    assert.equal(new Set(raws.map((r) => r.socketId)).size, raws.length);
    for (const raw of raws) raw.drop();
  });
});

describe("§2 heartbeat", { concurrency: 8 }, () => {
  everyWay("H3: pusher:ping is answered with pusher:pong", async ({ world, transport }) => {
    const raw = await dial(world.node(0), world.first, transport);
    for (const data of [{}, "", "{}"]) {
      raw.send("pusher:ping", data);
      assert.deepEqual(await raw.next("pusher:pong"), { event: "pusher:pong", data: {} });
    }
    raw.text('{"event":"pusher:ping"}');
    await raw.next("pusher:pong");
  });

  onNodes("H3: a ping of the WebSocket protocol is answered with its payload", async ({ world }) => {
    const raw = await dial(world.node(0), world.first);
    const pong = new Promise((resolve) => raw.socket.once("pong", (data) => resolve(String(data))));
    raw.socket.ping("petrel");
    assert.equal(await pong, "petrel");
  });

  everyWay("H1, H4: a silent connection is asked by the server, and an answer keeps it", async ({ world, transport }) => {
    const app = await world.app({ activity_timeout: 5 });
    const raw = await dial(world.node(0), app, transport);
    assert.equal(raw.hello.activity_timeout, 5, "H6: what the app is set to, said in the handshake");
    let asked = 0;
    if (transport === "ws") raw.socket.on("ping", () => asked++);
    const began = Date.now();
    // It answers pings of either kind (ws does so by itself), and says nothing else.
    while (Date.now() - began < 18_000) {
      const winner = await Promise.race([
        raw.inbox.take("pusher:ping", (f) => f.event === "pusher:ping").then(() => "ping", () => "closed"),
        raw.closed.then(() => "closed"),
        new Promise((resolve) => setTimeout(resolve, 500, "quiet")),
      ]);
      if (winner === "ping") {
        asked++;
        raw.send("pusher:pong", {});
      }
      assert.notEqual(winner, "closed", raw.inbox.story());
    }
    assert.ok(asked > 0 || raw.heartbeats > 0, "the server asked");
    await raw.fence();
  }, { only: [1] });

  onNodes("H4, §3 4201: a connection that answers no ping is closed with 4201", async ({ world }) => {
    const app = await world.app({ activity_timeout: 5 });
    const raw = await dial(world.node(0), app, "ws", { autoPong: false });
    assert.equal((await raw.close("the silent connection to be closed")).code, 4201);
  }, { only: [1] });

  everyWay("H6: the handshake is the only place where an activity timeout is told", async ({ world, transport }) => {
    const raw = await dial(world.node(0), world.first, transport);
    await raw.subscribe(world.first, fresh("h6-"));
    await raw.fence();
    assert.equal(JSON.stringify(raw.frames.slice(1)).includes("activity_timeout"), false);
  });
});
