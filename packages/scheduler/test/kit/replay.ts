/**
 * Carries a plan out on paper, in an order of its own, and counts everything anew at every step. Shares nothing with the planner but the
 * types: a mistake in its books is not repeated here.
 */
import type { Action } from '../../src/plan.ts'
import { without } from './world.ts'
import type { Rule, Selector, Snapshot, VmView } from '../../src/snapshot.ts'

type Where = Map<string, Set<string>>

const names = (who: Selector, it: { id: string; labels: Readonly<Record<string, string>> }): boolean =>
  (who.ids ?? []).includes(it.id) ||
  (who.labels !== undefined && Object.entries(who.labels).every(([k, v]) => it.labels[k] === v))
const runs = (vm: VmView): boolean => vm.state !== 'stopped' && vm.state !== 'absent'

function begin(s: Snapshot): Where {
  const where: Where = new Map()
  for (const vm of s.vms) where.set(vm.id, new Set(vm.host === undefined ? [] : [vm.host]))
  for (const move of s.moving) {
    where.get(move.vm)?.add(move.from)
    where.get(move.vm)?.add(move.to)
  }
  return where
}

function promised(s: Snapshot, where: Where, host: string): number {
  const vms = s.vms.filter((vm) => runs(vm) && where.get(vm.id)?.has(host))
  const reserved = s.reserved.filter((r) => r.host === host)
  return [...vms, ...reserved].reduce((sum, it) => sum + it.memory_mib, 0)
}

/** Pairs that a strict rule keeps apart and that are on one host all the same. */
function tooNear(s: Snapshot, where: Where): Set<string> {
  const found = new Set<string>()
  for (const rule of s.rules.filter((r) => r.strict && r.kind === 'apart')) {
    const members = s.vms.filter((vm) => names(rule.vms, vm))
    for (const a of members)
      for (const b of members)
        if (a.id < b.id)
          for (const host of where.get(a.id) ?? [])
            if (where.get(b.id)?.has(host)) found.add(`${rule.id} ${a.id} ${b.id} ${host}`)
  }
  return found
}

const spread = (s: Snapshot, where: Where, rule: Rule): number =>
  new Set(s.vms.filter((vm) => names(rule.vms, vm)).flatMap((vm) => [...(where.get(vm.id) ?? [])])).size

/**
 * What goes wrong when the actions are begun and ended in the order that `pick` says, each only when its `after` have ended. In the
 * end all of them are done. @param pick a number in 0 … n−1 for n @param open a host that may be taken as up
 */
