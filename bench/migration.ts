/**
 * A move of one guest, ours and bare QEMU driven by plain QMP, plain and over TLS, and between two libvirtds where libvirt is installed: by
 * turns, on one machine.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { join } from 'node:path'
import { type Bench, ROOT } from './kit.ts'
import { absolute, compare, type Row } from './report.ts'
import { median } from './stats.ts'

const MEMORY_MIB = 512
/** What a guest of such a size has in use. */
const FILL_MIB = 64
const WRITING_MIB = 200
const LONGEST_MS = 1_800_000

type Raw = Record<string, number[]>
type Measured = { raw: Raw; capabilities: string[]; downtime_limit_ms: number; ceiling_ms: number; given_up: number }

let child: ChildProcess | undefined

export const migration: Bench = {
  name: 'migration',
  abandon: () => void child?.kill('SIGTERM'),
  async run(_daemon, { quick }) {
    const idle = await measure(quick ? 4 : 20, 0)
    const writing = await measure(quick ? 3 : 10, WRITING_MIB)
    const { capabilities, downtime_limit_ms } = idle
    return {
      name: 'migration',
      rows: [...rowsOf(idle.raw, 'idle', 1 / 2), ...rowsOf(writing.raw, `writing ${WRITING_MIB} MiB`, 1 / 8)],
      notes: [
        `A guest of ${MEMORY_MIB} MiB, ${FILL_MIB} MiB of them filled with what is no zeros; loopback; all hosts on this machine.`,
        `Ours and bare: ${capabilities.join(', ')}; downtime-limit ${downtime_limit_ms} (one pass, for TCG), no limit of bandwidth. libvirt: its defaults, plain.`,
        'Of the guests that write, one writes at a time: the one that moves. `hybrid`: ours where post-copy is allowed.',
        ...[idle, writing].map((m, i) => {
          const under = m.raw['ceiling plain stall'] ?? []
          const over = under.filter((ms) => ms > m.ceiling_ms).length
          return `Ceiling, ${i === 0 ? 'idle' : 'writing'}: ${m.ceiling_ms} ms; ${over} of ${under.length} moves over it, ${m.given_up} more given up because of it.`
        }),
        'Whole move: from the first word to the end of the old QEMU, the start of the new one included; of libvirt: `virsh migrate --live`.',
        'Stall: from the last STOP of the old QEMU to the RESUME of the new one, as the two stamp them.',
      ],
      raw: { ...named(idle.raw, 'idle'), ...named(writing.raw, 'writing') },
    }
  },
}

const named = (raw: Raw, load: string): Raw =>
  Object.fromEntries(Object.entries(raw).map(([name, samples]) => [`${load} ${name}`, samples]))

function rowsOf(raw: Raw, load: string, of_libvirt: number): Row[] {
  const of = (name: string) => raw[name] ?? []
  const bare = (name: string) => ({ what: 'bare QEMU over QMP', samples: of(`bare ${name}`) })
  const rows = (['plain', 'tls'] as const).flatMap((kind) => [
    compare(`${load}, ${kind}: whole move`, of(`ours ${kind} total`), bare(`${kind} total`), 1.3),
    compare(`${load}, ${kind}: stall`, of(`ours ${kind} stall`), bare(`${kind} stall`)),
    absolute(
      `${load}, ${kind}: stall more than bare`,
      'ms',
      of(`ours ${kind} stall`).map((ms, i) => ms - (of(`bare ${kind} stall`)[i] ?? Number.NaN)),
      3,
    ),
  ])
  for (const kind of ['plain', 'tls'] as const)
    if (of(`multifd ${kind} total`).length > 0)
      rows.push(
        compare(`${load}, ${kind}: whole move, bare with multifd`, of(`multifd ${kind} total`), bare(`${kind} total`)),
        compare(`${load}, ${kind}: stall, bare with multifd`, of(`multifd ${kind} stall`), bare(`${kind} stall`)),
      )
  const under = of('ceiling plain stall')
  if (under.length > 0)
    rows.push(
      compare(`${load}, plain: stall under a ceiling`, under, bare('plain stall')),
      // Some of those moves may have been given up: there are no pairs of rounds.
      absolute(
        `${load}, plain: stall under a ceiling, more than bare`,
        'ms',
        under.map((ms) => ms - median(of('bare plain stall'))),
        25,
      ),
    )
  if (of('hybrid plain stall').length > 0)
    rows.push(
      compare(`${load}, plain: stall by hybrid`, of('hybrid plain stall'), bare('plain stall')),
      compare(`${load}, plain: whole move by hybrid`, of('hybrid plain total'), bare('plain total')),
    )
  if (of('libvirt plain total').length === 0) return rows
  const libvirt = (name: string) => ({ what: 'libvirt', samples: of(`libvirt plain ${name}`) })
  return [
    ...rows,
    compare(`${load}, plain: whole move`, of('ours plain total'), libvirt('total'), 1 / 3),
    compare(`${load}, plain: stall`, of('ours plain stall'), libvirt('stall'), of_libvirt),
    ...(of('hybrid plain stall').length > 0
      ? [
          compare(`${load}, plain: stall by hybrid`, of('hybrid plain stall'), libvirt('stall'), of_libvirt),
          compare(`${load}, plain: whole move by hybrid`, of('hybrid plain total'), libvirt('total'), 1 / 3),
        ]
      : []),
  ]
}

/** The machines live in a process of their own: a benchmark comes no closer to the rooms. */
async function measure(rounds: number, writing_mib: number): Promise<Measured> {
  const script = join(ROOT, 'packages/host/test/migration/measure/run.ts')
  const words = [script, ...[rounds, MEMORY_MIB, FILL_MIB, writing_mib].map(String)]
  const measuring = spawn(process.execPath, words, { stdio: ['ignore', 'pipe', 'inherit'], timeout: LONGEST_MS })
  child = measuring
  let said = ''
  measuring.stdout.setEncoding('utf8').on('data', (text: string) => (said += text))
  const code = await new Promise<number | null>((resolve, reject) => {
    measuring.once('error', reject)
    measuring.once('close', resolve)
  })
  const line = said.trim().split('\n').at(-1) ?? ''
  if (code !== 0 || !line.startsWith('{')) throw new Error(`${script} ended with ${code}: ${said.slice(-2_000)}`)
  return JSON.parse(line) as Measured
}
