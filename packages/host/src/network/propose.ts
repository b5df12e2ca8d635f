/** Choosing a subnet for a new nat network. Pure. */
import { createHash } from 'node:crypto'
import { formatSubnet, overlap, parseSubnet, type Subnet } from './ipv4.ts'
import { userNetwork } from './user.ts'

/** Destinations from `ip -json route show table all`, as text; the default route is left out, it overlaps with all. */
export function routedSubnets(json: string): string[] {
  const routes: unknown = json.trim() === '' ? [] : JSON.parse(json)
  if (!Array.isArray(routes)) return []
  return routes.flatMap((route: unknown) => {
    const dst = (route as { dst?: unknown } | null)?.dst
    return typeof dst === 'string' && dst !== 'default' ? [dst] : []
  })
}

/**
 * A free private /24 that overlaps with none of `used`. Where to look first depends on the id, so that networks made at the same time,
 * or on hosts that will be one cluster some day, seldom meet. undefined when all 10.64–127.x and 192.168.x are used.
 */
export function chooseSubnet(id: string, used: readonly string[]): string | undefined {
  const taken = [...used, userNetwork().subnet].flatMap((text) => parseSubnet(text) ?? [])
  const free = (subnet: Subnet): boolean => !taken.some((t) => overlap(t, subnet))
  const start = createHash('sha256').update(`subnet ${id}`).digest().readUInt16BE(0)
  const ranges = [
    { base: 10 * 2 ** 24 + 64 * 2 ** 16, count: 64 * 256 },
    { base: 192 * 2 ** 24 + 168 * 2 ** 16, count: 256 },
  ]
  for (const { base, count } of ranges) {
    for (let i = 0; i < count; i += 1) {
      const subnet = { base: base + ((start + i) % count) * 256, prefix: 24 }
      if (free(subnet)) return formatSubnet(subnet)
    }
  }
  return undefined
}
