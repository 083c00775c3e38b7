import type { Clock } from "./clock.js";

export interface BackoffOptions {
  /** Upper bound of the first pause, in ms. Default 500. */
  base?: number;
  /** Upper bound of any pause, in ms. Default 30,000. */
  cap?: number;
}

/**
 * Exponential backoff with full jitter: the n-th pause is uniform in [0, min(cap, base·2ⁿ)),
 * so that clients cut off at one moment do not come back at one moment.
 */
export class Backoff {
  private failures = 0;
  private readonly base: number;
  private readonly cap: number;

  constructor(private readonly clock: Clock, options: BackoffOptions = {}) {
    this.base = options.base ?? 500;
    this.cap = options.cap ?? 30_000;
  }

  get attempt(): number {
    return this.failures;
  }

  /** The next pause in ms: never less than atLeast, which a server named, and jittered above it. */
  next(atLeast = 0): number {
    const bound = Math.min(this.cap, this.base * 2 ** Math.min(this.failures, 20));
    this.failures++;
    const jitter = this.clock.random() * bound;
    // Everyone told "come back in 5 s" would otherwise come back in the same instant.
    return atLeast + jitter;
  }

  reset(): void {
    this.failures = 0;
  }
}

/**
 * Keeps retries at or below a share of the traffic, so that clients do not multiply the load of
 * a server that already fails. Each first try earns a share of one retry; a small reserve
 * that refills with time lets a client that says little still recover.
 */
export class RetryBudget {
  private tokens: number;
  private at: number;
  /** First tries and retries so far. */
  readonly counts = { first: 0, retries: 0, denied: 0 };

  constructor(
    private readonly clock: Clock,
    private readonly share = 0.1,
    private readonly reserve = 10,
    private readonly refillMs = 10_000,
  ) {
    this.tokens = reserve;
    this.at = clock.now();
  }

  /** Notes a first try. */
  earn(): void {
    this.counts.first++;
    this.tokens = Math.min(this.reserve * 2, this.tokens + this.share);
  }

  /** Takes one retry if there is one. */
  take(): boolean {
    this.refill();
    if (this.tokens < 1) {
      this.counts.denied++;
      return false;
    }
    this.tokens--;
    this.counts.retries++;
    return true;
  }

  /** Ms until a retry is there. */
  wait(): number {
    this.refill();
    return this.tokens >= 1 ? 0 : Math.ceil((1 - this.tokens) * this.refillMs);
  }

  private refill(): void {
    const now = this.clock.now();
    if (this.tokens < this.reserve) {
      this.tokens = Math.min(this.reserve, this.tokens + Math.max(0, now - this.at) / this.refillMs);
    }
    this.at = now;
  }
}
