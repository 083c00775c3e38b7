import type { Clock } from "../src/clock.js";
import type { OpenTransport, TransportHandlers, TransportRequest } from "../src/transport.js";
import type { RoomEvent, ServerFrame } from "../src/types.js";

/** A clock that stands still until told. */
export class FakeClock implements Clock {
  time = 1_700_000_000_000;
  chance = 0;
  private timers: { at: number; fn: () => void; id: number }[] = [];
  private lastId = 0;

  now = () => this.time;
  random = () => this.chance;

  after(ms: number, fn: () => void): number {
    this.timers.push({ at: this.time + ms, fn, id: ++this.lastId });
    return this.lastId;
  }

  clear(timer: unknown): void {
    this.timers = this.timers.filter((t) => t.id !== timer);
  }

  get waiting(): number {
    return this.timers.length;
  }

  /** Lets time pass, timer by timer, with all promises settled in between. */
  async advance(ms: number): Promise<void> {
    const end = this.time + ms;
    await settle();
    for (;;) {
      const next = this.timers.filter((t) => t.at <= end).sort((a, b) => a.at - b.at || a.id - b.id)[0];
      if (!next) break;
      this.clear(next.id);
      this.time = Math.max(this.time, next.at);
      next.fn();
      await settle();
    }
    this.time = end;
  }
}

/** Lets every promise that can be settled be settled. */
export const settle = () => new Promise<void>((resolve) => setImmediate(resolve));

/** Waits until the condition holds, and gives up with its text after so long that no slow machine is to blame. */
export async function until(condition: () => boolean): Promise<void> {
  const end = performance.now() + 30_000;
  while (!condition()) {
    if (performance.now() > end) throw new Error(`never came: ${condition.toString()}`);
    await settle();
  }
}

/** One dial of the client, played by the test. */
export class FakeWire {
  readonly sent: Record<string, unknown>[] = [];
  dropped: { code: number; reason: string } | undefined;

  constructor(readonly request: TransportRequest, private readonly handlers: TransportHandlers) {}

  say(frame: ServerFrame): void {
    this.handlers.frame(frame);
  }

  hello(more: Partial<Extract<ServerFrame, { op: "hello" }>> = {}): void {
    this.handlers.opened();
    this.say({ op: "hello", conn: "c", user: "ada", node: "n1", epoch: "e1", heartbeat: { interval_ms: 25_000, grace_ms: 10_000, epoch: 1 }, ...more });
  }

  end(code: number, reason = "", more: object = {}): void {
    this.handlers.ended({ code, reason, ...more });
  }

  /** Frames sent with that op. */
  of(op: string): Record<string, unknown>[] {
    return this.sent.filter((f) => f.op === op);
  }

  last(op: string): Record<string, unknown> & { id: number } {
    const found = this.of(op).at(-1);
    if (!found) throw new Error(`no ${op} was sent, only ${this.sent.map((f) => f.op).join(", ")}`);
    return found as Record<string, unknown> & { id: number };
  }
}

/** All dials of a client. */
export function fakeWires(): { open: OpenTransport; wires: FakeWire[]; last(): FakeWire } {
  const wires: FakeWire[] = [];
  return {
    wires,
    last: () => wires.at(-1)!,
    open: (request, handlers) => {
      const wire = new FakeWire(request, handlers);
      wires.push(wire);
      return { name: "fake", send: (frame) => void wire.sent.push(frame as Record<string, unknown>), drop: (code, reason) => void (wire.dropped = { code, reason }) };
    },
  };
}

export function event(room: string, seq: number, text = `text ${seq}`, user = "bob"): ServerFrame & RoomEvent {
  const at = "2026-01-02T03:04:05.678Z";
  return { op: "event", room, seq, type: "message.new", at, data: { id: `m${seq}`, room, seq, user, text, created_at: at } };
}
