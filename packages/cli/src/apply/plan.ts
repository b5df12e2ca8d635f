/**
 * What is there + what a file wants → what is to be done. Pure. A field that is left out is left as it is; mappings (labels, limits,
 * autostart) are merged key by key, `null` takes a key away (as in RFC 7396); lists (nics, disks, publish) are wanted as a whole.
 */
import { VmEditSchema, type Vm } from '@wadah/api/schema/vm'
import type { Image, Pool, Volume } from '@wadah/api/schema/storage'
import type { FirewallGroup, FirewallRule } from '@wadah/api/schema/firewall'
import type { Network } from '@wadah/api/schema/network'
import { namedFirewall } from '../text/firewall.ts'
import type { Path } from './check.ts'
import type { Doc } from './documents.ts'
import { diffCdroms, diffDisks, diffNics, growTo } from './plan-devices.ts'
import type { Kind } from './shape.ts'

export const SET_LABEL = 'wadah.apply'

export type Current = {
  vms: Vm[]
  networks: Network[]
  pools: Pool[]
  images: Image[]
  volumes: Volume[]
  groups: FirewallGroup[]
}
export type Change = { field: string; from: unknown; to: unknown }
export type Action = { kind: Kind; name: string } & (
  | { do: 'create'; body: Record<string, unknown>; start: boolean }
  | {
      do: 'edit'
      id: string
      generation: number
      body: Record<string, unknown>
      changes: Change[]
      /** Volumes that become larger, before anything else. */
      grow: { volume: string; size_mib: number }[]
      /** It runs, and this can be done to a stopped VM only. */
      stop: boolean
      /** Fields that a running VM takes over at its next start. */
      later: string[]
      /** It is to be running afterwards. */
      start: boolean
    }
  | { do: 'start' | 'resume' | 'shutdown'; id: string }
  /** Earlier changes wait for its next start. */
  | { do: 'restart'; id: string; fields: string[] }
  | { do: 'delete'; id: string; running: boolean }
)
/** Why the file cannot be carried out; nothing is done then. */
export type Obstacle = { doc?: Doc; kind: Kind; name: string; path: Path; text: string; remedy?: string }
export type Plan = { actions: Action[]; obstacles: Obstacle[]; notes: string[] }
export type PlanOptions = { set?: string; prune: boolean; restart: boolean }

type Fields = Record<string, unknown>
/** How one VM differs, gathered field by field. */
export type Draft = {
  body: Fields
  changes: Change[]
  grow: { volume: string; size_mib: number }[]
  later: string[]
  stop: boolean
  refuse: (path: Path, text: string, remedy?: string) => void
}

/** Only these mean anything when it is made: nothing can be compared later. */
const AT_CREATION = new Set(['name', 'clone', 'pool', 'host', 'seed'])
/** Taken over by a running VM at its next start. */
const AT_START = new Set(['cpus', 'cmdline', 'firmware', 'tpm', 'serial_ports', 'boot_order'])
/** Mappings whose edit takes single keys; others are sent as a whole. */
const BY_KEY = new Set(['limits', 'autostart', 'firewall'])
/** What is meant where the daemon's record has nothing. */
const UNSET: Fields = {
  firmware: { kind: 'bios' },
  tpm: false,
  serial_ports: 1,
  boot_order: [],
  host_access: false,
  snapshot_schedule: null,
}

