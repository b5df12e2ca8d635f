/** With a real etcd: a member whose daemon was killed before it started, and again before it was promoted, gets its vote. */
import { chmod, mkdtemp, rm } from 'node:fs/promises'
import { networkInterfaces, tmpdir } from 'node:os'
import { join } from 'node:path'
import { authoritiesKind, CLUSTER } from '@wadah/cluster/members/records'
import { ensureMember, removeMember, stopMember } from '@wadah/host/etcd/member'
import { systemClock } from '@wadah/store/clock'
import { EtcdAdmin } from '@wadah/store/etcd/admin'
import { expect, onTestFinished, test } from 'vitest'
import { unreachableFor } from '../../src/cluster/address.ts'
import {
  etcdDir,
  type Identity,
  readCertificates,
  readIdentity,
  writeCertificates,
  writeIdentity,
} from '../../src/cluster/identity.ts'
import { initCluster } from '../../src/cluster/init.ts'
import { OwnMember } from '../../src/cluster/own-member.ts'
import { certify, etcdUid, memberPlan, openStore, portsFrom } from '../../src/cluster/parts.ts'
import type { DaemonConfig } from '../../src/config.ts'
import { B, freePort } from './kit.ts'

const address = Object.values(networkInterfaces())
  .flatMap((list) => list ?? [])
  .map((a) => a.address)
  .find((a) => unreachableFor(a) === undefined)

async function machine(): Promise<DaemonConfig> {
  const data = await mkdtemp(join(tmpdir(), 'wadah-own-'))
  const config = { data, instance: 'x', uid_base: 41_000, uid_count: 10, host_name: 'alone' } as DaemonConfig
  onTestFinished(async () => {
    await removeMember(etcdDir(data), etcdUid(config))
    await rm(data, { recursive: true, force: true })
  })
  return config
}

test.runIf(address)(
  'a learner of a killed daemon is started and promoted by the next',
  { timeout: 120_000 },
  async () => {
    const [first, second] = [await machine(), await machine()]
    await initCluster(first, { address: address ?? '', port: await freePort() })
    const of = await readIdentity(first.data)
    if (!of) throw new Error('not of a cluster')
    const certificates = await readCertificates(first.data)
    const store = await openStore({ ...of, certificates, data: first.data, timeout_ms: 20_000 })
    onTestFinished(() => store.close())
    const by = await store.get(authoritiesKind, CLUSTER)
    if (!by) throw new Error('no authorities')
    const own = await certify(by.value, { id: B, address: of.address }, Date.now())
    await chmod(second.data, 0o711)
    await writeCertificates(second.data, own, etcdUid(second))
    const { member: _, ...rest } = of
    const identity: Identity = { ...rest, host: B, name: 'b', ports: portsFrom(await freePort()) }
    await writeIdentity(second.data, identity)

    const admin = new EtcdAdmin(store.client, systemClock)
    const said: string[] = []
    /** Each knows what lies on the disk, and no more. */
    const daemon = async (killedBefore?: 'start' | 'promote') => {
      const killed = () => Promise.reject(new Error('killed'))
      let is = (await readIdentity(second.data)) as Identity
      return new OwnMember({
        admin: {
          members: () => admin.members(),
          addLearner: (url) => admin.addLearner(url),
          promote: (id, ms) => (killedBefore === 'promote' ? killed() : admin.promote(id, ms)),
        },
        clock: systemClock,
        identity: () => is,
        keep: async (next) => writeIdentity(second.data, (is = next)),
        start: async () => {
          if (killedBefore === 'start') return killed()
          const plan = memberPlan(second, is)
          if (plan) await ensureMember(plan, AbortSignal.timeout(60_000))
        },
        etcdLog: join(etcdDir(second.data), 'etcd.log'),
        log: (line) => said.push(line),
        signal: new AbortController().signal,
      })
    }
    const mine = async () =>
      (await admin.members()).find((m) => m.peer_urls[0]?.endsWith(`:${identity.ports.etcd_peer}`))

    await (await daemon('start')).see(true)
    expect(await mine()).toMatchObject({ name: '', learner: true })
    await (await daemon('promote')).see(true)
    await expect.poll(mine, { timeout: 30_000 }).toMatchObject({ name: B, learner: true })
    await stopMember(etcdDir(second.data), etcdUid(second))
    const last = await daemon()
    const votes = async () => {
      await last.see(true)
      return (await mine())?.learner
    }
    await expect.poll(votes, { timeout: 60_000, interval: 1_000 }).toBe(false)
    expect(said.at(-1)).toBe('this host keeps a copy of the store')
    await expect.poll(async () => (await admin.status(of.endpoints[0] ?? ''))?.learner, { timeout: 10_000 }).toBe(false)
  },
)
