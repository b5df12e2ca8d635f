/**
 * `wadahd --cluster-join`: takes this host into a cluster while no daemon runs, its VMs with it. The token comes on stdin. Until
 * `cluster.json` is written the host is alone; what the cluster wrote for it by then, another try finds again.
 */
import https from 'node:https'
import type { IncomingMessage } from 'node:http'
import { fail, toFault, WadahError } from '@wadah/api/fault'
import { readToken } from '@wadah/cluster/members/service'
import type { Raw } from '@wadah/cluster/members/brought'
import { type Build, type HostPorts, type HostRecord, hostKind } from '@wadah/cluster/records'
import { removeMember } from '@wadah/host/etcd/member'
import { everything } from '@wadah/store/copy'
import type { DaemonConfig } from '../config.ts'
import { outOfTimeFault, peerFault, textOf } from '../peers/client.ts'
import { AUTHORITY_PATH, JOIN_PATH, JOIN_SECRET_HEADER } from '../peers/listen.ts'
import { BUILD } from '../version.ts'
import { checkAddress } from './address.ts'
import {
  type Certificates,
  certificatesIn,
  dropUnfinished,
  etcdDir,
  type Identity,
  onlyCertificate,
  writeCertificates,
  writeIdentity,
} from './identity.ts'
import { type ClusterOptions, NOT_COPIED, openOwn, ownHost, refuseMember, setAside } from './init.ts'
import { checkGiven } from './given.ts'
import { etcdUid, portsFrom } from './parts.ts'
import { fingerprintOf } from './pki.ts'

/** What a host sends that wants to join. The token's secret goes before it, in a header. */
export type JoinRequest = {
  version: 1
  host: HostRecord & { address: string; ports: HostPorts }
  wadah: string
  /** Levels of the cluster's records at which it can work; absent: the first only. */
  levels?: Pick<Build, 'oldest' | 'newest'>
  now_ms: number
  uids: { base: number; count: number }
  records: Raw[]
}
export type JoinAnswer = {
  cluster: string
  certificates: Certificates
  endpoints: string[]
  /** The etcd is the administrator's. */
  etcd?: { prefix: string }
  changes: string[]
}
export type Joined = { cluster: string; host: string; name: string; changes: string[]; kept?: string }
type Token = { a: string[]; f: string; s: string }

/** RFC 1123: labels of letters, digits and hyphens. */
export const HOST_NAME = /^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$/i
/** With all its VMs' records to settle. */
const JOIN_MS = 300_000
const LOOK_MS = 10_000
const AUTHORITY_BYTES = 64 * 1024
const ANSWER_BYTES = 4 * 1024 * 1024
/** Another host may do what this one can't now: a store that it does not reach, say. */
const NEXT = new Set<string>(['unreachable', 'unavailable', 'store_failed'])

export async function joinCluster(
  config: DaemonConfig,
  o: ClusterOptions & { name?: string },
  tokenText: string,
): Promise<Joined> {
  await refuseMember(config.data)
  const token = readToken(tokenText)
  const address = checkAddress(o.address)
  const store = await openOwn(config)
  try {
    await removeMember(etcdDir(config.data), etcdUid(config))
    await dropUnfinished(config.data)
    const own = await ownHost(store, config)
    const records: Raw[] = []
    for await (const { kind, id, value } of everything(store))
      if (!NOT_COPIED.has(kind) && kind !== hostKind.name) records.push({ kind, id, value })
    const name = o.name ?? own.name
    if (!HOST_NAME.test(name))
      throw fail('invalid', `"${name}", as this host is called, is no name for a host of a cluster.`, {
        field: '/name',
        remedy: 'wadah cluster join --name NAME …',
      })
    const host = { ...own, name, address, ports: portsFrom(o.port) }
    const answer = await ask(token, {
      version: 1,
      host,
      wadah: BUILD.version,
      levels: { oldest: BUILD.oldest, newest: BUILD.newest },
      now_ms: Date.now(),
      uids: { base: config.uid_base, count: config.uid_count },
      records,
    })
    await reaches(answer)
    await writeCertificates(config.data, answer.certificates, etcdUid(config))
    const identity: Identity = {
      schema: 1,
      cluster: answer.cluster,
      host: host.id,
      name: host.name,
      address: host.address,
      ports: host.ports,
      endpoints: answer.endpoints,
      ...(answer.etcd ? { etcd: answer.etcd } : {}),
    }
    // While nobody else can have the store: who opens it next looks again whose it is.
    await writeIdentity(config.data, identity)
    await store.close()
    const kept = await setAside(config.data)
    const { cluster, changes } = answer
    return { cluster, host: host.id, name: host.name, changes, ...(kept === undefined ? {} : { kept }) }
  } finally {
    await store.close()
  }
}

