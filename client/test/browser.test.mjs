// The client in Chromium: a page of another origin imports the module from the gateway, and talks to it over a network that can be cut.

import assert from 'node:assert/strict'
import { createServer } from 'node:http'
import { after, before } from 'node:test'

import { Gateway, Proxy, require, test } from './harness.mjs'

const { chromium } = require('playwright-core')
const FLAGS = ['--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
  '--disable-component-update', '--disable-sync', '--host-resolver-rules=MAP elsewhere.example 127.0.0.1']
const RETAIN_COMMITS_MAX = 20
/** Longer than the tests' patience: who comes back earlier was woken. */
const LONG = { first_ms: 600_000, most_ms: 600_000 }

let gateway
let site
let browser
before(async () => {
  gateway = await Gateway.start('--retain-commits-max', String(RETAIN_COMMITS_MAX))
  site = createServer((_, answer) => answer.setHeader('content-type', 'text/html').end('<!doctype html><title>A page</title>'))
  await new Promise(resolve => site.listen(0, '127.0.0.1', resolve))
  browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium', args: FLAGS, chromiumSandbox: false })
})
after(async () => {
  await browser?.close()
  site?.close()
  await gateway?.stop()
})

/** A page that follows a table, through a proxy of its own. Its `feed` and what it `told` are global there. */
async function open(t, table, options = {}) {
  const proxy = await Proxy.to(gateway.port)
  const context = await browser.newContext()
  t.after(async () => {
    await context.close()
    proxy.stop()
  })
  const page = await context.newPage()
  await page.goto(`http://127.0.0.1:${site.address().port}/`)
  await page.evaluate(async ([module, url, options]) => {
    const { connect } = await import(module)
    // The wait is drawn from 0 to its bound: let it be the bound.
    Math.random = () => 1
    window.told = { states: [], errors: [], resets: [], whole: 0, commits: 0 }
    window.feed = connect(url, options)
    feed.on('state', state => told.states.push(state))
    feed.on('error', ({ code }) => told.errors.push(code))
    feed.on('reset', ({ reason }) => told.resets.push(reason))
    feed.on('commit', () => told.commits++)
    feed.on('rows', ({ whole }) => { told.whole += whole })
    await feed.ready
  }, [`${gateway.url}/client.js`, proxy.url, { table, backoff: { first_ms: 50, most_ms: 500 }, ...options }])
  return { page, context, proxy }
}

const state = (page, wanted) => page.waitForFunction(wanted => feed.state === wanted, wanted)
const asSelected = async (page, table) => {
  const wanted = JSON.stringify(await gateway.select(table))
  const same = wanted => JSON.stringify([...feed.rows.values()].sort((one, other) => one.id - other.id)) === wanted
  await page.waitForFunction(same, wanted)
}
const told = page => page.evaluate(() => told)

test('a page has the rows, and each change as it comes', async t => {
  await gateway.table('live', 'id int primary key, v text', `insert into live values (1, 'one'), (2, 'two')`)
  const { page } = await open(t, 'live')
  await asSelected(page, 'live')

  await gateway.sql(`update live set v = 'ONE' where id = 1`, 'update live set id = 3 where id = 2', 'truncate live', `insert into live values (9, 'nine')`)
  await asSelected(page, 'live')

  const { commits, whole, errors, states } = await told(page)
  assert.deepEqual({ commits, whole, errors, states }, { commits: 4, whole: 1, errors: [], states: ['loading', 'live'] })
})

test('a page that was offline comes back as soon as it is online', async t => {
  await gateway.table('offline', 'id int primary key', 'insert into offline values (1)')
  const { page, context, proxy } = await open(t, 'offline', { backoff: { ...LONG, first_ms: 1 } })

  // An open WebSocket does not notice the former.
  await context.setOffline(true)
  proxy.cut()
  await state(page, 'waiting')
  await gateway.sql('insert into offline values (2)')
  proxy.mend()
  await context.setOffline(false)
  await asSelected(page, 'offline')

  const { commits, whole, resets, states } = await told(page)
  assert.deepEqual({ commits, whole, resets }, { commits: 1, whole: 1, resets: [] })
  // One attempt: none was made while it was offline.
  assert.deepEqual(states, ['loading', 'live', 'waiting', 'connecting', 'loading', 'live'])
})

test('a page that is looked at again does not wait', async t => {
  await gateway.table('hidden', 'id int primary key')
  const { page, proxy } = await open(t, 'hidden', { backoff: LONG })
  proxy.cut()
  await state(page, 'waiting')
  await gateway.sql('insert into hidden values (1)')
  proxy.mend()

  await page.evaluate(() => document.dispatchEvent(new Event('visibilitychange')))
  await asSelected(page, 'hidden')

  assert.deepEqual((await told(page)).states, ['loading', 'live', 'waiting', 'connecting', 'loading', 'live'])
})

