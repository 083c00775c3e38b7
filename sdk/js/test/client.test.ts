import assert from "node:assert/strict";
import { test } from "node:test";
import { Petrel, type PetrelOptions } from "../src/client.js";
import { PetrelError } from "../src/errors.js";
import type { OutboxStorage, Unsent } from "../src/storage.js";
import type { RoomEvent } from "../src/types.js";
import { event, fakeWires, FakeClock, settle, type FakeWire } from "./helpers.js";

async function start(options: Partial<PetrelOptions> = {}) {
  const clock = new FakeClock();
  const wires = fakeWires();
  const client = new Petrel({ url: "http://x", token: "t", clock, transport: wires.open, ...options });
  const problems: unknown[] = [];
  client.on("problem", (p) => problems.push(p));
  await client.connect();
  await settle();
  const again = async () => {
    await clock.advance(60_000);
    wires.last().hello();
  };
  wires.last().hello();
  return { clock, wires, client, problems, again };
}

function listener() {
  const got: RoomEvent[] = [];
  const log: string[] = [];
  return {
    got, log,
    seqs: () => got.map((e) => e.seq),
    handlers: {
      event: (e: RoomEvent) => void got.push(e),
      resync: (r: { reason: string }) => void log.push(`resync ${r.reason}`),
      ended: (e: PetrelError) => void log.push(`ended ${e.code}`),
      refused: (e: PetrelError) => void log.push(`refused ${e.code}`),
      current: (c: boolean) => void log.push(c ? "current" : "behind"),
    },
  };
}

function okSubscribe(wire: FakeWire, head: number, epoch = "e1"): void {
  const { id, room } = wire.last("subscribe");
  wire.say({ op: "ok", id, room: room as string, head, epoch });
}

test("events after the start arrive once, in order, without what came before", async () => {
  const { client, wires } = await start();
  const l = listener();
  client.subscribe("lobby", { after: 41 }, l.handlers);
  assert.equal(wires.last().last("subscribe").after, 41);
  okSubscribe(wires.last(), 43);
  for (const seq of [42, 42, 43, 41, 44]) wires.last().say(event("lobby", seq));
  await settle();
  assert.deepEqual(l.seqs(), [42, 43, 44]);
  assert.deepEqual(l.log, ["current"]);
  assert.equal(client.diagnostics().delivery.duplicates, 2);
});

test("from now means after the head of the answer, also across a reconnect", async () => {
  const { client, wires, again } = await start();
  const l = listener();
  const sub = client.subscribe("lobby", {}, l.handlers);
  assert.equal("after" in wires.last().last("subscribe"), false);
  okSubscribe(wires.last(), 7);
  wires.last().end(1006);
  await again();
  assert.deepEqual([wires.last().last("subscribe").after, wires.last().last("subscribe").epoch], [7, "e1"]);
  okSubscribe(wires.last(), 8);
  wires.last().say(event("lobby", 8));
  await settle();
  assert.deepEqual(l.seqs(), [8]);
  assert.deepEqual(sub.position, { after: 8, epoch: "e1" });
  assert.deepEqual(l.log, ["current", "behind", "current"]);
});

test("a gap is never shown: it asks again from the last seq and ignores the rest until the answer", async () => {
  const { client, wires } = await start();
  const l = listener();
  client.subscribe("lobby", { after: 0 }, l.handlers);
  okSubscribe(wires.last(), 0);
  wires.last().say(event("lobby", 1));
  wires.last().say(event("lobby", 3));
  assert.equal(wires.last().of("unsubscribe").length, 1);
  assert.equal(wires.last().last("subscribe").after, 1);
  wires.last().say(event("lobby", 4)); // still of the old subscription
  okSubscribe(wires.last(), 4);
  for (const seq of [2, 3, 4]) wires.last().say(event("lobby", seq));
  await settle();
  assert.deepEqual(l.seqs(), [1, 2, 3, 4]);
  assert.equal(client.diagnostics().delivery.gaps, 1);
  assert.equal(wires.last().of("subscribe").length, 2);
});

test("an answer to an older question is ignored", async () => {
  const { client, wires } = await start();
  const l = listener();
  client.subscribe("lobby", { after: 0 }, l.handlers);
  const first = wires.last().last("subscribe").id;
  okSubscribe(wires.last(), 0);
  wires.last().say(event("lobby", 2));
  wires.last().say({ op: "ok", id: first, room: "lobby", head: 2, epoch: "e1" });
  wires.last().say(event("lobby", 1));
  await settle();
  assert.deepEqual(l.seqs(), []);
});

