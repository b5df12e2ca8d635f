/**
 * What moves came to, counted from the records of their jobs. A job that is forgotten leaves what it counted in a record of its host, in the same
 * commit: so the counters only grow, a restart loses nothing, and no move has to write anything for them.
 */
import { MOVE_MODES, type VmMove } from '@wadah/api/schema/migration'
import { absent, type Kind, put, type Store, unchanged } from '@wadah/store/store'
import type { Remember } from '../jobs/housekeeping.ts'
import { hasEnded, type JobRecord } from '../jobs/record.ts'
import { addHistograms, emptyHistogram, type Family, type Histogram, observed } from './exposition.ts'

type How = 'precopy' | 'postcopy'
const HOW: readonly How[] = ['precopy', 'postcopy']
const WHEN = ['before', 'during', 'after'] as const
const FORESEEN = ['stall', 'total', 'bytes'] as const
const MODES = [...MOVE_MODES, 'offline'] as const
const RESULTS = ['done', 'failed', 'cancelled'] as const

export type MoveTally = {
  /** `auto done` → how many. */
  ended: Record<string, number>
  bytes: number
  /** Seconds; by how the guest went over. */
  stall: Record<How, Histogram>
  claimed: Record<How, Histogram>
  /** Seconds: how far the measured stall may be wrong, for two clocks were compared. */
  stall_error: Histogram
  /** Seconds: the longest time without an answer, seen from the source; by how the guest went over. */
  gap: Record<How, Histogram>
  /** Seconds until it answered, the median of each move. */
  answer: Record<(typeof WHEN)[number], Histogram>
  /** Seconds, of moves of running VMs that ended well. */
  took: Histogram
  /** Achieved ÷ forecast. */
  ratio: Record<(typeof FORESEEN)[number], Histogram>
}

/** Of the jobs of a host that are forgotten; by the host's id. */
export type TallyRecord = { schema: 1; moves: MoveTally }
export const tallyKind: Kind<TallyRecord> = { name: 'host/moves' }

/** Of a job that is forgotten its host goes on counting what it counted. */
export const rememberMoves =
  (store: Pick<Store, 'get'>): Remember =>
  async (job) => {
    if (job.name !== 'vm.migrate') return { checks: [], writes: [] }
    const { host } = job.executor
    const rec = await store.get(tallyKind, host)
    const moves = withJob(tallyOf(rec?.value), job)
    return {
      checks: [rec ? unchanged(rec) : absent(tallyKind, host)],
      writes: [put(tallyKind, host, { schema: 1, moves })],
    }
  }

const STALL_BOUNDS = [0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 1, 2.5, 5, 10]
const SMALL_BOUNDS = [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1]
const TOOK_BOUNDS = [0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 7200]
const RATIO_BOUNDS = [0.25, 0.5, 0.8, 0.9, 1, 1.1, 1.25, 2, 4]

export const emptyTally = (): MoveTally => ({
  ended: {},
  bytes: 0,
  stall: { precopy: emptyHistogram(), postcopy: emptyHistogram() },
  claimed: { precopy: emptyHistogram(), postcopy: emptyHistogram() },
  stall_error: emptyHistogram(),
  gap: { precopy: emptyHistogram(), postcopy: emptyHistogram() },
  answer: { before: emptyHistogram(), during: emptyHistogram(), after: emptyHistogram() },
  took: emptyHistogram(),
  ratio: { stall: emptyHistogram(), total: emptyHistogram(), bytes: emptyHistogram() },
})

/** An older release counted less. */
export const tallyOf = (record: TallyRecord | undefined): MoveTally => ({ ...emptyTally(), ...record?.moves })

/** The tally with one job more; one that is no move, or has not ended, changes nothing. */
export function withJob(t: MoveTally, job: JobRecord): MoveTally {
  if (job.name !== 'vm.migrate' || !hasEnded(job)) return t
  const asked = job.params as { live?: boolean; mode?: string } | undefined
  const mode = MODES.find((m) => m === (asked?.live === false ? 'offline' : asked?.mode)) ?? 'auto'
  const key = `${mode} ${job.state}`
  const next = { ...t, ended: { ...t.ended, [key]: (t.ended[key] ?? 0) + 1 } }
  const move = job.state === 'done' ? (job.result as VmMove | undefined) : undefined
  if (!move?.live) return next
  const how = move.how ?? 'precopy'
  next.bytes += known(move.bytes) ?? 0
  // Of one that a new daemon brought to its end nothing was measured.
  if (move.how !== undefined) next.took = withMs(t.took, TOOK_BOUNDS, move.total_ms)
  next.stall = { ...t.stall, [how]: withMs(t.stall[how], STALL_BOUNDS, move.stall_ms) }
  next.claimed = { ...t.claimed, [how]: withMs(t.claimed[how], STALL_BOUNDS, move.claimed_downtime_ms) }
  next.stall_error = withMs(t.stall_error, SMALL_BOUNDS, move.stall_error_ms)
  next.gap = { ...t.gap, [how]: withMs(t.gap[how], STALL_BOUNDS, move.outside?.longest_gap_ms) }
  next.answer = { ...t.answer }
  for (const when of WHEN)
    next.answer[when] = withMs(t.answer[when], SMALL_BOUNDS, move.outside?.[`${when}_ms` as const])
  next.ratio = { ...t.ratio }
  for (const what of FORESEEN) {
    const ratio = known(move.ratio?.[what])
    if (ratio !== undefined) next.ratio[what] = observed(t.ratio[what], RATIO_BOUNDS, ratio)
  }
  return next
}

