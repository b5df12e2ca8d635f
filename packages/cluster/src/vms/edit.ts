/** Editing a VM: request + record → new record, with what must hold and what else is written. */
import { fail } from '@wadah/api/fault'
import { AUTOSTART_DEFAULT } from '@wadah/api/schema/vm'
import type { DiskLimits, Limits, Nic, NicLimits, Published, PublishInput, VmEdit, VmSpec } from '@wadah/api/schema/vm'
import { type Check, type Rec, type Write, absent, del, put, unchanged } from '@wadah/store/store'
import { type Deps, find } from '../context.ts'
import { groupChecks, namedGroups, planFirewall, refuseUserNics } from '../networks/firewall-rules.ts'
import type { Pending } from '../pending.ts'
import {
  type VmRecord,
  type VolumeRecord,
  imageKind,
  indexKeys,
  indexKind,
  networkKind,
  vmKind,
  volumeKind,
} from '../records.ts'
import { chainOf } from '../resolve.ts'
import { checkBootOrder, checkFirmware, checkTpm, planCdroms } from './drives.ts'
import { hostdevKey, judgeHostdevs } from './hostdevs.ts'
import { checkRoomToRun } from './room.ts'
import {
  attachable,
  checkMemory,
  checkName,
  chooseAddress,
  nicKeys,
  planNics,
  planPublish,
  portKey,
  refusePublish,
} from './create.ts'

/** `null` takes a limit away; what is not named stays. */
export function mergeLimits<T extends Limits | DiskLimits | NicLimits>(before: T, change: T): T {
  const merged = { ...before, ...change }
  return Object.fromEntries(Object.entries(merged).filter(([, v]) => v !== null)) as T
}

export type EditPlan = { record: VmRecord; checks: Check[]; writes: Write[]; nats: boolean }

