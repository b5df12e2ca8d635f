/**
 * Placing and draining in a big cluster, against ten lines of greedy that look at memory, pools and networks alone. What the scheduler
 * adds (rules, load, reasons, what is under way, plans that fit at every moment) is what the ratio pays for.
 */
import { Books } from '@wadah/scheduler/books'
import { Compiled } from '@wadah/scheduler/compiled'
import { drain } from '@wadah/scheduler/drain'
import { accept, placeIn } from '@wadah/scheduler/place'
import type { HostView, Rule, Snapshot, VmView } from '@wadah/scheduler/snapshot'
import type { Bench } from './kit.ts'
import { absolute, compare } from './report.ts'

const NOW = 1_800_000_000_000
const [HOSTS, VMS] = [1000, 10_000]
const MEMORY = [1024, 2048, 2048, 4096, 8192]

/** The same numbers on every machine. */
function numbers(seed: number): (n: number) => number {
  let state = seed
  return (n) => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0
    return Math.floor((state / 2 ** 32) * n)
  }
}

function world(hosts: number, vms: number, seed: number): { hosts: HostView[]; vms: VmView[]; rules: Rule[] } {
  const next = numbers(seed)
  const flags = Array.from({ length: 60 }, (_, i) => `flag${i}`)
  return {
    hosts: Array.from({ length: hosts }, (_, i) => ({
      id: `host-${i}`,
      name: `host-${i}`,
      state: 'up',
      memory_mib: 65_536,
      reserved_mib: 2048,
      cpus: 32,
      load: { cores: next(8), at_ms: NOW },
      pools: [
        { id: `pool-${i % 10}`, name: `pool-${i % 10}`, shared: true },
        { id: 'all', name: 'all', shared: true },
      ],
      networks: ['lan', `net-${i % 7}`],
      accelerator: 'kvm',
      cpu_flags: i % 2 === 0 ? flags : flags.slice(0, 55),
      qemu_version: '7.2.22',
      machine_types: ['pc-q35-7.2', 'pc-q35-7.1'],
      labels: { room: `${i % 4}` },
    })),
    vms: Array.from({ length: vms }, (_, i) => ({
      id: `vm-${i}`,
      name: `vm-${i}`,
      state: 'running',
      memory_mib: MEMORY[next(MEMORY.length)] ?? 1024,
      cpus: 1 + next(4),
      load: { cores: next(100) / 100, at_ms: NOW },
      disks: [{ pool: next(5) === 0 ? `pool-${next(10)}` : 'all', shared: true, bytes: 2 ** 33 }],
      networks: ['lan', ...(next(5) === 0 ? [`net-${next(7)}`] : [])],
      accelerator: 'kvm',
      cpu_flags: flags.slice(0, next(10) === 0 ? 58 : 40),
      machine: 'pc-q35-7.2',
      qemu_version: '7.2.22',
      labels: { app: `app-${next(Math.max(1, Math.floor(vms / 10)))}` },
    })),
    // One application in five wants its VMs on different hosts.
    rules: Array.from({ length: Math.floor(vms / 50) }, (_, i) => ({
      id: `rule-${i}`,
      name: `rule-${i}`,
      kind: 'apart',
      strict: i % 2 === 0,
      vms: { labels: { app: `app-${i}` } },
    })),
  }
}

/** Memory, pools and networks; the most memory left. @returns each VM's host, by its place */
function greedy(hosts: readonly HostView[], vms: readonly VmView[], left: number[], closed = -1): number[] {
  return vms.map((vm) => {
    let best = -1
    for (let h = 0; h < hosts.length; h++) {
      const host = hosts[h] as HostView
      const free = left[h] ?? 0
      if (h === closed || free < vm.memory_mib || (best >= 0 && free <= (left[best] ?? 0))) continue
      if (!vm.networks.every((id) => host.networks.includes(id))) continue
      if (vm.disks.every((disk) => host.pools.some((pool) => pool.id === disk.pool))) best = h
    }
    if (best >= 0) left[best] = (left[best] ?? 0) - vm.memory_mib
    return best
  })
}

