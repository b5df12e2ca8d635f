/**
 * `vm migrate`: a job of the host where the VM is. A VM that runs goes over by the protocol of migration/; of one that is stopped the place
 * changes, once what its host alone had was copied (bring-out.ts). Its first step is undone as long as the source may keep the guest; `go` is the pivot.
 */
import { type Fault, WadahError, fail, toFault } from '@wadah/api/fault'
import type { VmMove } from '@wadah/api/schema/migration'
import type { MoveForecast, MoveLimits, MoveMode, MovePhase, MoveReport } from '@wadah/ports/migration'
import { type Check, put, unchanged, type Write } from '@wadah/store/store'
import { againOnConflict, commit, type Deps } from '../context.ts'
import { defineJob, pivot, step, type StepContext } from '../jobs/define.ts'
import { checkWay } from '../members/way.ts'
import { hostName } from '../members/where.ts'
import { compared } from '../migration/forecast.ts'
import { endedLink } from '../migration/link.ts'
import { pausePoint } from '../migration/pause-point.ts'
import { Probe } from '../migration/probe.ts'
import { CEILING_TRIES, untilItFits } from '../migration/again.ts'
import { mayGoPostcopy } from '../migration/resolve.ts'
import { moveOut, type MoveOutPorts, resumeMoveOut } from '../migration/source.ts'
import { placementKind, type PlacementRecord, poolKind, vmKind } from '../records.ts'
import { foresee, foreseenLine } from './foresee.ts'
import { addressInside } from './inside.ts'
import { type BringOrder, bringOut, mustBeThere } from './bring-out.ts'
import { bringKept } from './kept.ts'
import { arrivedDisks, askToSweep, type DiskMove, dropMoved, markMoving, unmarkMoving } from './local-disks.ts'

export type MigrateParams = {
  vm: string
  name: string
  from: string
  to: string
  /** Of the placement it is to have. */
  epoch: number
  live: boolean
  mode: MoveMode
  limits: MoveLimits
  tls: boolean
  /** What lies in a pool of its host only, and where it goes. */
  disks?: DiskMove[]
  /** Stopped: it has files of its own on its host. */
  state?: true
}
type Ctx = StepContext<MigrateParams, Deps>

const PROBE_PORT = 9

async function note(ctx: Ctx): Promise<void> {
  const { deps, params: p, jobId } = ctx
  const placement = await deps.store.get(placementKind, p.vm)
  if (placement?.value.host !== p.from || (placement.value.handover && placement.value.handover.job !== jobId))
    throw fail('not_owner', `"${p.name}" is not on this host any more.`, { remedy: `wadah vm show ${p.name}` })
  if (placement.value.handover) return
  if (p.live || carries(p)) await checkWay(deps, { id: p.to, name: hostName(deps.view, p.to) })
  const handover = { to: p.to, epoch: p.epoch, job: jobId, sealed: false }
  const disks = await markMoving(deps, p.disks ?? [], jobId)
  ctx.commit(
    [put(placementKind, p.vm, { ...placement.value, handover }), ...disks.writes],
    [unchanged(placement), ...disks.checks],
  )
}

/** Done twice is done once; of another job's it changes nothing. */
async function changeHandover(
  { deps, params: p, jobId }: Ctx,
  change: (placement: PlacementRecord) => PlacementRecord | undefined,
  more: () => Promise<{ checks: Check[]; writes: Write[] }> = async () => ({ checks: [], writes: [] }),
): Promise<void> {
  await againOnConflict(20, async () => {
    const placement = await deps.store.get(placementKind, p.vm)
    if (placement?.value.handover?.job !== jobId) return
    const next = change(placement.value)
    if (!next) return
    const { checks, writes } = await more()
    await commit(deps, [unchanged(placement), ...checks], [put(placementKind, p.vm, next), ...writes])
  })
}

async function unnote(ctx: Ctx): Promise<void> {
  const { deps, params: p, jobId } = ctx
  await changeHandover(
    ctx,
    (placement) => {
      const { handover: _, ...rest } = placement
      return rest
    },
    () => unmarkMoving(deps, p.disks ?? [], jobId),
  )
  // It took back what it made itself, unless its daemon died meanwhile.
  if (p.live || carries(p)) await askToSweep(deps, p.to)
}

