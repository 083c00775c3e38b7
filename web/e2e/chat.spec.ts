import { expect, test as base, type BrowserContextOptions, type Locator, type Page } from "@playwright/test";
import { PetrelServer } from "./server";

interface Person { page: Page; user: string; token: string }

/** Opens the page as that person of the demo, in a browser of their own. */
type Enter = (name: string, options?: BrowserContextOptions) => Promise<Person>;

const test = base.extend<{ enter: Enter; mayLoseServer: { value: boolean } }, { demo: PetrelServer }>({
  demo: [async ({}, use) => {
    const server = await PetrelServer.start({ demo: true });
    await use(server);
    await server.remove();
  }, { scope: "worker" }],
  // A test that kills the server says so: then the browser's own words about it are no errors of ours.
  mayLoseServer: async ({}, use) => use({ value: false }),
  enter: async ({ browser, demo, mayLoseServer }, use) => {
    const wrong: string[] = [];
    const contexts: { close(): Promise<void> }[] = [];
    await use(async (name, options = {}) => {
      const context = await browser.newContext(options);
      contexts.push(context);
      const page = await context.newPage();
      watch(page, wrong, mayLoseServer);
      await page.goto(demo.url);
      await page.getByLabel("Or choose a name of your own").fill(name);
      await page.getByRole("button", { name: "Enter" }).click();
      await expect(page.locator("[data-connection-word=Connected]")).toBeAttached();
      return { page, ...(await demo.demoToken(name)) };
    });
    for (const context of contexts) await context.close();
    expect(wrong, "console errors and policy violations").toEqual([]);
  },
});

function watch(page: Page, wrong: string[], mayLoseServer: { value: boolean }): void {
  page.on("pageerror", (error) => wrong.push(error.message));
  page.on("console", (message) => {
    if (message.type() !== "error" && message.type() !== "warning") return;
    if (mayLoseServer.value && /WebSocket connection|ERR_CONNECTION_REFUSED|ERR_CONNECTION_RESET|ERR_EMPTY_RESPONSE/.test(message.text())) return;
    wrong.push(message.text());
  });
}

const messages = (page: Page): Locator => page.locator("[data-message]");
const said = (page: Page, text: string): Locator => messages(page).filter({ hasText: text });

async function go(page: Page, room: string): Promise<void> {
  await expect(page.locator("[data-loaded=true]")).toBeVisible(); // else the page may still write another room into its address
  await page.goto(new URL(`/#/${room}`, page.url()).href);
  await page.reload();
  await expect(page.locator("[data-loaded=true]")).toBeVisible();
  await expect(page).toHaveURL(new RegExp(`#/${room}$`));
}

async function say(page: Page, text: string): Promise<void> {
  await page.locator("#composer").fill(text);
  await page.locator("#composer").press("Enter");
}

const sent = (page: Page, text: string) => expect(said(page, text)).toHaveAttribute("data-state", "sent");

test("two people talk, and a reload keeps what was said", async ({ enter, demo }) => {
  const ada = await enter("Ada");
  const bruno = await enter("Bruno", { colorScheme: "dark" });
  const room = await demo.room(ada.token, "Two people");
  await go(ada.page, room);
  await go(bruno.page, room);
  await expect(ada.page.getByText("A quiet place, so far")).toBeVisible();

  await say(ada.page, "Hello Bruno, see https://example.org/a_(b).");
  await expect(said(bruno.page, "Hello Bruno")).toBeVisible();
  await say(bruno.page, "Hello <b>Ada</b>");
  await expect(said(ada.page, "Hello <b>Ada</b>")).toBeVisible();
  await sent(ada.page, "Hello Bruno");
  await expect(said(ada.page, "Hello Bruno").getByRole("link")).toHaveAttribute("href", "https://example.org/a_(b)");
  await expect(said(bruno.page, "Hello Bruno").getByRole("link")).toHaveAttribute("rel", /noopener/);

  await ada.page.reload();
  await expect(said(ada.page, "Hello Bruno")).toHaveCount(1);
  await expect(said(ada.page, "Hello <b>Ada</b>")).toHaveCount(1);
  await expect(messages(ada.page)).toHaveCount(2);
});

