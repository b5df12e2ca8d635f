/** A layer's content goes into the layer below, under a guest that runs on (QEMU's `block-commit`). */
import { basename } from 'node:path'
import { fail } from '@wadah/api/fault'
import { dismiss, endJob, jobOf, until } from '../block-job.ts'
import type { RunningVm } from '../running-vm.ts'
import { closeNodes, headOf, nodes } from './layers.ts'

export type LiveMerge = {
  disk: string
  /** Files of the layer that goes and of the one that takes its content. */
  from: string
  into: string
}
const ENDS_MS = 60_000
const MERGE = 'merge the layer'

/**
 * At the end of the topmost layer the guest is held (`paused`): while it is, both layers hold the same, so that whoever comes after
 * a crash may merge once more and overwrites nothing.
 */
export async function mergeLive(
  running: RunningVm,
  merge: LiveMerge,
  signal: AbortSignal,
  progress: (done: number, total: number) => void,
): Promise<{ paused: boolean }> {
  const id = `merge-${merge.disk}`
  const status = await running.status()
  // One that waits for room, say, goes on by itself when it has some, and must not between the end of the merge and its record.
  if (status !== 'running' && status !== 'paused')
    throw fail('wrong_state', `The guest stands by itself (${status}); its layers are merged when it is well again.`)
  // What a daemon left that ended between the end of a job and its dismissal must not be taken for a new one's end.
  if ((await jobOf(running, id))?.status === 'concluded') await dismiss(running, id, MERGE).catch(() => {})
  const all = await nodes(running)
  const node = (path: string) => all.find((n) => n.path === path)?.name
  const [head, from, into] = [await headOf(running, merge.disk), node(merge.from), node(merge.into)]
  if (into === undefined) throw fail('wrong_state', `QEMU does not have ${basename(merge.into)} open.`)
  if (from === undefined || head === into) {
    // An earlier try went through.
    await closeNodes(running, merge.disk)
    return { paused: running.live.paused_by === 'job' }
  }
  const top = head === from
  if (!(await jobOf(running, id))) {
    await running.execute('block-commit', {
      'job-id': id,
      device: head,
      'base-node': into,
      'auto-dismiss': false,
      ...(top ? {} : { 'top-node': from, 'backing-file': basename(merge.into) }),
    })
  }
  try {
    const job = await until(running, id, ['ready', 'concluded'], signal, progress)
    let paused = false
    if (job.status === 'ready') {
      if ((await running.status()) === 'running') {
        await running.pause('job')
        paused = true
      }
      await running.execute('job-complete', { id })
      await until(running, id, ['concluded'], AbortSignal.timeout(ENDS_MS), () => {})
    }
    await dismiss(running, id, MERGE)
    await closeNodes(running, merge.disk)
    if (!(await isMerged(running, merge, top)))
      throw fail('qemu_failed', 'QEMU says that the layer is merged, and still has it.', { effect: 'unknown' })
    return { paused: paused || running.live.paused_by === 'job' }
  } catch (error) {
    // Whoever was aborted leaves no copying behind; what was copied does no harm.
    await endJob(running, id, AbortSignal.timeout(ENDS_MS)).catch(() => {})
    // Once it writes to the lower one it stays held until that is recorded: whoever comes again finds it so.
    const over = await isMerged(running, merge, top).catch(() => true)
    if (running.live.paused_by === 'job' && !over) await running.resume().catch(() => {})
    throw error
  }
}

async function isMerged(running: RunningVm, merge: LiveMerge, top: boolean): Promise<boolean> {
  const all = await nodes(running)
  const into = all.find((n) => n.path === merge.into)?.name
  if (top) return into !== undefined && (await headOf(running, merge.disk)) === into
  return !all.some((n) => n.path === merge.from)
}
