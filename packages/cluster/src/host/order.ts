/** In which order VMs start with the host and shut down with it. Pure. */
import { AUTOSTART_DEFAULT, type Autostart } from '@wadah/api/schema/vm'

export type Ordered = { vm: string; name: string; order: number; delay_s: number }
export type Group = { order: number; vms: Ordered[]; delay_s: number }

type Known = { id: string; name: string; autostart?: Autostart | undefined }

export function orderedOf({ id, name, autostart }: Known): Ordered {
  const { order, delay_s } = { ...AUTOSTART_DEFAULT, ...autostart }
  return { vm: id, name, order, delay_s }
}

/** Smallest order first; those of one order together, and the longest of their delays before the next. */
export function startGroups(list: readonly Ordered[]): Group[] {
  const orders = [...new Set(list.map((v) => v.order))].sort((a, b) => a - b)
  return orders.map((order) => {
    const vms = list.filter((v) => v.order === order).sort((a, b) => (a.name < b.name ? -1 : 1))
    return { order, vms, delay_s: Math.max(...vms.map((v) => v.delay_s)) }
  })
}

/** What others lean on goes last. */
export function stopGroups(list: readonly Ordered[]): Group[] {
  return startGroups(list).reverse()
}

/** At least this much is kept for each group that is still to come, seconds. */
const LEAST_S = 5

/** How long the guests of a group are given: no longer than each may take, and not what later groups need. Whole seconds, at least 1. */
export function graceOf(o: { left_ms: number; later_groups: number; each_s: number }): number {
  const left_s = Math.floor(o.left_ms / 1000) - o.later_groups * LEAST_S
  return Math.max(1, Math.min(o.each_s, left_s))
}

/**
 * Whether the machine was started anew since it was last seen. A host that was never seen (a new store, a release of before)
 * was not: nothing may start by surprise.
 */
export function rebooted(seen: string | undefined, now: string): boolean {
  return seen !== undefined && seen !== now
}
