/** This host as the API shows it. */
import type { Host } from '@wadah/api/schema/host'
import type { Job } from '@wadah/api/schema/job'
import type { Deps } from '../context.ts'
import type { JobEngine } from '../jobs/engine.ts'
import { networkKind, statusKind, vmKind } from '../records.ts'
import { stopAllGuests } from './power.ts'
import type { Caller, HostService } from '../services.ts'

export class HostView implements HostService {
  readonly #deps: Deps
  readonly #engine: JobEngine<Deps>
  readonly #name: string
  readonly #version: string

  constructor(deps: Deps, engine: JobEngine<Deps>, name: string, version: string) {
    this.#deps = deps
    this.#engine = engine
    this.#name = name
    this.#version = version
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
      const status = view.get(statusKind, id)?.value
      const live = status !== undefined && status.state !== 'stopped' && status.state !== 'absent'
      if (live) promised += vm.spec.memory_mib
      if (status && vm.wanted === 'running' && status.state === 'stopped') {
        attention.push({
          about: `VM ${vm.name}`,
          detail: `It should run and is stopped${status.reason ? `: ${status.reason}` : ''}.`,
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
      if (n.state === 'down')
        attention.push({
          about: `network ${n.name}`,
          detail: n.reason ?? 'it is down',
          remedy: `wadah network show ${n.name}`,
        })
    }
    return { ...facts, id: hostId, name: this.#name, version: this.#version, promised_memory_mib: promised, attention }
  }
}
