// What the client makes of what a gateway says; the gateway is a fake, so that it can say anything.

import assert from 'node:assert/strict'

import { connect, keyOf } from '../client.js'
import { change, commit, Fake, follow, HELLO, ready, rows, test, until, WebSocket } from './harness.mjs'

const ids = feed => [...feed.rows.keys()]

test('the address says what is wanted', async t => {
  const fake = await Fake.start(t, fake => fake.say(ready('e.1.n')))
  for (const [url, options, path] of [
    ['', { table: ['a', 'b,c'], columns: ['x', 'y'], where: 'level.gte.3' }, 'table=a%2C%22b%2Cc%22&where=level.gte.3&columns=x%2Cy&from=snapshot'],
    ['', { table: ['"p.q".r', 'public.o"dd', 'ends '], columns: ['"', 'b.c', ' '] }, 'table=%22p.q%22.r%2C%22public.o%22%22dd%22%2C%22ends+%22&columns=%22%22%22%22%2Cb.c%2C%22+%22&from=snapshot'],
    ['/prefix/', { table: 'a,b', from: 'now' }, 'table=a%2Cb&from=now'],
    ['/v1/feed?token=t#part', { from: 'e.0.n' }, 'token=t&from=e.0.n']
  ]) {
    const { feed } = follow(t, fake.url.replace('ws', 'http') + url, options)
    await until('an answer', feed, () => feed.state !== 'connecting')
    assert.equal(fake.asked.at(-1).toString(), path)
    feed.close()
  }
})

test('commits between rows and ready complete the rows, and are no events', async t => {
  const fake = await Fake.start(t, fake => fake.say(
    rows({ id: 1, v: 'a' }), rows({ id: 2, v: 'a' }),
    commit(null, 'e.1.n', change('update', { id: 2, v: 'b' }, { id: 2, v: 'a' })),
    commit('e.1.n', 'e.2.n', change('delete', undefined, { id: 1, v: 'b' }), change('insert', { id: 3, v: 'c' })),
    ready('e.3.n', 'e.2.n')
  ))

  const { feed, told } = follow(t, fake.url)
  await feed.ready

  assert.deepEqual([...feed.rows], [[2, { id: 2, v: 'b' }], [3, { id: 3, v: 'c' }]])
  assert.deepEqual(told.order, ['rows', 'ready'])
  assert.equal(feed.cursor, 'e.3.n')
})

test('a snapshot that was cut short is begun again, and leaves nothing behind', async t => {
  const fake = await Fake.start(t,
    (fake, socket) => {
      fake.say(rows({ id: 1 }), commit(null, 'e.1.n', change('insert', { id: 2 })))
      socket.close(1011)
    },
    fake => fake.say(rows({ id: 3 }), ready('e.5.n'))
  )

  const { feed, told } = follow(t, fake.url)
  await feed.ready

  assert.deepEqual(fake.from(), ['snapshot', 'snapshot'])
  assert.deepEqual(ids(feed), [3])
  assert.deepEqual(told.order, ['rows', 'ready'])
})

test('half a commit does not count', async t => {
  const half = { ...commit('e.1.n', 'e.2.n', change('insert', { id: 1 })), more: true }
  const rest = commit('e.2.n', 'e.2.n', change('insert', { id: 2 }))
  const fake = await Fake.start(t,
    (fake, socket) => {
      fake.say(ready('e.1.n'), half)
      socket.close(1001)
    },
    fake => fake.say(half, rest, ready('e.2.n', 'e.2.n'))
  )

  const { feed, told } = follow(t, fake.url)
  await until('the commit', feed, () => told.commits.length === 1)

  assert.deepEqual(fake.from(), ['snapshot', 'e.1.n'])
  assert.deepEqual(told.changes.map(({ key }) => key.id), [1, 2])
  assert.deepEqual(ids(feed), [1, 2])
})

