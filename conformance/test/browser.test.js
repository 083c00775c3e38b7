// The same in Chromium, where sockets, XMLHttpRequest, preflights and CORS are the browser's own.
import assert from "node:assert/strict";
import { describe } from "node:test";

import { masterKey, sdk } from "../harness/backend.js";
import { site, tell, told, visit } from "../harness/browser.js";
import { everyWay, fresh, onNodes } from "../harness/world.js";

const where = (node, page, transports, user) => ({ host: "127.0.0.1", port: node.port, transports, backend: page.backend.url, user });

describe("Chromium", { concurrency: 3 }, () => {
  everyWay("pusher-js: public, private, presence and encrypted channels, client events, signing in", async ({ world, transport }) => {
    const app = world.first;
    const place = await site(app);
    const [ada, bob] = await Promise.all([visit(place), visit(place)]);
    const [adas, bobs] = [fresh("ada"), fresh("bob")];
    await tell(ada, "connect", app.key, where(world.node(1), place, [transport], adas));
    await tell(bob, "connect", app.key, where(world.node(2), place, [transport], bobs));
    for (const page of [ada, bob]) await told(page, "state:connected");
    assert.equal((await tell(ada, "state")).transport, transport);

    const [open, secret, room, sealed, kept] = ["", "private-", "presence-", "private-encrypted-", "cache-"].map(fresh);
    for (const name of [open, secret, room, sealed, kept]) {
      await tell(ada, "subscribe", name);
      await told(ada, `${name}:pusher:subscription_succeeded`);
    }
    await told(ada, `${kept}:pusher:cache_miss`);
    await tell(bob, "subscribe", secret);
    await told(bob, `${secret}:pusher:subscription_succeeded`);
    await tell(bob, "subscribe", room);
    await told(bob, `${room}:pusher:subscription_succeeded`);

    const official = sdk(world.node(0), app, { encryptionMasterKeyBase64: masterKey });
    await official.trigger([open, secret, room, kept], "news", { text: "grüße 🦆" });
    await official.trigger(sealed, "news", { text: "grüße 🦆" });
    for (const name of [open, secret, room, sealed, kept]) assert.deepEqual((await told(ada, `${name}:news`)).data, { text: "grüße 🦆" });

    const large = "grüße 🦆 ".repeat(500); // on three nodes the socket compresses it
    await official.trigger([open, secret], "large", { text: large });
    for (const name of [open, secret]) assert.deepEqual((await told(ada, `${name}:large`)).data, { text: large });

    await told(ada, `${room}:pusher:member_added`, bobs);
    const members = await tell(ada, "members", room);
    assert.equal(members.count, 2);
    assert.deepEqual(members.me, { id: adas, info: { name: `The ${adas}` } });
    await tell(bob, "trigger", secret, "client-hello", { n: 1 });
    assert.deepEqual((await told(ada, `${secret}:client-hello`)).data, { n: 1 });
    await tell(bob, "trigger", room, "client-wave", { n: 2 });
    assert.equal((await told(ada, `${room}:client-wave`)).user, bobs);

    await tell(ada, "signin");
    await told(ada, "signed in");
    // The user's own channel is subscribed by pusher-js itself: what is sent before that is nobody's fault.
    await ada.waitForFunction("window.conformance && true");
    await official.sendToUser(adas, "letter", { n: 3 });
    await tell(bob, "disconnect");
    await told(ada, `${room}:pusher:member_removed`, bobs);
    assert.deepEqual([...ada.wrong, ...bob.wrong], []);
    await Promise.all([ada, bob].map((p) => p.context().close()));
  });

  everyWay("laravel-echo: channels, whispers, here, joining, leaving", async ({ world, transport }) => {
    const app = world.first;
    const place = await site(app);
    const [ada, bob] = await Promise.all([visit(place), visit(place)]);
    await tell(ada, "echo", app.key, where(world.node(1), place, [transport], "ada"), "pusher");
    await tell(bob, "echo", app.key, where(world.node(2), place, [transport], "bob"), "reverb");
    const room = fresh("orders.");
    for (const page of [ada, bob]) {
      await told(page, "state:connected");
      await tell(page, "listen", "private", room, "OrderShipped");
      await told(page, "private:subscribed");
    }
    await tell(ada, "listen", "encryptedPrivate", room, ".sealed");
    await told(ada, "encryptedPrivate:subscribed");
    const official = sdk(world.node(0), app, { encryptionMasterKeyBase64: masterKey });
    await official.trigger(`private-${room}`, "App\\Events\\OrderShipped", { n: 1 });
    await official.trigger(`private-encrypted-${room}`, "sealed", { n: 2 });
    assert.deepEqual((await told(ada, "private:OrderShipped")).data, { n: 1 });
    assert.deepEqual((await told(bob, "private:OrderShipped")).data, { n: 1 });
    assert.deepEqual((await told(ada, "encryptedPrivate:.sealed")).data, { n: 2 });
    await tell(ada, "whisper", room, { by: "ada" });
    assert.deepEqual((await told(bob, "whisper")).data, { by: "ada" });
    const hall = fresh("hall.");
    await tell(ada, "join", hall);
    assert.deepEqual((await told(ada, "here")).users, [{ name: "The ada" }]);
    await tell(bob, "join", hall);
    await told(ada, "joining", "The bob");
    await tell(bob, "leave", hall);
    await told(ada, "leaving", "The bob");
    assert.deepEqual([...ada.wrong, ...bob.wrong], []);
    await Promise.all([ada, bob].map((p) => p.context().close()));
  });

  onNodes("F8: the fallback's requests come from another origin, and the browser lets all of them through", async ({ world }) => {
    const app = world.first;
    const place = await site(app);
    const page = await visit(place);
    const failed = [];
    page.on("requestfailed", (r) => failed.push(`${r.method()} ${r.url()}`));
    await tell(page, "connect", app.key, where(world.node(1), place, ["xhr_polling"], "ada"));
    await told(page, "state:connected");
    const name = fresh("f8-");
    await tell(page, "subscribe", name);
    await told(page, `${name}:pusher:subscription_succeeded`);
    for (let n = 0; n < 5; n++) {
      await app.trigger(world.node(0), name, "n", { n });
      await told(page, `${name}:n`, `"n":${n}`);
    }
    assert.deepEqual(failed.filter((f) => !f.includes("aborted")), []);
    assert.deepEqual(page.wrong, []);
    await page.context().close();
  });

  onNodes("F1: a page that may use every transport comes over WebSocket", async ({ world }) => {
    const app = world.first;
    const place = await site(app);
    const page = await visit(place);
    await tell(page, "connect", app.key, where(world.node(1), place, ["ws", "xhr_streaming", "xhr_polling"], "ada"));
    await told(page, "state:connected");
    assert.equal((await tell(page, "state")).transport, "ws");
    await page.context().close();
  });
});
