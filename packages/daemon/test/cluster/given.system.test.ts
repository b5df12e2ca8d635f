/** A cluster whose store lies in an etcd that the administrator runs, with TLS: what is refused leaves nothing, neither here nor there. */
import { type ChildProcess, spawn } from 'node:child_process'
import { existsSync } from 'node:fs'
import { mkdir, mkdtemp, rm, stat, writeFile } from 'node:fs/promises'
import { networkInterfaces, tmpdir } from 'node:os'
import { join } from 'node:path'
import { hostKind } from '@wadah/cluster/records'
import { systemClock } from '@wadah/store/clock'
import { EtcdClient } from '@wadah/store/etcd/client'
import { copyStore } from '@wadah/store/copy'
import type { RangeReply } from '@wadah/store/etcd/wire'
import { openSqliteStore } from '@wadah/store/sqlite/sqlite-store'
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from 'vitest'
import { unreachableFor } from '../../src/cluster/address.ts'
import { checkGiven, dropPrefix, givenTls, readGiven } from '../../src/cluster/given.ts'
import { clusterDir, readCertificates, readIdentity } from '../../src/cluster/identity.ts'
import { initCluster } from '../../src/cluster/init.ts'
import { openStore } from '../../src/cluster/parts.ts'
import { issue, makeAuthority } from '../../src/cluster/pki.ts'
import { recoverCluster } from '../../src/cluster/recover.ts'
import type { DaemonConfig } from '../../src/config.ts'
import { freePort } from './kit.ts'

const address = Object.values(networkInterfaces())
  .flatMap((list) => list ?? [])
  .map((a) => a.address)
  .find((a) => unreachableFor(a) === undefined)

let dir = ''
const file = (name: string) => join(dir, name)
const running: ChildProcess[] = []
const ports: Record<string, number> = {}

async function etcd(name: string, ...more: string[]): Promise<void> {
  const [client, peer] = [await freePort(), await freePort()]
  ports[name] = client
  const url = `https://127.0.0.1:${client}`
  const words = [
    ...[
      '--name',
      name,
      '--data-dir',
      file(`data-${name}`),
      '--listen-client-urls',
      url,
      '--advertise-client-urls',
      url,
    ],
    ...['--listen-peer-urls', `http://127.0.0.1:${peer}`, '--initial-advertise-peer-urls', `http://127.0.0.1:${peer}`],
    ...['--initial-cluster', `${name}=http://127.0.0.1:${peer}`],
    ...['--cert-file', file('server.crt'), '--key-file', file('server.key'), ...more],
  ]
  running.push(spawn('etcd', words, { stdio: 'ignore' }))
}

beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), 'wadah-given-'))
  const now_ms = Date.now()
  const [ca, wrong] = [await makeAuthority('theirs', now_ms), await makeAuthority('wrong', now_ms)]
  const server = await issue(ca, { name: 'server', names: ['127.0.0.1', 'localhost'], now_ms })
  const client = await issue(ca, { name: 'client', names: ['client'], now_ms })
  const foreign = await issue(wrong, { name: 'client', names: ['client'], now_ms })
  for (const [name, pair] of Object.entries({ ca, wrong, server, client, foreign })) {
    await writeFile(file(`${name}.crt`), pair.cert)
    await writeFile(file(`${name}.key`), pair.key, { mode: 0o600 })
  }
  await etcd('theirs', '--client-cert-auth', '--trusted-ca-file', file('ca.crt'))
  await etcd('open')
})
afterAll(async () => {
  for (const child of running) child.kill('SIGKILL')
  await rm(dir, { recursive: true, force: true })
})

let config: DaemonConfig
let n = 0
beforeEach(async () => {
  const data = file(`host-${(n += 1)}`)
  await mkdir(data)
  config = { data, instance: 'x', uid_base: 41_000, uid_count: 10, host_name: 'alone' } as DaemonConfig
})
afterEach(() => rm(config.data, { recursive: true, force: true }))

const given = (over: Record<string, string> = {}) => ({
  endpoints: `https://127.0.0.1:${ports['theirs']}`,
  ca: file('ca.crt'),
  cert: file('client.crt'),
  key: file('client.key'),
  prefix: '/wadah',
  ...over,
})
const init = async (over: Record<string, string> = {}) =>
  await initCluster(config, { address: address ?? '', port: await freePort(), etcd: given(over) })
const why = (work: Promise<unknown>) =>
  work.then(
    () => 'done',
    (e: { fault?: { code: string; detail: string; effect: string } }) =>
      e.fault ? `${e.fault.code}: ${e.fault.detail}` : JSON.stringify(e),
  )