test('a swallowed frame is noticed, and what it held is asked for again', async t => {
  const first = commit('e.1.n', 'e.2.n', change('insert', { id: 1 }))
  const swallowed = commit('e.2.n', 'e.3.n', change('insert', { id: 2 }))
  const third = commit('e.3.n', 'e.4.n', change('insert', { id: 3 }))
  const fake = await Fake.start(t,
    // What comes after the gap on the line that was given up is not heard, even if it would fit.
    fake => fake.say(ready('e.1.n'), first, third, swallowed, third),
    fake => fake.say(swallowed, third, ready('e.4.n', 'e.4.n'))
  )

  const { feed, told } = follow(t, fake.url)
  await until('all of it', feed, () => told.commits.length === 3)

  assert.deepEqual(fake.from(), ['snapshot', 'e.2.n'])
  assert.deepEqual(told.errors.map(({ code, final }) => [code, final]), [['chain', false]])
  assert.deepEqual(ids(feed), [1, 2, 3])
})

test('every frame with a cursor is checked, from the first one on', async t => {
  for (const wrong of [
    [commit('e.0.n', 'e.1.n', change('insert', { id: 1 }))],
    [ready('e.1.n'), ready('e.2.n')],
    [ready('e.1.n'), { type: 'position', prev: 'e.0.n', cursor: 'e.2.n' }],
    [ready('e.1.n'), commit('e.1.n', 'e.2.n'), commit('e.1.n', 'e.2.n')]
  ]) {
    const fake = await Fake.start(t, fake => fake.say(...wrong), () => {})
    const { feed, told } = follow(t, fake.url)

    await until('the error', feed, () => told.errors.length === 1)

    assert.equal(told.errors[0].code, 'chain', JSON.stringify(wrong))
    feed.close()
  }
})

test('a frame that cannot be read is as good as a lost one', async t => {
  const fake = await Fake.start(t,
    (fake, socket) => {
      fake.say(ready('e.1.n'))
      socket.send('{"type":"comm')
    },
    fake => fake.say(ready('e.1.n', 'e.1.n'))
  )

  const { feed, told } = follow(t, fake.url)
  await until('the return', feed, () => told.order.filter(event => event === 'ready').length === 2)

  assert.deepEqual(told.errors.map(({ code }) => code), ['frame'])
  assert.deepEqual(fake.from(), ['snapshot', 'e.1.n'])
})

test('a position is remembered like a commit', async t => {
  const fake = await Fake.start(t,
    (fake, socket) => {
      fake.say(ready('e.1.n'), { type: 'position', prev: 'e.1.n', cursor: 'e.7.n' })
      socket.close(1001)
    },
    fake => fake.say(ready('e.7.n', 'e.7.n'))
  )

  const { feed, told } = follow(t, fake.url)
  await until('the return', feed, () => told.order.filter(event => event === 'ready').length === 2)

  assert.deepEqual(fake.from(), ['snapshot', 'e.7.n'])
})

test('a reset on an open line keeps the old rows until it is ready, and survives the loss of the line', async t => {
  const fake = await Fake.start(t,
    (fake, socket) => {
      fake.say(rows({ id: 1 }), ready('e.1.n'), { type: 'reset', reason: 'epoch', oldest: 'f.1.n' }, rows({ id: 2 }))
      socket.close(1001)
    },
    fake => fake.say(rows({ id: 3 }), commit(null, 'f.2.n', change('insert', { id: 4 })), ready('f.3.n', 'f.2.n'))
  )

  const { feed, told } = follow(t, fake.url)
  const seen = []
  for (const event of ['state', 'reset', 'rows']) feed.on(event, () => seen.push([event, feed.state, ids(feed).join()]))
  await until('the reset', feed, () => told.resets.length === 1 && feed.state === 'live')

  assert.deepEqual(fake.from(), ['snapshot', 'snapshot'])
  assert.deepEqual(told.resets, [{ reason: 'epoch', oldest: 'f.1.n' }])
  assert.deepEqual(seen, [
    ['state', 'loading', ''], ['rows', 'loading', '1'], ['state', 'live', '1'],
    ['state', 'loading', '1'], ['state', 'waiting', '1'], ['state', 'connecting', '1'], ['state', 'loading', '1'],
    ['reset', 'loading', '3,4'], ['rows', 'loading', '3,4'], ['state', 'live', '3,4']
  ])
})

