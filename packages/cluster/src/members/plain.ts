/** Networks on which VMs move unencrypted, for nobody but the hosts can reach them. Pure. */
import { parseCidr } from '@wadah/api/cidr'
import { fail } from '@wadah/api/fault'

/** As they are kept: host bits cut off, each once. @throws WadahError `invalid` */
export function plainNetworks(texts: readonly string[]): string[] {
  const parsed = texts.map((text) => {
    const cidr = parseCidr(text)
    if (cidr && text.includes('/')) return cidr.text
    throw fail('invalid', `"${text}" is no network.`, {
      field: '/plain_networks',
      remedy: 'a network with its length: wadah cluster set --plain 10.9.0.0/24',
    })
  })
  return [...new Set(parsed)]
}

/** Whether both hosts are reached on one of these networks; one without an address is on none. */
export function isPlainBetween(networks: readonly string[], ...hosts: (string | undefined)[]): boolean {
  const at = hosts.map((address) => address !== undefined && parseCidr(address))
  return networks.some((text) => {
    const network = parseCidr(text)
    return (
      network !== undefined &&
      at.every((a) => a && a.family === network.family && a.first >= network.first && a.last <= network.last)
    )
  })
}
