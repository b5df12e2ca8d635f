/** Whether a VM fits a host, and everything that is in the way. */
import { Books } from './books.ts'
import { Compiled, type Need } from './compiled.ts'
import { type Problem, type Reason, explain } from './reasons.ts'
import { type DiskView, type HostView, type PoolView, type Snapshot, type VmView, lifeOf } from './snapshot.ts'

/** A local disk that is copied into another pool. `bytes`: room for it; `send_bytes`: what of it is sent, where that is known. */
export type DiskCopy = { pool: string; to_pool: string; bytes: number; send_bytes?: number }

/** What a plan takes for granted about hosts. */
export type States = {
  /** Nothing is put there, whatever its state. */
  closed?: number
  /** It counts as up although it is being emptied or in maintenance. */
  open?: number
}

/**
 * Why this VM cannot be on this host; `[]`: it can. For a VM that is in the snapshot its move there is looked at; on its own host, whether
 * it may start there. @param start it is to run there although it does not run now
 */
export function fits(s: Snapshot, vm: VmView, host: string, o: { start?: boolean } = {}): Reason[] {
  const c = new Compiled(s)
  const h = c.at(host)
  if (h < 0) return [explain({ code: 'host_not_known' }, vm.name, host)]
  const books = new Books(c)
  const need = c.need(vm, o.start)
  if (vm.host === host) {
    const there = c.vm(vm.id)
    if (there && books.isAt(vm.id, h)) books.take(c.need(there), h)
  }
  const problems = vm.host === undefined || vm.host === host ? [] : whyStuck(c, vm)
  eachProblem(books, books, need, h, {}, (p) => problems.push(p) < 0)
  return problems.map((p) => explain(p, vm.name, c.host(h).name))
}

/** What keeps a VM where it is, whatever the host. */
export function whyStuck(c: Compiled, vm: VmView): Problem[] {
  const found: Problem[] = []
  const own = c.at(vm.host)
  if (own >= 0 && c.host(own).state === 'down') found.push({ code: 'source_down', on: c.host(own).name })
  const to = c.movingTo(vm.id)
  if (to !== undefined) found.push({ code: 'vm_moving', to: c.hostName(to) })
  else if (lifeOf(vm.state) === 'between') found.push({ code: 'vm_busy', state: vm.state })
  if (vm.passthrough?.length) found.push({ code: 'passthrough', devices: [...vm.passthrough] })
  if (vm.held) found.push({ code: 'held', ...vm.held })
  if (vm.pinned !== undefined && vm.pinned === vm.host) found.push({ code: 'pinned', to: c.hostName(vm.pinned) })
  return found
}

export function firstProblem(now: Books, worst: Books, need: Need, h: number, states: States): Problem | undefined {
  let first: Problem | undefined
  const keep = (p: Problem) => {
    first = p
    return true
  }
  eachProblem(now, worst, need, h, states, keep, true)
  return first
}

/**
 * Hands out every problem of a VM with a host, quick ones first, until `found` returns true. `whyStuck` is apart: it has no host.
 * @param worst what would be promised if nothing of the plan had left its place yet; `now` itself where that does not matter
 * @param brief without the names of other VMs, which take a while to find
 */