const free = (hosts: readonly HostView[]) => hosts.map((host) => host.memory_mib - host.reserved_mib)
const snapshot = (w: ReturnType<typeof world>, vms: VmView[]): Snapshot => ({
  now_ms: NOW,
  hosts: w.hosts,
  vms,
  rules: w.rules,
  moving: [],
  reserved: [],
  history: [],
})

function clock<T>(work: () => T): [number, T] {
  const begun = performance.now()
  const value = work()
  return [performance.now() - begun, value]
}

/** All VMs one after the other, each counted for the next. */
function placeAll(w: ReturnType<typeof world>): VmView[] {
  const books = new Books(new Compiled(snapshot(w, [])))
  return w.vms.flatMap((vm) => {
    const { chosen } = placeIn(books, vm, { most: 0 })
    if (!chosen) return []
    accept(books, vm, chosen)
    return [{ ...vm, host: chosen.host }]
  })
}

export const scheduler: Bench = {
  name: 'scheduler',
  alone: true,
  run(_, { quick }) {
    const raw = { place: [], greedy: [], small: [], drain: [], plain: [], full: [] } as Record<string, number[]>
    const notes: string[] = []
    const [big, small] = [world(HOSTS, VMS, 1), world(HOSTS / 10, VMS / 10, 2)]
    // Once for nothing: the first run is that of the compiler.
    placeAll(small)
    greedy(small.hosts, small.vms, free(small.hosts))
    for (let round = 0; round < (quick ? 2 : 7); round++) {
      const [ms, placed] = clock(() => placeAll(big))
      const [plain, chosen] = clock(() => greedy(big.hosts, big.vms, free(big.hosts)))
      raw['place']?.push(ms)
      raw['greedy']?.push(plain)
      raw['small']?.push(10 * clock(() => placeAll(small))[0])
      // The host that got the most VMs.
      const on = Map.groupBy(placed, (vm) => vm.host)
      const [host = '', here = []] = [...on].reduce((a, b) => (b[1].length > a[1].length ? b : a))
      const h = big.hosts.findIndex((one) => one.id === host)
      const [drain_ms, plan] = clock(() => drain(snapshot(big, placed), host))
      const [drain_plain] = clock(() => {
        const left = free(big.hosts)
        for (const vm of placed) {
          const at = Number((vm.host ?? '').slice('host-'.length))
          left[at] = (left[at] ?? 0) - vm.memory_mib
        }
        return greedy(big.hosts, here, left, h)
      })
      raw['drain']?.push(drain_ms)
      raw['plain']?.push(drain_plain)
      // Everything on one host that is big enough, and that host emptied: as much as a plan can be asked for.
      const heap = big.vms.map((vm) => ({ ...vm, host: 'heap' }))
      const hosts = [...big.hosts, { ...(big.hosts[0] as HostView), id: 'heap', name: 'heap', memory_mib: 2 ** 30 }]
      const [full_ms, all] = clock(() => drain({ ...snapshot(big, heap), hosts }, 'heap'))
      raw['full']?.push(full_ms)
      if (round > 0) continue
      notes.push(
        `${placed.length} of ${VMS} placed (greedy, without flags and rules: ${chosen.filter((at) => at >= 0).length})`,
        `drained: ${host} with ${here.length} VMs: ${plan.actions.length} moves, ${plan.blockers.length} blockers`,
        `a host with all ${VMS} VMs: ${all.actions.length} moves, ${all.blockers.length} blockers`,
      )
    }
    const of = (name: string) => raw[name] ?? []
    const tenth = `10 × ${VMS / 10} VMs on ${HOSTS / 10} hosts`
    return Promise.resolve({
      name: 'scheduler',
      rows: [
        compare(`${VMS} VMs placed one by one on ${HOSTS} hosts`, of('place'), {
          what: 'ten lines of greedy',
          samples: of('greedy'),
        }),
        // Each VM looks at ten times as many hosts.
        compare(
          'the same: growth with the number of hosts (10: in proportion)',
          of('place'),
          { what: tenth, samples: of('small') },
          15,
        ),
        compare(`one of ${HOSTS} hosts drained, ${VMS} VMs in all`, of('drain'), {
          what: 'ten lines of greedy',
          samples: of('plain'),
        }),
        absolute(`a host with all of ${VMS} VMs drained`, 'ms', of('full')),
      ],
      notes,
      raw,
    })
  },
}
