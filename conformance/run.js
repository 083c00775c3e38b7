// Runs the suite: starts one node and a cell of three, which all files share, and then the files, as many at a time as there are cores.
//   node run.js [part of a file's name…]          PETREL_BIN names a binary, else one is built
//   CONFORMANCE_NODES=1 CONFORMANCE_TRANSPORT=ws CONFORMANCE_NAME=P4   choose among the tests
import { readdirSync } from "node:fs";
import { availableParallelism } from "node:os";
import { run } from "node:test";
import { spec } from "node:test/reporters";

import { Installation, binary } from "./harness/petrel.js";

const began = Date.now();
const wanted = process.argv.slice(2);
const folder = new URL("./test/", import.meta.url);
const files = readdirSync(folder)
  .filter((f) => f.endsWith(".test.js") && (wanted.length === 0 || wanted.some((w) => f.includes(w))))
  .map((f) => new URL(f, folder).pathname);

binary();
const [alone, cell] = await Promise.all([Installation.start(1), Installation.start(3)]);
process.env.CONFORMANCE_WORLDS = JSON.stringify({ 1: alone.describe(), 3: cell.describe() });
console.log(`one node and a cell of three are ready after ${Date.now() - began} ms`);

const count = { pass: 0, fail: 0 };
const tests = run({ files, concurrency: Math.max(2, availableParallelism()), timeout: Infinity, ...(process.env.CONFORMANCE_NAME ? { testNamePatterns: [process.env.CONFORMANCE_NAME] } : {}) });
const slow = [];
tests.on("test:pass", ({ name, details, skip }) => {
  if (details.type === "suite" || skip !== undefined || name.endsWith(".test.js")) return;
  count.pass++;
  slow.push([details.duration_ms, name]);
});
tests.on("test:fail", ({ name, details, file }) => {
  if (details.error?.failureType === "subtestsFailed") return; // they have said it
  count.fail++;
  console.log(`✖ ${file?.split("/").at(-1) ?? ""}: ${name}\n  ${(details.error?.cause?.stack ?? String(details.error?.cause ?? details.error)).replaceAll("\n", "\n  ")}`);
});
if (process.env.CONFORMANCE_VERBOSE) tests.compose(new spec()).pipe(process.stdout);
else tests.resume();
await new Promise((resolve) => tests.on("end", resolve));

for (const [what, installation] of Object.entries({ "the node that runs alone": alone, "the cell": cell })) {
  for (const node of installation.nodes) {
    if (node.running) continue;
    count.fail++;
    console.error(`${what}: ${node.name} has ended:\n${node.output}`);
  }
  if (count.fail > 0 && process.env.CONFORMANCE_LOGS) for (const node of installation.nodes) console.error(`--- ${what}, ${node.name}:\n${node.output}`);
}
await Promise.all([alone.stop(), cell.stop()]);
const seconds = (ms) => `${(ms / 1000).toFixed(1)} s`;
for (const [ms, name] of slow.sort((a, b) => b[0] - a[0]).slice(0, 5)) console.log(`  ${seconds(ms).padStart(8)}  ${name}`);
console.log(`conformance: ${count.pass} passed, ${count.fail} failed, ${Math.round((Date.now() - began) / 1000)} s`);
process.exit(count.fail > 0 || count.pass === 0 ? 1 : 0);
