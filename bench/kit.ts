/** A wadahd of the benchmark's own: its instance, its folders, and nothing of it left afterwards. */
import { type ChildProcess, spawn, spawnSync } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import http from 'node:http'
import https from 'node:https'
import { join, resolve } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'

export const ROOT = resolve(import.meta.dirname, '..')
const CACHE = join(ROOT, '.cache')
const MAIN = join(ROOT, 'packages/daemon/dist/main.js')
/** With the options the product is run with; before bundling, the compiled file. */
const DAEMON: [string, ...string[]] = existsSync(join(ROOT, 'packages/daemon/dist/wadahd.mjs'))
  ? [join(ROOT, 'bin/wadahd')]
  : [process.execPath, MAIN]

export type Answer = { status: number; body: any }
export type Job = { id: string; state: string; fault?: { code: string; detail: string }; result?: any; steps: any[] }

export class Daemon {
  readonly instance = `b${randomBytes(3).toString('hex')}`
  readonly data = `/var/lib/wadah-${this.instance}`
  readonly socket = `/run/wadah-${this.instance}/wadahd.sock`
  /** Where the bare side of a comparison lives: the same file system, the same depth. */
  readonly scratch = `/var/lib/wadah-${this.instance}-bare`
  readonly #agent = new http.Agent({ keepAlive: true, maxSockets: 64 })
  #child: ChildProcess | undefined
  #said = ''

