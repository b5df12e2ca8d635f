/**
 * `wadahd --cluster-init`: makes a cluster of one of this host while no daemon runs. VMs run on. Until `cluster.json` is written the
 * host is alone with its SQLite store, whatever happens; after it that store is only a copy.
 */
import { existsSync } from 'node:fs'
import { chmod, mkdir, rename } from 'node:fs/promises'
import { hostname } from 'node:os'
import { join } from 'node:path'
import { randomBytes, randomUUID } from 'node:crypto'
import { fail, WadahError } from '@wadah/api/fault'
import { hostPort } from '@wadah/api/host-port'
import { newId } from '@wadah/api/ids'
import { storeFault } from '@wadah/cluster/jobs/faults'
import { authoritiesKind, CLUSTER, clusterKind, LEVEL } from '@wadah/cluster/members/records'
import { type HostRecord, hostKind } from '@wadah/cluster/records'
import { ensureMember, removeMember } from '@wadah/host/etcd/member'
import { syncDir } from '@wadah/host/system/files'
import { copyStore } from '@wadah/store/copy'
import { StoreError } from '@wadah/store/errors'
import { openSqliteStore, type SqliteStore } from '@wadah/store/sqlite/sqlite-store'
import { absent, put } from '@wadah/store/store'
import type { DaemonConfig } from '../config.ts'
import {
  dropUnfinished,
  etcdDir,
  type Identity,
  readIdentity,
  settled,
  writeCertificates,
  writeIdentity,
} from './identity.ts'
import { BUILD } from '../version.ts'
import { workerUrl } from '../worker-url.ts'
import { checkAddress } from './address.ts'
import { checkGiven, dropPrefix, type GivenOptions, readGiven, takePrefix } from './given.ts'
import { certify, etcdUid, memberPlan, openStore, portsFrom, withGiven } from './parts.ts'
import { makeAuthority } from './pki.ts'

export type ClusterOptions = { address: string; port: number; etcd?: GivenOptions }
export type Initiated = { cluster: string; host: string; address: string; records: number; kept?: string }

const MEMBER_UP_MS = 60_000
/** Volatile, or of a daemon that is no more. */
export const NOT_COPIED = new Set(['access/session', 'access/setup', 'http/reply'])

export async function initCluster(config: DaemonConfig, o: ClusterOptions): Promise<Initiated> {
  await refuseMember(config.data)
  const address = checkAddress(o.address)
  const given = o.etcd && (await readGiven(o.etcd))
  if (given) await checkGiven(given)
  const now_ms = Date.now()
  const store = await openOwn(config)
  let took = false
  try {
    // Of a try that was cut off.
    await removeMember(etcdDir(config.data), etcdUid(config))
    await dropUnfinished(config.data)
    const host = await ownHost(store, config)
    const ports = portsFrom(o.port)
    const cluster = randomUUID()
    const [hosts, etcd] = await Promise.all([makeAuthority('hosts', now_ms), makeAuthority('etcd', now_ms)])
    const own = await certify({ hosts, etcd }, { id: host.id, address }, now_ms)
    const certificates = given ? withGiven(own, given) : own
    if (given) await takePrefix(given, randomUUID())
    took = given !== undefined
    await writeCertificates(config.data, certificates, etcdUid(config))
    const identity: Identity = {
      schema: 1,
      cluster,
      host: host.id,
      name: host.name,
      address,
      ports,
      ...(given
        ? { endpoints: given.endpoints, etcd: { prefix: given.prefix } }
        : {
            endpoints: [hostPort(address, ports.etcd_client)],
            member: {
              name: host.id,
              initial_cluster: `${host.id}=https://${hostPort(address, ports.etcd_peer)}`,
              initial_state: 'new' as const,
            },
          }),
    }
    const plan = memberPlan(config, identity)
    if (plan) await ensureMember(plan, AbortSignal.timeout(MEMBER_UP_MS))
    const to = await openStore({ ...identity, certificates, data: config.data, timeout_ms: MEMBER_UP_MS })
    let records: number
    try {
      records = await copyStore(store, to, ({ kind, value }) => {
        if (NOT_COPIED.has(kind) || kind === hostKind.name) return undefined
        return value
      })
      const boot = host.boot && { boot: { ...host.boot, store: to.id } }
      await to.txn(
        [],
        [
          put(hostKind, host.id, {
            ...host,
            ...boot,
            address,
            ports,
            member: !given,
            build: BUILD,
          } satisfies HostRecord),
          put(clusterKind, CLUSTER, {
            schema: 1,
            id: cluster,
            created_at: new Date(now_ms).toISOString(),
            level: LEVEL,
          }),
          put(authoritiesKind, CLUSTER, { schema: 1, hosts, etcd }),
        ],
        randomUUID(),
      )
    } finally {
      await to.close()
    }
    // While nobody else can have the store: who opens it next looks again whose it is.
    await writeIdentity(config.data, settled(identity))
    await store.close()
    const kept = await setAside(config.data)
    return { cluster, host: host.id, address, records, ...(kept === undefined ? {} : { kept }) }
  } catch (error) {
    if (!(await readIdentity(config.data))) {
      await removeMember(etcdDir(config.data), etcdUid(config))
      if (given && took) await dropPrefix(given).catch(() => undefined)
    }
    await store.close()
    if (error instanceof StoreError) throw new WadahError(storeFault(error), error)
    throw error
  }
}

