/**
 * Local disks that go over while the guest runs: the target's QEMU exports empty volumes by NBD, and the source's mirrors into them. What the
 * guest writes meanwhile goes to both sides before it is told done (`write-blocking`): so there is always an end, and nothing is left for
 * the pause. Names say what is ours; a daemon that was started anew finds and ends it by them.
 */
import { type Server, createServer } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'
import { fail } from '@wadah/api/fault'
import type { MoveAccepted, MoveAddress, MoveDisk, MoveProgress } from '@wadah/ports/migration'
import type { QmpEvent } from '@wadah/qmp/client'
import type { RunningVm } from '../running-vm.ts'
import { headNodes, headVolumes } from '../snapshot/layers.ts'
import { WRITE_BLOCKING, whileStill } from '../still.ts'
import { nbdClientTls, nbdServerTls } from './setup.ts'

const JOB = 'mirror-'
const NODE = 'mir-'
const LOOK_MS = 100
/** Given up where nothing of the disks moves any more. */
const STUCK_MS = 120_000
const CONNECT_S = 30
const END_MS = 60_000
const CANCEL_MS = 30_000
const PORT_TRIES = 10

type Exports = NonNullable<MoveAccepted['exports']>
type BlockJob = { device: string; offset: number; len: number; ready: boolean; 'io-status': string }
type Ended = { error?: string; cancelled: boolean }

/** What a running QEMU's disks are, for the target to make as large. @throws WadahError `wrong_state` for one that it does not have */
export async function mirrorFacts(
  running: RunningVm,
  disks: readonly string[],
  layered: Record<string, string>,
): Promise<MoveDisk[]> {
  if (disks.length === 0) return []
  const heads = await headNodes(running)
  // Of these only the topmost is copied: it has to be the one that is meant.
  const writes = Object.keys(layered).length > 0 ? await headVolumes(running) : {}
  const other = Object.keys(layered).find((name) => writes[name] !== layered[name])
  if (other !== undefined)
    throw fail('wrong_state', `QEMU writes the disk "${other}" to another layer than the one recorded.`, {
      remedy: 'wadah job list; a merge of layers has to end first',
    })
  const all = (await running.execute('query-named-block-nodes', { flat: true })) as {
    'node-name': string
    drv: string
    image: { 'virtual-size': number }
  }[]
  return disks.map((name) => {
    const node = all.find((n) => n['node-name'] === heads.get(name))
    if (!node)
      throw fail('wrong_state', `The running VM does not have the disk "${name}" yet.`, {
        remedy: 'restart it first: wadah vm shutdown NAME, then wadah vm start NAME',
      })
    const format = node.drv === 'raw' ? 'raw' : 'qcow2'
    return {
      name,
      size_bytes: node.image['virtual-size'],
      format,
      ...(name in layered ? { layered: true } : {}),
    }
  })
}

/** The source's mirrors. */
export class Mirrors {
  readonly #running: RunningVm
  #disks: MoveDisk[] = []
  #off: (() => void) | undefined
  /** Job → how it ended. */
  readonly #ended = new Map<string, Ended>()
  readonly #waiting = new Set<() => void>()

  constructor(running: RunningVm) {
    this.#running = running
  }

  /** What all of them have, bytes. */
  get total_bytes(): number {
    return this.#disks.reduce((sum, d) => sum + d.size_bytes, 0)
  }

