/** Disks that lie in a pool of one host only, when their VM moves: where they go, what the records say meanwhile, and what is left over. */
import { WadahError, fail, toFault } from '@wadah/api/fault'
import { admit } from '@wadah/api/admit'
import type { MoveDisk } from '@wadah/ports/migration'
import type { PoolDefinition, VolumeDefinition } from '@wadah/ports/volumes'
import { choosePools } from '@wadah/scheduler/fits'
import { sleep } from '@wadah/store/clock'
import { type Check, type Rec, type Write, put, unchanged } from '@wadah/store/store'
import { type Deps, caughtUp, find } from '../context.ts'
import { claimKind, jobKind } from '../jobs/record.ts'
import { hostName } from '../members/where.ts'
import {
  type PoolRecord,
  type VmRecord,
  type VolumeRecord,
  placementKind,
  poolKind,
  vmKind,
  volumeKind,
} from '../records.ts'
import { chainOf, poolDefinition, poolOf } from '../resolve.ts'
import { findPool, reaches, usualPool } from '../storage/find-pool.ts'
import { refuseUnproven, whyNot } from '../storage/proven.ts'
import { factsOf } from '../storage/pool-facts.ts'
import { leftIn } from '../storage/rooms.ts'
import { poolClosing, promisedBytes } from './create.ts'
import { hasOwnState, heldBytesByTop, heldHere, localDisks } from './tied.ts'

/** Asked of the host where a move was to go: what it left there goes. */
export const LEFTOVERS_PATH = '/peer/v1/leftovers'
/** Asked of the host where the store has a volume, or a VM, whether it is there. */
export const HAS_PATH = '/peer/v1/has'
const ASK_MS = 30_000
/** Places for what comes are made by turns with it. */
const HAS_MS = 5_000
const AGAIN_MS = { first: 5_000, most: 300_000 }

export type DiskMove = Omit<MoveDisk, 'layered'> & {
  volume: string
  from: string
  to: string
  /** What it stands on goes along: of it only what it holds itself is copied. */
  based?: true
  /** No disk, but what snapshots hold: `size_bytes` is what it takes. */
  held?: true
}

/**
 * Where each goes: the pool that was named, else where the scheduler would have it (`choosePools`).
 * @throws WadahError `wrong_state`, `not_found`, `no_room`
 */
export async function placeDisks(deps: Deps, vm: VmRecord, to: string, ref: string | undefined): Promise<DiskMove[]> {
  const disks = localDisks(deps.view, vm)
  const held = heldHere(deps.view, vm)
  if (disks.length === 0 && held.length === 0) {
    if (ref === undefined) return []
    throw fail('invalid', `"${vm.name}" has no disks that would go to another pool.`, { field: '/pool' })
  }
  const chosen = ref === undefined ? await choose(deps, vm, to, disks) : undefined
  const along = new Set([...disks.map((d) => d.volume.id), ...held.map((v) => v.id)])
  const move = (name: string, { id, base, pool: from, format, size_bytes }: VolumeRecord, to: string): DiskMove => ({
    name,
    volume: id,
    from,
    to,
    format,
    size_bytes,
    ...(base !== undefined && along.has(base) ? { based: true } : {}),
  })
  const tops = disks.map(({ name, volume }, i) =>
    move(name, volume, chosen?.[i] ?? targetPool(deps, vm, to, ref, poolOf(deps, volume.pool).name).id),
  )
  const other = (v: VolumeRecord) => targetPool(deps, vm, to, ref, poolOf(deps, v.pool).name).id
  const moves = [
    ...tops,
    ...besides(deps, tops, held, other).map(({ volume, pool }): DiskMove => {
      const one = move(volume.name, volume, pool)
      // The lowest layer takes in what it had in common with an image, which may be compressed.
      const alone = volume.base !== undefined && !one.based
      return { ...one, size_bytes: alone ? volume.size_bytes : (volume.held_bytes ?? volume.size_bytes), held: true }
    }),
  ]
  for (const id of new Set(moves.map((m) => m.to)))
    await checkRoom(
      deps,
      poolOf(deps, id),
      moves.filter((m) => m.to === id).reduce((sum, m) => sum + m.size_bytes, 0),
    )
  return moves
}

