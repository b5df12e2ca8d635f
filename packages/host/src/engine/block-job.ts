/** Jobs of QEMU that copy disks: found by the ids we give them, waited for, and taken off its list once their end was read. */
import { fail } from '@wadah/api/fault'
import type { Running } from '@wadah/ports/machine'

export type BlockJob = {
  id: string
  status: string
  'current-progress': number
  'total-progress': number
  error?: string
}
const STANDS = ['paused', 'standby']
const LOOK_MS = [5, 10, 20, 50, 100, 200] as const

export async function jobOf(running: Running, id: string): Promise<BlockJob | undefined> {
  return ((await running.execute('query-jobs')) as BlockJob[]).find((j) => j.id === id)
}

/** Of one that was told to stand where it can't read or write (still.ts). */
async function hasFailed(running: Running, id: string): Promise<boolean> {
  const jobs = (await running.execute('query-block-jobs')) as { device: string; 'io-status': string }[]
  return jobs.some((j) => j.device === id && j['io-status'] !== 'ok')
}

/**
 * Looks until it is in one of these states. `stuck_ms`: given up where nothing of it has moved for so long.
 * @throws WadahError `qemu_failed`, or the signal's reason
 */
export async function until(
  running: Running,
  id: string,
  wanted: readonly string[],
  signal: AbortSignal,
  progress: (done: number, total: number) => void,
  stuck_ms = Number.POSITIVE_INFINITY,
): Promise<BlockJob> {
  let last = { done: -1, at: performance.now() }
  for (let i = 0; ; i++) {
    signal.throwIfAborted()
    const job = await jobOf(running, id)
    if (!job) throw fail('qemu_failed', 'QEMU lost the copying of the disk.')
    const [done, at] = [job['current-progress'], performance.now()]
    progress(done, job['total-progress'])
    if (wanted.includes(job.status)) return job
    if (STANDS.includes(job.status) && (await hasFailed(running, id)))
      throw fail('qemu_failed', 'QEMU could not read the disk, or not write its new file.')
    if (done !== last.done) last = { done, at }
    else if (at - last.at > stuck_ms)
      throw fail('qemu_failed', `Nothing of the disk was copied for ${Math.round(stuck_ms / 1000)} s.`)
    await new Promise((resolve) => setTimeout(resolve, LOOK_MS[Math.min(i, LOOK_MS.length - 1)]))
  }
}

/** Takes one that has ended off QEMU's list. @throws WadahError `qemu_failed` with why it failed, if it did */
export async function dismiss(running: Running, id: string, what: string): Promise<void> {
  const job = await jobOf(running, id)
  await running.execute('job-dismiss', { id })
  if (job?.error !== undefined) throw fail('qemu_failed', `QEMU could not ${what}: ${job.error}.`)
}

/** Ends it, whatever it does, and takes it off the list. Of one that is not there nothing is done. */
export async function endJob(running: Running, id: string, limit: AbortSignal): Promise<void> {
  if (!(await jobOf(running, id))) return
  await running.execute('job-cancel', { id }).catch(() => {})
  await until(running, id, ['concluded'], limit, () => {})
  await running.execute('job-dismiss', { id })
}
