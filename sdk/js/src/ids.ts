import type { Clock } from "./clock.js";

/**
 * Makes a UUIDv7: 48 bits of time, then chance, so that ids made later sort later.
 * Fits the id alphabet of Petrel (1–64 of A–Z a–z 0–9 _ - . : @ =).
 */
export function newId(clock: Pick<Clock, "now">): string {
  const b = new Uint8Array(16);
  globalThis.crypto.getRandomValues(b);
  let t = clock.now();
  for (let i = 5; i >= 0; i--) {
    b[i] = t % 256;
    t = Math.floor(t / 256);
  }
  b[6] = 0x70 | (b[6]! & 0x0f);
  b[8] = 0x80 | (b[8]! & 0x3f);
  const hex = Array.from(b, (v) => v.toString(16).padStart(2, "0")).join("");
  return `${hex.slice(0, 8)}-${hex.slice(8, 12)}-${hex.slice(12, 16)}-${hex.slice(16, 20)}-${hex.slice(20)}`;
}
