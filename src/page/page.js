// The live page: a client of the feed as any other. It shows the rows of one table, or those that a filter selects, and the commits
// that change them. What it draws is bounded, and drawn once per screen refresh at most. Values come from a database and can be
// hostile: they only ever become text.

import { connect } from "./client.js";

const ROWS_MAX = 500, COMMITS_MAX = 100, CHANGES_KEPT_MAX = 100, LINES_MAX = 5, COLUMNS_MAX = 6, RATE_SECONDS = 60;
const TEXT_CHARS_MAX = 60, HOVER_CHARS_MAX = 2000, WHOLE_CHARS_MAX = 65536;
const FADE_MS = 450, FLASH_MS = 1600, COUNT_DOWN_MS = 250, LIST_MS_MIN = 5000;
const SWITCH = "public.switch", NUMBERS = /^(smallint|integer|bigint|numeric|real|double|oid)/;
const ARROW = "\u00a0→\u00a0";
const IN_DEV = document.documentElement.dataset.dev === "yes";
const WORDS = {
  connecting: "Connecting", loading: "Reading rows", live: "Live", stale: "Database away", waiting: "Reconnecting", closed: "Stopped",
};

const $ = id => document.getElementById(id);
const calm = matchMedia("(prefers-reduced-motion: reduce)");
const clock = new Intl.DateTimeFormat([], {
  hour: "2-digit", minute: "2-digit", second: "2-digit", fractionalSecondDigits: 3, hourCycle: "h23",
});

function element(tag, className, ...children) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  node.append(...children);   // Strings become text nodes, whatever they contain.
  return node;
}

/** Fades from one look to another; the looks that are left out are those of the style sheet. */
function animate(node, from, to, duration) {
  return calm.matches ? null : node.animate([from, to], { duration, easing: "ease-out" });
}

const tinted = (colour, percent) => `color-mix(in srgb, var(${colour}) ${percent}%, transparent)`;

// ---- Values in words ----

/** A number that JavaScript would write in another way (3.50, 1e-05): it is shown as PostgreSQL wrote it, and counts as a number. */
class Decimal {
  constructor(text) { this.text = text; }
  toString() { return this.text; }
  valueOf() { return Number(this.text); }
  toJSON() { return JSON.rawJSON(this.text); }
}

const UNLIKE_JAVASCRIPT = /\.\d*0[\s,}\]]|\d[eE]|-0|[\d.]{16}/;
const asWritten = (_, value, { source }) => {
  if (typeof value !== "number" || source === String(value)) return value;
  return /^-?\d+$/.test(source) ? BigInt(source) : new Decimal(source);
};
// Looking at every value takes its time, and most frames have no such number. Where a browser does not tell the text of a number, the
// client's own reader does what can be done.
const parse = JSON.rawJSON && (text => UNLIKE_JAVASCRIPT.test(text) ? JSON.parse(text, asWritten) : JSON.parse(text));

// A bigint that JavaScript would round comes as something else than a number; it is written as it stands.
const replacer = (_, value) => typeof value === "bigint" ? JSON.rawJSON?.(value.toString()) ?? value.toString() : value;
const json = (value, indent) => JSON.stringify(value, replacer, indent) ?? String(value);
const whole = (value, indent) => value !== null && typeof value === "object" ? json(value, indent) : String(value);

// Takes the sting out of characters that turn the reading direction of what follows.
const harmless = text => text.replace(/[\u202a-\u202e\u2066-\u2069]/g, "\ufffd");
function cut(text, chars = TEXT_CHARS_MAX) {
  return harmless(text.length > chars ? text.slice(0, chars) + "…" : text);
}
const inWords = value => cut(whole(value));

/** What a cell shows. */
function valueNode(value) {
  if (value === undefined) return "";
  if (value === null) return element("span", "null", "null");
  if (value === "") return element("span", "null", "empty");
  if (typeof value === "boolean") return element("span", `bool ${value}`, String(value));
  const text = whole(value);
  return text.length > TEXT_CHARS_MAX || text.includes("\n") ? longNode(value, text) : harmless(text);
}

