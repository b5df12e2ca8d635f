/**
 * `wadahd --cluster-join`: takes this host into a cluster while no daemon runs, its VMs with it. The token comes on stdin. Until
 * `cluster.json` is written the host is alone; what the cluster wrote for it by then, another try finds again.
 */
import { randomBytes } from 'node:crypto'
import { mkdir } from 'node:fs/promises'
import https from 'node:https'
import { hostname } from 'node:os'
import { type Fault, fail, WadahError } from '@wadah/api/fault'
import { newId } from '@wadah/api/ids'
import { readToken } from '@wadah/cluster/members/service'
import type { Raw } from '@wadah/cluster/members/settle'
import { type HostPorts, type HostRecord, hostKind } from '@wadah/cluster/records'
import { removeMember } from '@wadah/host/etcd/member'
import { everything } from '@wadah/store/copy'
import type { DaemonConfig } from '../config.ts'
import { textOf } from '../peers/client.ts'
import { VERSION } from '../version.ts'
import {
  type Certificates,
  dropUnfinished,
  etcdDir,
  type Identity,
  readIdentity,
  writeCertificates,
  writeIdentity,
} from './identity.ts'
import { checkAddress, type ClusterOptions, NOT_COPIED, openOwn, setAside } from './init.ts'
import { etcdUid, portsFrom } from './parts.ts'
import { fingerprintOf } from './pki.ts'

/** What a host sends that wants to join. */
export type JoinRequest = {
  version: 1
  secret: string
  host: HostRecord & { address: string; ports: HostPorts }
  wadah: string
  now_ms: number
  boot?: string
  uids: { base: number; count: number }
  records: Raw[]
}
export type JoinAnswer = {
  cluster: string
  certificates: Certificates
  endpoints: string[]
  changes: string[]
}
export type Joined = { cluster: string; host: string; name: string; changes: string[]; kept?: string }

/** With all its VMs' records to settle. */
const JOIN_MS = 300_000

export async function joinCluster(
  config: DaemonConfig,
  o: ClusterOptions & { name?: string },
  tokenText: string,
): Promise<Joined> {
  if (await readIdentity(config.data))
    throw fail('wrong_state', 'This host is of a cluster already.', { remedy: 'wadah cluster show' })
  const token = readToken(tokenText)
  checkAddress(o.address)
  await mkdir(config.data, { recursive: true, mode: 0o711 })
  const store = await openOwn(config)
  try {
    await removeMember(etcdDir(config.data))
    await dropUnfinished(config.data)
    const records: Raw[] = []
    for await (const { kind, id, value } of everything(store))
      if (!NOT_COPIED.has(kind)) records.push({ kind, id, value })
    const known = records.find((r) => r.kind === hostKind.name)?.value as HostRecord | undefined
    const own = known ?? {
      schema: 1 as const,
      id: newId('host', randomBytes),
      name: config.host_name ?? hostname(),
      created_at: new Date().toISOString(),
    }
    const host = { ...own, name: o.name ?? own.name, address: o.address, ports: portsFrom(o.port) }
    const answer = await ask(token, {
      version: 1,
      secret: token.s,
      host,
      wadah: VERSION,
      now_ms: Date.now(),
      uids: { base: config.uid_base, count: config.uid_count },
      records,
    })
    await writeCertificates(config.data, answer.certificates, etcdUid(config))
    const identity: Identity = {
      schema: 1,
      cluster: answer.cluster,
      host: host.id,
      name: host.name,
      address: host.address,
      ports: host.ports,
      endpoints: answer.endpoints,
    }
    await store.close()
    await writeIdentity(config.data, identity)
    const kept = await setAside(config.data)
    const { cluster, changes } = answer
    return { cluster, host: host.id, name: host.name, changes, ...(kept === undefined ? {} : { kept }) }
  } finally {
    await store.close()
  }
}

/** The addresses in turn; the first that answers decides. */
async function ask(token: { a: string[]; f: string }, request: JoinRequest): Promise<JoinAnswer> {
  const text = JSON.stringify(request)
  let last: unknown
  for (const address of token.a) {
    try {
      return await post(address, token.f, text)
    } catch (error) {
      if (error instanceof WadahError && error.fault.code !== 'unreachable') throw error
      last = error
    }
  }
  throw fail(
    'unreachable',
    `None of the cluster's hosts answers (${token.a.join(', ')}): ${(last as Error | undefined)?.message ?? 'the token names none'}`,
    {
      remedy: 'Is the network between the hosts open for TCP 7444 to 7446? Then try again; the token still holds.',
      cause: last,
    },
  )
}

/** Known by its authority's fingerprint, which the token carries: looked at before anything of ours is sent. */
async function post(address: string, fingerprint: string, text: string): Promise<JoinAnswer> {
  const authority = await call<{ authority: string }>(address, '/peer/v1/authority', undefined, {
    rejectUnauthorized: false,
  })
  if (typeof authority.authority !== 'string' || !isOf(authority.authority, fingerprint))
    throw fail('unauthenticated', `${address} is not of the cluster that the token is for.`, {
      remedy: 'on a host of the cluster: wadah cluster token',
    })
  return call<JoinAnswer>(address, '/peer/v1/join', text, {
    ca: authority.authority,
    // Any of its hosts will do: their names are their ids, which the token does not carry.
    checkServerIdentity: () => undefined,
  })
}

function isOf(authority: string, fingerprint: string): boolean {
  try {
    return fingerprintOf(authority) === fingerprint
  } catch {
    return false
  }
}

function call<T>(address: string, path: string, text: string | undefined, tls: https.RequestOptions): Promise<T> {
  return new Promise((resolve, reject) => {
    const request = https.request(new URL(`https://${address}${path}`), {
      ...tls,
      method: text === undefined ? 'GET' : 'POST',
      ...(text === undefined
        ? {}
        : { headers: { 'content-type': 'application/json', 'content-length': Buffer.byteLength(text) } }),
      minVersion: 'TLSv1.3',
      agent: false,
      timeout: text === undefined ? 10_000 : JOIN_MS,
    })
    request.once('timeout', () => request.destroy(new Error('it did not answer in time')))
    request.once('error', (cause) => reject(fail('unreachable', `${address}: ${cause.message}`, { cause })))
    request.once('response', (response) => {
      textOf(response, 64 * 1024 * 1024).then(
        (body) => {
          const said = JSON.parse(body) as T | Fault
          if (response.statusCode === 200) resolve(said as T)
          else reject(new WadahError(said as Fault))
        },
        (cause: Error) => reject(fail('unreachable', `${address}: ${cause.message}`, { cause })),
      )
    })
    request.end(text)
  })
}
