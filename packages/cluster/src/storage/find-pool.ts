import { fail } from '@wadah/api/fault'
import type { CachedView } from '@wadah/store/cache'
import type { Rec } from '@wadah/store/store'
import { type Deps, find } from '../context.ts'
import { hostName } from '../members/where.ts'
import { type PoolRecord, poolKind } from '../records.ts'
import { refuseUnproven } from './proven.ts'

export const DEFAULT_POOL = 'default'

/** Whether this host can open what lies there. */
export const reaches = (deps: Pick<Deps, 'hostId'>, pool: Pick<PoolRecord, 'host' | 'shared'>): boolean =>
  pool.shared === true || pool.host === deps.hostId

/** Where things go on a host unless said: "default" where it has it, else its oldest. Pure over the view. */
export function usualPool(view: Pick<CachedView, 'list'>, project: string, hostId: string): PoolRecord | undefined {
  const own = view
    .list(poolKind)
    .map((p) => p.value)
    .filter((pool) => pool.project === project && reaches({ hostId }, pool))
    .toSorted((a, b) => a.created_at.localeCompare(b.created_at))
  return own.find((pool) => pool.name === DEFAULT_POOL) ?? own.find((pool) => !pool.shared) ?? own[0]
}

/**
 * The pool that was named, or the one where things go unless said: "default" where this host has it, else this host's oldest.
 * @throws WadahError `not_found`; `wrong_state` for a pool of another host, and for a shared one that this host may not use
 */
export function findPool(
  deps: Pick<Deps, 'view' | 'hostId'>,
  project: string,
  ref: string | undefined,
  field: string,
): Rec<PoolRecord> {
  const usual = ref === undefined ? usualPool(deps.view, project, deps.hostId) : undefined
  const proven = (rec: Rec<PoolRecord>) => {
    refuseUnproven(deps, rec.value, field)
    return rec
  }
  const found = usual && deps.view.get(poolKind, usual.id)
  if (found) return proven(found)
  const pool = find(deps as Deps, 'pool', poolKind, project, ref ?? DEFAULT_POOL, field)
  if (reaches(deps, pool.value)) return proven(pool)
  const host = hostName(deps.view, pool.value.host)
  throw fail('wrong_state', `The pool "${pool.value.name}" is on the host ${host}, and this host can't reach it.`, {
    field,
    remedy: `another pool: wadah pool list; what is created may go there: --host ${host}`,
  })
}