/** A text too long for its cell: whole on hover, and in place on a click. */
function longNode(value, text) {
  const short = cut(text.replaceAll("\n", " ⏎ ")), node = element("button", "long", short);
  node.type = "button";
  node.title = cut(text, HOVER_CHARS_MAX);
  node.setAttribute("aria-expanded", "false");
  node.onclick = () => {
    const open = node.getAttribute("aria-expanded") !== "true";
    node.setAttribute("aria-expanded", String(open));
    node.textContent = open ? cut(whole(value, 2), WHOLE_CHARS_MAX) : short;
  };
  return node;
}

// Nulls come last; numbers in their order, everything else in that of its text.
function compare(a, b) {
  if (a == null || b == null) return (a == null) - (b == null);
  if (typeof a === "object" && !(a instanceof Decimal)) a = json(a);
  if (typeof b === "object" && !(b instanceof Decimal)) b = json(b);
  return a < b ? -1 : a > b ? 1 : 0;
}

// ---- What is followed ----

let tables = [];          // as the gateway lists them
let listedAt = 0;
let selection = null;     // what is followed: { table, where, columns }
let feed = null;
let dueTimer = 0, stateSince = 0;

// With columns chosen, others may have changed.
const unchanged = () => selection.columns ? "no change in these columns" : "no value changed";
/** What the gateway says about a table. */
const described = name => tables.find(({ table }) => table === name);
const short = name => name.replace(/^public\./, "");

async function listTables() {
  listedAt = Date.now();
  try {
    const answer = await fetch("v1/tables");
    if (!answer.ok) throw new Error(`HTTP ${answer.status}`);
    tables = (await answer.json()).tables;
  } catch (error) {
    say(`The list of tables could not be read (${error.message}); it is read again with the next connection.`);
  }
  offerTables();
}

function offerTables() {
  const names = tables.map(({ table }) => table), chosen = selection?.table;
  if (chosen && !names.includes(chosen)) names.unshift(chosen);
  $("table").replaceChildren(...names.map(name => new Option(short(name), name, false, name === chosen)));
}

/** A name without the quotes that SQL, or a frame, gives it. */
const unquoted = name => name.replace(/"((?:[^"]|"")*)"/g, (_, inside) => inside.replaceAll('""', '"'));

/** The table that somebody meant who typed this. */
function meant(named) {
  const same = name => tables.filter(({ table }) => unquoted(table) === unquoted(name));
  const [one, ...more] = [same(`public.${named}`), same(named)].find(found => found.length) ?? [];
  return described(named) ?? (more.length ? undefined : one);
}

/** What the address of the page asks for; without a table, the switches or else the first table that is watched. */
function addressed() {
  const asked = new URLSearchParams(location.search), named = asked.get("table");
  const first = described(SWITCH) ?? tables[0];
  const table = !named ? first?.table ?? SWITCH : meant(named)?.table ?? named;
  return { table, where: asked.get("where") ?? "", columns: asked.get("columns") ?? "" };
}

function choose(chosen) {
  const query = new URLSearchParams(Object.entries(chosen).filter(([, value]) => value !== ""));
  if (view.asked) query.set("view", view.asked);
  history.pushState(null, "", `?${query}`);
  say("");
  follow(chosen);
}

function follow(chosen) {
  selection = chosen;
  feed?.close();
  forgetRows();
  forgetCommits();
  refuse("");
  offerTables();
  $("where").value = chosen.where;
  $("columns").value = chosen.columns;
  $("where").placeholder = `all rows; for instance ${exampleFilter(chosen.table)}`;
  const { table, where, columns } = chosen;
  // A name that the gateway lists is quoted by the client; what the address of the page holds may be quoted already, or name several.
  const options = { table: described(table) ? [table] : table };
  const mine = feed = connect(new URL(".", location), { ...options, where: where || undefined, columns: columns || undefined, parse });
  // A feed that was let go may still speak for a while; only the present one is heard.
  const hear = (event, listener) => mine.on(event, (...said) => { if (mine === feed) listener(...said); });
  hear("state", showState);
  hear("ready", becomeReady);
  hear("commit", takeCommit);
  hear("reset", ({ reason }) => say(`The feed could not go on where this page was (${reason}); the rows were read afresh.`));
  hear("error", error => error.final ? refuse(error.message) : say(`The feed reports: ${error.message}.`));
  showState();
}

