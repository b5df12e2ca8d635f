/** Two machines in one process, with data folders of their own and one pool that both see; the tiny guest moves between them. */
import { randomBytes } from 'node:crypto'
import { chmod, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, afterEach, beforeAll } from 'vitest'
import { newId } from '@wadah/api/ids'
import { Arrivals } from '@wadah/cluster/migration/target'
import { type MoveOut, type MoveOutPorts, moveOut } from '@wadah/cluster/migration/source'
import { type Wire, wire } from '@wadah/cluster/migration/testing'
import type { Images } from '@wadah/ports/images'
import type { LaunchRequest } from '@wadah/ports/machine'
import type { VolumeDefinition } from '@wadah/ports/volumes'
import { HostMachine } from '../../src/engine/machine.ts'
import { buildTiny } from '../../src/images/tiny.ts'
import { createVolumes } from '../../src/storage/volumes.ts'
import { CACHE, noNetworks, until } from '../engine/kit.ts'

export const never = new AbortController().signal
const USERFAULTS = '/proc/sys/vm/unprivileged_userfaultfd'

/** Two machines for all tests of a `describe`; each finds them as new. */
export function usePair(give: (kit: PairKit) => void): void {
  let kit: PairKit
  beforeAll(async () => {
    kit = await pairKit()
    give(kit)
  })
  afterEach(async () => {
    await kit.clear()
  })
  afterAll(async () => {
    await kit.close()
  })
}

export async function pairKit() {
  const tiny = await buildTiny({ outDir: `${CACHE}/tiny`, cacheDir: CACHE, agent: true })
  const dir = await mkdtemp(join(tmpdir(), 'wadah-move-'))
  await chmod(dir, 0o711)
  const images = {
    files: async () => ({ kernel: tiny.kernel, initrd: tiny.initrd, size_bytes: 0 }),
  } as unknown as Images
  const logs: string[] = []
  const open = (name: string) =>
    HostMachine.open({
      dataDir: `${dir}/${name}`,
      cgroup: `wadah-test-${process.pid}-${name}`,
      qemu: '/usr/bin/qemu-system-x86_64',
      volumes: createVolumes({ allowedDirs: [dir] }),
      networks: noNetworks,
      images,
      imports: {} as never,
      log: (line) => logs.push(`${name}: ${line}`),
      now_ms: Date.now,
      probeUid: 210_000,
    })
  const a = await open('a')
  const b = await open('b')
  const pool = { id: 'pool-aaaaaaaaaa', path: dir, direct_io: false }
  await a.volumes.openPool(pool)
  const uid = 216_000 + Math.floor(Math.random() * 5000)
  /** With a disk in the shared pool, unless said. */
  async function request(over: { memory_mib?: number; disk?: boolean } = {}): Promise<LaunchRequest> {
    const vm = newId('vm', randomBytes)
    const volume: VolumeDefinition = {
      id: newId('volume', randomBytes),
      pool: pool.id,
      format: 'qcow2',
      size_bytes: 2 ** 25,
    }
    const disk = over.disk !== false
    if (disk) {
      await a.volumes.create(pool, volume, { signal: never })
      await a.volumes.grant(pool, volume, { uid })
    }
    return {
      vm,
      name: 'tiny',
      epoch: 1,
      spec: {
        cpus: 1,
        memory_mib: over.memory_mib ?? 96,
        machine: 'q35',
        boot: { kind: 'kernel', image: 'img-aaaaaaaaaa', cmdline: '' },
        disks: disk ? [{ name: 'root', volume: volume.id, limits: {} }] : [],
        nics: [],
        limits: {},
        balloon_mib: null,
        seed: { hostname: 'tiny', has_password: false, ssh_keys: [] },
        uid,
      },
      disks: disk ? [{ name: 'root', chain: [volume], pool }] : [],
      nics: [],
      kernel: { image: 'img-aaaaaaaaaa', cmdline: tiny.cmdline, has_initrd: true },
      seed: { hostname: 'tiny' },
    }
  }
  async function start(machine: HostMachine, asked?: LaunchRequest) {
    const wanted = asked ?? (await request())
    const plan = await machine.plan(wanted)
    await machine.prepare(plan, never)
    const running = await machine.launch(plan, 'fresh', never)
    await until('the agent', async () => (await machine.observe(wanted.vm)).agent === 'connected')
    return { request: wanted, running, vm: wanted.vm }
  }
  const sh = async (machine: HostMachine, vm: string, script: string, timeout_ms = 30_000) => {
    const done = await machine.guest(vm).exec({ argv: ['sh', '-c', script], timeout_ms }, never)
    const text = Buffer.from(done.stdout, 'base64').toString()
    if (done.exit_code !== 0) throw new Error(`${script}: ${text}${Buffer.from(done.stderr, 'base64').toString()}`)
    return text.trim()
  }
  let restore: string | undefined
  return {
    dir,
    a,
    b,
    pool,
    logs,
    open,
    request,
    start,
    sh,
    /** The target's daemon. */
    arrivals: async (wanted: LaunchRequest, to: HostMachine, placement: Placement, stop: AbortSignal, tls = true) =>
      new Arrivals(
        {
          migration: to.migration,
          prepare: async (_job, offer) => ({
            request: { ...wanted, epoch: offer.epoch },
            listen: '127.0.0.1',
            tls,
          }),
          isBy: async (_job, host) => host === 'host-source',
          commitMoved: async (_job, { epoch }) => {
            Object.assign(placement, { host: to, epoch, sealed: false })
            placement.log.push('moved')
          },
          isOver: async () => false,
          address: () => '127.0.0.1',
          log: (line) => logs.push(`in: ${line}`),
        },
        stop,
      ),
    /** Whether it could be allowed; what was before comes back at `close`. */
    async allowPostcopy(): Promise<boolean> {
      try {
        restore ??= (await readFile(USERFAULTS, 'utf8')).trim()
        await writeFile(USERFAULTS, '1\n')
        return true
      } catch {
        return false
      }
    },
    /** Whatever it was before. */
    async forbidPostcopy(): Promise<void> {
      await writeFile(USERFAULTS, '0\n')
    },
    /** Whatever a test left. */
    async clear(machines: HostMachine[] = [a, b]): Promise<void> {
      for (const m of machines) for (const vm of await m.known()) await m.forget(vm)
    },
    async close(machines: HostMachine[] = [a, b]) {
      if (restore !== undefined) await writeFile(USERFAULTS, `${restore}\n`)
      for (const m of machines) {
        for (const vm of await m.known()) await m.forget(vm)
        await m.cgroups.removeAll()
        await m.close()
      }
      await rm(dir, { recursive: true, force: true })
    },
  }
}
export type PairKit = Awaited<ReturnType<typeof pairKit>>

