/** Boot record + what this host does for it → QEMU's command line. Pure; golden files in test/engine/golden. */
import type { BootDevice, BootPlan, LocalPlan } from '@wadah/ports/machine'

/** Descriptor 3 of the child: the serial log, opened by the daemon in a folder QEMU cannot reach. */
export const SERIAL_LOG_FD = 3

/** Descriptor 4: saved RAM to start from. */
export const RAM_FD = 4

/** Descriptor 5: the memory file of a warm template or of its clone. */
export const MEMORY_FD = 5

/** QEMU's option syntax doubles commas inside values. */
function opt(first: string, values: Record<string, string | number | undefined>): string {
  let text = first
  for (const [key, value] of Object.entries(values)) {
    if (value !== undefined) text += `${text === '' ? '' : ','}${key}=${String(value).replaceAll(',', ',,')}`
  }
  return text
}

/** Paths of the sockets in a VM's own directory. */
export function sockets(directory: string): {
  monitor: string
  vnc: string
  agent: string
  tpm: string
  identity: string
} {
  return {
    monitor: `${directory}/qmp.sock`,
    vnc: `${directory}/vnc.sock`,
    agent: `${directory}/agent.sock`,
    tpm: `${directory}/tpm.sock`,
    identity: `${directory}/identity.sock`,
  }
}

/** Of the port with this number, from 0 on. */
export const serialSocket = (directory: string, port: number): string => `${directory}/serial${port}.sock`

export const cloudSeedPath = (directory: string): string => `${directory}/cidata.iso`

/** Everything after the program's own name. */
export function argv(plan: BootPlan): string[] {
  const { record, local } = plan
  const socket = sockets(local.directory)
  const out = [
    ['-name', opt('', { guest: record.name, process: `wadah:${record.name}`, 'debug-threads': 'on' })],
    ['-uuid', record.uuid],
    ['-nodefaults', '-no-user-config', '-S'],
    // What a clone reads is told by its capabilities, which are set first.
    ...(local.arriving ? [['-incoming', 'defer']] : []),
    ...(local.incoming ? [['-incoming', local.warm ? 'defer' : `fd:${RAM_FD}`]] : []),
    ['-display', 'none'],
    ['-sandbox', 'on,spawn=deny,elevateprivileges=deny,obsolete=deny,resourcecontrol=deny'],
    ['-pidfile', `${local.directory}/qemu.pid`],
    [
      '-machine',
      `${opt(record.machine, {
        'memory-backend': 'ram0',
        'dump-guest-core': 'off',
        usb: 'off',
        vmport: 'off',
        ...(record.firmware.kind === 'uefi' ? { pflash0: 'fw-code', pflash1: 'fw-vars' } : {}),
        // Secure Boot stands on it: without it a guest could write to its own keys.
        ...(record.firmware.kind === 'uefi' && record.firmware.secure_boot ? { smm: 'on' } : {}),
      })}`,
    ],
    ...firmware(plan),
    ['-accel', accelerator(plan)],
    ['-cpu', [record.cpu.model, ...record.cpu.flags].join(',')],
    ['-smp', opt('', { cpus: record.cpus, sockets: 1, cores: record.cpus, threads: 1 })],
    ['-m', memory(record.memory)],
    [
      '-object',
      json({
        ...(local.warm
          ? {
              'qom-type': 'memory-backend-file',
              'mem-path': `/proc/self/fd/${MEMORY_FD}`,
              share: local.warm.share,
            }
          : { 'qom-type': 'memory-backend-ram' }),
        id: 'ram0',
        size: record.memory.mib * 1024 * 1024,
        dump: false,
      }),
    ],
    ['-rtc', 'base=utc,driftfix=slew'],
    ['-chardev', opt('socket', { id: 'mon0', path: socket.monitor, server: 'on', wait: 'off' })],
    ['-mon', 'chardev=mon0,mode=control'],
    ['-vnc', opt(`unix:${socket.vnc.replaceAll(',', ',,')}`, { 'lock-key-sync': 'off' })],
    ['-fw_cfg', opt('', { name: 'opt/wadah/seed', file: `${local.directory}/seed` })],
    ...boot(plan),
    ...record.devices.flatMap((device) => deviceArgs(device, plan, socket)),
  ]
  return out.flat()
}

