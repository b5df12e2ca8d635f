/** VMs that a strict rule keeps together move as one. */
import type { Compiled, Need } from './compiled.ts'
import { byId } from './snapshot.ts'

export function keptTogether(c: Compiled, need: Need): number[] {
  return need.rules.filter((r) => c.rule(r).rule.strict && c.rule(r).rule.kind === 'together')
}

/** Cuts VMs into the smallest groups of which no strict rule wants two together, in the order of their first ones. Pure. */
export function groupsOf(c: Compiled, needs: readonly Need[]): Need[][] {
  const firstOf = new Map<number, number>()
  const parent = needs.map((_, i) => i)
  const root = (i: number): number => {
    let at = i
    while ((parent[at] ?? at) !== at) at = parent[at] ?? at
    return at
  }
  needs.forEach((need, i) => {
    for (const r of keptTogether(c, need)) {
      const first = firstOf.get(r)
      if (first === undefined) firstOf.set(r, i)
      else {
        const [a, b] = [root(first), root(i)]
        parent[Math.max(a, b)] = Math.min(a, b)
      }
    }
  })
  const groups = new Map<number, Need[]>()
  needs.forEach((need, i) => {
    const at = root(i)
    const group = groups.get(at)
    if (group) group.push(need)
    else groups.set(at, [need])
  })
  return [...groups.values()]
}

/** Running ones first, the big ones before the small, for those are hard to find room for. */
export function bigFirst(a: Need, b: Need): number {
  return Number(b.live) - Number(a.live) || b.memory_mib - a.memory_mib || byId(a.vm.id, b.vm.id)
}
