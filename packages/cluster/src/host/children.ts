/** Jobs of VMs that a job of the host asks for: each made once however often it is asked for, and waited for. */
import { type Fault, WadahError, fault, toFault } from '@wadah/api/fault'
import type { MoveWishes } from '@wadah/api/schema/cluster'
import type { Job } from '@wadah/api/schema/job'
import { type Deps, caughtUp } from '../context.ts'
import type { JobEngine } from '../jobs/engine.ts'
import { claimKind, hasEnded } from '../jobs/record.ts'
import { subjectOf } from '../jobs/service.ts'
import { TURN_MS } from '../migration/turns.ts'
import { statusKind } from '../records.ts'
import type { Caller } from '../services.ts'
import type { Vms } from '../vms/service.ts'

export type ChildEnd = {
  /** It had ended before it was asked for now: the daemon was started anew in between. */
  before: boolean
  fault?: Fault
  /** Of a job that ended well. */
  result?: unknown
}
export type Children = {
  /** `key` names this start for ever: it is made once. */
  start(vm: string, key: string, signal: AbortSignal): Promise<ChildEnd>
  /** In order, then by the plug; what is wanted of the VM stays as it is. */
  shutdown(vm: string, key: string, timeout_s: number, signal: AbortSignal): Promise<ChildEnd>
  /** To another host. */
  migrate(vm: string, to: string, key: string, wishes: MoveWishes, signal: AbortSignal): Promise<ChildEnd>
  /** By the plug; what is wanted stays. */
  stop(vm: string, key: string, signal: AbortSignal): Promise<ChildEnd>
}

const START_MS = 300_000
/** A large guest over a slow link takes its time; it may be hours, after those for which it waits for its turn. */
const MOVE_MS = TURN_MS + 6 * 3_600_000
const BUSY_MS = 120_000
const BUSY_TRIES = 3

export const systemCaller = (key?: string): Caller => ({
  subject: { kind: 'socket', id: 'wadahd', name: 'wadahd', scope: 'full' },
  project: 'default',
  ...(key === undefined ? {} : { idempotency: { key, digest: key } }),
})

export function childrenOf(deps: Deps, engine: JobEngine<Deps>, vms: Vms): Children {
  const waitFor = async (id: string, timeout_ms: number, signal: AbortSignal): Promise<Fault | undefined> => {
    const ended = await engine.wait(id, { timeout_ms, signal })
    signal.throwIfAborted()
    if (ended.state === 'done') return undefined
    if (!hasEnded(ended)) return fault('timeout', `The job ${id} (${ended.name}) has not ended yet.`)
    return ended.fault ?? fault('cancelled', `The job ${id} (${ended.name}) was cancelled.`)
  }
  const run = async (
    vm: string,
    key: string,
    timeout_ms: number,
    signal: AbortSignal,
    submit: (caller: Caller) => Promise<Job>,
  ): Promise<ChildEnd> => {
    const caller = systemCaller(key)
    for (let tries = 1; ; tries++) {
      try {
        const made = await engine.replay(subjectOf(caller), key, key)
        const before = made !== undefined && hasEnded(made)
        const id = made?.id ?? (await submit(caller)).id
        const why = await waitFor(id, timeout_ms, signal)
        return { before, ...(why ? { fault: why } : { result: (await engine.get(id))?.result }) }
      } catch (error) {
        signal.throwIfAborted()
        if (!(error instanceof WadahError)) throw error
        // What a crash or the last shutdown left is carried on and ends soon.
        const claim = deps.view.get(claimKind, `vm/${vm}`)?.value
        if (error.fault.code !== 'busy' || !claim || tries >= BUSY_TRIES)
          return { before: false, fault: toFault(error) }
        await engine.wait(claim.job, { timeout_ms: BUSY_MS, signal })
        await caughtUp(deps)
      }
    }
  }
  return {
    start: async (vm, key, signal) => {
      if (deps.view.get(statusKind, vm)?.value.state === 'running') return { before: true }
      return run(vm, key, START_MS, signal, (caller) => vms.start(caller, vm))
    },
    shutdown: (vm, key, timeout_s, signal) =>
      run(vm, key, timeout_s * 1000 + BUSY_MS, signal, (caller) => vms.shutdownWithHost(caller, vm, timeout_s)),
    migrate: (vm, to, key, wishes, signal) =>
      run(vm, key, MOVE_MS, signal, (caller) => vms.migrate(caller, vm, { to, ...wishes })),
    stop: (vm, key, signal) => run(vm, key, BUSY_MS, signal, (caller) => vms.stopWithHost(caller, vm)),
  }
}