/** Layers stand in one pool with what stands on them; what no disk stands on goes where a disk of its pool goes. Pure but for `other`. */
function besides(
  deps: Pick<Deps, 'view'>,
  tops: readonly DiskMove[],
  held: readonly VolumeRecord[],
  other: (volume: VolumeRecord) => string,
): { volume: VolumeRecord; pool: string }[] {
  const rootOf = (id: string): string | undefined =>
    chainOf(deps, id).findLast((v) => held.some((h) => h.id === v.id))?.id
  const roots = new Map(tops.map((t) => [rootOf(t.volume), t.to]))
  const elsewhere = new Map<string, string>()
  return held.map((volume) => {
    const known =
      roots.get(rootOf(volume.id)) ?? tops.find((t) => t.from === volume.pool)?.to ?? elsewhere.get(volume.pool)
    const pool = known ?? other(volume)
    elsewhere.set(volume.pool, pool)
    return { volume, pool }
  })
}

/** Pools of that host by the rule that plans go by, as its room is now. Undefined: none has room, and who asks is told by one of them why. */
async function choose(
  deps: Deps,
  vm: VmRecord,
  to: string,
  disks: ReturnType<typeof localDisks>,
): Promise<string[] | undefined> {
  const there = deps.view
    .list(poolKind)
    .map((p) => p.value)
    .filter((p) => p.project === vm.project && p.host === to && !p.shared && !p.closing)
  const usual = usualPool(deps.view, vm.project, to)?.id
  const pools = there.map(({ id, name }) => ({ id, name, shared: false, usual: id === usual }))
  const along = heldBytesByTop(deps.view, vm)
  const left = new Map(await Promise.all(there.map(async (p) => [p.id, await leftIn(deps, p)] as const)))
  return choosePools(
    pools,
    disks.map(({ volume }) => ({
      pool: volume.pool,
      shared: false,
      bytes: volume.size_bytes + (along.get(volume.id) ?? 0),
    })),
    (id) => poolOf(deps, id).name,
    (id) => left.get(id),
  )?.map((copy) => copy.to_pool)
}

function targetPool(deps: Deps, vm: VmRecord, to: string, ref: string | undefined, name: string): PoolRecord {
  const there = { view: deps.view, hostId: to }
  if (ref !== undefined) {
    const pool = find(deps, 'pool', poolKind, vm.project, ref, '/pool').value
    if (reaches(there, pool)) {
      refuseUnproven(there, pool, '/pool')
      return pool
    }
    throw fail('wrong_state', `The host ${hostName(deps.view, to)} does not have the pool "${pool.name}".`, {
      field: '/pool',
      remedy: 'wadah pool list',
    })
  }
  const same = deps.view
    .list(poolKind)
    .find(
      ({ value: p }) => p.name === name && p.project === vm.project && reaches(there, p) && !whyNot(deps.view, to, p),
    )
  return same?.value ?? findPool(there, vm.project, undefined, '/pool').value
}

async function checkRoom(deps: Deps, pool: PoolRecord, bytes: number): Promise<void> {
  if (pool.closing) throw poolClosing(pool)
  const { capacity_bytes, unreachable } = await factsOf(deps, pool)
  if (unreachable !== undefined)
    throw fail('unavailable', `The pool "${pool.name}" can't be looked at: ${unreachable}`, {
      remedy: 'wadah host list',
    })
  const verdict = admit(
    {
      what: `The pool "${pool.name}"`,
      capacity_bytes,
      promised_bytes: promisedBytes(deps, pool.id),
      overcommit: pool.overcommit,
      field: '/pool',
    },
    bytes,
  )
  if (!verdict.ok) throw new WadahError(verdict.why)
}

type Change = { checks: Check[]; writes: Write[] }

/** Its volumes as the store has them, changed; of those that need no change nothing. */
async function changed(
  deps: Deps,
  ids: readonly string[],
  change: (volume: VolumeRecord, all: readonly Rec<VolumeRecord>[]) => VolumeRecord | undefined,
): Promise<Change> {
  const found = (await Promise.all(ids.map((id) => deps.store.get(volumeKind, id)))).filter((r) => r !== undefined)
  const out: Change = { checks: [], writes: [] }
  for (const rec of found) {
    const next = change(rec.value, found)
    if (!next) continue
    out.checks.push(unchanged(rec))
    out.writes.push(put(volumeKind, rec.value.id, next))
  }
  return out
}

/** They are on their way. */
export const markMoving = (deps: Deps, disks: readonly DiskMove[], job: string): Promise<Change> =>
  changed(
    deps,
    disks.map((d) => d.volume),
    (v) => {
      const disk = disks.find((d) => d.volume === v.id)
      return {
        ...v,
        moving_to: { pool: disk?.to ?? v.pool, job, ...(disk?.held ? { bytes: disk.size_bytes } : {}) },
      }
    },
  )

/** They stay. */
export const unmarkMoving = (deps: Deps, disks: readonly DiskMove[], job: string): Promise<Change> =>
  changed(
    deps,
    disks.map((d) => d.volume),
    ({ moving_to, ...v }) => (moving_to?.job === job ? v : undefined),
  )

