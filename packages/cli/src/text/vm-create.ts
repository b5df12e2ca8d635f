/** Options of `vm create` and `vm edit` → request bodies. Pure. */
import { fail } from '@wadah/api/fault'
import { SEED_KINDS } from '@wadah/api/schema/imports'
import {
  type CdromInput,
  type DiskLimits,
  type Firmware,
  type NicInput,
  RESTARTS,
  type Vm,
  type VmCreate,
  type VmEdit,
} from '@wadah/api/schema/vm'
import { oneOf } from '../commands/options.ts'
import type { FirewallGroup } from '@wadah/api/schema/firewall'
import { buildFirewall, type FirewallOptions, namedFirewall } from './firewall.ts'
import { parseInteger, parseMib, parseSeconds } from './size.ts'
import { parseDisk, parseHostdevs, parseLabels, parseLimits, parsePublish } from './specs.ts'

export type StartOptions = { autostart?: boolean; startOrder?: string; startDelay?: string; restart?: string }
export type CreateOptions = StartOptions &
  Pick<FirewallOptions, 'firewall' | 'rule' | 'firewallGroup'> & {
    protect?: boolean
    image?: string
    clone?: string
    cpus?: string
    memory?: string
    balloon?: string
    disk?: string
    addDisk?: string[]
    pool?: string
    host?: string
    network?: string[]
    publish?: string[]
    address?: string
    mac?: string
    limit?: string[]
    hostname?: string
    seedUser?: string
    seed?: string
    sshKey?: string[]
    cmdline?: string
    cdrom?: string[]
    bootOrder?: string
    firmware?: string
    hostdev?: string[]
    tpm?: boolean
    serialPorts?: string
    label?: string[]
    description?: string
    start?: boolean
    instant?: boolean
    waitReady?: boolean
  }
/** What was read from files: the spec that options are laid over, the seed's password, public keys. */
export type CreateFiles = {
  base?: Partial<VmCreate>
  password?: string | undefined
  keys?: string[]
  userData?: string | undefined
}

/** The request, and limits of the first disk: those can be set only once it is there. */
export function buildCreate(
  name: string | undefined,
  o: CreateOptions,
  files: CreateFiles = {},
): { body: VmCreate; disk: DiskLimits } {
  const base = files.base ?? {}
  const called = name ?? base.name
  if (called === undefined) throw fail('invalid', 'The VM needs a name: wadah vm create NAME …', { field: 'name' })
  const { limits, disk, nic } = parseLimits(o.limit ?? [])
  const body: VmCreate = { ...base, name: called }
  if (o.description !== undefined) body.description = o.description
  if (o.label) body.labels = { ...base.labels, ...parseLabels(o.label) }
  if (o.protect) body.protected = true
  const autostart = buildAutostart(o)
  if (autostart) body.autostart = { ...base.autostart, ...autostart }
  const restart = oneOf(o.restart, '--restart', RESTARTS)
  if (restart) body.restart = restart
  if (o.image !== undefined) body.image = o.image
  const clone = oneOf(o.clone, '--clone', ['linked', 'full'] as const)
  if (clone) body.clone = clone
  if (o.pool !== undefined) body.pool = o.pool
  if (o.host !== undefined) body.host = o.host
  if (o.disk !== undefined) body.disk_mib = parseMib(o.disk, '--disk')
  if (o.cpus !== undefined) body.cpus = parseInteger(o.cpus, '--cpus', 1, 256)
  if (o.memory !== undefined) body.memory_mib = parseMib(o.memory, '--memory')
  if (o.balloon !== undefined) body.balloon_mib = parseMib(o.balloon, '--balloon')
  if (o.cmdline !== undefined) body.cmdline = o.cmdline
  if (o.serialPorts !== undefined) body.serial_ports = parseInteger(o.serialPorts, '--serial-ports', 1, 4)
  if (o.addDisk) body.disks = [...(base.disks ?? []), ...o.addDisk.map(parseDisk)]
  if (o.cdrom) body.cdroms = [...(base.cdroms ?? []), ...o.cdrom.map(parseCdrom)]
  if (o.bootOrder !== undefined) body.boot_order = o.bootOrder.split(',')
  const firmware = parseFirmware(o.firmware)
  if (firmware) body.firmware = firmware
  if (o.tpm) body.tpm = true
  if (o.hostdev) body.hostdevs = [...(base.hostdevs ?? []), ...parseHostdevs(o.hostdev, base.hostdevs ?? [])]
  const firewall = buildFirewall(undefined, o)
  if (firewall) body.firewall = { ...base.firewall, ...firewall }
  if (Object.keys(limits).length > 0) body.limits = { ...base.limits, ...limits }
  const nics = buildNics(o, base.nics ?? [], nic)
  if (nics.length > 0) body.nics = nics
  const keys = (files.keys ?? []).flatMap(sshKeys)
  const kind = oneOf(o.seed, '--seed', SEED_KINDS)
  const seed = [o.seedUser, o.hostname, files.password, files.userData, kind]
  if (seed.some((value) => value !== undefined) || keys.length > 0) {
    body.seed = {
      ...base.seed,
      ...(kind === undefined ? {} : { kind }),
      ...(files.userData === undefined ? {} : { user_data: files.userData }),
      ...(o.hostname === undefined ? {} : { hostname: o.hostname }),
      ...(o.seedUser === undefined ? {} : { user: o.seedUser }),
      ...(files.password === undefined ? {} : { password: files.password }),
      ...(keys.length === 0 ? {} : { ssh_keys: [...(base.seed?.ssh_keys ?? []), ...keys] }),
    }
  }
  if (o.start) body.start = true
  if (o.instant) {
    body.instant = true
    body.start = true
  }
  if (o.waitReady) {
    body.wait_ready = true
    body.start = true
  }
  return { body, disk }
}