export function makePlan(docs: readonly Doc[], current: Current, o: PlanOptions): Plan {
  const plan: Plan = { actions: [], obstacles: [], notes: [] }
  const of = (kind: Kind) => docs.filter((d) => d.kind === kind)
  for (const doc of of('pool')) planPool(doc, current, plan)
  for (const doc of of('network')) planNetwork(doc, current, plan)
  planGroups(of('firewall-group'), docs, current, plan)
  for (const doc of of('image')) planImage(doc, current, plan)
  if (o.prune && o.set !== undefined) planPrune(docs, current, o.set, plan)
  const vms = of('vm')
  for (const doc of vms) checkReferences(doc, docs, current, plan)
  const there = (doc: Doc) => current.vms.find((vm) => vm.name === doc.name)
  // What is changed may give up a port or an address that what is new wants.
  for (const doc of vms) {
    const vm = there(doc)
    if (vm) planVm(doc, vm, current, o, plan)
  }
  for (const doc of vms) {
    if (there(doc)) continue
    const labels = {
      ...(doc.body['labels'] as object | undefined),
      ...(o.set === undefined ? {} : { [SET_LABEL]: o.set }),
    }
    const body = {
      ...withoutNulls(doc.body),
      ...(Object.keys(labels).length > 0 ? { labels: withoutNulls(labels) } : {}),
    }
    plan.actions.push({ do: 'create', kind: 'vm', name: doc.name, body, start: doc.state === 'running' })
  }
  return plan
}

function refuse(plan: Plan, doc: Doc, path: Path, text: string, remedy?: string): void {
  plan.obstacles.push({ doc, kind: doc.kind, name: doc.name, path, text, ...(remedy === undefined ? {} : { remedy }) })
}

function planPool(doc: Doc, current: Current, plan: Plan): void {
  const pool = current.pools.find((p) => p.name === doc.name)
  if (!pool) return void plan.actions.push({ do: 'create', kind: 'pool', name: doc.name, body: doc.body, start: false })
  const { path, overcommit } = doc.body as { path: string; overcommit?: number }
  if (trimSlash(path) !== trimSlash(pool.path))
    refuse(plan, doc, ['path'], `the pool lies in ${pool.path}, and a pool cannot be moved`)
  if (overcommit === undefined || overcommit === pool.overcommit) return
  plan.actions.push({
    ...edit(doc, pool),
    body: { overcommit },
    changes: [{ field: 'overcommit', from: pool.overcommit, to: overcommit }],
  })
}

function planNetwork(doc: Doc, current: Current, plan: Plan): void {
  const network = current.networks.find((n) => n.name === doc.name)
  if (!network)
    return void plan.actions.push({ do: 'create', kind: 'network', name: doc.name, body: doc.body, start: false })
  for (const [field, value] of Object.entries(doc.body)) {
    const now = (network as unknown as Fields)[field] ?? UNSET[field]
    if (!same(now, value)) {
      const shown = field === 'kind' ? 'type' : field
      refuse(
        plan,
        doc,
        [shown],
        `it is ${JSON.stringify(now) ?? 'unset'}, and a network cannot be changed`,
        `wadah network delete ${doc.name}`,
      )
    }
  }
}

/** Rules as they are kept where nothing is said: any protocol. */
const plainRules = (rules: unknown): unknown =>
  Array.isArray(rules) ? (rules as FirewallRule[]).map((rule) => ({ protocol: 'any', ...rule })) : rules

/** New ones first, each after those that it names; then those that change. */
function planGroups(groups: readonly Doc[], docs: readonly Doc[], current: Current, plan: Plan): void {
  const isNew = (doc: Doc) => !current.groups.some((g) => g.name === doc.name)
  const names = (doc: Doc) =>
    ((doc.body['rules'] ?? []) as FirewallRule[]).flatMap((r) => [...(r.from ?? []), ...(r.to ?? [])])
  let waiting = groups.filter(isNew)
  while (waiting.length > 0) {
    const ready = waiting.filter((doc) => !names(doc).some((n) => n !== doc.name && waiting.some((w) => w.name === n)))
    for (const doc of ready) planGroup(doc, docs, current, plan)
    if (ready.length === 0) {
      for (const doc of waiting)
        refuse(
          plan,
          doc,
          ['rules'],
          'new groups name each other in a circle',
          `wadah firewall group create ${doc.name}`,
        )
      break
    }
    waiting = waiting.filter((doc) => !ready.includes(doc))
  }
  for (const doc of groups) if (!isNew(doc)) planGroup(doc, docs, current, plan)
}

