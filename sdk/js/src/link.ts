import { planAfter, type Ending } from "./close.js";
import type { Clock } from "./clock.js";
import { Emitter } from "./emitter.js";
import { aboutToken, PetrelError } from "./errors.js";
import { Backoff, type BackoffOptions } from "./retry.js";
import type { Servers } from "./servers.js";
import type { OpenTransport, Transport } from "./transport.js";
import type { Heartbeat, ServerFrame } from "./types.js";

export type ConnectionState =
  | { phase: "idle" }
  | { phase: "connecting"; attempt: number }
  /**
   * quiet: nothing was heard for longer than the heartbeat allows; we have asked and wait for an answer.
   * stale: the node is out of touch with the others; newer things may exist elsewhere, and nothing can be sent.
   */
  | { phase: "live"; user: string; conn: string; node: string; quiet: boolean; stale: boolean }
  | { phase: "waiting"; attempt: number; retryAt: number; reason: string; offline: boolean }
  | { phase: "stopped"; error: PetrelError };

/** One try to connect that failed, or one connection that broke. Kept so that it can be reported later. */
export interface Attempt {
  /** "websocket", or "token" when it failed before anything was dialled. */
  transport: string;
  node: string;
  /** Close code, or 0 when no connection was tried (no token). */
  code: number;
  reason: string;
  status?: number;
  /** Epoch ms of its start. */
  at: number;
  duration_ms: number;
  /** Whether hello had been received. */
  was_live: boolean;
  attempt: number;
}

export type TokenSource = string | ((why: "start" | "reconnect" | "refused") => string | Promise<string>);

export interface LinkOptions {
  servers: Servers;
  token: TokenSource;
  clock: Clock;
  open: OpenTransport;
  backoff?: BackoffOptions;
  /** Ms from dialling to hello. Default 10,000. */
  helloTimeout?: number;
  /** Where online, offline and visibilitychange are heard; none outside a browser. */
  events?: Pick<EventTarget, "addEventListener" | "removeEventListener"> | undefined;
}

type Hello = Extract<ServerFrame, { op: "hello" }>;

interface LinkEvents {
  state: ConnectionState;
  /** A connection is authenticated and ready. */
  live: Hello;
  /** The connection is gone; nothing sent on it will be answered. */
  lost: void;
  /** Every frame that the link does not answer itself. */
  frame: ServerFrame;
}

const attemptsKept = 50;
/** A connection that held this long shows that the server is well again. */
const stableMs = 5_000;
/**
 * A node that stays out of touch for so long is left, if there are others, up to as much again later by chance; and
 * for so long when every one was found to be, as in an election that finds no winner.
 */
const staleMs = 2_000;
const allStaleMs = 30_000;

/**
 * Link keeps one connection to the server alive for as long as it is wanted: it dials, says who we
 * are, answers pings, notices silence, and comes back as the server's close codes ask.
 *
 * Invariants: at most one transport at a time; live and lost alternate; after stop nothing is emitted.
 */
export class Link extends Emitter<LinkEvents> {
  private transport: Transport | undefined;
  private timers: { retry?: unknown; hello?: unknown; watch?: unknown; stable?: unknown; move?: unknown; stale?: unknown } = {};
  private readonly backoff: Backoff;
  private dialled = 0; // number of the current dial; older ones are ignored
  private failures = 0; // in a row
  private url = ""; // of the current dial
  private to: string[] = []; // where the server says we had better go
  private staleNodes = 0; // in a row
  private startedAt = 0;
  private heartbeat: Heartbeat | undefined;
  private lastError: Extract<ServerFrame, { op: "error" }> | undefined;
  private notBefore = 0;
  private tokenRefused = false;
  private node = "";
  private heardAt = 0;
  private up = false; // live was emitted, lost not yet
  state: ConnectionState = { phase: "idle" };
  readonly attempts: Attempt[] = [];
  readonly counts = { dials: 0, redials: 0, lives: 0 };

