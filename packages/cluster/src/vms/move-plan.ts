/** `vm migrate --dry-run`: what a move would do and cost, or why it would be refused. Nothing is done. */
import { toFault } from '@wadah/api/fault'
import type { MovePlan, VmMigrate } from '@wadah/api/schema/migration'
import type { Rec } from '@wadah/store/store'
import type { Deps } from '../context.ts'
import { checkWay } from '../members/way.ts'
import { hostName } from '../members/where.ts'
import { isLive, poolKind, statusKind, type VmRecord } from '../records.ts'
import { bytesOf } from './bring-out.ts'
import { foresee } from './foresee.ts'
import { carries, type MigrateParams } from './migrate.ts'
import { decideMove } from './move-request.ts'

/** @param allowed throws what the VM's state, or a job that is at work on it, forbids */
export async function planMove(
  deps: Deps,
  vm: Rec<VmRecord>,
  body: VmMigrate,
  allowed: () => void,
  signal: AbortSignal,
): Promise<MovePlan> {
  const { view, hostId } = deps
  const live = isLive(view.get(statusKind, vm.id)?.value.state)
  const plan = {
    vm: vm.value.name,
    from: hostName(view, hostId),
    live,
    mode: live ? (body.mode ?? 'auto') : 'offline',
    blockers: [],
  }
  try {
    allowed()
    const { params } = await decideMove(deps, vm, body)
    const to = { id: params.to, name: hostName(view, params.to) }
    if (carries(params) || live) await checkWay(deps, to)
    return { ...plan, mode: live ? params.mode : 'offline', to: to.name, ...(await costOf(deps, params, signal)) }
  } catch (error) {
    signal.throwIfAborted()
    const { code, detail, remedy } = toFault(error)
    return { ...plan, blockers: [{ code, why: detail, ...(remedy === undefined ? {} : { remedy }) }] }
  }
}

async function costOf(
  deps: Deps,
  p: MigrateParams,
  signal: AbortSignal,
): Promise<Pick<MovePlan, 'forecast' | 'disks'>> {
  // Of one that is stopped and has nothing on its host alone only the place changes.
  if (!p.live && !carries(p)) return {}
  const poolName = (id: string) => deps.view.get(poolKind, id)?.value.name ?? id
  const [f, disks] = await Promise.all([
    foresee(deps, p, signal),
    Promise.all(
      (p.disks ?? []).map(async (d) => ({
        name: d.name,
        from: poolName(d.from),
        to: poolName(d.to),
        bytes: (await bytesOf(deps, d)) ?? d.size_bytes,
      })),
    ),
  ])
  return {
    forecast: {
      ...(p.live ? { how: f.how } : {}),
      converges: f.converges,
      total_ms: Math.round(f.total_ms),
      stall_ms: Math.round(f.stall_ms),
      bytes: Math.round(f.bytes),
      ...(f.disk_bytes === undefined ? {} : { disk_bytes: f.disk_bytes }),
      ...(f.why === undefined ? {} : { why: f.why }),
    },
    ...(disks.length === 0 ? {} : { disks }),
  }
}
