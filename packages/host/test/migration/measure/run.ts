/**
 * node run.ts ROUNDS MEMORY_MIB FILL_MIB WRITING_MIB — moves of one guest by turns: ours and bare QEMU, plain and over TLS, ours with a ceiling
 * (plain), libvirt where it is installed, bare QEMU with multifd of an idle guest, and ours by `hybrid` (plain) of a guest that writes. Prints one
 * JSON. For bench/migration.ts, which may not come closer to these rooms than a process.
 */
import { setTimeout as sleep } from 'node:timers/promises'
import type { MoveMode } from '@wadah/ports/migration'
import type { HostMachine } from '../../../src/engine/machine.ts'
import { move, pairKit, type PairKit } from '../kit.ts'
import { bareGuest, CAPABILITIES } from './bare.ts'
import { filled, type Guest, writer, writes } from './guest.ts'
import { hasLibvirt, libvirtGuest } from './libvirt.ts'

const [rounds = 5, memory_mib = 512, fill = 64, busy = 0] = process.argv.slice(2, 6).map(Number)
/** Until a guest that begins to write writes as fast as it can, ms. */
const WARM_MS = 300
/** As many as there are cores: more could do nothing here. */
const CHANNELS = 2
/** One pass, as ours under TCG. */
const DOWNTIME_LIMIT_MS = 0

/** A ceiling that such a guest keeps as a rule, ms: twice to three times its stall. */
const CEILING_MS = busy > 0 ? 500 : 120
const NO_CEILING_MS = 5_000

async function ourGuest(kit: PairKit, mode: MoveMode, max_stall_ms = NO_CEILING_MS): Promise<Guest> {
  const { request, vm } = await kit.start(kit.a, await kit.request({ memory_mib }))
  let at: { request: typeof request; from: HostMachine; to: HostMachine } = { request, from: kit.a, to: kit.b }
  return {
    sh: async (script) => void (await kit.sh(at.from, vm, script, 120_000)),
    move: async (tls) => {
      const begun = performance.now()
      const limits = { max_stall_ms, may_postcopy: true }
      const { report } = await move(kit, at.request, at.from, at.to, { tls, mode, limits })
      at = { request: { ...at.request, epoch: at.request.epoch + 1 }, from: at.to, to: at.from }
      process.stderr.write(
        JSON.stringify([
          report.how,
          report.claim,
          report.notes,
          report.phases.map((p) => [p.phase, Math.round((p.end_ms ?? 0) - p.begin_ms)]),
        ]) + '\n',
      )
      return { total: performance.now() - begun, stall: report.stall_ms }
    },
    end: async () => {},
  }
}

let stopped = false
process.once('SIGTERM', () => (stopped = true))
const kit = await pairKit()
const raw: Record<string, number[]> = {}
const guests: [string, Guest, boolean[]][] = []
/** Moves that would not have kept the ceiling. */
let given_up = 0
try {
  guests.push(['ours', await ourGuest(kit, 'precopy'), [false, true]])
  guests.push(['ceiling', await ourGuest(kit, 'precopy', CEILING_MS), [false]])
  if (busy > 0 && (await kit.allowPostcopy())) guests.push(['hybrid', await ourGuest(kit, 'hybrid'), [false]])
  const means = { downtime_limit_ms: DOWNTIME_LIMIT_MS }
  guests.push(['bare', await bareGuest(kit, memory_mib, means), [false, true]])
  if (busy === 0)
    guests.push(['multifd', await bareGuest(kit, memory_mib, { ...means, channels: CHANNELS }), [false, true]])
  if (hasLibvirt()) guests.push(['libvirt', await libvirtGuest(kit, memory_mib), [false]])
  for (const [, guest] of guests) {
    await guest.sh(filled(fill))
    if (busy > 0) await guest.sh(writer(busy))
  }
  for (let i = 0; i <= rounds; i++)
    for (const secure of [false, true])
      for (const [name, guest, kinds] of i % 2 === 0 ? guests : guests.toReversed()) {
        if (!kinds.includes(secure)) continue
        if (stopped) throw new Error('ended before it was through')
        if (busy > 0) await guest.sh(writes(true)).then(() => sleep(WARM_MS))
        const found = await guest.move(secure).catch((error: unknown) => {
          if (name !== 'ceiling') throw error
          process.stderr.write(`${String(error)}\n`)
        })
        if (busy > 0) await guest.sh(writes(false))
        if (!found) {
          if (i > 0) given_up++
          continue
        }
        process.stderr.write(
          `${name} ${secure ? 'tls' : 'plain'} ${found.total.toFixed(0)} ms, ${found.stall.toFixed(1)} ms\n`,
        )
        // The first is for warming up.
        if (i === 0) continue
        for (const what of ['total', 'stall'] as const)
          (raw[`${name} ${secure ? 'tls' : 'plain'} ${what}`] ??= []).push(found[what])
      }
  console.log(
    JSON.stringify({
      raw,
      capabilities: CAPABILITIES,
      downtime_limit_ms: DOWNTIME_LIMIT_MS,
      ceiling_ms: CEILING_MS,
      given_up,
    }),
  )
} finally {
  for (const [, guest] of guests) await guest.end()
  await kit.close()
}