function memory({ mib, max_mib, slots }: BootPlan['record']['memory']): string {
  return opt('', { size: `${mib}M`, ...(slots > 0 ? { slots, maxmem: `${max_mib}M` } : {}) })
}

const json = (value: unknown): string => JSON.stringify(value)

function accelerator({ record, local }: BootPlan): string {
  if (record.accelerator === 'kvm') return 'kvm'
  return opt('tcg', { 'tb-size': local.tb_size_mib ?? undefined })
}

function firmware({ record, local }: BootPlan): string[][] {
  if (record.firmware.kind === 'bios') return []
  if (!local.firmware) throw new Error('no firmware files for a UEFI')
  const flash = (node: string, filename: string, readOnly: boolean) => [
    '-blockdev',
    json({
      driver: 'raw',
      'node-name': node,
      'read-only': readOnly,
      file: { driver: 'file', 'node-name': `${node}-file`, filename, 'read-only': readOnly },
    }),
  ]
  return [
    flash('fw-code', local.firmware.code, true),
    flash('fw-vars', local.firmware.vars, false),
    ...(record.firmware.secure_boot
      ? [
          ['-global', 'driver=cfi.pflash01,property=secure,value=on'],
          // OVMF's System Management Mode and suspend to RAM do not go together.
          ['-global', 'ICH9-LPC.disable_s3=1'],
        ]
      : []),
  ]
}

function boot({ record, local }: BootPlan): string[][] {
  if (!record.kernel || !local.kernel) return [['-boot', 'strict=on']]
  return [
    ['-kernel', local.kernel.kernel],
    ...(local.kernel.initrd ? [['-initrd', local.kernel.initrd]] : []),
    ...(record.kernel.cmdline === '' ? [] : [['-append', record.kernel.cmdline]]),
  ]
}

function deviceArgs(device: BootDevice, plan: BootPlan, socket: ReturnType<typeof sockets>): string[][] {
  switch (device.kind) {
    case 'root-port':
      return [
        [
          '-device',
          json({
            driver: 'pcie-root-port',
            id: device.id,
            bus: 'pcie.0',
            addr: device.addr,
            chassis: device.chassis,
            ...(device.multifunction ? { multifunction: true } : {}),
          }),
        ],
      ]
    case 'vga':
      return [['-device', json({ driver: 'VGA', id: device.id, bus: device.bus, addr: device.addr, vgamem_mb: 8 })]]
    case 'serial':
      return serialArgs(device, plan.local.directory)
    case 'agent':
      return [
        ['-device', json({ driver: 'virtio-serial-pci', id: device.id, bus: device.bus, addr: device.addr })],
        ['-chardev', opt('socket', { id: 'chan-agent0', path: socket.agent, server: 'on', wait: 'off' })],
        [
          '-device',
          json({
            driver: 'virtserialport',
            id: 'port-agent0',
            bus: 'agent0.0',
            chardev: 'chan-agent0',
            name: 'org.qemu.guest_agent.0',
          }),
        ],
      ]
    case 'balloon':
      return [
        [
          '-device',
          json({
            driver: 'virtio-balloon-pci',
            id: device.id,
            bus: device.bus,
            addr: device.addr,
            'deflate-on-oom': true,
            'free-page-reporting': device.reporting ?? true,
          }),
        ],
      ]
    case 'rng':
      return [
        ['-object', json({ 'qom-type': 'rng-builtin', id: 'entropy0' })],
        [
          '-device',
          json({ driver: 'virtio-rng-pci', id: device.id, bus: device.bus, addr: device.addr, rng: 'entropy0' }),
        ],
      ]
    case 'identity':
      return [
        ['-chardev', opt('socket', { id: 'chan-identity0', path: socket.identity, server: 'on', wait: 'off' })],
        [
          '-device',
          json({
            driver: 'virtserialport',
            id: device.id,
            bus: 'agent0.0',
            chardev: 'chan-identity0',
            name: 'org.wadah.identity.0',
          }),
        ],
      ]
    case 'cloud-seed':
      return cloudSeedArgs(device, plan.local.directory)
    case 'disk':
      return diskArgs(device, plan.local)
    case 'nic':
      return nicArgs(device, plan.local)
    case 'cdrom':
      return cdromArgs(device, plan.local)
    case 'usb-bus':
      return [
        ['-device', json({ driver: 'qemu-xhci', id: device.id, bus: device.bus, addr: device.addr, p2: 8, p3: 8 })],
      ]
    case 'hostdev-pci':
    case 'hostdev-usb':
      return hostdevArgs(device, plan.local)
    case 'tpm':
      return [
        ['-chardev', opt('socket', { id: 'chan-tpm0', path: socket.tpm })],
        ['-tpmdev', opt('emulator', { id: device.id, chardev: 'chan-tpm0' })],
        ['-device', json({ driver: 'tpm-crb', id: `dev-${device.id}`, tpmdev: device.id })],
      ]
    case 'dimm': {
      const dimm = dimmArgs(device)
      return [
        ['-object', json(dimm.object)],
        ['-device', json(dimm.device)],
      ]
    }
  }
}

