import { systemClock, type Clock } from "./clock.js";
import { Emitter } from "./emitter.js";
import { PetrelError } from "./errors.js";
import { Follow, type FollowHandlers } from "./follow.js";
import { Http } from "./http.js";
import { newId } from "./ids.js";
import { Link, type Attempt, type ConnectionState, type TokenSource } from "./link.js";
import { Outbox, type Sending } from "./outbox.js";
import { Backoff, RetryBudget, type BackoffOptions } from "./retry.js";
import type { OutboxStorage } from "./storage.js";
import { Servers, tidy } from "./servers.js";
import { Subscription, type Start, type SubscriptionHandlers } from "./subscription.js";
import { webSocketTransport, type OpenTransport, type WebSocketConstructor } from "./transport.js";
import type { Draft, Member, Message, Page, Presence, Role, Room, RoomEvent, RoomKind, ServerFrame } from "./types.js";

export interface PetrelOptions {
  /** Address of the server, for example https://chat.example.org. Default: the page's own origin. */
  url?: string;
  /** Instead: addresses of several nodes of one cell. The first is tried first; when one fails or asks us to leave, the next takes over where it ended. */
  urls?: string[];
  /** A token, or a function that gets one: it is called anew when the server says that the last one is refused or expired. */
  token: TokenSource;
  /** Needed in Node 20, for example the one of `ws`; browsers and Node ≥ 22 have their own. */
  WebSocket?: WebSocketConstructor;
  fetch?: typeof fetch;
  /** Where unsent messages survive a reload. Default: memory only. */
  storage?: OutboxStorage;
  backoff?: BackoffOptions;
  /** Ms from dialling to hello. Default 10,000. */
  helloTimeout?: number;
  /** For tests. */
  clock?: Clock;
  transport?: OpenTransport;
}

export interface ClientEvents {
  state: ConnectionState;
  /** Something of yours threw (a handler, the storage), or an answer made no sense. Never fatal. */
  problem: unknown;
  /** The messages waiting for acknowledgement changed. */
  outbox: void;
}

export interface Diagnostics {
  state: ConnectionState;
  /** The last fifty failed or broken connections, oldest first. */
  attempts: Attempt[];
  connections: { dials: number; redials: number; lives: number };
  requests: { first: number; retries: number; denied: number };
  delivery: { events: number; duplicates: number; gaps: number; resyncs: number };
  outbox: number;
}

const typingEveryMs = 3_000;
const typingEndsMs = 6_000;

type Ok = Extract<ServerFrame, { op: "ok" }>;
interface Question {
  ok(frame: Ok): void;
  error(error: PetrelError): void;
}

/**
 * A client of one Petrel server, as one user: one connection, any number of rooms on it.
 *
 * What it promises: a subscription sees every event after its start once and in order or is told to resync;
 * a message handed to send is acknowledged, refused with a code, or still waiting,
 * and never posted twice; it never comes back faster than the server asks.
 */
export class Petrel extends Emitter<ClientEvents> {
  private readonly clock: Clock;
  private readonly link: Link;
  private readonly http: Http;
  private readonly outbox: Outbox;
  private readonly budget: RetryBudget;
  private readonly subscriptions = new Map<string, Subscription>();
  private readonly questions = new Map<number, Question>();
  private readonly delivery = { events: 0, duplicates: 0, gaps: 0, resyncs: 0 };
  private readonly typed = new Map<string, number>(); // when we last said in which room that we type
  private lastId = 0;
  private restored: Promise<void> | undefined;
  private cachedToken: string | undefined;
  private refreshing: Promise<string> | undefined;
  private user: string | undefined;