function planGroup(doc: Doc, docs: readonly Doc[], current: Current, plan: Plan): void {
  const group = current.groups.find((g) => g.name === doc.name)
  checkPeers(doc, doc.body['rules'], ['rules'], docs, current, plan)
  if (!group)
    return void plan.actions.push({
      do: 'create',
      kind: 'firewall-group',
      name: doc.name,
      body: doc.body,
      start: false,
    })
  const body: Fields = {}
  const changes: Change[] = []
  for (const field of ['description', 'rules'] as const) {
    const to = doc.body[field]
    if (to === undefined || same(plainRules(group[field]), plainRules(to))) continue
    body[field] = to
    changes.push({ field, from: group[field], to })
  }
  if (changes.length > 0) plan.actions.push({ ...edit(doc, group), body, changes })
}

/** Groups that rules name must be there, or come from this file. */
function checkPeers(doc: Doc, rules: unknown, at: Path, docs: readonly Doc[], current: Current, plan: Plan): void {
  for (const [i, rule] of ((rules ?? []) as FirewallRule[]).entries())
    for (const side of ['from', 'to'] as const)
      for (const [j, peer] of (rule[side] ?? []).entries())
        if (!/[.:]/.test(peer)) needGroup(doc, peer, [...at, i, side, j], docs, current, plan)
}
function needGroup(doc: Doc, ref: string, path: Path, docs: readonly Doc[], current: Current, plan: Plan): void {
  if (docs.some((d) => d.kind === 'firewall-group' && d.name === ref)) return
  if (current.groups.some((g) => g.name === ref || g.id === ref)) return
  refuse(plan, doc, path, `there is no security group "${ref}", and none in the file`, 'wadah firewall group list')
}

function planImage(doc: Doc, current: Current, plan: Plan): void {
  const image = current.images.find((i) => i.name === doc.name)
  if (!image)
    return void plan.actions.push({ do: 'create', kind: 'image', name: doc.name, body: doc.body, start: false })
  const { recipe } = doc.body
  if (image.recipe !== recipe)
    refuse(
      plan,
      doc,
      ['recipe'],
      `the image was made from ${image.recipe ?? 'no recipe'}; give this one another name`,
      `wadah image delete ${doc.name}`,
    )
  if (!image.ready) plan.notes.push(`image ${doc.name} is not ready yet`)
}

function planPrune(docs: readonly Doc[], current: Current, set: string, plan: Plan): void {
  for (const vm of current.vms) {
    if (vm.labels[SET_LABEL] !== set || docs.some((d) => d.kind === 'vm' && d.name === vm.name)) continue
    if (vm.protected) {
      plan.obstacles.push({
        kind: 'vm',
        name: vm.name,
        path: [],
        text: `it is no more in the file and would be deleted, but is protected`,
        remedy: `wadah vm edit ${vm.name} --unprotect`,
      })
    } else plan.actions.push({ do: 'delete', kind: 'vm', name: vm.name, id: vm.id, running: isLive(vm) })
  }
}

/** Every name a VM stands on must be there, or come from this file. */
function checkReferences(doc: Doc, docs: readonly Doc[], current: Current, plan: Plan): void {
  const need = (kind: 'image' | 'network' | 'pool', ref: unknown, path: Path) => {
    if (typeof ref !== 'string' || docs.some((d) => d.kind === kind && d.name === ref)) return
    if (current[`${kind}s`].some((x) => x.name === ref || x.id === ref)) return
    refuse(plan, doc, path, `there is no ${kind} "${ref}", and none in the file`, `wadah ${kind} list`)
  }
  need('image', doc.body['image'], ['image'])
  need('pool', doc.body['pool'], ['pool'])
  for (const [i, nic] of ((doc.body['nics'] ?? []) as Fields[]).entries())
    need('network', nic['network'], ['nics', i, 'network'])
  for (const [i, drive] of ((doc.body['cdroms'] ?? []) as Fields[]).entries())
    need('image', drive['image'], ['cdroms', i, 'image'])
  const { groups, rules } = (doc.body['firewall'] ?? {}) as { groups?: string[]; rules?: unknown }
  for (const [i, ref] of (groups ?? []).entries()) needGroup(doc, ref, ['firewall', 'groups', i], docs, current, plan)
  checkPeers(doc, rules, ['firewall', 'rules'], docs, current, plan)
  for (const [i, disk] of ((doc.body['disks'] ?? []) as Fields[]).entries())
    need('pool', disk['pool'], ['disks', i, 'pool'])
}

