// The client in Node, with a real gateway and a real PostgreSQL.

import assert from 'node:assert/strict'
import { after, before } from 'node:test'

import { keyOf } from '../client.js'
import { follow, Gateway, Proxy, test, until } from './harness.mjs'

/** Small, so that a test can go past it. */
const RETAIN_COMMITS_MAX = 20
let gateway
before(async () => {
  gateway = await Gateway.start('--heartbeat-ms', '1000', '--retain-commits-max', String(RETAIN_COMMITS_MAX))
})
after(() => gateway?.stop())

const values = feed => [...feed.rows.values()].sort((one, other) => one.id - other.id)
const asSelected = async (what, feed, table) => {
  const wanted = JSON.stringify(await gateway.select(table))
  await until(what, feed, () => feed.state === 'live' && JSON.stringify(values(feed)) === wanted)
}

test('rows come first, and then each change with its commit', async t => {
  await gateway.table('firsts', 'id int primary key, v text', `insert into firsts values (1, 'one'), (2, 'two')`)
  const { feed, told } = follow(t, gateway.url, { table: 'firsts' })
  const { rows } = feed
  assert.equal(feed.state, 'connecting')

  assert.equal(await feed.ready, feed)
  assert.deepEqual([...rows], [[1, { id: 1, v: 'one' }], [2, { id: 2, v: 'two' }]])
  assert.deepEqual(told.order, ['rows', 'ready'])
  assert.equal(feed.lag, null)
  await gateway.sql(`begin; insert into firsts values (3, 'three'); update firsts set v = 'ONE' where id = 1; delete from firsts where id = 2; commit`)
  await until('the commit', feed, () => told.commits.length === 1)

  assert.equal(feed.rows, rows)
  assert.deepEqual([...rows], [[1, { id: 1, v: 'ONE' }], [3, { id: 3, v: 'three' }]])
  assert.deepEqual(told.order, ['rows', 'ready', 'change', 'change', 'change', 'commit', 'rows'])
  assert.deepEqual(told.changes.map(({ op, table, key }) => [op, table, key.id]), [
    ['insert', 'public.firsts', 3], ['update', 'public.firsts', 1], ['delete', 'public.firsts', 2]
  ])
  assert.equal(told.commits[0].cursor, feed.cursor)
  assert.deepEqual(told.rows[1], { whole: false, keys: new Map([['public.firsts', new Set([3, 1, 2])]]), commit: told.commits[0] })
  assert.equal(typeof feed.lag, 'number')
  assert.deepEqual(told.states, ['loading', 'live'])
})

test('keys may be changed, swapped and shifted within a commit', async t => {
  await gateway.table('keys', 'id int primary key deferrable, v text', `insert into keys select n, 'row ' || n from generate_series(1, 9) as n`)
  const { feed, told } = follow(t, gateway.url, { table: 'keys' })
  await feed.ready

  for (const statement of [
    'update keys set id = 100 where id = 9',
    'update keys set id = id + 1 where id < 50',
    'update keys set id = id - 1 where id < 50',
    'update keys set id = 3 - id where id in (1, 2)',
    // Two rows have the key 4 for a while; the one that came last goes on, then the one that was there first.
    `begin; set constraints all deferred; update keys set id = 4 where id = 3; update keys set id = 40 where id = 4 and v = 'row 3'; commit`,
    `begin; set constraints all deferred; update keys set id = 4 where id = 5; update keys set v = 'still 4' where id = 4 and v = 'row 4'; update keys set id = 41 where id = 4 and v = 'still 4'; commit`,
    `begin; delete from keys where id = 41; insert into keys values (41, 'anew'); commit`
  ]) {
    const count = told.commits.length
    await gateway.sql(statement)
    await until(statement, feed, () => told.commits.length > count)
    assert.deepEqual(values(feed), await gateway.select('keys'), statement)
  }
  assert.deepEqual([...feed.rows].filter(([key, row]) => key !== row.id), [])
})

