/**
 * RAM of a running guest into a file. QEMU may not start programs, and Node can't hand it a descriptor later, so it connects to a
 * socket of ours (sink.ts). Two ways, docs/snapshots.md:
 *   pre-copy: the guest runs on meanwhile; only for the last part (QEMU's `pause-before-switchover`) it stands still, and in that
 *     pause the disks get their new layers.
 *   in the background: the guest is held, the disks get their layers, it goes on, and what it is about to write is saved first
 *     (`background-snapshot`; userfaultfd). Only where the host lets QEMU, and only for guests that write too fast for the other.
 */
import { fail } from '@wadah/api/fault'
import { cancelMigration } from '../cancel-migration.ts'
import type { RunningVm } from '../running-vm.ts'
import { isRestless, patience } from './patience.ts'
import type { Sink } from './sink.ts'

/** Large guests take long; it has failed when nothing more comes for a while. */
const ROUND_MS = 7 * 24 * 3600 * 1000
const STUCK_MS = 120_000
const SWITCH_MS = 300_000
const LOOK_MS = 200
const LEAVE_MS = 5_000
const CANCEL_MS = 30_000

export type Saved = { stall_ms?: number; save_ms: number }
export type SaveRam = {
  /** Begins the file anew each time. */
  openSink: () => Promise<Sink>
  /** Runs once, while the guest stands still. */
  atSwitch: () => Promise<void>
  signal: AbortSignal
  log: (line: string) => void
}
type Watch = ReturnType<RunningVm['watch']>

/** Saves RAM. Leaves the guest as it was: running, or paused. `stall_ms`: how long it stood still, by QEMU's clock. */
export async function saveRam(running: RunningVm, o: SaveRam): Promise<Saved> {
  const begun = performance.now()
  const wasRunning = running.last.state === 'running'
  const watch = running.watch(['STOP', 'RESUME', 'MIGRATION'])
  try {
    const background = wasRunning && (await canBackground(running))
    if ((await preCopy(running, watch, { wasRunning, mayGiveUp: background }, o)) === 'restless') {
      o.log('the guest writes faster than its RAM is saved: saving what it is about to write first')
      await inBackground(running, watch, o)
    }
    const [stop, resume] = [watch.seen('STOP'), watch.seen('RESUME')]
    return {
      ...(stop !== undefined && wasRunning ? { stall_ms: (resume ?? (await resumed(watch))) - stop } : {}),
      save_ms: performance.now() - begun,
    }
  } finally {
    watch.close()
    await settle(running, wasRunning)
  }
}

/** Whether this host and this guest's memory can do it; QEMU looks itself (migration/options.c, ram_write_tracking_compatible). */
async function canBackground(running: RunningVm): Promise<boolean> {
  try {
    await capabilities(running, { 'background-snapshot': true })
    await capabilities(running, { 'background-snapshot': false })
    return true
  } catch {
    return false
  }
}

async function capabilities(running: RunningVm, wanted: Record<string, boolean>): Promise<void> {
  await running.execute('migrate-set-capabilities', {
    capabilities: Object.entries(wanted).map(([capability, state]) => ({ capability, state })),
  })
}

/** `restless`: given up, nothing has changed; only where `mayGiveUp`. */
async function preCopy(
  running: RunningVm,
  watch: Watch,
  { wasRunning, mayGiveUp }: { wasRunning: boolean; mayGiveUp: boolean },
  { openSink, atSwitch, signal }: SaveRam,
): Promise<'saved' | 'restless'> {
  const sink = await openSink()
  try {
    await capabilities(running, { events: true, 'pause-before-switchover': true })
    const downtime = patience({ rounds: 0, sent_bytes: 0, ram_bytes: 1 })
    await running.execute('migrate-set-parameters', { 'max-bandwidth': 2 ** 50, 'downtime-limit': downtime })
    const paused = status(watch, 'pre-switchover', ROUND_MS, signal)
    await running.execute('migrate', { uri: `unix:${sink.path}` })
    const looking = look(running, { downtime, mayGiveUp })
    const ended = sink.done.then(() => paused)
    const at = await Promise.race([paused, ended, looking.stuck, looking.restless]).finally(looking.stop)
    if (at === 'restless') {
      await cancel(running)
      await sink.done.catch(() => undefined)
      return 'restless'
    }
    if (at !== 'pre-switchover') throw await whyFailed(running)
    await atSwitch()
    const completed = status(watch, 'completed', SWITCH_MS, signal)
    await running.execute('migrate-continue', { state: 'pre-switchover' })
    if ((await completed) !== 'completed') throw await whyFailed(running)
    // It does not stand still for as long as the last of it is written.
    if (wasRunning) await goOn(running)
    await sink.done
    return 'saved'
  } finally {
    sink.close()
  }
}

