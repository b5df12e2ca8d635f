/**
 * Moves as a user makes them: a lab of two hosts, `vm migrate` through the API, TLS, a shared pool. Two hundred in a row of one guest, to and
 * fro, under a ceiling; and `auto` beside each fixed mode on guests that write more and more: its gap and its time against those of the mode
 * whose gap is the shortest.
 */
import { readdirSync, readFileSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import type { VmMove } from '@wadah/api/schema/migration'
import { at, LAB, lab, ok, SHARED } from '../tests/kit/lab.ts'
import { allowPostcopy, giveBackPostcopy } from '../tests/kit/postcopy.ts'
import { inLab } from './lab.ts'
import { absolute, compare, type Found, type Row } from './report.ts'
import { median } from './stats.ts'

const VM = 'mover'
const CEILING_MS = 300
/** Of RAM that is written over and over; `/fill/hot` lies in memory. */
const LOADS: [string, string][] = [
  ['idle', ':'],
  ['reading', '(while :; do md5sum /fill/kept; done) >/dev/null 2>&1 &'],
  ['writing 8 MiB', writing(8)],
  ['writing 96 MiB', writing(96)],
]
const MODES = ['precopy', 'postcopy', 'hybrid', 'auto'] as const
const KEPT = 'mkdir -p /fill; mount -t tmpfs none /fill; dd if=/dev/urandom of=/fill/kept bs=1M count=16 2>/dev/null'
/** Numbers each tick; one that was lost or came twice leaves a step in them. */
const TICKS = '(i=0; while :; do echo $i >>/fill/ticks; i=$((i+1)); usleep 20000; done) >/dev/null 2>&1 &'
const STEPS = "awk 'NR>1 && $1!=p+1 {bad++} {p=$1} END {print bad+0, NR}' /fill/ticks; md5sum </fill/kept"

export const moves = inLab('moves', (quick) => inARow(quick ? 10 : 200))
export const modes = inLab('modes', (quick) => byModes(quick ? 1 : 12), giveBackPostcopy)

/** Pure: the modes in an order of their own for each of four rounds, in which each follows each other one once. */
function turned(round: number): readonly (typeof MODES)[number][] {
  const square = [
    [0, 1, 3, 2],
    [1, 2, 0, 3],
    [2, 3, 1, 0],
    [3, 0, 2, 1],
  ]
  return (square[round % 4] ?? []).flatMap((i) => MODES[i] ?? [])
}

function writing(mib: number): string {
  return `dd if=/dev/urandom of=/fill/hot bs=1M count=${mib} 2>/dev/null
(while :; do dd if=/fill/hot of=/fill/hot bs=1M count=${mib} conv=notrunc; done) >/dev/null 2>&1 &`
}

async function made(): Promise<void> {
  await lab('up', '--hosts', '2')
  await ok(at(1, 'pool', 'create', 'common', SHARED, '--shared'))
  await ok(at(1, 'image', 'build', 'tiny'))
  await ok(at(1, 'network', 'create', 'lan', '--kind', 'bridge', '--bridge', 'lan0'))
}
const sh = async (script: string) => (await ok(at(1, 'vm', 'exec', VM, '--', '/bin/sh', '-c', script))).trim()

async function guest(memory_mib: number, load: string): Promise<void> {
  const words = ['--image', 'tiny', '--network', 'lan', '--host', `${LAB}1`, '--memory', `${memory_mib}M`]
  await ok(at(1, 'vm', 'create', VM, ...words, '--disk', '64M', '--pool', 'common', '--start'))
  for (let i = 0; (await at(1, 'vm', 'exec', VM, '--', '/bin/true')).code !== 0; i++) {
    if (i > 60) throw new Error('the agent does not answer')
    await sleep(1_000)
  }
  await sh(KEPT)
  await sh(load)
}

type Tried = { moved: VmMove } | { refused: string }
let target = 2
async function move(mode: string, max_stall_ms: number): Promise<Tried> {
  const to = target
  const ran = await at(
    1,
    '--json',
    'vm',
    'migrate',
    VM,
    '--to',
    `${LAB}${to}`,
    '--mode',
    mode,
    '--max-stall-ms',
    String(max_stall_ms),
  )
  if (ran.code !== 0) return { refused: ran.out + ran.err }
  target = 3 - to
  return { moved: JSON.parse(ran.out) as VmMove }
}

/** Resident MiB and open files of both daemons. */
function daemons(): { mib: number; files: number } {
  let [mib, files] = [0, 0]
  for (const i of [1, 2]) {
    const pid = readFileSync(`/run/wadah-${LAB}${i}/wadahd.pid`, 'utf8').split(' ')[0] ?? ''
    mib += Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1]) / 1024
    files += readdirSync(`/proc/${pid}/fd`).length
  }
  return { mib, files }
}

/** ms, of a try that was given up. */
const stood = (told: string): number[] => [...told.matchAll(/stood still for (\d+) ms/g)].map((m) => Number(m[1]))