test("an async handler sees one at a time, and its position moves only when it is done", async () => {
  const { client, wires } = await start();
  const release: (() => void)[] = [];
  const seen: number[] = [];
  const sub = client.subscribe("lobby", { after: 0 }, { event: (e) => (seen.push(e.seq), new Promise<void>((r) => release.push(r))) });
  okSubscribe(wires.last(), 3);
  for (const seq of [1, 2, 3]) wires.last().say(event("lobby", seq));
  await settle();
  assert.deepEqual([seen, sub.position.after], [[1], 0]);
  release.shift()!();
  await settle();
  assert.deepEqual([seen, sub.position.after], [[1, 2], 1]);
});

test("a handler that throws is reported and does not stop the rest", async () => {
  const { client, wires, problems } = await start();
  const seen: number[] = [];
  client.subscribe("lobby", { after: 0 }, { event: (e) => { seen.push(e.seq); if (e.seq === 1) throw new Error("mine"); } });
  okSubscribe(wires.last(), 2);
  wires.last().say(event("lobby", 1));
  wires.last().say(event("lobby", 2));
  await settle();
  assert.deepEqual(seen, [1, 2]);
  assert.equal((problems[0] as Error).message, "mine");
});

test("a slow handler stops the flow at a bound and gets the rest by resuming", async () => {
  const { client, wires } = await start();
  let open!: () => void;
  const gate = new Promise<void>((r) => (open = r));
  const seen: number[] = [];
  client.subscribe("lobby", { after: 0 }, { event: async (e) => { await gate; seen.push(e.seq); } });
  okSubscribe(wires.last(), 0);
  for (let seq = 1; seq <= 6_000; seq++) wires.last().say(event("lobby", seq));
  assert.equal(wires.last().of("unsubscribe").length, 1);
  open();
  while (wires.last().of("subscribe").length < 2) await settle();
  const after = wires.last().last("subscribe").after as number;
  assert.ok(after >= 5_000 && after < 6_000, String(after));
  okSubscribe(wires.last(), 6_000);
  for (let seq = after + 1; seq <= 6_000; seq++) wires.last().say(event("lobby", seq));
  while (seen.length < 6_000) await settle();
  assert.deepEqual(seen, Array.from({ length: 6_000 }, (_, i) => i + 1));
});

test("resync is told once, nothing is delivered until the restart, then from the new start", async () => {
  const { client, wires, again } = await start();
  const l = listener();
  const sub = client.subscribe("lobby", { after: 90, epoch: "old" }, l.handlers);
  wires.last().say({ op: "resync", room: "lobby", reason: "epoch", head: 12 });
  wires.last().say(event("lobby", 91));
  wires.last().end(1006);
  await again();
  assert.equal(wires.last().of("subscribe").length, 0);
  sub.restart({ after: 12 });
  assert.equal(wires.last().last("subscribe").after, 12);
  assert.equal("epoch" in wires.last().last("subscribe"), false);
  okSubscribe(wires.last(), 12, "new");
  wires.last().say(event("lobby", 13));
  await settle();
  assert.deepEqual(l.seqs(), [13]);
  assert.deepEqual(l.log, ["resync epoch", "current"]);
  assert.deepEqual(sub.position, { after: 13, epoch: "new" });
});

test("a refused subscription is told; a passing failure is asked again", async () => {
  const { client, wires, clock } = await start();
  const l = listener();
  client.subscribe("lobby", { after: 0 }, l.handlers);
  wires.last().say({ op: "error", id: wires.last().last("subscribe").id, code: "busy", retry_after_ms: 4_000 });
  await clock.advance(3_999);
  assert.equal(wires.last().of("subscribe").length, 1);
  await clock.advance(1);
  assert.equal(wires.last().of("subscribe").length, 2);
  wires.last().say({ op: "error", id: wires.last().last("subscribe").id, code: "room_not_found", detail: "no" });
  assert.deepEqual(l.log, ["refused room_not_found"]);
  client.subscribe("lobby", { after: 0 }, l.handlers); // and may be tried anew
});

