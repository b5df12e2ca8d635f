/** Ports of this machine that lead into the lab, as a table of nftables. Pure. */
import { bridgeOf, type LabState } from './plan.ts'

export const forwardTable = (lab: string) => `${bridgeOf(lab)}-ports`

/** For `nft -f`; replaces what was there in one go. */
export function forwardRules({ name, forwards }: Pick<LabState, 'name' | 'forwards'>): string {
  const [bridge, table] = [bridgeOf(name), forwardTable(name)]
  const to = forwards.map((f) => {
    // All addresses of this machine, as a socket bound to 0.0.0.0 would have them.
    const at = f.address === '0.0.0.0' ? 'fib daddr type local' : `ip daddr ${f.address}`
    return `${at} tcp dport ${f.port} dnat to ${f.to}:${f.to_port}`
  })
  const outside = to.filter((_, i) => !forwards[i]?.address.startsWith('127.'))
  const chain = (called: string, hook: string, rules: string[]) => [
    `  chain ${called} { type ${hook};`,
    ...rules,
    '  }',
  ]
  return [
    `add table ip ${table}`,
    `delete table ip ${table}`,
    `table ip ${table} {`,
    // route_localnet is on for the bridge: without this the lab could reach what listens on 127.0.0.1 of this machine.
    ...chain('guard', 'filter hook prerouting priority raw', [
      `iifname "${bridge}" ip daddr 127.0.0.0/8 drop`,
      `iifname "${bridge}" ip saddr 127.0.0.0/8 drop`,
    ]),
    ...chain('in', 'nat hook prerouting priority dstnat', outside),
    ...chain('own', 'nat hook output priority -100', to),
    ...chain('back', 'nat hook postrouting priority srcnat', [`oifname "${bridge}" ip saddr 127.0.0.0/8 masquerade`]),
    '}',
    '',
  ].join('\n')
}
