/** What QEMU's own user-mode network (slirp) looks like to the guest. Nothing is made on the host for it. */
export type UserNetworkFacts = { subnet: string; gateway: string; dns: string; address: string; prefix: number }

/** The same for every VM: each has a slirp of its own, and none sees another. */
export function userNetwork(): UserNetworkFacts {
  return { subnet: '10.0.2.0/24', gateway: '10.0.2.2', dns: '10.0.2.3', address: '10.0.2.15', prefix: 24 }
}
