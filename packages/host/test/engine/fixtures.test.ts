/**
 * Boot records and live records as earlier releases left them beside running QEMUs: every later release must read them, and a QEMU
 * that is started from such a record has the devices in the same places.
 */
import { cpSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { LocalPlan } from '@wadah/ports/machine'
import { describe, expect, test } from 'vitest'
import { argv } from '../../src/engine/argv.ts'
import { VmDirectory } from '../../src/engine/directory.ts'

const FOLDER = join(import.meta.dirname, '../fixtures')

describe.each(readdirSync(FOLDER))('what %s left', (release) => {
  test('is read, and its devices stay where they were', async () => {
    const data = mkdtempSync(join(tmpdir(), 'wadah-fixture-'))
    try {
      const { vm } = JSON.parse(readFileSync(join(FOLDER, release, 'boot.json'), 'utf8')) as { vm: string }
      mkdirSync(join(data, 'vms'))
      cpSync(join(FOLDER, release), join(data, 'vms', vm), { recursive: true })
      const directory = new VmDirectory(data, vm)
      const [record, live] = await Promise.all([directory.readBoot(), directory.readLive()])
      expect(record?.devices.length).toBeGreaterThan(3)
      expect(live).toMatchObject({ vm, qemu: { pid: expect.any(Number), start: expect.any(String) } })
      const disks = record!.devices.filter((d) => d.kind === 'disk')
      const nics = record!.devices.filter((d) => d.kind === 'nic')
      const local: LocalPlan = {
        uid: live!.uid,
        epoch: live!.epoch,
        directory: '/d',
        cgroup: null,
        disks: Object.fromEntries(
          disks.map((d) => [
            d.name,
            { chain: [{ path: `/p/${d.volume}`, format: 'qcow2' as const }], direct_io: true, limits: {} },
          ]),
        ),
        nics: Object.fromEntries(nics.map((n) => [n.name, { kind: 'tap' as const, ifname: `tap-${n.name}` }])),
        kernel: { kernel: '/k', initrd: '/i' },
        tb_size_mib: 32,
        qemu: '/usr/bin/qemu-system-x86_64',
      }
      const words = argv({ record: record!, local })
      const devices = words.filter((_, i) => words[i - 1] === '-device')
      const golden = join(FOLDER, release, 'devices.txt')
      if (!existsSync(golden) && process.env['UPDATE_GOLDEN']) writeFileSync(golden, `${devices.join('\n')}\n`)
      expect(`${devices.join('\n')}\n`).toBe(readFileSync(golden, 'utf8'))
    } finally {
      rmSync(data, { recursive: true, force: true })
    }
  })
})