  constructor(private readonly options: LinkOptions) {
    super();
    this.backoff = new Backoff(options.clock, { base: 1_000, ...options.backoff });
  }

  /** Starts connecting; does nothing when already at it. After a stop it starts anew. */
  start(): void {
    if (this.state.phase !== "idle" && this.state.phase !== "stopped") return;
    const events = this.options.events;
    events?.addEventListener("online", this.wake);
    events?.addEventListener("offline", this.wentOffline);
    events?.addEventListener("visibilitychange", this.wake);
    this.tokenRefused = false;
    this.backoff.reset();
    this.failures = 0;
    this.staleNodes = 0;
    this.dial("start");
  }

  /** Ends for good (until start). */
  stop(error = new PetrelError("closed", "The client was closed.")): void {
    const events = this.options.events;
    events?.removeEventListener("online", this.wake);
    events?.removeEventListener("offline", this.wentOffline);
    events?.removeEventListener("visibilitychange", this.wake);
    this.drop(1000, "bye");
    this.transport = undefined;
    this.lose();
    this.become({ phase: "stopped", error });
  }

  get live(): boolean {
    return this.state.phase === "live";
  }

  send(frame: object): void {
    if (this.live) this.transport?.send(frame);
  }

  /** Cuts a pause short: the person pressed "try now", or the network came back. */
  retryNow(): void {
    if (this.state.phase === "waiting") this.dial("reconnect");
  }

  private dial(why: "start" | "reconnect" | "refused"): void {
    const { clock } = this.options;
    this.clearTimers();
    const dial = ++this.dialled;
    const attempt = this.failures;
    this.url = this.options.servers.current;
    this.to = [];
    this.startedAt = clock.now();
    this.transport = undefined;
    this.lastError = undefined;
    this.notBefore = 0;
    this.counts.dials++;
    if (attempt > 0) this.counts.redials++;
    this.become({ phase: "connecting", attempt });
    this.timers.hello = clock.after(this.options.helloTimeout ?? 10_000, () => {
      this.drop(3000, "no hello");
      this.ended({ code: 1006, reason: "The server did not answer in time." });
    });
    const { token } = this.options;
    let provided: string | Promise<string>;
    try {
      provided = typeof token === "function" ? token(why) : token;
    } catch (error) {
      provided = Promise.reject(error);
    }
    Promise.resolve(provided).then(
      (value) => {
        if (dial !== this.dialled) return;
        this.connect(value, attempt, dial);
      },
      (error: unknown) => {
        if (dial !== this.dialled) return;
        const known = error instanceof PetrelError ? error : undefined;
        this.ended({
          code: 0,
          reason: error instanceof Error ? error.message : "No token could be had.",
          ...(known?.retryAfterMs === undefined ? {} : { retryAfterMs: known.retryAfterMs }),
          ...(known ? { status: known.status, error: known.code } : {}),
        });
      },
    );
  }

  private connect(token: string, attempt: number, dial: number): void {
    const { options } = this;
    this.heardAt = options.clock.now();
    try {
      this.transport = options.open({ url: this.url, token, attempt }, {
        opened: () => {},
        frame: (frame) => {
          if (dial === this.dialled) this.heard(frame);
        },
        ended: (end) => {
          if (dial === this.dialled) this.ended(end);
        },
      });
    } catch (error) {
      this.ended({ code: 0, reason: error instanceof Error ? error.message : String(error) });
    }
  }