function buildAutostart(o: StartOptions): VmCreate['autostart'] {
  if (o.autostart === undefined && o.startOrder === undefined && o.startDelay === undefined) return undefined
  return {
    ...(o.autostart === undefined ? {} : { enabled: o.autostart }),
    ...(o.startOrder === undefined ? {} : { order: parseInteger(o.startOrder, '--start-order', 0, 9999) }),
    ...(o.startDelay === undefined
      ? {}
      : { delay_s: parseInteger(String(parseDelay(o.startDelay)), '--start-delay', 0, 3600) }),
  }
}

const parseDelay = (text: string): number => (/^0s?$/.test(text) ? 0 : parseSeconds(text, '--start-delay'))

/** `--network` may be given several times; the other options of NICs are about the first one. */
function buildNics(o: CreateOptions, base: readonly NicInput[], limits: NonNullable<NicInput['limits']>): NicInput[] {
  const nics: NicInput[] = o.network ? o.network.map((network) => ({ network })) : base.map((n) => ({ ...n }))
  const first: NicInput = {
    ...(o.publish ? { publish: o.publish.map(parsePublish) } : {}),
    ...(o.address === undefined ? {} : { address: o.address }),
    ...(o.mac === undefined ? {} : { mac: o.mac.toLowerCase() }),
    ...(Object.keys(limits).length > 0 ? { limits } : {}),
  }
  if (Object.keys(first).length > 0) nics[0] = { ...nics[0], ...first }
  return nics
}

/** Public keys of a file, comments and empty lines left out. A private key is refused before it goes anywhere. */
export function sshKeys(text: string): string[] {
  if (text.includes('PRIVATE KEY-----')) {
    throw fail('invalid', '--ssh-key: that is a private key; give the file that ends in .pub', { field: '--ssh-key' })
  }
  const keys = text
    .split('\n')
    .map((line) => line.trim())
    .filter((line) => line !== '' && !line.startsWith('#'))
  if (keys.length === 0) throw fail('invalid', '--ssh-key: there is no key in the file', { field: '--ssh-key' })
  return keys
}

export type EditOptions = StartOptions &
  FirewallOptions & {
    protect?: boolean
    unprotect?: boolean
    name?: string
    description?: string
    label?: string[]
    removeLabel?: string[]
    cpus?: string
    memory?: string
    balloon?: string
    cmdline?: string
    limit?: string[]
    disk?: string
    addDisk?: string[]
    removeDisk?: string[]
    nic?: string
    publish?: string[]
    address?: string
    addNetwork?: string[]
    removeNic?: string[]
    addCdrom?: string[]
    removeCdrom?: string[]
    bootOrder?: string
    firmware?: string
    addHostdev?: string[]
    removeHostdev?: string[]
    tpm?: boolean
    serialPorts?: string
  }

/** `empty`, or the name of an image. */
const parseCdrom = (text: string): CdromInput => (text === 'empty' ? {} : { image: text })

