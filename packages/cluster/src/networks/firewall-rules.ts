/** Firewalls of VMs: requests → what is kept, and what is kept → the rules that hold. Pure but for looking records up. */
import { parseCidr, mergeCidrs, parsePorts } from '@wadah/api/cidr'
import { fail } from '@wadah/api/fault'
import type { Firewall, FirewallInput, FirewallRule, VmFirewall } from '@wadah/api/schema/firewall'
import { MAX_GROUPS, MAX_RULES } from '@wadah/api/schema/firewall'
import type { Nic } from '@wadah/api/schema/vm'
import type { NicFirewall, NicRule } from '@wadah/ports/networks'
import type { Check } from '@wadah/store/store'
import { unchanged } from '@wadah/store/store'
import { type Deps, find } from '../context.ts'
import { type FirewallGroupRecord, type VmRecord, groupKind, networkKind, vmKind } from '../records.ts'

type View = Pick<Deps, 'view'>

/** Rules as they are kept: security groups by their ids, everything else as it was said. */
export function planRules(
  deps: Deps,
  project: string,
  inputs: readonly FirewallRule[],
  at: string,
  /** The group they are of, which may name itself before it is there. */
  self?: { id: string; name: string },
): FirewallRule[] {
  const names = new Set<string>()
  return inputs.map((rule, i) => {
    const field = `${at}/${i}`
    if (names.has(rule.name))
      throw fail('invalid', `There are two rules "${rule.name}".`, { field: `${field}/name`, remedy: 'another name' })
    names.add(rule.name)
    if (rule.ports !== undefined) {
      if (rule.protocol !== 'tcp' && rule.protocol !== 'udp')
        throw fail(
          'invalid',
          `Only tcp and udp have ports; the rule "${rule.name}" is about ${rule.protocol ?? 'any'}.`,
          {
            field: `${field}/ports`,
            remedy: 'say "protocol": "tcp" or "udp", or leave the ports out',
          },
        )
      if (parsePorts(rule.ports) === undefined)
        throw fail('invalid', `"${rule.ports}" are no ports: 1 to 65535, as 22,80,8000-8100.`, {
          field: `${field}/ports`,
        })
    }
    const side = rule.direction === 'in' ? 'from' : 'to'
    const other = side === 'from' ? 'to' : 'from'
    if (rule[other] !== undefined)
      throw fail('invalid', `The other side of a rule for "${rule.direction}" stands in "${side}".`, {
        field: `${field}/${other}`,
      })
    const peers = rule[side]?.map((peer, j) => planPeer(deps, project, peer, `${field}/${side}/${j}`, self))
    return { ...rule, ...(peers === undefined ? {} : { [side]: peers }) }
  })
}

function planPeer(
  deps: Deps,
  project: string,
  peer: string,
  field: string,
  self: { id: string; name: string } | undefined,
): string {
  const cidr = parseCidr(peer)
  if (cidr !== undefined) return cidr.text
  if (/[.:/]/.test(peer) || !/^[a-z]/.test(peer))
    throw fail('invalid', `"${peer}" is no address, no subnet and no security group.`, {
      field,
      remedy: 'write 192.168.1.0/24, 2001:db8::/32, or the name of a group',
    })
  if (peer === self?.name) return self.id
  return find(deps, 'firewall-group', groupKind, project, peer, field).id
}

/** What was said, laid over what there was; `null` takes it away. */
export function planFirewall(
  deps: Deps,
  project: string,
  input: FirewallInput | null,
  before: Firewall | undefined,
  at = '/firewall',
): Firewall | undefined {
  if (input === null) return undefined
  const groups = input.groups?.map(
    (ref, i) => find(deps, 'firewall-group', groupKind, project, ref, `${at}/groups/${i}`).id,
  )
  const twice = groups?.findIndex((id, i) => groups.indexOf(id) !== i) ?? -1
  if (twice >= 0)
    throw fail('invalid', `The group "${input.groups?.[twice]}" is named twice.`, { field: `${at}/groups/${twice}` })
  const firewall: Firewall = {
    in: input.in ?? before?.in ?? 'drop',
    out: input.out ?? before?.out ?? 'accept',
    groups: groups ?? before?.groups ?? [],
    rules: input.rules === undefined ? (before?.rules ?? []) : planRules(deps, project, input.rules, `${at}/rules`),
  }
  if (firewall.rules.length > MAX_RULES || firewall.groups.length > MAX_GROUPS)
    throw fail('invalid', `A VM has at most ${MAX_RULES} rules and ${MAX_GROUPS} groups.`, { field: at })
  return firewall
}

