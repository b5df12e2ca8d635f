/** A pool that is said to be shared is tried on all hosts before anything relies on it. */
import { fail } from '@wadah/api/fault'
import type { PoolDefinition } from '@wadah/ports/volumes'
import type { Deps } from '../context.ts'
import { aliveKind } from '../members/records.ts'
import { hostName } from '../members/where.ts'
import { hostKind, poolKind } from '../records.ts'
import { LAST_TURN, type Stale, staleFault, takeTurn } from './fresh.ts'
import { UNSAID } from './proven.ts'

/** What a host is asked about a pool. `mark`: the text that it must find there; `turn`: its turn on a file that both write (fresh.ts). */
export type PoolQuestion = { pool: PoolDefinition; mark: string; name: string; turn?: number }
/** `has`: what is mounted there (SharedPools.mounted); hosts of earlier releases do not say. */
export type PoolAnswer = { found: boolean; free: boolean; has?: string; fresh?: Stale | 'yes' }
export const POOL_PATH = '/peer/v1/pool'

const ASK_MS = 30_000

/** The other side: reads what the first wrote, writes an answer that the first reads, and tries its lock. */
export async function answerPool(deps: Deps, body: unknown): Promise<PoolAnswer> {
  const { pool, mark, name, turn } = body as PoolQuestion
  const { shared } = deps.machine.volumes
  if (turn !== undefined && !(Number.isInteger(turn) && turn >= 0 && turn <= LAST_TURN))
    throw fail('malformed', 'This is no turn on a file.')
  if (turn !== undefined) {
    const file = turnsOf(name, deps.hostId)
    const fresh = (await takeTurn(shared, pool, file, mark, turn)) ?? 'yes'
    if (fresh !== 'yes' || turn >= LAST_TURN - 1) await shared.letGo(pool, file)
    return { found: true, free: true, fresh }
  }
  if ((await shared.read(pool, name)) !== mark) {
    // A pool that is known, and that this host does not see itself, says nothing about the one that asks.
    const known = deps.view.get(poolKind, pool.id)?.value
    if (known?.mark !== undefined && !(await seesShared(deps, pool, known.mark)))
      throw fail('unavailable', `The shared pool "${known.name}" is not mounted there: ${pool.path}.`, {
        remedy: `mount it there: findmnt ${pool.path}`,
      })
    return { found: false, free: true }
  }
  await shared.mark(pool, answerOf(name, deps.hostId), mark)
  const { what: has } = await shared.mounted(pool)
  return { found: true, free: await shared.isFree(pool, name), has }
}

/**
 * With all hosts of the cluster, before the pool is taken.
 * @returns the text by which a host that joins later knows the pool, and with what mounted each host has passed
 * @throws WadahError `wrong_state` that names the host on which it is another folder, or where its locks are not seen
 */
export async function checkShared(
  deps: Deps,
  pool: PoolDefinition,
): Promise<{ mark: string; tried: Record<string, string> }> {
  const { shared } = deps.machine.volumes
  const others = deps.view.list(hostKind).filter((h) => h.id !== deps.hostId)
  const down = others.find((h) => deps.view.get(aliveKind, h.id) === undefined)
  if (down)
    throw fail(
      'wrong_state',
      `The host ${down.value.name} is down: whether ${pool.path} is shared with it can't be tried.`,
      {
        remedy: `start it, or take it out: wadah cluster remove ${down.value.name}`,
      },
    )
  const { mark, mounted } = await tryWith(
    deps,
    pool,
    others.map((h) => h.id),
  )
  const { what } = await shared.mounted(pool)
  await shared.mark(pool, 'pool', mark)
  return { mark, tried: { ...mounted, [deps.hostId]: what } }
}

