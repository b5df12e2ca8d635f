/**
 * Addresses that guests got from somebody else, as their agents say: on a bridge nobody here gives them out. They stand in the status, so that
 * every host tells them, and a list asks no guest.
 */
import { ipv4Of } from '@wadah/api/guest-addresses'
import type { GuestInfo } from '@wadah/api/schema/guest'
import { put, unchanged } from '@wadah/store/store'
import { againOnConflict, commit, type Deps } from '../context.ts'
import { networkKind, placementKind, type StatusRecord, statusKind, type VmRecord, vmKind } from '../records.ts'

export type Inside = NonNullable<StatusRecord['inside']>

const LOOK_MS = 5_000
const AGENT_MS = 3_000
const TRIES = 5
/** A guest asks for its address a while after its agent has come up; one that has it keeps it for hours. */
const SOON_MS = 5_000
const SOON_TRIES = 12
const LATER_MS = 300_000
/** Asked for at once. */
const AT_ONCE = 4

/** What of it is new here: addresses of NICs that have none reserved, by their MAC. Pure. */
export function insideOf(nics: readonly { name: string; mac: string }[], info: Pick<GuestInfo, 'interfaces'>): Inside {
  return nics.flatMap((nic) => {
    const own = info.interfaces.filter((i) => i.mac?.toLowerCase() === nic.mac.toLowerCase())
    return ipv4Of({ interfaces: own }).map((address) => ({ nic: nic.name, address }))
  })
}

type Asked = { pid: number | undefined; tries: number; next_ms: number }

/** When to ask again. Pure. @param found whether it had an address */
export function nextAsk(before: number, found: boolean): { tries: number; in_ms: number } {
  const tries = found ? SOON_TRIES : before + 1
  return { tries, in_ms: tries < SOON_TRIES ? SOON_MS : LATER_MS }
}

/** Runs until the function that is returned is called. */
export function keepAddresses(deps: Deps): () => void {
  const stop = new AbortController()
  const asked = new Map<string, Asked>()
  let cancel = () => {}
  const look = async () => {
    const now_ms = deps.clock.monotonic_ms()
    const due = bridged(deps).filter(({ vm, status }) => {
      const last = asked.get(vm.id)
      return last === undefined || last.pid !== status.pid || last.next_ms <= now_ms
    })
    const next = due.values()
    await Promise.all(
      Array.from({ length: AT_ONCE }, async () => {
        for (const { vm, status, nics } of next) {
          const found = await ask(deps, vm, nics, stop.signal).catch(() => undefined)
          const last = asked.get(vm.id)
          const before = last?.pid === status.pid ? (last?.tries ?? 0) : 0
          const { tries, in_ms } = nextAsk(before, found !== undefined && found.length > 0)
          asked.set(vm.id, { pid: status.pid, tries, next_ms: deps.clock.monotonic_ms() + in_ms })
        }
      }),
    )
    for (const id of asked.keys()) if (!deps.view.get(vmKind, id)) asked.delete(id)
  }
  const again = () => {
    if (!stop.signal.aborted) cancel = deps.clock.timer(() => void look().finally(again), LOOK_MS)
  }
  again()
  return () => {
    stop.abort()
    cancel()
  }
}

/** VMs that run here, whose agents are there, and that have NICs on a bridge. One that is on its way is left in peace. */
function bridged(deps: Deps): { vm: VmRecord; status: StatusRecord; nics: VmRecord['spec']['nics'] }[] {
  const { view, hostId } = deps
  return view.list(placementKind).flatMap(({ id, value: placement }) => {
    if (placement.host !== hostId || placement.handover) return []
    const status = view.get(statusKind, id)?.value
    const vm = view.get(vmKind, id)?.value
    if (!vm || status?.state !== 'running' || status.agent !== 'connected') return []
    const nics = vm.spec.nics.filter(
      (n) => n.address === undefined && view.get(networkKind, n.network)?.value.kind === 'bridge',
    )
    return nics.length === 0 ? [] : [{ vm, status, nics }]
  })
}

/** Asks the guest, and writes down what is new. @returns what it has now */
async function ask(deps: Deps, vm: VmRecord, nics: VmRecord['spec']['nics'], signal: AbortSignal): Promise<Inside> {
  const info = await deps.machine.guest(vm.id).info(AbortSignal.any([signal, AbortSignal.timeout(AGENT_MS)]))
  const inside = insideOf(nics, info)
  await againOnConflict(TRIES, async () => {
    const [status, placement] = await Promise.all([
      deps.store.get(statusKind, vm.id),
      deps.store.get(placementKind, vm.id),
    ])
    if (!status || placement?.value.host !== deps.hostId) return
    if (JSON.stringify(status.value.inside ?? []) === JSON.stringify(inside)) return
    await commit(deps, [unchanged(status), unchanged(placement)], [put(statusKind, vm.id, { ...status.value, inside })])
  })
  return inside
}
