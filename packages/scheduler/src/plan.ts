/** A plan as it grows: moves whose every prefix fits, if only it respects `after`. */
import { Books } from './books.ts'
import type { Compiled, Need } from './compiled.ts'
import { type Cost, type Eta, costOf, etaOf, linkOf } from './cost.ts'
import { type DiskCopy, type States, copiesOf, eachProblem, firstProblem } from './fits.ts'
import { type Refusal, against, poolUse } from './place.ts'
import { type Problem, type Reason, type ReasonCode, explain } from './reasons.ts'

export type MoveAction = {
  kind: 'move'
  vm: string
  name: string
  from: string
  to: string
  /** `offline`: it does not run; its placement changes, and its local disks are copied. */
  mode: 'live' | 'offline'
  disks: DiskCopy[]
  cost: Cost
  why: Reason[]
  /** What speaks against this host and does not forbid it. */
  but: Reason[]
  /** Numbers of the actions that must have ended before it begins. */
  after: number[]
}
/** More kinds will come: power, for one. */
export type Action = MoveAction

export type Blocker = {
  vm: string
  name: string
  /** What keeps it, one at least; `no_host` when it is the hosts. */
  reasons: Reason[]
  /** Hosts that came nearest, with all that is in the way there. At most three. */
  nearest: Refusal[]
  /** How many hosts said what, by their first reason. */
  counts: Partial<Record<ReasonCode, number>>
}

export type HostPlan = {
  host: string
  /**
   * In the order to begin them. Any set of them that has begun fits, as long as each has begun only after all of its `after` had ended: no
   * host is promised more than it has, no strict rule is broken. The one exception: VMs that a strict rule keeps together move one
   * after the other, so they are apart while their moves last.
   */
  actions: Action[]
  /** VMs that stay; they hold up no other. */
  blockers: Blocker[]
  /** What ends without this plan and may change it: moves that are under way, jobs that reserved room. */
  waits: Reason[]
  eta: Eta
  /** With all of this done and nothing to wait for, the plan has what it is for. */
  complete: boolean
  /** One sentence; with no actions, why there are none. */
  detail: string
}

export type PlanOptions = {
  /** Moves at the same time, 2 when not said. */
  at_once?: number
}

type Drafted = {
  need: Need
  from: number
  to: number
  copies: DiskCopy[]
  after: number[]
  why: Reason[]
  but: Reason[]
}

export class Draft {
  readonly c: Compiled
  /** As if all moves of the draft were over. */
  readonly now: Books
  /** As if every VM of the draft had arrived and none had left. */
  readonly worst: Books
  readonly states: States
  readonly moves: Drafted[] = []
  readonly #leaving = new Map<number, number[]>()

  constructor(books: Books, states: States) {
    this.c = books.c
    this.now = new Books(books)
    this.worst = new Books(books)
    this.states = states
  }

  has(vm: string): boolean {
    return this.moves.some((move) => move.need.vm.id === vm)
  }

  /** What comes first in the way of a move; `later`: room that moves of this draft give up counts, for it can wait for them. */
  problem(need: Need, to: number, later = false): Problem | undefined {
    return firstProblem(this.now, later ? this.now : this.worst, need, to, this.states)
  }

  /** All that is in the way on a host, the draft as it is. */
  refusal(need: Need, h: number): Refusal {
    const host = this.c.host(h)
    const problems: Problem[] = []
    eachProblem(this.now, this.worst, need, h, this.states, (p) => problems.push(p) < 0)
    return { host: host.id, name: host.name, reasons: problems.map((p) => explain(p, need.vm.name, host.name)) }
  }