/** What may come by a job: its disks, and what its snapshots hold, which no job changes meanwhile. */
const mayCome = (deps: Deps, vm: VmRecord): { name: string; volume: string; held: boolean }[] => {
  const tops = vm.spec.disks.map(({ name, volume }) => ({ name, volume, held: false }))
  const known = new Set(tops.map((t) => t.volume))
  const held = deps.view
    .list(volumeKind)
    .map((v) => v.value)
    .filter((v) => v.vm === vm.id && v.role !== undefined && !known.has(v.id))
  return [...tops, ...held.map(({ id, name }) => ({ name, volume: id, held: true }))]
}

/**
 * They have come: written in the commit of the placement. What they stood on and did not come, they hold themselves now.
 * @param took what layers take on the target, bytes
 */
export const arrivedDisks = async (
  deps: Deps,
  vm: VmRecord,
  job: string,
  took: Record<string, number> = {},
): Promise<Change> => {
  const ids = mayCome(deps, vm).map((d) => d.volume)
  return changed(deps, ids, (volume, all) => {
    const { moving_to, base, ...v } = volume
    if (moving_to?.job !== job) return undefined
    const along = all.some((o) => o.id === base && o.value.moving_to?.job === job)
    const bytes = v.role === 'layer' ? took[volume.id] : undefined
    return {
      ...v,
      ...(base !== undefined && along ? { base } : {}),
      ...(bytes === undefined ? {} : { held_bytes: bytes }),
      pool: moving_to.pool,
    }
  })
}

export type Room = {
  name: string
  pool: PoolDefinition
  /** With what it stands on, where that comes along. */
  volume: VolumeDefinition
  /** What snapshots hold: nobody writes it; and how much of it the pool has promised. */
  held?: 'layer' | 'ram'
  promised_bytes: number
}

/** On the target: the disks that come by this job, and where. @throws WadahError `not_owner` for a pool that is not this host's */
export async function roomsFor(deps: Deps, vm: VmRecord, job: string): Promise<Room[]> {
  const found = await Promise.all(
    mayCome(deps, vm).map(async (o) => ({ ...o, is: (await deps.store.get(volumeKind, o.volume))?.value })),
  )
  const coming = found.flatMap(({ name, is }) =>
    is?.moving_to?.job === job ? [{ name, is, to: is.moving_to.pool }] : [],
  )
  return coming.map(({ name, is, to }) => {
    const pool = poolOf(deps, to)
    if (!reaches(deps, pool) || pool.id === is.pool)
      throw fail('not_owner', `The disk "${name}" was to come into "${pool.name}", which is no pool for it here.`)
    const { id, format, size_bytes, role } = is
    const base = coming.find((c) => c.is.id === is.base && c.to === to)?.is
    const volume = {
      id,
      pool: pool.id,
      format,
      size_bytes,
      ...(base ? { base: { id: base.id, format: base.format } } : {}),
    }
    const promised_bytes = is.moving_to?.bytes ?? size_bytes
    return { name, pool: poolDefinition(pool), volume, promised_bytes, ...(role === undefined ? {} : { held: role }) }
  })
}

/** Disks, without what snapshots hold. */
export const topsOf = (rooms: readonly Room[]): Room[] => rooms.filter((r) => !r.held)

/** On the target: what layers that came take, bytes. What can't be looked at is left out. */
export async function layerBytes(deps: Deps, rooms: readonly Room[]): Promise<Record<string, number>> {
  const took: Record<string, number> = {}
  for (const { pool, volume, held } of rooms)
    if (held === 'layer')
      await deps.machine.volumes.allocatedBytes(pool, volume).then(
        (bytes) => (took[volume.id] = bytes),
        () => undefined,
      )
  return took
}

/** A disk's room, then those of the layers that come along below it. */
export function layersOf(rooms: readonly Room[], top: Room): Room[] {
  const chain = [top]
  for (let next = top.volume.base; next; next = chain.at(-1)?.volume.base) {
    const below = rooms.find((r) => r.volume.id === next?.id)
    if (!below || chain.length > rooms.length) break
    chain.push(below)
  }
  return chain
}

/** Making a place for a volume or a VM and sweeping such places meet here: what is being filled must not be taken for a leftover. */
let last: Promise<unknown> = Promise.resolve()
export function alone<T>(work: () => Promise<T>): Promise<T> {
  const mine = last.then(work, work)
  last = mine.catch(() => undefined)
  return mine
}

