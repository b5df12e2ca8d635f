/** A real QEMU takes the command lines we write, and puts every device where the boot record says. */
import { execFileSync, spawn } from 'node:child_process'
import { closeSync, mkdirSync, mkdtempSync, openSync, rmSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { connectQmp } from '@wadah/qmp/client'
import { beforeAll, expect, test } from 'vitest'
import type { LaunchRequest } from '@wadah/ports/machine'
import { SERIAL_LOG_FD, argv, sockets } from '../../src/engine/argv.ts'
import { bootPlan } from '../../src/engine/plan.ts'
import { buildTiny } from '../../src/images/tiny.ts'
import { CACHE } from './kit.ts'
import { FACTS, LOCAL, MATRIX, POOL, disk, nic, request, volume } from './matrix.ts'

const QEMU = '/usr/bin/qemu-system-x86_64'
let tiny: Awaited<ReturnType<typeof buildTiny>>
let machine: string
beforeAll(async () => {
  tiny = await buildTiny({ outDir: `${CACHE}/tiny`, cacheDir: CACHE, agent: true })
  const { qemuFacts } = await import('../../src/engine/facts.ts')
  machine = (await qemuFacts(QEMU)).machine
}, 300_000)

const freePort = () =>
  new Promise<number>((resolve) => {
    const server = createServer().listen(0, '127.0.0.1', () => {
      const { port } = server.address() as { port: number }
      server.close(() => resolve(port))
    })
  })

/** Pools whose host cache is used: the temporary folder may lie on tmpfs, which has no direct I/O. */
const cached = (r: LaunchRequest): LaunchRequest => ({
  ...r,
  disks: r.disks.map((d) => ({ ...d, pool: { ...d.pool, direct_io: false } })),
})

const CASES: [string, () => Promise<LaunchRequest>, string][] = [
  ['a kernel and no disk', async () => MATRIX['kernel-no-disk']?.request as LaunchRequest, 'live'],
  [
    'three layers, a raw disk, ports of the host',
    async () => {
      const publish = [
        { protocol: 'tcp' as const, address: '127.0.0.1', port: await freePort(), to: 80 },
        { protocol: 'udp' as const, address: '127.0.0.1', port: await freePort(), to: 53 },
      ]
      const chain = [volume('vol-top'), volume('vol-middle'), volume('vol-base', 'raw')]
      return request(
        { disks: [disk(0), disk(1)], nics: [nic(1, { publish }), nic(2)] },
        {
          disks: [
            { name: 'disk0', chain, pool: POOL },
            { name: 'disk1', chain: [volume('vol-raw', 'raw')], pool: POOL },
          ],
        },
      )
    },
    'live',
  ],
  ['the seed disk of cloud-init', async () => MATRIX['cloud-seed']?.request as LaunchRequest, 'live'],
  ['the longest names', async () => MATRIX['longest-names']?.request as LaunchRequest, 'live'],
  ['RAM that came while it ran', async () => MATRIX['grown']?.request as LaunchRequest, 'live'],
  ['nine disks', async () => MATRIX['many-disks']?.request as LaunchRequest, 'live'],
  ['commas in paths', async () => request({ disks: [disk(0)], nics: [nic(1)] }), 'li,ve'],
]

test.each(CASES)('%s', { timeout: 60_000 }, async (_what, make, folder) => {
  const dir = mkdtempSync(join(tmpdir(), 'wadah,argv-'))
  const live = join(dir, folder)
  mkdirSync(live)
  const source = await make()
  const r = cached(source)
  const diskPath = (_pool: unknown, v: { id: string; format: string }) => join(dir, `${v.id}.${v.format}`)
  for (const { chain } of r.disks) {
    for (const v of chain) execFileSync('qemu-img', ['create', '-q', '-f', v.format, diskPath(undefined, v), '1G'])
  }
  writeFileSync(join(live, 'seed'), 'hostname=x\n')
  writeFileSync(join(live, 'cidata.iso'), Buffer.alloc(32 * 2048))
  const kernel = r.kernel ? { kernel: tiny.kernel, initrd: tiny.initrd } : undefined
  const plan = bootPlan(r, { ...FACTS, ...LOCAL, machine, directory: live, diskPath, kernel })
  const came = Object.values(MATRIX).find((m) => m.request === source)?.came ?? []
  plan.record.devices.push(...came)
  const [log, serial] = [openSync(join(dir, 'qemu.log'), 'a'), openSync(join(dir, 'serial.log'), 'a')]
  const child = spawn(QEMU, argv(plan), { stdio: ['ignore', 'ignore', log, serial] })
  expect(SERIAL_LOG_FD).toBe(3)
  const exit = new Promise<string>((resolve) => child.once('exit', (code, signal) => resolve(`${code ?? signal}`)))
  try {
    const qmp = await connectQmp({ path: sockets(live).monitor, connect_timeout_ms: 30_000, gone: exit })
    expect(await qmp.execute('query-status')).toMatchObject({ status: 'prelaunch', running: false })
    for (const d of plan.record.devices) {
      if (d.kind === 'serial' || d.kind === 'cdrom' || d.kind === 'dimm') continue
      const ask = (property: string) => qmp.execute('qom-get', { path: `/machine/peripheral/${d.id}`, property })
      const [slot, fn = '0x0'] = 'addr' in d ? d.addr.split('.') : ['0x0']
      expect(await ask('addr')).toBe(Number(slot) * 8 + Number(fn))
      const bus = String(await ask('parent_bus'))
      expect([d.id, bus.split('/').at(-1)]).toEqual([d.id, 'bus' in d ? d.bus : 'pcie.0'])
    }
    const ram = (await qmp.execute('query-memory-size-summary')) as unknown as { 'plugged-memory'?: number }
    expect((ram['plugged-memory'] ?? 0) / 2 ** 20).toBe(came.reduce((n, d) => n + (d.kind === 'dimm' ? d.mib : 0), 0))
    const nodes = (await qmp.execute('query-named-block-nodes', { flat: true })) as unknown as { 'node-name': string }[]
    const layers = r.disks.flatMap((d) => d.chain.map((_, i) => (i === 0 ? `vol-${d.name}` : `b${i}.${d.name}`)))
    expect(nodes.map((n) => n['node-name'])).toEqual(expect.arrayContaining(layers))
    await qmp.execute('quit').catch(() => undefined)
    expect(await exit).toBe('0')
    await qmp.close()
  } finally {
    child.kill('SIGKILL')
    await exit
    closeSync(log)
    closeSync(serial)
    rmSync(dir, { recursive: true, force: true })
  }
})
