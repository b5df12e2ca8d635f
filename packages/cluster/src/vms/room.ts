/** Whether there is memory for a VM to run. */
import { fail } from '@wadah/api/fault'
import type { Deps } from '../context.ts'
import { type VmRecord, isLive, placementKind, statusKind, vmKind } from '../records.ts'

/** RAM that is promised to VMs which run, this one added. */
export function checkRoomToRun(deps: Deps, vm: Pick<VmRecord, 'id' | 'spec'>, field?: string): void {
  let promised = vm.spec.memory_mib
  for (const { id, value } of deps.view.list(statusKind)) {
    // Those of other hosts have their RAM there.
    if ((deps.view.get(placementKind, id)?.value.host ?? deps.hostId) !== deps.hostId) continue
    if (id === vm.id || !isLive(value.state)) continue
    promised += deps.view.get(vmKind, id)?.value.spec.memory_mib ?? 0
  }
  const most = Math.floor(deps.hostMemoryMib * deps.config.memory_overcommit)
  if (promised > most) {
    throw fail(
      'no_room',
      `With this VM (${vm.spec.memory_mib} MiB) the running VMs would have ${promised} MiB; this host gives out at most ${most} MiB.`,
      {
        ...(field === undefined ? {} : { field }),
        remedy:
          'shut down others, give this one less memory (wadah vm edit NAME --memory …), or raise memory_overcommit',
      },
    )
  }
}
