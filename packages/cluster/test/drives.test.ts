import { describe, expect, test } from 'vitest'
import type { VmSpec } from '@wadah/api/schema/vm'
import type { Deps } from '../src/context.ts'
import { checkBootOrder, checkFirmware, checkTpm, planCdroms } from '../src/vms/drives.ts'

const spec = (over: Partial<VmSpec> = {}) =>
  ({
    boot: { kind: 'disk' },
    disks: [{ name: 'root', volume: 'vol-aaaaaaaaaa', limits: {} }],
    cdroms: [{ name: 'cd0' }],
    ...over,
  }) as VmSpec
const host = (firmware: string[]) => ({ machine: { offers: async () => ({ firmware }) } }) as unknown as Deps
const refused = (field: string, code = 'invalid') => ({
  fault: expect.objectContaining({ code, field, effect: 'none' }),
})

describe('boot order', () => {
  test.each([[[]], [['cd0']], [['root', 'cd0']], [['cd0', 'root']]])('%j is taken', (order) => {
    expect(() => checkBootOrder(order, spec())).not.toThrow()
  })
  test.each([
    [['net1'], '/boot_order/0'],
    [['root', 'cd1'], '/boot_order/1'],
    [['root', 'root'], '/boot_order/1'],
  ])('%j is refused', (order, field) => {
    expect(() => checkBootOrder(order, spec())).toThrow(expect.objectContaining(refused(field)))
  })
  test('a kernel that is started directly has none', () => {
    const boot = { kind: 'kernel' as const, image: 'img-aaaaaaaaaa', cmdline: '' }
    expect(() => checkBootOrder(['root'], spec({ boot }))).toThrow(expect.objectContaining(refused('/boot_order')))
  })
})

describe('CD drives', () => {
  const plan = (inputs: { name?: string }[], there: string[] = [], disks: string[] = []) =>
    planCdroms(
      {} as Deps,
      'default',
      inputs,
      there.map((name) => ({ name })),
      disks,
      '/cdroms',
    ).map((c) => c.name)
  test('are named by the first number that is free', () => {
    expect(plan([{}, {}])).toEqual(['cd0', 'cd1'])
    expect(plan([{}, {}], ['cd0'], ['cd1'])).toEqual(['cd2', 'cd3'])
    expect(plan([{ name: 'install' }, {}])).toEqual(['install', 'cd0'])
  })
  test('never have the name of a disk or of another drive, and are four at most', () => {
    expect(() => plan([{ name: 'root' }], [], ['root'])).toThrow(expect.objectContaining(refused('/cdroms/0/name')))
    expect(() => plan([{ name: 'a' }, { name: 'a' }])).toThrow(expect.objectContaining(refused('/cdroms/1/name')))
    expect(() => plan([{}, {}, {}], ['cd0', 'cd1'])).toThrow(expect.objectContaining(refused('/cdroms')))
  })
})

describe('firmware', () => {
  const uefi = { kind: 'uefi' as const }
  const secure = { kind: 'uefi' as const, secure_boot: true }
  const disk = { name: 'x', kind: 'disk' as const }
  test('is what this host has', async () => {
    await checkFirmware(host(['bios']), { kind: 'bios' }, disk)
    await checkFirmware(host(['bios', 'uefi']), uefi, disk)
    await expect(checkFirmware(host(['bios']), uefi, disk)).rejects.toMatchObject(refused('/firmware', 'host_lacks'))
    await expect(checkFirmware(host(['bios', 'uefi']), secure, disk)).rejects.toMatchObject(
      refused('/firmware', 'host_lacks'),
    )
  })
  test('Secure Boot is not promised to a loader that nobody signed, nor firmware to a kernel that goes past it', async () => {
    const all = host(['bios', 'uefi', 'uefi-secure'])
    await checkFirmware(all, secure, undefined)
    await expect(checkFirmware(all, secure, { ...disk, recipe: 'web-server' })).rejects.toMatchObject(
      refused('/firmware/secure_boot'),
    )
    await expect(checkFirmware(all, uefi, { name: 'k', kind: 'kernel' })).rejects.toMatchObject(refused('/firmware'))
  })

  test('a TPM is what this host has', async () => {
    const with_tpm = (tpm: boolean) => ({ machine: { offers: async () => ({ tpm }) } }) as unknown as Deps
    await checkTpm(with_tpm(true), undefined)
    await checkTpm(with_tpm(true), disk)
    await expect(checkTpm(with_tpm(true), { name: 'k', kind: 'kernel' })).rejects.toMatchObject(refused('/tpm'))
    await expect(checkTpm(with_tpm(false), disk)).rejects.toMatchObject({
      fault: { code: 'host_lacks', field: '/tpm', remedy: 'apt-get install swtpm swtpm-tools', effect: 'none' },
    })
  })
})