function becomeReady() {
  ready = true;
  reordered();
  // A table may be watched, or have another column, since the line broke.
  if (Date.now() - listedAt > LIST_MS_MIN) listTables().then(draw.soon);
}

function exampleFilter(table) {
  if (table === SWITCH) return "level.gte.3";
  const column = described(table)?.columns.find(({ type }) => NUMBERS.test(type));
  return column ? `${column.name}.gte.3` : "name.like.A*";
}

/** Shows beside the field what is wrong with what was asked for. */
function refuse(message) {
  const columns = message.startsWith("columns ") || !$("where").value;
  for (const field of [$("where"), $("columns")]) field.removeAttribute("aria-invalid");
  if (message && $("where").value + $("columns").value) $(columns ? "columns" : "where").setAttribute("aria-invalid", "true");
  $("mistake").textContent = message;
  $("mistake").hidden = !message;
  draw.soon();
}

function say(text) {
  $("notice").hidden = !text;
  $("notice").textContent = text && `${clock.format()}: ${text}`;
}

$("selection").onsubmit = event => {
  event.preventDefault();
  choose({ table: $("table").value, where: $("where").value.trim(), columns: $("columns").value.trim() });
};
// A filter speaks of one table's columns, so another table begins without one.
$("table").onchange = () => choose({ table: $("table").value, where: "", columns: "" });
$("explain").onclick = () => {
  $("help").hidden = !$("help").hidden;
  $("explain").setAttribute("aria-expanded", String(!$("help").hidden));
};
addEventListener("popstate", () => { view.asked = askedView(); follow(addressed()); });

// ---- The gauges ----

const commitsBySecond = new Array(RATE_SECONDS).fill(0);   // the second that is not over comes last
let second = Math.floor(Date.now() / 1000);

function showState() {
  const state = feed.state, words = WORDS[state] ?? state;
  if (document.body.dataset.state !== state) stateSince = Date.now();
  document.body.dataset.state = state;
  document.title = `${words} · ${short(selection.table)} · Switchboard`;
  if ($("words").textContent !== words) $("words").textContent = words;   // Saying the same again would be announced again.
  countDown();
  draw.soon();
}

function countDown() {
  clearTimeout(dueTimer);
  $("detail").textContent = feed.state === "waiting" ? waitInWords() : feed.state === "stale" ? "what is missed will follow" : "";
  if (feed.state === "waiting") dueTimer = setTimeout(countDown, COUNT_DOWN_MS);
}

function waitInWords() {
  const left = Math.ceil((feed.retryAt - Date.now()) / 1000), away = Math.floor((Date.now() - stateSince) / 1000);
  return left > 0 ? `in ${left} s` : away > 0 ? `for ${away} s` : "";
}

function showGauges() {
  const { cursor, lag } = feed;
  $("cursor").textContent = cursor ?? "–";
  $("lag").textContent = lag === null ? "–" : lag < 1000 ? `${Math.max(0, Math.round(lag))} ms` : `${(lag / 1000).toFixed(1)} s`;
}

/** The curve of the last minute. */
function showPulse() {
  const past = commitsBySecond.slice(0, -1), most = Math.max(4, ...past);
  const points = past.map((count, place) => `L${place} ${20 - 19 * count / most}`).join("");
  $("pulse").setAttribute("d", `M0 20${points}L${past.length - 1} 20Z`);
  $("rate").textContent = past.at(-1).toLocaleString();
}

/** Browsers slow the timers of a hidden page, so the clock says how many seconds are over. */
function turnSeconds() {
  const now = Math.floor(Date.now() / 1000), passed = Math.min(Math.max(0, now - second), RATE_SECONDS);
  commitsBySecond.splice(0, passed);
  commitsBySecond.push(...new Array(passed).fill(0));
  second = now;
}

setInterval(() => {
  turnSeconds();
  if (!document.hidden) showPulse();
}, 1000);

// ---- Rows ----

