/** Keeps `vm/status` true: what the machine observes goes into the store, newest last, one write at a time per VM. */
import { WadahError } from '@wadah/api/fault'
import type { Observed } from '@wadah/ports/machine'
import { type Write, exists, put, unchanged } from '@wadah/store/store'
import type { Deps } from '../context.ts'
import { againOnConflict, commit } from '../context.ts'
import { claimKind, jobKind } from '../jobs/record.ts'
import { type StatusRecord, type VmRecord, isLive, placementKind, statusKind, vmKind } from '../records.ts'

import type { ShutdownParams } from './jobs.ts'
import { migrateVm } from './migrate.ts'
import { moveVolumeLive } from '../storage/move-live.ts'
import { forgetRestart, restartAfter } from './restart.ts'

const RETRY_MS = 1_000
const CONFLICT_MS = 5
const ADOPT_TRIES = 5
const ADOPT_AT_ONCE = 16
/** States that pass by themselves within a moment: not worth a write. */
const FLEETING = new Set(['starting', 'prepared'])

/**
 * Pure: the record after an observation; undefined when nothing that is kept has changed. When it was started is kept of the same QEMU
 * only: a store that was put back may tell of an earlier one. `moved`: of the same guest in another QEMU.
 */
export function statusAfter(before: StatusRecord | undefined, seen: Observed, moved = false): StatusRecord | undefined {
  const same =
    before !== undefined &&
    before.state === seen.state &&
    before.paused_by === seen.paused_by &&
    before.reason === seen.reason &&
    before.agent === seen.agent &&
    before.pid === seen.pid &&
    // A daemon of the release before, which started it, said neither.
    (seen.machine === undefined || before.machine === seen.machine) &&
    (seen.cpu_flags === undefined || before.cpu_flags?.join() === seen.cpu_flags.join())
  if (same) return undefined
  const live = isLive(seen.state)
  const other = before?.pid !== undefined && seen.pid !== undefined && before.pid !== seen.pid && !moved
  const kept = live && before && !other ? before : undefined
  const started_ms = live && other ? seen.started_ms : kept?.started_ms
  return {
    schema: 1,
    state: seen.state,
    ...(seen.paused_by === undefined ? {} : { paused_by: seen.paused_by }),
    ...(seen.reason === undefined ? {} : { reason: seen.reason }),
    since_ms: before?.state === seen.state && before.paused_by === seen.paused_by ? before.since_ms : seen.at_ms,
    ...(started_ms === undefined ? {} : { started_ms }),
    ...(kept?.booted === undefined ? {} : { booted: kept.booted }),
    ...(kept?.ready_ms === undefined ? {} : { ready_ms: kept.ready_ms }),
    ...(kept?.inside === undefined ? {} : { inside: kept.inside }),
    // Counted while it runs; while it waits, another look at it changes nothing of that.
    ...(before?.restart && (live || before.state === seen.state) ? { restart: before.restart } : {}),
    ...(live && seen.pid !== undefined ? { pid: seen.pid } : {}),
    ...(live && seen.accelerator !== undefined ? { accelerator: seen.accelerator } : {}),
    ...(live && seen.qemu_version !== undefined ? { qemu_version: seen.qemu_version } : {}),
    ...(live && seen.machine !== undefined ? { machine: seen.machine } : {}),
    ...(live && seen.cpu_flags !== undefined ? { cpu_flags: seen.cpu_flags } : {}),
    ...(live && seen.agent !== undefined ? { agent: seen.agent } : {}),
  }
}

/** For a VM that became this host's just now: nothing of it may be observed for a long time. */
export async function recordNow(deps: Deps, vm: string): Promise<void> {
  const seen = await deps.machine.observe(vm)
  await againOnConflict(ADOPT_TRIES, () => record(deps, seen, { moved: true }))
}

/** Runs until `signal` aborts. */
export async function keepStatuses(deps: Deps, signal: AbortSignal): Promise<void> {
  const latest = new Map<string, Observed>()
  const busy = new Set<string>()
  for await (const seen of deps.machine.observations(signal)) {
    if (FLEETING.has(seen.state)) continue
    latest.set(seen.vm, seen)
    if (busy.has(seen.vm)) continue
    busy.add(seen.vm)
    void (async () => {
      for (let next = latest.get(seen.vm); next !== undefined; next = latest.get(seen.vm)) {
        latest.delete(seen.vm)
        try {
          await record(deps, next)
        } catch (error) {
          deps.log(`status of ${seen.vm}: ${(error as Error).message}`)
          if (!latest.has(seen.vm)) latest.set(seen.vm, next)
          if (signal.aborted) break
          // A lost race is over at once; a store in trouble is given time.
          const pause_ms = error instanceof WadahError && error.fault.code === 'conflict' ? CONFLICT_MS : RETRY_MS
          await new Promise((resolve) => setTimeout(resolve, pause_ms).unref())
        }
      }
      busy.delete(seen.vm)
    })()
  }
}

