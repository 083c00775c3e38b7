import assert from "node:assert/strict";
import { test } from "node:test";
import { PetrelError } from "../src/errors.js";
import { Link, type ConnectionState, type LinkOptions } from "../src/link.js";
import { Servers } from "../src/servers.js";
import { fakeWires, FakeClock, settle } from "./helpers.js";

async function start(options: Partial<LinkOptions> = {}) {
  const clock = new FakeClock();
  const wires = fakeWires();
  const states: ConnectionState[] = [];
  const link = new Link({ servers: new Servers(["http://x"]), token: "t", clock, open: wires.open, ...options });
  link.on("state", (s) => states.push(s));
  const log: string[] = [];
  link.on("live", () => log.push("live"));
  link.on("lost", () => log.push("lost"));
  link.start();
  await settle();
  return { clock, wires, link, states, log, phase: () => link.state.phase };
}

test("hello makes it live, and start twice dials once", async () => {
  const { link, wires, phase } = await start();
  link.start();
  assert.equal(phase(), "connecting");
  wires.last().hello();
  assert.equal(phase(), "live");
  assert.equal(wires.wires.length, 1);
});

test("a server that never says hello is given up after the limit, and tried again", async () => {
  const { clock, wires, phase } = await start({ helloTimeout: 3_000 });
  await clock.advance(2_999);
  assert.equal(phase(), "connecting");
  clock.chance = 1;
  await clock.advance(1);
  assert.equal(phase(), "waiting");
  assert.ok(wires.wires[0]!.dropped);
  await clock.advance(1_000);
  assert.equal(wires.wires.length, 2);
  assert.equal(wires.last().request.attempt, 1);
});

test("an old connection that speaks late is not heard", async () => {
  const { clock, wires, phase } = await start({ helloTimeout: 1_000 });
  await clock.advance(1_000);
  await clock.advance(1);
  const old = wires.wires[0]!;
  old.hello();
  assert.notEqual(phase(), "live");
  old.end(4000, "gone");
  assert.notEqual(phase(), "stopped");
  wires.last().hello();
  assert.equal(phase(), "live");
});

test("pings are answered with their id", async () => {
  const { wires } = await start();
  wires.last().hello();
  wires.last().say({ op: "ping", id: 7 });
  wires.last().say({ op: "ping" });
  assert.deepEqual(wires.last().of("pong"), [{ op: "pong", id: 7 }, { op: "pong" }]);
});

test("silence: quiet after half the grace, asked, gone after interval and grace, back with a resume", async () => {
  const { clock, wires, link, log } = await start();
  wires.last().hello();
  await clock.advance(29_999);
  assert.deepEqual(link.state.phase === "live" && link.state.quiet, false);
  await clock.advance(1);
  assert.deepEqual(link.state.phase === "live" && link.state.quiet, true);
  assert.equal(wires.last().of("ping").length, 1);
  await clock.advance(4_999);
  assert.equal(link.state.phase, "live");
  clock.chance = 0.5;
  await clock.advance(1);
  assert.equal(link.state.phase, "waiting");
  assert.deepEqual(log, ["live", "lost"]);
  await clock.advance(1_000);
  wires.last().hello();
  assert.deepEqual(log, ["live", "lost", "live"]);
});

test("any frame ends the quiet and starts the contract anew", async () => {
  const { clock, wires, link } = await start();
  wires.last().hello();
  await clock.advance(31_000);
  wires.last().say({ op: "pong" });
  assert.equal(link.state.phase === "live" && link.state.quiet, false);
  await clock.advance(29_000);
  assert.equal(link.state.phase, "live");
  assert.equal(wires.wires.length, 1);
});

test("the contract is the one this connection was given", async () => {
  const { clock, wires, link } = await start();
  wires.last().hello({ heartbeat: { interval_ms: 100_000, grace_ms: 50_000, epoch: 2 } });
  await clock.advance(124_000);
  assert.equal(link.state.phase === "live" && !link.state.quiet, true);
});

test("4000–4099 stop for good, with the server's words", async () => {
  const { clock, wires, link, log } = await start();
  wires.last().hello();
  wires.last().say({ op: "error", code: "app_suspended", detail: "The app is suspended." });
  wires.last().end(4003, "app_suspended");
  assert.equal(link.state.phase, "stopped");
  assert.ok(link.state.phase === "stopped" && link.state.error.code === "app_suspended" && link.state.error.message === "The app is suspended.");
  await clock.advance(3_600_000);
  assert.equal(wires.wires.length, 1);
  assert.deepEqual(log, ["live", "lost"]);
  assert.equal(clock.waiting, 0);
});

test("4100 waits at least a second, or as long as was asked", async () => {
  const { clock, wires } = await start();
  wires.last().end(4100, "busy");
  await clock.advance(999);
  assert.equal(wires.wires.length, 1);
  await clock.advance(1);
  assert.equal(wires.wires.length, 2);
  wires.last().say({ op: "error", code: "overloaded", retry_after_ms: 60_000 });
  wires.last().end(4100, "overloaded");
  await clock.advance(59_999);
  assert.equal(wires.wires.length, 2);
  await clock.advance(1);
  assert.equal(wires.wires.length, 3);
});

test("4200 comes back at once with a jitter, but not in a tight loop", async () => {
  const { clock, wires } = await start();
  wires.last().hello();
  clock.chance = 0.5;
  wires.last().end(4200, "moving");
  await clock.advance(249);
  assert.equal(wires.wires.length, 1);
  await clock.advance(1);
  assert.equal(wires.wires.length, 2);
  // A server that ends us each time as soon as we are live does not get a storm.
  let dials = 0;
  for (const until = clock.time + 60_000; clock.time < until; await clock.advance(100)) {
    if (wires.wires.length > dials) {
      dials = wires.wires.length;
      wires.last().hello();
      wires.last().end(4200, "moving");
    }
  }
  assert.ok(dials <= 10, String(dials));
});

