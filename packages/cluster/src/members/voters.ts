/** Which hosts run a member of etcd. Pure. */
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
