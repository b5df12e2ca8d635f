/** Creating a VM: everything that can be refused is refused before anything is written; then one commit, then disks, then its start. */
import { admit } from '@wadah/api/admit'
import { WadahError, fail } from '@wadah/api/fault'
import { nameProblem, newId } from '@wadah/api/ids'
import type { SeedKind } from '@wadah/api/schema/imports'
import type { Subject } from '@wadah/api/schema/access'
import { AUTOSTART_DEFAULT } from '@wadah/api/schema/vm'
import type { Nic, NicInput, Published, PublishInput, VmCreate, VmSpec } from '@wadah/api/schema/vm'
import { type Check, type Rec, type Write, absent, put, unchanged } from '@wadah/store/store'
import { type Deps, commandOf, find } from '../context.ts'
import { groupChecks, namedGroups, planFirewall, refuseUserNics } from '../networks/firewall-rules.ts'
import {
  type ImageRecord,
  type IndexRecord,
  type NetworkRecord,
  type PoolRecord,
  type SecretRecord,
  type VmRecord,
  type VolumeRecord,
  imageKind,
  indexKeys,
  indexKind,
  networkKind,
  placementKind,
  poolKind,
  secretKind,
  statusKind,
  vmKind,
  volumeKind,
  type NamedKind,
} from '../records.ts'
import { claimKind } from '../jobs/record.ts'
import type { Pending } from '../pending.ts'
import { poolDefinition } from '../resolve.ts'
import { findPool } from '../storage/find-pool.ts'
import { checkInstant, checkInstantNetwork } from '../warm/admit.ts'
import { freeAddress, freeMac, inSubnet } from './allocate.ts'
import { checkBootOrder, checkFirmware, checkTpm, planCdroms } from './drives.ts'
import { hostdevKey, judgeHostdevs } from './hostdevs.ts'
import { newUid } from './uids.ts'
import { isBridged } from './inside.ts'
import { healthTarget } from './view.ts'

export const DEFAULT_NETWORK = 'default'
const MIB = 1024 * 1024

/** What the job is told; plain JSON. */
export type CreateParams = {
  vm: string
  name: string
  /** `make`: the job makes it, and its undo deletes it. */
  disks: { volume: string; make: boolean; from?: { volume: string; how: 'linked' | 'full' | 'delta' } }[]
  start: boolean
  wait_ready: boolean
  /** It goes on from the warm template of its image; its disks are made together with its start. */
  instant?: true
  /** The VM it is a clone of: held as long as its disks are read. */
  source?: string
}

export type CreatePlan = {
  params: CreateParams
  record: VmRecord
  checks: Check[]
  writes: Write[]
  /** Gives back what was held while on the way into the store. */
  release: () => void
}

/** A disk to be made for a VM, before its records exist. */
export type DiskPlan = {
  name: string
  volume: VolumeRecord
  limits: VmSpec['disks'][number]['limits']
  from?: NonNullable<CreateParams['disks'][number]['from']>
}

