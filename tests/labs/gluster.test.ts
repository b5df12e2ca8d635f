/** A shared pool on a real network file system: two hosts, each with its own GlusterFS client; VMs move and their disks stay. */
import { readFileSync } from 'node:fs'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import type { VmMove } from '@wadah/api/schema/migration'
import type { Vm } from '@wadah/api/schema/vm'
import { until } from '../kit/daemon.ts'
import { inView, mountOnHosts, setCache, startGluster, whyNoGluster } from '../kit/gluster.ts'
import { at, json, LAB, lab, ok, purgeDeadLabs, SHARED } from '../kit/lab.ts'

const missing = whyNoGluster()
const show = (i: number, vm: string) => json<Vm>(i, 'vm', 'show', vm)
const sh = async (vm: string, script: string) =>
  (await ok(at(1, 'vm', 'exec', vm, '--', '/bin/sh', '-c', script))).trim()
const SUM = 'echo 3 >/proc/sys/vm/drop_caches; dd if=/dev/vda bs=1M count=8 2>/dev/null | md5sum'
const sees = async (i: number) => (await inView(i, 'ls', `${SHARED}/wadah/volumes`)).trim().split('\n').filter(Boolean)

describe.skipIf(missing !== undefined)(
  `a shared pool on GlusterFS${missing === undefined ? '' : ` (${missing})`}`,
  () => {
    beforeAll(async () => {
      purgeDeadLabs()
      await lab('up', '--hosts', '2')
      await startGluster()
      await mountOnHosts([1, 2], (i) => lab('start', `${LAB}${i}`))
    }, 240_000)
    afterAll(async () => {
      await lab('down')
    }, 120_000)

    test('each host has a client of its own', async () => {
      for (const i of [1, 2]) {
        const type = await inView(i, 'findmnt', '--noheadings', '--output', 'FSTYPE', '--target', SHARED)
        expect(type.trim()).toBe('fuse.glusterfs')
      }
      expect(readFileSync('/proc/self/mountinfo', 'utf8')).not.toContain(SHARED)
    })

    test('a folder that is another one on each host is refused, by name, and nothing is left in it', async () => {
      const refused = await at(1, 'pool', 'create', 'apart', `${SHARED}/apart`, '--shared')
      expect(refused.code).not.toBe(0)
      expect(refused.err).toContain(`${SHARED}/apart is another folder on ${LAB}2 than on ${LAB}1: it is not shared`)
      expect(refused.err).toContain(`findmnt ${SHARED}/apart`)
      expect((await inView(1, 'find', `${SHARED}/apart`, '-type', 'f')).trim()).toBe('')
    })

    test('a client that answers from caches is refused every time: a VM that moves would find zeros where its disk has grown', async () => {
      const tries = async (times: number) => {
        for (let i = 0; i < times; i++) {
          const refused = await at(1, 'pool', 'create', 'common', SHARED, '--shared')
          expect(refused.code).not.toBe(0)
          expect(refused.err).toMatch(/has written to a file in .* is not read at once on .*fuse\.glusterfs there/s)
          expect(refused.err).toContain(
            'performance.stat-prefetch off; and mount it on every host with -o attribute-timeout=0',
          )
        }
      }
      // As Gluster comes.
      await tries(10)
      // Its own cache of attributes is off; the kernel's of FUSE holds them for a second.
      await setCache('stat-prefetch', 'off')
      await tries(10)
      await mountOnHosts([1, 2], (i) => lab('start', `${LAB}${i}`), 'attribute-timeout=0')
      await ok(at(1, 'image', 'build', 'tiny'))
      await ok(at(1, 'network', 'create', 'lan', '--kind', 'bridge', '--bridge', 'lan0'))
    }, 180_000)

    test('the token and the locks are seen from the other host, and the pool is made', async () => {
      await ok(at(1, 'pool', 'create', 'common', SHARED, '--shared'))
      const { items } = await json<{ items: { name: string; shared: boolean; file_system: string }[] }>(
        2,
        'pool',
        'list',
      )
      expect(items.find((p) => p.name === 'common')).toMatchObject({ shared: true })
      const left = (await inView(2, 'ls', '-A', `${SHARED}/wadah`)).trim().split('\n')
      expect(left.toSorted()).toEqual(['.mark-pool', 'tmp', 'volumes'])
    })

    test('a VM is made on it, and moves while it runs: its disk stays where it is', async () => {
      const more = ['--network', 'lan', '--host', `${LAB}1`, '--disk', '64M', '--pool', 'common']
      await ok(at(1, 'vm', 'create', 'mover', '--image', 'tiny', ...more, '--start'))
      await until('the agent', async () => (await show(1, 'mover')).status.agent === 'connected')
      const sum = await sh('mover', `dd if=/dev/urandom of=/dev/vda bs=1M count=8 conv=fsync 2>/dev/null; ${SUM}`)
      const before = await sees(1)
      expect(before).toHaveLength(1)
      // What QEMU on the one host holds is seen on the other.
      const file = `${SHARED}/wadah/volumes/${before[0]}`
      await expect(inView(2, 'qemu-img', 'info', '-f', 'qcow2', file)).rejects.toThrow(/lock/)
      // Written to all the while, through the switch too, and its file grows with each block: what lies behind the length that a host knows
      // would read as zeros.
      await sh(
        'mover',
        `(i=0; while :; do i=$((i+1)); printf '%-511s\\n' "block $i" | dd of=/dev/vda bs=512 seek=$((65536+i%448*128)) conv=notrunc,fsync 2>/dev/null; echo $i >/last; done) >/dev/null 2>&1 &`,
      )
      for (const to of [2, 1, 2, 1]) {
        const moved = await json<VmMove>(2, 'vm', 'migrate', 'mover', '--to', `${LAB}${to}`, '--max-stall-ms', '10000')
        expect(moved).toMatchObject({ live: true, how: 'precopy' })
        expect(moved.phases.map((p) => p.phase)).not.toContain('mirror')
        expect(await sh('mover', SUM)).toBe(sum)
        expect(await sees(to)).toEqual(before)
        const last = Number(await sh('mover', 'echo 3 >/proc/sys/vm/drop_caches; cat /last'))
        const text = await sh('mover', "dd if=/dev/vda bs=64k skip=512 count=448 2>/dev/null | grep -ao 'block [0-9]*'")
        // It writes on meanwhile: a place may hold what was written later, never what was there before.
        const places = new Map(text.split('\n').map((l) => [Number(l.slice(6)) % 448, Number(l.slice(6))]))
        const expected = Array.from({ length: Math.min(last, 440) }, (_, i) => last - i).filter((n) => n > 0)
        expect(last).toBeGreaterThan(3)
        expect(expected.filter((n) => (places.get(n % 448) ?? 0) < n)).toEqual([])
      }
      expect((await show(2, 'mover')).placement).toMatchObject({ epoch: 5 })
    }, 480_000)

    test('stopped, it starts on the other host from the same file', async () => {
      const sum = await sh('mover', SUM)
      await ok(at(1, 'vm', 'stop', 'mover', '-y'))
      await ok(at(1, 'vm', 'migrate', 'mover', '--to', `${LAB}2`))
      await ok(at(1, 'vm', 'start', 'mover'))
      await until('the agent', async () => (await show(2, 'mover')).status.agent === 'connected')
      expect(await sh('mover', SUM)).toBe(sum)
      await ok(at(1, 'vm', 'delete', 'mover', '-y', '--force'))
      expect(await sees(1)).toEqual([])
      await ok(at(1, 'pool', 'delete', 'common'))
    }, 90_000)
  },
)
