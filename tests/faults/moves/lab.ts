/** The lab of the matrix: three hosts, what can be done to them, and what is seen of them from outside. */
import { execFile, execFileSync } from 'node:child_process'
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import http from 'node:http'
import { join } from 'node:path'
import { type Client, type ClientRequest, type ClientResponse, createClient } from '@wadah/api/client'
import { CACHE, ROOT } from '../../kit/daemon.ts'

/** Two may be at work at once, each with a lab of its own. */
export const LAB = process.env['WADAH_FAULTS_LAB'] ?? 'flt'
export const HOSTS = [1, 2, 3] as const
const WADAH = join(ROOT, 'bin/wadah')
/** The daemons look here where they are to stand still. */
export const POINTS = `/run/wadah-lab-${LAB}-points`

export const sleep = (ms: number) => new Promise<void>((resolve) => setTimeout(resolve, ms))

/** Waits until `ok` says so; undefined when it never did. */
export async function within<T>(
  timeout_ms: number,
  ok: () => Promise<T | undefined | false> | T | undefined | false,
  every_ms = 100,
): Promise<T | undefined> {
  for (const end = performance.now() + timeout_ms; ; ) {
    const value = await ok()
    if (value) return value
    if (performance.now() > end) return undefined
    await sleep(every_ms)
  }
}

export function run(file: string, args: readonly string[], timeout_ms = 240_000): Promise<string> {
  return new Promise((resolve, reject) => {
    const env = { ...process.env, WADAH_LAB_CACHE: CACHE, NO_COLOR: '1', WADAH_LANG: 'en', WADAH_PAUSE_POINTS: POINTS }
    const child = execFile(file, args, { env, timeout: timeout_ms, maxBuffer: 2 ** 24 }, (error, out, err) =>
      error ? reject(new Error(`${file} ${args.join(' ')}: ${out}${err}`)) : resolve(out),
    )
    child.stdin?.end()
  })
}
export const lab = (...args: string[]) => run(WADAH, ['lab', ...args, '--lab', LAB])
/** It goes, and the folder with its points. */
export async function down(): Promise<void> {
  await lab('down')
  rmSync(POINTS, { recursive: true, force: true })
}
export const cli = (host: number, ...args: string[]) => run(WADAH, ['--socket', socketOf(host), ...args])

export const nameOf = (host: number) => `${LAB}${host}`
const socketOf = (host: number) => `/run/wadah-${LAB}${host}/wadahd.sock`
export const dataOf = (host: number) => `/var/lib/wadah-${LAB}${host}`
export const sharedDir = `/srv/wadah-lab-${LAB}`

function send(host: number, request: ClientRequest): Promise<ClientResponse> {
  return new Promise((done, failed) => {
    const { method, path, headers, body } = request
    const req = http.request(
      { socketPath: socketOf(host), method, path, headers, agent: false, timeout: 90_000 },
      (res) => done({ status: res.statusCode ?? 0, headers: res.headers as Record<string, string>, body: res }),
    )
    req.once('timeout', () => req.destroy(new Error(`${nameOf(host)} did not answer`)))
    req.once('error', failed)
    req.end(typeof body === 'string' || body instanceof Uint8Array ? body : undefined)
  })
}
export const apiOf = (host: number): Client => createClient((request) => send(host, request))

// ---- what is there ------------------------------------------------------------------------------------------------------

export function daemonOf(host: number): number | undefined {
  try {
    const pid = Number(readFileSync(`/run/wadah-${LAB}${host}/wadahd.pid`, 'utf8').split(' ')[0])
    return existsSync(`/proc/${pid}/cmdline`) && readFileSync(`/proc/${pid}/cmdline`, 'utf8').includes(nameOf(host))
      ? pid
      : undefined
  } catch {
    return undefined
  }
}

export type Qemu = { pid: number; host: number }

const argvOf = (pid: string): string[] => {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, 'utf8').split('\0')
  } catch {
    return []
  }
}
const numbers = () => readdirSync('/proc').filter((name) => /^\d+$/.test(name))

/** Every QEMU of the lab. */
export function qemus(): Qemu[] {
  return numbers().flatMap((name) => {
    const argv = argvOf(name)
    const file = argv[argv.indexOf('-pidfile') + 1] ?? ''
    const host = HOSTS.find((h) => file.startsWith(`${dataOf(h)}/vms/`))
    return host === undefined ? [] : [{ pid: Number(name), host }]
  })
}
/** Members of the store, by host. */
export function etcds(): Qemu[] {
  return numbers().flatMap((name) => {
    const argv = argvOf(name)
    if (!(argv[0] ?? '').endsWith('etcd')) return []
    const host = HOSTS.find((h) => argv.some((a) => a.includes(`${dataOf(h)}/etcd`)))
    return host === undefined ? [] : [{ pid: Number(name), host }]
  })
}

