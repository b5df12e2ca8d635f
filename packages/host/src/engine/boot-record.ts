/** What a guest sees, decided once at its start. Pure: the same request and facts give the same record. */
import { createHash } from 'node:crypto'
import type { BootDevice, BootRecord, LaunchRequest } from '@wadah/ports/machine'
import { firmwareOf } from './firmware.ts'

export type RecordFacts = {
  /** Pinned machine type, e.g. `pc-q35-7.2`. */
  machine: string
  accelerator: 'kvm' | 'tcg'
  cpu: { model: string; flags: string[] }
}

/** Empty ports kept for devices that come later: nothing can be hot-plugged into `pcie.0`. */
const SPARE_PORTS = 4
const MEMORY_SLOTS = 4
/**
 * Below this no room is kept for hotplugged memory: a Linux guest that sees memory could come above 4 GiB sets 64 MiB aside for
 * bounce buffers (swiotlb), more than a small one can bear.
 */
const HOTPLUG_FROM_MIB = 256
/** Slots of pcie.0: 0 is the host bridge, 1f the south bridge; root ports lie eight to a slot from here. */
const FIRST_PORT_SLOT = 0x10

/**
 * Lays out the machine. PCI addresses depend only on the order of NICs and disks in the spec. NICs come first: a guest names them by
 * their place (`enp2s0`), and a disk more must not rename them.
 */
export function bootRecord(request: LaunchRequest, facts: RecordFacts): BootRecord {
  const { spec } = request
  const devices: BootDevice[] = [
    { kind: 'vga', id: 'vga0', bus: 'pcie.0', addr: '0x1' },
    { kind: 'agent', id: 'agent0', bus: 'pcie.0', addr: '0x2' },
    { kind: 'balloon', id: 'balloon0', bus: 'pcie.0', addr: '0x3' },
    { kind: 'rng', id: 'rng0', bus: 'pcie.0', addr: '0x4' },
    ...Array.from({ length: spec.serial_ports ?? 1 }, (_, index) => ({
      kind: 'serial' as const,
      id: `serial${index}`,
      index,
    })),
  ]
  if (spec.tpm) devices.push({ kind: 'tpm', id: 'tpm0' })
  const pciCount = (spec.hostdevs ?? []).filter((d) => d.kind === 'pci').length
  const onPorts = spec.disks.length + spec.nics.length + pciCount
  for (let i = 0; i < onPorts + SPARE_PORTS; i++) devices.push(rootPort(i))
  if (request.cloud_seed) {
    // On a port of its own behind all others: the guest's own disks keep their names (vda …).
    const last = onPorts + SPARE_PORTS
    devices.push(rootPort(last), { kind: 'cloud-seed', id: 'cidata0', bus: `rp${last}`, addr: '0x0' })
  }
  const order = bootOrder(spec)
  let port = 0
  for (const nic of spec.nics) {
    devices.push({
      kind: 'nic',
      id: `nic-${nic.name}`,
      bus: `rp${port++}`,
      name: nic.name,
      mac: nic.mac,
      network: nic.network,
    })
  }
  spec.disks.forEach((disk) => {
    devices.push({
      kind: 'disk',
      id: `disk-${disk.name}`,
      bus: `rp${port++}`,
      name: disk.name,
      volume: disk.volume,
      ...(disk.serial === undefined ? {} : { serial: disk.serial }),
      // With -kernel no device may claim index 0, and none needs one.
      ...(spec.boot.kind === 'disk' ? { boot_index: order.indexOf(disk.name) + 1 } : {}),
    })
  })
  const hostdevs = spec.hostdevs ?? []
  if (hostdevs.some((d) => d.kind === 'usb')) devices.push({ kind: 'usb-bus', id: 'xhci0', bus: 'pcie.0', addr: '0x5' })
  let usbPort = 1
  for (const { kind, name } of hostdevs) {
    const id = `hostdev-${name}`
    if (kind === 'pci') devices.push({ kind: 'hostdev-pci', id, bus: `rp${port++}`, name })
    else devices.push({ kind: 'hostdev-usb', id, port: String(usbPort++), name })
  }
  // The chipset's own SATA controller: every firmware and every installer can read it.
  ;(spec.cdroms ?? []).forEach((cdrom, i) => {
    devices.push({
      kind: 'cdrom',
      id: `cd-${cdrom.name}`,
      bus: `ide.${i}`,
      name: cdrom.name,
      ...(spec.boot.kind === 'disk' ? { boot_index: order.indexOf(cdrom.name) + 1 } : {}),
    })
  })
  return {
    schema: 1,
    vm: request.vm,
    uuid: uuidOf(request.vm),
    name: request.name,
    machine: facts.machine,
    accelerator: facts.accelerator,
    cpu: facts.cpu,
    cpus: spec.cpus,
    memory: memoryLayout(spec.memory_mib),
    firmware: firmwareOf(spec.firmware),
    ...(request.kernel ? { kernel: { cmdline: request.kernel.cmdline, has_initrd: request.kernel.has_initrd } } : {}),
    devices,
  }
}

/** Names in the order in which the firmware tries them: those that were named, then disks, then CD drives. */
export function bootOrder(spec: Pick<LaunchRequest['spec'], 'disks' | 'cdroms' | 'boot_order'>): string[] {
  const there = [...spec.disks, ...(spec.cdroms ?? [])].map((d) => d.name)
  const named = (spec.boot_order ?? []).filter((name) => there.includes(name))
  return [...new Set([...named, ...there])]
}

function rootPort(i: number): BootDevice {
  const fn = i % 8
  return {
    kind: 'root-port',
    id: `rp${i}`,
    addr: `0x${(FIRST_PORT_SLOT + Math.floor(i / 8)).toString(16)}.0x${fn}`,
    chassis: i + 1,
    ...(fn === 0 ? { multifunction: true } : {}),
  }
}

/** Room for hotplugged memory: four times what it starts with, on a 128 MiB border as x86 needs. */
function memoryLayout(mib: number): BootRecord['memory'] {
  if (mib < HOTPLUG_FROM_MIB) return { mib, max_mib: mib, slots: 0 }
  return { mib, max_mib: Math.ceil((mib * 4) / 128) * 128, slots: MEMORY_SLOTS }
}

/** RFC 4122 name-based UUID (version 5 layout) of the VM's id: the same on every host, for ever. */
export function uuidOf(vm: string): string {
  const hash = createHash('sha1').update(`wadah:${vm}`).digest()
  hash[6] = ((hash[6] ?? 0) & 0x0f) | 0x50
  hash[8] = ((hash[8] ?? 0) & 0x3f) | 0x80
  const hex = hash.toString('hex')
  return `${hex.slice(0, 8)}-${hex.slice(8, 12)}-${hex.slice(12, 16)}-${hex.slice(16, 20)}-${hex.slice(20, 32)}`
}
