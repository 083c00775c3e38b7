// An app as its backend sees it: what it signs, and what it asks of the HTTP API. Written from the documented recipe,
// on purpose without the official SDK, so that single bytes can be wrong where a test wants them to be.
import { createHash, createHmac } from "node:crypto";

export const hmac = (secret, text) => createHmac("sha256", secret).update(text).digest("hex");
export const md5 = (bytes) => createHash("md5").update(bytes).digest("hex");

/** A moment in seconds, as signatures have it. */
export const now = () => Math.floor(Date.now() / 1000);

/** The query that signs a request: parameters sorted by lower-cased name, not escaped in what is signed. */
export function signed({ key, secret }, method, path, { query = {}, body = "", timestamp = now(), version = "1.0", bodyMD5 } = {}) {
  const params = { ...query, auth_key: key, auth_timestamp: String(timestamp), auth_version: version };
  if (bodyMD5 ?? body.length > 0) params.body_md5 = bodyMD5 ?? md5(body);
  const text = Object.entries(params).map(([name, value]) => [name.toLowerCase(), value]).sort(([a], [b]) => (a < b ? -1 : 1)).map(([n, v]) => `${n}=${v}`).join("&");
  return { params: { ...params, auth_signature: hmac(secret, `${method}\n${path}\n${text}`) }, text };
}

export class App {
  constructor({ id, key, secret }) {
    this.id = id;
    this.key = key;
    this.secret = secret;
  }

  /** The auth string for a channel; data is the exact text of channel_data. */
  auth(socketId, channel, data) {
    return `${this.key}:${hmac(this.secret, data === undefined ? `${socketId}:${channel}` : `${socketId}:${channel}:${data}`)}`;
  }

  /** The auth string for pusher:signin. */
  signin(socketId, userData) {
    return `${this.key}:${hmac(this.secret, `${socketId}::user::${userData}`)}`;
  }

  /** Data of pusher:subscribe for any channel. member: {user_id, user_info} of a presence channel. */
  subscribe(socketId, channel, member) {
    const data = member === undefined ? undefined : JSON.stringify(member);
    if (!/^(private|presence)-/.test(channel)) return { channel };
    return { channel, auth: this.auth(socketId, channel, data), ...(data === undefined ? {} : { channel_data: data }) };
  }

  /** A signed request to the HTTP API. Whatever is given in options overrides what would be right. */
  async call(node, method, path, { body, query = {}, headers = {}, ...options } = {}) {
    const whole = `/apps/${this.id}${path}`;
    const raw = body === undefined ? "" : typeof body === "string" ? body : JSON.stringify(body);
    const { params } = signed(this, method, whole, { query, body: raw, ...options });
    const search = new URLSearchParams({ ...params, ...options.replace });
    for (const name of options.without ?? []) search.delete(name);
    const answer = await fetch(`${node.url}${whole}?${search}`, {
      method,
      headers: { ...(raw ? { "Content-Type": "application/json" } : {}), ...headers },
      ...(raw ? { body: options.sent ?? raw } : {}),
    });
    return reply(answer);
  }

  /** Triggers an event and expects that it is taken. */
  async trigger(node, channels, name, data, more = {}) {
    const body = { name, data: typeof data === "string" ? data : JSON.stringify(data), channels: [channels].flat(), ...more };
    const answer = await this.call(node, "POST", "/events", { body });
    if (answer.status !== 200) throw new Error(`a trigger answers ${answer.status}: ${answer.text}`);
    return answer.json;
  }
}

/** What came back, whatever it was. */
export async function reply(answer) {
  const text = await answer.text();
  let json;
  try {
    json = JSON.parse(text);
  } catch {
    json = undefined;
  }
  return { status: answer.status, headers: answer.headers, text, json };
}
