/** Records → what the scheduler is shown; and where a new VM goes. */
import { fail } from '@wadah/api/fault'
import type { VmCreate } from '@wadah/api/schema/vm'
import { type Choice, place } from '@wadah/scheduler/place'
import {
  type DiskView,
  type HostView,
  lifeOf,
  type PoolView,
  type Rule,
  type Snapshot,
  type VmView,
} from '@wadah/scheduler/snapshot'
import type { CachedView } from '@wadah/store/cache'
import {
  hostKind,
  imageKind,
  imageLayers,
  indexKeys,
  indexKind,
  networkKind,
  placementKind,
  poolKind,
  type PoolRecord,
  statusKind,
  type VmRecord,
  vmKind,
  volumeKind,
} from '../records.ts'
import type { Deps } from '../context.ts'
import { chainOf } from '../resolve.ts'
import { usualPool } from '../storage/find-pool.ts'
import { refusalsOf } from '../storage/proven.ts'
import { scheduled } from '../rules/members.ts'
import { type Rooms, roomsFor } from '../storage/rooms.ts'
import { heldBytesByTop, tiedBy } from '../vms/tied.ts'
import { hostNamed } from './where.ts'
import { loadOf, vmLoadOf } from './load.ts'
import { aliveKind, factsKind } from './records.ts'

type View = Pick<CachedView, 'get' | 'list'>
/** What every host keeps for itself and its guests' QEMUs. */
const RESERVED_MIB = 512
/** A VM that is not there yet. */
const NEW = 'new'
/** VMs with the same value of the first are kept on different hosts, of the second on one; `GROUP:strict` never otherwise. */
export const APART = 'wadah/apart'
export const TOGETHER = 'wadah/together'

/**
 * Pure over the view. @param o.rooms what hosts said of their pools; without it no local disk is copied anywhere
 * @param o.coming a VM that is not there yet, for which a place is looked for
 */
export function snapshotOf(
  view: View,
  o: { now_ms: number; memory_overcommit: number; rooms?: Rooms; coming?: Pick<VmRecord, 'id' | 'project' | 'labels'> },
): Snapshot {
  const vms = view.list(vmKind)
  return {
    now_ms: o.now_ms,
    hosts: view.list(hostKind).flatMap(({ id, value: h }): HostView[] => {
      const facts = view.get(factsKind, id)?.value
      if (!facts) return []
      return [
        {
          id,
          name: h.name,
          state: view.get(aliveKind, id) === undefined ? 'down' : h.maintenance ? 'maintenance' : 'up',
          memory_mib: facts.memory_mib,
          reserved_mib: RESERVED_MIB,
          memory_overcommit: o.memory_overcommit,
          cpus: facts.cpus,
          ...loadOf(view, id),
          pools: facts.pools.flatMap((pool) => {
            const record = view.get(poolKind, pool)?.value
            return record ? [poolViewOf(view, record, o.rooms)] : []
          }),
          pools_refused: refusalsOf(view, id),
          networks: facts.networks,
          accelerator: facts.accelerator,
          cpu_flags: facts.cpu_flags,
          qemu_version: facts.qemu_version,
          ...(facts.machine_types === undefined ? {} : { machine_types: facts.machine_types }),
          labels: {},
        },
      ]
    }),
    vms: vms.map((vm) => viewOf(view, vm.value, o.rooms)),
    moving: view
      .list(placementKind)
      .flatMap(({ id, value: p }) => (p.handover === undefined ? [] : [{ vm: id, from: p.host, to: p.handover.to }])),
    reserved: [],
    rules: [...rulesOf(vms.map((vm) => vm.value)), ...scheduled(view, o.coming ? [o.coming] : [])],
    history: [],
    names: Object.fromEntries([
      ...view.list(networkKind).map((n) => [n.id, n.value.name]),
      ...view.list(poolKind).map((p) => [p.id, p.value.name]),
    ]),
  }
}