/** `added`: volumes made for `add_disks`, in that order, each with its disk's name and limits. */
export async function planEdit(
  deps: Deps,
  pending: Pending,
  rec: Rec<VmRecord>,
  body: VmEdit,
  live: boolean,
  added: readonly { name: string; volume: VolumeRecord; limits: DiskLimits }[],
): Promise<EditPlan> {
  const vm = rec.value
  const checks: Check[] = [unchanged(rec)]
  const writes: Write[] = []
  const holder = { schema: 1 as const, holder: vm.id }
  const take = (key: string) => {
    checks.push(absent(indexKind, key))
    writes.push(put(indexKind, key, holder))
  }
  const give = (key: string) => writes.push(del(indexKind, key))
  const spec: VmSpec = structuredClone(vm.spec)

  if (body.name !== undefined && body.name !== vm.name) {
    checkName(deps, 'vm', vm.project, body.name)
    take(indexKeys.name('vm', vm.project, body.name))
    give(indexKeys.name('vm', vm.project, vm.name))
  }
  if (body.cpus !== undefined) spec.cpus = body.cpus
  if (body.serial_ports !== undefined) spec.serial_ports = body.serial_ports
  if (body.memory_mib !== undefined) {
    checkMemory(deps, body.memory_mib)
    const least = spec.image === undefined ? 0 : (deps.view.get(imageKind, spec.image)?.value.min_memory_mib ?? 0)
    if (body.memory_mib < least)
      throw fail('invalid', `Its image needs at least ${least} MiB.`, { field: '/memory_mib' })
    // Where it can be had, it is given at once; VMs that are off are judged at their start.
    if (live && body.memory_mib > spec.memory_mib)
      checkRoomToRun(deps, { id: vm.id, spec: { ...spec, memory_mib: body.memory_mib } }, '/memory_mib')
    spec.memory_mib = body.memory_mib
    if (spec.balloon_mib !== null && spec.balloon_mib > spec.memory_mib) spec.balloon_mib = null
  }
  if (body.cmdline !== undefined) {
    if (spec.boot.kind !== 'kernel')
      throw fail('invalid', 'It boots from its disk, which has its own kernel command line.', { field: '/cmdline' })
    spec.boot = { ...spec.boot, cmdline: body.cmdline }
  }
  if (body.limits) spec.limits = mergeLimits(spec.limits, body.limits)
  if (body.balloon_mib !== undefined) {
    if (body.balloon_mib !== null && body.balloon_mib > spec.memory_mib) {
      throw fail('invalid', `The balloon can only take memory away: at most ${spec.memory_mib} MiB.`, {
        field: '/balloon_mib',
      })
    }
    spec.balloon_mib = body.balloon_mib
  }

  for (const [i, change] of (body.disks ?? []).entries()) {
    const disk = spec.disks.find((d) => d.name === change.name)
    if (!disk) throw noSuch('disk', change.name, spec.disks, `/disks/${i}/name`)
    disk.limits = mergeLimits(disk.limits, change.limits)
  }
  for (const [i, name] of (body.remove_disks ?? []).entries()) {
    const disk = spec.disks.find((d) => d.name === name)
    if (!disk) throw noSuch('disk', name, spec.disks, `/remove_disks/${i}`)
    const layer = chainOf(deps, disk.volume).find((v) => v.role === 'layer')
    if (layer)
      throw fail('in_use', `Snapshots of "${vm.name}" hold layers of the disk "${name}".`, {
        field: `/remove_disks/${i}`,
        remedy: `wadah snapshot list ${vm.name}, then wadah snapshot delete ${vm.name} NAME`,
      })
    spec.disks = spec.disks.filter((d) => d !== disk)
    const volume = deps.view.get(volumeKind, disk.volume)
    if (volume) {
      const { vm: _, ...free } = volume.value
      checks.push(unchanged(volume))
      writes.push(put(volumeKind, volume.id, free))
    }
  }
  for (const [i, { name, volume, limits }] of added.entries()) {
    // Judged again: it was a free one while the others were made, and somebody else may have taken it.
    const mine = attachable(deps, vm.project, volume.id, `/add_disks/${i}`, vm.id)
    const stored = deps.view.get(volumeKind, volume.id)
    if (stored) checks.push(unchanged(stored))
    spec.disks.push({ name, volume: volume.id, limits })
    writes.push(put(volumeKind, volume.id, mine))
  }

  for (const [i, name] of (body.remove_cdroms ?? []).entries()) {
    const drive = spec.cdroms?.find((c) => c.name === name)
    if (!drive) throw noSuch('CD drive', name, spec.cdroms ?? [], `/remove_cdroms/${i}`)
    if (live)
      throw fail('wrong_state', 'A CD drive can be taken away from a stopped VM only.', {
        field: `/remove_cdroms/${i}`,
        remedy: `wadah vm eject ${vm.name} takes the CD out of it`,
      })
    spec.cdroms = (spec.cdroms ?? []).filter((c) => c !== drive)
  }
  if (body.add_cdroms) {
    const there = spec.cdroms ?? []
    const disks = spec.disks.map((d) => d.name)
    const fresh = planCdroms(deps, vm.project, body.add_cdroms, there, disks, '/add_cdroms')
    spec.cdroms = [...there, ...fresh]
    for (const { image } of fresh) {
      // Whoever deletes an image touches it first, and looks for users after.
      const rec = image === undefined ? undefined : deps.view.get(imageKind, image)
      if (rec && !checks.some((c) => c.kind === imageKind.name && c.id === rec.id)) checks.push(unchanged(rec))
    }
  }
  const clash = added.find(({ name }) => spec.cdroms?.some((c) => c.name === name))
  if (clash) throw fail('invalid', `There is a CD drive "${clash.name}" already.`, { field: '/add_disks' })
  if (body.boot_order) {
    checkBootOrder(body.boot_order, spec)
    spec.boot_order = body.boot_order
  } else if (spec.boot_order) {
    // What was taken away is no choice any more.
    const there = [...spec.disks, ...(spec.cdroms ?? [])]
    spec.boot_order = spec.boot_order.filter((name) => there.some((d) => d.name === name))
  }
  const imageOf = () => (spec.image === undefined ? undefined : deps.view.get(imageKind, spec.image)?.value)
  if (body.firmware) {
    await checkFirmware(deps, body.firmware, imageOf())
    spec.firmware = body.firmware
  }

  if (body.tpm !== undefined) {
    if (body.tpm) await checkTpm(deps, imageOf())
    spec.tpm = body.tpm
  }

  for (const [i, name] of (body.remove_hostdevs ?? []).entries()) {
    const device = spec.hostdevs?.find((d) => d.name === name)
    if (!device) throw noSuch('device', name, spec.hostdevs ?? [], `/remove_hostdevs/${i}`)
    if (live)
      throw fail('wrong_state', 'A device of the host can be taken back from a stopped VM only.', {
        field: `/remove_hostdevs/${i}`,
        remedy: `wadah vm shutdown ${vm.name}`,
      })
    spec.hostdevs = (spec.hostdevs ?? []).filter((d) => d !== device)
    give(hostdevKey(deps.hostId, device))
  }
  if (body.add_hostdevs) {
    await judgeHostdevs(deps, body.add_hostdevs, spec.hostdevs ?? [], vm.id, '/add_hostdevs')
    spec.hostdevs = [...(spec.hostdevs ?? []), ...body.add_hostdevs]
    const had = (vm.spec.hostdevs ?? []).map((d) => hostdevKey(deps.hostId, d))
    for (const key of body.add_hostdevs.map((d) => hostdevKey(deps.hostId, d))) if (!had.includes(key)) take(key)
  }

  const used = (key: string) => deps.view.get(indexKind, key) !== undefined || pending.has(key)
  for (const [i, change] of (body.nics ?? []).entries()) {
    const nic = spec.nics.find((n) => n.name === change.name)
    if (!nic) throw noSuch('NIC', change.name, spec.nics, `/nics/${i}/name`)
    await editNic(deps, spec, nic, change, `/nics/${i}`, used, take, give)
  }
  for (const [i, name] of (body.remove_nics ?? []).entries()) {
    const nic = spec.nics.find((n) => n.name === name)
    if (!nic) throw noSuch('NIC', name, spec.nics, `/remove_nics/${i}`)
    if (body.nics?.some((n) => n.name === name))
      throw fail('invalid', `The NIC "${name}" cannot be changed and taken away at once.`, {
        field: `/remove_nics/${i}`,
      })
    spec.nics = spec.nics.filter((n) => n !== nic)
    for (const key of nicKeys(deps, nic)) give(key)
  }
  for (const nic of await planNics(deps, pending, vm.project, body.add_nics ?? [], spec.nics, '/add_nics')) {
    spec.nics.push(nic)
    // Whoever deletes a network touches it first, and looks for users after.
    const network = deps.view.get(networkKind, nic.network)
    if (network && !checks.some((c) => c.kind === networkKind.name && c.id === network.id))
      checks.push(unchanged(network))
    for (const key of nicKeys(deps, nic)) take(key)
  }

  const { snapshot_schedule: schedule, ...same } = vm
  const wanted = body.snapshot_schedule === undefined ? schedule : body.snapshot_schedule
  if (body.firewall !== undefined) {
    const firewall = planFirewall(deps, vm.project, body.firewall, spec.firewall)
    if (firewall === undefined) delete spec.firewall
    else spec.firewall = firewall
    const named = groupChecks(deps, namedGroups(firewall?.rules ?? [], firewall?.groups))
    checks.push(...named.filter((c) => !checks.some((d) => d.kind === c.kind && d.id === c.id)))
  }
  refuseUserNics(deps, spec.firewall, spec.nics)

  const record: VmRecord = {
    ...same,
    ...(wanted ? { snapshot_schedule: wanted } : {}),
    name: body.name ?? vm.name,
    description: body.description ?? vm.description,
    labels: body.labels ?? vm.labels,
    spec,
    ...(body.protected === undefined ? {} : { protected: body.protected }),
    ...(body.autostart ? { autostart: { ...AUTOSTART_DEFAULT, ...vm.autostart, ...body.autostart } } : {}),
    ...(body.restart ? { restart: body.restart } : {}),
  }
  writes.push(put(vmKind, vm.id, record))
  const nats =
    JSON.stringify([vm.name, vm.spec.nics, vm.spec.firewall]) !==
    JSON.stringify([record.name, spec.nics, spec.firewall])
  return { record, checks, writes, nats }
}

