import { PetrelError, type Follow, type Message, type Page, type Petrel, type Presence, type Room, type RoomEvent, type Sending } from "@petrel-chat/sdk";

/** So many messages are in the page at most; farther ones are dropped and loaded again when scrolled to. */
const windowSize = 600;
const pageSize = 60;

export interface Failed {
  message: Pick<Sending, "id" | "room" | "text" | "at">;
  error: PetrelError;
}

/** Whether a room is not there for us any more. */
export const isGone = (error: PetrelError) => error.code === "room_not_found" || error.code === "room_deleted";

/**
 * One room as the page shows it: a window on its messages, what is on its way, who is in it.
 *
 * Invariants: messages are ascending by seq without repeats; when atEnd holds, the window reaches
 * to the newest message known.
 */
export class RoomModel {
  info = $state.raw<Room>() as Room;
  messages = $state.raw<Message[]>([]);
  sending = $state.raw<Sending[]>([]);
  failed = $state.raw<Failed[]>([]);
  members = $state.raw<Map<string, string>>(new Map());
  /** Who is here now; undefined until the server has said. */
  here = $state.raw<Presence | undefined>(undefined);
  /** Who is typing, without us. */
  typing = $state.raw<string[]>([]);
  loaded = $state(false);
  hasOlder = $state(false);
  atEnd = $state(true);
  loading = $state<"" | "older" | "newer">("");
  /** An older or newer page could not be had. */
  loadFailed = $state(false);
  refused = $state.raw<PetrelError | undefined>(undefined);
  /** Refused after it could be read: we were removed, or the room was deleted. */
  ended = $state(false);
  unread = $state(0);
  /** The first message not seen when the room was opened: the line "new" is above it. */
  newFrom = $state<number | undefined>(undefined);
  /** Counts up when someone else's message arrived at the end; value is announced to screen readers. */
  latest = $state.raw<Message | undefined>(undefined);
  lastAt = $state(0);
  draft = "";
  private head = 0; // seq of the newest message seen
  private following: Follow | undefined;
  private membersLoaded = false;
  private readonly changed = new Map<string, Message>(); // recent edits and deletions, for pages read before them

  constructor(private readonly client: Petrel, info: Room, private readonly looking: () => boolean, private readonly onend: () => void) {
    this.info = info;
    for (const m of info.members ?? []) this.members.set(m.user, m.role);
    this.lastAt = Date.parse(info.created_at) || 0;
  }

  get id(): string {
    return this.info.id;
  }

  get active(): boolean {
    return this.following !== undefined;
  }

  /** What to call it: its name, the other person, or its id. */
  name(me: string | undefined): string {
    if (this.info.kind === "direct") {
      const others = [...this.members.keys()].filter((u) => u !== me);
      if (others.length > 0) return others.join(", ");
      if (this.members.size > 0) return `${me} (you)`;
    }
    return this.info.name || this.info.id;
  }

  /** Begins to follow; does nothing when it does already. */
  open(): void {
    if (this.following || this.refused) return;
    this.following = this.client.follow(this.id, {
      reset: (page) => this.reset(page),
      event: (event) => this.take(event),
      refused: (error) => {
        this.following = undefined;
        if (this.loaded && isGone(error)) this.end(error); // while we were away
        else this.refused = error;
      },
      ended: (error) => this.end(error),
      presence: (here) => (this.here = here),
      typing: (users) => (this.typing = users),
    }, { limit: pageSize });
    this.refreshSending();
  }

  /** The right to read it has ended: nothing of it stays on the page. */
  end(error: PetrelError): void {
    if (this.ended) return;
    this.ended = true;
    this.refused = error;
    this.close();
    this.members = new Map();
    this.unread = 0;
    this.onend();
  }

  close(): void {
    this.following?.close();
    this.following = undefined;
    this.here = undefined;
    this.typing = [];
    this.loaded = false;
    this.messages = [];
  }

  async loadMembers(): Promise<void> {
    if (this.membersLoaded) return;
    this.membersLoaded = true;
    try {
      const list = await this.client.members(this.id, { limit: 10_000 });
      this.members = new Map(list.map((m) => [m.user, m.role]));
    } catch {
      this.membersLoaded = false;
    }
  }

  async loadOlder(): Promise<void> {
    const first = this.messages[0];
    if (!first || !this.hasOlder || this.loading) return;
    this.loading = "older";
    try {
      const page = await this.client.messages(this.id, { before: first.seq, limit: pageSize });
      if (this.messages[0] !== first) return; // reset meanwhile
      let all = [...this.fresh(page.messages), ...this.messages];
      if (all.length > windowSize) {
        all = all.slice(0, windowSize);
        this.atEnd = false;
      }
      this.messages = all;
      this.hasOlder = page.more;
      this.loadFailed = false;
    } catch {
      this.loadFailed = true;
    } finally {
      this.loading = "";
    }
  }

  async loadNewer(): Promise<void> {
    const last = this.messages.at(-1);
    if (!last || this.atEnd || this.loading) return;
    this.loading = "newer";
    try {
      const page = await this.client.messages(this.id, { after: last.seq, limit: pageSize });
      if (this.messages.at(-1) !== last) return;
      const all = [...this.messages, ...this.fresh(page.messages)];
      this.messages = all.length > windowSize ? all.slice(-windowSize) : all;
      if (all.length > windowSize) this.hasOlder = true;
      // What arrived while the page was read is not in it: another round.
      this.atEnd = !page.more && (all.at(-1)?.seq ?? 0) >= this.head;
      this.loadFailed = false;
    } catch {
      this.loadFailed = true;
    } finally {
      this.loading = "";
    }
  }

