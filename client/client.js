/**
 * The client of Switchboard: a feed of committed changes, and the rows that they make, kept up to date.
 *
 * It connects, and comes back for ever; it resumes behind the last commit that it has dealt with; it checks that no frame is missing.
 * README.md beside it says what it promises and what it does not.
 */

const PROTOCOL = 1
/** Close codes after which asking again would be answered the same. */
const STOP_CODES = [1002, 1007, 1008, 1009, 4400, 4401, 4403, 4410]
/** HTTP answers to a handshake of which the same is true. */
const STOP_STATUSES = [400, 401, 403]
/** How long it may take until the gateway says hello. */
const HELLO_MS_MAX = 15000
/** For how many heartbeats the line may be silent. */
const SILENT_HEARTBEATS_MAX = 2.5
const BACKOFF = { first_ms: 500, most_ms: 15000 }
const EVENTS = ['commit', 'change', 'rows', 'ready', 'state', 'reset', 'error', 'frame']
const OPTIONS = ['table', 'where', 'columns', 'from', 'WebSocket', 'backoff', 'parse']
/** How others call an option. */
const ALSO_CALLED = { filter: 'where', select: 'columns', cursor: 'from', since: 'from' }

/** Follows a gateway's feed until `close()`. */
export function connect(url, options = {}) {
  for (const name of Object.keys(options)) known('option', name, OPTIONS)
  for (const name of Object.keys(options.backoff ?? {})) known('option of backoff', name, Object.keys(BACKOFF))
  return new Feed(url, options)
}

/** The key of a row in `feed.rows`, from the `key` of a change or any object that has the key's columns and no others. */
export function keyOf(key) {
  return keyIn(key, Object.keys(key).sort())
}

class Feed {
  tables = new Tables()
  cursor = null
  ready
  #options
  #address
  #WebSocket
  #state = 'connecting'
  #listeners = Object.fromEntries(EVENTS.map(event => [event, new Set()]))
  #settle
  #at
  #arrived

  #socket = null
  #retryTimer
  #retryAt
  #silenceTimer
  #silenceMs
  #heardAt
  #readyAt = null
  #attempt = 0
  #databaseUp
  /** The gateway's last `error` frame on this connection. */
  #said

  /** The cursor of the last frame that has one: what the next one's `prev` has to be. */
  #chain
  /** The frames of a commit whose last part has not come. */
  #parts
  /** The tables of a snapshot on its way in; null when there is none. */
  #staged
  /** The `reset` that the next snapshot answers. */
  #reset = null

