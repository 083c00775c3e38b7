// The real petrel as processes on this machine: one that runs alone, or several that are a cell.
// The system chooses every port; DATA/lock says which they became.
import { execFile, execFileSync, spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";

import { App } from "./app.js";
import { poll } from "./wait.js";

const root = new URL("../..", import.meta.url).pathname;

/** The first app of every installation that the suite starts. */
export const firstApp = { id: "1001", key: "conformance-key", secret: "conformance-secret-nobody-would-guess" };

/** The binary that PETREL_BIN names, or one built now. */
export function binary() {
  const given = process.env.PETREL_BIN;
  if (given) {
    if (!existsSync(given)) throw new Error(`PETREL_BIN names ${given}, which is not there.`);
    return given;
  }
  const out = join(root, "bin", "petrel");
  execFileSync("go", ["build", "-trimpath", "-o", out, "./cmd/petrel"], { cwd: root, stdio: "inherit" });
  process.env.PETREL_BIN = out;
  return out;
}

/** Environment without what the machine says about other installations. */
function environment(more) {
  const kept = Object.entries(process.env).filter(([name]) => !/^(PETREL|PUSHER)_/.test(name));
  return { ...Object.fromEntries(kept), ...more };
}

/** One process, and what it wrote. */
class Process {
  constructor(name, dir) {
    this.name = name;
    this.dir = dir;
    this.output = "";
  }

  launch(args, env) {
    mkdirSync(this.dir, { recursive: true });
    writeFileSync(join(this.dir, "lock"), ""); // what an earlier process wrote is not this one's
    const child = spawn(binary(), ["serve", "--name", this.name, "--data", this.dir, "--listen", this.listen ?? "127.0.0.1:0", "--admin", "127.0.0.1:0", "--log-format", "text", ...args], {
      stdio: ["ignore", "pipe", "pipe"],
      env: environment(env),
    });
    this.child = child;
    this.exited = new Promise((resolve) => child.once("exit", (code, signal) => resolve({ code, signal })));
    const keep = (chunk) => (this.output = (this.output + String(chunk)).slice(-16_000));
    child.stdout.on("data", keep);
    child.stderr.on("data", keep);
  }

  get running() {
    return this.child !== undefined && this.child.exitCode === null && this.child.signalCode === null;
  }

  get pid() {
    return this.child.pid;
  }

  /** Waits until the node lets people in. */
  async ready() {
    await poll(`${this.name} to be ready`, async () => {
      if (!this.running) throw new Error(`${this.name} ended:\n${this.output}`);
      const owner = read(join(this.dir, "lock"));
      if (!owner?.admin || !owner.listen) return false;
      this.host = owner.listen;
      this.adminHost = owner.admin;
      return fetch(`http://${owner.admin}/readyz`).then((r) => r.ok, () => false);
    }, { explain: () => this.output });
  }

  get url() {
    return `http://${this.host}`;
  }

  get port() {
    return Number(this.host.split(":").at(-1));
  }

  /** Asks the admin listener. */
  async admin(method, path, body) {
    let answer;
    const ask = () => fetch(`http://${this.adminHost}${path}`, {
      method,
      headers: { Authorization: `Bearer ${readFileSync(join(this.dir, "admin-token"), "utf8").trim()}`, "Content-Type": "application/json" },
      ...(body === undefined ? {} : { body: JSON.stringify(body) }),
    });
    await poll(`${this.name} to have a leader`, async () => (answer = await ask()).status !== 503); // nothing was done: it may be asked again
    const text = await answer.text();
    if (!answer.ok) throw new Error(`${method} ${path} of ${this.name} answers ${answer.status}: ${text}`);
    return text ? JSON.parse(text) : undefined;
  }

  /** Runs `petrel …` on this node's data folder and returns what it prints. */
  async cli(...args) {
    const { stdout } = await promisify(execFile)(binary(), [...args, "--data", this.dir], { env: environment({}), encoding: "utf8" });
    return stdout;
  }

  /** The samples of /metrics whose name begins so, as a map from the whole name to the value. */
  async metrics(prefix) {
    const text = await fetch(`http://${this.adminHost}/metrics`).then((r) => r.text());
    const lines = text.split("\n").filter((line) => line.startsWith(prefix));
    return Object.fromEntries(lines.map((line) => [line.slice(0, line.lastIndexOf(" ")), Number(line.slice(line.lastIndexOf(" ") + 1))]));
  }

  /** Resident memory in bytes, as the kernel counts it. */
  memory() {
    const m = /VmRSS:\s+(\d+) kB/.exec(readFileSync(`/proc/${this.pid}/status`, "utf8"));
    return Number(m[1]) * 1024;
  }

  signal(name) {
    if (this.running) this.child.kill(name);
  }

  async kill() {
    if (!this.running) return;
    this.child.kill("SIGKILL");
    await this.exited;
  }
}

function read(file) {
  try {
    return JSON.parse(readFileSync(file, "utf8"));
  } catch {
    return undefined; // not written yet, or just being written
  }
}

/** An installation: its nodes, and the apps made on it. */
export class Installation {
  constructor(label, dir, nodes) {
    this.label = label;
    this.dir = dir;
    this.nodes = nodes;
  }

  /**
   * Starts `size` nodes; more than one are a cell. options: args and env of every node; port: each node has an address of its own on this
   * machine with that port (127.0.0.2, 127.0.0.3, …), which clients are told.
   */
  static async start(size, { args = [], env = {}, label, port } = {}) {
    const dir = mkdtempSync(join(tmpdir(), "petrel-conformance-"));
    const made = new Installation(label ?? (size === 1 ? "one node" : `${size} nodes`), dir, []);
    const { nodes } = made;
    made.port = port;
    made.add(size);
    made.args = args;
    made.env = { PETREL_APP_ID: firstApp.id, PETREL_APP_KEY: firstApp.key, PETREL_APP_SECRET: firstApp.secret, PETREL_WEBHOOK_ALLOW: "127.0.0.0/8", PETREL_COMPRESS: String(size > 1), ...env }; // on one node every frame is plain; on three, large ones are compressed for clients that offer it
    if (process.env.CONFORMANCE_KEEP === undefined) process.once("exit", () => made.end());
    await made.up(0);
    await Promise.all(nodes.slice(1).map((_, i) => made.up(i + 1)));
    if (size > 1) await made.voting();
    return made;
  }

  add(count) {
    for (let n = 0; n < count; n++) {
      const node = new Process(`n${this.nodes.length + 1}`, join(this.dir, `n${this.nodes.length + 1}`));
      if (this.port) node.listen = `127.0.0.${this.nodes.length + 2}:${this.port}`;
      this.nodes.push(node);
    }
  }

  async voting() {
    await poll("every node to vote", async () => {
      const cell = await this.nodes[0].admin("GET", "/admin/cell");
      return cell.leader && cell.nodes.length === this.nodes.length && cell.nodes.every((n) => n.role !== "nonvoter");
    });
  }

  /** Starts node i, for the first time or again, and waits until it is ready. */
  async up(i) {
    const node = this.nodes[i];
    const args = [...this.args];
    if (node.listen) args.push("--public-url", `http://${node.listen}`);
    if (this.nodes.length > 1) {
      args.push("--peer", "127.0.0.1:0", "--bus", "127.0.0.1:0");
      if (i > 0 && !existsSync(join(node.dir, "cell.json"))) {
        const cell = await this.nodes[0].admin("GET", "/admin/cell");
        args.push("--join", cell.nodes.find((n) => n.self).peer, "--cell-secret-file", join(this.nodes[0].dir, "cell-secret"));
      }
    }
    node.launch(args, this.env);
    await node.ready();
  }

  /** What another process needs to reach this installation. */
  describe() {
    return { label: this.label, dir: this.dir, nodes: this.nodes.map((n) => ({ name: n.name, dir: n.dir, host: n.host, adminHost: n.adminHost, pid: n.pid })) };
  }

  /** The installation that another process has started and described. */
  static of(description) {
    const nodes = description.nodes.map((d) => {
      const node = new Process(d.name, d.dir);
      node.host = d.host;
      node.adminHost = d.adminHost;
      node.child = { pid: d.pid, exitCode: null, signalCode: null };
      return node;
    });
    return new Installation(description.label, description.dir, nodes);
  }

  get apart() {
    return this.nodes.length > 1;
  }

  /** Node i, counted around: with one node it is always that one. */
  node(i) {
    return this.nodes[i % this.nodes.length];
  }

  get first() {
    return new App(firstApp);
  }

  /** Makes an app of its own for a test, with settings, known on every node when it returns. */
  async app(settings = {}) {
    const id = String(100_000 + Math.floor(Math.random() * 900_000_000));
    const app = new App({ id, key: `key-${id}`, secret: randomBytes(20).toString("hex") });
    await this.node(0).admin("POST", "/admin/apps", { id: app.id, key: app.key, secret: app.secret, name: "conformance" });
    if (Object.keys(settings).length > 0) await this.configure(app, settings);
    await this.everywhere(app);
    return app;
  }

  /** Sets an app's settings, as `petrel app set` does. */
  async configure(app, settings) {
    const pairs = Object.entries(settings).map(([name, value]) => `${name}=${value}`);
    await this.node(0).cli("app", "set", app.id, ...pairs);
  }

  /** Waits until every node knows the app and has the same settings of it. */
  async everywhere(app) {
    const views = () => Promise.all(this.nodes.map((n) => n.admin("GET", `/admin/apps/${app.id}`).then((a) => JSON.stringify(a), () => undefined)));
    await poll(`every node to know app ${app.id}`, async () => {
      const seen = await views();
      return seen[0] !== undefined && seen.every((v) => v === seen[0]);
    });
  }

  /** Ends every process that this one has started, and removes the data. Called at exit: it may not wait. */
  end() {
    for (const node of this.nodes) if (node.running) node.child.kill("SIGKILL");
    rmSync(this.dir, { recursive: true, force: true, maxRetries: 5, retryDelay: 100 });
  }

  async stop() {
    await Promise.all(this.nodes.map((n) => n.kill()));
    rmSync(this.dir, { recursive: true, force: true, maxRetries: 5, retryDelay: 100 });
  }
}
