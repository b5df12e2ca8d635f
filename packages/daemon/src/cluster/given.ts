/**
 * An etcd of the administrator's own, in which the cluster's store is to lie: what is given for it is read, and tried before anything is
 * written. Who runs it looks after its members, its room, its history.
 */
import { createPrivateKey, X509Certificate } from 'node:crypto'
import { readFile } from 'node:fs/promises'
import { isIP } from 'node:net'
import { fail, type WadahError } from '@wadah/api/fault'
import { hostPort } from '@wadah/api/host-port'
import { systemClock } from '@wadah/store/clock'
import { EtcdClient, type Tls } from '@wadah/store/etcd/client'
import type { RangeReply, StatusReply, TxnReply } from '@wadah/store/etcd/wire'
import type { Pair } from '../http/pair.ts'
import { certificatesIn } from './identity.ts'

/** As they stand on the command line: addresses with commas, and names of files. */
export type GivenOptions = { endpoints: string; ca: string; cert: string; key: string; prefix: string }
/** `ca`: the authorities its members are known by. `client`: what hosts show it. */
export type Given = { endpoints: string[]; prefix: string; ca: string; client: Pair }

export const DEFAULT_PREFIX = '/wadah'
const DEFAULT_PORT = '2379'
const CALL_MS = 5_000
const STATUS = 'etcdctl --endpoints … endpoint status --cluster'

/** HOST:PORT of each. @throws WadahError `invalid` */
export function parseEndpoints(text: string): string[] {
  const found = text.split(',').map((one) => {
    const url = URL.canParse(one.trim()) ? new URL(one.trim()) : undefined
    const bare = url?.username === '' && url.password === '' && /^\/?$/.test(url.pathname) && url.search === ''
    if (!url || !bare || url.hostname === '' || !['https:', 'http:'].includes(url.protocol))
      throw fail('invalid', `--etcd "${one.trim()}": an address such as https://192.0.2.21:2379 is wanted.`, {
        field: '/etcd',
        remedy: '--etcd https://HOST:2379,https://HOST:2379',
      })
    if (url.protocol === 'http:')
      throw fail('invalid', `--etcd ${one.trim()}: the keys of the cluster would go over the network in the clear.`, {
        field: '/etcd',
        remedy: `give the etcd certificates (--cert-file, --client-cert-auth), then: https://${url.host}`,
      })
    const host = url.hostname.replace(/^\[|\]$/g, '')
    // 443, which a URL leaves out, is no port that anybody means here by saying nothing.
    const port = url.port || (/:443\/?$/.test(one.trim()) ? '443' : DEFAULT_PORT)
    return isIP(host) === 0 ? `${host}:${port}` : hostPort(host, Number(port))
  })
  return [...new Set(found)]
}

/** @throws WadahError `invalid` with the option that is wrong */
export async function readGiven(o: GivenOptions): Promise<Given> {
  const endpoints = parseEndpoints(o.endpoints)
  if (!/^(\/[A-Za-z0-9._-]+){1,8}$/.test(o.prefix) || o.prefix.length > 200)
    throw fail('invalid', `--etcd-prefix ${o.prefix}: letters, digits, ".", "_" and "-" after each "/".`, {
      field: '/etcd-prefix',
      remedy: `--etcd-prefix ${DEFAULT_PREFIX}`,
    })
  const read = async <T>(option: string, file: string, of: (text: string) => T): Promise<T> => {
    try {
      return of(await readFile(file, 'utf8'))
    } catch (cause) {
      // Never what stands in the file: it may be the key.
      const why = (cause as NodeJS.ErrnoException).code === 'ENOENT' ? 'there is no such file' : 'it can not be used'
      const code = (cause as NodeJS.ErrnoException).code ?? ''
      throw fail('invalid', `--${option} ${file}: ${why}${code === '' || code === 'ENOENT' ? '' : ` (${code})`}.`, {
        field: `/${option}`,
        remedy: `--${option} FILE, in PEM form${option === 'etcd-key' ? ', not encrypted' : ''}`,
      })
    }
  }
  const ca = await read('etcd-ca', o.ca, certificatesIn)
  const cert = await read('etcd-cert', o.cert, certificatesIn)
  const key = await read('etcd-key', o.key, (text) =>
    createPrivateKey(text).export({ type: 'pkcs8', format: 'pem' }).toString(),
  )
  const own = new X509Certificate(cert)
  if (!own.checkPrivateKey(createPrivateKey(key)))
    throw fail('invalid', `The key in ${o.key} does not belong to the certificate in ${o.cert}.`, {
      field: '/etcd-key',
      remedy: '--etcd-cert and --etcd-key of one pair',
    })
  if (own.validToDate.getTime() < Date.now())
    throw fail('invalid', `The certificate in ${o.cert} ended at ${own.validToDate.toISOString()}.`, {
      field: '/etcd-cert',
      remedy: 'give one that holds',
    })
  return { endpoints, prefix: o.prefix, ca, client: { key, cert } }
}

