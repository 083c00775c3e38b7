/** Nouns of the wire. Times are RFC 3339 in UTC with milliseconds. */

export type RoomKind = "open" | "private" | "direct";
export type Role = "owner" | "moderator" | "member";

export interface Member {
  room?: string;
  user: string;
  role: Role;
}

export interface Room {
  id: string;
  kind: RoomKind;
  name?: string;
  created_at: string;
  created_by?: string;
  members?: Member[];
  custom?: Record<string, unknown>;
  /** The asker's role, where the server tells it. */
  role?: Role;
  /** Seq of the room's last event, where the server tells it. */
  head?: number;
}

export interface Message {
  id: string;
  room: string;
  seq: number;
  user: string;
  text: string;
  created_at: string;
  custom?: Record<string, unknown>;
  mentions?: string[];
  edited_at?: string;
  deleted_at?: string;
}

/** What a sender writes. id is made (UUIDv7) when left away. */
export interface Draft {
  id?: string;
  text: string;
  custom?: Record<string, unknown>;
  mentions?: string[];
}

interface Of<T extends string, D> {
  room: string;
  /** Dense from 1 in the room. */
  seq: number;
  type: T;
  at: string;
  data: D;
}

/** One durable event of a room. */
export type RoomEvent =
  | Of<"message.new" | "message.updated" | "message.deleted", Message>
  | Of<"room.created" | "room.updated" | "room.deleted", Room>
  | Of<"member.added" | "member.updated" | "member.removed", Required<Member>>;

/** Something that is not kept: no seq, no replay, at most once. */
export interface PresenceEvent {
  room: string;
  type: "presence.join" | "presence.leave" | "typing.start" | "typing.stop";
  at: string;
  data: { user: string };
}

/** Who is in a room now, over all nodes. */
export interface Presence {
  /** By id, at most 1,000. */
  users: string[];
  /** Of all. */
  count: number;
  /** A node did not say in time who is on it. */
  partial?: boolean;
}

export interface Page {
  /** Ascending by seq. */
  messages: Message[];
  /** True when there are more in the direction asked for. */
  more: boolean;
}

export interface Heartbeat {
  interval_ms: number;
  grace_ms: number;
  epoch: number;
}

/** Frames that the server sends. Unknown ones are ignored: a newer server may say more. */
export type ServerFrame =
  | { op: "hello"; conn: string; user: string; node: string; epoch: string; stale_ms?: number; heartbeat: Heartbeat }
  | { op: "ok"; id: number; room?: string; head?: number; epoch?: string; message?: Message; position?: string; repeated?: boolean }
  | { op: "error"; id?: number; code: string; detail?: string; retry_after_ms?: number }
  | ({ op: "event" } & RoomEvent)
  | ({ op: "event"; seq?: undefined } & PresenceEvent)
  | { op: "presence"; room: string; users?: { user: string }[]; count: number }
  | { op: "stale"; for_ms: number }
  | { op: "resync"; room: string; reason: ResyncReason; head: number }
  | { op: "unsubscribed"; room: string; code: string; detail?: string }
  | { op: "ping"; id?: number }
  | { op: "pong"; id?: number }
  | { op: "reconnect"; after_ms?: number; reason?: string; to?: string[] };

export type ResyncReason = "epoch" | "ahead" | "too_old" | (string & {});
