/** A machine in memory: files, taps and QEMUs as plain sets, so that what a job leaves can be compared. */
import { fail } from '@wadah/api/fault'
import type { DiskCopy } from '@wadah/ports/disk-moves'
import type { DevicesFound } from '@wadah/ports/devices'
import type { BootPlan, BootRecord, HostOffers, LaunchRequest, Machine, Observed, Running } from '@wadah/ports/machine'
import type { ByteStream, ServedVolume, VolumeWork } from '@wadah/ports/volumes'
import type { MergeRequest, SnapshotRequest, SnapshotTaken } from '@wadah/ports/snapshots'

export class FakeWorld {
  files = new Set<string>()
  /** Sizes that volumes and disks were grown to. */
  sizes = new Map<string, number>()
  folders = new Set<string>()
  /** Files of a VM's own, beside its disks. */
  states = new Map<string, Record<string, string>>()
  /** What each file takes, bytes. */
  allocated = 4096
  /** Disks that somebody may read now. */
  served = new Set<string>()
  taps = new Set<string>()
  running = new Set<string>()
  builds = new Set<string>()
  kernels = new Set<string>()
  /** Files of imports and exports that are under way. */
  staged = new Set<string>()
  /** What an import is found to have, MiB each. */
  found = [8, 16]
  paused = new Set<string>()
  /** `vm/disk` → the volume that a running VM writes to. */
  heads = new Map<string, string>()
  /** `vm/disk` → the file that a running VM writes to, once its disk went to another. */
  disks = new Map<string, string>()
  /** `vm/disk>file`: disks that are being copied. */
  copies = new Set<string>()
  /** Files that were put aside. */
  aside = new Set<string>()
  /** `vm/snapshot`: state that was put aside. */
  kept = new Set<string>()
  /** Images whose template's RAM is kept. */
  warm = new Set<string>()
  /** Instant clones whose network is up. */
  connected = new Set<string>()
  /** Merges that were done, `from>into`. */
  merges: string[] = []
  /** Why RAM can't be saved; the disks are switched by then. */
  noRam: string | undefined
  /** Why layers can't be merged. */
  noMerge: string | undefined
  /** Held by our own doing until it is resumed. */
  held = new Set<string>()
  /** Guests do not hear the power button; `wholly`: nor their agents. */
  deaf: false | 'button' | 'wholly' = false
  seen: Observed[] = []
  wake: (() => void) | undefined
  tell(seen: Observed): void {
    this.seen.push(seen)
    this.wake?.()
  }
  tpm = true
  devices: DevicesFound = { iommu: false, pci: [], usb: [] }
  /** No plan of a start can be made. */
  planFails = false
  /** RAM of VMs that run, and how far it can grow. */
  memory = new Map<string, number>()
  mostMemory = Number.POSITIVE_INFINITY
  /** How many NICs a running VM can have. */
  nicPorts = 8
  /** Guests do not let go of their NICs. */
  clings = false
  /** How many more volumes there is room for. */
  full = Number.POSITIVE_INFINITY
  /** Volumes are copied until this is resolved. */
  copying: Promise<void> | undefined
  /** A pool's folder is being removed until this is resolved. */
  closing: Promise<void> | undefined
  boot = 'boot-1'
  /** What VMs were started with here. */
  epoch = 1
  /** VMs whose adoption goes wrong. */
  odd = new Set<string>()

  snapshot(): unknown {
    return {
      files: [...this.files].sort(),
      folders: [...this.folders].sort(),
      states: [...this.states].sort(),
      served: [...this.served].sort(),
      taps: [...this.taps].sort(),
      running: [...this.running].sort(),
      builds: [...this.builds].sort(),
      kernels: [...this.kernels].sort(),
      sizes: [...this.sizes],
      staged: [...this.staged].sort(),
      heads: [...this.heads].sort(),
      disks: [...this.disks].sort(),
      copies: [...this.copies].sort(),
      aside: [...this.aside].sort(),
      kept: [...this.kept].sort(),
      warm: [...this.warm].sort(),
      connected: [...this.connected].sort(),
      held: [...this.held].sort(),
    }
  }
}