test("a right that ends is told after the last event, and the subscription does not come back", async () => {
  const { client, wires, again } = await start();
  const l = listener();
  const sub = client.subscribe("den", { after: 0 }, l.handlers);
  okSubscribe(wires.last(), 1);
  wires.last().say(event("den", 1));
  await settle();
  wires.last().say({ op: "unsubscribed", room: "den", code: "room_not_found", detail: "You are not in it." });
  assert.deepEqual([l.seqs(), l.log], [[1], ["current", "behind", "ended room_not_found"]]);
  assert.deepEqual(sub.position, { after: 1, epoch: "e1" });
  sub.restart({ after: 0 }); // over is over
  wires.last().say(event("den", 2));
  wires.last().end(1006);
  await again();
  assert.equal(wires.last().of("subscribe").length, 0);
  const anew = listener();
  client.subscribe("den", { after: 1 }, anew.handlers); // one may be let in again
  okSubscribe(wires.last(), 2);
  wires.last().say(event("den", 2));
  await settle();
  assert.deepEqual([l.seqs(), anew.seqs()], [[1], [2]]);
});

test("the end waits for a slow handler, close silences it, and without ended it is a refusal", async () => {
  const { client, wires } = await start();
  const release: (() => void)[] = [];
  const log: string[] = [];
  const slow = (name: string) => ({
    event: (e: RoomEvent) => (log.push(`${name} ${e.seq}`), new Promise<void>((r) => release.push(r))),
    ended: (e: PetrelError) => void log.push(`${name} ${e.code}`),
  });
  const subs = ["a", "b"].map((room) => {
    const sub = client.subscribe(room, { after: 0 }, slow(room));
    okSubscribe(wires.last(), 2);
    for (const seq of [1, 2]) wires.last().say(event(room, seq));
    wires.last().say({ op: "unsubscribed", room, code: "room_deleted" });
    return sub;
  });
  subs[1]!.close();
  for (let i = 0; i < 4; i++) {
    await settle();
    release.shift()?.();
  }
  await settle();
  assert.deepEqual(log, ["a 1", "b 1", "a 2", "a room_deleted"]);
  client.subscribe("c", { after: 0 }, { event: () => {}, refused: (e) => void log.push(`refused ${e.code}`) });
  okSubscribe(wires.last(), 0);
  wires.last().say({ op: "unsubscribed", room: "c", code: "room_deleted" });
  assert.equal(log.at(-1), "refused room_deleted");
});

test("an end that belongs to the subscription before is left to the answer that is awaited", async () => {
  const { client, wires } = await start();
  const l = listener();
  client.subscribe("den", { after: 0 }, l.handlers);
  okSubscribe(wires.last(), 0);
  wires.last().say(event("den", 2)); // a gap: asks again
  wires.last().say({ op: "unsubscribed", room: "den", code: "room_not_found" });
  assert.deepEqual(l.log, ["current", "behind"]);
  wires.last().say({ op: "error", id: wires.last().last("subscribe").id, code: "room_not_found", detail: "no" });
  assert.deepEqual(l.log, ["current", "behind", "refused room_not_found"]);
});

test("two subscriptions to one room are a mistake; after close it is free again", async () => {
  const { client, wires } = await start();
  const sub = client.subscribe("lobby", { after: 0 }, listener().handlers);
  assert.throws(() => client.subscribe("lobby", { after: 0 }, listener().handlers), /already/);
  okSubscribe(wires.last(), 0);
  sub.close();
  assert.equal(wires.last().of("unsubscribe").length, 1);
  const l = listener();
  client.subscribe("lobby", { after: 5 }, l.handlers);
  wires.last().say(event("lobby", 6)); // of the closed one
  okSubscribe(wires.last(), 6);
  wires.last().say(event("lobby", 6));
  await settle();
  assert.deepEqual(l.seqs(), [6]);
});

// The outbox.

function ack(wire: FakeWire, frame: Record<string, unknown>, seq: number, repeated = false): void {
  const message = frame.message as { id: string; text: string };
  wire.say({ op: "ok", id: frame.id as number, position: `p${seq}`, message: { id: message.id, room: frame.room as string, seq, user: "ada", text: message.text, created_at: "2026-01-02T03:04:05.678Z" }, ...(repeated ? { repeated: true } : {}) });
}

const texts = (wire: FakeWire) => wire.of("send").map((f) => (f.message as { text: string }).text);

test("a message written offline goes out when a connection is there, and is acknowledged once", async () => {
  const { client, wires, again } = await start();
  wires.last().end(1006);
  const sending = client.send("lobby", { text: "hi" });
  assert.equal(client.unsent("lobby").length, 1);
  await again();
  const frame = wires.last().last("send");
  assert.equal((frame.message as { id: string }).id, sending.id);
  ack(wires.last(), frame, 5);
  ack(wires.last(), frame, 5);
  assert.equal((await sending.acknowledged).seq, 5);
  assert.equal(client.unsent().length, 0);
});

