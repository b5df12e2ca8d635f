/** What a host of a cluster keeps on its own disk: who it is, where the store is, its certificates. Without it the host is alone. */
import { X509Certificate } from 'node:crypto'
import { constants } from 'node:fs'
import { mkdir, open, readFile, rename, rm } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { fail } from '@wadah/api/fault'
import { syncDir } from '@wadah/host/system/files'
import type { HostPorts } from '@wadah/cluster/records'
import type { Pair } from '../http/pair.ts'

export type Identity = {
  schema: 1
  cluster: string
  host: string
  name: string
  address: string
  ports: HostPorts
  /** HOST:PORT of the members of etcd, as last known. */
  endpoints: string[]
  /** How this host's own member was first started; absent where it has none. */
  member?: { name: string; initial_cluster: string; initial_state: 'new' | 'existing' }
}
/** The authorities without their keys: those are in the store. */
export type Certificates = { hosts_ca: string; host: Pair; etcd_ca: string; etcd_client: Pair; etcd_member: Pair }

export const clusterDir = (data: string) => join(data, 'cluster')
export const etcdDir = (data: string) => join(data, 'etcd')
const identityFile = (data: string) => join(clusterDir(data), 'cluster.json')

/** @throws WadahError `invalid` when it is there and can't be read */
export async function readIdentity(data: string): Promise<Identity | undefined> {
  const file = identityFile(data)
  let text: string
  try {
    text = await readFile(file, 'utf8')
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined
    throw error
  }
  try {
    const identity = JSON.parse(text) as Identity
    if (identity.schema !== 1) throw new Error(`schema ${String(identity.schema)} is none that this release knows`)
    return identity
  } catch (cause) {
    throw fail('invalid', `${file} can't be read: ${(cause as Error).message}`, { cause })
  }
}

/** From this moment on the host is of the cluster. */
export async function writeIdentity(data: string, identity: Identity): Promise<void> {
  await replace(identityFile(data), JSON.stringify(identity, null, 2), 0o600)
}

const FILES: { file: string; mode: number; of: (c: Certificates) => string }[] = [
  { file: 'hosts-ca.crt', mode: 0o644, of: (c) => c.hosts_ca },
  { file: 'host.key', mode: 0o600, of: (c) => c.host.key },
  { file: 'host.crt', mode: 0o644, of: (c) => c.host.cert },
  { file: 'etcd-ca.crt', mode: 0o644, of: (c) => c.etcd_ca },
  { file: 'etcd-client.key', mode: 0o600, of: (c) => c.etcd_client.key },
  { file: 'etcd-client.crt', mode: 0o644, of: (c) => c.etcd_client.cert },
  { file: 'etcd-member.key', mode: 0o600, of: (c) => c.etcd_member.key },
  { file: 'etcd-member.crt', mode: 0o644, of: (c) => c.etcd_member.cert },
]

/** `uid`: of the member of etcd, which reads its own key and no other. */
export async function writeCertificates(data: string, certificates: Certificates, uid: number | null): Promise<void> {
  const dir = clusterDir(data)
  await mkdir(dir, { recursive: true, mode: 0o711 })
  for (const { file, mode, of } of FILES) {
    const owner = file.startsWith('etcd-member') ? uid : null
    await replace(join(dir, file), of(certificates), mode, owner)
  }
}

export async function readCertificates(data: string): Promise<Certificates> {
  const dir = clusterDir(data)
  const read = async (name: string) => {
    const text = await readFile(join(dir, name), 'utf8').catch((cause: NodeJS.ErrnoException) => {
      throw fail('invalid', `${join(dir, name)} can't be read: ${cause.message}`, {
        remedy: 'put it back from a copy, or take this host out of the cluster and let it join anew',
        cause,
      })
    })
    if (name.endsWith('.crt')) void new X509Certificate(text)
    return text
  }
  const pair = async (name: string): Promise<Pair> => ({
    key: await read(`${name}.key`),
    cert: await read(`${name}.crt`),
  })
  return {
    hosts_ca: await read('hosts-ca.crt'),
    host: await pair('host'),
    etcd_ca: await read('etcd-ca.crt'),
    etcd_client: await pair('etcd-client'),
    etcd_member: await pair('etcd-member'),
  }
}

/** What `init` or `join` left behind without having come to its end. */
export async function dropUnfinished(data: string): Promise<void> {
  await rm(clusterDir(data), { recursive: true, force: true })
}

/** A reader sees the old file or the new one, also after a crash. */
async function replace(path: string, text: string, mode: number, uid: number | null = null): Promise<void> {
  const { O_WRONLY, O_CREAT, O_EXCL, O_NOFOLLOW } = constants
  const beside = `${path}.new`
  await rm(beside, { force: true })
  {
    await using file = await open(beside, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, mode)
    await file.writeFile(`${text.trimEnd()}\n`)
    if (uid !== null) await file.chown(uid, uid)
    await file.sync()
  }
  await rename(beside, path)
  await syncDir(dirname(path))
}
