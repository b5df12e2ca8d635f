/** A lab as data: hosts of one machine, what they are called, where they are. Pure. */
import { fail } from '@wadah/api/fault'
import { fnv1a } from '@wadah/api/fnv'

export type LabHost = {
  name: string
  index: number
  instance: string
  namespace: string
  address: string
  port: string
}
/** What comes to `address`:`port` of this machine goes to `to`. */
export type Forward = { address: string; port: number; to: string; to_port: number }
export type LabState = {
  schema: 1
  name: string
  hosts: LabHost[]
  /** Cut pairs of hosts, by their names, in order. */
  cuts: [string, string][]
  /** Ports of this machine that lead into the lab. */
  forwards: Forward[]
  /** Folder where its hosts keep packages they fetched. */
  cache: string
  link: { rate?: string; delay?: string }
  cpus: number
  memory_mib: number
}

export const LAB_HOSTS_MOST = 9
/** Its ports are called w…p9, and Linux takes fifteen bytes. */
const NAME = /^[a-z][a-z0-9]{0,9}$/
const RATE = /^\d{1,5}(\.\d{1,3})?(kbit|mbit|gbit)$/
const DELAY = /^\d{1,5}(\.\d{1,3})?(us|ms|s)$/

export const bridgeOf = (lab: string) => `w${lab}br`
/** The first three numbers of its addresses: each lab has its own, so that two can be there at once. */
function prefixOf(lab: string): string {
  const h = fnv1a(lab)
  return `10.${64 + (h % 128)}.${(h >>> 8) % 256}`
}
export const gatewayOf = (lab: string) => `${prefixOf(lab)}.1`
export const SUBNET_BITS = 24
/** Addresses for guests on the lab's bridge. */
export const dhcpRange = (lab: string) => `${prefixOf(lab)}.100,${prefixOf(lab)}.199`
/** Whether an address is a guest's on the lab's bridge. */
export const isGuestOf = (lab: string, address: string): boolean =>
  address.startsWith(`${prefixOf(lab)}.1`) && /\.1\d\d$/.test(address)
/** In every host, with the way to the others in it: networks of the kind `bridge` use it. */
export const HOST_BRIDGE = 'lan0'

/** Where a host of a lab serves the API. */
export const apiOf = (host: LabHost) => `${host.address}:7443`

type LinkWish = { rate?: string | undefined; delay?: string | undefined }
/** What the wires are to be like: what is asked for, else as they were. @throws WadahError `invalid` */
export function linkOf({ rate, delay }: LinkWish, was: LabState['link'] = {}): LabState['link'] {
  if (rate !== undefined && !RATE.test(rate))
    throw fail('invalid', `--link ${rate}: a rate is wanted, such as 1gbit or 100mbit`, { field: '--link' })
  if (delay !== undefined && !DELAY.test(delay))
    throw fail('invalid', `--delay ${delay}: a time is wanted, such as 0.2ms`, { field: '--delay' })
  return { ...was, ...(rate === undefined ? {} : { rate }), ...(delay === undefined ? {} : { delay }) }
}

/** @throws WadahError `invalid` */
export function planLab(o: {
  name: string
  /** What the daemon's instance on a host is called; the host's own name unless said. */
  instanceOf?: ((index: number) => string) | undefined
  cache: string
  hosts: number
  rate?: string | undefined
  delay?: string | undefined
  machine: { cpus: number; memory_mib: number }
}): LabState {
  if (!NAME.test(o.name))
    throw fail('invalid', `--lab ${o.name}: small letters and digits, at most ten`, { field: '--lab' })
  if (!Number.isInteger(o.hosts) || o.hosts < 1 || o.hosts > LAB_HOSTS_MOST)
    throw fail('invalid', `--hosts ${o.hosts}: from 1 to ${LAB_HOSTS_MOST}`, { field: '--hosts' })
  const link = linkOf(o)
  const hosts = Array.from({ length: o.hosts }, (_, i): LabHost => {
    const index = i + 1
    return {
      name: `${o.name}${index}`,
      index,
      instance: o.instanceOf?.(index) ?? `${o.name}${index}`,
      namespace: `w${o.name}${index}`,
      address: `${prefixOf(o.name)}.${10 + index}`,
      port: `w${o.name}p${index}`,
    }
  })
  return {
    schema: 1,
    name: o.name,
    hosts,
    cuts: [],
    forwards: [],
    cache: o.cache,
    link,
    // Its fair share, but never less than what a daemon and a guest need to get on.
    cpus: Math.max(1, Math.round((10 * o.machine.cpus) / o.hosts) / 10),
    memory_mib: Math.max(1024, Math.floor((o.machine.memory_mib * 0.9) / o.hosts)),
  }
}

export function hostOf(lab: LabState, name: string): LabHost {
  const found = lab.hosts.find((h) => h.name === name)
  if (found) return found
  throw fail('not_found', `The lab has no host "${name}"; it has ${lab.hosts.map((h) => h.name).join(', ')}.`, {
    remedy: 'wadah lab status',
  })
}
