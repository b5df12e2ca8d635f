/** The other end of a join: the token is looked at, what collides is settled, then the host and its VMs are written. */
import { fail } from '@wadah/api/fault'
import { type Deps, commit } from '@wadah/cluster/context'
import { aliveKind, type AuthoritiesRecord, CLUSTER, clusterKind, joinTokenKind } from '@wadah/cluster/members/records'
import { checkJoinToken } from '@wadah/cluster/members/service'
import { type Raw, settle } from '@wadah/cluster/members/settle'
import { type HostRecord, hostKind, indexKind, type IndexRecord } from '@wadah/cluster/records'
import { uidsFrom } from '@wadah/cluster/vms/allocate'
import { everything } from '@wadah/store/copy'
import { absent, del, put, unchanged, type Write } from '@wadah/store/store'
import type { JoinAnswer, JoinRequest } from '../cluster/join.ts'
import { certify } from '../cluster/parts.ts'
import { joinable } from './versions.ts'

/** A clock that is further off makes certificates and leases wrong. */
const CLOCK_MS = 30_000
const WRITES_MOST = 100

export type Joining = {
  deps: Deps
  version: string
  authorities: () => Promise<AuthoritiesRecord>
  endpoints: () => string[]
}

export async function admitHost(
  { deps, version, authorities, endpoints }: Joining,
  body: unknown,
): Promise<JoinAnswer> {
  const request = readRequest(body)
  const { view, clock } = deps
  const { host } = request
  const now_ms = clock.now_ms()
  const token = checkJoinToken(view.list(joinTokenKind), request.secret, host.id, now_ms)
  const wrong = joinable(version, request.wadah)
  if (wrong !== undefined)
    throw fail('wrong_state', `${host.name} has wadahd ${request.wadah}, the cluster ${version}: ${wrong}.`, {
      remedy: 'upgrade the older ones first, one release after the other',
    })
  const off_ms = request.now_ms - now_ms
  if (Math.abs(off_ms) > CLOCK_MS)
    throw fail(
      'wrong_state',
      `The clock of ${host.name} is ${Math.round(Math.abs(off_ms) / 1000)} s ${off_ms > 0 ? 'ahead' : 'behind'}.`,
      {
        remedy: 'let both hosts follow a time server: timedatectl set-ntp true; or: date -s …',
      },
    )
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
  if (there && view.get(aliveKind, host.id))
    throw fail(
      'in_use',
      `The host ${host.name} (${host.id}) is in the cluster and up: this one has a copy of its id.`,
      {
        remedy: 'one data folder belongs to one host: move /var/lib/wadah of the copy away, then join again',
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
  // Of a try that was cut off: what it wrote is its own.
  const own = new Set(request.records.map((r) => `${r.kind}/${r.id}`))
  const holders = new Set(request.records.map((r) => r.id))
  const isOwn = (r: Raw) =>
    r.kind === indexKind.name ? holders.has((r.value as IndexRecord).holder) : own.has(`${r.kind}/${r.id}`)
  const others = all.filter((r) => !isOwn(r))
  const settled = settle(host, request.records, others, {
    ...request.uids,
    from: uidsFrom(host.id, request.uids.count),
  })
  if (settled.refused.length > 0) {
    const lines = settled.refused.map((r) => `- ${r.what}\n    ${r.remedy}`)
    throw fail('conflict', `${host.name} can't join as it is; nothing was changed:\n${lines.join('\n')}`, {
      remedy: 'change these on the host that joins, then try again; the token still holds',
    })
  }
  // From here on the token is this host's; the same host may come with it again.
  await commit(deps, [unchanged(token)], [put(joinTokenKind, token.id, { ...token.value, used_by: host.id })])
  const fresh = settled.index.filter((r) => !view.get(indexKind, r.id))
  for (const part of chunks(fresh))
    await commit(
      deps,
      part.map((r) => absent(indexKind, r.id)),
      part.map(write),
    )
  for (const part of chunks(settled.records)) await commit(deps, [], part.map(write))
  const cluster = view.get(clusterKind, CLUSTER)?.value
  const record: HostRecord = { ...host, ...(there?.value.member ? { member: true } : {}) }
  if (host.boot) record.boot = { ...host.boot, store: deps.store.id }
  await commit(deps, [], [put(hostKind, host.id, record)])
  deps.log(`the host ${host.name} (${host.address}) has joined; ${settled.records.length} records came with it`)
  return {
    cluster: cluster?.id ?? '',
    certificates: await certify(await authorities(), { id: host.id, address: host.address }, now_ms),
    endpoints: endpoints(),
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

function* chunks<T>(all: readonly T[]): Generator<T[]> {
  for (let i = 0; i < all.length; i += WRITES_MOST) yield all.slice(i, i + WRITES_MOST)
}

function readRequest(body: unknown): JoinRequest {
  const r = body as Partial<JoinRequest> | null
  const text = (v: unknown, most: number) => typeof v === 'string' && v.length > 0 && v.length <= most
  const port = (v: unknown) => Number.isInteger(v) && (v as number) > 0 && (v as number) < 65_536
  const h = r?.host
  const ok =
    r?.version === 1 &&
    text(r.secret, 200) &&
    text(r.wadah, 60) &&
    typeof r.now_ms === 'number' &&
    Number.isInteger(r.uids?.base) &&
    Number.isInteger(r.uids?.count) &&
    (r.uids?.count ?? 0) > 0 &&
    (r.uids?.count ?? 0) <= 1_000_000 &&
    h !== undefined &&
    /^host-[a-z2-7]{10}$/.test(String(h.id)) &&
    text(h.name, 253) &&
    /^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$/i.test(h.name) &&
    text(h.address, 45) &&
    port(h.ports?.peer) &&
    port(h.ports?.etcd_client) &&
    port(h.ports?.etcd_peer) &&
    Array.isArray(r.records) &&
    r.records.every((x) => text(x?.kind, 60) && text(x?.id, 400) && typeof x.value === 'object')
  if (!ok) throw fail('malformed', 'This is no request to join that this release understands.')
  return r as JoinRequest
}
