/** The lab at work: its file, its hosts as instances of the daemon, put into one cluster. */
import { spawn } from 'node:child_process'
import { existsSync } from 'node:fs'
import { chmod, mkdir, readFile, rm, writeFile } from 'node:fs/promises'
import { cpus, totalmem } from 'node:os'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { endpoints } from '@wadah/api/endpoints/all'
import { fail } from '@wadah/api/fault'
import type { Cli } from '../cli.ts'
import { purge, startDaemon } from '../local/daemon.ts'
import { type Instance, instanceOf } from '../local/instance.ts'
import { offline } from '../local/offline.ts'
import { replaceFile } from '../net/known-servers.ts'
import { dropNet, makeNet, netStands, pidsOf, setCuts, setForwards, setLink } from './net.ts'
import { apiOf, bridgeOf, dhcpRange, type Forward, type LabHost, type LabState, linkOf, planLab } from './plan.ts'
import { dropShare, enterShare, makeShare } from './share.ts'

const folderOf = (name: string) => `/var/lib/wadah-lab-${name}`
const fileOf = (name: string) => join(folderOf(name), 'lab.json')
/** Every host has it at the same path, as a mounted file system would be. */
export const sharedDir = (name: string) => `/srv/wadah-lab-${name}`
const GONE_MS = 10_000
const UP_MS = 120_000

export async function loadLab(name: string): Promise<LabState | undefined> {
  try {
    return JSON.parse(await readFile(fileOf(name), 'utf8')) as LabState
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined
    throw fail('forbidden', `${fileOf(name)} can't be read: ${(error as Error).message}`, {
      remedy: 'sudo wadah lab …',
    })
  }
}

export async function needLab(name: string): Promise<LabState> {
  const lab = await loadLab(name)
  if (!lab) throw fail('not_found', `There is no lab "${name}".`, { remedy: 'wadah lab up --hosts 3' })
  return lab
}

export async function saveLab(lab: LabState): Promise<void> {
  await mkdir(folderOf(lab.name), { recursive: true, mode: 0o711 })
  await replaceFile(fileOf(lab.name), `${JSON.stringify(lab, null, 2)}\n`)
}

/** Programs of the host see its network; files are this machine's. */
export function labInstance(cli: Cli, host: LabHost): Instance {
  const made = instanceOf(host.instance, { uid: process.getuid?.() ?? 0, env: cli.io.env })
  return { ...made, enter: ['nsenter', `--net=/run/netns/${host.namespace}`, '--'] }
}
const configOf = (host: LabHost, lab: string) => join(folderOf(lab), `${host.name}.toml`)

export type LabWish = {
  name: string
  hosts: number
  rate?: string | undefined
  delay?: string | undefined
  cluster: boolean
  instanceOf?: ((index: number) => string) | undefined
  cache?: string | undefined
}

/** Looks before it acts: an `up` that was cut off goes on, and a lab whose machine was started anew comes back. */
export async function labUp(cli: Cli, wish: LabWish, say: (text: string) => void): Promise<LabState> {
  if ((process.getuid?.() ?? 0) !== 0)
    throw fail('forbidden', 'A lab needs root: it makes network namespaces.', { remedy: 'sudo wadah lab up' })
  const lab = (await loadLab(wish.name)) ?? newLab(cli, wish)
  const link = linkOf(wish, lab.link)
  if (lab.hosts.length !== wish.hosts)
    throw fail('wrong_state', `The lab "${wish.name}" is there, with ${lab.hosts.length} hosts.`, {
      remedy: `wadah lab down --lab ${wish.name}; then again`,
    })
  await saveLab(lab)
  await prepare(cli, lab)
  if (link.rate !== lab.link.rate || link.delay !== lab.link.delay) {
    lab.link = link
    await setLink(lab)
    await saveLab(lab)
  }
  // Those that were there before, all at once: a store that had three copies answers only when two of them run.
  const were = lab.hosts.filter((host) => existsSync(labInstance(cli, host).data))
  await Promise.all(were.map((host) => startHost(cli, lab, host)))
  for (const host of lab.hosts) {
    await startHost(cli, lab, host)
    say(cli.t('lab.started', { host: host.name, address: host.address }))
    if (!wish.cluster) continue
    await bringIn(cli, lab, host)
    say(cli.t('lab.joined', { host: host.name }))
  }
  return lab
}

