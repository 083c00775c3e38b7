// What a test file begins with: the installations that run.js has started, or those it starts itself when it runs alone,
// and the ways in which a test is repeated.
import { after, test } from "node:test";

import { closeAll, transports as all } from "./raw.js";
import { Installation } from "./petrel.js";

const shared = process.env.CONFORMANCE_WORLDS ? JSON.parse(process.env.CONFORMANCE_WORLDS) : undefined;
const own = [];
const starting = new Map();

/** The installation of that many nodes which all tests share. Tests that hurt it start their own. */
export function installation(size) {
  if (!starting.has(size)) {
    starting.set(size, shared
      ? Promise.resolve(Installation.of(shared[size]))
      : Installation.start(size).then((made) => (own.push(made), made)));
  }
  return starting.get(size);
}

export const sizes = [1, 3].filter((n) => !process.env.CONFORMANCE_NODES || process.env.CONFORMANCE_NODES.split(",").includes(String(n)));
export const transports = all.filter((t) => !process.env.CONFORMANCE_TRANSPORT || process.env.CONFORMANCE_TRANSPORT.split(",").includes(t));

/** Fixtures that a test leaves behind are closed when its file ends. */
const cleanups = [];
export const cleanup = (fn) => cleanups.push(fn);
after(async () => {
  closeAll();
  for (const fn of cleanups.reverse()) await fn();
  for (const made of own) await made.stop();
});

/** A generous end for one test: a wait inside of it complains first, with what it saw. */
const timeout = 180_000;

/** A test on one node, and on three. */
export function onNodes(name, body, { only = sizes, ...options } = {}) {
  for (const size of sizes.filter((n) => only.includes(n))) {
    test(`${name} [${size === 1 ? "one node" : `${size} nodes`}]`, { timeout, ...options }, async (t) => body({ world: await installation(size), size, t }));
  }
}

/** A test on one node and on three, over every transport. */
export function everyWay(name, body, { transports: ways = transports, only = sizes, ...options } = {}) {
  for (const size of sizes.filter((n) => only.includes(n))) {
    for (const transport of ways.filter((w) => transports.includes(w))) {
      test(`${name} [${size === 1 ? "one node" : `${size} nodes`}, ${transport}]`, { timeout, ...options }, async (t) => body({ world: await installation(size), size, transport, t }));
    }
  }
}

let count = 0;
/** A name that no other test uses. */
export const fresh = (prefix) => `${prefix}${process.pid}-${++count}-${Math.random().toString(36).slice(2, 8)}`;
