// The live page in a browser: what it has to do is tried here, and pictures are taken on the way. `docs/screenshots` runs it.
//
// It fails where the page logs an error, is wider than a phone, has something too small for a finger, or does not do what is asked for.

import assert from "node:assert/strict";
import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { readFileSync, statSync } from "node:fs";
import { chromium } from "playwright-core";

const [program, data, out, here] = process.argv.slice(2);
const FLAGS = [
  "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync",
];
const PATIENCE_MS = 15000, STEP_MS = 400, FINGER_PX = 44, NARROW_PX = 360, PICTURE_BYTES_MAX = 150 << 10;
const DESKTOP = { viewport: { width: 1200, height: 800 } };
const PHONE = { viewport: { width: 390, height: 844 }, hasTouch: true, isMobile: true };
// Chromium itself logs a refused or broken connection; where that is part of the story it is no error of the page.
const NETWORK = /^(Failed to load resource|WebSocket connection to)/;

// ---- The gateway ----

const gateway = spawn(program, ["dev", "--listen", "127.0.0.1:0", "--data", data], { stdio: ["ignore", "pipe", "pipe"] });
const ended = once(gateway, "exit");
// However this ends, no server may be left behind; `dev` stops its own at a SIGTERM.
process.on("exit", () => gateway.kill("SIGTERM"));
const said = { stdout: "", stderr: "" };
for (const name of ["stdout", "stderr"]) gateway[name].on("data", text => { said[name] += text; });
await until("the gateway is there", () => said.stderr.includes("Ctrl-C") || gateway.exitCode !== null);
assert.equal(gateway.exitCode, null, said.stderr);
const origin = said.stdout.match(/http:\S+/)[0];
const psql = said.stderr.match(/Try +(.*) -c /)[1].split(" "), url = said.stderr.match(/DATABASE_URL=(\S+)/)[1];

const sql = text => execFileSync(psql[0], [...psql.slice(1), "-qAt", "-v", "ON_ERROR_STOP=1", "-c", text], { encoding: "utf8" }).trim();

/** Runs each as a transaction, a little apart, so that people could follow. */
async function change(...statements) {
  for (const statement of statements) {
    sql(statement);
    await new Promise(done => setTimeout(done, STEP_MS));
  }
}

async function until(what, fact) {
  const began = Date.now();
  while (!await fact()) {
    if (Date.now() - began > PATIENCE_MS) throw new Error(`${what}: not within ${PATIENCE_MS} ms`);
    await new Promise(done => setTimeout(done, 20));
  }
}

// ---- The browser ----

const browser = await chromium.launch({ executablePath: process.env.CHROMIUM || "/usr/bin/chromium", args: FLAGS });
const errors = [];

/** A page that follows, in a browser of its own. */
async function open(path, options, state = "live") {
  const page = await (await browser.newContext(options)).newPage();
  await page.addInitScript(recordFades);
  page.setDefaultTimeout(PATIENCE_MS);
  page.on("pageerror", error => errors.push(error.stack));
  page.on("console", message => {
    if (message.type() === "error" && !(page.isAlone && NETWORK.test(message.text()))) errors.push(message.text());
  });
  page.isAlone = state !== "live";
  await page.goto(origin + path);
  await page.waitForSelector(`body[data-state=${state}]`);
  return page;
}

/** Keeps which rows and cards faded in and out, by their texts: who looks at the screen may come too late. */
function recordFades() {
  window.faded = [];
  const animate = Element.prototype.animate;
  Element.prototype.animate = function (frames, options) {
    const [from, to] = frames.map(({ opacity }) => opacity);
    if (from === 0 || to === 0) window.faded.push(`${from === 0 ? "in" : "out"}: ${this.innerText.split(/\s/)[0]}`);
    return animate.call(this, frames, options);
  };
}

const picture = (page, name) => page.screenshot({ path: `${out}/${name}.png` });
const step = name => console.log(`  ${name}`);

// ---- What the page has to do ----

