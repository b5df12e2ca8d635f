/**
 * After a store that went back in time (a copy, or the member that was left of a majority) what runs is the truth: each host says what
 * runs on it before anything is started.
 */
import { fail } from '@wadah/api/fault'
import type { CachedView } from '@wadah/store/cache'
import { put, unchanged } from '@wadah/store/store'
import { againOnConflict, commit, type Deps } from '../context.ts'
import { hostKind, type PlacementRecord, placementKind, vmKind } from '../records.ts'
import { recordNow } from '../vms/keeper.ts'
import { CLUSTER, clusterKind } from './records.ts'

const TRIES = 20
const AGAIN_MS = 2_000

/** Ids of the hosts of which it is not known what runs on them. One that was taken out is not waited for. */
export function waitedFor(view: Pick<CachedView, 'get'>): string[] {
  const waiting = view.get(clusterKind, CLUSTER)?.value.recovery?.waiting ?? []
  return waiting.filter((id) => view.get(hostKind, id) !== undefined)
}

/** @throws WadahError `unavailable` while a host may run what is to be started here */
export function refuseWhileWaiting(view: Pick<CachedView, 'get'>): void {
  const names = waitedFor(view)
    .map((id) => view.get(hostKind, id)?.value.name ?? id)
    .toSorted()
  const [first] = names
  if (first === undefined) return
  throw fail(
    'unavailable',
    `The store was recovered, and ${names.join(', ')} ${names.length === 1 ? 'has' : 'have'} not said yet what runs there: the VM might run twice.`,
    { remedy: `switch ${first} on; or, if it is lost for ever: wadah cluster remove ${first}`, retryable: true },
  )
}

/**
 * Pure: the placement of a VM that runs here; undefined when the store says so already, or knows of a later start elsewhere: then it is
 * not ours to say.
 */
export function placementFor(
  before: PlacementRecord | undefined,
  here: { host: string; epoch: number },
): PlacementRecord | undefined {
  if (before && before.epoch >= here.epoch) return undefined
  const { handover: _, ...rest }: PlacementRecord = before ?? { schema: 1, ...here }
  return { ...rest, ...here }
}

/** Says what runs here, when the cluster waits for it. Done twice is done once. */
export async function reportRunning(deps: Deps): Promise<void> {
  const { store, hostId, machine, log } = deps
  const waits = async () => {
    const rec = await store.get(clusterKind, CLUSTER)
    return rec?.value.recovery?.waiting.includes(hostId) ? rec : undefined
  }
  if (!(await waits())) return
  for (const vm of await machine.known()) {
    if (!(machine.running(vm) ?? (await machine.attach(vm)))) continue
    const found = await machine.migration.ask(vm)
    // On its way: the two sides of the move settle it.
    if (found.is !== 'there' || found.job !== undefined) continue
    await againOnConflict(TRIES, async () => {
      const spec = await store.get(vmKind, vm)
      if (!spec) return log(`${vm} runs here, and the recovered store does not know it: it is let run`)
      const before = await store.get(placementKind, vm)
      const next = placementFor(before?.value, { host: hostId, epoch: found.epoch })
      if (!next) return
      await commit(deps, before ? [unchanged(before)] : [], [put(placementKind, vm, next)])
      log(`"${spec.value.name}" runs here (epoch ${next.epoch}): the recovered store knew an earlier place`)
    })
    await recordNow(deps, vm).catch((error: unknown) => log(`status of ${vm}: ${(error as Error).message}`))
  }
  await againOnConflict(TRIES, async () => {
    const rec = await waits()
    if (!rec) return
    const { recovery } = rec.value
    if (!recovery) return
    const waiting = recovery.waiting.filter((id) => id !== hostId)
    await commit(
      deps,
      [unchanged(rec)],
      [put(clusterKind, CLUSTER, { ...rec.value, recovery: { ...recovery, waiting } })],
    )
    log('the cluster knows what runs here')
  })
}

/** Also when the store is recovered while this daemon runs. Until `signal` aborts. */
export function keepReporting(deps: Deps, signal: AbortSignal): void {
  let busy = false
  const look = async () => {
    if (busy || signal.aborted || !deps.view.get(clusterKind, CLUSTER)?.value.recovery?.waiting.includes(deps.hostId))
      return
    busy = true
    try {
      await reportRunning(deps)
    } catch (error) {
      deps.log(`what runs here could not be said: ${(error as Error).message}`)
    } finally {
      busy = false
    }
  }
  const timer = setInterval(() => void look(), AGAIN_MS)
  timer.unref()
  signal.addEventListener('abort', () => clearInterval(timer), { once: true })
  void look()
}
