// `npm run fake`: the fake server with a demo in it, for working on the page. PORT (default 8090).
import { FakeServer } from "./server.js";

const server = new FakeServer();
const people = ["Ada", "Grace", "Linus", "Radia", "Ken", "Margaret"];
server.demo = { app: "demo", people };
server.addRoom({ id: "harbour", name: "Harbour", members: people });
server.addRoom({ id: "storm-watch", name: "Storm watch", members: ["Ada", "Radia"] });
server.addRoom({ id: "long-log", name: "Long log", members: people });
server.addRoom({ id: "crew", kind: "private", name: "Crew", by: "Ada", members: ["Grace"] });
server.addRoom({ id: "dm-ada-grace", kind: "direct", by: "Ada", members: ["Grace"] });
const now = Date.now();
const talk: [number, string, string][] = [
  [2900, "Grace", "Morning. The **kestrel** build is out on one node since yesterday evening, nothing odd so far."],
  [2890, "Ada", "p99 stayed under 5 ms through the night. I looked twice because I did not believe it."],
  [2888, "Ada", "Graphs are at https://status.example.org/graphs?range=24h&node=n1 if you want to see for yourself."],
  [2880, "Linus", "ship it"],
  [1300, "Radia", "Before we do: what happens to a client that was asleep while the leader moved?"],
  [1296, "Radia", "I mean the laptop-lid case. Socket is dead, nobody told it."],
  [1290, "Ada", "It resumes from its last seq. If that is too old it is told `resync` and loads the page again, it never gets a silent gap."],
  [1288, "Grace", "I closed my lid for an hour to check. It caught up in one round trip, 214 messages, none twice."],
  [62, "Ken", "Small thing: the tide table link in the topic is dead."],
  [40, "Margaret", "Fixed. Also wrote down what we do when the disk fills: writes answer 503 with a reason, reads and sockets go on, and writes come back by themselves when there is room again. Please read it before Thursday, there is one paragraph about the alert that I am not sure of."],
  [38, "Margaret", "…and thank you Ken."],
  [12, "Grace", "Thursday works for me."],
  [11, "Ada", "Same."],
];
for (const [minutes, user, text] of talk) server.post("harbour", user, text, undefined, new Date(now - minutes * 60_000));
for (let i = 0; i < 10_000; i++) server.post("long-log", people[(i * 7 + (i % 3)) % people.length]!, `Entry ${i + 1}. ${"Wind and water and the odd remark. ".repeat(1 + (i * 13) % 4)}`, undefined, new Date(now - (10_000 - i) * 47_000));
server.post("crew", "Ada", "Only the two of us in here.", undefined, new Date(now - 7_000_000));
server.post("dm-ada-grace", "Grace", "Lunch at one?", undefined, new Date(now - 3_600_000));
const url = await server.listen(Number(process.env.PORT ?? 8090));
console.log(url);
