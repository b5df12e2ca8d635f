import type { WadahError } from '@wadah/api/fault'
import type { BootPlan, BootRecord } from '@wadah/ports/machine'
import { describe, expect, test } from 'vitest'
import { argv } from '../../src/engine/argv.ts'
import { arrivingPlan, immovable, judgeGiven } from '../../src/engine/migration/plan.ts'

const boot = (over: Partial<BootRecord> = {}): BootRecord => ({
  schema: 1,
  vm: 'vm-aaaaaaaaaa',
  uuid: '00000000-0000-5000-8000-000000000000',
  name: 'web',
  machine: 'pc-q35-7.2',
  accelerator: 'tcg',
  cpu: { model: 'qemu64', flags: [] },
  cpus: 1,
  memory: { mib: 96, max_mib: 96, slots: 0 },
  firmware: { kind: 'bios' },
  devices: [
    { kind: 'vga', id: 'vga0', bus: 'pcie.0', addr: '0x1' },
    { kind: 'root-port', id: 'rp0', addr: '0x10.0x0', chassis: 1, multifunction: true },
    { kind: 'disk', id: 'disk-root', bus: 'rp0', name: 'root', volume: 'vol-aaaaaaaaaa' },
    { kind: 'nic', id: 'nic-net0', bus: 'rp1', name: 'net0', mac: '02:00:00:00:00:01', network: 'net-aaaaaaaaaa' },
  ],
  ...over,
})
const plan = (over: Partial<BootRecord> = {}): BootPlan => ({
  record: boot(over),
  local: {
    uid: 1000,
    epoch: 2,
    directory: '/d',
    cgroup: null,
    disks: { root: { chain: [{ path: '/p/vol-aaaaaaaaaa.qcow2', format: 'qcow2' }], direct_io: true, limits: {} } },
    nics: { net0: { kind: 'tap', ifname: 'tap0' } },
    tb_size_mib: 32,
    qemu: '/usr/bin/qemu-system-x86_64',
  },
})
const HERE = { qemu_version: '7.2.22', machines: ['pc-q35-7.2', 'pc-q35-7.1'], cpu_flags: new Set(['cx16']) }
const from = (record: BootRecord, qemu_version = '7.2.22') => ({ boot: record, qemu_version })
const JOB = 'job-aaaaaaaaaa'
function thrown(call: () => unknown): WadahError {
  try {
    call()
  } catch (error) {
    return error as WadahError
  }
  throw new Error('nothing was thrown')
}