test("the same id goes out again when the answer was lost, and only then", async () => {
  const { client, wires, again } = await start();
  const sending = client.send("lobby", { text: "hi" });
  wires.last().end(1006);
  await again();
  assert.equal((wires.last().last("send").message as { id: string }).id, sending.id);
  ack(wires.last(), wires.last().last("send"), 5, true);
  await sending.acknowledged;
  wires.last().end(1006);
  await again();
  assert.equal(wires.last().of("send").length, 0);
});

test("per room one is on the wire and order is kept; rooms do not wait for each other", async () => {
  const { client, wires, clock } = await start();
  for (const text of ["a1", "a2", "a3"]) client.send("a", { text }).acknowledged.catch(() => {});
  client.send("b", { text: "b1" });
  assert.deepEqual(texts(wires.last()), ["a1", "b1"]);
  const first = wires.last().of("send")[0]!;
  wires.last().say({ op: "error", id: first.id as number, code: "busy", retry_after_ms: 2_000 });
  await clock.advance(1_999);
  assert.deepEqual(texts(wires.last()), ["a1", "b1"]); // a2 does not overtake
  await clock.advance(1);
  assert.deepEqual(texts(wires.last()), ["a1", "b1", "a1"]);
  ack(wires.last(), wires.last().last("send"), 1);
  ack(wires.last(), wires.last().last("send"), 2);
  ack(wires.last(), wires.last().last("send"), 3);
  assert.deepEqual(texts(wires.last()), ["a1", "b1", "a1", "a2", "a3"]);
});

test("a refusal rejects with its code and lets the next one pass", async () => {
  const { client, wires } = await start();
  const bad = client.send("lobby", { text: "too long" });
  const good = client.send("lobby", { text: "fine" });
  wires.last().say({ op: "error", id: wires.last().last("send").id, code: "too_large", detail: "Too large." });
  await assert.rejects(bad.acknowledged, (e: unknown) => e instanceof PetrelError && e.code === "too_large" && !e.retryable);
  ack(wires.last(), wires.last().last("send"), 1);
  await good.acknowledged;
});

test("unknown_outcome is not the end: the same id until it is known", async () => {
  const { client, wires, clock } = await start();
  const sending = client.send("lobby", { text: "hi" });
  for (const code of ["unknown_outcome", "no_leader", "disk_full", "draining"]) {
    wires.last().say({ op: "error", id: wires.last().last("send").id, code });
    await clock.advance(20_000);
    wires.last().say({ op: "ping" });
  }
  assert.equal(new Set(wires.last().of("send").map((f) => (f.message as { id: string }).id)).size, 1);
  ack(wires.last(), wires.last().last("send"), 1);
  await sending.acknowledged;
});

test("a pause the server asked for holds across a reconnect", async () => {
  const { client, wires, clock } = await start();
  client.send("lobby", { text: "hi" });
  wires.last().say({ op: "error", id: wires.last().last("send").id, code: "rate_limited", retry_after_ms: 90_000 });
  wires.last().end(4200);
  await clock.advance(1_000);
  wires.last().hello();
  assert.equal(wires.last().of("send").length, 0);
  await clock.advance(30_000);
  wires.last().say({ op: "ping" });
  await clock.advance(30_000);
  wires.last().say({ op: "ping" });
  await clock.advance(29_000);
  assert.equal(wires.last().of("send").length, 1);
});

test("no answer on a connection that lives: the same id again after a while; late and double answers do no harm", async () => {
  const { client, wires, clock } = await start();
  const sending = client.send("lobby", { text: "hi" });
  const first = wires.last().last("send");
  await clock.advance(19_999);
  assert.equal(wires.last().of("send").length, 1);
  await clock.advance(1);
  assert.equal(wires.last().of("send").length, 2);
  ack(wires.last(), first, 9);
  ack(wires.last(), wires.last().last("send"), 9, true);
  assert.equal((await sending.acknowledged).seq, 9);
  assert.equal(client.unsent().length, 0);
});

test("the event itself counts as acknowledgement when the answer got lost", async () => {
  const { client, wires, again } = await start();
  client.subscribe("lobby", { after: 0 }, listener().handlers);
  okSubscribe(wires.last(), 0);
  const sending = client.send("lobby", { id: "m1", text: "hi" });
  wires.last().end(1006);
  await again();
  okSubscribe(wires.last(), 1);
  wires.last().say(event("lobby", 1, "hi", "ada"));
  assert.equal((await sending.acknowledged).seq, 1);
});