function planVm(doc: Doc, vm: Vm, current: Current, o: PlanOptions, plan: Plan): void {
  const owner = vm.labels[SET_LABEL]
  if (owner !== undefined && owner !== o.set)
    refuse(
      plan,
      doc,
      ['name'],
      `it belongs to the set "${owner}" of another file`,
      `wadah vm edit ${vm.name} --remove-label ${SET_LABEL}`,
    )
  const draft: Draft = {
    body: {},
    changes: [],
    grow: [],
    later: [],
    stop: false,
    refuse: (path, text, remedy) => refuse(plan, doc, path, text, remedy),
  }
  diffFields(doc, vm, current, o.set, draft)
  const live = isLive(vm)
  if (doc.body['disks'] !== undefined) diffDisks(doc.body['disks'] as Fields[], vm, current, draft)
  if (doc.body['nics'] !== undefined) diffNics(doc.body['nics'] as Fields[], vm, current, draft)
  if (doc.body['cdroms'] !== undefined) diffCdroms(doc.body['cdroms'] as Fields[], vm, current, draft)
  diffSeed(doc, vm, plan)
  const stop = live && draft.stop
  if (stop && !o.restart && doc.state !== 'stopped')
    refuse(
      plan,
      doc,
      [],
      `${fieldNames(draft)}: this can be done to a stopped VM only`,
      'with --restart it is shut down for it and started again',
    )
  const up = vm.status.state === 'running'
  if (Object.keys(draft.body).length + draft.grow.length > 0) {
    plan.actions.push({
      ...edit(doc, vm),
      body: draft.body,
      changes: draft.changes,
      grow: draft.grow,
      stop,
      later: live ? draft.later : [],
      start: doc.state === undefined ? live : doc.state === 'running',
    })
  } else if (o.restart && up && doc.state !== 'stopped' && vm.status.pending_restart.length > 0)
    plan.actions.push({ do: 'restart', kind: 'vm', name: vm.name, id: vm.id, fields: vm.status.pending_restart })
  else if (live && vm.status.pending_restart.length > 0 && doc.state !== 'stopped')
    plan.notes.push(`vm ${vm.name}: at its next start takes hold: ${vm.status.pending_restart.join(', ')}`)
  // An edit that has to stop it ends in what is wanted by itself.
  const verb = stop ? undefined : stateAction(doc, vm)
  if (verb) plan.actions.push({ do: verb, kind: 'vm', name: vm.name, id: vm.id })
}

function stateAction(doc: Doc, vm: Vm): 'start' | 'resume' | 'shutdown' | undefined {
  if (doc.state === 'stopped') return isLive(vm) ? 'shutdown' : undefined
  if (doc.state !== 'running') return undefined
  if (vm.status.state === 'paused') return 'resume'
  return isLive(vm) ? undefined : 'start'
}