/** Checks a request against everything that is known and turns it into one commit. Nothing is changed. */
export async function planCreate(
  deps: Deps,
  pending: Pending,
  project: string,
  _subject: Subject,
  body: VmCreate,
): Promise<CreatePlan> {
  checkName(deps, 'vm', project, body.name)
  const image =
    body.image === undefined ? undefined : find(deps, 'image', imageKind, project, body.image, '/image').value
  if (image && !image.ready)
    throw fail('wrong_state', `The image "${image.name}" is not ready.`, {
      field: '/image',
      remedy: `wadah image show ${image.name}`,
    })
  if (image?.kind === 'iso') {
    throw fail('invalid', `The image "${image.name}" is a CD: no VM is cloned from it.`, {
      field: '/image',
      remedy: `wadah vm create NAME --disk 10G --cdrom ${image.name}`,
    })
  }
  checkAgainstImage(body, image)
  const warm = body.instant ? checkInstant(body, image) : undefined
  const made = image?.hardware ?? {}
  const memory = warm?.memory_mib ?? body.memory_mib ?? made.memory_mib ?? Math.max(512, image?.min_memory_mib ?? 0)
  const smallMemory = image?.kind === 'kernel' && body.memory_mib === undefined && !warm ? image.min_memory_mib : memory
  checkMemory(deps, smallMemory)

  const vm = newId('vm', deps.randomBytes)
  const now = new Date(deps.clock.now_ms()).toISOString()
  const disks = await planDisks(deps, pending, project, { vm, name: body.name, now }, body, standsOn(image, warm))
  const cdroms = planCdroms(
    deps,
    project,
    body.cdroms ?? [],
    [],
    disks.map((d) => d.name),
    '/cdroms',
  )
  const firmware = body.firmware ?? (made.firmware === 'uefi' ? { kind: 'uefi' as const } : undefined)
  if (firmware) await checkFirmware(deps, firmware, image)
  if (body.tpm) await checkTpm(deps, image)
  const hostdevs = body.hostdevs ?? []
  await judgeHostdevs(deps, hostdevs, [], vm, '/hostdevs')
  const nics = await planNics(
    deps,
    pending,
    project,
    body.nics ?? Array.from({ length: Math.min(made.nics ?? 1, 8) }, () => ({})),
    [],
  )
  const firewall = body.firewall === undefined ? undefined : planFirewall(deps, project, body.firewall, undefined)
  refuseUserNics(deps, firewall, nics)
  if (warm) checkInstantNetwork(deps.view.get(networkKind, nics[0]?.network ?? '')?.value)
  const uid = newUid(deps, pending)
  const spec: VmSpec = {
    cpus: warm?.cpus ?? body.cpus ?? made.cpus ?? 1,
    memory_mib: smallMemory,
    machine: 'q35',
    ...(firmware === undefined ? {} : { firmware }),
    ...(hostdevs.length === 0 ? {} : { hostdevs }),
    ...(body.tpm ? { tpm: true } : {}),
    ...(body.serial_ports === undefined ? {} : { serial_ports: body.serial_ports }),
    ...(firewall === undefined ? {} : { firewall }),
    ...(cdroms.length === 0 ? {} : { cdroms }),
    ...(body.boot_order === undefined ? {} : { boot_order: body.boot_order }),
    boot:
      image?.kind === 'kernel'
        ? { kind: 'kernel', image: image.id, cmdline: body.cmdline ?? image.cmdline ?? '' }
        : { kind: 'disk' },
    disks: disks.map((d) => ({ name: d.name, volume: d.volume.id, limits: d.limits })),
    nics,
    limits: body.limits ?? {},
    balloon_mib: body.balloon_mib ?? null,
    seed: {
      hostname: body.seed?.hostname ?? body.name,
      ...(body.seed?.user === undefined ? {} : { user: body.seed.user }),
      has_password: body.seed?.password !== undefined,
      ssh_keys: body.seed?.ssh_keys ?? [],
      ...seedKind(body, image),
    },
    ...(image ? { image: image.id } : {}),
    ...(image?.recipe === undefined ? {} : { recipe: image.recipe }),
    ...(image?.service === undefined ? {} : { service: image.service }),
    uid,
  }
  checkBootOrder(body.boot_order ?? [], spec)
  if (body.balloon_mib !== undefined && body.balloon_mib > spec.memory_mib) {
    throw fail('invalid', `The balloon can only take memory away: at most ${spec.memory_mib} MiB.`, {
      field: '/balloon_mib',
    })
  }
  if (body.wait_ready && !healthTarget(spec) && !isBridged(deps, spec)) {
    throw fail(
      'invalid',
      `Its service (port ${spec.service?.port}) could not be reached from this host to be waited for.`,
      {
        field: '/wait_ready',
        remedy: `give it a NIC on a network of kind "nat", or publish its port: "publish": [{"port": …, "to": ${spec.service?.port}}]`,
      },
    )
  }
  const record: VmRecord = {
    schema: 1,
    id: vm,
    name: body.name,
    project,
    created_at: now,
    description: body.description ?? '',
    labels: body.labels ?? {},
    ...(body.protected ? { protected: true } : {}),
    ...(body.autostart ? { autostart: { ...AUTOSTART_DEFAULT, ...body.autostart } } : {}),
    ...(body.restart ? { restart: body.restart } : {}),
    ...(body.snapshot_schedule ? { snapshot_schedule: body.snapshot_schedule } : {}),
    wanted: body.start ? 'running' : 'stopped',
    spec,
  }
  const plan = assemble(deps, pending, record, disks, body.seed, body.start ?? false, body.wait_ready ?? false)
  return warm ? { ...plan, params: { ...plan.params, instant: true } } : plan
}

