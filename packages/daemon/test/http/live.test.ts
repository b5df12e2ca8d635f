/** What only real sockets show: TLS, the UNIX socket, streams that break off, WebSockets, the end. */
import { systemClock } from '@wadah/store/clock'
import { lstat, readFile, writeFile } from 'node:fs/promises'
import http, { type IncomingMessage } from 'node:http'
import https from 'node:https'
import { connect } from 'node:net'
import { join } from 'node:path'
import tls from 'node:tls'
import { fail } from '@wadah/api/fault'
import { put } from '@wadah/store/store'
import { describe, expect, it } from 'vitest'
import { WebSocket } from 'ws'
import { JOB, type LiveServer, liveServer } from './harness.ts'

type Answer = { status: number; headers: http.IncomingHttpHeaders; text: string; json: () => never }
type Ask = { method?: string; headers?: Record<string, string>; body?: string | Buffer; local?: boolean }

function open(server: LiveServer, path: string, o: Ask = {}): http.ClientRequest {
  const headers = { ...(o.local ? {} : { authorization: server.full }), ...o.headers }
  const common = { path, method: o.method ?? 'GET', headers, agent: false as const }
  return o.local
    ? http.request({ ...common, socketPath: server.socketPath })
    : https.request({ ...common, host: '127.0.0.1', port: server.port, ca: server.certificate.cert })
}

async function readAll(response: IncomingMessage): Promise<Answer> {
  const parts: Buffer[] = []
  for await (const part of response) parts.push(part as Buffer)
  const text = Buffer.concat(parts).toString()
  return { status: response.statusCode ?? 0, headers: response.headers, text, json: () => JSON.parse(text) as never }
}

function ask(server: LiveServer, path: string, o: Ask = {}): Promise<Answer> {
  return new Promise((resolve, reject) => {
    const request = open(server, path, o)
    request.once('error', reject)
    request.once('response', (response) => readAll(response).then(resolve, reject))
    request.end(o.body)
  })
}

