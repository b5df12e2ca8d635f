/** Choosing what a VM needs from what is free. Pure: the records and the random bytes come in. */
import { fail } from '@wadah/api/fault'
import { fnv1a } from '@wadah/api/fnv'

/** The first uid that nobody has, from `base + from` on and around. */
export function freeUid(taken: (uid: number) => boolean, base: number, count: number, from = 0): number {
  for (let i = 0; i < count; i++) {
    const uid = base + ((from + i) % count)
    if (!taken(uid)) return uid
  }
  throw fail('no_room', `All ${count} user ids for VMs (from ${base}) are given out.`, {
    remedy: 'delete VMs that are not needed',
  })
}

/** Where a host begins to look: hosts that become one cluster later have seldom given out the same. */
export function uidsFrom(host: string, count: number): number {
  return fnv1a(host) % count
}

/** 52:54:00 is QEMU's own prefix; the rest is chance. */
export function freeMac(taken: (mac: string) => boolean, random: (n: number) => Uint8Array): string {
  for (let i = 0; i < 64; i++) {
    const mac = `52:54:00:${[...random(3)].map((b) => b.toString(16).padStart(2, '0')).join(':')}`
    if (!taken(mac)) return mac
  }
  throw fail('no_room', 'No free MAC address was found.')
}

export function toNumber(address: string): number {
  return address.split('.').reduce((n, part) => n * 256 + Number(part), 0)
}
export function toAddress(n: number): string {
  return [24, 16, 8, 0].map((shift) => (n >>> shift) & 255).join('.')
}

export function inSubnet(address: string, subnet: string): boolean {
  const [base = '', bits = '32'] = subnet.split('/')
  const size = 2 ** (32 - Number(bits))
  const first = Math.floor(toNumber(base) / size) * size
  const n = toNumber(address)
  return n > first && n < first + size - 1
}

/** The lowest address of the subnet that nobody has; the first ten hosts are left to people. */
export function freeAddress(subnet: string, gateway: string, taken: (address: string) => boolean): string {
  const [base = '', bits = '24'] = subnet.split('/')
  const size = 2 ** (32 - Number(bits))
  const first = Math.floor(toNumber(base) / size) * size
  const from = size > 32 ? first + 11 : first + 2
  for (let n = from; n < first + size - 1; n++) {
    const address = toAddress(n)
    if (address !== gateway && !taken(address)) return address
  }
  throw fail('no_room', `Every address of ${subnet} is given out.`, {
    remedy: 'wadah network create NAME --kind nat --subnet …/16',
  })
}
