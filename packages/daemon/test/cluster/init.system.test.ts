/** A host becomes a cluster of one, with a real etcd: not twice, and with certificates that can be renewed while all goes on. */
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { networkInterfaces, tmpdir } from 'node:os'
import { join } from 'node:path'
import { authoritiesKind, CLUSTER } from '@wadah/cluster/members/records'
import { hostKind } from '@wadah/cluster/records'
import { findMember, removeMember } from '@wadah/host/etcd/member'
import { openSqliteStore } from '@wadah/store/sqlite/sqlite-store'
import { put } from '@wadah/store/store'
import { afterEach, beforeEach, expect, onTestFinished, test } from 'vitest'
import { unreachableFor } from '../../src/cluster/address.ts'
import { etcdDir, readCertificates, readIdentity } from '../../src/cluster/identity.ts'
import { initCluster } from '../../src/cluster/init.ts'
import { joinCluster } from '../../src/cluster/join.ts'
import { certify, etcdUid, openStore, storeTls } from '../../src/cluster/parts.ts'
import { leaveCluster } from '../../src/cluster/runtime.ts'
import type { DaemonConfig } from '../../src/config.ts'
import { restore } from '../../src/restore.ts'
import { authorities, certificatesOf, freePort } from './kit.ts'

const address = Object.values(networkInterfaces())
  .flatMap((list) => list ?? [])
  .map((a) => a.address)
  .find((a) => unreachableFor(a) === undefined)
let config: DaemonConfig
beforeEach(async () => {
  const data = await mkdtemp(join(tmpdir(), 'wadah-init-'))
  config = { data, instance: 'x', uid_base: 41_000, uid_count: 10, host_name: 'alone' } as DaemonConfig
})
afterEach(async () => {
  await removeMember(etcdDir(config.data), etcdUid(config))
  await rm(config.data, { recursive: true, force: true })
})
const options = async () => ({ address: address ?? '', port: await freePort() })
const code = (e: unknown) => (e as { fault?: { code: string } }).fault?.code ?? String(e)

test.runIf(address)('of two that begin at once one is refused, and takes nothing of the other away', async () => {
  const o = await options()
  const both = await Promise.allSettled([initCluster(config, o), initCluster(config, o)])
  const done = both.filter((r) => r.status === 'fulfilled')
  const refused = both.filter((r) => r.status === 'rejected')
  expect([done.length, refused.map((r) => code(r.reason))]).toEqual([1, ['wrong_state']])
  const [{ value }] = done as [PromiseFulfilledResult<Awaited<ReturnType<typeof initCluster>>>]
  expect(await readIdentity(config.data)).toMatchObject({ cluster: value.cluster, host: value.host })
  expect(await findMember(etcdDir(config.data), etcdUid(config))).toBeDefined()
  const store = await open()
  expect((await store.get(hostKind, value.host))?.value.address).toBe(address)
  // Nor is a later one, a join, or a copy of the store put in place.
  expect(await initCluster(config, o).catch(code)).toBe('wrong_state')
  expect(await joinCluster(config, o, 'wadah-join-x').catch(code)).toBe('wrong_state')
  await writeFile(join(config.data, 'copy.db'), 'x')
  const why = await restore(config, join(config.data, 'copy.db')).catch((e: { fault: object }) => e.fault)
  expect(why).toMatchObject({
    code: 'wrong_state',
    remedy: expect.stringMatching(/wadah cluster remove alone.*wadah store restore/),
  })
  // One that leaves is alone, with nothing left that opens the store.
  await leaveCluster(config)
  expect(await readIdentity(config.data)).toBeUndefined()
  expect(await readCertificates(config.data).catch(code)).toBe('invalid')
  expect(await findMember(etcdDir(config.data), etcdUid(config))).toBeUndefined()
})

test.runIf(address)(
  'a daemon that has the store keeps init and join out, and a try that was cut off keeps its id',
  async () => {
    const o = await options()
    const store = await openSqliteStore({ file: join(config.data, 'store.db') })
    expect(await initCluster(config, o).catch(code)).toBe('wrong_state')
    await store.close()
    const token = { a: ['127.0.0.1:1'], f: 'a'.repeat(64), s: 'x' }
    const text = `wadah-join-${Buffer.from(JSON.stringify(token)).toString('base64url')}`
    const hosts = async () => {
      const own = await openSqliteStore({ file: join(config.data, 'store.db') })
      const page = await own.list(hostKind, { limit: 10 })
      await own.close()
      return page.type === 'page' ? page.items.map((h) => h.id) : []
    }
    expect(await joinCluster(config, o, text).catch(code)).toBe('unreachable')
    const first = await hosts()
    expect(first).toHaveLength(1)
    expect(await joinCluster(config, o, text).catch(code)).toBe('unreachable')
    expect(await hosts()).toEqual(first)
    const named = await joinCluster(config, { ...o, name: 'my_host' }, text).catch((e: { fault: object }) => e.fault)
    expect(named).toMatchObject({ code: 'invalid', field: '/name', remedy: expect.stringContaining('--name') })
  },
)

test.runIf(address)('the store takes renewed certificates while a watch and a lease go on', async () => {
  const { host } = await initCluster(config, await options())
  const store = await open()
  const lease = await store.lease(5)
  const seen: string[] = []
  const ending = new AbortController()
  const after = await store.current()
  const watched = (async () => {
    for await (const c of store.watch('', after, ending.signal)) if (c.type === 'put') seen.push(c.id)
  })()
  const thing = { name: 'thing' }
  await store.txn([], [put(thing, 'before', {})], 't1')
  await expect.poll(() => seen).toEqual(['before'])
  const by = await store.get(authoritiesKind, CLUSTER)
  if (!by) throw new Error('no authorities')
  const next = await certify(by.value, { id: host, address: address ?? '' }, Date.now())
  // With a certificate of elsewhere nothing goes: so it is the new one that is shown.
  store.client.setTls(storeTls(await certificatesOf(await authorities(), host, address), false))
  await expect(store.get(hostKind, host, { timeout_ms: 1_500 })).rejects.toMatchObject({ kind: 'timeout' })
  store.client.setTls(storeTls(next, false))
  expect((await store.get(hostKind, host))?.id).toBe(host)
  await store.txn([], [put(thing, 'after', {})], 't2')
  await expect.poll(() => seen, { timeout: 10_000 }).toEqual(['before', 'after'])
  await new Promise((go) => setTimeout(go, 6_000))
  expect(lease.lost.aborted).toBe(false)
  ending.abort()
  await watched
})

async function open() {
  const identity = await readIdentity(config.data)
  if (!identity) throw new Error('not of a cluster')
  const certificates = await readCertificates(config.data)
  const store = await openStore({ endpoints: identity.endpoints, certificates, data: config.data, timeout_ms: 20_000 })
  onTestFinished(() => store.close())
  return store
}