  /** Back to the newest messages from far up. */
  jumpToEnd(): void {
    if (!this.atEnd) this.following?.reload();
  }

  send(text: string): void {
    const sending = this.client.send(this.id, { text });
    this.watch(sending);
  }

  /** Tells the others that something is being written here, or no more. */
  types(active: boolean): void {
    if (this.active) this.client.typing(this.id, active);
  }

  retry(failed: Failed): void {
    this.failed = this.failed.filter((f) => f !== failed);
    // An id that belongs to another message would be refused for ever.
    const { id, text } = failed.message;
    this.watch(this.client.send(this.id, failed.error.code === "id_reused" ? { text } : { id, text }));
  }

  forget(failed: Failed): void {
    this.failed = this.failed.filter((f) => f !== failed);
  }

  async edit(id: string, text: string): Promise<void> {
    this.replace(await this.client.editMessage(this.id, id, { text }));
  }

  async remove(id: string): Promise<void> {
    await this.client.deleteMessage(this.id, id);
  }

  seen(): void {
    this.unread = 0;
  }

  /** Takes over what the client still has to send for this room, also from before a reload. */
  refreshSending(): void {
    const known = new Set(this.sending.map((s) => s.id));
    const now = this.client.unsent(this.id);
    for (const sending of now) if (!known.has(sending.id)) this.watch(sending);
  }

  /** An event of a room that is not shown: only what the list of rooms needs. */
  glance(event: RoomEvent, me: string | undefined): void {
    if (event.type === "message.new") {
      this.lastAt = Date.parse(event.data.created_at);
      if (event.data.user !== me) {
        this.unread++;
        this.newFrom ??= event.seq;
      }
    } else this.settings(event);
  }

  private watch(sending: Sending): void {
    if (this.sending.some((s) => s.id === sending.id)) return;
    this.sending = [...this.sending, sending];
    sending.acknowledged.then(
      (message) => {
        this.done(sending.id);
        this.head = Math.max(this.head, message.seq);
        if (this.loaded && this.atEnd) this.insert(message);
      },
      (reason: unknown) => {
        this.done(sending.id);
        const error = reason instanceof PetrelError ? reason : new PetrelError("internal", String(reason));
        if (error.code !== "closed") this.failed = [...this.failed, { message: sending, error }];
      },
    );
  }

  private done(id: string): void {
    this.sending = this.sending.filter((s) => s.id !== id);
  }

  private reset(page: Page): void {
    this.messages = this.fresh(page.messages);
    this.hasOlder = page.more;
    this.atEnd = true;
    this.loaded = true;
    this.head = this.messages.at(-1)?.seq ?? 0;
    const at = this.messages.at(-1)?.created_at;
    if (at) this.lastAt = Date.parse(at);
  }

  private take(event: RoomEvent): void {
    switch (event.type) {
      case "message.new": {
        const message = event.data;
        this.lastAt = Date.parse(message.created_at);
        this.head = Math.max(this.head, message.seq);
        // In the same turn, so that it does not show twice or vanish for a frame.
        if (message.user === this.client.me) this.done(message.id);
        if (this.atEnd) this.insert(message);
        if (message.user !== this.client.me) {
          this.latest = message;
          if (!this.looking()) {
            this.unread++;
            this.newFrom ??= message.seq;
          }
        }
        if (!this.members.has(message.user) && this.info.kind === "open") this.members = new Map(this.members).set(message.user, "member");
        return;
      }
      case "message.updated":
      case "message.deleted":
        this.changed.set(event.data.id, event.data);
        if (this.changed.size > 500) this.changed.delete(this.changed.keys().next().value!);
        this.replace(event.data);
        return;
      default:
        this.settings(event);
    }
  }

  private settings(event: RoomEvent): void {
    switch (event.type) {
      case "room.created":
      case "room.updated":
        this.info = { ...this.info, ...event.data };
        return;
      case "room.deleted":
        return; // the subscription's end follows
      case "member.added":
      case "member.updated":
        this.members = new Map(this.members).set(event.data.user, event.data.role);
        return;
      case "member.removed": {
        const members = new Map(this.members);
        members.delete(event.data.user);
        this.members = members;
      }
    }
  }

  /** Puts a message in its place; the acknowledgement and the event of one message both come here, in any order. */
  private insert(message: Message): void {
    const all = this.messages;
    let at = all.length;
    while (at > 0 && all[at - 1]!.seq > message.seq) at--;
    if (all[at - 1]?.seq === message.seq) return;
    const next = [...all.slice(0, at), this.newer(message), ...all.slice(at)];
    if (next.length > windowSize) this.hasOlder = true;
    this.messages = next.length > windowSize ? next.slice(-windowSize) : next;
  }

  private replace(message: Message): void {
    const at = this.messages.findIndex((m) => m.id === message.id);
    if (at >= 0) this.messages = this.messages.with(at, message);
  }

  private fresh(messages: Message[]): Message[] {
    return messages.map((m) => this.newer(m));
  }

  private newer(message: Message): Message {
    const changed = this.changed.get(message.id);
    if (!changed || message.deleted_at) return message;
    return changed.deleted_at || (changed.edited_at ?? "") > (message.edited_at ?? "") ? changed : message;
  }
}