/** Whether anything lies on its host alone. */
export const carries = (p: MigrateParams): boolean => (p.disks ?? []).length > 0 || p.state === true

/** The outcome of a move that is not known yet: the next step finds it out. */
type Unresolved = { unresolved: Fault }
/** Of a stopped VM, what its host alone had lies on the target too. */
type Brought = { brought: { bytes: number; took_ms: number } }

/** Up to `go` it can be cancelled, and a failure leaves the guest here. */
async function tryMove(ctx: Ctx): Promise<VmMove | Unresolved | Brought> {
  if (!ctx.params.live) return bring(ctx)
  try {
    return await move(ctx)
  } catch (error) {
    const why = toFault(error)
    // There is no other side to be asked any more.
    const isOver = why.code === 'memory_lost' || (await ctx.deps.machine.migration.ask(ctx.params.vm)).is === 'gone'
    if (why.effect === 'none' || (isOver && why.effect === 'partial')) throw error
    ctx.log(`it is not known yet how it ended: ${why.detail}`)
    return { unresolved: why }
  }
}

/** Asks both sides until it is clear. What fails here with the guest on this host, or nowhere, is told as a job that failed. */
async function settle(ctx: Ctx): Promise<VmMove> {
  const found = ctx.output<VmMove | Unresolved | Brought>('move')
  if (found && 'vm' in found) return found
  if (!ctx.params.live) return relocate(ctx)
  try {
    return await move(ctx)
  } catch (error) {
    const why = toFault(error)
    if ((why.effect === 'unknown' && why.code !== 'memory_lost') || ctx.signal.aborted) throw error
    throw new WadahError({ ...why, effect: 'none' }, error)
  }
}

