/** Networks, and keeping bridges, names and published ports in line with the records. */
import { fail } from '@wadah/api/fault'
import { newId } from '@wadah/api/ids'
import type { Network, NetworkCreate } from '@wadah/api/schema/network'
import { type Rec, absent, del, put, unchanged } from '@wadah/store/store'
import { type Deps, checkGeneration, commit, find, indexConflict, made, page } from '../context.ts'
import { type NetworkRecord, indexKeys, indexKind, networkKind, vmKind } from '../records.ts'
import { Pending } from '../pending.ts'
import { downOn, forgetStates, recordStates, stateOf } from './states.ts'
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
    const { schema: _, state: _state, reason: _reason, ...n } = rec.value
    return {
      ...n,
      ...stateOf(this.#deps.view, n.id),
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
    const down = downOn(deps.view, record.id, deps.hostId)
    if (down) {
      await this.delete(caller, record.id, undefined)
      const [reason = '', remedy = 'wadah host show'] = (down.reason ?? 'no reason given').split(' Remedy: ')
      throw fail('host_lacks', `The network could not be brought up: ${reason.replace(/\.$/, '')}.`, { remedy })
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
    await commit(
      deps,
      [],
      [
        del(networkKind, rec.id),
        del(indexKind, indexKeys.name('network', project, name)),
        ...forgetStates(deps.view, { network: rec.id }),
      ],
    )
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
  }
  for (const field of FOREIGN[body.kind]) {
    if (body[field] !== undefined && body[field] !== false)
      throw fail('invalid', `A network of kind "${body.kind}" has no ${field}.`, { field: `/${field}` })
  }
  if (body.kind === 'user') return { ...base, kind: 'user' }
  if (body.kind === 'bridge') return { ...base, ...(await lanFields(deps, id, body)) }
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

/** What only networks of other kinds have. */
const FOREIGN = {
  user: ['subnet', 'domain', 'host_access', 'bridge', 'nic', 'vlan'],
  nat: ['bridge', 'nic', 'vlan'],
  bridge: ['subnet', 'domain'],
} as const

/** Where a network of kind `bridge` leads to, looked at on the host before anything is written. */
async function lanFields(
  deps: Deps,
  id: string,
  body: NetworkCreate,
): Promise<Pick<NetworkRecord, 'kind' | 'bridge' | 'nic' | 'vlan' | 'host_access'>> {
  const { nic, vlan } = body
  if ((body.bridge === undefined) === (nic === undefined)) {
    throw fail(
      'invalid',
      'A network of kind "bridge" needs a bridge that is there, or a NIC of the host; one of the two.',
      {
        field: body.bridge === undefined ? '/bridge' : '/nic',
        remedy: 'wadah network create NAME --kind bridge --bridge br0, or --nic eth1; ip -br link lists what there is',
      },
    )
  }
  if (nic !== undefined && body.host_access)
    throw fail(
      'invalid',
      'The host has no address on a bridge that Wadah makes for a NIC: there is nothing to reach.',
      {
        field: '/host_access',
        remedy: 'leave it out',
      },
    )
  const bridge = body.bridge ?? ownBridge(id)
  const networks = deps.view.list(networkKind).map((n) => n.value)
  const twice = nic === undefined ? undefined : networks.find((n) => n.nic === nic && n.vlan === vlan)
  if (twice !== undefined)
    throw fail('in_use', `The network "${twice.name}" leads there already.`, {
      field: '/nic',
      remedy: `use the network "${twice.name}"`,
    })
  const fields = {
    kind: 'bridge' as const,
    bridge,
    ...(nic === undefined ? {} : { nic }),
    ...(vlan === undefined ? {} : { vlan }),
    ...(body.host_access ? { host_access: true } : {}),
  }
  const wrong = await deps.machine.networks.judge({ id, name: body.name, ...fields })
  if (wrong !== undefined)
    throw fail('host_lacks', wrong.reason, { field: nic === undefined ? '/bridge' : '/nic', remedy: wrong.remedy })
  return fields
}

/** The name of a bridge of ours, at most 15 characters. */
const ownBridge = (id: string): string => `wbr-${id.slice(id.indexOf('-') + 1)}`.slice(0, 15)

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

/**
 * Calls of the returned function are merged: while one apply runs, all further ones wait for one more. What the machine says of each
 * network is written down.
 */
export function networkSync(deps: Omit<Deps, 'syncNetworks'>): () => Promise<void> {
  let running: Promise<void> | undefined
  let queued: Promise<void> | undefined
  const apply = async () => {
    const revision = await deps.store.current()
    await deps.view.waitFor(revision)
    const networks = deps.view.list(networkKind)
    const made = networks.map((n) => n.value).filter((n) => n.kind !== 'user')
    if (made.length === 0 && !(await deps.machine.networks.support()).nat) return
    const states = await deps.machine.networks.apply(
      made.map(networkDefinition),
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
