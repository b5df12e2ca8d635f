/** What a source's QEMU says of its migration: events as they come, questions only while the guest runs. */
import { fail, toFault } from '@wadah/api/fault'
import type { QmpEvent } from '@wadah/qmp/client'
import type { QemuClaim } from '@wadah/ports/migration'
import { cancelMigration } from '../cancel-migration.ts'
import type { RunningVm } from '../running-vm.ts'
import { unlessTold } from '../unless-told.ts'
import type { Seen } from './steer.ts'

export type MigrationStatus = string
const ENDS = ['completed', 'failed', 'cancelled', 'none'] as const
/** Post-copy without its connection. Its guest is `finish-migrate`, which QEMU lets go on neither here nor, without a connection, there. */
const BROKEN = 'postcopy-paused'
/** QEMU notices so much later at most that the other one has ended. */
const BREAK_MS = 200
const SETTLE_MS = 30_000
const LOOK_MS = 2
/** So long a QEMU that has let go of its guest is refused its disks, before whoever asked is told. */
const HELD_MS = 300
const HELD_LOOK_MS = 20

export type Info = {
  status?: string
  'error-desc'?: string
  downtime?: number
  'total-time'?: number
  ram?: {
    remaining: number
    transferred: number
    total: number
    mbps: number
    'dirty-sync-count': number
    'dirty-pages-rate': number
    'page-size': number
  }
}

export const stampOf = (e: QmpEvent): number => e.timestamp.seconds * 1000 + e.timestamp.microseconds / 1000
export const statusOf = (e: QmpEvent): string => (e.data as { status?: string }).status ?? ''

export async function ask(running: RunningVm): Promise<Info> {
  return (await running.execute('query-migrate')) as Info
}

export function seenOf(info: Info, at_ms: number): Seen | undefined {
  const { ram } = info
  if (!ram) return undefined
  return {
    at_ms,
    round: ram['dirty-sync-count'],
    remaining_bytes: ram.remaining,
    bandwidth_bytes_per_s: (ram.mbps * 1_000_000) / 8,
  }
}

export function claimOf(info: Info): QemuClaim {
  const { ram } = info
  return {
    ...(info.downtime === undefined ? {} : { downtime_ms: info.downtime }),
    ...(info['total-time'] === undefined ? {} : { total_ms: info['total-time'] }),
    ...(ram
      ? { sent_bytes: ram.transferred, rounds: ram['dirty-sync-count'], bandwidth_mbps: Math.round(ram.mbps) }
      : {}),
  }
}

/** Follows events from its making on. */
export class Outgoing {
  status = 'none'
  /** The last STOP, by QEMU's clock. */
  stop_ms: number | undefined
  /** How long the guest stood still before it went on here, ms. */
  stood_ms: number | undefined
  readonly #waiting = new Set<() => void>()
  readonly #running: RunningVm
  readonly #off: () => void
  #told = 0
  #gone: string | undefined

  constructor(running: RunningVm) {
    this.#running = running
    this.#off = running.subscribe((event) => {
      if (event.event === 'STOP') this.stop_ms = stampOf(event)
      else if (event.event === 'RESUME') {
        if (this.stop_ms !== undefined) this.stood_ms = stampOf(event) - this.stop_ms
        this.stop_ms = undefined
      } else if (event.event === 'MIGRATION') {
        this.#told += 1
        this.status = statusOf(event)
      } else return
      this.#wake()
    })
    void running.gone.then(({ reason }) => {
      this.#gone = reason
      this.#wake()
    })
  }

  get gone(): string | undefined {
    return this.#gone
  }
  #wake(): void {
    for (const look of [...this.#waiting]) look()
  }
  /** Asks QEMU for what its events may not have said to this daemon. */
  async look(): Promise<void> {
    this.status =
      (
        await unlessTold(
          () => this.#told,
          () => ask(this.#running),
        )
      )?.status ?? this.status
    this.#wake()
  }
  /** Calls `look` now and at every event, until the returned function is called. */
  watch(look: () => void): () => void {
    this.#waiting.add(look)
    look()
    return () => this.#waiting.delete(look)
  }
  /** The first that is not undefined of what `look` answers at each event. */
  async until<T>(look: () => T | undefined, timeout_ms: number, signal?: AbortSignal): Promise<T> {
    const { promise, resolve, reject } = Promise.withResolvers<T>()
    const timer = setTimeout(
      () => reject(fail('timeout', `QEMU did not get on with the move for ${Math.round(timeout_ms / 1000)} s.`)),
      timeout_ms,
    )
    const stop = () => reject(signal?.reason as Error)
    signal?.addEventListener('abort', stop, { once: true })
    const off = this.watch(() => {
      try {
        const value = look()
        if (value !== undefined) resolve(value)
      } catch (error) {
        reject(error as Error)
      }
    })
    try {
      signal?.throwIfAborted()
      return await promise
    } finally {
      clearTimeout(timer)
      signal?.removeEventListener('abort', stop)
      off()
    }
  }
  close(): void {
    this.#off()
    this.#waiting.clear()
  }
}

const broken = () =>
  fail('memory_lost', 'Post-copy broke before the guest ran over there, and QEMU does not give it back', {
    effect: 'unknown',
  })

/**
 * Whatever the migration is: afterwards none stands, and the guest runs here, or is paused as it was. Not when it has gone over.
 * @throws WadahError effect `unknown`: it does not come to run. `memory_lost`: it never will. `in_use`: another QEMU has its disks, which
 *   post-copy takes as soon as the devices are loaded, whether the guest runs or not (QEMU, savevm.c, loadvm_postcopy_handle_run_bh)
 */
export async function goOnHere(running: RunningVm, paused: boolean): Promise<void> {
  const end = performance.now() + SETTLE_MS
  const later = async () => {
    if (performance.now() > end)
      throw fail('qemu_failed', 'QEMU does not let the guest go on after the move was given up.', {
        effect: 'unknown',
        remedy: 'wadah vm show NAME; wadah vm resume NAME',
      })
    await new Promise((resolve) => setTimeout(resolve, LOOK_MS))
  }
  let wake: ((status: string) => Promise<void>) | undefined
  for (let isBetween = false; ; ) {
    const { status = 'none' } = await ask(running)
    if ((ENDS as readonly string[]).includes(status)) break
    if (status === BROKEN || (isBetween && performance.now() > end)) throw broken()
    if (!isBetween && status.startsWith('postcopy')) {
      // One that breaks is not to be cancelled: its threads wait for a new connection, and QEMU for them, for ever (7.2, postcopy_pause).
      isBetween = true
      await new Promise((resolve) => setTimeout(resolve, BREAK_MS))
      continue
    }
    wake ??= await cancelMigration(running)
    await wake(status)
    await later()
  }
  const held_ms = performance.now() + HELD_MS
  for (;;) {
    const status = await running.status()
    if (status === 'running' || (paused && status !== 'finish-migrate')) return
    // It goes on by itself when it was QEMU who stopped it; while it makes up its mind (finish-migrate) it refuses.
    if (status === 'finish-migrate') {
      await later()
      continue
    }
    const refused = await running.execute('cont').then(
      () => undefined,
      (error: unknown) => toFault(error),
    )
    if (refused && status === 'postmigrate' && performance.now() > held_ms)
      throw fail('in_use', `QEMU, which had let go of the guest, does not get its disks back: ${refused.detail}`, {
        effect: 'unknown',
        remedy: 'it is tried again once the other host has ended its QEMU',
      })
    if (refused) await new Promise((resolve) => setTimeout(resolve, HELD_LOOK_MS))
    if (performance.now() > end) await later()
  }
}
