/** A host of a cluster at work: its member of etcd, the store, the way to the other hosts, certificates, and who does the chores. */
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fail } from '@wadah/api/fault'
import { hostPort } from '@wadah/api/host-port'
import type { Cluster as ClusterView } from '@wadah/api/schema/cluster'
import type { Cluster } from '@wadah/cluster/cluster'
import { type Deps, commit } from '@wadah/cluster/context'
import {
  aliveKind,
  type AuthoritiesRecord,
  authoritiesKind,
  CLUSTER,
  clusterKind,
  joinTokenKind,
} from '@wadah/cluster/members/records'
import { checkJoinSecret, type Membership } from '@wadah/cluster/members/service'
import { enterBuild, nextLevel, raiseLevel } from '@wadah/cluster/members/versions'
import { allVote, isMemberOf, nextMember, notThere, unknownToEtcd, withoutVote } from '@wadah/cluster/members/voters'
import { type HostRecord, hostKind } from '@wadah/cluster/records'
import { ensureMember, removeMember, superviseMember } from '@wadah/host/etcd/member'
import { systemClock } from '@wadah/store/clock'
import { copyStore } from '@wadah/store/copy'
import { EtcdAdmin, type EtcdMember } from '@wadah/store/etcd/admin'
import type { EtcdStore } from '@wadah/store/etcd/etcd-store'
import { Upkeep } from '@wadah/store/etcd/upkeep'
import { openSqliteStore } from '@wadah/store/sqlite/sqlite-store'
import { put, unchanged } from '@wadah/store/store'
import type { DaemonConfig } from '../config.ts'
import type { Built } from '../http/server.ts'
import { PeerClient } from '../peers/client.ts'
import { admitHost, endToken } from '../peers/join-server.ts'
import { imageFetcher, waysForMoves } from '../peers/streams.ts'
import { type PeerHandlers, PeerServer } from '../peers/listen.ts'
import { BUILD } from '../version.ts'
import { workerUrl } from '../worker-url.ts'
import {
  type Certificates,
  dropUnfinished,
  etcdDir,
  type Identity,
  readCertificates,
  writeCertificates,
  writeIdentity,
} from './identity.ts'
import type { Given } from './given.ts'
import { OwnMember } from './own-member.ts'
import { certify, etcdUid, memberPlan, namesOf, openStore, storeTls, withGiven } from './parts.ts'
import { endOf, fingerprintOf, nearsItsEnd, outOfTime } from './pki.ts'

/** After a whole site lost its power the others may take long to come back. */
const STORE_MS = 24 * 3_600_000
const CHORES_MS = 5_000
const UPKEEP_MS = 60_000
const RENEWAL_MS = 3_600_000
/** So long before, each hour says that a certificate which was given ends. */
const GIVEN_ENDS_MS = 30 * 86_400_000

type EtcdState = ClusterView['store']['members'][number]['state']

/** What lets the daemon end by itself; VMs run on. */
type EndedBy = {
  /** This host was taken out. */
  removed: () => void
  /** The store went back in time: all that is known of it is read anew. */
  recovered: () => void
}

export class ClusterRuntime {
  readonly store: EtcdStore
  readonly peers: PeerClient
  readonly #config: DaemonConfig
  readonly #log: (line: string) => void
  readonly #ending = new AbortController()
  readonly #admin: EtcdAdmin
  readonly #upkeep: Upkeep
  readonly #own: OwnMember
  #identity: Identity
  #certificates: Certificates
  #deps: Deps | undefined
  #server: PeerServer | undefined
  /** What goes on beside until it ends. */
  readonly #work: Promise<void>[] = []
  #keeping: Promise<void> = Promise.resolve()

