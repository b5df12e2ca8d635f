/** Emptying a host, and bringing back what was on it. The plan is the scheduler's, made anew after every move. */
import { fail, toFault, WadahError } from '@wadah/api/fault'
import type { DrainPlan, DrainResult, MoveWishes } from '@wadah/api/schema/cluster'
import type { VmMove } from '@wadah/api/schema/migration'
import { drain } from '@wadah/scheduler/drain'
import type { HostPlan, MoveAction } from '@wadah/scheduler/plan'
import { sleep, systemClock } from '@wadah/store/clock'
import { put, unchanged } from '@wadah/store/store'
import { againOnConflict, commit, type Deps } from '../context.ts'
import { defineJob, step, type StepContext } from '../jobs/define.ts'
import { hasEnded, jobKind } from '../jobs/record.ts'
import { factsKind } from '../members/records.ts'
import { snapshotNow } from '../members/scheduling.ts'
import { hostName } from '../members/where.ts'
import { movesAtOnce } from '../migration/turns.ts'
import { type HostRecord, hostKind, placementKind, poolKind, vmKind } from '../records.ts'
import { powerClaim } from './power-claim.ts'

export type DrainParams = { host: string; name: string; at_once: number } & MoveWishes
type Ctx = StepContext<DrainParams, Deps>

const TRIES = 20
const FAILURES_MOST = 2
const LOOK_MS = 500
const ASK_MS = 30_000
const ASKS_MOST = 3
/** Between two tries. */
const AGAIN_MS = 2_000
/** Asked of a host that has a VM: to move it. */
export const MIGRATE_PATH = '/peer/v1/migrate'
export type MoveAsked = { vm: string; to: string; key: string; pool?: string } & MoveWishes

/** What of it is for the moves. */
const wishesOf = ({ mode, max_stall_ms }: MoveWishes): MoveWishes => ({
  ...(mode === undefined ? {} : { mode }),
  ...(max_stall_ms === undefined ? {} : { max_stall_ms }),
})

/** The plan of this moment; the hosts are asked for room for local disks of VMs that are there. */
async function planNow(deps: Deps, host: string, at_once: number): Promise<HostPlan> {
  const { view } = deps
  const here = view.list(placementKind).filter((p) => p.value.host === host)
  const vms = here.flatMap((p) => view.get(vmKind, p.id)?.value ?? [])
  return drain(await snapshotNow(deps, vms), host, { at_once })
}

const AT_ONCE = 2

/**
 * How many moves at a time: what was asked for, or two, but no more than the host carries out.
 * @throws WadahError `invalid` where more was asked for
 */
export function atOnceOf(deps: Pick<Deps, 'view' | 'hostId' | 'config'>, host: string, asked?: number): number {
  const most = movesAtOnce(host === deps.hostId ? deps.config : deps.view.get(factsKind, host)?.value)
  if (asked !== undefined && asked > most) {
    const name = hostName(deps.view, host)
    throw fail('invalid', `${name} moves no more than ${most} at a time, and ${asked} were asked for.`, {
      field: '/at_once',
      remedy: `--at-once ${most}, or raise moves_at_once in the settings of ${name}`,
    })
  }
  return Math.min(asked ?? AT_ONCE, most)
}

/** What would be done, and what is in the way; nothing is changed. */
export async function drainPlan(deps: Deps, host: string, at_once: number): Promise<DrainPlan> {
  const plan = await planNow(deps, host, at_once)
  const poolName = (id: string) => deps.view.get(poolKind, id)?.value.name ?? id
  return {
    moves: plan.actions.map((a) => ({
      vm: a.name,
      to: hostName(deps.view, a.to),
      mode: a.mode,
      seconds: Math.round(a.cost.seconds * 10) / 10,
      bytes: a.cost.bytes,
      ...(a.disks.length === 0
        ? {}
        : { disks: a.disks.map((d) => ({ from: poolName(d.pool), to: poolName(d.to_pool), bytes: d.bytes })) }),
    })),
    blockers: plan.blockers.map((b) => ({
      vm: b.name,
      why: [...b.reasons, ...b.nearest.flatMap((n) => n.reasons)].map((r) => r.detail),
      ...(b.reasons[0] ? { remedy: b.nearest[0]?.reasons[0]?.remedy ?? b.reasons[0].remedy } : {}),
    })),
    eta_s: Math.round(plan.eta.seconds),
    eta_how: plan.eta.how,
    detail: plan.detail,
  }
}

