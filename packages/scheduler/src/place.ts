/** Which host for a VM: those that fit, then soft rules, then the least loaded. */
import { Books } from './books.ts'
import { Compiled, type Need } from './compiled.ts'
import { type DiskCopy, type States, copiesOf, eachProblem, firstProblem, ruleProblem, whyStuck } from './fits.ts'
import { type Freshness, freshness } from './load.ts'
import { type Problem, type Reason, explain } from './reasons.ts'
import { type Snapshot, type VmView, byId } from './snapshot.ts'

export type Candidate = {
  host: string
  name: string
  /** How full it would be, less is better: the fuller of memory and CPU (1: full), and a little of their mean. */
  score: number
  /** Shares (0 … 1, CPU may be above) that would be promised or in use with the VM on it. */
  memory: number
  cpu: number
  load: Freshness
  /** Where its local disks would go. */
  disks: DiskCopy[]
  /** What speaks against it and does not forbid it. */
  but: Reason[]
}
export type Refusal = { host: string; name: string; reasons: Reason[] }

export type Choice = {
  /** Absent: none fits, or it cannot move at all (`stuck`). */
  chosen?: Candidate
  /** The others that fit, best first; as many as were asked for. */
  others: Candidate[]
  /** Those that do not, by name of host; as many as were asked for. */
  refused: Refusal[]
  /** What keeps it where it is, whatever the host. */
  stuck: Reason[]
  /** One sentence. */
  detail: string
}

export type PlaceOptions = {
  /** A new or stopped VM is to run there: it needs free memory. */
  start?: boolean
  /** How many runners-up and refusals are told; all of them when not said. 0 is much quicker. */
  most?: number
}

/**
 * Chooses a host for a new VM (one without `host`), or for a move of one that is there: then its own host is no candidate. Pure;
 * the same for every order of the input.
 */
export function place(s: Snapshot, vm: VmView, o: PlaceOptions = {}): Choice {
  return placeIn(new Books(new Compiled(s)), vm, o)
}

/** The same with books that are kept, for many placements in a row; `accept` writes a choice into them. */
export function placeIn(books: Books, vm: VmView, o: PlaceOptions = {}): Choice {
  const { c } = books
  const need = c.need(vm, o.start)
  const from = c.at(vm.host)
  const stuck = vm.host === undefined ? [] : whyStuck(c, vm).map((p) => explain(p, vm.name))
  const most = o.most ?? c.hosts.length
  const { ranked, fitting, refused } = most === 0 ? justBest(books, need) : weigh(books, need, from, most)
  const candidates = ranked.map((h) => candidate(books, need, h))
  const chosen = stuck.length > 0 ? undefined : candidates[0]
  return {
    ...(chosen ? { chosen } : {}),
    others: (chosen ? candidates.slice(1) : candidates).slice(0, most),
    refused,
    stuck,
    detail: sentence(books, vm, chosen, fitting, stuck),
  }
}

type Weighed = { ranked: number[]; fitting?: number; refused: Refusal[] }

function justBest(books: Books, need: Need): Weighed {
  const best = bestHost(books, books, need, {})
  return { ranked: best === undefined ? [] : [best], refused: [] }
}

function weigh(books: Books, need: Need, from: number, most: number): Weighed {
  const { c } = books
  const fitting: number[] = []
  const not: number[] = []
  c.hosts.forEach((_, h) => {
    ;(h === from || firstProblem(books, books, need, h, {}) ? not : fitting).push(h)
  })
  const name = (h: number) => c.host(h).name
  not.sort((a, b) => byId(name(a), name(b)) || a - b)
  const refused = not.slice(0, most).map((h): Refusal => {
    const problems: Problem[] = h === from ? [{ code: 'already_there' }] : []
    if (h !== from) eachProblem(books, books, need, h, {}, (p) => problems.push(p) < 0)
    return { host: c.host(h).id, name: name(h), reasons: problems.map((p) => explain(p, need.vm.name, name(h))) }
  })
  return { ranked: rank(books, need, fitting).slice(0, most + 1), fitting: fitting.length, refused }
}