async function record(deps: Deps, seen: Observed, { moved = false, restarts = true } = {}): Promise<void> {
  const [vm, status, placement] = await Promise.all([
    deps.store.get(vmKind, seen.vm),
    deps.store.get(statusKind, seen.vm),
    deps.store.get(placementKind, seen.vm),
  ])
  // Only the host that runs it writes its status; a VM that is being deleted has none any more.
  if (!vm || !status || placement?.value.host !== deps.hostId) return
  const with_host = seen.by_guest === true && (await goesDownWithHost(deps, seen.vm))
  const by_guest = seen.by_guest === true && !with_host
  const next = statusAfter(
    status.value,
    with_host ? { ...seen, reason: 'it was shut down with the host' } : seen,
    moved,
  )
  if (
    next &&
    restarts &&
    !seen.by_guest &&
    vm.value.wanted === 'running' &&
    (await hasFailed(deps, seen.vm, status.value, next))
  ) {
    const ran_ms = seen.at_ms - (status.value.started_ms ?? seen.at_ms)
    next.restart = restartAfter(status.value.restart, ran_ms, deps.clock.now_ms())
  }
  const writes: Write[] = next ? [put(statusKind, seen.vm, next)] : []
  if (by_guest && vm.value.wanted !== 'stopped') {
    writes.push(put(vmKind, seen.vm, { ...vm.value, wanted: 'stopped' } satisfies VmRecord))
  }
  if (writes.length === 0) return
  // Somebody may edit the spec meanwhile; only what is written must be as it was read.
  const checks = [unchanged(status), by_guest ? unchanged(vm) : exists(vmKind, seen.vm)]
  await commit(deps, checks, writes)
}

/** Jobs at work on a VM that end no QEMU of what stays this host's. */
const ENDS_NOTHING = new Set<string>([
  migrateVm.name,
  moveVolumeLive.name,
  'snapshot.create',
  'snapshot.delete',
  'snapshot.tidy',
])

/** It ran, and does not any more, and no job is at work on it that would have ended it. */
async function hasFailed(deps: Deps, id: string, before: StatusRecord, after: StatusRecord): Promise<boolean> {
  if (!isLive(before.state) || after.state !== 'stopped') return false
  // Not by the view, which may lag behind a stop that has just been asked for.
  const claims = await Promise.all([`vm/${id}`, `vm/${id}/stop`].map((key) => deps.store.get(claimKind, key)))
  return claims.every((claim) => claim === undefined || ENDS_NOTHING.has(claim.value.name))
}

/** The host is going down, and it comes back with it: its guest's power-off is not what is wanted of it. */
async function goesDownWithHost(deps: Deps, vm: string): Promise<boolean> {
  const claim = await deps.store.get(claimKind, `vm/${vm}`)
  const job = claim && (await deps.store.get(jobKind, claim.value.job))
  return (job?.value.params as Partial<ShutdownParams> | undefined)?.keep_wanted === true
}

/** After a start of the daemon: what is recorded against what is there. VMs are adopted, and what is gone is said to be gone. */
export async function adoptAll(deps: Deps, o: { ended?: string; restarts?: boolean } = {}): Promise<void> {
  const { ended = 'it ended while wadahd was not running', restarts = false } = o
  const all = deps.view.list(placementKind).filter(({ value }) => value.host === deps.hostId)
  const next = all.values()
  await Promise.all(
    Array.from({ length: ADOPT_AT_ONCE }, async () => {
      for (const { id } of next) {
        const status = deps.view.get(statusKind, id)?.value
        if (status?.state !== 'absent') await adoptOne(deps, id, status, ended, restarts)
      }
    }),
  )
}

/** One VM in trouble keeps no other, and not the daemon, from its work. Of what can't be looked at nothing is ended or removed. */
async function adoptOne(
  deps: Deps,
  id: string,
  status: StatusRecord | undefined,
  ended: string,
  restarts: boolean,
): Promise<void> {
  for (let i = 1; ; i++) {
    try {
      return await adopt(deps, id, status, ended, restarts)
    } catch (error) {
      const why = (error as Error).message
      deps.log(`adopting ${id}: ${why}`)
      if (i < ADOPT_TRIES) {
        await new Promise((resolve) => setTimeout(resolve, 100 * i))
        continue
      }
      const reason = `wadahd could not find out whether it runs: ${why}`
      return await record(deps, { vm: id, state: 'unknown', reason, at_ms: deps.clock.now_ms() }).catch(
        (failed: unknown) => deps.log(`status of ${id}: ${(failed as Error).message}`),
      )
    }
  }
}

async function adopt(
  deps: Deps,
  id: string,
  status: StatusRecord | undefined,
  why: string,
  restarts: boolean,
): Promise<void> {
  // A store that was put back may place here what ran elsewhere since: only what this host itself ran last is its own to start again.
  const ran = await deps.machine.lastEpoch(id)
  const mine = restarts && ran !== undefined && ran === deps.view.get(placementKind, id)?.value.epoch
  const running = await deps.machine.attach(id)
  const seen = await deps.machine.observe(id)
  if (running) return
  await deps.machine.clean(id)
  const kept = status?.state === 'stopped' ? status.reason : why
  const ended = status === undefined || kept === undefined ? seen : { ...seen, reason: kept }
  // The keeper of statuses may write at the same moment.
  await againOnConflict(ADOPT_TRIES, () => record(deps, ended, { restarts: mine }))
  // The machine, or the store, is not the one in which it was to be started again.
  if (!restarts) await forgetRestart(deps, id)
}

/**
 * Taps of VMs that don't run, left by a daemon that died in the middle of a start. Those of VMs that could not be looked at stay: they may
 * be in use.
 */
export async function sweepTaps(deps: Deps): Promise<void> {
  const { networks } = deps.machine
  const inDoubt = (vm: string) => deps.view.get(statusKind, vm)?.value.state === 'unknown'
  for (const { vm, nic } of await networks.taps()) {
    if (inDoubt(vm) || (deps.machine.running(vm) ?? (await deps.machine.attach(vm)))) continue
    await networks.detach(vm, nic)
    deps.log(`the tap of ${vm} ${nic} was left over and is gone`)
  }
}