test("503 with Retry-After before the upgrade is honoured", async () => {
  const { clock, wires } = await start();
  wires.last().end(1006, "refused with HTTP 503", { status: 503, retryAfterMs: 20_000 });
  await clock.advance(19_999);
  assert.equal(wires.wires.length, 1);
  await clock.advance(1);
  assert.equal(wires.wires.length, 2);
});

test("reconnect: the connection serves until its time, then moves; a server that closes sooner is not hurried", async () => {
  const { clock, wires, phase } = await start();
  wires.last().hello();
  wires.last().say({ op: "reconnect", after_ms: 5_000, reason: "drain" });
  await clock.advance(4_999);
  assert.equal(phase(), "live");
  await clock.advance(1);
  await clock.advance(1);
  assert.equal(wires.wires.length, 2);
  await clock.advance(10);
  wires.last().hello();
  wires.last().say({ op: "reconnect", after_ms: 5_000, reason: "drain" });
  await clock.advance(1_000);
  wires.last().end(4200, "drain");
  await clock.advance(3_999);
  assert.equal(wires.wires.length, 2);
  await clock.advance(1);
  assert.equal(wires.wires.length, 3);
});

test("a refused token is replaced once by the provider, then it stops", async () => {
  const asked: string[] = [];
  const { wires, link } = await start({ token: (why) => (asked.push(why), `t${asked.length}`) });
  wires.last().say({ op: "error", code: "token_expired", detail: "expired" });
  wires.last().end(4002, "token_expired");
  await settle();
  assert.deepEqual(asked, ["start", "refused"]);
  assert.equal(wires.last().request.token, "t2");
  wires.last().end(4002, "token_expired");
  await settle();
  assert.equal(link.state.phase, "stopped");
  assert.equal(link.state.phase === "stopped" && link.state.error.code, "token_expired");
  assert.equal(wires.wires.length, 2);
});

test("after a token was good the next expiry is a new story", async () => {
  const { wires, phase } = await start({ token: () => "t" });
  for (let i = 0; i < 3; i++) {
    wires.last().hello();
    wires.last().end(4002, "token_expired");
    await settle();
    assert.equal(wires.wires.length, i + 2);
  }
  assert.equal(phase(), "connecting");
});

test("a fixed token that is refused stops at once", async () => {
  const { link, wires } = await start({ token: "fixed" });
  wires.last().end(4001, "invalid_token");
  assert.equal(link.state.phase === "stopped" && link.state.error.code, "invalid_token");
});

test("a provider that fails is tried again with backoff; one that is refused stops", async () => {
  let fail: Error | undefined = new Error("no network");
  const { clock, link, wires } = await start({ token: () => (fail ? Promise.reject(fail) : Promise.resolve("t")) });
  assert.equal(link.state.phase, "waiting");
  fail = undefined;
  await clock.advance(1_000);
  assert.equal(wires.wires.length, 1);
  wires.last().hello();
  fail = new PetrelError("forbidden", "No.", { status: 403 });
  wires.last().end(4002, "token_expired");
  await settle();
  assert.equal(link.state.phase, "stopped");
});

test("failures are kept with transport, code and duration, and not without bound", async () => {
  const { clock, wires, link } = await start();
  await clock.advance(120);
  wires.last().end(1006, "no route");
  assert.deepEqual(link.attempts.map((a) => [a.transport, a.code, a.reason, a.duration_ms, a.was_live]), [["fake", 1006, "no route", 120, false]]);
  for (let i = 0; i < 200; i++) {
    await clock.advance(60_000);
    wires.last().end(1006, "no route");
  }
  assert.equal(link.attempts.length, 50);
});

test("retryNow cuts a pause short; stop ends everything", async () => {
  const { clock, wires, link, log } = await start();
  clock.chance = 1;
  wires.last().end(4100, "busy", { retryAfterMs: 60_000 });
  link.retryNow();
  await settle();
  assert.equal(wires.wires.length, 2);
  wires.last().hello();
  link.stop();
  assert.equal(wires.last().dropped?.code, 1000);
  assert.deepEqual(log, ["live", "lost"]);
  assert.equal(clock.waiting, 0);
  link.start();
  await settle();
  assert.equal(wires.wires.length, 3);
});

test("waking up after the contract ran out reconnects without waiting for sleeping timers", async () => {
  const events = new EventTarget();
  const { clock, wires, link, phase } = await start({ events });
  wires.last().hello();
  clock.time += 3_600_000; // the lid was closed: no timer ran
  events.dispatchEvent(new Event("visibilitychange"));
  assert.equal(phase(), "waiting");
  await clock.advance(1_000);
  assert.equal(wires.wires.length, 2);
  wires.last().hello();
  clock.time += 26_000;
  events.dispatchEvent(new Event("online"));
  assert.equal(link.state.phase === "live" && link.state.quiet, true);
  assert.equal(wires.last().of("ping").length, 1);
});

test("the network coming back cuts backoff short, but not what the server asked for", async () => {
  const events = new EventTarget();
  const { clock, wires } = await start({ events });
  clock.chance = 0.99;
  for (let i = 0; i < 8; i++) {
    wires.last().end(1006);
    await clock.advance(31_000);
  }
  const dials = wires.wires.length;
  wires.last().end(1006);
  events.dispatchEvent(new Event("online"));
  await clock.advance(1_000);
  assert.equal(wires.wires.length, dials + 1);
  wires.last().end(1006, "", { status: 503, retryAfterMs: 60_000 });
  events.dispatchEvent(new Event("online"));
  await clock.advance(50_000);
  assert.equal(wires.wires.length, dials + 1);
});
