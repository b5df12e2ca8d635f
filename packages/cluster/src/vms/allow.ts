/** Whether somebody may do something with a VM now, and the job that is at work on it. */
import { can } from '@wadah/api/can'
import { WadahError } from '@wadah/api/fault'
import type { VmAction } from '@wadah/api/schema/vm'
import type { Rec } from '@wadah/store/store'
import type { Deps } from '../context.ts'
import type { Target } from '../jobs/define.ts'
import { claimKind } from '../jobs/record.ts'
import { type VmRecord, statusKind } from '../records.ts'
import type { Caller } from '../services.ts'
import { isWaiting } from './restart.ts'

/** The job that is at work on a VM. */
export function jobOn(deps: Pick<Deps, 'view'>, vm: string): { id: string; kind: string } | undefined {
  const claim = deps.view.get(claimKind, `vm/${vm}`)?.value
  return claim ? { id: claim.job, kind: claim.name } : undefined
}

/** Refuses with the same words that grey out the button. */
export function allow(deps: Pick<Deps, 'view' | 'machine'>, caller: Caller, vm: Rec<VmRecord>, action: VmAction): void {
  const status = deps.view.get(statusKind, vm.id)?.value
  const running = deps.machine.running(vm.id)
  const state = status?.state ?? 'unknown'
  const verdict = can(action, {
    // The machine knows a start or an end a moment before the view does.
    vm: {
      name: vm.value.name,
      state: state === 'stopped' && running ? 'running' : state,
      paused_by: status?.paused_by,
      agent: status?.agent,
      protected: vm.value.protected,
      restarting: status !== undefined && isWaiting(vm.value, status),
    },
    scope: caller.subject.scope,
    job: jobOn(deps, vm.id),
  })
  if (!verdict.ok) throw new WadahError(verdict.why)
}

/** A VM as what a job acts on. */
export function vmTarget(vm: VmRecord): Target {
  return { kind: 'vm', id: vm.id, name: vm.name }
}
