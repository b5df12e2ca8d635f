/** Carries out a plan, one action after the other. One that fails keeps no other; what needs it is refused by the daemon in its turn. */
import { endpoints } from '@wadah/api/endpoints/all'
import { type Fault, WadahError, fail, toFault } from '@wadah/api/fault'
import type { Job } from '@wadah/api/schema/job'
import type { VmEdit } from '@wadah/api/schema/vm'
import type { Cli } from '../cli.ts'
import { follow, jobFault } from '../jobs/follow.ts'
import type { Api } from '../net/api.ts'
import type { Action } from './plan.ts'

export type Outcome = { action: Action; fault?: Fault; pending?: string[] }

/** How long a guest is given to shut down before a change that needs it stopped. */
const GRACE_S = 120

export async function carryOut(
  cli: Cli,
  api: Api,
  actions: readonly Action[],
  o: { restart: boolean; report: (outcome: Outcome) => void },
): Promise<Outcome[]> {
  const outcomes: Outcome[] = []
  for (const action of actions) {
    let outcome: Outcome
    try {
      const pending = await new Carrier(cli, api, o.restart).carry(action)
      outcome = { action, ...(pending.length > 0 ? { pending } : {}) }
    } catch (error) {
      if (!(error instanceof WadahError)) throw error
      outcome = { action, fault: toFault(error) }
    }
    outcomes.push(outcome)
    o.report(outcome)
  }
  return outcomes
}

class Carrier {
  readonly #cli: Cli
  readonly #api: Api
  readonly #restart: boolean
  constructor(cli: Cli, api: Api, restart: boolean) {
    this.#cli = cli
    this.#api = api
    this.#restart = restart
  }

  async #end(job: Job): Promise<void> {
    const fault = jobFault(await follow(this.#cli, this.#api, job))
    if (fault) throw new WadahError(fault)
  }

  /** Fields that wait for the next start. */
  async carry(a: Action): Promise<string[]> {
    const api = this.#api
    switch (a.do) {
      case 'create':
        await this.#create(a)
        return []
      case 'edit':
        return await this.#edit(a)
      case 'resume':
        await api.call(endpoints.vms.resume, { params: { vm: a.id } })
        return []
      case 'start':
        await this.#start(a.id)
        return []
      case 'shutdown':
        await this.#shutdown(a.id)
        return []
      case 'restart':
        await this.#shutdown(a.id)
        await this.#start(a.id)
        return []
      default:
        if (a.running) await this.#shutdown(a.id, true)
        await this.#end(await api.call(endpoints.vms.delete, { params: { vm: a.id }, query: { force: a.running } }))
        return []
    }
  }

  async #create(a: Action & { do: 'create' }): Promise<void> {
    const api = this.#api
    const body = a.body as never
    if (a.kind === 'pool') await api.call(endpoints.pools.create, { body })
    else if (a.kind === 'network') await api.call(endpoints.networks.create, { body })
    else if (a.kind === 'firewall-group') await api.call(endpoints.firewallGroups.create, { body })
    else if (a.kind === 'image') await this.#end(await api.call(endpoints.images.build, { body }))
    else
      await this.#end(
        await api.call(endpoints.vms.create, { body: { ...(a.body as { name: string }), start: a.start } }),
      )
  }

  async #edit(a: Action & { do: 'edit' }): Promise<string[]> {
    const api = this.#api
    if (a.kind === 'pool') {
      await api.call(endpoints.pools.edit, { params: { pool: a.id }, body: a.body as never, generation: a.generation })
      return []
    }
    if (a.kind === 'firewall-group') {
      const params = { group: a.id }
      await api.call(endpoints.firewallGroups.edit, { params, body: a.body as never, generation: a.generation })
      return []
    }
    for (const { volume, size_mib } of a.grow)
      await this.#end(await api.call(endpoints.volumes.resize, { params: { volume }, body: { size_mib } }))
    const params = { vm: a.id }
    if (a.stop) await this.#shutdown(a.id)
    // A shutdown writes what is wanted, and so counts as a change.
    const generation = a.stop ? (await api.call(endpoints.vms.get, { params })).generation : a.generation
    const edited =
      Object.keys(a.body).length === 0
        ? await api.call(endpoints.vms.get, { params })
        : await api.call(endpoints.vms.edit, { params, body: a.body as VmEdit, generation })
    if (a.stop) {
      if (a.start) await this.#start(a.id)
      return []
    }
    const pending = edited.status.pending_restart
    if (pending.length === 0 || !this.#restart || !a.start) return pending
    await this.#shutdown(a.id)
    await this.#start(a.id)
    return []
  }

  async #start(vm: string): Promise<void> {
    await this.#end(await this.#api.call(endpoints.vms.start, { params: { vm } }))
  }

  /** In order, as long as the guest takes part; `force`: what is to be deleted anyway loses its plug in the end. */
  async #shutdown(vm: string, force = false): Promise<void> {
    const params = { vm }
    const { status, name } = await this.#api.call(endpoints.vms.get, { params })
    if (status.state === 'stopped') return
    if (status.state === 'paused' && status.paused_by === 'user') await this.#api.call(endpoints.vms.resume, { params })
    else if (status.state !== 'running') {
      if (force) return
      throw fail('wrong_state', `"${name}" is ${status.state}: it cannot be shut down in order.`, {
        remedy: `wadah vm show ${name}`,
      })
    }
    await this.#end(await this.#api.call(endpoints.vms.shutdown, { params, body: { timeout_s: GRACE_S, force } }))
  }
}