async function move(ctx: Ctx): Promise<VmMove> {
  const { deps, params: p, jobId, signal } = ctx
  const begun = performance.now()
  const names = { vm: p.name, from: hostName(deps.view, p.from), to: hostName(deps.view, p.to) }
  const { migration } = deps.machine
  /** What was measured ended with the daemon that began it. */
  const anew = (total_ms: number): VmMove => ({
    ...names,
    live: true,
    mode: p.mode,
    total_ms,
    phases: [],
    notes: ['the daemon was started anew meanwhile'],
  })
  const there = await deps.store.get(placementKind, p.vm)
  const isThere = there?.value.host === p.to && there.value.epoch === p.epoch
  // Of one that may have been post-copy only the target knows whether all of it had come.
  if (isThere && !mayGoPostcopy(p) && (await migration.ask(p.vm)).is === 'gone') return anew(0)
  const tops = (p.disks ?? []).filter((d) => !d.held)
  const based = tops.filter((d) => d.based)
  const order = {
    job: jobId,
    vm: p.vm,
    name: p.name,
    from: names.from,
    epoch: p.epoch,
    mode: p.mode,
    limits: p.limits,
    tls: p.tls,
    ...(tops.length > 0 ? { mirrors: tops.map((d) => d.name) } : {}),
    ...(based.length > 0 ? { layered: Object.fromEntries(based.map((d) => [d.name, d.volume])) } : {}),
  }
  const { moves } = deps
  if (!moves) throw fail('internal', 'no way to other hosts')
  let furthest = 0
  const ports = (link: MoveOutPorts['link']): MoveOutPorts => ({
    migration,
    link,
    relink: (s) => moves.open(p.to, s).catch(() => undefined),
    seal: async (s) => {
      await bringKept(deps, { job: jobId, vm: p.vm, to: p.to, epoch: p.epoch }, s)
      await changeHandover(ctx, (x) => x.handover && { ...x, handover: { ...x.handover, sealed: true } })
    },
    isPlaced: async () => {
      const now = (await deps.store.get(placementKind, p.vm))?.value
      return now?.host === p.to && now.epoch === p.epoch
    },
    unseal: () => changeHandover(ctx, (x) => x.handover && { ...x, handover: { ...x.handover, sealed: false } }),
    progress: ({ sent_bytes, total_bytes, remaining_bytes }) => {
      const total = Math.max(total_bytes, sent_bytes, 1)
      // RAM comes after the disks, and what the guest writes anew is left once more: nobody is told that it goes backwards.
      furthest = Math.max(furthest, (total_bytes - remaining_bytes) / total)
      ctx.progress({ done: Math.round(furthest * total), total })
    },
    phase: (phase) => ctx.log(phase),
    log: ctx.log,
  })
  // It was begun by a daemon that is no more.
  if (there?.value.handover?.sealed || isThere || (await migration.rejoinLeaving(p.vm, jobId))) {
    // It may be gone for good, and this host need not ask it.
    const link = await moves.open(p.to, signal).catch(() => endedLink('it can not be reached'))
    const { moved } = await resumeMoveOut(order, ports(link), signal)
    if (!moved)
      throw fail('cancelled', `The move was cut off by an end of this daemon; "${p.name}" runs on here.`, {
        remedy: `wadah vm migrate ${p.name} --to ${names.to}`,
      })
    return anew(since(begun))
  }
  const forecast = tellForecast(ctx)
  const began = { over: false }
  // Once `go` was said a cancel comes too late: only an end of this daemon stops it, and the next one goes on.
  const limit = new AbortController()
  const stop = () => {
    if (!began.over || !isCancel(signal.reason)) limit.abort(signal.reason)
  }
  if (signal.aborted) stop()
  else signal.addEventListener('abort', stop)
  let [looking, begins]: (ReturnType<typeof openProbe> | undefined)[] = []
  try {
    await bringLayers(ctx, limit.signal)
    looking = openProbe(ctx)
    let waited_ms = 0
    const going = () => {
      began.over = true
    }
    const phase = (name: MovePhase) => {
      // What it saw of a try that was given up counts too.
      if ((name === 'mirror' || name === 'copy') && looking !== begins) {
        begins = looking
        void looking?.then((probe) => probe?.begins())
      }
      ctx.log(name)
    }
    let tried_ms = begun
    const copy = async () => {
      tried_ms = performance.now()
      const link = await moves.open(p.to, signal).catch((error: unknown) => {
        throw new WadahError({ ...toFault(error), effect: 'none' }, error)
      })
      const more = {
        going,
        phase,
        // Nobody is asked for hours whether he is there.
        waits: () => void looking?.then((probe) => probe?.stop()),
        waited: (ms: number) => {
          if (ms > 0) looking = openProbe(ctx)
          waited_ms = ms
          return since(begun) > FORESEEN_MS ? tellForecast(ctx) : undefined
        },
      }
      return moveOut({ ...order, forecast }, { ...ports(link), ...more }, limit.signal)
    }
    // With local disks that would be all of them once more.
    const tries = tops.length > 0 ? 1 : CEILING_TRIES
    const { result: report, given_up } = await untilItFits(copy, { signal: limit.signal, log: ctx.log, tries })
    report.notes.push(...given_up.map((why) => `copied anew: ${why}`))
    const outside = await (await looking)?.end()
    report.notes.unshift(...whereDisks(ctx))
    const total_ms = since(begun)
    // All of it was foreseen, with what goes over before the two sides meet; but not who else was on the way there.
    const measured_ms = (given_up.length > 0 ? since(tried_ms) : total_ms) - waited_ms
    if (report.forecast) report.ratio = compared(report.forecast, { ...report, total_ms: measured_ms })
    return { ...names, tls: p.tls, ...shown(report), total_ms, ...(outside ? { outside } : {}) }
  } finally {
    void looking?.then((probe) => probe?.stop())
    signal.removeEventListener('abort', stop)
  }
}

/** What snapshots hold, while the guest runs: nobody writes it. Its disks then come onto it. */
async function bringLayers(ctx: Ctx, signal: AbortSignal): Promise<void> {
  const order = orderOf(ctx)
  const disks = order.disks.filter((d) => d.held)
  if (disks.length === 0) return
  try {
    await bringOut(ctx.deps, { ...order, disks, state: false }, tellOf(ctx), signal)
  } catch (error) {
    throw new WadahError({ ...toFault(error), effect: 'none' }, error)
  }
}

