import { expect, test } from 'vitest'
import { memoryWithin } from '../../src/engine/host-facts.ts'
import { ramIn } from '../../src/engine/migration/used.ts'
import { type GroupFiles, shareOf } from '../../src/engine/share.ts'

const MIB = 2 ** 20
const NONE_V1 = '9223372036854771712\n'
const cpu1 = (quota: number): GroupFiles => ({ 'cpu.cfs_quota_us': `${quota}\n`, 'cpu.cfs_period_us': '100000\n' })
const memory1 = (limit: string, used: number, cache: number): GroupFiles => ({
  'memory.limit_in_bytes': limit,
  'memory.usage_in_bytes': `${used}\n`,
  'memory.stat': `cache 5\ninactive_file ${cache}\nactive_file 1\n`,
})

test.each<[string, 'v1' | 'v2', GroupFiles[], GroupFiles[], object]>([
  ['nothing known', 'v1', [], [], {}],
  ['no limits', 'v1', [cpu1(-1)], [memory1(NONE_V1, 5, 0)], {}],
  ['no limits, v2', 'v2', [{ 'cpu.max': 'max 100000\n' }], [{ 'memory.max': 'max\n', 'memory.current': '7\n' }], {}],
  [
    'a share, v1; its page cache is free',
    'v1',
    [cpu1(200_000)],
    [memory1(`${1024 * MIB}\n`, 300 * MIB, 100 * MIB)],
    { cpus: 2, memory_bytes: 1024 * MIB, memory_used_bytes: 200 * MIB },
  ],
  ['less than a CPU is one', 'v1', [cpu1(67_000)], [], { cpus: 1 }],
  [
    'the least on the way up',
    'v2',
    [{ 'cpu.max': '400000 100000' }, { 'cpu.max': '150000 100000' }, {}],
    [
      { 'memory.max': `${900 * MIB}`, 'memory.current': '1', 'memory.stat': 'inactive_file 0' },
      { 'memory.max': `${500 * MIB}`, 'memory.current': `${9 * MIB}`, 'memory.stat': 'inactive_file 0\n' },
    ],
    { cpus: 2, memory_bytes: 500 * MIB, memory_used_bytes: 9 * MIB },
  ],
])('a share: %s', (_, version, cpu, memory, share) => {
  expect(shareOf(version, { cpu, memory })).toEqual(share)
})

test('memory is the share, and never more free than the machine has', () => {
  const machine = { total_mib: 4000, available_mib: 700 }
  expect(memoryWithin(machine, {})).toEqual({ memory_mib: 4000, memory_free_mib: 700 })
  expect(memoryWithin(machine, { memory_bytes: 9000 * MIB })).toEqual({ memory_mib: 4000, memory_free_mib: 700 })
  expect(memoryWithin(machine, { memory_bytes: 1000 * MIB, memory_used_bytes: 900 * MIB })).toEqual({
    memory_mib: 1000,
    memory_free_mib: 100,
  })
  expect(memoryWithin(machine, { memory_bytes: 2000 * MIB })).toEqual({ memory_mib: 2000, memory_free_mib: 700 })
})

test('of QEMU’s mappings the guest’s RAM counts: not its code, not what is small', () => {
  const mapping = (from: number, size: number, rights: string, kb: number) =>
    [
      `${from.toString(16)}-${(from + size).toString(16)} ${rights} 00000000 00:00 0 `,
      `Size: ${size / 1024} kB`,
      `Rss: ${kb} kB`,
      'Pss: 1 kB',
      'Swap:                4 kB',
      'VmFlags: rd wr',
    ].join('\n')
  const text = [
    mapping(0x10_0000, 2 * MIB, 'rw-p', 2048),
    mapping(0x4000_0000, 512 * MIB, 'rw-p', 100_000),
    mapping(0x9000_0000, 128 * MIB, 'rwxp', 50_000),
  ].join('\n')
  expect(ramIn(text)).toBe(100_004 * 1024)
  expect(ramIn('')).toBe(0)
})