test("who is here and who is typing is seen by the other, and goes when they do", async ({ enter, demo }) => {
  const ada = await enter("Ada");
  const bruno = await enter("Bruno", { colorScheme: "dark" });
  const room = await demo.room(ada.token, "Company");
  await go(ada.page, room);
  await go(bruno.page, room);
  for (const person of [ada, bruno]) await expect(person.page.locator("[data-here]")).toHaveAttribute("data-here", "2");

  const line = ada.page.locator("[data-typing]");
  await expect(line).toHaveText("");
  await bruno.page.locator("#composer").pressSequentially("so");
  await expect(line).toHaveText("bruno is typing");
  await expect(bruno.page.locator("[data-typing]")).toHaveText(""); // not ourselves
  await bruno.page.locator("#composer").fill("");
  await expect(line).toHaveText("");
  await bruno.page.locator("#composer").pressSequentially("so it is");
  await expect(line).toHaveText("bruno is typing");
  await bruno.page.locator("#composer").press("Enter");
  await expect(said(ada.page, "so it is")).toBeVisible();
  await expect(line).toHaveText("");

  await ada.page.getByRole("button", { name: "Members", exact: true }).click();
  const row = ada.page.locator("[data-member=bruno]");
  await expect(row).toHaveAttribute("data-present", "true");
  await expect(row).toContainText("here now");
  await bruno.page.locator("#composer").pressSequentially("and");
  await expect(line).toHaveText("bruno is typing");
  await bruno.page.goto("about:blank");
  await expect(row).toHaveAttribute("data-present", "false");
  await expect(line).toHaveText("");
  await expect(ada.page.locator("[data-here]")).toHaveAttribute("data-here", "1");
});

test("a server that has lost the others says so, quietly, until it is back", async ({ enter, demo }) => {
  const { page, token } = await enter("Ada");
  const room = await demo.room(token, "Apart");
  let tell: (frame: object) => void = () => {};
  await page.routeWebSocket(/\/v1\/connect/, (socket) => {
    socket.connectToServer();
    tell = (frame) => socket.send(JSON.stringify(frame));
  });
  await go(page, room);
  const bar = page.locator("[data-connection=apart]");
  await expect(bar).toHaveCount(0);
  tell({ op: "stale", for_ms: 1_200 });
  await expect(bar).toContainText("lost the others");
  await say(page, "it goes on");
  await sent(page, "it goes on");
  tell({ op: "stale", for_ms: 0 });
  await expect(bar).toHaveCount(0);
});

test("a room made on the page shows up for others, with a mark for what they have not seen", async ({ enter }) => {
  const ada = await enter("Ada");
  await ada.page.getByRole("button", { name: "New room or direct chat" }).click();
  await ada.page.getByLabel("Name", { exact: true }).fill("Tea kitchen");
  await ada.page.getByRole("button", { name: "Create room" }).click();
  await expect(ada.page.getByRole("heading", { name: "Tea kitchen" })).toBeVisible();
  await expect(ada.page.locator("#composer")).toBeFocused();
  const bruno = await enter("Bruno");
  const entry = bruno.page.locator("[data-room]", { hasText: "Tea kitchen" });
  await expect(entry).toBeVisible();
  await say(ada.page, "The kettle is on");
  await expect(entry).toContainText("1 unread");
  await expect(bruno.page).toHaveTitle(/^\(1\)/);
  await bruno.page.keyboard.press("Control+k");
  await bruno.page.getByRole("combobox").fill("tea k");
  await bruno.page.keyboard.press("Enter");
  await expect(said(bruno.page, "The kettle is on")).toBeVisible();
  await expect(entry).not.toContainText("unread");
});