/** Nothing sticks out, and everything that can be touched is large enough. */
async function fitsPhones(path) {
  const page = await open(path, { ...PHONE, viewport: { width: NARROW_PX, height: 740 } });
  await page.click("#explain");
  const wide = await page.evaluate(() => document.documentElement.scrollWidth);
  assert.ok(wide <= NARROW_PX, `${path} is ${wide} px wide on a screen of ${NARROW_PX}`);
  const small = await page.evaluate(least => [...document.querySelectorAll("button, input, select, summary")]
    .map(element => ({ element, box: element.getBoundingClientRect() }))
    .filter(({ box }) => box.width > 0 && (box.width < least || box.height < least))
    .map(({ element, box }) => `${element.outerHTML.slice(0, 80)}: ${box.width} × ${box.height}`), FINGER_PX);
  assert.deepEqual(small, []);
  const nameless = await page.evaluate(() => [...document.querySelectorAll("button, input, select")]
    .filter(element => element.checkVisibility() && !(element.textContent.trim() || element.labels?.length || element.ariaLabel))
    .map(element => element.outerHTML));
  assert.deepEqual(nameless, []);
  await page.context().close();
}

const status = id => sql(`select status from switch where id = ${id}`);

async function flipsSwitches(page) {
  const slot = page.locator(".card", { hasText: "Workshop" }).getByRole("switch");
  assert.equal(await slot.getAttribute("aria-checked"), "false");
  await slot.click();
  await until("the switch is on in the database", () => status(2) === "t");
  await until("the switch is on in the page", async () => await slot.getAttribute("aria-checked") === "true");
  await page.keyboard.press("Space");
  await until("the key turned it off again", () => status(2) === "f");
  await until("the page says so", async () => await slot.getAttribute("aria-checked") === "false");
}

async function pausesCommits(page) {
  const count = await page.locator(".commit").count();
  await page.click("#pause");
  sql("update switch set level = level + 1 where id = 2");
  await page.getByRole("button", { name: "Resume (1 more)" }).click();
  await until("the commit is shown", async () => await page.locator(".commit").count() === count + 1);
  sql("update switch set level = level - 1 where id = 2");
  await until("the next one is shown", async () => await page.locator(".commit").count() === count + 2);
  await page.locator("summary").first().click();
  assert.equal(JSON.parse(await page.locator(".commit pre").textContent()).changes[0].changed[0], "level");
  await page.locator("summary").first().click();
}

/** Values are text, whatever they hold. */
async function showsHostileValuesAsText(page) {
  const evil = "<img src=x onerror=alert(1)>";
  sql(`insert into switch (name) values ('${evil}')`);
  const card = page.locator(".card", { hasText: evil });
  await until("the card has faded in", () => card.evaluateAll(([card]) =>
    card && getComputedStyle(card).opacity === "1" && card.getAnimations().length === 0));
  assert.equal(await page.locator("img").count(), 0);
  sql(`delete from switch where name = '${evil}'`);
  await until("the card is gone", async () => await page.locator(".card").count() === 4);
}

async function keepsTablesUpToDate() {
  const page = await open("/?table=public.orders", DESKTOP);
  const column = place => page.locator(`tbody tr > :nth-child(${place})`).allTextContents();
  await until("the rows are there", async () => (await column(1)).join() === "1,2,3,4");
  await page.getByRole("button", { name: "item" }).click();
  await until("they are sorted", async () => (await column(2)).join() === "cups,kettle,spoon,tea");
  await page.reload();
  await until("the table is kept in the address", async () => (await column(1)).join() === "1,2,3,4");
  // As PostgreSQL writes them, and yet in the order of numbers.
  assert.equal((await column(3)).join(), "3.50,42,12,2.25");
  await page.getByRole("button", { name: "price" }).click();
  await until("they are sorted as numbers", async () => (await column(3)).join() === "2.25,3.50,12,42");
  await page.reload();
  await until("the rows are back", async () => (await column(1)).join() === "1,2,3,4");
  await page.locator(".long").first().click();
  assert.equal(await page.locator(".long").first().getAttribute("aria-expanded"), "true");
  await page.locator(".long").first().click();
  await change(
    "insert into orders (item, price, paid) values ('sugar', 1.2, true)",
    "update orders set price = 4.75, paid = true where id in (1, 2)",
    "delete from orders where id = 4",
  );
  await until("the changes are there", async () => (await column(1)).join() === "1,2,3,5" && (await column(3))[0] === "4.75");
  await page.locator("#sheet").evaluate(sheet => { sheet.scrollLeft = 0; });
  await picture(page, "live-page-table");
  sql("truncate orders");
  await page.getByText("This table has no rows.").waitFor();
  await until("the rows have faded out", async () => await page.locator("tbody tr").count() === 0);
  await page.context().close();
}

