/** How to empty a host: every VM that can leave, and for each that can't, why. */
import { Books } from './books.ts'
import { Compiled, type Need } from './compiled.ts'
import { eachProblem, whyStuck } from './fits.ts'
import { bigFirst, groupsOf, keptTogether } from './groups.ts'
import { bestHost } from './place.ts'
import { type Blocker, Draft, type HostPlan, type PlanOptions } from './plan.ts'
import { type Problem, type Reason, explain, helpOf } from './reasons.ts'
import type { Snapshot } from './snapshot.ts'

export type DrainOptions = PlanOptions & {
  /** Whether another VM may be moved to make room; true when not said. */
  two_step?: boolean
}

/** How often packing is tried anew for VMs that were left over, and beyond which size of plan (VMs × hosts) hardly. */
const MOST_TRIES = 6
const BIG_PLAN = 2_000_000
/** Hosts and VMs on them that are looked at to make room for one VM. */
const MOST_LOOKED_AT = 8
/** VMs for which that is tried. */
const MOST_HELPED = 64

/**
 * Plans the moves that empty a host. Never throws for what it finds; a VM that cannot move is a blocker and holds up no other but those
 * that a strict rule keeps with it. To resume after a pause, plan again from a new snapshot. Pure; the same for every order of the input.
 */
export function drain(s: Snapshot, host: string, o: DrainOptions = {}): HostPlan {
  const c = new Compiled(s)
  const h = c.at(host)
  if (h < 0) return unknownHost(c, host, o)
  const books = new Books(c)
  const here = c.vms.filter((vm) => vm.host === host).map((vm) => c.need(vm))
  const blockers: Blocker[] = []
  const waits = waitsOf(c, h)
  const free: Need[] = []
  const stuck: Need[] = []
  for (const need of here) {
    const why = whyStuck(c, need.vm)
    if (why.some((p) => p.code === 'vm_moving')) continue
    if (why.length === 0) free.push(need)
    else {
      stuck.push(need)
      blockers.push(blocked(need, why))
    }
  }
  const groups: Need[][] = []
  for (const group of groupsOf(c, free)) {
    const held = holder(c, group, stuck)
    if (held) for (const need of group) blockers.push(blocked(need, [held]))
    else groups.push(group.toSorted(bigFirst))
  }
  groups.sort((a, b) => bigFirst(a[0] as Need, b[0] as Need))
  const { draft, left } = pack(books, h, groups)
  const over = o.two_step === false ? left : left.filter((group, i) => i >= MOST_HELPED || !makeRoom(draft, group))
  for (const need of over.flat()) blockers.push(draft.blocker(need))
  const { actions, eta } = draft.finish(h, o)
  blockers.sort((a, b) => (a.vm < b.vm ? -1 : 1))
  return {
    host,
    actions,
    blockers,
    waits,
    eta,
    complete: blockers.length === 0 && waits.length === 0,
    detail: sentence(c.host(h).name, here.length, actions.length, blockers, waits.length),
  }
}

function blocked(need: Need, why: readonly Problem[]): Blocker {
  const { vm } = need
  return { vm: vm.id, name: vm.name, reasons: why.map((p) => explain(p, vm.name)), nearest: [], counts: {} }
}

/** One that cannot move and that a strict rule keeps together with this group. */
function holder(c: Compiled, group: readonly Need[], stuck: readonly Need[]): Problem | undefined {
  const rules = new Set(group.flatMap((need) => keptTogether(c, need)))
  for (const need of rules.size === 0 ? [] : stuck) {
    const r = keptTogether(c, need).find((rule) => rules.has(rule))
    if (r !== undefined) return { code: 'held_by_group', rule: c.rule(r).rule.name, by: need.vm.name }
  }
  return undefined
}

type Packed = { draft: Draft; left: Need[][] }

/**
 * Finds hosts for as many as it can. The least loaded host is the best for the guests but may scatter the room that a big one needs; so
 * what is left over is tried again first, and then everything on the fullest hosts that will do. The first of the plans that leave the
 * fewest behind is taken. (Trying what failed first: Joslin and Clements, Squeaky Wheel Optimization, JAIR 10, 1999.)
 */
function pack(books: Books, h: number, groups: readonly Need[][]): Packed {
  const size = groups.length * books.c.hosts.length
  const tries = size > BIG_PLAN ? 1 : MOST_TRIES
  let order = groups
  let best = packOnce(books, h, order, false)
  let last = best
  for (let i = 1; i < tries && best.left.some((group) => hopeful(best.draft, group)); i++) {
    const failed = new Set(last.left)
    // With the fullest hosts it begins anew, in the usual order.
    order = i === MOST_TRIES / 2 ? groups : [...last.left, ...order.filter((group) => !failed.has(group))]
    last = packOnce(books, h, order, i >= MOST_TRIES / 2)
    if (count(last.left) < count(best.left)) best = last
  }
  return best
}

const count = (groups: readonly Need[][]): number => groups.reduce((sum, group) => sum + group.length, 0)

function packOnce(books: Books, h: number, groups: readonly Need[][], tightest: boolean): Packed {
  const draft = new Draft(books, { closed: h })
  const left = groups.filter((group) => !settle(draft, group, tightest))
  return { draft, left }
}