function newLab(cli: Cli, wish: LabWish): LabState {
  const machine = { cpus: cpus().length, memory_mib: Math.floor(totalmem() / 2 ** 20) }
  const cache = wish.cache ?? (cli.io.env['WADAH_LAB_CACHE'] || `/var/cache/wadah-lab-${wish.name}`)
  return planLab({ ...wish, cache, machine })
}

/** Wires, addresses, the common folder, shares, settings. */
async function prepare(cli: Cli, lab: LabState): Promise<void> {
  if (!(await netStands(lab))) {
    for (const host of lab.hosts) await killHost(host)
    await stopDhcp(lab)
    await dropNet(lab)
    await makeNet(lab)
    await setCuts(lab)
  }
  await setForwards(lab)
  await startDhcp(lab)
  await mkdir(sharedDir(lab.name), { recursive: true, mode: 0o711 })
  for (const host of lab.hosts) {
    if (!(await makeShare(lab, host))) cli.out.warn(cli.t('lab.no_share', { host: host.name }))
    // Alike on all hosts: a VM keeps its user wherever it goes.
    const settings = [
      `host_name = "${host.name}"`,
      `uid_base = 2300000`,
      `pool_dirs = ["${sharedDir(lab.name)}"]`,
      `cache = ${JSON.stringify(lab.cache)}`,
    ]
    await writeFile(configOf(host, lab.name), `${settings.join('\n')}\n`)
  }
}

/** The first makes the cluster, the others join it. One that is in it already stays as it is. */
async function bringIn(cli: Cli, lab: LabState, host: LabHost): Promise<void> {
  const instance = labInstance(cli, host)
  const api = (of: Instance) => cli.api({ socket: of.socket })
  const config = { config: configOf(host, lab.name), timeout_ms: UP_MS }
  if ((await (await api(instance)).call(endpoints.cluster.get)).id === undefined) {
    const first = lab.hosts[0] as LabHost
    const address = ['--address', host.address]
    if (host.index === first.index) await offline(cli, instance, ['--cluster-init', ...address], config)
    else {
      const { token } = await (await api(labInstance(cli, first))).call(endpoints.cluster.token, { body: {} })
      await offline(cli, instance, ['--cluster-join', ...address], { ...config, input: token })
    }
  }
  await enterShare(host, await daemonsOf(host))
}

/** Starts the daemon of a host, and with it what it finds it should run. */
export async function startHost(cli: Cli, lab: LabState, host: LabHost): Promise<void> {
  await startDaemon(cli, labInstance(cli, host), { listen: apiOf(host), config: configOf(host, lab.name) })
  await enterShare(host, await daemonsOf(host))
}

/** All but QEMUs, which have groups of their own. */
async function daemonsOf(host: LabHost): Promise<number[]> {
  const pids = await pidsOf(host)
  const own: number[] = []
  for (const pid of pids) {
    const program = (await readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => '')).split('\0')[0] ?? ''
    if (!/qemu-system/.test(program)) own.push(pid)
  }
  return own
}

/** As if its plug was pulled: every process of it ends at once, nothing is told to anybody. */
export async function killHost(host: LabHost): Promise<number> {
  const pids = await pidsOf(host)
  for (const pid of pids) signal(pid, 'SIGKILL')
  await gone(host)
  return pids.length
}

