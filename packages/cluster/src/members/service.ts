/** The cluster as the API shows it, and what changes who is in it. */
import { createHash, timingSafeEqual } from 'node:crypto'
import { fail } from '@wadah/api/fault'
import { hostPort } from '@wadah/api/host-port'
import { newId } from '@wadah/api/ids'
import type {
  Cluster,
  ClusterEdit,
  ClusterHost,
  Drain,
  DrainPlan,
  JoinToken,
  JoinTokenCreate,
  MoveWishes,
} from '@wadah/api/schema/cluster'
import type { CheckItem } from '@wadah/api/schema/host'
import type { Job } from '@wadah/api/schema/job'
import { del, put, type Rec, unchanged } from '@wadah/store/store'
import { caughtUp, commit, type Deps, iso } from '../context.ts'
import { atOnceOf, drainJob, drainPlan, undrainJob } from '../host/drain.ts'
import type { JobEngine } from '../jobs/engine.ts'
import { subjectOf } from '../jobs/service.ts'
import { submit } from '../submit.ts'
import {
  type HostRecord,
  hostKind,
  imageKind,
  indexKeys,
  indexKind,
  isLive,
  placementKind,
  poolKind,
  statusKind,
  vmKind,
  volumeKind,
} from '../records.ts'
import type { Caller, ClusterService } from '../services.ts'
import { forgetStates } from '../networks/states.ts'
import { forgetFacts } from './alive.ts'
import { clocksOff } from './way.ts'
import { giveUp } from './lost.ts'
import { busyOf } from './load.ts'
import { plainNetworks } from './plain.ts'
import { aliveKind, CLUSTER, clusterKind, factsKind, type JoinTokenRecord, joinTokenKind, LEVEL } from './records.ts'

/** What the daemon knows of the store that carries the cluster. */
export type Membership = {
  stores(): Promise<Cluster['store']>
  /** The hosts' authority, by which a host that joins knows the cluster. */
  fingerprint(): string
  /** Its member of etcd is no member any more. */
  dropMember(host: HostRecord): Promise<void>
  /** What is wrong with this host's own copy of the store. */
  items(): CheckItem[]
}
/** `a`: addresses of peers; `f`: SHA-256 of the hosts' authority; `s`: the secret. */
export type TokenText = { a: string[]; f: string; s: string }

const PREFIX = 'wadah-join-'
const TTL_S = 3600
const ALONE = 'This host is alone.'
const INIT = 'wadah cluster init --address ADDRESS (VMs run on)'

export class Clusters implements ClusterService {
  readonly #deps: Deps
  readonly #engine: JobEngine<Deps>
  readonly #membership: Membership | undefined

  constructor(deps: Deps, engine: JobEngine<Deps>, membership: Membership | undefined) {
    this.#deps = deps
    this.#engine = engine
    this.#membership = membership
  }

