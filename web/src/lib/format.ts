/** Words for times and people, in the reader's own language where the browser knows it. */

const time = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit" });
const full = new Intl.DateTimeFormat(undefined, { dateStyle: "full", timeStyle: "medium" });
const day = new Intl.DateTimeFormat(undefined, { weekday: "long", day: "numeric", month: "long" });
const dayAndYear = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "long", year: "numeric" });

export const clock = (at: number | string) => time.format(new Date(at));
export const fullTime = (at: number | string) => full.format(new Date(at));

/** A number that is equal for times on one local day, and rises from day to day. */
export function dayOf(at: number | string): number {
  const d = new Date(at);
  return d.getFullYear() * 10_000 + d.getMonth() * 100 + d.getDate();
}

export function dayName(at: number | string, now = Date.now()): string {
  const d = new Date(at);
  if (dayOf(d.getTime()) === dayOf(now)) return "Today";
  if (dayOf(d.getTime()) === dayOf(now - 86_400_000)) return "Yesterday";
  return d.getFullYear() === new Date(now).getFullYear() ? day.format(d) : dayAndYear.format(d);
}

/** One or two letters for a person. */
export function initials(user: string): string {
  const words = user.split(/[^\p{L}\p{N}]+/u).filter(Boolean);
  const letters = words.length > 1 ? [...words[0]!][0]! + [...words[1]!][0]! : [...(words[0] ?? "?")].slice(0, 1).join("");
  return letters.toUpperCase();
}

/** A hue from a name, the same on every screen. */
export function hue(name: string): number {
  let h = 0x811c9dc5; // FNV-1a, and a last stir so that short names spread
  for (const c of name) h = Math.imul(h ^ c.codePointAt(0)!, 0x01000193);
  h = Math.imul(h ^ (h >>> 15), 0x2c1b3c6d);
  h ^= h >>> 13;
  return ((h >>> 0) % 24) * 15;
}

/** "Ada is typing", "Ada and Bruno are typing", "Several people are typing"; "" for nobody. */
export function typingWords(users: string[]): string {
  if (users.length === 0) return "";
  if (users.length === 1) return `${users[0]} is typing`;
  return users.length === 2 ? `${users[0]} and ${users[1]} are typing` : "Several people are typing";
}

export const plural = (n: number, one: string, many = one + "s") => `${n.toLocaleString()} ${n === 1 ? one : many}`;
