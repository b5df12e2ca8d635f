/** Many cases that differ in a moment only: a landing runs some of each, others at each commit; `make faults` runs all. */
import { execFileSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { ROOT } from './daemon.ts'

export const ALL_FAULTS = process.env['WADAH_ALL_FAULTS'] === '1'
let head: string | undefined

/** `most` of them in their order, chosen by the commit and by `of`, what they are cases of. */
export function some<T>(of: string, cases: readonly T[], most: number): T[] {
  head ??= execFileSync('git', ['rev-parse', 'HEAD'], { cwd: ROOT, encoding: 'utf8' })
  return ALL_FAULTS ? [...cases] : chosen(`${head}${of}`, cases, most)
}

/** Pure. */
export function chosen<T>(seed: string, cases: readonly T[], most: number): T[] {
  const rank = (i: number) => createHash('sha256').update(`${seed} ${i}`).digest('hex')
  const kept = new Set(
    cases
      .map((_, i) => i)
      .toSorted((a, b) => (rank(a) < rank(b) ? -1 : 1))
      .slice(0, most),
  )
  return cases.filter((_, i) => kept.has(i))
}
