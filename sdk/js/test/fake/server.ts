// A small Petrel in memory that can misbehave on demand. It speaks the native wire well enough for the
// SDK's tests and for working on the page; what it stores is lost with it.
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { WebSocketServer, WebSocket } from "ws";

export interface FakeMessage { id: string; room: string; seq: number; user: string; text: string; created_at: string; edited_at?: string; deleted_at?: string }
interface FakeEvent { seq: number; type: string; at: string; data: Record<string, unknown> }
interface FakeRoom { id: string; kind: string; name?: string; created_at: string; created_by: string; members: Map<string, string>; events: FakeEvent[]; messages: Map<string, FakeMessage> }
interface FakeConn { socket: WebSocket; user: string; rooms: Set<string>; watched: Set<string>; id: number }

/** What to do with the next posts: each entry is used up by one. */
export type Mishap =
  | { kind: "error"; code: string; retry_after_ms?: number }
  | { kind: "drop_before" } // the connection dies, nothing was stored
  | { kind: "drop_after" } // stored, then the connection dies without an answer
  | { kind: "ack_twice" }
  | { kind: "no_answer" }; // stored, the connection lives, no answer

export class FakeServer {
  readonly rooms = new Map<string, FakeRoom>();
  readonly conns = new Set<FakeConn>();
  readonly mishaps: Mishap[] = [];
  /** Frames received, in order. */
  readonly frames: { conn: number; frame: Record<string, unknown> }[] = [];
  readonly requests: { method: string; url: string; headers: IncomingMessage["headers"] }[] = [];
  /** Answer to upgrades and HTTP calls while set. */
  refuse: { status: number; code: string; retryAfter?: number; only?: "upgrade" | "http" } | undefined;
  /** Answers for the next HTTP calls, before normal service. */
  readonly httpMishaps: { status: number; code: string; retryAfter?: number }[] = [];
  epoch = "e1";
  heartbeat = { interval_ms: 25_000, grace_ms: 10_000, epoch: 1 };
  /** Tokens made before this ms are expired. */
  expiredBefore = 0;
  demo: { app: string; people: string[] } | undefined;
  /** Events with these seqs are not sent live (a gap); each is used up once. */
  readonly swallow = new Set<number>();
  /** Events with these seqs are sent twice. */
  readonly twice = new Set<number>();
  answerPings = true;
  private readonly http: Server;
  private readonly sockets = new WebSocketServer({ noServer: true });
  private lastConn = 0;
  private index = 0;

  constructor() {
    this.http = createServer((req, res) => void this.serve(req, res));
    this.http.on("upgrade", (req, socket, head) => {
      this.requests.push({ method: "UPGRADE", url: req.url ?? "", headers: req.headers });
      const r = this.refuse;
      if (r && r.only !== "http") {
        socket.end(`HTTP/1.1 ${r.status} Refused\r\n${r.retryAfter === undefined ? "" : `Retry-After: ${r.retryAfter}\r\n`}Content-Length: 0\r\nConnection: close\r\n\r\n`);
        return;
      }
      this.sockets.handleUpgrade(req, socket, head, (ws) => this.welcome(ws));
    });
  }

  async listen(port = 0): Promise<string> {
    await new Promise<void>((resolve) => this.http.listen(port, "127.0.0.1", resolve));
    return `http://127.0.0.1:${(this.http.address() as AddressInfo).port}`;
  }

  async close(): Promise<void> {
    for (const conn of this.conns) conn.socket.terminate();
    this.sockets.close();
    this.http.closeAllConnections();
    await new Promise((resolve) => this.http.close(resolve));
  }

  token(user: string): string {
    return Buffer.from(JSON.stringify({ user, made: Date.now() })).toString("base64url");
  }

  /** Ends every connection, with a close code or (without) by cutting the wire. */
  drop(code?: number, reason = ""): void {
    for (const conn of [...this.conns]) {
      if (code === undefined) conn.socket.terminate();
      else conn.socket.close(code, reason);
      this.conns.delete(conn);
    }
  }

  broadcast(frame: object): void {
    for (const conn of this.conns) conn.socket.send(JSON.stringify(frame));
  }