test("a direct chat is found, not made twice", async ({ enter }) => {
  const ada = await enter("Ada");
  for (let i = 0; i < 2; i++) {
    await ada.page.getByRole("button", { name: "New room or direct chat" }).click();
    await ada.page.getByRole("radio", { name: /Direct/ }).check();
    await ada.page.getByLabel("With whom").fill("bruno");
    await ada.page.getByRole("button", { name: "Start chat" }).click();
    await expect(ada.page.getByRole("heading", { name: "bruno" })).toBeVisible();
  }
  await expect(ada.page.locator("[data-room]", { hasText: "bruno" })).toHaveCount(1);
  await say(ada.page, "Between us");
  await sent(ada.page, "Between us");
  const bruno = await enter("Bruno");
  await bruno.page.locator("[data-room]", { hasText: "ada" }).click();
  await expect(said(bruno.page, "Between us")).toBeVisible();
});

test("who is removed from a room sees it, and it leaves the page; so does a room that is deleted", async ({ enter, demo }) => {
  const ada = await enter("Ada");
  const bruno = await enter("Bruno");
  const made = async (id: string, kind: string) => void (await demo.call(ada.token, "POST", "/v1/rooms", { id, kind, name: id, ...(kind === "private" ? { members: [bruno.user] } : {}) }));
  const tag = Date.now().toString(36);
  const [den, hut, yard] = [`den-${tag}`, `hut-${tag}`, `yard-${tag}`];
  await made(den, "private");
  await made(hut, "private");
  await made(yard, "open");
  await demo.post(ada.token, den, "Between the three of us");
  await go(bruno.page, den);
  await expect(said(bruno.page, "Between the three of us")).toBeVisible();
  const listed = (room: string) => bruno.page.locator(`[data-room="${room}"]`);
  await expect(listed(hut)).toBeVisible();

  // The one that is shown says so, and nothing of it stays; one that is not shown just goes.
  await demo.call(ada.token, "DELETE", `/v1/rooms/${den}/members/${bruno.user}`);
  await expect(bruno.page.getByRole("heading", { name: "You are no longer in this room" })).toBeVisible();
  await expect(said(bruno.page, "Between the three of us")).toHaveCount(0);
  await expect(bruno.page.locator("#composer")).toHaveCount(0);
  await expect(listed(den)).toHaveCount(0);
  await demo.call(ada.token, "DELETE", `/v1/rooms/${hut}`);
  await expect(listed(hut)).toHaveCount(0);

  await listed(yard).click();
  await expect(bruno.page.locator("#composer")).toBeVisible();
  await demo.call(ada.token, "DELETE", `/v1/rooms/${yard}`);
  await expect(bruno.page.getByRole("heading", { name: "This room was deleted" })).toBeVisible();
  await expect(listed(yard)).toHaveCount(0);
  await bruno.page.getByRole("button", { name: /^Go to / }).click();
  await expect(bruno.page.locator("#composer")).toBeVisible();

  // Let in again, it is there again.
  await demo.call(ada.token, "PUT", `/v1/rooms/${den}/members/${bruno.user}`, { role: "member" });
  await bruno.page.reload();
  await listed(den).click();
  await expect(said(bruno.page, "Between the three of us")).toBeVisible();
});

test("kill -9: the page says so, keeps what is typed, and it arrives exactly once", async ({ enter, demo, mayLoseServer }) => {
  mayLoseServer.value = true;
  const ada = await enter("Ada");
  const bruno = await enter("Bruno");
  const room = await demo.room(ada.token, "Storm");
  await go(ada.page, room);
  await go(bruno.page, room);
  await say(ada.page, "before the storm");
  await expect(said(bruno.page, "before the storm")).toBeVisible();

  await demo.kill();
  await expect(ada.page.locator("[data-connection=reconnecting]")).toBeVisible();
  await expect(bruno.page.locator("[data-connection=reconnecting]")).toContainText(/Reconnecting/);
  await say(ada.page, "in the storm, one");
  await say(ada.page, "in the storm, two");
  await expect(said(ada.page, "in the storm, one")).toHaveAttribute("data-state", "sending");
  await expect(said(ada.page, "in the storm, two")).toContainText("Waiting for the connection");
  // A reload in between must not lose them: the page itself cannot load now, so it is done by its storage below.
  await demo.run();

  for (const person of [ada, bruno]) await expect(person.page.locator("[data-connection-word=Connected]")).toBeAttached();
  await sent(ada.page, "in the storm, two");
  await expect(said(bruno.page, "in the storm, two")).toBeVisible();
  await say(bruno.page, "after the storm");
  await expect(said(ada.page, "after the storm")).toBeVisible();
  const wanted = ["before the storm", "in the storm, one", "in the storm, two", "after the storm"];
  const { token } = await demo.demoToken("Ada");
  expect((await demo.history(token, room)).map((m) => m.text)).toEqual(wanted);
  for (const person of [ada, bruno]) await expect(messages(person.page).locator(".text")).toHaveText(wanted);
});

