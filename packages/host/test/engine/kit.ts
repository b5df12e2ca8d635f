/** A real machine for tests: real QEMU, the tiny guest, a pool in a temporary folder; networks are `user` only. */
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { randomBytes } from 'node:crypto'
import { newId } from '@wadah/api/ids'
import type { VmSpec } from '@wadah/api/schema/vm'
import type { Images } from '@wadah/ports/images'
import type { LaunchRequest } from '@wadah/ports/machine'
import type { Networks } from '@wadah/ports/networks'
import { HostMachine } from '../../src/engine/machine.ts'
import { buildTiny } from '../../src/images/tiny.ts'
import { createVolumes } from '../../src/storage/volumes.ts'

export const CACHE = process.env['WADAH_TEST_CACHE'] ?? resolve(import.meta.dirname, '../../../../.cache')

export const noNetworks: Networks = {
  apply: async () => [],
  support: async () => ({ nat: false }),
  propose: async () => ({ subnet: '', gateway: '', bridge: '' }),
  judge: async () => undefined,
  portFree: async () => true,
  attach: async () => ({ ifname: '' }),
  detach: async () => {},
  limit: async () => {},
  taps: async () => [],
  removeAll: async () => {},
}

export async function machineKit(networks: Networks = noNetworks) {
  const tiny = await buildTiny({ outDir: `${CACHE}/tiny`, cacheDir: CACHE, agent: true })
  const dir = await mkdtemp(join(tmpdir(), 'wadah-engine-'))
  const { chmod } = await import('node:fs/promises')
  await chmod(dir, 0o711)
  const images = {
    files: async () => ({ kernel: tiny.kernel, initrd: tiny.initrd, size_bytes: 0 }),
  } as unknown as Images
  const logs: string[] = []
  const open = () =>
    HostMachine.open({
      dataDir: `${dir}/data`,
      cgroup: `wadah-test-${process.pid}`,
      qemu: '/usr/bin/qemu-system-x86_64',
      volumes: createVolumes({ allowedDirs: [dir] }),
      networks,
      images,
      imports: {} as never,
      log: (line) => logs.push(line),
      now_ms: Date.now,
      probeUid: 210_000,
    })
  const machine = await open()
  let uid = 210_001 + Math.floor(Math.random() * 5000)
  const request = (over: Partial<VmSpec> = {}, cmdline = ''): LaunchRequest => {
    const vm = newId('vm', randomBytes)
    return {
      vm,
      name: 'tiny',
      epoch: 1,
      spec: {
        cpus: 1,
        memory_mib: 96,
        machine: 'q35',
        boot: { kind: 'kernel', image: 'img-aaaaaaaaaa', cmdline: '' },
        disks: [],
        nics: [],
        limits: {},
        balloon_mib: null,
        seed: { hostname: 'tiny', has_password: false, ssh_keys: [] },
        uid: uid++,
        ...over,
      },
      disks: [],
      nics: [],
      kernel: { image: 'img-aaaaaaaaaa', cmdline: `${tiny.cmdline} ${cmdline}`, has_initrd: true },
      seed: { hostname: 'tiny' },
    }
  }
  return {
    dir,
    machine,
    open,
    logs,
    request,
    async close(machines: HostMachine[] = [machine]) {
      const last = machines.at(-1) as HostMachine
      for (const vm of await last.known()) await last.forget(vm)
      await last.cgroups.removeAll()
      for (const m of machines) await m.close()
      await rm(dir, { recursive: true, force: true })
    },
  }
}

/** Waits until `ok` says so; every wait has an end. */
export async function until<T>(
  what: string,
  ok: () => Promise<T | undefined | false> | T | undefined | false,
  timeout_ms = 60_000,
): Promise<T> {
  const end = performance.now() + timeout_ms
  for (;;) {
    const value = await ok()
    if (value) return value
    if (performance.now() > end) throw new Error(`gave up waiting for ${what}`)
    await new Promise((resolve) => setTimeout(resolve, 25))
  }
}
