import { Company, type CompanyHandlers } from "./company.js";
import { PetrelError } from "./errors.js";
import type { PresenceEvent, ResyncReason, RoomEvent, ServerFrame } from "./types.js";

export interface Resync {
  room: string;
  /** epoch: the log began a new life; ahead: the server knows less than we; too_old: too far behind to replay. */
  reason: ResyncReason;
  /** Seq of the room's last event on the server. */
  head: number;
}

export interface SubscriptionHandlers extends CompanyHandlers {
  /**
   * Called for every event after the starting point, in order, each exactly once, one at a
   * time: the next waits until the promise returned is settled.
   */
  event(event: RoomEvent): void | Promise<void>;
  /** The server can not replay what is missing: load the state anew, then call restart. Nothing is delivered until then. */
  resync?(resync: Resync): void;
  /** Refused for good, for example forbidden or room_deleted. */
  refused?(error: PetrelError): void;
  /**
   * The right to read has ended while subscribed: room_not_found (removed from the room) or room_deleted. Called after the last event's handler is done; the
   * subscription is over for good and its room may be subscribed to anew. Left away: refused is called.
   */
  ended?(error: PetrelError): void;
  /** True when caught up to what the server said was the head, false when the connection is lost or the subscription over. */
  current?(current: boolean): void;
}

export interface Start {
  /** Deliver what came after this seq. Left away: from now. */
  after?: number;
  epoch?: string;
}

/** What a subscription needs from the client. */
export interface SubscriptionHost {
  send(frame: object): void;
  live(): boolean;
  /** Sends a frame with a fresh id; exactly one of ok and error is called if an answer comes on this connection. */
  /** The newest position that we know of for a room; and what to do when the server says it means nothing. */
  position(room: string): string | undefined;
  forget(): void;
  me(): string | undefined;
  ask(frame: object, ok: (frame: Extract<ServerFrame, { op: "ok" }>) => void, error: (error: PetrelError) => void): void;
  later(ms: number, fn: () => void): unknown;
  cancel(timer: unknown): void;
  pause(attempt: number, atLeast?: number): number;
  failed(error: unknown): void;
  count(what: "events" | "duplicates" | "gaps" | "resyncs"): void;
}

/** So many events may wait for a slow handler; then we stop listening and resume from the position when it has caught up. */
const queueLimit = 5_000;

/**
 * One room, followed from an exact position across any number of connections.
 *
 * Invariants: what is queued has consecutive seqs; position is the seq of the last event
 * queued, so a resume asks for exactly what is missing.
 */
export class Subscription {
  /** Seq of the last event received; undefined until the first answer of a subscription from now. */
  private received: number | undefined;
  private delivered_: number | undefined;
  private epoch: string | undefined;
  private head = 0;
  private mode: "off" | "asking" | "on" | "resync" | "full" | "closed" = "off";
  private asked = 0; // number of the current question; answers to older ones are ignored
  private readonly queue: RoomEvent[] = [];
  private working = false;
  private life = 0; // counts restarts; what was queued before one is void
  private refusals = 0;
  private retry: unknown;
  private isCurrent = false;
  private ending: PetrelError | undefined; // told when the queue is worked off
  private readonly company: Company;

  constructor(
    readonly room: string,
    start: Start,
    private readonly handlers: SubscriptionHandlers,
    private readonly host: SubscriptionHost,
    private readonly closed: () => void,
  ) {
    this.received = start.after;
    this.delivered_ = start.after;
    this.epoch = start.epoch;
    this.company = new Company(handlers, host);
  }

  /** Seq of the last event that the handler has finished with: what to store to go on from later. */
  get position(): { after: number | undefined; epoch: string | undefined } {
    return { after: this.delivered_, epoch: this.epoch };
  }

  /** After a resync: go on from the state that was loaded. */
  restart(start: Start = {}): void {
    if (this.mode === "closed") return;
    this.unask();
    this.life++;
    this.queue.length = 0;
    this.received = this.delivered_ = start.after;
    this.epoch = start.epoch;
    this.resume();
  }

  close(): void {
    this.ending = undefined;
    if (this.mode === "closed") {
      this.queue.length = 0; // it had ended, and its last events were still waiting
      return;
    }
    this.unask();
    this.mode = "closed";
    this.queue.length = 0;
    this.closed();
  }