/** The disk of an instant clone stands on what the template wrote. */
function standsOn(image: ImageRecord | undefined, warm: ImageRecord['warm']): ImageRecord | undefined {
  return image && warm?.volume !== undefined ? { ...image, volume: warm.volume } : image
}

/** The one commit that makes a VM known: its records, and an index record for all that only one may have. */
export function assemble(
  deps: Deps,
  pending: Pending,
  record: VmRecord,
  planned: DiskPlan[],
  secrets: { password?: string; user_data?: string } | undefined,
  start: boolean,
  waitReady: boolean,
): CreatePlan {
  // Judged again together with the checks: time has passed since the plan.
  const disks = planned.map((d) =>
    d.volume.making ? d : { ...d, volume: attachable(deps, record.project, d.volume.id, '/disks', record.id) },
  )
  const keys = indexKeysOf(
    deps,
    record,
    disks.flatMap((d) => (d.volume.making ? [d.volume] : [])),
  )
  const holder: IndexRecord = { schema: 1, holder: record.id }
  const ownHolder = new Map(disks.map((d) => [indexKeys.name('volume', record.project, d.volume.name), d.volume.id]))
  const checks: Check[] = [absent(vmKind, record.id), ...keys.map((key) => absent(indexKind, key))]
  // What it stands on must be as it was read: whoever deletes such a thing marks it first, and looks for users after.
  const standsOn = [
    ...record.spec.nics.map((nic) => deps.view.get(networkKind, nic.network)),
    record.spec.image === undefined ? undefined : deps.view.get(imageKind, record.spec.image),
    ...(record.spec.cdroms ?? []).map((c) => (c.image === undefined ? undefined : deps.view.get(imageKind, c.image))),
    ...disks.flatMap((d) => [
      deps.view.get(poolKind, d.volume.pool),
      d.from ? deps.view.get(volumeKind, d.from.volume) : undefined,
    ]),
    // A volume that was there before changes hands.
    ...disks.map((d) => (d.volume.making ? undefined : deps.view.get(volumeKind, d.volume.id))),
  ]
  for (const rec of standsOn) if (rec) checks.push(unchanged(rec as Rec<unknown>))
  checks.push(...groupChecks(deps, namedGroups(record.spec.firewall?.rules ?? [], record.spec.firewall?.groups)))
  const now = deps.clock.now_ms()
  const writes: Write[] = [
    put(vmKind, record.id, record),
    put(placementKind, record.id, { schema: 1, host: deps.hostId, epoch: 1 }),
    put(statusKind, record.id, { schema: 1, state: 'absent', reason: 'it is being created', since_ms: now }),
    ...secretWrites(record.id, secrets),
    ...keys.map((key) => put(indexKind, key, { ...holder, holder: ownHolder.get(key) ?? record.id })),
    ...disks.map((d) => put(volumeKind, d.volume.id, d.volume)),
  ]
  const release = pending.take(
    keys,
    disks.flatMap((d) => (d.volume.making ? [[`promised/${d.volume.pool}`, d.volume.size_bytes] as const] : [])),
  )
  return {
    params: {
      vm: record.id,
      name: record.name,
      disks: disks.map((d) => ({
        volume: d.volume.id,
        make: d.volume.making === true,
        ...(d.from ? { from: d.from } : {}),
      })),
      start,
      wait_ready: waitReady,
    },
    record,
    checks: dedupe(checks),
    writes,
    release,
  }
}

function secretWrites(vm: string, secrets: { password?: string; user_data?: string } | undefined): Write[] {
  const { password, user_data } = secrets ?? {}
  if (password === undefined && user_data === undefined) return []
  const record: SecretRecord = {
    schema: 1,
    ...(password === undefined ? {} : { password }),
    ...(user_data === undefined ? {} : { user_data }),
  }
  return [put(secretKind, vm, record)]
}

