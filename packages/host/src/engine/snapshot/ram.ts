/**
 * RAM of a running guest into a file. QEMU may not start programs, and Node can't hand it a descriptor later, so it connects to a
 * socket of ours and `dd` (given the connection itself) writes what comes. The guest runs on meanwhile; only for the last part
 * (QEMU's `pause-before-switchover`) it stands still, and in that pause the disks get their new layers.
 */
import { spawn } from 'node:child_process'
import type { FileHandle } from 'node:fs/promises'
import { chmod } from 'node:fs/promises'
import { createServer, type Socket } from 'node:net'
import { fail } from '@wadah/api/fault'
import { toolEnv } from '../../system/run.ts'
import type { RunningVm } from '../running-vm.ts'

const CONNECT_MS = 10_000
/** Large guests take long; it has failed when nothing more comes for a while. */
const ROUND_MS = 7 * 24 * 3600 * 1000
const STUCK_MS = 120_000
const SWITCH_MS = 300_000
/** How long QEMU may expect the last part to take, by the number of rounds it has gone through: a guest that keeps writing stands still longer. */
const DOWNTIME_MS = [50, 50, 100, 300, 1000] as const
const UNLIMITED_MS = 2_000_000
const LOOK_MS = 200
const LEAVE_MS = 5_000
const CHUNK = '1M'

export type Sink = { path: string; done: Promise<void>; close: () => void }

/** Listens on a socket for one connection, whose bytes `dd` writes to the file; at most `most_bytes`. */
export async function openSink(path: string, file: FileHandle, most_bytes: number): Promise<Sink> {
  const { promise: done, resolve, reject } = Promise.withResolvers<void>()
  done.catch(() => {})
  // Not read here: the connection goes to dd as it is.
  const server = createServer({ pauseOnConnect: true }, (socket: Socket) => {
    server.close()
    clearTimeout(timer)
    const child = spawn('dd', [`bs=${CHUNK}`, 'iflag=fullblock,count_bytes', `count=${most_bytes}`, 'status=none'], {
      stdio: [socket, file.fd, 'ignore'],
      env: toolEnv(),
    })
    child.once('error', reject)
    child.once('exit', (code, signal) =>
      code === 0
        ? resolve()
        : reject(fail('no_room', `RAM could not be written (dd: ${signal ?? `exit code ${code}`}); is the pool full?`)),
    )
    socket.destroy()
  })
  const timer = setTimeout(() => {
    server.close()
    reject(fail('monitor_silent', `QEMU did not connect to save its RAM within ${CONNECT_MS / 1000} s.`))
  }, CONNECT_MS)
  await new Promise<void>((ready, failed) => {
    server.once('error', failed)
    server.listen(path, ready)
  })
  // Who may reach it is said by the folder it lies in.
  await chmod(path, 0o666)
  const close = () => {
    clearTimeout(timer)
    server.close()
  }
  return { path, done, close }
}

/**
 * Saves RAM; `atSwitch` runs while the guest stands still. Leaves the guest as it was: running, or paused.
 * Returns how long it stood still, by QEMU's clock.
 */
export async function saveRam(
  running: RunningVm,
  sink: Sink,
  atSwitch: () => Promise<void>,
  signal: AbortSignal,
): Promise<{ stall_ms?: number; save_ms: number }> {
  const begun = performance.now()
  const wasRunning = running.last.state === 'running'
  const watch = running.watch(['STOP', 'RESUME', 'MIGRATION'])
  try {
    await running.execute('migrate-set-capabilities', {
      capabilities: [
        { capability: 'events', state: true },
        { capability: 'pause-before-switchover', state: true },
      ],
    })
    await running.execute('migrate-set-parameters', { 'max-bandwidth': 2 ** 50, 'downtime-limit': DOWNTIME_MS[0] })
    const status = (wanted: string) =>
      watch.until(
        (e) => e.event === 'MIGRATION' && [wanted, 'failed', 'cancelled', 'completed'].includes(statusOf(e)),
        { timeout_ms: wanted === 'completed' ? SWITCH_MS : ROUND_MS, signal },
      )
    const paused = status('pre-switchover')
    paused.catch(() => {})
    await running.execute('migrate', { uri: `unix:${sink.path}` })
    const { stuck, stop: stopLooking } = relax(running)
    const at = await Promise.race([paused, sink.done.then(() => paused), stuck]).finally(stopLooking)
    if (statusOf(at) !== 'pre-switchover') throw await whyFailed(running)
    await atSwitch()
    const ended = status('completed')
    ended.catch(() => {})
    await running.execute('migrate-continue', { state: 'pre-switchover' })
    if (statusOf(await ended) !== 'completed') throw await whyFailed(running)
    if (wasRunning) await goOn(running)
    const [stop, resume] = [watch.seen('STOP'), watch.seen('RESUME')]
    await sink.done
    return {
      ...(stop !== undefined && wasRunning ? { stall_ms: (resume ?? (await resumed(watch))) - stop } : {}),
      save_ms: performance.now() - begun,
    }
  } finally {
    watch.close()
    await settle(running, wasRunning)
  }
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

/** A guest that writes faster than its RAM is saved is held a little longer after each round. `stuck` rejects when nothing more comes. */
function relax(running: RunningVm): { stuck: Promise<never>; stop: () => void } {
  const { promise: stuck, reject } = Promise.withResolvers<never>()
  stuck.catch(() => {})
  let allowed = DOWNTIME_MS[0] as number
  let last = { bytes: -1, at: performance.now() }
  const look = async () => {
    if (performance.now() - last.at > STUCK_MS)
      reject(fail('monitor_silent', `QEMU saved no more of its RAM for ${STUCK_MS / 1000} s.`))
    const info = (await running.execute('query-migrate')) as {
      ram?: { 'dirty-sync-count'?: number; transferred?: number }
    }
    const bytes = info.ram?.transferred ?? 0
    if (bytes !== last.bytes) last = { bytes, at: performance.now() }
    const now = DOWNTIME_MS[info.ram?.['dirty-sync-count'] ?? 0] ?? UNLIMITED_MS
    if (now > allowed) await running.execute('migrate-set-parameters', { 'downtime-limit': (allowed = now) })
  }
  const timer = setInterval(() => void look().catch(() => {}), LOOK_MS)
  return { stuck, stop: () => clearInterval(timer) }
}

async function whyFailed(running: RunningVm): Promise<Error> {
  const info = (await running.execute('query-migrate').catch(() => ({}))) as { 'error-desc'?: string }
  return fail('qemu_failed', `QEMU could not save its RAM: ${info['error-desc'] ?? 'it does not say why'}.`)
}

/** Whatever happened: no migration stands, and the guest runs if it ran. Also after a daemon that died in the middle of one. */
export async function settle(running: RunningVm, run: boolean): Promise<void> {
  const at = async () => ((await running.execute('query-migrate')) as { status?: string }).status ?? 'none'
  const ended = ['none', 'completed', 'failed', 'cancelled']
  if (!ended.includes(await at())) {
    await running.execute('migrate_cancel')
    for (const end = performance.now() + 30_000; !ended.includes(await at()); ) {
      if (performance.now() > end) throw fail('monitor_silent', 'QEMU does not end the saving of its RAM.')
      await new Promise((resolve) => setTimeout(resolve, 10))
    }
  }
  await running.execute('migrate-set-capabilities', {
    capabilities: [{ capability: 'pause-before-switchover', state: false }],
  })
  if (run && ['paused', 'postmigrate', 'finish-migrate'].includes(await running.status())) await goOn(running)
}
