/** Networks, and keeping bridges, names and published ports in line with the records. */
import { fail } from '@wadah/api/fault'
import { newId } from '@wadah/api/ids'
import type { Network, NetworkCreate } from '@wadah/api/schema/network'
import type { NetworkState } from '@wadah/ports/networks'
import { type Rec, absent, del, put, unchanged } from '@wadah/store/store'
import { type Deps, checkGeneration, commit, find, indexConflict, made, page } from '../context.ts'
import { type NetworkRecord, indexKeys, indexKind, networkKind, vmKind } from '../records.ts'
import { Pending } from '../pending.ts'
import { attachments, networkDefinition } from '../resolve.ts'
import type { Caller, IfGeneration, ListQuery, NetworkService, PageOf } from '../services.ts'
import { toAddress, toNumber } from '../vms/allocate.ts'
import { checkName } from '../vms/create.ts'

const SYNC_TIMEOUT_MS = 60_000

export class NetworkStore implements NetworkService {
  readonly #deps: Deps
  readonly #choosing = new Pending()
  constructor(deps: Deps) {
    this.#deps = deps
  }

  list(caller: Caller, q: ListQuery): PageOf<Network> {
    const mine = this.#deps.view.list(networkKind).filter((n) => n.value.project === caller.project)
    const { items, next } = page(mine, (rec) => rec.id, q)
    return { items: items.map((rec) => this.#view(rec)), ...(next === undefined ? {} : { next }) }
  }

  get(caller: Caller, ref: string): Network {
    return this.#view(find(this.#deps, 'network', networkKind, caller.project, ref))
  }

  #view(rec: Rec<NetworkRecord>): Network {
    const { schema: _, ...n } = rec.value
    return {
      ...n,
      generation: rec.version,
      reservations: this.#deps.view
        .list(vmKind)
        .flatMap(({ value: vm }) =>
          vm.spec.nics.flatMap((nic) =>
            nic.network === n.id && nic.address !== undefined
              ? [{ vm: vm.id, vm_name: vm.name, nic: nic.name, mac: nic.mac, address: nic.address }]
              : [],
          ),
        ),
    }
  }

  async create(caller: Caller, body: NetworkCreate): Promise<Network> {
    const deps = this.#deps
    checkName(deps, 'network', caller.project, body.name)
    // Between choosing a subnet and having it nobody else may choose.
    const record = await this.#choosing.alone(async () => {
      const chosen = await newNetwork(deps, caller.project, body)
      const key = indexKeys.name('network', caller.project, body.name)
      await commit(
        deps,
        [absent(indexKind, key)],
        [put(networkKind, chosen.id, chosen), put(indexKind, key, { schema: 1, holder: chosen.id })],
        indexConflict,
      )
      return chosen
    })
    await deps.syncNetworks()
    const network = await made(() => this.get(caller, record.id))
    if (network.state === 'down') {
      await this.delete(caller, record.id, undefined)
      throw fail('host_lacks', `The network could not be brought up: ${network.reason ?? 'no reason given'}.`, {
        remedy: 'wadah host show',
      })
    }
    return network
  }

  async delete(caller: Caller, ref: string, generation: IfGeneration): Promise<void> {
    const deps = this.#deps
    const rec = find(deps, 'network', networkKind, caller.project, ref)
    checkGeneration(rec, generation)
    const refuse = () => {
      const users = deps.view.list(vmKind).filter((vm) => vm.value.spec.nics.some((n) => n.network === rec.id))
      if (users.length > 0) {
        throw fail(
          'in_use',
          `${users.length} VMs use the network "${rec.value.name}", "${users[0]?.value.name}" among them.`,
          {
            remedy: `wadah vm list --network ${rec.value.name}`,
          },
        )
      }
    }
    refuse()
    await commit(deps, [unchanged(rec)], [put(networkKind, rec.id, rec.value)])
    refuse()
    const { project, name } = rec.value
    await commit(deps, [], [del(networkKind, rec.id), del(indexKind, indexKeys.name('network', project, name))])
    await deps.syncNetworks()
  }
}

