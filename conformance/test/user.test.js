// pusher.md §4, §5, §7: signing in, events to a user, who of the others is online, ending a user's connections.
import assert from "node:assert/strict";
import { describe } from "node:test";

import { sdk } from "../harness/backend.js";
import { dial } from "../harness/raw.js";
import { everyWay, fresh, onNodes } from "../harness/world.js";

const watched = (frame) => (typeof frame.data === "string" ? JSON.parse(frame.data) : frame.data).events;
const inner = (user) => `#server-to-user-${user}`;

describe("signing in", { concurrency: 8 }, () => {
  everyWay("a signature is answered with the user's data; the same user may come again, another may not", async ({ world, transport }) => {
    const app = world.first;
    const raw = await dial(world.node(1), app, transport);
    const id = fresh("user ü ");
    const done = await raw.signin(app, { id, user_info: { name: "Ada" } });
    const answer = typeof done.data === "string" ? JSON.parse(done.data) : done.data;
    assert.deepEqual(JSON.parse(answer.user_data), { id, user_info: { name: "Ada" } });
    const other = JSON.stringify({ id: fresh("other-") });
    raw.send("pusher:signin", { auth: app.signin(raw.socketId, other), user_data: other });
    const error = await raw.next("pusher:error");
    assert.equal(typeof error.data.message, "string");
    await raw.fence();
    assert.equal(raw.frames.filter((f) => f.event === "pusher:signin_success").length, 1);
  });

  everyWay("what is not signed, or names nobody, is refused", async ({ world, transport }) => {
    const app = world.first;
    const raw = await dial(world.node(1), app, transport);
    const good = JSON.stringify({ id: "ada" });
    const signed = (text) => ({ auth: app.signin(raw.socketId, text), user_data: text });
    const wrong = [
      { auth: app.signin("1.1", good), user_data: good },
      { auth: `${app.key}:${"0".repeat(64)}`, user_data: good },
      { auth: "", user_data: good },
      { user_data: good },
      { ...signed(good), user_data: JSON.stringify({ id: "bob" }) },
      signed("nonsense"), signed("{}"), signed('{"id":""}'), signed('{"id":7}'), signed(JSON.stringify({ id: "x".repeat(201) })),
    ];
    for (const data of wrong) {
      raw.send("pusher:signin", data);
      await raw.next("pusher:error");
    }
    await raw.signin(app, { id: "ada" });
  });

  everyWay("§5 events to a user reach each of his connections, on every node, and nobody else's", async ({ world, transport }) => {
    const app = world.first;
    const user = fresh("u");
    const his = await Promise.all([1, 2].map((i) => dial(world.node(i), app, transport)));
    for (const raw of his) {
      await raw.signin(app, { id: user });
      raw.send("pusher:subscribe", { channel: inner(user), auth: "" }); // as pusher-js does by itself: user.ts
      await raw.next("pusher_internal:subscription_succeeded", inner(user));
    }
    const stranger = await dial(world.node(1), app, transport);
    await stranger.refused({ channel: inner(user), auth: "" });
    await stranger.signin(app, { id: fresh("stranger") });
    await stranger.refused({ channel: inner(user), auth: "" });
    await stranger.refused({ channel: inner(user), auth: app.auth(stranger.socketId, inner(user)) });
    assert.equal((await sdk(world.node(0), app).sendToUser(user, "letter", { n: 1 })).status, 200);
    for (const raw of his) assert.deepEqual(await raw.next("letter"), { event: "letter", channel: inner(user), data: '{"n":1}' });
    await stranger.fence();
    assert.equal(stranger.frames.filter((f) => f.event === "letter").length, 0);
  });

  everyWay("§7 terminate_connections ends what the user has open, everywhere, with a code that keeps clients away", async ({ world, transport }) => {
    const app = world.first;
    const user = fresh("u");
    const his = await Promise.all([0, 1, 2].map((i) => dial(world.node(i), app, transport)));
    for (const raw of his) await raw.signin(app, { id: user });
    const other = await dial(world.node(1), app, transport);
    await other.signin(app, { id: fresh("other") });
    const unsigned = await dial(world.node(1), app, transport);
    const answer = await sdk(world.node(0), app).terminateUserConnections(user);
    assert.equal(answer.status, 200);
    assert.deepEqual(await answer.json(), {});
    for (const raw of his) {
      const { code } = await raw.close();
      assert.ok(code >= 4000 && code <= 4099, `closed with ${code}`);
    }
    await other.fence();
    await unsigned.fence();
  });
});

