/**
 * Codes that the server answers. The list only grows; a newer server may answer one
 * that is not named here, so the type stays open.
 */
export type Code =
  | "invalid_json" | "invalid_utf8" | "invalid_id" | "invalid_field" | "invalid_position"
  | "unauthenticated" | "invalid_token" | "token_expired" | "forbidden" | "app_suspended"
  | "not_found" | "app_not_found" | "room_not_found" | "message_not_found" | "member_not_found" | "method_not_allowed"
  | "id_reused" | "conflict" | "epoch_changed" | "message_deleted" | "room_deleted"
  | "too_large" | "unsupported_media_type" | "upgrade_required" | "rate_limited" | "limit_reached"
  | "internal" | "busy" | "read_budget" | "no_leader" | "unknown_outcome" | "disk_full" | "draining" | "overloaded" | "timeout"
  // Made here, never by the server:
  | "network" // no answer came
  | "closed" // the client was closed first
  | "bad_answer" // an answer that is not Petrel's
  | (string & {});

/** A refusal or failure with a stable code and a sentence for people. */
export class PetrelError extends Error {
  readonly code: Code;
  /** HTTP status; 0 when it did not come over HTTP. */
  readonly status: number;
  /** When to come back, if the server said so. */
  readonly retryAfterMs: number | undefined;

  constructor(code: Code, detail: string, more: { status?: number; retryAfterMs?: number | undefined; cause?: unknown } = {}) {
    super(detail, more.cause === undefined ? undefined : { cause: more.cause });
    this.name = "PetrelError";
    this.code = code;
    this.status = more.status ?? 0;
    this.retryAfterMs = more.retryAfterMs;
  }

  /** True when the same request may succeed later; with the same id it is safe to repeat. */
  get retryable(): boolean {
    return retryable.has(this.code);
  }
}

const retryable = new Set<string>([
  "busy", "read_budget", "no_leader", "unknown_outcome", "disk_full", "draining", "overloaded",
  "timeout", "rate_limited", "conflict", "network", "internal",
]);

/** True for codes that a fresh token may cure. */
export function aboutToken(code: string): boolean {
  return code === "token_expired" || code === "invalid_token" || code === "unauthenticated";
}
