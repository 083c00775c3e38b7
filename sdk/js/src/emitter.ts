/** A typed event emitter of a dozen lines. A listener that throws does not stop the others. */
export class Emitter<Events extends { [K in keyof Events]: unknown }> {
  private readonly listeners = new Map<keyof Events, Set<(value: never) => void>>();

  /** Calls fn for each event of that name until the function returned is called. */
  on<K extends keyof Events>(name: K, fn: (value: Events[K]) => void): () => void {
    let set = this.listeners.get(name);
    if (!set) this.listeners.set(name, (set = new Set()));
    set.add(fn as (value: never) => void);
    return () => void set.delete(fn as (value: never) => void);
  }

  protected emit<K extends keyof Events>(name: K, value: Events[K]): void {
    for (const fn of [...(this.listeners.get(name) ?? [])]) {
      try {
        (fn as (value: Events[K]) => void)(value);
      } catch (error) {
        // Thrown on its own turn: the page's error handlers see it, our state stays whole.
        queueMicrotask(() => { throw error; });
      }
    }
  }
}
