/** Hosts, VMs and snapshots for tests: plain ones with what matters said, and random small ones. */
import fc from 'fast-check'
import type { HostView, Rule, Snapshot, VmView } from '../../src/snapshot.ts'

export const NOW = 1_800_000_000_000

export function host(id: string, o: Partial<HostView> = {}): HostView {
  return {
    id,
    name: id,
    state: 'up',
    memory_mib: 8192,
    reserved_mib: 0,
    cpus: 8,
    load: { cores: 0, at_ms: NOW },
    pools: [{ id: 'shared', name: 'shared', shared: true }],
    networks: ['lan'],
    accelerator: 'kvm',
    cpu_flags: ['sse4.2', 'avx'],
    qemu_version: '7.2.22',
    machine_types: ['pc-q35-7.2'],
    labels: {},
    link_bytes_per_s: 100_000_000,
    ...o,
  }
}

export function vm(id: string, at: string | undefined, o: Partial<VmView> = {}): VmView {
  return {
    id,
    name: id,
    ...(at === undefined ? {} : { host: at }),
    state: 'running',
    memory_mib: 1024,
    cpus: 1,
    load: { cores: 0.1, at_ms: NOW },
    disks: [{ pool: 'shared', shared: true, bytes: 2 ** 30 }],
    networks: ['lan'],
    dirty_bytes_per_s: 0,
    labels: {},
    ...o,
  }
}

export function snapshot(hosts: HostView[], vms: VmView[], o: Partial<Snapshot> = {}): Snapshot {
  return { now_ms: NOW, hosts, vms, moving: [], reserved: [], rules: [], history: [], ...o }
}

/** A copy that lacks one thing. */
export function without<T extends object, K extends keyof T>(it: T, key: K): Omit<T, K> {
  const { [key]: _, ...rest } = it
  return rest
}

export function rule(id: string, kind: 'apart' | 'together', ids: string[], strict = true): Rule {
  return { id, name: id, kind, strict, vms: { ids } }
}

const maybe = <T>(one: fc.Arbitrary<T>) => fc.option(one, { nil: undefined, freq: 4 })
const some = <K extends string, T>(key: K, value: T | undefined): { [k in K]?: T } =>
  (value === undefined ? {} : { [key]: value }) as { [k in K]?: T }
const sometimes = <T>(rare: T, usual: T, weight = 6) =>
  fc.oneof({ weight, arbitrary: fc.constant(usual) }, { weight: 1, arbitrary: fc.constant(rare) })
const GIB = 2 ** 30

const anyHost = (i: number): fc.Arbitrary<HostView> =>
  fc
    .record({
      state: fc.oneof(
        { weight: 8, arbitrary: fc.constant('up' as const) },
        { weight: 1, arbitrary: fc.constantFrom('down' as const, 'maintenance' as const, 'draining' as const) },
      ),
      memory_mib: fc.integer({ min: 2, max: 12 }).map((n) => n * 512),
      reserved_mib: fc.constantFrom(0, 0, 512),
      load: maybe(fc.record({ cores: fc.constantFrom(0, 1, 3.3, 9), at_ms: fc.constantFrom(NOW, NOW - 600_000) })),
      promised_mib: maybe(fc.integer({ min: 0, max: 6 }).map((n) => n * 512)),
      shared: sometimes(false, true),
      room: maybe(fc.integer({ min: 0, max: 8 }).map((n) => n * GIB)),
      lan: sometimes(false, true),
      accelerator: sometimes<'kvm' | 'tcg'>('tcg', 'kvm'),
      flags: sometimes(['sse4.2'], ['sse4.2', 'avx']),
      qemu_version: sometimes('6.2.0', '7.2.22'),
      zone: fc.constantFrom('a', 'b'),
    })
    .map(({ shared, room, lan, flags, load, promised_mib, zone, ...rest }) => {
      const local = { id: `local-${i}`, name: 'local', shared: false, ...some('free_bytes', room) }
      const { load: _, ...plain } = host(`h${i}`)
      return {
        ...plain,
        ...rest,
        ...some('load', load),
        ...some('promised_mib', promised_mib),
        pools: [...(shared ? plain.pools : []), local],
        networks: lan ? ['lan', 'user'] : ['user'],
        cpu_flags: flags,
        labels: { zone },
      }
    })

