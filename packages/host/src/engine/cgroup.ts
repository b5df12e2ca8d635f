/**
 * One control group per VM: CPU weight and cap, memory ceiling. v2 where the host has it with the controllers we need, v1
 * where that is what there is, nothing where the daemon may not. Formulas: cgroups(7), kernel docs admin-guide/cgroup-v1|v2.
 */
import { access, constants, mkdir, readFile, readdir, rmdir, writeFile } from 'node:fs/promises'
import { readShare, type Share } from './share.ts'

export type CgroupLayout =
  | { version: 'v2'; root: string }
  | { version: 'v1'; cpu: string; memory: string; also: string[] }
  | { version: 'none'; reason: string }

export type CgroupLimits = { cpu_weight: number; cpu_cap_percent: number | null; memory_bytes: number }

const PERIOD_US = 100_000

/** Pure: which hierarchies this host has, from /proc/self/mountinfo and the controllers of the v2 root. */
export function layoutOf(mountinfo: string, v2Controllers: (mount: string) => string[]): CgroupLayout {
  const v1 = new Map<string, string>()
  for (const line of mountinfo.split('\n')) {
    const [before, after] = line.split(' - ')
    const mount = before?.split(' ')[4]
    const [type, , options] = after?.split(' ') ?? []
    if (!mount) continue
    if (type === 'cgroup2') {
      const controllers = v2Controllers(mount)
      if (controllers.includes('cpu') && controllers.includes('memory')) return { version: 'v2', root: mount }
    } else if (type === 'cgroup') {
      for (const name of (options ?? '').split(',')) if (!v1.has(name)) v1.set(name, mount)
    }
  }
  const [cpu, memory] = [v1.get('cpu'), v1.get('memory')]
  if (cpu && memory) {
    const also = [v1.get('cpuacct'), v1.get('pids')].filter((m) => m !== undefined && m !== cpu && m !== memory)
    return { version: 'v1', cpu, memory, also: also as string[] }
  }
  return { version: 'none', reason: 'the kernel has no cgroup hierarchy with the cpu and memory controllers mounted' }
}

/** Pure: the files to write for these limits, in order. */
export function settings(
  version: 'v1' | 'v2',
  limits: CgroupLimits,
): { controller: 'cpu' | 'memory'; file: string; value: string }[] {
  const { cpu_weight, cpu_cap_percent, memory_bytes } = limits
  const quota = cpu_cap_percent === null ? null : Math.round((cpu_cap_percent * PERIOD_US) / 100)
  if (version === 'v2') {
    return [
      { controller: 'cpu', file: 'cpu.weight', value: String(cpu_weight) },
      { controller: 'cpu', file: 'cpu.max', value: `${quota ?? 'max'} ${PERIOD_US}` },
      { controller: 'memory', file: 'memory.max', value: String(memory_bytes) },
    ]
  }
  return [
    { controller: 'cpu', file: 'cpu.shares', value: String(Math.max(2, Math.round((cpu_weight * 1024) / 100))) },
    { controller: 'cpu', file: 'cpu.cfs_period_us', value: String(PERIOD_US) },
    { controller: 'cpu', file: 'cpu.cfs_quota_us', value: String(quota ?? -1) },
    { controller: 'memory', file: 'memory.limit_in_bytes', value: String(memory_bytes) },
  ]
}

/** Groups of one instance of the daemon: `<hierarchy>/wadah[-instance]/<vm>`. */
export class Cgroups {
  readonly layout: CgroupLayout
  readonly #parent: string

  constructor(layout: CgroupLayout, parent: string) {
    this.layout = layout
    this.#parent = parent
  }

  /** Looks at this host. Never throws: a host where we may not is `none`, with the reason. */
  static async open(parent: string): Promise<Cgroups> {
    try {
      const mountinfo = await readFile('/proc/self/mountinfo', 'utf8')
      const controllers = new Map<string, string[]>()
      for (const m of mountinfo.matchAll(/^\S+ \S+ \S+ \S+ (\S+) .* - cgroup2 /gm)) {
        const text = await readFile(`${m[1]}/cgroup.controllers`, 'utf8').catch(() => '')
        controllers.set(m[1] as string, text.trim().split(' '))
      }
      const layout = layoutOf(mountinfo, (mount) => controllers.get(mount) ?? [])
      if (layout.version !== 'none') {
        for (const base of layout.version === 'v2' ? [layout.root] : [layout.cpu, layout.memory]) {
          await access(base, constants.W_OK)
        }
      }
      const groups = new Cgroups(layout, parent)
      await groups.#openParent()
      return groups
    } catch (error) {
      return new Cgroups(
        { version: 'none', reason: `no right to make control groups (${(error as Error).message})` },
        parent,
      )
    }
  }