/** The first port has a log, for it is where a guest's messages go. */
function serialArgs({ id, index }: BootDevice & { kind: 'serial' }, directory: string): string[][] {
  const path = serialSocket(directory, index)
  const logged = index === 0 ? { logfile: '/dev/fdset/1', logappend: 'on' } : {}
  return [
    ...(index === 0 ? [['-add-fd', `fd=${SERIAL_LOG_FD},set=1,opaque=${id}`]] : []),
    ['-chardev', opt('socket', { id, path, server: 'on', wait: 'off', ...logged })],
    ['-device', json({ driver: 'isa-serial', id: `dev-${id}`, chardev: id, index })],
  ]
}

type Json = { [key: string]: unknown }

/** The whole backing chain is spelled out: no header of a disk ever chooses a file. */
export function blockdev(node: string, disk: LocalPlan['disks'][string]): Json {
  const cache = { direct: disk.direct_io, 'no-flush': false }
  // At most 31 characters, and none that another disk's name could make: those have no dot.
  const name = (i: number) => (i === 0 ? node : `b${i}.${node.replace(/^vol-/, '')}`)
  const layer = (i: number): Json => {
    const { path, format } = disk.chain[i] as { path: string; format: string }
    const writable = i === 0
    const below = i + 1 < disk.chain.length
    return {
      driver: format,
      'node-name': name(i),
      'read-only': !writable,
      cache,
      // Also below: a layer is written again once what lies above is merged into it.
      discard: 'unmap',
      'detect-zeroes': 'unmap',
      file: {
        driver: 'file',
        'node-name': `${name(i)}.f`,
        filename: path,
        // QEMU opens it for writing as long as something writes it: what has become a layer below is anybody's to protect, and is
        // written again only while what lies above is merged into it.
        'auto-read-only': true,
        cache,
        discard: 'unmap',
      },
      ...(below ? { backing: layer(i + 1) } : format === 'qcow2' ? { backing: null } : {}),
    }
  }
  return layer(0)
}

function diskArgs(device: BootDevice & { kind: 'disk' }, local: LocalPlan): string[][] {
  const disk = local.disks[device.name]
  if (!disk) throw new Error(`no local disk for ${device.name}`)
  const node = `vol-${device.name}`
  return [
    ['-blockdev', json(blockdev(node, disk))],
    ['-device', json(diskDevice(device))],
  ]
}

/** The same on the command line and in `device_add`. */
export function diskDevice(device: BootDevice & { kind: 'disk' }): Json {
  return {
    driver: 'virtio-blk-pci',
    id: device.id,
    bus: device.bus,
    addr: '0x0',
    drive: `vol-${device.name}`,
    serial: device.serial ?? device.volume,
    // A write that cannot be done stops the guest instead of failing in it; it goes on once there is room.
    werror: 'stop',
    rerror: 'report',
    'write-cache': 'on',
    ...(device.boot_index === undefined ? {} : { bootindex: device.boot_index }),
  }
}

