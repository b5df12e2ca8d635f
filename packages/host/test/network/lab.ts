/**
 * A small world of network namespaces for the tests: "host" (where our networks are made), "lan" (another machine on the LAN) and
 * guests (a namespace with one end of a veth pair on the bridge, in place of a tap with QEMU behind it).
 */
import { type ChildProcess, execFile, spawn } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { chmod, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'

const exec = promisify(execFile)

/** dhcp client script of busybox: sets what it is told, in its own namespace; resolv.conf is the namespace's own by /etc/netns. */
const UDHCPC = `#!/bin/sh
case "$1" in
  deconfig) ip addr flush dev "$interface"; ip link set "$interface" up ;;
  bound|renew)
    ip addr replace "$ip/$mask" dev "$interface"
    [ -z "$router" ] || ip route replace default via "$router"
    echo "got ip=$ip mask=$mask router=$router dns=$dns domain=$domain search=$search hostname=$hostname" ;;
esac
`

export const HOST = '198.51.100.1'
export const LAN = '198.51.100.2'

export class Lab {
  readonly tag = randomBytes(3).toString('hex')
  readonly host = `wt${this.tag}h`
  readonly lan = `wt${this.tag}l`
  dir = ''
  private readonly guests: string[] = []
  private readonly children = new Set<ChildProcess>()

  async open(): Promise<void> {
    this.dir = await mkdtemp(join(tmpdir(), 'wadah-net-'))
    await chmod(this.dir, 0o711)
    await writeFile(join(this.dir, 'udhcpc.sh'), UDHCPC, { mode: 0o755 })
    await this.namespace(this.host)
    await this.namespace(this.lan)
    // A new namespace begins with the settings of the machine's own.
    await this.in(this.host, 'sh', '-c', 'echo 0 > /proc/sys/net/ipv4/ip_forward')
    await exec('ip', [
      'link',
      'add',
      'eth0',
      'netns',
      this.host,
      'type',
      'veth',
      'peer',
      'name',
      'eth0',
      'netns',
      this.lan,
    ])
    for (const [ns, address] of [
      [this.host, HOST],
      [this.lan, LAN],
    ] as const) {
      await exec('ip', ['-n', ns, 'addr', 'add', `${address}/24`, 'dev', 'eth0'])
      await exec('ip', ['-n', ns, 'link', 'set', 'eth0', 'up'])
    }
    await exec('ip', ['-n', this.host, 'route', 'add', 'default', 'via', LAN])
  }

  async close(): Promise<void> {
    for (const child of this.children) child.kill('SIGKILL')
    for (const ns of [...this.guests, this.host, this.lan]) {
      const { stdout } = await exec('ip', ['netns', 'pids', ns]).catch(() => ({ stdout: '' }))
      // Whatever still lives in a namespace of ours was started by this test.
      for (const pid of stdout.split('\n').filter(Boolean)) kill(Number(pid))
      await exec('ip', ['netns', 'del', ns]).catch(() => {})
    }
    await rm(this.dir, { recursive: true, force: true })
  }

  private async namespace(name: string): Promise<void> {
    await exec('ip', ['netns', 'add', name])
    // An IPv6 address is there at once, not when a second of looking for others who have it is over.
    for (const of of ['all', 'default'])
      await this.in(name, 'sh', '-c', `echo 0 > /proc/sys/net/ipv6/conf/${of}/accept_dad`)
    await exec('ip', ['-n', name, 'link', 'set', 'lo', 'up'])
  }

  /** Runs a program in a namespace; stdout. */
  async in(ns: string, ...argv: string[]): Promise<string> {
    return (await exec('ip', ['netns', 'exec', ns, ...argv], { timeout: 30_000 })).stdout
  }

  /** A namespace with `eth0` of this MAC plugged into `bridge`; `port` is what the host calls its end. */
  async guest(bridge: string, mac: string, port = `veth${this.guests.length}`): Promise<string> {
    const ns = `wt${this.tag}g${this.guests.length}`
    this.guests.push(ns)
    await this.namespace(ns)
    await exec('ip', ['link', 'add', port, 'netns', this.host, 'type', 'veth', 'peer', 'name', 'eth0', 'netns', ns])
    await exec('ip', ['-n', ns, 'link', 'set', 'eth0', 'address', mac, 'up'])
    await exec('ip', ['-n', this.host, 'link', 'set', port, 'master', bridge, 'up'])
    return ns
  }

  /** Asks for an address like a guest does; what the client printed, or undefined when nobody answered. */
  async dhcp(ns: string): Promise<string | undefined> {
    const argv = ['udhcpc', '-i', 'eth0', '-n', '-q', '-f', '-t', '4', '-T', '1', '-s', join(this.dir, 'udhcpc.sh')]
    try {
      const out = await this.in(ns, 'busybox', ...argv, '-O', 'search')
      return out.split('\n').find((line) => line.startsWith('got '))
    } catch {
      return undefined
    }
  }

  /** Serves TCP and UDP on a port of a namespace: the answer is the address the question came from. */
  async serve(ns: string, port: number): Promise<void> {
    const script = `
      const tcp = require('net').createServer((c) => { c.on('error', () => {}); c.end('from ' + c.remoteAddress.replace('::ffff:', '')) })
      const udp = require('dgram').createSocket('udp4')
      udp.on('message', (m, r) => udp.send('from ' + r.address, r.port, r.address))
      tcp.listen(${port}, '0.0.0.0', () => udp.bind(${port}, '0.0.0.0', () => console.log('ready')))`
    await this.start(ns, script)
  }

  /** Starts a Node script in a namespace and waits for its first line. */
  async start(ns: string, script: string): Promise<ChildProcess> {
    const child = spawn('ip', ['netns', 'exec', ns, process.execPath, '-e', script], {
      stdio: ['ignore', 'pipe', 'inherit'],
    })
    this.children.add(child)
    await new Promise<void>((resolve, reject) => {
      child.stdout?.once('data', () => resolve())
      child.once('exit', (code) => reject(new Error(`ended with ${code}`)))
    })
    return child
  }

  /** Runs a Node expression (a promise) in a namespace; what it came to, or `error CODE`. */
  async node(ns: string, expression: string): Promise<string> {
    const script = `Promise.resolve().then(() => ${expression}).then((v) => console.log(v), (e) => console.log('error ' + (e.code ?? e.message)))
      .finally(() => process.exit())`
    return (await this.in(ns, process.execPath, '-e', script)).trim()
  }

  /** What a TCP server says, within a second. */
  async tcp(ns: string, address: string, port: number): Promise<string> {
    return await this.node(
      ns,
      `new Promise((ok, no) => { let s = ''; const c = require('net').connect({ host: '${address}', port: ${port} })
        c.on('data', (d) => (s += d)); c.on('end', () => ok(s)); c.on('error', no); setTimeout(() => no({ code: 'SILENT' }), 1500) })`,
    )
  }

  async udp(ns: string, address: string, port: number): Promise<string> {
    return await this.node(
      ns,
      `new Promise((ok, no) => { const u = require('dgram').createSocket('udp4'); u.on('message', (m) => ok(String(m))); u.on('error', no)
        u.send('hello', ${port}, '${address}'); setTimeout(() => no({ code: 'SILENT' }), 1500) })`,
    )
  }

  /** Asks a name server. */
  async resolve(ns: string, server: string, name: string, type: 'A' | 'PTR' = 'A'): Promise<string> {
    return await this.node(
      ns,
      `{ const r = new (require('dns').promises.Resolver)({ timeout: 1500, tries: 2 }); r.setServers(['${server}'])
        return r.resolve('${name}', '${type}').then((a) => a.join(' ')) }`.replace(/^\{/, '(() => {') + ')()',
    )
  }

  async nft(): Promise<string> {
    return await this.in(this.host, 'nft', 'list', 'ruleset')
  }

  /** Command lines of dnsmasq processes in the host's namespace. */
  async dnsmasqs(): Promise<{ pid: number; argv: string }[]> {
    const { stdout } = await exec('ip', ['netns', 'pids', this.host])
    const found = []
    for (const pid of stdout.split('\n').filter(Boolean).map(Number)) {
      const argv = (await readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => '')).split('\0').join(' ')
      if (argv.startsWith('dnsmasq ')) found.push({ pid, argv })
    }
    return found
  }
}

function kill(pid: number): void {
  try {
    process.kill(pid, 'SIGKILL')
  } catch {
    // Gone already.
  }
}