export const givenTls = (g: Pick<Given, 'ca' | 'client'>): Tls => ({
  ca: Buffer.from(g.ca),
  client: { cert: Buffer.from(g.client.cert), key: Buffer.from(g.client.key) },
})

/** `used`: a store is there. `all`: each address must answer, for one that never did is a mistake. */
export type Wanted = { used: boolean; all: boolean }
const NEW: Wanted = { used: false, all: true }

/** What was found at one address. */
export type Looked = { endpoint: string } & ({ why: string } | { version: string; cluster: string; leader: boolean })
/** `read`: why nothing could be read by a majority. `anonymous`: it was answered without a certificate. */
export type Found = { members: Looked[]; read?: string; keys: boolean; anonymous: boolean; prefix: string }

/** Pure: why the store can't lie there; undefined when it can. */
export function judgeGiven(f: Found, o: Wanted): { detail: string; remedy: string } | undefined {
  const dead = f.members.filter((m) => 'why' in m)
  const there = f.members.filter((m) => 'version' in m)
  if (o.all ? dead.length > 0 : there.length === 0)
    return {
      detail: `The etcd does not answer at ${dead.map((d) => `${d.endpoint} (${d.why})`).join(', ')}.`,
      remedy:
        'give only addresses that answer, and the authority of its certificates with --etcd-ca; nothing was changed',
    }
  const old = there.find((m) => !canCarry(m.version))
  if (old)
    return {
      detail: `The etcd at ${old.endpoint} is of version ${old.version}; 3.4 or later of version 3 is wanted.`,
      remedy: 'upgrade it, or leave --etcd out: hosts then run their own',
    }
  const other = there.find((m) => m.cluster !== there[0]?.cluster)
  if (other)
    return {
      detail: `${there[0]?.endpoint} and ${other.endpoint} are of two different etcd clusters.`,
      remedy: 'give the addresses of one',
    }
  if (there.some((m) => !m.leader) || f.read !== undefined)
    return {
      detail: `The etcd answers, but nothing can be read by a majority of it${f.read === undefined ? ': it has no leader' : `: ${f.read}`}.`,
      remedy: `${STATUS}; where its users have roles: readwrite for ${f.prefix}/ and all below it`,
    }
  if (f.anonymous)
    return {
      detail:
        'The etcd answers whoever asks, without a certificate: everybody could read the keys of the cluster in it.',
      remedy: 'let it ask for certificates: --client-cert-auth --trusted-ca-file FILE',
    }
  if (f.keys && !o.used)
    return {
      detail: `There is something under ${f.prefix}/ in this etcd already: another cluster, or a try that was cut off.`,
      remedy: `--etcd-prefix ANOTHER; or, if nobody needs it: etcdctl del --prefix ${f.prefix}/`,
    }
  return undefined
}

