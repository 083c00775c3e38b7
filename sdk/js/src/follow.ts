import type { CompanyHandlers } from "./company.js";
import { PetrelError } from "./errors.js";
import type { Start, Subscription, SubscriptionHandlers } from "./subscription.js";
import type { Page, RoomEvent } from "./types.js";

export interface FollowHandlers extends CompanyHandlers {
  /** The newest messages, first and after every resync: forget what was shown and show these. */
  reset(page: Page): void;
  /** Every event after that page, once and in order. May repeat what the page already shows as final state. */
  event(event: RoomEvent): void | Promise<void>;
  refused?(error: PetrelError): void;
  /** The right to read has ended, after the last event: room_not_found (removed from the room) or room_deleted. Left away: refused is called. */
  ended?(error: PetrelError): void;
  current?(current: boolean): void;
}

export interface FollowHost {
  page(signal: AbortSignal): Promise<Page>;
  subscribe(start: Start, handlers: SubscriptionHandlers): Subscription;
  later(ms: number, fn: () => void): unknown;
  cancel(timer: unknown): void;
  pause(attempt: number, atLeast?: number): number;
  failed(error: unknown): void;
}

/**
 * A page of messages and everything after it, without a gap between the two: the page is read first,
 * and the subscription starts after the page's last seq, so whatever the reading node did not
 * know yet is replayed.
 */
export class Follow {
  private subscription: Subscription | undefined;
  private abort = new AbortController();
  private timer: unknown;
  private over = false;

  constructor(readonly room: string, private readonly handlers: FollowHandlers, private readonly host: FollowHost) {
    void this.load(0);
  }

  /** Loads the newest page anew, as after a resync. */
  reload(): void {
    if (this.over) return;
    this.abort.abort();
    this.abort = new AbortController();
    this.host.cancel(this.timer);
    void this.load(0);
  }

  close(): void {
    this.over = true;
    this.abort.abort();
    this.host.cancel(this.timer);
    this.subscription?.close();
  }

  private async load(attempt: number): Promise<void> {
    const { signal } = this.abort;
    try {
      const page = await this.host.page(signal);
      if (signal.aborted) return;
      const after = page.messages.at(-1)?.seq ?? 0;
      this.handlers.reset(page);
      if (this.subscription) this.subscription.restart({ after });
      else {
        this.subscription = this.host.subscribe({ after }, {
          event: (event) => this.handlers.event(event),
          resync: () => this.reload(),
          refused: (error) => {
            this.over = true;
            this.handlers.refused?.(error);
          },
          ended: (error) => {
            this.over = true;
            if (this.handlers.ended) this.handlers.ended(error);
            else this.handlers.refused?.(error);
          },
          current: (current) => this.handlers.current?.(current),
          ...(this.handlers.presence ? { presence: (presence) => this.handlers.presence?.(presence) } : {}),
          typing: (users) => this.handlers.typing?.(users),
        });
      }
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof PetrelError && error.retryable) {
        this.timer = this.host.later(this.host.pause(attempt, error.retryAfterMs), () => void this.load(attempt + 1));
      } else if (error instanceof PetrelError) {
        this.over = true;
        this.subscription?.close();
        this.handlers.refused?.(error);
      } else this.host.failed(error);
    }
  }
}
