/** Hosts that talk to each other, and those that are none and try. */
import https from 'node:https'
import { once } from 'node:events'
import { type Duplex, PassThrough, type Readable } from 'node:stream'
import tls from 'node:tls'
import { setTimeout as sleep } from 'node:timers/promises'
import { fail } from '@wadah/api/fault'
import type { HostRecord } from '@wadah/cluster/records'
import { beforeAll, expect, onTestFinished, test } from 'vitest'
import type { Certificates } from '../../src/cluster/identity.ts'
import { LENGTH_HEADER, PeerClient, peerFault } from '../../src/peers/client.ts'
import { passSubject } from '../../src/http/passed.ts'
import { bodyText } from '../../src/http/types.ts'
import { passOnTo } from '../../src/peers/forward.ts'
import { type PeerHandlers, PeerServer, upgraded } from '../../src/peers/listen.ts'
import { A, type Authorities, authorities, B, certificatesOf, freePort, YEAR_MS } from '../cluster/kit.ts'

const C = 'host-cccccccccc'
let by: Authorities
let a: Certificates
let b: Certificates
let c: Certificates
let foreign: Certificates
beforeAll(async () => {
  by = await authorities()
  ;[a, b, c] = (await Promise.all([A, B, C].map((h) => certificatesOf(by, h)))) as [
    Certificates,
    Certificates,
    Certificates,
  ]
  foreign = await certificatesOf(await authorities(), B)
})

async function serve(over: Partial<PeerHandlers> = {}) {
  const hosts = new Set([A, B])
  const joined: { secret: string; body: unknown }[] = []
  const logged: string[] = []
  const server = new PeerServer(a, {
    checkSecret: (secret) => {
      if (secret !== 'right') throw fail('unauthenticated', 'The token is unknown.')
    },
    join: async (secret, body) => {
      joined.push({ secret, body })
      return { welcome: true }
    },
    asked: { '/peer/v1/echo': async (body, host) => ({ body, host }) },
    opened: {},
    api: (_request, response) => response.end('{"api":true}'),
    isHost: (id) => hosts.has(id),
    log: (line) => logged.push(line),
    ...over,
  })
  const port = await freePort()
  await server.listen('127.0.0.1', port)
  onTestFinished(() => server.close())
  return { server, port, hosts, joined, logged }
}
const recordAt = (id: string, port: number): HostRecord => ({
  schema: 1,
  id,
  name: id.slice(-3),
  created_at: '',
  address: '127.0.0.1',
  ports: { peer: port, etcd_client: 1, etcd_peer: 1 },
})
function client(certificates: () => Certificates, port: number, id = A) {
  const made = new PeerClient({ certificates, host: (h) => (h === id ? recordAt(id, port) : undefined) })
  onTestFinished(() => made.close())
  return made
}
/** As whoever: undefined shows no certificate. */
function raw(port: number, as: Certificates | undefined, o: https.RequestOptions, body = '') {
  return new Promise<{ status: number; text: string; continued: boolean }>((resolve, reject) => {
    const request = https.request({
      host: '127.0.0.1',
      port,
      rejectUnauthorized: false,
      agent: false,
      ...(as ? { key: as.host.key, cert: as.host.cert } : {}),
      ...o,
    })
    let continued = false
    request.on('error', reject)
    request.once('continue', () => {
      continued = true
      request.end(body)
    })
    request.once('response', (response) => {
      let text = ''
      response.on('data', (part) => (text += String(part)))
      response.once('end', () => resolve({ status: response.statusCode ?? 0, text, continued }))
    })
    if (request.getHeader('expect') === undefined) request.end(body)
    else request.flushHeaders()
  })
}
const joinWith = (secret: string | undefined, bytes: number): https.RequestOptions => ({
  method: 'POST',
  path: '/peer/v1/join',
  headers: {
    expect: '100-continue',
    'content-length': bytes,
    ...(secret === undefined ? {} : { 'wadah-join-secret': secret }),
  },
})

test('a host is who its certificate says, asks and is answered', async () => {
  const { port } = await serve()
  expect(await client(() => b, port).ask(A, '/peer/v1/echo', { n: 1 })).toEqual({ body: { n: 1 }, host: B })
})

test.each([
  ['no certificate', () => undefined],
  ['one of another authority', () => foreign],
  ['one of a host that is not of the cluster', () => c],
])('%s: nothing but the way to join', async (_what, as) => {
  const { port } = await serve()
  for (const path of ['/peer/v1/echo', '/v1/vms', '/', '/peer/v1/__proto__']) {
    const got = await raw(port, as(), { method: 'POST', path })
    expect(got.status).toBe(401)
    expect(JSON.parse(got.text)).toMatchObject({ code: 'unauthenticated' })
  }
  const opened = await raw(port, as(), {
    path: '/peer/v1/move',
    headers: { connection: 'Upgrade', upgrade: 'wadah' },
  })
  expect(opened.status).toBe(401)
})