/** A CD is never written, and nothing in it chooses a format or another file. */
export function medium(node: string, filename: string): Json {
  return {
    driver: 'raw',
    'node-name': node,
    'read-only': true,
    file: { driver: 'file', 'node-name': `${node}-file`, filename, 'read-only': true },
  }
}

function cdromArgs(device: BootDevice & { kind: 'cdrom' }, local: LocalPlan): string[][] {
  const file = local.cdroms?.[device.name]
  const node = `cdm-${device.name}`
  return [
    ...(file === undefined ? [] : [['-blockdev', json(medium(node, file))]]),
    [
      '-device',
      json({
        driver: 'ide-cd',
        id: device.id,
        bus: device.bus,
        ...(file === undefined ? {} : { drive: node }),
        ...(device.boot_index === undefined ? {} : { bootindex: device.boot_index }),
      }),
    ],
  ]
}

/** A disk that can't be written; the guest finds it by its label. */
function cloudSeedArgs(device: BootDevice & { kind: 'cloud-seed' }, directory: string): string[][] {
  const file = { driver: 'file', filename: cloudSeedPath(directory), 'read-only': true }
  return [
    ['-blockdev', json({ driver: 'raw', 'node-name': `file-${device.id}`, 'read-only': true, file })],
    [
      '-device',
      json({
        driver: 'virtio-blk-pci',
        id: device.id,
        bus: device.bus,
        addr: device.addr,
        drive: `file-${device.id}`,
        serial: 'cidata',
      }),
    ],
  ]
}

function nicArgs(device: BootDevice & { kind: 'nic' }, local: LocalPlan): string[][] {
  const nic = local.nics[device.name]
  if (!nic) throw new Error(`no local NIC for ${device.name}`)
  return [
    ['-netdev', json(netdev(device.name, nic))],
    ['-device', json(nicDevice(device))],
  ]
}

/** The same on the command line and in `object-add` and `device_add`. */
export function dimmArgs({ id, slot, mib }: BootDevice & { kind: 'dimm' }): {
  object: Json & { id: string }
  device: Json
} {
  const memdev = `mem-${id}`
  return {
    object: { 'qom-type': 'memory-backend-ram', id: memdev, size: mib * 1024 * 1024, dump: false },
    device: { driver: 'pc-dimm', id, memdev, slot },
  }
}

export const netdevId = (nic: string): string => `net-${nic}`

function hostdevArgs(device: BootDevice & { kind: 'hostdev-pci' | 'hostdev-usb' }, local: LocalPlan): string[][] {
  const there = local.devices?.[device.name]
  if (device.kind === 'hostdev-pci' && there?.kind === 'pci')
    return [['-device', json({ driver: 'vfio-pci', id: device.id, bus: device.bus, addr: '0x0', host: there.address })]]
  if (device.kind === 'hostdev-usb' && there?.kind === 'usb') {
    const { id, port } = device
    return [['-device', json({ driver: 'usb-host', id, bus: 'xhci0.0', port, hostdevice: there.node })]]
  }
  throw new Error(`no local device for ${device.name}`)
}

/** The host's side of a NIC; the same on the command line and in `netdev_add`. */
export function netdev(name: string, nic: LocalPlan['nics'][string]): Json {
  const id = netdevId(name)
  if (nic.kind === 'tap') return { type: 'tap', id, ifname: nic.ifname, script: 'no', downscript: 'no' }
  if (nic.kind === 'none') return { type: 'hubport', id, hubid: 0 }
  return {
    type: 'user',
    id,
    net: nic.subnet,
    host: nic.gateway,
    dhcpstart: nic.address,
    ipv6: false,
    hostfwd: nic.publish.map((p) => ({
      str: `${p.protocol}:${p.address === '0.0.0.0' ? '' : p.address}:${p.port}-${nic.address}:${p.to}`,
    })),
  }
}

/** The guest's side; the same on the command line and in `device_add`. */
export function nicDevice(device: BootDevice & { kind: 'nic' }): Json {
  return {
    driver: 'virtio-net-pci',
    id: device.id,
    bus: device.bus,
    addr: '0x0',
    netdev: netdevId(device.name),
    mac: device.mac,
    romfile: '',
  }
}
