/** How fast moves have been from one host to another: what a forecast goes by. Pure over the records of jobs. */
import type { VmMove } from '@wadah/api/schema/migration'
import type { CachedView } from '@wadah/store/cache'
import { jobKind } from '../jobs/record.ts'

/** What a link is taken to carry as long as no move has measured it. */
export const LINK_BYTES_PER_S = 100 * 2 ** 20
const COUNTED = 5
/** Less says more of the beginning than of the link. */
const LEAST_BYTES = 8 * 2 ** 20

/** Bytes per second: the median of the last moves between the two, by their names; else of all. */
export function speedOf(view: Pick<CachedView, 'list'>, from: string, to: string): number {
  const moves = view
    .list(jobKind)
    .filter(({ value: j }) => j.name === 'vm.migrate' && j.state === 'done')
    .toSorted((a, b) => (b.value.ended_ms ?? 0) - (a.value.ended_ms ?? 0))
    .flatMap(({ value: j }) => {
      const move = j.result as VmMove | undefined
      const copy_ms = move?.phases?.find((p) => p.phase === 'copy')?.ms
      if (!move?.live || copy_ms === undefined || copy_ms <= 0 || (move.bytes ?? 0) < LEAST_BYTES) return []
      return [{ ...move, speed: ((move.bytes ?? 0) * 1000) / copy_ms }]
    })
  const between = moves.filter((m) => m.from === from && m.to === to)
  const counted = (between.length > 0 ? between : moves).slice(0, COUNTED).map((m) => m.speed)
  return counted.toSorted((a, b) => a - b)[Math.floor(counted.length / 2)] ?? LINK_BYTES_PER_S
}
