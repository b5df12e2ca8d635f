/**
 * A host that is given up as lost for ever. Whoever says so has seen to it that nothing runs there: its VMs whose disks others can reach
 * may be started elsewhere, and what lay on its own disks is gone with it.
 */
import { fail, fault } from '@wadah/api/fault'
import type { CachedView } from '@wadah/store/cache'
import { absent, type Check, del, put, type Rec, unchanged, type Write } from '@wadah/store/store'
import { commit, type Deps } from '../context.ts'
import { claimKind, hasEnded, jobKind } from '../jobs/record.ts'
import {
  hostKind,
  type HostRecord,
  type ImageRecord,
  imageKind,
  imageLayers,
  indexKeys,
  indexKind,
  type PlacementRecord,
  placementKind,
  poolKind,
  statusKind,
  type VmRecord,
  vmKind,
  type VolumeRecord,
  volumeKind,
} from '../records.ts'
import { chainOf } from '../resolve.ts'
import { volumeGone } from '../storage/gone.ts'
import { afterLoss, type MoveLiveParams, moveVolumeLive } from '../storage/move-live.ts'
import { dropWrites } from '../vms/drop.ts'
import { hasOwnState } from '../vms/tied.ts'
import { aliveKind } from './records.ts'

type View = Pick<CachedView, 'get' | 'list'>
/** What becomes of what a lost host had. */
export type LossPlan = {
  /** VMs that can be started on another host. */
  free: VmRecord[]
  /** VMs of which a disk lay on that host only. */
  gone: VmRecord[]
  /** Of those that can be started, VMs that kept something beside their disks: UEFI variables, a TPM. They begin anew with these. */
  bare: VmRecord[]
  volumes: VolumeRecord[]
  images: ImageRecord[]
}

/** Pure over the view. */
export function lossOf(view: View, host: string): LossPlan {
  const pools = new Set(view.list(poolKind).flatMap((p) => (p.value.host === host && !p.value.shared ? [p.id] : [])))
  const lay = (id: string): boolean => {
    try {
      return chainOf({ view: view as CachedView }, id).some((v) => pools.has(v.pool))
    } catch {
      return true
    }
  }
  const vms = view
    .list(placementKind)
    .flatMap((p) => (p.value.host === host ? [view.get(vmKind, p.id)?.value] : []))
    .filter((vm) => vm !== undefined)
  const tied = (vm: VmRecord) => vm.spec.disks.some((d) => lay(d.volume))
  const free = vms.filter((vm) => !tied(vm))
  return {
    free,
    // Also of one that was on its way: where it was to go may have taken it back by now.
    bare: free.filter((vm) => hasOwnState(view, vm)),
    gone: vms.filter(tied),
    volumes: view.list(volumeKind).flatMap(({ value }) => (lay(value.id) ? [value] : [])),
    images: view
      .list(imageKind)
      .flatMap(({ value }) =>
        imageLayers(value).some(lay) || (value.volume === undefined && value.host === host) ? [value] : [],
      ),
  }
}

/** @throws WadahError `in_use` while it gives signs of life, or for what would be lost and was not said to be (`drop`) */
export async function giveUp(deps: Deps, host: Rec<HostRecord>, drop: boolean): Promise<void> {
  const { view } = deps
  const { name } = host.value
  if (view.get(aliveKind, host.id))
    throw fail('in_use', `${name} is there: it has just given a sign of life.`, { remedy: `wadah host drain ${name}` })
  const plan = lossOf(view, host.id)
  const kept = await imagesHere(deps, plan.images)
  const lost = [
    ...plan.gone.map((vm) => `the VM ${vm.name}`),
    ...plan.bare.map((vm) => `what ${vm.name} keeps beside its disks (UEFI variables, a TPM)`),
    ...plan.volumes.filter((v) => v.vm === undefined && v.image === undefined).map((v) => `the volume ${v.name}`),
    ...plan.images.filter((i) => !kept.has(i.id)).map((i) => `the image ${i.name}`),
  ]
  if (lost.length > 0 && !drop) {
    const shown = lost.slice(0, 10).join(', ') + (lost.length > 10 ? ` and ${lost.length - 10} more` : '')
    throw fail('in_use', `With ${name} is lost what lay on its disks only: ${shown}.`, {
      remedy: `if that is so: wadah cluster remove ${name} --lost --drop`,
    })
  }
  await endJobs(deps, host)
  for (const vm of plan.gone) await commit(deps, [], await dropWrites(deps, vm, () => true))
  for (const volume of plan.volumes) {
    const still = await deps.store.get(volumeKind, volume.id)
    if (still) await commit(deps, [unchanged(still)], volumeGone(still.value))
  }
  for (const image of plan.images) {
    const named = indexKeys.name('image', image.project, image.name)
    const writes: Write[] = kept.has(image.id)
      ? [put(imageKind, image.id, { ...image, host: deps.hostId })]
      : [del(imageKind, image.id), del(indexKind, named)]
    await commit(deps, [], writes)
  }
  for (const vm of plan.free) await takeOver(deps, host, vm)
}