  private heard(frame: ServerFrame): void {
    this.heardAt = this.options.clock.now();
    this.lastError = undefined; // it explains an ending only when nothing came between
    if (this.state.phase === "live") {
      if (this.state.quiet) this.become({ ...this.state, quiet: false });
      this.watch();
    }
    switch (frame.op) {
      case "hello":
        if (this.state.phase !== "connecting") return;
        this.clearTimers();
        this.heartbeat = frame.heartbeat;
        this.node = frame.node;
        this.tokenRefused = false;
        this.counts.lives++;
        this.become({ phase: "live", user: frame.user, conn: frame.conn, node: frame.node, quiet: false, stale: (frame.stale_ms ?? 0) > 0 });
        this.watch();
        this.up = true;
        this.timers.stable = this.options.clock.after(stableMs, () => {
          this.backoff.reset();
          this.failures = 0;
        });
        this.stale((frame.stale_ms ?? 0) > 0);
        this.emit("live", frame);
        return;
      case "stale":
        if (this.state.phase === "live") this.become({ ...this.state, stale: frame.for_ms > 0 });
        this.stale(frame.for_ms > 0);
        return;
      case "ping":
        this.transport?.send(frame.id === undefined ? { op: "pong" } : { op: "pong", id: frame.id });
        return;
      case "pong":
        return;
      case "reconnect":
        this.to = frame.to ?? [];
        this.moveAway(frame.after_ms ?? 0, frame.reason ?? "");
        return;
      case "error":
        if (frame.id === undefined) this.lastError = frame;
        this.emit("frame", frame);
        return;
      default:
        this.emit("frame", frame);
    }
  }

  /** The server asks us to reconnect in so many ms (it drains, or spreads load). Until then this connection serves. */
  private moveAway(afterMs: number, reason: string): void {
    const { clock } = this.options;
    this.notBefore = clock.now() + afterMs;
    clock.clear(this.timers.move);
    this.timers.move = clock.after(afterMs, () => {
      this.drop(1000, "moving");
      this.ended({ code: 4200, reason: reason || "The server asked to reconnect." });
    });
  }

  /** A node that is out of touch is left for another, in haste only while another may be better. */
  private stale(is: boolean): void {
    const { clock, servers } = this.options;
    clock.clear(this.timers.stale);
    if (!is) {
      this.staleNodes = 0;
      return;
    }
    if (servers.size === 1) return;
    const wait = this.staleNodes + 1 < servers.size ? staleMs : allStaleMs;
    this.timers.stale = clock.after(wait + clock.random() * wait, () => {
      this.staleNodes++;
      this.drop(1000, "stale");
      this.ended({ code: 4200, reason: "The node is out of touch with the others." });
    });
  }

  /** The heartbeat contract from this side: silence for interval + grace means that nobody is there. */
  private watch(): void {
    const { clock } = this.options;
    const beat = this.heartbeat;
    clock.clear(this.timers.watch);
    if (!beat || this.state.phase !== "live") return;
    const quiet = this.state.quiet;
    const limit = beat.interval_ms + (quiet ? beat.grace_ms : beat.grace_ms / 2);
    this.timers.watch = clock.after(Math.max(0, this.heardAt + limit - clock.now()), () => {
      if (this.state.phase !== "live") return;
      if (!quiet) {
        this.ask();
        return;
      }
      this.drop(3001, "silent");
      this.ended({ code: 1006, reason: "Nothing was heard from the server." });
    });
  }

  /** Half of the grace is over: say so, and ask. */
  private ask(): void {
    if (this.state.phase !== "live") return;
    this.become({ ...this.state, quiet: true });
    this.transport?.send({ op: "ping" });
    this.watch();
  }

  private readonly wake = (): void => {
    if (this.state.phase === "waiting") {
      // Many machines may get their network back together: a short jitter, not none.
      const { clock } = this.options;
      const retryAt = Math.min(this.state.retryAt, clock.now() + clock.random() * 1_000);
      if (this.notBefore <= retryAt) this.waitUntil(retryAt, { ...this.state, offline: false });
    } else if (this.state.phase === "live" && this.heartbeat) {
      // Timers slept with the machine. If the contract is already broken, do not wait for them.
      const silent = this.options.clock.now() - this.heardAt;
      if (silent > this.heartbeat.interval_ms + this.heartbeat.grace_ms) {
        this.drop(3001, "silent");
        this.ended({ code: 1006, reason: "Nothing was heard from the server." });
      } else if (silent > this.heartbeat.interval_ms) this.ask();
    }
  };

