/** The other end of a join: the token is looked at, what collides is settled, then the host and its VMs are written. */
import { fail } from '@wadah/api/fault'
import { type Deps, againOnConflict, commit } from '@wadah/cluster/context'
import {
  aliveKind,
  type AuthoritiesRecord,
  CLUSTER,
  clusterKind,
  factsKind,
  joinTokenKind,
} from '@wadah/cluster/members/records'
import { judgeBuild, together } from '@wadah/cluster/members/versions'
import { CLOCK_MS, judgeClock } from '@wadah/cluster/members/way'
import { checkJoinToken } from '@wadah/cluster/members/service'
import { othersOf, type Raw, TOKEN, USER } from '@wadah/cluster/members/brought'
import { copies, settle } from '@wadah/cluster/members/settle'
import { type Build, type HostRecord, hostKind } from '@wadah/cluster/records'
import { uidsFrom } from '@wadah/cluster/vms/allocate'
import { batches, everything } from '@wadah/store/copy'
import { absent, del, put, unchanged, type Write } from '@wadah/store/store'
import { canonical, unreachableFor } from '../cluster/address.ts'
import { HOST_NAME, type JoinAnswer, type JoinRequest } from '../cluster/join.ts'
import type { Given } from '../cluster/given.ts'
import { certify, withGiven } from '../cluster/parts.ts'

/** Of a host that does not say which levels it can work at. */
const FIRST_LEVELS = { oldest: 1, newest: 1 }
const TRIES = 5

export type Joining = {
  deps: Deps
  build: Build
  authorities: () => Promise<AuthoritiesRecord>
  endpoints: () => string[]
  /** The administrator's etcd, and what hosts show it. */
  given: () => Pick<Given, 'prefix' | 'ca' | 'client'> | undefined
}

export async function admitHost(
  { deps, build, authorities, endpoints, given }: Joining,
  secret: string,
  body: unknown,
): Promise<JoinAnswer> {
  const request = readRequest(body, build.version)
  const { view, clock } = deps
  const { host } = request
  const now_ms = clock.now_ms()
  const token = checkJoinToken(view.list(joinTokenKind), secret, host.id, now_ms)
  const theirs: Build = { version: request.wadah, ...(request.levels ?? FIRST_LEVELS) }
  const refuseBuild = async () => {
    const { cluster, hosts } = await together(deps.store)
    const others = hosts.filter((h) => h.id !== host.id).map((h) => h.value)
    const wrong = judgeBuild({ name: host.name, build: theirs }, others, cluster.value.level)
    if (wrong) throw fail('wrong_state', wrong.detail, { remedy: `${wrong.remedy}; the token still holds` })
    return cluster
  }
  await refuseBuild()
  const off_ms = request.now_ms - now_ms
  if (Math.abs(off_ms) > CLOCK_MS) {
    const here = view.get(hostKind, deps.hostId)?.value.name ?? deps.hostId
    const { detail, remedy } = judgeClock(host.name, off_ms, `that of ${here}`)
    throw fail('wrong_state', detail, { remedy: `${remedy}. Then try again; the token still holds` })
  }
  const twin = view.list(hostKind).find(({ value: h }) => h.id !== host.id && h.name === host.name)
  if (twin)
    throw fail(
      'name_taken',
      `A host called "${host.name}" is in the cluster already (${twin.value.address ?? twin.id}).`,
      {
        remedy:
          'wadah cluster join --name ANOTHER-NAME …; or, if it replaces that one: wadah cluster remove there first',
      },
    )
  const there = view.list(hostKind).find((h) => h.id === host.id)
  // One that was cut off while it joined has never said what it has. Whoever did is a host, be it up or down: a token is for a new one.
  if (there && (view.get(aliveKind, host.id) || view.get(factsKind, host.id)))
    throw fail(
      'in_use',
      `The host ${there.value.name} (${host.id}) is in the cluster: this one has a copy of its id.`,
      {
        remedy: `one data folder belongs to one host: move that of the copy away, then join again; or, if that host is no more: wadah cluster remove ${there.value.name}`,
      },
    )
  const neighbour = view
    .list(hostKind)
    .find(({ value: h }) => h.id !== host.id && h.address === host.address && h.ports?.peer === host.ports.peer)
  if (neighbour)
    throw fail('address_taken', `${host.address} is the address of ${neighbour.value.name} already.`, {
      remedy: 'wadah cluster join --address ANOTHER …',
    })

  const all: Raw[] = []
  for await (const { kind, id, value } of everything(deps.store)) all.push({ kind, id, value })
  const settled = settle(host, request.records, othersOf(request.records, all), {
    ...request.uids,
    from: uidsFrom(host.id, request.uids.count),
  })
  const refused = [...copies(host.id, request.records, all), ...settled.refused]
  if (refused.length > 0) {
    const lines = refused.map((r) => `- ${r.what}\n    ${r.remedy}`)
    throw fail('conflict', `${host.name} can't join as it is; nothing was changed:\n${lines.join('\n')}`, {
      remedy: 'change these on the host that joins, then try again; the token still holds',
    })
  }
  // From here on the token is this host's; the same host may come with it again.
  await commit(deps, [unchanged(token)], [put(joinTokenKind, token.id, { ...token.value, used_by: host.id })])
  // Those that are there, and are the same, are of an earlier try. What somebody else took meanwhile ends this one; the next sees it.
  const isThere = (r: Raw) => JSON.stringify(view.get({ name: r.kind }, r.id)?.value) === JSON.stringify(r.value)
  const fresh = settled.index.filter((r) => !isThere(r))
  for (const part of batches(fresh.map(write)))
    await commit(
      deps,
      part.map((w) => absent({ name: w.kind }, w.id)),
      part,
    )
  // Passwords and tokens of an earlier try may have been changed here since.
  const isKept = ({ kind, id }: Raw) =>
    (kind === USER || kind === TOKEN) && all.some((r) => r.kind === kind && r.id === id)
  for (const part of batches(settled.records.filter((r) => !isKept(r)).map(write))) await commit(deps, [], part)
  const cluster = view.get(clusterKind, CLUSTER)?.value
  // What a host is in the cluster the cluster says: it brings its name, where it is, and the boot its VMs were started with.
  const { id, name, created_at, address, ports } = host
  const record: HostRecord = { schema: 1, id, name, created_at, address, ports, build: theirs }
  if (host.boot) record.boot = { id: host.boot.id, store: deps.store.id }
  // Hosts of other releases may have started meanwhile, or the level may have been raised.
  await againOnConflict(TRIES, async () => {
    const now = await refuseBuild()
    await commit(deps, [unchanged(now)], [put(hostKind, host.id, record), put(clusterKind, CLUSTER, now.value)])
  })
  deps.log(`the host ${host.name} (${host.address}) has joined; ${settled.records.length} records came with it`)
  for (const change of settled.changes) deps.log(`with ${host.name}: ${change}`)
  const made = await certify(await authorities(), { id: host.id, address: host.address }, now_ms)
  const etcd = given()
  return {
    cluster: cluster?.id ?? '',
    certificates: etcd ? withGiven(made, etcd) : made,
    endpoints: endpoints(),
    ...(etcd ? { etcd: { prefix: etcd.prefix } } : {}),
    changes: settled.changes,
  }
}