/** Empty volumes, on their layers, whatever an earlier try left in their place. `expected` rejects when the VM does not come any more. */
export async function makeRooms(
  deps: Deps,
  rooms: readonly Room[],
  uid: number,
  expected: () => Promise<unknown>,
  signal: AbortSignal,
): Promise<void> {
  const { volumes } = deps.machine
  await alone(async () => {
    // Not only before: it may have been given up, and swept, while this waited for its turn.
    await expected()
    signal.throwIfAborted()
    for (const { pool, volume, name } of rooms.filter((r) => r.held))
      if (!(await volumes.exists(pool, volume)))
        throw fail('gone', `What was brought of its snapshots (${name}) is not there any more.`, {
          remedy: 'move it again',
        })
    for (const room of topsOf(rooms)) {
      const { pool, volume } = room
      const below = layersOf(rooms, room)[1]
      await volumes.delete(pool, volume)
      if (below) await volumes.clone(pool, below, volume, 'linked', { signal })
      else await volumes.create(pool, volume, { signal })
      await volumes.grant(pool, volume, { uid })
    }
  })
}

/**
 * What came here by a move that came to nothing goes. Looked at anew before each file: where this takes long, the VM may be on its way here again
 * by another job, whose files have the same names.
 */
export async function dropArrival(deps: Deps, job: string, vm: string, rooms: readonly Room[]): Promise<void> {
  const { store, hostId, machine } = deps
  const isNobodys = async () => {
    const placement = (await store.get(placementKind, vm))?.value
    return placement?.host !== hostId && !(placement?.handover?.to === hostId && placement.handover.job !== job)
  }
  await alone(async () => {
    for (const { pool, volume } of rooms) {
      if (!(await isNobodys())) return
      await machine.volumes.delete(pool, volume)
    }
    if (await isNobodys()) await machine.forget(vm)
  })
}

/** On the source, once they are elsewhere: the copies here go. */
export async function dropMoved(deps: Deps, disks: readonly DiskMove[]): Promise<void> {
  for (const { volume: id, from, format } of disks) {
    const volume = (await deps.store.get(volumeKind, id))?.value
    const pool = (await deps.store.get(poolKind, from))?.value
    // Deleted meanwhile, over there: what is here is nobody's all the same.
    if (!pool || volume?.pool === from) continue
    await deps.machine.volumes.delete(poolDefinition(pool), { id, format })
  }
}

/** What a move that ended without success left on the host where it was to go. */
export async function askToSweep(deps: Deps, host: string): Promise<void> {
  await deps
    .askHost?.(host, LEFTOVERS_PATH, {}, ASK_MS)
    .catch((error: unknown) => deps.log(`leftovers on ${hostName(deps.view, host)}: ${(error as Error).message}`))
}

/**
 * What moves left on this host: QEMUs that wait for a guest that does not come, and files of volumes that lie on another host. The store
 * says what is so: a move that is still noted there may go on.
 * @returns how many things stay for now: the host that should have them did not answer, or a QEMU here still has them open
 */
export async function sweepMoves(deps: Deps): Promise<number> {
  await caughtUp(deps)
  let later = 0
  const { machine } = deps
  const waiting = new Set<string>()
  for (const vm of await machine.known()) {
    // Somebody else may just be ending it. One that can't be looked at must not keep the others from it.
    const found = await sweepQemu(deps, vm).catch((error: unknown) => {
      deps.log(`${vm}: what a move left of it is looked at again later: ${toFault(error).detail}`)
      later += 1
      return 'waits' as const
    })
    if (found === 'waits') waiting.add(vm)
  }
  for (const { value: pool } of deps.view.list(poolKind)) {
    if (pool.shared || pool.host !== deps.hostId) continue
    for (const file of await machine.volumes.list(poolDefinition(pool))) {
      if ((await alone(() => sweepFile(deps, pool, file, waiting))) === 'later') later += 1
    }
  }
  return later
}

/** Of one VM: its QEMU, if it waits here for a guest that does not come, and its folder. @returns whether a QEMU here still has its disks */
async function sweepQemu(deps: Deps, vm: string): Promise<'waits' | 'nothing'> {
  const { migration } = deps.machine
  const placement = (await deps.store.get(placementKind, vm))?.value
  if (placement?.host === deps.hostId) return 'nothing'
  const is = await migration.ask(vm)
  if (is.is === 'gone') {
    await alone(() => sweepFolder(deps, vm))
    return 'nothing'
  }
  if (is.is !== 'there' || is.status === 'running' || is.job === undefined || placement?.handover?.job === is.job)
    return 'waits'
  const arriving = await migration.rejoinArriving(vm, is.job)
  if (!arriving) return 'waits'
  await arriving.undo()
  await deps.machine.forget(vm)
  deps.log(`${vm}: a QEMU waited for it, and it does not come: ended`)
  return 'nothing'
}

