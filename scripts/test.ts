/**
 * Everything that `make test` runs: format, lint, rooms, types, unit, system and end-to-end tests one after the other, those of whole labs beside
 * the last; and in the end a look whether anything was left behind on the machine. Prints one line that counts all tests.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { traces } from './traces.ts'

type Summary = {
  numPassedTests: number
  numFailedTests: number
  numPendingTests: number
  success: boolean
  testResults: { name: string; startTime: number; endTime: number }[]
}
/** Files that take longer are named, so that whoever waits knows for what. */
const LONG_MS = 60_000

/** How long what was ended at last may take to go. */
const GRACE_MS = 10_000
// A log in a file is read without its colours.
const env = process.stdout.isTTY ? process.env : { ...process.env, NO_COLOR: '1', FORCE_COLOR: undefined }

let passed = 0
let failed = 0
let skipped = 0

const running = new Set<ChildProcess>()
/** Who ends this ends what it runs. */
for (const signal of ['SIGINT', 'SIGTERM'] as const)
  process.once(signal, () => {
    for (const child of running) child.kill(signal)
    process.exit(130)
  })

/** `out`: where it writes; a file descriptor. */
async function run(
  program: string,
  argv: string[],
  out: number | 'inherit' = 'inherit',
): Promise<{ status: number | null; signal: string | null }> {
  const child = spawn(program, argv, { stdio: ['ignore', out, out], env })
  running.add(child)
  try {
    const [status, signal] = (await once(child, 'exit')) as [number | null, string | null]
    return { status, signal }
  } catch {
    // A program that is not there has no exit code either.
    return { status: null, signal: null }
  } finally {
    running.delete(child)
  }
}

/** A check that counts as one test. */
async function check(name: string, program: string, argv: string[]): Promise<void> {
  console.log(`\n── ${name}`)
  const { status } = await run(program, argv)
  if (status === 0) passed++
  else {
    failed++
    console.log(`${name}: FAILED`)
  }
}

/** `beside`: another project runs meanwhile; what this one says comes when it is through. */
async function tests(project: string, beside = false): Promise<void> {
  if (!beside) console.log(`\n── ${project} tests`)
  const dir = mkdtempSync(join(tmpdir(), 'wadah-test-'))
  const file = join(dir, 'result.json')
  const log = join(dir, 'log')
  const out = beside ? openSync(log, 'w') : 'inherit'
  try {
    const { status, signal } = await run(
      'vitest',
      [
        'run',
        '--project',
        project,
        '--passWithNoTests',
        '--reporter=default',
        '--reporter=json',
        `--outputFile.json=${file}`,
      ],
      out,
    )
    if (beside) console.log(`\n── ${project} tests\n${readFileSync(log, 'utf8')}`)
    if (!existsSync(file)) throw new Error(`Vitest ended without a result (${signal ?? `exit code ${status}`})`)
    const summary = JSON.parse(readFileSync(file, 'utf8')) as Summary
    passed += summary.numPassedTests
    failed += summary.numFailedTests
    skipped += summary.numPendingTests
    for (const { name, startTime, endTime } of summary.testResults)
      if (endTime - startTime > LONG_MS) console.log(`${Math.round((endTime - startTime) / 1000)} s ${name}`)
    // A file that could not be loaded has no failed test to count.
    if (status !== 0 && summary.numFailedTests === 0) failed++
  } catch (error) {
    failed++
    console.log(`${project}: ${(error as Error).message}`)
  } finally {
    rmSync(dir, { recursive: true, force: true })
  }
}

const before = traces()
const began = Date.now()
await check('format', 'biome', ['format', '.'])
await check('lint', 'oxlint', ['--type-aware', '--deny-warnings'])
await check('rooms', 'node', ['scripts/check-rooms.ts'])
await check('types of the tests', 'tsc', ['-p', 'tsconfig.tests.json'])
for (const project of ['unit', 'system']) await tests(project)
// Both wait more than they work.
await Promise.all([tests('e2e'), tests('labs', true)])

let left: string[]
for (const end = Date.now() + GRACE_MS; ; await delay(500)) {
  left = [...traces()].filter((trace) => !before.has(trace))
  if (left.length === 0 || Date.now() > end) break
}
console.log('\n── what was left behind')
if (left.length > 0) {
  failed++
  for (const line of left) console.log(line)
} else {
  passed++
  console.log('nothing')
}
const summary = `${passed} passed, ${failed} failed`
if (skipped > 0) console.log(`\n${skipped} skipped`)
console.log(`\n${Math.round((Date.now() - began) / 1000)} s`)
console.log(summary)
const file = process.env['WADAH_TEST_SUMMARY']
if (file !== undefined) writeFileSync(file, `${summary}\n`)
process.exitCode = failed > 0 ? 1 : 0