test("messages typed without a server survive a reload of the page", async ({ enter, demo, mayLoseServer }) => {
  mayLoseServer.value = true;
  const ada = await enter("Ada");
  const room = await demo.room(ada.token, "Reload");
  await go(ada.page, room);
  await demo.kill();
  await expect(ada.page.locator("[data-connection=reconnecting]")).toBeVisible();
  await say(ada.page, "typed into the void");
  await expect(said(ada.page, "typed into the void")).toHaveAttribute("data-state", "sending");
  await ada.page.goto("about:blank"); // the tab is closed, in effect: no code of ours runs any more
  await demo.run();
  await ada.page.goto(`${demo.url}/#/${room}`);
  await sent(ada.page, "typed into the void");
  await expect(messages(ada.page)).toHaveCount(1);
  expect((await demo.history(ada.token, room)).map((m) => m.text)).toEqual(["typed into the void"]);
});

/**
 * Puts the scroll position where more messages are loaded, and returns by how many pixels the
 * message in the middle moved when they came. undefined: none came, there are no more on that side.
 */
function scrollAndMeasure(page: Page, to: "top" | "bottom"): Promise<number | undefined> {
  return page.getByRole("region", { name: "Messages" }).evaluate(async (scroller, to) => {
    const frame = () => new Promise((done) => requestAnimationFrame(done));
    const ids = () => {
      const all = scroller.querySelectorAll("[data-message]");
      return `${all[0]?.getAttribute("data-message")} ${all[all.length - 1]?.getAttribute("data-message")}`;
    };
    const ended = () => (to === "top" ? scroller.textContent!.includes("This is where") : (scroller as HTMLElement).dataset.atEnd === "true");
    if (ended()) return undefined;
    const before = ids();
    scroller.scrollTop = to === "top" ? 400 : scroller.scrollHeight - scroller.clientHeight - 400;
    const box = scroller.getBoundingClientRect();
    const anchor = document.elementFromPoint(box.left + 200, box.top + box.height / 2)!.closest("[data-message]")!;
    const top = anchor.getBoundingClientRect().top;
    let moved = 0;
    // Every frame counts, not only the last: a jump that is mended a frame later is still seen.
    for (let after = 0; after < 5;) {
      await frame();
      if (!anchor.isConnected) throw new Error("the message in view was dropped");
      moved = Math.max(moved, Math.abs(anchor.getBoundingClientRect().top - top));
      if (ids() !== before) after++;
    }
    return moved;
  }, to);
}