  get pid(): number {
    return this.#child?.pid ?? 0
  }
  get url(): URL {
    return new URL(readFileSync(join(this.data, 'url'), 'utf8').trim())
  }
  get #argv(): string[] {
    return ['--instance', this.instance, '--data', this.data, '--socket', this.socket, '--config', `${this.data}.toml`]
  }

  async start(): Promise<void> {
    for (const dir of [this.data, this.scratch]) mkdirSync(dir, { recursive: true, mode: 0o711 })
    // A benchmark asks more at once than a busy start would; nothing else differs from what is delivered.
    writeFileSync(`${this.data}.toml`, `cache = ${JSON.stringify(CACHE)}\n`)
    const [program, ...options] = DAEMON
    const extra = process.env['WADAH_BENCH_PROF']
      ? ['--cpu-prof', `--cpu-prof-dir=${process.env['WADAH_BENCH_PROF']}`]
      : []
    const words =
      extra.length > 0
        ? [
            process.execPath,
            ...extra,
            join(
              ROOT,
              'packages/daemon/dist',
              existsSync(join(ROOT, 'packages/daemon/dist/wadahd.mjs')) ? 'wadahd.mjs' : 'main.js',
            ),
          ]
        : [program, ...options]
    const child = spawn(words[0] as string, [...words.slice(1), ...this.#argv, '--listen', '127.0.0.1:0'], {
      stdio: ['ignore', 'pipe', 'pipe'],
    })
    this.#child = child
    for (const stream of [child.stdout, child.stderr])
      stream?.on('data', (chunk) => (this.#said = `${this.#said}${chunk}`.slice(-20_000)))
    for (let i = 0; ; i++) {
      if (child.exitCode !== null) throw new Error(`wadahd ended:\n${this.#said}`)
      const up = await this.call('GET', '/v1/ping').then(
        (a) => a.status === 200,
        () => false,
      )
      if (up) return
      if (i > 1200) throw new Error(`wadahd does not answer:\n${this.#said}`)
      await sleep(50)
    }
  }

  call(method: string, path: string, body?: unknown): Promise<Answer> {
    const text = body === undefined ? undefined : JSON.stringify(body)
    const headers: Record<string, string> = { host: 'localhost' }
    if (text !== undefined)
      Object.assign(headers, { 'content-type': 'application/json', 'content-length': String(Buffer.byteLength(text)) })
    return request(http.request({ socketPath: this.socket, agent: this.#agent, method, path, headers }), text)
  }

  /** A request that must succeed. */
  async must(method: string, path: string, body?: unknown): Promise<any> {
    const { status, body: answer } = await this.call(method, path, body)
    if (status >= 300) throw new Error(`${method} ${path}: ${status} ${JSON.stringify(answer)}`)
    return answer
  }

  /** A job that must end well within 10 minutes. */
  async job(method: string, path: string, body?: unknown): Promise<Job> {
    const job = (await this.must(method, `${path}${path.includes('?') ? '&' : '?'}wait=600`, body)) as Job
    if (job.state !== 'done') throw new Error(`${method} ${path}: ${job.state}: ${job.fault?.detail ?? ''}`)
    return job
  }

  /** HTTPS with keep-alive and a token, trusting exactly this daemon's certificate. */
  async https(): Promise<(path: string) => Promise<Answer>> {
    const token = await this.must('POST', '/v1/tokens', { name: 'bench', scope: 'read' })
    const { hostname, port } = this.url
    const ca = readFileSync(join(this.data, 'tls/tls.crt'))
    const agent = new https.Agent({ keepAlive: true, ca, checkServerIdentity: () => undefined })
    const headers = { authorization: `Bearer ${token.secret}` }
    return (path) => request(https.request({ hostname, port, agent, path, headers }))
  }

  /** Calls back with every event until the returned function is called. */
  async events(resource: string, on: (event: { resource_id: string; state?: string }) => void): Promise<() => void> {
    const req = http.get({
      socketPath: this.socket,
      path: `/v1/events?resource=${resource}`,
      headers: { host: 'localhost' },
      agent: false,
    })
    await new Promise<void>((done, failed) => {
      req.once('error', failed)
      req.once('response', (res) => {
        let rest = ''
        res.setEncoding('utf8').on('data', (text: string) => {
          const parts = (rest + text).split('\n\n')
          rest = parts.pop() ?? ''
          for (const part of parts) {
            const data = /^data: ?(.*)$/m.exec(part)?.[1]
            if (data?.startsWith('{')) on(JSON.parse(data))
          }
        })
        done()
      })
    })
    req.on('error', () => undefined)
    return () => req.destroy()
  }

  async stop(): Promise<void> {
    const child = this.#child
    this.#agent.destroy()
    if (!child || child.exitCode !== null || child.signalCode !== null) return
    const gone = new Promise((done) => child.once('exit', done))
    child.kill('SIGTERM')
    await Promise.race([gone, sleep(10_000)])
    if (child.exitCode === null && child.signalCode === null) child.kill('SIGKILL')
  }

  /** Takes everything away; also usable while leaving in a hurry. */
  purge(): void {
    if (this.#child?.exitCode === null) this.#child.kill('SIGKILL')
    const [program, ...options] = DAEMON
    const { status, stderr } = spawnSync(program, [...options, ...this.#argv, '--purge'], {
      encoding: 'utf8',
      timeout: 120_000,
    })
    if (status !== 0) process.stderr.write(`purge of ${this.instance}: ${stderr}\n`)
    for (const path of [this.data, this.scratch, `${this.data}.toml`, `/run/wadah-${this.instance}`])
      rmSync(path, { recursive: true, force: true })
  }
}

function request(req: http.ClientRequest, text?: string): Promise<Answer> {
  return new Promise((done, failed) => {
    req.once('error', failed)
    req.once('response', (res) => {
      const parts: Buffer[] = []
      res.on('data', (part: Buffer) => parts.push(part))
      res.once('error', failed)
      res.once('end', () => {
        const all = Buffer.concat(parts).toString('utf8')
        try {
          done({ status: res.statusCode ?? 0, body: all === '' ? undefined : JSON.parse(all) })
        } catch (error) {
          failed(error as Error)
        }
      })
    })
    req.end(text)
  })
}

/** Time of an action, ms. */
export async function timed<T>(action: () => Promise<T>): Promise<[number, T]> {
  const begun = performance.now()
  const value = await action()
  return [performance.now() - begun, value]
}

export type Bench = {
  name: string
  /** It asks no daemon, and so needs neither one nor root. */
  alone?: true
  /** On Ctrl-C: takes away what it made, at once. */
  abandon?(): void
  run(daemon: Daemon, options: Options): Promise<import('./report.ts').Found>
}
export type Options = { quick: boolean; recipe: string | undefined }

/** The tiny test guest as an image of this daemon; made once. */
export async function tinyImage(daemon: Daemon): Promise<void> {
  if ((await daemon.call('GET', '/v1/images/tiny')).status === 404)
    await daemon.job('POST', '/v1/images/build', { recipe: 'tiny' })
}

/** No NICs: a tap takes the host's network tools their time, and the bare side would have to be given the same one. */
export const TINY = { image: 'tiny', memory_mib: 96, nics: [] }

export async function removeVms(daemon: Daemon, prefix: string): Promise<void> {
  for (;;) {
    const { items } = await daemon.must('GET', `/v1/vms?limit=1000&name=${prefix}`)
    if (items.length === 0) return
    await inTurns(items, 16, (vm: { name: string }) => daemon.job('DELETE', `/v1/vms/${vm.name}?force=true`))
  }
}

/** Until the agents of so many guests answer, at most ten minutes. */
export async function booted(daemon: Daemon, prefix: string, count: number): Promise<void> {
  for (const end = performance.now() + 600_000; ; await sleep(1000)) {
    const { items } = await daemon.must('GET', `/v1/vms?limit=1000&state=running&name=${prefix}`)
    const there = items.filter((vm: { status: { agent?: string } }) => vm.status.agent === 'connected').length
    if (there >= count) return
    if (performance.now() > end) throw new Error(`only ${there} of ${count} guests came up`)
  }
}

/** Does something for each, at most `atOnce` at a time. */
export async function inTurns<T>(
  items: readonly T[],
  atOnce: number,
  work: (item: T, i: number) => Promise<unknown>,
): Promise<void> {
  let next = 0
  const worker = async () => {
    while (next < items.length) {
      const i = next++
      await work(items[i] as T, i)
    }
  }
  await Promise.all(Array.from({ length: atOnce }, worker))
}
