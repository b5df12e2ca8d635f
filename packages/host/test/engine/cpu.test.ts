import { describe, expect, test } from 'vitest'
import { baselineCpu, exactCpu, flagsLacked, hostFlagsOf, notGiven } from '../../src/engine/cpu.ts'

const V2 = ['cx16', 'lahf_lm', 'popcnt', 'sse4_1', 'sse4_2', 'ssse3']

test('the CPU is the baseline, not the host', () => {
  expect(baselineCpu('tcg', new Set())).toEqual({ model: 'qemu64', flags: [] })
  expect(baselineCpu('kvm', new Set([...V2, 'avx2'])).flags).toContain('+sse4.2')
  expect(baselineCpu('kvm', new Set(['cx16'])).flags).toEqual(['-svm'])
})

describe('what a host must have for a guest', () => {
  const kvm = (has: readonly string[]) => ({ accelerator: 'kvm' as const, cpu: baselineCpu('kvm', new Set(has)) })
  const tcg = { accelerator: 'tcg' as const, cpu: { model: 'qemu64', flags: ['+sse4.2'] } }
  test.each<[string, Parameters<typeof flagsLacked>[0], string[], string[]]>([
    ['the same', kvm(V2), V2, []],
    ['more', kvm(V2), [...V2, 'avx2'], []],
    ['less', kvm(V2), ['cx16', 'ssse3', 'popcnt', 'lahf_lm'], ['sse4_1', 'sse4_2']],
    ['a guest that was shown the least goes anywhere', kvm([]), [], []],
    ['what was switched off is not asked for', { ...kvm(V2), cpu: { model: 'qemu64', flags: ['-popcnt'] } }, [], []],
    [
      'a flag that this release does not know is left to QEMU',
      { ...kvm([]), cpu: { model: 'x', flags: ['+new'] } },
      [],
      [],
    ],
    ["TCG makes it all itself, whatever the host's CPU", tcg, [], []],
  ])('%s', (_what, boot, has, lacked) => {
    expect(flagsLacked(boot, new Set(has))).toEqual(lacked)
  })
  test('told by the names of /proc/cpuinfo', () => {
    expect(hostFlagsOf(kvm(V2))).toEqual(V2)
    expect(hostFlagsOf(tcg)).toEqual([])
  })
})

test('what QEMU could not give is switched off in what the target is told', () => {
  const cpu = { model: 'qemu64', flags: ['+cx16', '+sse4.2', '-svm'] }
  expect(exactCpu(cpu, [])).toEqual(cpu)
  expect(exactCpu(cpu, ['sse4.2', 'mca', 'svm'])).toEqual({
    model: 'qemu64',
    flags: ['+cx16', '-svm', '-sse4.2', '-mca'],
  })
})

test('QEMU says of a CPU what it could not give', async () => {
  const asked: unknown[] = []
  const execute = async (command: string, args?: Record<string, unknown>) => {
    asked.push([command, args])
    return command === 'qom-get' ? ['pcid'] : [{ 'qom-path': '/machine/cpu0' }, { 'qom-path': '/machine/cpu1' }]
  }
  expect(await notGiven({ execute })).toEqual(['pcid'])
  expect(asked).toEqual([
    ['query-cpus-fast', undefined],
    ['qom-get', { path: '/machine/cpu0', property: 'unavailable-features' }],
  ])
})