/** A guest may have become busy, or quiet, since what was foreseen this long ago. */
const FORESEEN_MS = 15_000
const isCancel = (reason: unknown) => reason instanceof WadahError && reason.fault.code === 'cancelled'
const since = (begun: number) => Math.round(performance.now() - begun)

function shown(r: MoveReport): Omit<VmMove, 'vm' | 'from' | 'to' | 'total_ms'> {
  return {
    live: true,
    mode: r.mode,
    how: r.how,
    ...(r.claim.sent_bytes === undefined ? {} : { bytes: r.claim.sent_bytes }),
    ...(r.claim.downtime_ms === undefined ? {} : { claimed_downtime_ms: r.claim.downtime_ms }),
    // Of one that was paused nothing stood still.
    ...(r.paused ? {} : { stall_ms: r.stall_ms }),
    ...(Number.isFinite(r.stall_error_ms) && !r.paused ? { stall_error_ms: r.stall_error_ms } : {}),
    ...(r.forecast
      ? {
          forecast: {
            total_ms: Math.round(r.forecast.total_ms),
            stall_ms: Math.round(r.forecast.stall_ms),
            bytes: Math.round(r.forecast.bytes),
            ...(r.forecast.disk_bytes === undefined ? {} : { disk_bytes: r.forecast.disk_bytes }),
          },
        }
      : {}),
    ...(r.ratio ? { ratio: r.ratio } : {}),
    phases: r.phases.map((x) => ({
      phase: x.phase,
      ms: Math.round(((x.end_ms ?? x.begin_ms) - x.begin_ms) * 10) / 10,
    })),
    notes: r.notes,
  }
}

/** Sampled while the target is prepared, so that it costs the move no time. */
async function tellForecast({ deps, params: p, signal, log }: Ctx): Promise<MoveForecast | undefined> {
  try {
    const foreseen = await foresee(deps, p, signal)
    log(foreseenLine(foreseen))
    return foreseen
  } catch (error) {
    log(`nothing is foreseen: ${(error as Error).message}`)
    return undefined
  }
}

/** Where the guest answers, as its agent says. Without an agent or an address nothing is asked of it. */
async function openProbe({ deps, params: p, signal, log }: Ctx): Promise<Probe | undefined> {
  try {
    const address = await addressInside(deps, p.vm, signal)
    if (address === undefined) return undefined
    return new Probe(address, PROBE_PORT, () => performance.now())
  } catch (error) {
    log(`it is not looked at from outside: ${(error as Error).message}`)
    return undefined
  }
}

const whereDisks = ({ deps, params: p }: Ctx): string[] =>
  (p.disks ?? []).flatMap((d) =>
    d.held ? [] : [`the disk "${d.name}" lies in ${deps.view.get(poolKind, d.to)?.value.name ?? d.to} now`],
  )

const tellOf = ({ deps, params: p, log, progress }: Ctx) => ({
  log,
  progress: (done: number, total: number) => progress({ done, total }),
  still: async () => {
    if (p.live && (await deps.machine.migration.ask(p.vm)).is === 'gone')
      throw fail('wrong_state', 'The VM does not run any more.')
  },
})

const orderOf = ({ params: p, jobId: job }: Ctx): BringOrder => ({
  job,
  vm: p.vm,
  name: p.name,
  to: p.to,
  epoch: p.epoch,
  disks: p.disks ?? [],
  state: p.state === true,
  ...(p.limits.bandwidth_bytes_per_s === undefined ? {} : { bandwidth_bytes_per_s: p.limits.bandwidth_bytes_per_s }),
})

function mustRest({ deps, params: p }: Ctx): void {
  if (deps.machine.running(p.vm)) throw fail('wrong_state', `"${p.name}" runs by now.`, { remedy: 'move it again' })
}

