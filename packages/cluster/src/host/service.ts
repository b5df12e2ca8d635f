/** This host as the API shows it. */
import type { HostDevices } from '@wadah/api/schema/devices'
import type { CheckItem, Host, HostCheck } from '@wadah/api/schema/host'
import type { Job } from '@wadah/api/schema/job'
import type { Deps } from '../context.ts'
import type { JobEngine } from '../jobs/engine.ts'
import { human } from '@wadah/api/admit'
import { toFault } from '@wadah/api/fault'
import { isLive, networkKind, placementKind, poolKind, statusKind, vmKind } from '../records.ts'
import type { Membership } from '../members/service.ts'
import { wayItems } from '../members/way.ts'
import { downOn } from '../networks/states.ts'
import { poolDefinition } from '../resolve.ts'
import { whyNot } from '../storage/proven.ts'
import { viewHostDevices } from '../vms/hostdevs.ts'
import { isWaiting } from '../vms/restart.ts'
import { stopAllGuests } from './power.ts'
import type { Caller, HostService } from '../services.ts'

export class HostView implements HostService {
  readonly #deps: Deps
  readonly #engine: JobEngine<Deps>
  readonly #name: string
  readonly #version: string
  readonly #membership: Pick<Membership, 'items'> | undefined

  constructor(
    deps: Deps,
    engine: JobEngine<Deps>,
    name: string,
    version: string,
    membership?: Pick<Membership, 'items'>,
  ) {
    this.#deps = deps
    this.#engine = engine
    this.#name = name
    this.#version = version
    this.#membership = membership
  }

  async check(): Promise<HostCheck> {
    const { machine, view } = this.#deps
    const [items, outdated, folders, lost, ways] = await Promise.all([
      machine.inspect(),
      machine.outdated(),
      poolItems(this.#deps),
      unknownFolders(this.#deps),
      wayItems(this.#deps),
    ])
    const all = [...items, ...folders, ...lost, ...ways, ...(this.#membership?.items() ?? [])]
    return {
      ok: all.every((item) => item.state !== 'lack'),
      items: all,
      outdated: outdated.flatMap((o) => {
        const name = view.get(vmKind, o.vm)?.value.name
        return name === undefined ? [] : [{ ...o, name }]
      }),
    }
  }

  devices(): Promise<HostDevices> {
    return viewHostDevices(this.#deps)
  }

  stopGuests(caller: Caller, body: { timeout_s?: number; total_s?: number }): Promise<Job> {
    return stopAllGuests(this.#deps, this.#engine, caller, body)
  }

  async get(): Promise<Host> {
    const { view, machine, hostId } = this.#deps
    const facts = await machine.facts()
    let promised = 0
    const attention = [...facts.attention]
    for (const { id, value: vm } of view.list(vmKind)) {
      if (view.get(placementKind, id)?.value.host !== hostId) continue
      const status = view.get(statusKind, id)?.value
      const live = isLive(status?.state)
      if (live) promised += vm.spec.memory_mib
      if (status && vm.wanted === 'running' && status.state === 'stopped') {
        attention.push({
          about: `VM ${vm.name}`,
          detail: `It should run and is stopped${status.reason ? `: ${status.reason}` : ''}.${
            isWaiting(vm, status) ? ` It is started again by itself (try ${status.restart.tries}).` : ''
          }`,
          remedy: vm.autostart?.enabled
            ? `wadah vm start ${vm.name}`
            : `wadah vm start ${vm.name}; to start it with the host: wadah vm edit ${vm.name} --autostart`,
        })
      } else if (
        status?.paused_by === 'io-error' ||
        status?.state === 'unknown' ||
        status?.state === 'panicked' ||
        status?.state === 'internal-error'
      ) {
        attention.push({
          about: `VM ${vm.name}`,
          detail: `${status.state}: ${status.reason ?? 'no reason given'}`,
          remedy: `wadah vm show ${vm.name}`,
        })
      }
    }
    for (const { value: n } of view.list(networkKind)) {
      const down = downOn(view, n.id, hostId)
      if (down)
        attention.push({
          about: `network ${n.name}`,
          detail: down.reason ?? 'it is down',
          remedy: `wadah network show ${n.name}`,
        })
    }
    return { ...facts, id: hostId, name: this.#name, version: this.#version, promised_memory_mib: promised, attention }
  }
}

const LEAST_FREE_BYTES = 2 ** 30

/** Pools that are full, not there, or shared and not to be used here. */
async function poolItems(deps: Deps): Promise<CheckItem[]> {
  const found = await Promise.all(
    deps.view.list(poolKind).map(async ({ value: pool }): Promise<CheckItem | undefined> => {
      const name = `pool ${pool.name}`
      const why = whyNot(deps.view, deps.hostId, pool)
      if (why) return { name, state: 'lack', ...why }
      if (pool.host !== deps.hostId) return undefined
      try {
        const { free_bytes, capacity_bytes } = await deps.machine.volumes.facts(poolDefinition(pool))
        const detail = `${human(free_bytes)} of ${human(capacity_bytes)} free in ${pool.path}`
        if (free_bytes >= LEAST_FREE_BYTES && free_bytes >= capacity_bytes / 20) return { name, state: 'ok', detail }
        return { name, state: 'warn', detail: `${detail}.`, remedy: 'wadah volume list; delete what is not needed' }
      } catch (error) {
        const { detail, remedy } = toFault(error)
        return { name, state: 'lack', detail, ...(remedy === undefined ? {} : { remedy }) }
      }
    }),
  )
  return found.filter((item) => item !== undefined)
}

/** After an older copy of the store was put back there may be VMs on the disk that it has never heard of. They are said, not touched. */
async function unknownFolders(deps: Deps): Promise<CheckItem[]> {
  const known = await deps.machine.known()
  const strangers = known.filter((vm) => !deps.view.get(vmKind, vm))
  const running = await Promise.all(strangers.map((vm) => deps.machine.attach(vm).catch(() => undefined)))
  return strangers.map((vm, i) => ({
    name: `folder ${vm}`,
    state: 'warn',
    detail: `There is a folder of the VM ${vm}, which the store does not know${running[i] ? `; its QEMU runs (process ${running[i].pid})` : ''}.`,
    remedy: running[i]
      ? `to end it: kill ${running[i].pid}`
      : `if nothing of it is needed: rm -r the folder vms/${vm} of the data folder`,
  }))
}