/** Two at a time, each as the plan of that moment says; a VM that can't go holds up no other. */
async function empty(ctx: Ctx): Promise<DrainResult> {
  const { deps, params: p, signal } = ctx
  const moved: DrainResult['moved'] = []
  const failed = new Map<string, { times: number; why: string }>()
  const under_way = new Map<string, Promise<void>>()
  const begin = (a: MoveAction) => {
    ctx.log(`${a.name} goes to ${hostName(deps.view, a.to)} (${a.mode})`)
    const tries = failed.get(a.vm)?.times ?? 0
    const work = (async () => {
      const pool = onlyPool(deps, a)
      const why = await moveOne(ctx, a, `${ctx.jobId}/${a.vm}/${tries}`).then(
        async (result) => {
          moved.push({ vm: a.name, to: hostName(deps.view, a.to), ...stallOf(result) })
          // One that only made room stays where it is now.
          if (a.from === p.host) await noteMoved(deps, p.host, a, pool)
          return undefined
        },
        (error: unknown) => toFault(error),
      )
      if (why === undefined) return
      // What somebody has cancelled is not begun again.
      failed.set(a.vm, { times: why.code === 'cancelled' ? FAILURES_MOST : tries + 1, why: why.detail })
      ctx.log(`${a.name}: ${why.detail}`)
    })().finally(() => under_way.delete(a.vm))
    under_way.set(a.vm, work)
  }
  for (;;) {
    signal.throwIfAborted()
    const plan = await planNow(deps, p.host, p.at_once)
    const left = deps.view.list(placementKind).filter((x) => x.value.host === p.host)
    const ready = plan.actions.filter(
      (a) =>
        !under_way.has(a.vm) &&
        (failed.get(a.vm)?.times ?? 0) < FAILURES_MOST &&
        // What must be over first is not: it is planned anew when it is.
        a.after.length === 0,
    )
    for (const a of ready.slice(0, Math.max(0, p.at_once - under_way.size))) begin(a)
    const all = moved.length + left.length
    ctx.progress(all === 0 ? 1 : moved.length / all)
    if (under_way.size === 0) {
      const stayed = left.map((x) => {
        const blocker = plan.blockers.find((b) => b.vm === x.id)
        const reasons = blocker?.reasons.map((r) => r.detail) ?? []
        return {
          vm: deps.view.get(vmKind, x.id)?.value.name ?? x.id,
          why: failed.get(x.id)?.why ?? (reasons.join(' ') || plan.detail),
        }
      })
      return { moved, stayed }
    }
    await Promise.race([...under_way.values(), aborted(signal)]).catch(() => undefined)
  }
}

const stallOf = (result: unknown) => {
  const { stall_ms } = (result ?? {}) as Partial<VmMove>
  return stall_ms === undefined ? {} : { stall_ms }
}

function aborted(signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal.aborted) resolve()
    else signal.addEventListener('abort', () => resolve(), { once: true })
  })
}

/** By a job of the host where the VM is: to make room, that may be another one. @returns its result; @throws WadahError */
async function moveOne(ctx: Ctx, a: MoveAction, key: string): Promise<unknown> {
  const { deps, params: p, signal } = ctx
  if (a.from !== deps.hostId) return moveElsewhere(ctx, a.from, { vm: a.vm, to: a.to, key, ...wishesOf(p) })
  if (!deps.children) throw fail('unavailable', 'The daemon is still starting.')
  const end = await deps.children.migrate(a.vm, a.to, key, wishesOf(p), signal)
  if (end.fault) throw new WadahError(end.fault)
  return end.result
}

/** What another host is asked for, and what came of it there. @throws WadahError */
async function moveElsewhere({ deps, signal }: Ctx, from: string, asked: MoveAsked): Promise<unknown> {
  const job = await jobAskedFor(deps, from, asked, signal)
  const end = await ended(deps, job, signal)
  if (end.state !== 'done')
    throw end.fault ? new WadahError(end.fault) : fail('cancelled', `The job ${job} ended as ${end.state}.`)
  return end.result
}

/** Asked again under the same key it is the same job: its answer may have been lost. @returns the job; @throws WadahError */
async function jobAskedFor(deps: Deps, from: string, asked: MoveAsked, signal: AbortSignal): Promise<string> {
  if (!deps.askHost) throw fail('internal', 'no way to other hosts')
  for (let asks = 1; ; asks++) {
    try {
      return (await deps.askHost<{ job: string }>(from, MIGRATE_PATH, asked, ASK_MS)).job
    } catch (error) {
      if (!toFault(error).retryable || asks >= ASKS_MOST) throw error
      await sleep(systemClock, AGAIN_MS, signal)
    }
  }
}

/** The pool that all of its local disks lie in: they come back into it. */
function onlyPool(deps: Deps, a: MoveAction): string | undefined {
  const pools = new Set(a.disks.map((d) => d.pool))
  const [pool] = pools
  return pools.size === 1 && pool !== undefined && deps.view.get(poolKind, pool) ? pool : undefined
}

