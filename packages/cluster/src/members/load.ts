/** How busy hosts and VMs are: each host says it of itself when it is news, and placement goes by it. */
import type { HostLoad } from '@wadah/ports/machine'
import { freshness } from '@wadah/scheduler/load'
import type { Load } from '@wadah/scheduler/snapshot'
import type { CachedView } from '@wadah/store/cache'
import { sleep } from '@wadah/store/clock'
import { exists, put } from '@wadah/store/store'
import { commit, type Deps } from '../context.ts'
import { hostKind } from '../records.ts'
import { type LoadRecord, loadKind } from './records.ts'

type View = Pick<CachedView, 'get'>
const LOOK_MS = 20_000
/** Said anew after this long at the latest, well before it counts as stale (scheduler/load.ts). */
const SAY_MS = 120_000
/** Less than this is no news, cores; of more, a quarter. */
const STEP = 0.25

const rounded = (cores: number) => Math.round(cores * 100) / 100
export const loadRecord = (load: HostLoad, at_ms: number): LoadRecord => ({
  schema: 1,
  ...(load.cores === undefined ? {} : { cores: rounded(load.cores) }),
  vms: Object.fromEntries(Object.entries(load.vms).map(([vm, cores]) => [vm, rounded(cores)])),
  at_ms,
})

/** Pure: an idle cluster writes little. */
export function isNews(before: LoadRecord | undefined, now: LoadRecord): boolean {
  if (!before || Math.abs(now.at_ms - before.at_ms) >= SAY_MS) return true
  const differ = (was: number | undefined, is: number | undefined) =>
    Math.abs((is ?? 0) - (was ?? 0)) > Math.max(STEP, (was ?? 0) / 4)
  const all = new Set([...Object.keys(before.vms), ...Object.keys(now.vms)])
  return differ(before.cores, now.cores) || [...all].some((vm) => differ(before.vms[vm], now.vms[vm]))
}

/** Runs until `signal` aborts. */
export async function keepLoad(deps: Deps, signal: AbortSignal): Promise<void> {
  const { machine, view, clock, hostId } = deps
  while (!signal.aborted) {
    try {
      const now = loadRecord(await machine.load(), clock.now_ms())
      // The first look only begins to count.
      const isKnown = now.cores !== undefined || Object.keys(now.vms).length > 0
      if (isKnown && isNews(view.get(loadKind, hostId)?.value, now))
        await commit(deps, [exists(hostKind, hostId)], [put(loadKind, hostId, now)])
    } catch (error) {
      if (!signal.aborted) deps.log(`how busy this host is: ${(error as Error).message}`)
    }
    await sleep(clock, LOOK_MS, signal).catch(() => undefined)
  }
}

/** For the scheduler. */
export function loadOf(view: View, host: string): { load?: Load } {
  const said = view.get(loadKind, host)?.value
  return said?.cores === undefined ? {} : { load: { cores: said.cores, at_ms: said.at_ms } }
}

/** The same of a VM, as the host says where it is. */
export function vmLoadOf(view: View, vm: string, host: string | undefined): { load?: Load } {
  const said = host === undefined ? undefined : view.get(loadKind, host)?.value
  const cores = said?.vms[vm]
  return said === undefined || cores === undefined ? {} : { load: { cores, at_ms: said.at_ms } }
}

/** For whoever looks at the host: only what is so now. */
export function busyOf(view: View, host: string, now_ms: number): { cpu_busy?: number } {
  const { load } = loadOf(view, host)
  return load && freshness(load, now_ms) === 'measured' ? { cpu_busy: load.cores } : {}
}
