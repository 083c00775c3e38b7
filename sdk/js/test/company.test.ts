import assert from "node:assert/strict";
import { test } from "node:test";
import { Petrel, type PetrelOptions } from "../src/client.js";
import type { Presence, PresenceEvent } from "../src/types.js";
import { event, fakeWires, FakeClock, settle } from "./helpers.js";

const at = "2026-01-02T03:04:05.678Z";
const ephemeral = (type: PresenceEvent["type"], user: string) => ({ op: "event" as const, room: "lobby", type, at, data: { user } });

async function start(options: Partial<PetrelOptions> = {}) {
  const clock = new FakeClock();
  const wires = fakeWires();
  const client = new Petrel({ url: "http://x", token: "t", clock, transport: wires.open, ...options });
  await client.connect();
  await settle();
  wires.last().hello();
  const typing: string[][] = [];
  const presence: Presence[] = [];
  const ok = () => wires.last().say({ op: "ok", id: wires.last().last("subscribe").id, room: "lobby", head: 0, epoch: "e1", position: "p1" });
  const open = (more = {}) => {
    client.subscribe("lobby", { after: 0 }, { event: () => {}, ...more });
    ok();
  };
  return { clock, wires, client, typing, presence, open, ok };
}

test("who types is told until they stop, send, go silent, or the connection is lost", async () => {
  const { clock, wires, typing, open } = await start();
  open({ typing: (users: string[]) => void typing.push(users) });
  const wire = wires.last();
  wire.say(ephemeral("typing.start", "bob"));
  wire.say(ephemeral("typing.start", "ada")); // ourselves, in another window
  wire.say(ephemeral("typing.start", "cat"));
  await clock.advance(5_000);
  wire.say(ephemeral("typing.start", "bob")); // goes on
  await clock.advance(3_000); // nothing more of cat
  wire.say(event("lobby", 1)); // bob's message
  wire.say(ephemeral("typing.stop", "bob"));
  wire.say(ephemeral("typing.start", "dan"));
  wire.say(ephemeral("typing.stop", "dan"));
  wire.say(ephemeral("typing.start", "eve"));
  wire.end(1006);
  assert.deepEqual(typing, [["bob"], ["bob", "cat"], ["bob"], [], ["dan"], [], ["eve"], []]);
});

test("our own typing is said at most every three seconds, and only where it is heard", async () => {
  const { clock, wires, client, open } = await start();
  client.typing("lobby");
  assert.equal(wires.last().of("typing").length, 0);
  open();
  const said = () => wires.last().of("typing").map((f) => f.active);
  for (let i = 0; i < 40; i++) {
    client.typing("lobby");
    await clock.advance(100);
  }
  assert.deepEqual(said(), [true, true]);
  client.typing("lobby", false);
  client.typing("lobby", false);
  assert.deepEqual(said(), [true, true, false]);
  client.typing("lobby");
  client.send("lobby", { text: "hi" });
  assert.deepEqual(said(), [true, true, false, true, false]);
  wires.last().end(1006);
  client.typing("lobby");
});

test("presence is asked for only by who wants it", async () => {
  const { wires, presence, open } = await start();
  open();
  assert.equal("presence" in wires.last().last("subscribe"), false);
  wires.last().say({ op: "presence", room: "lobby", users: [{ user: "bob" }], count: 1 });
  assert.deepEqual(presence, []);
});

test("who is there: a list, who comes and goes, a number, and a new list after a new connection", async () => {
  const { clock, wires, presence, open, ok } = await start();
  open({ presence: (p: Presence) => void presence.push(p) });
  const wire = wires.last();
  assert.equal(wire.last("subscribe").presence, true);
  wire.say({ op: "presence", room: "lobby", users: [{ user: "bob" }, { user: "ada" }], count: 2 });
  wire.say(ephemeral("presence.join", "cat"));
  wire.say(ephemeral("presence.join", "cat"));
  wire.say(ephemeral("presence.leave", "bob"));
  wire.say(ephemeral("presence.leave", "bob"));
  wire.say({ op: "presence", room: "lobby", count: 4711 });
  wire.end(1006);
  await clock.advance(60_000);
  wires.last().hello();
  ok();
  wires.last().say({ op: "presence", room: "lobby", users: [{ user: "ada" }], count: 1 });
  assert.deepEqual(presence, [
    { users: ["ada", "bob"], count: 2 }, { users: ["ada", "bob", "cat"], count: 3 }, { users: ["ada", "cat"], count: 2 },
    { users: ["ada", "cat"], count: 4711 }, { users: ["ada"], count: 1 },
  ]);
});