/** An etcd of the administrator's may lie elsewhere than the hosts. @throws WadahError `store_failed` */
async function reaches({ certificates, endpoints, etcd }: JoinAnswer): Promise<void> {
  if (!etcd) return
  const given = { endpoints, prefix: etcd.prefix, ca: certificates.etcd_ca, client: certificates.etcd_client }
  await checkGiven(given, { used: true, all: false }).catch((error: unknown) => {
    const { detail, remedy = '' } = toFault(error)
    throw fail('store_failed', `The cluster's store is an etcd that this host can't use. ${detail}`, {
      remedy: `${remedy}. Then try again; the token still holds`,
      effect: 'partial',
      cause: error,
    })
  })
}

/** The addresses in turn; the first that can decide does. */
export async function ask(token: Token, request: JoinRequest): Promise<JoinAnswer> {
  const text = JSON.stringify(request)
  let last: unknown
  for (const address of token.a) {
    try {
      return await post(address, token, text)
    } catch (error) {
      if (!(error instanceof WadahError) || !NEXT.has(error.fault.code)) throw error
      last = error
    }
  }
  throw fail(
    'unreachable',
    `None of the cluster's hosts can take it in (${token.a.join(', ')}): ${(last as Error | undefined)?.message ?? 'the token names none'}`,
    {
      remedy: 'Is the network between the hosts open for TCP 7444 to 7446? Then try again; the token still holds.',
      cause: last,
    },
  )
}

/** Known by its authority's fingerprint, which the token carries: looked at before anything of ours is sent. */
async function post(address: string, token: Token, text: string): Promise<JoinAnswer> {
  const { said, date } = await call(address, AUTHORITY_PATH, { rejectUnauthorized: false }, LOOK_MS)
  const { authority } = said as { authority?: unknown }
  const foreign = fail('unauthenticated', `${address} is not of the cluster that the token is for.`, {
    remedy: 'on a host of the cluster: wadah cluster token',
  })
  const ca = pinned(authority, token.f)
  if (ca === undefined) throw foreign
  const tls: https.RequestOptions = {
    ca,
    // Any of its hosts will do: their names are their ids, which the token does not carry.
    checkServerIdentity: () => undefined,
  }
  const sent = await call(address, JOIN_PATH, tls, JOIN_MS, { secret: token.s, text, date })
  const answer = sent.said as Partial<JoinAnswer>
  const { certificates: c, cluster, endpoints, etcd, changes } = answer
  if (pinned(c?.hosts_ca, token.f) === undefined) throw foreign
  if (!c || typeof cluster !== 'string' || cluster === '' || !Array.isArray(endpoints) || endpoints.length === 0)
    throw fail('internal', `${address} let this host in with an answer that this release does not understand.`, {
      effect: 'unknown',
    })
  const etcd_ca = etcd ? certificatesIn(c.etcd_ca) : onlyCertificate(c.etcd_ca)
  const certificates = { ...c, hosts_ca: ca, etcd_ca }
  return { cluster, endpoints, ...(etcd ? { etcd } : {}), changes: changes ?? [], certificates }
}

/** The one certificate that the token speaks of, and nothing else of what was sent: TLS would trust all of it. */
export function pinned(sent: unknown, fingerprint: string): string | undefined {
  if (typeof sent !== 'string') return undefined
  try {
    const only = onlyCertificate(sent)
    return fingerprintOf(only) === fingerprint ? only : undefined
  } catch {
    return undefined
  }
}

/** With `body` the secret goes first; what is large and ours only after the other side has said that it knows it. */
async function call(
  address: string,
  path: string,
  tls: https.RequestOptions,
  timeout_ms: number,
  body?: { secret: string; text: string; date: string | undefined },
): Promise<{ said: unknown; date: string | undefined }> {
  const unreachable = (cause: unknown) => {
    if (cause instanceof WadahError) return cause
    const untimely = outOfTimeFault(address, cause, body?.date)
    return untimely ?? fail('unreachable', `${address}: ${(cause as Error).message}`, { cause })
  }
  try {
    const request = https.request(new URL(`https://${address}${path}`), {
      ...tls,
      method: body === undefined ? 'GET' : 'POST',
      headers:
        body === undefined
          ? {}
          : {
              'content-type': 'application/json',
              'content-length': Buffer.byteLength(body.text),
              [JOIN_SECRET_HEADER]: body.secret,
              expect: '100-continue',
            },
      minVersion: 'TLSv1.3',
      agent: false,
      signal: AbortSignal.timeout(timeout_ms),
    })
    const response = await new Promise<IncomingMessage>((resolve, reject) => {
      // Also what breaks while the answer is read: nobody listens otherwise.
      request.on('error', reject)
      request.once('response', resolve)
      if (body === undefined) return void request.end()
      request.once('continue', () => request.end(body.text))
      request.flushHeaders()
    })
    const text = await textOf(response, body === undefined ? AUTHORITY_BYTES : ANSWER_BYTES)
    // Of one that was refused nothing of ours was sent; the connection must not wait for it.
    if (!request.writableEnded) request.destroy()
    if (response.statusCode !== 200) throw peerFault(text)
    return { said: JSON.parse(text) as unknown, date: response.headers.date }
  } catch (error) {
    throw unreachable(error)
  }
}
