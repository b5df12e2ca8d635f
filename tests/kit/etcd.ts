/** An etcd that an administrator runs: one member with TLS, in the network of a host of the lab. */
import { type ChildProcess, spawn } from 'node:child_process'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { LAB, ok, run } from './lab.ts'

export class GivenEtcd {
  readonly dir = mkdtempSync(join(tmpdir(), 'wadah-given-'))
  #child: ChildProcess | undefined
  readonly #address: string
  readonly #host: number

  /** `host`: in whose network it is, at that host's address. */
  constructor(host: number, address: string) {
    this.#host = host
    this.#address = address
  }

  get url(): string {
    return `https://${this.#address}:2379`
  }
  file = (name: string) => join(this.dir, name)
  /** As options of the command line. */
  options = (ca = 'ca') => [
    ...['--etcd', this.url, '--etcd-ca', this.file(`${ca}.crt`)],
    ...['--etcd-cert', this.file('client.crt'), '--etcd-key', this.file('client.key')],
  ]

  async start(): Promise<void> {
    await this.#authority('ca')
    await this.#authority('wrong')
    await this.#signed('server', `subjectAltName=IP:${this.#address}`)
    await this.#signed('client', 'extendedKeyUsage=clientAuth')
    this.run()
  }

  /** Starts it, the first time or again. */
  run(): void {
    const peer = `http://${this.#address}:2380`
    const words = [
      ...['netns', 'exec', `w${LAB}${this.#host}`, 'etcd', '--name', 'theirs', '--data-dir', this.file('data')],
      ...['--listen-client-urls', this.url, '--advertise-client-urls', this.url, '--client-cert-auth'],
      ...['--listen-peer-urls', peer, '--initial-advertise-peer-urls', peer, '--initial-cluster', `theirs=${peer}`],
      ...['--cert-file', this.file('server.crt'), '--key-file', this.file('server.key')],
      ...['--trusted-ca-file', this.file('ca.crt')],
    ]
    this.#child = spawn('ip', words, { stdio: 'ignore' })
  }

  async kill(): Promise<void> {
    const child = this.#child
    this.#child = undefined
    if (!child || child.exitCode !== null || child.signalCode !== null) return
    const gone = new Promise((done) => child.once('exit', done))
    child.kill('SIGKILL')
    await gone
  }

  async stop(): Promise<void> {
    await this.kill()
    rmSync(this.dir, { recursive: true, force: true })
  }

  #newKey(name: string): string[] {
    const curve = 'ec_paramgen_curve:prime256v1'
    return ['-newkey', 'ec', '-pkeyopt', curve, '-nodes', '-keyout', this.file(`${name}.key`)]
  }

  async #authority(name: string): Promise<void> {
    await this.#openssl(
      'req',
      '-x509',
      ...this.#newKey(name),
      '-out',
      this.file(`${name}.crt`),
      '-days',
      '2',
      '-subj',
      `/CN=${name}`,
    )
  }

  async #signed(name: string, extension: string): Promise<void> {
    await this.#openssl('req', ...this.#newKey(name), '-out', this.file(`${name}.csr`), '-subj', `/CN=${name}`)
    writeFileSync(this.file(`${name}.ext`), extension)
    const by = ['-CA', this.file('ca.crt'), '-CAkey', this.file('ca.key'), '-CAcreateserial', '-days', '2']
    const what = ['-in', this.file(`${name}.csr`), '-extfile', this.file(`${name}.ext`)]
    await this.#openssl('x509', '-req', ...what, ...by, '-out', this.file(`${name}.crt`))
  }

  async #openssl(...words: string[]): Promise<void> {
    await ok(run('openssl', words))
  }
}
