/**
 * Disks that go to another file while their guest runs on (QEMU's `blockdev-mirror`). What the guest writes goes to both files before it
 * is told done (`write-blocking`): so there is always an end. At the end the guest is held until the old file is put aside: both hold the
 * same as long as the old one can be found, so that whoever comes after a crash, of QEMU too, sees by the names which one counts.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import { WadahError, fail, toFault } from '@wadah/api/fault'
import { human } from '@wadah/api/admit'
import type { DiskCopy, DiskMoves, DiskPlace } from '@wadah/ports/disk-moves'
import type { VolumeWork } from '@wadah/ports/volumes'
import type { HostVolumes } from '../storage/volumes.ts'
import { dismiss, endJob, jobOf, until } from './block-job.ts'
import type { RunningVm } from './running-vm.ts'
import { closeNodes, headNodes, headOf, nodes, openLayer } from './snapshot/layers.ts'
import { WRITE_BLOCKING, whileStill } from './still.ts'
import { activate } from './snapshot/snapshots.ts'

export type DiskMovesOptions = {
  volumes: HostVolumes
  /** One that runs here, adopted if need be. */
  running: (vm: string) => Promise<RunningVm | undefined>
  log: (line: string) => void
}

const STUCK_MS = 120_000
const CANCEL_MS = 60_000
/** Of a pool that is there. */
const ANSWERS_MS = 3_000
/** For this long the guest may stand still; QEMU has nothing left to copy by then. */
const SWITCH_MS = 20_000
/** A pool in which not even so much is left was the reason. */
const FULL_BYTES = 4 * 2 ** 20
const ENDS_MS = 2_000
const WHAT = 'copy the disk'
/** In these QEMU writes nothing of its own accord that we could not hold. */
const STEADY = ['running', 'paused', 'io-error']

export class HostDiskMoves implements DiskMoves {
  readonly #o: DiskMovesOptions
  constructor(options: DiskMovesOptions) {
    this.#o = options
  }

