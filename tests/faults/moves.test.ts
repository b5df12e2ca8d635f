/** A sample of the kill matrix of moves, another at each commit: `make faults` runs all of it (docs/faults.md). */
import { execFileSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterAll, describe, expect, test } from 'vitest'
import { brokenChain } from './moves/guest.ts'
import { FAULTS, PHASES, allCells, keyOf, parseResults, partOf, shuffled, tableOf } from './moves/cells.ts'
import { ROOT } from '../kit/daemon.ts'
import { down } from './moves/lab.ts'
import { runMatrix } from './moves/run.ts'

const MINUTES = 2.5
/** Those that stand for half a minute and more are left to `make faults`. */
const QUICK = FAULTS.filter((f) => !['cut-30s', 'cut-ever', 'source-host', 'target-host', 'store-away'].includes(f))

describe('the matrix', () => {
  test('its parts are all of it, each cell once; a seed decides the order', () => {
    const cells = allCells()
    const parts = [1, 2, 3].flatMap((i) => partOf(cells, i, 3))
    expect(new Set(parts.map(keyOf)).size).toBe(cells.length)
    expect(parts).toHaveLength(cells.length)
    expect(new Set(cells.map((c) => c.phase)).size).toBe(PHASES.length)
    expect(shuffled(cells, 'a').map(keyOf)).not.toEqual(shuffled(cells, 'b').map(keyOf))
    expect(shuffled(cells, 'a')).toEqual(shuffled(cells, 'a'))
  })
  test('cells with local disks are named so; results of before there were any are of shared ones', () => {
    const local = allCells({ disks: 'local', phase: 'source-mirror', fault: 'cut-1s' })
    expect(local.map(keyOf)).toEqual(['precopy', 'hybrid', 'postcopy'].map((m) => `${m}+disks/source-mirror/cut-1s`))
    expect(allCells({ mode: 'precopy+disks' })).toEqual(allCells({ mode: 'precopy', disks: 'local' }))
    expect(allCells({ disks: 'shared', phase: 'source-mirror' })).toEqual([])
    const old = parseResults(readFileSync(join(ROOT, 'bench/results/2026-11-28-matrix.json'), 'utf8'))
    expect(new Set(old.map(keyOf))).toEqual(new Set(allCells({ disks: 'shared' }).map(keyOf)))
  })
  test('what was not run says so in its table', () => {
    const [cell] = allCells({ mode: 'precopy' })
    expect(tableOf([], cell ? [cell] : [])).toContain('not run')
  })
  test('a disk that another guest wrote to is not taken for intact', () => {
    const one = { n: 1, up: '1.00', h: 'a' }
    expect(brokenChain([one])).toBeUndefined()
    expect(brokenChain([one, { n: 2, up: '2.00', h: 'b' }])).toContain('count 2')
    expect(brokenChain([one, { n: 3, up: '2.00', h: 'b' }])).toContain('followed by 3')
    expect(brokenChain([])).toBeDefined()
  })
})

describe('a sample of it', () => {
  afterAll(async () => {
    await down()
  }, 120_000)

  test('never two run, the disk is intact, nothing is left over', async () => {
    const seed = execFileSync('git', ['rev-parse', 'HEAD'], { encoding: 'utf8' }).trim()
    const cells = shuffled(allCells({ fault: QUICK.join() }), seed)
    const results = await runMatrix({ cells, minutes: MINUTES, say: (line) => console.log(line) })
    expect(results.length).toBeGreaterThan(0)
    expect(results.flatMap((r) => (r.outcome === 'FAILED' ? [`${keyOf(r)}: ${r.wrong.join('; ')}`] : []))).toEqual([])
  }, 600_000)
})
