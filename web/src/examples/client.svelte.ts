/** One pusher-js client of the page: unmodified, as its package has it; what it tells becomes what the page shows. */
import type PusherClass from "pusher-js";
import type { Members, Options, PresenceChannel } from "pusher-js";
import source from "pusher-js/dist/web/pusher.min.js?url";

export const transports = [
  { id: "ws", word: "WebSocket" },
  { id: "xhr_streaming", word: "HTTP streaming" },
  { id: "xhr_polling", word: "HTTP polling" },
] as const;
export type Transport = (typeof transports)[number]["id"];

/** What the server says about its demo. */
export interface Demo { key: string; presence: string; private: string }

export interface Line { n: number; kind: "mine" | "theirs" | "server" | "note"; who: string; text: string; at: number }
interface Member { id: string; name: string }

let loaded: Promise<typeof PusherClass> | undefined;
/** Loads the file of the package, byte for byte, as a page of anybody would. */
function pusherJS(): Promise<typeof PusherClass> {
  return (loaded ??= new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = source;
    script.onload = () => resolve((window as unknown as { Pusher: typeof PusherClass }).Pusher);
    script.onerror = () => reject(new Error("pusher-js did not load."));
    document.head.append(script);
  }));
}

/** The options of a client: where the server is, and nothing else that Pusher would not want. */
export function options(enabled: Transport): Options {
  const { hostname, port, protocol } = location;
  const tls = protocol === "https:";
  const at = Number(port) || (tls ? 443 : 80);
  return {
    cluster: "petrel",
    wsHost: hostname, httpHost: hostname,
    ...(tls ? { wssPort: at, httpsPort: at } : { wsPort: at, httpPort: at }),
    forceTLS: tls, enabledTransports: [enabled],
  };
}

const kept = 200; // lines

export class Client {
  transport = $state<Transport>("ws");
  phase = $state<string>("connecting");
  /** Over what it is connected, as pusher-js says; "" while it is not. */
  over = $state("");
  socket = $state("");
  ready = $state(false); // on both channels
  problem = $state("");
  members = $state<Member[]>([]);
  lines = $state<Line[]>([]);
  private pusher: PusherClass | undefined;
  private n = 0;

  constructor(readonly demo: Demo, readonly id: string, readonly name: string) {}

  async start(): Promise<void> {
    const Pusher = await pusherJS();
    this.stop();
    this.problem = "";
    const enabled = this.transport;
    const pusher = new Pusher(this.demo.key, {
      ...options(enabled),
      channelAuthorization: { endpoint: "/demo/pusher/auth", transport: "ajax", params: { id: this.id, name: this.name } },
    });
    this.pusher = pusher;
    this.phase = pusher.connection.state;
    pusher.connection.bind("state_change", ({ current }: { current: string }) => {
      if (this.pusher !== pusher) return;
      this.phase = current;
      if (current !== "connected") this.lost();
    });
    pusher.connection.bind("connected", () => {
      if (this.pusher !== pusher) return;
      this.socket = pusher.connection.socket_id;
      this.over = enabled; // the only one that it may use
      this.problem = "";
    });
    pusher.connection.bind("error", (error: { error?: { data?: { code?: number; message?: string } } }) => {
      const data = error?.error?.data;
      if (this.pusher === pusher && data?.message) this.problem = `${data.code ?? ""} ${data.message}`.trim();
    });

    const room = pusher.subscribe(this.demo.presence) as PresenceChannel;
    const list = (members: Members) => {
      const all: Member[] = [];
      members.each((m: { id: string; info?: { name?: string } }) => all.push({ id: m.id, name: m.info?.name ?? m.id }));
      this.members = all.sort((a, b) => Number(b.id === this.id) - Number(a.id === this.id) || a.name.localeCompare(b.name));
    };
    room.bind("pusher:subscription_succeeded", (members: Members) => {
      list(members);
      this.note(`Connected over ${transports.find((t) => t.id === enabled)!.word}.`);
    });
    room.bind("pusher:member_added", (m: { id: string; info?: { name?: string } }) => {
      list(room.members);
      this.note(`${m.info?.name ?? m.id} came.`);
    });
    room.bind("pusher:member_removed", (m: { id: string; info?: { name?: string } }) => {
      list(room.members);
      this.note(`${m.info?.name ?? m.id} left.`);
    });

    const talk = pusher.subscribe(this.demo.private);
    talk.bind("pusher:subscription_succeeded", () => (this.ready = true));
    talk.bind("client-message", (said: { who?: unknown; text?: unknown }) => this.add("theirs", String(said.who ?? "Somebody"), String(said.text ?? "")));
    talk.bind("message", (said: { text?: unknown }) => this.add("server", "Your backend", String(said.text ?? "")));
    for (const channel of [room, talk]) {
      channel.bind("pusher:subscription_error", (error: { error?: string; status?: number }) => (this.problem = `${channel.name}: ${error.error ?? error.status ?? "refused"}`));
    }
  }

  /** Sends to the other: a client event, which goes from browser to browser without a backend. */
  say(text: string): boolean {
    const sent = this.ready && this.pusher?.channel(this.demo.private)?.trigger("client-message", { who: this.name, text });
    if (sent) this.add("mine", this.name, text); // the server does not echo
    return Boolean(sent);
  }

  switchTo(transport: Transport): void {
    if (transport === this.transport) return;
    this.transport = transport;
    void this.start();
  }

  stop(): void {
    const old = this.pusher;
    this.pusher = undefined;
    old?.disconnect();
    this.lost();
  }

  private lost(): void {
    this.ready = false;
    this.over = "";
    this.socket = "";
    this.members = [];
  }

  private note(text: string): void {
    this.add("note", "", text);
  }

  private add(kind: Line["kind"], who: string, text: string): void {
    this.lines = [...this.lines.slice(1 - kept), { n: ++this.n, kind, who, text, at: Date.now() }];
  }
}
