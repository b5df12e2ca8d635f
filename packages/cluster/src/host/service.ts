/** This host as the API shows it. */
import type { Host } from '@wadah/api/schema/host'
import type { Deps } from '../context.ts'
import { networkKind, statusKind, vmKind } from '../records.ts'
import type { HostService } from '../services.ts'

export class HostView implements HostService {
  readonly #deps: Deps
  readonly #name: string
  readonly #version: string

  constructor(deps: Deps, name: string, version: string) {
    this.#deps = deps
    this.#name = name
    this.#version = version
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
          remedy: `wadah vm start ${vm.name}`,
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
