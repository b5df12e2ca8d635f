/** Networks of kind `bridge`, and the firewall. */
export const net = {
  'opt.network.bridge': 'kind bridge: a Linux bridge that is there, as br0',
  'opt.network.nic': 'kind bridge: a NIC of this host, for which Wadah makes a bridge of its own',
  'opt.network.vlan': 'kind bridge: VLAN id, 1 to 4094',
  'col.host_nic': 'NIC OF THE HOST',
} as const