/** For the way back. */
async function noteMoved(deps: Deps, host: string, a: MoveAction, pool: string | undefined): Promise<void> {
  const gone = { vm: a.vm, to: a.to, ...(pool === undefined ? {} : { pool }) }
  await changeHost(deps, host, (h) => ({ ...h, drained: [...(h.drained ?? []).filter((d) => d.vm !== a.vm), gone] }))
}

function changeHost(deps: Deps, id: string, change: (host: HostRecord) => HostRecord): Promise<void> {
  return againOnConflict(TRIES, async () => {
    const rec = await deps.store.get(hostKind, id)
    if (!rec) throw fail('gone', 'The host is not in the cluster any more.')
    await commit(deps, [unchanged(rec)], [put(hostKind, id, change(rec.value))])
  })
}

const params = (value: unknown): DrainParams => {
  const p = value as DrainParams
  if (typeof p?.host !== 'string') throw fail('invalid', 'The job has no host.')
  return { ...p, at_once: p.at_once ?? 2 }
}

/** Cancelled it is paused: what has gone stays gone, the host stays in maintenance; asked for again it goes on. */
export const drainJob = defineJob<DrainParams, Deps>(
  'host.drain',
  1,
  params,
  [
    step('maintenance', {
      do: ({ deps, params: p }) => changeHost(deps, p.host, (h) => ({ ...h, maintenance: true })),
    }),
    step('move', { do: empty, weight: 20 }),
  ],
  { claims: (p) => [powerClaim(p.host)], lane: 'wait' },
)

/** Every VM that a drain took away and that still is where it took it comes back. Those hosts move them. */
async function bringBack(ctx: Ctx): Promise<DrainResult> {
  const { deps, params: p, signal } = ctx
  const moved: DrainResult['moved'] = []
  const stayed: DrainResult['stayed'] = []
  const all = deps.view.get(hostKind, p.host)?.value.drained ?? []
  for (const [i, { vm, to, pool }] of all.entries()) {
    signal.throwIfAborted()
    const name = deps.view.get(vmKind, vm)?.value.name
    const at = () => deps.view.get(placementKind, vm)?.value.host
    if (name === undefined) continue
    const back = pool === undefined || deps.view.get(poolKind, pool) === undefined ? {} : { pool }
    let why: string | undefined
    for (let tries = 0; tries < FAILURES_MOST; ) {
      if (at() !== to) {
        why = at() === p.host ? undefined : `it is on ${hostName(deps.view, at() ?? '')} by now`
        break
      }
      const key = `${ctx.jobId}/${vm}/${tries}`
      const failed = await moveElsewhere(ctx, to, { vm, to: p.host, key, ...back, ...wishesOf(p) }).then(
        (result) => void moved.push({ vm: name, to: hostName(deps.view, p.host), ...stallOf(result) }),
        (error: unknown) => toFault(error),
      )
      signal.throwIfAborted()
      why = failed?.detail
      if (!failed) break
      ctx.log(`${name}: ${failed.detail}`)
      // What somebody has cancelled is not begun again, nor what will be refused again.
      if (failed.code === 'cancelled' || !failed.retryable) break
      tries++
      await sleep(systemClock, AGAIN_MS, signal)
    }
    if (why !== undefined) stayed.push({ vm: name, why })
    ctx.progress((i + 1) / all.length)
  }
  const back = new Set(moved.map((m) => m.vm))
  await changeHost(deps, p.host, ({ drained, ...h }) => {
    const left = (drained ?? []).filter((d) => {
      const isBack = deps.view.get(placementKind, d.vm)?.value.host === p.host
      return !isBack && !back.has(deps.view.get(vmKind, d.vm)?.value.name ?? '')
    })
    return left.length === 0 ? h : { ...h, drained: left }
  })
  return { moved, stayed }
}

/** A job of another host is seen in the records. */
async function ended(deps: Deps, job: string, signal: AbortSignal) {
  for (;;) {
    const record = deps.view.get(jobKind, job)?.value
    if (record && hasEnded(record)) return record
    signal.throwIfAborted()
    await new Promise((resolve) => setTimeout(resolve, LOOK_MS))
  }
}

export const undrainJob = defineJob<DrainParams, Deps>(
  'host.undrain',
  1,
  params,
  [
    step('open', {
      do: ({ deps, params: p }) =>
        changeHost(deps, p.host, (h) => {
          const { maintenance: _, ...open } = h
          return open
        }),
    }),
    step('move', { do: bringBack, weight: 20 }),
  ],
  { claims: (p) => [powerClaim(p.host)], lane: 'wait' },
)