/** Only what jobs and services use; anything else is a mistake of the test. */
export function fakeMachine(w: FakeWorld): Machine {
  const requests = new Map<string, LaunchRequest>()
  const running = (vm: string): Running | undefined =>
    w.running.has(vm)
      ? ({ vm, pid: 42, gone: new Promise(() => {}), execute: async () => ({}), record: {} } as unknown as Running)
      : undefined
  const observed = (vm: string): Observed => ({
    vm,
    at_ms: 1000,
    ...(w.running.has(vm)
      ? {
          ...(w.held.has(vm)
            ? { state: 'paused', paused_by: 'job' }
            : w.paused.has(vm)
              ? { state: 'paused', paused_by: 'user' }
              : { state: 'running' }),
          pid: 42,
          epoch: 1,
          accelerator: 'tcg',
        }
      : { state: 'stopped' }),
  })
  const file = (pool: { id: string }, volume: { id: string; format: string }) =>
    `${pool.id}/${volume.id}.${volume.format}`
  const clean = async (vm: string) => {
    if (w.running.delete(vm)) w.tell(observed(vm))
    w.held.delete(vm)
    w.connected.delete(vm)
    for (const head of [...w.heads.keys()]) if (head.startsWith(`${vm}/`)) w.heads.delete(head)
    for (const tap of [...w.taps]) if (tap.startsWith(`${vm}/`)) w.taps.delete(tap)
  }
  const machine = {
    load: async () => ({ vms: {} }),
    facts: async () => ({
      memory_mib: 8192,
      memory_free_mib: 8000,
      cpus: 2,
      attention: [],
      ...(await machine.offers()),
    }),
    offers: async (): Promise<HostOffers> => ({
      accelerator: 'tcg',
      qemu_version: '7.2.0',
      firmware: ['bios', 'uefi'],
      tpm: w.tpm,
    }),
    inspect: async () => [],
    outdated: async () => [],
    devices: async () => w.devices,
    bootId: async () => w.boot,
    observe: async (vm: string) => observed(vm),
    async *observations(signal: AbortSignal) {
      while (!signal.aborted) {
        const seen = w.seen.shift()
        if (seen) yield seen
        else
          await new Promise<void>((resolve) => {
            w.wake = resolve
            signal.addEventListener('abort', () => resolve(), { once: true })
          })
      }
    },
    known: async () => [...w.folders],
    lastEpoch: async (vm: string) => (w.folders.has(vm) ? w.epoch : undefined),
    plan: async (request: LaunchRequest) => {
      if (w.planFails) throw fail('host_lacks', 'no firmware')
      requests.set(request.vm, request)
      for (const nic of request.nics) if (nic.network.kind !== 'user') w.taps.add(`${request.vm}/${nic.name}`)
      return { record: { vm: request.vm }, local: {} } as unknown as BootPlan
    },
    prepare: async (plan: BootPlan) => void w.folders.add(plan.record.vm),
    launch: async (plan: BootPlan) => {
      const { vm } = plan.record
      for (const disk of requests.get(vm)?.disks ?? []) {
        for (const layer of disk.chain) {
          if (!w.files.has(file(disk.pool, layer))) throw fail('qemu_failed', `no file ${layer.id}`)
        }
      }
      w.running.add(vm)
      for (const disk of requests.get(vm)?.disks ?? []) w.heads.set(`${vm}/${disk.name}`, disk.chain[0]?.id ?? '')
      const restore = requests.get(vm)?.restore
      const image = requests.get(vm)?.instant?.image
      if (image !== undefined && !w.warm.has(image)) throw fail('qemu_failed', 'no template')
      if (restore && !w.files.has(file(restore.pool, restore.volume))) throw fail('qemu_failed', 'no RAM')
      w.memory.set(vm, requests.get(vm)?.spec.memory_mib ?? 0)
      return running(vm) as Running
    },
    attach: async (vm: string) => {
      if (w.odd.has(vm)) throw fail('tool_failed', 'its folder cannot be read')
      return running(vm)
    },
    running,
    clean,
    forget: async (vm: string) => {
      await clean(vm)
      for (const kept of [...w.kept]) if (kept.startsWith(`${vm}/`)) w.kept.delete(kept)
      w.folders.delete(vm)
      w.states.delete(vm)
    },
    powerDown: async (vm: string) => {
      if (!w.deaf && w.running.delete(vm)) w.tell({ ...observed(vm), by_guest: true })
    },
    agentPowerDown: async (vm: string) => {
      if (w.deaf === 'wholly') throw fail('agent_silent', 'no agent')
      if (w.running.delete(vm)) w.tell({ ...observed(vm), by_guest: true })
    },
    stop: async (vm: string) => clean(vm),
    waitStopped: async (vm: string, timeout_ms: number, signal: AbortSignal) => {
      if (w.running.has(vm)) {
        await new Promise((resolve) => {
          setTimeout(resolve, timeout_ms)
          signal.addEventListener('abort', resolve, { once: true })
        })
        signal.throwIfAborted()
      }
      return w.running.has(vm) ? undefined : observed(vm)
    },
    reset: async () => {},
    pause: async (vm: string) => {
      w.paused.add(vm)
      w.tell(observed(vm))
    },
    resume: async (vm: string) => {
      w.held.delete(vm)
      w.paused.delete(vm)
      w.tell(observed(vm))
    },
    applyLimits: async () => {},
    setMedium: async () => {},
    plugDisks: async (request: LaunchRequest) => request.spec.disks.map((d) => d.name),
    unplugDisk: async () => {},
    plugNics: async (request: LaunchRequest) => {
      const there = request.spec.nics.slice(0, w.nicPorts).map((n) => n.name)
      for (const nic of request.nics)
        if (nic.network.kind === 'nat' && there.includes(nic.name)) w.taps.add(`${request.vm}/${nic.name}`)
      return there
    },
    growMemory: async ({ vm, spec }: LaunchRequest) => {
      const has = w.memory.get(vm) ?? 0
      if (spec.memory_mib > has && spec.memory_mib <= w.mostMemory) w.memory.set(vm, spec.memory_mib)
      return w.memory.get(vm) ?? 0
    },
    unplugNic: async (vm: string, nic: string) => {
      if (w.clings) throw fail('busy', `The guest did not let go of the NIC "${nic}".`, { effect: 'unknown' })
      w.taps.delete(`${vm}/${nic}`)
    },
    growDisk: async (_vm: string, disk: string, to: number) => void w.sizes.set(disk, to),
    copyState: async (_from: string, to: string) => void w.folders.add(to),
    readState: async (vm: string) => w.states.get(vm) ?? {},
    writeState: async (vm: string, state: Record<string, string>) => {
      w.folders.add(vm)
      w.states.set(vm, state)
    },
    screenshot: async () => new Uint8Array(),
    serialLog: async () => ({ text: '', size_bytes: 0 }),
    check: async () => ({ ok: true, detail: 'HTTP 200', took_ms: 1 }),
    snapshots: {
      heads: async (vm: string) =>
        w.running.has(vm)
          ? Object.fromEntries(
              [...w.heads].filter(([k]) => k.startsWith(`${vm}/`)).map(([k, v]) => [k.slice(vm.length + 1), v]),
            )
          : undefined,
      take: async ({ vm, layers, ram }: SnapshotRequest): Promise<SnapshotTaken> => {
        if (!w.running.has(vm)) return { consistency: 'off' }
        for (const l of layers)
          if (!w.files.has(file(l.pool, l.volume))) throw fail('not_found', `no file ${l.volume.id}`)
        const missing = layers.filter((l) => w.heads.get(`${vm}/${l.disk}`) !== l.volume.id)
        for (const l of missing) w.heads.set(`${vm}/${l.disk}`, l.volume.id)
        if (!ram) return { consistency: 'frozen', frozen_ms: 3 }
        if (w.noRam !== undefined || missing.length < layers.length)
          return { consistency: 'crash', note: w.noRam ?? 'again' }
        w.files.add(file(ram.pool, ram.volume))
        const boot = { vm, accelerator: 'tcg', devices: [] } as unknown as BootRecord
        return { consistency: 'ram', stall_ms: 5, ram: { bytes: 4096, boot, qemu_version: '7.2.0', save_ms: 9 } }
      },
      merge: async ({ vm, disk, pool, chain, active }: MergeRequest) => {
        const [from, into] = chain as unknown as [{ id: string; format: string }, { id: string; format: string }]
        for (const v of [from, into]) if (!w.files.has(file(pool, v))) throw fail('not_found', `no file ${v.id}`)
        if (w.noMerge !== undefined) throw fail('no_room', w.noMerge)
        w.merges.push(`${from.id}>${into.id}`)
        if (!w.running.has(vm) || !active) return { paused: false }
        if (w.heads.get(`${vm}/${disk}`) === from.id) {
          w.heads.set(`${vm}/${disk}`, into.id)
          w.held.add(vm)
        }
        return { paused: w.held.has(vm) }
      },
      keepState: async (vm: string, snapshot: string) => void w.kept.add(`${vm}/${snapshot}`),
      restoreState: async () => {},
      dropState: async (vm: string, snapshot: string) => void w.kept.delete(`${vm}/${snapshot}`),
      readKept: async (vm: string, snapshot: string) =>
        w.kept.has(`${vm}/${snapshot}`) ? { 'nvram.fd': 'dmFycw==' } : {},
      writeKept: async (vm: string, snapshot: string) => {
        w.folders.add(vm)
        w.kept.add(`${vm}/${snapshot}`)
      },
    },
    diskMoves: {
      copy: async (m: DiskCopy) => {
        const [key, to] = [`${m.vm}/${m.disk}`, file(m.to.pool, m.to.volume)]
        if (!w.running.has(m.vm)) throw fail('wrong_state', 'it ended')
        if (!w.files.has(to)) throw fail('not_found', `no file ${to}`)
        if (w.disks.get(key) === to) return
        w.copies.add(`${key}>${to}`)
        await w.copying
      },
      drop: async (m: DiskCopy) => {
        const [key, to] = [`${m.vm}/${m.disk}`, file(m.to.pool, m.to.volume)]
        if (w.disks.get(key) === to) throw fail('wrong_state', 'it is the new file', { effect: 'unknown' })
        w.copies.delete(`${key}>${to}`)
      },
      switch: async (m: DiskCopy) => {
        const [key, from, to] = [`${m.vm}/${m.disk}`, file(m.from.pool, m.from.volume), file(m.to.pool, m.to.volume)]
        if (!w.running.has(m.vm) && w.files.has(from)) throw fail('wrong_state', 'it ended')
        if (!w.running.has(m.vm) || w.disks.get(key) === to) return {}
        if (!w.copies.delete(`${key}>${to}`)) throw fail('qemu_failed', 'nothing was copied')
        w.disks.set(key, to)
        if (w.files.delete(from)) w.aside.add(from)
        return { stall_ms: 7 }
      },
      settle: async () => {},
    },
    warm: {
      make: async (image: string, request: LaunchRequest) => {
        for (const disk of request.disks)
          for (const layer of disk.chain)
            if (!w.files.has(file(disk.pool, layer))) throw fail('qemu_failed', `no file ${layer.id}`)
        w.warm.add(image)
        return { boot: { vm: request.vm, accelerator: 'tcg', devices: [] }, qemu_version: '7.2.0', ram_bytes: 4096 }
      },
      drop: async (image: string) => void w.warm.delete(image),
      connect: async (vm: string) => {
        if (!w.running.has(vm)) throw fail('wrong_state', 'it does not run')
        w.connected.add(vm)
      },
      whole: async (vm: string) => {
        if (w.connected.has(vm) || !w.running.has(vm)) return w.running.has(vm)
        await clean(vm)
        return false
      },
    },
    volumes: {
      openPool: async () => ({ capacity_bytes: 2 ** 40, free_bytes: 2 ** 40, direct_io: true, file_system: 'ext4' }),
      facts: async () => ({ capacity_bytes: 100 * 2 ** 30, free_bytes: 2 ** 36, direct_io: true, file_system: 'ext4' }),
      closePool: async () => w.closing,
      path: (pool: { id: string }, v: { id: string; format: string }) => file(pool, v),
      create: async (pool: { id: string }, v: { id: string; format: string }) => {
        if (w.full-- <= 0) throw fail('no_room', 'the pool is full')
        w.files.add(file(pool, v))
      },
      clone: async (
        pool: { id: string },
        from: { pool: { id: string }; volume: { id: string; format: string } },
        to: { id: string; format: string },
      ) => {
        if (!w.files.has(file(from.pool, from.volume))) throw fail('not_found', 'the source is not there')
        await w.copying
        w.files.add(file(pool, to))
      },
      serve: async (pool: { id: string }, v: { id: string; format: string }): Promise<ServedVolume> => {
        const name = file(pool, v)
        if (!w.files.has(name)) throw fail('not_found', `no file ${name}`)
        w.served.add(name)
        const over = Promise.withResolvers<void>()
        return {
          data: (async function* () {
            yield Buffer.from(`what is in ${v.id}`)
            await over.promise
          })(),
          write: () => undefined,
          close: () => {
            w.served.delete(name)
            over.resolve()
          },
          ended: over.promise,
        }
      },
      receive: async (
        pool: { id: string },
        v: { id: string; format: string },
        from: { stream: ByteStream },
        { signal, progress }: VolumeWork,
      ) => {
        if (w.full-- <= 0) throw fail('no_room', 'the pool is full')
        if (w.files.has(file(pool, v))) throw fail('conflict', 'a volume of this name is there')
        let text = ''
        for await (const part of from.stream.data) {
          text += Buffer.from(part).toString()
          break
        }
        if (text !== `what is in ${v.id}`) throw fail('unavailable', `the stream held "${text}"`)
        progress?.(1, 2)
        await w.copying
        signal.throwIfAborted()
        w.files.add(file(pool, v))
      },
      grow: async (_pool: { id: string }, v: { id: string }, to: number) => void w.sizes.set(v.id, to),
      adopt: async (pool: { id: string }, _file: string, v: { id: string; format: string }) =>
        void w.files.add(file(pool, v)),
      grant: async (pool: { id: string }, v: { id: string; format: string }) => {
        if (!w.files.has(file(pool, v))) throw fail('not_found', `no file ${v.id}`)
      },
      delete: async (pool: { id: string }, v: { id: string; format: string }) => {
        w.files.delete(file(pool, v))
        w.aside.delete(file(pool, v))
      },
      exists: async (pool: { id: string }, v: { id: string; format: string }) => w.files.has(file(pool, v)),
      allocatedBytes: async () => w.allocated,
      list: async () => [],
    },
    imports: {
      receive: async (pool: { id: string }, id: string, data: AsyncIterable<Uint8Array>) => {
        w.staged.add(`${pool.id}/${id}`)
        let size_bytes = 0
        for await (const part of data) size_bytes += part.length
        return { size_bytes, sha256: 'a'.repeat(64) }
      },
      checkUrl: (url: string) => {
        if (!url.startsWith('http')) throw fail('invalid', 'no URL')
      },
      download: async (pool: { id: string }, id: string) => {
        w.staged.add(`${pool.id}/${id}`)
        return { size_bytes: 1000, sha256: 'b'.repeat(64) }
      },
      inspect: async (pool: { id: string }, id: string) => {
        if (!w.staged.has(`${pool.id}/${id}`)) throw fail('not_found', 'nothing came in')
        return {
          format: 'ova',
          disks: w.found.map((mib) => ({ format: 'vmdk', size_bytes: mib * 2 ** 20 })),
          hardware: { cpus: 2, memory_mib: 768, nics: 2, firmware: 'bios' },
          notes: ['a note'],
        }
      },
      convert: async (pool: { id: string }, id: string, _disk: unknown, v: { id: string; format: string }) => {
        if (w.files.has(file(pool, v))) return
        if (!w.staged.has(`${pool.id}/${id}`)) throw fail('not_found', 'nothing came in')
        w.files.add(file(pool, v))
      },
      pack: async (
        pool: { id: string },
        id: string,
        request: { volumes: { pool: { id: string }; volume: { id: string; format: string } }[] },
      ) => {
        for (const v of request.volumes)
          if (!w.files.has(file(v.pool, v.volume))) throw fail('not_found', `no file ${v.volume.id}`)
        w.staged.add(`${pool.id}/${id}`)
        return { size_bytes: 1 }
      },
      async *read(pool: { id: string }, id: string) {
        if (!w.staged.has(`${pool.id}/${id}`)) throw fail('not_found', 'nothing was made')
        yield Buffer.from('content')
      },
      clean: async (pool: { id: string }, id: string) => void w.staged.delete(`${pool.id}/${id}`),
      list: async (pool: { id: string }) =>
        [...w.staged].filter((s) => s.startsWith(`${pool.id}/`)).map((s) => s.slice(pool.id.length + 1)),
    },
    networks: {
      apply: async () => [],
      support: async () => ({ nat: true }),
      propose: async (_id: string, taken: readonly string[]) => {
        const n = Array.from({ length: 9 }, (_, i) => i).find((i) => !taken.includes(`10.9.${i}.0/24`))
        return { subnet: `10.9.${n}.0/24`, gateway: `10.9.${n}.1`, bridge: `wbr${n}` }
      },
      judge: async (n: { bridge?: string; nic?: string }) =>
        n.nic === 'eth0' ? { reason: 'The NIC eth0 carries 192.0.2.1.', remedy: 'another one' } : undefined,
      portFree: async (_p: string, _a: string, port: number) => port !== 999,
      attach: async () => ({ ifname: 'tap' }),
      detach: async (vm: string, nic: string) => void w.taps.delete(`${vm}/${nic}`),
      limit: async () => {},
      taps: async () =>
        [...w.taps].map((tap) => ({ ifname: tap, vm: tap.split('/')[0] ?? '', nic: tap.split('/')[1] ?? '' })),
      removeAll: async () => {},
    },
    images: {
      recipes: async () => [],
      checkRecipe: async (name: string) => {
        if (name !== 'web') throw fail('not_found', `no recipe ${name}`, { field: '/recipe' })
      },
      build: async (image: string) => {
        w.builds.add(image)
        await w.copying
        return {
          kind: 'disk',
          disk: { file: '/x', format: 'qcow2', virtual_size_bytes: 2 ** 30, sha256: 'aa' },
          kernel_version: '6',
          packages: [],
          min_memory_mib: 256,
          agent: true,
          service: { kind: 'http', port: 80, path: '/' },
          description: '',
        }
      },
      cleanBuild: async (image: string) => void w.builds.delete(image),
      putFile: async () => ({ size_bytes: 1, sha256: '' }),
      files: async () => ({ size_bytes: 0 }),
      delete: async (image: string) => void w.kernels.delete(image),
    },
  }
  return machine as unknown as Machine
}
