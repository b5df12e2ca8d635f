/**
 * A host that has VMs joins: what it has and what the cluster has must become one without two of the same. Pure: said before
 * anything is written. What nobody relies on is settled (renamed, merged, given another number); what somebody does is refused, with
 * what to change.
 */
import { hasEnded, jobKind, type JobRecord } from '../jobs/record.ts'
import {
  groupKind,
  type HostRecord,
  imageKind,
  indexKeys,
  indexKind,
  type IndexRecord,
  networkKind,
  type NetworkRecord,
  poolKind,
  type PoolRecord,
  ruleKind,
  type RuleRecord,
  snapshotKind,
  type SnapshotRecord,
  statusKind,
  type StatusRecord,
  placementKind,
  vmKind,
  type VmRecord,
  volumeKind,
} from '../records.ts'
import { membersOf } from '../rules/members.ts'
import { freeUid, inSubnet, toNumber } from '../vms/allocate.ts'
import { FATES, isLeft, type Raw, TOKEN, TOKEN_NAME, USER, USER_NAME } from './brought.ts'

export type Settled = {
  /** Each says what is in the way and the command that changes it; nothing may be written while there is one. */
  refused: { what: string; remedy: string }[]
  /** What was settled, for the one who lets it join. */
  changes: string[]
  /** Keys and names, each of a record that comes along. They go first: they must be new. */
  index: Raw[]
  records: Raw[]
}
export type Uids = { base: number; count: number; from: number }

/** Names in a line; of more their number. */
const NAMES_MOST = 5
/** Of these nobody relies on the name: others refer to them by their ids. */
const RENAMED = {
  pool: poolKind.name,
  image: imageKind.name,
  'firewall-group': groupKind.name,
  volume: volumeKind.name,
  rule: ruleKind.name,
}

type Named = { name: string; project: string }

/**
 * What the joining host has of which the cluster has the same with another host: a store that was put back from a copy, or a VM that
 * was moved away before. Taken in, one VM would have two places. @returns lines like those of `refused`
 */
export function copies(host: string, joining: readonly Raw[], there: readonly Raw[]): Settled['refused'] {
  const ids = new Set(joining.map((r) => `${r.kind}/${r.id}`))
  const nameOf = new Map(there.filter((r) => r.kind === vmKind.name).map((r) => [r.id, (r.value as VmRecord).name]))
  return there.flatMap(({ kind, id, value }) => {
    const [holder, what] =
      kind === placementKind.name
        ? [(value as { host: string }).host, `VM "${nameOf.get(id) ?? id}"`]
        : kind === poolKind.name && !(value as PoolRecord).shared
          ? [(value as PoolRecord).host, `pool "${(value as PoolRecord).name}"`]
          : []
    // Of one that was deleted and made anew nothing has the same id.
    const known = kind === placementKind.name ? ids.has(`${vmKind.name}/${id}`) : ids.has(`${kind}/${id}`)
    if (holder === undefined || holder === host || !known) return []
    return [
      {
        what: `the ${what} (${id}) is in the cluster already, on the host ${holder}: this host has a copy of its record`,
        // Not "delete it": its disk may be the one that the other host writes.
        remedy: 'move the data folder of the host that joins away, and let it join without',
      },
    ]
  })
}

