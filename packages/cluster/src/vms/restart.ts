/**
 * What becomes of a VM whose QEMU ended though nobody asked for it: by its policy it is started again, later from time to time. Pure, and
 * the loop that goes by it.
 */
import { WadahError, toFault } from '@wadah/api/fault'
import { RESTART_DEFAULT } from '@wadah/api/schema/vm'
import { put, type Rec, unchanged } from '@wadah/store/store'
import { againOnConflict, commit, type Deps } from '../context.ts'
import { systemCaller } from '../host/children.ts'
import { powerClaim, STOP_GUESTS } from '../host/power-claim.ts'
import { claimKind, hasEnded, jobKind } from '../jobs/record.ts'
import type { JobEngine } from '../jobs/engine.ts'
import { type StatusRecord, type VmRecord, placementKind, statusKind, vmKind } from '../records.ts'
import type { Vms } from './service.ts'

const FIRST_MS = 2_000
const MOST_MS = 5 * 60_000
/** One that ran for so long begins anew with the shortest wait. */
const CALM_MS = 10 * 60_000
const LOOK_MS = 1_000
const START_MS = 300_000
const FORGET_TRIES = 5

export type Restart = NonNullable<StatusRecord['restart']>

/** When it is started again: 2 s, 4 s, … 5 min after its end. `ran_ms`: 0 where it did not even start. */
export function restartAfter(before: Restart | undefined, ran_ms: number, now_ms: number): Restart {
  const tries = ran_ms >= CALM_MS ? 0 : (before?.tries ?? 0)
  return { tries: tries + 1, at_ms: now_ms + Math.min(MOST_MS, FIRST_MS * 2 ** Math.min(tries, 20)) }
}

/** Whether it is to be started again by itself, now or later. */
export const isWaiting = (
  vm: Pick<VmRecord, 'wanted' | 'restart'>,
  status: StatusRecord,
): status is StatusRecord & { restart: Restart } =>
  status.restart !== undefined &&
  status.state === 'stopped' &&
  vm.wanted === 'running' &&
  (vm.restart ?? RESTART_DEFAULT) === 'on_failure'

/** The clock may have been set back: what lies further away than any wait is due. */
export const isDue = ({ at_ms }: Restart, now_ms: number): boolean => now_ms >= at_ms || at_ms - now_ms > MOST_MS

/** Looks each second, until it is told to stop. One start of each VM at a time. */
export function keepRestarting(deps: Deps, engine: JobEngine<Deps>, vms: Pick<Vms, 'startAgain'>): () => void {
  const { view, clock } = deps
  const busy = new Set<string>()
  let cancel: (() => void) | undefined
  let stopped = false
  const again = () => {
    if (!stopped) cancel = clock.timer(look, LOOK_MS)
  }
  const look = () => {
    // Guests are being shut down with the host.
    if (view.get(claimKind, powerClaim(deps.hostId))?.value.name === STOP_GUESTS) return again()
    for (const { id, value: status } of view.list(statusKind)) {
      if (status.restart === undefined || status.state !== 'stopped' || busy.has(id)) continue
      const vm = view.get(vmKind, id)?.value
      const placement = view.get(placementKind, id)?.value
      if (!vm || placement?.host !== deps.hostId || placement.handover?.sealed || view.get(claimKind, `vm/${id}`))
        continue
      if (!isWaiting(vm, status) || !isDue(status.restart, clock.now_ms())) continue
      busy.add(id)
      void restart(deps, engine, vms, vm, status)
        .catch((error: unknown) => deps.log(`"${vm.name}" is not started again yet: ${(error as Error).message}`))
        .finally(() => busy.delete(id))
    }
    again()
  }
  again()
  return () => {
    stopped = true
    cancel?.()
  }
}

async function restart(
  deps: Deps,
  engine: JobEngine<Deps>,
  vms: Pick<Vms, 'startAgain'>,
  vm: VmRecord,
  status: StatusRecord & { restart: Restart },
): Promise<void> {
  const why = await tryStart(deps, engine, vms, vm, status)
  const now = await deps.store.get(statusKind, vm.id)
  if (why === undefined) return endedAtOnce(deps, vm.id, now, status.restart)
  deps.log(`"${vm.name}" could not be started again: ${why}`)
  if (now?.value.state !== 'stopped' || now.value.restart?.at_ms !== status.restart.at_ms) return
  const next = restartAfter(now.value.restart, 0, deps.clock.now_ms())
  await commit(deps, [unchanged(now)], [put(statusKind, vm.id, { ...now.value, restart: next })])
}

/** It ran, and ended before the job of its start was over: nobody took that for an end of its own. */
async function endedAtOnce(deps: Deps, id: string, now: Rec<StatusRecord> | undefined, before: Restart): Promise<void> {
  const vm = (await deps.store.get(vmKind, id))?.value
  if (now?.value.state !== 'stopped' || now.value.restart || vm?.wanted !== 'running') return
  const next = restartAfter(before, 0, deps.clock.now_ms())
  await commit(deps, [unchanged(now)], [put(statusKind, id, { ...now.value, restart: next })])
}

/** What starts it from now on is said by others. */
export async function forgetRestart(deps: Deps, id: string): Promise<void> {
  await againOnConflict(FORGET_TRIES, async () => {
    const now = await deps.store.get(statusKind, id)
    if (now?.value.state !== 'stopped' || !now.value.restart) return
    const { restart: _, ...rest } = now.value
    await commit(deps, [unchanged(now)], [put(statusKind, id, rest)])
  })
}

/** The host goes down: none of its VMs is started by itself any more. What comes up with it says `autostart`. */
export async function forgetRestarts(deps: Deps): Promise<void> {
  for (const { id, value } of deps.view.list(placementKind))
    if (value.host === deps.hostId) await forgetRestart(deps, id)
}

/** Why it does not run; undefined where it does, or somebody else is at work on it. */
async function tryStart(
  deps: Deps,
  engine: JobEngine<Deps>,
  vms: Pick<Vms, 'startAgain'>,
  vm: VmRecord,
  { reason, restart: { tries } }: StatusRecord & { restart: Restart },
): Promise<string | undefined> {
  try {
    const { id } = await vms.startAgain(systemCaller(), vm.id)
    deps.log(`"${vm.name}" is started again (try ${tries}): ${reason ?? 'its QEMU ended'}`)
    await engine.wait(id, { timeout_ms: START_MS })
    const ended = (await deps.store.get(jobKind, id))?.value
    return ended && hasEnded(ended) && ended.state !== 'done' ? (ended.fault?.detail ?? 'it was cancelled') : undefined
  } catch (error) {
    if (!(error instanceof WadahError)) throw error
    return ['busy', 'conflict', 'wrong_state'].includes(error.fault.code) ? undefined : toFault(error).detail
  }
}
