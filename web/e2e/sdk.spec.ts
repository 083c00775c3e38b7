// The SDK in Node against the real server that keeps dying: nothing lost, nothing twice, nothing out of order.
import { expect, test } from "@playwright/test";
import { WebSocket } from "ws";
import { Petrel, type RoomEvent, type WebSocketConstructor } from "../../sdk/js/src/index";
import { PetrelServer } from "./server";

test("four senders and a listener through five kill -9", async () => {
  const server = await PetrelServer.start({ demo: false });
  const clients: Petrel[] = [];
  const client = (user: string) => {
    const made = new Petrel({ url: server.url, token: () => server.token(user), WebSocket: WebSocket as unknown as WebSocketConstructor, backoff: { base: 100, cap: 400 } });
    clients.push(made);
    return made;
  };
  try {
    const room = await server.room(server.token("ada"), "Kill");
    const got: RoomEvent[] = [];
    const listener = client("listener");
    listener.subscribe(room, { after: 0 }, { event: (event) => void got.push(event) });
    await listener.connect();

    let running = true;
    const written: { id: string; user: string; text: string }[] = [];
    const senders = ["ada", "bob", "cleo", "dan"].map(async (user) => {
      const sender = client(user);
      await sender.connect();
      for (let i = 1; running; i++) {
        // Three at a time, so that some are always on the wire and some wait behind them.
        const three = [1, 2, 3].map((j) => sender.send(room, { text: `${user} ${i}.${j}` }));
        written.push(...three.map(({ id, text }) => ({ id, user, text })));
        await Promise.all(three.map((s) => s.acknowledged));
      }
    });
    for (let kill = 0; kill < 5; kill++) {
      const before = got.length;
      await expect.poll(() => got.length, { message: "the listener hears of new messages" }).toBeGreaterThan(before + 40);
      await server.kill();
      await server.run();
    }
    running = false;
    await Promise.all(senders);

    const history = await server.history(server.token("ada"), room);
    await expect.poll(() => got.at(-1)?.seq, { message: "the listener has caught up" }).toBe(history.at(-1)!.seq);
    expect(got.map((event) => event.seq)).toEqual(got.map((_, i) => i + 1));
    expect(history.map((m) => m.id).sort()).toEqual(written.map((m) => m.id).sort());
    for (const user of ["ada", "bob", "cleo", "dan"]) {
      expect(history.filter((m) => m.user === user).map((m) => m.text), `the order of ${user}`).toEqual(written.filter((m) => m.user === user).map((m) => m.text));
    }
    expect(got.filter((event) => event.type === "message.new").map((event) => event.data)).toEqual(history);
    expect(listener.diagnostics().connections.lives).toBe(6);
  } finally {
    for (const made of clients) made.close();
    await server.remove();
  }
});