test("1,000 messages scroll without jumps, up and down, each once and in order, and few in the page", async ({ enter, demo }) => {
  test.setTimeout(600_000); // a thousand posts, one after the other: a slow machine is no fault
  const ada = await enter("Ada");
  const bruno = await demo.demoToken("Bruno");
  const room = await demo.room(ada.token, "Long");
  for (let i = 1; i <= 1_000; i++) await demo.post(i % 7 < 4 ? ada.token : bruno.token, room, `Line ${i} ${"and more of it ".repeat((i * 5) % 17)}`);
  await go(ada.page, room);
  await expect(said(ada.page, "Line 1000 ")).toBeInViewport();
  const { page } = ada;

  const seen = new Set<number>();
  const check = async () => {
    const numbers = await messages(page).evaluateAll((all) => all.map((e) => Number(/Line (\d+)/.exec(e.textContent ?? "")?.[1])));
    numbers.forEach((n, i) => i > 0 && expect(n).toBe(numbers[i - 1]! + 1));
    expect(numbers.length).toBeLessThanOrEqual(600);
    for (const n of numbers) seen.add(n);
  };
  const jumps: number[] = [];
  for (const to of ["top", "bottom"] as const) {
    await check();
    for (let moved = await scrollAndMeasure(page, to); moved !== undefined; moved = await scrollAndMeasure(page, to)) {
      jumps.push(moved);
      await check();
    }
  }
  expect(seen.size).toBe(1_000);
  expect(jumps.length, "pages were loaded both ways").toBeGreaterThan(15);
  expect(Math.max(...jumps), `pixels moved: ${jumps.join(" ")}`).toBeLessThanOrEqual(1);

  // With the wheel, as a person does it: to the beginning.
  const box = (await page.getByRole("region", { name: "Messages" }).boundingBox())!;
  await page.mouse.move(box.x + box.width / 2, box.y + box.height / 2);
  while (!(await page.getByText("This is where Long begins.").isVisible())) await page.mouse.wheel(0, -2_000);
  await page.getByRole("region", { name: "Messages" }).evaluate((scroller) => scroller.scrollTo(0, 0));

  // Something new while far up: not a pixel moves, the pill says so and leads there.
  const before = await said(page, "Line 1 ").first().boundingBox();
  await demo.post(bruno.token, room, "And one more");
  const pill = page.getByRole("button", { name: "1 new message" });
  await expect(pill).toBeVisible();
  expect(await said(page, "Line 1 ").first().boundingBox()).toEqual(before);
  await pill.click();
  await expect(said(page, "And one more")).toBeInViewport();
  const left = () => page.getByRole("region", { name: "Messages" }).evaluate((s) => s.scrollHeight - s.scrollTop - s.clientHeight);
  await expect.poll(left, { message: "the list is at its very end" }).toBeLessThan(2);
  // And stays there when more comes.
  await demo.post(bruno.token, room, "And yet another");
  await expect(said(page, "And yet another")).toBeInViewport();
  await expect.poll(left).toBeLessThan(2);
});

test("edit and delete reach the other, with the keyboard alone", async ({ enter, demo }) => {
  const ada = await enter("Ada");
  const bruno = await enter("Bruno");
  const room = await demo.room(ada.token, "Second thoughts");
  await go(ada.page, room);
  await go(bruno.page, room);
  await say(ada.page, "Teh tide");
  await sent(ada.page, "Teh tide");
  await ada.page.locator("#composer").press("ArrowUp");
  await expect(ada.page.locator("#composer")).toHaveValue("Teh tide");
  await say(ada.page, "The tide");
  await expect(said(bruno.page, "The tide")).toContainText("(edited)");
  await expect(said(ada.page, "The tide")).toContainText("(edited)");
  await expect(ada.page.locator("#composer")).toHaveValue("");

  await ada.page.locator("#composer").press("ArrowUp");
  await ada.page.locator("#composer").fill("something else");
  await ada.page.locator("#composer").press("Escape");
  await expect(ada.page.locator("#composer")).toHaveValue("");
  await expect(said(bruno.page, "Teh")).toHaveCount(0);

  await said(ada.page, "The tide").hover();
  await ada.page.getByRole("button", { name: "Delete message" }).click();
  await ada.page.getByRole("button", { name: "Delete", exact: true }).click();
  for (const person of [ada, bruno]) {
    await expect(person.page.getByText("This message was deleted.")).toBeVisible();
    await expect(messages(person.page)).toHaveCount(1);
  }
  await expect(said(bruno.page, "The tide")).toHaveCount(0);
});

test("Shift Enter writes a new line, an empty message is not sent", async ({ enter, demo }) => {
  const ada = await enter("Ada");
  await go(ada.page, await demo.room(ada.token, "Lines"));
  const composer = ada.page.locator("#composer");
  await composer.fill("   ");
  await composer.press("Enter");
  await expect(ada.page.getByRole("button", { name: "Send" })).toBeDisabled();
  await composer.fill("");
  await composer.pressSequentially("one");
  await composer.press("Shift+Enter");
  await composer.pressSequentially("two");
  await composer.press("Enter");
  await sent(ada.page, "one");
  expect(await messages(ada.page).locator(".text").innerText()).toBe("one\ntwo");
});

