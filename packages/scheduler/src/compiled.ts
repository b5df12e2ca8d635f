/** A snapshot, sorted and indexed: what does not change while a plan is made. */
import { expectedCores } from './load.ts'
import type { Problem } from './reasons.ts'
import {
  type DiskView,
  type HostView,
  type Move,
  type Reservation,
  type Rule,
  type Selector,
  type Snapshot,
  type VmView,
  byId,
  lifeOf,
} from './snapshot.ts'

/** How earlier moves ended is remembered this long. */
export const HISTORY_MS = 60 * 60_000

export type CompiledRule = {
  rule: Rule
  /** Of `on` and `not_on`: by the host's place in `hosts`. */
  named?: boolean[]
}

/** What a VM asks of a host, worked out once. */
export type Need = {
  vm: VmView
  /** It takes memory and CPU there. */
  live: boolean
  memory_mib: number
  cores: number
  /** Numbers of the rules that name it. */
  rules: readonly number[]
  local_disks: readonly DiskView[]
  /** What its kind lacks on each host, worked out when it is first asked for; see `shapeOf`. */
  shape?: Shape
}

/** Per host; undefined: not looked at yet. */
export type Shape = (Problem[] | undefined)[]

export class Compiled {
  readonly now_ms: number
  /** By id. */
  readonly hosts: readonly HostView[]
  readonly vms: readonly VmView[]
  readonly moving: readonly Move[]
  readonly reserved: readonly Reservation[]
  readonly rules: readonly CompiledRule[]
  readonly #at = new Map<string, number>()
  readonly #vm = new Map<string, VmView>()
  readonly #targets = new Map<string, string>()
  readonly #members = new Map<number, VmView[]>()
  readonly #byVm = new Map<string, number[]>()
  readonly #byLabel = new Map<string, number[]>()
  readonly #forAll: number[] = []
  readonly #names = new Map<string, string>()
  readonly #moved = new Set<string>()
  readonly #failures = new Map<string, number>()
  readonly #needs = new Map<VmView, Need>()
  readonly #shapes = new Map<string, Shape>()
  /** Per host, for quick answers. */
  readonly sets: readonly {
    pools: Set<string>
    networks: Set<string>
    flags: Set<string>
    machines: Set<string> | undefined
  }[]