async function keys(prefix: string): Promise<number> {
  const client = new EtcdClient({
    endpoints: [`127.0.0.1:${ports['theirs']}`],
    tls: givenTls(await readGiven(given())),
    clock: systemClock,
  })
  const range = { key: Buffer.from(`${prefix}/`), range_end: Buffer.from(`${prefix}0`) }
  const { kvs } = await client.call<RangeReply>('KV', 'Range', range, systemClock.monotonic_ms() + 5_000)
  client.close()
  return kvs.length
}

test('what can not carry the store is refused, and nothing is written', async () => {
  await expect.poll(() => why(readGiven(given()).then((g) => checkGiven(g))), { timeout: 20_000 }).toBe('done')
  await expect
    .poll(() => why(init({ endpoints: `https://127.0.0.1:${ports['open']}` })), { timeout: 20_000 })
    .toMatch(/without a certificate/)
  expect(await why(init({ ca: file('wrong.crt') }))).toMatch(
    /^store_failed: .*does not answer at .*(certificate|issuer)/,
  )
  expect(await why(init({ cert: file('foreign.crt'), key: file('foreign.key') }))).toMatch(
    /^store_failed: .*does not answer/,
  )
  expect(await why(init({ endpoints: `https://127.0.0.2:${ports['theirs']}` }))).toMatch(/does not answer/)
  const dead = `127.0.0.1:${await freePort()}`
  expect(await why(init({ endpoints: `https://${dead},${given().endpoints}` }))).toContain(
    `does not answer at ${dead} (`,
  )
  expect(await readIdentity(config.data)).toBeUndefined()
  expect(existsSync(clusterDir(config.data))).toBe(false)
  expect(await keys('/wadah')).toBe(0)
}, 60_000)

test.runIf(address)(
  'the store lies there; the next cluster needs another prefix',
  async () => {
    const done = await init({ prefix: '/one' })
    const identity = await readIdentity(config.data)
    expect(identity).toMatchObject({ cluster: done.cluster, etcd: { prefix: '/one' } })
    expect(identity?.member).toBeUndefined()
    expect(existsSync(join(config.data, 'etcd'))).toBe(false)
    expect((await stat(join(clusterDir(config.data), 'etcd-client.pem'))).mode & 0o777).toBe(0o600)
    const certificates = await readCertificates(config.data, true)
    if (!identity) throw new Error('no identity')
    const store = await openStore({ ...identity, certificates, data: config.data, timeout_ms: 10_000 })
    expect((await store.get(hostKind, done.host))?.value).toMatchObject({ name: 'alone', member: false })
    await store.close()
    const used = await keys('/one')
    expect(used).toBeGreaterThan(3)
    const second = { ...config, data: file('second') }
    const o = { address: address ?? '', port: await freePort() }
    expect(await why(initCluster(second, { ...o, etcd: given({ prefix: '/one' }) }))).toMatch(/something under \/one\//)
    expect(await keys('/one')).toBe(used)
    await initCluster(second, { ...o, etcd: given({ prefix: '/two' }) })
    // Of two that begin at once one has it.
    const both = await Promise.all(
      ['third', 'fourth'].map((name) =>
        why(initCluster({ ...config, data: file(name) }, { ...o, etcd: given({ prefix: '/three' }) })),
      ),
    )
    expect(both.toSorted()[0]).toBe('done')
    expect(both.toSorted()[1]).toMatch(/something under \/three\//)
  },
  60_000,
)

test.runIf(address)(
  'recovery: only told that the store went back, or filled from a copy where it is gone',
  async () => {
    const done = await init({ prefix: '/r' })
    const copy = file('copy.db')
    expect(await why(recoverCluster(config, config.data))).toMatch(/is in its etcd/)
    expect(await recoverCluster(config, undefined)).toMatchObject({ cluster: done.cluster, host: 'alone', waiting: [] })
    const first = (await readIdentity(config.data))?.recovery
    expect(first).toBeDefined()
    // A copy, as any host keeps them; then all in the etcd is lost.
    const identity = await readIdentity(config.data)
    const certificates = await readCertificates(config.data, true)
    if (!identity) throw new Error('no identity')
    const store = await openStore({ ...identity, certificates, data: config.data, timeout_ms: 10_000 })
    const to = await openSqliteStore({ file: copy })
    await copyStore(store, to)
    await to.close()
    await store.close()
    await dropPrefix(await readGiven(given({ prefix: '/r' })))
    expect(await why(recoverCluster(config, undefined))).toMatch(/nothing of the cluster is in it/)
    const back = await recoverCluster(config, copy)
    expect(back.records).toBeGreaterThan(2)
    expect((await readIdentity(config.data))?.recovery).not.toBe(first)
  },
  60_000,
)
