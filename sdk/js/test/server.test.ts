// Against a server on a real socket that misbehaves.
import assert from "node:assert/strict";
import { test, type TestContext } from "node:test";
import { WebSocket } from "ws";
import { Petrel, type PetrelOptions } from "../src/client.js";
import { systemClock } from "../src/clock.js";
import { PetrelError } from "../src/errors.js";
import type { WebSocketConstructor } from "../src/transport.js";
import type { Page, RoomEvent } from "../src/types.js";
import { FakeServer } from "./fake/server.js";
import { FakeClock, until } from "./helpers.js";

const Socket = WebSocket as unknown as WebSocketConstructor;

async function start(t: TestContext, options: Partial<PetrelOptions> = {}) {
  const server = new FakeServer();
  const url = await server.listen();
  server.addRoom({ id: "lobby" });
  const client = new Petrel({
    url, token: server.token("ada"), WebSocket: Socket,
    clock: { ...systemClock, random: () => 0 }, // no jitter: as fast as allowed
    ...options,
  });
  t.after(async () => {
    client.close();
    await server.close();
  });
  return { server, client, url, live: () => until(() => client.state.phase === "live") };
}

test("two clients talk", async (t) => {
  const { server, client, url, live } = await start(t);
  const bob = new Petrel({ url, token: server.token("bob"), WebSocket: Socket });
  t.after(() => bob.close());
  const heard: string[] = [];
  bob.subscribe("lobby", { after: 0 }, { event: (e) => void (e.type === "message.new" && heard.push(e.data.text)) });
  await Promise.all([client.connect(), bob.connect(), live()]);
  assert.equal(client.me, "ada");
  await client.send("lobby", { text: "hello" }).acknowledged;
  await until(() => heard.length === 1);
  assert.deepEqual(heard, ["hello"]);
});

test("a storm of cuts, lost answers, double answers, gaps and repeats: everything once and in order", async (t) => {
  const { server, client, url, live } = await start(t);
  const got: RoomEvent[] = [];
  const reader = new Petrel({ url, token: server.token("bob"), WebSocket: Socket, clock: { ...systemClock, random: () => 0 } });
  t.after(() => reader.close());
  reader.subscribe("lobby", { after: 0 }, { event: (e) => void got.push(e) });
  await Promise.all([client.connect(), reader.connect(), live()]);
  for (let seq = 5; seq < 400; seq += 11) server.swallow.add(seq);
  for (let seq = 3; seq < 400; seq += 7) server.twice.add(seq);
  const wanted: string[] = [];
  const sends: Promise<unknown>[] = [];
  for (let i = 0; i < 200; i++) {
    if (i % 20 === 3) server.mishaps.push({ kind: "drop_after" });
    else if (i % 20 === 9) server.mishaps.push({ kind: "drop_before" });
    else if (i % 20 === 14) server.mishaps.push({ kind: "ack_twice" });
    else server.mishaps.push(...(i % 50 === 17 ? [{ kind: "error", code: "busy", retry_after_ms: 1 } as const] : []));
    wanted.push(`text ${i}`);
    const sending = client.send("lobby", { text: `text ${i}` });
    sends.push(sending.acknowledged);
    if (i % 10 === 0) {
      await sending.acknowledged;
      if (i % 40 === 20) server.drop(i % 80 === 20 ? undefined : 4200);
    }
  }
  await Promise.all(sends);
  const room = server.rooms.get("lobby")!;
  assert.deepEqual([...room.messages.values()].map((m) => m.text), wanted);
  server.post("lobby", "bob", "the end");
  await until(() => got.some((e) => e.type === "message.new" && e.data.text === "the end"));
  assert.deepEqual(got.map((e) => e.seq), room.events.map((e) => e.seq));
  const { delivery, connections } = reader.diagnostics();
  assert.ok(delivery.duplicates > 0 && delivery.gaps > 0 && connections.lives > 1, JSON.stringify({ delivery, connections }));
});

test("refused before the upgrade with 503: not before Retry-After, then live", async (t) => {
  const clock = new FakeClock();
  const { server, client, live } = await start(t, { clock });
  server.refuse = { status: 503, code: "overloaded", retryAfter: 8 };
  await client.connect();
  await until(() => client.state.phase === "waiting");
  server.refuse = undefined;
  await clock.advance(7_999);
  assert.equal(server.requests.filter((r) => r.method === "UPGRADE").length, 1);
  await clock.advance(1);
  await live();
  assert.equal(server.requests.at(-1)!.url, "/v1/connect?attempt=1");
  const [failed] = client.diagnostics().attempts;
  assert.deepEqual([failed?.transport, failed?.status, failed?.was_live], ["websocket", 503, false]);
});

