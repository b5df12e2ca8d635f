/** Starting VMs with the host, and shutting them down with it. */
import { fail } from '@wadah/api/fault'
import { sleep } from '@wadah/store/clock'
import type { Deps } from '../context.ts'
import { type StepContext, defineJob, step } from '../jobs/define.ts'
import { isLive, placementKind, statusKind, vmKind } from '../records.ts'
import type { Children } from './children.ts'
import { type Ordered, graceOf, orderedOf, startGroups, stopGroups } from './order.ts'
import { powerClaim, STOP_GUESTS } from './power-claim.ts'
import { forgetRestarts } from '../vms/restart.ts'

export type AutostartParams = { host: string; boot: string; vms: Ordered[] }
export type StopGuestsParams = { host: string; each_s: number; total_s: number }
type Failed = { vm: string; why: string }
export type PowerResult = { done: string[]; failed: Failed[] }

function hostParams<P extends { host: string }>(value: unknown): P {
  if (typeof (value as P)?.host !== 'string') throw fail('invalid', 'The job has no host.')
  return value as P
}

function children(deps: Deps): Children {
  if (!deps.children) throw fail('unavailable', 'The daemon is still starting.')
  return deps.children
}

async function autostart(ctx: StepContext<AutostartParams, Deps>): Promise<PowerResult> {
  const { deps, params: p, signal, clock } = ctx
  const result: PowerResult = { done: [], failed: [] }
  const groups = startGroups(p.vms)
  for (const [i, group] of groups.entries()) {
    ctx.log(`order ${group.order}: ${group.vms.map((v) => v.name).join(', ')}`)
    const ends = await Promise.all(
      group.vms.map(async ({ vm, name }) => {
        if (!deps.view.get(vmKind, vm)) return { name, before: true, why: 'it was deleted' }
        const end = await children(deps).start(vm, `autostart/${p.boot}/${vm}`, signal)
        return { name, before: end.before, why: end.fault?.detail }
      }),
    )
    for (const { name, why } of ends) {
      // One that fails keeps no other.
      if (why === undefined) result.done.push(name)
      else {
        result.failed.push({ vm: name, why })
        ctx.log(`${name} did not start: ${why}`)
      }
    }
    ctx.progress((i + 1) / groups.length)
    const last = i === groups.length - 1
    if (!last && group.delay_s > 0 && ends.some((e) => !e.before)) {
      ctx.log(`waiting ${group.delay_s} s`)
      await sleep(clock, group.delay_s * 1000, signal)
    }
  }
  return result
}

export const autostartJob = defineJob<AutostartParams, Deps>(
  'host.autostart',
  1,
  hostParams<AutostartParams>,
  [step('start', { do: autostart })],
  { claims: (p) => [powerClaim(p.host)], lane: 'wait' },
)

/** VMs of this host that are not off. */
function live(deps: Deps): Ordered[] {
  return deps.view.list(vmKind).flatMap(({ id, value }) => {
    const state = deps.view.get(statusKind, id)?.value.state
    const here = deps.view.get(placementKind, id)?.value.host === deps.hostId
    return here && isLive(state) ? [orderedOf({ ...value, id })] : []
  })
}

async function stopGuests(ctx: StepContext<StopGuestsParams, Deps>): Promise<PowerResult> {
  const { deps, params: p, signal, clock } = ctx
  const result: PowerResult = { done: [], failed: [] }
  const end_ms = clock.monotonic_ms() + p.total_s * 1000
  await forgetRestarts(deps)
  const groups = stopGroups(live(deps))
  for (const [i, group] of groups.entries()) {
    const grace = graceOf({
      left_ms: end_ms - clock.monotonic_ms(),
      later_groups: groups.length - 1 - i,
      each_s: p.each_s,
    })
    ctx.log(`order ${group.order}: ${group.vms.map((v) => v.name).join(', ')}, ${grace} s`)
    await Promise.all(
      group.vms.map(async ({ vm, name }) => {
        const end = await children(deps).shutdown(vm, `${ctx.jobId}/shutdown/${vm}`, grace, signal)
        if (end.fault) ctx.log(`${name}: ${end.fault.detail}`)
        else result.done.push(name)
      }),
    )
    ctx.progress((i + 1) / (groups.length + 1))
  }
  // What could not be shut down in order (it was starting, a job was at work on it), before its network and its disks go.
  await Promise.all(
    live(deps).map(async ({ vm, name }) => {
      const end = await children(deps).stop(vm, `${ctx.jobId}/stop/${vm}`, signal)
      if (end.fault) result.failed.push({ vm: name, why: end.fault.detail })
      else if (!result.done.includes(name)) result.done.push(name)
    }),
  )
  return { done: result.done.sort(), failed: result.failed }
}

export const stopGuestsJob = defineJob<StopGuestsParams, Deps>(
  STOP_GUESTS,
  1,
  hostParams<StopGuestsParams>,
  [step('stop', { do: stopGuests })],
  // Cut off by the end of the daemon it is over: a host that has come up again must not go on shutting down.
  { claims: (p) => [powerClaim(p.host)], onCrash: 'undo', lane: 'wait' },
)
