/** A pool that is said to be shared is tried on all hosts before anything relies on it. */
import { fail } from '@wadah/api/fault'
import type { PoolDefinition } from '@wadah/ports/volumes'
import type { Deps } from '../context.ts'
import { aliveKind } from '../members/records.ts'
import { hostKind } from '../records.ts'
import { LAST_TURN, type Stale, staleFault, takeTurn } from './fresh.ts'

/** What a host is asked about a pool. `mark`: the text that it must find there; `turn`: its turn on a file that both write (fresh.ts). */
export type PoolQuestion = { pool: PoolDefinition; mark: string; name: string; turn?: number }
export type PoolAnswer = { found: boolean; free: boolean; fresh?: Stale | 'yes' }
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
  if ((await shared.read(pool, name)) !== mark) return { found: false, free: true }
  await shared.mark(pool, answerOf(name, deps.hostId), mark)
  return { found: true, free: await shared.isFree(pool, name) }
}

/**
 * @returns the text by which a host that joins later knows the pool
 * @throws WadahError `wrong_state` that names the host on which it is another folder, or where its locks are not seen
 */
export async function checkShared(deps: Deps, pool: PoolDefinition): Promise<string> {
  const { shared } = deps.machine.volumes
  const mark = Buffer.from(deps.randomBytes(16)).toString('hex')
  const name = `check-${mark.slice(0, 12)}`
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
  await shared.mark(pool, name, mark)
  try {
    const ask = async (host: string, turn?: number) => {
      if (!deps.askHost) throw fail('internal', 'no way to other hosts')
      const question: PoolQuestion = { pool, mark, name, ...(turn === undefined ? {} : { turn }) }
      return deps.askHost<PoolAnswer>(host, POOL_PATH, question, ASK_MS)
    }
    const release = await shared.hold(pool, name)
    try {
      for (const { id, value: host } of others) {
        const { found, free } = await ask(id)
        const back = found ? await shared.read(pool, answerOf(name, id)) : undefined
        if (back !== mark)
          throw fail('wrong_state', `${pool.path} is another folder on ${host.name} than here: it is not shared.`, {
            field: '/path',
            remedy: `mount the same file system there at ${pool.path}: findmnt ${pool.path}`,
          })
        if (free)
          throw fail(
            'wrong_state',
            `A lock that this host holds in ${pool.path} is not seen on ${host.name}: two could write one disk.`,
            {
              field: '/path',
              remedy: 'mount it with locks that reach the server (NFS: version 4, or without nolock)',
            },
          )
      }
    } finally {
      await release()
    }
    for (const { id, value: host } of others)
      if (!(await ask(id)).free)
        throw fail(
          'wrong_state',
          `A lock in ${pool.path} that this host has given back still stands on ${host.name}.`,
          {
            field: '/path',
            remedy: 'look at the lock service of that file system',
          },
        )
    for (const { id, value: host } of others)
      await checkFresh(deps, pool, mark, turnsOf(name, id), host.name, async (turn) => (await ask(id, turn)).fresh)
  } finally {
    for (const { id } of others)
      for (const file of [answerOf(name, id), turnsOf(name, id)]) await shared.unmark(pool, file).catch(() => undefined)
    await shared.unmark(pool, name)
  }
  await shared.mark(pool, 'pool', mark)
  return mark
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
  const here = deps.view.get(hostKind, deps.hostId)?.value.name ?? 'this host'
  await shared.mark(pool, file, '')
  try {
    for (let turn = 0; turn <= LAST_TURN; turn += 2) {
      const stale = await takeTurn(shared, pool, file, mark, turn)
      if (stale) throw staleFault(pool.path, { writer: other, reader: here }, stale)
      if (turn === LAST_TURN) return
      const there = await ask(turn + 1)
      if (there === undefined)
        throw fail('wrong_state', `${other} runs a wadahd that can't try whether ${pool.path} is read from caches.`, {
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
