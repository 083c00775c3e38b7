// laravel-echo 2.x end to end, in Node, on the unmodified pusher-js: pusher.md §11.
import assert from "node:assert/strict";
import { describe } from "node:test";
import EchoModule from "laravel-echo";

import { backend, masterKey, sdk } from "../harness/backend.js";
import { Pusher, options, state } from "../harness/client.js";
import { Inbox, poll, within } from "../harness/wait.js";
import { cleanup, everyWay, fresh } from "../harness/world.js";

const Echo = EchoModule.default ?? EchoModule;

function echo(node, app, transport, url, user, broadcaster) {
  const { channelAuthorization, userAuthentication, ...rest } = options(node, transport, undefined);
  const made = new Echo({
    broadcaster, Pusher, key: app.key, ...rest,
    authEndpoint: `${url}/pusher/auth?user=${user}`,
    userAuthentication: { endpoint: `${url}/pusher/user-auth?user=${user}`, transport: "ajax" },
  });
  cleanup(() => made.disconnect());
  made.connector.pusher.states = new Inbox("echo");
  made.connector.pusher.connection.bind("state_change", ({ current }) => made.connector.pusher.states.put({ state: current }));
  return made;
}

const subscribed = (channel, what) => within(`${what} to be subscribed`, new Promise((resolve, reject) => {
  channel.subscribed(resolve);
  channel.error((error) => reject(new Error(JSON.stringify(error))));
}));

describe("laravel-echo", { concurrency: 8 }, () => {
  for (const broadcaster of ["pusher", "reverb"]) {
    everyWay(`broadcaster ${broadcaster}: channels, whispers, here, joining, leaving`, async ({ world, transport }) => {
      const app = world.first;
      const { url } = await backend(app);
      const official = sdk(world.node(0), app, { encryptionMasterKeyBase64: masterKey });
      const ada = echo(world.node(1), app, transport, url, "ada", broadcaster);
      const bob = echo(world.node(2), app, transport, url, "bob", broadcaster);
      for (const e of [ada, bob]) await state(e.connector.pusher, "connected");
      assert.match(ada.socketId(), /^\d+\.\d+$/);

      const heard = new Inbox("echo's listeners");
      const room = fresh("orders.");
      const channels = { [room]: ada.channel(room), [`private-${room}`]: ada.private(room), [`private-encrypted-${room}`]: ada.encryptedPrivate(room) };
      const there = Object.entries(channels).map(([name, channel]) => subscribed(channel, name));
      await Promise.all(there);
      for (const [name, channel] of Object.entries(channels)) {
        channel.listen("OrderShipped", (data) => heard.put({ name, data }));
        channel.listen(".plain", (data) => heard.put({ name, data }));
        await official.trigger(name, "App\\Events\\OrderShipped", { n: 1 });
        assert.deepEqual((await heard.take(name, (h) => h.name === name)).data, { n: 1 });
        await official.trigger(name, "plain", { n: 2 });
        assert.deepEqual((await heard.take(name, (h) => h.name === name)).data, { n: 2 });
      }

      const bobs = bob.private(room).listenForWhisper("typing", (data) => heard.put({ whisper: data }));
      await subscribed(bobs, "bob's private channel");
      ada.private(room).whisper("typing", { by: "ada" });
      assert.deepEqual((await heard.take("the whisper", (h) => h.whisper)).whisper, { by: "ada" });

      const hall = fresh("hall.");
      const join = (e, who) => e.join(hall)
        .here((users) => heard.put({ here: who, users }))
        .joining((user) => heard.put({ joining: who, user }))
        .leaving((user) => heard.put({ leaving: who, user }));
      join(ada, "ada");
      assert.deepEqual((await heard.take("here", (h) => h.here === "ada")).users, [{ name: "The ada" }]);
      join(bob, "bob");
      assert.equal((await heard.take("here", (h) => h.here === "bob")).users.length, 2);
      assert.deepEqual((await heard.take("joining", (h) => h.joining === "ada")).user, { name: "The bob" });
      bob.leave(hall);
      assert.deepEqual((await heard.take("leaving", (h) => h.leaving === "ada")).user, { name: "The bob" });

      // "To others": the backend leaves out the socket that Echo names in X-Socket-ID.
      await official.trigger([room, `private-${room}`], "plain", { n: 3 }, { socket_id: ada.socketId() });
      await official.trigger(room, "plain", { n: 4 });
      assert.deepEqual((await heard.take(room, (h) => h.name === room)).data, { n: 4 });
      assert.equal(heard.all.filter((h) => h.data?.n === 3).length, 0);

      ada.leaveAllChannels();
      await poll("no channel to be left", () => Object.keys(ada.connector.channels).length === 0);
    });
  }
});
