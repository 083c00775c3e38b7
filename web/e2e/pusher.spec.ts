// The page with two pusher-js clients, as a visitor of the demo sees it.
import { execFileSync } from "node:child_process";
import { expect, test as base, type Locator, type Page } from "@playwright/test";
import { PetrelServer } from "./server";

const test = base.extend<object, { demo: PetrelServer }>({
  demo: [async ({}, use) => {
    const server = await PetrelServer.start({ demo: true });
    await use(server);
    await server.remove();
  }, { scope: "worker" }],
});

const panel = (page: Page, name: string): Locator => page.locator(`[data-client=${name}]`);

async function open(page: Page, demo: PetrelServer): Promise<string[]> {
  const wrong: string[] = [];
  page.on("pageerror", (error) => wrong.push(error.message));
  page.on("console", (message) => (message.type() === "error" || message.type() === "warning") && wrong.push(message.text()));
  await page.goto(`${demo.url}/examples/pusher.html`);
  for (const name of ["Ada", "Bruno"]) await ready(page, name, "ws");
  return wrong;
}

async function ready(page: Page, name: string, transport: string): Promise<void> {
  await expect(panel(page, name)).toHaveAttribute("data-over", transport);
  await expect(panel(page, name)).toHaveAttribute("data-ready", "true");
}

async function say(page: Page, name: string, text: string): Promise<void> {
  await page.getByLabel(`Message from ${name}`).fill(text);
  await page.getByLabel(`Message from ${name}`).press("Enter");
  await expect(panel(page, name).locator("[data-line=mine]", { hasText: text })).toHaveCount(1);
}

const hears = (page: Page, name: string, text: string, kind = "theirs") => expect(panel(page, name).locator(`[data-line=${kind}]`, { hasText: text })).toHaveCount(1);

test("two clients see each other, talk over every transport, and hear the curl", async ({ page, demo }) => {
  const wrong = await open(page, demo);
  for (const name of ["Ada", "Bruno"]) {
    for (const other of ["Ada", "Bruno"]) await expect(panel(page, name).locator(`[data-member=${other}]`)).toHaveCount(1);
  }
  await say(page, "Ada", "Hello <b>Bruno</b>");
  await hears(page, "Bruno", "Hello <b>Bruno</b>");

  for (const [word, transport] of [["HTTP streaming", "xhr_streaming"], ["HTTP polling", "xhr_polling"]] as const) {
    await panel(page, "Bruno").getByText(word).click();
    await ready(page, "Bruno", transport);
    await say(page, "Bruno", `over ${transport}`);
    await hears(page, "Ada", `over ${transport}`);
    await say(page, "Ada", `to ${transport}`);
    await hears(page, "Bruno", `to ${transport}`);
  }

  await page.getByLabel("What it says").fill(`It's "curl" & co`);
  const command = page.locator("[data-snippet='the curl command']");
  await expect(command).toContainText("co");
  await expect(command).toContainText("'\\''");
  const answer = execFileSync("bash", ["-euo", "pipefail", "-c", (await command.textContent())!], { encoding: "utf8" });
  expect(JSON.parse(answer)).toEqual({});
  for (const name of ["Ada", "Bruno"]) await hears(page, name, `It's "curl" & co`, "server");
  expect(wrong).toEqual([]);
});

test("a second visitor is seen by the first, and leaves", async ({ page, browser, demo }) => {
  await open(page, demo);
  const context = await browser.newContext({ colorScheme: "dark", viewport: { width: 390, height: 800 } });
  const phone = await context.newPage();
  await open(phone, demo);
  await expect(panel(page, "Ada").locator("[data-member]")).toHaveCount(4);
  await say(phone, "Bruno", "from a phone");
  await hears(page, "Ada", "from a phone");
  expect(await phone.evaluate(() => document.documentElement.scrollWidth <= innerWidth), "nothing sticks out on a phone").toBe(true);
  await context.close();
  await expect(panel(page, "Ada").locator("[data-member]")).toHaveCount(2);
});

test("by keyboard alone", async ({ page, demo }) => {
  await open(page, demo);
  const radio = panel(page, "Ada").getByLabel("WebSocket");
  await radio.focus();
  await page.keyboard.press("ArrowRight");
  await ready(page, "Ada", "xhr_streaming");
  await page.keyboard.press("ArrowLeft");
  await ready(page, "Ada", "ws");
  for (let i = 0; i < 10 && !(await page.getByLabel("Message from Ada").evaluate((e) => e === document.activeElement)); i++) await page.keyboard.press("Tab");
  await page.keyboard.type("typed");
  await page.keyboard.press("Enter");
  await hears(page, "Bruno", "typed");
});

test("without --demo there is no such page, and nobody who signs", async ({ page }) => {
  const server = await PetrelServer.start({ demo: false });
  try {
    for (const path of ["/examples/pusher.html", "/demo/pusher", "/demo/pusher/event?text=x"]) {
      expect((await page.request.get(server.url + path)).status(), path).toBe(404);
    }
    expect((await page.request.post(`${server.url}/demo/pusher/auth`, { form: { socket_id: "1.1", channel_name: "private-demo" } })).status()).toBe(404);
  } finally {
    await server.remove();
  }
});