/** 3.4 has all that is used. */
export function canCarry(version: string): boolean {
  const [major, minor] = version.split('.').map(Number)
  return major === 3 && (minor ?? 0) >= 4
}

/** Asks, and writes nothing. @throws WadahError `store_failed` with what is wrong */
export async function checkGiven(g: Given, o: Wanted = NEW): Promise<void> {
  const refused = judgeGiven(await look(g), o)
  if (refused) throw fail('store_failed', refused.detail, { remedy: refused.remedy, effect: 'none' })
}

async function look(g: Given): Promise<Found> {
  const clock = systemClock
  const client = new EtcdClient({ endpoints: g.endpoints, tls: givenTls(g), clock })
  const stranger = new EtcdClient({ endpoints: g.endpoints, tls: { ca: Buffer.from(g.ca) }, clock })
  const one = { ...below(g.prefix), limit: 1 }
  try {
    const members = await Promise.all(
      g.endpoints.map(async (endpoint): Promise<Looked> => {
        try {
          const s = await client.callAt<StatusReply>(endpoint, 'Maintenance', 'Status', {}, CALL_MS)
          return { endpoint, version: s.version, cluster: s.header.cluster_id, leader: s.leader !== '0' }
        } catch (error) {
          return { endpoint, why: reason(error) }
        }
      }),
    )
    const found: Found = { members, keys: false, anonymous: false, prefix: g.prefix }
    if (members.every((m) => 'why' in m)) return found
    try {
      const range = await client.call<RangeReply>('KV', 'Range', one, clock.monotonic_ms() + 2 * CALL_MS)
      found.keys = range.kvs.length > 0
    } catch (error) {
      found.read = reason(error)
    }
    const answers = await Promise.all(
      g.endpoints.map((endpoint) =>
        stranger.callAt<RangeReply>(endpoint, 'KV', 'Range', one, CALL_MS).then(
          () => true,
          () => false,
        ),
      ),
    )
    found.anonymous = answers.includes(true)
    return found
  } finally {
    client.close()
    stranger.close()
  }
}

/** Takes the prefix, so that of two that begin at once one is refused. @throws WadahError `store_failed` */
export async function takePrefix(g: Given, storeId: string): Promise<void> {
  const key = Buffer.from(`${g.prefix}/id`)
  const taken = await change<TxnReply>(g, {
    compare: [{ key, result: 'EQUAL', target: 'CREATE', create_revision: 0 }],
    success: [{ request_put: { key, value: Buffer.from(storeId) } }],
    failure: [],
  })
  if (taken.succeeded) return
  const refused = judgeGiven({ members: [], keys: true, anonymous: false, prefix: g.prefix }, NEW)
  throw fail('store_failed', refused?.detail ?? '', { remedy: refused?.remedy ?? '', effect: 'none' })
}

/** What `init` wrote of a store that was not finished. */
export async function dropPrefix(g: Given): Promise<void> {
  await change(g, { compare: [], success: [{ request_delete_range: below(g.prefix) }], failure: [] })
}

async function change<R>(g: Given, txn: object): Promise<R> {
  const client = new EtcdClient({ endpoints: g.endpoints, tls: givenTls(g), clock: systemClock })
  try {
    return await client.call<R>('KV', 'Txn', txn, systemClock.monotonic_ms() + 2 * CALL_MS)
  } catch (error) {
    throw fail('store_failed', `The etcd does not take it: ${reason(error)}`, {
      remedy: `where its users have roles: readwrite for ${g.prefix}/ and all below it; else: ${STATUS}`,
      cause: error as WadahError,
    })
  } finally {
    client.close()
  }
}

const below = (prefix: string) => ({ key: Buffer.from(`${prefix}/`), range_end: Buffer.from(`${prefix}0`) })

const reason = (error: unknown): string => {
  const { details, message } = error as { details?: string; message: string }
  return (details ?? message).slice(0, 300)
}
