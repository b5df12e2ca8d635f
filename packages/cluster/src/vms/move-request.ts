/** `vm migrate` as it is asked for: what is refused before anything is written, and which host is chosen. */
import { fail } from '@wadah/api/fault'
import type { Job } from '@wadah/api/schema/job'
import type { VmMigrate } from '@wadah/api/schema/migration'
import { fits } from '@wadah/scheduler/fits'
import { place } from '@wadah/scheduler/place'
import { type Rec, unchanged } from '@wadah/store/store'
import type { Deps } from '../context.ts'
import type { JobEngine } from '../jobs/engine.ts'
import { snapshotNow, viewOf } from '../members/scheduling.ts'
import { isPlainBetween } from '../members/plain.ts'
import { CLUSTER, clusterKind, factsKind } from '../members/records.ts'
import { hostNamed } from '../members/where.ts'
import { moveLimits } from '../migration/limits.ts'
import { hostKind, isLive, placementKind, type PlacementRecord, statusKind, type VmRecord } from '../records.ts'
import type { Caller } from '../services.ts'
import { submit } from '../submit.ts'
import { vmTarget } from './allow.ts'
import { placeDisks } from './local-disks.ts'
import { type MigrateParams, migrateVm } from './migrate.ts'
import { hasOwnState, tiedBy } from './tied.ts'

/** Chooses and refuses before anything is written. */
export async function askToMove(
  deps: Deps,
  engine: JobEngine<Deps>,
  caller: Caller,
  vm: Rec<VmRecord>,
  body: VmMigrate,
): Promise<Job> {
  const { params, placement } = await decideMove(deps, vm, body)
  return submit(deps, engine, caller, migrateVm, params, vmTarget(vm.value), {
    // What it has was looked at before other hosts were asked: a disk that came meanwhile would stay behind.
    checks: [unchanged(placement), unchanged(vm)],
  })
}

/** Nothing is written. @throws WadahError what is in the way */
export async function decideMove(
  deps: Deps,
  vm: Rec<VmRecord>,
  body: VmMigrate,
): Promise<{ params: MigrateParams; placement: Rec<PlacementRecord> }> {
  const { view, hostId } = deps
  const placement = view.get(placementKind, vm.id)
  if (!deps.moves || placement?.value.host !== hostId)
    throw fail('wrong_state', `"${vm.value.name}" is on a host that is alone: there is no other to move it to.`, {
      remedy: 'wadah cluster init --address ADDRESS, then let another host join',
    })
  if (placement.value.handover)
    throw fail('busy', `"${vm.value.name}" is on its way already (${placement.value.handover.job}).`, {
      remedy: `wadah job wait ${placement.value.handover.job}`,
    })
  const status = view.get(statusKind, vm.id)?.value
  const live = isLive(status?.state)
  const paused = status?.state === 'paused' && status.paused_by === 'user'
  const tie = tiedBy(view, vm.value)
  if (tie) throw fail('wrong_state', tie.detail, { remedy: tie.remedy })
  const to = await chooseTarget(deps, vm.value, body)
  const disks = await placeDisks(deps, vm.value, to, body.pool)
  // A guest that stands still fetches nothing, and writes nothing.
  const mode = paused ? 'precopy' : (body.mode ?? 'auto')
  const params: MigrateParams = {
    vm: vm.id,
    name: vm.value.name,
    from: hostId,
    to,
    epoch: placement.value.epoch + 1,
    live,
    mode,
    limits: moveLimits(body, mode, view.get(factsKind, to)?.value),
    tls: !(body.plain ?? isPlainWay(deps, to)),
    ...(disks.length > 0 ? { disks } : {}),
    // Of one that runs its QEMU tells.
    ...(!live && hasOwnState(view, vm.value) ? { state: true } : {}),
  }
  return { params, placement }
}

/** Whether the administrator said of the network between this host and that one that nobody else reaches it. */
function isPlainWay({ view, hostId }: Deps, to: string): boolean {
  const networks = view.get(clusterKind, CLUSTER)?.value.plain_networks ?? []
  return isPlainBetween(networks, ...[hostId, to].map((host) => view.get(hostKind, host)?.value.address))
}

async function chooseTarget(deps: Deps, vm: VmRecord, { to: ref, pool }: VmMigrate): Promise<string> {
  const { view, hostId } = deps
  // With a host or a pool that is named, its local disks are looked at once the host is known.
  const anywhere = ref === undefined && pool === undefined
  const snapshot = await snapshotNow(deps, anywhere ? [vm] : [])
  const seen = snapshot.vms.find((v) => v.id === vm.id) ?? viewOf(view, vm)
  const own = anywhere ? seen : { ...seen, disks: seen.disks.filter((d) => d.shared) }
  if (ref === undefined) {
    const choice = place(snapshot, own, { most: 20 })
    if (choice.chosen && choice.chosen.host !== hostId) return choice.chosen.host
    const why = [...choice.stuck, ...choice.refused.flatMap((r) => r.reasons)]
    throw fail(
      'no_room',
      `No other host can take "${vm.name}". ${why.map((r) => r.detail).join(' ') || choice.detail}`,
      {
        remedy: why[0]?.remedy ?? 'wadah host list',
      },
    )
  }
  const to = hostNamed(view, ref)
  if (to === undefined)
    throw fail('not_found', `There is no host "${ref}".`, { field: '/to', remedy: 'wadah host list' })
  if (to === hostId)
    throw fail('invalid', `"${vm.name}" is on ${ref} already.`, { field: '/to', remedy: 'wadah host list' })
  const [why] = fits(snapshot, own, to)
  if (why)
    throw fail('wrong_state', `"${vm.name}" can't go to ${ref}: ${why.detail}`, { field: '/to', remedy: why.remedy })
  return to
}
