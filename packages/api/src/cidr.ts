/** IPv4 and IPv6 subnets of firewall rules. Pure, without a library: clients use it too. */

/** `first` and `last` address; `text` as nftables takes it. */
export type Cidr = { family: 4 | 6; first: bigint; last: bigint; text: string }

function parse4(text: string): bigint | undefined {
  const parts = text.split('.')
  if (parts.length !== 4 || !parts.every((p) => /^(0|[1-9]\d{0,2})$/.test(p) && Number(p) <= 255)) return undefined
  return parts.reduce((n, p) => n * 256n + BigInt(p), 0n)
}

/** RFC 4291, section 2.2; without the form that ends in an IPv4 address. */
function parse6(text: string): bigint | undefined {
  const halves = text.split('::')
  if (halves.length > 2 || !/^[0-9a-fA-F:]+$/.test(text)) return undefined
  const words = (half: string | undefined) => (half === undefined || half === '' ? [] : half.split(':'))
  const [head, tail] = [words(halves[0]), words(halves[1])]
  const missing = 8 - head.length - tail.length
  if (halves.length === 1 ? missing !== 0 : missing < 1) return undefined
  const all = [...head, ...Array.from({ length: missing }, () => '0'), ...tail]
  if (!all.every((w) => /^[0-9a-fA-F]{1,4}$/.test(w))) return undefined
  return all.reduce((n, w) => n * 65_536n + BigInt(`0x${w}`), 0n)
}

function format(family: 4 | 6, value: bigint): string {
  const [count, bits, base] = family === 4 ? [4, 8n, 10] : [8, 16n, 16]
  const parts = Array.from({ length: count }, (_, i) => (value >> (bits * BigInt(count - 1 - i))) % (1n << bits))
  return parts.map((p) => p.toString(base)).join(family === 4 ? '.' : ':')
}

/** `10.0.0.0/8`, `2001:db8::/32`, or one address; host bits are cut off. undefined when it is none. */
export function parseCidr(text: string): Cidr | undefined {
  const [address = '', length, ...more] = text.split('/')
  const family = address.includes(':') ? 6 : 4
  const bits = family === 4 ? 32 : 128
  const value = family === 4 ? parse4(address) : parse6(address)
  if (value === undefined || more.length > 0) return undefined
  if (length !== undefined && !/^(0|[1-9]\d{0,2})$/.test(length)) return undefined
  const prefix = length === undefined ? bits : Number(length)
  if (prefix > bits) return undefined
  const size = 1n << BigInt(bits - prefix)
  const first = (value / size) * size
  return { family, first, last: first + size - 1n, text: `${format(family, first)}/${prefix}` }
}

/** Without those that lie in another: subnets are within each other or apart, so what is left is apart. */
export function mergeCidrs(cidrs: readonly Cidr[]): Cidr[] {
  const sorted = [...cidrs].sort((a, b) =>
    a.family !== b.family
      ? a.family - b.family
      : a.first !== b.first
        ? a.first < b.first
          ? -1
          : 1
        : a.last > b.last
          ? -1
          : 1,
  )
  const out: Cidr[] = []
  for (const c of sorted) {
    const before = out.at(-1)
    if (before === undefined || before.family !== c.family || c.first > before.last) out.push(c)
  }
  return out
}

/** `22,80,8000-8100` → ranges, in order and apart; undefined when a port or range is none. */
export function parsePorts(text: string): [number, number][] | undefined {
  const ranges: [number, number][] = []
  for (const part of text.split(',')) {
    const match = /^(\d{1,5})(?:-(\d{1,5}))?$/.exec(part)
    const [first, last] = [Number(match?.[1]), Number(match?.[2] ?? match?.[1])]
    if (!match || first < 1 || last > 65_535 || first > last) return undefined
    ranges.push([first, last])
  }
  ranges.sort((a, b) => a[0] - b[0])
  const out: [number, number][] = []
  for (const range of ranges) {
    const before = out.at(-1)
    if (before !== undefined && range[0] <= before[1] + 1) before[1] = Math.max(before[1], range[1])
    else out.push(range)
  }
  return out
}
