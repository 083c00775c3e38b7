// A wire that can be cut: forwards TCP from a port of its own to a node, until it is told otherwise.
import { connect, createServer } from "node:net";

import { cleanup } from "./world.js";

export async function wire(node) {
  const pairs = new Set();
  let target = node;
  let open = true;
  const server = createServer((near) => {
    if (!open) return near.destroy();
    const [host, port] = target.host.split(":");
    const far = connect(Number(port), host);
    const pair = { near, far };
    pairs.add(pair);
    const end = () => {
      pairs.delete(pair);
      near.destroy();
      far.destroy();
    };
    for (const socket of [near, far]) {
      socket.setNoDelay(true);
      socket.on("error", end);
      socket.on("close", end);
    }
    near.pipe(far);
    far.pipe(near);
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  const cut = () => {
    for (const { near, far } of [...pairs]) {
      near.destroy();
      far.destroy();
    }
  };
  cleanup(() => new Promise((resolve) => {
    server.close(resolve);
    cut();
  }));
  const { port } = server.address();
  return {
    host: `127.0.0.1:${port}`,
    port,
    url: `http://127.0.0.1:${port}`,
    /** Ends every connection without a word; new ones are taken. */
    cut,
    /** Takes new connections, or refuses them. */
    allow(yes) {
      open = yes;
    },
    /** Sends new connections to another node. */
    lead(to) {
      target = to;
    },
    get connections() {
      return pairs.size;
    },
  };
}