export type Placement = { host: HostMachine; epoch: number; sealed: boolean; log: string[] }

/** A whole move with both daemons' state machines, a stream in memory and a placement in a variable. */
export async function move(
  kit: PairKit,
  request: LaunchRequest,
  from: HostMachine,
  to: HostMachine,
  order: Partial<MoveOut> = {},
  means: {
    wire?: Wire
    ports?: Partial<MoveOutPorts>
    signal?: AbortSignal
    placement?: Placement
    arrivals?: Arrivals
  } = {},
) {
  const stream = means.wire ?? wire()
  const placement: Placement = means.placement ?? { host: from, epoch: request.epoch, sealed: false, log: [] }
  const epoch = placement.epoch + 1
  const stop = new AbortController()
  const arrivals = means.arrivals ?? (await kit.arrivals(request, to, placement, stop.signal, order.tls))
  void arrivals.handle(stream.b, 'host-source')
  const job = order.job ?? newId('job', randomBytes)
  try {
    const report = await moveOut(
      {
        job,
        vm: request.vm,
        name: request.name,
        from: 'host-aaaaaaaaaa',
        epoch,
        mode: 'precopy',
        // Other work on the machine must not fail a test.
        limits: { max_stall_ms: 5_000 },
        tls: true,
        ...order,
      },
      {
        migration: from.migration,
        link: stream.a,
        relink: async () => {
          const again = wire()
          void arrivals.handle(again.b, 'host-source')
          return again.a
        },
        seal: async () => {
          placement.sealed = true
          placement.log.push('sealed')
        },
        unseal: async () => {
          placement.sealed = false
          placement.log.push('unsealed')
        },
        isPlaced: async () => placement.host === to,
        log: (line) => kit.logs.push(`out: ${line}`),
        ...means.ports,
      },
      means.signal ?? never,
    )
    await arrivals.get(job)?.over
    return { report, placement, arrivals, job }
  } finally {
    stop.abort()
  }
}

/** A clock in the guest that says on the serial line every so often that it ticks; and a pattern in memory with its sum. */
export const TICKS = `(while :; do read up _ </proc/uptime; echo "tick $up" >/dev/ttyS0; usleep 50000; done) >/dev/null 2>&1 &
mkdir -p /fill; mount -t tmpfs none /fill; dd if=/dev/urandom of=/fill/kept bs=1M count=8 2>/dev/null; md5sum </fill/kept`
/** Writes so many MiB of RAM over and over, with a breath in between for the agent. The same bytes do: QEMU looks at pages, not at what is in them. */
export const dirty = (mib: number, name = 'hot') =>
  `dd if=/fill/kept of=/fill/${name} bs=1M count=${mib} 2>/dev/null
(while :; do dd if=/fill/kept of=/fill/${name} bs=1M count=${mib} conv=notrunc; usleep 5000; done) >/dev/null 2>&1 &`
/** The same with pages that differ, without a breath. */
export const writing = (mib: number) =>
  `for i in $(seq ${Math.ceil(mib / 8)}); do cat /fill/kept; done | dd of=/fill/hot bs=1M count=${mib} iflag=fullblock 2>/dev/null
(while :; do dd if=/fill/hot of=/fill/hot bs=1M count=${mib} conv=notrunc; done) >/dev/null 2>&1 &`

export function ticksOf(text: string): number[] {
  return [...text.matchAll(/tick (\d+\.\d+)/g)].map((m) => Number(m[1]))
}