/** As this host sees it at this moment. @param moving VMs whose local disks may have to go elsewhere: hosts are asked for room for them */
export async function snapshotNow(deps: Deps, moving: readonly VmRecord[]): Promise<Snapshot> {
  const rooms = await roomsFor(deps, moving)
  const { view, clock, config } = deps
  return snapshotOf(view, {
    now_ms: clock.now_ms(),
    memory_overcommit: config.memory_overcommit,
    ...(rooms ? { rooms } : {}),
  })
}

function poolViewOf(view: View, pool: PoolRecord, rooms: Rooms | undefined): PoolView {
  const free_bytes = rooms?.left.get(pool.id)
  return {
    id: pool.id,
    name: pool.name,
    shared: pool.shared === true,
    ...(free_bytes === undefined
      ? {}
      : { free_bytes, usual: pool.id === usualPool(view, pool.project, pool.host)?.id }),
  }
}

const NOTHING: ReadonlyMap<string, number> = new Map()

/** A VM that is there. */
export function viewOf(view: View, vm: VmRecord, rooms?: Rooms): VmView {
  const status = view.get(statusKind, vm.id)?.value
  const host = view.get(placementKind, vm.id)?.value.host
  const state = status?.state ?? 'absent'
  const live = lifeOf(state) === 'live'
  const shared = new Map<string, number>()
  const local: DiskView[] = []
  const along = orWhenGone(() => heldBytesByTop(view, vm), NOTHING)
  for (const { volume } of vm.spec.disks) {
    try {
      const chain = chainOf({ view: view as CachedView }, volume)
      const [top] = chain
      if (top && view.get(poolKind, top.pool)?.value.shared !== true) {
        // What it stands on goes into it.
        const used_bytes = rooms?.used.get(volume)
        local.push({
          pool: top.pool,
          shared: false,
          bytes: top.size_bytes + (along.get(top.id) ?? 0),
          ...(used_bytes === undefined ? {} : { used_bytes }),
        })
      } else for (const v of chain) shared.set(v.pool, (shared.get(v.pool) ?? 0) + v.size_bytes)
    } catch {
      // A disk that is gone is said at its start.
    }
  }
  // One that neither rests nor runs says that itself, and its devices are said by name.
  const tie =
    lifeOf(state) === 'between' || vm.spec.hostdevs?.length ? undefined : orWhenGone(() => tiedBy(view, vm), undefined)
  const devices = (vm.spec.hostdevs ?? []).map((d) => d.name)
  return {
    id: vm.id,
    name: vm.name,
    ...(host === undefined ? {} : { host }),
    state,
    memory_mib: vm.spec.memory_mib,
    cpus: vm.spec.cpus,
    ...(live ? vmLoadOf(view, vm.id, host) : {}),
    disks: [...[...shared].map(([pool, bytes]) => ({ pool, shared: true, bytes })), ...local],
    networks: [...new Set(vm.spec.nics.map((n) => n.network))],
    ...(live && status?.accelerator !== undefined ? { accelerator: status.accelerator } : {}),
    ...(live && status?.qemu_version !== undefined ? { qemu_version: status.qemu_version } : {}),
    ...(live && status?.machine !== undefined ? { machine: status.machine } : {}),
    ...(live && status?.cpu_flags !== undefined ? { cpu_flags: status.cpu_flags } : {}),
    labels: vm.labels,
    ...(devices.length === 0 ? {} : { passthrough: devices }),
    ...(tie ? { held: tie } : {}),
  }
}

/** A disk that is gone is said at its start. */
function orWhenGone<T>(look: () => T, otherwise: T): T {
  try {
    return look()
  } catch {
    return otherwise
  }
}

function rulesOf(vms: readonly VmRecord[]): Rule[] {
  const rules = new Map<string, Rule>()
  for (const vm of vms) {
    for (const [label, kind] of [
      [APART, 'apart'],
      [TOGETHER, 'together'],
    ] as const) {
      const value = vm.labels[label]
      if (value === undefined) continue
      const id = `${kind} ${value}`
      rules.set(id, {
        id,
        name: `${label}=${value}`,
        strict: value.endsWith(':strict'),
        kind,
        vms: { labels: { [label]: value } },
      })
    }
  }
  return [...rules.values()]
}