test("someone else's message with the same id is no acknowledgement", async () => {
  const { client, wires } = await start();
  client.subscribe("lobby", { after: 0 }, listener().handlers);
  okSubscribe(wires.last(), 0);
  client.send("lobby", { id: "m1", text: "hi" });
  wires.last().say(event("lobby", 1, "hi", "bob"));
  assert.equal(client.unsent().length, 1);
});

test("the same id handed in twice is one message", async () => {
  const { client, wires } = await start();
  const a = client.send("lobby", { id: "x", text: "hi" });
  const b = client.send("lobby", { id: "x", text: "hi" });
  assert.equal(a.acknowledged, b.acknowledged);
  assert.equal(wires.last().of("send").length, 1);
});

test("resends draw on the budget", async () => {
  const { client, wires, clock } = await start();
  client.send("lobby", { text: "hi" });
  let sent = 0;
  for (let i = 0; i < 400; i++) {
    const frames = wires.last().of("send");
    if (frames.length > sent) {
      sent = frames.length;
      wires.last().say({ op: "error", id: frames.at(-1)!.id as number, code: "no_leader" });
    }
    wires.last().say({ op: "ping" });
    await clock.advance(100);
  }
  // 40 s: the reserve of ten and one for each ten seconds.
  assert.ok(sent <= 16, String(sent));
});

class SlowStorage implements OutboxStorage {
  readonly kept = new Map<string, Unsent>();
  puts: (() => void)[] = [];
  load = () => Promise.resolve([...this.kept.values()]);
  put = (m: Unsent) => new Promise<void>((resolve) => this.puts.push(() => (this.kept.set(m.id, m), resolve())));
  remove = (id: string) => void this.kept.delete(id);
}

test("nothing is on the wire before it is in storage, and what is acknowledged leaves it", async () => {
  const storage = new SlowStorage();
  const { client, wires } = await start({ storage });
  const sending = client.send("lobby", { text: "hi" });
  await settle();
  assert.equal(wires.last().of("send").length, 0);
  storage.puts.shift()!();
  await settle();
  assert.equal(wires.last().of("send").length, 1);
  ack(wires.last(), wires.last().last("send"), 1);
  await sending.acknowledged;
  await settle();
  assert.equal(storage.kept.size, 0);
});

test("a page that was closed with unsent messages sends them in its next life, same ids, same order", async () => {
  const storage = new SlowStorage();
  const first = await start({ storage });
  const lost = ["one", "two", "three"].map((text) => first.client.send("lobby", { text }));
  for (const put of storage.puts) put();
  await settle();
  first.client.close();
  for (const sending of lost) await assert.rejects(sending.acknowledged, { code: "closed" });
  assert.equal(storage.kept.size, 3);
  const second = await start({ storage });
  assert.deepEqual(second.client.unsent("lobby").map((s) => s.text), ["one", "two", "three"]);
  for (let i = 1; i <= 3; i++) ack(second.wires.last(), second.wires.last().last("send"), i);
  await settle();
  assert.deepEqual(second.wires.last().of("send").map((f) => (f.message as { id: string }).id), lost.map((s) => s.id));
  assert.equal(storage.kept.size, 0);
});

test("a storage that fails is reported, and the message goes out all the same", async () => {
  const storage: OutboxStorage = { load: () => [], put: () => Promise.reject(new Error("full")), remove: () => {} };
  const { client, wires, problems } = await start({ storage });
  const sending = client.send("lobby", { text: "hi" });
  await settle();
  ack(wires.last(), wires.last().last("send"), 1);
  await sending.acknowledged;
  assert.equal((problems[0] as Error).message, "full");
});

test("discard gives up on one that waits", async () => {
  const { client, wires } = await start();
  wires.last().end(1006);
  const sending = client.send("lobby", { text: "hi" });
  client.discard(sending.id);
  await assert.rejects(sending.acknowledged, { code: "closed" });
  assert.equal(client.unsent().length, 0);
});

test("unknown frames and fields are for a younger client", async () => {
  const { client, wires } = await start();
  wires.last().say({ op: "weather", wind: 9 } as never);
  wires.last().say({ op: "ok", id: 999 });
  wires.last().say(event("elsewhere", 4));
  wires.last().say({ op: "resync", room: "elsewhere", reason: "epoch", head: 1 });
  assert.equal(client.state.phase, "live");
});

test("it says early what it cannot do", () => {
  assert.throws(() => new Petrel({ url: "ftp://x", token: "t" }), TypeError);
  if (!("WebSocket" in globalThis)) assert.throws(() => new Petrel({ url: "http://x", token: "t" }), /ws/);
});