  private constructor(o: {
    config: DaemonConfig
    identity: Identity
    certificates: Certificates
    store: EtcdStore
    ending: AbortController
    log: (line: string) => void
  }) {
    this.#config = o.config
    this.#identity = o.identity
    this.#certificates = o.certificates
    this.store = o.store
    this.#log = o.log
    this.#ending = o.ending
    this.#admin = new EtcdAdmin(o.store.client, systemClock)
    this.#upkeep = new Upkeep({ admin: this.#admin, clock: systemClock, endpoints: () => o.store.client.endpoints })
    this.#own = new OwnMember({
      admin: this.#admin,
      clock: systemClock,
      identity: () => this.#identity,
      keep: (identity) => this.#keep(identity),
      start: async () => {
        const plan = memberPlan(this.#config, this.#identity)
        if (plan) await ensureMember(plan, this.#ending.signal)
      },
      etcdLog: join(etcdDir(o.config.data), 'etcd.log'),
      log: o.log,
      signal: o.ending.signal,
    })
    this.peers = new PeerClient({
      certificates: () => this.#certificates,
      host: (id) => this.#deps?.view.get(hostKind, id)?.value,
    })
  }

  /** Starts this host's member where it has one, and waits for the store. */
  static async open(config: DaemonConfig, identity: Identity, log: (line: string) => void): Promise<ClusterRuntime> {
    const certificates = await readCertificates(config.data, identity.etcd !== undefined)
    const ending = new AbortController()
    // As it is by then: it may become a member later.
    const now: { runtime?: ClusterRuntime; identity: Identity } = { identity }
    const plan = () => memberPlan(config, now.runtime?.identity ?? now.identity)
    const first = plan()
    // Where others keep copies too it may do without its own for now; who supervises it says what is wrong.
    const alone = identity.endpoints.length < 2
    if (first)
      await ensureMember(first, ending.signal).catch((error: unknown) => (alone ? Promise.reject(error) : undefined))
    const supervised = superviseMember(plan, log, ending.signal)
    const untimely = outOfTime(certificates.host.cert, Date.now())
    if (untimely !== undefined) log(untimely)
    const store = await openStore({ ...identity, certificates, data: config.data, timeout_ms: STORE_MS }, log)
    const of = (await store.get(clusterKind, CLUSTER))?.value.id
    if (of !== identity.cluster) {
      ending.abort()
      await store.close()
      throw fail('store_failed', `The store that answers is ${of === undefined ? 'empty' : "another cluster's"}.`, {
        remedy: `wadah cluster recover --from FILE, with a copy of the cluster's store`,
      })
    }
    if (await isRemoved(store, identity)) {
      ending.abort()
      await store.close()
      await supervised
      await leaveCluster(config)
      throw fail('wrong_state', `${identity.name} was taken out of the cluster while it was down.`, {
        remedy: 'start wadahd again: this host is alone then, and may join anew (wadah cluster join)',
        effect: 'partial',
      })
    }
    try {
      await enterBuild(store, identity.host, BUILD)
    } catch (error) {
      // Its member of etcd runs on, as VMs do: the others may need it for a majority.
      ending.abort()
      await store.close()
      throw error
    }
    const recovery = (await store.get(clusterKind, CLUSTER))?.value.recovery?.id
    if (recovery !== undefined && recovery !== identity.recovery) {
      // What this host kept is of a past that is not the cluster's any more.
      const { member, ...rest } = identity
      now.identity = { ...rest, recovery }
      if (member) await removeMember(etcdDir(config.data), etcdUid(config))
      await writeIdentity(config.data, now.identity)
      if (member) log('the copy of the store on this host was of before its recovery, and is gone')
    }
    now.runtime = new ClusterRuntime({ config, identity: now.identity, certificates, store, ending, log })
    now.runtime.#work.push(supervised)
    return now.runtime
  }

  get identity(): Identity {
    return this.#identity
  }

  /** The ways to the other hosts that the rooms within use. */
  others(deps: Deps): Required<Pick<Deps, 'askHost' | 'haveImage' | 'moves'>> {
    this.#deps = deps
    const { peers } = this
    return {
      askHost: (host, path, body, timeout_ms) => peers.ask(host, path, body, { timeout_ms }),
      haveImage: imageFetcher(deps, peers),
      moves: waysForMoves(peers),
    }
  }

