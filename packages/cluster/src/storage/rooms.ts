/** What the pools of the hosts still have room for, and what local disks hold: what the plan of a move with local disks must know. */
import { roomOf } from '@wadah/api/admit'
import type { CachedView } from '@wadah/store/cache'
import type { Deps } from '../context.ts'
import { aliveKind } from '../members/records.ts'
import { type PoolRecord, placementKind, poolKind, type VmRecord } from '../records.ts'
import { chainOf, poolDefinition, poolOf } from '../resolve.ts'
import { promisedBytes } from '../vms/create.ts'
import { localDisks } from '../vms/tied.ts'
import { reaches } from './find-pool.ts'
import { factsOf } from './pool-facts.ts'

/** Asked of the host where disks lie: what each takes there. */
export const USED_PATH = '/peer/v1/used-bytes'
/** A plan must not wait for a host that is gone. */
const ASK_MS = 2_000
const MOST_ASKED = 10_000

/** Bytes, by id. What could not be found out is not in it. */
export type Rooms = {
  /** That may still be promised of a pool. */
  left: ReadonlyMap<string, number>
  /** That a volume holds, with what it stands on. */
  used: ReadonlyMap<string, number>
}

/** Undefined: none of these VMs has a disk that would have to be copied, so nobody was asked. */
export async function roomsFor(deps: Deps, vms: readonly VmRecord[]): Promise<Rooms | undefined> {
  const lying = new Map<string, string[]>()
  for (const vm of vms) {
    const host = deps.view.get(placementKind, vm.id)?.value.host
    const disks = disksOf(deps.view, vm)
    if (host !== undefined && disks.length > 0) lying.set(host, [...(lying.get(host) ?? []), ...disks])
  }
  if (lying.size === 0) return undefined
  const pools = deps.view
    .list(poolKind)
    .map((p) => p.value)
    .filter((p) => !p.shared && !p.closing)
    .filter((p) => p.host === deps.hostId || deps.view.get(aliveKind, p.host) !== undefined)
  const [left, used] = await Promise.all([
    Promise.all(pools.map(async (pool): Promise<[string, number | undefined]> => [pool.id, await leftIn(deps, pool)])),
    Promise.all([...lying].map(([host, volumes]) => askUsed(deps, host, volumes))),
  ])
  return {
    left: new Map(left.filter((e): e is [string, number] => e[1] !== undefined)),
    used: new Map(used.flatMap((u) => Object.entries(u))),
  }
}

/** Bytes that may still be promised; undefined where nobody can say. */
export async function leftIn(deps: Deps, pool: PoolRecord): Promise<number | undefined> {
  const { capacity_bytes, unreachable } = await factsOf(deps, pool)
  if (unreachable !== undefined) return undefined
  return roomOf({ capacity_bytes, promised_bytes: promisedBytes(deps, pool.id), overcommit: pool.overcommit })
}

function disksOf(view: CachedView, vm: VmRecord): string[] {
  try {
    return localDisks(view, vm).map((d) => d.volume.id)
  } catch {
    // A disk that is gone is said at its start.
    return []
  }
}

async function askUsed(deps: Deps, host: string, volumes: string[]): Promise<Record<string, number>> {
  if (host === deps.hostId) return answerUsed(deps, volumes)
  try {
    return (await deps.askHost?.<Record<string, number>>(host, USED_PATH, volumes, ASK_MS)) ?? {}
  } catch {
    // They are taken as full, and the plan says so.
    return {}
  }
}

/** What each of these volumes of this host takes, with what it stands on. */
export async function answerUsed(deps: Deps, body: unknown): Promise<Record<string, number>> {
  const used: Record<string, number> = {}
  const ids = Array.isArray(body) ? body.slice(0, MOST_ASKED).filter((id) => typeof id === 'string') : []
  for (const id of ids) {
    try {
      let sum = 0
      for (const layer of chainOf(deps, id)) {
        const pool = poolOf(deps, layer.pool)
        if (!reaches(deps, pool)) throw new Error('it lies elsewhere')
        sum += await deps.machine.volumes.allocatedBytes(poolDefinition(pool), layer)
      }
      used[id] = sum
    } catch {
      // Not known: left out.
    }
  }
  return used
}
