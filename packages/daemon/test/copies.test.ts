import { mkdtempSync, readdirSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect, test } from 'vitest'
import { copyName, copyPlan, keepCopies } from '../src/copies.ts'

const DAY = 24 * 3_600_000
const now = Date.UTC(2026, 10, 27, 5, 31, 1)
const day = (n: number) => copyName(now + n * DAY)

test('a name sorts as its time does', () => {
  expect(copyName(now)).toBe('store-2026-11-27T05-31-01Z.db')
})

test.each([
  ['none yet', [], 7, true, 0],
  ['one of an hour ago', [copyName(now - DAY / 24)], 7, false, 0],
  ['one of a day ago', [day(-1)], 7, true, 0],
  ['seven, the last a day old', [-7, -6, -5, -4, -3, -2, -1].map(day), 7, true, 1],
  ['the clock went back an hour', [copyName(now + DAY / 24)], 7, false, 0],
  ['the clock went back a week', [day(7)], 7, true, 0],
  ['fewer are wanted by now', [-3, -2, -1, 0].map(day), 2, false, 2],
  ['none are wanted', [day(-1)], 0, false, 1],
  ['what is not ours stays', ['store.db', 'mine.txt'], 1, true, 0],
])('copies: %s', (_, names, keep, due, gone) => {
  const plan = copyPlan(names, now, keep)
  expect([plan.due, plan.surplus.length]).toEqual([due, gone])
  expect(plan.surplus).toEqual(
    [...names]
      .toSorted()
      .filter((n) => n.startsWith('store-'))
      .slice(0, gone),
  )
})

test('a copy is made for root only, whole or not at all; one that fails is said and tried again', async () => {
  const dir = join(mkdtempSync(join(tmpdir(), 'wadah-copies-')), 'copies')
  const ending = new AbortController()
  const said: string[] = []
  let fails = true
  const kept = keepCopies({
    backup: async (file) => {
      writeFileSync(file, 'half')
      if (fails) throw new Error('disk full')
      ending.abort()
    },
    dir,
    keep: 2,
    now_ms: () => now,
    log: (line) => {
      said.push(line)
      fails = false
      ending.abort()
    },
    signal: ending.signal,
    first_ms: 1,
  })
  await kept
  expect(said).toEqual([expect.stringContaining('disk full')])
  expect(readdirSync(dir)).toEqual(['making.db'])
  const again = new AbortController()
  await keepCopies({
    backup: async (file) => {
      writeFileSync(file, 'whole')
      again.abort()
    },
    dir,
    keep: 2,
    now_ms: () => now,
    log: (line) => said.push(line),
    signal: again.signal,
    first_ms: 1,
  })
  expect(readdirSync(dir)).toEqual([copyName(now)])
  expect(statSync(join(dir, copyName(now))).mode & 0o777).toBe(0o600)
  rmSync(join(dir, '..'), { recursive: true })
})