  readonly membership: Membership = {
    fingerprint: () => fingerprintOf(this.#certificates.hosts_ca),
    stores: () => this.#stores(),
    dropMember: (host) => this.#dropMember(host),
    items: () => {
      const wrong = this.#own.trouble()
      return wrong ? [{ name: 'store', state: 'warn', ...wrong }] : []
    },
  }

  /** A copy of the store in the form a single host has it, as of one moment. */
  async backup(file: string): Promise<void> {
    const to = await openSqliteStore({ file, ...workerUrl() })
    try {
      await copyStore(this.store, to)
    } finally {
      await to.close()
    }
  }

  /** Once everything is there: lets the others in, and begins with the chores. */
  async serve(cluster: Cluster, built: Built, more: Pick<PeerHandlers, 'asked' | 'opened'> & EndedBy): Promise<void> {
    const { deps } = cluster
    const handlers: PeerHandlers = {
      checkSecret: (secret) => checkJoinSecret(deps.view.list(joinTokenKind), secret, deps.clock.now_ms()),
      join: (secret, body) =>
        admitHost(
          {
            deps,
            build: BUILD,
            authorities: () => this.#authorities(),
            endpoints: () => [...this.#endpoints()],
            given: () => this.#given(),
          },
          secret,
          body,
        ),
      asked: more.asked,
      opened: more.opened,
      api: (request, response) => built.app.routing(request, response),
      isHost: (id) => deps.view.get(hostKind, id) !== undefined,
      log: this.#log,
    }
    this.#server = new PeerServer(this.#certificates, handlers)
    await this.#server.listen(this.#identity.address, this.#identity.ports.peer)
    deps.view.subscribe((changes) => {
      if (!changes.some((c) => c.kind === hostKind.name)) return
      this.#server?.dropRemoved()
      this.#follow()
    })
    this.#follow()
    this.#work.push(
      this.#repeat(CHORES_MS, 'chores', () => this.#chores(more)),
      this.#repeat(RENEWAL_MS, 'certificates', () => this.#renew()),
    )
  }

  async stop(): Promise<void> {
    this.#ending.abort()
    await this.#server?.close()
    this.peers.close()
  }

  /** After `stop`, when this host was taken out: nothing of its own writes meanwhile what is taken away. */
  async leave(): Promise<void> {
    await Promise.all(this.#work)
    await this.#keeping.catch(() => undefined)
    await leaveCluster(this.#config)
  }

  /** The administrator's etcd, as this host knows it. */
  #given(): Pick<Given, 'prefix' | 'ca' | 'client'> | undefined {
    const { etcd_ca: ca, etcd_client: client } = this.#certificates
    return this.#identity.etcd && { prefix: this.#identity.etcd.prefix, ca, client }
  }

  /** Addresses of etcd's members, from the records of their hosts. */
  #endpoints(): readonly string[] {
    if (this.#identity.etcd) return this.#identity.endpoints
    const hosts = this.#deps?.view.list(hostKind) ?? []
    const found = hosts.flatMap(({ value: h }) =>
      h.member === true && h.address !== undefined && h.ports ? [hostPort(h.address, h.ports.etcd_client)] : [],
    )
    return found.length > 0 ? found.toSorted() : this.#identity.endpoints
  }

  #follow(): void {
    const endpoints = [...this.#endpoints()]
    const known = [...this.store.client.endpoints].toSorted()
    if (JSON.stringify(endpoints) === JSON.stringify(known)) return
    // Its own first: no way is shorter.
    const own = hostPort(this.#identity.address, this.#identity.ports.etcd_client)
    this.store.client.setEndpoints(endpoints.toSorted((a, b) => Number(b === own) - Number(a === own)))
    this.#keep({ ...this.#identity, endpoints }).catch((error: unknown) =>
      this.#log(`the addresses of the store could not be written down: ${(error as Error).message}`),
    )
  }

  async #keep(identity: Identity): Promise<void> {
    this.#identity = identity
    // One after the other: the last one stands.
    this.#keeping = this.#keeping.catch(() => undefined).then(() => writeIdentity(this.#config.data, identity))
    await this.#keeping
  }

  async #repeat(pause_ms: number, what: string, work: () => Promise<void>): Promise<void> {
    const { signal } = this.#ending
    while (!signal.aborted) {
      try {
        await work()
      } catch (error) {
        if (!signal.aborted) this.#log(`${what}: ${(error as Error).message}`)
      }
      await sleep(pause_ms, undefined, { signal }).catch(() => undefined)
    }
  }

