import { aboutToken, PetrelError } from "./errors.js";
import type { OutboxStorage, Unsent } from "./storage.js";
import type { Message } from "./types.js";

/** A message handed to send. */
export interface Sending extends Unsent {
  /** Resolves when the message is durable on the server, rejects when it is refused for good. */
  acknowledged: Promise<Message>;
}

/** What the outbox needs from the client. */
export interface OutboxHost {
  live(): boolean;
  /** Sends the message; exactly one of ok and error is called if an answer comes on this connection. */
  post(message: Unsent, retry: number, ok: (message: Message) => void, error: (error: PetrelError) => void): void;
  later(ms: number, fn: () => void): unknown;
  cancel(timer: unknown): void;
  now(): number;
  pause(attempt: number, atLeast?: number): number;
  /** Takes a retry from the budget, or says how long to wait for one. */
  retryIn(): number;
  first(): void;
  failed(error: unknown): void;
}

interface Entry {
  message: Unsent;
  stored: boolean;
  tries: number;
  settle: { resolve(message: Message): void; reject(error: PetrelError): void };
  sending: Sending;
}

interface Lane {
  entries: Entry[];
  /** The first entry is on the wire. */
  busy: boolean;
  timer: unknown;
  /** The server asked for a pause until then; it holds across a reconnect. */
  notBefore: number;
}

/** Without an answer for so long on a connection that otherwise lives, the same id is sent again. */
const answerMs = 20_000;
/** A server that answers "internal" to the same message so often will not take it. */
const internalTries = 6;

/**
 * Messages between the sender's key press and the server's acknowledgement.
 *
 * Each has an id from the start and is sent again with the same id until it is answered, over any
 * number of connections; the server recognises a repeat (promise 4 of the design). One message per room is on the wire at a
 * time, so a room gets them in the order in which they were written, even when one must be
 * repeated. Rooms do not wait for each other.
 */
export class Outbox {
  private readonly lanes = new Map<string, Lane>();
  private readonly byId = new Map<string, Entry>();
  private lastAt = 0;
  private closed: PetrelError | undefined;

  constructor(private readonly host: OutboxHost, private readonly storage?: OutboxStorage) {}

  /** Takes up what an earlier life of the page left unsent. Call once, before the first add. */
  async restore(): Promise<Sending[]> {
    const found = (await this.storage?.load()) ?? [];
    return found.filter((m) => !this.byId.has(m.id)).map((m) => {
      const sending = this.enqueue(m, true);
      // Nobody may be waiting for these; a refusal is seen by those who ask.
      sending.acknowledged.catch(() => {});
      return sending;
    });
  }

  add(message: Omit<Unsent, "at">): Sending {
    const known = this.byId.get(message.id);
    if (known) return known.sending;
    this.lastAt = Math.max(this.host.now(), this.lastAt + 1);
    return this.enqueue({ ...message, at: this.lastAt }, false);
  }

  /** Everything not acknowledged, in the order written per room. */
  pending(room?: string): Sending[] {
    const lanes = room === undefined ? [...this.lanes.values()] : [this.lanes.get(room)].filter((l) => l !== undefined);
    return lanes.flatMap((lane) => lane.entries.map((entry) => entry.sending));
  }

  /** Gives a message up that was not acknowledged. It may have reached the server all the same. */
  discard(id: string): void {
    const entry = this.byId.get(id);
    if (entry) this.finish(entry, () => entry.settle.reject(new PetrelError("closed", "The message was discarded before it was acknowledged.")));
  }

  /** A connection is there. */
  resume(): void {
    for (const lane of this.lanes.values()) {
      lane.busy = false;
      this.pump(lane);
    }
  }

  /** The connection is gone: what was on the wire has an unknown outcome and will be sent again. */
  lost(): void {
    for (const lane of this.lanes.values()) {
      lane.busy = false;
      this.host.cancel(lane.timer);
    }
  }

  /** An event shows that the message is durable: as good as the acknowledgement that got lost. */
  seen(message: Message): void {
    const entry = this.byId.get(message.id);
    if (entry && entry.tries > 0 && entry.message.room === message.room) this.finish(entry, () => entry.settle.resolve(message));
  }

  /** Rejects everyone who waits; what is in storage stays there for the next life. */
  close(error: PetrelError): void {
    this.closed = error;
    this.lost();
    for (const entry of this.byId.values()) entry.settle.reject(error);
    this.byId.clear();
    this.lanes.clear();
  }

  private enqueue(message: Unsent, stored: boolean): Sending {
    if (this.closed) throw this.closed;
    this.lastAt = Math.max(this.lastAt, message.at);
    let settle!: Entry["settle"];
    const acknowledged = new Promise<Message>((resolve, reject) => (settle = { resolve, reject }));
    const entry: Entry = { message, stored, tries: 0, settle, sending: { ...message, acknowledged } };
    this.byId.set(message.id, entry);
    let lane = this.lanes.get(message.room);
    if (!lane) this.lanes.set(message.room, (lane = { entries: [], busy: false, timer: undefined, notBefore: 0 }));
    lane.entries.push(entry);
    if (stored || !this.storage) {
      entry.stored = true;
      this.pump(lane);
    } else void this.store(entry, lane, this.storage);
    return entry.sending;
  }

  private async store(entry: Entry, lane: Lane, storage: OutboxStorage): Promise<void> {
    try {
      await storage.put(entry.message);
    } catch (error) {
      // Storage full or forbidden: sending it now is worth more than surviving a reload.
      this.host.failed(error);
    }
    entry.stored = true;
    this.pump(lane);
  }

  private pump(lane: Lane): void {
    const entry = lane.entries[0];
    if (!entry || lane.busy || !entry.stored || !this.host.live()) return;
    this.host.cancel(lane.timer);
    const pause = lane.notBefore - this.host.now();
    if (pause > 0) {
      lane.timer = this.host.later(pause, () => this.pump(lane));
      return;
    }
    if (entry.tries === 0) this.host.first();
    else {
      const wait = this.host.retryIn();
      if (wait > 0) {
        lane.timer = this.host.later(wait, () => this.pump(lane));
        return;
      }
    }
    const retry = entry.tries++;
    lane.busy = true;
    const again = (ms: number) => {
      lane.busy = false;
      lane.notBefore = this.host.now() + ms;
      this.pump(lane);
    };
    lane.timer = this.host.later(answerMs, () => again(0));
    this.host.post(entry.message, retry,
      (message) => this.finish(entry, () => entry.settle.resolve(message)),
      (error) => {
        if (lane.entries[0] !== entry) return; // a late answer to an earlier try
        const givenUp = error.code === "internal" && entry.tries >= internalTries;
        if ((error.retryable || aboutToken(error.code)) && !givenUp) again(this.host.pause(retry, error.retryAfterMs));
        else this.finish(entry, () => entry.settle.reject(error));
      });
  }

  private finish(entry: Entry, settle: () => void): void {
    if (this.byId.get(entry.message.id) !== entry) return;
    this.byId.delete(entry.message.id);
    if (this.storage) {
      void Promise.resolve().then(() => this.storage?.remove(entry.message.id)).catch((error: unknown) => this.host.failed(error));
    }
    settle();
    const lane = this.lanes.get(entry.message.room);
    if (!lane) return;
    const first = lane.entries[0] === entry;
    lane.entries.splice(lane.entries.indexOf(entry), 1);
    if (!first) return;
    lane.busy = false;
    this.host.cancel(lane.timer);
    if (lane.entries.length === 0) this.lanes.delete(entry.message.room);
    else this.pump(lane);
  }
}