test("on a phone: the drawer, a message, the members; nothing sticks out", async ({ enter, demo }) => {
  const phone = { viewport: { width: 390, height: 844 }, hasTouch: true, isMobile: true, deviceScaleFactor: 2 };
  const ada = await enter("Ada", phone);
  const room = await demo.room(ada.token, "Pocket");
  await go(ada.page, room);
  const { page } = ada;
  await page.getByRole("button", { name: "Rooms", exact: true }).tap();
  await page.locator(`[data-room="${room}"]`).tap();
  await expect(page.getByRole("button", { name: "Close the list of rooms" })).toHaveCount(0);
  await page.locator("#composer").fill(`From the pocket ${"w".repeat(300)}`);
  await page.getByRole("button", { name: "Send" }).tap();
  await sent(page, "From the pocket");
  await page.getByRole("button", { name: "Members", exact: true }).tap();
  await expect(page.getByRole("region", { name: "Members" })).toContainText("ada (you)");
  await page.getByRole("button", { name: "Close members" }).tap();
  await said(page, "From the pocket").tap();
  await expect(page.getByRole("button", { name: "Edit message" })).toBeVisible();
  expect(await page.evaluate(() => document.documentElement.scrollWidth)).toBeLessThanOrEqual(390);
});

base("without --demo: a token is asked for, taken from the address and taken out of it, refused with words", async ({ page }) => {
  const server = await PetrelServer.start({ demo: false });
  try {
    const wrong: string[] = [];
    page.on("pageerror", (error) => wrong.push(error.message));
    await page.goto(server.url);
    await expect(page.getByText("Sign in with a token")).toBeVisible();
    await page.getByLabel("Token").fill("nonsense");
    await page.getByRole("button", { name: "Sign in" }).click();
    await expect(page.locator("[data-connection=stopped]")).toBeVisible();
    await page.getByRole("button", { name: "Sign in again" }).click();
    await expect(page.getByText("Sign in with a token")).toBeVisible();

    await page.goto("about:blank");
    await page.goto(`${server.url}/#token=${server.token("ada")}`);
    await expect(page.locator("[data-connection-word=Connected]")).toBeAttached();
    expect(page.url()).not.toContain("token");
    await expect(page.getByText("No room yet")).toBeVisible();
    await page.reload(); // kept for this tab
    await expect(page.locator("[data-connection-word=Connected]")).toBeAttached();
    await page.getByRole("button", { name: "Sign out" }).click();
    await expect(page.getByText("Sign in with a token")).toBeVisible();
    await page.reload();
    await expect(page.getByText("Sign in with a token")).toBeVisible();
    expect(wrong).toEqual([]);
  } finally {
    await server.remove();
  }
});

test("an address typed wrongly opens some room, and a wrong token in it says so", async ({ enter, demo, browser }) => {
  const { page } = await enter("Typo");
  await page.goto(new URL("/#/%E0%A4%A", page.url()).href);
  await page.reload();
  await expect(page.locator("[data-loaded=true]")).toBeVisible();

  const other = await (await browser.newContext()).newPage();
  await other.goto(`${demo.url}/#token=%`);
  await expect(other.getByRole("button").first()).toBeVisible();
  await other.context().close();
});

test("back and forward walk through the rooms", async ({ enter }) => {
  const { page } = await enter("Wanderer");
  const composer = page.locator("#composer");
  for (const name of ["Lobby", "Random", "Help"]) {
    await page.getByRole("button", { name }).first().click();
    await expect(composer).toHaveAttribute("placeholder", `Message ${name}`);
  }
  await page.goBack();
  await expect(composer).toHaveAttribute("placeholder", "Message Random");
  await page.goBack();
  await expect(composer).toHaveAttribute("placeholder", "Message Lobby");
  await page.goForward();
  await expect(composer).toHaveAttribute("placeholder", "Message Random");
});
