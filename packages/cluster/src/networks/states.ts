/** Which networks are down, and on which host: each says it of itself, so that no two write one record in turn. */
import type { Network } from '@wadah/api/schema/network'
import type { NetworkState } from '@wadah/ports/networks'
import type { CachedView } from '@wadah/store/cache'
import { del, exists, put, type Write } from '@wadah/store/store'
import { againOnConflict, commit, type Deps } from '../context.ts'
import { aliveKind } from '../members/records.ts'
import { hostName } from '../members/where.ts'
import { hostKind, type NetworkDownRecord, networkDownKind, networkKind } from '../records.ts'

type View = Pick<CachedView, 'get' | 'list'>
const TRIES = 3
const keyOf = (network: string, host: string) => `${network}/${host}`

/** What this host's machine says of its networks is written down, when it is another than before. */
export async function recordStates(
  deps: Pick<Deps, 'store' | 'view' | 'randomBytes' | 'hostId'>,
  states: readonly NetworkState[],
): Promise<void> {
  const { view, hostId } = deps
  for (const { id, state, reason } of states) {
    await againOnConflict(TRIES, async () => {
      const known = downOn(view, id, hostId)
      const key = keyOf(id, hostId)
      if (state === 'up') {
        if (known) await commit(deps, [], [del(networkDownKind, key)])
        return
      }
      // Deleted meanwhile: nothing of it may stay.
      if (!view.get(networkKind, id) || (known && known.reason === reason)) return
      const down: NetworkDownRecord = {
        schema: 1,
        network: id,
        host: hostId,
        ...(reason === undefined ? {} : { reason }),
      }
      await commit(deps, [exists(networkKind, id)], [put(networkDownKind, key, down)])
    })
  }
}

export const downOn = (view: Pick<View, 'get'>, network: string, host: string): NetworkDownRecord | undefined =>
  view.get(networkDownKind, keyOf(network, host))?.value

/** As every host answers it: down where one that is there says so, with its name where there are others. */
export function stateOf(view: View, network: string): Pick<Network, 'state' | 'reason'> {
  const hosts = view.list(hostKind)
  const down = view
    .list(networkDownKind)
    .map((d) => d.value)
    .filter((d) => d.network === network && (hosts.length < 2 || view.get(aliveKind, d.host)))
  if (down.length === 0) return { state: 'up' }
  const lines = down.flatMap((d) =>
    hosts.length < 2 ? (d.reason ?? []) : `on ${hostName(view, d.host)}: ${d.reason ?? 'it is down'}`,
  )
  return { state: 'down', ...(lines.length === 0 ? {} : { reason: lines.join(' ') }) }
}

/** Of a network or a host that goes. */
export const forgetStates = (view: View, of: { network: string } | { host: string }): Write[] =>
  view
    .list(networkDownKind)
    .filter(({ value: d }) => ('network' in of ? d.network === of.network : d.host === of.host))
    .map((d) => del(networkDownKind, d.id))
