/** Real etcd members on loopback, for tests: started, killed, held still. */
import { type ChildProcess, spawn } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { MemberNet } from './etcd-net.ts'

async function freePort(): Promise<number> {
  const server = createServer()
  await new Promise<void>((ready) => server.listen(0, '127.0.0.1', ready))
  const { port } = server.address() as { port: number }
  await new Promise((done) => server.close(done))
  return port
}

export class Etcd {
  dir = ''
  readonly #members: { client: number; peer: number; child?: ChildProcess | undefined }[] = []
  readonly #net: MemberNet | undefined
  readonly #more: readonly string[]
  said = ''

  /** `net`: each member in a namespace of its own; `more`: further words for each member. */
  constructor(net?: MemberNet, more: readonly string[] = []) {
    this.#net = net
    this.#more = more
  }

  #host = (i: number) => this.#net?.address(i) ?? '127.0.0.1'

  get endpoints(): string[] {
    return this.#members.map((m, i) => `${this.#host(i)}:${m.client}`)
  }

  async start(count = 1): Promise<void> {
    this.dir = mkdtempSync(join(tmpdir(), 'wadah-etcd-'))
    for (let i = 0; i < count; i += 1) this.#members.push({ client: await freePort(), peer: await freePort() })
    for (let i = 0; i < count; i += 1) this.run(i)
  }

  /** Starts a member, the first time or again. */
  run(i: number): void {
    const member = this.#members[i]
    if (!member) throw new Error(`no member ${i}`)
    const cluster = this.#members.map((m, n) => `m${n}=http://${this.#host(n)}:${m.peer}`).join(',')
    const [client, peer] = [`http://${this.#host(i)}:${member.client}`, `http://${this.#host(i)}:${member.peer}`]
    const words = [
      ...(this.#net ? ['ip', 'netns', 'exec', this.#net.ns(i)] : []),
      ...['etcd', '--name', `m${i}`, '--data-dir', join(this.dir, `m${i}`)],
      ...['--listen-client-urls', client, '--advertise-client-urls', client],
      ...['--listen-peer-urls', peer, '--initial-advertise-peer-urls', peer, '--initial-cluster', cluster],
      ...this.#more,
    ]
    const child = spawn(words[0] as string, words.slice(1), {
      stdio: ['ignore', 'pipe', 'pipe'],
      env: { PATH: process.env['PATH'], ETCD_UNSUPPORTED_ARCH: process.arch },
    })
    for (const stream of [child.stdout, child.stderr])
      stream.on('data', (text) => (this.said = `${this.said}${text}`.slice(-20_000)))
    child.on('error', (error) => (this.said += String(error)))
    member.child = child
  }

  async kill(i: number): Promise<void> {
    const child = this.#members[i]?.child
    if (!child || child.exitCode !== null || child.signalCode !== null) return
    const gone = new Promise((done) => child.once('exit', done))
    child.kill('SIGKILL')
    await gone
  }

  /** It keeps its connections and answers nothing. */
  hold(i: number): void {
    this.#members[i]?.child?.kill('SIGSTOP')
  }
  release(i: number): void {
    this.#members[i]?.child?.kill('SIGCONT')
  }

  async stop(): Promise<void> {
    for (const i of this.#members.keys()) await this.kill(i)
    if (this.dir !== '') rmSync(this.dir, { recursive: true, force: true })
  }
}
