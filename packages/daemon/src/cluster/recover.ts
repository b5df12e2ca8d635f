/**
 * `wadahd --cluster-recover`: makes the store answer again after its majority was lost, from the copy that this host kept, or from a file
 * (`wadah store backup`). VMs run on. What was written last may be missing: nothing is started before each host has said what runs on it.
 */
import { randomUUID } from 'node:crypto'
import { existsSync } from 'node:fs'
import { cp, rename, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { fail } from '@wadah/api/fault'
import { hostPort } from '@wadah/api/host-port'
import { CLUSTER, clusterKind } from '@wadah/cluster/members/records'
import { hostKind } from '@wadah/cluster/records'
import { ensureMember, stopMember } from '@wadah/host/etcd/member'
import { copyStore } from '@wadah/store/copy'
import type { EtcdStore } from '@wadah/store/etcd/etcd-store'
import { openSqliteStore } from '@wadah/store/sqlite/sqlite-store'
import { type Check, put, unchanged, type Write } from '@wadah/store/store'
import type { DaemonConfig } from '../config.ts'
import { workerUrl } from '../worker-url.ts'
import {
  type Certificates,
  etcdDir,
  type Identity,
  readCertificates,
  readIdentity,
  settled,
  writeIdentity,
} from './identity.ts'
import { NOT_COPIED } from './init.ts'
import { etcdUid, memberPlan, openStore } from './parts.ts'

export type Recovered = { cluster: string; host: string; kept?: string; waiting: string[]; records?: number }

/** A store that has its majority answers within it, also after an election. */
const ANSWERS_MS = 15_000
const MEMBER_UP_MS = 60_000

export async function recoverCluster(config: DaemonConfig, from: string | undefined): Promise<Recovered> {
  const identity = await readIdentity(config.data)
  if (!identity)
    throw fail('wrong_state', 'This host is alone: its store is its own.', {
      remedy: from === undefined ? 'wadah store restore FILE' : `wadah store restore ${from}`,
    })
  if (from !== undefined && !existsSync(from))
    throw fail('not_found', `There is no file ${from}.`, { remedy: 'wadah store backup makes one' })
  if (identity.etcd) return await recoverGiven(config, identity, from)
  if (from === undefined && !identity.member)
    throw fail('wrong_state', 'This host keeps no copy of the store.', {
      remedy: 'on a host that keeps one: wadah cluster recover; where none is left: wadah cluster recover --from FILE',
    })
  const certificates = await readCertificates(config.data)
  await refuseIfItAnswers(config, identity, certificates)
  const uid = etcdUid(config)
  const directory = etcdDir(config.data)
  await stopMember(directory, uid)
  const kept = await setDataAside(directory, from === undefined)
  const alone: Identity = {
    ...identity,
    endpoints: [hostPort(identity.address, identity.ports.etcd_client)],
    member: {
      name: identity.host,
      initial_cluster: `${identity.host}=https://${hostPort(identity.address, identity.ports.etcd_peer)}`,
      initial_state: 'new',
    },
  }
  const plan = memberPlan(config, alone)
  if (!plan) throw fail('internal', 'no plan for the member of etcd')
  await ensureMember(
    { ...plan, ...(from === undefined ? { force_new_cluster: true } : {}) },
    AbortSignal.timeout(MEMBER_UP_MS),
  )
  const store = await openStore({
    endpoints: alone.endpoints,
    certificates,
    data: config.data,
    timeout_ms: MEMBER_UP_MS,
  })
  try {
    const records = from === undefined ? undefined : await fill(store, from, identity)
    const recovery = randomUUID()
    const waiting = await writeDown(store, identity, recovery)
    await writeIdentity(config.data, settled({ ...alone, recovery }))
    return {
      cluster: identity.cluster,
      host: identity.name,
      waiting,
      ...(kept === undefined ? {} : { kept }),
      ...(records === undefined ? {} : { records }),
    }
  } finally {
    await store.close()
    // The next start is an ordinary one: forced once more it would drop the members that joined meanwhile.
    await stopMember(directory, uid)
  }
}

/**
 * The store in the administrator's etcd: that they bring back themselves. Here it is filled from a copy where it is empty; and where it
 * was put back from a snapshot of theirs, which nobody can tell from the outside, all are told that it went back in time.
 */
async function recoverGiven(config: DaemonConfig, identity: Identity, from: string | undefined): Promise<Recovered> {
  const certificates = await readCertificates(config.data, true)
  const { endpoints } = identity
  const store = await openStore({ ...identity, certificates, data: config.data, timeout_ms: ANSWERS_MS }).catch(
    (cause: unknown) => {
      throw fail(
        'wrong_state',
        `The store lies in an etcd of yours (${endpoints.join(', ')}), which does not answer.`,
        {
          remedy:
            'bring that back first, from its snapshot if need be (etcdctl snapshot restore); then again: wadah cluster recover',
          cause,
        },
      )
    },
  )
  try {
    const of = (await store.get(clusterKind, CLUSTER))?.value.id
    if (of !== undefined && of !== identity.cluster)
      throw fail('wrong_state', `Another cluster's store lies in that etcd under ${identity.etcd?.prefix ?? ''}.`, {
        remedy: 'put back the right one',
      })
    if (of !== undefined && from !== undefined)
      throw fail('wrong_state', "The cluster's store is in its etcd, and would be overwritten by the copy.", {
        remedy: 'without --from, if the etcd was put back from a snapshot: wadah cluster recover',
      })
    if (of === undefined && from === undefined)
      throw fail('wrong_state', 'The etcd answers, and nothing of the cluster is in it.', {
        remedy:
          'wadah cluster recover --from FILE, with a copy of the store (copies/ of any host, or a wadah store backup)',
      })
    const records = from === undefined ? undefined : await fill(store, from, identity)
    const recovery = randomUUID()
    const waiting = await writeDown(store, identity, recovery)
    await writeIdentity(config.data, { ...identity, recovery })
    const { cluster, name: host } = identity
    return { cluster, host, waiting, ...(records === undefined ? {} : { records }) }
  } finally {
    await store.close()
  }
}

/** @throws WadahError `wrong_state` when a majority is there */
async function refuseIfItAnswers(config: DaemonConfig, identity: Identity, certificates: Certificates): Promise<void> {
  const plan = memberPlan(config, identity)
  if (plan && existsSync(join(plan.directory, 'data')))
    await ensureMember(plan, AbortSignal.timeout(MEMBER_UP_MS)).catch(() => undefined)
  const store = await openStore({
    endpoints: identity.endpoints,
    certificates,
    data: config.data,
    timeout_ms: ANSWERS_MS,
  }).catch(() => undefined)
  if (!store) return
  const of = await store
    .get(clusterKind, CLUSTER)
    .catch(() => undefined)
    .finally(() => store.close())
  if (of?.value.id !== identity.cluster) return
  throw fail('wrong_state', 'The store of the cluster answers: it has its majority, and nothing is lost.', {
    remedy: 'wadah cluster show; a host that is gone for good: wadah cluster remove HOST',
  })
}

/** The data of before stay beside, until the next time. `copy`: they are worked on, too. */
async function setDataAside(directory: string, copy: boolean): Promise<string | undefined> {
  const data = join(directory, 'data')
  if (!existsSync(data)) return undefined
  const kept = join(directory, 'data.before-recovery')
  await rm(kept, { recursive: true, force: true })
  if (copy) await cp(data, kept, { recursive: true, preserveTimestamps: true })
  else await rename(data, kept)
  return kept
}

/** From a copy in the form a single host has it. @throws WadahError `invalid` when it is another cluster's */
async function fill(to: EtcdStore, file: string, identity: Identity): Promise<number> {
  const from = await openSqliteStore({ file, ...workerUrl() })
  try {
    const of = (await from.get(clusterKind, CLUSTER))?.value.id
    if (of !== identity.cluster)
      throw fail('invalid', `${file} is no copy of this cluster's store.`, { remedy: 'take one that is' })
    return await copyStore(from, to, ({ kind, value }) => (NOT_COPIED.has(kind) ? undefined : value))
  } finally {
    await from.close()
  }
}

/** Only this host keeps a copy now (none where the etcd is given), and all are waited for. @returns names of the other hosts */
async function writeDown(store: EtcdStore, identity: Identity, recovery: string): Promise<string[]> {
  const cluster = await store.get(clusterKind, CLUSTER)
  const page = await store.list(hostKind, { limit: 1000 })
  const hosts = page.type === 'page' ? page.items : []
  const own = hosts.find((h) => h.id === identity.host)
  if (!cluster || cluster.value.id !== identity.cluster || !own)
    throw fail('invalid', 'What is left of the store does not know this host, or is of another cluster.', {
      remedy: 'wadah cluster recover --from FILE, with a newer copy; or on another host that keeps one',
    })
  const checks: Check[] = [unchanged(cluster)]
  const writes: Write[] = [
    put(clusterKind, CLUSTER, {
      ...cluster.value,
      recovery: { id: recovery, at: new Date().toISOString(), waiting: hosts.map((h) => h.id) },
    }),
  ]
  for (const h of hosts) {
    const member = h.id === own.id && !identity.etcd
    // Which release each runs by now it says itself, when it starts.
    const { build, ...rest } = h.value
    if (h.value.member === undefined && !member && !build) continue
    checks.push(unchanged(h))
    writes.push(put(hostKind, h.id, { ...rest, member }))
  }
  await store.txn(checks, writes, randomUUID(), { timeout_ms: MEMBER_UP_MS })
  return hosts.filter((h) => h.id !== own.id).map((h) => h.value.name)
}
