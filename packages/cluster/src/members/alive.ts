/** A host says that it is there, and what it has. As long as its lease lives, it is. */
import type { HostFacts } from '@wadah/ports/machine'
import { sleep } from '@wadah/store/clock'
import type { Lease } from '@wadah/store/store'
import { del, exists, put } from '@wadah/store/store'
import { commit, type Deps } from '../context.ts'
import { tallyKind } from '../metrics/moves.ts'
import { hostKind, networkKind, poolKind } from '../records.ts'
import { movesAtOnce } from '../migration/turns.ts'
import { networkDefinition } from '../resolve.ts'
import { keepLoad } from './load.ts'
import { PoolTrials } from '../storage/trials.ts'
import { type AliveRecord, aliveKind, type FactsRecord, factsKind, type GuestFacts, loadKind } from './records.ts'

/** Short enough that a dead host is known soon, long enough for an election of etcd on an old disk. */
export const ALIVE_S = 10
const FACTS_MS = 30_000
const RETRY_MS = 1_000
const STEP_MIB = 256

type Own = GuestFacts & { postcopy: boolean }
export type OwnFacts = () => Promise<{ facts: HostFacts } & Own>

/** Runs until `signal` aborts; a lease that was lost is taken anew. VMs are not touched by it. */
export async function stayAlive(deps: Deps, version: string, facts: OwnFacts, signal: AbortSignal): Promise<void> {
  void keepFacts(deps, version, facts, signal)
  void keepLoad(deps, signal)
  while (!signal.aborted) {
    let lease: Lease | undefined
    try {
      lease = await deps.store.lease(ALIVE_S)
      const alive: AliveRecord = { schema: 1, host: deps.hostId, since_ms: deps.clock.now_ms() }
      await commit(deps, [exists(hostKind, deps.hostId)], [put(aliveKind, deps.hostId, alive, lease)])
      await new Promise<void>((resolve) => {
        const over = AbortSignal.any([signal, (lease as Lease).lost])
        if (over.aborted) resolve()
        else over.addEventListener('abort', () => resolve(), { once: true })
      })
      if (!signal.aborted) deps.log('the lease of this host was lost; VMs run on, and another is taken')
    } catch (error) {
      if (!signal.aborted) deps.log(`the store does not take this host's sign of life: ${(error as Error).message}`)
      await sleep(deps.clock, RETRY_MS, signal).catch(() => undefined)
    } finally {
      // At an orderly end the others need not wait for it to run out.
      await lease?.revoke().catch(() => undefined)
    }
  }
}

async function keepFacts(deps: Deps, version: string, own: OwnFacts, signal: AbortSignal): Promise<void> {
  // A pool or a network that came is looked for at once: a VM may want to go there.
  let wake: AbortController | undefined
  const trials = new PoolTrials(deps, signal, () => wake?.abort())
  const off = deps.view.subscribe((changes) => {
    if (changes.some((c) => c.kind === poolKind.name || c.kind === networkKind.name)) wake?.abort()
  })
  signal.addEventListener('abort', off, { once: true })
  while (!signal.aborted) {
    wake = new AbortController()
    try {
      const { facts, ...more } = await own()
      const here = { ...(await reachedBy(deps, trials)), moves_at_once: movesAtOnce(deps.config) }
      const next = factsRecord(facts, more, version, here, deps.clock.now_ms())
      if (!sameFacts(deps.view.get(factsKind, deps.hostId)?.value, next))
        await commit(deps, [exists(hostKind, deps.hostId)], [put(factsKind, deps.hostId, next)])
    } catch (error) {
      if (!signal.aborted) deps.log(`facts of this host: ${(error as Error).message}`)
    }
    await sleep(deps.clock, FACTS_MS, AbortSignal.any([signal, wake.signal])).catch(() => undefined)
  }
}

function factsRecord(
  f: HostFacts,
  own: Own,
  version: string,
  here: Reached & Pick<FactsRecord, 'moves_at_once'>,
  at_ms: number,
): FactsRecord {
  const { cpu_model, cpus, memory_mib, memory_free_mib, accelerator, qemu_version, firmware, tpm } = f
  const kept = { cpu_model, cpus, memory_mib, memory_free_mib, accelerator, qemu_version, firmware, tpm }
  return { schema: 1, version, ...own, ...kept, ...here, at_ms }
}

type Reached = Pick<FactsRecord, 'pools' | 'networks' | 'pools_refused'>
async function reachedBy(deps: Deps, trials: PoolTrials): Promise<Reached> {
  const own = deps.view.list(poolKind).flatMap(({ id, value: p }) => (!p.shared && p.host === deps.hostId ? [id] : []))
  const shared = await trials.look()
  const networks = await Promise.all(
    deps.view.list(networkKind).map(async ({ id, value: n }) => {
      const wrong = n.kind === 'bridge' ? await deps.machine.networks.judge(networkDefinition(n) as never) : undefined
      return wrong === undefined ? [id] : []
    }),
  )
  return {
    pools: [...own, ...shared.pools].toSorted(),
    networks: networks.flat().toSorted(),
    ...(Object.keys(shared.refused).length > 0 ? { pools_refused: shared.refused } : {}),
  }
}

/** Pure: free memory that differs by little is no news, and nothing is written for it. */
export function sameFacts(before: FactsRecord | undefined, now: FactsRecord): boolean {
  if (!before) return false
  const { at_ms: _a, memory_free_mib: free, ...rest } = now
  const { at_ms: _b, memory_free_mib: was, ...had } = before
  return Math.abs(free - was) < STEP_MIB && JSON.stringify(rest) === JSON.stringify(had)
}

export const forgetFacts = (host: string) => [
  del(factsKind, host),
  del(loadKind, host),
  del(aliveKind, host),
  del(tallyKind, host),
]
