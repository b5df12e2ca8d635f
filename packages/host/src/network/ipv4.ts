/** IPv4 addresses and subnets as numbers. Pure. */

export type Subnet = { base: number; prefix: number }

/** `10.0.0.1` → 167772161; undefined when it is none. */
export function parseAddress(text: string): number | undefined {
  const parts = text.split('.')
  if (parts.length !== 4) return undefined
  let value = 0
  for (const part of parts) {
    if (!/^(0|[1-9]\d{0,2})$/.test(part) || Number(part) > 255) return undefined
    value = value * 256 + Number(part)
  }
  return value
}

export function formatAddress(value: number): string {
  return [24, 16, 8, 0].map((shift) => Math.floor(value / 2 ** shift) % 256).join('.')
}

/** `10.1.2.0/24`; a bare address is a /32; host bits are cut off. undefined when it is none. */
export function parseSubnet(text: string): Subnet | undefined {
  const [address = '', length = '32', ...more] = text.split('/')
  const value = parseAddress(address)
  if (value === undefined || more.length > 0 || !/^(0|[1-9]\d?)$/.test(length) || Number(length) > 32) return undefined
  const prefix = Number(length)
  const size = 2 ** (32 - prefix)
  return { base: Math.floor(value / size) * size, prefix }
}

export function formatSubnet(subnet: Subnet): string {
  return `${formatAddress(subnet.base)}/${subnet.prefix}`
}

export function netmask(prefix: number): string {
  return formatAddress(2 ** 32 - 2 ** (32 - prefix))
}

export function contains(subnet: Subnet, address: number): boolean {
  return address >= subnet.base && address < subnet.base + 2 ** (32 - subnet.prefix)
}

export function overlap(a: Subnet, b: Subnet): boolean {
  return a.base < b.base + 2 ** (32 - b.prefix) && b.base < a.base + 2 ** (32 - a.prefix)
}