/** Ticks that the guest's CPUs of this QEMU have run for: a guest that stands still takes none. */
export function guestTicks(pid: number): number | undefined {
  try {
    let ticks = 0
    for (const task of readdirSync(`/proc/${pid}/task`)) {
      const stat = readFileSync(`/proc/${pid}/task/${task}/stat`, 'latin1')
      if (!stat.includes('(CPU ')) continue
      const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
      ticks += Number(fields[11]) + Number(fields[12])
    }
    return ticks
  } catch {
    return undefined
  }
}

const SAMPLE_MS = 200
/** Both in one sample may be a switch; this many in a row are two guests. */
const IN_A_ROW = 3

/** Looks all the time whether two guests run. */
export class TwoRun {
  readonly seen: string[] = []
  readonly #timer: NodeJS.Timeout
  #last = new Map<number, number>()
  #row = 0

  constructor() {
    this.#timer = setInterval(() => this.#look(), SAMPLE_MS)
  }
  #look(): void {
    const now = new Map<number, number>()
    const ran: Qemu[] = []
    for (const qemu of qemus()) {
      const ticks = guestTicks(qemu.pid)
      if (ticks === undefined) continue
      now.set(qemu.pid, ticks)
      const before = this.#last.get(qemu.pid)
      if (before !== undefined && ticks > before) ran.push(qemu)
    }
    this.#last = now
    this.#row = ran.length > 1 ? this.#row + 1 : 0
    if (this.#row === IN_A_ROW) this.seen.push(`two guests ran at once: ${ran.map((q) => nameOf(q.host)).join(', ')}`)
  }
  end(): string[] {
    clearInterval(this.#timer)
    return this.seen
  }
}

/** What may be left over on a host, apart from records. */
export function traces(host: number): { qemus: number; taps: string[]; folders: string[]; groups: string[] } {
  const links = JSON.parse(
    execFileSync('ip', ['-n', `w${nameOf(host)}`, '-j', '-d', 'link'], { encoding: 'utf8' }) || '[]',
  ) as { ifname: string; linkinfo?: { info_kind?: string } }[]
  const list = (dir: string) => (existsSync(dir) ? readdirSync(dir) : [])
  const cgroups = ['/sys/fs/cgroup/cpu', '/sys/fs/cgroup'].flatMap((dir) => list(join(dir, `wadah-${nameOf(host)}`)))
  return {
    qemus: qemus().filter((q) => q.host === host).length,
    taps: links.filter((l) => l.linkinfo?.info_kind === 'tun').map((l) => l.ifname),
    folders: list(join(dataOf(host), 'vms')),
    groups: [...new Set(cgroups)].filter((n) => n.startsWith('vm-')),
  }
}

/** Files in the pool that is this host's alone. */
export function poolFiles(host: number): string[] {
  const list = (dir: string) => (existsSync(dir) ? readdirSync(dir) : [])
  return ['volumes', 'tmp'].flatMap((d) => list(join(dataOf(host), 'pools/default/wadah', d)))
}

/** Lines that a daemon wrote as errors since `from`, a length of its log. */
export function logLength(host: number): number {
  try {
    return statSync(join(dataOf(host), 'wadahd.log')).size
  } catch {
    return 0
  }
}
export function logSince(host: number, from: number): string[] {
  const text = readFileSync(join(dataOf(host), 'wadahd.log'))
    .subarray(from)
    .toString('utf8')
  return text.split('\n')
}

// ---- what is done to it -------------------------------------------------------------------------------------------------

export async function killDaemon(host: number): Promise<void> {
  const pid = daemonOf(host)
  if (pid === undefined) return
  process.kill(pid, 'SIGKILL')
  await within(10_000, () => daemonOf(host) === undefined, 10)
}
/** The daemon; what it finds there is adopted. */
export const startDaemon = (host: number) => lab('start', nameOf(host))
export const killHost = (host: number) => lab('kill', nameOf(host))

export function signalAll(list: readonly Qemu[], signal: NodeJS.Signals): void {
  for (const { pid } of list) {
    try {
      process.kill(pid, signal)
    } catch {
      // It has ended.
    }
  }
}

/** A file system on the host's folder of VMs that has no room at all. */
export async function fillUp(host: number): Promise<void> {
  const dir = join(dataOf(host), 'vms')
  await run('mount', ['-t', 'tmpfs', '-o', 'size=16k,mode=711', 'full', dir])
  try {
    writeFileSync(join(dir, 'full'), Buffer.alloc(1 << 20))
  } catch {
    // That is what it is for.
  }
}
export async function makeRoom(host: number): Promise<void> {
  await run('umount', ['--lazy', join(dataOf(host), 'vms')]).catch(() => '')
}

// ---- where a daemon is to stand still -----------------------------------------------------------------------------------

export const holdAt = (point: string) => {
  mkdirSync(POINTS, { recursive: true })
  writeFileSync(join(POINTS, `${point}.stop`), '')
}
export const standsAt = (point: string) => existsSync(join(POINTS, `${point}.here`))
export function letGo(): void {
  for (const name of existsSync(POINTS) ? readdirSync(POINTS) : []) rmSync(join(POINTS, name), { force: true })
}
