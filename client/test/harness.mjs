// What the tests stand on: a real gateway with a real PostgreSQL, a network that can be cut, a gateway that says what it is told to,
// and waiting for facts.

import { execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import { chmod, mkdtemp, readFile, rm } from 'node:fs/promises'
import { createRequire } from 'node:module'
import net from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import * as runner from 'node:test'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'

import { connect } from '../client.js'

/** Packages that the tests need are installed outside the tree; `run` says where. */
const required = createRequire(`${process.env.CLIENT_TEST_MODULES ?? process.cwd()}/`)
export const require = name => required(name)

const { WebSocketServer } = require('ws')
/** Node's own, if it has one. */
export const WebSocket = globalThis.WebSocket ?? require('ws').WebSocket
const PROGRAM = process.env.SWITCHBOARD_BIN ?? fileURLToPath(new URL('../../target/debug/switchboard', import.meta.url))
/** How long a fact may take until it counts as not coming. */
const PATIENCE_MS = 30_000
const run = promisify(execFile)

/** A test that cannot hang. */
export const test = (promise, body) => runner.test(promise, { timeout: 2 * PATIENCE_MS }, body)

/** A promise with a limit, which says what was waited for. */
export async function soon(what, promise) {
  let timer
  const limit = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`${what} did not come within ${PATIENCE_MS} ms`)), PATIENCE_MS)
  })
  try {
    return await Promise.race([promise, limit])
  } finally {
    clearTimeout(timer)
  }
}

/** Waits until `holds`, which is asked again whenever the feed tells something. */
export function until(what, feed, holds) {
  const events = ['rows', 'state', 'error', 'commit', 'ready', 'frame']
  return soon(what, new Promise((resolve, reject) => {
    const ask = () => {
      try {
        if (!holds()) return
        resolve()
      } catch (error) {
        reject(error)
      }
      for (const off of offs) off()
    }
    // After the feed has dealt with the news, of which `frame` is told before.
    const offs = events.map(event => feed.on(event, () => queueMicrotask(ask)))
    ask()
  }))
}

/** A feed that is closed when the test ends. What it told is in `told`. */
export function follow(t, url, options = {}) {
  const feed = connect(url, { WebSocket, backoff: { first_ms: 50, most_ms: 500 }, ...options })
  const told = { commits: [], changes: [], rows: [], states: [], errors: [], resets: [], frames: [], order: [] }
  const names = { commit: 'commits', change: 'changes', rows: 'rows', state: 'states', error: 'errors', reset: 'resets', frame: 'frames' }
  for (const event in names) {
    feed.on(event, news => {
      told[names[event]].push(news)
      if (event !== 'frame' && event !== 'state') told.order.push(event)
    })
  }
  feed.on('ready', () => told.order.push('ready'))
  t.after(() => feed.close())
  return { feed, told }
}

/** `switchboard dev` in a folder of its own. */
export class Gateway {
  static async start(...options) {
    const gateway = new Gateway()
    gateway.options = options
    gateway.data = await mkdtemp(join(tmpdir(), 'switchboard-client-'))
    // As root, `dev` runs PostgreSQL as another user, which has to be let in.
    await chmod(gateway.data, 0o755)
    gateway.port = 0
    await gateway.restart()
    // It accepts connections before it has its PostgreSQL.
    const first = connect(gateway.url, { WebSocket, from: 'now' })
    await soon('the database', first.ready)
    first.close()
    return gateway
  }

  async restart() {
    const args = ['dev', '--listen', `127.0.0.1:${this.port}`, '--data', join(this.data, 'data'), ...this.options]
    const child = this.child = spawn(PROGRAM, args, { stdio: ['ignore', 'pipe', 'pipe'] })
    let out = ''
    let err = ''
    const both = new Promise((resolve, reject) => {
      const look = () => /listening on/.test(out) && /Stop /.test(err) && resolve()
      child.stdout.on('data', text => { out += text; look() })
      child.stderr.on('data', text => { err += text; look() })
      child.on('error', reject)
      child.on('exit', code => reject(new Error(`the gateway ended with ${code}: ${err}`)))
    })
    await soon('the gateway', both)
    this.port = Number(/http:\/\/127\.0\.0\.1:(\d+)/.exec(out)[1])
    this.url = `http://127.0.0.1:${this.port}`
    ;[, this.psql, this.database] = /Try +(\S+) (\S+) -c/.exec(err)
  }

  async kill() {
    const gone = once(this.child, 'exit')
    this.child.kill('SIGKILL')
    await soon('the end of the gateway', gone)
  }