  /** Until all are on both sides, and stay so. @throws WadahError `qemu_failed`, or the signal's reason */
  async begin(
    disks: MoveDisk[],
    to: Exports,
    o: { tls_name?: string; bytes_per_s?: number },
    tell: { progress(done_bytes: number, total_bytes: number, bytes_per_s: number): void },
    signal: AbortSignal,
  ): Promise<void> {
    const running = this.#running
    this.#disks = disks
    this.#off ??= running.subscribe((event) => this.#on(event))
    void running.gone.then(() => this.#wake())
    const heads = await headNodes(running)
    for (const { name, layered } of disks) {
      const [head, exported] = [heads.get(name), to.disks[name]]
      if (head === undefined || exported === undefined)
        throw fail('wrong_state', `The disk "${name}" is not ready on both sides.`)
      signal.throwIfAborted()
      await running.execute('blockdev-add', clientNode(name, to.address, exported, o.tls_name), {
        timeout_ms: (CONNECT_S + 10) * 1000,
      })
      await running.execute('blockdev-mirror', {
        'job-id': JOB + name,
        device: head,
        target: NODE + name,
        sync: layered ? 'top' : 'full',
        ...WRITE_BLOCKING,
        ...(o.bytes_per_s ? { speed: o.bytes_per_s } : {}),
      })
    }
    let last = { done: -1, at: performance.now() }
    for (;;) {
      signal.throwIfAborted()
      const jobs = await mirrorJobs(running)
      this.#checkNone(jobs)
      const done = jobs.reduce((sum, j) => sum + Math.min(j.offset, j.len), 0)
      const total = Math.max(
        this.total_bytes,
        jobs.reduce((sum, j) => sum + j.len, 0),
      )
      const at = performance.now()
      if (done !== last.done) {
        const rate = last.done < 0 ? 0 : ((done - last.done) / Math.max(1, at - last.at)) * 1000
        last = { done, at }
        tell.progress(done, total, Math.max(0, Math.round(rate)))
      } else if (at - last.at > STUCK_MS)
        throw fail('qemu_failed', `Nothing of its disks went over for ${STUCK_MS / 1000} s.`)
      if (jobs.length === disks.length && jobs.every((j) => j.ready)) return
      await sleep(LOOK_MS, undefined, { signal }).catch(() => {})
    }
  }

  /** The guest stands still: what is on both sides is made to be the same, and the mirrors end. Waits for events alone. */
  async end(): Promise<void> {
    this.#checkNone()
    const ids = this.#disks.map((d) => JOB + d.name)
    const over = this.#until(() => ids.every((id) => this.#ended.has(id)))
    over.catch(() => {})
    // Of a mirror that is ready `force: false` is an end in good order: both sides hold the same, and QEMU goes on with its own.
    await Promise.all(ids.map((device) => this.#running.execute('block-job-cancel', { device, force: false })))
    await over
    for (const id of ids) {
      const { error, cancelled } = this.#ended.get(id) as Ended
      if (error !== undefined || cancelled) throw broke(id, error)
    }
  }

  /** Nothing of any mirror is left here, whoever began it. */
  async drop(): Promise<void> {
    this.#off?.()
    this.#off = undefined
    const running = this.#running
    if (running.isGone) return
    const jobs = await mirrorJobs(running)
    if (jobs.length > 0)
      await whileStill(
        running,
        () => this.#cancel(),
        () => this.#cut(jobs),
      )
    const all = (await running.execute('query-named-block-nodes', { flat: true })) as { 'node-name': string }[]
    for (const { 'node-name': node } of all)
      if (node.startsWith(NODE)) await running.execute('blockdev-del', { 'node-name': node })
  }

  async #cancel(): Promise<void> {
    const running = this.#running
    const end = performance.now() + CANCEL_MS
    for (const told = new Set<string>(); ; ) {
      const jobs = await mirrorJobs(running)
      if (jobs.length === 0) break
      for (const { device } of jobs) {
        if (told.has(device)) continue
        told.add(device)
        // What hangs on the network is cut off: the guest's own writes may wait for it.
        await running.execute('block-job-cancel', { device, force: true }).catch(() => {})
      }
      if (performance.now() > end)
        throw fail('qemu_failed', 'QEMU does not end the copying of the disks.', {
          effect: 'partial',
          remedy: 'the VM runs on; it can be moved once it was restarted',
        })
      await sleep(20)
    }
  }

  /** The connections of these, whatever hangs on them: their writes fail at once. */
  async #cut(jobs: BlockJob[]): Promise<void> {
    const instances = jobs.map((j) => ({ type: 'block-node', 'node-name': NODE + j.device.slice(JOB.length) }))
    await this.#running.execute('yank', { instances }, { oob: true })
  }

  #on(event: QmpEvent): void {
    if (event.event === 'BLOCK_JOB_ERROR') {
      const { device } = event.data as { device: string }
      if (!device.startsWith(JOB)) return
      this.#ended.set(device, { cancelled: false, error: 'Input/output error' })
      return this.#wake()
    }
    if (event.event !== 'BLOCK_JOB_COMPLETED' && event.event !== 'BLOCK_JOB_CANCELLED') return
    const { device, error } = event.data as { device: string; error?: string }
    if (!device.startsWith(JOB)) return
    const cancelled = event.event === 'BLOCK_JOB_CANCELLED'
    this.#ended.set(device, { cancelled, ...(error === undefined ? {} : { error }) })
    this.#wake()
  }
  #wake(): void {
    for (const look of [...this.#waiting]) look()
  }
  /** No mirror may have ended by itself, or stand. */
  #checkNone(jobs: BlockJob[] = []): void {
    for (const [id, { error }] of this.#ended) {
      const isFull = jobs.find((j) => j.device === id)?.['io-status'] === 'nospace'
      throw broke(id, isFull ? 'No space left on device' : error)
    }
  }
  async #until(look: () => boolean): Promise<void> {
    const { promise, resolve, reject } = Promise.withResolvers<void>()
    const check = () => {
      if (look()) resolve()
      else if (this.#running.isGone) reject(fail('qemu_failed', 'QEMU ended.', { effect: 'partial' }))
    }
    const late = () => reject(fail('timeout', `The copying of the disks did not end within ${END_MS / 1000} s.`))
    const timer = setTimeout(late, END_MS)
    this.#waiting.add(check)
    try {
      check()
      await promise
    } finally {
      clearTimeout(timer)
      this.#waiting.delete(check)
    }
  }
}