/** The host for a VM that is asked for. @throws WadahError `not_found`, `wrong_state`; `no_room` that says of each host why not */
export function hostFor(
  view: View,
  project: string,
  body: VmCreate,
  o: { now_ms: number; memory_overcommit: number; own: string },
): string {
  const named = body.host === undefined ? undefined : hostNamed(view, body.host)
  if (body.host !== undefined && named === undefined)
    throw fail('not_found', `There is no host "${body.host}".`, { field: '/host', remedy: 'wadah host list' })
  if (named !== undefined) {
    const host = view.get(hostKind, named)?.value
    if (named !== o.own && view.get(aliveKind, named) === undefined)
      throw fail('wrong_state', `The host ${host?.name ?? named} is down.`, {
        field: '/host',
        remedy: 'wadah host list',
      })
    if (host?.maintenance)
      throw fail('wrong_state', `The host ${host.name} is in maintenance: nothing new comes to it.`, {
        field: '/host',
        remedy: `wadah host maintenance ${host.name} --off`,
      })
    return named
  }
  const coming = { id: NEW, project, labels: body.labels ?? {} }
  const snapshot = snapshotOf(view, { ...o, coming })
  const [only] = snapshot.hosts
  // Of a single host too little is known to refuse anything here.
  if (!only || (snapshot.hosts.length === 1 && only.state === 'up')) return only?.id ?? o.own
  const choice = place(snapshot, wished(view, project, body), { start: true, most: 20 })
  if (choice.chosen) return choice.chosen.host
  throw fail('no_room', refusal(choice), { remedy: remedyOf(choice) })
}

/** What is known of it before it is made. Its further disks go where its host has room; its image must be within reach. */
function wished(view: View, project: string, body: VmCreate): VmView {
  const named = (noun: 'image' | 'pool' | 'network' | 'volume', ref: string) =>
    view.get(indexKind, indexKeys.name(noun, project, ref))?.value.holder ?? ref
  const image = body.image === undefined ? undefined : view.get(imageKind, named('image', body.image))?.value
  const lying = [
    ...(image ? imageLayers(image) : []),
    ...(body.disks ?? []).flatMap((d) => ('volume' in d && d.volume !== undefined ? [named('volume', d.volume)] : [])),
  ]
  const pools = new Set(lying.flatMap((v) => view.get(volumeKind, v)?.value.pool ?? []))
  for (const ref of [body.pool, ...(body.disks ?? []).map((d) => ('pool' in d ? d.pool : undefined))])
    if (ref !== undefined) pools.add(named('pool', ref))
  return {
    id: NEW,
    name: body.name,
    state: 'absent',
    memory_mib: body.memory_mib ?? Math.max(512, image?.min_memory_mib ?? 0),
    cpus: body.cpus ?? 1,
    // Nothing of it can be copied anywhere: each counts as one that must be there.
    disks: [...pools].map((pool) => ({ pool, shared: true, bytes: 0 })),
    networks: (body.nics ?? []).flatMap((n) =>
      'network' in n && n.network !== undefined ? [named('network', n.network)] : [],
    ),
    labels: body.labels ?? {},
    ...(body.hostdevs && body.hostdevs.length > 0 ? { passthrough: body.hostdevs.map((d) => d.name) } : {}),
  }
}

function refusal(choice: Choice): string {
  const why = choice.refused.map((r) => `${r.name}: ${r.reasons.map((x) => x.detail).join(' ')}`)
  return why.length === 0 ? choice.detail : `No host can take it. ${why.join(' ')}`
}

const remedyOf = (choice: Choice): string =>
  [...choice.stuck, ...choice.refused.flatMap((r) => r.reasons)][0]?.remedy ?? 'wadah host list'