let ready = false;        // the rows are whole
let order = null;         // the keys of the rows that are drawn, in their order; none where it has to be found anew
let sorting = null;       // { column, down }; none for the order of the key
const askedView = () => new URLSearchParams(location.search).get("view");
const view = { asked: askedView() };

/** Keeps the children of an element in step with rows: who comes fades in, who goes fades out. */
class Shelf {
  constructor(home, make, fill) { Object.assign(this, { home, make, fill, nodes: new Map(), fresh: true }); }

  draw(keys, rows) {
    const wanted = new Set(keys);
    for (const [key, node] of this.nodes) if (!wanted.has(key)) this.remove(key, node);
    const entered = [];
    let next = this.home.firstElementChild;
    for (const key of keys) {
      const node = this.nodes.get(key) ?? this.add(key, entered);
      if (node.row !== rows.get(key)) {
        const before = node.row;
        node.row = rows.get(key);
        this.fill(node, node.row, before);
      }
      while (next?.leaving) next = next.nextElementSibling;
      if (next === node) next = node.nextElementSibling;
      else this.home.insertBefore(node, next);
    }
    // What is animated before it is in the document may keep the look of its first moment.
    if (!this.fresh) for (const node of entered) animate(node, { opacity: 0, background: tinted("--good", 40) }, {}, FADE_MS);
    this.fresh = false;
  }

  add(key, entered) {
    const node = this.make();
    this.nodes.set(key, node);
    entered.push(node);
    return node;
  }

  remove(key, node) {
    this.nodes.delete(key);
    const fading = animate(node, {}, { opacity: 0, background: tinted("--bad", 30) }, FADE_MS);
    if (!fading) return node.remove();
    node.leaving = true;
    node.setAttribute("aria-hidden", "true");
    fading.onfinish = () => node.remove();
  }

  clear() {
    this.nodes.clear();
    this.home.replaceChildren();
    this.fresh = true;
  }
}

const sheet = new Shelf($("body"), () => element("tr"), fillRow);
const board = new Shelf($("board"), newCard, fillCard);

function forgetRows() {
  ready = false;
  order = sorting = null;
  sheet.clear();
  board.clear();
  columns.names = [];
}

function reordered() { order = null; draw.soon(); }

/** The columns that are shown, those of the key first. */
const columns = { names: [], key: [], types: new Map() };

function updateColumns(row) {
  const known = described(selection.table), key = known?.key ?? [];
  const listed = (known?.columns ?? []).map(({ name }) => name).filter(name => Object.hasOwn(row, name));
  const names = [...new Set([...key, ...listed, ...Object.keys(row)])];
  if (names.join("\n") === columns.names.join("\n")) return;
  Object.assign(columns, { names, key, types: new Map(known?.columns.map(({ name, type }) => [name, type])) });
  sheet.clear();
  $("columns-row").replaceChildren(...names.map(headCell));
}

const isNumber = (name, value) => NUMBERS.test(columns.types.get(name) ?? (typeof value === "number" ? "real" : ""));

function headCell(name) {
  const button = element("button", "", element("b", "", cut(name)), element("small", "", columns.types.get(name) ?? ""));
  const cell = element("th", "", button);
  button.type = "button";
  button.onclick = () => sortBy(name);
  cell.scope = "col";
  cell.dataset.column = name;
  cell.classList.toggle("key", columns.key.includes(name));
  cell.classList.toggle("number", isNumber(name));
  return cell;
}

/** A click sorts, the next one turns the order around, the third goes back to that of the key. */
function sortBy(column) {
  sorting = sorting?.column !== column ? { column, down: false } : sorting.down ? null : { column, down: true };
  reordered();
}

function sorted(rows) {
  const by = sorting ? [sorting.column, ...columns.key] : columns.key, turn = sorting?.down ? -1 : 1;
  const keys = [...rows.keys()];
  if (by.length === 0) return keys.slice(0, ROWS_MAX);
  return keys.sort((a, b) => {
    const [one, other] = [rows.get(a), rows.get(b)];
    for (const column of by) {
      const order = compare(one[column], other[column]);
      if (order) return order * (column === sorting?.column ? turn : 1);
    }
    return 0;
  }).slice(0, ROWS_MAX);
}

