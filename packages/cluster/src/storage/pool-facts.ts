/** What there is of room in a pool, asked of the host that has it. */
import type { PoolDefinition, PoolFacts } from '@wadah/ports/volumes'
import type { Deps } from '../context.ts'
import type { PoolRecord } from '../records.ts'
import { poolDefinition } from '../resolve.ts'
import { reaches } from './find-pool.ts'

export const FACTS_PATH = '/peer/v1/pool-facts'
/** A list must not wait for a host that is gone. */
const ASK_MS = 2_000

export async function factsOf(deps: Deps, pool: PoolRecord): Promise<PoolFacts & { unreachable?: string }> {
  const nothing = { capacity_bytes: 0, free_bytes: 0, direct_io: pool.direct_io, file_system: 'not mounted' }
  try {
    if (reaches(deps, pool)) return await deps.machine.volumes.facts(poolDefinition(pool))
  } catch {
    return nothing
  }
  try {
    if (!deps.askHost) return nothing
    return await deps.askHost<PoolFacts>(pool.host, FACTS_PATH, poolDefinition(pool), ASK_MS)
  } catch (error) {
    return { ...nothing, file_system: 'unknown', unreachable: (error as Error).message }
  }
}

export const answerFacts = (deps: Deps, body: unknown): Promise<PoolFacts> =>
  deps.machine.volumes.facts(body as PoolDefinition)
