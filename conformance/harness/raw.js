// The protocol's bytes, without a client library between them and the test: over WebSocket, and over the two ways of the
// HTTP fallback. All three look alike: send frames, await frames, see how it closed.
import { randomBytes } from "node:crypto";
import WebSocket from "ws";

import { Inbox, within } from "./wait.js";

export const transports = ["ws", "xhr_streaming", "xhr_polling"];

/** What pusher-js 8.6 appends to every address. */
export const clientQuery = "protocol=7&client=js&version=8.6.0&flash=false";

/** What every transport has. */
class Raw {
  constructor(name) {
    this.inbox = new Inbox(name);
    this.closed = new Promise((resolve) => (this.close_ = resolve));
  }

  /** A frame came. */
  got(text) {
    let frame;
    try {
      frame = JSON.parse(text);
    } catch {
      frame = { unreadable: text };
    }
    this.inbox.put(frame);
  }

  gone(code, reason) {
    this.inbox.end(`closed ${code} ${reason}`);
    this.close_({ code, reason });
  }

  /** Every frame so far. */
  get frames() {
    return this.inbox.all;
  }

  /** The next frame of that event, on that channel if one is named. */
  next(event, channel, match = () => true) {
    return this.inbox.take(`${event}${channel ? ` on ${channel}` : ""}`, (f) => f.event === event && (channel === undefined || f.channel === channel) && match(f));
  }

  /** How it closes. */
  close(what = "the connection to close") {
    return within(what, this.closed, { explain: () => this.inbox.story() });
  }

  send(event, data, channel) {
    this.text(JSON.stringify({ event, ...(channel === undefined ? {} : { channel }), data }));
  }

  /** Waits for the greeting and keeps its socket id. */
  async established() {
    const hello = await this.next("pusher:connection_established");
    this.hello = JSON.parse(hello.data);
    this.socketId = this.hello.socket_id;
    return this;
  }

  /** Subscribes and waits for the answer, which it returns. member: of a presence channel. */
  async subscribe(app, channel, member) {
    this.send("pusher:subscribe", app.subscribe(this.socketId, channel, member));
    return this.next("pusher_internal:subscription_succeeded", channel);
  }

  /** Subscribes and returns the refusal. */
  async refused(data) {
    this.send("pusher:subscribe", data);
    return this.inbox.take("a refusal", (f) => f.event === "pusher:error" || f.event === "pusher:subscription_error");
  }

  /**
   * Returns once everything that this connection was sent before has been read: the server answers frames of a
   * connection in their order.
   */
  async fence() {
    this.send("pusher:ping", {});
    await this.next("pusher:pong");
  }

  /** Signs in and waits for the answer. */
  async signin(app, user) {
    const text = JSON.stringify(user);
    this.send("pusher:signin", { auth: app.signin(this.socketId, text), user_data: text });
    return this.next("pusher:signin_success");
  }
}

class RawSocket extends Raw {
  static open(url, options = {}) {
    const raw = new RawSocket(url);
    const socket = new WebSocket(url, { perMessageDeflate: false, skipUTF8Validation: false, ...options });
    raw.socket = socket;
    raw.opened = new Promise((resolve, reject) => {
      socket.once("open", resolve);
      socket.once("error", reject);
      socket.once("unexpected-response", (_, response) => {
        const error = new Error(`the handshake answers ${response.statusCode}`);
        error.status = response.statusCode;
        error.headers = response.headers;
        response.resume();
        socket.terminate();
        reject(error);
      });
    });
    raw.opened.catch(() => {});
    raw.binary = 0;
    socket.on("message", (data, isBinary) => {
      if (isBinary) raw.binary++;
      raw.got(String(data));
    });
    socket.on("error", () => {}); // the close that follows says it
    socket.on("close", (code, reason) => raw.gone(code, String(reason)));
    return raw;
  }

  text(text) {
    this.socket.send(text);
  }

  leave() {
    this.socket.close();
    return this.close();
  }

  /** As a cable that is cut: no close frame. */
  drop() {
    this.socket.terminate();
  }
}

/** A session of the HTTP fallback. It speaks as pusher-js does: http_socket.ts is what its requests are taken from. */
class RawFallback extends Raw {
  static open(base, mode, { query = clientQuery, session } = {}) {
    const raw = new RawFallback(`${base} (${mode})`);
    raw.base = base;
    raw.mode = mode;
    raw.query = query;
    raw.session = session ?? `${Math.floor(Math.random() * 1000)}/${randomBytes(5).toString("hex").slice(0, 8)}`;
    raw.chunks = []; // whole chunks of SockJS's framing, as they came
    raw.n = 0;
    raw.heartbeats = 0;
    raw.opens = 0;
    raw.responses = [];
    raw.over = false;
    raw.opened = new Promise((resolve, reject) => {
      raw.openResolve = resolve;
      raw.openReject = reject;
    });
    raw.opened.catch(() => {});
    raw.receive();
    return raw;
  }

