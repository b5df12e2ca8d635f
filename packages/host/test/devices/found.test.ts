/** A host that there is only in a folder: devices as sysfs shows them, and what a VM is given of them. */
import { mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join, relative } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { findDevices } from '../../src/devices/found.ts'
import { nodesOf, resolveDevices } from '../../src/devices/give.ts'

let root: string
const file = (path: string, text: string) => {
  mkdirSync(dirname(join(root, path)), { recursive: true })
  writeFileSync(join(root, path), `${text}\n`)
}
const link = (path: string, to: string) => {
  mkdirSync(dirname(join(root, path)), { recursive: true })
  mkdirSync(join(root, to), { recursive: true })
  symlinkSync(relative(dirname(join(root, path)), join(root, to)), join(root, path))
}
const BUS = 'sys/devices/pci0000:00'

function pci(at: string, id: string, kind: string, driver?: string, group?: number): void {
  const address = at.split('/').at(-1) as string
  const [vendor, product] = id.split(':')
  file(`${BUS}/${at}/vendor`, `0x${vendor}`)
  file(`${BUS}/${at}/device`, `0x${product}`)
  file(`${BUS}/${at}/class`, `0x${kind}`)
  if (driver !== undefined) link(`${BUS}/${at}/driver`, `sys/bus/pci/drivers/${driver}`)
  if (group !== undefined) link(`${BUS}/${at}/iommu_group`, `sys/kernel/iommu_groups/${group}`)
  link(`sys/bus/pci/devices/${address}`, `${BUS}/${at}`)
}

beforeAll(() => {
  root = mkdtempSync(join(tmpdir(), 'wadah-sysfs-'))
  pci('0000:00:01.0', '8086:0001', '060400', 'pcieport', 1)
  pci('0000:00:01.0/0000:03:00.0', '10de:1b80', '030000', 'vfio-pci', 1)
  pci('0000:00:01.0/0000:03:00.1', '10de:10f0', '040300', 'snd_hda_intel', 1)
  pci('0000:00:02.0', '8086:1533', '020000', 'igb', 2)
  pci('0000:00:03.0', '144d:a808', '010802', 'nvme', 3)
  pci('0000:00:14.0', '8086:a36d', '0c0330', 'xhci_hcd', 4)
  // The root file system on a volume manager on a partition of the NVMe disk; a stick on the second USB port.
  const nvme = `${BUS}/0000:00:03.0/nvme/nvme0/nvme0n1`
  mkdirSync(join(root, nvme, 'nvme0n1p2'), { recursive: true })
  file(`${nvme}/nvme0n1p2/dev`, '259:2')
  link('sys/dev/block/259:2', `${nvme}/nvme0n1p2`)
  link('sys/dev/block/253:0', 'sys/devices/virtual/block/dm-0')
  link('sys/devices/virtual/block/dm-0/slaves/nvme0n1p2', `${nvme}/nvme0n1p2`)
  const usb = (port: string, id: string, kind: string, device: number, text: string) => {
    const at = `${BUS}/0000:00:14.0/usb1/${port.includes('.') ? `${port.split('.')[0]}/` : ''}${port}`
    const [vendor, product] = id.split(':')
    const all = { idVendor: vendor, idProduct: product, bDeviceClass: kind, busnum: 1, devnum: device, product: text }
    for (const [name, value] of Object.entries(all)) file(`${at}/${name}`, String(value))
    link(`sys/bus/usb/devices/${port}`, at)
  }
  usb('1-1', '05e3:0610', '09', 2, 'Hub')
  usb('1-1.4', '046d:c52b', '00', 7, 'Receiver')
  usb('1-2', '0781:5567', '00', 9, 'Stick')
  link('sys/bus/usb/devices/usb1', `${BUS}/0000:00:14.0/usb1`)
  link('sys/bus/usb/devices/1-2:1.0', `${BUS}/0000:00:14.0/usb1/1-2/1-2:1.0`)
  link('sys/dev/block/8:1', `${BUS}/0000:00:14.0/usb1/1-2/1-2:1.0/host0/target0/block/sda/sda1`)
  file(
    'proc/self/mountinfo',
    '22 1 253:0 / / rw - ext4 /dev/mapper/root rw\n23 22 0:21 / /proc rw - proc proc rw\n24 22 8:1 / /mnt/stick rw - vfat /dev/sda1 rw',
  )
  file('proc/swaps', 'Filename Type Size Used Priority')
  file('proc/net/route', 'Iface\tDestination\tGateway\nbr0\t00000000\t0102A8C0\nbr0\t0002A8C0\t00000000')
  link('sys/class/net/eth0', `${BUS}/0000:00:02.0/net/eth0`)
  link('sys/class/net/br0', 'sys/devices/virtual/net/br0')
  link('sys/devices/virtual/net/br0/lower_eth0', `${BUS}/0000:00:02.0/net/eth0`)
})
afterAll(() => rmSync(root, { recursive: true, force: true }))