/** Rows enter and leave a filter by updates, as cards and as lines of a table with the columns asked for. */
async function followsAFilter() {
  const page = await open("/", DESKTOP);
  await page.locator(".card").nth(3).waitFor();
  await page.getByLabel("Filter").fill("level.gte.3");
  await page.keyboard.press("Enter");
  const names = async () => (await page.locator(".card h3").allTextContents()).join();
  await until("only the rows that fit are there", async () => await names() === "Front door,Greenhouse");
  sql("update switch set level = 4 where name = 'Cellar pump'");
  await until("a row has come", async () => await names() === "Front door,Greenhouse,Cellar pump");
  await page.getByText("level 1 → 4 (enters the filter)").waitFor();
  sql("update switch set level = 0 where name = 'Greenhouse'");
  await until("a row has gone", async () => await names() === "Front door,Cellar pump");
  await page.getByText("level 7 → 0 (leaves the filter)").waitFor();
  sql("update switch set level = 0, id = 30 where name = 'Front door'");
  await until("one with another key, too", async () => await names() === "Cellar pump");
  assert.deepEqual(await page.evaluate(() => faded), ["in: Cellar", "out: Greenhouse", "out: Front"]);
  await picture(page, "live-page-filter");

  await page.getByLabel("Columns").fill("level");
  await page.keyboard.press("Enter");
  const cells = async () => (await page.locator("tbody tr > *").allTextContents()).join();
  await until("the columns are those asked for", async () => await cells() === "4,4");
  sql("update switch set level = 3, id = 1 where name = 'Front door'");
  await until("a line has come", async () => await cells() === "1,3,4,4");
  sql("update switch set status = not status where id = 1");
  await page.locator(".commit").first().getByText("no change in these columns").waitFor();
  sql("update switch set level = 1 where id = 4");
  await until("a line has gone", async () => await cells() === "1,3");
  assert.deepEqual(await page.evaluate(() => faded.slice(3)), ["in: 1", "out: 4"]);
  await picture(page, "live-page-columns");

  await page.click("#explain");
  const operators = readFileSync(`${here}/filters.md`, "utf8").match(/^\| operator \|[^]*?\n\n/m)[0];
  const listed = operators.split("\n").slice(2).flatMap(line => (line.split("|")[1] ?? "").match(/[a-z]+/g) ?? []);
  const explained = await page.locator("#help p:first-child").textContent();
  assert.deepEqual(explained.match(/The operators are (.*?);/)[1].split(" "), listed, "the help names the operators of docs/filters.md");
  await page.context().close();
  sql("update switch set level = 7 where id = 3; update switch set status = not status where id = 1");
}

async function saysWhatIsWrongWithAFilter() {
  const page = await open("/?where=level.about.3", DESKTOP, "closed");
  for (const [filter, columns, field, message] of [
    ["level.about.3", "", "Filter", /^"about" is no operator/],
    ["levle.gte.3", "", "Filter", /^public\.switch has no column "levle"; its columns are "id", "name"/],
    ["level.gte.high", "", "Filter", /^PostgreSQL refuses "high" for the column "level"/],
    ["levle.gte.3", "level", "Filter", /^public\.switch has no column "levle"/],
    ["", "nmae", "Columns", /^columns names nmae, .*it has id, name/],
    ["level.gte.3", "nmae", "Columns", /^columns names nmae/],
  ]) {
    await page.getByLabel("Filter").fill(filter);
    await page.getByLabel("Columns").fill(columns);
    await page.keyboard.press("Enter");
    await until(message, async () => message.test(await page.locator("#mistake").textContent()));
    assert.equal(await page.locator("[aria-invalid]").getAttribute("name"), field === "Filter" ? "where" : "columns", `${filter} ${columns}`);
    await page.waitForSelector("body[data-state=closed]");
    await page.locator("#try").waitFor({ state: "hidden" });
  }
  await page.getByLabel("Columns").fill("");
  await page.getByLabel("Filter").fill("level.about.3");
  await page.keyboard.press("Enter");
  await until("the mistake is shown", async () => /no operator/.test(await page.locator("#mistake").textContent()));
  assert.equal(await page.getByLabel("Filter").getAttribute("aria-invalid"), "true");
  await picture(page, "live-page-mistake");
  await page.getByLabel("Filter").fill("");
  await page.keyboard.press("Enter");
  await page.waitForSelector("body[data-state=live]");
  assert.equal(new URL(page.url()).search, "?table=public.switch");
  assert.ok(await page.locator("#mistake").isHidden());
  await page.goBack();
  await page.waitForSelector("body[data-state=closed]");
  assert.equal(await page.getByLabel("Filter").inputValue(), "level.about.3");
  await page.context().close();
}

