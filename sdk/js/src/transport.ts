import type { Ending } from "./close.js";
import type { ServerFrame } from "./types.js";

/** One open (or opening) connection. Whatever happens, ended is called exactly once, last. */
export interface Transport {
  readonly name: string;
  /** Throws nothing: what cannot be sent is lost with the connection, and is sent again on the next. */
  send(frame: object): void;
  /** Ends it from this side; no handler is called afterwards. */
  drop(code: number, reason: string): void;
}

export interface TransportHandlers {
  opened(): void;
  frame(frame: ServerFrame): void;
  ended(end: Ending): void;
}

export interface TransportRequest {
  /** http(s) address of the server, without a trailing slash. */
  url: string;
  token: string;
  /** 0 for a first try. */
  attempt: number;
}

export type OpenTransport = (request: TransportRequest, handlers: TransportHandlers) => Transport;

/** The part of WebSocket that we use: the browser's, Node's (≥ 22) and that of `ws` all have it. */
export interface WebSocketLike {
  readyState: number;
  send(data: string): void;
  close(code?: number, reason?: string): void;
  onopen: ((event: never) => void) | null;
  onmessage: ((event: never) => void) | null;
  onclose: ((event: never) => void) | null;
  onerror: ((event: never) => void) | null;
}
export type WebSocketConstructor = new (url: string) => WebSocketLike;

/** Parses a frame; anything that is not an object with an op is undefined. */
export function parseFrame(data: unknown): ServerFrame | undefined {
  if (typeof data !== "string") return undefined;
  try {
    const frame: unknown = JSON.parse(data);
    if (typeof frame === "object" && frame !== null && typeof (frame as { op?: unknown }).op === "string") {
      return frame as ServerFrame;
    }
  } catch {
    // Reported by the caller.
  }
  return undefined;
}

/**
 * Opens `/v1/connect`. The token goes in the first frame, not in the address: addresses
 * end up in logs.
 */
export function webSocketTransport(Socket: WebSocketConstructor): OpenTransport {
  return (request, handlers) => {
    const address = request.url.replace(/^http/, "ws") + "/v1/connect" + (request.attempt > 0 ? `?attempt=${request.attempt}` : "");
    let over = false;
    let refused: Pick<Ending, "status" | "retryAfterMs"> = {};
    const end = (ending: Ending) => {
      if (over) return;
      over = true;
      handlers.ended({ ...refused, ...ending });
    };
    const socket = new Socket(address);
    socket.onopen = () => {
      if (over) return;
      handlers.opened();
      transport.send({ op: "auth", token: request.token });
    };
    socket.onmessage = ((event: { data: unknown }) => {
      if (over) return;
      const frame = parseFrame(event.data);
      if (frame) handlers.frame(frame);
      else {
        socket.close(3002, "not a frame");
        end({ code: 3002, reason: "the server sent something that is not a frame" });
      }
    }) as (event: never) => void;
    socket.onerror = () => {};
    socket.onclose = ((event: { code: number; reason: string }) => {
      end({ code: event.code || 1006, reason: event.reason });
    }) as (event: never) => void;
    seeRefusal(socket, (status, retryAfter) => {
      const retryAfterMs = parseRetryAfter(retryAfter, Date.now());
      refused = { status, ...(retryAfterMs === undefined ? {} : { retryAfterMs }) };
      end({ code: 1006, reason: `refused with HTTP ${status}` });
    });
    const transport: Transport = {
      name: "websocket",
      send(frame) {
        if (!over && socket.readyState === 1) socket.send(JSON.stringify(frame));
      },
      drop(code, reason) {
        if (over) return;
        over = true;
        try {
          socket.close(code, reason);
        } catch {
          // Still connecting, in an engine that objects.
        }
      },
    };
    return transport;
  };
}

/** Browsers hide why a handshake was refused; `ws` tells. */
function seeRefusal(socket: object, tell: (status: number, retryAfter: string | null) => void): void {
  const on = (socket as { on?: unknown }).on;
  if (typeof on !== "function") return;
  on.call(socket, "unexpected-response", (req: { destroy(): void }, res: { statusCode: number; headers: Record<string, string | undefined> }) => {
    tell(res.statusCode, res.headers["retry-after"] ?? null);
    req.destroy();
  });
}

/** Reads a Retry-After header, seconds or a date, into ms from now. */
export function parseRetryAfter(value: string | null, now: number): number | undefined {
  if (value === null || value.trim() === "") return undefined;
  const seconds = Number(value);
  if (Number.isFinite(seconds)) return seconds >= 0 ? Math.round(seconds * 1000) : undefined;
  const date = Date.parse(value);
  return Number.isNaN(date) ? undefined : Math.max(0, date - now);
}
