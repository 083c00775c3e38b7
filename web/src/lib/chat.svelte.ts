import { Petrel, PetrelError, webStorage, type ConnectionState, type Room, type RoomKind, type Subscription } from "@petrel-chat/sdk";
import { isGone, RoomModel } from "./room.svelte";
import type { Session } from "./session.svelte";

/** So many rooms stay loaded after one has left them. */
const keepOpen = 5;
/** So many rooms are listened to for unread marks. */
const listenTo = 50;
/** How often the list of rooms is read anew: a room that someone else made for us shows up with it. */
const listEveryMs = 20_000;

/** Everything behind the page: one client, the rooms, and which of them is shown. */
export class Chat {
  readonly client: Petrel;
  connection = $state.raw<ConnectionState>({ phase: "idle" });
  /** True from the first hello on. */
  wasLive = $state(false);
  me = $state<string | undefined>(undefined);
  rooms = $state.raw<RoomModel[]>([]);
  roomsLoaded = $state(false);
  roomsError = $state("");
  currentId = $state<string | undefined>(undefined);
  readonly current = $derived(this.rooms.find((r) => r.id === this.currentId));
  readonly unread = $derived(this.rooms.reduce((sum, r) => sum + r.unread, 0));
  private recent: RoomModel[] = [];
  private readonly glances = new Map<string, Subscription>();
  private timer: ReturnType<typeof setInterval> | undefined;
  private over = false;
  private endings = 0; // rooms that ended for us

  constructor(session: Session) {
    this.client = new Petrel({ token: session.token, storage: guarded(() => webStorage(`petrel.outbox.${session.owner}`)) });
    this.client.on("state", (state) => {
      this.connection = state;
      if (state.phase !== "live") return;
      const again = this.wasLive;
      this.wasLive = true;
      this.me = state.user;
      if (again) void this.list();
    });
    this.client.on("outbox", () => this.current?.refreshSending());
  }

  async start(): Promise<void> {
    addEventListener("hashchange", this.follow);
    await this.client.connect();
    this.timer = setInterval(() => {
      if (document.visibilityState === "visible" && this.connection.phase === "live") void this.list();
    }, listEveryMs);
    await this.list();
    const wanted = roomInAddress();
    if (!this.currentId) this.show(this.rooms.find((r) => r.id === wanted)?.id ?? this.rooms[0]?.id);
  }

  /** Back, forward, and a link to a room. */
  private readonly follow = (): void => {
    const id = roomInAddress();
    if (id !== this.currentId && this.rooms.some((r) => r.id === id)) this.show(id);
  };

  stop(): void {
    this.over = true;
    removeEventListener("hashchange", this.follow);
    clearInterval(this.timer);
    this.client.close();
  }

  /** Reads the rooms; what is there already stays the same object. */
  async list(): Promise<void> {
    try {
      const { endings } = this;
      const found = await this.client.rooms({ open: true });
      if (this.over) return;
      if (endings !== this.endings) return void (await this.list()); // it was asked before, and may still have them
      this.merge(found, true);
      this.roomsLoaded = true;
      this.roomsError = "";
    } catch (error) {
      this.roomsError = error instanceof PetrelError ? error.message : String(error);
      // The first list is all we have to go by: it is asked for until it comes.
      if (!this.roomsLoaded && !this.over && error instanceof PetrelError && error.retryable) {
        setTimeout(() => void this.startList(), 2_000 + Math.random() * 2_000);
      }
    }
  }

  show(id: string | undefined): void {
    const left = this.current;
    if (left && left.id !== id) left.newFrom = undefined;
    this.currentId = id;
    const room = this.current;
    if (!room) return;
    const address = "#/" + encodeURIComponent(room.id);
    // Back leads to the room before; the first one takes the place of the bare address.
    if (location.hash !== address) history[left ? "pushState" : "replaceState"](null, "", address);
    this.glances.get(room.id)?.close();
    this.glances.delete(room.id);
    room.open();
    room.seen();
    void room.loadMembers();
    this.recent = [room, ...this.recent.filter((r) => r !== room && !r.ended)];
    this.rooms = this.rooms.filter((r) => r === room || !r.ended);
    for (const old of this.recent.splice(keepOpen)) {
      old.close();
      this.listen(old);
    }
  }

  async create(kind: RoomKind, name: string, members: string[]): Promise<void> {
    const room = await this.client.createRoom({ kind, ...(name ? { name } : {}), ...(members.length > 0 ? { members } : {}) });
    this.merge([room], false);
    this.show(room.id);
  }

  /** Everybody this page has heard of. */
  people(): string[] {
    const all = new Set<string>();
    for (const room of this.rooms) {
      for (const user of room.members.keys()) all.add(user);
      for (const message of room.messages) all.add(message.user);
    }
    if (this.me) all.delete(this.me);
    return [...all].sort((a, b) => a.localeCompare(b));
  }

  private async startList(): Promise<void> {
    if (this.over || this.roomsLoaded) return;
    await this.list();
    if (this.roomsLoaded && !this.currentId) this.show(this.rooms.find((r) => r.id === roomInAddress())?.id ?? this.rooms[0]?.id);
  }

  private merge(found: Room[], whole: boolean): void {
    const known = new Map(this.rooms.map((r) => [r.id, r]));
    const next = found.map((info) => {
      const room = known.get(info.id);
      if (!room || room.ended) { // or we were let in again
        const made: RoomModel = new RoomModel(this.client, info, () => this.current === made && document.visibilityState === "visible", () => this.ended(made));
        if (info.kind === "direct" && !info.members) void made.loadMembers();
        return made;
      }
      room.info = { ...room.info, ...info };
      return room;
    });
    const here = new Set(next.map((r) => r.id));
    const rest = this.rooms.filter((r) => !here.has(r.id) && (!whole || r === this.current));
    this.rooms = [...next, ...rest];
    this.current?.open();
    for (const room of next.slice(0, listenTo)) this.listen(room);
  }

  /** A room is over for us. One that is shown stays, to say so, until another is. */
  private ended(room: RoomModel): void {
    this.endings++;
    this.glances.get(room.id)?.close();
    this.glances.delete(room.id);
    if (room === this.current) history.replaceState(null, "", "#/"); // a reload does not come back to it
    else this.rooms = this.rooms.filter((r) => r !== room);
  }

  /** Listens to a room that is not shown, for its unread mark. */
  private listen(room: RoomModel): void {
    if (room.active || this.glances.has(room.id) || room.refused || this.over) return;
    this.glances.set(room.id, this.client.subscribe(room.id, {}, {
      event: (event) => room.glance(event, this.client.me),
      // Marks are a courtesy: after a resync they begin anew.
      resync: () => this.glances.get(room.id)?.restart(),
      refused: (error) => {
        this.glances.delete(room.id);
        if (isGone(error)) room.end(error);
      },
      ended: (error) => room.end(error),
    }));
  }
}

function roomInAddress(): string | undefined {
  const match = /^#\/(.+)$/.exec(location.hash);
  try {
    return match ? decodeURIComponent(match[1]!) : undefined;
  } catch {
    return undefined; // typed by hand: no room has such a name
  }
}

/** Storage may be forbidden in private windows; then unsent messages live as long as the page. */
function guarded(make: () => ReturnType<typeof webStorage>): ReturnType<typeof webStorage> {
  try {
    localStorage.getItem("petrel");
    return make();
  } catch {
    return { load: () => [], put: () => {}, remove: () => {} };
  }
}
