/** The lab's wires: a bridge of its own, a namespace and a pair of virtual Ethernet ports for each host. */
import { writeFile } from 'node:fs/promises'
import { fail } from '@wadah/api/fault'
import { runProgram } from '../local/process.ts'
import { bridgeOf, gatewayOf, HOST_BRIDGE, type LabHost, type LabState, SUBNET_BITS } from './plan.ts'
import { forwardRules, forwardTable } from './forward.ts'

const TOOL_MS = 20_000

export async function tool(program: string, ...argv: string[]): Promise<string> {
  const ran = await runProgram(program, argv, { timeout_ms: TOOL_MS })
  if (ran.code === 0) return ran.stdout
  throw fail('tool_failed', `${program} ${argv.join(' ')}: ${ran.stderr.trim() || `exit code ${ran.code}`}`, {
    remedy: 'wadah lab down; then again (needs root, iproute2 and nftables)',
    effect: 'partial',
  })
}
const quietly = (program: string, ...argv: string[]) => tool(program, ...argv).catch(() => '')
const ip = (...argv: string[]) => tool('ip', ...argv)

export async function makeNet(lab: LabState): Promise<void> {
  const bridge = bridgeOf(lab.name)
  await ip('link', 'add', bridge, 'type', 'bridge', 'forward_delay', '0')
  await ip('addr', 'add', `${gatewayOf(lab.name)}/${SUBNET_BITS}`, 'dev', bridge)
  await ip('link', 'set', bridge, 'up')
  await tool('nft', 'add', 'table', 'bridge', bridge)
  await tool('nft', 'add', 'chain', 'bridge', bridge, 'f', '{ type filter hook forward priority 0; }')
  // Hosts fetch packages for images, as any host does.
  await writeFile('/proc/sys/net/ipv4/ip_forward', '1')
  await tool('nft', 'add', 'table', 'ip', bridge)
  await tool('nft', 'add', 'chain', 'ip', bridge, 'out', '{ type nat hook postrouting priority srcnat; }')
  const net = `${gatewayOf(lab.name)}/${SUBNET_BITS}`
  await tool('nft', 'add', 'rule', 'ip', bridge, 'out', 'ip', 'saddr', net, 'oifname', '!=', bridge, 'masquerade')
  for (const host of lab.hosts) await makeHost(lab, host)
  await setLink(lab)
}

async function makeHost(lab: LabState, { namespace, port, address }: LabHost): Promise<void> {
  const inside = (...argv: string[]) => ip('-n', namespace, ...argv)
  await ip('netns', 'add', namespace)
  await ip('link', 'add', port, 'type', 'veth', 'peer', 'name', 'eth0', 'netns', namespace)
  await ip('link', 'set', port, 'master', bridgeOf(lab.name), 'up')
  await inside('link', 'set', 'lo', 'up')
  await inside('link', 'add', HOST_BRIDGE, 'type', 'bridge', 'forward_delay', '0')
  await inside('link', 'set', 'eth0', 'master', HOST_BRIDGE, 'up')
  await inside('addr', 'add', `${address}/${SUBNET_BITS}`, 'dev', HOST_BRIDGE)
  await inside('link', 'set', HOST_BRIDGE, 'up')
  await inside('route', 'add', 'default', 'via', gatewayOf(lab.name))
}

/** Pure: what goes out of a host and what comes in, each half of the way there and back; in the place of what there was. */
export function linkTools({ hosts, link: { rate, delay } }: Pick<LabState, 'hosts' | 'link'>): string[][] {
  const netem = [...(delay === undefined ? [] : ['delay', delay]), ...(rate === undefined ? [] : ['rate', rate])]
  if (netem.length === 0) return []
  const tc = (port: string) => ['tc', 'qdisc', 'replace', 'dev', port, 'root', 'netem', ...netem]
  return hosts.flatMap(({ namespace, port }) => [
    tc(port),
    ['nsenter', `--net=/run/netns/${namespace}`, '--', ...tc('eth0')],
  ])
}

export async function setLink(lab: LabState): Promise<void> {
  for (const [program = '', ...argv] of linkTools(lab)) await tool(program, ...argv)
}

/** Whether all of it stands: after a new start of the machine nothing of it does. */
export async function netStands(lab: LabState): Promise<boolean> {
  const links = await quietly('ip', '-o', 'link')
  const spaces = (await quietly('ip', 'netns')).split('\n').map((line) => line.split(' ')[0])
  const wires = [bridgeOf(lab.name), ...lab.hosts.map((h) => h.port)]
  if (!wires.every((name) => new RegExp(`\\b${name}[@:]`).test(links))) return false
  if (!lab.hosts.every((h) => spaces.includes(h.namespace))) return false
  // What is made last.
  const last = lab.hosts.at(-1)
  return last !== undefined && /default/.test(await quietly('ip', '-n', last.namespace, 'route'))
}

/** Exactly these ports lead into the lab. */
export async function setForwards(lab: LabState): Promise<void> {
  // Else what comes from 127.0.0.1 could not go out by the bridge.
  await writeFile(`/proc/sys/net/ipv4/conf/${bridgeOf(lab.name)}/route_localnet`, '1')
  const ran = await runProgram('nft', ['-f', '-'], { timeout_ms: TOOL_MS, input: forwardRules(lab) })
  if (ran.code !== 0) throw fail('tool_failed', `nft: ${ran.stderr.trim()}`, { remedy: 'wadah lab down' })
}

/** Exactly these pairs can't hear each other any more; nobody is told. */
export async function setCuts(lab: LabState): Promise<void> {
  const table = bridgeOf(lab.name)
  await tool('nft', 'flush', 'chain', 'bridge', table, 'f')
  for (const [a, b] of lab.cuts) {
    const [one, two] = [a, b].map((name) => lab.hosts.find((h) => h.name === name)?.port)
    if (one === undefined || two === undefined) continue
    for (const [from, to] of [
      [one, two],
      [two, one],
    ] as const)
      await tool('nft', 'add', 'rule', 'bridge', table, 'f', 'iifname', from, 'oifname', to, 'drop')
  }
}

export async function dropNet(lab: Pick<LabState, 'name' | 'hosts'>): Promise<void> {
  for (const host of lab.hosts) {
    await quietly('ip', 'netns', 'del', host.namespace)
    await quietly('ip', 'link', 'del', host.port)
  }
  for (const family of ['bridge', 'ip']) await quietly('nft', 'delete', 'table', family, bridgeOf(lab.name))
  await quietly('nft', 'delete', 'table', 'ip', forwardTable(lab.name))
  await quietly('ip', 'link', 'del', bridgeOf(lab.name))
}

/** Every process of the host: the daemon, QEMUs, etcd, dnsmasq. */
export async function pidsOf(host: LabHost): Promise<number[]> {
  const text = await quietly('ip', 'netns', 'pids', host.namespace)
  return text
    .split('\n')
    .map(Number)
    .filter((pid) => pid > 1)
}