  constructor(url, options) {
    this.#options = options
    this.#address = address(url, options)
    this.#WebSocket = options.WebSocket ?? globalThis.WebSocket
    if (!this.#WebSocket) throw new Error('there is no WebSocket here; pass one, as { WebSocket }, or use Node 22 or newer')
    if (options.from && options.from !== 'snapshot' && options.from !== 'now') this.cursor = options.from
    this.ready = new Promise((resolve, reject) => { this.#settle = { resolve, reject } })
    // Who does not wait for it need not hear that it failed; 'error' says so.
    this.ready.catch(() => {})
    this.#dial()
    globalThis.addEventListener?.('online', this.#wake)
    globalThis.document?.addEventListener('visibilitychange', this.#wake)
  }

  get rows() {
    if (this.tables.size > 1) throw new Error(`there are several tables here; take feed.tables.get(${JSON.stringify([...this.tables.keys()][0])})`)
    return this.tables.size ? this.tables.values().next().value : this.tables.first
  }

  get state() { return this.#state }

  get retryAt() { return this.#state === 'waiting' ? this.#retryAt : null }

  get lag() { return this.#at === undefined ? null : this.#arrived - Date.parse(this.#at) }

  on(event, listener) {
    known('event', event, EVENTS)
    // Wrapped, so that one function put on twice is heard twice, and taken off once.
    const entry = { listener }
    this.#listeners[event].add(entry)
    return () => { this.#listeners[event].delete(entry) }
  }

  close() {
    this.#end(new Error('the feed was closed'))
  }

  // ---- The line ----

  #dial() {
    clearTimeout(this.#retryTimer)
    const first = this.#options.from === 'now' && !this.#reset ? 'now' : 'snapshot'
    // A snapshot that was cut short cannot be resumed, only read again.
    this.#staged = this.cursor === null && first === 'snapshot' ? new Tables() : null
    this.#chain = this.cursor
    this.#parts = []
    this.#readyAt = this.#said = null
    this.#databaseUp = true
    this.#silenceMs = HELLO_MS_MAX
    this.#address.searchParams.set('from', this.cursor ?? first)
    const url = this.#address.href
    const socket = this.#socket = new this.#WebSocket(url)
    let opened = false
    // A socket that was let go of may still speak for a while; only the present one is heard.
    const lost = event => {
      if (socket !== this.#socket) return
      this.#closed(event)
      if (!opened) this.#askWhy(url)
    }
    socket.onopen = () => { opened = true }
    socket.onmessage = ({ data }) => { if (socket === this.#socket && typeof data === 'string') this.#hear(data) }
    socket.onclose = lost
    // Node 22 says no more than this when a handshake fails. Of an open socket `close` says more.
    socket.onerror = () => { if (!opened) lost({ code: 1006, reason: '' }) }
    this.#setState('connecting')
    this.#heard()
    this.#watch()
  }

  #heard() { this.#heardAt = performance.now() }

  #watch() {
    clearTimeout(this.#silenceTimer)
    const left = this.#heardAt + this.#silenceMs - performance.now()
    if (left <= 0) this.#retry()
    else this.#silenceTimer = setTimeout(() => this.#watch(), left)
  }

  #letGo() {
    clearTimeout(this.#silenceTimer)
    const socket = this.#socket
    this.#socket = null
    socket?.close()
  }

  #closed({ code, reason }) {
    const said = this.#said
    if (STOP_CODES.includes(code)) return this.#stop(said?.code ?? String(code), said?.message ?? (reason || `closed with ${code}`))
    this.#retry()
    if (said) this.#complain(said.code, said.message)
  }

  #retry() {
    this.#letGo()
    const { first_ms, most_ms } = { ...BACKOFF, ...this.#options.backoff }
    // Only a line that held for a while starts the back-off anew; one that breaks at once must not be redialled in a tight loop.
    if (this.#readyAt !== null && performance.now() - this.#readyAt > most_ms) this.#attempt = 0
    const longest = Math.min(most_ms, first_ms * 2 ** this.#attempt++)
    // `online` ends the wait. That the browser says offline does not prove that a gateway nearby is out of reach.
    const wait = globalThis.navigator?.onLine === false ? most_ms : Math.random() * longest
    this.#retryTimer = setTimeout(() => this.#dial(), wait)
    this.#retryAt = Date.now() + wait
    this.#setState('waiting')
  }

  #wake = ({ type }) => {
    if (type === 'visibilitychange' && document.visibilityState === 'hidden') return
    if (this.#state === 'waiting') this.#dial()
    else if (this.#socket) this.#watch()
  }

  /** A browser does not tell why a handshake was refused, so the same question is put over plain HTTP. */
  async #askWhy(url) {
    try {
      const answer = await fetch(url.replace(/^ws/, 'http'), { signal: AbortSignal.timeout(HELLO_MS_MAX) })
      const body = STOP_STATUSES.includes(answer.status) ? await answer.json().catch(() => ({})) : void answer.body?.cancel()
      if (!body || !['connecting', 'waiting'].includes(this.#state)) return
      this.#stop(body.error?.code ?? String(answer.status), body.error?.message ?? `the handshake was answered with ${answer.status}`)
    } catch {
      // Out of reach, or not for this page to read: the next attempt will show.
    }
  }

  #stop(code, message) {
    if (this.#state !== 'closed') this.#end(this.#complain(code, message, true))
  }

  #end(error) {
    if (this.#state === 'closed') return
    clearTimeout(this.#retryTimer)
    this.#letGo()
    globalThis.removeEventListener?.('online', this.#wake)
    globalThis.document?.removeEventListener('visibilitychange', this.#wake)
    this.#setState('closed')
    this.#settle.reject(error)
  }

  // ---- The protocol ----

  #hear(text) {
    this.#heard()
    let frame
    try {
      frame = (this.#options.parse ?? parseExactly)(text)
    } catch (error) {
      return this.#mistrust('frame', `a frame could not be read (${error.message}); resuming`)
    }
    this.#emit('frame', frame)
    if (!this.#socket) return
    const { type, prev = null, cursor } = frame
    if (cursor !== undefined) {
      if (prev !== this.#chain) {
        return this.#mistrust('chain', `a ${type} frame follows ${prev}, but the last one here was ${this.#chain}; resuming from ${this.cursor}`)
      }
      this.#chain = cursor
    }
    // A type that is not known is for a newer client.
    if (type === 'hello') this.#hello(frame)
    else if (type === 'rows') this.#stage(frame)
    else if (type === 'ready') this.#becomeReady(frame)
    else if (type === 'commit') this.#commit(frame)
    else if (type === 'position' && !this.#staged) this.cursor = cursor
    else if (type === 'reset') this.#beginAnew(frame)
    else if (type === 'error') this.#said = frame
    else if (type === 'status') {
      this.#databaseUp = frame.database !== 'down'
      this.#showProgress()
    }
  }

  /** Something was lost, repeated or garbled: go back to what is certain. */
  #mistrust(code, message) {
    this.#retry()
    this.#complain(code, message)
  }

  #hello({ protocol, heartbeat_ms }) {
    if (protocol !== PROTOCOL) return this.#stop('protocol', `the gateway speaks protocol ${protocol}, this client ${PROTOCOL}; take the gateway's own /client.js`)
    if (heartbeat_ms > 0) this.#silenceMs = heartbeat_ms * SILENT_HEARTBEATS_MAX
    this.#watch()
    this.#showProgress()
  }

  #stage({ table, key, rows }) {
    // Rows of a table without a key cannot be told apart, so they are not kept.
    if (!this.#staged || !key) return
    const staged = this.#staged.named(table)
    const columns = [...key].sort()
    for (const row of rows) staged.set(keyIn(row, columns), row)
  }

  #becomeReady({ cursor }) {
    const swapped = this.#staged
    const reset = this.#reset
    if (swapped) this.#swap(swapped)
    this.#staged = this.#reset = null
    this.cursor = cursor
    this.#readyAt = performance.now()
    if (reset) this.#emit('reset', reset)
    if (swapped) this.#emit('rows', { whole: true })
    this.#showProgress()
    this.#emit('ready', cursor)
    this.#settle.resolve(this)
  }

  /** Maps that somebody holds stay the same objects. */
  #swap(staged) {
    for (const [name, rows] of this.tables) {
      rows.clear()
      if (!staged.has(name)) this.tables.delete(name)
    }
    for (const [name, fresh] of staged) {
      const rows = this.tables.named(name)
      for (const [key, row] of fresh) rows.set(key, row)
    }
  }

  #commit(frame) {
    this.#parts.push(frame)
    if (frame.more) return
    const parts = this.#parts
    this.#parts = []
    const { cursor, tx, at } = frame
    const commit = { cursor, tx, at, changes: parts.length > 1 ? parts.flatMap(part => part.changes) : frame.changes }
    // It completes the rows of a snapshot, which nobody has seen yet.
    if (this.#staged) return void apply(commit.changes, this.#staged)
    this.#at = at
    this.#arrived = Date.now()
    this.cursor = cursor
    const keys = apply(commit.changes, this.tables)
    for (const change of commit.changes) this.#emit('change', change, commit)
    this.#emit('commit', commit)
    if (keys.size) this.#emit('rows', { whole: false, keys, commit })
  }

  #beginAnew({ reason, oldest }) {
    this.#reset = { reason, oldest }
    this.#staged = new Tables()
    this.#parts = []
    this.cursor = this.#chain = this.#readyAt = null
    this.#showProgress()
  }

  #showProgress() { this.#setState(!this.#databaseUp ? 'stale' : this.#readyAt === null ? 'loading' : 'live') }

  // ---- Telling ----

  #setState(state) {
    if (state === this.#state || this.#state === 'closed') return
    this.#state = state
    this.#emit('state', state)
  }

  #complain(code, message, final = false) {
    const error = Object.assign(new Error(message), { code, final })
    if (!this.#listeners.error.size) console.error(error)
    this.#emit('error', error)
    return error
  }

  #emit(event, ...news) {
    for (const { listener } of this.#listeners[event]) {
      // A listener may have closed the feed; of what was under way nobody hears the rest.
      if (this.#state === 'closed' && event !== 'state') return
      try {
        listener(...news)
      } catch (error) {
        (globalThis.reportError ?? console.error)(error)
      }
    }
  }
}

function address(url, { table, where, columns }) {
  const address = new URL(url, globalThis.location?.href)
  address.protocol = address.protocol.replace('http', 'ws')
  address.pathname = address.pathname.replace(/(\/v1\/feed)?\/*$/, '/v1/feed')
  address.hash = ''
  // What frames call a table may have quotes already.
  const wanted = { table: list(table, /^"|^[^",]*$/), where, columns: list(columns, /^[^",]*$/) }
  for (const name in wanted) if (wanted[name] !== undefined) address.searchParams.set(name, wanted[name])
  return address
}

/** The names in a list are those that frames have, and are quoted where they have to be; a text goes as it is. */
const list = (names, plain) => Array.isArray(names) ? names.map(name => plain.test(name) && name.trim() === name ? name : quoted(name)).join() : names
const quoted = name => `"${name.replaceAll('"', '""')}"`

// ---- Words ----

/** A word that does not exist is never ignored: without the one that was meant, everything would come, or nothing. */
function known(kind, word, words) {
  if (words.includes(word)) return
  const near = words.includes(ALSO_CALLED[word]) ? ALSO_CALLED[word] : words.reduce((a, b) => unlikeness(word, b) < unlikeness(word, a) ? b : a)
  throw new TypeError(`there is no ${kind} ${JSON.stringify(word)}; did you mean ${near}? There are ${words.join(', ')}`)
}

/** How many letters differ; the more two words begin alike, the less. */
function unlikeness(a, b) {
  const [word, other] = [a, b].map(each => String(each).toLowerCase().slice(0, 40))
  let row = [...other, ''].map((_, at) => at)
  for (let i = 0; i < word.length; i++) {
    const next = [i + 1]
    for (let j = 0; j < other.length; j++) next.push(Math.min(next[j] + 1, row[j + 1] + 1, row[j] + (word[i] !== other[j])))
    row = next
  }
  let common = 0
  while (common < word.length && word[common] === other[common]) common++
  return 2 * row[other.length] - common
}

// ---- Rows ----

/** Rows of tables, by name. */
class Tables extends Map {
  /** The rows of the first table, from before its name is known. */
  first = new Map()

  named(name) {
    if (!this.has(name)) this.set(name, this.size ? new Map() : this.first)
    return this.get(name)
  }
}

/** Of one column, its value where a Map can tell it apart; else the JSON text of the values. */
function keyIn(row, columns) {
  const value = row[columns[0]]
  return columns.length === 1 && ['string', 'number', 'bigint'].includes(typeof value) ? value : jsonOf(columns.map(column => row[column]))
}

const jsonOf = value => JSON.stringify(value, (_, inner) => typeof inner === 'bigint' ? `${inner}n` : inner)

/** Applies the changes of one whole commit. Returns, for each table whose rows are kept, the keys that it touched. */
function apply(changes, tables) {
  const touched = new Map()
  // While a transaction moves keys about, two rows may have the same one (1 becomes 2, then 2 becomes 3). By table and key: who lies below.
  const covered = new Map()
  for (const { op, table, key, match, new: now, old } of changes) {
    if (op === 'truncate' ? !tables.has(table) : !key) continue
    const rows = tables.named(table)
    const keys = entry(touched, table, () => new Set())
    const below = entry(covered, table, () => new Map())
    if (op === 'truncate') {
      for (const each of rows.keys()) keys.add(each)
      rows.clear()
      below.clear()
      continue
    }
    const columns = Object.keys(key).sort()
    const after = keyIn(key, columns)
    const before = old ? keyIn(old, columns) : after
    const goes = op !== 'insert' && match !== 'enter'
    const comes = op !== 'delete' && match !== 'leave'
    if (goes) keys.add(before)
    if (comes) keys.add(after)
    // In place where that is the same: a Map keeps the order of its rows then.
    if (goes && comes && before === after && !below.has(after)) rows.set(after, now)
    else {
      if (goes) uncover(rows, below, before, old)
      if (comes) cover(rows, below, after, now)
    }
  }
  return touched
}

function entry(map, key, make) {
  if (!map.has(key)) map.set(key, make())
  return map.get(key)
}

function cover(rows, below, key, row) {
  if (rows.has(key)) entry(below, key, () => []).push(rows.get(key))
  rows.set(key, row)
}

function uncover(rows, below, key, row) {
  const others = below.get(key)
  if (!others) return void rows.delete(key)
  const wanted = jsonOf(row)
  const at = others.findIndex(other => jsonOf(other) === wanted)
  const top = rows.get(key)
  const last = others.pop()
  // The row that goes is the one on top, or lies below it; then its place is taken by the last.
  if (jsonOf(top) === wanted || at < 0) rows.set(key, last)
  else if (at < others.length) others[at] = last
  if (!others.length) below.delete(key)
}

// ---- Numbers ----

/** As JSON.parse, but a number that it would round is kept: an integer as a BigInt, any other as its text. */
function parseExactly(text) {
  // No number with fewer characters is rounded, and most frames have none.
  if (!/[\d.]{16}/.test(text)) return JSON.parse(text)
  const mark = `${Math.random()} `
  let inString = false
  let found = false
  // No loop without a bound, since a frame may hold a string of any length; PostgreSQL's longest number has 147,457 characters.
  const marked = text.replace(/"|\\.|-?\d[\d.eE+-]{15,150000}/g, token => {
    if (token === '"') inString = !inString
    if (inString || !/\d$/.test(token) || !isRounded(token)) return token
    found = true
    return `"${mark}${token}"`
  })
  if (!found) return JSON.parse(text)
  return JSON.parse(marked, (_, value) => typeof value === 'string' && value.startsWith(mark) ? exact(value.slice(mark.length)) : value)
}

const isInteger = number => /^-?\d+$/.test(number)
const isRounded = number => isInteger(number) ? !Number.isSafeInteger(Number(number)) : digits(number) !== digits(String(Number(number)))
const digits = number => number.replace(/e.*/i, '').replace(/[-.]/g, '').replace(/^0+|0+$/g, '')
const exact = number => isInteger(number) ? BigInt(number) : number