export function addTallies(a: MoveTally, b: MoveTally): MoveTally {
  const ended = { ...a.ended }
  for (const [key, n] of Object.entries(b.ended)) ended[key] = (ended[key] ?? 0) + n
  const each = <K extends string>(x: Record<K, Histogram>, y: Record<K, Histogram>): Record<K, Histogram> =>
    Object.fromEntries((Object.keys(x) as K[]).map((k) => [k, addHistograms(x[k], y[k])])) as Record<K, Histogram>
  return {
    ended,
    bytes: a.bytes + b.bytes,
    stall: each(a.stall, b.stall),
    claimed: each(a.claimed, b.claimed),
    stall_error: addHistograms(a.stall_error, b.stall_error),
    gap: each(a.gap, b.gap),
    answer: each(a.answer, b.answer),
    took: addHistograms(a.took, b.took),
    ratio: each(a.ratio, b.ratio),
  }
}

const known = (n: number | undefined): number | undefined =>
  typeof n === 'number' && Number.isFinite(n) ? n : undefined

function withMs(h: Histogram, bounds: readonly number[], ms: number | undefined): Histogram {
  const found = known(ms)
  return found === undefined ? h : observed(h, bounds, found / 1000)
}

/** Every kind of move and end is there from the start, with 0: a rate needs a first value. */
export function moveFamilies(t: MoveTally): Family[] {
  const byHow = (of: Record<How, Histogram>) => HOW.map((how) => ({ labels: { how }, value: of[how] }))
  return [
    {
      name: 'wadah_moves_total',
      type: 'counter',
      help: 'Moves of VMs away from this host that have ended, by the mode asked for and by how they ended.',
      samples: MODES.flatMap((mode) =>
        RESULTS.map((result) => ({ labels: { mode, result }, value: t.ended[`${mode} ${result}`] ?? 0 })),
      ),
    },
    {
      name: 'wadah_move_stall_seconds',
      type: 'histogram',
      help: 'How long guests stood still in their move, measured: from the last STOP on the source to the first RESUME on the target.',
      bounds: STALL_BOUNDS,
      samples: byHow(t.stall),
    },
    {
      name: 'wadah_move_claimed_downtime_seconds',
      type: 'histogram',
      help: 'What QEMU claims of the same.',
      bounds: STALL_BOUNDS,
      samples: byHow(t.claimed),
    },
    {
      name: 'wadah_move_stall_error_seconds',
      type: 'histogram',
      help: 'How far the measured stall may be wrong: half of the round trip with which the clocks of the two hosts were compared.',
      bounds: SMALL_BOUNDS,
      samples: [{ value: t.stall_error }],
    },
    {
      name: 'wadah_move_gap_seconds',
      type: 'histogram',
      help: 'The longest time in a move without an answer of the guest, seen from its source, where it has an agent and an address.',
      bounds: STALL_BOUNDS,
      samples: byHow(t.gap),
    },
    {
      name: 'wadah_move_answer_seconds',
      type: 'histogram',
      help: 'How long guests took to answer before, during and after their move, seen from its source: the median of each move.',
      bounds: SMALL_BOUNDS,
      samples: WHEN.map((when) => ({ labels: { when }, value: t.answer[when] })),
    },
    {
      name: 'wadah_move_duration_seconds',
      type: 'histogram',
      help: 'How long moves of running VMs took in all that ended well.',
      bounds: TOOK_BOUNDS,
      samples: [{ value: t.took }],
    },
    {
      name: 'wadah_move_sent_bytes_total',
      type: 'counter',
      help: 'Bytes of RAM that were sent by moves that ended well.',
      samples: [{ value: t.bytes }],
    },
    {
      name: 'wadah_move_forecast_ratio',
      type: 'histogram',
      help: 'What a move came to, divided by what was foreseen of it: 1 is a forecast without error.',
      bounds: RATIO_BOUNDS,
      samples: FORESEEN.map((what) => ({ labels: { of: what }, value: t.ratio[what] })),
    },
  ]
}