async function inARow(n: number): Promise<Omit<Found, 'name'>> {
  await made()
  target = 2
  await guest(256, TICKS)
  const sum = (await sh(STEPS)).split('\n')[1]
  const raw: Record<string, number[]> = { stall: [], total: [], mib: [], files: [], 'given up': [] }
  const wrong: string[] = []
  let [refused, again] = [0, 0]
  for (let i = 0; i < n; i++) {
    const tried = await move('auto', CEILING_MS)
    if ('refused' in tried) {
      refused += 1
      raw['given up']?.push(...stood(tried.refused))
      if (!tried.refused.includes('does_not_converge')) wrong.push(`move ${i + 1}: ${tried.refused.slice(0, 300)}`)
      continue
    }
    const { stall_ms = Number.NaN, total_ms, notes } = tried.moved
    const before = notes.filter((note) => note.startsWith('copied anew'))
    if (before.length > 0) again += 1
    // What a guest stood still in tries that were given up counts, too.
    raw['given up']?.push(...before.flatMap(stood))
    raw['stall']?.push(stall_ms)
    raw['total']?.push(total_ms)
    const [ticks, now] = (await sh(STEPS)).split('\n')
    if (now !== sum || !ticks?.startsWith('0 ')) wrong.push(`move ${i + 1}: ticks ${ticks}, memory ${now}`)
    const held = daemons()
    raw['mib']?.push(held.mib)
    raw['files']?.push(held.files)
  }
  await ok(at(1, 'vm', 'delete', VM, '--force', '-y'))
  const of = (name: string) => raw[name] ?? []
  const over = [...of('stall'), ...of('given up')].filter((ms) => ms > CEILING_MS)
  const quarter = Math.ceil(of('mib').length / 4)
  const grown = (name: string) => {
    const [early, late] = [of(name).slice(quarter, 2 * quarter), of(name).slice(-quarter)]
    return late.map((value, i) => value - (early[i] ?? Number.NaN)).filter((x) => !Number.isNaN(x))
  }
  return {
    rows: [
      absolute(`${n} moves in a row: stall`, 'ms', of('stall')),
      absolute(`${n} moves in a row: whole job`, 'ms', of('total')),
      absolute('two daemons, last quarter more than the second', 'MiB', grown('mib'), 8),
      absolute('their open files, last quarter more than the second', '×', grown('files'), 0),
    ] satisfies Row[],
    notes: [
      `${n} moves under a ceiling of ${CEILING_MS} ms: ${over.length} over it${over.length > 0 ? ` (${over.join(', ')})` : ''}, ${again} given up because of it and copied anew by their job, ${refused} refused in the end (the guest ran on).`,
      wrong.length === 0
        ? 'After each the memory checksum was right and no tick of the guest was missing.'
        : `WRONG: ${wrong.join('; ')}`,
    ],
    raw,
  }
}

async function byModes(rounds: number): Promise<Omit<Found, 'name'>> {
  const raw: Record<string, number[]> = {}
  const notes: string[] = []
  const rows: Row[] = []
  await made()
  allowPostcopy()
  for (const [load, script] of LOADS) {
    target = 2
    await guest(384, script)
    for (let i = 0; i < rounds; i++)
      // Each comes after each other one: a move starts from what the one before it has left.
      for (const mode of turned(i)) {
        const tried = await move(mode, 5_000)
        if ('refused' in tried) {
          notes.push(`${load}, ${mode}: refused: ${tried.refused.slice(0, 200)}`)
          continue
        }
        const { outside, stall_ms = Number.NaN, total_ms } = tried.moved
        ;(raw[`${load} ${mode} gap`] ??= []).push(outside?.longest_gap_ms ?? stall_ms)
        ;(raw[`${load} ${mode} stall`] ??= []).push(stall_ms)
        ;(raw[`${load} ${mode} total`] ??= []).push(total_ms)
      }
    await ok(at(1, 'vm', 'delete', VM, '--force', '-y'))
    const of = (mode: string, what: 'gap' | 'stall' | 'total') => raw[`${load} ${mode} ${what}`] ?? []
    for (const what of ['gap', 'stall', 'total'] as const) {
      const medians = MODES.map((mode) => `${mode} ${median(of(mode, what)).toFixed(0)}`)
      notes.push(`${load}, ${what}, medians in ms: ${medians.join(', ')}`)
    }
    const fixed = MODES.filter((mode) => mode !== 'auto' && of(mode, 'gap').length > 0)
    const best = fixed.toSorted((x, y) => median(of(x, 'gap')) - median(of(y, 'gap')))[0]
    if (best === undefined) continue
    const against = (what: 'gap' | 'total') => ({ what: `best fixed: ${best}`, samples: of(best, what) })
    rows.push(
      compare(`${load}: longest gap seen, auto`, of('auto', 'gap'), against('gap'), 1.1),
      compare(`${load}: whole job, auto`, of('auto', 'total'), against('total'), 1.3),
    )
  }
  return { rows, notes, raw }
}