export function settle(host: HostRecord, joining: readonly Raw[], there: readonly Raw[], uids: Uids): Settled {
  const refused: Settled['refused'] = []
  const changes: string[] = []
  const of = <T>(all: readonly Raw[], kind: string) =>
    all.filter((r) => r.kind === kind) as { kind: string; id: string; value: T }[]
  const held = new Set(of<IndexRecord>(there, indexKind.name).map((r) => r.id))
  const coming = new Set(joining.filter((r) => r.kind !== indexKind.name && !isLeft(r.kind)).map((r) => r.id))
  const own = new Map(
    of<IndexRecord>(joining, indexKind.name)
      .filter((r) => coming.has(r.value.holder))
      .map((r) => [r.id, r.value.holder]),
  )
  /** Index keys of the joining host that become others, or none. */
  const moved = new Map<string, string | undefined>()

  for (const { value: job } of of<JobRecord>(joining, jobKind.name))
    if (!hasEnded(job))
      refused.push({ what: `the job ${job.id} (${job.name}) is under way`, remedy: `wadah job wait ${job.id}` })

  // ---- names that may change
  const chosen = new Set<string>()
  const newName = (noun: keyof typeof RENAMED | 'network', { name, project }: Named) => {
    const found = freeName(name, host.name, (n) => {
      const key = indexKeys.name(noun, project, n)
      return held.has(key) || own.has(key) || chosen.has(key)
    })
    chosen.add(indexKeys.name(noun, project, found))
    return found
  }
  const renamed = new Map<string, string>()
  for (const [noun, kind] of Object.entries(RENAMED) as [keyof typeof RENAMED, string][]) {
    for (const { id, value } of of<Named>(joining, kind)) {
      const key = indexKeys.name(noun, value.project, value.name)
      if (!held.has(key) || own.get(key) !== id) continue
      const name = newName(noun, value)
      renamed.set(id, name)
      moved.set(key, indexKeys.name(noun, value.project, name))
      if (noun !== 'volume') changes.push(`${noun} "${value.name}" of ${host.name} is called "${name}" from now on`)
    }
  }

  // ---- networks: alike ones become one, unused ones go, others keep apart
  const vms = of<VmRecord>(joining, vmKind.name)
  const snapshots = of<SnapshotRecord>(joining, snapshotKind.name)
  // What a VM goes back to with a snapshot must be there too.
  const used = new Set([...vms, ...snapshots].flatMap(({ value }) => value.spec.nics.map((n) => n.network)))
  const into = new Map<string, string>()
  const theirs = of<NetworkRecord>(there, networkKind.name)
  for (const { id, value: n } of of<NetworkRecord>(joining, networkKind.name)) {
    const key = indexKeys.name('network', n.project, n.name)
    const alike = theirs.find(({ value: t }) => isAlike(t, n))
    const overlap = theirs.find(({ value: t }) => t.kind === 'nat' && n.kind === 'nat' && overlaps(t, n))
    if (alike) {
      into.set(id, alike.id)
      moved.set(key, undefined)
      if (alike.value.name !== n.name)
        changes.push(`network "${n.name}" of ${host.name} is the cluster's "${alike.value.name}" from now on`)
    } else if (!used.has(id) && (held.has(key) || overlap)) {
      into.set(id, '')
      moved.set(key, undefined)
      changes.push(`network "${n.name}" of ${host.name}, which no VM uses, is left out`)
    } else if (overlap) {
      refused.push({
        what: `network "${n.name}" (${n.subnet ?? ''}) and the cluster's "${overlap.value.name}" (${overlap.value.subnet ?? ''}) have addresses in common`,
        remedy: `give its VMs NICs on another network: wadah network create NAME --kind nat --subnet …`,
      })
    } else if (held.has(key)) {
      const name = newName('network', n)
      renamed.set(id, name)
      moved.set(key, indexKeys.name('network', n.project, name))
      changes.push(`network "${n.name}" of ${host.name} is called "${name}" from now on`)
    }
  }
  for (const key of own.keys()) {
    const [, network = '', address = ''] = /^address\/([^/]+)\/(.+)$/.exec(key) ?? []
    const to = into.get(network)
    if (to === undefined) continue
    moved.set(key, to === '' ? undefined : indexKeys.address(to, address))
  }

  // ---- VMs
  const taken = (uid: number) => held.has(indexKeys.uid(uid)) || given.has(uid)
  const given = new Set<number>()
  const uidOf = new Map<string, number>()
  const live = (vm: string) => {
    const state = of<StatusRecord>(joining, statusKind.name).find((s) => s.id === vm)?.value.state
    return state !== undefined && state !== 'stopped' && state !== 'absent'
  }
  for (const { value: vm } of vms) if (!held.has(indexKeys.uid(vm.spec.uid))) given.add(vm.spec.uid)
  for (const { id, value: vm } of vms) {
    const key = indexKeys.uid(vm.spec.uid)
    if (!held.has(key)) continue
    if (live(id)) {
      refused.push({
        what: `VM "${vm.name}" runs as the user id ${vm.spec.uid}, which a VM of the cluster has`,
        remedy: `wadah vm shutdown ${vm.name}; it gets another when ${host.name} joins, and can be started then`,
      })
      continue
    }
    const uid = freeUid((n) => taken(n) || own.has(indexKeys.uid(n)), uids.base, uids.count, uids.from)
    given.add(uid)
    uidOf.set(id, uid)
    moved.set(key, indexKeys.uid(uid))
  }
  const nameOf = new Map(vms.map(({ id, value }) => [id, value.name]))
  for (const [key, holder] of own) {
    const now = moved.has(key) ? moved.get(key) : key
    if (now === undefined || !held.has(now)) continue
    const [what, ...rest] = now.split('/')
    const vm = nameOf.get(holder)
    if (what === 'name' && rest[0] === 'vm')
      refused.push({
        what: `a VM called "${rest.at(-1)}" is in the cluster already`,
        remedy: `wadah vm edit ${rest.at(-1)} --name ${rest.at(-1)}-${host.name}`,
      })
    else if (what === 'mac' || what === 'address')
      refused.push({
        what: `the ${what === 'mac' ? 'MAC address' : 'address'} ${rest.at(-1)} of VM "${vm ?? holder}" is in use in the cluster`,
        remedy: `wadah vm edit ${vm ?? holder} --remove-nic …; then --add-nic …`,
      })
  }

  // ---- rules: by labels they may be for VMs of the other side
  const among = (rules: readonly Raw[], side: readonly Raw[]) =>
    of<RuleRecord>(rules, ruleKind.name).flatMap(({ id, value: rule }) => {
      const found = membersOf(
        rule,
        of<VmRecord>(side, vmKind.name).map((vm) => vm.value),
      )
      return found.length === 0 ? [] : [{ name: renamed.get(id) ?? rule.name, vms: listOf(found.map((vm) => vm.name)) }]
    })
  for (const { name, vms } of among(joining, there))
    changes.push(`the rule "${name}" of ${host.name} is for VMs of the cluster too from now on: ${vms}`)
  for (const { name, vms } of among(there, joining))
    changes.push(`the cluster's rule "${name}" is for VMs of ${host.name} too from now on: ${vms}`)

  // ---- people: one of the same name is the same; of a token nobody relies on the name
  const idsOf = (all: readonly Raw[], kind: string) => new Set(of(all, kind).map((r) => r.id))
  const users = idsOf(there, USER_NAME)
  const tokens = idsOf(there, TOKEN_NAME)
  const names: Raw[] = []
  const may = (scope: string | undefined) =>
    scope === 'full' ? 'may do all there is in the cluster' : 'may look at all of the cluster'
  for (const { id, value } of of<{ name: string; scope?: string }>(joining, USER)) {
    if (users.has(value.name))
      changes.push(`the user "${value.name}" of ${host.name} is the cluster's "${value.name}" from now on`)
    else {
      names.push({ kind: USER_NAME, id: value.name, value: { schema: 1, user: id } })
      changes.push(`the user "${value.name}" of ${host.name} ${may(value.scope)} from now on`)
    }
  }
  const ownTokens = idsOf(joining, TOKEN_NAME)
  for (const { id, value } of of<{ name: string; scope?: string }>(joining, TOKEN)) {
    let { name } = value
    if (tokens.has(name)) {
      name = freeName(name, host.name, (n) => tokens.has(n) || ownTokens.has(n))
      ownTokens.add(name)
      renamed.set(id, name)
      changes.push(`token "${value.name}" of ${host.name} is called "${name}" from now on`)
    }
    changes.push(`the token "${name}" of ${host.name} ${may(value.scope)} from now on`)
    names.push({ kind: TOKEN_NAME, id: name, value: { schema: 1, token: id } })
  }

  const unknown = new Map<string, number>()
  const records: Raw[] = []
  for (const { kind, id, value } of joining) {
    const name = renamed.get(id)
    switch (kind) {
      case vmKind.name: {
        const vm = value as VmRecord
        const nics = vm.spec.nics.map((n) => ({ ...n, network: into.get(n.network) || n.network }))
        records.push({ kind, id, value: { ...vm, spec: { ...vm.spec, nics, uid: uidOf.get(id) ?? vm.spec.uid } } })
        break
      }
      case snapshotKind.name: {
        const s = value as SnapshotRecord
        const nics = s.spec.nics.map((n) => ({ ...n, network: into.get(n.network) || n.network }))
        const uid = uidOf.get(s.vm) ?? s.spec.uid
        records.push({ kind, id, value: { ...s, spec: { ...s.spec, nics, uid } } })
        break
      }
      case networkKind.name:
        if (!into.has(id))
          records.push({ kind, id, value: name === undefined ? value : { ...(value as object), name } })
        break
      case poolKind.name: {
        const pool = value as PoolRecord
        records.push({ kind, id, value: { ...pool, ...(name === undefined ? {} : { name }), host: host.id } })
        break
      }
      case imageKind.name:
        records.push({
          kind,
          id,
          value: { ...(value as object), ...(name === undefined ? {} : { name }), host: host.id },
        })
        break
      case groupKind.name:
      case volumeKind.name:
      case ruleKind.name:
      case TOKEN:
        records.push({ kind, id, value: name === undefined ? value : { ...(value as object), name } })
        break
      case USER:
        if (!users.has((value as { name: string }).name)) records.push({ kind, id, value })
        break
      default:
        if (!FATES.has(kind)) unknown.set(kind, (unknown.get(kind) ?? 0) + 1)
        else if (FATES.get(kind) === 'as it is') records.push({ kind, id, value })
    }
  }
  for (const [kind, n] of unknown)
    changes.push(`the cluster does not know records of the kind "${kind}": ${n} of ${host.name} stay behind`)
  const index = [...own].flatMap(([key, holder]): Raw[] => {
    const now = moved.has(key) ? moved.get(key) : key
    return now === undefined
      ? []
      : [{ kind: indexKind.name, id: now, value: { schema: 1, holder } satisfies IndexRecord }]
  })
  return { refused, changes, index: [...index, ...names], records }
}

