/** Whom a host that joins believes, and what it says to whom before it does. */
import https from 'node:https'
import type { AddressInfo } from 'node:net'
import { beforeAll, expect, onTestFinished, test } from 'vitest'
import type { Certificates } from '../../src/cluster/identity.ts'
import { ask, type JoinRequest, pinned } from '../../src/cluster/join.ts'
import { fingerprintOf } from '../../src/cluster/pki.ts'
import { A, type Authorities, authorities, B, certificatesOf, YEAR_MS } from './kit.ts'

let by: Authorities
let evil: Authorities
let host: Certificates
let foreign: Certificates
beforeAll(async () => {
  by = await authorities()
  evil = await authorities()
  host = await certificatesOf(by, A)
  foreign = await certificatesOf(evil, A)
})
const REQUEST: JoinRequest = {
  version: 1,
  host: {
    schema: 1,
    id: B,
    name: 'b',
    created_at: 'then',
    address: '192.0.2.2',
    ports: { peer: 1, etcd_client: 2, etcd_peer: 3 },
  },
  wadah: '0.1.0',
  now_ms: 0,
  uids: { base: 5000, count: 100 },
  records: [{ kind: 'secret', id: 'x', value: 'what nobody else is to see' }],
}
type Seen = { path: string; secret: unknown; body: string }
type Serves = { as: Certificates; authority: string; answer?: (seen: Seen) => { status?: number; body: unknown } }

/** A server that plays a host of the cluster, or claims to. */
async function serve({ as, authority, answer }: Serves) {
  const seen: Seen[] = []
  const handle = async (request: import('node:http').IncomingMessage, response: import('node:http').ServerResponse) => {
    const path = request.url ?? ''
    if (path === '/peer/v1/authority') return void response.end(JSON.stringify({ authority }))
    const one: Seen = { path, secret: request.headers['wadah-join-secret'], body: '' }
    seen.push(one)
    const early = answer?.(one)
    if (early?.status !== undefined && early.status !== 200) {
      response.writeHead(early.status, { connection: 'close' })
      return void response.end(JSON.stringify(early.body))
    }
    response.writeContinue()
    for await (const part of request) one.body += String(part)
    response.end(JSON.stringify(answer?.(one).body ?? {}))
  }
  const server = https.createServer({ key: as.host.key, cert: as.host.cert, minVersion: 'TLSv1.3' }, (q, r) => {
    void handle(q, r).catch(() => undefined)
  })
  server.on('checkContinue', (q, r) => void handle(q, r).catch(() => undefined))
  await new Promise<void>((ready) => server.listen(0, '127.0.0.1', ready))
  onTestFinished(() => {
    server.closeAllConnections()
    server.close()
  })
  return { seen, address: `127.0.0.1:${(server.address() as AddressInfo).port}` }
}
const token = (...a: string[]) => ({ a, f: fingerprintOf(by.hosts.cert), s: 'token-aaaaaaaaaa.secret' })
const admits = async (over: object = {}) => {
  const certificates = await certificatesOf(by, B)
  return { cluster: 'c', certificates, endpoints: ['192.0.2.1:2'], changes: [], ...over }
}

test('only the one pinned certificate is believed, however many are sent with it', async () => {
  const f = fingerprintOf(by.hosts.cert)
  expect(pinned(by.hosts.cert, f)).toContain('BEGIN CERTIFICATE')
  for (const sent of [
    `${by.hosts.cert}\n${evil.hosts.cert}`,
    `${evil.hosts.cert}\n${by.hosts.cert}`,
    `${by.hosts.cert}\n${by.hosts.key}`,
    evil.hosts.cert,
    'nonsense',
    '',
    undefined,
    { toString: () => by.hosts.cert },
  ])
    expect(pinned(sent, f)).toBeUndefined()
})

