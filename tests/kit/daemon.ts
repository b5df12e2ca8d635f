/** A real wadahd for tests: its own instance, its own folders, and everything of it gone in the end. */
import { type ChildProcess, spawn, spawnSync } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import http from 'node:http'
import { tmpdir } from 'node:os'
import { dirname, join, resolve } from 'node:path'
import { createClient, type Client, type ClientRequest, type ClientResponse } from '@wadah/api/client'
import { endpoints } from '@wadah/api/endpoints/all'
import type { Job } from '@wadah/api/schema/job'
import type { Vm } from '@wadah/api/schema/vm'

export const ROOT = resolve(import.meta.dirname, '../..')
export const CACHE = process.env['WADAH_TEST_CACHE'] ?? join(ROOT, '.cache')
const WADAHD = join(ROOT, 'bin/wadahd')
const WADAH = join(ROOT, 'bin/wadah')
/** Instances of this and earlier runs: what a killed run left is purged by the next. */
const LIST = join(tmpdir(), 'wadah-test-instances')

export class Daemon {
  readonly instance: string
  readonly data: string
  readonly socket: string
  readonly api: Client
  /** The end of what it wrote to its output since its start. */
  said = ''
  #child: ChildProcess | undefined
  #config: string

  constructor(settings = '') {
    this.instance = `t${randomBytes(4).toString('hex').slice(0, 6)}`
    this.data = `/var/lib/wadah-${this.instance}`
    this.socket = `/run/wadah-${this.instance}/wadahd.sock`
    this.api = createClient((request) => this.send(request))
    mkdirSync(LIST, { recursive: true })
    this.#config = join(LIST, `${this.instance}.toml`)
    writeFileSync(this.#config, `cache = ${JSON.stringify(CACHE)}\n${settings}\n`)
    writeFileSync(join(LIST, this.instance), String(process.pid))
  }

  /** Starts it and waits until it answers. @param under words of a program that it is run by, and that lets it keep its pid */
  async start(under: readonly string[] = []): Promise<void> {
    mkdirSync(this.data, { recursive: true, mode: 0o711 })
    const words = [...under, WADAHD, ...this.#argv(), '--listen', '127.0.0.1:0']
    const child = spawn(words[0] as string, words.slice(1), {
      stdio: ['ignore', 'pipe', 'pipe'],
      // A tracer sees system calls, not what goes through a ring.
      ...(under.length > 0 ? { env: { ...process.env, UV_USE_IO_URING: '0' } } : {}),
    })
    this.#child = child
    this.said = ''
    for (const stream of [child.stdout, child.stderr])
      stream?.on('data', (chunk) => (this.said = `${this.said}${chunk}`.slice(-20_000)))
    await until('wadahd to answer', async () => {
      if (child.exitCode !== null) throw new Error(`wadahd ended:\n${this.said}`)
      if (!ownPidFile(this.socket, child.pid)) return false
      return this.api.call(endpoints.system.ping).then(
        () => true,
        () => false,
      )
    })
  }

  #argv(): string[] {
    return ['--instance', this.instance, '--data', this.data, '--socket', this.socket, '--config', this.#config]
  }

  get pid(): number {
    return this.#child?.pid ?? 0
  }
  get url(): string {
    return readFileSync(join(this.data, 'url'), 'utf8').trim()
  }

  /** Ends the daemon alone: `SIGKILL` as a crash would. VMs run on. */
  async kill(signal: NodeJS.Signals): Promise<void> {
    const child = this.#child
    if (!child || child.exitCode !== null || child.signalCode !== null) return
    const gone = new Promise((done) => child.once('exit', done))
    child.kill(signal)
    await gone
  }

  /** Takes everything away. */
  async purge(): Promise<void> {
    await this.kill('SIGKILL')
    purgeInstance(this.instance)
  }

  send(request: ClientRequest): Promise<ClientResponse> {
    return new Promise((done, failed) => {
      const options = {
        socketPath: this.socket,
        method: request.method,
        path: request.path,
        headers: request.headers,
        agent: false,
      }
      const req = http.request({ ...options, ...(request.signal ? { signal: request.signal } : {}) }, (res) => {
        done({ status: res.statusCode ?? 0, headers: res.headers as Record<string, string>, body: res })
      })
      req.once('error', failed)
      void (async () => {
        const { body } = request
        if (typeof body === 'string' || body instanceof Uint8Array) req.end(body)
        else {
          for await (const chunk of body ?? []) req.write(chunk)
          req.end()
        }
      })().catch(failed)
    })
  }

  /** A raw request: status and parsed body. */
  async raw(
    method: string,
    path: string,
    body?: unknown,
    headers: Record<string, string> = {},
  ): Promise<{ status: number; headers: ClientResponse['headers']; body: any }> {
    const text = body === undefined ? undefined : JSON.stringify(body)
    const type = text === undefined ? {} : { 'content-type': 'application/json' }
    const answer = await this.send({
      method,
      path,
      headers: { host: 'localhost', ...type, ...headers },
      ...(text === undefined ? {} : { body: text }),
    })
    const parts: Uint8Array[] = []
    for await (const part of answer.body) parts.push(part)
    const all = Buffer.concat(parts).toString('utf8')
    return { status: answer.status, headers: answer.headers, body: all === '' ? undefined : JSON.parse(all) }
  }

  /** The CLI against this daemon. */
  cli(argv: string[], input = ''): { code: number | null; stdout: string; stderr: string } {
    const { status, stdout, stderr } = spawnSync(WADAH, argv, {
      env: { ...process.env, WADAH_SOCKET: this.socket, WADAH_LANG: 'en' },
      encoding: 'utf8',
      input,
      timeout: 120_000,
    })
    return { code: status, stdout, stderr }
  }

  /** The daemon's own program with this instance's options, run to its end. */
  daemon(argv: string[]): { code: number | null; stdout: string; stderr: string } {
    const { status, stdout, stderr } = spawnSync(WADAHD, [...this.#argv(), ...argv], {
      encoding: 'utf8',
      timeout: 120_000,
    })
    return { code: status, stdout, stderr }
  }

  /** Waits for a job that was just made; the job as it ended. */
  ended(job: Job, timeout_ms = 240_000): Promise<Job> {
    return this.api.wait(job, { signal: AbortSignal.timeout(timeout_ms) })
  }
  /** The same, and it must have ended well. */
  async done(job: Job, timeout_ms?: number): Promise<Job> {
    const end = await this.ended(job, timeout_ms)
    if (end.state !== 'done')
      throw new Error(`${end.kind} ended as ${end.state}: ${end.fault?.code} ${end.fault?.detail}`)
    return end
  }

  vm(name: string): Promise<Vm> {
    return this.api.call(endpoints.vms.get, { params: { vm: name } })
  }
  async create(body: Parameters<typeof createBody>[0]): Promise<Vm> {
    await this.done(await this.api.call(endpoints.vms.create, { body: createBody(body) }))
    return this.vm(body.name)
  }
  async tiny(): Promise<void> {
    await this.done(await this.api.call(endpoints.images.build, { body: { recipe: 'tiny' } }))
  }
  async exec(vm: string, ...argv: string[]): Promise<{ code: number | undefined; out: string }> {
    const result = await this.api.call(endpoints.vms.exec, { params: { vm }, body: { argv, timeout_ms: 60_000 } })
    return { code: result.exit_code, out: Buffer.from(result.stdout, 'base64').toString('utf8') }
  }
  /** Until the guest's agent answers. */
  async booted(vm: string): Promise<void> {
    await until(`the guest of ${vm}`, async () => (await this.vm(vm)).status.agent === 'connected', 120_000)
  }

  /** What there is of this instance on the machine, apart from records. */
  traces(): {
    qemus: number[]
    taps: string[]
    groups: string[]
    folders: string[]
    volumes: string[]
    temporary: string[]
  } {
    const qemus: number[] = []
    for (const name of readdirSync('/proc')) {
      if (!/^\d+$/.test(name)) continue
      try {
        const argv = readFileSync(`/proc/${name}/cmdline`, 'utf8').split('\0')
        if (argv.some((a, i) => a.startsWith(`${this.data}/vms/`) && argv[i - 1] === '-pidfile'))
          qemus.push(Number(name))
      } catch {
        // It ended meanwhile.
      }
    }
    const list = (dir: string): string[] => {
      try {
        return readdirSync(dir)
      } catch {
        return []
      }
    }
    const links = JSON.parse(spawnSync('ip', ['-j', '-d', 'link'], { encoding: 'utf8' }).stdout || '[]') as {
      ifname: string
      ifalias?: string
      linkinfo?: { info_kind?: string }
    }[]
    return {
      qemus,
      taps: links
        .filter((l) => l.linkinfo?.info_kind === 'tun' && (l.ifalias ?? '').includes(this.instance))
        .map((l) => l.ifname),
      groups: [
        ...list(`/sys/fs/cgroup/cpu/wadah-${this.instance}`),
        ...list(`/sys/fs/cgroup/wadah-${this.instance}`),
      ].filter((n) => n.startsWith('vm-')),
      folders: list(`${this.data}/vms`),
      volumes: list(`${this.data}/pools/default/wadah/volumes`),
      temporary: [...list(`${this.data}/pools/default/wadah/tmp`), ...list(`${this.data}/builds`)],
    }
  }
}

/** It is written when everything else is. */
function ownPidFile(socket: string, pid: number | undefined): boolean {
  try {
    return Number.parseInt(readFileSync(join(dirname(socket), 'wadahd.pid'), 'utf8'), 10) === pid
  } catch {
    return false
  }
}

type VmBody = { name: string } & Record<string, unknown>
function createBody(body: VmBody): any {
  return { image: 'tiny', nics: [], ...body }
}

function purgeInstance(instance: string): void {
  const data = `/var/lib/wadah-${instance}`
  // A test that was killed may have left a file system of its own there.
  spawnSync('umount', ['--lazy', data])
  const done = spawnSync(
    WADAHD,
    ['--instance', instance, '--data', data, '--socket', `/run/wadah-${instance}/wadahd.sock`, '--purge'],
    {
      encoding: 'utf8',
      timeout: 120_000,
    },
  )
  if (done.status !== 0) throw new Error(`purge of ${instance}: ${done.stderr}`)
  rmSync(join(LIST, instance), { force: true })
  rmSync(join(LIST, `${instance}.toml`), { force: true })
}

/** Purges what test runs left that were killed. */
export function purgeDead(): void {
  mkdirSync(LIST, { recursive: true })
  for (const instance of readdirSync(LIST)) {
    if (instance.endsWith('.toml')) continue
    const pid = Number(readFileSync(join(LIST, instance), 'utf8'))
    try {
      process.kill(pid, 0)
    } catch {
      purgeInstance(instance)
    }
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
    await new Promise((again) => setTimeout(again, 50))
  }
}
