/** What is promised where: the part that changes while a plan is made. */
import type { Compiled, Need } from './compiled.ts'
import { STOPPED_WEIGHT, ASSUMED_VCPU_USE, fullness, hostCores } from './load.ts'
import { lifeOf } from './snapshot.ts'

/** Bytes taken from local pools by a VM's disks: id of the pool → bytes. */
export type PoolUse = ReadonlyMap<string, number>

export class Books {
  readonly c: Compiled
  /** MiB that may be promised per host, by its place in `hosts`. */
  readonly #capacity: Float64Array
  readonly #taken: Float64Array
  readonly #stopped: Float64Array
  readonly #cores: Float64Array
  /** Id of a pool → what may still be promised of it; pools whose room is not known are not in it. */
  readonly #room: Map<string, number>
  /** Per rule: host → how many of its VMs count there. */
  readonly #counts: Map<number, number>[]
  /** VM → hosts it counts on. */
  readonly #where: Map<string, readonly number[]>

  constructor(from: Compiled | Books) {
    if (from instanceof Books) {
      this.c = from.c
      this.#capacity = from.#capacity
      this.#taken = from.#taken.slice()
      this.#stopped = from.#stopped.slice()
      this.#cores = from.#cores.slice()
      this.#room = new Map(from.#room)
      this.#counts = from.#counts.map((counts) => new Map(counts))
      this.#where = new Map(from.#where)
      return
    }
    this.c = from
    const n = from.hosts.length
    this.#capacity = Float64Array.from(from.hosts, (host) =>
      Math.max(0, Math.floor(host.memory_mib * (host.memory_overcommit ?? 1)) - host.reserved_mib),
    )
    this.#taken = new Float64Array(n)
    this.#stopped = new Float64Array(n)
    this.#cores = new Float64Array(n)
    this.#room = new Map()
    this.#counts = from.rules.map(() => new Map<number, number>())
    this.#where = new Map()
    this.#open()
  }

  #open(): void {
    const { c } = this
    for (const host of c.hosts)
      for (const pool of host.pools) {
        if (pool.free_bytes === undefined) continue
        // A shared pool is seen by many: the least of what they say.
        this.#room.set(pool.id, Math.min(this.#room.get(pool.id) ?? Number.POSITIVE_INFINITY, pool.free_bytes))
      }
    const vcpus = new Float64Array(c.hosts.length)
    for (const vm of c.vms) {
      const h = c.at(vm.host)
      if (h < 0) continue
      this.put(c.need(vm), h)
      if (c.need(vm).live) vcpus[h] = (vcpus[h] ?? 0) + vm.cpus
    }
    // What was measured holds those that are there already; arrivals come on top.
    c.hosts.forEach((host, h) => {
      this.#cores[h] = hostCores(host, vcpus[h] ?? 0, c.now_ms)
    })
    for (const move of c.moving) {
      const vm = c.vm(move.vm)
      if (!vm) continue
      for (const id of [move.from, move.to]) {
        const h = c.at(id)
        if (h >= 0 && !this.isAt(vm.id, h)) this.put(c.need(vm), h)
      }
    }
    for (const r of c.reserved) {
      const h = c.at(r.host)
      if (h < 0) continue
      for (const [pool, bytes] of Object.entries(r.pools ?? {})) this.#use(pool, bytes)
      const vm = r.vm === undefined ? undefined : c.vm(r.vm)
      if (vm && lifeOf(vm.state) !== 'cold' && this.isAt(vm.id, h)) continue
      this.#add(this.#taken, h, r.memory_mib)
      this.#add(this.#cores, h, r.cpus * ASSUMED_VCPU_USE)
    }
    c.hosts.forEach((host, h) => {
      this.#taken[h] = Math.max(this.#taken[h] ?? 0, host.promised_mib ?? 0)
    })
  }

  #add(to: Float64Array, h: number, amount: number): void {
    to[h] = (to[h] ?? 0) + amount
  }

  #use(pool: string, bytes: number): void {
    const room = this.#room.get(pool)
    if (room !== undefined) this.#room.set(pool, room - bytes)
  }

  /** Counts a VM on a host, besides where it counts already. */
  put(need: Need, h: number, pools?: PoolUse): void {
    this.#count(need, h, 1)
    this.#where.set(need.vm.id, [...this.where(need.vm.id), h])
    for (const [pool, bytes] of pools ?? []) this.#use(pool, bytes)
  }

  /** It counts there no longer. The room of its local disks is not given back: they are deleted later, if at all. */
  take(need: Need, h: number): void {
    this.#count(need, h, -1)
    const left = this.where(need.vm.id).filter((at) => at !== h)
    if (left.length === 0) this.#where.delete(need.vm.id)
    else this.#where.set(need.vm.id, left)
  }

  /** Undoes a `put` that was only tried. */
  putBack(need: Need, h: number, pools?: PoolUse): void {
    this.take(need, h)
    for (const [pool, bytes] of pools ?? []) this.#use(pool, -bytes)
  }

  #count(need: Need, h: number, sign: 1 | -1): void {
    this.#add(need.live ? this.#taken : this.#stopped, h, sign * need.memory_mib)
    this.#add(this.#cores, h, sign * need.cores)
    for (const r of need.rules) {
      const counts = this.#counts[r]
      if (!counts) continue
      const now = (counts.get(h) ?? 0) + sign
      if (now === 0) counts.delete(h)
      else counts.set(h, now)
    }
  }

  where(vm: string): readonly number[] {
    return this.#where.get(vm) ?? NOWHERE
  }
  isAt(vm: string, h: number): boolean {
    return this.where(vm).includes(h)
  }
  /** MiB that may be promised in all. */
  capacity(h: number): number {
    return this.#capacity[h] ?? 0
  }
  /** MiB that may still be promised; less than 0 where too much is promised already. */
  free(h: number): number {
    return this.capacity(h) - (this.#taken[h] ?? 0)
  }
  room(pool: string): number | undefined {
    return this.#room.get(pool)
  }
  /** How many VMs of a rule count on a host, this one left out. */
  mates(r: number, h: number, except: string): number {
    return (this.#counts[r]?.get(h) ?? 0) - (this.isAt(except, h) ? 1 : 0)
  }
  /** Whether any other VM of a rule counts anywhere. */
  hasMates(r: number, except: string): boolean {
    for (const h of this.#counts[r]?.keys() ?? []) if (this.mates(r, h, except) > 0) return true
    return false
  }

  /** Shares of a host's memory and cores that would be in use with this VM on it, and the one number for both. */
  with(need: Need, h: number): { memory: number; cpu: number; score: number } {
    const capacity = Math.max(1, this.capacity(h))
    const taken = (this.#taken[h] ?? 0) + (need.live ? need.memory_mib : 0)
    const stopped = (this.#stopped[h] ?? 0) + (need.live ? 0 : need.memory_mib)
    const cpu = Math.max(0, (this.#cores[h] ?? 0) + need.cores) / Math.max(1, this.c.host(h).cpus)
    return { memory: taken / capacity, cpu, score: fullness((taken + STOPPED_WEIGHT * stopped) / capacity, cpu) }
  }
}

const NOWHERE: readonly number[] = []