test('a truncated table is empty, and one that is filled again in the same commit is not', async t => {
  await gateway.table('truncated', 'id int primary key', 'insert into truncated select generate_series(1, 3)')
  const { feed, told } = follow(t, gateway.url, { table: 'truncated' })
  await feed.ready

  await gateway.sql('truncate truncated')
  await until('the truncate', feed, () => told.commits.length === 1)
  assert.equal(feed.rows.size, 0)
  assert.deepEqual(told.rows[1].keys, new Map([['public.truncated', new Set([1, 2, 3])]]))
  await gateway.sql('begin; insert into truncated values (4); truncate truncated; insert into truncated values (5); commit')
  await until('the second', feed, () => told.commits.length === 2)

  assert.deepEqual([...feed.rows.keys()], [5])
})

test('several tables have rows of their own, keys of several columns are texts, and without a key there are events only', async t => {
  await gateway.table('pairs', 'b text, a int, v int, primary key (b, a)', `insert into pairs values ('x', 1, 0), ('x', 2, 0)`)
  await gateway.table('flags', 'id bool primary key', 'insert into flags values (true)')
  await gateway.table('keyless', 'v int', 'insert into keyless values (1)')
  const { feed, told } = follow(t, gateway.url, { table: ['pairs', 'public.flags', 'keyless'] })
  await feed.ready

  assert.throws(() => feed.rows, /feed\.tables\.get\("public\./)
  assert.deepEqual([...feed.tables.keys()].sort(), ['public.flags', 'public.pairs'])
  await gateway.sql(`update pairs set v = 7 where a = 2`, 'insert into keyless values (2)', 'truncate keyless')
  await until('three commits', feed, () => told.commits.length === 3)

  const pairs = feed.tables.get('public.pairs')
  assert.deepEqual(pairs.get(keyOf({ a: 2, b: 'x' })), { b: 'x', a: 2, v: 7 })
  assert.deepEqual(pairs.get(keyOf(told.changes[0].key)), { b: 'x', a: 2, v: 7 })
  assert.equal(pairs.size, 2)
  assert.deepEqual(feed.tables.get('public.flags').get(keyOf({ id: true })), { id: true })
  assert.deepEqual(told.changes.map(({ op }) => op), ['update', 'insert', 'truncate'])
  assert.deepEqual([...feed.tables.keys()].sort(), ['public.flags', 'public.pairs'])
})

test('numbers that JavaScript would round are kept, and so are keys apart', async t => {
  const big = ['9007199254740991', '9007199254740992', '9007199254740993', '-9223372036854775808']
  await gateway.table('numbers', 'id bigint primary key, n numeric, f float8, v text',
    `insert into numbers select unnest('{${big}}'::bigint[]), 0.12345678901234567890, 0.1::float8 + 0.2, '12345678901234567890 "\\ 0.12345678901234567890'`)
  const { feed, told } = follow(t, gateway.url, { table: 'numbers' })
  const rounded = follow(t, gateway.url, { table: 'numbers', parse: JSON.parse }).feed
  await feed.ready
  await rounded.ready

  assert.deepEqual(new Set(feed.rows.keys()), new Set([9007199254740991, 9007199254740992n, 9007199254740993n, -9223372036854775808n]))
  const row = { id: 9007199254740993n, n: '0.12345678901234567890', f: 0.30000000000000004, v: '12345678901234567890 "\\ 0.12345678901234567890' }
  assert.deepEqual(feed.rows.get(9007199254740993n), row)
  assert.equal(rounded.rows.size, 3)
  await gateway.sql(`update numbers set n = 1.5, v = '' where id = 9007199254740993`, 'delete from numbers where id = 9007199254740992')
  await until('both', feed, () => told.commits.length === 2)

  assert.deepEqual(feed.rows.get(9007199254740993n), { id: 9007199254740993n, n: 1.5, f: 0.30000000000000004, v: '' })
  assert.deepEqual(new Set(feed.rows.keys()), new Set([9007199254740991, 9007199254740993n, -9223372036854775808n]))
})

test('a commit in parts is one commit', async t => {
  await gateway.table('bulk', 'id int primary key, v text')
  const { feed, told } = follow(t, gateway.url, { table: 'bulk' })
  await feed.ready
  let seen = []
  feed.on('frame', () => seen.push(feed.rows.size))

  await gateway.sql(`insert into bulk select n, repeat('x', 100) from generate_series(1, 30000) as n`)
  await until('the commit', feed, () => told.commits.length === 1)

  assert.ok(told.frames.filter(frame => frame.more).length > 1)
  assert.deepEqual([...new Set(seen)], [0])
  assert.equal(told.commits[0].changes.length, 30000)
  assert.equal(told.rows.length, 2)
  assert.equal(feed.rows.size, 30000)
})

test('feeds that begin while others write come to the same rows', async t => {
  await gateway.table('busy', 'id int primary key, v int', 'insert into busy select n, 0 from generate_series(1, 200) as n')
  const writes = Array.from({ length: 60 }, (_, n) => `update busy set v = ${n} where id % 7 = ${n} % 7`)
  const writing = gateway.sql(...writes)

  const feeds = Array.from({ length: 8 }, () => follow(t, gateway.url, { table: 'busy' }))
  for (const { feed } of feeds) await feed.ready
  await writing

  for (const { feed, told } of feeds) {
    await asSelected('the rows', feed, 'busy')
    assert.deepEqual(told.errors, [])
  }
})

test('a gateway that is killed and comes back is resumed, not read afresh', async t => {
  await gateway.table('killed', 'id int primary key, v int', 'insert into killed values (1, 0)')
  const { feed, told } = follow(t, gateway.url, { table: 'killed' })
  await feed.ready

  await gateway.sql('update killed set v = 1')
  await gateway.kill()
  await until('the loss', feed, () => feed.state === 'waiting')
  assert.equal(feed.rows.size, 1)
  // Its PostgreSQL may have outlived it.
  await gateway.restart()
  await gateway.sql('update killed set v = 2', 'insert into killed values (2, 3)')
  await until('three commits', feed, () => told.commits.length === 3)
  await asSelected('the rows', feed, 'killed')

  assert.deepEqual(told.commits.flatMap(({ changes }) => changes.map(({ new: row }) => row.v)), [1, 2, 3])
  assert.deepEqual([told.resets, told.errors, told.rows.filter(({ whole }) => whole).length], [[], [], 1])
})

test('what is committed while the network is cut arrives afterwards, once', async t => {
  await gateway.table('cut', 'id serial primary key')
  const proxy = await Proxy.to(gateway.port)
  t.after(() => proxy.stop())
  const { feed, told } = follow(t, proxy.url, { table: 'cut' })
  await feed.ready

  for (let round = 1; round <= 3; round++) {
    proxy.cut()
    await until('the loss', feed, () => feed.state === 'waiting')
    await gateway.sql('insert into cut default values', 'insert into cut default values')
    proxy.mend()
    await until('the return', feed, () => feed.state === 'live')
  }
  await until('all of it', feed, () => told.commits.length === 6)

  assert.deepEqual([...feed.rows.keys()], [1, 2, 3, 4, 5, 6])
  assert.deepEqual([told.resets, told.errors, told.rows.length], [[], [], 7])
})

test('a line that went silent is given up and made anew', async t => {
  await gateway.table('silent', 'id int primary key')
  const proxy = await Proxy.to(gateway.port)
  t.after(() => proxy.stop())
  const { feed, told } = follow(t, proxy.url, { table: 'silent' })
  await feed.ready

  proxy.freeze()
  await gateway.sql('insert into silent values (1)')
  await until('the commit', feed, () => told.commits.length === 1)

  assert.deepEqual(told.states.slice(0, 3), ['loading', 'live', 'waiting'])
  assert.deepEqual([told.resets, told.errors], [[], []])
})

test('a cursor that means nothing gets a reset, and the rows', async t => {
  await gateway.table('meaningless', 'id int primary key', 'insert into meaningless values (1)')

  const { feed, told } = follow(t, gateway.url, { table: 'meaningless', from: 'meaningless' })
  await feed.ready

  assert.deepEqual(told.resets.map(({ reason }) => reason), ['unknown'])
  assert.deepEqual(told.order, ['reset', 'rows', 'ready'])
  assert.deepEqual([...feed.rows.keys()], [1])
})

test('who was away for longer than the log keeps sees the old rows until the new ones are complete', async t => {
  await gateway.table('expired', 'id int primary key, v int', 'insert into expired values (1, 0), (2, 0)')
  const proxy = await Proxy.to(gateway.port)
  t.after(() => proxy.stop())
  const { feed, told } = follow(t, proxy.url, { table: 'expired' })
  const { rows } = await feed.ready
  const { cursor } = feed
  proxy.cut()
  await until('the loss', feed, () => feed.state === 'waiting')

  await gateway.sql('delete from expired where id = 1', ...Array(2 * RETAIN_COMMITS_MAX).fill('update expired set v = v + 1'))
  await expiry(t, cursor)
  let during
  feed.on('frame', ({ type }) => { if (type === 'ready') during = JSON.stringify([...rows]) })
  proxy.mend()
  await until('the reset', feed, () => told.resets.length === 1)
  await asSelected('the rows', feed, 'expired')

  assert.equal(during, '[[1,{"id":1,"v":0}],[2,{"id":2,"v":0}]]')
  assert.equal(told.resets[0].reason, 'expired')
  assert.equal(feed.rows, rows)
  assert.deepEqual([...rows], [[2, { id: 2, v: 2 * RETAIN_COMMITS_MAX }]])
  assert.deepEqual(told.order.slice(-3), ['reset', 'rows', 'ready'])
})

/** Until the gateway has trimmed its log past the cursor. It does that every now and then. */
async function expiry(t, cursor) {
  for (;;) {
    const { feed, told } = follow(t, gateway.url, { table: 'expired', from: cursor })
    await feed.ready
    feed.close()
    if (told.resets.length) return
    await gateway.sql('update expired set v = v', 'update expired set v = v')
  }
}

test('with a filter there are the rows that fit it, whatever moves them', async t => {
  await gateway.table('filtered', 'id int primary key, level int, v text',
    `insert into filtered values (1, 1, 'one'), (2, 5, 'two'), (3, 9, 'three'), (4, 9, 'four')`)
  const { feed, told } = follow(t, gateway.url, { table: 'filtered', where: 'level.gte.5' })
  await feed.ready
  assert.deepEqual([...feed.rows.keys()].sort(), [2, 3, 4])

  for (const [statement, match] of [
    ['update filtered set level = 6 where id = 1', 'enter'],
    ['update filtered set level = 4 where id = 2', 'leave'],
    [`update filtered set v = 'THREE' where id = 3`, 'stay'],
    ['update filtered set id = 30 where id = 3', 'stay'],
    ['update filtered set id = 20, level = 7 where id = 2', 'enter'],
    ['update filtered set id = 40, level = 0 where id = 4', 'leave'],
    [`insert into filtered values (5, 5, 'five')`, 'enter'],
    ['delete from filtered where id = 1', 'leave'],
    [`begin; insert into filtered values (6, 6, 'six'); truncate filtered; insert into filtered values (7, 7, 'seven'); commit`, 'enter']
  ]) {
    const count = told.commits.length
    // The first of them is not for this feed.
    await gateway.sql('update filtered set v = v where level < 5', statement)
    await until(statement, feed, () => told.commits.length === count + 1)
    assert.deepEqual(values(feed), (await gateway.select('filtered')).filter(({ level }) => level >= 5), statement)
    assert.equal(told.changes.at(-1).match, match, statement)
  }
  assert.deepEqual([...feed.rows.keys()], [7])
  assert.deepEqual([told.resets, told.errors], [[], []])
})

test('with columns, rows have those and the key', async t => {
  await gateway.table('narrow', 'id int primary key, a int, b int, c int', 'insert into narrow values (1, 2, 3, 4)')
  const { feed, told } = follow(t, gateway.url, { table: 'narrow', columns: ['c', 'a'], where: 'b.gt.0' })
  await feed.ready
  assert.deepEqual(values(feed), [{ id: 1, a: 2, c: 4 }])

  await gateway.sql('insert into narrow values (2, 5, 6, 7)', 'update narrow set a = 9, id = 10 where id = 1', 'update narrow set b = 0 where id = 2')
  await until('three commits', feed, () => told.commits.length === 3)

  assert.deepEqual(values(feed), [{ id: 10, a: 9, c: 4 }])
  assert.deepEqual(told.changes.map(({ match, changed }) => [match, changed]), [['enter', undefined], ['stay', ['id', 'a']], ['leave', []]])
})

test('a column that is renamed ends the feed that filters by it, and all others read the rows afresh', async t => {
  await gateway.table('renamed', 'id int primary key, v int, w text', `insert into renamed values (1, 5, 'a')`)
  const filtered = follow(t, gateway.url, { table: 'renamed', where: 'v.gte.3' })
  const whole = follow(t, gateway.url, { table: 'renamed' })
  await Promise.all([filtered.feed.ready, whole.feed.ready])

  await gateway.sql('alter table renamed rename v to level')
  await until('the end', filtered.feed, () => filtered.feed.state === 'closed')
  await until('the reset', whole.feed, () => whole.told.resets.length === 1)
  await gateway.sql('update renamed set level = 6')
  await asSelected('the new rows', whole.feed, 'renamed')

  const [error] = filtered.told.errors
  assert.deepEqual([error.code, error.final, filtered.told.errors.length], ['bad_request', true, 1])
  assert.match(error.message, /has no column "v"; its columns are "id", "level" and "w"/)
  assert.deepEqual(values(filtered.feed), [{ id: 1, v: 5, w: 'a' }])
  assert.deepEqual([whole.told.resets[0].reason, whole.told.errors], ['schema', []])
  assert.deepEqual(whole.told.order.slice(0, 5), ['rows', 'ready', 'reset', 'rows', 'ready'])
  assert.deepEqual(values(whole.feed), [{ id: 1, level: 6, w: 'a' }])
})

test('a table that gets another key has its rows by that one', async t => {
  await gateway.table('rekeyed', 'id int primary key, v int not null', 'insert into rekeyed values (1, 11), (2, 22)')
  const { feed, told } = follow(t, gateway.url, { table: 'rekeyed' })
  await feed.ready

  await gateway.sql('alter table rekeyed drop constraint rekeyed_pkey, add primary key (v)')
  await until('the reset', feed, () => told.resets.length === 1)
  await gateway.sql('update rekeyed set v = 33 where v = 11')
  await until('the commit', feed, () => feed.rows.has(33))

  assert.deepEqual([...feed.rows].sort(), [[22, { id: 2, v: 22 }], [33, { id: 1, v: 33 }]])
  assert.deepEqual([told.resets[0].reason, told.errors], ['schema', []])
})

test('a feed whose gateway has lost PostgreSQL is stale, and then goes on', async t => {
  await gateway.table('stale', 'id int primary key', 'insert into stale values (1)')
  const { feed, told } = follow(t, gateway.url, { table: 'stale' })
  await feed.ready

  const giveBack = await gateway.withoutDatabase('insert into stale values (2)')
  try {
    await until('the news', feed, () => feed.state === 'stale')
    assert.deepEqual([...feed.rows.keys()], [1])
  } finally {
    giveBack()
  }
  await until('the commit', feed, () => feed.state === 'live' && feed.rows.size === 2)

  assert.deepEqual(told.states, ['loading', 'live', 'stale', 'live'])
  assert.deepEqual([told.resets, told.errors, told.commits.length], [[], [], 1])
})

for (const [wrong, options, says] of [
  ['no condition', { where: 'level.about.3' }, /"about" is no operator/],
  ['of a column that is not there', { where: 'levle.gte.3' }, /has no column "levle"; its columns are "id", "name"/],
  ['of a value that the type has not', { where: 'level.gte.x' }, /refuses "x" for the column "level"/]
]) {
  test(`a filter that is ${wrong} is the end, with a reason`, async t => {
    const { feed, told } = follow(t, gateway.url, { table: 'switch', ...options })

    await assert.rejects(feed.ready, says)

    assert.equal(feed.state, 'closed')
    assert.deepEqual(told.errors.map(({ code, final }) => [code, final]), [['bad_request', true]])
  })
}

test('a parameter of the address that does not exist is the end, with the word to write', async t => {
  const { feed, told } = follow(t, `${gateway.url}/v1/feed?id=eq.1`, { table: 'switch' })

  await assert.rejects(feed.ready, /has no parameter "id"; write where=id.eq.1/)

  assert.deepEqual(told.errors.map(({ code, final }) => [code, final]), [['bad_request', true]])
})

test('tables and columns of any name are followed by the names that frames have', async t => {
  await gateway.sql('create schema "p.q"')
  const tables = { '"p.q".r': '"p.q".r', 'public.o"d,d ': '"o""d,d "', 'public."2.0"': '"2.0"', 'public.User': '"User"' }
  for (const [name, sql] of Object.entries(tables)) await gateway.table(sql, '"a,""b" int primary key, v int', `insert into ${sql} values (1, 2)`)

  for (const name in tables) {
    const { feed } = follow(t, gateway.url, { table: [name], columns: ['a,"b'] })
    await feed.ready
    assert.deepEqual([[...feed.tables.keys()], feed.rows.get(1)], [[name], { 'a,"b': 1 }])
  }
})

test('a table that is not watched is the end, with a reason', async t => {
  const { feed, told } = follow(t, gateway.url, { table: 'no_such_table' })

  await assert.rejects(feed.ready, /no_such_table/)

  assert.equal(feed.state, 'closed')
  assert.deepEqual(told.errors.map(({ code, final }) => [code, final]), [['bad_request', true]])
})

test('a handshake that is refused is the end, with the reason that plain HTTP gives', async t => {
  const { feed, told } = follow(t, gateway.url, { table: 'a,,b' })

  await assert.rejects(feed.ready, /holds an empty name/)

  assert.equal(feed.state, 'closed')
  assert.deepEqual(told.errors.map(({ code, final }) => [code, final]), [['bad_request', true]])
})

test('from now on there are no rows but those that change, and a cursor goes on from there', async t => {
  await gateway.table('later', 'id int primary key', 'insert into later values (1)')
  // Until the gateway has heard of the row, it would be news.
  await follow(t, gateway.url, { table: 'later' }).feed.ready
  const { feed, told } = follow(t, `${gateway.url}/v1/feed`, { table: 'later', from: 'now' })
  await feed.ready
  const { cursor } = feed

  await gateway.sql('insert into later values (2)', 'insert into later values (3)')
  await until('both', feed, () => told.commits.length === 2)
  const again = follow(t, gateway.url.replace('http', 'ws') + '/', { table: 'later', from: cursor })
  await again.feed.ready

  assert.deepEqual([...feed.rows.keys()], [2, 3])
  assert.deepEqual(again.told.commits, told.commits)
})

test('a closed feed hears nothing more', async t => {
  await gateway.table('closed', 'id int primary key')
  const { feed, told } = follow(t, gateway.url, { table: 'closed' })
  const other = follow(t, gateway.url, { table: 'closed' })
  await feed.ready
  await other.feed.ready

  feed.close()
  feed.close()
  await gateway.sql('insert into closed values (1)')
  await until('the commit', other.feed, () => other.told.commits.length === 1)

  assert.deepEqual([told.commits, told.states], [[], ['loading', 'live', 'closed']])
})