/** Each is found by what people type, by what SQL says, and by what the list of tables says. */
async function followsTablesOfAnyName() {
  const tables = { '"User"': "public.User", '"a,b"': "public.a,b", '"o""dd "': 'public.o"dd ', 'p."q.r"': 'p."q.r"', '"p.q".r': '"p.q".r' };
  sql('create schema p; create schema "p.q"');
  for (const [name, listed] of Object.entries(tables)) {
    sql(`create table ${name} (id int primary key, name text); insert into ${name} values (7, '${listed}')`);
    sql(`set client_min_messages = warning; select switchboard.watch('${name}')`);
  }
  for (const [name, listed] of Object.entries(tables)) {
    for (const typed of [name, listed]) {
      const page = await open(`/?${new URLSearchParams({ table: typed })}`, DESKTOP);
      const cell = place => page.locator(`tbody tr > :nth-child(${place})`).textContent();
      await until(`${typed} has its row`, async () => await page.locator("tbody tr").count() === 1 && await cell(2) === listed);
      assert.equal(await page.locator("#table").inputValue(), listed);
      await page.getByLabel("Filter").fill("id.eq.7");
      await page.keyboard.press("Enter");
      await until("the address has the filter", () => new URL(page.url()).searchParams.get("where") === "id.eq.7");
      await page.reload();
      await until("the row is back", async () => await page.locator("tbody tr").count() === 1 && await cell(2) === listed);
      await page.context().close();
    }
  }
  const page = await open("/?table=switch&where=name.neq.caf%E9", DESKTOP);
  await page.getByText("The address of this page is not UTF-8").waitFor();
  await page.context().close();
}

async function goesOnAfterTheGatewayWasAway(page) {
  page.isAlone = true;
  gateway.kill("SIGTERM");
  await page.waitForSelector("body[data-state=waiting]");
  await ended;
  await until("it says for how long", async () => /\d s/.test(await page.locator("#detail").textContent()));
  await picture(page, "live-page-offline");
}

const STORY = [
  "update switch set status = not status where id = 1",
  "begin; update switch set level = 9 where id = 3; update switch set level = 3 where id = 4; commit",
  "insert into switch (name, status, level) values ('Porch', true, 5)",
  "update switch set status = true, level = 6 where id = 4",
];

try {
  sql(`create table orders
    (item text, id bigint generated by default as identity primary key, price numeric, paid boolean, note text, details jsonb);
    insert into orders (item, price, paid, note, details) values
      ('tea', 3.50, false, null, '["green", "loose"]'),
      ('kettle', 42, false, 'Brass, with a whistle; the customer would rather wait for the large one.', '{"litres": 1.7}'),
      ('cups', 12, true, '', null),
      ('spoon', 2.25, null, 'silver', '{}')`);
  execFileSync(program, ["watch", "orders"], { env: { ...process.env, DATABASE_URL: url } });

  const page = await open("/", DESKTOP);
  await page.locator(".card").nth(3).waitFor();
  step("switches"), await flipsSwitches(page);
  step("pause"), await pausesCommits(page);
  step("hostile values"), await showsHostileValuesAsText(page);
  step("tables"), await keepsTablesUpToDate();
  step("filters"), await followsAFilter();
  step("mistakes"), await saysWhatIsWrongWithAFilter();
  step("names"), await followsTablesOfAnyName();
  step("narrow screens");
  for (const path of ["/", "/?view=table", "/?table=public.orders"]) await fitsPhones(path);

  step("pictures");
  const [desktop, phone, dark] = await Promise.all([open("/", DESKTOP), open("/", PHONE), open("/", { ...DESKTOP, colorScheme: "dark" })]);
  await change(...STORY);
  await picture(desktop, "live-page");
  await picture(phone, "live-page-phone");
  await picture(dark, "live-page-dark");
  for (const name of ["live-page", "live-page-phone"]) {
    const { size } = statSync(`${out}/${name}.png`);
    assert.ok(size < PICTURE_BYTES_MAX, `${name}.png has ${size} bytes; ${PICTURE_BYTES_MAX} are allowed`);
  }
  for (const each of [desktop, phone, dark]) await each.context().close();
  step("offline"), await goesOnAfterTheGatewayWasAway(page);
  assert.deepEqual(errors, [], "the page logged errors");
} finally {
  if (errors.length) console.error(errors.join("\n"));
  await browser.close();
  gateway.kill("SIGTERM");
  await ended;
}