function fillRow(tr, row, before) {
  columns.names.forEach((name, place) => {
    const value = row[name], known = tr.children[place];
    if (known && before && Object.is(before[name], value)) return;
    if (known && before && json(before[name]) === json(value)) return;
    const cell = known ?? tr.appendChild(element(columns.key.includes(name) ? "th" : "td"));
    if (cell.tagName === "TH") cell.scope = "row";
    cell.classList.toggle("number", isNumber(name, value));
    const focused = cell.contains(document.activeElement);
    cell.replaceChildren(flippable(row, name) ? flipNode(row, value) : valueNode(value));
    if (focused) cell.querySelector("button")?.focus();
    if (before) animate(cell, { background: tinted("--lit", 60) }, {}, FLASH_MS);
  });
}

function drawRows() {
  const rows = feed.rows;
  if (ready && rows.size) updateColumns(rows.values().next().value);
  order ??= ready ? sorted(rows) : [];
  const asCards = showView(rows);
  const [shown, other] = asCards ? [board, sheet] : [sheet, board];
  if (ready) {
    shown.draw(order, rows);
    other.draw([], rows);
  }
  if (asCards) $("board").style.setProperty("--most", Math.max(10, ...order.map(key => Number(rows.get(key).level) || 0)));
  $("rows-title").textContent = short(selection.table);
  $("count").textContent = rows.size ? countInWords(rows.size) : "";
  $("rest").textContent = rows.size ? "" : whyThereIsNothing();
}

function countInWords(count) {
  if (count > order.length) return `${order.length} of ${count.toLocaleString()} rows drawn`;
  return count === 1 ? "1 row" : `${count.toLocaleString()} rows`;
}

function whyThereIsNothing() {
  if (feed.state === "closed") return "Nothing is followed.";
  if (!ready) return "Waiting for the first rows.";
  if (described(selection.table)?.key === null) return "Rows of a table without a key cannot be told apart, so only its commits are shown.";
  return selection.where ? `No row matches ${selection.where}.` : "This table has no rows.";
}

/** Shows the cards or the table, whichever the table allows and the visitor wants. */
function showView(rows) {
  const [first] = rows.values(), hasCards = selection.table === SWITCH && first !== undefined && Object.hasOwn(first, "status");
  const asCards = hasCards && view.asked !== "table";
  $("views").hidden = !hasCards;
  for (const button of $("views").children) button.setAttribute("aria-pressed", String((button.dataset.view === "cards") === asCards));
  if (rows.size) [$("cards").hidden, $("sheet").hidden] = [!asCards, asCards];
  // The last rows are let fade out where they are.
  else if (!$("body").children.length && !$("board").children.length) $("cards").hidden = $("sheet").hidden = true;
  for (const cell of $("columns-row").children) showSorting(cell);
  return asCards;
}

function showSorting(cell) {
  if (cell.dataset.column !== (sorting?.column ?? columns.key[0])) cell.removeAttribute("aria-sort");
  else cell.setAttribute("aria-sort", sorting?.down ? "descending" : "ascending");
}

for (const button of $("views").children) button.onclick = () => {
  view.asked = button.dataset.view;
  const query = new URLSearchParams(location.search);
  query.set("view", view.asked);
  history.replaceState(null, "", `?${query}`);
  sheet.clear();
  board.clear();
  draw.soon();
};

// ---- Switches ----

const isWhole = id => /^-?\d+$/.test(String(id));   // Only a plain number is safe to put into an address, or a line for psql.
const flipLine = id => `update switch set status = not status where id = ${id};`;
const flippable = (row, column) => IN_DEV && selection.table === SWITCH && column === "status" && isWhole(row.id);

function flipNode(row, value) {
  const button = element("button", "flip", valueNode(value));
  makeFlip(button, row);
  return button;
}

function makeFlip(button, { id, name, status }) {
  button.type = "button";
  button.setAttribute("role", "switch");
  button.setAttribute("aria-checked", String(status));
  button.setAttribute("aria-label", cut(String(name ?? `switch ${id}`)));
  button.onclick = () => flip(id, button);
}