test("lists are read page by page, up to the limit asked for", async (t) => {
  const { server, client } = await start(t);
  for (let i = 0; i < 1_100; i++) server.addRoom({ id: `r${i}`, members: i < 10 ? ["ada"] : [] });
  assert.equal((await client.rooms()).length, 10);
  const all = await client.rooms({ open: true, limit: 5_000 });
  assert.equal(new Set(all.map((r) => r.id)).size, 1_101);
  assert.deepEqual((await client.rooms({ open: true, limit: 7 })).map((r) => r.id), all.slice(0, 7).map((r) => r.id));
  assert.deepEqual(server.requests.map((r) => r.url), [
    "/v1/rooms?limit=500", "/v1/rooms?limit=500&open=true", "/v1/rooms?limit=500&after=r498&open=true", "/v1/rooms?limit=500&after=r998&open=true",
    "/v1/rooms?limit=7&open=true",
  ]);
});

test("an expired token is replaced on the socket and over HTTP, by one call of the provider each", async (t) => {
  let calls = 0;
  const made: { server?: FakeServer } = {};
  const { server, client, live } = await start(t, { token: () => (calls++, made.server!.token("ada")) });
  made.server = server;
  await client.connect();
  await live();
  assert.equal(calls, 1);
  server.expiredBefore = Date.now() + 1;
  await until(() => Date.now() > server.expiredBefore);
  const [a, b] = await Promise.all([client.rooms({ open: true }), client.rooms({ open: true })]);
  assert.deepEqual([a.length, b.length, calls], [1, 1, 2]);
  server.expiredBefore = Date.now() + 1;
  await until(() => Date.now() > server.expiredBefore);
  server.drop(4002, "token_expired");
  await until(() => client.diagnostics().connections.lives === 2);
  assert.equal(calls, 3);
});

test("a token that is no good stops with its code", async (t) => {
  const { client } = await start(t, { token: "nonsense" });
  await client.connect();
  await until(() => client.state.phase === "stopped");
  assert.equal(client.state.phase === "stopped" && client.state.error.code, "invalid_token");
});

test("reads carry the position of our own writes", async (t) => {
  const { server, client, live } = await start(t);
  await client.connect();
  await live();
  await client.rooms();
  assert.equal(server.requests.at(-1)!.headers["petrel-position"], undefined);
  await client.send("lobby", { text: "hi" }).acknowledged;
  await client.messages("lobby");
  assert.equal(server.requests.at(-1)!.headers["petrel-position"], "plobby3");
  const message = await client.editMessage("lobby", [...server.rooms.get("lobby")!.messages.keys()][0]!, { text: "ho" });
  assert.equal(message.text, "ho");
  await client.messages("lobby");
  assert.notEqual(server.requests.at(-1)!.headers["petrel-position"], "plobby3");
});

test("a position of another epoch is dropped, once", async (t) => {
  const { server, client, live } = await start(t);
  await client.connect();
  await live();
  await client.send("lobby", { text: "hi" }).acknowledged;
  server.httpMishaps.push({ status: 409, code: "epoch_changed" });
  const page = await client.messages("lobby");
  assert.equal(page.messages.length, 1);
  assert.equal(server.requests.at(-1)!.headers["petrel-position"], undefined);
});

test("HTTP: passing failures are retried with the same key and marked; refusals are not retried", async (t) => {
  const { server, client } = await start(t);
  server.httpMishaps.push({ status: 503, code: "no_leader", retryAfter: 0 }, { status: 503, code: "unknown_outcome" });
  const room = await client.createRoom({ kind: "open", name: "New" });
  assert.equal(room.name, "New");
  const tries = server.requests.filter((r) => r.method === "POST");
  assert.deepEqual(tries.map((r) => r.headers["petrel-retry"]), [undefined, "1", "2"]);
  assert.equal(new Set(tries.map((r) => r.headers["idempotency-key"])).size, 1);
  server.httpMishaps.push({ status: 403, code: "forbidden" });
  await assert.rejects(client.rooms(), (e: unknown) => e instanceof PetrelError && e.code === "forbidden" && e.status === 403);
  assert.equal(server.requests.filter((r) => r.method === "GET").length, 1);
});

test("HTTP: Retry-After is honoured, the tries are bounded, and a proxy's page is no crash", async (t) => {
  const clock = new FakeClock();
  const { server, client } = await start(t, { clock });
  server.refuse = { status: 503, code: "overloaded", retryAfter: 5 };
  const failed = client.rooms().then(() => undefined, (e: unknown) => e);
  for (const n of [1, 2, 3]) {
    await until(() => server.requests.length === n && clock.waiting === 1);
    await clock.advance(4_999);
    assert.equal(server.requests.length, n);
    await clock.advance(1);
  }
  const error = await failed;
  assert.ok(error instanceof PetrelError && error.code === "overloaded" && error.retryAfterMs === 5_000);
  assert.equal(server.requests.length, 4);
});