/** How the guest is told who it is. Only what differs from images of our own is kept. */
function seedKind(body: VmCreate, image: ImageRecord | undefined): { kind?: SeedKind; has_user_data?: boolean } {
  const kind = body.seed?.kind ?? image?.seed ?? 'wadah'
  const { user_data, user, password, ssh_keys } = body.seed ?? {}
  if (user_data !== undefined && kind !== 'nocloud')
    throw fail('invalid', `User-data is for guests with cloud-init; this one is told by "${kind}".`, {
      field: '/seed/user_data',
      remedy: 'leave it out, or say --seed nocloud if the guest has cloud-init',
    })
  if (user_data !== undefined && !/^(#cloud-config\b|#!|#include|#cloud-boothook\b|## template: jinja)/.test(user_data))
    throw fail('invalid', 'The user-data does not begin as cloud-init needs it: "#cloud-config", "#!" …', {
      field: '/seed/user_data',
    })
  if (kind === 'none' && (user !== undefined || password !== undefined || (ssh_keys?.length ?? 0) > 0))
    throw fail('invalid', 'The guest is told nothing (seed "none"), so no user, password or key would reach it.', {
      field: '/seed',
      remedy: 'if it has cloud-init: --seed nocloud',
    })
  return { ...(kind === 'wadah' ? {} : { kind }), ...(user_data === undefined ? {} : { has_user_data: true }) }
}

function dedupe(checks: Check[]): Check[] {
  return [...new Map(checks.map((c) => [`${c.kind}:${c.id}`, c])).values()]
}

/** Index records that belong to a VM and the volumes made with it. */
export function indexKeysOf(deps: Pick<Deps, 'hostId'>, record: VmRecord, volumes: readonly VolumeRecord[]): string[] {
  const { spec, project } = record
  return [
    indexKeys.name('vm', project, record.name),
    indexKeys.uid(spec.uid),
    ...volumes.map((v) => indexKeys.name('volume', project, v.name)),
    ...spec.nics.flatMap((nic) => nicKeys(deps, nic)),
    ...(spec.hostdevs ?? []).map((d) => hostdevKey(deps.hostId, d)),
  ]
}

export function nicKeys(deps: Pick<Deps, 'hostId'>, nic: Nic): string[] {
  return [
    indexKeys.mac(nic.mac),
    ...(nic.address === undefined ? [] : [indexKeys.address(nic.network, nic.address)]),
    ...nic.publish.map((p) => portKey(deps, p)),
  ]
}
export function portKey(deps: Pick<Deps, 'hostId'>, p: Published): string {
  return indexKeys.port(deps.hostId, p.protocol, p.address, p.port)
}

export function checkName(deps: Deps, noun: NamedKind, project: string, name: string): void {
  const problem = nameProblem(name)
  if (problem) throw fail('invalid', `${problem}.`, { field: '/name' })
  if (deps.view.get(indexKind, indexKeys.name(noun, project, name))) {
    throw fail(
      'name_taken',
      `There is a ${noun === 'vm' ? 'VM' : noun.replace('-', ' ')} "${name}" already; choose another name.`,
      {
        field: '/name',
        remedy: `${commandOf(noun)} show ${name}`,
      },
    )
  }
}

function checkAgainstImage(body: VmCreate, image: ImageRecord | undefined): void {
  if (!image) {
    if (body.cmdline !== undefined) {
      throw fail('invalid', 'A kernel command line needs an image with a kernel.', {
        field: '/cmdline',
        remedy: 'wadah image list',
      })
    }
    if (body.wait_ready)
      throw fail('invalid', 'Without an image of a recipe there is no health check to wait for.', {
        field: '/wait_ready',
      })
    return
  }
  if (body.cmdline !== undefined && image.kind !== 'kernel') {
    throw fail('invalid', `The image "${image.name}" boots from its disk, which has its own kernel command line.`, {
      field: '/cmdline',
    })
  }
  if (body.wait_ready && !image.service) {
    throw fail('invalid', `The image "${image.name}" has no health check to wait for.`, { field: '/wait_ready' })
  }
  if (body.wait_ready && !body.start) throw fail('invalid', '"wait_ready" needs "start".', { field: '/wait_ready' })
  if (body.memory_mib !== undefined && body.memory_mib < image.min_memory_mib) {
    throw fail(
      'invalid',
      `${body.memory_mib} MiB is too little for the image "${image.name}"; it needs at least ${image.min_memory_mib} MiB.`,
      {
        field: '/memory_mib',
      },
    )
  }
}

export function checkMemory(deps: Deps, mib: number): void {
  if (mib > deps.hostMemoryMib) {
    throw fail('invalid', `${mib} MiB is more memory than this host has (${deps.hostMemoryMib} MiB).`, {
      field: '/memory_mib',
      remedy: 'wadah host show',
    })
  }
}

/** The first disk from the image, then those asked for. Checks names, sizes and room of all pools together. */
export async function planDisks(
  deps: Deps,
  pending: Pending,
  project: string,
  vm: { id?: string; vm: string; name: string; now: string },
  body: Pick<VmCreate, 'pool' | 'disk_mib' | 'clone' | 'disks'>,
  image: ImageRecord | undefined,
  there: VmSpec['disks'] = [],
  under = '/disks',
): Promise<DiskPlan[]> {
  const taken = there.map((d) => d.name)
  const plans: DiskPlan[] = []
  const pool = (ref: string | undefined, field: string) => findPool(deps, project, ref ?? body.pool, field).value
  const make = (
    name: string,
    poolId: string,
    size_bytes: number,
    format: 'qcow2' | 'raw',
    more: Partial<VolumeRecord> = {},
  ): VolumeRecord => {
    const id = newId('volume', deps.randomBytes)
    return {
      schema: 1,
      id,
      name: volumeName(deps, pending, project, vm.name, name, id),
      project,
      created_at: vm.now,
      pool: poolId,
      format,
      size_bytes,
      vm: vm.vm,
      read_only: false,
      making: true,
      ...more,
    }
  }
  const source = image?.volume === undefined ? undefined : deps.view.get(volumeKind, image.volume)?.value
  if (source) {
    const how = body.clone ?? 'linked'
    const itsPool = findPool(deps, project, source.pool, '/image').value
    const into = body.pool === undefined && how === 'linked' ? itsPool : pool(body.pool, '/pool')
    if (how === 'linked' && into.id !== source.pool) {
      throw fail(
        'invalid',
        `A linked clone lies in the pool of its image. Leave out "pool", or ask for a full clone.`,
        { field: '/clone' },
      )
    }
    const size = body.disk_mib === undefined ? source.size_bytes : body.disk_mib * MIB
    if (size < source.size_bytes) {
      throw fail(
        'invalid',
        `${body.disk_mib} MiB is smaller than the image's disk (${Math.ceil(source.size_bytes / MIB)} MiB).`,
        { field: '/disk_mib' },
      )
    }
    plans.push({
      name: 'root',
      volume: make('root', into.id, size, 'qcow2', how === 'linked' ? { base: source.id } : {}),
      limits: {},
      from: { volume: source.id, how },
    })
    for (const [i, id] of (image?.more_volumes ?? []).entries()) {
      const further = deps.view.get(volumeKind, id)?.value
      if (!further) throw fail('not_found', `A disk of the image "${image?.name}" is not there any more.`)
      const name = `disk${i + 1}`
      plans.push({
        name,
        volume: make(name, into.id, further.size_bytes, 'qcow2', how === 'linked' ? { base: further.id } : {}),
        limits: {},
        from: { volume: further.id, how },
      })
    }
  } else if (body.disk_mib !== undefined) {
    plans.push({
      name: 'root',
      volume: make('root', pool(body.pool, '/pool').id, body.disk_mib * MIB, 'qcow2'),
      limits: {},
    })
  }
  for (const [i, disk] of (body.disks ?? []).entries()) {
    const at = `${under}/${i}`
    const name = disk.name ?? freeName('disk', [...taken, ...plans.map((p) => p.name)])
    if ([...taken, ...plans.map((p) => p.name)].includes(name))
      throw fail('invalid', `There is a disk "${name}" already.`, { field: `${at}/name` })
    if (disk.volume !== undefined) {
      if (disk.size_mib !== undefined || disk.format !== undefined || disk.pool !== undefined) {
        throw fail('invalid', 'A volume that is there has its own size, format and pool: leave them out.', {
          field: `${at}/volume`,
        })
      }
      const volume = attachable(deps, project, disk.volume, `${at}/volume`, vm.vm)
      if (there.some((d) => d.volume === volume.id) || plans.some((p) => p.volume.id === volume.id))
        throw fail('in_use', `The volume "${volume.name}" is a disk of this VM already.`, { field: `${at}/volume` })
      plans.push({ name, volume, limits: disk.limits ?? {} })
      continue
    }
    if (disk.size_mib === undefined)
      throw fail('invalid', 'A new disk needs "size_mib"; one that is there needs "volume".', { field: at })
    plans.push({
      name,
      volume: make(name, pool(disk.pool, `${at}/pool`).id, disk.size_mib * MIB, disk.format ?? 'qcow2'),
      limits: disk.limits ?? {},
    })
  }
  const fresh = plans.filter((p) => p.volume.making === true)
  const firstSized = (body.disks ?? []).findIndex((d) => d.size_mib !== undefined)
  await admitVolumes(
    deps,
    pending,
    fresh.map((p) => p.volume),
    source || body.disk_mib !== undefined ? '/disk_mib' : `${under}/${firstSized}/size_mib`,
  )
  return plans
}

/** `web-root`; with a part of its id where that is too long or taken. Always a name as people may type it. */
export function volumeName(
  deps: Pick<Deps, 'view'>,
  pending: Pending,
  project: string,
  vm: string,
  disk: string,
  id: string,
): string {
  const plain = `${vm}-${disk}`
  const key = indexKeys.name('volume', project, plain)
  if (plain.length <= 63 && !deps.view.get(indexKind, key) && !pending.has(key)) return plain
  return `${plain.slice(0, 52)}-${id.slice(4)}`
}

/** The job that reads a volume to copy it: nobody may write or delete it meanwhile. */
export function readerOf(deps: Pick<Deps, 'view'>, volume: string): string | undefined {
  return deps.view.list(claimKind, `volume/${volume}/read/`)[0]?.value.job
}

/** Any job at work on a volume, be it to read or to change it. */
export function workerOn(deps: Pick<Deps, 'view'>, volume: string): string | undefined {
  return deps.view.get(claimKind, `volume/${volume}`)?.value.job ?? readerOf(deps, volume)
}

/**
 * A volume of its own that is given to a VM. Whoever commits the result checks that the record is `unchanged`: each job that reads
 * or changes a volume writes its record when it is asked for, so that of two who decide at the same moment one is refused.
 */
export function attachable(deps: Deps, project: string, ref: string, field: string, vm: string): VolumeRecord {
  const { value } = find(deps, 'volume', volumeKind, project, ref, field)
  if (value.making) throw fail('busy', `The volume "${value.name}" is being made.`, { field })
  findPool(deps, project, value.pool, field)
  refuseRole(deps, value, field)
  const stood = value.image !== undefined || deps.view.list(volumeKind).some((v) => v.value.base === value.id)
  if (stood)
    throw fail('in_use', `The volume "${value.name}" is the base of others and may not be written.`, {
      field,
      remedy: `wadah volume clone ${value.name} NAME`,
    })
  if (value.vm !== undefined && value.vm !== vm)
    throw fail('in_use', `The volume "${value.name}" belongs to another VM (${value.vm}).`, { field })
  if (value.added_to !== undefined && value.added_to !== vm)
    throw fail('busy', `The volume "${value.name}" is being made for another VM (${value.added_to}).`, { field })
  const job = workerOn(deps, value.id)
  if (job !== undefined)
    throw fail('busy', `The job ${job} is at work on "${value.name}".`, { field, remedy: `wadah job wait ${job}` })
  // A base whose last clone is gone may be written again.
  const { added_to: _, ...free } = value
  return { ...free, vm, read_only: false }
}

/** What snapshots hold is theirs. */
export function refuseRole(deps: Pick<Deps, 'view'>, volume: VolumeRecord, field?: string): void {
  if (!volume.role) return
  const vm = (volume.vm === undefined ? undefined : deps.view.get(vmKind, volume.vm)?.value.name) ?? 'VM'
  throw fail('in_use', `"${volume.name}" is held by the snapshots of "${vm}".`, {
    field,
    remedy: `wadah snapshot list ${vm}`,
  })
}

/** Refuses what the pools may not promise any more. */
export async function admitVolumes(
  deps: Deps,
  pending: Pending,
  volumes: readonly VolumeRecord[],
  field: string,
): Promise<void> {
  const wanted = new Map<string, number>()
  for (const v of volumes) wanted.set(v.pool, (wanted.get(v.pool) ?? 0) + v.size_bytes)
  for (const [id, bytes] of wanted) {
    const pool = deps.view.get(poolKind, id)?.value
    if (!pool) throw fail('not_found', `The pool ${id} is not there any more.`)
    if (pool.closing) throw poolClosing(pool)
    const { capacity_bytes } = await deps.machine.volumes.facts(poolDefinition(pool))
    const verdict = admit(
      {
        what: `The pool "${pool.name}"`,
        capacity_bytes,
        promised_bytes: promisedBytes(deps, id) + pending.sum(`promised/${id}`),
        overcommit: pool.overcommit,
        field,
      },
      bytes,
    )
    if (!verdict.ok) throw new WadahError(verdict.why)
  }
}

export function poolClosing(pool: PoolRecord): WadahError {
  return fail('wrong_state', `The pool "${pool.name}" is being deleted.`, {
    field: '/pool',
    remedy: 'use another pool; wadah pool delete ends a deletion that was cut off',
  })
}

export function promisedBytes(deps: Pick<Deps, 'view'>, pool: string): number {
  let sum = 0
  // What nobody writes any more takes what it takes.
  for (const { value } of deps.view.list(volumeKind))
    if (value.moving_to?.pool === pool) sum += value.moving_to.bytes ?? value.size_bytes
    else if (value.pool === pool) sum += value.held_bytes ?? Math.max(value.size_bytes, value.growing_to ?? 0)
  return sum
}

export function freeName(stem: string, taken: readonly string[]): string {
  for (let i = 1; ; i++) if (!taken.includes(`${stem}${i}`)) return `${stem}${i}`
}

/** MACs, addresses and ports for NICs, each free now. */
export async function planNics(
  deps: Deps,
  pending: Pending,
  project: string,
  inputs: readonly NicInput[],
  there: readonly Nic[],
  at = '/nics',
): Promise<Nic[]> {
  const out: Nic[] = []
  const used = (key: string) => deps.view.get(indexKind, key) !== undefined || pending.has(key)
  for (const [i, input] of inputs.entries()) {
    const field = `${at}/${i}`
    const network = find(
      deps,
      'network',
      networkKind,
      project,
      input.network ?? DEFAULT_NETWORK,
      `${field}/network`,
    ).value
    const names = [...there, ...out].map((n) => n.name)
    const name = input.name ?? freeName('net', names)
    if (names.includes(name)) throw fail('invalid', `There is a NIC "${name}" already.`, { field: `${field}/name` })
    const mine = (mac: string) => [...there, ...out].some((n) => n.mac === mac)
    if (input.mac !== undefined && (used(indexKeys.mac(input.mac)) || mine(input.mac))) {
      throw fail('address_taken', `The MAC address ${input.mac} is in use; leave it out to get a free one.`, {
        field: `${field}/mac`,
      })
    }
    const mac = input.mac ?? freeMac((m) => used(indexKeys.mac(m)) || mine(m), deps.randomBytes)
    const limited = input.limits?.in_bytes_per_s || input.limits?.out_bytes_per_s
    if (limited && network.kind === 'user') {
      throw fail('invalid', `A network of kind "user" cannot limit bandwidth; one of kind "nat" can.`, {
        field: `${field}/limits`,
      })
    }
    refusePublish(network, input.publish, field)
    const address = chooseAddress(
      network,
      input.address,
      `${field}/address`,
      (a) =>
        used(indexKeys.address(network.id, a)) ||
        [...there, ...out].some((n) => n.network === network.id && n.address === a),
    )
    out.push({
      name,
      network: network.id,
      mac,
      ...(address === undefined ? {} : { address }),
      publish: await planPublish(
        deps,
        used,
        input.publish ?? [],
        [...there, ...out].flatMap((n) => n.publish),
        field,
      ),
      limits: input.limits ?? {},
    })
  }
  return out
}

export function chooseAddress(
  network: NetworkRecord,
  wanted: string | undefined,
  field: string,
  used: (address: string) => boolean,
): string | undefined {
  if (network.kind === 'user') {
    if (wanted !== undefined)
      throw fail('invalid', 'On a network of kind "user" every guest has the address 10.0.2.15.', { field })
    return undefined
  }
  if (network.kind === 'bridge') {
    if (wanted === undefined) return undefined
    const first = Number(wanted.split('.')[0])
    if (first === 0 || first === 127 || first >= 224)
      throw fail('invalid', `${wanted} is no address that a machine can have.`, { field })
    if (used(wanted)) throw taken(network, wanted, field)
    return wanted
  }
  const { subnet = '', gateway = '' } = network
  if (wanted === undefined) return freeAddress(subnet, gateway, used)
  if (!inSubnet(wanted, subnet) || wanted === gateway) {
    throw fail('invalid', `${wanted} is not an address for guests in ${subnet} (the gateway is ${gateway}).`, { field })
  }
  if (used(wanted)) throw taken(network, wanted, field)
  return wanted
}

const taken = (network: NetworkRecord, address: string, field: string): WadahError =>
  fail('address_taken', `The address ${address} is promised to another VM.`, {
    field,
    remedy: `wadah network show ${network.name}`,
  })

/** Ports of the host lead to guests that are behind it; one on the LAN has all of its own. */
export function refusePublish(network: NetworkRecord, publish: readonly PublishInput[] | undefined, at: string): void {
  if (network.kind !== 'bridge' || !publish?.length) return
  throw fail(
    'invalid',
    `On the network "${network.name}" (kind "bridge") a guest is reached by its own address: no port of the host leads to it.`,
    {
      field: `${at}/publish`,
      remedy: 'leave it out, or use a network of kind "nat"',
    },
  )
}

/**
 * Ports of the host, free in our books and on the host itself. `0.0.0.0` and one address of the same port exclude each other.
 * `leaving`: given up in the same commit.
 */
export async function planPublish(
  deps: Deps,
  used: (key: string) => boolean,
  inputs: readonly PublishInput[],
  there: readonly Published[],
  at: string,
  leaving: readonly Published[] = [],
): Promise<Published[]> {
  const out: Published[] = []
  const left = new Set(leaving.map((p) => portKey(deps, p)))
  const others = publishedPorts(deps).filter((p) => !left.has(portKey(deps, p)))
  for (const [i, input] of inputs.entries()) {
    const field = `${at}/publish/${i}/port`
    const p: Published = {
      protocol: input.protocol ?? 'tcp',
      address: input.address ?? deps.config.publish_address,
      port: input.port,
      to: input.to,
    }
    const taken = (detail: string) => fail('port_taken', detail, { field, remedy: 'choose another port' })
    const clash = (other: Published) =>
      other.protocol === p.protocol && other.port === p.port && overlaps(other.address, p.address)
    if ([...there, ...out].some(clash)) throw taken(`Port ${p.port}/${p.protocol} is named twice.`)
    if (used(portKey(deps, p)) || others.some(clash))
      throw taken(`Port ${p.port}/${p.protocol} of the host is published for another VM already.`)
    if (!(await deps.machine.networks.portFree(p.protocol, p.address, p.port))) {
      throw taken(`Port ${p.port}/${p.protocol} on ${p.address} is used by another program of the host.`)
    }
    out.push(p)
  }
  return out
}

const overlaps = (a: string, b: string): boolean => a === b || a === '0.0.0.0' || b === '0.0.0.0'

function publishedPorts(deps: Deps): Published[] {
  return deps.view
    .list(indexKind, `port/${deps.hostId}/`)
    .map(({ id }) => id.split('/'))
    .map(([, , protocol, address, port]) => ({
      protocol: protocol as 'tcp',
      address: address as string,
      port: Number(port),
      to: 0,
    }))
}
