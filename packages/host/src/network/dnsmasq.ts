/** What we write for dnsmasq: one process per nat network, static reservations only. Pure. */
import type { NetworkAttachment } from '@wadah/ports/networks'
import { netmask, parseSubnet } from './ipv4.ts'
import type { NatNetwork } from './links.ts'

export type DnsmasqFiles = { conf: string; hosts: string; dhcp: string; leases: string; pid: string }

const LEASE = '1h'
/** Names and leases are bounded by what is promised, not by what guests ask for. */
const LEASE_MAX = 65_536

export function renderDnsmasq(
  network: NatNetwork,
  files: DnsmasqFiles,
  { user, group }: { user: string; group: string },
): string {
  const subnet = parseSubnet(network.subnet)
  const prefix = subnet?.prefix ?? 24
  const octets = network.subnet.split('.')
  // dnsmasq knows reverse zones of whole bytes only; for other prefixes reverse questions about strangers go upstream.
  const reverse =
    prefix === 24 ? `${octets[2]}.${octets[1]}.${octets[0]}` : prefix === 16 ? `${octets[1]}.${octets[0]}` : undefined
  return [
    `# Made by wadahd for network ${network.name} (${network.id}); changes are overwritten.`,
    `pid-file=${files.pid}`,
    `user=${user}`,
    `group=${group}`,
    // On the bridge and nowhere else, beside any other dnsmasq.
    `interface=${network.bridge}`,
    'except-interface=lo',
    'bind-dynamic',
    'no-hosts',
    `addn-hosts=${files.hosts}`,
    `domain=${network.domain}`,
    `local=/${network.domain}/`,
    ...(reverse === undefined ? [] : [`local=/${reverse}.in-addr.arpa/`]),
    'domain-needed',
    'cache-size=1000',
    'dns-forward-max=300',
    // Addresses are promised in advance: a MAC that is not in the list gets nothing.
    `dhcp-range=${subnetAddress(network)},static,${netmask(prefix)},${LEASE}`,
    `dhcp-hostsfile=${files.dhcp}`,
    `dhcp-leasefile=${files.leases}`,
    `dhcp-lease-max=${LEASE_MAX}`,
    'dhcp-authoritative',
    // The address is promised to nobody else: looking for a holder by ping first would only cost 3 s.
    'no-ping',
    // A guest's own idea of its name must not take another's.
    'dhcp-ignore-names',
    `dhcp-option=option:router,${network.gateway}`,
    `dhcp-option=option:dns-server,${network.gateway}`,
    `dhcp-option=option:domain-search,${network.domain}`,
    '',
  ].join('\n')
}

function subnetAddress(network: NatNetwork): string {
  return network.subnet.split('/')[0] ?? network.subnet
}

function onNetwork(network: NatNetwork, attachments: NetworkAttachment[]): (NetworkAttachment & { address: string })[] {
  return attachments
    .flatMap((a) => (a.network === network.id && a.address !== undefined ? [{ ...a, address: a.address }] : []))
    .sort((a, b) => (`${a.vm} ${a.nic}` < `${b.vm} ${b.nic}` ? -1 : 1))
}

/** Hosts-file lines: the gateway as `host`, and every VM by `name.domain` and `name`. Two NICs on one network: both addresses. */
export function renderHosts(network: NatNetwork, attachments: NetworkAttachment[]): string {
  const lines = onNetwork(network, attachments).map((a) => `${a.address} ${a.vm_name}.${network.domain} ${a.vm_name}`)
  return [`${network.gateway} gateway.${network.domain} gateway`, ...lines, ''].join('\n')
}

/** dhcp-hostsfile lines: MAC, address, name. */
export function renderReservations(network: NatNetwork, attachments: NetworkAttachment[]): string {
  return [...onNetwork(network, attachments).map((a) => `${a.mac},${a.address},${a.vm_name},${LEASE}`), ''].join('\n')
}

/**
 * The lease file without the leases that stand in the way of a reservation, or undefined when there are none. dnsmasq gives an address
 * that another MAC leased (a VM that was deleted) to nobody until the lease ends, and can't be told to forget it while it runs.
 */
export function freeLeases(leases: string, network: NatNetwork, attachments: NetworkAttachment[]): string | undefined {
  const byAddress = new Map(onNetwork(network, attachments).map((a) => [a.address, a.mac]))
  const byMac = new Map(onNetwork(network, attachments).map((a) => [a.mac, a.address]))
  const lines = leases.split('\n')
  const kept = lines.filter((line) => {
    const [, mac, address] = line.split(' ')
    if (mac === undefined || address === undefined) return true
    const promisedTo = byAddress.get(address)
    const promised = byMac.get(mac.toLowerCase())
    return (
      (promisedTo === undefined || promisedTo === mac.toLowerCase()) && (promised === undefined || promised === address)
    )
  })
  return kept.length === lines.length ? undefined : kept.join('\n')
}