describe("§5 watchlist", { concurrency: 8 }, () => {
  everyWay("online and offline of those who are watched, over all nodes", async ({ world, transport }) => {
    const app = world.first;
    const [ada, bob] = [fresh("ada"), fresh("bob")];
    const watcher = await dial(world.node(0), app, transport);
    await watcher.signin(app, { id: fresh("watcher"), watchlist: [ada, bob] });
    const here = (name, user) => watcher.inbox.take(`${name} of ${user}`, (f) => f.event === "pusher_internal:watchlist_events" && watched(f).some((e) => e.name === name && e.user_ids.includes(user)));
    const first = await dial(world.node(1), app, transport);
    await first.signin(app, { id: ada });
    await here("online", ada);
    const second = await dial(world.node(2), app, transport);
    await second.signin(app, { id: ada });
    await first.leave(); // she is still online
    const other = await dial(world.node(2), app, transport);
    await other.signin(app, { id: bob });
    await here("online", bob);
    const before = watcher.frames.length;
    await second.leave();
    await watcher.inbox.take(`offline of ${ada}`, (f) => watcher.frames.indexOf(f) >= before && f.event === "pusher_internal:watchlist_events" && watched(f).some((e) => e.name === "offline" && e.user_ids.includes(ada)));
    // A first answer may also name those who are offline; what counts is what changed since.
    const story = (user) => watcher.frames.filter((f) => f.event === "pusher_internal:watchlist_events").flatMap(watched).filter((e) => e.user_ids.includes(user)).map((e) => e.name);
    assert.deepEqual(story(ada).slice(story(ada).indexOf("online")), ["online", "offline"]);
    assert.deepEqual(story(bob).slice(story(bob).indexOf("online")), ["online"]);
    for (const frame of watcher.frames.filter((f) => f.event === "pusher_internal:watchlist_events")) {
      assert.equal(typeof frame.data, "object", "§5: data is no string here");
      assert.equal(frame.channel, undefined);
    }
  });

  everyWay("who is online already is told after signing in", async ({ world, transport }) => {
    const app = world.first;
    const ada = fresh("ada");
    const raw = await dial(world.node(1), app, transport);
    await raw.signin(app, { id: ada });
    const watcher = await dial(world.node(2), app, transport);
    await watcher.signin(app, { id: fresh("watcher"), watchlist: [ada, fresh("nobody")] });
    await watcher.inbox.take("online", (f) => f.event === "pusher_internal:watchlist_events" && watched(f).some((e) => e.name === "online" && e.user_ids.includes(ada)));
  });

  everyWay("§8, §11 the 101st id is told as 4302 inside pusher:error, and the sign-in succeeds", async ({ world, transport }) => {
    const app = world.first;
    const raw = await dial(world.node(1), app, transport);
    const ids = Array.from({ length: 101 }, (_, i) => fresh(`w${i}-`));
    await raw.signin(app, { id: fresh("watcher"), watchlist: ids });
    assert.equal((await raw.next("pusher:error")).data.code, 4302);
    const last = await dial(world.node(2), app);
    await last.signin(app, { id: ids[100] });
    const hundredth = await dial(world.node(2), app);
    await hundredth.signin(app, { id: ids[99] });
    await raw.inbox.take("online", (f) => f.event === "pusher_internal:watchlist_events" && watched(f).some((e) => e.user_ids.includes(ids[99])));
    assert.equal(JSON.stringify(raw.frames).includes(ids[100]) && raw.frames.some((f) => f.event === "pusher_internal:watchlist_events" && JSON.stringify(f).includes(ids[100])), false, "only the first hundred count");
  });
});

describe("§3 authorized connections", { concurrency: 8 }, () => {
  everyWay("an app that wants them ends connections that have shown nothing in time, with 4009", async ({ world, transport }) => {
    const app = await world.app({ authorized_connections: 10 });
    const [idle, signedIn, listening] = await Promise.all([0, 1, 2].map((i) => dial(world.node(i), app, transport)));
    await signedIn.signin(app, { id: fresh("u") });
    await listening.subscribe(app, fresh("private-"));
    assert.equal((await idle.close()).code, 4009);
    await signedIn.fence();
    await listening.fence();
  });

  onNodes("an app that does not lets them be", async ({ world }) => {
    const raw = await dial(world.node(0), world.first);
    await raw.fence();
  });
});