  addRoom(spec: { id: string; kind?: string; name?: string; by?: string; members?: string[] }): FakeRoom {
    const by = spec.by ?? "system";
    const room: FakeRoom = { id: spec.id, kind: spec.kind ?? "open", ...(spec.name === undefined ? {} : { name: spec.name }), created_at: new Date().toISOString(), created_by: by, members: new Map(), events: [], messages: new Map() };
    for (const user of spec.members ?? []) room.members.set(user, "member");
    if (by !== "system") room.members.set(by, "owner");
    this.rooms.set(room.id, room);
    this.append(room, "room.created", { ...this.roomJSON(room), members: this.memberList(room) });
    return room;
  }

  post(roomId: string, user: string, text: string, id = `m${++this.index}`, at = new Date()): FakeMessage {
    const room = this.rooms.get(roomId)!;
    if (!room.members.has(user)) {
      room.members.set(user, "member");
      this.append(room, "member.added", { room: roomId, user, role: "member" });
    }
    const message: FakeMessage = { id, room: roomId, seq: room.events.length + 1, user, text, created_at: at.toISOString() };
    room.messages.set(id, message);
    this.append(room, "message.new", message, at);
    return message;
  }

  private append(room: FakeRoom, type: string, data: object, at = new Date()): void {
    const event: FakeEvent = { seq: room.events.length + 1, type, at: at.toISOString(), data: structuredClone(data) as Record<string, unknown> };
    room.events.push(event);
    this.index++;
    if (this.swallow.delete(event.seq)) return;
    for (const conn of this.conns) {
      if (!conn.rooms.has(room.id)) continue;
      const frame = JSON.stringify({ op: "event", room: room.id, ...event });
      conn.socket.send(frame);
      if (this.twice.has(event.seq)) conn.socket.send(frame);
    }
  }

  private tell(room: string, frame: object, except?: FakeConn): void {
    for (const conn of this.conns) if (conn !== except && conn.rooms.has(room)) conn.socket.send(JSON.stringify(frame));
  }

  /** Always the whole list: the page does not care. */
  private tellPresence(room: string): void {
    const users = [...new Set([...this.conns].filter((c) => c.rooms.has(room)).map((c) => c.user))].sort();
    for (const conn of this.conns) {
      if (conn.rooms.has(room) && conn.watched.has(room)) conn.socket.send(JSON.stringify({ op: "presence", room, users: users.map((user) => ({ user })), count: users.length }));
    }
  }

  /** Ends the subscriptions of a user, or of all. */
  private end(room: FakeRoom, code: string, user?: string): void {
    for (const conn of this.conns) {
      if ((user !== undefined && conn.user !== user) || !conn.rooms.delete(room.id)) continue;
      conn.socket.send(JSON.stringify({ op: "unsubscribed", room: room.id, code, detail: "As the test asked." }));
    }
  }

  private userOf(token: unknown): { user: string } | { code: string } {
    if (typeof token !== "string" || token === "") return { code: "unauthenticated" };
    try {
      const { user, made } = JSON.parse(Buffer.from(token, "base64url").toString()) as { user: string; made: number };
      return made < this.expiredBefore ? { code: "token_expired" } : { user };
    } catch {
      return { code: "invalid_token" };
    }
  }

  private welcome(socket: WebSocket): void {
    let conn: FakeConn | undefined;
    const id = ++this.lastConn;
    const say = (frame: object) => socket.send(JSON.stringify(frame));
    socket.on("close", () => {
      if (!conn) return;
      this.conns.delete(conn);
      for (const room of conn.rooms) this.tellPresence(room);
    });
    socket.on("message", (raw) => {
      const frame = JSON.parse(String(raw)) as Record<string, unknown>;
      this.frames.push({ conn: id, frame });
      if (!conn) {
        const who = this.userOf(frame.token);
        if ("code" in who) {
          say({ op: "error", code: who.code, detail: "The token is not good." });
          socket.close(who.code === "token_expired" ? 4002 : 4001, who.code);
          return;
        }
        conn = { socket, user: who.user, rooms: new Set(), watched: new Set(), id };
        this.conns.add(conn);
        say({ op: "hello", conn: String(id), user: who.user, node: "fake", epoch: this.epoch, heartbeat: this.heartbeat });
        return;
      }
      this.answer(conn, frame, say);
    });
  }

