/** Takes back what a drain did: VMs that are still where it put them go home. */
import { Books } from './books.ts'
import { Compiled, type Need } from './compiled.ts'
import { whyStuck } from './fits.ts'
import { unknownHost, waitsOf } from './drain.ts'
import { groupsOf } from './groups.ts'
import { type Blocker, Draft, type HostPlan, type PlanOptions } from './plan.ts'
import { type Problem, explain } from './reasons.ts'
import { type Snapshot, byId } from './snapshot.ts'

/** A move that was made: `vm`, `from` and `to` of an action. */
export type Moved = { vm: string; from: string; to: string }

/**
 * Plans the way back, last moved first. The host counts as up although it is being emptied or in maintenance. A VM that is not where the
 * drain put it, or that does not fit any more, stays and is a blocker. Pure. @param moved the moves that ended well, in their order
 */
export function undrain(s: Snapshot, host: string, moved: readonly Moved[], o: PlanOptions = {}): HostPlan {
  const c = new Compiled(s)
  const h = c.at(host)
  if (h < 0) return unknownHost(c, host, o)
  const draft = new Draft(new Books(c), { open: h })
  const blockers: Blocker[] = []
  const home = new Map<string, string>()
  const needs: Need[] = []
  const stay = (vm: string, name: string, why: readonly Problem[]) =>
    blockers.push({ vm, name, reasons: why.map((p) => explain(p, name)), nearest: [], counts: {} })
  for (const { vm: id, from, to } of moved.toReversed()) {
    if (home.has(id)) continue
    home.set(id, from)
    const vm = c.vm(id)
    if (!vm) {
      stay(id, id, [{ code: 'vm_gone', vm: id }])
      continue
    }
    if (vm.host === from) continue
    if (vm.host !== to) {
      stay(id, vm.name, [{ code: 'moved_since', now: vm.host === undefined ? 'nowhere' : c.hostName(vm.host) }])
      continue
    }
    if (c.at(from) < 0 || c.at(to) < 0) {
      const gone = explain({ code: 'host_not_known' }, vm.name, c.at(from) < 0 ? from : to)
      blockers.push({ vm: id, name: vm.name, reasons: [gone], nearest: [], counts: {} })
      continue
    }
    const stuck = whyStuck(c, vm)
    if (stuck.length > 0) stay(id, vm.name, stuck)
    else needs.push(c.need(vm))
  }
  let left = groupsOf(c, needs).flatMap((group) => sameWay(group, home))
  // One that goes home may make room for the next: until nothing moves any more.
  for (let before = -1; before !== left.length; ) {
    before = left.length
    left = left.filter((group) => draft.move(group, c.at(home.get(group[0]?.vm.id ?? ''))) !== undefined)
  }
  for (const { vm } of left.flat()) {
    const to = c.at(home.get(vm.id))
    const refusal = draft.refusal(c.need(vm), to)
    blockers.push({ vm: vm.id, name: vm.name, reasons: refusal.reasons, nearest: [refusal], counts: {} })
  }
  blockers.sort((a, b) => byId(a.vm, b.vm))
  const { actions, eta } = draft.finish(h, o)
  const waits = waitsOf(c, h)
  const name = c.host(h).name
  const staying = blockers.length === 0 ? '' : `; ${blockers.length} stay where they are`
  return {
    host,
    actions,
    blockers,
    waits,
    eta,
    complete: blockers.length === 0,
    detail:
      actions.length > 0
        ? `${actions.length === 1 ? '1 move' : `${actions.length} moves`} back to how ${name} was${staying}.`
        : `Nothing to move back to ${name}${staying}.`,
  }
}

/** A group that did not come from one host goes home one by one. */
function sameWay(group: Need[], home: ReadonlyMap<string, string>): Need[][] {
  const same = group.every(
    ({ vm }) => home.get(vm.id) === home.get(group[0]?.vm.id ?? '') && vm.host === group[0]?.vm.host,
  )
  return same ? [group] : group.map((need) => [need])
}
