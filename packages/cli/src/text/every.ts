/** How often, as people type it. */
import { fail } from '@wadah/api/fault'

const MINUTES: Record<string, number> = { m: 1, h: 60, d: 24 * 60 }

/** Minutes of `30m`, `4h`, `1d`. */
export function parseEvery(text: string, what: string): number {
  const match = /^(\d{1,6})([mhd])$/.exec(text.trim())
  const minutes = match ? Number(match[1]) * (MINUTES[match[2] ?? ''] ?? 0) : 0
  if (!(minutes >= 5 && minutes <= 366 * 24 * 60))
    throw fail('invalid', `${what}: "${text}" is not a time from 5m to 366d. Write 30m, 4h, 1d …`, { field: what })
  return minutes
}

/** In the largest unit that says it exactly. */
export function formatEvery(minutes: number): string {
  const unit = ['d', 'h', 'm'].find((u) => minutes % (MINUTES[u] ?? 1) === 0) ?? 'm'
  return `${minutes / (MINUTES[unit] ?? 1)}${unit}`
}
