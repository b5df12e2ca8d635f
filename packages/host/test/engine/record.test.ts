import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import { argv } from '../../src/engine/argv.ts'
import { bootRecord, uuidOf } from '../../src/engine/boot-record.ts'
import { layoutOf, settings } from '../../src/engine/cgroup.ts'
import {
  parseCpuinfo,
  parseMachineHelp,
  parseMachineTypes,
  parseMeminfo,
  parseQemuVersion,
} from '../../src/engine/facts.ts'
import { freePort } from '../../src/engine/hotplug.ts'
import { lockedBytes } from '../../src/engine/launch.ts'
import { dimmFor, memoryMib } from '../../src/engine/memory.ts'
import { bootPlan, seedText } from '../../src/engine/plan.ts'
import { memoryCeiling, stateOf, tbSizeMib } from '../../src/engine/state.ts'
import { verdict } from '../../src/engine/probe/accelerator.ts'
import { FACTS, LOCAL, MATRIX, disk, nic, request } from './matrix.ts'

describe('command lines', () => {
  test.each(Object.entries(MATRIX))('%s is as it was', (name, { request: r, facts, local, came = [] }) => {
    const plan = bootPlan(r, { ...FACTS, ...LOCAL, ...facts, ...local })
    plan.record.devices.push(...came)
    const words = argv(plan)
    const dir = join(import.meta.dirname, 'golden')
    const file = join(dir, `${name}.txt`)
    const text = `${words.join('\n')}\n`
    if (process.env['UPDATE_GOLDEN'] || !existsSync(file)) {
      // A golden file that is missing on a machine that only tests is a failure, not a new truth.
      expect(process.env['CI']).toBeUndefined()
      mkdirSync(dir, { recursive: true })
      writeFileSync(file, text)
    }
    expect(text).toBe(readFileSync(file, 'utf8'))
  })
})