  private readonly wentOffline = (): void => {
    if (this.state.phase === "waiting") this.become({ ...this.state, offline: true });
    else if (this.state.phase === "live") this.ask();
  };

  private ended(end: Ending): void {
    const { clock } = this.options;
    const wasLive = this.live;
    if (this.lastError) {
      end.error ??= this.lastError.code;
      if (this.lastError.retry_after_ms !== undefined) end.retryAfterMs ??= this.lastError.retry_after_ms;
    }
    if (this.notBefore > clock.now()) end.retryAfterMs ??= this.notBefore - clock.now();
    const detail = this.lastError?.detail || end.reason || "The connection was lost.";
    this.note(end, wasLive);
    // 4201 was our own slowness, and without a token no server was asked.
    if (end.code !== 4201 && end.code !== 0) this.options.servers.leave(this.url, this.to);
    this.clearTimers();
    this.dialled++;
    this.transport = undefined;
    this.lose();
    const plan = planAfter(end);
    const why = end.error ?? end.reason;
    if (plan.next === "stop" && (aboutToken(why) || end.code === 4001 || end.code === 4002 || end.status === 401)) {
      // "Unchanged" we would be refused again; with a fresh token we are changed. Once.
      if (typeof this.options.token === "function" && !this.tokenRefused && end.code !== 0) {
        this.tokenRefused = true;
        this.backoff.next();
        this.failures++;
        this.dial("refused");
        return;
      }
    }
    if (plan.next === "stop") {
      this.stop(new PetrelError(end.error ?? codeOf(end), detail, { status: end.status ?? 0 }));
      return;
    }
    // A failure of one server says little of the next: only when all were tried is it time to back off.
    const first = this.failures++ === 0;
    const another = plan.next === "backoff" && this.failures % this.options.servers.size !== 0;
    const pause =
      plan.next === "at_once" && first ? (this.backoff.next(), clock.random() * 500)
      : another ? clock.random() * 500
      : this.backoff.next(plan.next === "pause" ? plan.atLeastMs : 0);
    const offline = typeof navigator === "object" && "onLine" in navigator && navigator.onLine === false;
    this.waitUntil(clock.now() + pause, {
      phase: "waiting", attempt: this.failures, retryAt: 0, reason: detail, offline,
    });
    this.notBefore = end.retryAfterMs ? clock.now() + end.retryAfterMs : 0;
  }

  private waitUntil(retryAt: number, state: Extract<ConnectionState, { phase: "waiting" }>): void {
    const { clock } = this.options;
    clock.clear(this.timers.retry);
    this.timers.retry = clock.after(Math.max(0, retryAt - clock.now()), () => this.dial("reconnect"));
    this.become({ ...state, retryAt });
  }

  private note(end: Ending, wasLive: boolean): void {
    this.attempts.push({
      transport: this.transport?.name ?? "token",
      node: this.node,
      code: end.code,
      reason: end.error ?? end.reason,
      ...(end.status === undefined ? {} : { status: end.status }),
      at: this.startedAt,
      duration_ms: this.options.clock.now() - this.startedAt,
      was_live: wasLive,
      attempt: this.failures,
    });
    if (this.attempts.length > attemptsKept) this.attempts.shift();
  }

  private drop(code: number, reason: string): void {
    this.dialled++;
    this.transport?.drop(code, reason);
    this.clearTimers();
  }

  private lose(): void {
    if (!this.up) return;
    this.up = false;
    this.emit("lost", undefined);
  }

  private become(state: ConnectionState): void {
    this.state = state;
    this.emit("state", state);
  }

  private clearTimers(): void {
    for (const timer of Object.values(this.timers)) if (timer !== undefined) this.options.clock.clear(timer);
    this.timers = {};
  }
}

function codeOf(end: Ending): string {
  if (end.code === 4001 || end.status === 401) return "invalid_token";
  if (end.code === 4002) return "token_expired";
  if (end.status === 403) return "forbidden";
  return /^[a-z_]{3,40}$/.test(end.reason) ? end.reason : "refused";
}
