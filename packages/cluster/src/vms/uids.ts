import type { Deps } from '../context.ts'
import type { Pending } from '../pending.ts'
import { indexKeys, indexKind } from '../records.ts'
import { freeUid, uidsFrom } from './allocate.ts'

/** A user id that no VM of the cluster has, and that nobody is about to take. @throws WadahError `no_room` */
export function newUid(deps: Deps, pending: Pending): number {
  const { uid_base, uid_count } = deps.config
  const used = (key: string) => deps.view.get(indexKind, key) !== undefined || pending.has(key)
  return freeUid((n) => used(indexKeys.uid(n)), uid_base, uid_count, uidsFrom(deps.hostId, uid_count))
}