const broke = (job: string, why = 'it was ended') =>
  fail('qemu_failed', `The disk "${job.slice(JOB.length)}" could not be copied: ${why}.`)

async function mirrorJobs(running: RunningVm): Promise<BlockJob[]> {
  return ((await running.execute('query-block-jobs')) as BlockJob[]).filter((j) => j.device.startsWith(JOB))
}

/** Zeros are told, not sent: the other side stays sparse. Pure. */
export function clientNode(
  disk: string,
  { host, port }: MoveAddress,
  exported: string,
  tls_name: string | undefined,
): Record<string, unknown> {
  return {
    driver: 'nbd',
    'node-name': NODE + disk,
    server: { type: 'inet', host, port: String(port) },
    export: exported,
    'open-timeout': CONNECT_S,
    discard: 'unmap',
    'detect-zeroes': 'unmap',
    ...(tls_name === undefined ? {} : nbdClientTls(tls_name)),
  }
}

/**
 * The target's side: exports these disks, to be written by one peer. With TLS it must be the source's QEMU of this move; and there are
 * only as many connections as disks, so that without TLS somebody else could only keep the move from beginning.
 */
export async function exportDisks(
  running: RunningVm,
  disks: readonly string[],
  listen: string,
  tls: boolean,
  signal: AbortSignal,
): Promise<Exports> {
  const address = await startServer(running, listen, disks.length, tls, signal)
  for (const name of disks)
    await running.execute('block-export-add', {
      type: 'nbd',
      id: `exp-${name}`,
      'node-name': `vol-${name}`,
      name,
      writable: true,
    })
  return { address, disks: Object.fromEntries(disks.map((name) => [name, name])) }
}

/** QEMU does not tell which port it was given, so one is chosen that is free now, and another when it was taken meanwhile. */
async function startServer(
  running: RunningVm,
  host: string,
  connections: number,
  tls: boolean,
  signal: AbortSignal,
): Promise<MoveAddress> {
  for (let i = 1; ; i++) {
    signal.throwIfAborted()
    const port = await freePort(host)
    try {
      await running.execute('nbd-server-start', {
        addr: { type: 'inet', data: { host, port: String(port) } },
        'max-connections': connections,
        ...(tls ? nbdServerTls : {}),
      })
      return { host, port }
    } catch (error) {
      if (i >= PORT_TRIES || running.isGone) throw error
    }
  }
}

async function freePort(host: string): Promise<number> {
  const server = await new Promise<Server>((resolve, reject) => {
    const made = createServer()
    made.once('error', reject)
    made.listen(0, host, () => resolve(made))
  })
  const { port } = server.address() as { port: number }
  await new Promise<void>((resolve) => server.close(() => resolve()))
  return port
}

/** Nobody writes into the disks from outside any more. Done twice is done once. */
export async function unexportDisks(running: RunningVm): Promise<void> {
  const exports = (await running.execute('query-block-exports')) as { id: string }[]
  if (exports.some((e) => e.id.startsWith('exp-'))) await running.execute('nbd-server-stop')
}

/** How far the copying of disks is, as a move tells it: RAM has not begun. Pure. */
export function diskProgress(done: number, disks: number, ram: number, bytes_per_s: number): MoveProgress {
  return {
    remaining_bytes: disks - done + ram,
    disk_remaining_bytes: disks - done,
    sent_bytes: done,
    total_bytes: disks + ram,
    dirty_bytes_per_s: 0,
    bandwidth_bytes_per_s: bytes_per_s,
    round: 0,
    downtime_limit_ms: 0,
  }
}
