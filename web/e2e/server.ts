// The real binary as a child process: started, killed and started again on the same folder and ports.
import { execFileSync, spawn, type ChildProcess } from "node:child_process";
import { createHmac, randomUUID } from "node:crypto";
import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as pause } from "node:timers/promises";

const root = new URL("../..", import.meta.url).pathname;

/** The binary that PETREL_BIN names, or one built now. */
function binary(): string {
  const given = process.env.PETREL_BIN;
  if (given) {
    if (!existsSync(given)) throw new Error(`PETREL_BIN names ${given}, which is not there.`);
    return given;
  }
  const out = join(tmpdir(), `petrel-e2e-${process.pid}`);
  if (!existsSync(out)) {
    execFileSync("go", ["build", "-o", out, "./cmd/petrel"], { cwd: root, stdio: "inherit" });
    process.once("exit", () => rmSync(out, { force: true }));
  }
  return out;
}

async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as { port: number };
  await new Promise((resolve) => server.close(resolve));
  return port;
}

export interface Message { id: string; seq: number; user: string; text: string }

export class PetrelServer {
  readonly app = { id: "4711", key: "e2e-key", secret: "e2e-secret-of-at-least-thirty-two-letters" };
  private child: ChildProcess | undefined;
  private output = "";

  private constructor(private readonly bin: string, readonly data: string, readonly port: number, private readonly admin: number, private readonly demo: boolean) {}

  static async start(options: { demo: boolean }): Promise<PetrelServer> {
    const server = new PetrelServer(binary(), mkdtempSync(join(tmpdir(), "petrel-e2e-")), await freePort(), await freePort(), options.demo);
    await server.run();
    return server;
  }

  get url(): string {
    return `http://127.0.0.1:${this.port}`;
  }

  /** Starts the process and waits until it answers. */
  async run(): Promise<void> {
    const args = ["serve", "--data", this.data, "--listen", `127.0.0.1:${this.port}`, "--admin", `127.0.0.1:${this.admin}`, ...(this.demo ? ["--demo"] : [])];
    const child = spawn(this.bin, args, {
      stdio: ["ignore", "pipe", "pipe"],
      env: { ...process.env, ...(this.demo ? {} : { PETREL_APP_ID: this.app.id, PETREL_APP_KEY: this.app.key, PETREL_APP_SECRET: this.app.secret }) },
    });
    this.child = child;
    this.output = "";
    const keep = (chunk: Buffer) => (this.output = (this.output + String(chunk)).slice(-8_000));
    child.stdout.on("data", keep);
    child.stderr.on("data", keep);
    for (const end = Date.now() + 60_000; ;) {
      if (child.exitCode !== null) throw new Error(`petrel ended with ${child.exitCode}:\n${this.output}`);
      const ready = await fetch(`http://127.0.0.1:${this.admin}/readyz`).then((r) => r.ok, () => false);
      if (ready) return;
      if (Date.now() > end) throw new Error(`petrel is not ready after a minute:\n${this.output}`);
      await pause(50); // between two questions
    }
  }

  /** kill -9: nothing is closed, nothing is flushed. */
  async kill(): Promise<void> {
    const child = this.child;
    if (!child || child.exitCode !== null || child.signalCode !== null) return;
    const gone = new Promise((resolve) => child.once("exit", resolve));
    child.kill("SIGKILL");
    await gone;
  }

  async remove(): Promise<void> {
    await this.kill();
    rmSync(this.data, { recursive: true, force: true });
  }

  /** A user token as any backend of the app would sign it. */
  token(user: string, seconds = 3600): string {
    const part = (value: object) => Buffer.from(JSON.stringify(value)).toString("base64url");
    const signed = `${part({ alg: "HS256", typ: "JWT" })}.${part({ iss: this.app.key, sub: user, exp: Math.floor(Date.now() / 1000) + seconds })}`;
    return `${signed}.${createHmac("sha256", this.app.secret).update(signed).digest("base64url")}`;
  }

  async demoToken(name: string): Promise<{ token: string; user: string }> {
    const answer = await fetch(`${this.url}/demo/token`, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ name }) });
    if (!answer.ok) throw new Error(`/demo/token answers ${answer.status}`);
    return (await answer.json()) as { token: string; user: string };
  }

  async call<T>(token: string, method: string, path: string, body?: object): Promise<T> {
    const answer = await fetch(this.url + path, {
      method,
      headers: { Authorization: `Bearer ${token}`, ...(body ? { "Content-Type": "application/json" } : {}) },
      ...(body ? { body: JSON.stringify(body) } : {}),
    });
    if (!answer.ok) throw new Error(`${method} ${path} answers ${answer.status}: ${await answer.text()}`);
    return (await answer.json()) as T;
  }

  /** Makes an open room and returns its id. */
  async room(token: string, name: string): Promise<string> {
    const id = `e2e-${randomUUID().slice(0, 8)}`;
    await this.call(token, "POST", "/v1/rooms", { id, kind: "open", name });
    return id;
  }

  async post(token: string, room: string, text: string): Promise<void> {
    await this.call(token, "POST", `/v1/rooms/${room}/messages`, { text });
  }

  /** Everything in a room, read page by page. */
  async history(token: string, room: string): Promise<Message[]> {
    const all: Message[] = [];
    for (let more = true; more;) {
      const page = await this.call<{ messages: Message[]; more: boolean }>(token, "GET", `/v1/rooms/${room}/messages?limit=100&after=${all.at(-1)?.seq ?? 0}`);
      all.push(...page.messages);
      more = page.more;
    }
    return all;
  }
}
