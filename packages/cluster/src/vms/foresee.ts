/** What a move of a VM will cost: for its plan, and sampled again when it begins. */
import type { MoveForecast, MoveLimits, MoveMode } from '@wadah/ports/migration'
import type { Deps } from '../context.ts'
import { factsKind } from '../members/records.ts'
import { hostName } from '../members/where.ts'
import { forecast } from '../migration/forecast.ts'
import { foreseenLimits } from '../migration/limits.ts'
import { speedOf } from '../migration/speed.ts'
import { statusKind, vmKind } from '../records.ts'
import { bytesOf } from './bring-out.ts'
import type { DiskMove } from './local-disks.ts'

/** Devices, messages and the start on the other side; preparing and ending. Medians of moves that were measured (docs/migration.md). */
const FIXED_MS = { tcg: 45, kvm: 8 }
const AROUND_MS = 900

type Order = {
  vm: string
  from: string
  to: string
  live: boolean
  mode: MoveMode
  limits: MoveLimits
  disks?: readonly DiskMove[]
}

/** A guest that runs is sampled for a second, and feels nothing of it. */
export async function foresee(deps: Deps, o: Order, signal: AbortSignal): Promise<MoveForecast> {
  const { view, machine } = deps
  const vm = view.get(vmKind, o.vm)?.value
  const accelerator = view.get(statusKind, o.vm)?.value.accelerator ?? 'tcg'
  const limits = foreseenLimits(o.limits, view.get(factsKind, o.to)?.value)
  const unknown = () => undefined
  const [dirty, used, ...disks] = await Promise.all([
    o.live ? machine.migration.dirtyRate(o.vm, signal).catch(unknown) : 0,
    o.live ? machine.migration.usedRam(o.vm).catch(unknown) : 0,
    // One of which nobody says what it holds is taken as full.
    ...(o.disks ?? []).map(async (d) => (await bytesOf(deps, d)) ?? d.size_bytes),
  ])
  return forecast({
    ram_bytes: o.live ? (vm?.spec.memory_mib ?? 0) * 2 ** 20 : 0,
    ...(used === undefined ? {} : { used_bytes: used }),
    disk_bytes: disks.reduce((sum: number, n) => sum + (n ?? 0), 0),
    ...(dirty === undefined ? {} : { dirty_bytes_per_s: dirty }),
    bandwidth_bytes_per_s: speedOf(view, hostName(view, o.from), hostName(view, o.to)),
    mode: o.live ? o.mode : 'precopy',
    // QEMU goes over RAM once without hardware acceleration (docs/migration.md).
    limits: accelerator === 'tcg' ? { ...limits, rounds: 1 } : limits,
    fixed_ms: o.live ? FIXED_MS[accelerator] : 0,
    around_ms: AROUND_MS,
  })
}

/** For the log of the job. */
export function foreseenLine(f: MoveForecast): string {
  const mib = (bytes: number) => `${Math.round(bytes / 2 ** 20)} MiB`
  const disks = f.disk_bytes === undefined ? '' : ` and ${mib(f.disk_bytes)} of disks`
  const why = f.why === undefined ? '' : `; ${f.why}`
  return `foreseen: ${(f.total_ms / 1000).toFixed(1)} s in all, a stall of ${Math.round(f.stall_ms)} ms, ${mib(f.bytes)} of RAM${disks} (${f.how})${why}`
}