test('a connection that is used again gathers nothing', async () => {
  const { port } = await serve()
  const warned: string[] = []
  const warn = (warning: Error) => void warned.push(warning.message)
  process.on('warning', warn)
  onTestFinished(() => void process.off('warning', warn))
  const asks = client(() => b, port)
  for (let i = 0; i < 15; i++) await asks.ask(A, '/peer/v1/echo', { i })
  expect(warned).toEqual([])
})

test('who answers at the address must have the certificate of that very host', async () => {
  const { port } = await serve()
  await expect(client(() => b, port, C).ask(C, '/peer/v1/echo', {})).rejects.toMatchObject({
    fault: { code: 'unavailable' },
  })
})

test('a body to join is not asked for before the secret was right', async () => {
  const { port, joined } = await serve()
  for (const secret of [undefined, 'wrong']) {
    const got = await raw(port, undefined, joinWith(secret, 50_000_000))
    expect([got.status, got.continued]).toEqual([401, false])
  }
  const huge = await raw(port, undefined, joinWith('right', 65 * 1024 * 1024))
  expect([huge.status, huge.continued]).toEqual([413, false])
  const good = await raw(port, undefined, joinWith('right', 9), '{"a":"b"}')
  expect([good.status, good.continued, JSON.parse(good.text)]).toEqual([200, true, { welcome: true }])
  expect(joined).toEqual([{ secret: 'right', body: { a: 'b' } }])
})

test('strangers that hold on take no place from a host that joins, nor too many from anybody', async () => {
  const { port } = await serve()
  const held: tls.TLSSocket[] = []
  onTestFinished(() => held.forEach((s) => s.destroy()))
  // Two that began to join without a secret and never go on.
  for (let i = 0; i < 12; i++) {
    const socket = tls.connect({ host: '127.0.0.1', port, rejectUnauthorized: false, minVersion: 'TLSv1.3' })
    socket.on('error', () => undefined).resume()
    await Promise.race([once(socket, 'secureConnect'), once(socket, 'close')])
    held.push(socket)
    if (i < 2) socket.write('POST /peer/v1/join HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n')
  }
  await expect.poll(() => held.filter((s) => s.destroyed || s.readableEnded).length).toBeGreaterThanOrEqual(4)
  // Hosts come in all the same.
  expect(await client(() => b, port).ask(A, '/peer/v1/echo', 1)).toMatchObject({ host: B })
  for (const socket of held) socket.destroy()
  await expect
    .poll(() =>
      raw(port, undefined, joinWith('right', 2), '{}').then(
        (r) => r.status,
        () => 0,
      ),
    )
    .toBe(200)
})

test('what a host that was taken out has open ends, and it is refused from then on', async () => {
  const open: Duplex[] = []
  const { server, port, hosts } = await serve({
    opened: {
      '/peer/v1/hold': async (_query, _host, socket) => {
        socket.write(upgraded())
        open.push(socket)
        await once(socket, 'close')
      },
    },
  })
  const stream = await client(() => b, port).open(A, '/peer/v1/hold', AbortSignal.timeout(5_000))
  stream.on('error', () => undefined)
  server.dropRemoved()
  await sleep(50)
  expect(stream.destroyed).toBe(false)
  hosts.delete(B)
  const closed = once(stream, 'close')
  server.dropRemoved()
  await closed
  await expect(client(() => b, port).ask(A, '/peer/v1/echo', 1)).rejects.toMatchObject({
    fault: { code: 'unauthenticated' },
  })
})

test('renewed certificates are shown and taken at once, on both sides', async () => {
  const { server, port } = await serve()
  let mine = b
  const peer = client(() => mine, port)
  await peer.ask(A, '/peer/v1/echo', 1)
  const shown = () =>
    new Promise<string>((resolve, reject) => {
      const socket = tls.connect({ host: '127.0.0.1', port, rejectUnauthorized: false }, () => {
        resolve(socket.getPeerX509Certificate()?.serialNumber ?? '')
        socket.destroy()
      })
      socket.once('error', reject)
    })
  const before = await shown()
  const [nextA, nextB] = await Promise.all([certificatesOf(by, A), certificatesOf(by, B)])
  server.renew(nextA)
  expect(await shown()).not.toBe(before)
  // It asks for a certificate as before, and still takes none from elsewhere.
  expect(await peer.ask(A, '/peer/v1/echo', 2)).toMatchObject({ host: B })
  mine = nextB
  expect(await peer.ask(A, '/peer/v1/echo', 3)).toMatchObject({ host: B })
  expect((await raw(port, foreign, { method: 'POST', path: '/peer/v1/echo' })).status).toBe(401)
  mine = foreign
  await expect(peer.ask(A, '/peer/v1/echo', 4)).rejects.toMatchObject({ fault: { code: expect.any(String) } })
})