/** A stopped VM: what its host alone has is copied. Where it is stays as it was. */
async function bring(ctx: Ctx): Promise<Brought> {
  mustRest(ctx)
  if (!carries(ctx.params)) return { brought: { bytes: 0, took_ms: 0 } }
  await tellForecast(ctx)
  return { brought: await bringOut(ctx.deps, orderOf(ctx), tellOf(ctx), ctx.signal) }
}

/** A stopped VM: all that it is lies on the target too. One commit. */
async function relocate(ctx: Ctx): Promise<VmMove> {
  const begun = performance.now()
  const { deps, params: p, jobId } = ctx
  const placement = await deps.store.get(placementKind, p.vm)
  if (placement?.value.host !== p.to || placement.value.epoch !== p.epoch) {
    if (placement?.value.handover?.job !== jobId)
      throw fail('not_owner', `"${p.name}" is not on its way by this job any more.`, {
        remedy: `wadah vm show ${p.name}`,
      })
    mustRest(ctx)
    if (p.state) await bringKept(deps, orderOf(ctx), ctx.signal)
    const took = carries(p) ? await mustBeThere(deps, orderOf(ctx), ctx.signal) : {}
    await pausePoint('bring-commit')
    const vm = (await deps.store.get(vmKind, p.vm))?.value
    if (!vm) throw fail('gone', 'The VM is not there any more.')
    const disks = await arrivedDisks(deps, vm, jobId, took)
    const { handover: _, ...rest } = placement.value
    ctx.commit(
      [put(placementKind, p.vm, { ...rest, host: p.to, epoch: p.epoch }), ...disks.writes],
      [unchanged(placement), ...disks.checks],
    )
  }
  const { bytes, took_ms } = ctx.output<Brought>('move')?.brought ?? { bytes: 0, took_ms: 0 }
  const own = p.state ? ['what it keeps beside its disks (UEFI variables, TPM) went along'] : []
  return {
    vm: p.name,
    from: hostName(deps.view, p.from),
    to: hostName(deps.view, p.to),
    live: false,
    mode: 'offline',
    total_ms: took_ms + since(begun),
    ...(p.disks ? { bytes } : {}),
    // From daemon to daemon it always goes encrypted.
    ...(carries(p) ? { tls: true } : {}),
    phases: carries(p) ? [{ phase: 'copy', ms: took_ms }] : [],
    notes: [...whereDisks(ctx), ...own],
  }
}

/** Of a VM that is another host's now nothing stays here. Also when a cancel came after it had gone. */
async function tidyIfGone({ deps, params: p }: Ctx): Promise<void> {
  const placement = (await deps.store.get(placementKind, p.vm))?.value
  if (!placement || placement.host === deps.hostId) return
  await pausePoint('source-tidy')
  await deps.machine.forget(p.vm)
  await dropMoved(deps, p.disks ?? [])
  await deps.syncNetworks()
}

export const migrateVm = defineJob<MigrateParams, Deps>(
  'vm.migrate',
  1,
  (value) => {
    const p = value as MigrateParams
    if (typeof p?.vm !== 'string' || typeof p.to !== 'string') throw fail('invalid', 'The job has no VM or no target.')
    return p
  },
  [
    step('note', { do: note, undo: unnote, weight: 0.02 }),
    step('move', { do: tryMove, undo: tidyIfGone, progress: 'bytes', weight: 1 }),
    pivot('settle', { do: settle, weight: 0.02 }),
    step('tidy', {
      do: tidyIfGone,
      weight: 0.02,
      volatile: true,
      // Nobody waits for it over there: what a second try leaves goes when this daemon is started anew (`sweepMoves`).
      resolve: (ctx, why) => tidyIfGone(ctx).catch(() => ctx.log(`left over on this host: ${why.detail}`)),
    }),
  ],
  {
    // Whoever changes what snapshots hold claims the VM.
    claims: (p) => [`vm/${p.vm}`, ...(p.disks ?? []).flatMap((d) => (d.held ? [] : [`volume/${d.volume}`]))],
    lane: 'move',
    result: (output) => output('settle'),
  },
)
