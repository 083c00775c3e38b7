/** A message on its way: what a sender wrote and where it goes. */
export interface Unsent {
  id: string;
  room: string;
  text: string;
  custom?: Record<string, unknown>;
  mentions?: string[];
  /** Epoch ms at which it was written. */
  at: number;
}

/**
 * Where the outbox keeps what is not acknowledged. put is finished before the first sending, so
 * that a message which may have reached the server is never forgotten here. Both may be
 * asynchronous (IndexedDB, a file).
 */
export interface OutboxStorage {
  /** All that is kept, in the order written. */
  load(): Unsent[] | Promise<Unsent[]>;
  put(message: Unsent): void | Promise<void>;
  remove(id: string): void | Promise<void>;
}

/** Keeps unsent messages in localStorage (or anything like it), one key each, so that tabs do not overwrite each other's. */
export function webStorage(prefix: string, storage: Pick<Storage, "getItem" | "setItem" | "removeItem" | "key" | "length"> = localStorage): OutboxStorage {
  const keyOf = (id: string) => `${prefix}:${id}`;
  return {
    load() {
      const found: Unsent[] = [];
      for (let i = 0; i < storage.length; i++) {
        const key = storage.key(i);
        if (!key?.startsWith(prefix + ":")) continue;
        try {
          const message = JSON.parse(storage.getItem(key) ?? "") as Unsent;
          if (typeof message.id === "string" && typeof message.room === "string" && typeof message.text === "string") found.push(message);
        } catch {
          // Not ours, or cut off: what cannot be read cannot be sent.
        }
      }
      return found.sort((a, b) => a.at - b.at || (a.id < b.id ? -1 : 1));
    },
    put: (message) => storage.setItem(keyOf(message.id), JSON.stringify(message)),
    remove: (id) => storage.removeItem(keyOf(id)),
  };
}
