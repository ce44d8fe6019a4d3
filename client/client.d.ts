/** A number that JavaScript would round arrives as a bigint, or as its text where it is no integer. */
export type Key = string | number | bigint

export type AnyRow = Record<string, unknown>

/** The rows of one table, by `keyOf` their key. */
export type Rows<Row = AnyRow> = ReadonlyMap<Key, Readonly<Row>>

export type State =
  /** A connection is being made. */
  | 'connecting'
  /** Connected: rows, or the commits that were missed, are coming. */
  | 'loading'
  /** What is committed arrives. */
  | 'live'
  /** Connected, but the gateway has lost PostgreSQL. */
  | 'stale'
  /** Between two attempts to connect. */
  | 'waiting'
  /** Closed, by `close()` or by the gateway for good. */
  | 'closed'

export interface Options {
  /** One or more tables, in a list called as in frames; a string goes as it is, with commas between several. Default: every watched table. */
  table?: string | readonly string[]
  /** A row filter in PostgREST's words: `level.gte.3`. */
  where?: string
  /** The columns to receive; the key comes in any case. Default: all. */
  columns?: string | readonly string[]
  /** `snapshot` (the default): current rows first. `now`: only what comes. Else a cursor: everything after it. */
  from?: 'snapshot' | 'now' | (string & {})
  /** The constructor to use where there is no global one. */
  WebSocket?: new (url: string) => object
  /** The longest first wait between two attempts, and the longest of all. Default: 500 and 15000. */
  backoff?: { first_ms?: number; most_ms?: number }
  /** Reads a frame in the place of the built-in reader, for instance `JSON.parse`, which rounds large numbers. */
  parse?: (text: string) => any
}

interface ChangeOf<Op extends string> {
  op: Op
  /** With its schema: `public.switch`. */
  table: string
  /** Of the new row where there is one; null for a table without a key. */
  key: AnyRow | null
  /** With a filter: whether an update moved the row into it, out of it, or neither. */
  match?: 'enter' | 'leave' | 'stay'
}
export interface Insert<Row = AnyRow> extends ChangeOf<'insert'> { new: Row; old?: undefined }
export interface Update<Row = AnyRow> extends ChangeOf<'update'> { new: Row; old: Row; changed: string[] }
export interface Delete<Row = AnyRow> extends ChangeOf<'delete'> { new?: undefined; old: Row }
export interface Truncate extends ChangeOf<'truncate'> { new?: undefined; old?: undefined }
export type Change<Row = AnyRow> = Insert<Row> | Update<Row> | Delete<Row> | Truncate

/** A whole transaction, however many frames it came in. */
export interface Commit<Row = AnyRow> {
  cursor: string
  tx: string
  /** When it committed, by the database's clock. */
  at: string
  changes: Change<Row>[]
}

/** What became of `rows`: read afresh as a whole, or touched by one commit, at these keys of these tables. */
export type RowsChanged<Row = AnyRow> =
  | { whole: true; keys?: undefined; commit?: undefined }
  | { whole: false; keys: ReadonlyMap<string, ReadonlySet<Key>>; commit: Commit<Row> }

export interface Reset {
  reason: 'unknown' | 'epoch' | 'nonce' | 'future' | 'expired' | 'schema' | (string & {})
  oldest: string | null
}

export interface FeedError extends Error {
  /** The gateway's word, a close code or HTTP status as text, or one of the client's own: `chain`, `frame`, `protocol`. */
  code: string
  /** Whether the feed is closed by it. If not, it goes on by itself. */
  final: boolean
}

export interface Events<Row = AnyRow> {
  /** A transaction, after its changes are in `rows`. */
  commit: (commit: Commit<Row>) => void
  /** Each of its changes, before `commit`. */
  change: (change: Change<Row>, commit: Commit<Row>) => void
  /** `rows` changed: once for each snapshot, and once for each commit that touched them. */
  rows: (changed: RowsChanged<Row>) => void
  /** Caught up, on each connection and after each reset. */
  ready: (cursor: string) => void
  state: (state: State) => void
  /** The feed could not go on from where it was; `rows` was just read afresh. */
  reset: (reset: Reset) => void
  /** Without a listener it goes to the console. */
  error: (error: FeedError) => void
  /** Every frame, as it comes. */
  frame: (frame: { type: string; [field: string]: unknown }) => void
}

export interface Feed<Row = AnyRow> {
  /** The rows of the only table. Always the same Map. Throws once the feed has several tables. */
  readonly rows: Rows<Row>
  /** The rows of each table, by names like `public.switch`. */
  readonly tables: ReadonlyMap<string, Rows<Row>>
  readonly state: State
  /** When the next attempt is made, in milliseconds since 1970; null unless `state` is `waiting`. */
  readonly retryAt: number | null
  /** Of the last commit or position that is in `rows`; null before the first. */
  readonly cursor: string | null
  /** Milliseconds from the last commit, by the database's clock, to its arrival, by this one; null before the first. */
  readonly lag: number | null
  /** When the feed is live for the first time. Rejected if it is closed before. */
  readonly ready: Promise<Feed<Row>>
  /** Returns a function that takes the listener off again. */
  on<Event extends keyof Events<Row>>(event: Event, listener: Events<Row>[Event]): () => void
  close(): void
}

/**
 * Follows a gateway's feed until `close()`.
 * The address is that of the gateway, `http(s)` or `ws(s)`, with or without `/v1/feed`; in a browser it may be relative.
 */
export function connect<Row = AnyRow>(url: string | URL, options?: Options): Feed<Row>

/** The key of a row in `rows`, from the `key` of a change, or any object that has the key's columns and no others. */
export function keyOf(key: object): Key
