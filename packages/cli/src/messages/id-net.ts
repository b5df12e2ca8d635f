/** Jaringan jenis `bridge`, dan firewall. */
import type { net as en } from './en-net.ts'

export const net: Record<keyof typeof en, string> = {
  'opt.network.bridge': 'jenis bridge: bridge Linux yang sudah ada, misalnya br0',
  'opt.network.nic': 'jenis bridge: NIC host ini, yang dibuatkan bridge sendiri oleh Wadah',
  'opt.network.vlan': 'jenis bridge: nomor VLAN, 1 sampai 4094',
  'col.host_nic': 'NIC HOST',
}