test('a table that a reset no longer has is gone', async t => {
  const table = name => ({ ...rows({ id: 1 }), table: name })
  const fake = await Fake.start(t, fake => fake.say(
    table('public.a'), table('public.b'), ready('e.1.n'), { type: 'reset', reason: 'epoch' }, table('public.b'), ready('f.1.n')
  ))

  const { feed, told } = follow(t, fake.url)
  await until('the reset', feed, () => told.resets.length === 1)

  assert.deepEqual([...feed.tables.keys()], ['public.b'])
  assert.deepEqual(ids(feed), [1])
})

test('with a filter, rows enter, stay and leave, whatever happens to their key', async t => {
  const fake = await Fake.start(t, fake => fake.say(
    rows({ id: 1, v: 3 }, { id: 2, v: 3 }, { id: 3, v: 3 }), ready('e.1.n'),
    commit('e.1.n', 'e.2.n',
      change('update', { id: 1, v: 4 }, { id: 1, v: 3 }, { match: 'stay' }),
      change('update', { id: 20, v: 0 }, { id: 2, v: 3 }, { match: 'leave' }),
      change('update', { id: 3, v: 0 }, { id: 3, v: 3 }, { match: 'leave' }),
      change('update', { id: 5, v: 9 }, { id: 4, v: 0 }, { match: 'enter' }),
      // Into the key that row 3 has left; and a row that never was here goes from it to where another one is.
      change('update', { id: 3, v: 7 }, { id: 6, v: 0 }, { match: 'enter' }),
      change('insert', { id: 8, v: 3 }, undefined, { match: 'enter' }))
  ))

  const { feed, told } = follow(t, fake.url)
  await until('the commit', feed, () => told.commits.length === 1)

  assert.deepEqual([...feed.rows.values()], [{ id: 1, v: 4 }, { id: 5, v: 9 }, { id: 3, v: 7 }, { id: 8, v: 3 }])
  assert.deepEqual(told.rows[1].keys.get('public.t'), new Set([1, 2, 3, 5, 8]))
})

test('commits that shuffle keys at random end with the rows that the table has', async t => {
  const seed = Number(process.env.SEED ?? 1 + Date.now() % 1e6)
  t.diagnostic(`SEED=${seed}`)
  let state = seed
  const random = below => (state = (state * 48271) % 0x7fffffff) % below
  // Few keys and values, so that rows meet, and look alike.
  const table = []
  const frames = [ready('e.0.n')]
  const expected = []
  while (frames.length <= 500) {
    const changes = []
    const twice = () => table.some((row, at) => table.findIndex(other => other.id === row.id) !== at)
    for (let left = 1 + random(6); left > 0 || twice(); left--) {
      const at = random(table.length + 1)
      const old = table[at]
      const now = { id: random(6), v: random(2) }
      if (!old || (random(4) === 0 && left > 0)) {
        table.push(now)
        changes.push(change('insert', now))
      } else if (random(3) === 0) {
        table.splice(at, 1)
        changes.push(change('delete', undefined, old))
      } else {
        table[at] = now
        changes.push(change('update', now, old))
      }
    }
    frames.push(commit(`e.${frames.length - 1}.n`, `e.${frames.length}.n`, ...changes))
    expected.push(table.map(({ id, v }) => `${id}=${v}`).sort())
  }
  const fake = await Fake.start(t, fake => fake.say(...frames))

  const { feed, told } = follow(t, fake.url)
  const seen = []
  feed.on('commit', () => seen.push([...feed.rows].map(([key, { v }]) => `${key}=${v}`).sort()))
  await until('all of them', feed, () => told.commits.length === expected.length)

  assert.deepEqual(seen, expected)
})

test('a very long string beside a long number is read', async t => {
  const text = '"\\\n'.repeat(3_000_000)
  const page = JSON.stringify(rows({ id: 0, text })).replace('"id":0', '"id":12345678901234567890')
  const fake = await Fake.start(t, (fake, socket) => {
    socket.send(page)
    fake.say(ready('e.1.n'))
  })

  const { feed } = follow(t, fake.url)
  await feed.ready

  assert.ok(feed.rows.get(12345678901234567890n).text === text)
})