function parseFirmware(text: string | undefined): Firmware | undefined {
  const kind = oneOf(text, '--firmware', ['bios', 'uefi', 'uefi-secure'] as const)
  if (kind === undefined) return undefined
  return kind === 'bios' ? { kind } : { kind: 'uefi', secure_boot: kind === 'uefi-secure' }
}

/** The change, laid over what the VM has now: labels are merged; limits and publishing go to the first disk and NIC unless named. */
export function buildEdit(vm: Vm, o: EditOptions, groups: readonly FirewallGroup[] = []): VmEdit {
  const { limits, disk, nic } = parseLimits(o.limit ?? [])
  const body: VmEdit = {}
  if (o.name !== undefined) body.name = o.name
  if (o.description !== undefined) body.description = o.description
  if (o.label || o.removeLabel) {
    const labels = { ...vm.labels, ...parseLabels(o.label ?? []) }
    for (const key of o.removeLabel ?? []) delete labels[key]
    body.labels = labels
  }
  if (o.protect && o.unprotect) {
    throw fail('invalid', '--protect and --unprotect cannot be given together', { field: '--unprotect' })
  }
  if (o.protect || o.unprotect) body.protected = o.protect === true
  const autostart = buildAutostart(o)
  if (autostart) body.autostart = autostart
  const restart = oneOf(o.restart, '--restart', RESTARTS)
  if (restart) body.restart = restart
  if (o.cpus !== undefined) body.cpus = parseInteger(o.cpus, '--cpus', 1, 256)
  if (o.memory !== undefined) body.memory_mib = parseMib(o.memory, '--memory')
  if (o.balloon !== undefined) body.balloon_mib = o.balloon === 'none' ? null : parseMib(o.balloon, '--balloon')
  if (o.cmdline !== undefined) body.cmdline = o.cmdline
  if (o.serialPorts !== undefined) body.serial_ports = parseInteger(o.serialPorts, '--serial-ports', 1, 4)
  if (Object.keys(limits).length > 0) body.limits = { ...vm.spec.limits, ...limits }
  if (Object.keys(disk).length > 0) {
    const name = o.disk ?? vm.spec.disks[0]?.name
    if (name === undefined) throw fail('invalid', `--limit: ${vm.name} has no disk`, { field: '--limit' })
    const had = vm.spec.disks.find((d) => d.name === name)?.limits ?? {}
    body.disks = [{ name, limits: { ...had, ...disk } }]
  }
  const nicChange = {
    ...(Object.keys(nic).length > 0 ? { limits: nic } : {}),
    ...(o.publish ? { publish: o.publish.filter((p) => p !== 'none').map(parsePublish) } : {}),
    ...(o.address === undefined ? {} : { address: o.address }),
  }
  if (Object.keys(nicChange).length > 0) {
    const name = o.nic ?? vm.spec.nics[0]?.name
    if (name === undefined) throw fail('invalid', `${vm.name} has no NIC`, { field: '--nic' })
    const had = vm.spec.nics.find((n) => n.name === name)?.limits ?? {}
    body.nics = [{ name, ...nicChange, ...(nicChange.limits ? { limits: { ...had, ...nicChange.limits } } : {}) }]
  }
  if (o.addDisk) body.add_disks = o.addDisk.map(parseDisk)
  if (o.removeDisk) body.remove_disks = o.removeDisk
  if (o.addNetwork) body.add_nics = o.addNetwork.map((network) => ({ network }))
  if (o.removeNic) body.remove_nics = o.removeNic
  if (o.addCdrom) body.add_cdroms = o.addCdrom.map(parseCdrom)
  if (o.removeCdrom) body.remove_cdroms = o.removeCdrom
  if (o.bootOrder !== undefined) body.boot_order = o.bootOrder.split(',')
  const firmware = parseFirmware(o.firmware)
  if (firmware) body.firmware = firmware
  if (o.tpm !== undefined) body.tpm = o.tpm
  if (o.addHostdev) body.add_hostdevs = parseHostdevs(o.addHostdev, vm.spec.hostdevs ?? [])
  if (o.removeHostdev) body.remove_hostdevs = o.removeHostdev
  const had = vm.spec.firewall
  const firewall = buildFirewall(had && namedFirewall(had, groups), o)
  if (firewall !== undefined) body.firewall = firewall
  if (Object.keys(body).length === 0) {
    throw fail('invalid', 'Nothing to change: name at least one option', { remedy: 'wadah help vm edit' })
  }
  return body
}