  #path({ pool, volume }: DiskPlace): string {
    return this.#o.volumes.path(pool, volume)
  }

  /** A monitor closes a moment before its process is seen to be gone. */
  async #isGone(running: RunningVm, error: unknown): Promise<boolean> {
    const { effect, code } = toFault(error)
    if (effect !== 'none' || code === 'monitor_silent') await Promise.race([running.gone, sleep(ENDS_MS)])
    return (await this.#o.running(running.vm)) === undefined
  }

  /** Whether the guest's disk is that file; of one that it let go of meanwhile no file is. */
  async #writesTo(running: RunningVm, { disk }: DiskCopy, place: DiskPlace): Promise<boolean> {
    const [heads, all] = [await headNodes(running), await nodes(running)]
    return all.some((n) => n.name === heads.get(disk) && n.path === this.#path(place))
  }

  async copy(move: DiskCopy, work: VolumeWork): Promise<void> {
    const running = await this.#o.running(move.vm)
    if (!running) throw ended()
    const id = jobId(move)
    try {
      if (await this.#writesTo(running, move, move.to)) return
      await activate(running)
      await mustBeSteady(running)
      // One that a dead daemon began and that failed since.
      if ((await jobOf(running, id))?.status === 'concluded') await running.execute('job-dismiss', { id })
      if (!(await jobOf(running, id))) await this.#begin(running, move)
      const report = (done: number, total: number) => work.progress?.(done, total)
      const job = await until(running, id, ['ready', 'concluded'], work.signal, report, STUCK_MS)
      if (job.status === 'ready') return
      await dismiss(running, id, WHAT)
      throw fail('qemu_failed', 'QEMU ended the copying of the disk.')
    } catch (error) {
      if (work.signal.aborted) throw error
      if (await this.#isGone(running, error)) throw ended(error)
      throw await this.#explain(move, error)
    }
  }

  async #begin(running: RunningVm, { disk, vm, from, to }: DiskCopy): Promise<void> {
    if (!(await this.#writesTo(running, { vm, disk, from, to }, from)))
      throw fail('wrong_state', `QEMU writes the disk "${disk}" to another file than the one recorded.`, {
        remedy: 'wadah job list; a merge of layers has to end first',
      })
    const layer = {
      chain: [{ path: this.#path(to), format: to.volume.format }],
      direct_io: to.pool.direct_io,
      limits: {},
    }
    const target = await openLayer(running, disk, layer)
    await running.execute('blockdev-mirror', {
      'job-id': jobId({ disk }),
      device: await headOf(running, disk),
      target,
      sync: 'full',
      ...WRITE_BLOCKING,
      'auto-dismiss': false,
    })
  }

  /** QEMU's own words do not tell a full pool from a broken one: the pool does. */
  async #explain({ to }: DiskCopy, error: unknown): Promise<unknown> {
    const why = toFault(error)
    if (why.code !== 'qemu_failed') return error
    const room = await this.#o.volumes.facts(to.pool).catch(() => undefined)
    if (!room || room.free_bytes > FULL_BYTES) return error
    return fail(
      'no_room',
      `The pool at ${to.pool.path} is full: ${human(room.free_bytes)} of ${human(room.capacity_bytes)} are free. The disk stays where it is; what was copied is removed.`,
      { remedy: `make room on it (df -h ${to.pool.path}), or take another pool`, cause: error },
    )
  }

  async drop(move: DiskCopy): Promise<void> {
    const running = await this.#o.running(move.vm)
    if (!running) return
    try {
      if (await this.#writesTo(running, move, move.to))
        throw fail('wrong_state', `The disk "${move.disk}" is the new file already.`, { effect: 'unknown' })
      await this.#cancel(running, move)
      await letGo(running)
      await this.#close(running, move)
    } catch (error) {
      // With QEMU all that it had open is gone.
      if (!(await this.#isGone(running, error))) throw error
    }
  }

  /** Where the new file's pool does not answer, the guest is not held: it would stand until it does. */
  async #cancel(running: RunningVm, move: DiskCopy): Promise<void> {
    const end = () => endJob(running, jobId(move), AbortSignal.timeout(CANCEL_MS))
    const facts = this.#o.volumes.facts(move.to.pool).then(
      () => true,
      () => true,
    )
    const answers = await Promise.race([facts, sleep(ANSWERS_MS, false, { ref: false })])
    await (answers ? whileStill(running, end) : end())
  }

  async switch(move: DiskCopy): Promise<{ stall_ms?: number }> {
    try {
      return await this.#switchOrEnd(move)
    } catch (error) {
      if (error instanceof WadahError && DECIDED.has(error)) throw error
      throw new WadahError({ ...toFault(error), effect: 'unknown' }, error)
    }
  }

  async #switchOrEnd(move: DiskCopy): Promise<{ stall_ms?: number }> {
    const running = await this.#o.running(move.vm)
    if (!running) return await this.#afterEnd(move)
    try {
      return await running.quietly(() => this.#switch(running, move))
    } catch (error) {
      if (!(await this.#isGone(running, error))) throw error
      return await this.#afterEnd(move)
    }
  }

  async #switch(running: RunningVm, move: DiskCopy): Promise<{ stall_ms?: number }> {
    let held_at: number | undefined
    if (!(await this.#writesTo(running, move, move.to))) {
      const id = jobId(move)
      try {
        const seen = await jobOf(running, id)
        if (seen?.status === 'concluded') await dismiss(running, id, WHAT)
        if (!seen || seen.status === 'concluded') throw fail('qemu_failed', 'QEMU ended the copying of the disk.')
        await until(running, id, ['ready'], AbortSignal.timeout(SWITCH_MS), () => {})
        if ((await mustBeSteady(running)) !== 'paused') {
          held_at = performance.now()
          await running.pause('job')
        }
        await running.execute('job-complete', { id })
        await until(running, id, ['concluded'], AbortSignal.timeout(SWITCH_MS), () => {})
        await dismiss(running, id, WHAT)
      } catch (error) {
        throw await this.#stays(running, move, error)
      }
      if (!(await this.#writesTo(running, move, move.to)))
        throw await this.#stays(running, move, fail('qemu_failed', 'QEMU did not take the new file.'))
    }
    try {
      await this.#o.volumes.retire(move.from.pool, move.from.volume)
    } catch (error) {
      // The pool that it leaves may be broken: then it is held until the change is recorded, which says as much (`settle`).
      this.#o.log(`${move.vm}: the old file of "${move.disk}" can't be put aside: ${(error as Error).message}`)
      return {}
    }
    await letGo(running)
    return held_at === undefined ? {} : { stall_ms: Math.round((performance.now() - held_at) * 10) / 10 }
  }

  /** It was not to be: the guest goes on with its old file, when it can be made sure that this is its file and stays so. */
  async #stays(running: RunningVm, move: DiskCopy, why: unknown): Promise<unknown> {
    await this.#cancel(running, move)
    if (await this.#writesTo(running, move, move.to)) return why
    await letGo(running)
    return decided(new WadahError({ ...toFault(await this.#explain(move, why)), effect: 'none' }, why))
  }

  /** QEMU is gone: the guest ran on with the new file only if the old one had been put aside. */
  async #afterEnd({ from, to }: DiskCopy): Promise<{ stall_ms?: number }> {
    const { volumes } = this.#o
    if (await volumes.exists(from.pool, from.volume)) throw decided(ended())
    if ((await volumes.isRetired(from.pool, from.volume)) && (await volumes.exists(to.pool, to.volume))) return {}
    throw fail('unavailable', `Neither file of the disk can be found now: ${this.#path(from)}, ${this.#path(to)}.`, {
      effect: 'unknown',
      remedy: `are both file systems mounted? ls ${from.pool.path} ${to.pool.path}`,
    })
  }

  async settle(move: DiskCopy): Promise<void> {
    const running = await this.#o.running(move.vm)
    if (!running) return
    try {
      if (await this.#writesTo(running, move, move.to)) await letGo(running)
      await this.#close(running, move)
    } catch (error) {
      if (!(await this.#isGone(running, error))) throw error
    }
  }

  /** Files of the disk that it does not use any more; a pool that has none left is not waited for when it is full. */
  async #close(running: RunningVm, { disk, from, to }: DiskCopy): Promise<void> {
    // A daemon that died after its end could not take it off the list.
    await endJob(running, jobId({ disk }), AbortSignal.timeout(CANCEL_MS))
    await closeNodes(running, disk)
    const open = await nodes(running)
    const pools = [...new Set([...running.live.pools, from.pool.path, to.pool.path])]
    await running.notePools(pools.filter((pool) => open.some((n) => n.path.startsWith(`${pool}/wadah/`))))
  }
}

const jobId = ({ disk }: { disk: string }) => `move-${disk}`

/** Errors of which it is known that the disk is the old file. */
const DECIDED = new WeakSet<WadahError>()
function decided(error: WadahError): WadahError {
  DECIDED.add(error)
  return error
}

const ended = (cause?: unknown) =>
  fail('wrong_state', 'The VM ended while its disk was copied; the disk stays where it is.', {
    remedy: 'a stopped VM has its disk moved by the same command: wadah volume move VOLUME POOL',
    cause,
  })

async function mustBeSteady(running: RunningVm): Promise<string> {
  const status = await running.status()
  if (STEADY.includes(status)) return status
  throw fail('wrong_state', `The guest stands by itself (${status}); its disks are moved when it is well again.`, {
    remedy: 'wadah vm show NAME',
  })
}

/** Whoever held it may be a daemon that is dead. */
async function letGo(running: RunningVm): Promise<void> {
  if (running.live.paused_by === 'job') await running.resume()
}