  private answer(conn: FakeConn, frame: Record<string, unknown>, say: (frame: object) => void): void {
    const { id } = frame;
    const room = this.rooms.get(String(frame.room));
    switch (frame.op) {
      case "ping":
        if (this.answerPings) say({ op: "pong", id });
        return;
      case "subscribe": {
        if (!room || (room.kind !== "open" && !room.members.has(conn.user))) return say({ op: "error", id, code: "room_not_found", detail: "There is no such room." });
        const head = room.events.length;
        const after = typeof frame.after === "number" ? frame.after : head;
        const reason = frame.epoch !== undefined && frame.epoch !== this.epoch ? "epoch" : after > head ? "ahead" : undefined;
        if (reason) return say({ op: "resync", id, room: room.id, reason, head });
        conn.rooms.add(room.id);
        say({ op: "ok", id, room: room.id, head, epoch: this.epoch });
        if (frame.presence === true) conn.watched.add(room.id);
        this.tellPresence(room.id);
        for (const event of room.events.slice(after)) say({ op: "event", room: room.id, ...event });
        return;
      }
      case "unsubscribe":
        conn.rooms.delete(String(frame.room));
        this.tellPresence(String(frame.room));
        return say({ op: "ok", id });
      case "typing":
        this.tell(String(frame.room), { op: "event", room: frame.room, type: frame.active === false ? "typing.stop" : "typing.start", at: new Date().toISOString(), data: { user: conn.user } }, conn);
        return say({ op: "ok", id });
      case "send": {
        const mishap = this.mishaps.shift();
        if (mishap?.kind === "error") {
          const { kind: _, ...error } = mishap;
          return say({ op: "error", id, detail: "As the test asked.", ...error });
        }
        if (mishap?.kind === "drop_before") return conn.socket.terminate();
        if (!room) return say({ op: "error", id, code: "room_not_found", detail: "There is no such room." });
        const draft = frame.message as { id: string; text: string };
        const known = room.messages.get(draft.id);
        if (known && (known.user !== conn.user || known.text !== draft.text)) return say({ op: "error", id, code: "id_reused", detail: "The id is taken." });
        if (draft.text.trim() === "") return say({ op: "error", id, code: "invalid_field", detail: "The text is empty." });
        const message = known ?? this.post(room.id, conn.user, draft.text, draft.id);
        if (mishap?.kind === "drop_after") return conn.socket.terminate();
        if (mishap?.kind === "no_answer") return;
        const ok = { op: "ok", id, message, position: `p${room.id}${room.events.length}`, ...(known ? { repeated: true } : {}) };
        say(ok);
        if (mishap?.kind === "ack_twice") say(ok);
        return;
      }
    }
  }

  private roomJSON(room: FakeRoom): object {
    return { id: room.id, kind: room.kind, ...(room.name === undefined ? {} : { name: room.name }), created_at: room.created_at, created_by: room.created_by };
  }

  private memberList(room: FakeRoom): object[] {
    return [...room.members].map(([user, role]) => ({ user, role }));
  }

  private async serve(req: IncomingMessage, res: ServerResponse): Promise<void> {
    const url = new URL(req.url ?? "/", "http://fake");
    this.requests.push({ method: req.method ?? "", url: req.url ?? "", headers: req.headers });
    const chunks: Buffer[] = [];
    for await (const chunk of req) chunks.push(chunk as Buffer);
    const text = Buffer.concat(chunks).toString();
    const body = (text ? JSON.parse(text) : {}) as Record<string, unknown>;
    const answer = (status: number, value?: object) => {
      res.writeHead(status, { "Content-Type": status < 400 ? "application/json" : "application/problem+json", "Petrel-Position": `p${this.index}` });
      res.end(value === undefined ? "" : JSON.stringify(value));
    };
    const refuse = (status: number, code: string, retryAfter?: number) => {
      if (retryAfter !== undefined) res.setHeader("Retry-After", String(retryAfter));
      answer(status, { type: "about:blank", title: code, status, detail: `Refused: ${code}.`, code });
    };
    const r = this.refuse;
    if (r && r.only !== "upgrade") return refuse(r.status, r.code, r.retryAfter);
    const mishap = this.httpMishaps.shift();
    if (mishap) return refuse(mishap.status, mishap.code, mishap.retryAfter);
    if (url.pathname === "/demo") return this.demo ? answer(200, { demo: true, ...this.demo }) : refuse(404, "not_found");
    if (url.pathname === "/demo/token" && this.demo) return answer(200, { token: this.token(String(body.name)), user: String(body.name), expires_at: new Date(Date.now() + 3_600_000).toISOString() });
    const who = this.userOf((req.headers.authorization ?? "").replace(/^Bearer /, ""));
    if ("code" in who) return refuse(401, who.code);
    this.route(req.method ?? "GET", url, body, who.user, answer, refuse);
  }

