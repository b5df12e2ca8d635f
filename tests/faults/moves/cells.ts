/** The cells of the matrix as data: phases of each mode, faults, and which of them mean something together. Pure. */
export type Mode = 'precopy' | 'hybrid' | 'postcopy'
export const MODES: readonly Mode[] = ['precopy', 'hybrid', 'postcopy']

/** Where the VM's disk lies: in a pool that all hosts see, or in one of its host alone. */
export type Disks = 'shared' | 'local'

/** In the order of a move; the name is that of the pause point (packages/cluster/src/migration/pause-point.ts). */
export const PHASES = [
  'source-offer',
  'target-prepare',
  'target-accept',
  'source-accepted',
  'source-sealed',
  'source-mirror',
  'source-copy',
  'source-switch',
  'source-before-go',
  'source-after-go',
  'target-before-go',
  'target-after-go',
  'target-before-commit',
  'target-after-commit',
  'source-commit',
  'source-follow',
  'source-quit',
  'source-tidy',
] as const
export type Phase = (typeof PHASES)[number]
/** Of a disk that goes along: what differs from a move without. */
const LOCAL: readonly Phase[] = ['source-mirror', 'source-switch', 'source-before-go', 'target-after-go', 'source-tidy']

export const FAULTS = [
  'source-daemon',
  'target-daemon',
  'both-daemons',
  'source-qemu',
  'target-qemu',
  'cut-1s',
  'cut-30s',
  'cut-ever',
  'source-host',
  'target-host',
  'store-away',
  'store-killed',
  'target-full',
] as const
export type Fault = (typeof FAULTS)[number]

export const WORDS: Record<Fault, string> = {
  'source-daemon': "the source's daemon killed",
  'target-daemon': "the target's daemon killed",
  'both-daemons': 'both daemons killed',
  'source-qemu': "the source's QEMU killed",
  'target-qemu': "the target's QEMU killed",
  'cut-1s': 'the link between the two cut for 1 s',
  'cut-30s': 'the link between the two cut for 30 s',
  'cut-ever': 'the link between the two cut, and healed only after the case was looked at',
  'source-host': 'the source host gone; switched on again after the case was looked at',
  'target-host': 'the target host gone; switched on again after the case was looked at',
  'store-away': 'every member of the store silent for 20 s',
  'store-killed': 'every member of the store killed at that moment, and started again by the daemons',
  'target-full': 'the file system of the target, where it keeps its VMs, without room',
}

export type Cell = { mode: Mode; disks: Disks; phase: Phase; fault: Fault }
/** As tables and `--mode` call it. */
const wayOf = ({ mode, disks }: Pick<Cell, 'mode' | 'disks'>) => (disks === 'local' ? `${mode}+disks` : mode)
const WAYS = (['shared', 'local'] as const).flatMap((disks) => MODES.map((mode) => ({ mode, disks })))
export const keyOf = (cell: Cell) => `${wayOf(cell)}/${cell.phase}/${cell.fault}`

/** A target has no QEMU before it was prepared; one that is full later is only a target that runs. */
function means({ mode, disks, phase, fault }: Cell): boolean {
  const at = PHASES.indexOf(phase)
  if (disks === 'local' ? !LOCAL.includes(phase) : phase === 'source-mirror') return false
  if (phase === 'source-follow' && mode === 'precopy') return false
  if (fault === 'target-qemu' && at < PHASES.indexOf('target-accept')) return false
  if (fault === 'source-qemu' && phase === 'source-tidy') return false
  return true
}

/** `mode`: `precopy` is that with any disks, `precopy+disks` with local ones. */
export function allCells(only: { mode?: string; disks?: string; phase?: string; fault?: string } = {}): Cell[] {
  const wanted = (of: string | undefined, ...names: string[]) =>
    of === undefined || of.split(',').some((name) => names.includes(name))
  return WAYS.flatMap((way) =>
    FAULTS.flatMap((fault) => PHASES.map((phase): Cell => ({ ...way, phase, fault }))),
  ).filter(
    (cell) =>
      means(cell) &&
      wanted(only.mode, cell.mode, wayOf(cell)) &&
      wanted(only.disks, cell.disks) &&
      wanted(only.phase, cell.phase) &&
      wanted(only.fault, cell.fault),
  )
}

/** Part `i` of `n`, from 1. */
export const partOf = (cells: readonly Cell[], i: number, n: number) => cells.filter((_, at) => at % n === i - 1)

/** In an order that `seed` decides (FNV-1a of each cell's name with it): who runs only the first of them runs others at each commit. */
export function shuffled(cells: readonly Cell[], seed: string): Cell[] {
  const hash = (text: string) => {
    let h = 0x811c9dc5
    for (let i = 0; i < text.length; i += 1) h = Math.imul(h ^ text.charCodeAt(i), 0x01000193) >>> 0
    // The last characters of a name would hardly reach the high bits.
    h = Math.imul(h ^ (h >>> 16), 0x45d9f3b) >>> 0
    return (h ^ (h >>> 16)) >>> 0
  }
  return cells.toSorted((a, b) => hash(seed + keyOf(a)) - hash(seed + keyOf(b)))
}

export type Outcome = 'moved' | 'stayed' | 'restarted' | 'stopped' | 'decision' | 'FAILED'
export type Result = Cell & {
  outcome: Outcome
  /** What the job says: `done`, or the code of its fault. */
  job: string
  /** Until all was settled, from the fault on. */
  ms: number
  /** While a fault lasted that does not end by itself: what stood then. */
  meanwhile?: string
  wrong: string[]
  at: string
}

/** A file of results. Those of before there were local disks do not say where they were. */
export const parseResults = (text: string): Result[] =>
  (JSON.parse(text) as (Omit<Result, 'disks'> & { disks?: Disks })[]).map((r) => ({ disks: 'shared', ...r }))

/** Rows: phase × mode; columns: faults. */
export function tableOf(results: readonly Result[], cells: readonly Cell[]): string {
  const faults = FAULTS.filter((f) => cells.some((c) => c.fault === f))
  const by = new Map(results.map((r) => [keyOf(r), r]))
  const rows = WAYS.flatMap((way) =>
    PHASES.filter((phase) => cells.some((c) => wayOf(c) === wayOf(way) && c.phase === phase)).map((phase) => [
      wayOf(way),
      phase,
      ...faults.map((fault) => {
        const cell = { ...way, phase, fault }
        const r = by.get(keyOf(cell))
        if (!r) return cells.some((c) => keyOf(c) === keyOf(cell)) ? 'not run' : '–'
        return `${r.outcome} ${(r.ms / 1000).toFixed(1)} s`
      }),
    ]),
  )
  const head = ['mode', 'phase', ...faults]
  const width = head.map((h, i) => Math.max(h.length, ...rows.map((r) => (r[i] as string).length)))
  const line = (words: readonly string[]) => `| ${words.map((w, i) => w.padEnd(width[i] as number)).join(' | ')} |`
  return [line(head), line(width.map((w) => '-'.repeat(w))), ...rows.map(line)].join('\n')
}
