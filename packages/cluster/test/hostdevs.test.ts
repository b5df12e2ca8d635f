/** Which devices of the host a VM may be given. */
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import type { Hostdev } from '@wadah/api/schema/devices'
import type { DevicesFound, PciFound, UsbFound } from '@wadah/ports/devices'
import { checkHostdevs, pciRefusal } from '../src/vms/hostdevs.ts'
import { caller, room } from './kit/cluster.ts'

const pci = (address: string, over: Partial<PciFound> = {}): PciFound => ({
  address,
  class: '030000',
  vendor: '10de',
  product: '1b80',
  driver: 'vfio-pci',
  iommu_group: 12,
  serves: [],
  ...over,
})
const without = (d: PciFound, key: keyof PciFound): PciFound =>
  Object.fromEntries(Object.entries(d).filter(([k]) => k !== key)) as PciFound
const usb = (port: string, over: Partial<UsbFound> = {}): UsbFound => ({
  port,
  bus: 1,
  device: 4,
  vendor: '046d',
  product: 'c52b',
  text: 'Receiver',
  hub: false,
  serves: [],
  ...over,
})
const GPU = '0000:03:00.0'
const SOUND = '0000:03:00.1'
const host = (list: PciFound[], iommu = true, sticks: UsbFound[] = []): DevicesFound => ({
  iommu,
  pci: list,
  usb: sticks,
})
const none = { pci: new Map<string, string>(), usb: new Map<string, string>() }
const web = { pci: new Map([[SOUND, 'web']]), usb: new Map([['1-2', 'web']]) }

describe('a PCI device', () => {
  const iommu = 'intel_iommu=on (Intel) or amd_iommu=on (AMD)'
  test.each<[string, DevicesFound, typeof none, [string, string, string] | undefined]>([
    ['alone in its group', host([pci(GPU)]), none, undefined],
    [
      'beside a bridge of its group',
      host([pci(GPU), pci('0000:00:01.0', { class: '060400', driver: 'pcieport' })]),
      none,
      undefined,
    ],
    ['beside another that is set free too', host([pci(GPU), pci(SOUND)]), none, undefined],
    ['beside another that no driver has', host([pci(GPU), without(pci(SOUND), 'driver')]), none, undefined],
    [
      'of another group than a busy one',
      host([pci(GPU), pci(SOUND, { driver: 'snd', iommu_group: 13 })]),
      none,
      undefined,
    ],
    ['without an IOMMU', host([without(pci(GPU), 'iommu_group')], false), none, ['host_lacks', 'no IOMMU', iommu]],
    [
      'that the host drives',
      host([pci(GPU, { driver: 'nouveau' })]),
      none,
      ['in_use', 'driver nouveau', `driverctl set-override ${GPU} vfio-pci`],
    ],
    [
      'whose group the host drives',
      host([pci(GPU), pci(SOUND, { driver: 'snd_hda_intel' })]),
      none,
      [
        'in_use',
        `group 12, whose devices can only be given away together; the host uses others of it: ${SOUND} (snd_hda_intel)`,
        `driverctl set-override ${SOUND} vfio-pci`,
      ],
    ],
    [
      'whose group has the disk of the host',
      host([pci(GPU), pci(SOUND, { serves: ['the file system /'] })]),
      none,
      ['in_use', `with ${SOUND}, which the host needs for the file system /`, 'another slot'],
    ],
    ['whose group is another VM’s', host([pci(GPU), pci(SOUND)]), web, ['in_use', 'given to the VM "web"', '']],
    ['of another VM', host([pci(SOUND)]), web, ['in_use', 'given to the VM "web"', '']],
    [
      'with the way out of the host',
      host([pci(GPU, { serves: ['the default route (eth0)'] })]),
      none,
      ['in_use', 'the default route (eth0)', ''],
    ],
    ['that is a bridge', host([pci(GPU, { class: '060400' })]), none, ['invalid', 'bridge', '']],
  ])('%s', (_what, found, given, why) => {
    const device = found.pci[0] as PciFound
    const fault = pciRefusal(device, found, given)?.fault
    if (!why) return expect(fault).toBeUndefined()
    expect(fault).toMatchObject({ code: why[0], effect: 'none' })
    expect(fault?.detail).toContain(why[1])
    expect(fault?.remedy ?? '').toContain(why[2])
  })
})

