/** What a benchmark found, as text, JSON and a Markdown table. */
import { execFileSync } from 'node:child_process'
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { cpus, loadavg, totalmem } from 'node:os'
import { join } from 'node:path'
import { type Summary, ratios, summary } from './stats.ts'

export type Row = {
  what: string
  unit: 'ms' | 's' | '×' | 'MiB' | '% of a core'
  value: Summary
  /** What it is compared with in the same run. */
  reference?: { what: string; value: Summary }
  /** Of the medians, and how it spread from round to round. */
  ratio?: { median: number; rounds: Summary }
  promise?: { most: number; of: 'ratio' | 'median' | 'p99' }
  p99?: number
  met?: boolean
}
export type Found = { name: string; rows: Row[]; notes: string[]; raw: Record<string, number[]> }

/** A comparison of two sides that were measured in turns. */
export function compare(
  what: string,
  ours: readonly number[],
  reference: { what: string; samples: readonly number[] },
  most?: number,
): Row {
  const [value, other] = [summary(ours), summary(reference.samples)]
  const ratio = { median: value.median / other.median, rounds: summary(ratios(ours, reference.samples)) }
  return {
    what,
    unit: 'ms',
    value,
    reference: { what: reference.what, value: other },
    ratio,
    ...(most === undefined ? {} : { promise: { most, of: 'ratio' as const }, met: ratio.median <= most }),
  }
}

export function absolute(
  what: string,
  unit: Row['unit'],
  samples: readonly number[],
  most?: number,
  p99?: number,
): Row {
  const value = summary(samples)
  const judged = p99 ?? value.median
  return {
    what,
    unit,
    value,
    ...(p99 === undefined ? {} : { p99 }),
    ...(most === undefined
      ? {}
      : { promise: { most, of: p99 === undefined ? ('median' as const) : ('p99' as const) }, met: judged <= most }),
  }
}

const n = (x: number): string => (x >= 100 ? x.toFixed(0) : x >= 10 ? x.toFixed(1) : x.toFixed(2))
const spread = (s: Summary): string => `${n(s.median)} (${n(s.p10)}–${n(s.p90)})`

export function markdown(found: Found): string {
  const lines = [
    `# ${found.name}`,
    '',
    '| what | unit | ours: median (p10–p90) | compared with | its median (p10–p90) | ratio (of rounds: p10–p90) | promised | met |',
    '|---|---|---|---|---|---|---|---|',
    ...found.rows.map((r) =>
      [
        '',
        r.what,
        r.unit,
        `${spread(r.value)}${r.p99 === undefined ? '' : `, p99 ${n(r.p99)}`}`,
        r.reference?.what ?? '',
        r.reference ? spread(r.reference.value) : '',
        r.ratio ? `**${n(r.ratio.median)}** (${n(r.ratio.rounds.p10)}–${n(r.ratio.rounds.p90)})` : '',
        r.promise ? `${r.promise.of} ≤ ${n(r.promise.most)}` : '',
        r.met === undefined ? '' : r.met ? 'yes' : 'no',
        '',
      ]
        .join(' | ')
        .trim(),
    ),
    '',
    ...found.notes.map((note) => `- ${note}`),
  ]
  return `${lines.join('\n')}\n`
}

export function machine(): Record<string, unknown> {
  const qemu = execFileSync('/usr/bin/qemu-system-x86_64', ['--version'], { encoding: 'utf8' }).split('\n')[0]
  const os = /^PRETTY_NAME="?([^"\n]*)/m.exec(readFileSync('/etc/os-release', 'utf8'))?.[1]
  return {
    cpu: cpus()[0]?.model,
    cpus: cpus().length,
    memory_gib: Math.round(totalmem() / 2 ** 30),
    os,
    qemu,
    node: process.version,
    load_1min: loadavg()[0],
  }
}

/** Writes `<date>-<name>.json` and `.md`; prints the table. */
export function keep(directory: string, found: Found, before: Record<string, unknown>, quick: boolean): void {
  mkdirSync(directory, { recursive: true })
  const date = new Date().toISOString()
  const file = join(directory, `${date.slice(0, 10)}-${found.name}`)
  const about = { date, quick, machine: before, load_1min_after: loadavg()[0] }
  const text = `${markdown(found)}- ${date}, ${String(before['cpus'])} CPUs, ${String(before['qemu'])}, load ${n(Number(before['load_1min']))} before${quick ? '; --quick: few rounds' : ''}\n`
  process.stdout.write(`\n${text}\n`)
  writeFileSync(`${file}.json`, `${JSON.stringify({ ...about, ...found }, null, 1)}\n`)
  writeFileSync(`${file}.md`, text)
}