for (const code of [1002, 1007, 1008, 1009, 4400, 4401, 4403, 4410]) {
  test(`close code ${code} is the end`, async t => {
    const fake = await Fake.start(t, (fake, socket) => {
      fake.say({ type: 'error', code: 'why', message: 'because' })
      socket.close(code, 'stop')
    })

    const { feed, told } = follow(t, fake.url)
    await assert.rejects(feed.ready, { message: 'because', code: 'why', final: true })

    assert.deepEqual([feed.state, told.errors.length, fake.asked.length], ['closed', 1, 1])
  })
}

for (const code of [1000, 1001, 1011, 4408, 4429]) {
  test(`after close code ${code} it comes back`, async t => {
    const fake = await Fake.start(t, (fake, socket) => socket.close(code), fake => fake.say(ready('e.1.n')))

    const { feed, told } = follow(t, fake.url)
    await feed.ready

    assert.deepEqual([fake.asked.length, told.errors], [2, []])
  })
}

test('an error frame before a close that is not the end is told', async t => {
  const fake = await Fake.start(t,
    (fake, socket) => {
      fake.say({ type: 'error', code: 'failed', message: 'because' })
      socket.close(1011)
    },
    fake => fake.say(ready('e.1.n'))
  )

  const { feed, told } = follow(t, fake.url)
  await feed.ready

  assert.deepEqual(told.errors.map(({ code, message, final }) => [code, message, final]), [['failed', 'because', false]])
})

test('another protocol is the end', async t => {
  const fake = await Fake.start(t, fake => fake.say({ ...HELLO, protocol: 2 }))
  const { feed, told } = follow(t, fake.url)

  // The fake says hello with protocol 1 first; a gateway says it once.
  await assert.rejects(feed.ready, { code: 'protocol', final: true })

  assert.equal(feed.state, 'closed')
  assert.equal(told.errors.length, 1)
})

test('a gateway without its database makes the feed stale', async t => {
  const status = database => ({ type: 'status', database })
  const fake = await Fake.start(t, fake => fake.say(
    status('down'), status('up'), ready('e.1.n'), status('down'), commit('e.1.n', 'e.2.n', change('insert', { id: 1 })), status('up')
  ))

  const { feed, told } = follow(t, fake.url)
  await until('all of it', feed, () => told.states.length === 6)

  assert.deepEqual(told.states, ['loading', 'stale', 'loading', 'live', 'stale', 'live'])
})

test('a listener that throws is reported and hinders nobody; one that was taken off is not heard', async t => {
  const fake = await Fake.start(t, fake => fake.say(ready('e.1.n'), commit('e.1.n', 'e.2.n', change('insert', { id: 1 }))))
  const reported = []
  t.mock.method(console, 'error', error => reported.push(error.message))

  const feed = connect(fake.url, { WebSocket })
  t.after(() => feed.close())
  const heard = []
  const off = feed.on('commit', () => heard.push('off'))
  off()
  feed.on('commit', () => { throw new Error('mine') })
  feed.on('commit', () => heard.push('on'))
  await until('the commit', feed, () => heard.length)

  assert.deepEqual([heard, reported], [['on'], ['mine']])
})

test('a word that does not exist is a TypeError that names the nearest one', () => {
  class Never { constructor() { throw new Error('it connects') } }
  for (const [options, says] of [
    [{ tabel: 'switch' }, 'there is no option "tabel"; did you mean table? There are table, where, columns, from, WebSocket, backoff, parse'],
    [{ tables: ['switch'] }, 'did you mean table?'],
    [{ table: 'switch', filter: 'id=eq.1' }, 'did you mean where?'],
    [{ table: 'switch', wher: undefined }, 'did you mean where?'],
    [{ websocket: Never }, 'did you mean WebSocket?'],
    [{ cursor: 'e.1.n' }, 'did you mean from?'],
    [{ backoff: { first: 100 } }, 'there is no option of backoff "first"; did you mean first_ms? There are first_ms, most_ms']
  ]) {
    const because = error => error instanceof TypeError && error.message.includes(says)
    assert.throws(() => connect('http://127.0.0.1:1', { WebSocket: Never, ...options }), because, says)
  }
  const feed = connect('http://127.0.0.1:1', { WebSocket: class { close() {} } })
  try {
    for (const event of ['comit', 'Rows', 'message', undefined]) {
      assert.throws(() => feed.on(event, () => {}), error => error instanceof TypeError && /did you mean \w+\? There are commit, change,/.test(error.message))
    }
    assert.throws(() => feed.on('commits', () => {}), /there is no event "commits"; did you mean commit\?/)
  } finally {
    feed.close()
  }
})

