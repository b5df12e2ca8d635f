/**
 * Whether a host may use a shared pool: it has tried its locks and caches with another host that has it (trials.ts does). The record of the
 * pool holds what each had mounted when it passed. Pure over the view, but for the last look before a QEMU opens a disk.
 */
import { fail } from '@wadah/api/fault'
import type { CachedView } from '@wadah/store/cache'
import { sleep } from '@wadah/store/clock'
import type { Deps } from '../context.ts'
import { aliveKind, factsKind } from '../members/records.ts'
import { hostName } from '../members/where.ts'
import { hostKind, type PoolRecord, poolKind, type VmRecord } from '../records.ts'
import { chainOf, poolDefinition, poolOf } from '../resolve.ts'

type View = Pick<CachedView, 'get' | 'list'>
export type Refusal = { detail: string; remedy: string }

/** It passed, and what it had mounted then it says itself. */
export const UNSAID = ''
/** It did not pass: nothing that is mounted is called so. */
export const NOT_PASSED = 'no'
/** Said with every refusal. */
export const AGAIN = 'it is tried again by itself, within a minute'

/** How a host stands with what it has mounted now. `meanwhile`: it had the pool before there were trials, and goes on until it is tried. */
export type Standing = 'proven' | 'meanwhile' | 'untried'
export function standingOf(view: View, host: string, pool: PoolRecord, mounted: string): Standing {
  const tried = pool.tried?.[host]
  if (tried !== undefined) return tried === mounted || tried === UNSAID ? 'proven' : 'untried'
  return view.get(factsKind, host)?.value.pools.includes(pool.id) ? 'meanwhile' : 'untried'
}

/** Hosts of the cluster beside this one that may use the pool, or may soon say so, whether they are there or not. */
export function othersOf(view: View, host: string, pool: PoolRecord): string[] {
  return view
    .list(hostKind)
    .map((h) => h.id)
    .filter((id) => {
      if (id === host) return false
      const facts = view.get(factsKind, id)?.value
      if (facts?.pools.includes(pool.id)) return true
      const tried = pool.tried?.[id]
      const refused = facts?.pools_refused?.[pool.id]
      return tried !== undefined && tried !== NOT_PASSED && (refused === undefined || refused.mounted === tried)
    })
    .toSorted((a, b) => rank(pool, a) - rank(pool, b) || a.localeCompare(b))
}

/** Those that were tried come first, then who made it. */
const rank = (pool: PoolRecord, host: string) => (isTried(pool, host) ? 0 : host === pool.host ? 1 : 2)
export const isTried = (pool: PoolRecord, host: string): boolean =>
  ![undefined, NOT_PASSED].includes(pool.tried?.[host])

/** Whom a host tries it with, the likeliest first; `itself`: there is nobody, and the next ones are tried with it. */
export function partnersOf(view: View, host: string, pool: PoolRecord, standing: Standing): string[] | 'itself' {
  const others = othersOf(view, host, pool)
  if (others.length === 0) return 'itself'
  const isFirst = [host, ...others].toSorted((a, b) => rank(pool, a) - rank(pool, b) || a.localeCompare(b))[0] === host
  const none = !others.some((id) => isTried(pool, id))
  if (standing === 'meanwhile' && none && isFirst) return 'itself'
  // One that passed before asks those alone that did too.
  if (standing === 'proven')
    return none
      ? 'itself'
      : there(
          view,
          others.filter((id) => isTried(pool, id)),
        )
  // Of several that had it before any trial one is the first, and the others are tried with that one alone: who is wrong is then told from who is right.
  const who = standing === 'meanwhile' && none ? others.slice(0, 1) : others
  return there(view, who)
}

const there = (view: View, hosts: readonly string[]) => hosts.filter((id) => view.get(aliveKind, id) !== undefined)

/** Why a host may not have VMs on a shared pool; undefined when it may, as far as it has said. */
export function whyNot(view: View, host: string, pool: PoolRecord): Refusal | undefined {
  if (!pool.shared) return undefined
  const facts = view.get(factsKind, host)?.value
  const said = facts?.pools_refused?.[pool.id]
  if (said) return { detail: said.detail, remedy: said.remedy }
  if (pool.tried?.[host] === NOT_PASSED) return untried(view, host, pool)
  if (pool.tried === undefined || pool.tried[host] !== undefined || facts?.pools.includes(pool.id)) return undefined
  return untried(view, host, pool)
}

export const untried = (view: Pick<CachedView, 'get'>, host: string, pool: Pick<PoolRecord, 'name'>): Refusal => ({
  detail: `The shared pool "${pool.name}" was not tried on ${hostName(view, host)} with what is mounted there now.`,
  remedy: `${AGAIN}: wadah pool show ${pool.name}`,
})

/** @throws WadahError `wrong_state` with what was wrong when it was tried */
export function refuseUnproven(deps: Pick<Deps, 'view' | 'hostId'>, pool: PoolRecord, field?: string): void {
  const why = whyNot(deps.view, deps.hostId, pool)
  if (why) throw fail('wrong_state', why.detail, { field, remedy: why.remedy })
}

/** After a start of the host all of them may be tried at once; the VMs that are to start with it wait for that. */
const TRIAL_MS = 90_000
const LOOK_MS = 1_000

/**
 * The shared pools that its disks lie in, before anything of them is opened: what is mounted is looked at once more. One that is being
 * tried is waited for.
 * @throws WadahError `wrong_state`
 */
export async function poolsProven(deps: Deps, vm: VmRecord, wait_ms = TRIAL_MS): Promise<void> {
  const ids = new Set(vm.spec.disks.flatMap(({ volume }) => chainOf(deps, volume).map((v) => v.pool)))
  const { clock } = deps
  for (const id of ids)
    for (const end = clock.monotonic_ms() + wait_ms; ; await sleep(clock, LOOK_MS)) {
      const why = await notYet(deps, id)
      if (!why) break
      if (why.untried !== true || clock.monotonic_ms() >= end)
        throw fail('wrong_state', why.detail, { remedy: why.remedy })
    }
}

async function notYet(deps: Deps, id: string): Promise<(Refusal & { untried?: boolean }) | undefined> {
  const { view, hostId } = deps
  const pool = poolOf(deps, id)
  if (!pool.shared) return undefined
  const why = whyNot(view, hostId, pool)
  if (why) return { ...why, untried: view.get(factsKind, hostId)?.value.pools_refused?.[id]?.untried === true }
  const tried = pool.tried?.[hostId]
  if (tried === undefined || tried === UNSAID) return undefined
  const { what } = await deps.machine.volumes.shared.mounted(poolDefinition(pool))
  return what === tried ? undefined : { ...untried(view, hostId, pool), untried: true }
}

/** Of all hosts that said so: which may not use it, and why. */
export function refusedOn(view: View, pool: PoolRecord): ({ host: string } & Refusal)[] {
  if (!pool.shared) return []
  return view.list(hostKind).flatMap(({ id, value }) => {
    const why = view.get(factsKind, id) && whyNot(view, id, pool)
    return why ? [{ host: value.name, ...why }] : []
  })
}

/** Of this host, for the scheduler: why it may not use pools, by id. */
export const refusalsOf = (view: View, host: string): Record<string, Refusal> =>
  Object.fromEntries(
    view.list(poolKind).flatMap(({ id, value }) => {
      const why = whyNot(view, host, value)
      return why ? [[id, why]] : []
    }),
  )