describe('what is asked for', () => {
  const found = host([pci(GPU), pci(SOUND)], true, [
    usb('1-1', { hub: true, vendor: '05e3', product: '0610' }),
    usb('1-2', { vendor: '0781', product: '5567' }),
    usb('1-3'),
    usb('1-4'),
  ])
  const gpu: Hostdev = { name: 'gpu', kind: 'pci', address: GPU }
  const at = (port: string): Hostdev => ({ name: 'u', kind: 'usb', port })
  const named = (vendor: string, product: string): Hostdev => ({ name: 'u', kind: 'usb', vendor, product })
  test.each<[string, Hostdev[], Hostdev[], string | undefined, string]>([
    ['a card', [gpu], [], undefined, ''],
    ['a card with its sound', [gpu, { name: 's', kind: 'pci', address: SOUND }], [], undefined, ''],
    ['a card that it has', [{ ...gpu, name: 'x' }], [gpu], 'in_use', '/h/0'],
    ['one twice', [gpu, { ...gpu, name: 'x' }], [], 'in_use', '/h/1'],
    ['a name that it has', [{ ...at('1-3'), name: 'gpu' }], [gpu], 'invalid', '/h/0/name'],
    ['a card that is not there', [{ ...gpu, address: '0000:09:00.0' }], [], 'invalid', '/h/0'],
    ['what is plugged in at a port', [at('1-3')], [], undefined, ''],
    ['what is plugged in once', [named('0781', '5567')], [], undefined, ''],
    ['what is plugged in twice', [named('046d', 'c52b')], [], 'invalid', '/h/0'],
    ['a port where nothing is', [at('1-9')], [], 'invalid', '/h/0'],
    ['a hub', [at('1-1')], [], 'invalid', '/h/0'],
    ['one by two ways', [{ ...at('1-3'), vendor: '046d', product: 'c52b' } as Hostdev], [], 'invalid', '/h/0'],
    ['a vendor alone', [{ name: 'u', kind: 'usb', vendor: '046d' }], [], 'invalid', '/h/0'],
    [
      'one by its port that it has by its name',
      [{ ...at('1-2'), name: 'v' }],
      [named('0781', '5567')],
      'in_use',
      '/h/0',
    ],
    ['nine', Array.from({ length: 9 }, (_, i) => ({ ...gpu, name: `d${i}` })), [], 'invalid', '/h'],
  ])('%s', (_what, wanted, there, code, field) => {
    const check = () => checkHostdevs(wanted, there, found, none, '/h')
    if (code === undefined) return expect(check).not.toThrow()
    expect(check).toThrow(expect.objectContaining({ fault: expect.objectContaining({ code, field, effect: 'none' }) }))
  })
  test('a stick of another VM', () => {
    expect(() => checkHostdevs([at('1-2')], [], found, web, '/h')).toThrow('given to the VM "web"')
  })
})

describe('a VM', () => {
  let r: Awaited<ReturnType<typeof room>>
  beforeEach(async () => {
    r = await room()
    r.world.devices = host([pci(GPU)], true, [usb('1-3')])
  })
  afterEach(() => r.close())
  const gpu: Hostdev = { name: 'gpu', kind: 'pci', address: GPU }

  test('is given one, keeps it from others, and gives it back', async () => {
    await r.done(r.vms.create(caller, { name: 'one', hostdevs: [gpu] }))
    await r.done(r.vms.create(caller, { name: 'two' }))
    const edit = (name: string, body: object) => r.vms.edit(caller, name, body, undefined)
    await expect(edit('two', { add_hostdevs: [gpu] })).rejects.toMatchObject({
      fault: { code: 'in_use', field: '/add_hostdevs/0', effect: 'none' },
    })
    const [shown] = (await r.host.devices()).pci
    expect(shown).toMatchObject({ vm: 'one', free: false, why_not: expect.stringContaining('"one"') })
    // A clone is another machine: the card stays where it is.
    await r.done(r.vms.clone(caller, 'one', { name: 'twin' }))
    expect(r.vms.get(caller, 'twin').spec.hostdevs).toBeUndefined()

    await r.done(r.vms.start(caller, 'one'))
    await expect(edit('one', { remove_hostdevs: ['gpu'] })).rejects.toMatchObject({ fault: { code: 'wrong_state' } })
    const stick: Hostdev = { name: 'stick', kind: 'usb', port: '1-3' }
    expect((await edit('one', { add_hostdevs: [stick] })).status.pending_restart).toEqual(['hostdevs'])
    await r.done(r.vms.stop(caller, 'one'))
    await edit('one', { remove_hostdevs: ['gpu'] })
    expect((await edit('two', { add_hostdevs: [gpu] })).spec.hostdevs).toEqual([gpu])
    await r.done(r.vms.delete(caller, 'one', {}, undefined))
    expect((await r.host.devices()).usb[0]).toMatchObject({ free: true })
  })

  test('of two who ask at the same moment one gets it', async () => {
    const asked = await Promise.allSettled(
      ['one', 'two', 'three'].map((name) => r.done(r.vms.create(caller, { name, hostdevs: [gpu] }))),
    )
    expect(asked.filter((a) => a.status === 'fulfilled')).toHaveLength(1)
  })
})
