/** Plans of warm templates and clones, and what a clone is told. */
import { describe, expect, test } from 'vitest'
import fc from 'fast-check'
import type { BootPlan } from '@wadah/ports/machine'
import { argv } from '../../src/engine/argv.ts'
import { identityText } from '../../src/engine/warm/identity.ts'
import { clonePlan, templatePlan } from '../../src/engine/warm/plan.ts'

const plan = (vm: string, mac: string, volume: string): BootPlan => ({
  record: {
    schema: 1,
    vm,
    uuid: `uuid-${vm}`,
    name: vm,
    machine: 'pc-q35-7.2',
    accelerator: 'tcg',
    cpu: { model: 'qemu64', flags: [] },
    cpus: 1,
    memory: { mib: 512, max_mib: 2048, slots: 4 },
    firmware: { kind: 'bios' },
    devices: [
      { kind: 'agent', id: 'agent0', bus: 'pcie.0', addr: '0x2' },
      { kind: 'balloon', id: 'balloon0', bus: 'pcie.0', addr: '0x3' },
      { kind: 'nic', id: 'nic-net1', bus: 'rp0', name: 'net1', mac, network: `net-${vm}` },
      { kind: 'disk', id: 'disk-root', bus: 'rp1', name: 'root', volume, boot_index: 1 },
    ],
  },
  local: {
    uid: 5000,
    epoch: 1,
    directory: `/d/${vm}`,
    cgroup: null,
    disks: { root: { chain: [{ path: `/p/${volume}`, format: 'qcow2' }], direct_io: false, limits: {} } },
    nics: { net1: { kind: 'tap', ifname: `tap-${vm}` } },
    tb_size_mib: 128,
    qemu: 'qemu',
  },
})
const identity = {
  instance_id: 'vm-b',
  hostname: 'b',
  mac: '52:54:00:00:00:02',
  address: '10.0.0.2/24',
  gateway: '10.0.0.1',
  dns: '10.0.0.1',
  seed: {},
}
const template = templatePlan(plan('a', '52:54:00:00:00:01', 'vol-a'), 'img')
const warm = { boot: template.record, qemu_version: '7.2.22', ram_bytes: 1, image: 'img', identity }
const clone = (change: (p: BootPlan) => void = () => {}, here = '7.2.22') => {
  const own = plan('b', '52:54:00:00:00:02', 'vol-b')
  change(own)
  return clonePlan(own, warm, '/state', { qemu_version: here })
}

describe('plans', () => {
  test('a template shares its memory, leads nowhere and gives no pages back', () => {
    const words = argv(template).join(' ')
    expect(words).toContain('"share":true')
    expect(words).toContain('"type":"hubport"')
    expect(words).toContain('"free-page-reporting":false')
    expect(words).toContain('org.wadah.identity.0')
    expect(words).not.toContain('-incoming')
  })
  test('a clone has the template’s machine, and its own name, MAC, network and disk; its memory is private', () => {
    const made = clone()
    const words = argv(made).join(' ')
    expect(words).toContain('"share":false')
    expect(words).toContain('-incoming defer')
    expect(words).toContain('"mac":"52:54:00:00:00:02"')
    expect(words).toContain('uuid-b')
    expect(words).not.toContain('52:54:00:00:00:01')
    expect(words).toContain('"serial":"vol-a"')
    expect(made.local.disks).toEqual({
      root: expect.objectContaining({ chain: [{ path: '/p/vol-b', format: 'qcow2' }] }),
    })
    expect(made.record.devices.map((d) => d.id)).toEqual(template.record.devices.map((d) => d.id))
  })
  test.each<[string, (p: BootPlan) => void, string?]>([
    ['another accelerator', (p) => void (p.record.accelerator = 'kvm')],
    ['other memory', (p) => void (p.record.memory.mib = 1024)],
    ['more CPUs', (p) => void (p.record.cpus = 2)],
    ['no disk', (p) => void p.record.devices.pop()],
    ['an older QEMU', () => {}, '7.1.0'],
  ])('%s is refused', (_what, change, here) => {
    expect(() => clone(change, here)).toThrow(
      expect.objectContaining({ fault: expect.objectContaining({ code: 'wrong_state' }) }),
    )
  })
})

test('whatever the values are, a clone is told one line each', () => {
  fc.assert(
    fc.property(fc.string(), fc.string(), fc.dictionary(fc.string(), fc.string()), (hostname, domain, seed) => {
      const random = new Uint8Array(64)
      const text = identityText(
        { ...identity, hostname, domain, seed },
        { machine_id: 'f'.repeat(32), random, now_ms: 1 },
      )
      const lines = text.split('\n')
      expect(lines).toHaveLength(14)
      expect(lines.filter((l) => l === 'end')).toHaveLength(1)
      expect(lines.at(-2)).toBe('end')
    }),
  )
})
