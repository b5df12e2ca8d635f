/** What a move came to, from what was seen. Pure. */
import type { MoveForecast, MoveMode, MoveReport, PhaseTimes, QemuClaim, SwitchedOver } from '@wadah/ports/migration'
import { type ClockOffset, stallOf } from './clock.ts'
import { compared } from './forecast.ts'

const tenth = (ms: number) => Math.round(ms * 10) / 10

export function makeReport(found: {
  order: { mode: MoveMode; forecast?: MoveForecast }
  switched: SwitchedOver
  run_ms: number
  claim: QemuClaim
  clock: ClockOffset | undefined
  phases: PhaseTimes[]
  notes: string[]
}): MoveReport {
  const { order, switched, run_ms, claim, clock, phases, notes } = found
  const paused = switched.stop_ms === undefined
  const { stall_ms, error_ms } =
    switched.stop_ms === undefined ? { stall_ms: 0, error_ms: 0 } : stallOf(switched.stop_ms, run_ms, clock)
  const begin = phases[0]?.begin_ms ?? 0
  const total_ms = (phases.at(-1)?.end_ms ?? begin) - begin
  const report: MoveReport = {
    mode: order.mode,
    how: switched.how,
    stall_ms: tenth(stall_ms),
    stall_error_ms: Number.isFinite(error_ms) ? Math.max(0.1, tenth(error_ms)) : error_ms,
    ...(paused ? { paused } : {}),
    claim,
    total_ms: tenth(total_ms),
    phases,
    clock: clock ?? { offset_ms: 0, round_trip_ms: Number.POSITIVE_INFINITY, samples: 0 },
    notes,
  }
  return order.forecast ? { ...report, forecast: order.forecast, ratio: compared(order.forecast, report) } : report
}