/** The row changes when the feed says so, not before. */
async function flip(id, button) {
  button.setAttribute("aria-busy", "true");
  try {
    const answer = await fetch(`dev/switch/${id}/flip`, { method: "POST", headers: { "X-Switchboard": "dev" } });
    if (!answer.ok) say((await answer.json()).error.message);
  } catch (error) {
    say(`The switch was not flipped: ${error.message}.`);
  }
  button.removeAttribute("aria-busy");
}

function newCard() {
  const card = $("card").content.firstElementChild.cloneNode(true);
  if (IN_DEV) {
    card.querySelector(".slot").replaceWith(element("button", "slot", element("i")));
    card.querySelector(".copy").remove();
  }
  return card;
}

function fillCard(card, row, before) {
  const part = selector => card.querySelector(selector), name = cut(String(row.name ?? "(no name)"));
  card.classList.toggle("on", row.status === true);
  part("h3").textContent = name;
  part(".id").textContent = cut(String(row.id));
  part(".position").textContent = row.status === true ? "ON" : row.status === false ? "OFF" : "UNKNOWN";
  part(".level").hidden = !Object.hasOwn(row, "level");
  part(".level b").textContent = inWords(row.level);
  part(".bar i").style.setProperty("--level", Math.max(0, Number(row.level) || 0));
  const changed = before ? Object.keys(row).filter(column => json(before[column]) !== json(row[column])) : [];
  part(".note").textContent = !before ? (board.fresh ? "no change yet" : "new") : changed.length === 0 ? unchanged()
    : changed.slice(0, COLUMNS_MAX).map(column => `${column} ${inWords(before[column])}${ARROW}${inWords(row[column])}`).join(", ");
  if (IN_DEV) makeFlip(part("button.slot"), row);
  else prepareCopy(part(".copy"), row.id, name);
  const glow = colour => ({ boxShadow: `0 0 0 3px ${colour}, 0 0 22px ${colour}` });
  if (before) animate(card, glow("var(--lit)"), glow("transparent"), FLASH_MS);
}

function prepareCopy(button, id, name) {
  button.hidden = !isWhole(id);
  button.setAttribute("aria-label", `Copy the SQL line that flips ${name}`);
  button.onclick = () => copy(flipLine(id), button);
}

async function copy(text, button) {
  const label = button.id ? "Copy" : "Copy SQL";
  let done = true;
  try { await navigator.clipboard.writeText(text); } catch { done = copyTheOldWay(text); }
  button.textContent = done ? "Copied" : "Not copied";
  setTimeout(() => { button.textContent = label; }, 1500);
}

// Pages served without TLS from another host have no clipboard.
function copyTheOldWay(text) {
  const field = element("textarea", "", text), focused = document.activeElement;
  document.body.append(field);
  field.select();
  const done = document.execCommand("copy");
  field.remove();
  focused?.focus();
  return done;
}

$("copy").onclick = () => copy($("line").textContent, $("copy"));

// ---- Commits ----

let commitsWaiting = [];   // not drawn yet, oldest first
let missed = 0;            // how many came since the pause
let paused = false;

function forgetCommits() {
  commitsWaiting = [];
  pause(false);
  $("commits").replaceChildren();
}

function takeCommit(commit) {
  turnSeconds();
  commitsBySecond[RATE_SECONDS - 1]++;
  if (commit.changes.some(reorders)) order = null;
  // Of a large commit only the beginning is kept; the whole of a hundred of them would be too much to hold.
  const count = commit.changes.length;
  commitsWaiting.push({ ...commit, changes: commit.changes.slice(0, CHANGES_KEPT_MAX), count });
  if (commitsWaiting.length > COMMITS_MAX) commitsWaiting.shift();
  if (paused) missed++;
  draw.soon();
}

/** Whether the order of the rows may be another one after this change. */
function reorders({ op, changed, match }) {
  if (op !== "update" || !changed || (match ?? "stay") !== "stay") return true;
  return changed.some(column => column === sorting?.column || columns.key.includes(column));
}

