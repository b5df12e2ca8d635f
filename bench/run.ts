/**
 * node bench/run.ts [--only NAME]… [--quick] [--recipe NAME] [--demo]
 * Measures what docs/performance.md promises, prints ratios of one run, keeps them in bench/results/. Nothing here fails for
 * being slow.
 */
import { join } from 'node:path'
import { parseArgs } from 'node:util'
import { clone } from './clone.ts'
import { cycles } from './cycles.ts'
import { demo } from './demo.ts'
import { hung } from './hung.ts'
import { idle } from './idle.ts'
import { import_ } from './import.ts'
import { type Bench, Daemon, ROOT } from './kit.ts'
import { instant } from './instant.ts'
import { list } from './list.ts'
import { many } from './many.ts'
import { migration } from './migration.ts'
import { modes, moves } from './moves.ts'
import { keep, machine } from './report.ts'
import { scheduler } from './scheduler.ts'
import { snapshot } from './snapshot.ts'
import { start } from './start.ts'

const BENCHES: Bench[] = [
  start,
  clone,
  many,
  list,
  idle,
  import_,
  snapshot,
  cycles,
  instant,
  migration,
  moves,
  modes,
  hung,
  scheduler,
]
const { values } = parseArgs({
  options: {
    only: { type: 'string', multiple: true },
    quick: { type: 'boolean', default: false },
    recipe: { type: 'string' },
    demo: { type: 'boolean', default: false },
  },
})
const known = [...BENCHES.map((b) => b.name), 'demo']
const wrong = values.only?.find((name) => !known.includes(name))
if (wrong !== undefined) {
  process.stderr.write(`bench: there is no "${wrong}"; there are ${known.join(', ')}.\n`)
  process.exit(2)
}
const chosen = BENCHES.filter((bench) => !values.only || values.only.includes(bench.name))
if (process.getuid?.() !== 0 && (values.demo || chosen.some((bench) => !bench.alone))) {
  process.stderr.write(
    'bench: wants root, as wadahd does: one user per VM and control groups are part of what is measured.\n',
  )
  process.exit(9)
}

const results = join(ROOT, 'bench/results')
let daemon: Daemon | undefined
let running: Bench | undefined
for (const signal of ['SIGINT', 'SIGTERM'] as const) {
  process.once(signal, () => {
    running?.abandon?.()
    daemon?.purge()
    process.exit(130)
  })
}

let failed = false
for (const bench of chosen) {
  const before = machine()
  process.stderr.write(`${bench.name} …\n`)
  running = bench
  // A daemon for each, so that none pays for what another left behind.
  daemon = new Daemon()
  try {
    if (!bench.alone) await daemon.start()
    keep(results, await bench.run(daemon, { quick: values.quick, recipe: values.recipe }), before, values.quick)
  } catch (error) {
    failed = true
    process.stderr.write(`${bench.name} could not be measured: ${(error as Error).stack}\n`)
  } finally {
    await daemon.stop()
    if (!bench.alone) daemon.purge()
    daemon = undefined
  }
}
if (values.demo || values.only?.includes('demo')) keep(results, demo(), machine(), false)
process.exit(failed ? 1 : 0)
