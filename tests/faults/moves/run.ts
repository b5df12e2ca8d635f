/**
 * The kill matrix of live migration. `node tests/faults/moves/run.ts [--mode M] [--disks shared|local] [--phase P] [--fault F] [--part I/N]
 * [--resume FILE] [--sample SEED] [--minutes N] [--keep]`. Each of the first four may be several, with commas. Prints its table; exit code 1 when a cell failed.
 */
import { execFileSync } from 'node:child_process'
import { existsSync, readFileSync, renameSync, writeFileSync } from 'node:fs'
import { parseArgs } from 'node:util'
import {
  type Cell,
  type Disks,
  MODES,
  type Result,
  allCells,
  keyOf,
  parseResults,
  partOf,
  shuffled,
  tableOf,
} from './cells.ts'
import { freshVm, prepare, runCell } from './cell.ts'
import { allowPostcopy, giveBackPostcopy } from '../../kit/postcopy.ts'
import * as host from './lab.ts'

export type Wish = {
  cells: Cell[]
  /** Results of before; each new one is added and written. */
  file?: string
  /** No cell is begun after this. */
  minutes?: number
  say: (line: string) => void
}

export async function runMatrix({ cells, file, minutes, say }: Wish): Promise<Result[]> {
  const results: Result[] = file && existsSync(file) ? parseResults(readFileSync(file, 'utf8')) : []
  const known = new Set(results.map(keyOf))
  const end = performance.now() + (minutes ?? Number.POSITIVE_INFINITY) * 60_000
  const ended = (signal: NodeJS.Signals) => {
    giveBackPostcopy()
    host.letGo()
    process.kill(process.pid, signal)
  }
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, ended)
  /** What the VM is, where it has not failed in a case. */
  let fresh: Disks | undefined
  try {
    await prepare()
    for (const cell of cells) {
      if (known.has(keyOf(cell)) || performance.now() > end) continue
      if (fresh !== cell.disks)
        await freshVm(cell.disks).catch(async () => {
          // A job of a case that failed holds the VM: a lab of its own is soon made.
          await host.down()
          await prepare()
          await freshVm(cell.disks)
        })
      // Other tests of this machine may take it back.
      if (cell.mode !== 'precopy') allowPostcopy()
      const result = await runCell(cell, say).catch(
        (error: unknown): Result => ({
          ...cell,
          outcome: 'FAILED',
          job: '',
          ms: 0,
          wrong: [`the case could not be run: ${(error as Error).message}`],
          at: new Date().toISOString(),
        }),
      )
      // One that fails again and again is started again later and later: each case begins with one that has not failed.
      fresh = ['FAILED', 'restarted'].includes(result.outcome) ? undefined : cell.disks
      if (result.outcome === 'FAILED') await prepare()
      results.push(result)
      say(
        `${keyOf(cell)}: ${result.outcome}, ${(result.ms / 1000).toFixed(1)} s; job: ${result.job}${result.meanwhile ? `; meanwhile: ${result.meanwhile}` : ''}${result.wrong.length > 0 ? `; ${result.wrong.join('; ')}` : ''}`,
      )
      if (file === undefined) continue
      writeFileSync(`${file}.new`, `${JSON.stringify(results, null, 1)}\n`)
      renameSync(`${file}.new`, file)
    }
  } finally {
    for (const signal of ['SIGINT', 'SIGTERM'] as const) process.off(signal, ended)
    host.letGo()
    giveBackPostcopy()
  }
  return results
}

if (import.meta.main) {
  const text = { type: 'string' } as const
  const { values: o } = parseArgs({
    options: {
      mode: text,
      disks: text,
      phase: text,
      fault: text,
      part: text,
      resume: text,
      sample: text,
      minutes: text,
      keep: { type: 'boolean' },
      list: { type: 'boolean' },
    },
  })
  const only = {
    ...(o.mode === undefined ? {} : { mode: o.mode }),
    ...(o.disks === undefined ? {} : { disks: o.disks }),
    ...(o.phase === undefined ? {} : { phase: o.phase }),
    ...(o.fault === undefined ? {} : { fault: o.fault }),
  }
  let cells = allCells(only)
  if (o.part !== undefined) {
    const [i, n] = o.part.split('/').map(Number)
    cells = partOf(cells, i ?? 1, n ?? 1)
  }
  if (o.sample !== undefined)
    cells = shuffled(
      cells,
      o.sample === 'HEAD' ? execFileSync('git', ['rev-parse', 'HEAD'], { encoding: 'utf8' }) : o.sample,
    )
  if (o.list) {
    for (const cell of cells) console.log(keyOf(cell))
    console.log(`${cells.length} cells of ${allCells().length}; modes: ${MODES.join(', ')}`)
    process.exit(0)
  }
  const results = await runMatrix({
    cells,
    ...(o.resume === undefined ? {} : { file: o.resume }),
    ...(o.minutes === undefined ? {} : { minutes: Number(o.minutes) }),
    say: (line) => console.log(line),
  })
  console.log(tableOf(results, cells))
  if (!o.keep) await host.down()
  const mine = new Set(cells.map(keyOf))
  const failed = results.filter((r) => mine.has(keyOf(r)) && r.outcome === 'FAILED')
  console.log(
    `${results.filter((r) => mine.has(keyOf(r))).length} of ${cells.length} cells were run, ${failed.length} failed`,
  )
  process.exit(failed.length > 0 ? 1 : 0)
}
