import assert from "node:assert/strict";
import { test } from "node:test";
import { Petrel, type PetrelOptions } from "../src/client.js";
import { event, fakeWires, FakeClock, settle, type FakeWire } from "./helpers.js";

const urls = ["http://a", "http://b/", "http://c"];

async function start(options: Partial<PetrelOptions> = {}) {
  const clock = new FakeClock();
  const wires = fakeWires();
  const fetched: { url: string; position: string | null }[] = [];
  const answers: (Response | Error)[] = [];
  const client = new Petrel({
    urls, token: "t", clock, transport: wires.open,
    fetch: (url, init) => {
      fetched.push({ url: String(url), position: new Headers(init?.headers).get("Petrel-Position") });
      const answer = answers.shift() ?? new Response(JSON.stringify({ rooms: [] }), { headers: { "Petrel-Position": `p${fetched.length}` } });
      return answer instanceof Error ? Promise.reject(answer) : Promise.resolve(answer);
    },
    ...options,
  });
  await client.connect();
  await settle();
  return { clock, wires, client, fetched, answers, dialled: () => wires.wires.map((w) => w.request.url) };
}

const subscribed = (wire: FakeWire, head: number, position: string) => wire.say({ op: "ok", id: wire.last("subscribe").id, room: "lobby", head, epoch: "e1", position });

test("a server that fails is left for the next at once; only when all were tried is there a pause", async () => {
  const { clock, wires, dialled } = await start();
  clock.chance = 0.99;
  for (let i = 0; i < 3; i++) {
    wires.last().end(1006);
    if (i < 2) await clock.advance(500);
  }
  assert.deepEqual(dialled(), ["http://a", "http://b", "http://c"]);
  await clock.advance(980);
  assert.equal(wires.wires.length, 3);
  await clock.advance(20);
  assert.deepEqual(dialled(), ["http://a", "http://b", "http://c", "http://a"]);
});

test("it goes on where it was, and says up to where", async () => {
  const { clock, wires, client } = await start();
  wires.last().hello();
  const seqs: number[] = [];
  client.subscribe("lobby", { after: 0 }, { event: (e) => void seqs.push(e.seq) });
  subscribed(wires.last(), 2, "pos-1");
  wires.last().say(event("lobby", 1));
  wires.last().say(event("lobby", 2));
  wires.last().end(1006);
  await clock.advance(500);
  wires.last().hello({ node: "n2" });
  const asked = wires.last().last("subscribe");
  assert.deepEqual([wires.last().request.url, asked.after, asked.epoch, asked.position], ["http://b", 2, "e1", "pos-1"]);
  // The node cannot reach it yet: it is asked again, no sooner than it says.
  wires.last().say({ op: "error", id: asked.id, code: "timeout", detail: "Not yet.", retry_after_ms: 1_000 });
  await clock.advance(999);
  assert.equal(wires.last().of("subscribe").length, 1);
  await clock.advance(1);
  subscribed(wires.last(), 3, "pos-2");
  wires.last().say(event("lobby", 3));
  await settle();
  assert.deepEqual(seqs, [1, 2, 3]);
});

test("a position that means nothing any more is forgotten", async () => {
  const { clock, wires, client } = await start();
  wires.last().hello();
  client.subscribe("lobby", { after: 0 }, { event: () => {} });
  subscribed(wires.last(), 0, "old");
  wires.last().end(1006);
  await clock.advance(500);
  wires.last().hello();
  wires.last().say({ op: "error", id: wires.last().last("subscribe").id, code: "invalid_position", detail: "Not ours." });
  assert.equal("position" in wires.last().last("subscribe"), false);
  assert.equal(wires.last().of("subscribe").length, 2);
});

test("an order to reconnect names where to go; unknown addresses are passed over", async () => {
  const { clock, wires, dialled } = await start();
  wires.last().hello();
  wires.last().say({ op: "reconnect", after_ms: 2_000, reason: "drain", to: ["http://elsewhere", "http://c/"] });
  wires.last().end(4200, "drain");
  await clock.advance(1_999);
  assert.deepEqual(dialled(), ["http://a"]);
  await clock.advance(1);
  assert.deepEqual(dialled(), ["http://a", "http://c"]);
});

test("a node that stays stale is left; when all are, there is no haste", async () => {
  const { clock, wires, client, dialled } = await start();
  const stale = () => client.state.phase === "live" && client.state.stale;
  wires.last().hello();
  assert.equal(stale(), false);
  wires.last().say({ op: "stale", for_ms: 1_000 });
  assert.equal(stale(), true);
  await clock.advance(1_000);
  wires.last().say({ op: "stale", for_ms: 0 });
  await clock.advance(10_000);
  assert.deepEqual([stale(), dialled()], [false, ["http://a"]]);
  wires.last().say({ op: "stale", for_ms: 1_000 });
  await clock.advance(2_500);
  wires.last().hello({ stale_ms: 3_500 });
  await clock.advance(10_000);
  wires.last().hello({ stale_ms: 9_000 });
  await clock.advance(29_000);
  assert.deepEqual([stale(), dialled()], [true, ["http://a", "http://b", "http://c"]]);
  await clock.advance(3_000);
  assert.equal(dialled().length, 4);
});

test("a lone server is kept, stale or not", async () => {
  const { clock, wires, dialled } = await start({ urls: ["http://a"] });
  wires.last().hello({ stale_ms: 1_000 });
  await clock.advance(20_000);
  assert.deepEqual(dialled(), ["http://a"]);
});

test("calls over HTTP move on too, and never read behind what was seen", async () => {
  const { clock, client, fetched, answers } = await start();
  await client.rooms();
  answers.push(new TypeError("refused"));
  const second = client.rooms();
  await clock.advance(1_000);
  await second;
  assert.deepEqual(fetched, [
    { url: "http://a/v1/rooms?limit=500", position: null }, { url: "http://a/v1/rooms?limit=500", position: "p1" }, { url: "http://b/v1/rooms?limit=500", position: "p1" },
  ]);
});
