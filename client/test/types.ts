// Compiled only: what has to be allowed, and what has not.

import { connect, keyOf, type Change, type Feed, type Key, type State } from '../client.js'

interface Switch { id: number; name: string; status: boolean }

const feed: Feed<Switch> = connect<Switch>('http://127.0.0.1:8080', {
  table: ['switch'], where: 'level.gte.3', columns: 'id,name,status', from: 'snapshot', WebSocket, backoff: { most_ms: 1000 }, parse: JSON.parse
})
const name: string | undefined = feed.rows.get(1)?.name
const tables: ReadonlyMap<Key, Readonly<Switch>> | undefined = feed.tables.get('public.switch')
const state: State = feed.state
const off: () => void = feed.on('commit', ({ cursor, changes }) => [cursor, changes.map((change: Change<Switch>) => change.op)])
feed.on('change', change => {
  if (change.op === 'update') change.changed.map(column => [column, change.old.name, change.new.name])
  if (change.op === 'delete') return void change.old.status
  // @ts-expect-error: a truncate has no row
  if (change.op === 'truncate') return void change.new.name
})
feed.on('rows', news => news.whole ? 'all of them' : news.keys.get('public.switch')?.has(1))
feed.on('error', ({ code, final, message }) => [code, final, message])
const inMs: number | null = feed.retryAt && feed.retryAt - Date.now()
feed.ready.then(({ lag }) => (lag ?? 0) + 1)
keyOf({ a: 1, b: 'x' })
connect('/').rows.get('x')?.anything

// @ts-expect-error: there is no such event
feed.on('comit', () => {})
// @ts-expect-error: rows are the feed's to change
feed.rows.set(1, { id: 1, name: '', status: true })
// @ts-expect-error: there is no such option
connect('/', { tables: 'switch' })
// @ts-expect-error: there is no such column
feed.rows.get(1)?.nam

export { inMs, name, off, state, tables }