export function eachProblem(
  now: Books,
  worst: Books,
  need: Need,
  h: number,
  states: States,
  found: (p: Problem) => boolean,
  brief = false,
): void {
  const { c } = now
  const { vm } = need
  const host = c.host(h)
  const own = vm.host === host.id
  const state = stateProblem(host, h, states)
  if (state && found(state)) return
  if (vm.pinned !== undefined && vm.pinned !== host.id && vm.pinned !== vm.host) {
    if (found({ code: 'pinned', to: c.hostName(vm.pinned) })) return
  }
  if (need.live) {
    const free = Math.min(now.free(h), worst.free(h))
    const [of, left] =
      need.memory_mib > now.capacity(h) ? (['all', now.capacity(h)] as const) : (['free', free] as const)
    if (need.memory_mib > left) {
      const p: Problem = { code: 'no_room_memory', needed_mib: need.memory_mib, free_mib: Math.max(0, left), of }
      if (found(p)) return
    }
  } else if (need.memory_mib > now.capacity(h)) {
    const p: Problem = { code: 'no_room_memory', needed_mib: need.memory_mib, free_mib: now.capacity(h), of: 'all' }
    if (found(p)) return
  }
  const shape = c.shapeOf(need)
  for (const p of (shape[h] ??= missing(c, vm, h))) if (found(p)) return
  if (need.local_disks.length > 0 && !own) {
    const copies = copiesOf(worst, need, h)
    if (!Array.isArray(copies) && found(copies)) return
  }
  for (const r of need.rules) {
    const { rule } = c.rule(r)
    if (!rule.strict) continue
    const p = ruleProblem(rule.kind === 'apart' ? worst : now, need, h, r, brief)
    if (p && found(p)) return
  }
}

function stateProblem(host: HostView, h: number, states: States): Problem | undefined {
  if (h === states.closed) return { code: host.state === 'maintenance' ? 'host_maintenance' : 'host_draining' }
  if (host.state === 'up') return undefined
  if (host.state === 'down') return { code: 'host_down' }
  if (h === states.open) return undefined
  return { code: host.state === 'maintenance' ? 'host_maintenance' : 'host_draining' }
}

/** What this kind of VM finds lacking on a host; depends on nothing that is in `Compiled`'s key of a shape. */
function missing(c: Compiled, vm: VmView, h: number): Problem[] {
  const found: Problem[] = []
  const host = c.host(h)
  const sets = c.sets[h]
  if (!sets) return found
  const named = (ids: Iterable<string>) => [...new Set(ids)].sort().map((id) => c.name(id))
  const pools = vm.disks.filter((disk) => disk.shared && !sets.pools.has(disk.pool)).map((disk) => disk.pool)
  const away = pools.filter((id) => host.pools_refused?.[id] === undefined)
  if (away.length > 0) found.push({ code: 'pool_not_reached', pools: named(away) })
  for (const id of new Set(pools)) {
    const why = host.pools_refused?.[id]
    if (why) found.push({ code: 'pool_not_reached', pools: named([id]), why })
  }
  const networks = vm.networks.filter((id) => !sets.networks.has(id))
  if (networks.length > 0) found.push({ code: 'network_not_there', networks: named(networks) })
  if (vm.accelerator !== undefined && vm.accelerator !== host.accelerator)
    found.push({ code: 'accelerator_differs', vm_has: vm.accelerator, host_has: host.accelerator })
  const flags = (vm.cpu_flags ?? []).filter((flag) => !sets.flags.has(flag))
  if (flags.length > 0) found.push({ code: 'cpu_flags_missing', flags: [...new Set(flags)].sort() })
  if (vm.machine !== undefined && sets.machines && !sets.machines.has(vm.machine))
    found.push({ code: 'machine_type_missing', machine: vm.machine })
  if (vm.qemu_version !== undefined && olderQemu(host.qemu_version, vm.qemu_version))
    found.push({ code: 'qemu_older', vm_has: vm.qemu_version, host_has: host.qemu_version })
  return found
}

/** By major and minor alone, as `olderQemu` in packages/api: a type is all that may be imported from there. */
function olderQemu(a: string, b: string): boolean {
  const [x, y] = [a, b].map((version) =>
    version
      .split(/[^0-9]+/)
      .filter(Boolean)
      .map(Number),
  )
  for (let i = 0; i < 2; i++) {
    const [m, n] = [x?.[i] ?? 0, y?.[i] ?? 0]
    if (m !== n) return m < n
  }
  return false
}