/** Moves a group to its best host. */
function settle(draft: Draft, group: readonly Need[], tightest: boolean): boolean {
  const [need] = group
  if (!need) return true
  if (group.length === 1) {
    const to = bestHost(draft.now, draft.worst, need, draft.states, tightest)
    return to !== undefined && draft.move(group, to) === undefined
  }
  // The order for all of them is that for one VM as big as they are together.
  const own = draft.c.at(need.vm.host)
  const whole = { ...need, memory_mib: sum(group, 'memory_mib'), cores: sum(group, 'cores') }
  const hosts = draft.c.hosts
    .map((_, h) => ({ h, score: tightest ? draft.now.free(h) : draft.now.with(whole, h).score }))
    .filter(({ h }) => h !== own)
    .sort((a, b) => a.score - b.score || a.h - b.h)
  return hosts.some(({ h }) => draft.move(group, h) === undefined)
}

const sum = (group: readonly Need[], what: 'memory_mib' | 'cores'): number =>
  group.reduce((all, need) => all + (need.live ? need[what] : 0), 0)

/** Whether another order might find it a host: somewhere nothing but room or company is in the way. */
function hopeful(draft: Draft, group: readonly Need[]): boolean {
  const [need] = group
  if (!need) return false
  const own = draft.c.at(need.vm.host)
  return draft.c.hosts.some((_, h) => {
    const problem = h === own ? undefined : draft.problem(need, h)
    return problem !== undefined && helpOf(problem.code) === 'room'
  })
}

/** Moves one other VM away so that this one has room: only where that is all it takes. */
function makeRoom(draft: Draft, group: readonly Need[]): boolean {
  const [need] = group
  if (!need?.live || group.length !== 1) return false
  const { c, now, worst } = draft
  const own = c.at(need.vm.host)
  const short: { h: number; mib: number }[] = []
  c.hosts.forEach((_, h) => {
    if (h === own) return
    const problems: Problem[] = []
    eachProblem(now, worst, need, h, draft.states, (p) => problems.push(p) > 1, true)
    const [p, more] = problems
    if (!more && p?.code === 'no_room_memory' && p.of === 'free') short.push({ h, mib: need.memory_mib - now.free(h) })
  })
  short.sort((a, b) => a.mib - b.mib || a.h - b.h)
  for (const { h, mib } of short.slice(0, MOST_LOOKED_AT)) {
    // An earlier one may have made room for two.
    if (mib <= 0 && !draft.move(group, h)) return true
    const on = c.host(h)
    const others = c.vms
      .filter((vm) => vm.host === on.id && vm.memory_mib >= mib && vm.memory_mib <= need.memory_mib)
      // Nobody is sent round twice: of a plan that was stopped and made anew, say.
      .filter((vm) => !c.movedLately(vm.id))
      .map((vm) => c.need(vm))
      .filter((w) => w.live && keptTogether(c, w).length === 0 && whyStuck(c, w.vm).length === 0 && !draft.has(w.vm.id))
      .sort((a, b) => a.memory_mib - b.memory_mib || bigFirst(a, b))
    for (const other of others.slice(0, MOST_LOOKED_AT)) {
      now.take(other, h)
      const fits = draft.problem(need, h, true) === undefined
      now.put(other, h)
      if (!fits) continue
      const to = bestHost(now, worst, other, draft.states)
      const why = () => [explain({ code: 'frees_room', on: on.name, for: need.vm.name }, other.vm.name)]
      if (to === undefined || draft.move([other], to, why)) continue
      // Its room is there once the other has left: `move` says so in `after`.
      if (!draft.move(group, h)) return true
    }
  }
  return false
}

/** What is coming or going without this plan. */
export function waitsOf(c: Compiled, h: number): Reason[] {
  const { id, name } = c.host(h)
  const waits: Reason[] = []
  for (const move of c.moving) {
    const vm = c.vm(move.vm)?.name ?? move.vm
    if (move.to === id) waits.push(explain({ code: 'arriving', vm }, vm, name))
    else if (move.from === id) waits.push(explain({ code: 'vm_moving', to: c.hostName(move.to) }, vm))
  }
  for (const r of c.reserved) {
    // What is reserved for a VM that is there or on its way is said already.
    if (r.host !== id || (r.vm !== undefined && (c.movingTo(r.vm) === id || c.vm(r.vm)?.host === id))) continue
    waits.push(explain({ code: 'reserved_there', memory_mib: r.memory_mib }, r.vm ?? '', name))
  }
  return waits
}

export function unknownHost(c: Compiled, host: string, o: PlanOptions): HostPlan {
  const { actions, eta } = new Draft(new Books(c), {}).finish(-1, o)
  const reason = explain({ code: 'host_not_known' }, '', host)
  return { host, actions, blockers: [], waits: [reason], eta, complete: false, detail: reason.detail }
}

function sentence(host: string, here: number, moves: number, blockers: readonly Blocker[], waits: number): string {
  if (here === 0)
    return `There is no VM on ${host}${waits > 0 ? ', but something is still under way there' : ': nothing to do'}.`
  const vms = (n: number) => `${n} VM${n === 1 ? '' : 's'}`
  const staying = blockers.length === 0 ? '' : `; ${vms(blockers.length)} cannot leave`
  if (moves === 0) {
    if (blockers.length > 0) return `${vms(blockers.length)} cannot leave ${host}, and there is no other to move.`
    return `What is on ${host} is leaving already: nothing to do but wait.`
  }
  return `${vms(here)} on ${host}: ${moves === 1 ? '1 move' : `${moves} moves`}${staying}.`
}