/** Kernels and CDs that this host has fetched before. */
async function imagesHere(deps: Deps, images: readonly ImageRecord[]): Promise<Set<string>> {
  const here = new Set<string>()
  for (const image of images) {
    if (image.volume !== undefined) continue
    const has = await deps.machine.images.files(image.id).catch(() => undefined)
    const whole = image.kind === 'iso' ? has?.iso : has?.kernel !== undefined && (!image.has_initrd || has.initrd)
    if (whole) here.add(image.id)
  }
  return here
}

/** What it was doing ends as failed, and nothing is held by it any more. */
async function endJobs(deps: Deps, host: Rec<HostRecord>): Promise<void> {
  for (const { id, value } of deps.view.list(jobKind)) {
    if (value.executor.host !== host.id || hasEnded(value)) continue
    const rec = await deps.store.get(jobKind, id)
    if (!rec || hasEnded(rec.value)) continue
    const why = fault('gone', `The host that carried it out, ${host.value.name}, was given up as lost.`)
    const ended = { ...rec.value, state: 'failed' as const, fault: { ...why, effect: 'unknown' as const } }
    // Whoever carries it out after all can commit nothing any more.
    const executor = { host: deps.hostId, fence: rec.value.executor.fence + 1 }
    const moving = deps.view.list(volumeKind).filter((v) => v.value.moving_to?.job === id)
    const settled: Write[] = []
    if (rec.value.name === moveVolumeLive.name)
      for (const v of moving)
        settled.push(put(volumeKind, v.id, await afterLoss(deps, v.value, rec.value.params as MoveLiveParams)))
    const writes = [
      ...settled,
      put(jobKind, id, { ...ended, executor, ended_ms: deps.clock.now_ms() }),
      ...rec.value.claims.map((key) => del(claimKind, key)),
    ]
    await commit(deps, [unchanged(rec)], writes)
  }
}

/**
 * Pure: where a VM of a lost host is from now on. One that was on its way, sealed, is where it went: only there may a QEMU of it live, which
 * may even run; nobody else may start it before that one has ended.
 */
export function placedAfterLoss(
  before: PlacementRecord,
  here: string,
  isHost: (id: string) => boolean,
): PlacementRecord {
  const { handover, ...rest } = before
  return handover?.sealed && isHost(handover.to)
    ? { ...rest, host: handover.to, epoch: handover.epoch }
    : { ...rest, host: here, epoch: before.epoch + 1 }
}

/** It is placed here, and may be started or moved on. What it ran as can commit nothing: its epoch is an older one. */
async function takeOver(deps: Deps, host: Rec<HostRecord>, vm: VmRecord): Promise<void> {
  const before = await deps.store.get(placementKind, vm.id)
  if (before?.value.host !== host.id) return
  const status = await deps.store.get(statusKind, vm.id)
  const next = placedAfterLoss(before.value, deps.hostId, (id) => deps.view.get(hostKind, id) !== undefined)
  const stopped = {
    schema: 1 as const,
    state: 'stopped' as const,
    since_ms: deps.clock.now_ms(),
    reason: `its host, ${host.value.name}, was given up as lost`,
  }
  const checks: Check[] = [unchanged(before), status ? unchanged(status) : absent(statusKind, vm.id)]
  await commit(deps, checks, [put(placementKind, vm.id, next), put(statusKind, vm.id, stopped)])
  const where = next.host === deps.hostId ? 'here' : `on ${deps.view.get(hostKind, next.host)?.value.name ?? next.host}`
  deps.log(`"${vm.name}" was on ${host.value.name}, which is lost: it can be started ${where}`)
}