describe('the sockets', () => {
  it('HTTPS with the certificate that was made; nothing older than TLS 1.2', async () => {
    const server = await liveServer()
    expect((await ask(server, '/v1/ping')).json()).toEqual({ ok: true, version: '0.0.0-test' })
    expect(server.url).toBe(`https://127.0.0.1:${server.port}`)
    const refused = await new Promise<string>((resolve) => {
      const socket = tls.connect({
        host: '127.0.0.1',
        port: server.port,
        minVersion: 'TLSv1',
        maxVersion: 'TLSv1.1',
        rejectUnauthorized: false,
        ciphers: 'DEFAULT@SECLEVEL=0',
      })
      socket.once('error', (error) => resolve(String(error)))
      socket.once('secureConnect', () => resolve('connected'))
    })
    expect(refused).not.toBe('connected')
  })

  it("the UNIX socket needs no login and is its owner's alone; a token shown there counts", async () => {
    const server = await liveServer()
    expect((await lstat(server.socketPath)).mode & 0o777).toBe(0o600)
    expect((await ask(server, '/v1/session', { local: true })).json()).toEqual({ user: 'root', scope: 'full' })
    expect((await ask(server, '/v1/vms/web/start', { local: true, method: 'POST' })).status).toBe(202)
    const headers = { authorization: server.read }
    expect((await ask(server, '/v1/vms/web/start', { local: true, method: 'POST', headers })).status).toBe(403)
    expect((await server.audit.tail(2)).map((e) => [e.subject, e.remote])).toEqual([
      ['token:read', 'socket'],
      ['socket:root', 'socket'],
    ])
  })

  it('a link for an administrator is given over the UNIX socket only', async () => {
    const server = await liveServer()
    expect((await ask(server, '/v1/setup/code', { method: 'POST' })).status).toBe(403)
    const made = await ask(server, '/v1/setup/code', { method: 'POST', local: true })
    expect(made.status).toBe(201)
    const { url, code } = made.json() as { url: string; code: string }
    expect(url).toBe(`${server.url}/setup#${code}`)
    const body = JSON.stringify({ code, user: 'ana', password: 'correct horse' })
    const done = await ask(server, '/v1/setup', {
      method: 'POST',
      body,
      headers: { authorization: '', 'content-type': 'application/json' },
    })
    expect(done.status).toBe(200)
    expect(done.headers['set-cookie']?.[0]).toMatch(
      /^__Host-wadah=[\w-]{43}; Max-Age=86400; Path=\/; HttpOnly; Secure; SameSite=Strict$/,
    )
    expect(await server.setupLink()).toMatch(/\/setup#[\w-]{32}$/)
  })

  it('a port in use, a live socket and a file in the way are said', async () => {
    const server = await liveServer()
    await expect(liveServer({ listen: { port: server.port } })).rejects.toMatchObject({ fault: { code: 'port_taken' } })
    const socket = { path: server.socketPath, group: 'x' }
    await expect(liveServer({ listen: { socket } })).rejects.toMatchObject({
      fault: { code: 'in_use', detail: expect.stringContaining('Another wadahd') },
    })
    const path = join(server.directory, 'file')
    await writeFile(path, 'precious')
    await expect(liveServer({ listen: { socket: { path, group: 'x' } } })).rejects.toMatchObject({
      fault: { code: 'in_use' },
    })
    expect(await readFile(path, 'utf8')).toBe('precious')
  })

  it('what is no HTTP is refused in words', async () => {
    const server = await liveServer()
    const say = (text: string) =>
      new Promise<string>((resolve) => {
        let got = ''
        const socket = connect(server.socketPath, () => socket.write(text))
        socket.on('data', (d) => {
          got += d
        })
        socket.once('close', () => resolve(got))
        socket.once('error', () => resolve(got))
      })
    expect(await say('nonsense\r\n\r\n')).toMatch(/^HTTP\/1\.1 400 .*application\/problem\+json.*not HTTP/s)
    expect(await say(`GET / HTTP/1.1\r\nX: ${'x'.repeat(20_000)}\r\n\r\n`)).toContain('larger than 16 KiB')
    expect(
      await say('POST /v1/login HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n'),
    ).toMatch(/^HTTP\/1\.1 400/)
  })
})

describe('limits', () => {
  it('one source has only so many requests under way', async () => {
    let release = () => {}
    const held = new Promise<never>((_, reject) => {
      release = () => reject(fail('unavailable', 'over'))
    })
    held.catch(() => undefined)
    const server = await liveServer({
      overrides: { 'host.get': () => held },
      options: { limits: { requestsPerSource: 3 } },
    })
    const waiting = [1, 2, 3].map(() => ask(server, '/v1/host'))
    await expect.poll(() => server.calls.length).toBe(3)
    expect((await ask(server, '/v1/ping')).json()).toMatchObject({ code: 'rate_limited' })
    expect((await ask(server, '/v1/session', { local: true })).status).toBe(200)
    release()
    expect((await Promise.all(waiting)).map((a) => a.status)).toEqual([503, 503, 503])
    await expect.poll(async () => (await ask(server, '/v1/ping')).status).toBe(200)
  })
})

describe('streams', () => {
  it('an upload goes through piece by piece, with no more in memory than is taken', async () => {
    let taken = 0
    let go = () => {}
    const started = new Promise<void>((resolve) => {
      go = resolve
    })
    const server = await liveServer({
      overrides: {
        'images.upload': async (...args: unknown[]) => {
          await started
          for await (const piece of args[3] as AsyncIterable<Uint8Array>) taken += piece.length
        },
      },
    })
    const request = open(server, '/v1/images/tiny/files/kernel', {
      method: 'PUT',
      headers: { 'content-type': 'application/octet-stream' },
    })
    const answered = new Promise<Answer>((resolve, reject) => {
      request.once('response', (r) => readAll(r).then(resolve, reject)).once('error', reject)
    })
    const piece = Buffer.alloc(64 * 1024)
    let sent = 0
    // Nothing takes it: the sockets fill up and stop us long before 64 MiB.
    const stuck = () =>
      new Promise<boolean>((resolve) => {
        request.once('drain', () => resolve(false))
        setTimeout(() => resolve(true), 300)
      })
    do sent += piece.length
    while (sent < 64 * 1024 * 1024 && (request.write(piece) || !(await stuck())))
    expect(sent).toBeLessThan(64 * 1024 * 1024)
    go()
    request.end()
    expect((await answered).status).toBe(204)
    expect(taken).toBe(sent)
  })

  it('an upload that is too large is refused at its head, or where it goes over', async () => {
    const server = await liveServer({ overrides: {} })
    const type = { 'content-type': 'application/octet-stream' }
    const request = open(server, '/v1/images/tiny/files/kernel', {
      method: 'PUT',
      headers: { ...type, 'content-length': String(64 * 1024 ** 3) },
    })
    const answer = await new Promise<Answer>((resolve, reject) => {
      request.once('response', (r) => readAll(r).then(resolve, reject)).once('error', reject)
      request.flushHeaders()
    })
    request.destroy()
    expect(answer.json()).toMatchObject({ code: 'too_large' })
    expect(server.calls).toEqual([])
  })

  it('an upload that breaks off is an error to who takes it', async () => {
    let seen: unknown
    const server = await liveServer({
      overrides: {
        'vms.writeFile': async (...args: unknown[]) => {
          try {
            for await (const _ of args[3] as AsyncIterable<Uint8Array>);
          } catch (error) {
            seen = error
            throw error
          }
        },
      },
    })
    const request = open(server, '/v1/vms/web/file?path=/x', {
      method: 'PUT',
      headers: { 'content-type': 'application/octet-stream', 'content-length': '1000' },
    })
    request.on('error', () => undefined)
    request.write('some')
    await expect.poll(() => server.calls.length).toBe(1)
    request.destroy()
    await expect.poll(() => seen).toMatchObject({ fault: { code: 'malformed' } })
    expect(server.calls[0]?.args[4]).toMatchObject({ aborted: true })
  })

  it('a download stops being read when the client goes, and waits for a slow one', async () => {
    let given = 0
    let ended = false
    const server = await liveServer({
      overrides: {
        'vms.readFile': async function* () {
          try {
            for (;;) {
              given += 65_536
              yield Buffer.alloc(65_536)
            }
          } finally {
            ended = true
          }
        },
      },
    })
    const request = open(server, '/v1/vms/web/file?path=/x')
    const response = await new Promise<IncomingMessage>((resolve, reject) => {
      request.once('response', resolve).once('error', reject).end()
    })
    expect(response.headers['content-type']).toBe('application/octet-stream')
    // What the sockets hold is read at once, or a little later on a busy machine; then no more.
    let before = -1
    const isStill = () => given === before || ((before = given), false)
    await expect.poll(isStill, { interval: 300, timeout: 10_000 }).toBe(true)
    expect(given).toBeLessThan(64 * 1024 * 1024)
    response.destroy()
    await expect.poll(() => ended).toBe(true)
  })

  it('a download that fails at its start is an error answer, later a broken connection', async () => {
    let good = 0
    const server = await liveServer({
      overrides: {
        'vms.readFile': async function* () {
          for (let n = 0; n < good; n++) yield Buffer.alloc(1000)
          throw fail('agent_silent', 'The guest agent does not answer.')
        },
      },
    })
    expect((await ask(server, '/v1/vms/web/file?path=/x')).json()).toMatchObject({ code: 'agent_silent' })
    good = 3
    await expect(ask(server, '/v1/vms/web/file?path=/x')).rejects.toThrow(/aborted|ECONNRESET/)
  })

  it('events come over the wire', async () => {
    const server = await liveServer()
    const request = open(server, '/v1/events?resource=vm')
    const response = await new Promise<IncomingMessage>((resolve, reject) => {
      request.once('response', resolve).once('error', reject).end()
    })
    expect(response.headers['content-type']).toBe('text/event-stream')
    let text = ''
    response.on('data', (d: Buffer) => {
      text += d.toString()
    })
    response.on('error', () => undefined)
    await expect.poll(() => text).toContain('retry:')
    await server.store.txn([], [put({ name: 'vm' }, 'vm-1', 1)], 'one')
    await expect.poll(() => text).toContain('"resource_id":"vm-1"')
    response.destroy()
  })
})

describe('consoles', () => {
  /** A serial port that says hello and then everything it is told, in capitals. */
  function echo() {
    let wake = () => {}
    const queue: Uint8Array[] = [Buffer.from('hello')]
    const state = { closed: false, ended: false, opened: 0 }
    const stream = () => {
      state.opened += 1
      return Promise.resolve({
        data: (async function* () {
          while (!state.closed && !state.ended) {
            const next = queue.shift()
            if (next) yield next
            else
              await new Promise<void>((resolve) => {
                wake = resolve
              })
          }
        })(),
        write(data: Uint8Array) {
          queue.push(Buffer.from(Buffer.from(data).toString().toUpperCase()))
          wake()
        },
        close() {
          state.closed = true
          wake()
        },
      })
    }
    return { stream, state, end: () => ((state.ended = true), wake()) }
  }
  const ticketOf = async (server: LiveServer, authorization = server.full) => {
    const headers = { 'content-type': 'application/json', authorization }
    const answer = await ask(server, '/v1/vms/web/console', { method: 'POST', body: '{"kind":"serial"}', headers })
    return (answer.json() as { path: string }).path
  }
  const dial = (server: LiveServer, path: string, headers: Record<string, string> = {}) => {
    const ws = new WebSocket(`wss://127.0.0.1:${server.port}${path}`, { ca: server.certificate.cert, headers })
    const got: string[] = []
    ws.on('message', (data: Buffer, binary) => got.push(`${binary ? 'b' : 't'}:${data.toString()}`))
    const closed = new Promise<[number, string]>((resolve) =>
      ws.once('close', (code, reason) => resolve([code, reason.toString()])),
    )
    const failed = new Promise<string>((resolve) => ws.once('error', (error) => resolve(error.message)))
    return { ws, got, closed, failed }
  }

  it('pass bytes both ways, and end with the console', async () => {
    const serial = echo()
    const server = await liveServer({ overrides: { 'vms.console': serial.stream } })
    const { ws, got, closed } = dial(server, await ticketOf(server))
    await expect.poll(() => got).toEqual(['b:hello'])
    ws.send(Buffer.from('ls\n'))
    await expect.poll(() => got).toEqual(['b:hello', 'b:LS\n'])
    serial.end()
    expect(await closed).toEqual([1000, 'the console ended'])
    expect(server.calls.find((c) => c.name === 'vms.console')?.args).toMatchObject([
      'vm-aaaaaaaaaa',
      { kind: 'serial' },
    ])
  })

  it('let go of the console when the client does', async () => {
    const serial = echo()
    const server = await liveServer({ overrides: { 'vms.console': serial.stream } })
    const { ws, got } = dial(server, await ticketOf(server))
    await expect.poll(() => got.length).toBe(1)
    ws.close()
    await expect.poll(() => serial.state.closed).toBe(true)
  })

  it('open once with a ticket, and not without', async () => {
    const serial = echo()
    const server = await liveServer({ overrides: { 'vms.console': serial.stream } })
    const path = await ticketOf(server)
    const first = dial(server, path)
    await expect.poll(() => first.got.length).toBe(1)
    expect(await dial(server, path).closed).toEqual([4401, 'the ticket is unknown, used or too old'])
    expect((await dial(server, '/v1/console').closed)[0]).toBe(4401)
    expect((await dial(server, '/v1/console?ticket=guess').closed)[0]).toBe(4401)
    expect(serial.state.opened).toBe(1)
    first.ws.close()
  })

  it('do not open with a ticket of a token that was revoked meanwhile', async () => {
    const server = await liveServer({ overrides: { 'vms.console': echo().stream } })
    const path = await ticketOf(server)
    await server.access.deleteToken('full')
    expect((await dial(server, path).closed)[0]).toBe(4401)
  })

  it('refuse other pages, other names and other paths', async () => {
    const server = await liveServer({ overrides: { 'vms.console': echo().stream } })
    const path = await ticketOf(server)
    expect(await dial(server, path, { origin: 'https://evil.example' }).failed).toContain('403')
    expect(await dial(server, path, { host: 'evil.example' }).failed).toContain('403')
    expect(await dial(server, '/v1/elsewhere').failed).toContain('404')
    const ours = dial(server, path, { origin: `https://127.0.0.1:${server.port}` })
    await expect.poll(() => ours.got.length).toBe(1)
    ours.ws.close()
  })

  it('take binary frames of at most 1 MiB', async () => {
    const server = await liveServer({ overrides: { 'vms.console': echo().stream } })
    const text = dial(server, await ticketOf(server))
    await expect.poll(() => text.got.length).toBe(1)
    text.ws.send('text')
    expect(await text.closed).toEqual([1003, 'only binary frames are taken'])
    const other = await liveServer({ overrides: { 'vms.console': echo().stream } })
    const large = dial(other, await ticketOf(other))
    await expect.poll(() => large.got.length).toBe(1)
    large.ws.send(Buffer.alloc(1024 * 1024 + 1))
    expect((await large.closed)[0]).toBe(1009)
  })

  it('are limited, and say why one cannot be opened', async () => {
    const server = await liveServer({
      overrides: { 'vms.console': echo().stream },
      options: { limits: { consolesPerVm: 1 } },
    })
    const first = dial(server, await ticketOf(server))
    await expect.poll(() => first.got.length).toBe(1)
    expect(await dial(server, await ticketOf(server)).closed).toEqual([4429, 'too many consoles are open'])
    first.ws.close()
    const broken = await liveServer({
      overrides: { 'vms.console': () => Promise.reject(fail('wrong_state', 'The VM "web" is stopped.')) },
    })
    expect(await dial(broken, await ticketOf(broken)).closed).toEqual([1011, 'The VM "web" is stopped.'])
  })

  it('read no more from the guest than the client takes, and no more from the client than the guest', async () => {
    let given = 0
    let taken = 0
    const server = await liveServer({
      overrides: {
        'vms.console': () =>
          Promise.resolve({
            data: (async function* () {
              for (;;) {
                given += 65_536
                yield Buffer.alloc(65_536)
              }
            })(),
            write: () => {
              taken += 1
              return new Promise<void>(() => undefined)
            },
            close: () => undefined,
          }),
      },
    })
    const { ws } = dial(server, await ticketOf(server))
    await new Promise((resolve) => ws.once('open', resolve))
    ws.pause()
    for (let n = 0; n < 5; n++) ws.send(Buffer.from('x'))
    // What the sockets hold is read at once, or a little later on a busy machine; then no more.
    let before = -1
    const isStill = () => given === before || ((before = given), false)
    await expect.poll(isStill, { interval: 300, timeout: 10_000 }).toBe(true)
    expect(given).toBeLessThan(64 * 1024 * 1024)
    // The frames of one read are delivered together; after that nothing more is read.
    expect(taken).toBeLessThanOrEqual(5)
    ws.terminate()
  })

  it('say so to a client whose guest takes nothing, and think it alive meanwhile', async () => {
    // A minute of the deadline is half a second here, thirty seconds between pings are 50 ms.
    const short = (ms: number) => (ms === 30_000 ? 50 : ms === 60_000 ? 500 : ms)
    const clock = { ...systemClock, timer: (fn: () => void, ms: number) => systemClock.timer(fn, short(ms)) }
    let taken = 0
    const stream = echo().stream
    const server = await liveServer({
      clock,
      overrides: {
        'vms.console': async () => ({
          ...(await stream()),
          write: () => {
            taken += 1
            return new Promise<void>(() => undefined)
          },
        }),
      },
    })
    const { ws, got, closed } = dial(server, await ticketOf(server))
    await expect.poll(() => got.length).toBe(1)
    const send = setInterval(() => ws.readyState === WebSocket.OPEN && ws.send(Buffer.alloc(65_536)), 10)
    expect(await closed).toEqual([4504, 'the guest took nothing for too long'])
    clearInterval(send)
    // Nothing was given on after the first that waited but what had been read with it.
    expect(taken).toBeLessThanOrEqual(2)
  })
})

it('stops: requests end, streams and consoles are closed, the socket file goes', async () => {
  let finish = () => {}
  const held = new Promise<unknown>((resolve) => {
    finish = () => resolve(JOB)
  })
  const server = await liveServer({ overrides: { 'vms.start': () => held } })
  const events = ask(server, '/v1/events').catch(() => undefined)
  const start = ask(server, '/v1/vms/web/start', { method: 'POST' })
  await expect.poll(() => server.calls.length).toBeGreaterThanOrEqual(2)
  const stopping = server.stop(5000)
  finish()
  expect((await start).status).toBe(202)
  await stopping
  await events
  await expect(ask(server, '/v1/ping')).rejects.toThrow('ECONNREFUSED')
  await expect(lstat(server.socketPath)).rejects.toThrow('ENOENT')
})