/** Counts a VM on the host that was chosen, and gives up its old one at once: for a row of placements, not for plans. */
export function accept(books: Books, vm: VmView, chosen: Candidate, o: { start?: boolean } = {}): void {
  const { c } = books
  const from = c.at(vm.host)
  if (from >= 0 && books.isAt(vm.id, from)) books.take(c.need(vm), from)
  books.put(c.need(vm, o.start), c.at(chosen.host), poolUse(chosen.disks))
}

export function poolUse(copies: readonly DiskCopy[]): Map<string, number> {
  const use = new Map<string, number>()
  for (const { to_pool, bytes } of copies) use.set(to_pool, (use.get(to_pool) ?? 0) + bytes)
  return use
}

/** How many soft reasons speak against a host. */
function softness(books: Books, need: Need, h: number): number {
  let found = books.c.failures(need.vm.id, h) > 0 ? 1 : 0
  for (const r of need.rules) if (!books.c.rule(r).rule.strict && ruleProblem(books, need, h, r, true)) found++
  return found
}

/** Hosts that fit, best first: fewest broken soft rules and failures, then least full, then by id. */
export function rank(books: Books, need: Need, fitting: readonly number[]): number[] {
  const keys = fitting.map((h) => ({ h, soft: softness(books, need, h), score: books.with(need, h).score }))
  // Hosts stand in the order of their ids, so their numbers do as well.
  return keys.sort((a, b) => a.soft - b.soft || a.score - b.score || a.h - b.h).map((key) => key.h)
}

/** The first of `rank` without ranking the rest, or by `tightest` the host with the least memory left; undefined: none fits. */
export function bestHost(now: Books, worst: Books, need: Need, states: States, tightest = false): number | undefined {
  let best: { h: number; soft: number; score: number } | undefined
  const own = now.c.at(need.vm.host)
  for (let h = 0; h < now.c.hosts.length; h++) {
    if (h === own || firstProblem(now, worst, need, h, states)) continue
    const soft = softness(now, need, h)
    if (best && soft > best.soft) continue
    const score = tightest ? now.free(h) : now.with(need, h).score
    if (!best || soft < best.soft || score < best.score) best = { h, soft, score }
  }
  return best?.h
}

function candidate(books: Books, need: Need, h: number): Candidate {
  const { c } = books
  const host = c.host(h)
  const { score, memory, cpu } = books.with(need, h)
  const copies = copiesOf(books, need, h)
  return {
    host: host.id,
    name: host.name,
    score,
    memory,
    cpu,
    load: freshness(host.load, c.now_ms),
    disks: Array.isArray(copies) ? copies : [],
    but: against(books, need, h),
  }
}

/** What speaks against a host that fits. */
export function against(books: Books, need: Need, h: number): Reason[] {
  const { c } = books
  const found: Problem[] = []
  for (const r of need.rules) {
    const p = c.rule(r).rule.strict ? undefined : ruleProblem(books, need, h, r)
    if (p) found.push(p)
  }
  const times = c.failures(need.vm.id, h)
  if (times > 0) found.push({ code: 'failed_lately', times })
  const fresh = freshness(c.host(h).load, c.now_ms)
  if (fresh !== 'measured') found.push({ code: fresh === 'stale' ? 'load_stale' : 'load_unknown' })
  return found.map((p) => explain(p, need.vm.name, c.host(h).name))
}

function sentence(
  books: Books,
  vm: VmView,
  chosen: Candidate | undefined,
  fitting: number | undefined,
  stuck: Reason[],
): string {
  if (stuck[0]) return stuck[0].detail
  const hosts = books.c.hosts.length
  if (!chosen) return explain({ code: 'no_host', hosts: hosts - (books.c.at(vm.host) >= 0 ? 1 : 0) }, vm.name).detail
  const percent = (share: number) => `${Math.round(share * 100)} %`
  const use = `${percent(chosen.memory)} of its memory promised and ${percent(chosen.cpu)} of its CPUs busy`
  const several = fitting === undefined ? `the best of ${hosts}` : `the best of ${fitting} that fit`
  const which = fitting === 1 ? `the only one of ${hosts} that fits` : several
  const known = chosen.load === 'measured' ? '' : ` (its load is ${chosen.load})`
  return `${vm.name} goes to ${chosen.name}, ${which}: with it, ${use}${known}.`
}
