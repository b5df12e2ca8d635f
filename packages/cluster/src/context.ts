/** What every service and every job step of this room works with. */
import { WadahError, fail, fault, toFault } from '@wadah/api/fault'
import type { FaultCode } from '@wadah/api/fault'
import { isId } from '@wadah/api/ids'
import type { Machine } from '@wadah/ports/machine'
import type { ByteStream } from '@wadah/ports/volumes'
import type { CachedView } from '@wadah/store/cache'
import type { Clock } from '@wadah/store/clock'
import { StoreError } from '@wadah/store/errors'
import { type Check, type Kind, type Rec, type Store, type Write } from '@wadah/store/store'
import { storeFault } from './jobs/faults.ts'
import type { MessageLink } from './migration/link.ts'
import type { Children } from './host/children.ts'
import { indexKeys, indexKind, type NamedKind } from './records.ts'

export type Config = {
  /** First uid given to a VM. */
  uid_base: number
  uid_count: number
  /** RAM promised to running VMs ÷ RAM of the host that is still accepted. */
  memory_overcommit: number
  /** Where a published port listens when no address is given. */
  publish_address: string
  /** Most that an imported file, or a disk in it, may have; 64 TiB when left out. */
  import_max_gib?: number
  /** Moves from this host, and to it, at a time; 4 when left out. */
  moves_at_once?: number
  /** What this host is called, where its own host name is not it. */
  host_name?: string
}

export type Deps = {
  store: Store
  view: CachedView
  machine: Machine
  clock: Clock
  randomBytes: (n: number) => Uint8Array
  hostId: string
  /** RAM of this host. */
  hostMemoryMib: number
  config: Config
  log: (line: string) => void
  /** Brings bridges, names and published ports in line with the records. */
  syncNetworks: () => Promise<void>
  /** In a cluster: a question to another host, by path. */
  askHost?: <T>(host: string, path: string, body: unknown, timeout_ms: number) => Promise<T>
  /** In a cluster: streams to another host for a move. */
  moves?: {
    open(host: string, signal: AbortSignal): Promise<MessageLink>
    /** Of a stopped VM. */
    bring(host: string, signal: AbortSignal): Promise<MessageLink>
    /** A volume of that VM: connects the stream with who waits for it there. Resolves when it has ended, whyever. */
    carry(host: string, what: { job: string; volume: string }, stream: ByteStream, signal: AbortSignal): Promise<void>
  }
  /** In a cluster: gets the files of an image that another host has. */
  haveImage?: (image: string) => Promise<void>
  /** Jobs of VMs that jobs of the host ask for; there once the services are. */
  children?: Children
}

const NOUNS: Record<NamedKind, string> = {
  vm: 'VM',
  pool: 'pool',
  volume: 'volume',
  image: 'image',
  network: 'network',
  'firewall-group': 'security group',
  rule: 'rule',
}

/** How it is called on the command line. */
export const commandOf = (noun: NamedKind): string => `wadah ${noun.replace('-', ' ')}`

/** A record by name or id. @throws WadahError `not_found` that names the command listing what there is */
export function find<T>(
  deps: Deps,
  noun: NamedKind,
  kind: Kind<T>,
  project: string,
  ref: string,
  field?: string,
): Rec<T> {
  if (isId(ref)) {
    const rec = deps.view.get(kind, ref)
    if (rec) return rec
  } else {
    const holder = deps.view.get(indexKind, indexKeys.name(noun, project, ref))?.value.holder
    const rec = holder === undefined ? undefined : deps.view.get(kind, holder)
    if (rec) return rec
  }
  throw fail('not_found', `There is no ${NOUNS[noun]} "${ref}".`, { field, remedy: `${commandOf(noun)} list` })
}