test('a gateway that is killed and comes back is resumed', async t => {
  await gateway.table('killed', 'id int primary key, v int', 'insert into killed values (1, 0)')
  const { page } = await open(t, 'killed')

  await gateway.kill()
  await state(page, 'waiting')
  await gateway.restart()
  await gateway.sql('update killed set v = 1', 'insert into killed values (2, 2)')
  await asSelected(page, 'killed')

  const { commits, whole, errors, resets } = await told(page)
  assert.deepEqual({ commits, whole, errors, resets }, { commits: 2, whole: 1, errors: [], resets: [] })
})

test('a page that was away for too long reads the rows afresh, once', async t => {
  await gateway.table('expired', 'id int primary key, v int', 'insert into expired values (1, 0), (2, 0)')
  const { page, proxy } = await open(t, 'expired')
  const probe = await open(t, 'expired')
  const cursor = await page.evaluate(() => feed.cursor)
  proxy.cut()
  await state(page, 'waiting')

  await gateway.sql('delete from expired where id = 1', ...Array(2 * RETAIN_COMMITS_MAX).fill('update expired set v = v + 1'))
  for (let trimmed = false; !trimmed;) {
    await gateway.sql('update expired set v = v', 'update expired set v = v')
    trimmed = await probe.page.evaluate(async ([module, url, from]) => {
      const feed = (await import(module)).connect(url, { table: 'expired', from })
      let resets = 0
      feed.on('reset', () => resets++)
      await feed.ready
      feed.close()
      return resets > 0
    }, [`${gateway.url}/client.js`, gateway.url, cursor])
  }
  assert.equal(await page.evaluate(() => feed.rows.get(1).v), 0)
  proxy.mend()
  await asSelected(page, 'expired')

  const { whole, resets } = await told(page)
  assert.deepEqual({ whole, resets }, { whole: 2, resets: ['expired'] })
})

test('with a filter and columns a page has what fits, as it comes and goes, and hears when the filter no longer can be', async t => {
  await gateway.table('filtered', 'id int primary key, level int, v text, w int', `insert into filtered values (1, 1, 'one', 0), (2, 5, 'two', 0)`)
  const { page } = await open(t, 'filtered', { where: 'level.gte.5', columns: ['v', 'level'] })
  const has = async wanted => page.waitForFunction(wanted => JSON.stringify([...feed.rows.values()]) === wanted, JSON.stringify(wanted))
  await has([{ id: 2, level: 5, v: 'two' }])

  await gateway.sql('update filtered set level = 5 where id = 1', 'update filtered set id = 20 where id = 2')
  await has([{ id: 1, level: 5, v: 'one' }, { id: 20, level: 5, v: 'two' }])
  await gateway.sql('update filtered set id = 10, level = 0 where id = 1')
  await has([{ id: 20, level: 5, v: 'two' }])
  await gateway.sql('truncate filtered')
  await has([])
  await gateway.sql(`insert into filtered values (3, 6, 'three', 0)`)
  await has([{ id: 3, level: 6, v: 'three' }])

  await gateway.sql('alter table filtered rename level to height')
  await state(page, 'closed')
  const { commits, whole, errors, resets } = await told(page)
  assert.deepEqual({ commits, whole, errors, resets }, { commits: 5, whole: 1, errors: ['bad_request'], resets: [] })
})

test('a page whose table gets another column name swaps to the new rows', async t => {
  await gateway.table('renamed', 'id int primary key, v int', 'insert into renamed values (1, 5)')
  const { page } = await open(t, 'renamed')

  await gateway.sql('alter table renamed rename v to level', 'update renamed set level = 6')
  await asSelected(page, 'renamed')
  await page.waitForFunction(() => told.resets.length === 1)

  const { whole, errors, resets } = await told(page)
  assert.deepEqual({ whole, errors, resets }, { whole: 2, errors: [], resets: ['schema'] })
})

test('on a page of the gateway an address may be relative', async t => {
  await gateway.table('relative', 'id int primary key', 'insert into relative values (7)')
  const page = await browser.newPage()
  t.after(() => page.close())
  // The live page lets no other script run.
  await page.goto(`${gateway.url}/healthz`)

  const keys = await page.evaluate(async () => {
    const { connect } = await import('/client.js')
    const feed = await connect('/', { table: 'relative' }).ready
    return [...feed.rows.keys()]
  })

  assert.deepEqual(keys, [7])
})

test('a page of an origin that is not let in is told so', async t => {
  const page = await browser.newPage()
  t.after(() => page.close())
  await page.goto(`http://elsewhere.example:${site.address().port}/`)

  const error = await page.evaluate(async ([module, url]) => {
    const { connect } = await import(module)
    return connect(url).ready.catch(({ code, message }) => ({ code, message }))
  }, [`${gateway.url}/client.js`, gateway.url])

  assert.equal(error.code, 'origin')
  assert.match(error.message, /--origins/)
})