/** At a start: again, ever less often, while something stays that may go. */
export async function sweepMovesUntilDone(deps: Deps, signal: AbortSignal): Promise<void> {
  for (let pause_ms = AGAIN_MS.first; (await sweepMoves(deps)) > 0; pause_ms = Math.min(pause_ms * 2, AGAIN_MS.most))
    await sleep(deps.clock, pause_ms, signal)
}

/** Of a VM that lies on another host, and is not on its way: its files here are of a move that came to nothing. */
async function sweepFolder(deps: Deps, vm: string): Promise<void> {
  const placement = (await deps.store.get(placementKind, vm))?.value
  if (!placement || placement.host === deps.hostId || placement.handover?.to === deps.hostId) return
  await forgetElsewhere(deps, vm)
}

/** What is here of a VM that is another host's goes, unless somebody still needs it. */
export async function forgetElsewhere(deps: Deps, vm: string): Promise<void> {
  // One that has just left is tidied up by the job that moved it.
  if (await isOursAtWork(deps, vm)) return
  if (!(await isWhereItBelongs(deps, vm))) return
  await deps.machine.forget(vm)
  deps.log(`${vm}, which is not on this host, had left something here; it is gone`)
}

/** A job of this host is at work on it. */
async function isOursAtWork(deps: Deps, vm: string): Promise<boolean> {
  const claim = (await deps.store.get(claimKind, `vm/${vm}`))?.value.job
  return claim !== undefined && (await deps.store.get(jobKind, claim))?.value.executor.host === deps.hostId
}

/**
 * Before something is taken away because the store has it on another host: that host says that it is there. A store that was put back
 * from an older copy may say what was so then, and what lies here may be all there is. Silence is no yes.
 */
async function isThere(
  deps: Deps,
  host: string,
  what: { vm: string } | { volume: string },
): Promise<'yes' | 'no' | 'silent'> {
  const answer = await deps.askHost?.<{ there?: boolean }>(host, HAS_PATH, what, HAS_MS).catch(() => undefined)
  return answer === undefined ? 'silent' : answer.there === true ? 'yes' : 'no'
}

/** Whether the host of this VM has what only a host can have of it: UEFI variables, a TPM. Of one that has neither nothing can be lost. */
export async function isWhereItBelongs(deps: Deps, vm: string): Promise<boolean> {
  const record = (await deps.store.get(vmKind, vm))?.value
  const placement = (await deps.store.get(placementKind, vm))?.value
  if (!placement || placement.host === deps.hostId || !record) return true
  if (!hasOwnState(deps.view, record)) return true
  const there = (await isThere(deps, placement.host, { vm })) === 'yes'
  if (!there) deps.log(`what ${vm} keeps here stays: its host does not say that it has it`)
  return there
}

/** Of a host that would take away its copy. */
export async function answerHas(deps: Deps, body: unknown): Promise<{ there: boolean }> {
  const { vm, volume: id } = (body ?? {}) as { vm?: unknown; volume?: unknown }
  if (typeof vm === 'string') return { there: (await deps.machine.known()).includes(vm) }
  const volume = typeof id === 'string' ? (await deps.store.get(volumeKind, id))?.value : undefined
  if (!volume) return { there: false }
  const pool = poolOf(deps, volume.pool)
  return { there: reaches(deps, pool) && (await deps.machine.volumes.exists(poolDefinition(pool), volume)) }
}

async function sweepFile(
  deps: Deps,
  pool: PoolRecord,
  file: { id: string; format: 'qcow2' | 'raw' },
  waiting: ReadonlySet<string>,
): Promise<'later' | undefined> {
  const volume = (await deps.store.get(volumeKind, file.id))?.value
  if (!volume || volume.pool === pool.id || volume.moving_to?.pool === pool.id) return undefined
  const owner = deps.view.get(poolKind, volume.pool)?.value
  if (!owner || owner.shared || owner.host === deps.hostId) return undefined
  if (volume.vm !== undefined && waiting.has(volume.vm)) return 'later'
  const there = await isThere(deps, owner.host, { volume: volume.id })
  if (there !== 'yes') {
    deps.log(
      `the file of the volume ${volume.name} stays: ${owner.name}, where the store has it, does not say that it is there`,
    )
    return there === 'silent' ? 'later' : undefined
  }
  await deps.machine.volumes.delete(poolDefinition(pool), file)
  deps.log(`the file of the volume ${volume.name}, which lies in ${owner.name}, was left over and is gone`)
  return undefined
}