/** Commits, or throws the fault that `explain` makes of the first check that failed. Returns the revision. */
export async function commit(
  deps: Pick<Deps, 'store' | 'view' | 'randomBytes'>,
  checks: readonly Check[],
  writes: readonly Write[],
  explain: (failed: Check) => WadahError = conflict,
): Promise<number> {
  const token = Buffer.from(deps.randomBytes(16)).toString('hex')
  try {
    const done = await deps.store.txn(checks, writes, token)
    if (!done.ok) throw explain((done.failed[0] as { check: Check }).check)
    await deps.view.waitFor(done.revision)
    return done.revision
  } catch (error) {
    if (error instanceof StoreError) throw new WadahError(storeFault(error), error)
    throw error
  }
}

/** Reads, decides and commits again as long as somebody else was quicker; `tries` times in all. */
export async function againOnConflict<T>(tries: number, work: () => Promise<T>): Promise<T> {
  for (let i = 1; ; i++) {
    try {
      return await work()
    } catch (error) {
      if (i >= tries || !(error instanceof WadahError) || error.fault.code !== 'conflict') throw error
    }
  }
}

/** From here on the view shows everything that was committed up to now. */
export async function caughtUp({ store, view }: Pick<Deps, 'store' | 'view'>): Promise<void> {
  await view.waitFor(await store.current())
}

/** What was just made, for the answer. @throws WadahError `gone` when somebody deleted it at the same moment */
export async function made<T>(read: () => T | Promise<T>): Promise<T> {
  try {
    return await read()
  } catch (error) {
    if (error instanceof WadahError && error.fault.code === 'not_found')
      throw fail('gone', 'It was made, and deleted again by somebody else at the same moment.', { cause: error })
    throw error
  }
}

export function conflict(failed: Check): WadahError {
  return fail('conflict', `Somebody else changed it at the same moment (${failed.kind}).`, { remedy: 'try again' })
}

/** What a lost race for an index record means. */
export function indexConflict(failed: Check): WadahError {
  if (failed.kind !== indexKind.name) return conflict(failed)
  const [what, ...rest] = failed.id.split('/')
  const codes: Record<string, [FaultCode, string]> = {
    name: ['name_taken', `The name "${rest.at(-1)}" is in use.`],
    mac: ['address_taken', `The MAC address ${rest[0]} is in use.`],
    address: ['address_taken', `The address ${rest.at(-1)} is in use.`],
    port: ['port_taken', `Port ${rest.at(-1)}/${rest[1]} of the host is published already.`],
  }
  const [code, detail] = codes[what ?? ''] ?? ['conflict', 'Somebody else took it at the same moment.']
  return new WadahError(fault(code, detail))
}

/** Refuses when `If-Match` names another generation. */
export function checkGeneration(rec: Rec<unknown>, wanted: number | undefined): void {
  if (wanted !== undefined && rec.version !== wanted) {
    throw fail('precondition_failed', `It is at generation ${rec.version} by now, not at ${wanted}.`, {
      remedy: 'read it again, then repeat',
    })
  }
}

/** A page of a list that is in order of `key`; the cursor is the last key given out. */
export function page<T>(
  items: readonly T[],
  key: (item: T) => string,
  q: { limit?: number; cursor?: string },
): { items: T[]; next?: string } {
  const limit = q.limit ?? 100
  let from = 0
  if (q.cursor !== undefined) {
    const after = readCursor(q.cursor)
    from = items.findIndex((item) => key(item) > after)
    if (from < 0) from = items.length
  }
  const part = items.slice(from, from + limit)
  const last = part.at(-1)
  return from + limit < items.length && last !== undefined
    ? { items: part, next: Buffer.from(key(last)).toString('base64url') }
    : { items: part }
}

/** @throws WadahError `invalid` when it is not one that we gave out */
export function readCursor(cursor: string): string {
  const text = Buffer.from(cursor, 'base64url').toString('latin1')
  if (!/^[a-z0-9/-]+$/.test(text))
    throw fail('invalid', 'This cursor is none that Wadah gave out: begin the list anew.', { field: '/cursor' })
  return text
}

export const iso = (ms: number): string => new Date(ms).toISOString()

/** Past the point of no return a failure is never "nothing was changed": it is tried again. */
export async function forward<T>(work: () => Promise<T>): Promise<T> {
  try {
    return await work()
  } catch (error) {
    throw new WadahError({ ...toFault(error), effect: 'partial' }, error)
  }
}
