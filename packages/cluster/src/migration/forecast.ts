/** What a move will cost, before it is begun, and how it came out. Pure. */
import type { MoveForecast, MoveLimits, MoveMode, MoveReport } from '@wadah/ports/migration'
import { mayGoPostcopy } from './resolve.ts'

export type ForecastInput = {
  ram_bytes: number
  /** Of it, what holds something: pages of zeros cost next to nothing. Absent: all. */
  used_bytes?: number
  /** Of local disks; they go over before RAM, while the guest runs. */
  disk_bytes?: number
  /** Measured by QEMU's calc-dirty-rate; absent: not known. */
  dirty_bytes_per_s?: number
  bandwidth_bytes_per_s: number
  mode: MoveMode
  limits: MoveLimits
  /** What stands still whatever the size: devices, messages, the start. */
  fixed_ms: number
  /** Preparing the target, seal, end. */
  around_ms: number
}

const MAX_ROUNDS = 30

/**
 * Pre-copy as a geometric series: while a round of `left` bytes is sent, the guest writes dirty × left ÷ bandwidth, but never more than
 * it has (Clark et al., "Live Migration of Virtual Machines", NSDI 2005, section 4). It ends when what is left fits the ceiling.
 */
export function forecast(input: ForecastInput): MoveForecast {
  const { ram_bytes, bandwidth_bytes_per_s: link, mode, limits, fixed_ms, around_ms, disk_bytes = 0 } = input
  const speed = Math.min(link, limits.bandwidth_bytes_per_s || link)
  const used = Math.min(ram_bytes, input.used_bytes ?? ram_bytes)
  const dirty = input.dirty_bytes_per_s ?? 0
  if (!(speed > 0))
    return {
      how: mode === 'postcopy' || mode === 'hybrid' ? 'postcopy' : 'precopy',
      converges: false,
      rounds: 0,
      total_ms: 0,
      stall_ms: 0,
      bytes: 0,
      why: 'the speed of the link is not known',
    }
  const ms = (bytes: number) => (bytes / speed) * 1000
  const unknown = input.dirty_bytes_per_s === undefined ? 'how fast the guest writes is not known' : undefined
  if (mode === 'postcopy')
    return done({
      how: 'postcopy',
      converges: true,
      rounds: 0,
      stall_ms: fixed_ms,
      bytes: used,
      total_ms: ms(used),
    })
  const room = Math.max(0, limits.max_stall_ms - fixed_ms)
  const most = limits.rounds ?? (mode === 'hybrid' ? 1 : MAX_ROUNDS)
  let left = used
  let bytes = 0
  let rounds = 0
  while (rounds < most && (rounds === 0 || ms(left) > room)) {
    bytes += left
    const next = Math.min(used, (dirty * ms(left)) / 1000)
    rounds += 1
    // Never less again: a guest that writes as fast as the link takes it.
    if (next >= left && rounds > 1) break
    left = next
  }
  const fits = ms(left) <= room
  if (fits || mayGoPostcopy({ mode, limits }))
    return done({
      how: mode === 'hybrid' || !fits ? 'postcopy' : 'precopy',
      converges: true,
      rounds,
      stall_ms: fixed_ms + (fits ? ms(left) : 0),
      bytes: bytes + left,
      total_ms: ms(bytes + left),
      ...(unknown === undefined ? {} : { why: unknown }),
    })
  const needs = Math.ceil(ms(left) + fixed_ms)
  return done({
    how: 'precopy',
    converges: false,
    rounds,
    stall_ms: needs,
    bytes: bytes + left,
    total_ms: ms(bytes + left),
    why: `it writes ${mib(dirty)} MiB/s, the link takes ${mib(speed)}: it would stand still for ${needs} ms, and may for ${limits.max_stall_ms}`,
  })

  function done(f: MoveForecast): MoveForecast {
    const total_ms = f.total_ms + ms(disk_bytes) + around_ms + f.stall_ms
    return { ...f, total_ms, ...(disk_bytes > 0 ? { disk_bytes } : {}) }
  }
}

const mib = (bytes: number) => Math.round(bytes / 2 ** 20)

/** Achieved ÷ forecast, where both are known. */
export function compared(
  forecast_: MoveForecast,
  found: Pick<MoveReport, 'stall_ms' | 'total_ms' | 'claim'>,
): NonNullable<MoveReport['ratio']> {
  const ratio = (a: number | undefined, b: number) =>
    a !== undefined && b > 0 ? Math.round((a / b) * 100) / 100 : undefined
  const stall = ratio(found.stall_ms, forecast_.stall_ms)
  const total = ratio(found.total_ms, forecast_.total_ms)
  const bytes = ratio(found.claim.sent_bytes, forecast_.bytes)
  return {
    ...(stall === undefined ? {} : { stall }),
    ...(total === undefined ? {} : { total }),
    ...(bytes === undefined ? {} : { bytes }),
  }
}
