import type { Presence, PresenceEvent, ServerFrame } from "./types.js";

export interface CompanyHandlers {
  /** Who is in the room now; called with the whole each time it changes. Having it makes the subscription ask for it. */
  presence?(presence: Presence): void;
  /** Who is typing now, without ourselves, in the order in which they began. */
  typing?(users: string[]): void;
}

export interface CompanyHost {
  me(): string | undefined;
  later(ms: number, fn: () => void): unknown;
  cancel(timer: unknown): void;
  failed(error: unknown): void;
}

/** A start that is not repeated for so long is over: its stop was lost. The server repeats it every 3 s. */
const typingMs = 8_000;

/** Who is there and who is typing in one room. Nothing of it survives a connection: the next one tells it anew. */
export class Company {
  private readonly here = new Set<string>();
  private count = 0;
  private readonly typers = new Map<string, unknown>();

  constructor(private readonly handlers: CompanyHandlers, private readonly host: CompanyHost) {}

  get wanted(): boolean {
    return this.handlers.presence !== undefined;
  }

  takeList(frame: Extract<ServerFrame, { op: "presence" }>): void {
    if (frame.users) {
      this.here.clear();
      for (const { user } of frame.users) this.here.add(user);
    }
    this.count = frame.count;
    this.tellPresence();
  }

  take(event: PresenceEvent): void {
    const { user } = event.data;
    switch (event.type) {
      case "presence.join":
        if (this.here.has(user)) return;
        this.here.add(user);
        this.count++;
        return this.tellPresence();
      case "presence.leave":
        if (!this.here.delete(user)) return;
        this.count--;
        this.stops(user);
        return this.tellPresence();
      case "typing.start":
        return this.starts(user);
      case "typing.stop":
        return this.stops(user);
    }
  }

  /** What somebody typed has come, or they left. */
  stops(user: string): void {
    if (!this.typers.has(user)) return;
    this.host.cancel(this.typers.get(user));
    this.typers.delete(user);
    this.tellTyping();
  }

  /** The connection or the subscription is gone. Who was there stays known until the next list. */
  lost(): void {
    if (this.typers.size === 0) return;
    for (const timer of this.typers.values()) this.host.cancel(timer);
    this.typers.clear();
    this.tellTyping();
  }

  private starts(user: string): void {
    if (user === this.host.me()) return; // in another window
    const known = this.typers.has(user);
    if (known) this.host.cancel(this.typers.get(user));
    this.typers.set(user, this.host.later(typingMs, () => this.stops(user)));
    if (!known) this.tellTyping();
  }

  private tellPresence(): void {
    this.guard(() => this.handlers.presence?.({ users: [...this.here].sort(), count: this.count }));
  }

  private tellTyping(): void {
    this.guard(() => this.handlers.typing?.([...this.typers.keys()]));
  }

  private guard(fn: () => void): void {
    try {
      fn();
    } catch (error) {
      this.host.failed(error);
    }
  }
}