test.each([
  ['as much as was announced', '5', 'hello', 'hello'],
  ['less', '9', 'hello', /announced 9 bytes and sent 5/],
  ['more', '3', 'hello', /announced 3 bytes and sent more/],
  ['without a length', undefined, 'hello', /did not say how much/],
  ['with a length that is none', '5e0', 'hello', /did not say how much/],
])('a file that comes %s', async (_what, length, text, wanted) => {
  const { port } = await serve({
    opened: {
      '/peer/v1/file': async (_query, _host, socket) => {
        socket.write(upgraded(length === undefined ? {} : { [LENGTH_HEADER]: length }))
        socket.end(text)
      },
    },
  })
  const read = async () => {
    let got = ''
    const data = await client(() => b, port).receive(A, '/peer/v1/file', AbortSignal.timeout(5_000))
    for await (const part of data) got += Buffer.from(part).toString()
    return got
  }
  if (typeof wanted === 'string') expect(await read()).toBe(wanted)
  else await expect(read()).rejects.toThrow(wanted)
})

test('of what another host refuses with only a fault is taken over', () => {
  const evil = { code: 'busy', detail: 'x', remedy: 7, status: 200, effect: 'so', retryable: 'yes', more: { a: 1 } }
  expect(peerFault(JSON.stringify(evil)).fault).toEqual({
    code: 'busy',
    status: 409,
    title: 'Another job is at work on it',
    detail: 'x',
    effect: 'unknown',
    retryable: false,
  })
  for (const text of ['', 'null', '{}', '{"code":"toString","detail":"x"}', '<html>'])
    expect(peerFault(text).fault).toMatchObject({ code: 'unavailable' })
})

test('what only a newer release refuses with is told in its own words', () => {
  const text = JSON.stringify({ code: 'too_new', detail: 'In words.', remedy: 'do this', effect: 'none' })
  expect(peerFault(text).fault).toMatchObject({
    code: 'unavailable',
    detail: 'In words.',
    remedy: 'do this',
    effect: 'none',
  })
})

test.each([
  ['has ended', -YEAR_MS],
  ['holds only later', YEAR_MS],
])('a certificate that %s is told as a clock that is wrong, on both sides', async (_what, off_ms) => {
  const { port } = await serve()
  const [mine, theirs] = await Promise.all([B, A].map((h) => certificatesOf(by, h, '127.0.0.1', Date.now() + off_ms)))
  const asked = client(() => mine as Certificates, port).ask(A, '/peer/v1/echo', {})
  await expect(asked).rejects.toMatchObject({
    fault: { code: 'unauthenticated', detail: expect.stringContaining('one of the two clocks is wrong') },
  })
  const other = await freePort()
  const server = new PeerServer(theirs as Certificates, {} as PeerHandlers)
  await server.listen('127.0.0.1', other)
  onTestFinished(() => server.close())
  await expect(client(() => b, other).ask(A, '/peer/v1/echo', {})).rejects.toMatchObject({
    fault: {
      code: 'wrong_state',
      detail: expect.stringContaining('one of the two clocks is wrong'),
      remedy: expect.stringContaining('chrony'),
    },
  })
})

test('a body is passed on as it came: what this release filled in an older one may not know', async () => {
  const seen: string[] = []
  const { port } = await serve({
    api: async (request, response) => {
      let text = ''
      for await (const part of request) text += String(part)
      seen.push(text)
      response.end('{}')
    },
  })
  const pass = passOnTo(
    client(() => b, port),
    B,
    () => A,
  )
  const post = async (came: string | undefined, body: unknown) => {
    const raw = { socket: {} }
    if (came !== undefined) bodyText.set(raw, came)
    const reply = { raw: new PassThrough(), code: () => reply, header: () => reply, send: (s: Readable) => s.resume() }
    const request = { raw, headers: {}, method: 'POST', url: '/v1/vms', body }
    await pass({ id: 'vms.start' } as never, request as never, reply as never)
  }
  await post('{"name":"web"}', { name: 'web', filled_in: true })
  await post(undefined, { filled_in: true })
  expect(seen).toEqual(['{"name":"web"}', '{}'])
})

test('who asks is said by the host that passes a request on, never by its client', async () => {
  const seen: (string | undefined)[] = []
  const { port } = await serve({
    api: (request, response) => {
      seen.push(request.headers['wadah-subject'] as string | undefined)
      response.end('{}')
    },
  })
  const pass = passOnTo(
    client(() => b, port),
    B,
    () => A,
  )
  const root = passSubject({ kind: 'socket', id: 'root', name: 'root', scope: 'full' })
  const reader = { kind: 'token' as const, id: 'token-aaaaaaaaaa', name: 'looks', scope: 'read' as const }
  for (const identity of [undefined, { subject: reader }]) {
    const raw = { socket: {} }
    const request = { raw, identity, headers: { 'wadah-subject': root }, method: 'GET', url: '/v1/vms' }
    const reply = { raw: new PassThrough(), code: () => reply, header: () => reply, send: (s: Readable) => s.resume() }
    expect(await pass({ id: 'vms.list' } as never, request as never, reply as never)).toBe(true)
  }
  expect(seen).toEqual([undefined, passSubject(reader)])
})