  address(what, query = "") {
    return `${this.base}/${this.session}/${what}?${query ? `${query}&` : ""}t=${Date.now()}&n=${this.n++}`;
  }

  /** Reads one response after the other until the session is closed. */
  async receive() {
    while (!this.over) {
      await this.held;
      this.aborter = new AbortController();
      let status = 0;
      try {
        const answer = await fetch(this.address(this.mode === "xhr_polling" ? "xhr" : "xhr_streaming", this.query), { method: "POST", signal: this.aborter.signal });
        status = answer.status;
        this.responses.push({ status, headers: answer.headers });
        await this.read(answer.body);
      } catch (error) {
        if (!this.over && !this.recycling) this.finish(1006, `Connection interrupted (${error.cause?.code ?? error.name})`);
      }
      if (this.recycling) {
        this.recycling = false;
        continue;
      }
      if (this.over) return;
      if (status !== 200) return this.finish(1006, `Connection interrupted (${status})`);
      if (this.mode === "xhr_streaming") return this.finish(1006, "Connection interrupted (200)"); // F13
    }
  }

  async read(body) {
    const decoder = new TextDecoder();
    let rest = "";
    let length = 0;
    for await (const chunk of body) {
      const text = decoder.decode(chunk, { stream: true });
      rest += text;
      length += text.length;
      for (let end; (end = rest.indexOf("\n")) >= 0; rest = rest.slice(end + 1)) this.chunk(rest.slice(0, end));
      if (rest === "" && length > 256 * 1024) { // F12: http_request.ts isBufferTooLong
        this.recycling = true;
        return;
      }
    }
    if (rest !== "") this.inbox.put({ unreadable: rest }); // F9: every chunk ends in a line feed
  }

  /** One chunk: http_socket.ts onChunk. */
  chunk(text) {
    this.chunks.push(text);
    switch (text[0]) {
      case "o":
        this.opens++;
        if (this.opens > 1) return this.finish(1006, "Server lost session"); // F11
        this.hostname = JSON.parse(text.slice(1) || "{}").hostname;
        if (this.hostname) this.base = this.base.replace(/(\/\/)[^/:]*/, `$1${this.hostname}`); // F10
        this.openResolve();
        break;
      case "a":
        for (const frame of JSON.parse(text.slice(1))) this.got(frame);
        break;
      case "m":
        this.got(JSON.parse(text.slice(1)));
        break;
      case "h":
        this.heartbeats++;
        if (this.mode === "xhr_streaming") this.post("[]"); // F15
        break;
      case "c": {
        const [code, reason] = JSON.parse(text.slice(1));
        this.finish(code, reason);
        break;
      }
      default:
        this.inbox.put({ unreadable: text });
    }
  }

  finish(code, reason) {
    if (this.over) return;
    this.over = true;
    this.openReject(new Error(`closed ${code} ${reason}`));
    this.gone(code, reason);
    this.aborter?.abort();
  }

  text(text) {
    this.post(JSON.stringify([text]));
  }

  /** Sends a body in its turn: pusher-js does not wait for answers, the network keeps the order here. */
  post(body) {
    this.sending = (this.sending ?? Promise.resolve()).then(async () => {
      const answer = await fetch(this.address("xhr_send"), { method: "POST", headers: { "Content-Type": "application/json" }, body });
      this.sent = { status: answer.status, headers: answer.headers, text: await answer.text() };
      return this.sent;
    }).catch((error) => ({ status: 0, text: String(error) }));
    return this.sending;
  }

  /** Asks for nothing more until the returned function is called. */
  hold() {
    let release;
    this.held = new Promise((resolve) => (release = resolve));
    return release;
  }

  leave() {
    this.finish(1000, "left");
    return this.close();
  }

  drop() {
    this.finish(1006, "dropped");
  }
}

const opened = new Set();

/** Opens a connection to a node over a transport, without waiting for anything. */
export function open(node, app, transport = "ws", { query = clientQuery, key = app.key, ...options } = {}) {
  const raw = transport === "ws"
    ? RawSocket.open(`ws://${node.host}/app/${key}${query ? `?${query}` : ""}`, options)
    : RawFallback.open(`http://${node.host}/pusher/app/${key}`, transport, { query: query.replace("&flash=false", ""), ...options });
  opened.add(raw);
  raw.closed.then(() => opened.delete(raw));
  return raw;
}

/** Opens a connection and waits for the greeting. */
export async function dial(node, app, transport = "ws", options = {}) {
  const raw = open(node, app, transport, options);
  await raw.established();
  return raw;
}

/** Closes whatever a test file has left open. */
export function closeAll() {
  for (const raw of opened) raw.drop();
  opened.clear();
}