const listOf = (names: readonly string[]) =>
  names.slice(0, NAMES_MOST).join(', ') + (names.length > NAMES_MOST ? ` and ${names.length - NAMES_MOST} more` : '')

/** A name like any other: one label, also where the host is called by several. */
export function freeName(of: string, host: string, taken: (name: string) => boolean): string {
  const short = (text: string, most: number) => text.slice(0, most).replace(/-+$/, '')
  const label = host.toLowerCase().replaceAll(/[^a-z0-9]+/g, '-')
  const base = short(`${short(of, 38)}-${label}`, 58)
  for (let i = 1; ; i += 1) {
    const name = i === 1 ? base : `${base}-${i}`
    if (!taken(name)) return name
  }
}

/** The same to a guest: a VM that moves from one to the other sees no difference. */
function isAlike(a: NetworkRecord, b: NetworkRecord): boolean {
  if (a.kind !== b.kind) return false
  if (a.kind === 'user') return a.name === b.name
  if (a.kind === 'nat') return a.subnet === b.subnet && a.gateway === b.gateway && a.name === b.name
  return a.bridge === b.bridge && a.vlan === b.vlan && a.name === b.name
}

function overlaps(a: NetworkRecord, b: NetworkRecord): boolean {
  const [x = '', y = ''] = [a.subnet, b.subnet]
  if (x === '' || y === '') return false
  const first = (subnet: string) => toNumber(subnet.split('/')[0] ?? '')
  return first(x) === first(y) || inSubnet(x.split('/')[0] ?? '', y) || inSubnet(y.split('/')[0] ?? '', x)
}
