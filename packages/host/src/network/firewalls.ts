/**
 * Other firewalls on the same host. All base chains of a hook see a packet, and one `drop` is final: an `accept` in our table can't
 * overrule it. So who stands in the way is found and named, with the command that lets our bridges through; nobody else's rules are
 * changed by us. Pure: works on the text of `nft -j list chains`.
 */
export type Obstacle = { text: string; remedy: string }

type Chain = { family: string; table: string; name: string; hook?: string; policy?: string }

/** Reads `nft -j list chains`. */
export function parseChains(json: string): Chain[] {
  const parsed: unknown = json.trim() === '' ? {} : JSON.parse(json)
  const list = (parsed as { nftables?: unknown }).nftables
  if (!Array.isArray(list)) return []
  return list.flatMap((item: unknown) => {
    const chain = (item as { chain?: Chain } | null)?.chain
    return chain === undefined ? [] : [chain]
  })
}

/** Reads `iptables-legacy -S`: the chains of its filter table, those with a policy as base chains. */
export function parseLegacy(text: string): Chain[] {
  const HOOKS: Record<string, string> = { FORWARD: 'forward', INPUT: 'input' }
  return text.split('\n').flatMap((line): Chain[] => {
    const [flag, name, policy] = line.split(' ')
    if (name === undefined || (flag !== '-P' && flag !== '-N')) return []
    const hook = flag === '-P' ? HOOKS[name] : undefined
    const base = hook === undefined || policy === undefined ? {} : { hook, policy: policy.toLowerCase() }
    return [{ family: 'ip', table: 'filter', name, ...base }]
  })
}

/** Which bridges are named in rules outside of our table: `nft list ruleset`, with the lines of `iptables-legacy -S` after it. */
export function bridgesInRules(rules: string, ourTable: string, bridges: string[]): Set<string> {
  let ours = false
  const found = new Set<string>()
  for (const line of rules.split('\n')) {
    if (line.startsWith('table ')) ours = line.split(' ')[2] === ourTable
    if (!ours) for (const bridge of bridges) if (line.includes(bridge)) found.add(bridge)
    if (line === '}') ours = false
  }
  return found
}

/** What may keep guests of our bridges from the network, and how to let them through. `bridges` only for the text; may be empty. */
export function obstacles(chains: Chain[], ourTable: string, bridges: string[]): Obstacle[] {
  const others = chains.filter((c) => c.table !== ourTable && (c.family === 'ip' || c.family === 'inet'))
  const dropping = (hook: string): Chain[] => others.filter((c) => c.hook === hook && c.policy === 'drop')
  const each = bridges.length === 0 ? ['BRIDGE'] : bridges
  const forEach = (command: (bridge: string) => string): string => each.map(command).join('; ')
  const found: Obstacle[] = []
  const explained = new Set<string>()

  if (others.some((c) => c.table === 'firewalld')) {
    explained.add('firewalld')
    found.push({
      text: 'firewalld refuses what comes from interfaces that are in no zone of its own.',
      remedy: `${forEach((b) => `firewall-cmd --permanent --zone=trusted --add-interface=${b}`)}; firewall-cmd --reload`,
    })
  }
  const ufw = others.find((c) => c.name.startsWith('ufw-'))
  if (ufw !== undefined) {
    explained.add(`${ufw.family} ${ufw.table}`)
    found.push({
      text: 'ufw drops what is forwarded and what comes in, that of new bridges included.',
      remedy: forEach((b) => `ufw allow in on ${b}; ufw route allow in on ${b}; ufw route allow out on ${b}`),
    })
  }
  const docker = others.find((c) => c.name === 'DOCKER-USER')
  if (docker !== undefined && !explained.has(`${docker.family} ${docker.table}`)) {
    explained.add(`${docker.family} ${docker.table}`)
    if (dropping('forward').some((c) => c.table === docker.table && c.family === docker.family)) {
      found.push({
        text: 'Docker has set the policy of the FORWARD chain to DROP, for the traffic of everybody.',
        remedy: forEach((b) => `iptables -I DOCKER-USER -i ${b} -j ACCEPT; iptables -I DOCKER-USER -o ${b} -j ACCEPT`),
      })
    }
  }
  for (const hook of ['forward', 'input'] as const) {
    for (const c of dropping(hook)) {
      if (explained.has(c.table) || explained.has(`${c.family} ${c.table}`)) continue
      const what =
        hook === 'forward' ? 'what guests send and receive' : 'DHCP and DNS of guests (udp 67, udp and tcp 53)'
      found.push({
        text: `The chain ${c.name} of table ${c.family} ${c.table} drops by default at "${hook}": ${what} need a rule there.`,
        remedy: forEach((b) =>
          hook === 'forward'
            ? `nft insert rule ${c.family} ${c.table} ${c.name} iifname ${b} accept; nft insert rule ${c.family} ${c.table} ${c.name} oifname ${b} accept`
            : `nft insert rule ${c.family} ${c.table} ${c.name} iifname ${b} meta l4proto '{ tcp, udp }' th dport '{ 53, 67 }' accept`,
        ),
      })
    }
  }
  return found
}