  private route(method: string, url: URL, body: Record<string, unknown>, me: string, answer: (status: number, value?: object) => void, refuse: (status: number, code: string) => void): void {
    const path = url.pathname.split("/").slice(2).map(decodeURIComponent);
    if (path[0] !== "rooms") return refuse(404, "not_found");
    if (path.length === 1) {
      if (method === "GET") {
        const { searchParams } = url;
        const visible = [...this.rooms.values()].filter((r) => (r.kind === "open" && searchParams.get("open") === "true") || r.members.has(me));
        const rest = visible.slice(visible.findIndex((r) => r.id === searchParams.get("after")) + 1);
        const limit = Number(searchParams.get("limit") ?? 100);
        return answer(200, { more: rest.length > limit, rooms: rest.slice(0, limit).map((r) => ({ ...this.roomJSON(r), ...(r.members.has(me) ? { role: r.members.get(me) } : {}), head: r.events.length, ...(r.kind === "direct" ? { members: this.memberList(r) } : {}) })) });
      }
      const members = ((body.members as (string | { user: string })[] | undefined) ?? []).map((m) => (typeof m === "string" ? m : m.user));
      if (body.kind === "direct") {
        const both = [...new Set([me, ...members])].sort();
        const there = [...this.rooms.values()].find((r) => r.kind === "direct" && [...r.members.keys()].sort().join() === both.join());
        if (there) return answer(200, { ...this.roomJSON(there), members: this.memberList(there) });
      }
      const id = String(body.id ?? `r${++this.index}`);
      if (this.rooms.has(id)) return refuse(409, "id_reused");
      const room = this.addRoom({ id, kind: String(body.kind), by: me, members, ...(body.name ? { name: String(body.name) } : {}) });
      return answer(201, { ...this.roomJSON(room), members: this.memberList(room) });
    }
    const room = this.rooms.get(path[1]!);
    if (!room || (room.kind !== "open" && !room.members.has(me))) return refuse(404, "room_not_found");
    if (path.length === 2 && method === "DELETE") {
      this.append(room, "room.deleted", this.roomJSON(room));
      this.end(room, "room_deleted");
      this.rooms.delete(room.id);
      return answer(200, { room: this.roomJSON(room) });
    }
    if (path.length === 2) return answer(200, { ...this.roomJSON(room), members: this.memberList(room), head: room.events.length });
    if (path[2] === "members") {
      if (path.length === 3) return answer(200, { members: this.memberList(room) });
      const user = path[3]!;
      if (method === "PUT") {
        const had = room.members.has(user);
        room.members.set(user, String(body.role ?? "member"));
        if (!had) this.append(room, "member.added", { room: room.id, user, role: "member" });
      } else if (room.members.delete(user)) {
        this.append(room, "member.removed", { room: room.id, user, role: "member" });
        if (room.kind !== "open") this.end(room, "room_not_found", user);
      }
      return answer(200, { room: room.id, user, role: room.members.get(user) ?? "member" });
    }
    if (path[2] === "events") {
      const after = Number(url.searchParams.get("after") ?? 0);
      return answer(200, { events: room.events.slice(after, after + Number(url.searchParams.get("limit") ?? 100)), head: room.events.length });
    }
    if (path[2] !== "messages") return refuse(404, "not_found");
    if (path.length === 3) {
      const limit = Number(url.searchParams.get("limit") ?? 50);
      const before = url.searchParams.get("before");
      const after = url.searchParams.get("after");
      let all = [...room.messages.values()];
      if (after !== null) {
        all = all.filter((m) => m.seq > Number(after));
        return answer(200, { messages: all.slice(0, limit), more: all.length > limit });
      }
      if (before !== null) all = all.filter((m) => m.seq < Number(before));
      return answer(200, { messages: all.slice(-limit), more: all.length > limit });
    }
    const message = room.messages.get(path[3]!);
    if (!message) return refuse(404, "message_not_found");
    if (message.user !== me) return refuse(403, "forbidden");
    if (method === "PATCH") {
      Object.assign(message, { text: String(body.text), edited_at: new Date().toISOString() });
      this.append(room, "message.updated", message);
    } else {
      Object.assign(message, { text: "", deleted_at: new Date().toISOString() });
      this.append(room, "message.deleted", message);
    }
    answer(200, { message });
  }
}
