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
import { hostNamed } from '../members/where.ts'
import { isLive, networkKind, placementKind, snapshotKind, statusKind, type VmRecord } from '../records.ts'
import type { Caller } from '../services.ts'
import { submit } from '../submit.ts'
import { vmTarget } from './allow.ts'
import { localDisks, placeDisks } from './local-disks.ts'
import { type MigrateParams, migrateVm } from './migrate.ts'

const STALL_MS = 300

/** Chooses and refuses before anything is written. */
export async function askToMove(
  deps: Deps,
  engine: JobEngine<Deps>,
  caller: Caller,
  vm: Rec<VmRecord>,
  body: VmMigrate,
): Promise<Job> {
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
  if (live && status?.state !== 'running' && !paused)
    throw fail(
      'wrong_state',
      `"${vm.value.name}" is ${status?.state ?? 'unknown'}; it is moved while it runs, is paused or is stopped.`,
      {
        remedy: `wadah vm show ${vm.value.name}`,
      },
    )
  refuseTied(deps, vm.value, live)
  const to = chooseTarget(deps, vm.value, body.to)
  const disks = await placeDisks(deps, vm.value, to, body.pool)
  // A guest that stands still fetches nothing, and writes nothing.
  const mode = paused ? 'precopy' : (body.mode ?? 'auto')
  const may_postcopy = mode !== 'precopy' && (await deps.machine.migration.postcopy()).ok
  const params: MigrateParams = {
    vm: vm.id,
    name: vm.value.name,
    from: hostId,
    to,
    epoch: placement.value.epoch + 1,
    live,
    mode,
    limits: {
      max_stall_ms: body.max_stall_ms ?? STALL_MS,
      may_postcopy,
      ...(body.bandwidth_mib_per_s === undefined ? {} : { bandwidth_bytes_per_s: body.bandwidth_mib_per_s * 2 ** 20 }),
    },
    tls: body.plain !== true,
    ...(disks.length > 0 ? { disks } : {}),
  }
  return submit(deps, engine, caller, migrateVm, params, vmTarget(vm.value), { checks: [unchanged(placement)] })
}

/** What keeps a VM where it is, whatever the target. */
function refuseTied(deps: Deps, vm: VmRecord, live: boolean): void {
  const { view } = deps
  const devices = vm.spec.hostdevs ?? []
  if (devices.length > 0)
    throw fail('wrong_state', `"${vm.name}" has devices of its host (${devices.map((d) => d.name).join(', ')}).`, {
      remedy: `wadah vm edit ${vm.name} --remove-hostdev ${devices[0]?.name ?? ''}`,
    })
  const own = vm.spec.tpm ? 'a TPM' : vm.spec.firmware?.kind === 'uefi' ? 'UEFI variables' : undefined
  if (own !== undefined && !live)
    throw fail('wrong_state', `"${vm.name}" has ${own}, which lie on its host and go with it only while it runs.`, {
      remedy: `wadah vm start ${vm.name}, then move it`,
    })
  const snapshot = deps.view.list(snapshotKind).find((s) => s.value.vm === vm.id)
  if (own !== undefined && snapshot)
    throw fail(
      'wrong_state',
      `"${vm.name}" has ${own}, and what its snapshot "${snapshot.value.name}" keeps of them would stay on its host.`,
      { remedy: `wadah snapshot delete ${vm.name} ${snapshot.value.name}` },
    )
  const [local] = localDisks(deps, vm)
  if (local && !live)
    throw fail(
      'wrong_state',
      `The disk "${local.name}" of "${vm.name}" lies in a pool of its host only; it goes over while the VM runs.`,
      {
        remedy: `wadah vm start ${vm.name}, then move it; or, while it is stopped: wadah volume move ${local.volume.name} POOL (a shared one)`,
      },
    )
  if (!live) return
  for (const nic of vm.spec.nics) {
    const network = view.get(networkKind, nic.network)?.value
    if (network?.kind !== 'bridge')
      throw fail(
        'wrong_state',
        `The NIC "${nic.name}" of "${vm.name}" is on the ${network?.kind ?? ''} network "${network?.name ?? nic.network}", which each host has for itself: its connections would break.`,
        {
          remedy: `shut it down, then move it; or give it a NIC on a network of the kind bridge`,
        },
      )
  }
}

function chooseTarget(deps: Deps, vm: VmRecord, ref: string | undefined): string {
  const { view, hostId } = deps
  const snapshot = snapshotNow(deps)
  // Where its local disks would go is looked at once the host is chosen.
  const seen = viewOf(view, vm)
  const own = { ...seen, disks: seen.disks.filter((d) => d.shared) }
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
