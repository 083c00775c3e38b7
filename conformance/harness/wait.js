// Waiting for what must come. Patience says nothing about speed: it is for machines that are busy with something else.
import { setTimeout as pause } from "node:timers/promises";

/** How long anything may take before a test gives up, in milliseconds. */
export const patience = Number(process.env.CONFORMANCE_PATIENCE ?? 90_000);

/** Asks until the answer is true. what completes the sentence "waited in vain for …". */
export async function poll(what, ask, { explain, ms = patience } = {}) {
  for (const end = Date.now() + ms; ;) {
    if (await ask()) return;
    if (Date.now() > end) throw new Error(`waited in vain for ${what}${explain ? `:\n${explain()}` : ""}`);
    await pause(25); // between two questions
  }
}

/** The value of a promise that must come. */
export function within(what, promise, { explain, ms = patience } = {}) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`waited in vain for ${what}${explain ? `:\n${explain()}` : ""}`)), ms);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

/**
 * Things that arrive, in order, and those who wait for them. A thing is taken by the first who matches it, so that
 * what was expected once is not found twice; what nobody took stays visible in `all` and `left`.
 */
export class Inbox {
  constructor(name) {
    this.name = name;
    this.all = [];
    this.left = [];
    this.waiters = [];
    this.ended = undefined;
  }

  put(thing) {
    this.all.push(thing);
    const i = this.waiters.findIndex((w) => w.match(thing));
    if (i < 0) {
      this.left.push(thing);
      return;
    }
    const [w] = this.waiters.splice(i, 1);
    w.resolve(thing);
  }

  /** Nothing more will come: who still waits is told why. */
  end(why) {
    this.ended = why;
    for (const w of this.waiters.splice(0)) w.reject(new Error(`${this.name} ended (${why}) before ${w.what} came; ${this.story()}`));
  }

  /** The next thing that matches: one that is here already, or one that comes. */
  take(what, match) {
    const i = this.left.findIndex(match);
    if (i >= 0) return Promise.resolve(this.left.splice(i, 1)[0]);
    if (this.ended !== undefined) return Promise.reject(new Error(`${this.name} has ended (${this.ended}) and ${what} did not come; ${this.story()}`));
    const come = new Promise((resolve, reject) => this.waiters.push({ what, match, resolve, reject }));
    come.catch(() => {}); // told to whoever awaits it, below
    return within(`${what} at ${this.name}`, come, { explain: () => this.story() });
  }

  /** How many of those that nobody took match. */
  count(match) {
    return this.left.filter(match).length;
  }

  story() {
    const shown = this.all.slice(-20).map((t) => JSON.stringify(t)?.slice(0, 400));
    return `it saw ${this.all.length}:\n  ${shown.join("\n  ")}`;
  }
}