  async #openParent(): Promise<void> {
    for (const dir of this.#bases()) await mkdir(dir, { recursive: true })
    if (this.layout.version === 'v2') {
      for (const dir of [this.layout.root, `${this.layout.root}/${this.#parent}`]) {
        await writeFile(`${dir}/cgroup.subtree_control`, '+cpu +memory')
      }
    }
  }

  /** What the group of all VMs of this daemon may use of the machine. */
  share(): Promise<Share> {
    return readShare(this.layout, this.#parent)
  }

  #bases(): string[] {
    const l = this.layout
    if (l.version === 'none') return []
    const roots = l.version === 'v2' ? [l.root] : [l.cpu, l.memory, ...l.also]
    return roots.map((root) => `${root}/${this.#parent}`)
  }

  #directory(controller: 'cpu' | 'memory', vm: string): string | undefined {
    const l = this.layout
    if (l.version === 'none') return undefined
    return `${l.version === 'v2' ? l.root : l[controller]}/${this.#parent}/${vm}`
  }

  /** Makes the group with its limits; done twice is done once. */
  async make(vm: string, limits: CgroupLimits): Promise<void> {
    await Promise.all(this.#bases().map((base) => mkdir(`${base}/${vm}`, { recursive: true })))
    await this.limit(vm, limits)
  }

  async limit(vm: string, limits: CgroupLimits): Promise<void> {
    if (this.layout.version === 'none') return
    for (const { controller, file, value } of settings(this.layout.version, limits)) {
      await writeFile(`${this.#directory(controller, vm)}/${file}`, value)
    }
  }

  /** Moves a process, all its threads with it. */
  async enter(vm: string, pid: number): Promise<void> {
    await Promise.all(this.#bases().map((base) => writeFile(`${base}/${vm}/cgroup.procs`, String(pid))))
  }

  /** What the kernel holds for a VM now, for tests and `vm show`. */
  async read(vm: string, controller: 'cpu' | 'memory', file: string): Promise<string> {
    return (await readFile(`${this.#directory(controller, vm)}/${file}`, 'utf8')).trim()
  }

  /** CPU time that a VM, or all in the group of this daemon, has used so far, ns; undefined where nobody counts it. */
  async cpuTime(vm?: string): Promise<number | undefined> {
    const below = vm === undefined ? '' : `/${vm}`
    for (const base of this.#bases()) {
      const [file, unit] = this.layout.version === 'v2' ? ['cpu.stat', 1000] : ['cpuacct.usage', 1]
      const text = await readFile(`${base}${below}/${file}`, 'utf8').catch(() => undefined)
      const used = /^(?:usage_usec )?(\d+)$/m.exec(text ?? '')?.[1]
      if (used !== undefined) return Number(used) * unit
    }
    return undefined
  }

  /** Removes the group. It must be empty; the kernel needs a moment after the last exit. */
  async remove(vm: string): Promise<void> {
    await Promise.all(this.#bases().map((base) => removeGroup(`${base}/${vm}`)))
  }

  /** Who runs in the group of a VM. */
  async pids(vm: string): Promise<number[]> {
    const [base] = this.#bases()
    if (!base) return []
    const text = await readFile(`${base}/${vm}/cgroup.procs`, 'utf8').catch((error: NodeJS.ErrnoException) => {
      if (error.code !== 'ENOENT' && error.code !== 'ENODEV') throw error
      return ''
    })
    return text.split('\n').filter(Boolean).map(Number)
  }

  /** Groups that are there, to find leftovers. */
  async list(): Promise<string[]> {
    const [base] = this.#bases()
    if (!base) return []
    const entries = await readdir(base, { withFileTypes: true }).catch(() => [])
    return entries.filter((e) => e.isDirectory()).map((e) => e.name)
  }

  /** Removes the parent too: for taking everything away. */
  async removeAll(): Promise<void> {
    for (const base of this.#bases()) {
      const entries = await readdir(base, { withFileTypes: true }).catch(() => [])
      for (const e of entries) if (e.isDirectory()) await removeGroup(`${base}/${e.name}`)
      await removeGroup(base)
    }
  }
}

async function removeGroup(directory: string): Promise<void> {
  for (let i = 0; ; i++) {
    try {
      await rmdir(directory)
      return
    } catch (error) {
      const code = (error as NodeJS.ErrnoException).code
      if (code === 'ENOENT') return
      if (code !== 'EBUSY' || i >= 50) throw error
      await new Promise((resolve) => setTimeout(resolve, 10))
    }
  }
}