function drawCommits() {
  $("pause").textContent = paused ? (missed ? `Resume (${missed.toLocaleString()} more)` : "Resume") : "Pause";
  if (paused) return;
  for (const commit of commitsWaiting) {
    const item = commitItem(commit);
    $("commits").prepend(item);
    animate(item, { background: tinted("--lit", 30) }, {}, FLASH_MS);
  }
  commitsWaiting = [];
  while ($("commits").children.length > COMMITS_MAX) $("commits").lastChild.remove();
  $("none").hidden = $("commits").children.length > 0;
  $("commits").hidden = !$("none").hidden;
  $("try").hidden = selection.table !== SWITCH || feed.state === "closed";
  const first = feed.rows.get(order[0])?.id;
  $("line").textContent = isWhole(first) ? flipLine(first) : "insert into switch (name) values ('Front door');";
}

function commitItem(commit) {
  const { tx, at, count, changes } = commit, time = element("time", "", clock.format(new Date(at)));
  time.title = at;
  const size = count === 1 ? "" : `${count.toLocaleString()} changes`;
  const lines = element("ul", "changes", ...changes.slice(0, LINES_MAX).map(changeLine));
  if (count > LINES_MAX) lines.append(element("li", "quiet", `and ${(count - LINES_MAX).toLocaleString()} more`));
  const when = element("div", "when mono", time, element("span", "", `tx ${tx}`), element("span", "", size));
  const details = element("details", "", element("summary", "", when, lines));
  // Written when somebody looks, and forgotten when nobody does.
  details.ontoggle = () => {
    details.querySelector("pre")?.remove();
    if (details.open) details.append(element("pre", "", inFull(commit)));
  };
  return element("li", "commit", details);
}

function inFull({ count, ...commit }) {
  const more = count - commit.changes.length;
  const text = cut(json(commit, 2), WHOLE_CHARS_MAX);
  return more ? `${text}\n\nand ${more.toLocaleString()} more changes, which this page did not keep` : text;
}

/** `update id 1 status true → false`, with the words marked. */
function changeLine({ op, key, new: now, old, changed, match }) {
  const line = element("li", "", element("b", `op ${op}`, op)), row = now ?? old ?? {};
  const pair = (column, ...values) => [" ", element("i", "", cut(column)), " ", ...values];
  for (const [column, value] of Object.entries(key ?? {})) line.append(...pair(column, inWords(value)));
  const rest = op === "update" ? changed ?? [] : Object.keys(row).filter(column => !Object.hasOwn(key ?? {}, column));
  for (const column of rest.slice(0, COLUMNS_MAX)) {
    line.append(...pair(column, op === "update" ? `${inWords(old?.[column])}${ARROW}${inWords(now?.[column])}` : inWords(row[column])));
  }
  if (rest.length > COLUMNS_MAX) line.append(element("i", "", ` and ${rest.length - COLUMNS_MAX} more columns`));
  if (op === "update" && rest.length === 0) line.append(element("i", "", ` ${unchanged()}`));
  if (match === "enter") line.append(element("i", "", " (enters the filter)"));
  if (match === "leave") line.append(element("i", "", " (leaves the filter)"));
  return line;
}

function pause(wanted) {
  paused = wanted;
  missed = 0;
  $("pause").setAttribute("aria-pressed", String(paused));
  draw.soon();
}

$("pause").onclick = () => pause(!paused);

// ---- Drawing ----

function draw() {
  const began = performance.now();
  draw.asked = false;
  drawRows();
  drawCommits();
  showGauges();
  // Half of the time at most goes into drawing, however many rows there are and however fast they change.
  draw.notBefore = performance.now() + (performance.now() - began);
}
draw.notBefore = 0;
// Once per screen refresh, however many commits came; a hidden page does not draw at all.
draw.soon = () => {
  if (draw.asked) return;
  draw.asked = true;
  setTimeout(() => requestAnimationFrame(draw), draw.notBefore - performance.now());
};

await listTables();
follow(addressed());
try {
  // A browser reads bytes that are not UTF-8 as U+FFFD, and says nothing.
  decodeURIComponent(location.search.replace(/%(?![0-9a-f]{2})/gi, "%25"));
} catch {
  say("The address of this page is not UTF-8 (é is %C3%A9), so it asks for something else than was meant.");
}