  constructor(private readonly options: PetrelOptions) {
    super();
    const clock = (this.clock = options.clock ?? systemClock);
    const urls = [...new Set((options.urls ?? [options.url ?? globalThis.location?.origin ?? ""]).map(tidy))];
    if (urls.length === 0 || !urls.every((url) => /^https?:\/\//.test(url))) throw new TypeError("Petrel needs an http(s) url.");
    const servers = new Servers(urls);
    const Socket = options.WebSocket ?? (globalThis.WebSocket as WebSocketConstructor | undefined);
    if (!options.transport && !Socket) throw new TypeError("This runtime has no WebSocket: pass one, for example that of the package ws.");
    this.budget = new RetryBudget(clock);
    const target = globalThis as Partial<Pick<EventTarget, "addEventListener" | "removeEventListener">>;
    this.link = new Link({
      servers, clock,
      token: (why) => this.token(why === "refused" ? this.cachedToken : undefined),
      open: options.transport ?? webSocketTransport(Socket!),
      ...(options.backoff ? { backoff: options.backoff } : {}),
      ...(options.helloTimeout === undefined ? {} : { helloTimeout: options.helloTimeout }),
      events: typeof target.addEventListener === "function" ? (target as EventTarget) : undefined,
    });
    this.http = new Http({ servers, clock, budget: this.budget, token: (refused) => this.token(refused), fetch: options.fetch ?? ((...args) => fetch(...args)) });
    this.outbox = this.makeOutbox();
    this.link.on("state", (state) => this.emit("state", state));
    this.link.on("frame", (frame) => this.take(frame));
    this.link.on("lost", () => this.lost());
    this.link.on("live", (hello) => {
      this.user = hello.user;
      for (const subscription of [...this.subscriptions.values()]) subscription.resume();
      this.outbox.resume();
    });
  }

  /** Starts connecting and takes up unsent messages. Resolves when the latter are known; the connection is told by "state". */
  connect(): Promise<void> {
    this.link.start();
    return (this.restored ??= this.outbox.restore().then(
      () => this.emit("outbox", undefined),
      (error: unknown) => this.emit("problem", error),
    ));
  }

  /** Ends for good. Waiting sends reject with "closed"; with a storage they go out in the next life. */
  close(): void {
    const error = new PetrelError("closed", "The client was closed.");
    this.link.stop(error);
    for (const subscription of [...this.subscriptions.values()]) subscription.close();
    this.outbox.close(error);
  }

  get state(): ConnectionState {
    return this.link.state;
  }

  /** The user that the server takes us for; known after the first hello. */
  get me(): string | undefined {
    return this.user;
  }

  /** Cuts the present pause between two tries short. */
  retryNow(): void {
    if (this.link.state.phase === "stopped") this.link.start();
    else this.link.retryNow();
  }

  // Rooms, live.

  /** Follows a room's events from a position. One subscription per room and client. */
  subscribe(room: string, start: Start, handlers: SubscriptionHandlers): Subscription {
    if (this.subscriptions.has(room)) throw new Error(`There is a subscription to ${room} already.`);
    const subscription = new Subscription(room, start, handlers, {
      send: (frame) => this.link.send(frame),
      live: () => this.link.live,
      ask: (frame, ok, error) => {
        const { asked } = this.http;
        this.ask(frame, (answer) => {
          this.http.saw(room, answer.position, asked);
          ok(answer);
        }, error);
      },
      position: () => this.http.position(room),
      forget: () => this.http.forget(),
      me: () => this.user,
      later: (ms, fn) => this.clock.after(ms, fn),
      cancel: (timer) => this.clock.clear(timer),
      pause: (attempt, atLeast) => this.pause(attempt, atLeast),
      failed: (error) => this.emit("problem", error),
      count: (what) => void this.delivery[what]++,
    }, () => {
      if (this.subscriptions.get(room) === subscription) this.subscriptions.delete(room);
    });
    this.subscriptions.set(room, subscription);
    subscription.resume();
    return subscription;
  }

  /** Loads the newest messages, then follows; loads anew by itself when the server says resync. */
  follow(room: string, handlers: FollowHandlers, options: { limit?: number } = {}): Follow {
    return new Follow(room, handlers, {
      page: (signal) => this.messages(room, { limit: options.limit ?? 50 }, signal),
      subscribe: (start, h) => this.subscribe(room, start, h),
      later: (ms, fn) => this.clock.after(ms, fn),
      cancel: (timer) => this.clock.clear(timer),
      pause: (attempt, atLeast) => this.pause(attempt, atLeast),
      failed: (error) => this.emit("problem", error),
    });
  }

  /** Puts a message on its way; works at any time, connected or not. */
  send(room: string, draft: Draft): Sending {
    const sending = this.outbox.add({ ...draft, room, id: draft.id ?? newId(this.clock) });
    const changed = () => this.emit("outbox", undefined);
    this.typing(room, false); // the message says so, but a server that knows can tell the next start at once
    sending.acknowledged.then(changed, changed);
    changed();
    return sending;
  }

  /**
   * Tells the room that we are typing, or with active false no more. Call it with every key: it is said at most every three seconds, and
   * only to a room that is subscribed to. It ends by itself six seconds after the last word, and with a message.
   */
  typing(room: string, active = true): void {
    const last = this.typed.get(room);
    const now = this.clock.now();
    if (active ? last !== undefined && now - last < typingEveryMs : last === undefined || now - last > typingEndsMs) return;
    if (!this.link.live || !this.subscriptions.has(room)) return;
    if (active) this.typed.set(room, now);
    else this.typed.delete(room);
    this.ask({ op: "typing", room, active }, () => {}, () => {}); // a courtesy: what is refused is not worth a word
  }

  /** What is not acknowledged yet, in the order written. */
  unsent(room?: string): Sending[] {
    return this.outbox.pending(room);
  }

  discard(id: string): void {
    this.outbox.discard(id);
    this.emit("outbox", undefined);
  }

  // The HTTP API.

  /** The rooms that we are in; with open also those that we may join. Read page by page, at most limit. */
  rooms(options: { open?: boolean; limit?: number } = {}, signal?: AbortSignal): Promise<Room[]> {
    const { open, limit = 1_000 } = options;
    return paged(limit, async (after, size) => {
      const query = { limit: size, after, ...(open ? { open: "true" } : {}) };
      const answer = await this.http.call<{ rooms: Room[]; more?: boolean }>("GET", "/v1/rooms", { query, ...sig(signal) });
      return { items: answer.rooms, last: answer.rooms.at(-1)?.id, more: answer.more };
    });
  }

  async room(room: string, signal?: AbortSignal): Promise<Room> {
    return unwrap(await this.http.call<Room | { room: Room }>("GET", at(room), { room, ...sig(signal) }));
  }

  async createRoom(spec: { id?: string; kind: RoomKind; name?: string; members?: string[]; custom?: Record<string, unknown> }): Promise<Room> {
    // The id makes a repeat safe; a direct room is found by its people and takes none.
    const body = spec.kind === "direct" ? spec : { id: newId(this.clock), ...spec };
    return unwrap(await this.http.call<Room | { room: Room }>("POST", "/v1/rooms", { body, key: newId(this.clock) }));
  }

  async updateRoom(room: string, change: { name?: string; custom?: Record<string, unknown> }): Promise<Room> {
    return unwrap(await this.http.call<Room | { room: Room }>("PATCH", at(room), { body: change, room, key: newId(this.clock) }));
  }

  async deleteRoom(room: string): Promise<void> {
    await this.http.call("DELETE", at(room), { room, key: newId(this.clock) });
  }

  /** The members of a room, at most limit. */
  members(room: string, options: { limit?: number } = {}, signal?: AbortSignal): Promise<Member[]> {
    return paged(options.limit ?? 1_000, async (after, size) => {
      const answer = await this.http.call<{ members: Member[]; more?: boolean }>("GET", `${at(room)}/members`, { query: { limit: size, after }, room, ...sig(signal) });
      return { items: answer.members, last: answer.members.at(-1)?.user, more: answer.more };
    });
  }

  /** Adds a member or changes the role. */
  async setMember(room: string, user: string, role: Role = "member"): Promise<void> {
    await this.http.call("PUT", `${at(room)}/members/${encodeURIComponent(user)}`, { body: { role }, room, key: newId(this.clock) });
  }

  async removeMember(room: string, user: string): Promise<void> {
    await this.http.call("DELETE", `${at(room)}/members/${encodeURIComponent(user)}`, { room, key: newId(this.clock) });
  }

  /** Who is in a room now. To be told who comes and goes, give presence to subscribe or follow. */
  async presence(room: string, signal?: AbortSignal): Promise<Presence> {
    const answer = await this.http.call<Omit<Presence, "users"> & { users: { user: string }[] }>("GET", `${at(room)}/presence`, { room, ...sig(signal) });
    return { ...answer, users: answer.users.map(({ user }) => user) };
  }

  /** A page of messages, ascending. before and after are seqs, both exclusive; without them: the newest. */
  messages(room: string, range: { before?: number; after?: number; limit?: number } = {}, signal?: AbortSignal): Promise<Page> {
    return this.http.call<Page>("GET", `${at(room)}/messages`, { query: { ...range }, room, ...sig(signal) });
  }

  /** Raw replay, for those who do not keep a connection. */
  async events(room: string, range: { after: number; limit?: number }, signal?: AbortSignal): Promise<{ events: RoomEvent[]; head: number }> {
    const answer = await this.http.call<{ events: Omit<RoomEvent, "room">[]; head: number }>("GET", `${at(room)}/events`, { query: { ...range }, room, ...sig(signal) });
    return { head: answer.head, events: answer.events.map((event) => ({ ...event, room }) as RoomEvent) };
  }

  async editMessage(room: string, id: string, change: { text: string; custom?: Record<string, unknown>; mentions?: string[] }): Promise<Message> {
    const answer = await this.http.call<{ message: Message }>("PATCH", `${at(room)}/messages/${encodeURIComponent(id)}`, { body: change, room, key: newId(this.clock) });
    return answer.message;
  }

  async deleteMessage(room: string, id: string): Promise<void> {
    await this.http.call("DELETE", `${at(room)}/messages/${encodeURIComponent(id)}`, { room, key: newId(this.clock) });
  }

  /** What went wrong and how often, for a support ticket or a report to the server. */
  diagnostics(): Diagnostics {
    return {
      state: this.link.state,
      attempts: [...this.link.attempts],
      connections: { ...this.link.counts },
      requests: { ...this.budget.counts },
      delivery: { ...this.delivery },
      outbox: this.outbox.pending().length,
    };
  }

  // Inside.

  private makeOutbox(): Outbox {
    return new Outbox({
      live: () => this.link.live,
      post: (message, _retry, ok, error) => {
        const { id, text, custom, mentions } = message;
        const frame = { op: "send", room: message.room, message: { id, text, ...(custom ? { custom } : {}), ...(mentions ? { mentions } : {}) } };
        this.ask(frame, (answer) => {
          this.http.wrote(message.room, answer.position);
          if (answer.message) ok(answer.message);
          else error(new PetrelError("bad_answer", "The server acknowledged without a message."));
        }, error);
      },
      later: (ms, fn) => this.clock.after(ms, fn),
      cancel: (timer) => this.clock.clear(timer),
      now: () => this.clock.now(),
      pause: (attempt, atLeast) => this.pause(attempt, atLeast),
      first: () => this.budget.earn(),
      retryIn: () => (this.budget.take() ? 0 : this.budget.wait()),
      failed: (error) => this.emit("problem", error),
    }, this.options.storage);
  }

  private pause(attempt: number, atLeast = 0): number {
    const backoff = new Backoff(this.clock, { base: 500 * 2 ** Math.min(attempt, 6), cap: 30_000 });
    return backoff.next(atLeast);
  }

  private ask(frame: object, ok: Question["ok"], error: Question["error"]): void {
    if (!this.link.live) return;
    const id = ++this.lastId;
    this.questions.set(id, { ok, error });
    this.link.send({ ...frame, id });
  }

  private lost(): void {
    this.questions.clear();
    this.typed.clear();
    for (const subscription of this.subscriptions.values()) subscription.lost();
    this.outbox.lost();
  }

  private take(frame: ServerFrame): void {
    switch (frame.op) {
      case "ok": {
        const question = this.questions.get(frame.id);
        this.questions.delete(frame.id);
        question?.ok(frame);
        return;
      }
      case "error": {
        const error = new PetrelError(frame.code, frame.detail ?? frame.code, { retryAfterMs: frame.retry_after_ms });
        const question = frame.id === undefined ? undefined : this.questions.get(frame.id);
        if (frame.id !== undefined) this.questions.delete(frame.id);
        if (question) question.error(error);
        else this.emit("problem", error);
        return;
      }
      case "event": {
        const { op: _, ...event } = frame;
        if (event.seq === undefined) {
          this.subscriptions.get(event.room)?.takeEphemeral(event);
          return;
        }
        if (event.type === "message.new" && event.data.user === this.user) this.outbox.seen(event.data);
        this.subscriptions.get(event.room)?.take(event);
        return;
      }
      case "presence":
        this.subscriptions.get(frame.room)?.takePresence(frame);
        return;
      case "resync":
        this.subscriptions.get(frame.room)?.takeResync({ room: frame.room, reason: frame.reason, head: frame.head });
        return;
      case "unsubscribed":
        this.subscriptions.get(frame.room)?.takeEnd(new PetrelError(frame.code, frame.detail ?? frame.code));
        return;
      default:
        return;
    }
  }

  /** One token for the socket and for HTTP; got anew only when the one we hold is the one refused, and by one asker at a time. */
  private token(refused: string | undefined): Promise<string> {
    const source = this.options.token;
    if (typeof source === "string") return Promise.resolve(source);
    if (this.cachedToken !== undefined && this.cachedToken !== refused) return Promise.resolve(this.cachedToken);
    this.refreshing ??= Promise.resolve()
      .then(() => source(this.cachedToken === undefined ? "start" : "refused"))
      .then((token) => (this.cachedToken = token))
      .finally(() => (this.refreshing = undefined));
    return this.refreshing;
  }
}

/** Reads page after page until there is no more or enough. */
async function paged<T>(limit: number, page: (after: string | undefined, size: number) => Promise<{ items: T[]; last: string | undefined; more: boolean | undefined }>): Promise<T[]> {
  const all: T[] = [];
  for (let after: string | undefined, more = true; more && all.length < limit;) {
    const { items, last, more: rest } = await page(after, Math.min(500, limit - all.length));
    all.push(...items);
    more = rest === true && last !== undefined;
    after = last;
  }
  return all;
}

const at = (room: string) => `/v1/rooms/${encodeURIComponent(room)}`;
const sig = (signal: AbortSignal | undefined) => (signal ? { signal } : {});
const unwrap = (answer: Room | { room: Room }): Room => ("room" in answer && typeof answer.room === "object" ? answer.room : (answer as Room));
