import { PetrelError } from "@petrel-chat/sdk";

/** How this tab signs in. Kept per tab, so that two tabs can be two people. */
type Way = { kind: "demo"; name: string } | { kind: "token"; token: string };

const key = "petrel.session";

/** Somebody may have typed the address: what cannot be unescaped is taken as it stands, and refused like any wrong token. */
function unescaped(part: string): string {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

/** Who is at the page, and how a token for them is had. */
export class Session {
  phase = $state<"loading" | "unreachable" | "demo" | "token" | "in">("loading");
  people = $state.raw<string[]>([]);
  app = $state("");
  /** Why the person was sent back here. */
  notice = $state("");
  /** Counts sign-ins, so that a new one makes a new client. */
  life = $state(0);
  private way: Way | undefined;

  async start(): Promise<void> {
    const fromAddress = /^#token=([^&]+)/.exec(location.hash)?.[1];
    if (fromAddress) {
      // Out of the address bar and the history: links get copied.
      history.replaceState(null, "", location.pathname + location.search);
      this.enter({ kind: "token", token: unescaped(fromAddress) });
      return;
    }
    const kept = sessionStorage.getItem(key);
    if (kept) {
      try {
        this.enter(JSON.parse(kept) as Way);
        return;
      } catch {
        sessionStorage.removeItem(key);
      }
    }
    await this.ask();
  }

  /** Finds out whether the server runs a demo. */
  async ask(): Promise<void> {
    this.phase = "loading";
    try {
      const response = await fetch("/demo", { headers: { Accept: "application/json" } });
      const demo = response.ok ? ((await response.json()) as { demo?: boolean; app?: string; people?: string[] }) : undefined;
      if (demo?.demo) {
        this.app = demo.app ?? "";
        this.people = demo.people ?? [];
        this.phase = "demo";
      } else this.phase = response.status >= 500 ? "unreachable" : "token";
    } catch {
      this.phase = "unreachable";
    }
  }

  /** A name for what this person leaves in the browser, so that nobody sends another's messages. Not checked: the server does that. */
  get owner(): string {
    if (this.way?.kind === "demo") return this.way.name;
    try {
      const payload = (this.way?.token.split(".")[1] ?? "").replace(/-/g, "+").replace(/_/g, "/");
      const { iss, sub } = JSON.parse(atob(payload)) as { iss?: unknown; sub?: unknown };
      return `${String(iss)}.${String(sub)}`;
    } catch {
      return "unknown";
    }
  }

  asPerson(name: string): void {
    this.enter({ kind: "demo", name });
  }

  withToken(token: string): void {
    this.enter({ kind: "token", token: token.trim() });
  }

  async leave(notice = ""): Promise<void> {
    sessionStorage.removeItem(key);
    this.way = undefined;
    this.notice = notice;
    await this.ask();
  }

  /** For the client: called again when the server refuses the last one. */
  readonly token = async (why: "start" | "reconnect" | "refused"): Promise<string> => {
    const way = this.way;
    if (!way) throw new PetrelError("unauthenticated", "You are signed out.", { status: 401 });
    if (way.kind === "token") {
      if (why === "refused") throw new PetrelError("token_expired", "The token is not accepted any more.", { status: 401 });
      return way.token;
    }
    const response = await fetch("/demo/token", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ name: way.name }) });
    if (!response.ok) {
      const detail = ((await response.json().catch(() => ({}))) as { detail?: string }).detail;
      throw new PetrelError("forbidden", detail ?? "The demo does not let you in.", { status: response.status });
    }
    return ((await response.json()) as { token: string }).token;
  };

  private enter(way: Way): void {
    this.way = way;
    this.notice = "";
    sessionStorage.setItem(key, JSON.stringify(way));
    this.life++;
    this.phase = "in";
  }
}