export function replay(s: Snapshot, actions: readonly Action[], pick: (n: number) => number, open?: string): string[] {
  const wrong: string[] = []
  const where = begin(s)
  const capacity = (id: string) => {
    const h = s.hosts.find((one) => one.id === id)
    return h ? Math.floor(h.memory_mib * (h.memory_overcommit ?? 1)) - h.reserved_mib : 0
  }
  const known = new Map(s.hosts.map((h) => [h.id, Math.max(0, (h.promised_mib ?? 0) - promised(s, where, h.id))]))
  const near = tooNear(s, where)
  const before = new Map(s.rules.map((rule) => [rule.id, spread(s, where, rule)]))
  const room = new Map(s.hosts.flatMap((h) => h.pools.map((p): [string, number] => [p.id, p.free_bytes ?? -1])))
  for (const r of s.reserved)
    for (const [pool, bytes] of Object.entries(r.pools ?? {})) room.set(pool, (room.get(pool) ?? 0) - bytes)

  const running = new Set<number>()
  const ended = new Set<number>()
  const check = (i: number) => {
    const action = actions[i] as Action
    const { to } = action
    const most = capacity(to) - (known.get(to) ?? 0)
    if (runs(s.vms.find((v) => v.id === action.vm) as VmView) && promised(s, where, to) > most)
      wrong.push(`${to}: ${promised(s, where, to)} MiB promised of ${most} with action ${i}`)
    for (const pair of tooNear(s, where)) if (!near.has(pair)) wrong.push(`too near: ${pair}`)
  }
  actions.forEach((action, i) => {
    const vm = s.vms.find((v) => v.id === action.vm)
    const target = s.hosts.find((h) => h.id === action.to)
    if (!vm || !target) return wrong.push(`action ${i}: no such VM or host`)
    if (s.hosts.find((h) => h.id === action.from)?.state === 'down') wrong.push(`action ${i}: from a host that is down`)
    if (vm.host !== action.from || action.from === action.to) wrong.push(`action ${i}: not from where it is`)
    if (target.state !== 'up' && !(target.id === open && target.state !== 'down'))
      wrong.push(`action ${i}: ${target.state}`)
    if (action.after.some((j) => j >= i)) wrong.push(`action ${i}: after a later one`)
    if ((action.mode === 'live') !== runs(vm)) wrong.push(`action ${i}: ${action.mode}`)
    if (vm.passthrough?.length || vm.held || s.moving.some((m) => m.vm === vm.id))
      wrong.push(`action ${i}: cannot move`)
    if (vm.pinned !== undefined && vm.pinned !== target.id) wrong.push(`action ${i}: pinned`)
    if (vm.networks.some((n) => !target.networks.includes(n))) wrong.push(`action ${i}: network`)
    if (vm.disks.some((d) => d.shared && !target.pools.some((p) => p.id === d.pool))) wrong.push(`action ${i}: pool`)
    if (vm.accelerator !== undefined && vm.accelerator !== target.accelerator) wrong.push(`action ${i}: accelerator`)
    if ((vm.cpu_flags ?? []).some((f) => !target.cpu_flags.includes(f))) wrong.push(`action ${i}: flags`)
    if (action.disks.length !== vm.disks.filter((d) => !d.shared).length) wrong.push(`action ${i}: disks`)
    for (const d of action.disks) {
      room.set(d.to_pool, (room.get(d.to_pool) ?? -1) - d.bytes)
      if ((room.get(d.to_pool) ?? -1) < 0) wrong.push(`action ${i}: no room in ${d.to_pool}`)
      if (!target.pools.some((p) => p.id === d.to_pool && !p.shared)) wrong.push(`action ${i}: foreign pool`)
    }
    for (const rule of s.rules) {
      if (!rule.strict || !names(rule.vms, vm)) continue
      if (rule.kind === 'on' && !names(rule.hosts, target)) wrong.push(`action ${i}: ${rule.id}`)
      if (rule.kind === 'not_on' && names(rule.hosts, target)) wrong.push(`action ${i}: ${rule.id}`)
    }
    return 0
  })
  if (new Set(actions.map((a) => a.vm)).size !== actions.length) wrong.push('a VM moves twice')
  while (ended.size < actions.length && wrong.length === 0) {
    const ready = actions.flatMap((a, i) =>
      !running.has(i) && !ended.has(i) && a.after.every((j) => ended.has(j)) ? [i] : [],
    )
    const choices = [...ready, ...running]
    const i = choices[pick(choices.length)] as number
    const action = actions[i] as Action
    if (running.delete(i)) {
      ended.add(i)
      where.get(action.vm)?.delete(action.from)
    } else {
      running.add(i)
      where.get(action.vm)?.add(action.to)
      check(i)
    }
  }
  for (const rule of s.rules)
    if (rule.strict && rule.kind === 'together' && spread(s, where, rule) > Math.max(1, before.get(rule.id) ?? 0))
      wrong.push(`${rule.id}: more apart than before`)
  return wrong
}

/** The snapshot after these actions. */
export function carriedOut(s: Snapshot, actions: readonly Action[]): Snapshot {
  const to = new Map(actions.map((a) => [a.vm, a]))
  return {
    ...s,
    history: [
      ...s.history,
      ...actions.map(({ vm, from, to: at }) => ({ vm, from, to: at, at_ms: s.now_ms, ended: 'done' as const })),
    ],
    // What the host said it had promised was true before.
    hosts: s.hosts.map((h) => without(h, 'promised_mib')),
    vms: s.vms.map((vm) => {
      const action = to.get(vm.id)
      if (!action) return vm
      const pools = new Map(action.disks.map((d) => [d.pool, d.to_pool]))
      const disks = vm.disks.map((d) => ({ ...d, pool: d.shared ? d.pool : (pools.get(d.pool) ?? d.pool) }))
      return { ...vm, host: action.to, disks }
    }),
  }
}
