/** What a host of a cluster keeps on its own disk: who it is, where the store is, its certificates. Without it the host is alone. */
import { createPrivateKey, X509Certificate } from 'node:crypto'
import { chmod, mkdir, readFile, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { fail } from '@wadah/api/fault'
import { MEMBER_PAIR, MEMBER_TRUSTS } from '@wadah/host/etcd/member'
import { openRegular, replaceFile, syncDir } from '@wadah/host/system/files'
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
  /** The etcd is the administrator's, at these endpoints: no host has a member. */
  etcd?: { prefix: string }
  /** Of the store that this host knows: what was before it is of another past. */
  recovery?: string
  /** How this host's own member was first started; absent where it has none. */
  member?: { name: string; initial_cluster: string; initial_state: 'new' | 'existing' }
}
/**
 * The authorities without their keys: those are in the store. Where the etcd is given, `etcd_ca` (one or more) and `etcd_client` came
 * with it, and there is no member.
 */
export type Certificates = { hosts_ca: string; host: Pair; etcd_ca: string; etcd_client: Pair; etcd_member?: Pair }

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

/** Its member has begun: should its data be lost, it must not begin an empty store. */
export function settled(identity: Identity): Identity {
  return identity.member ? { ...identity, member: { ...identity.member, initial_state: 'existing' } } : identity
}

/** From this moment on the host is of the cluster. */
export async function writeIdentity(data: string, identity: Identity): Promise<void> {
  await replaceFile(identityFile(data), JSON.stringify(identity, null, 2), 0o600)
}

const AUTHORITIES = { hosts_ca: 'hosts-ca.crt', etcd_ca: MEMBER_TRUSTS } as const
/** Key and certificate lie in one file, so that no crash leaves one of them without the other. */
const PAIRS = { host: 'host.pem', etcd_client: 'etcd-client.pem', etcd_member: MEMBER_PAIR } as const

/** `gid`: of the member of etcd, which may read its own key and no other, and change none. */
export async function writeCertificates(data: string, certificates: Certificates, gid: number | null): Promise<void> {
  const dir = clusterDir(data)
  await mkdir(dir, { recursive: true })
  // Whatever the umask: the member looks up its files in it.
  await chmod(dir, 0o711)
  await syncDir(data)
  for (const [of, file] of Object.entries(AUTHORITIES) as ['hosts_ca' | 'etcd_ca', string][])
    await replaceFile(join(dir, file), certificates[of], 0o644)
  for (const [of, file] of Object.entries(PAIRS) as [keyof typeof PAIRS, string][]) {
    const pair = certificates[of]
    if (!pair) continue
    const { key, cert } = pair
    const shared = of === 'etcd_member' && gid !== null
    await replaceFile(join(dir, file), `${key.trim()}\n${cert.trim()}`, shared ? 0o640 : 0o600, shared ? gid : null)
  }
}

/** `given`: the etcd is the administrator's. */
export async function readCertificates(data: string, given = false): Promise<Certificates> {
  const dir = clusterDir(data)
  const read = async <T>(name: string, of: (text: string) => T): Promise<T> => {
    try {
      await using file = await openRegular(join(dir, name))
      return of(await file.readFile('utf8'))
    } catch (error) {
      const cause = error as Error
      throw fail('invalid', `${join(dir, name)} can't be read: ${cause.message}`, {
        remedy: 'put it back from a copy, or take this host out of the cluster and let it join anew',
        cause,
      })
    }
  }
  return {
    hosts_ca: await read(AUTHORITIES.hosts_ca, onlyCertificate),
    host: await read(PAIRS.host, pairOf),
    etcd_ca: await read(AUTHORITIES.etcd_ca, given ? certificatesIn : onlyCertificate),
    etcd_client: await read(PAIRS.etcd_client, pairOf),
    ...(given ? {} : { etcd_member: await read(PAIRS.etcd_member, pairOf) }),
  }
}

/**
 * The one certificate of this text, written anew: TLS trusts each that stands in the text it is given, and other readers look at the
 * first only. @throws Error when there is none, or more than one
 */
export function onlyCertificate(text: string): string {
  const count = text.split('-----BEGIN ').length - 1
  if (count !== 1) throw new Error(`it holds ${count} things; one certificate is wanted`)
  return new X509Certificate(text).toString()
}

/** All certificates of this text, and nothing else of it. @throws Error when there is none */
export function certificatesIn(text: string): string {
  const all = text.match(/-----BEGIN CERTIFICATE-----[\s\S]+?-----END CERTIFICATE-----/g) ?? []
  if (all.length === 0) throw new Error('there is no certificate in it')
  return all.map((one) => new X509Certificate(one).toString()).join('')
}

function pairOf(text: string): Pair {
  const at = text.indexOf('-----BEGIN CERTIFICATE-----')
  if (at < 0) throw new Error('there is no certificate in it')
  const [key, cert] = [text.slice(0, at), text.slice(at)]
  if (!new X509Certificate(cert).checkPrivateKey(createPrivateKey(key)))
    throw new Error('the key does not belong to the certificate')
  return { key, cert }
}

/**
 * What `init` or `join` left behind without having come to its end, or all that makes this host one of a cluster. First what says so:
 * cut off in between it is alone.
 */
export async function dropUnfinished(data: string): Promise<void> {
  await rm(identityFile(data), { force: true })
  await rm(clusterDir(data), { recursive: true, force: true })
}