  /** A connection is there (again). Called by the client. */
  resume(): void {
    if (this.mode === "closed" || this.mode === "resync" && this.received !== undefined) return;
    if (this.queue.length >= queueLimit) {
      this.mode = "full";
      return;
    }
    this.host.cancel(this.retry);
    this.mode = "off";
    if (!this.host.live()) return;
    this.mode = "asking";
    const asked = ++this.asked;
    // A node that has not yet applied what another one showed us waits for it, instead of saying that it never was.
    const position = this.received === undefined ? undefined : this.host.position(this.room);
    const frame = {
      op: "subscribe", room: this.room,
      ...(this.company.wanted ? { presence: true } : {}),
      ...(position === undefined ? {} : { position }),
      ...(this.received === undefined ? {} : { after: this.received }),
      ...(this.received === undefined || this.epoch === undefined ? {} : { epoch: this.epoch }),
    };
    this.host.ask(frame, (ok) => {
      if (asked !== this.asked || this.mode !== "asking") return;
      this.mode = "on";
      this.refusals = 0;
      this.received ??= ok.head ?? 0;
      this.delivered_ ??= this.received;
      if (ok.epoch !== undefined) this.epoch = ok.epoch;
      this.head = ok.head ?? 0;
      this.tellCurrent();
    }, (error) => {
      if (asked !== this.asked || this.mode !== "asking") return;
      this.mode = "off";
      if (position !== undefined && (error.code === "invalid_position" || error.code === "epoch_changed")) {
        this.host.forget();
        this.resume();
        return;
      }
      if (error.retryable) {
        this.retry = this.host.later(this.host.pause(this.refusals++, error.retryAfterMs), () => this.resume());
        return;
      }
      this.mode = "closed";
      this.closed();
      this.guard(() => this.handlers.refused?.(error));
    });
  }

  /** The connection is gone. Called by the client. */
  lost(): void {
    this.host.cancel(this.retry);
    this.asked++;
    if (this.mode === "on" || this.mode === "asking") this.mode = "off";
    this.company.lost();
    this.setCurrent(false);
  }

  /** Called by the client for what has no seq. */
  takeEphemeral(event: PresenceEvent): void {
    if (this.mode === "on") this.company.take(event);
  }

  /** Called by the client for a list of who is there. */
  takePresence(frame: Extract<ServerFrame, { op: "presence" }>): void {
    if (this.mode === "on") this.company.takeList(frame);
  }

  /** Called by the client for each event frame of the room. */
  take(event: RoomEvent): void {
    // Between our question and its answer the wire may still hold events of the time before.
    if (this.mode !== "on" || this.received === undefined) return;
    if (event.seq <= this.received) {
      this.host.count("duplicates");
      return;
    }
    if (event.seq !== this.received + 1) {
      this.host.count("gaps");
      this.ask();
      return;
    }
    if (this.queue.length >= queueLimit) {
      this.unask();
      this.mode = "full";
      return;
    }
    this.received = event.seq;
    if (event.type === "message.new") this.company.stops(event.data.user);
    this.queue.push(event);
    this.host.count("events");
    void this.work();
  }

  /** Called by the client for a resync frame of the room. */
  takeResync(resync: Resync): void {
    if (this.mode === "closed") return;
    this.host.count("resyncs");
    this.asked++;
    this.mode = "resync";
    this.received ??= 0;
    this.company.lost();
    this.setCurrent(false);
    this.guard(() => this.handlers.resync?.(resync));
  }

  /** Called by the client for an unsubscribed frame of the room. */
  takeEnd(error: PetrelError): void {
    // Not subscribed now means that the frame is about the time before: the answer to the next question says what holds.
    if (this.mode !== "on") return;
    this.asked++;
    this.mode = "closed";
    this.closed();
    this.company.lost();
    this.setCurrent(false);
    this.ending = error;
    if (!this.working) this.tellEnd();
  }

  private tellEnd(): void {
    const error = this.ending;
    this.ending = undefined;
    if (!error) return;
    this.guard(() => {
      if (this.handlers.ended) this.handlers.ended(error);
      else this.handlers.refused?.(error);
    });
  }

  /** Asks again from where we are, on the same connection. */
  private ask(): void {
    this.unask();
    this.resume();
  }

  private unask(): void {
    this.host.cancel(this.retry);
    this.asked++;
    if (this.mode === "on" || this.mode === "asking" || this.mode === "resync") this.host.ask({ op: "unsubscribe", room: this.room }, () => {}, () => {});
    this.mode = "off";
    this.company.lost();
    this.setCurrent(false);
  }

  private async work(): Promise<void> {
    if (this.working) return;
    this.working = true;
    for (let event = this.queue.shift(); event !== undefined; event = this.queue.shift()) {
      const life = this.life;
      try {
        const done = this.handlers.event(event);
        if (done) await done;
      } catch (error) {
        this.host.failed(error);
      }
      if (life !== this.life) continue;
      this.delivered_ = event.seq;
      if (this.mode === "full" && this.queue.length < queueLimit / 10) this.resume();
      this.tellCurrent();
    }
    this.working = false;
    this.tellEnd();
  }

  private tellCurrent(): void {
    if (this.mode === "on" && !this.isCurrent && (this.delivered_ ?? 0) >= this.head) this.setCurrent(true);
  }

  private setCurrent(current: boolean): void {
    if (this.isCurrent === current) return;
    this.isCurrent = current;
    this.guard(() => this.handlers.current?.(current));
  }

  private guard(fn: () => void): void {
    try {
      fn();
    } catch (error) {
      this.host.failed(error);
    }
  }
}
