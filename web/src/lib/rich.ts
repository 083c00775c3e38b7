/** A stretch of a message. Everything is rendered as text nodes: no markup of a sender reaches the page. */
export type Piece = { kind: "text"; text: string } | { kind: "link"; text: string; href: string } | { kind: "code"; text: string } | { kind: "bold"; text: string };

const pattern = /`([^`\n]+)`|\*\*([^*\n]+)\*\*|\bhttps?:\/\/[^\s<>"'`]+/g;

/** Recognises links (http and https only), `code` and **bold**. */
export function pieces(text: string): Piece[] {
  const out: Piece[] = [];
  let at = 0;
  const plain = (end: number) => {
    if (end > at) out.push({ kind: "text", text: text.slice(at, end) });
  };
  for (const match of text.matchAll(pattern)) {
    const [whole, code, bold] = match;
    let length = whole.length;
    let piece: Piece;
    if (code !== undefined) piece = { kind: "code", text: code };
    else if (bold !== undefined) piece = { kind: "bold", text: bold };
    else {
      // "…(see https://example.org/a)." ends before the bracket and the full stop, unless the bracket was opened inside.
      let link = whole.replace(/[.,;:!?]+$/, "");
      while (link.endsWith(")") && !balanced(link)) link = link.slice(0, -1).replace(/[.,;:!?]+$/, "");
      length = link.length;
      const href = safe(link);
      if (!href) continue;
      piece = { kind: "link", text: link, href };
    }
    plain(match.index);
    out.push(piece);
    at = match.index + length;
  }
  plain(text.length);
  return out;
}

function balanced(s: string): boolean {
  return s.split("(").length >= s.split(")").length;
}

function safe(link: string): string | undefined {
  try {
    const url = new URL(link);
    return url.protocol === "http:" || url.protocol === "https:" ? url.href : undefined;
  } catch {
    return undefined;
  }
}