test('an error that nobody listens to goes to the console', async t => {
  const fake = await Fake.start(t, (_, socket) => socket.close(4403, 'stop'))
  const reported = []
  t.mock.method(console, 'error', error => reported.push([error.code, error.message]))

  const feed = connect(fake.url, { WebSocket })
  await assert.rejects(feed.ready)

  assert.deepEqual(reported, [['4403', 'stop']])
})

test('a feed that is closed by a listener is closed at once', async t => {
  const fake = await Fake.start(t, fake => fake.say(ready('e.1.n'), commit('e.1.n', 'e.2.n', change('insert', { id: 1 }))))

  const { feed, told } = follow(t, fake.url)
  feed.on('frame', ({ type }) => { if (type === 'commit') feed.close() })
  await until('the end', feed, () => feed.state === 'closed')

  assert.deepEqual([told.commits, feed.rows.size, feed.cursor], [[], 0, 'e.1.n'])
  const unready = follow(t, fake.url).feed
  unready.close()
  await assert.rejects(unready.ready, /closed/)
})

test('the wait between attempts doubles, has a bound, and is drawn at random below it', t => {
  const waits = []
  const sockets = []
  class NeverOpens {
    constructor() { sockets.push(this) }
    close() {}
  }
  t.mock.method(globalThis, 'fetch', async () => { throw new Error('out of reach') })
  t.mock.method(globalThis, 'clearTimeout', () => {})
  let due
  t.mock.method(globalThis, 'setTimeout', (call, ms) => { due = { call, ms } })
  t.mock.method(Date, 'now', () => 1e12)
  for (const random of [1, 0.25]) {
    t.mock.method(Math, 'random', () => random)
    const feed = connect('ws://nowhere', { WebSocket: NeverOpens, backoff: { first_ms: 100, most_ms: 1000 } })
    for (let attempt = 0; attempt < 6; attempt++) {
      sockets.at(-1).onclose({ code: 1006, reason: '' })
      waits.push(due.ms)
      assert.deepEqual([feed.state, feed.retryAt], ['waiting', 1e12 + due.ms])
      due.call()
      assert.deepEqual([feed.state, feed.retryAt], ['connecting', null])
    }
    sockets.at(-1).onclose({ code: 1006, reason: '' })
    feed.close()
    assert.deepEqual([feed.state, feed.retryAt], ['closed', null])
  }

  assert.deepEqual(waits, [100, 200, 400, 800, 1000, 1000, 25, 50, 100, 200, 250, 250])
  assert.equal(sockets.length, 14)
})

test('a socket that was given up is not heard, even while the next one is there', async t => {
  const sockets = []
  class Silent {
    constructor() { sockets.push(this) }
    close() {}
    says(...frames) { for (const frame of frames) this.onmessage({ data: JSON.stringify(frame) }) }
  }
  const { feed, told } = follow(t, 'ws://nowhere', { WebSocket: Silent, backoff: { first_ms: 1 } })
  const [first] = sockets
  first.onopen()
  first.says(HELLO, ready('e.1.n'), commit('e.0.n', 'e.2.n'))
  await until('the next', feed, () => sockets.length === 2)

  first.says(commit('e.1.n', 'e.2.n', change('insert', { id: 1 })))
  first.onclose({ code: 4403, reason: '' })

  assert.deepEqual([feed.state, feed.cursor, told.commits, told.errors.length], ['connecting', 'e.1.n', [], 1])
})

test('keys do not collide', () => {
  const keys = [{ a: 1 }, { a: '1' }, { a: 1n }, { a: null }, { a: true }, { a: [1] }, { a: 1, b: 2 }, { a: '1', b: 2 }, { a: 1n, b: 2 }]

  assert.equal(new Set(keys.map(keyOf)).size, keys.length)
  assert.equal(keyOf({ b: 1, a: 2 }), keyOf({ a: 2, b: 1 }))
  assert.notEqual(keyOf({ b: 2, a: 1 }), keyOf({ a: 2, b: 1 }))
})
