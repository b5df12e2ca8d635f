/** What happens when the host has come up, and when it goes down. */
import { fail } from '@wadah/api/fault'
import type { Job } from '@wadah/api/schema/job'
import { put, unchanged } from '@wadah/store/store'
import { type Deps, commit } from '../context.ts'
import type { JobEngine } from '../jobs/engine.ts'
import { claimKind } from '../jobs/record.ts'
import { type HostRecord, hostKind, placementKind, vmKind } from '../records.ts'
import type { Caller } from '../services.ts'
import { submit } from '../submit.ts'
import { systemCaller } from './children.ts'
import { autostartJob, stopGuestsJob } from './jobs.ts'
import { orderedOf, rebooted } from './order.ts'
import { powerClaim } from './power-claim.ts'

const CANCEL_MS = 30_000
const EACH_S = 120
const TOTAL_S = 300

/** Another store id means that an older copy was put back: what it saw is no measure. */
function seenBoot(deps: Deps): string | undefined {
  const seen = deps.view.get(hostKind, deps.hostId)?.value.boot
  return seen?.store === deps.store.id ? seen.id : undefined
}

/** Whether machine and store are those that this daemon's last life knew: then what ended in between is a failure of its own. */
export function isSameBoot(deps: Deps, boot: string): boolean {
  return seenBoot(deps) === boot
}

/** Whether the machine was started anew since the store last saw it. */
export function hasRebooted(deps: Deps, boot: string): boolean {
  return rebooted(seenBoot(deps), boot)
}

/**
 * After the daemon's start, once everything is adopted. The boot is noted in the commit that makes the job, so one boot starts VMs
 * once, whatever becomes of the daemon.
 */
export async function onDaemonStart(deps: Deps, engine: JobEngine<Deps>, boot: string): Promise<void> {
  const host = deps.view.get(hostKind, deps.hostId)
  const seen = seenBoot(deps)
  if (!host || seen === boot) return
  const note = put(hostKind, host.id, { ...host.value, boot: { id: boot, store: deps.store.id } } satisfies HostRecord)
  const vms = deps.view.list(vmKind).flatMap(({ id, value }) => {
    const here = deps.view.get(placementKind, id)?.value.host === deps.hostId
    return here && value.autostart?.enabled ? [orderedOf({ ...value, id })] : []
  })
  if (!rebooted(seen, boot) || vms.length === 0) {
    await commit(deps, [unchanged(host)], [note])
    return
  }
  const params = { host: host.id, boot, vms }
  await submit(deps, engine, systemCaller(), autostartJob, params, target(host.value), {
    checks: [unchanged(host)],
    writes: [note],
  })
}

const target = (host: HostRecord) => ({ kind: 'host', id: host.id, name: host.name })

/** Shuts all guests down for the host's own end; starts that are still under way are called off. */
export async function stopAllGuests(
  deps: Deps,
  engine: JobEngine<Deps>,
  caller: Caller,
  body: { timeout_s?: number; total_s?: number },
): Promise<Job> {
  const host = deps.view.get(hostKind, deps.hostId)?.value
  if (!host) throw fail('unavailable', 'The record of this host is not there yet.')
  const claim = deps.view.get(claimKind, powerClaim(host.id))?.value
  if (claim?.name === autostartJob.name) {
    await engine.cancel(claim.job)
    await engine.wait(claim.job, { timeout_ms: CANCEL_MS })
  }
  const params = { host: host.id, each_s: body.timeout_s ?? EACH_S, total_s: body.total_s ?? TOTAL_S }
  return submit(deps, engine, caller, stopGuestsJob, params, target(host))
}
