import type { GuestInfo } from './schema/guest.ts'

/** IPv4 addresses a guest says it has, without those of its own loopback; in the order of its interfaces. */
export const ipv4Of = (info: Pick<GuestInfo, 'interfaces'>): string[] =>
  info.interfaces
    .flatMap((i) => i.addresses)
    .map((a) => a.split('/')[0] ?? '')
    .filter((a) => /^\d+\.\d+\.\d+\.\d+$/.test(a) && !a.startsWith('127.'))
