/**
 * `wadahd --cluster-init`: makes a cluster of one of this host while no daemon runs. VMs run on. Until `cluster.json` is written the
 * host is alone with its SQLite store, whatever happens; after it that store is only a copy.
 */
import { existsSync } from 'node:fs'
import { mkdir, rename } from 'node:fs/promises'
import { isIP } from 'node:net'
import { hostname, networkInterfaces } from 'node:os'
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
import { openSqliteStore } from '@wadah/store/sqlite/sqlite-store'
import { put } from '@wadah/store/store'
import type { DaemonConfig } from '../config.ts'
import { dropUnfinished, etcdDir, type Identity, readIdentity, writeCertificates, writeIdentity } from './identity.ts'
import { workerUrl } from '../worker-url.ts'
import { certify, etcdUid, memberPlan, openStore, portsFrom } from './parts.ts'
import { makeAuthority } from './pki.ts'

export type ClusterOptions = { address: string; port: number }
export type Initiated = { cluster: string; host: string; address: string; records: number; kept?: string }

const MEMBER_UP_MS = 60_000
/** Volatile, or of a daemon that is no more. */
export const NOT_COPIED = new Set(['access/session', 'access/setup', 'http/reply'])

export async function initCluster(config: DaemonConfig, o: ClusterOptions): Promise<Initiated> {
  if (await readIdentity(config.data))
    throw fail('wrong_state', 'This host is of a cluster already.', { remedy: 'wadah cluster show' })
  checkAddress(o.address)
  await mkdir(config.data, { recursive: true, mode: 0o711 })
  const now_ms = Date.now()
  const store = await openOwn(config)
  try {
    // Of a try that was cut off.
    await removeMember(etcdDir(config.data))
    await dropUnfinished(config.data)
    const [known] = await readHosts(store)
    const host: HostRecord = known ?? {
      schema: 1,
      id: newId('host', randomBytes),
      name: config.host_name ?? hostname(),
      created_at: new Date(now_ms).toISOString(),
    }
    const ports = portsFrom(o.port)
    const cluster = randomUUID()
    const [hosts, etcd, moves] = await Promise.all(
      ['hosts', 'etcd', 'moves'].map((purpose) => makeAuthority(purpose, now_ms)),
    )
    if (!hosts || !etcd || !moves) throw new TypeError('three authorities')
    const certificates = await certify({ hosts, etcd }, { id: host.id, address: o.address }, now_ms)
    await writeCertificates(config.data, certificates, etcdUid(config))
    const identity: Identity = {
      schema: 1,
      cluster,
      host: host.id,
      name: host.name,
      address: o.address,
      ports,
      endpoints: [hostPort(o.address, ports.etcd_client)],
      member: {
        name: host.id,
        initial_cluster: `${host.id}=https://${hostPort(o.address, ports.etcd_peer)}`,
        initial_state: 'new',
      },
    }
    const plan = memberPlan(config, identity)
    if (plan) await ensureMember(plan, AbortSignal.timeout(MEMBER_UP_MS))
    const { endpoints } = identity
    const to = await openStore({ endpoints, certificates, data: config.data, timeout_ms: MEMBER_UP_MS })
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
          put(hostKind, host.id, { ...host, ...boot, address: o.address, ports, member: true } satisfies HostRecord),
          put(clusterKind, CLUSTER, {
            schema: 1,
            id: cluster,
            created_at: new Date(now_ms).toISOString(),
            level: LEVEL,
          }),
          put(authoritiesKind, CLUSTER, { schema: 1, hosts, etcd, moves }),
        ],
        randomUUID(),
      )
    } finally {
      await to.close()
    }
    await store.close()
    await writeIdentity(config.data, identity)
    const kept = await setAside(config.data)
    return { cluster, host: host.id, address: o.address, records, ...(kept === undefined ? {} : { kept }) }
  } catch (error) {
    await store.close()
    if (!(await readIdentity(config.data))) await removeMember(etcdDir(config.data))
    if (error instanceof StoreError) throw new WadahError(storeFault(error), error)
    throw error
  }
}

/** The store of a host that is alone, while no daemon has it. @throws WadahError `wrong_state` when one does */
export async function openOwn(config: DaemonConfig) {
  return openSqliteStore({ file: join(config.data, 'store.db'), ...workerUrl() }).catch((error: unknown) => {
    if (!(error instanceof StoreError)) throw error
    if (error.kind === 'locked')
      throw fail('wrong_state', 'A wadahd has the store open; this is done while none runs.', {
        remedy: 'systemctl stop wadahd, or wadah down (VMs run on)',
        cause: error,
      })
    throw new WadahError(storeFault(error), error)
  })
}

async function readHosts(store: Awaited<ReturnType<typeof openOwn>>): Promise<HostRecord[]> {
  const page = await store.list(hostKind, { limit: 10 })
  return page.type === 'page' ? page.items.map((r) => r.value) : []
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

/** The others must reach it there: an address of this machine, and none that each has. */
export function checkAddress(address: string): void {
  const remedy = 'ip -brief address; then: --address ADDRESS'
  if (isIP(address) === 0)
    throw fail('invalid', `--address ${address}: an IP address of this host is wanted, which the others can reach.`, {
      field: '/address',
      remedy,
    })
  const own = Object.values(networkInterfaces()).flatMap((list) => (list ?? []).map((a) => a.address))
  if (!own.includes(address))
    throw fail('invalid', `${address} is no address of this host; it has ${own.join(', ')}.`, {
      field: '/address',
      remedy,
    })
}