  #lastUpkeep_ms = 0

  async #chores({ removed, recovered }: EndedBy): Promise<void> {
    const deps = this.#deps as Deps
    const { view, hostId } = deps
    const own = view.get(hostKind, hostId)
    if (!own) {
      // The view may be late; the store itself is not.
      if (await isRemoved(this.store, this.#identity)) removed()
      return
    }
    const recovery = (await this.store.get(clusterKind, CLUSTER))?.value.recovery?.id
    // What this daemon has read may never have been, in the store as it is now.
    if (recovery !== this.#identity.recovery) return recovered()
    await this.#own.see(own.value.member === true)
    await endToken(deps, hostId)
    // What one of them does for all: the first of those that are there. Two at once do no harm, only work twice.
    const first = view
      .list(hostKind)
      .map((h) => h.id)
      .filter((id) => view.get(aliveKind, id))
      .toSorted()[0]
    if (first !== hostId) return
    // Who gave the etcd looks after it: its members, its history, its room.
    if (!this.#identity.etcd) await this.#lookAfterStore(deps)
    // Last: a store that is full takes no level.
    await this.#raise(deps)
  }

  async #lookAfterStore(deps: Deps): Promise<void> {
    await this.#appoint(deps)
    const now = systemClock.monotonic_ms()
    if (now - this.#lastUpkeep_ms < UPKEEP_MS) return
    this.#lastUpkeep_ms = now
    const done = await this.#upkeep.round()
    for (const member of done.corrupt)
      this.#log(`etcd's member ${member} says that its data are corrupt: take it out and let it join anew`)
    for (const member of done.full)
      this.#log(`etcd's member ${member} is full, and stays so: the store has more than 2 GiB of records`)
    if (done.disarmed.length > 0) this.#log('the store was full; its history was dropped, and it takes writes again')
  }

  /** Hosts write what is new once the last of them has been upgraded. */
  async #raise({ view }: Deps): Promise<void> {
    const [cluster, hosts] = [view.get(clusterKind, CLUSTER), view.list(hostKind).map((h) => h.value)]
    if (!cluster || nextLevel(cluster.value.level, hosts) === undefined) return
    const level = await raiseLevel(this.store)
    if (level !== undefined) this.#log(`every host can write records of level ${level}: the cluster does from now on`)
  }

  /** As many members as the number of hosts calls for; one after the other. */
  async #appoint(deps: Deps): Promise<void> {
    const hosts = deps.view.list(hostKind)
    const next = nextMember(
      hosts.map((h) => h.value),
      (id) => deps.view.get(aliveKind, id) !== undefined,
    )
    const rec = next && deps.view.get(hostKind, next.id)
    // The records say that there are enough: etcd need not be asked.
    if (!rec) return
    const members = await this.#admin.members()
    const waits = !allVote(
      hosts.map((h) => h.value),
      members,
    )
    if (waits) return
    await commit(deps, [unchanged(rec)], [put(hostKind, rec.id, { ...rec.value, member: true })])
    this.#log(`${rec.value.name} is to keep a copy of the store`)
  }

  async #dropMember(host: HostRecord): Promise<void> {
    if (this.#identity.etcd) return
    const members = await this.#admin.members()
    const its = members.filter((m) => isMemberOf(m, host))
    if (its.length > 0 && members.length === its.length)
      throw fail('in_use', `${host.name} keeps the only copy of the store.`, { remedy: 'let another host join first' })
    for (const m of its) await this.#admin.remove(m.id)
  }

  async #stores(): Promise<ClusterView['store']> {
    const given = this.#given()
    if (given)
      return {
        kind: 'etcd',
        given: { prefix: given.prefix, client_until: endOf(given.client.cert).toISOString() },
        members: await Promise.all(
          this.#identity.endpoints.map(async (endpoint) => {
            const s = await this.#admin.status(endpoint)
            const state = !s ? 'silent' : s.learner ? 'learner' : s.leader ? 'leader' : 'follower'
            return {
              endpoint,
              state: state as EtcdState,
              ...(s ? { version: s.version, size_bytes: s.size_bytes } : {}),
            }
          }),
        ),
      }
    const members = await this.#admin.members().catch((): EtcdMember[] => [])
    const hosts = (this.#deps?.view.list(hostKind) ?? []).map((h) => h.value)
    const shown = await Promise.all(
      members.map(async (m) => {
        const endpoint = (m.client_urls[0] ?? m.peer_urls[0] ?? '').replace('https://', '')
        const s = m.client_urls[0] === undefined ? undefined : await this.#admin.status(endpoint)
        const state = !s
          ? ('silent' as const)
          : m.learner
            ? ('learner' as const)
            : s.leader
              ? ('leader' as const)
              : ('follower' as const)
        const host = hosts.find((h) => isMemberOf(m, h))
        const own = host?.id === this.#identity.host ? this.#own.trouble()?.detail : undefined
        const detail = own ?? withoutVote(m, host)
        return {
          ...(host ? { host: host.id } : {}),
          ...(detail === undefined ? {} : { detail }),
          endpoint,
          state,
          ...(s ? { version: s.version, size_bytes: s.size_bytes } : {}),
        }
      }),
    )
    // Where etcd could not be asked it knows of none.
    const missing = members.length === 0 ? [] : unknownToEtcd(hosts, members)
    const silent = missing.flatMap((h) =>
      h.address === undefined || h.ports === undefined
        ? []
        : [
            {
              host: h.id,
              endpoint: hostPort(h.address, h.ports.etcd_client),
              state: 'silent' as const,
              detail: notThere(h),
            },
          ],
    )
    return { kind: 'etcd', members: [...shown, ...silent] }
  }

  async #authorities(): Promise<AuthoritiesRecord> {
    const rec = await this.store.get(authoritiesKind, CLUSTER)
    if (!rec) throw fail('internal', 'the keys of the cluster are not in its store')
    return rec.value
  }

  /** Its own certificates, before they end. etcd reads its files at each handshake; all else gets the new ones from the next on. */
  async #renew(): Promise<void> {
    const { host, address } = this.#identity
    const names = namesOf({ id: host, address })
    const c = this.#certificates
    const now_ms = Date.now()
    const given = this.#given()
    const until = given && endOf(given.client.cert)
    if (until && until.getTime() - now_ms < GIVEN_ENDS_MS)
      this.#log(
        `the certificate that this host shows the etcd ends at ${until.toISOString()}: see "An etcd of your own"`,
      )
    const own = [c.host.cert, ...(c.etcd_member ? [c.etcd_member.cert] : [])]
    if (
      !own.some((cert) => nearsItsEnd(cert, names, now_ms)) &&
      (given || !nearsItsEnd(c.etcd_client.cert, [host], now_ms))
    )
      return
    const made = await certify(await this.#authorities(), { id: host, address }, now_ms)
    const next = given ? withGiven(made, given) : made
    await writeCertificates(this.#config.data, next, etcdUid(this.#config))
    this.#certificates = next
    this.#server?.renew(next)
    if (!given) this.store.client.setTls(storeTls(next, false))
    this.#log('the certificates of this host were renewed')
  }
}

/** Whether the store of this very cluster knows this host no more. */
async function isRemoved(store: EtcdStore, identity: Pick<Identity, 'cluster' | 'host'>): Promise<boolean> {
  const [cluster, host] = [await store.get(clusterKind, CLUSTER), await store.get(hostKind, identity.host)]
  return cluster?.value.id === identity.cluster && !host
}

/** Takes back what made it one of a cluster, the keys to the others and to the store before all. Its VMs were taken away before. */
export async function leaveCluster(config: DaemonConfig): Promise<void> {
  await removeMember(etcdDir(config.data), etcdUid(config))
  await dropUnfinished(config.data)
}
