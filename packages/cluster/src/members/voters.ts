/** Which hosts run a member of etcd. Pure. */
import { hostPort } from '@wadah/api/host-port'
import type { EtcdMember } from '@wadah/store/etcd/admin'
import type { HostRecord } from '../records.ts'

/** 1 of up to two hosts (two members are worse than one: both must live), 3 of up to four, 5 of more. */
export function membersFor(hosts: number): number {
  return hosts >= 5 ? 5 : hosts >= 3 ? 3 : 1
}

/** The next host to be given a member, undefined when there are enough; oldest first, only one that is there now. */
export function nextMember(hosts: readonly HostRecord[], alive: (host: string) => boolean): HostRecord | undefined {
  const inCluster = hosts.filter((h) => h.address !== undefined)
  const have = inCluster.filter((h) => h.member === true).length
  if (have >= membersFor(inCluster.length)) return undefined
  return inCluster
    .filter((h) => h.member !== true && alive(h.id))
    .toSorted((a, b) => a.created_at.localeCompare(b.created_at) || a.id.localeCompare(b.id))[0]
}

/** Whether this member of etcd is that host's; one that never started has no name, and is known by its address. */
export const isMemberOf = (
  m: Pick<EtcdMember, 'name' | 'peer_urls'>,
  host: Pick<HostRecord, 'id' | 'address' | 'ports'>,
): boolean =>
  m.name === host.id ||
  (host.address !== undefined &&
    host.ports !== undefined &&
    m.peer_urls.includes(`https://${hostPort(host.address, host.ports.etcd_peer)}`))

/** Whether each that is to have a vote has it. Only then is another host given a member: etcd takes one learner at a time. */
export function allVote(hosts: readonly HostRecord[], members: readonly EtcdMember[]): boolean {
  return (
    members.every((m) => !m.learner && m.name !== '') &&
    hosts.every((h) => !h.member || members.some((m) => m.name === h.id))
  )
}

/** Hosts that are to have a member of which etcd knows nothing: they began, or were to be taken out, and were cut off. */
export const unknownToEtcd = (hosts: readonly HostRecord[], members: readonly EtcdMember[]): HostRecord[] =>
  hosts.filter((h) => h.member === true && !members.some((m) => isMemberOf(m, h)))

const GONE = (host: HostRecord) => `if it is off for ever: wadah cluster remove ${host.name} --lost`

/** What is said of those. */
export const notThere = (host: HostRecord): string =>
  `${host.name} is to keep a copy of the store, and etcd knows no member of it yet; no other host is given a copy before. Its wadahd sees to it when it runs; ${GONE(host)}`

/** What is said of a member that has no vote. Its own host knows why. */
export function withoutVote(m: EtcdMember, host: HostRecord | undefined): string | undefined {
  if (!m.learner) return undefined
  if (!host) return `A member of etcd without a vote is no host's: etcdctl member remove ${m.id}`
  return `${host.name} has no vote yet, and no other host is given a copy before: its etcd must run and catch up, which its wadahd sees to. What keeps it: wadah host check --host ${host.name}; ${GONE(host)}`
}