/** Chooses what was not said, and refuses what collides. */
export async function newNetwork(deps: Deps, project: string, body: NetworkCreate): Promise<NetworkRecord> {
  const id = newId('network', deps.randomBytes)
  const base = {
    schema: 1 as const,
    id,
    name: body.name,
    project,
    created_at: new Date(deps.clock.now_ms()).toISOString(),
    state: 'up' as const,
  }
  if (body.kind === 'user') {
    for (const field of ['subnet', 'domain', 'host_access'] as const) {
      if (body[field] !== undefined && body[field] !== false)
        throw fail('invalid', `A network of kind "user" has no ${field}.`, { field: `/${field}` })
    }
    return { ...base, kind: 'user' }
  }
  const support = await deps.machine.networks.support()
  if (!support.nat)
    throw fail(
      'host_lacks',
      `A network of kind "nat" cannot be made here: ${(support.reason ?? 'no reason given').replace(/\.$/, '')}.`,
      {
        field: '/kind',
        remedy: support.remedy,
      },
    )
  const others = deps.view.list(networkKind).flatMap((n) => (n.value.subnet === undefined ? [] : [n.value.subnet]))
  const proposal = await deps.machine.networks.propose(id, others)
  const nat = {
    ...base,
    kind: 'nat' as const,
    domain: body.domain ?? 'wadah.internal',
    ...(body.host_access ? { host_access: true } : {}),
  }
  if (body.subnet === undefined) return { ...nat, ...proposal }
  const { subnet, gateway } = normalise(body.subnet)
  if (!PRIVATE.some((whole) => within(whole, subnet))) {
    throw fail('invalid', `${subnet} is no private subnet: real machines elsewhere could not be reached any more.`, {
      field: '/subnet',
      remedy: `one inside ${PRIVATE.join(', ')}; without "subnet" a free one is chosen`,
    })
  }
  const clash = others.find((other) => overlap(other, subnet))
  if (clash !== undefined)
    throw fail('address_taken', `${subnet} overlaps ${clash}, the subnet of another network.`, { field: '/subnet' })
  return { ...nat, subnet, gateway, bridge: proposal.bridge }
}

/** `10.1.2.3/24` → its first address as gateway. */
function normalise(cidr: string): { subnet: string; gateway: string } {
  const [address = '', bits = '24'] = cidr.split('/')
  const size = 2 ** (32 - Number(bits))
  const first = Math.floor(toNumber(address) / size) * size
  return { subnet: `${toAddress(first)}/${bits}`, gateway: toAddress(first + 1) }
}
function range(cidr: string): [number, number] {
  const [address = '', bits = '24'] = cidr.split('/')
  const size = 2 ** (32 - Number(bits))
  const first = Math.floor(toNumber(address) / size) * size
  return [first, first + size - 1]
}
/** RFC 1918. */
const PRIVATE = ['10.0.0.0/8', '172.16.0.0/12', '192.168.0.0/16']
function within(whole: string, part: string): boolean {
  const [w0, w1] = range(whole)
  const [p0, p1] = range(part)
  return w0 <= p0 && p1 <= w1
}
function overlap(a: string, b: string): boolean {
  const [a0, a1] = range(a)
  const [b0, b1] = range(b)
  return a0 <= b1 && b0 <= a1
}

/** What the machine says of its networks goes into their records. */
export async function recordStates(deps: Omit<Deps, 'syncNetworks'>, states: readonly NetworkState[]): Promise<void> {
  for (const { id, state, reason } of states) {
    const rec = deps.view.get(networkKind, id)
    if (!rec || (rec.value.state === state && rec.value.reason === reason)) continue
    const { reason: _reason, ...rest } = rec.value
    await commit(
      deps,
      [unchanged(rec)],
      [put(networkKind, id, { ...rest, state, ...(reason === undefined ? {} : { reason }) })],
    )
  }
}

/**
 * Calls of the returned function are merged: while one apply runs, all further ones wait for one more. What the machine says of each
 * network goes into its record.
 */
export function networkSync(deps: Omit<Deps, 'syncNetworks'>): () => Promise<void> {
  let running: Promise<void> | undefined
  let queued: Promise<void> | undefined
  const apply = async () => {
    const revision = await deps.store.current()
    await deps.view.waitFor(revision)
    const networks = deps.view.list(networkKind)
    const nats = networks.map((n) => n.value).filter((n) => n.kind === 'nat')
    if (nats.length === 0 && !(await deps.machine.networks.support()).nat) return
    const states = await deps.machine.networks.apply(
      nats.map(networkDefinition),
      attachments(deps),
      AbortSignal.timeout(SYNC_TIMEOUT_MS),
    )
    await recordStates(deps, states)
  }
  return () => {
    if (!running) {
      running = apply().finally(() => {
        running = undefined
      })
      return running
    }
    queued ??= running
      .catch(() => undefined)
      .then(() => {
        queued = undefined
        running = apply().finally(() => {
          running = undefined
        })
        return running
      })
    return queued
  }
}