/** Into which pools of a host its local disks go; or why not. */
export function copiesOf(books: Books, need: Need, h: number): DiskCopy[] | Problem {
  const { c } = books
  const { pools } = c.host(h)
  const copies = choosePools(
    pools,
    need.local_disks,
    (pool) => c.name(pool),
    (pool) => books.room(pool),
  )
  if (copies) return copies
  const needed_bytes = need.local_disks.reduce((sum, d) => sum + d.bytes, 0)
  let free_bytes = 0
  for (const pool of pools) if (!pool.shared) free_bytes = Math.max(free_bytes, books.room(pool.id) ?? 0)
  return { code: 'no_room_disk', needed_bytes, free_bytes }
}

/**
 * For each of these disks the pool of a host where it goes: the one of the same name where there is room, else the usual one, else the
 * roomiest. Undefined when there is none for one of them. Pure; the copies are in the order of the disks.
 * @param nameOf of the pool a disk lies in; @param room bytes that may still be promised of a pool, undefined where nobody knows
 */
export function choosePools(
  pools: readonly PoolView[],
  disks: readonly DiskView[],
  nameOf: (pool: string) => string,
  room: (pool: string) => number | undefined,
): DiskCopy[] | undefined {
  const used = new Map<string, number>()
  const left = (pool: PoolView) =>
    pool.shared ? -1 : (room(pool.id) ?? -1) - (used.size === 0 ? 0 : (used.get(pool.id) ?? 0))
  const copies: DiskCopy[] = []
  for (const disk of disks) {
    const name = nameOf(disk.pool)
    let best: PoolView | undefined
    for (const pool of pools) {
      if (left(pool) < disk.bytes) continue
      if (!best || nearer(pool, best, disk.pool, name, left)) best = pool
    }
    if (!best) return undefined
    used.set(best.id, (used.get(best.id) ?? 0) + disk.bytes)
    copies.push({
      pool: disk.pool,
      to_pool: best.id,
      bytes: disk.bytes,
      ...(disk.used_bytes === undefined ? {} : { send_bytes: Math.min(disk.used_bytes, disk.bytes) }),
    })
  }
  return copies
}

/** The very pool first, then one of its name, then the usual one, then the roomier, then by id. */
function nearer(a: PoolView, b: PoolView, id: string, name: string, left: (pool: PoolView) => number): boolean {
  if ((a.id === id) !== (b.id === id)) return a.id === id
  if ((a.name === name) !== (b.name === name)) return a.name === name
  if ((a.usual === true) !== (b.usual === true)) return a.usual === true
  return left(a) !== left(b) ? left(a) > left(b) : a.id < b.id
}

/** Whether a rule speaks against this host, strict or not. */
export function ruleProblem(books: Books, need: Need, h: number, r: number, brief = false): Problem | undefined {
  const { c } = books
  const { rule, named } = c.rule(r)
  const { id } = need.vm
  const problem = (others: string[]): Problem => {
    return { code: 'affinity', rule: rule.name, kind: rule.kind, strict: rule.strict, others }
  }
  switch (rule.kind) {
    case 'on':
      return named?.[h] === true ? undefined : problem([])
    case 'not_on':
      return named?.[h] === true ? problem([]) : undefined
    case 'apart':
      return books.mates(r, h, id) > 0 ? problem(brief ? [] : matesOf(books, r, id, h)) : undefined
    case 'together':
      if (books.mates(r, h, id) > 0 || !books.hasMates(r, id)) return undefined
      return problem(brief ? [] : matesOf(books, r, id))
  }
}

/** Their names, for the text. @param h only those on this host */
function matesOf(books: Books, r: number, except: string, h?: number): string[] {
  const found: string[] = []
  for (const vm of books.c.members(r)) {
    if (vm.id === except) continue
    const where = books.where(vm.id)
    if (where.length === 0 || (h !== undefined && !where.includes(h))) continue
    found.push(vm.name)
    if (found.length === MOST_NAMES) break
  }
  return found
}
const MOST_NAMES = 5