test('who serves the pinned authority with its own beside it is told nothing', async () => {
  // It has a certificate of its own authority; were all that it served trusted, it would pass for the cluster.
  const { seen, address } = await serve({ as: foreign, authority: `${by.hosts.cert}\n${evil.hosts.cert}` })
  await expect(ask(token(address), REQUEST)).rejects.toMatchObject({ fault: { code: 'unauthenticated' } })
  expect(seen).toEqual([])
})

test('who serves the pinned authority alone, and has no certificate of it, is told nothing', async () => {
  const { seen, address } = await serve({ as: foreign, authority: by.hosts.cert })
  await expect(ask(token(address), REQUEST)).rejects.toMatchObject({ fault: { code: 'unreachable' } })
  expect(seen).toEqual([])
})

test('the secret goes first; of a host that is refused no record leaves it', async () => {
  const refusal = { code: 'unauthenticated', detail: 'The token is unknown.', effect: 'none', retryable: false }
  const { seen, address } = await serve({
    as: host,
    authority: by.hosts.cert,
    answer: () => ({ status: 401, body: refusal }),
  })
  await expect(ask(token(address), REQUEST)).rejects.toMatchObject({ fault: { detail: 'The token is unknown.' } })
  expect(seen).toEqual([{ path: '/peer/v1/join', secret: 'token-aaaaaaaaaa.secret', body: '' }])
})

test('a host that is let in gets what it is to get, and its secret is not in the body', async () => {
  const said = await admits()
  const { seen, address } = await serve({ as: host, authority: by.hosts.cert, answer: () => ({ body: said }) })
  const answer = await ask(token(address), REQUEST)
  expect(answer).toMatchObject({ cluster: 'c', endpoints: ['192.0.2.1:2'] })
  expect(seen[0]?.body).toContain('what nobody else is to see')
  expect(seen[0]?.body).not.toContain('token-aaaaaaaaaa')
})

test('an answer with another authority for hosts, or two for etcd, is refused', async () => {
  const said = await admits()
  for (const certificates of [
    { ...said.certificates, hosts_ca: evil.hosts.cert },
    { ...said.certificates, hosts_ca: `${by.hosts.cert}\n${evil.hosts.cert}` },
    { ...said.certificates, etcd_ca: `${by.etcd.cert}\n${evil.etcd.cert}` },
  ]) {
    const { address } = await serve({
      as: host,
      authority: by.hosts.cert,
      answer: () => ({ body: { ...said, certificates } }),
    })
    await expect(ask(token(address), REQUEST)).rejects.toThrow(/not of the cluster|it holds 2/)
  }
})

test('a host that does not reach the store leaves the decision to the next; nonsense is no crash', async () => {
  const lost = { code: 'store_failed', detail: 'no majority', effect: 'none', retryable: true }
  const cut = await serve({ as: host, authority: by.hosts.cert, answer: () => ({ status: 503, body: lost }) })
  const said = await admits()
  const good = await serve({ as: host, authority: by.hosts.cert, answer: () => ({ body: said }) })
  expect(await ask(token('127.0.0.1:1', cut.address, good.address), REQUEST)).toMatchObject({ cluster: 'c' })
  const mad = await serve({ as: host, authority: by.hosts.cert, answer: () => ({ status: 500, body: '<html>' }) })
  await expect(ask(token(mad.address), REQUEST)).rejects.toMatchObject({ fault: { code: 'unreachable' } })
})

test.each([
  ['has ended', -YEAR_MS],
  ['holds only later', YEAR_MS],
])('a certificate that %s by our clock is told as a clock, with what the other one says', async (_what, off_ms) => {
  const untimely = await certificatesOf(by, A, '127.0.0.1', Date.now() + off_ms)
  const { address, seen } = await serve({ as: untimely, authority: by.hosts.cert })
  await expect(ask(token(address), REQUEST)).rejects.toMatchObject({
    fault: {
      code: 'wrong_state',
      effect: 'none',
      detail: expect.stringMatching(/By this host's clock it is .* says: .* one of the two clocks is wrong/),
      remedy: expect.stringContaining('timedatectl set-ntp true'),
    },
  })
  expect(seen).toEqual([])
})