const OF_ONE = 'This host is of a cluster already.'

/**
 * The store of a host that is alone, while nobody else has it: no daemon, and no other `init` or `join`.
 * @throws WadahError `wrong_state` when somebody does, or when the host is of a cluster by now
 */
export async function openOwn(config: DaemonConfig): Promise<SqliteStore> {
  await mkdir(config.data, { recursive: true })
  // Whatever the umask: the member of etcd, and VMs, look up their files in it.
  await chmod(config.data, 0o711)
  const store = await openSqliteStore({ file: join(config.data, 'store.db'), ...workerUrl() }).catch(
    async (error: unknown) => {
      // Who waited for it may find it put aside.
      await refuseMember(config.data)
      if (!(error instanceof StoreError)) throw error
      if (error.kind === 'locked')
        throw fail('wrong_state', 'A wadahd has the store open, or another init or join is under way.', {
          remedy: 'systemctl stop wadahd, or wadah down (VMs run on)',
          cause: error,
        })
      throw new WadahError(storeFault(error), error)
    },
  )
  try {
    await refuseMember(config.data)
    return store
  } catch (error) {
    await store.close()
    throw error
  }
}

/** @throws WadahError `wrong_state` when this host is of a cluster */
export async function refuseMember(data: string): Promise<void> {
  if (await readIdentity(data)) throw fail('wrong_state', OF_ONE, { remedy: 'wadah cluster show' })
}

/** This host's record. Written down before anybody hears of it: a try that was cut off is repeated by the same host. */
export async function ownHost(
  store: SqliteStore,
  config: Pick<DaemonConfig, 'host_name'>,
  now_ms = Date.now(),
): Promise<HostRecord> {
  const page = await store.list(hostKind, { limit: 10 })
  const known = page.type === 'page' ? page.items[0]?.value : undefined
  if (known) return known
  const made: HostRecord = {
    schema: 1,
    id: newId('host', randomBytes),
    name: config.host_name ?? hostname(),
    created_at: new Date(now_ms).toISOString(),
  }
  await store.txn([absent(hostKind, made.id)], [put(hostKind, made.id, made)], randomUUID())
  return made
}

/** The store of before is kept beside, under a name that no daemon opens. */
export async function setAside(data: string): Promise<string | undefined> {
  const file = join(data, 'store.db')
  if (!existsSync(file)) return undefined
  const kept = `${file}.single-${new Date().toISOString().replaceAll(/[:.]/g, '-')}`
  for (const end of ['-wal', '-shm', '']) if (existsSync(file + end)) await rename(file + end, kept + end)
  await syncDir(data)
  return kept
}