async function inBackground(running: RunningVm, watch: Watch, { openSink, atSwitch, signal }: SaveRam): Promise<void> {
  const sink = await openSink()
  try {
    await capabilities(running, { 'pause-before-switchover': false })
    await capabilities(running, { 'background-snapshot': true })
    // QEMU would stop it too, but without an instant in which the disks could be switched; it always lets it go on by itself.
    await running.execute('stop')
    await atSwitch()
    const completed = status(watch, 'completed', ROUND_MS, signal)
    await running.execute('migrate', { uri: `unix:${sink.path}` })
    const looking = look(running)
    const at = await Promise.race([completed, looking.stuck]).finally(looking.stop)
    if (at !== 'completed') throw await whyFailed(running)
    await sink.done
  } finally {
    sink.close()
  }
}

/** The state that is waited for, or in which it ended before. */
function status(watch: Watch, wanted: string, timeout_ms: number, signal: AbortSignal): Promise<string> {
  const ends = [wanted, 'failed', 'cancelled', 'completed']
  const seen = watch
    .until((e) => e.event === 'MIGRATION' && ends.includes(statusOf(e)), { timeout_ms, signal })
    .then(statusOf)
  seen.catch(() => {})
  return seen
}

/**
 * QEMU says "completed" a moment before it leaves `finish-migrate`, and refuses `cont` until then (migration_completion sets the state,
 * migration_iteration_finish the run state).
 */
async function goOn(running: RunningVm): Promise<void> {
  for (const end = performance.now() + LEAVE_MS; ; ) {
    try {
      await running.execute('cont')
      return
    } catch (error) {
      if ((await running.status()) === 'running') return
      // It may have left between the two answers: then once more.
      if (performance.now() > end) throw error
    }
  }
}

const statusOf = (e: { data: unknown }): string => (e.data as { status?: string }).status ?? ''

async function resumed(watch: ReturnType<RunningVm['watch']>): Promise<number> {
  await watch.until((e) => e.event === 'RESUME', { timeout_ms: 5_000 })
  return watch.seen('RESUME') ?? Number.NaN
}

/**
 * Looks at the saving now and then. `stuck` rejects when nothing more comes. With `relax`, a guest that writes faster than its RAM is
 * saved is held a little longer after each round, or, where it may be given up, `restless`.
 */
function look(running: RunningVm, relax?: { downtime: number; mayGiveUp: boolean }) {
  const { promise: stuck, reject } = Promise.withResolvers<never>()
  const { promise: restless, resolve: giveUp } = Promise.withResolvers<'restless'>()
  stuck.catch(() => {})
  const ram_bytes = running.record.memory.max_mib * 2 ** 20
  let allowed = relax?.downtime ?? 0
  let last = { bytes: -1, at: performance.now() }
  const once = async () => {
    if (performance.now() - last.at > STUCK_MS)
      reject(fail('monitor_silent', `QEMU saved no more of its RAM for ${STUCK_MS / 1000} s.`))
    const info = (await running.execute('query-migrate')) as {
      ram?: { 'dirty-sync-count'?: number; transferred?: number }
    }
    const sent_bytes = info.ram?.transferred ?? 0
    if (sent_bytes !== last.bytes) last = { bytes: sent_bytes, at: performance.now() }
    if (!relax) return
    const saving = { rounds: info.ram?.['dirty-sync-count'] ?? 0, sent_bytes, ram_bytes }
    if (relax.mayGiveUp && isRestless(saving)) return giveUp('restless')
    const now = patience(saving)
    if (now > allowed) await running.execute('migrate-set-parameters', { 'downtime-limit': (allowed = now) })
  }
  const timer = setInterval(() => void once().catch(() => {}), LOOK_MS)
  return { stuck, restless, stop: () => clearInterval(timer) }
}

async function whyFailed(running: RunningVm): Promise<Error> {
  const info = (await running.execute('query-migrate').catch(() => ({}))) as { 'error-desc'?: string }
  return fail('qemu_failed', `QEMU could not save its RAM: ${info['error-desc'] ?? 'it does not say why'}.`)
}

/** Whatever happened: no migration stands, and the guest runs if it ran. Also after a daemon that died in the middle of one. */
export async function settle(running: RunningVm, run: boolean): Promise<void> {
  await cancel(running)
  await capabilities(running, { 'pause-before-switchover': false, 'background-snapshot': false })
  if (run && ['paused', 'postmigrate', 'finish-migrate'].includes(await running.status())) await goOn(running)
}

async function cancel(running: RunningVm): Promise<void> {
  const at = async () => ((await running.execute('query-migrate')) as { status?: string }).status ?? 'none'
  const ended = ['none', 'completed', 'failed', 'cancelled']
  if (ended.includes(await at())) return
  const wake = await cancelMigration(running)
  for (const end = performance.now() + CANCEL_MS; ; ) {
    const is = await at()
    if (ended.includes(is)) return
    if (performance.now() > end) throw fail('monitor_silent', 'QEMU does not end the saving of its RAM.')
    await wake(is)
    await new Promise((resolve) => setTimeout(resolve, 10))
  }
}