async function gone(host: LabHost): Promise<void> {
  for (let waited = 0; (await pidsOf(host)).length > 0; waited += 50) {
    if (waited > GONE_MS)
      throw fail('timeout', `Processes of ${host.name} don't end: ${(await pidsOf(host)).join(', ')}`, {
        effect: 'partial',
      })
    await delay(50)
  }
}

export async function cut(lab: LabState, a: LabHost, b: LabHost): Promise<void> {
  const pair = [a.name, b.name].toSorted() as [string, string]
  if (!lab.cuts.some((c) => c.join() === pair.join())) lab.cuts.push(pair)
  await setCuts(lab)
  await saveLab(lab)
}

/** One pair, or all. */
export async function heal(lab: LabState, pair?: [LabHost, LabHost]): Promise<void> {
  const names = pair?.map((h) => h.name).toSorted()
  lab.cuts = names === undefined ? [] : lab.cuts.filter((c) => c.join() !== names.join())
  await setCuts(lab)
  await saveLab(lab)
}

/** What comes to these ports of this machine goes into the lab, and nothing else does. */
export async function forward(lab: LabState, forwards: Forward[]): Promise<void> {
  lab.forwards = forwards
  await setForwards(lab)
  await saveLab(lab)
}

/** Whatever state it is in, also one that an `up` was cut off in. Returns what did not go. */
export async function labDown(cli: Cli, lab: LabState): Promise<string[]> {
  const problems: string[] = []
  for (const host of lab.hosts) {
    await killHost(host).catch((error: unknown) => problems.push((error as Error).message))
    // An earlier try may have taken its network away already.
    const { enter, ...bare } = labInstance(cli, host)
    const stands = existsSync(`/run/netns/${host.namespace}`)
    const done = await purge(cli, stands && enter ? { ...bare, enter } : bare)
    if (!done.ok) problems.push(`${host.name}: ${done.detail}`)
    await dropShare(host)
  }
  await stopDhcp(lab)
  await dropNet(lab)
  await rm(sharedDir(lab.name), { recursive: true, force: true })
  if (problems.length === 0) await rm(folderOf(lab.name), { recursive: true, force: true })
  return problems
}

/** Guests on the lab's bridge get addresses from here. */
async function startDhcp(lab: LabState): Promise<void> {
  if ((await dhcpPid(lab)) !== undefined) return
  const folder = folderOf(lab.name)
  await chmod(folder, 0o711)
  const bridge = bridgeOf(lab.name)
  const argv = [
    '--conf-file=/dev/null',
    '--bind-interfaces',
    `--interface=${bridge}`,
    '--except-interface=lo',
    `--dhcp-range=${dhcpRange(lab.name)},12h`,
    `--dhcp-leasefile=${folder}/leases`,
    `--pid-file=${folder}/dnsmasq.pid`,
    '--no-hosts',
    '--no-resolv',
    '--keep-in-foreground',
    '--user=root',
  ]
  const child = spawn('dnsmasq', argv, { detached: true, stdio: 'ignore', cwd: '/' })
  await new Promise<void>((resolve, reject) => {
    child.once('spawn', resolve)
    child.once('error', (cause) =>
      reject(fail('host_lacks', `dnsmasq: ${cause.message}`, { remedy: 'apt-get install dnsmasq-base', cause })),
    )
  })
  child.unref()
}

async function dhcpPid(lab: LabState): Promise<number | undefined> {
  const pid = Number(await readFile(`${folderOf(lab.name)}/dnsmasq.pid`, 'utf8').catch(() => ''))
  const argv = (await readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => '')).split('\0')
  return pid > 1 && argv.includes(`--interface=${bridgeOf(lab.name)}`) ? pid : undefined
}

async function stopDhcp(lab: LabState): Promise<void> {
  const pid = await dhcpPid(lab)
  if (pid !== undefined) signal(pid, 'SIGTERM')
}

function signal(pid: number, name: NodeJS.Signals): void {
  try {
    process.kill(pid, name)
  } catch {
    // It has ended.
  }
}