  /** Moves VMs that belong together, all or none. @returns why not */
  move(group: readonly Need[], to: number, why: (need: Need) => Reason[] = () => []): Problem | undefined {
    const from = group.map((need) => this.c.at(need.vm.host))
    // Together means together: as long as one of them is looked at in its old place, no new one is right.
    group.forEach((need, i) => this.now.take(need, from[i] ?? -1))
    const done: Drafted[] = []
    let problem: Problem | undefined
    for (const [i, need] of group.entries()) {
      let later = false
      problem = this.problem(need, to)
      if (problem && this.#leaving.has(to)) {
        later = true
        problem = this.problem(need, to, later)
      }
      const copies = problem ? [] : copiesOf(this.worst, need, to)
      if (problem || !Array.isArray(copies)) break
      const but = against(this.now, need, to)
      this.now.put(need, to, poolUse(copies))
      this.worst.put(need, to, poolUse(copies))
      const after = later ? [...(this.#leaving.get(to) ?? [])] : []
      done.push({ need, from: from[i] ?? -1, to, copies, after, why: why(need), but })
    }
    if (problem) {
      for (const { need, copies } of done.toReversed()) {
        this.now.putBack(need, to, poolUse(copies))
        this.worst.putBack(need, to, poolUse(copies))
      }
      group.forEach((need, i) => this.now.put(need, from[i] ?? -1))
      return problem
    }
    for (const move of done) {
      const leaving = this.#leaving.get(move.from)
      if (leaving) leaving.push(this.moves.length)
      else this.#leaving.set(move.from, [this.moves.length])
      this.moves.push(move)
    }
    return undefined
  }

  finish(host: number, o: PlanOptions): { actions: Action[]; eta: Eta } {
    const at_once = Math.max(1, Math.min(o.at_once ?? 2, this.moves.length))
    const actions = this.moves.map(({ need, from, to, copies, after, why, but }): Action => {
      const [source, target] = [this.c.host(from), this.c.host(to)]
      return {
        kind: 'move',
        vm: need.vm.id,
        name: need.vm.name,
        from: source.id,
        to: target.id,
        mode: need.live ? 'live' : 'offline',
        disks: copies,
        // A move that has nothing to do with the host of the plan shares its link with no other.
        cost: costOf(need.vm, need.live, copies, linkOf(source, target), from === host || to === host ? at_once : 1),
        why,
        but,
        after,
      }
    })
    return { actions, eta: etaOf(actions, at_once) }
  }

  /** Why a VM finds no host, the draft as it is. */
  blocker(need: Need): Blocker {
    const { vm } = need
    const own = this.c.at(vm.host)
    const counts: Partial<Record<ReasonCode, number>> = {}
    let nearest: { h: number; far: number }[] = []
    let hosts = 0
    for (let h = 0; h < this.c.hosts.length; h++) {
      if (h === own || h === this.states.closed) continue
      hosts++
      const problem = this.problem(need, h)
      if (!problem) continue
      counts[problem.code] = (counts[problem.code] ?? 0) + 1
      nearest.push({ h, far: distance(problem) })
    }
    nearest = nearest.sort((a, b) => a.far - b.far || a.h - b.h).slice(0, 3)
    const none = explain({ code: 'no_host', hosts }, vm.name)
    const refusals = nearest.map(({ h }) => this.refusal(need, h))
    const first = refusals[0]?.reasons[0]
    const said = (Object.keys(counts) as ReasonCode[]).sort().map((code) => `${counts[code]} × ${code}`)
    const detail =
      said.length === 0
        ? none.detail
        : `${none.detail.slice(0, -1)}: ${said.join(', ')}.${first ? ` ${first.detail}` : ''}`
    return {
      vm: vm.id,
      name: vm.name,
      reasons: [{ ...none, detail, remedy: first?.remedy ?? none.remedy }],
      nearest: refusals,
      counts,
    }
  }
}

/** What is missing least comes first: a little memory before a host that is down. */
function distance(p: Problem): number {
  switch (p.code) {
    case 'no_room_memory':
      return p.of === 'all' ? 2 : 1 - p.free_mib / p.needed_mib
    case 'no_room_disk':
      return 1
    case 'affinity':
      return 1.5
    case 'host_down':
    case 'host_maintenance':
    case 'host_draining':
      return 4
    default:
      return 3
  }
}
