/** Networks and the NICs on them, as the cluster asks for them. */
export type NetworkDefinition =
  | { id: string; name: string; kind: 'user' }
  | {
      id: string
      name: string
      kind: 'nat'
      subnet: string
      gateway: string
      bridge: string
      domain: string /** Guests reach what listens on the host, not DHCP and DNS alone. */
      host_access?: boolean
    }
  /** Guests are on the host's own network, as machines of their own. */
  | {
      id: string
      name: string
      kind: 'bridge'
      /** Without `nic` a bridge that somebody else made; with it one of ours, with that NIC of the host in it. */
      bridge: string
      nic?: string
      /** 1–4094; on somebody's bridge the tap's own untagged VLAN, else the tag on the NIC. */
      vlan?: number
      host_access?: boolean
    }

/** One NIC of a VM on a network. */
export type NetworkAttachment = {
  vm: string
  /** The guest's name on the network: `vm_name` and `vm_name.domain` resolve to `address`. */
  vm_name: string
  nic: string
  network: string
  uid: number
  mac: string
  /** Always there on `nat`; the address slirp gives on `user`; on `bridge` the only one it may have, else any. */
  address?: string
  publish: { protocol: 'tcp' | 'udp'; address: string; port: number; to: number }[]
  limits: { in_bytes_per_s?: number; out_bytes_per_s?: number }
  /** Absent: everything passes. */
  firewall?: NicFirewall
}

type Verdict = 'accept' | 'drop'
/** The first rule that matches decides; what none matches is decided by the default of its direction. */
export type NicFirewall = { in: Verdict; out: Verdict; rules: NicRule[] }
export type NicRule = {
  /** Seen from the VM. */
  direction: 'in' | 'out'
  action: Verdict
  protocol: 'tcp' | 'udp' | 'icmp' | 'any'
  /** First and last, apart from each other; of tcp and udp. */
  ports?: [number, number][]
  /** Subnets of the other side, IPv4 and IPv6; left out: anybody; none at all: nobody. */
  peers?: string[]
}

export interface Networks {
  /** Makes the machine carry exactly these networks and attachments of ours: bridges, dnsmasq, names, nftables. Idempotent; own interfaces and own table only. */
  apply(networks: NetworkDefinition[], attachments: NetworkAttachment[], signal: AbortSignal): Promise<NetworkState[]>
  /** Whether nat networks can be made here, and if not why and what to do. `notes`: what stands in the way, or was changed on the host. */
  support(): Promise<{ nat: boolean; reason?: string; remedy?: string; notes?: { text: string; remedy?: string }[] }>
  /** A free private subnet and a bridge name for a new nat network, that collide with nothing this machine routes. */
  propose(id: string, taken: string[]): Promise<{ subnet: string; gateway: string; bridge: string }>
  /** Why this host can't carry a network of kind `bridge`, looked at now; undefined when it can. */
  judge(network: NetworkDefinition): Promise<{ reason: string; remedy: string } | undefined>
  /** Whether a host port is free now. */
  portFree(protocol: 'tcp' | 'udp', address: string, port: number): Promise<boolean>
  /** Makes the tap of a NIC (idempotent), owned by its uid, on its bridge, with its limits; returns the interface's name. */
  attach(network: NetworkDefinition, nic: NetworkAttachment, signal: AbortSignal): Promise<{ ifname: string }>
  detach(vm: string, nic: string): Promise<void>
  /** Changes limits of a tap that exists. */
  limit(vm: string, nic: string, limits: NetworkAttachment['limits']): Promise<void>
  /** Taps of ours on this machine, to find leftovers. */
  taps(): Promise<{ ifname: string; vm: string; nic: string }[]>
  /** Takes everything of ours away: dnsmasq, bridges, taps, the nftables table. */
  removeAll(): Promise<void>
}
export type NetworkState = { id: string; state: 'up' | 'down'; reason?: string }