  async get(): Promise<Cluster> {
    const { view, hostId } = this.#deps
    const cluster = view.get(clusterKind, CLUSTER)?.value
    const [off, store] = await Promise.all([
      clocksOff(this.#deps),
      this.#membership?.stores() ?? { kind: 'sqlite' as const, members: [] },
    ])
    return {
      ...(cluster ? { id: cluster.id } : {}),
      level: cluster?.level ?? LEVEL,
      this_host: hostId,
      plain_networks: cluster?.plain_networks ?? [],
      hosts: view
        .list(hostKind)
        .map((h) => {
          const clock_off_ms = off.get(h.id)
          return { ...this.#show(h), ...(clock_off_ms === undefined ? {} : { clock_off_ms }) }
        })
        .toSorted((a, b) => a.name.localeCompare(b.name)),
      store,
    }
  }

  /** @throws WadahError `invalid`; `wrong_state` on a host that is alone */
  async set(_caller: Caller, body: ClusterEdit): Promise<Cluster> {
    const plain_networks = plainNetworks(body.plain_networks)
    const cluster = await this.#deps.store.get(clusterKind, CLUSTER)
    if (!cluster) throw fail('wrong_state', ALONE, { remedy: INIT })
    await commit(this.#deps, [unchanged(cluster)], [put(clusterKind, CLUSTER, { ...cluster.value, plain_networks })])
    return this.get()
  }

  host(_caller: Caller, ref: string): ClusterHost {
    return this.#show(this.#find(ref))
  }

  async edit(caller: Caller, ref: string, body: { maintenance: boolean }): Promise<ClusterHost> {
    const rec = this.#find(ref)
    const { maintenance: _, ...rest } = rec.value
    await commit(
      this.#deps,
      [unchanged(rec)],
      [put(hostKind, rec.id, body.maintenance ? { ...rest, maintenance: true } : rest)],
    )
    return this.host(caller, rec.id)
  }

  async plan(_caller: Caller, ref: string, o: { at_once?: number } = {}): Promise<DrainPlan> {
    const { id } = this.#find(ref)
    if (!this.#membership)
      return { moves: [], blockers: [], eta_s: 0, eta_how: '', detail: `${ALONE} There is no other for its VMs.` }
    return drainPlan(this.#deps, id, atOnceOf(this.#deps, id, o.at_once))
  }

  async drain(caller: Caller, ref: string, { at_once, ...wishes }: Drain): Promise<Job> {
    const moves = atOnceOf(this.#deps, this.#find(ref).id, at_once)
    return this.#hostJob(caller, ref, drainJob, { at_once: moves, ...wishes })
  }

  undrain(caller: Caller, ref: string, wishes: MoveWishes): Promise<Job> {
    return this.#hostJob(caller, ref, undrainJob, { at_once: 1, ...wishes })
  }

  async #hostJob(
    caller: Caller,
    ref: string,
    definition: typeof drainJob,
    o: MoveWishes & { at_once: number },
  ): Promise<Job> {
    const { value: host } = this.#find(ref)
    if (!this.#membership) throw fail('wrong_state', `${ALONE} There is no other for its VMs.`, { remedy: INIT })
    // A host that is down can't be asked; its VMs may run, and only who has seen to it that they don't may start them elsewhere.
    if (host.id !== this.#deps.hostId)
      throw fail('not_owner', `${host.name} carries this out itself, and does not answer.`, {
        remedy: 'wadah host list',
      })
    const target = { kind: 'host', id: host.id, name: host.name }
    return submit(this.#deps, this.#engine, caller, definition, { host: host.id, name: host.name, ...o }, target)
  }

  async token(caller: Caller, body: JoinTokenCreate): Promise<JoinToken> {
    const { view, randomBytes, clock } = this.#deps
    if (!this.#membership) throw fail('wrong_state', ALONE, { remedy: INIT })
    const now = clock.now_ms()
    const secret = Buffer.from(randomBytes(24)).toString('base64url')
    const record: JoinTokenRecord = {
      schema: 1,
      id: newId('token', randomBytes),
      hash: hashOf(secret),
      created_by: subjectOf(caller),
      expires_ms: now + (body.ttl_s ?? TTL_S) * 1000,
    }
    const old = view.list(joinTokenKind).filter((t) => t.value.expires_ms < now)
    await commit(this.#deps, [], [put(joinTokenKind, record.id, record), ...old.map((t) => del(joinTokenKind, t.id))])
    const text: TokenText = {
      a: view.list(hostKind).flatMap(({ value: h }) => addressOf(h) ?? []),
      f: this.#membership.fingerprint(),
      s: `${record.id}.${secret}`,
    }
    return {
      token: PREFIX + Buffer.from(JSON.stringify(text)).toString('base64url'),
      expires_at: iso(record.expires_ms),
    }
  }

  async remove(_caller: Caller, ref: string, o: { lost?: boolean; drop?: boolean } = {}): Promise<void> {
    const deps = this.#deps
    const { view } = deps
    const rec = this.#find(ref)
    const { name } = rec.value
    if (!this.#membership) throw fail('wrong_state', ALONE, { remedy: INIT })
    if (rec.id === deps.hostId)
      throw fail('in_use', `This is ${name} itself; another host takes it out.`, {
        remedy: `on another host: wadah cluster remove ${name}`,
      })
    if (o.drop && !o.lost)
      throw fail('invalid', '--drop is for a host that is lost.', { field: '/drop', remedy: `add --lost` })
    if (o.lost) {
      await giveUp(deps, rec, o.drop === true)
      await caughtUp(deps)
    }
    const placed = view.list(placementKind).filter((p) => p.value.host === rec.id || p.value.handover?.to === rec.id)
    const [first] = placed
    if (first)
      throw fail(
        'in_use',
        `${placed.length} VMs are placed on ${name}, "${view.get(vmKind, first.id)?.value.name ?? first.id}" among them.`,
        { remedy: `wadah host drain ${name}; if it is lost for ever: wadah cluster remove ${name} --lost` },
      )
    const pools = view.list(poolKind).filter((p) => p.value.host === rec.id && !p.value.shared)
    const lying = view.list(volumeKind).find((v) => pools.some((p) => p.id === v.value.pool))
    if (lying)
      throw fail('in_use', `The volume "${lying.value.name}" lies on ${name}.`, {
        remedy: `wadah volume move ${lying.value.name} POOL, or wadah volume delete ${lying.value.name}`,
      })
    const images = view.list(imageKind).filter((i) => i.value.host === rec.id && i.value.volume === undefined)
    if (images[0])
      throw fail('in_use', `The image "${images[0].value.name}" lies on ${name}.`, {
        remedy: `wadah image delete ${images[0].value.name}`,
      })
    // First the vote: a host that is gone for good must not count in the majority.
    await this.#membership.dropMember(rec.value)
    await commit(
      deps,
      [unchanged(rec)],
      [
        del(hostKind, rec.id),
        ...forgetFacts(rec.id),
        ...forgetStates(view, { host: rec.id }),
        ...pools.flatMap((p) => [
          del(poolKind, p.id),
          del(indexKind, indexKeys.name('pool', p.value.project, p.value.name)),
        ]),
      ],
    )
  }

  #find(ref: string): Rec<HostRecord> {
    const found = this.#deps.view.list(hostKind).find((h) => h.id === ref || h.value.name === ref)
    if (!found) throw fail('not_found', `There is no host "${ref.slice(0, 80)}".`, { remedy: 'wadah host list' })
    return found
  }

  #show({ value: h }: Rec<HostRecord>): ClusterHost {
    const { view, hostId } = this.#deps
    const facts = view.get(factsKind, h.id)?.value
    const alive = h.id === hostId || view.get(aliveKind, h.id) !== undefined
    const placed = view.list(placementKind).filter((p) => p.value.host === h.id)
    const live = placed.filter((p) => isLive(view.get(statusKind, p.id)?.value.state))
    const promised = live.reduce((sum, p) => sum + (view.get(vmKind, p.id)?.value.spec.memory_mib ?? 0), 0)
    return {
      id: h.id,
      name: h.name,
      ...(h.address === undefined ? {} : { address: h.address }),
      state: !alive ? 'down' : h.maintenance ? 'maintenance' : 'up',
      member: h.member === true,
      vms: placed.length,
      running: live.length,
      promised_memory_mib: promised,
      ...(facts
        ? {
            version: h.build?.version ?? facts.version,
            qemu_version: facts.qemu_version,
            accelerator: facts.accelerator,
            cpu_model: facts.cpu_model,
            cpus: facts.cpus,
            ...busyOf(view, h.id, this.#deps.clock.now_ms()),
            memory_mib: facts.memory_mib,
            memory_free_mib: facts.memory_free_mib,
          }
        : {}),
    }
  }
}

export const addressOf = (h: HostRecord): string | undefined =>
  h.address === undefined || h.ports === undefined ? undefined : hostPort(h.address, h.ports.peer)

export const hashOf = (secret: string) => createHash('sha256').update(secret).digest('hex')

/** @throws WadahError `invalid` when it is no token of ours */
export function readToken(text: string): TokenText {
  const trimmed = text.trim()
  try {
    if (!trimmed.startsWith(PREFIX)) throw new Error('prefix')
    const t = JSON.parse(Buffer.from(trimmed.slice(PREFIX.length), 'base64url').toString('utf8')) as TokenText
    if (
      Array.isArray(t.a) &&
      t.a.every((a) => typeof a === 'string') &&
      /^[0-9a-f]{64}$/.test(t.f) &&
      typeof t.s === 'string'
    )
      return t
  } catch {
    // Said below.
  }
  throw fail('invalid', 'This is no token to join a cluster with; one begins with wadah-join-.', {
    remedy: 'on a host of the cluster: wadah cluster token',
  })
}

/** The record this secret belongs to. The same answer for one that is unknown, wrong, used by another host or too old is given apart. */
export function checkJoinToken(
  list: readonly Rec<JoinTokenRecord>[],
  secret: string,
  host: string,
  now_ms: number,
): Rec<JoinTokenRecord> {
  const remedy = 'on a host of the cluster: wadah cluster token'
  const [id = '', rest = ''] = secret.split('.', 2)
  const found = list.find((t) => t.id === id)
  const given = Buffer.from(hashOf(rest))
  // Also of an unknown id something is compared: how long it takes says nothing.
  const wanted = Buffer.from(found?.value.hash ?? hashOf(''))
  if (!timingSafeEqual(given, wanted) || !found)
    throw fail('unauthenticated', 'The token is unknown: it is forged, of another cluster, or long over.', { remedy })
  if (found.value.used_by !== undefined && found.value.used_by !== host)
    throw fail('unauthenticated', 'The token was used already, by another host; each is for one.', { remedy })
  if (found.value.expires_ms < now_ms)
    throw fail('unauthenticated', `The token ended at ${iso(found.value.expires_ms)}.`, { remedy })
  return found
}

/** Whether any host could come with this secret now: said before a body of a stranger is read. @throws WadahError `unauthenticated` */
export function checkJoinSecret(list: readonly Rec<JoinTokenRecord>[], secret: string, now_ms: number): void {
  const [id] = secret.split('.', 1)
  const host = list.find((t) => t.id === id)?.value.used_by ?? ''
  checkJoinToken(list, secret, host, now_ms)
}
