import { fail } from '@wadah/api/fault'
import type { Rec } from '@wadah/store/store'
import { type Deps, find } from '../context.ts'
import { hostName } from '../members/where.ts'
import { type PoolRecord, poolKind } from '../records.ts'

export const DEFAULT_POOL = 'default'

/** Whether this host can open what lies there. */
export const reaches = (deps: Pick<Deps, 'hostId'>, pool: Pick<PoolRecord, 'host' | 'shared'>): boolean =>
  pool.shared === true || pool.host === deps.hostId

/**
 * The pool that was named, or the one where things go unless said: "default" where this host has it, else this host's oldest.
 * @throws WadahError `not_found`; `wrong_state` for a pool of another host
 */
export function findPool(
  deps: Pick<Deps, 'view' | 'hostId'>,
  project: string,
  ref: string | undefined,
  field: string,
): Rec<PoolRecord> {
  if (ref === undefined) {
    const own = deps.view
      .list(poolKind)
      .filter(({ value }) => value.project === project && reaches(deps, value))
      .toSorted((a, b) => a.value.created_at.localeCompare(b.value.created_at))
    const usual =
      own.find(({ value }) => value.name === DEFAULT_POOL) ?? own.find(({ value }) => !value.shared) ?? own[0]
    if (usual) return usual
  }
  const pool = find(deps as Deps, 'pool', poolKind, project, ref ?? DEFAULT_POOL, field)
  if (reaches(deps, pool.value)) return pool
  const host = hostName(deps.view, pool.value.host)
  throw fail('wrong_state', `The pool "${pool.value.name}" is on the host ${host}, and this host can't reach it.`, {
    field,
    remedy: `--host ${host}, or another pool: wadah pool list`,
  })
}