describe('the boot record', () => {
  const counts = fc.record({
    disks: fc.integer({ min: 0, max: 15 }),
    nics: fc.integer({ min: 0, max: 8 }),
    memory_mib: fc.integer({ min: 16, max: 65_536 }),
  })
  const made = (c: { disks: number; nics: number; memory_mib: number }) =>
    bootRecord(
      request({
        memory_mib: c.memory_mib,
        disks: Array.from({ length: c.disks }, (_, i) => disk(i)),
        nics: Array.from({ length: c.nics }, (_, i) => nic(i)),
      }),
      FACTS,
    )

  test('no two devices share an id or a place, and ports are left for later', () => {
    fc.assert(
      fc.property(counts, (c) => {
        const { devices, memory } = made(c)
        const places = devices.map((d) =>
          'bus' in d ? `${d.bus}/${'addr' in d ? d.addr : '0'}` : d.kind === 'root-port' ? `pcie.0/${d.addr}` : d.id,
        )
        expect(new Set(places).size).toBe(devices.length)
        expect(new Set(devices.map((d) => d.id)).size).toBe(devices.length)
        const ports = devices.filter((d) => d.kind === 'root-port')
        expect(new Set(ports.map((p) => p.chassis)).size).toBe(ports.length)
        expect(ports.length).toBe(c.disks + c.nics + 4)
        expect(memory.max_mib).toBeGreaterThanOrEqual(memory.mib)
      }),
    )
  })
  test('a disk more moves nothing that was there', () => {
    fc.assert(
      fc.property(counts, (c) => {
        const [before, after] = [made(c), made({ ...c, disks: c.disks + 1 })]
        for (const device of before.devices) expect(after.devices).toContainEqual(device)
      }),
    )
  })
  test('a disk that comes while it runs has the place that a cold start would give it', () => {
    fc.assert(
      fc.property(counts, (c) => {
        const after = made({ ...c, disks: c.disks + 1 }).devices.find((d) => d.id === `disk-disk${c.disks}`)
        expect(freePort(made(c))).toBe(after && 'bus' in after ? after.bus : undefined)
      }),
    )
    const full = made({ disks: 1, nics: 0, memory_mib: 64 })
    for (let port = freePort(full); port !== undefined; port = freePort(full))
      full.devices.push({ kind: 'disk', id: `x-${port}`, bus: port, name: 'x', volume: 'vol-aaaaaaaaaa' })
    expect(full.devices.filter((d) => d.id.startsWith('x-'))).toHaveLength(4)
  })
  test('says nothing of this host', () => {
    fc.assert(
      fc.property(counts, fc.string(), (c, path) => {
        const r = request({ memory_mib: c.memory_mib, disks: Array.from({ length: c.disks }, (_, i) => disk(i)) })
        const [here, there] = ['/a', `/${path}`].map(
          (directory) => bootPlan(r, { ...FACTS, ...LOCAL, directory, diskPath: () => directory }).record,
        )
        expect(here).toEqual(there)
      }),
    )
  })
  test('a UUID is of version 5 and never changes', () => {
    expect(uuidOf('vm-aaaaaaaaaa')).toBe(uuidOf('vm-aaaaaaaaaa'))
    expect(uuidOf('vm-aaaaaaaaab')).toMatch(/^[0-9a-f]{8}-[0-9a-f]{4}-5[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/)
  })
  test('a seed can forge no key', () => {
    expect(seedText({ hostname: 'a', password: 'x\nuser=root' })).toBe('hostname=a\npassword=x user=root\n')
  })
})

test('RAM is locked for devices that reach it by themselves, and for no others', () => {
  const of = (name: string) => lockedBytes(bootRecord(MATRIX[name]!.request, FACTS))
  expect(of('hostdevs')).toBe((2048 + 1024) * 2 ** 20)
  expect(of('linked-chain')).toBeUndefined()
})

describe('RAM that comes', () => {
  const grown = (start: number, ...came: number[]) => {
    const record = bootRecord(request({ memory_mib: start }), FACTS)
    came.forEach((mib, slot) => record.devices.push({ kind: 'dimm', id: `dimm${slot}`, slot, mib }))
    return record
  }
  test.each([
    ['the first DIMM', grown(512), 1024, { id: 'dimm0', slot: 0, mib: 512 }],
    ['the next one, of what is missing', grown(512, 256), 1024, { id: 'dimm1', slot: 1, mib: 256 }],
    ['up to four times', grown(512), 2048, { slot: 0, mib: 1536 }],
    ['not further', grown(512), 2176, undefined],
    ['in steps of 128 MiB', grown(512), 600, undefined],
    ['never less', grown(512, 512), 768, undefined],
    ['nothing for what it has', grown(512, 512), 1024, undefined],
    ['not into a fifth slot', grown(512, 128, 128, 128, 128), 1152, undefined],
    ['not into a small guest, which has no slots', grown(128), 256, undefined],
    ['also to a crooked start', grown(300), 428, { slot: 0, mib: 128 }],
  ])('%s', (_what, record, to, dimm) => {
    const made = dimmFor(record, to)
    if (dimm) expect(made).toMatchObject({ kind: 'dimm', ...dimm })
    else expect(made).toBeUndefined()
  })
  test('is always what was asked for, and never more slots or room than there are', () => {
    const start = fc.integer({ min: 16, max: 4096 })
    const steps = fc.array(fc.integer({ min: 1, max: 8192 }), { maxLength: 9 })
    fc.assert(
      fc.property(start, steps, (mib, wishes) => {
        const record = grown(mib)
        for (const wish of wishes) {
          const dimm = dimmFor(record, wish)
          if (!dimm) continue
          record.devices.push(dimm)
          expect(memoryMib(record)).toBe(wish)
        }
        expect(record.devices.filter((d) => d.kind === 'dimm').length).toBeLessThanOrEqual(record.memory.slots)
        expect(memoryMib(record)).toBeLessThanOrEqual(record.memory.max_mib)
      }),
    )
  })
})

describe('decisions', () => {
  const flags = (...f: string[]) => new Set(f)
  test.each([
    ['no device, no flag', { cpu_flags: flags(), device: 'absent' }, 'tcg', 'no hardware assistance'],
    ['no device, but the CPU could', { cpu_flags: flags('vmx'), device: 'absent' }, 'tcg', 'modprobe'],
    ['a device, no flag', { cpu_flags: flags(), device: 'open' }, 'tcg', 'shows no hardware assistance'],
    ['a device that is closed', { cpu_flags: flags('svm'), device: 'closed' }, 'tcg', 'group kvm'],
    ['a guest that hangs', { cpu_flags: flags('svm'), device: 'open', ran: 'hung' }, 'tcg', 'hung'],
    ['a guest that fails', { cpu_flags: flags('svm'), device: 'open', ran: 'failed', detail: 'EPERM' }, 'tcg', 'EPERM'],
    ['a guest that runs', { cpu_flags: flags('vmx'), device: 'open', ran: 'passed' }, 'kvm', '64-bit'],
  ] as const)('accelerator: %s', (_what, facts, accelerator, why) => {
    const v = verdict(facts as Parameters<typeof verdict>[0])
    expect([v.accelerator, v.reason.includes(why)]).toEqual([accelerator, true])
  })

  const V1 =
    '25 1 0:22 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n26 1 0:23 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n'
  const V2 = '27 1 0:24 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n'
  test.each([
    ['v1', V1, [], 'v1'],
    ['v2', V2, ['cpu', 'memory', 'io'], 'v2'],
    ['v1 with an empty v2 beside it', `${V2}${V1}`, [], 'v1'],
    ['v2 without the controllers', V2, ['pids'], 'none'],
    ['nothing', '', [], 'none'],
  ])('control groups: %s', (_what, mountinfo, controllers, version) => {
    expect(layoutOf(mountinfo, () => controllers as string[]).version).toBe(version)
  })
  test('limits as files', () => {
    const limits = { cpu_weight: 200, cpu_cap_percent: 150, memory_bytes: 1000 }
    expect(settings('v2', limits).map((s) => `${s.file}=${s.value}`)).toEqual([
      'cpu.weight=200',
      'cpu.max=150000 100000',
      'memory.max=1000',
    ])
    expect(settings('v1', { ...limits, cpu_cap_percent: null }).map((s) => s.value)).toEqual([
      '2048',
      '100000',
      '-1',
      '1000',
    ])
  })
  test.each([
    ['running', undefined, { state: 'running' }],
    ['paused', 'user', { state: 'paused', paused_by: 'user' }],
    ['paused', undefined, { state: 'paused', paused_by: 'qemu' }],
    ['io-error', undefined, { state: 'paused', paused_by: 'io-error' }],
    ['prelaunch', undefined, { state: 'prepared' }],
    ['guest-panicked', undefined, { state: 'panicked' }],
    ['something-new', undefined, { state: 'unknown' }],
  ] as const)('QEMU says %s', (status, note, state) => {
    expect(stateOf(status, note)).toEqual(state)
  })
  test('memory: small guests get small caches, the ceiling is above all of it', () => {
    expect([tbSizeMib('tcg', 96), tbSizeMib('tcg', 512), tbSizeMib('kvm', 512)]).toEqual([32, 128, null])
    expect(memoryCeiling(512, 128, undefined) / 2 ** 20).toBeGreaterThan(640)
  })
  test('facts are read from what programs print', () => {
    expect(
      parseMachineHelp('pc-q35-7.2   x\nq35                  Standard PC (Q35 + ICH9, 2009) (alias of pc-q35-7.2)\n'),
    ).toBe('pc-q35-7.2')
    expect(
      parseMachineTypes('q35   Standard (alias of pc-q35-7.2)\npc-q35-7.2  x\npc-i440fx-7.2  x\npc-q35-4.0.1  x\n'),
    ).toEqual(['pc-q35-7.2', 'pc-q35-4.0.1'])
    expect(parseQemuVersion('QEMU emulator version 7.2.22 (Debian 1:7.2)')).toBe('7.2.22')
    expect(parseMeminfo('MemTotal:       2048 kB\nMemAvailable:   1024 kB\n')).toEqual({
      total_mib: 2,
      available_mib: 1,
    })
    expect(parseCpuinfo('processor\t: 0\nmodel name\t: X\nflags\t\t: a b\nprocessor\t: 1\n')).toEqual({
      model: 'X',
      cpus: 2,
      flags: new Set(['a', 'b']),
    })
  })
})