  async stop() {
    if (this.child.exitCode === null && this.child.signalCode === null) {
      const gone = once(this.child, 'exit')
      this.child.kill('SIGTERM')
      await soon('the end of the gateway', gone)
    }
    await rm(this.data, { recursive: true, force: true })
  }

  /** Runs statements, each in a transaction of its own, and returns what they print. */
  async sql(...statements) {
    const { stdout } = await run(this.psql, ['-XqAt', '-v', 'ON_ERROR_STOP=1', ...statements.flatMap(text => ['-c', text]), this.database])
    return stdout.trim()
  }

  /**
   * Takes PostgreSQL away from the gateway: its sessions are ended, and nobody gets a new one until the function that this returns is
   * called. The statements are run meanwhile, by a session from before.
   */
  async withoutDatabase(...statements) {
    const [pid] = (await readFile(join(this.data, 'data', 'data', 'postmaster.pid'), 'utf8')).split('\n')
    const end = `select count(pg_terminate_backend(pid)) from pg_stat_activity where application_name = 'switchboard'`
    const giveBack = () => process.kill(Number(pid), 'SIGCONT')
    try {
      await this.sql(`\\! kill -STOP ${pid}`, end, ...statements)
    } catch (error) {
      giveBack()
      throw error
    }
    return giveBack
  }

  /** A watched table. */
  async table(name, columns, ...more) {
    await this.sql(`create table ${name} (${columns})`, `select switchboard.watch('${name}')`, ...more)
  }

  /** What `select` says, in the order of the first column. */
  async select(table) {
    return JSON.parse(await this.sql(`select coalesce(json_agg(t order by 1), '[]') from (select * from ${table} order by 1) as t`))
  }
}

/** A connection in between, which can be cut and frozen. */
export class Proxy {
  static async to(port) {
    const proxy = new Proxy()
    proxy.pairs = new Set()
    proxy.isCut = false
    proxy.server = net.createServer(near => {
      if (proxy.isCut) return near.destroy()
      const far = net.connect(port, '127.0.0.1')
      const pair = [near, far]
      proxy.pairs.add(pair)
      near.pipe(far)
      far.pipe(near)
      for (const socket of pair) {
        socket.on('error', () => {})
        socket.on('close', () => {
          proxy.pairs.delete(pair)
          for (const each of pair) each.destroy()
        })
      }
    })
    proxy.server.listen(0, '127.0.0.1')
    await once(proxy.server, 'listening')
    proxy.url = `http://127.0.0.1:${proxy.server.address().port}`
    return proxy
  }

  /** Ends what is open, and lets nothing through until `mend`. */
  cut() {
    this.isCut = true
    for (const pair of this.pairs) for (const socket of pair) socket.destroy()
  }

  mend() { this.isCut = false }

  /** Swallows everything on the connections that are open, without a word. */
  freeze() {
    for (const [near, far] of this.pairs) {
      far.unpipe(near)
      far.resume()
      near.unpipe(far)
      near.resume()
    }
  }

  stop() {
    this.cut()
    this.server.close()
  }
}

/** A gateway that plays one part for each connection; the last one again when there are more. */
export class Fake {
  static async start(t, ...parts) {
    const fake = new Fake()
    /** The parameters of each connection. */
    fake.asked = []
    fake.server = new WebSocketServer({ port: 0, host: '127.0.0.1' })
    fake.server.on('connection', (socket, request) => {
      const part = parts[Math.min(fake.asked.length, parts.length - 1)]
      fake.asked.push(new URL(request.url, 'ws://x').searchParams)
      fake.socket = socket
      fake.say(HELLO)
      part?.(fake, socket)
    })
    await once(fake.server, 'listening')
    fake.url = `ws://127.0.0.1:${fake.server.address().port}`
    t.after(() => {
      for (const client of fake.server.clients) client.terminate()
      fake.server.close()
    })
    return fake
  }

  say(...frames) { for (const frame of frames) this.socket.send(JSON.stringify(frame)) }

  from() { return this.asked.map(parameters => parameters.get('from')) }
}

export const HELLO = { type: 'hello', protocol: 1, server: 'fake', heartbeat_ms: 60_000 }
export const ready = (cursor, prev) => ({ type: 'ready', cursor, prev })
export const rows = (...rows) => ({ type: 'rows', table: 'public.t', key: ['id'], rows })
export const commit = (prev, cursor, ...changes) => ({ type: 'commit', prev, cursor, tx: '1', at: '2026-01-01T00:00:00Z', changes })
/** A change of table `t`, whose key is `id`. */
export const change = (op, now, old, more) => ({ op, table: 'public.t', key: { id: (now ?? old).id }, new: now, old, ...more })