describe('devices of a host', () => {
  test('with their drivers, groups, and what the host needs them for', async () => {
    const found = await findDevices(root)
    expect(found.iommu).toBe(true)
    const brief = found.pci.map((d) => [d.address, d.driver, d.iommu_group, d.serves.join('; ')])
    expect(brief).toEqual([
      ['0000:00:01.0', 'pcieport', 1, ''],
      ['0000:00:02.0', 'igb', 2, 'the default route (br0)'],
      ['0000:00:03.0', 'nvme', 3, 'the file system /'],
      ['0000:00:14.0', 'xhci_hcd', 4, 'the file system /mnt/stick'],
      ['0000:03:00.0', 'vfio-pci', 1, ''],
      ['0000:03:00.1', 'snd_hda_intel', 1, ''],
    ])
    expect(found.pci[4]).toMatchObject({ class: '030000', vendor: '10de', product: '1b80' })
    expect(found.usb.map((d) => [d.port, d.hub, `${d.vendor}:${d.product}`, d.serves.join('; ')])).toEqual([
      ['1-1', true, '05e3:0610', ''],
      ['1-1.4', false, '046d:c52b', ''],
      ['1-2', false, '0781:5567', 'the file system /mnt/stick'],
    ])
  })
  test('of one without any there is nothing to say', async () => {
    expect(await findDevices(join(root, 'nowhere'))).toEqual({ iommu: false, pci: [], usb: [] })
  })
  test('this machine can be looked at', async () => {
    const { pci } = await findDevices()
    for (const d of pci) expect(d.address).toMatch(/^[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]$/)
  })

  test('at a start each is found again, with the node that its VM must open', async () => {
    const found = await findDevices(root)
    const gpu = { name: 'gpu', kind: 'pci' as const, address: '0000:03:00.0' }
    const devices = resolveDevices(
      [gpu, { name: 'a', kind: 'usb', port: '1-1.4' }, { name: 'b', kind: 'usb', vendor: '0781', product: '5567' }],
      found,
      true,
    )
    expect(devices).toEqual({
      gpu: { kind: 'pci', address: '0000:03:00.0', node: '/dev/vfio/1' },
      a: { kind: 'usb', node: '/dev/bus/usb/001/007' },
      b: { kind: 'usb', node: '/dev/bus/usb/001/009' },
    })
    expect(nodesOf(devices)).toHaveLength(3)
    const refused =
      (wanted: Parameters<typeof resolveDevices>[0], root_ = true) =>
      () =>
        resolveDevices(wanted, found, root_)
    expect(refused([{ ...gpu, address: '0000:09:00.0' }])).toThrow('not in this host any more')
    expect(refused([{ ...gpu, address: '0000:03:00.1' }])).toThrow('not bound to vfio-pci')
    expect(refused([{ name: 'a', kind: 'usb', port: '1-3' }])).toThrow('not plugged in')
    expect(refused([gpu], false)).toThrow('as root only')
  })
})
