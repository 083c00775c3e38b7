/**
 * The addresses of one cell's nodes. One is current; whoever finds it failing moves on, and one that asks
 * us to leave may say where to go.
 */
export class Servers {
  private at = 0;

  constructor(private readonly urls: readonly string[]) {}

  get current(): string {
    return this.urls[this.at]!;
  }

  get size(): number {
    return this.urls.length;
  }

  /** Leaves url, unless somebody did already: for the first of those given that we know, else for the next. */
  leave(url: string, to: readonly string[] = []): void {
    if (url !== this.current) return;
    const known = to.map((other) => this.urls.indexOf(tidy(other))).find((i) => i >= 0 && i !== this.at);
    this.at = known ?? (this.at + 1) % this.urls.length;
  }
}

/** Addresses as they are compared: http(s), without a slash at the end. */
export const tidy = (url: string): string => url.replace(/\/+$/, "");
