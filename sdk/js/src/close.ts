/** Why a connection ended, as far as this side can know. */
export interface Ending {
  /** WebSocket close code; 1006 when there was none. */
  code: number;
  reason: string;
  /** Code of the error frame or problem that came before it, if one did. */
  error?: string;
  /** HTTP status when the connection was refused before it opened and the transport can see it. */
  status?: number;
  /** What the server asked for: Retry-After, retry_after_ms or reconnect.after_ms. */
  retryAfterMs?: number;
}

/** What to do about it. */
export type Plan =
  | { next: "stop" } // unchanged, we would be refused again
  | { next: "pause"; atLeastMs: number } // come back, but not before
  | { next: "at_once" } // come back now (jittered) and resume
  | { next: "backoff" }; // nothing is known: exponential

/**
 * The ranges of close codes say what to do, so that a client understands codes younger
 * than itself (internal/conn/codes.go): 4000–4099 do not come back unchanged, 4100–4199 come back after a pause,
 * 4200–4299 come back at once and resume.
 */
export function planAfter(end: Ending): Plan {
  if (end.code >= 4000 && end.code <= 4099) return { next: "stop" };
  if (end.code >= 4100 && end.code <= 4199) return { next: "pause", atLeastMs: end.retryAfterMs ?? 1_000 };
  if (end.retryAfterMs !== undefined && end.retryAfterMs > 0) return { next: "pause", atLeastMs: end.retryAfterMs };
  if (end.code >= 4200 && end.code <= 4299) return { next: "at_once" };
  const s = end.status ?? 0;
  // 404 may be a proxy in the middle of a deploy, 408 and 429 pass: only a clear "not you" stops.
  if (s === 400 || s === 401 || s === 403) return { next: "stop" };
  return { next: "backoff" };
}