/** Packets of a network of kind `user` come out of sockets of QEMU: there is no place where rules of a VM could stand. */
export function refuseUserNics(deps: View, firewall: Firewall | undefined, nics: readonly Nic[]): void {
  if (firewall === undefined) return
  const nic = nics.find((n) => deps.view.get(networkKind, n.network)?.value.kind === 'user')
  if (nic === undefined) return
  throw fail(
    'invalid',
    `The NIC "${nic.name}" is on a network of kind "user", whose packets QEMU itself sends and takes: rules of the host do not see them.`,
    { field: '/firewall', remedy: 'use networks of kind "nat" or "bridge" for this VM, or no firewall' },
  )
}

/** Ids of all groups that are named, as a bundle of rules or as a side of one. */
export function namedGroups(rules: readonly FirewallRule[], groups: readonly string[] = []): string[] {
  const peers = rules.flatMap((rule) => [...(rule.from ?? []), ...(rule.to ?? [])])
  return [...new Set([...groups, ...peers.filter((peer) => peer.startsWith('grp-'))])]
}

/** They must be there when this is committed: whoever deletes a group touches it first, and looks for users after. */
export function groupChecks(deps: View, ids: readonly string[]): Check[] {
  return ids.flatMap((id) => {
    const rec = deps.view.get(groupKind, id)
    return rec === undefined ? [] : [unchanged(rec)]
  })
}

/** VMs that a group is given to. */
export function membersOf(deps: View, group: string): VmRecord[] {
  return deps.view
    .list(vmKind)
    .map((vm) => vm.value)
    .filter((vm) => vm.spec.firewall?.groups.includes(group))
}

/** Its own rules, then those of its groups, each in their order. */
export function ordered(deps: View, firewall: Firewall): { rule: FirewallRule; group?: FirewallGroupRecord }[] {
  return [
    ...firewall.rules.map((rule) => ({ rule })),
    ...firewall.groups.flatMap((id) => {
      const group = deps.view.get(groupKind, id)?.value
      return group === undefined ? [] : group.rules.map((rule) => ({ rule, group }))
    }),
  ]
}

/** Subnets of the other side: a group stands for the known addresses of its VMs. undefined: anybody. */
function peersOf(deps: View, rule: FirewallRule, addressesOf: (group: string) => string[]): string[] | undefined {
  const peers = rule.direction === 'in' ? rule.from : rule.to
  if (peers === undefined) return undefined
  const texts = peers.flatMap((peer) => (peer.startsWith('grp-') ? addressesOf(peer) : [peer]))
  return mergeCidrs(texts.flatMap((text) => parseCidr(text) ?? [])).map((c) => c.text)
}

/** For one round over all VMs: the addresses of a group are looked up once. */
export function addressBook(deps: View): (group: string) => string[] {
  const known = new Map<string, string[]>()
  return (group) => {
    const there = known.get(group)
    if (there) return there
    const list = membersOf(deps, group).flatMap((vm) =>
      vm.spec.nics.flatMap((nic) => (nic.address === undefined ? [] : [nic.address])),
    )
    known.set(group, list)
    return list
  }
}

/** What the host is told. */
export function nicFirewall(deps: View, firewall: Firewall, addressesOf: (group: string) => string[]): NicFirewall {
  return {
    in: firewall.in,
    out: firewall.out,
    rules: ordered(deps, firewall).map(({ rule }): NicRule => {
      const peers = peersOf(deps, rule, addressesOf)
      const ports = rule.ports === undefined ? undefined : parsePorts(rule.ports)
      return {
        direction: rule.direction,
        action: rule.action,
        protocol: rule.protocol ?? 'any',
        ...(ports === undefined ? {} : { ports }),
        ...(peers === undefined ? {} : { peers }),
      }
    }),
  }
}

/** Names instead of ids. */
export function namedRule(deps: View, rule: FirewallRule): FirewallRule {
  const named = (peers: string[] | undefined) =>
    peers?.map((peer) => deps.view.get(groupKind, peer)?.value.name ?? peer)
  const [from, to] = [named(rule.from), named(rule.to)]
  return { ...rule, ...(from ? { from } : {}), ...(to ? { to } : {}) }
}

/** What holds for a VM, for people. */
export function viewFirewall(deps: View, firewall: Firewall | undefined): VmFirewall {
  if (firewall === undefined) return { enabled: false, in: 'accept', out: 'accept', rules: [] }
  const addressesOf = addressBook(deps)
  return {
    enabled: true,
    in: firewall.in,
    out: firewall.out,
    rules: ordered(deps, firewall).map(({ rule, group }) => {
      const grouped = [...(rule.from ?? []), ...(rule.to ?? [])].some((peer) => peer.startsWith('grp-'))
      return {
        ...namedRule(deps, rule),
        ...(group === undefined ? {} : { group: group.name }),
        ...(grouped ? { addresses: peersOf(deps, rule, addressesOf) ?? [] } : {}),
      }
    }),
  }
}