describe('what comes from another host', () => {
  test("is the source's machine with this host's paths, and QEMU waits for it", () => {
    const grown: BootRecord = boot({ cpus: 2, machine: 'pc-q35-7.1', name: 'old-name' })
    const made = arrivingPlan(plan(), from(grown), HERE, JOB)
    expect(made.record).toEqual({ ...grown, name: 'web' })
    expect(made.local).toEqual({ ...plan().local, arriving: { job: JOB } })
    const words = argv(made)
    expect(words[words.indexOf('-incoming') + 1]).toBe('defer')
    expect(words).toContain('-S')
  })
  test('a disk that a snapshot has put on another file since is the same to the guest', () => {
    const [own, started] = [{ volume: 'vol-bbbbbbbbbb', serial: 'vol-aaaaaaaaaa' }, { volume: 'vol-aaaaaaaaaa' }].map(
      (disk) => boot({ devices: boot().devices.map((d) => (d.kind === 'disk' ? { ...d, ...disk } : d)) }),
    ) as [BootRecord, BootRecord]
    const made = arrivingPlan(plan(own), from(started), HERE, JOB)
    expect(made.record).toEqual(started)
    expect(() =>
      arrivingPlan(
        plan(started),
        from({ ...own, devices: own.devices.map((d) => (d.kind === 'disk' ? { ...d, serial: 'other' } : d)) }),
        HERE,
        JOB,
      ),
    ).toThrow('disks root (other)')
  })
  test('fields that are not known are left where they are', () => {
    const strange = { ...boot(), devices: [...boot().devices.map((d) => ({ ...d, romfile: '/etc/shadow' }))], extra: 1 }
    expect(arrivingPlan(plan(), from(strange as BootRecord), HERE, JOB).record).toEqual(boot())
  })
  test.each<[string, BootRecord, string, string]>([
    ['another VM', boot({ vm: 'vm-bbbbbbbbbb' }), '7.2.22', 'another VM'],
    ['another accelerator', boot({ accelerator: 'kvm' }), '7.2.22', 'runs under KVM'],
    ['a newer QEMU', boot(), '8.0.0', 'older 7.2.22'],
    ['a machine type that QEMU does not know here', boot({ machine: 'pc-q35-6.9' }), '7.2.22', 'pc-q35-6.9'],
    ['other firmware', boot({ firmware: { kind: 'uefi', secure_boot: false } }), '7.2.22', 'firmware'],
    ['another disk', boot({ devices: boot().devices.filter((d) => d.kind !== 'disk') }), '7.2.22', 'disks none'],
    [
      'a TPM',
      boot({ devices: [...boot().devices, { kind: 'tpm', id: 'tpm0' }] }),
      '7.2.22',
      'the tpms tpm0, and its record says none',
    ],
  ])('refused: %s', (_what, record, version, text) => {
    expect(() => arrivingPlan(plan(), from(record, version), HERE, JOB)).toThrow(text)
  })
  test.each<[string, BootRecord['accelerator'], string[], string | undefined]>([
    ['flags that this host has', 'kvm', ['+cx16', '-svm'], undefined],
    ['flags that it lacks', 'kvm', ['+cx16', '+sse4.2', '+popcnt'], 'popcnt, sse4_2'],
    ['under TCG, which needs none of the host', 'tcg', ['+sse4.2'], undefined],
  ])('a CPU with %s', (_what, accelerator, flags, lacking) => {
    const over = { accelerator, cpu: { model: 'qemu64', flags } }
    const arrive = () => arrivingPlan(plan({ accelerator }), from(boot(over)), HERE, JOB)
    if (lacking === undefined) return expect(arrive().record.cpu.flags).toEqual(flags)
    expect(arrive).toThrow(lacking)
    const { fault } = thrown(arrive)
    expect(fault).toMatchObject({ code: 'host_lacks', remedy: expect.stringContaining('wadah vm shutdown web') })
  })
  test.each<[string, string[], boolean | undefined, string | undefined]>([
    ['gives it all', [], true, undefined],
    ['can not give something that its guest has', ['pcid', 'avx2'], true, 'avx2, pcid'],
    // Its own host may not have given it either.
    ['can not give something that was asked for by a host of the release before', ['pcid'], undefined, undefined],
  ])('QEMU here %s', (_what, missing, cpu_exact, lacking) => {
    const judge = () => judgeGiven('web', missing, cpu_exact ? { cpu_exact } : {})
    if (lacking === undefined) return expect(judge).not.toThrow()
    expect(judge).toThrow(lacking)
    expect(thrown(judge).fault).toMatchObject({
      code: 'host_lacks',
      remedy: expect.stringContaining('vm shutdown web'),
    })
  })
  test.each<[string, unknown]>([
    ['/machine', { machine: 'pc-q35-7.2,accel=kvm' }],
    ['/cpu/model', { cpu: { model: 'qemu64,+svm', flags: [] } }],
    ['/cpu/flags', { cpu: { model: 'qemu64', flags: ['+a,b'] } }],
    ['/memory/mib', { memory: { mib: -1, max_mib: 96, slots: 0 } }],
    ['/kernel/cmdline', { kernel: { cmdline: 'a\nb', has_initrd: true } }],
    ['/devices/0/bus', { devices: [{ kind: 'vga', id: 'vga0', bus: 'pcie.0,x=y', addr: '0x1' }] }],
    ['/devices/0/kind', { devices: [{ kind: 'pflash', id: 'x' }] }],
    ['/devices/0/chassis', { devices: [{ kind: 'root-port', id: 'rp0', addr: '0x1', chassis: 'one' }] }],
    ['/devices/0/id', { devices: [{ kind: 'vga', bus: 'pcie.0', addr: '0x1' }] }],
  ])('a value that can not be is named: %s', (field, over) => {
    expect(() => arrivingPlan(plan(), from({ ...boot(), ...(over as object) } as BootRecord), HERE, JOB)).toThrow(field)
  })
  test('devices of the host stay; a TPM goes, and a guest that has one meets a record with one', () => {
    expect(immovable(boot())).toBeUndefined()
    const lent = { kind: 'hostdev-usb' as const, id: 'hostdev-key', port: '1', name: 'key' }
    expect(immovable(boot({ devices: [lent] }))).toContain('devices of its host')
    expect(immovable(boot({ devices: [{ kind: 'tpm', id: 'tpm0' }] }))).toBeUndefined()
  })
})
