/** A network of namespaces for etcd members, in which one can be cut off from the others and still be reached from here. */
import { execFile } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { promisify } from 'node:util'

const exec = promisify(execFile)

export class MemberNet {
  readonly #tag = randomBytes(3).toString('hex')
  readonly #bridge = `wt${this.#tag}b`
  readonly #count: number

  constructor(count: number) {
    this.#count = count
  }

  ns = (i: number) => `wt${this.#tag}e${i}`
  address = (i: number) => `198.51.100.${201 + i}`
  #port = (i: number) => `wt${this.#tag}p${i}`

  async open(): Promise<void> {
    const ip = (...argv: string[]) => exec('ip', argv)
    await ip('link', 'add', this.#bridge, 'type', 'bridge', 'forward_delay', '0')
    await ip('addr', 'add', '198.51.100.200/28', 'dev', this.#bridge)
    await ip('link', 'set', this.#bridge, 'up')
    for (let i = 0; i < this.#count; i += 1) {
      await ip('netns', 'add', this.ns(i))
      await ip('link', 'add', this.#port(i), 'type', 'veth', 'peer', 'name', 'eth0', 'netns', this.ns(i))
      await ip('link', 'set', this.#port(i), 'master', this.#bridge, 'up')
      await ip('-n', this.ns(i), 'link', 'set', 'lo', 'up')
      await ip('-n', this.ns(i), 'addr', 'add', `${this.address(i)}/28`, 'dev', 'eth0')
      await ip('-n', this.ns(i), 'link', 'set', 'eth0', 'up')
    }
    await exec('nft', ['add', 'table', 'bridge', this.#bridge])
    await exec('nft', ['add', 'chain', 'bridge', this.#bridge, 'f', '{ type filter hook forward priority 0; }'])
  }

  /** Nothing passes between it and the others, and nobody is told. */
  async cut(i: number): Promise<void> {
    for (const way of ['iifname', 'oifname'])
      await exec('nft', ['add', 'rule', 'bridge', this.#bridge, 'f', way, this.#port(i), 'drop'])
  }
  async mend(): Promise<void> {
    await exec('nft', ['flush', 'chain', 'bridge', this.#bridge, 'f'])
  }

  async close(): Promise<void> {
    const all = Array.from({ length: this.#count }, (_, i) => i)
    for (const argv of [
      ...all.map((i) => ['ip', 'netns', 'del', this.ns(i)]),
      ['nft', 'delete', 'table', 'bridge', this.#bridge],
      ...all.map((i) => ['ip', 'link', 'del', this.#port(i)]),
      ['ip', 'link', 'del', this.#bridge],
    ])
      await exec(argv[0] as string, argv.slice(1)).catch(() => undefined)
  }
}
