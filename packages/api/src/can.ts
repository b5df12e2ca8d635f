/** What may be done with a VM now, and if not, why: the one table that greys out a button, fills its tooltip and refuses the request. */
import { type Fault, fault } from './fault.ts'
import type { Scope } from './schema/access.ts'
import { VM_ACTIONS, type PausedBy, type VmAction, type VmState } from './schema/vm.ts'

export type CanContext = {
  vm: {
    name: string
    state: VmState
    paused_by?: PausedBy | undefined
    agent?: 'unknown' | 'connected' | 'absent' | undefined
    protected?: boolean | undefined
    /** It is stopped, and will be started again by its policy. */
    restarting?: boolean | undefined
  }
  scope: Scope
  /** The job that is at work on the VM. */
  job?: { id: string; kind: string } | undefined
}
export type Verdict = { ok: true } | { ok: false; why: Fault }

const LIVE: readonly VmState[] = ['running', 'paused', 'suspended', 'panicked', 'internal-error', 'prepared']

/** In which states an action makes sense. */
const STATES: Record<VmAction, readonly VmState[]> = {
  start: ['stopped'],
  shutdown: ['running'],
  stop: [...LIVE, 'starting', 'stopping', 'unknown', 'incoming', 'postmigrate', 'postcopy-paused', 'saving'],
  reset: ['running', 'paused', 'panicked', 'internal-error'],
  pause: ['running'],
  resume: ['paused', 'suspended', 'prepared'],
  delete: ['stopped'],
  edit: ['stopped', ...LIVE],
  clone: ['stopped'],
  migrate: ['stopped', 'running', 'paused'],
  snapshot: ['stopped', 'running', 'paused'],
  revert: ['stopped', ...LIVE],
  exec: ['running'],
  console: LIVE,
}

/** Jobs during which an action is still possible. */
const BESIDE: Partial<Record<VmAction, readonly string[]>> = {
  // A QEMU that hangs can always be ended, whatever waits for it.
  stop: [
    'vm.start',
    'vm.shutdown',
    'volume.move',
    'snapshot.create',
    'snapshot.revert',
    'snapshot.delete',
    'snapshot.tidy',
  ],
  console: [
    'vm.start',
    'vm.shutdown',
    'vm.create',
    'vm.stop',
    'vm.migrate',
    'volume.move',
    'snapshot.create',
    'snapshot.revert',
    'snapshot.delete',
    'snapshot.tidy',
  ],
  exec: ['vm.start', 'vm.create', 'volume.move', 'snapshot.delete', 'snapshot.tidy'],
  reset: ['vm.shutdown', 'volume.move'],
}

/** The next command to type; never one that would be refused too. */
function remedy(action: VmAction, name: string, state: VmState): string | undefined {
  if (state === 'unknown') return `wadah vm stop ${name} ends a QEMU that does not answer; its disks are kept`
  if (action === 'delete' || action === 'clone') {
    if (state === 'running') return `wadah vm shutdown ${name}`
    return STATES.stop.includes(state) ? `wadah vm stop ${name}` : undefined
  }
  if (state === 'stopped') return action === 'stop' || action === 'shutdown' ? undefined : `wadah vm start ${name}`
  if (state === 'paused')
    return action === 'start' || action === 'shutdown' || action === 'exec' ? `wadah vm resume ${name}` : undefined
  return undefined
}

export function protectedFault(name: string): Fault {
  return fault('protected', `"${name}" is protected against being deleted.`, {
    remedy: `wadah vm edit ${name} --unprotect`,
  })
}

/** Pure. */
export function can(action: VmAction, { vm, scope, job }: CanContext): Verdict {
  const no = (why: Fault): Verdict => ({ ok: false, why })
  if (scope !== 'full') {
    return no(
      fault('forbidden', `This needs the right to change things; you may only look.`, {
        remedy: 'wadah token create NAME --scope full',
      }),
    )
  }
  if (action === 'delete' && vm.protected) return no(protectedFault(vm.name))
  if (job && !BESIDE[action]?.includes(job.kind)) {
    return no(
      fault('busy', `The job ${job.id} (${job.kind}) is at work on "${vm.name}".`, {
        remedy: `wadah job wait ${job.id}`,
      }),
    )
  }
  // Ends the waiting: it is not wanted any more.
  const waits = action === 'stop' && vm.restarting === true
  if (!waits && !STATES[action].includes(vm.state)) {
    const state = vm.state === 'paused' && vm.paused_by ? `paused (by ${vm.paused_by})` : vm.state
    const needed = STATES[action].filter((s) => s === 'running' || s === 'stopped' || s === 'paused')
    return no(
      fault('wrong_state', `"${vm.name}" is ${state}; ${action} needs it ${needed.join(' or ') || 'running'}.`, {
        remedy: remedy(action, vm.name, vm.state),
      }),
    )
  }
  if (action === 'exec' && vm.agent === 'absent') {
    return no(
      fault('agent_silent', `No guest agent is connected in "${vm.name}".`, {
        remedy: 'wait until the guest has booted, or install qemu-guest-agent in it',
      }),
    )
  }
  return { ok: true }
}

export function canAll(context: CanContext): Record<VmAction, Verdict> {
  return Object.fromEntries(VM_ACTIONS.map((action) => [action, can(action, context)])) as Record<VmAction, Verdict>
}
