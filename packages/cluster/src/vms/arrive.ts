/** A VM that comes from another host: whether it may, with what, and when it is this host's. */
import { fail } from '@wadah/api/fault'
import type { MoveOffer } from '@wadah/ports/migration'
import { put, type Rec, unchanged } from '@wadah/store/store'
import { againOnConflict, caughtUp, commit, type Deps } from '../context.ts'
import { hasEnded, jobKind, type JobRecord } from '../jobs/record.ts'
import type { Arrivals, MoveInPorts } from '../migration/target.ts'
import type { Turns } from '../migration/turns.ts'
import { hostKind, placementKind, type VmRecord, vmKind } from '../records.ts'
import { launchRequest } from '../resolve.ts'
import { filesReady } from './jobs.ts'
import { recordNow } from './keeper.ts'
import {
  arrivedDisks,
  dropArrival,
  forgetElsewhere,
  layerBytes,
  layersOf,
  makeRooms,
  type Room,
  roomsFor,
  topsOf,
} from './local-disks.ts'
import { checkRoomToRun } from './room.ts'

const TRIES = 20

/**
 * The store says that this VM comes here by this job, with this epoch, and this host takes it.
 * @throws WadahError `gone`, `not_owner`, `wrong_state`
 */
export async function comesHere(deps: Deps, job: string, id: string, epoch: number): Promise<VmRecord> {
  await caughtUp(deps)
  const vm = deps.view.get(vmKind, id)?.value
  const placement = (await deps.store.get(placementKind, id))?.value
  const host = deps.view.get(hostKind, deps.hostId)?.value
  const { handover } = placement ?? {}
  if (!vm || !placement) throw fail('gone', 'The VM is not there any more.')
  if (handover?.to !== deps.hostId || handover.job !== job || handover.epoch !== epoch)
    throw fail('not_owner', `The store does not say that "${vm.name}" comes here by this job.`)
  if (host?.maintenance)
    throw fail('wrong_state', `The host ${host.name} is in maintenance.`, { remedy: 'wadah host list' })
  return vm
}

/** Whether this host carries out the job. */
export async function isBy(deps: Deps, job: string, host: string): Promise<boolean> {
  const by = (rec: Rec<JobRecord> | undefined) => rec?.value.executor.host === host
  // What is seen already needs no store, which may be out of reach just when a source comes back.
  return by(deps.view.get(jobKind, job)) || by(await deps.store.get(jobKind, job))
}

export function arrivals(deps: Deps, turns: Turns): MoveInPorts {
  /** By job: what was made here, for when the records go before the move is over. */
  const made = new Map<string, readonly Room[]>()
  return {
    migration: deps.machine.migration,
    turns,
    prepare: async (job: string, offer: MoveOffer, signal: AbortSignal) => {
      const vm = await comesHere(deps, job, offer.vm, offer.epoch)
      const host = deps.view.get(hostKind, deps.hostId)?.value
      if (host?.address === undefined) throw fail('internal', 'this host has no address in the cluster')
      checkRoomToRun(deps, vm)
      const rooms = await roomsFor(deps, vm, job)
      const tops = topsOf(rooms)
      await filesReady(
        deps,
        vm,
        tops.map((r) => r.name),
      )
      await deps.syncNetworks()
      made.set(job, rooms)
      await makeRooms(deps, rooms, vm.spec.uid, () => comesHere(deps, job, vm.id, offer.epoch), signal)
      const request = launchRequest(deps, vm)
      const disks = request.disks.map((disk) => {
        const room = tops.find((r) => r.name === disk.name)
        return room ? { name: disk.name, chain: layersOf(rooms, room).map((r) => r.volume), pool: room.pool } : disk
      })
      return {
        request: { ...request, disks, epoch: offer.epoch },
        mirrors: Object.fromEntries(tops.map(({ name, pool, volume }) => [name, { pool, volume }])),
        listen: host.address,
        tls: offer.facts.tls !== undefined,
      }
    },

    isBy: (job, host) => isBy(deps, job, host),

    commitMoved: async (job, { vm, epoch }) => {
      await againOnConflict(TRIES, async () => {
        const placement = await deps.store.get(placementKind, vm)
        if (!placement) throw fail('gone', 'The VM is not there any more.')
        const { handover, ...rest } = placement.value
        const { host, epoch: now } = rest
        if (host === deps.hostId && now === epoch) return
        if (handover?.job !== job || handover.to !== deps.hostId)
          throw fail('not_owner', `The placement of ${vm} says another host by now.`, { effect: 'unknown' })
        const record = (await deps.store.get(vmKind, vm))?.value
        if (!record) throw fail('gone', 'The VM is not there any more.')
        const took = await layerBytes(deps, await roomsFor(deps, record, job))
        const disks = await arrivedDisks(deps, record, job, took)
        await commit(
          deps,
          [unchanged(placement), ...disks.checks],
          [put(placementKind, vm, { ...rest, host: deps.hostId, epoch }), ...disks.writes],
        )
      })
      made.delete(job)
      // Its state is this host's to write from now on.
      await recordNow(deps, vm).catch((error: unknown) => deps.log(`status of ${vm}: ${(error as Error).message}`))
      deps.syncNetworks().catch((error: unknown) => deps.log(`networks: ${(error as Error).message}`))
    },
    isOver: async (job, vm) => {
      const carried = (await deps.store.get(jobKind, job))?.value
      if (!carried || hasEnded(carried)) return true
      const placement = (await deps.store.get(placementKind, vm))?.value
      return placement?.host !== deps.hostId && placement?.handover?.job !== job
    },
    address: () => deps.view.get(hostKind, deps.hostId)?.value.address ?? '',
    undone: async (job, vm) => {
      const record = (await deps.store.get(vmKind, vm))?.value
      const placement = (await deps.store.get(placementKind, vm))?.value
      // It stayed where it was: nothing of it is left here. What the store does not say any more the source's own call, or the next
      // start, finds (`sweepMoves`).
      // Layers may be what the same job brings anew just now.
      if (placement?.host !== deps.hostId)
        await dropArrival(deps, job, vm, record ? topsOf(await roomsFor(deps, record, job)) : (made.get(job) ?? []))
      made.delete(job)
      await deps.syncNetworks()
    },
    log: deps.log,
  }
}

/** Whether the VM of this move rests. */
export const isStopped = (deps: Deps, job: string): boolean =>
  (deps.view.get(jobKind, job)?.value.params as { live?: boolean } | undefined)?.live === false

/**
 * At a start, before any other host is let in: of VMs that are not this host's, those that were on their way here are taken up again; of the
 * others, where no QEMU lives and no job of this host is at work on them, nothing stays.
 */
export async function sweepArrivals(deps: Deps, moves: Arrivals): Promise<void> {
  const found = await deps.machine.migration.found()
  const coming: { vm: string; job: string }[] = []
  for (const { vm, job } of found) {
    const placement = deps.view.get(placementKind, vm)?.value
    const here = placement?.host === deps.hostId
    // Of what can't be looked at nothing is taken away.
    const lives = await deps.machine.attach(vm).then(
      (running) => running !== undefined,
      () => true,
    )
    if (lives && job !== undefined) coming.push({ vm, job })
    if (lives || here) continue
    // What a stopped VM brought stays until its source has said whether it comes.
    if (placement?.handover?.to === deps.hostId && isStopped(deps, placement.handover.job)) continue
    await forgetElsewhere(deps, vm)
  }
  await moves.recover(coming)
}
