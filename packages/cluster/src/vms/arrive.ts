/** A VM that comes from another host: whether it may, with what, and when it is this host's. */
import { fail } from '@wadah/api/fault'
import type { MoveOffer } from '@wadah/ports/migration'
import { put, type Rec, unchanged } from '@wadah/store/store'
import { againOnConflict, caughtUp, commit, type Deps } from '../context.ts'
import type { MoveInPorts } from '../migration/target.ts'
import { jobKind, type JobRecord } from '../jobs/record.ts'
import { hostKind, placementKind, vmKind } from '../records.ts'
import { launchRequest } from '../resolve.ts'
import { filesReady } from './jobs.ts'
import { recordNow } from './keeper.ts'
import { checkRoomToRun } from './room.ts'

const TRIES = 20

export function arrivals(deps: Deps): MoveInPorts {
  return {
    migration: deps.machine.migration,
    prepare: async (job: string, offer: MoveOffer) => {
      await caughtUp(deps)
      const vm = deps.view.get(vmKind, offer.vm)?.value
      const placement = (await deps.store.get(placementKind, offer.vm))?.value
      const host = deps.view.get(hostKind, deps.hostId)?.value
      const { handover } = placement ?? {}
      if (!vm || !placement) throw fail('gone', 'The VM is not there any more.')
      if (handover?.to !== deps.hostId || handover.job !== job || handover.epoch !== offer.epoch)
        throw fail('not_owner', `The store does not say that "${vm.name}" comes here by this job.`)
      if (host?.maintenance)
        throw fail('wrong_state', `The host ${host.name} is in maintenance.`, { remedy: 'wadah host list' })
      if (host?.address === undefined) throw fail('internal', 'this host has no address in the cluster')
      checkRoomToRun(deps, vm)
      await filesReady(deps, vm)
      await deps.syncNetworks()
      return {
        request: { ...launchRequest(deps, vm), epoch: offer.epoch },
        listen: host.address,
        tls: offer.facts.tls !== undefined,
      }
    },

    isBy: async (job, host) => {
      const by = (rec: Rec<JobRecord> | undefined) => rec?.value.executor.host === host
      // What is seen already needs no store, which may be out of reach just when a source comes back.
      return by(deps.view.get(jobKind, job)) || by(await deps.store.get(jobKind, job))
    },

    commitMoved: async (job, { vm, epoch }) => {
      await againOnConflict(TRIES, async () => {
        const placement = await deps.store.get(placementKind, vm)
        if (!placement) throw fail('gone', 'The VM is not there any more.')
        const { host, epoch: now, handover } = placement.value
        if (host === deps.hostId && now === epoch) return
        if (handover?.job !== job || handover.to !== deps.hostId)
          throw fail('not_owner', `The placement of ${vm} says another host by now.`, { effect: 'unknown' })
        await commit(deps, [unchanged(placement)], [put(placementKind, vm, { schema: 1, host: deps.hostId, epoch })])
      })
      // Its state is this host's to write from now on.
      await recordNow(deps, vm).catch((error: unknown) => deps.log(`status of ${vm}: ${(error as Error).message}`))
      deps.syncNetworks().catch((error: unknown) => deps.log(`networks: ${(error as Error).message}`))
    },
    undone: async () => {
      await deps.syncNetworks()
    },
    log: deps.log,
  }
}
