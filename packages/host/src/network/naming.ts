/**
 * Names of what we make in the kernel, and how it is known again. An interface is ours when its alias (`ip link show`, IFLA_IFALIAS)
 * says so; its name alone proves nothing. Names fit IFNAMSIZ: 15 characters. Pure.
 */
import { createHash } from 'node:crypto'

const IFNAME_MAX = 15

function hash(text: string): Buffer {
  return createHash('sha256').update(text).digest()
}
function idPart(id: string): string {
  return id.slice(id.indexOf('-') + 1)
}

/** Of our nftables tables: `wadah`, or `wadah-<instance>`. */
export function tableName(instance: string): string {
  return instance === 'default' ? 'wadah' : `wadah-${instance}`
}

/** `wbr-k3x9q2m7w4` for the network `net-k3x9q2m7w4`. */
export function bridgeName(network: string): string {
  return `wbr-${idPart(network)}`.slice(0, IFNAME_MAX)
}

/** A locally administered unicast MAC that depends on the network's id only: without one a bridge changes its MAC with its ports. */
export function bridgeMac(network: string): string {
  const bytes = [0x02, ...hash(`bridge ${network}`).subarray(0, 5)]
  return bytes.map((byte) => byte.toString(16).padStart(2, '0')).join(':')
}

/** `w` + the VM's id + 4 letters from the NIC's name: readable in `ip link`, the same after every restart. */
export function tapName(vm: string, nic: string): string {
  const letters = [...hash(`nic ${vm} ${nic}`).subarray(0, 4)].map(
    (byte) => 'abcdefghijklmnopqrstuvwxyz234567'[byte % 32],
  )
  return `w${idPart(vm).slice(0, 10)}${letters.join('')}`
}

/** `wvl-k3x9q2m7w4`: the VLAN interface that is the only port of a network's bridge beside its taps. */
export function vlanName(network: string): string {
  return `wvl-${idPart(network)}`.slice(0, IFNAME_MAX)
}

export type Owned =
  | { kind: 'bridge' | 'vlan'; network: string }
  | { kind: 'tap'; vm: string; nic: string; network: string }

export function aliasOf(instance: string, owned: Owned): string {
  return owned.kind === 'tap'
    ? `wadah:${instance}:tap:${owned.vm}:${owned.nic}:${owned.network}`
    : `wadah:${instance}:${owned.kind}:${owned.network}`
}

/** The reverse of `aliasOf`; undefined for what this instance did not make. */
export function parseAlias(instance: string, alias: string | undefined): Owned | undefined {
  const [product, whose, kind, ...rest] = (alias ?? '').split(':')
  if (product !== 'wadah' || whose !== instance) return undefined
  const [a, b, c, ...more] = rest
  if (more.length > 0 || a === undefined) return undefined
  if ((kind === 'bridge' || kind === 'vlan') && b === undefined) return { kind, network: a }
  if (kind === 'tap' && b !== undefined && c !== undefined) return { kind, vm: a, nic: b, network: c }
  return undefined
}