const anyVm = (i: number, hosts: number): fc.Arbitrary<VmView> =>
  fc
    .record({
      at: fc.nat(hosts - 1),
      state: fc.oneof(
        { weight: 8, arbitrary: fc.constant('running' as const) },
        { weight: 2, arbitrary: fc.constant('stopped' as const) },
        { weight: 1, arbitrary: fc.constantFrom('paused' as const, 'starting' as const, 'unknown' as const) },
      ),
      memory_mib: fc.integer({ min: 1, max: 6 }).map((n) => n * 512),
      cpus: fc.integer({ min: 1, max: 4 }),
      load: maybe(fc.record({ cores: fc.constantFrom(0, 0.7, 2), at_ms: fc.constantFrom(NOW, NOW - 600_000) })),
      local: sometimes(true, false, 4),
      bytes: fc.integer({ min: 1, max: 3 }).map((n) => n * GIB),
      networks: fc.constantFrom(['lan'], ['user'], []),
      machine: fc.constantFrom(undefined, 'pc-q35-7.2'),
      accelerator: fc.constantFrom(undefined, 'kvm' as const),
      cpu_flags: fc.constantFrom(undefined, ['avx']),
      qemu_version: fc.constantFrom(undefined, '7.2.1'),
      tier: fc.constantFrom('web', 'db', 'none'),
      passthrough: sometimes(['gpu'], undefined as string[] | undefined, 15),
      pinned: sometimes('h0', undefined as string | undefined, 15),
      dirty: maybe(fc.constantFrom(0, 5_000_000, 500_000_000)),
    })
    .map(({ at, local, bytes, tier, load, machine, accelerator, cpu_flags, qemu_version, ...rest }) => {
      const { load: _, dirty_bytes_per_s: __, ...plain } = vm(`v${i}`, `h${at}`)
      const { passthrough, pinned, dirty, ...said } = rest
      return {
        ...plain,
        ...said,
        ...some('load', load),
        ...some('machine', machine),
        ...some('accelerator', accelerator),
        ...some('cpu_flags', cpu_flags),
        ...some('qemu_version', qemu_version),
        ...some('passthrough', passthrough),
        ...some('pinned', pinned),
        ...some('dirty_bytes_per_s', dirty),
        disks: [local ? { pool: `local-${at}`, shared: false, bytes } : { pool: 'shared', shared: true, bytes }],
        labels: { tier },
      }
    })

const anyRule = (i: number, vms: number): fc.Arbitrary<Rule> =>
  fc
    .record({
      kind: fc.constantFrom('apart' as const, 'together' as const, 'on' as const, 'not_on' as const),
      strict: fc.boolean(),
      vms: fc.oneof(
        fc.record({ labels: fc.record({ tier: fc.constantFrom('web', 'db') }) }),
        fc.record({
          ids: fc.uniqueArray(
            fc.nat(vms).map((n) => `v${n}`),
            { maxLength: 4 },
          ),
        }),
      ),
      zone: fc.constantFrom('a', 'b'),
    })
    .map(({ kind, strict, vms: who, zone }): Rule => {
      const named = { id: `r${i}`, name: `r${i}`, strict, vms: who }
      return kind === 'apart' || kind === 'together'
        ? { ...named, kind }
        : { ...named, kind, hosts: { labels: { zone } } }
    })

/** Two to five hosts, up to fourteen VMs, rules, a move and a reservation; `h0` is the one to look at. */
export const anySnapshot: fc.Arbitrary<Snapshot> = fc
  .record({ hosts: fc.integer({ min: 2, max: 5 }), vms: fc.nat(14), rules: fc.nat(3) })
  .chain((n) =>
    fc.record({
      hosts: fc.tuple(...Array.from({ length: n.hosts }, (_, i) => anyHost(i))),
      vms: fc.tuple(...Array.from({ length: n.vms }, (_, i) => anyVm(i, n.hosts))),
      rules: fc.tuple(...Array.from({ length: n.rules }, (_, i) => anyRule(i, n.vms))),
      moving: maybe(fc.record({ vm: fc.nat(14), to: fc.nat(n.hosts - 1) })),
      reserved: maybe(fc.record({ host: fc.nat(n.hosts - 1), memory_mib: fc.constant(512), bytes: fc.constant(GIB) })),
      failed: maybe(fc.record({ vm: fc.nat(14), to: fc.nat(n.hosts - 1) })),
    }),
  )
  .map(({ hosts, vms, rules, moving, reserved, failed }): Snapshot => {
    const moved = moving === undefined ? undefined : vms[moving.vm]
    return {
      now_ms: NOW,
      hosts,
      vms,
      rules,
      moving:
        moving && moved?.host !== undefined && moved.host !== `h${moving.to}`
          ? [{ vm: moved.id, from: moved.host, to: `h${moving.to}` }]
          : [],
      reserved: reserved
        ? [
            {
              host: `h${reserved.host}`,
              memory_mib: reserved.memory_mib,
              cpus: 1,
              pools: { [`local-${reserved.host}`]: reserved.bytes },
            },
          ]
        : [],
      history: failed
        ? [{ vm: `v${failed.vm}`, from: 'h0', to: `h${failed.to}`, at_ms: NOW - 1000, ended: 'failed' }]
        : [],
    }
  })

/** The same snapshot with every list in another order. */
export function shuffled(s: Snapshot, seed: number): Snapshot {
  let state = seed >>> 0
  const next = () => (state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0)
  const mix = <T>(list: readonly T[]): T[] => {
    const keyed = list.map((it): [number, T] => [next(), it])
    return keyed.sort((a, b) => a[0] - b[0]).map(([, it]) => it)
  }
  return {
    ...s,
    hosts: mix(s.hosts).map((h) => ({
      ...h,
      pools: mix(h.pools),
      networks: mix(h.networks),
      cpu_flags: mix(h.cpu_flags),
    })),
    vms: mix(s.vms),
    moving: mix(s.moving),
    reserved: mix(s.reserved),
    rules: mix(s.rules),
    history: mix(s.history),
  }
}
