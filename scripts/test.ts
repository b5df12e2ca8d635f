/**
 * Everything that `make test` runs, one after the other: format, lint, rooms, types (the build did those), unit, system and end-to-end
 * tests, and in the end a look whether anything was left behind on the machine. Prints one line that counts all tests.
 */
import { spawnSync } from 'node:child_process'
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

type Summary = { numPassedTests: number; numFailedTests: number; numPendingTests: number; success: boolean }

let passed = 0
let failed = 0

/** A check that counts as one test. */
function check(name: string, program: string, argv: string[]): void {
  console.log(`\n── ${name}`)
  const { status } = spawnSync(program, argv, { stdio: 'inherit' })
  if (status === 0) passed++
  else {
    failed++
    console.log(`${name}: FAILED`)
  }
}

function tests(project: string): void {
  console.log(`\n── ${project} tests`)
  const dir = mkdtempSync(join(tmpdir(), 'wadah-test-'))
  const file = join(dir, 'result.json')
  try {
    const { status } = spawnSync(
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
      { stdio: ['ignore', 'inherit', 'inherit'] },
    )
    const summary = JSON.parse(readFileSync(file, 'utf8')) as Summary
    passed += summary.numPassedTests
    failed += summary.numFailedTests
    // A file that could not be loaded has no failed test to count.
    if (status !== 0 && summary.numFailedTests === 0) failed++
  } catch (error) {
    failed++
    console.log(`${project}: ${(error as Error).message}`)
  } finally {
    rmSync(dir, { recursive: true, force: true })
  }
}

/** What belongs to Wadah on this machine, by name. */
function traces(): Set<string> {
  const out = (program: string, argv: string[]): string => spawnSync(program, argv, { encoding: 'utf8' }).stdout ?? ''
  const found: string[] = []
  for (const line of out('ps', ['-eo', 'pid=,args=']).split('\n')) {
    if (/wadah-[^ ]*\/|process=wadah:/.test(line) && /qemu-system|dnsmasq|wadahd/.test(line))
      found.push(`process ${line.trim().slice(0, 120)}`)
  }
  for (const line of out('ip', ['-br', 'link']).split('\n'))
    if (/^w[a-z]*-|^wd|^wt/.test(line)) found.push(`interface ${line.split(' ')[0]}`)
  for (const line of out('nft', ['list', 'tables']).split('\n')) if (/ wadah/.test(line)) found.push(line)
  for (const line of out('ip', ['netns', 'list']).split('\n'))
    if (/wadah|^w[a-z]+-/.test(line)) found.push(`namespace ${line}`)
  for (const dir of ['/sys/fs/cgroup', '/sys/fs/cgroup/cpu', '/var/lib', '/run', '/var/cache']) {
    try {
      for (const name of readdirSync(dir)) if (name.startsWith('wadah')) found.push(`${dir}/${name}`)
    } catch {
      // Not on this machine.
    }
  }
  return new Set(found)
}

const before = traces()
const began = Date.now()
check('format', 'biome', ['format', '.'])
check('lint', 'oxlint', ['--type-aware', '--deny-warnings'])
check('rooms', 'node', ['scripts/check-rooms.ts'])
for (const project of ['unit', 'system', 'e2e']) tests(project)

const left = [...traces()].filter((t) => !before.has(t))
console.log('\n── what was left behind')
if (left.length > 0) {
  failed++
  for (const line of left) console.log(line)
} else {
  passed++
  console.log('nothing')
}
console.log(`\n${Math.round((Date.now() - began) / 1000)} s`)
console.log(`${passed} passed, ${failed} failed`)
process.exitCode = failed > 0 ? 1 : 0