async function editNic(
  deps: Deps,
  spec: VmSpec,
  nic: Nic,
  change: NonNullable<VmEdit['nics']>[number],
  at: string,
  used: (key: string) => boolean,
  take: (key: string) => void,
  give: (key: string) => void,
): Promise<void> {
  const network = find(deps, 'network', networkKind, 'default', nic.network, at).value
  if (change.limits) {
    const limits = mergeLimits(nic.limits, change.limits)
    if (network.kind === 'user' && Object.keys(limits).length > 0) {
      throw fail('invalid', 'A network of kind "user" cannot limit bandwidth; one of kind "nat" can.', {
        field: `${at}/limits`,
      })
    }
    nic.limits = limits
  }
  if (change.address !== undefined && change.address !== nic.address) {
    const mine = (a: string) => spec.nics.some((n) => n !== nic && n.network === network.id && n.address === a)
    const address = chooseAddress(
      network,
      change.address,
      `${at}/address`,
      (a) => used(indexKeys.address(network.id, a)) || mine(a),
    )
    if (nic.address !== undefined) give(indexKeys.address(network.id, nic.address))
    if (address !== undefined) {
      take(indexKeys.address(network.id, address))
      nic.address = address
    }
  }
  refusePublish(network, change.publish, at)
  if (change.publish) {
    const addressOf = (p: { address?: string }) => p.address ?? deps.config.publish_address
    const same = (a: PublishInput, b: Pick<Published, 'protocol' | 'address' | 'port'>) =>
      (a.protocol ?? 'tcp') === b.protocol && addressOf(a) === b.address && a.port === b.port
    const twice = change.publish.findIndex((c, i, all) =>
      all.slice(0, i).some((d) => same(d, { ...c, protocol: c.protocol ?? 'tcp', address: addressOf(c) })),
    )
    if (twice >= 0)
      throw fail('port_taken', `Port ${change.publish[twice]?.port} is named twice.`, {
        field: `${at}/publish/${twice}/port`,
      })
    const kept = nic.publish.filter((p) => change.publish?.some((c) => same(c, p)))
    const fresh = change.publish.filter((c) => !nic.publish.some((p) => same(c, p)))
    const leaving = nic.publish.filter((p) => !kept.includes(p))
    for (const p of leaving) give(portKey(deps, p))
    const others = spec.nics.flatMap((n) => (n === nic ? kept : n.publish))
    const made = await planPublish(deps, used, fresh, others, at, leaving)
    for (const p of made) take(portKey(deps, p))
    nic.publish = [...kept.map((p) => ({ ...p, to: change.publish?.find((c) => same(c, p))?.to ?? p.to })), ...made]
  }
}

function noSuch(what: string, name: string, there: readonly { name: string }[], field: string): Error {
  return fail('invalid', `It has no ${what} "${name}"; it has ${there.map((t) => t.name).join(', ') || 'none'}.`, {
    field,
  })
}