test("HTTP: a server that is not there is a typed error", async () => {
  const server = new FakeServer();
  const url = await server.listen();
  await server.close();
  const client = new Petrel({ url, token: "t", WebSocket: Socket, clock: { ...systemClock, random: () => 0 } });
  await assert.rejects(client.rooms(), { name: "PetrelError", code: "network", status: 0 });
});

test("HTTP: an aborted call says so and does not retry", async (t) => {
  const { server, client } = await start(t);
  const abort = new AbortController();
  abort.abort(new Error("left the room"));
  await assert.rejects(client.messages("lobby", {}, abort.signal));
  assert.ok(server.requests.length <= 1);
});

test("follow: a page and all after it; anew after a resync", async (t) => {
  const { server, client, live } = await start(t);
  for (let i = 1; i <= 80; i++) server.post("lobby", "bob", `text ${i}`);
  const pages: Page[] = [];
  const got: RoomEvent[] = [];
  client.follow("lobby", { reset: (p) => void pages.push(p), event: (e) => void got.push(e) });
  await client.connect();
  await live();
  await until(() => server.frames.some((f) => f.frame.op === "subscribe"));
  assert.deepEqual([pages[0]!.messages.length, pages[0]!.more, pages[0]!.messages.at(-1)!.text], [50, true, "text 80"]);
  server.post("lobby", "bob", "live");
  await until(() => got.length === 1);
  // The server comes back from a backup: another epoch.
  server.epoch = "e2";
  server.drop();
  await until(() => pages.length === 2);
  assert.equal(pages[1]!.messages.at(-1)!.text, "live");
  server.post("lobby", "bob", "after");
  await until(() => got.length === 2);
  assert.equal(got[1]!.type === "message.new" && got[1]!.data.text, "after");
  assert.equal(client.diagnostics().delivery.resyncs, 1);
});

test("follow: what was posted between the page and the subscription is there", async (t) => {
  const { server, client } = await start(t);
  server.post("lobby", "bob", "on the page");
  const pages: Page[] = [];
  const got: RoomEvent[] = [];
  client.follow("lobby", { reset: (p) => void pages.push(p), event: (e) => void got.push(e) });
  await until(() => pages.length === 1); // loaded while not connected
  server.post("lobby", "bob", "in between");
  await client.connect();
  await until(() => got.length === 1);
  assert.equal(got[0]!.type === "message.new" && got[0]!.data.text, "in between");
});

test("follow: a room that is not for us is refused, a passing failure is tried again", async (t) => {
  const { server, client } = await start(t);
  server.addRoom({ id: "secret", kind: "private", by: "bob" });
  const refused = await new Promise<PetrelError>((resolve) => client.follow("secret", { reset: () => {}, event: () => {}, refused: resolve }));
  assert.equal(refused.code, "room_not_found");
  for (let i = 0; i < 6; i++) server.httpMishaps.push({ status: 503, code: "read_budget", retryAfter: 0 });
  await new Promise<void>((resolve) => void client.follow("lobby", { reset: () => resolve(), event: () => {} }));
});

test("who is removed or sees the room deleted hears of it last, also through follow, and does not come back for it", async (t) => {
  const { server, client, url, live } = await start(t);
  const bob = new Petrel({ url, token: server.token("bob"), WebSocket: Socket, clock: { ...systemClock, random: () => 0 } });
  t.after(() => bob.close());
  server.addRoom({ id: "den", kind: "private", by: "ada", members: ["bob"] });
  server.addRoom({ id: "hut", kind: "private", by: "ada", members: ["bob"] });
  const log: string[] = [];
  const current: string[] = [];
  for (const room of ["den", "hut"]) {
    bob.follow(room, {
      reset: () => {},
      event: (e) => void log.push(`${room} ${e.type}`),
      ended: (e) => void log.push(`${room} ended ${e.code}`),
      current: (c) => void (c && current.push(room)),
    });
  }
  await Promise.all([client.connect(), bob.connect(), live()]);
  await until(() => current.length === 2);
  log.length = 0; // a room without messages is followed from its beginning
  await client.removeMember("den", "bob");
  await client.deleteRoom("hut");
  await until(() => log.length === 4);
  assert.deepEqual(log, ["den member.removed", "den ended room_not_found", "hut room.deleted", "hut ended room_deleted"]);
  server.frames.length = 0;
  server.drop();
  await until(() => bob.state.phase === "live" && server.conns.size === 2);
  await client.send("lobby", { text: "a round trip later" }).acknowledged;
  assert.deepEqual(server.frames.filter((f) => f.frame.op === "subscribe"), []);
});
