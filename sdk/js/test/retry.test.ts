import assert from "node:assert/strict";
import { test } from "node:test";
import { planAfter } from "../src/close.js";
import { newId } from "../src/ids.js";
import { Backoff, RetryBudget } from "../src/retry.js";
import { webStorage } from "../src/storage.js";
import { parseFrame, parseRetryAfter } from "../src/transport.js";
import { FakeClock } from "./helpers.js";

test("backoff doubles its bound up to the cap and is jittered over all of it", () => {
  const clock = new FakeClock();
  clock.chance = 1;
  const backoff = new Backoff(clock, { base: 100, cap: 1_000 });
  assert.deepEqual([1, 2, 3, 4, 5, 6].map(() => backoff.next()), [100, 200, 400, 800, 1_000, 1_000]);
  backoff.reset();
  clock.chance = 0.25;
  assert.equal(backoff.next(), 25);
});

test("backoff never comes back sooner than asked, and not all in one instant", () => {
  const clock = new FakeClock();
  const backoff = new Backoff(clock, { base: 100, cap: 1_000 });
  assert.equal(backoff.next(5_000), 5_000);
  for (clock.chance = 0; clock.chance < 1; clock.chance += 0.1) {
    const pause = backoff.next(5_000);
    assert.ok(pause >= 5_000 && pause <= 7_600, String(pause));
  }
  clock.chance = 0.9;
  assert.ok(backoff.next(5_000) > 5_000);
});

test("backoff survives very many failures", () => {
  const clock = new FakeClock();
  clock.chance = 1;
  const backoff = new Backoff(clock);
  for (let i = 0; i < 5_000; i++) assert.ok(backoff.next() <= 30_000);
});

test("retries stay at a tenth of the traffic", () => {
  const clock = new FakeClock();
  const budget = new RetryBudget(clock);
  let taken = 0;
  for (let i = 0; i < 1_000; i++) {
    budget.earn();
    if (budget.take()) taken++;
  }
  // A tenth of 1,000 and the reserve of ten.
  assert.ok(taken >= 100 && taken <= 111, String(taken));
  assert.equal(budget.counts.denied, 1_000 - taken);
});

test("an empty budget says how long to wait, and keeps its word", () => {
  const clock = new FakeClock();
  const budget = new RetryBudget(clock);
  while (budget.take());
  const wait = budget.wait();
  assert.ok(wait > 0 && wait <= 10_000);
  clock.time += wait;
  assert.equal(budget.take(), true);
  assert.equal(budget.take(), false);
});

test("a good stretch does not save up a storm", () => {
  const budget = new RetryBudget(new FakeClock());
  for (let i = 0; i < 100_000; i++) budget.earn();
  let taken = 0;
  while (budget.take()) taken++;
  assert.ok(taken <= 20, String(taken));
});

test("close codes say what to do by their range", () => {
  const table: [number, string][] = [
    [4000, "stop"], [4099, "stop"], [4100, "pause"], [4199, "pause"], [4200, "at_once"], [4299, "at_once"],
    [4300, "backoff"], [1000, "backoff"], [1001, "backoff"], [1006, "backoff"], [1011, "backoff"], [1012, "backoff"],
  ];
  for (const [code, next] of table) assert.equal(planAfter({ code, reason: "" }).next, next, String(code));
});

test("what the server asked for goes before the range, except for stop", () => {
  assert.deepEqual(planAfter({ code: 4100, reason: "", retryAfterMs: 7_000 }), { next: "pause", atLeastMs: 7_000 });
  assert.deepEqual(planAfter({ code: 4200, reason: "", retryAfterMs: 7_000 }), { next: "pause", atLeastMs: 7_000 });
  assert.deepEqual(planAfter({ code: 1006, reason: "", retryAfterMs: 7_000 }), { next: "pause", atLeastMs: 7_000 });
  assert.deepEqual(planAfter({ code: 4003, reason: "", retryAfterMs: 7_000 }), { next: "stop" });
});

test("of refusals before the upgrade only those about us stop", () => {
  for (const status of [400, 401, 403]) assert.equal(planAfter({ code: 1006, reason: "", status }).next, "stop");
  for (const status of [404, 408, 429, 500, 502, 503]) assert.equal(planAfter({ code: 1006, reason: "", status }).next, "backoff");
});

test("Retry-After is read in both its forms", () => {
  const now = Date.parse("2026-01-01T00:00:00Z");
  assert.equal(parseRetryAfter("3", now), 3_000);
  assert.equal(parseRetryAfter("0", now), 0);
  assert.equal(parseRetryAfter("1.5", now), 1_500);
  assert.equal(parseRetryAfter("Thu, 01 Jan 2026 00:00:10 GMT", now), 10_000);
  assert.equal(parseRetryAfter("Thu, 01 Jan 2025 00:00:10 GMT", now), 0);
  for (const bad of [null, "", "soon", "-3"]) assert.equal(parseRetryAfter(bad, now), undefined, String(bad));
});

test("only objects with an op are frames", () => {
  assert.deepEqual(parseFrame('{"op":"ping"}'), { op: "ping" });
  for (const bad of ["", "{", "[]", "null", '"ping"', "{}", '{"op":1}', new ArrayBuffer(3), undefined]) assert.equal(parseFrame(bad), undefined);
});

test("ids are UUIDv7: valid, distinct, and sorted by time", () => {
  const clock = new FakeClock();
  const ids: string[] = [];
  for (let i = 0; i < 200; i++) {
    clock.time++;
    ids.push(newId(clock));
  }
  for (const id of ids) assert.match(id, /^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/);
  assert.deepEqual([...ids].sort(), ids);
  assert.equal(new Set(ids).size, ids.length);
  assert.equal(parseInt(ids[0]!.replace("-", "").slice(0, 12), 16), clock.time - 199);
});

test("web storage keeps order, ignores what is not its own and what is damaged", () => {
  const map = new Map<string, string>([["other", "{}"], ["box:broken", "{"], ["box:odd", '{"id":1}']]);
  const storage = {
    get length() { return map.size; },
    key: (i: number) => [...map.keys()][i] ?? null,
    getItem: (k: string) => map.get(k) ?? null,
    setItem: (k: string, v: string) => void map.set(k, v),
    removeItem: (k: string) => void map.delete(k),
  };
  const box = webStorage("box", storage);
  box.put({ id: "b", room: "r", text: "second", at: 2 });
  box.put({ id: "c", room: "r", text: "first", at: 1 });
  box.put({ id: "a", room: "r", text: "tie, by id", at: 2 });
  assert.deepEqual((box.load() as { id: string }[]).map((m) => m.id), ["c", "a", "b"]);
  box.remove("c");
  assert.equal((box.load() as unknown[]).length, 2);
  assert.ok(map.has("other"));
});