  constructor(s: Snapshot) {
    this.now_ms = s.now_ms
    this.hosts = s.hosts.toSorted((a, b) => byId(a.id, b.id))
    this.vms = s.vms.toSorted((a, b) => byId(a.id, b.id))
    this.moving = s.moving.toSorted((a, b) => byId(a.vm, b.vm) || byId(a.to, b.to))
    this.reserved = s.reserved.toSorted(
      (a, b) => byId(a.host, b.host) || byId(a.vm ?? '', b.vm ?? '') || a.memory_mib - b.memory_mib || a.cpus - b.cpus,
    )
    this.hosts.forEach((host, h) => this.#at.set(host.id, h))
    for (const vm of this.vms) this.#vm.set(vm.id, vm)
    for (const move of this.moving) this.#targets.set(move.vm, move.to)
    for (const [id, name] of Object.entries(s.names ?? {})) this.#names.set(id, name)
    for (const host of this.hosts) for (const pool of host.pools) this.#names.set(pool.id, pool.name)
    this.sets = this.hosts.map((host) => ({
      pools: new Set(host.pools.map((pool) => pool.id)),
      networks: new Set(host.networks),
      flags: new Set(host.cpu_flags),
      machines: host.machine_types && new Set(host.machine_types),
    }))
    this.rules = s.rules
      .toSorted((a, b) => byId(a.id, b.id))
      .map((rule) =>
        'hosts' in rule ? { rule, named: this.hosts.map((host) => selects(rule.hosts, host)) } : { rule },
      )
    this.rules.forEach(({ rule }, r) => this.#indexRule(rule.vms, r))
    for (const { vm, to, at_ms, ended } of s.history) {
      if (s.now_ms - at_ms > HISTORY_MS) continue
      if (ended === 'done') this.#moved.add(vm)
      if (ended !== 'failed') continue
      const key = `${vm} ${to}`
      this.#failures.set(key, (this.#failures.get(key) ?? 0) + 1)
    }
  }

  /** A host's place in `hosts`; -1 when there is none. */
  at(host: string | undefined): number {
    return host === undefined ? -1 : (this.#at.get(host) ?? -1)
  }

  host(h: number): HostView {
    const host = this.hosts[h]
    if (!host) throw new RangeError(`there is no host number ${h}`)
    return host
  }

  vm(id: string): VmView | undefined {
    return this.#vm.get(id)
  }

  /** Of a pool or network; its id where nobody said it. */
  name(id: string): string {
    return this.#names.get(id) ?? id
  }

  hostName(id: string): string {
    const h = this.at(id)
    return h < 0 ? id : this.host(h).name
  }

  /** Where it is being moved to. */
  movingTo(vm: string): string | undefined {
    return this.#targets.get(vm)
  }

  failures(vm: string, h: number): number {
    return this.#failures.size === 0 ? 0 : (this.#failures.get(`${vm} ${this.host(h).id}`) ?? 0)
  }

  movedLately(vm: string): boolean {
    return this.#moved.has(vm)
  }

  rule(r: number): CompiledRule {
    const rule = this.rules[r]
    if (!rule) throw new RangeError(`there is no rule number ${r}`)
    return rule
  }

  /** VMs of the snapshot that a rule names. */
  members(r: number): readonly VmView[] {
    const known = this.#members.get(r)
    if (known) return known
    const members = this.vms.filter((vm) => selects(this.rule(r).rule.vms, vm))
    this.#members.set(r, members)
    return members
  }

  /** @param start it is to run there although it does not run now */
  need(vm: VmView, start = false): Need {
    const life = lifeOf(vm.state)
    if (start && life === 'cold') return this.#workOut(vm, true)
    const known = this.#needs.get(vm)
    if (known) return known
    const need = this.#workOut(vm, life !== 'cold')
    this.#needs.set(vm, need)
    return need
  }

  #workOut(vm: VmView, live: boolean): Need {
    return {
      vm,
      live,
      memory_mib: vm.memory_mib,
      cores: expectedCores(vm, live, this.now_ms),
      rules: this.#rulesOf(vm),
      local_disks: vm.disks.filter((disk) => !disk.shared),
    }
  }

  /** What its kind lacks on each host, to be filled in by fits.ts: one table for all VMs that ask for the same. */
  shapeOf(need: Need): Shape {
    if (need.shape) return need.shape
    const { vm } = need
    const shared = vm.disks.filter((disk) => disk.shared).map((disk) => disk.pool)
    // Everything that `missing` in fits.ts looks at, and nothing else.
    const key = JSON.stringify([
      vm.accelerator ?? null,
      vm.machine ?? null,
      vm.qemu_version ?? null,
      shared,
      vm.networks,
      vm.cpu_flags ?? null,
    ])
    let shape = this.#shapes.get(key)
    if (!shape) {
      shape = Array.from({ length: this.hosts.length }, () => undefined)
      this.#shapes.set(key, shape)
    }
    need.shape = shape
    return shape
  }

  #indexRule(who: Selector, r: number): void {
    const put = (map: Map<string, number[]>, key: string) => {
      const there = map.get(key)
      if (there) there.push(r)
      else map.set(key, [r])
    }
    for (const id of new Set(who.ids ?? [])) put(this.#byVm, id)
    if (!who.labels) return
    const first = Object.entries(who.labels)[0]
    if (first) put(this.#byLabel, `${first[0]}=${first[1]}`)
    else this.#forAll.push(r)
  }

  #rulesOf(vm: VmView): readonly number[] {
    if (this.rules.length === 0) return []
    const found = new Set([...this.#forAll, ...(this.#byVm.get(vm.id) ?? [])])
    for (const [key, value] of Object.entries(vm.labels)) {
      for (const r of this.#byLabel.get(`${key}=${value}`) ?? []) if (selects(this.rule(r).rule.vms, vm)) found.add(r)
    }
    return [...found].sort((a, b) => a - b)
  }
}

/** Those named, and those that have all of the labels. Pure. */
export function selects(who: Selector, it: { id: string; labels: Readonly<Record<string, string>> }): boolean {
  if (who.ids?.includes(it.id)) return true
  return who.labels !== undefined && Object.entries(who.labels).every(([key, value]) => it.labels[key] === value)
}