/** The token is over once its host has been seen; called when a host shows its first sign of life. */
export async function endToken(deps: Deps, host: string): Promise<void> {
  const used = deps.view.list(joinTokenKind).filter((t) => t.value.used_by === host)
  if (used.length > 0)
    await commit(
      deps,
      [],
      used.map((t) => del(joinTokenKind, t.id)),
    )
}

const write = (r: Raw): Write => put({ name: r.kind }, r.id, r.value)

function readRequest(body: unknown, own: string): JoinRequest {
  const r = body as Partial<JoinRequest> | null
  const text = (v: unknown, most: number) => typeof v === 'string' && v.length > 0 && v.length <= most
  const port = (v: unknown) => Number.isInteger(v) && (v as number) > 0 && (v as number) < 65_536
  const isLevel = (v: unknown) => Number.isInteger(v) && (v as number) > 0
  const h = r?.host
  const ok =
    r?.version === 1 &&
    text(r.wadah, 60) &&
    (r.levels === undefined || (isLevel(r.levels?.oldest) && isLevel(r.levels.newest))) &&
    typeof r.now_ms === 'number' &&
    Number.isInteger(r.uids?.base) &&
    Number.isInteger(r.uids?.count) &&
    (r.uids?.count ?? 0) > 0 &&
    (r.uids?.count ?? 0) <= 1_000_000 &&
    h !== undefined &&
    /^host-[a-z2-7]{10}$/.test(String(h.id)) &&
    text(h.name, 253) &&
    HOST_NAME.test(h.name) &&
    // It stands in its certificates: a name in its place would make it another host.
    text(h.address, 45) &&
    canonical(h.address) === h.address &&
    unreachableFor(h.address) === undefined &&
    text(h.created_at, 40) &&
    (h.boot === undefined || text(h.boot?.id, 100)) &&
    port(h.ports?.peer) &&
    port(h.ports?.etcd_client) &&
    port(h.ports?.etcd_peer) &&
    Array.isArray(r.records) &&
    r.records.every((x) => text(x?.kind, 60) && text(x?.id, 400) && typeof x.value === 'object' && x.value !== null)
  if (!ok) {
    const sender = text(r?.wadah, 60) ? `wadahd ${r?.wadah}` : 'no wadahd that says its version'
    throw fail('malformed', `This is no request to join that wadahd ${own} understands; it is from ${sender}.`)
  }
  return r as JoinRequest
}
