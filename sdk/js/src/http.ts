import type { Clock } from "./clock.js";
import { PetrelError } from "./errors.js";
import { Backoff, type RetryBudget } from "./retry.js";
import type { Servers } from "./servers.js";
import { parseRetryAfter } from "./transport.js";

export interface CallOptions {
  query?: Record<string, string | number | undefined>;
  body?: unknown;
  /** Command id: makes a repeat of a write safe. */
  key?: string;
  /** Room concerned: its own writes are waited for. */
  room?: string;
  signal?: AbortSignal;
}

export interface HttpOptions {
  servers: Servers;
  clock: Clock;
  budget: RetryBudget;
  /** A token; a fresh one when it would be the one that was refused. */
  token(refused: string | undefined): Promise<string>;
  fetch: typeof fetch;
  /** Ms for one try. Default 15,000. */
  timeout?: number;
  /** Tries after the first. Default 3; the budget may allow fewer. */
  retries?: number;
}

/**
 * Calls of the HTTP API. Every call here is safe to repeat (a read, or a write with a command id), so passing
 * failures are retried within the budget, no sooner than the server asks. Repeats carry
 * `Petrel-Retry: N`.
 */
export class Http {
  /** Petrel-Position of the last write per room, and of the last one at all under "". */
  private readonly positions = new Map<string, string>();
  private noted = 0; // positions so far

  constructor(private readonly options: HttpOptions) {}

  /** Notes where a write of ours ended up, so that reads that follow see it on whatever node they land. */
  wrote(room: string | undefined, position: string | null | undefined): void {
    if (!position) return;
    this.noted++;
    this.positions.set("", position);
    if (room !== undefined) this.positions.set(room, position);
  }

  /** When a question is asked: what is noted between that and its answer may be newer than what the answer shows. */
  get asked(): number {
    return this.noted;
  }

  /** Notes where the answer to a question was, so that nothing that follows goes back behind it. */
  saw(room: string | undefined, position: string | null | undefined, asked: number): void {
    if (asked === this.noted) this.wrote(room, position);
  }

  /** The newest position that reads of the room, or a subscription to it, shall wait for. */
  position(room: string | undefined): string | undefined {
    return this.positions.get(room ?? "") ?? this.positions.get("");
  }

  /** The log has begun another life: what we hold means nothing in it. */
  forget(): void {
    this.positions.clear();
  }

  async call<T>(method: string, path: string, options: CallOptions = {}): Promise<T> {
    const { clock, budget } = this.options;
    const backoff = new Backoff(clock, { base: 250, cap: 8_000 });
    budget.earn();
    let refused: string | undefined;
    let forgot = false;
    for (let retry = 0; ; retry++) {
      options.signal?.throwIfAborted();
      const token = await this.options.token(refused);
      try {
        return await this.once<T>(method, path, options, retry, token);
      } catch (error) {
        if (!(error instanceof PetrelError) || options.signal?.aborted) throw error;
        // The two that are cured by changing the request, each once.
        if (error.code === "token_expired" && refused === undefined) {
          refused = token;
          continue;
        }
        if ((error.code === "epoch_changed" || error.code === "invalid_position") && !forgot && this.positions.size > 0) {
          forgot = true;
          this.forget();
          continue;
        }
        if (!error.retryable || retry >= (this.options.retries ?? 3) || !budget.take()) throw error;
        await this.sleep(backoff.next(error.retryAfterMs), options.signal);
      }
    }
  }

  private async once<T>(method: string, path: string, options: CallOptions, retry: number, token: string): Promise<T> {
    const { clock, servers } = this.options;
    const url = servers.current;
    const asked = this.asked;
    const query = Object.entries(options.query ?? {}).filter(([, v]) => v !== undefined).map(([k, v]) => `${k}=${encodeURIComponent(String(v))}`);
    const headers: Record<string, string> = { Accept: "application/json" };
    if (retry > 0) headers["Petrel-Retry"] = String(retry);
    if (options.key !== undefined) headers["Idempotency-Key"] = options.key;
    if (options.body !== undefined) headers["Content-Type"] = "application/json";
    if (method === "GET") {
      const position = this.position(options.room);
      if (position !== undefined) headers["Petrel-Position"] = position;
    }
    headers.Authorization = `Bearer ${token}`;
    const abort = new AbortController();
    const onAbort = () => abort.abort(options.signal?.reason);
    options.signal?.addEventListener("abort", onAbort, { once: true });
    const timer = clock.after(this.options.timeout ?? 15_000, () => abort.abort());
    try {
      let response: Response;
      let text: string;
      try {
        response = await this.options.fetch(url + path + (query.length > 0 ? "?" + query.join("&") : ""), {
          method, headers, signal: abort.signal, credentials: "omit", cache: "no-store",
          ...(options.body === undefined ? {} : { body: JSON.stringify(options.body) }),
        });
        text = await response.text();
      } catch (cause) {
        if (options.signal?.aborted) throw cause;
        servers.leave(url);
        throw new PetrelError("network", "The server could not be reached.", { cause });
      }
      if (!response.ok) {
        const error = problem(response, text, clock.now());
        if (error.code === "draining" || error.code === "no_leader" || error.code === "timeout") servers.leave(url);
        throw error;
      }
      const position = response.headers.get("Petrel-Position");
      if (method === "GET") this.saw(options.room, position, asked);
      else this.wrote(options.room, position);
      if (text === "") return undefined as T;
      try {
        return JSON.parse(text) as T;
      } catch (cause) {
        throw new PetrelError("bad_answer", "The server answered something that is not JSON.", { status: response.status, cause });
      }
    } finally {
      clock.clear(timer);
      options.signal?.removeEventListener("abort", onAbort);
    }
  }

  private sleep(ms: number, signal?: AbortSignal): Promise<void> {
    const { clock } = this.options;
    return new Promise((resolve, reject) => {
      const timer = clock.after(ms, () => {
        signal?.removeEventListener("abort", stop);
        resolve();
      });
      const stop = () => {
        clock.clear(timer);
        reject(signal?.reason as Error);
      };
      signal?.addEventListener("abort", stop, { once: true });
    });
  }
}

/** Reads a problem+json answer; a proxy's own error page becomes the nearest code. */
function problem(response: Response, text: string, now: number): PetrelError {
  const more = { status: response.status, retryAfterMs: parseRetryAfter(response.headers.get("Retry-After"), now) };
  try {
    const body = JSON.parse(text) as { code?: unknown; detail?: unknown; title?: unknown };
    if (typeof body.code === "string") {
      return new PetrelError(body.code, String(body.detail ?? body.title ?? body.code), more);
    }
  } catch {
    // Not ours.
  }
  const code = response.status === 429 ? "rate_limited" : response.status >= 500 ? "busy" : "bad_answer";
  return new PetrelError(code, `The server answered HTTP ${response.status}.`, more);
}