function diffFields(doc: Doc, vm: Vm, current: Current, set: string | undefined, d: Draft): void {
  const change = (field: string, from: unknown, to: unknown, body: unknown = to) => {
    d.body[field] = body
    d.changes.push({ field, from, to })
    const less = field === 'memory_mib' && (to as number) < (from as number)
    if (less || AT_START.has(field)) d.later.push(field)
  }
  const labels = { ...(doc.body['labels'] as Fields | undefined), ...(set === undefined ? {} : { [SET_LABEL]: set }) }
  const merged = withoutNulls({ ...vm.labels, ...labels })
  if (!same(merged, vm.labels)) change('labels', vm.labels, merged)
  for (const [field, wanted] of Object.entries(doc.body)) {
    if (AT_CREATION.has(field) || ['labels', 'disks', 'nics', 'cdroms'].includes(field)) continue
    if (field === 'image') {
      const image = current.images.find((i) => i.id === vm.spec.image)
      if (wanted !== vm.spec.image && wanted !== image?.name)
        d.refuse(
          ['image'],
          `it was made from ${image?.name ?? vm.spec.image ?? 'no image'}, which cannot be changed afterwards`,
          `wadah vm delete ${vm.name}`,
        )
    } else if (field === 'disk_mib') {
      growTo(['disk'], vm.spec.disks[0], wanted as number, current, d)
    } else if (field === 'firewall') {
      const there = vm.spec.firewall && namedFirewall(vm.spec.firewall, current.groups)
      const now: Fields = there ?? {}
      const differing = Object.fromEntries(
        Object.entries(wanted as Fields).filter(([k, v]) => !same(plainRules(now[k]), plainRules(v))),
      )
      if (there === undefined || Object.keys(differing).length > 0) change(field, there, wanted, differing)
    } else if (field === 'cmdline') {
      const now = vm.spec.boot.kind === 'kernel' ? vm.spec.boot.cmdline : undefined
      if (now !== wanted) change(field, now, wanted)
    } else {
      const now = (vm as unknown as Fields)[field] ?? (vm.spec as unknown as Fields)[field] ?? UNSET[field]
      if (isMap(wanted)) {
        const differing = Object.fromEntries(
          Object.entries(wanted).filter(([k, v]) => !same((now as Fields | undefined)?.[k] ?? null, v)),
        )
        if (Object.keys(differing).length > 0 && editable(field, d))
          change(field, pick(now, differing), differing, BY_KEY.has(field) ? differing : wanted)
      } else if (!same(now, wanted) && editable(field, d)) change(field, now, wanted)
    }
  }
}

function editable(field: string, d: Draft): boolean {
  if (Object.hasOwn(VmEditSchema.properties, field)) return true
  d.refuse([field], 'this is given when it is made and cannot be changed afterwards')
  return false
}

/** The seed is read at the first boot; a later difference can only be said. */
function diffSeed(doc: Doc, vm: Vm, plan: Plan): void {
  const seed = (doc.body['seed'] ?? {}) as Fields
  for (const field of ['hostname', 'user', 'ssh_keys'] as const)
    if (seed[field] !== undefined && !same(seed[field], vm.spec.seed[field]))
      plan.notes.push(`vm ${vm.name}: seed/${field} differs; it is read at the first boot only`)
}

function edit(doc: Doc, there: { id: string; generation: number }) {
  const { kind, name } = doc
  return {
    do: 'edit' as const,
    kind,
    name,
    id: there.id,
    generation: there.generation,
    grow: [],
    stop: false,
    later: [],
    start: false,
  }
}

export const isLive = (vm: Vm): boolean => vm.status.state !== 'stopped' && vm.status.state !== 'absent'
const isMap = (v: unknown): v is Fields => typeof v === 'object' && v !== null && !Array.isArray(v)
const trimSlash = (path: string) => path.replace(/\/+$/, '') || '/'
const fieldNames = (d: Draft) => d.changes.map((c) => c.field).join(', ')

function pick(from: unknown, keys: Fields): Fields {
  const map = isMap(from) ? from : {}
  return Object.fromEntries(Object.keys(keys).flatMap((k) => (map[k] === undefined ? [] : [[k, map[k]]])))
}

/** Deep equality of plain JSON, the order of keys left aside. */
export function same(a: unknown, b: unknown): boolean {
  if (a === b) return true
  if (Array.isArray(a) && Array.isArray(b)) return a.length === b.length && a.every((x, i) => same(x, b[i]))
  if (!isMap(a) || !isMap(b)) return false
  const keys = Object.keys(a)
  return keys.length === Object.keys(b).length && keys.every((k) => Object.hasOwn(b, k) && same(a[k], b[k]))
}

/** Without keys that are null, at every depth. */
export function withoutNulls<T extends object>(value: T): T {
  return Object.fromEntries(
    Object.entries(value).flatMap(([k, v]) => (v === null ? [] : [[k, isMap(v) ? withoutNulls(v) : v]])),
  ) as T
}