/** Whether this host and each of these mean the same folder, see each other's locks, and read at once what the other wrote. */
export async function tryWith(
  deps: Deps,
  pool: PoolDefinition,
  hosts: readonly string[],
): Promise<{ mark: string; mounted: Record<string, string> }> {
  const { shared } = deps.machine.volumes
  const mark = Buffer.from(deps.randomBytes(16)).toString('hex')
  const name = `check-${mark.slice(0, 12)}`
  const here = hostName(deps.view, deps.hostId)
  const others = hosts.map((id) => ({ id, host: hostName(deps.view, id) }))
  const mounted: Record<string, string> = {}
  await shared.mark(pool, name, mark)
  try {
    const ask = async (host: string, turn?: number) => {
      if (!deps.askHost) throw fail('internal', 'no way to other hosts')
      const question: PoolQuestion = { pool, mark, name, ...(turn === undefined ? {} : { turn }) }
      return deps.askHost<PoolAnswer>(host, POOL_PATH, question, ASK_MS)
    }
    const release = await shared.hold(pool, name)
    try {
      for (const { id, host } of others) {
        const { found, free, has = UNSAID } = await ask(id)
        mounted[id] = has
        const back = found ? await shared.read(pool, answerOf(name, id)) : undefined
        if (back !== mark)
          throw fail('wrong_state', `${pool.path} is another folder on ${host} than on ${here}: it is not shared.`, {
            field: '/path',
            remedy: `mount the same file system on both at ${pool.path}: findmnt ${pool.path}`,
          })
        if (free)
          throw fail(
            'wrong_state',
            `A lock that ${here} holds in ${pool.path} is not seen on ${host}: two could write one disk.`,
            {
              field: '/path',
              remedy: 'mount it with locks that reach the server (NFS: version 4, or without nolock)',
            },
          )
      }
    } finally {
      await release()
    }
    for (const { id, host } of others)
      if (!(await ask(id)).free)
        throw fail('wrong_state', `A lock in ${pool.path} that ${here} has given back still stands on ${host}.`, {
          field: '/path',
          remedy: 'look at the lock service of that file system',
        })
    for (const { id, host } of others)
      await checkFresh(deps, pool, mark, turnsOf(name, id), host, async (turn) => (await ask(id, turn)).fresh)
    return { mark, mounted }
  } finally {
    for (const { id } of others)
      for (const file of [answerOf(name, id), turnsOf(name, id)]) await shared.unmark(pool, file).catch(() => undefined)
    await shared.unmark(pool, name)
  }
}

/** This host and another take turns on a file. @param ask gives the other its turn */
async function checkFresh(
  deps: Pick<Deps, 'machine' | 'view' | 'hostId'>,
  pool: PoolDefinition,
  mark: string,
  file: string,
  other: string,
  ask: (turn: number) => Promise<PoolAnswer['fresh']>,
): Promise<void> {
  const { shared } = deps.machine.volumes
  const here = hostName(deps.view, deps.hostId)
  await shared.mark(pool, file, '')
  try {
    for (let turn = 0; turn <= LAST_TURN; turn += 2) {
      const stale = await takeTurn(shared, pool, file, mark, turn)
      if (stale) throw staleFault(pool.path, { writer: other, reader: here }, stale)
      if (turn === LAST_TURN) return
      const there = await ask(turn + 1)
      if (there === undefined)
        throw fail('host_lacks', `${other} runs a wadahd that can't try whether ${pool.path} is read from caches.`, {
          remedy: `update it there: it must be the version of this host`,
        })
      if (there !== 'yes') throw staleFault(pool.path, { writer: here, reader: other }, there)
    }
  } finally {
    await shared.letGo(pool, file)
  }
}

/** Whether this host sees the pool that the others mean. */
export async function seesShared(deps: Pick<Deps, 'machine'>, pool: PoolDefinition, mark: string): Promise<boolean> {
  return (await deps.machine.volumes.shared.read(pool, 'pool').catch(() => undefined)) === mark
}

const answerOf = (name: string, host: string) => `${name}-${host.slice(-10)}`
const turnsOf = (name: string, host: string) => `${answerOf(name, host)}-turns`
