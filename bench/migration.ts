/** A move of an idle guest against bare QEMU driven by plain QMP, plain and over TLS, by turns on one machine. */
import { spawn } from 'node:child_process'
import { join } from 'node:path'
import { type Bench, ROOT } from './kit.ts'
import { absolute, compare } from './report.ts'

const MEMORY_MIB = 256
/** What a guest of such a size has in use. */
const FILL_MIB = 64
const LONGEST_MS = 1_800_000

type Measured = { raw: Record<string, number[]>; capabilities: string[]; downtime_limit_ms: number }

export const migration: Bench = {
  name: 'migration',
  async run(_daemon, { quick }) {
    const { raw, capabilities, downtime_limit_ms } = await measure(quick ? 5 : 20)
    const of = (name: string) => raw[name] ?? []
    const reference = (name: string) => ({ what: 'bare QEMU over QMP', samples: of(name) })
    return {
      name: 'migration',
      rows: (['plain', 'tls'] as const).flatMap((kind) => [
        compare(`whole move, ${kind}`, of(`ours ${kind} total`), reference(`bare ${kind} total`), 1.3),
        compare(`the guest stood still, ${kind}`, of(`ours ${kind} stall`), reference(`bare ${kind} stall`)),
        absolute(
          `stall more than bare, ${kind}`,
          'ms',
          of(`ours ${kind} stall`).map((ms, i) => ms - (of(`bare ${kind} stall`)[i] ?? Number.NaN)),
          3,
        ),
      ]),
      notes: [
        `An idle guest of ${MEMORY_MIB} MiB, ${FILL_MIB} MiB of them filled with what is no zeros; loopback; both hosts on this machine.`,
        `Both sides: ${capabilities.join(', ')}; downtime-limit ${downtime_limit_ms} (one pass, for TCG), no limit of bandwidth.`,
        'Whole move: from the first word to the end of the old QEMU, the start of the new one included.',
      ],
      raw,
    }
  },
}

/** The two machines live in a process of their own: a benchmark comes no closer to the rooms. */
async function measure(rounds: number): Promise<Measured> {
  const script = join(ROOT, 'packages/host/test/migration/measure.ts')
  const words = [script, String(rounds), String(MEMORY_MIB), String(FILL_MIB)]
  const child = spawn(process.execPath, words, { stdio: ['ignore', 'pipe', 'inherit'], timeout: LONGEST_MS })
  let said = ''
  child.stdout.setEncoding('utf8').on('data', (text: string) => (said += text))
  const code = await new Promise<number | null>((resolve, reject) => {
    child.once('error', reject)
    child.once('close', resolve)
  })
  const line = said.trim().split('\n').at(-1) ?? ''
  if (code !== 0 || !line.startsWith('{')) throw new Error(`${script} ended with ${code}: ${said.slice(-2_000)}`)
  return JSON.parse(line) as Measured
}
