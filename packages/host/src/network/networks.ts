/** Networks of this machine. What it promises is written in packages/ports/src/networks.ts and docs/networks.md. */
import { readFile, stat } from 'node:fs/promises'
import { fail, toFault, WadahError } from '@wadah/api/fault'
import type { NetworkAttachment, NetworkDefinition, Networks, NetworkState } from '@wadah/ports/networks'
import { checkAttachment, checkNetwork, usable } from './check.ts'
import { createDnsmasqs } from './dnsmasq-process.ts'
import { bridgesInRules, obstacles, parseChains, parseLegacy } from './firewalls.ts'
import { formatAddress, parseSubnet } from './ipv4.ts'
import { firewallTable, parseTable, renderFirewall } from './firewall.ts'
import { type UidRange, renderBridgeGuard, renderIp6 } from './guard.ts'
import { defaultRoutes, isForeign, planLan, strayVlans, vlanLines } from './lan.ts'
import {
  type BridgedNetwork,
  type BridgePlan,
  lostTaps,
  type NatNetwork,
  parseLinks,
  planBridge,
  planTap,
  portVlan,
  strayBridges,
} from './links.ts'
import { bridgeName, parseAlias, tableName, tapName } from './naming.ts'
import { renderFromGuest, renderNft, renderRemoval, renderRemoval6, renderToGuest } from './nft.ts'
import { portFree } from './port-free.ts'
import { chooseSubnet, routedSubnets } from './propose.ts'
import { type Shell, createShell } from './shell.ts'
import { allowTun, TUN } from './tun.ts'
import { createWatch } from './watch.ts'

export type NetworksOptions = {
  /** Several daemons on one machine are told apart by it: `default`, or letters, digits and hyphens. */
  instance: string
  /** `networks/` is made inside; dnsmasq's own user must be able to pass through (0711). */
  dataDir: string
  /** Everything is done in this named network namespace instead of the host's. */
  netns?: string
  /** User ids that VMs of this instance can have: what their QEMUs send is told by it. */
  uids?: UidRange
  /** Told what was changed on the host beyond our own things, and what was found dead. */
  log?: (line: string) => void
  /** Told the states when looking after things has changed something. */
  on_states?: (states: NetworkState[]) => void
  /** How often dnsmasq and the table are looked after; up to a minute while that is in vain. Default 5000; 0 is never. */
  watch_ms?: number
}
export type HostNetworks = Networks & { /** Stops looking after things; what runs goes on. */ close(): void }

type Lists = { networks: NetworkDefinition[]; attachments: NetworkAttachment[] }
/** The table is asked for less often than dnsmasq: it costs a process. */
const TABLE_EVERY = 6
/** For one round of changes; its callers may give up earlier. */
const APPLY_TIMEOUT_MS = 120_000

export function createNetworks(options: NetworksOptions): HostNetworks {
  const { instance } = options
  if (!/^[a-z][a-z0-9-]{0,30}$/.test(instance)) throw fail('invalid', `"${instance}" can't be the name of an instance.`)
  const shell = createShell(options.netns)
  const dnsmasqs = createDnsmasqs(shell, options.dataDir)
  const table = tableName(instance)
  const walls = firewallTable(table)
  /** Taps whose firewall is loaded; a VM with one that is not does not start. */
  let walled: Set<string> | undefined
  const log = options.log ?? (() => {})
  const notes = new Map<string, { text: string; remedy?: string }>()

  let last: Lists | undefined
  let queue: Promise<unknown> = Promise.resolve()
  let waiting: { lists: Lists; result: Promise<NetworkState[]> } | undefined
  /** One change at a time. */
  const inTurn = async <T>(work: () => Promise<T>): Promise<T> => {
    const mine = queue.then(work, work)
    queue = mine.catch(() => {})
    return await mine
  }

  function note(key: string, text: string, remedy?: string): void {
    if (notes.has(key)) return
    notes.set(key, remedy === undefined ? { text } : { text, remedy })
    log(text)
  }

  async function forwarding(): Promise<void> {
    const path = '/proc/sys/net/ipv4/ip_forward'
    const now = shell.netns === undefined ? await readFile(path, 'utf8') : (await shell.run('cat', [path])).stdout
    if (now.trim() === '1') return
    await shell.sysctl('ipv4/ip_forward', '1')
    note(
      'ip_forward',
      'IP forwarding (net.ipv4.ip_forward) was off and has been turned on: nat networks need it. This host now routes between all its networks.',
    )
  }

  async function applyNow(lists: Lists, signal: AbortSignal): Promise<NetworkState[]> {
    const { networks } = lists
    const bridged = networks.filter((n): n is BridgedNetwork => n.kind !== 'user')
    const nats = bridged.filter((n): n is NatNetwork => n.kind === 'nat')
    const attachments = usable(lists.attachments, note)
    const states = new Map<string, NetworkState>(networks.map((n) => [n.id, { id: n.id, state: 'up' }]))
    const down = (network: BridgedNetwork, reason: string, remedy?: string): void => {
      states.set(network.id, {
        id: network.id,
        state: 'down',
        reason: remedy === undefined ? reason : `${reason} Remedy: ${remedy}`,
      })
    }
    if (process.geteuid?.() !== 0) {
      for (const n of bridged) down(n, `${n.kind} networks need wadahd to run as root.`)
      return [...states.values()]
    }

    const links = parseLinks(await shell.links())
    const defaults = await routesOut(bridged)
    const stray = [...strayBridges(instance, links, bridged), ...strayVlans(instance, links, bridged)]
    const planned = bridged.flatMap((network) => {
      const wrong = checkNetwork(network)
      if (wrong !== undefined) {
        down(network, wrong)
        return []
      }
      const plan = planOf(links, defaults, network)
      if (plan.ok) return [{ network, plan }]
      down(network, plan.reason, plan.remedy)
      return []
    })
    for (const link of stray) {
      const owned = parseAlias(instance, link.alias)
      if (owned !== undefined && !nats.some((n) => n.id === owned.network)) await dnsmasqs.remove(owned.network)
    }
    const good: typeof planned = []
    await shell.ip([...stray.map((l) => `link del dev ${l.name}`)], signal)
    for (const one of planned) {
      if (await attempt(one.network, down, async () => await shell.ip(one.plan.create, signal))) good.push(one)
    }
    const up = good.map(({ network }) => network)
    if (up.some((n) => n.kind === 'nat')) await forwarding()
    for (const network of up) {
      if (network.kind === 'bridge' && isForeign(network)) continue
      // No IPv6 on it: guests see no router advertisement from here, and the host is not reachable by a link-local address.
      await shell.sysctl(`ipv6/conf/${network.bridge}/disable_ipv6`, '1')
      if (network.kind === 'nat') await shell.sysctl(`ipv4/conf/${network.bridge}/route_localnet`, '1')
    }
    // The rules before the bridges: no moment in which a guest can do what it may not. They hold for the guests of networks that are down too.
    const users = options.uids !== undefined && networks.some((n) => n.kind === 'user')
    if (bridged.length > 0 || users) {
      await shell.nft(renderNft(table, up, attachments, options.uids), signal)
      const lans = [...bridged, ...(last?.networks ?? [])].some((n) => n.kind === 'bridge')
      if (lans || options.uids) await guard6(bridged, signal)
      await guardBridges(bridged, attachments, signal)
      await raiseWalls(attachments, signal)
    } else if (stray.length > 0 || last?.networks.length || (await dnsmasqs.known()).length > 0)
      await removeTables(signal)
    for (const { network, plan } of good)
      await attempt(network, down, async () => await shell.ip(plan.configure, signal))
    for (const { tap, network } of lostTaps(instance, links, up))
      await attempt(network, down, async () => {
        await shell.ip([`link set dev ${tap} down`, `link set dev ${tap} master ${network.bridge}`], signal)
        await intoVlan(tap, network, signal)
        await shell.ip([`link set dev ${tap} up`], signal)
      })

    for (const id of await dnsmasqs.known()) if (!nats.some((n) => n.id === id)) await dnsmasqs.remove(id)
    for (const network of up)
      if (network.kind === 'nat')
        await attempt(network, down, async () => await dnsmasqs.ensure(network, attachments, signal))
    return [...states.values()]
  }

  /** Nothing is run where there is no firewall and was none. */
  async function raiseWalls(attachments: NetworkAttachment[], signal: AbortSignal): Promise<void> {
    const wanted = attachments.filter((a) => a.firewall !== undefined)
    if (wanted.length === 0 && walled?.size === 0) return
    // Without the elements of its sets: they are as many as there are connections.
    const { code, stdout } = await shell.run('nft', ['-j', '-t', 'list', 'table', 'bridge', walls], { ok_codes: [1] })
    if (wanted.length > 0 || code === 0) {
      const there = code === 0 ? parseTable(stdout) : { sets: [], chains: [] }
      try {
        await shell.nft(renderFirewall(walls, wanted, there), signal)
      } catch (error) {
        if (!(error instanceof WadahError) || error.fault.code !== 'tool_failed') throw error
        walled = new Set()
        throw fail('host_lacks', `This kernel can't carry the firewall of VMs: ${error.fault.detail}`, {
          remedy: 'a kernel with CONFIG_NF_TABLES_BRIDGE; or VMs without a firewall',
          effect: 'partial',
          cause: error,
        })
      }
    }
    walled = new Set(wanted.map((a) => tapName(a.vm, a.nic)))
  }

  const planOf = (links: ReturnType<typeof parseLinks>, defaults: string[], network: BridgedNetwork): BridgePlan =>
    network.kind === 'nat' ? planBridge(instance, links, network) : planLan(instance, links, defaults, network)

  /** Interfaces that the host's default routes go by; asked for only where a NIC of the host is to be taken. */
  async function routesOut(networks: readonly BridgedNetwork[]): Promise<string[]> {
    if (!networks.some((n) => n.kind === 'bridge' && !isForeign(n))) return []
    const ask = async (family: string) =>
      (await shell.run('ip', ['-json', family, 'route', 'show', 'default'], { ok_codes: [1, 2] })).stdout
    return defaultRoutes(await ask('-4'), await ask('-6'))
  }

  /** A network that can't be had is down with its reason, and keeps no other from being made. */
  async function attempt(
    network: BridgedNetwork,
    down: (network: BridgedNetwork, reason: string, remedy?: string) => void,
    work: () => Promise<void>,
  ): Promise<boolean> {
    try {
      await work()
      return true
    } catch (error) {
      if (error instanceof WadahError && error.fault.code === 'cancelled') throw error
      const { detail, remedy } = toFault(error)
      const lacks8021q = network.kind === 'bridge' && !isForeign(network) && network.vlan !== undefined
      down(network, detail, remedy ?? (lacks8021q ? 'modprobe 8021q' : undefined))
      return false
    }
  }

  async function intoVlan(tap: string, network: BridgedNetwork, signal: AbortSignal): Promise<void> {
    const vlan = portVlan(network)
    if (vlan === undefined) return
    await shell.run('bridge', ['-batch', '-'], { input: `${vlanLines(tap, vlan).join('\n')}\n`, signal })
  }

  /** Where a kernel has no such rules it is said once; the rest works all the same. */
  async function guardBridges(
    networks: BridgedNetwork[],
    attachments: NetworkAttachment[],
    signal: AbortSignal,
  ): Promise<void> {
    try {
      await shell.nft(renderBridgeGuard(table, networks, attachments), signal)
    } catch (error) {
      if (!(error instanceof WadahError) || error.fault.code !== 'tool_failed') throw error
      note(
        'bridge_guard',
        'This kernel has no nftables rules for bridges: a guest can pretend to be another on its network.',
        'a kernel with CONFIG_NF_TABLES_BRIDGE',
      )
    }
  }

  async function guard6(networks: readonly BridgedNetwork[], signal: AbortSignal): Promise<void> {
    if (!(await hasIpv6(shell))) return
    await shell.nft(renderIp6(table, options.uids, networks), signal).catch((error: unknown) => {
      if (!(error instanceof WadahError) || error.fault.code !== 'tool_failed') throw error
      note(
        'ipv6_guard',
        "This kernel has no nftables rules for IPv6: whoever breaks out of a QEMU reaches what listens on the host's IPv6 addresses.",
        'a kernel with CONFIG_NF_TABLES_IPV6',
      )
    })
  }

  async function removeTables(signal?: AbortSignal): Promise<void> {
    await shell.nft(renderRemoval(table, walls), signal)
    // Where there can be none there is none.
    if (await hasIpv6(shell)) await shell.nft(renderRemoval6(table), signal).catch(() => undefined)
  }

  let round = 0
  /** What is not as it should be, or undefined. */
  async function damage(): Promise<string | undefined> {
    const bridged = (last?.networks ?? []).filter((n) => n.kind !== 'user')
    for (const n of bridged) {
      if (n.kind === 'nat' && !(await dnsmasqs.alive(n.id))) return `dnsmasq of network "${n.name}" was not running`
    }
    round += 1
    if (bridged.length === 0 || round % TABLE_EVERY !== 0) return undefined
    for (const [family, name, chain] of [
      ['ip', table, 'guard'],
      ...(walled?.size ? [['bridge', walls, 'prerouting']] : []),
    ] as const) {
      const { code } = await shell.run('nft', ['list', 'chain', family, name, chain], { ok_codes: [1] })
      if (code !== 0) return `the nftables table ${name} was gone`
    }
    return undefined
  }
  const watch = createWatch({
    least_ms: options.watch_ms ?? 5000,
    look: damage,
    mend: async () =>
      await inTurn(async () => {
        if (last === undefined) return
        const states = await applyNow(last, AbortSignal.timeout(APPLY_TIMEOUT_MS))
        options.on_states?.(states)
      }),
    log,
  })

  async function setLimits(tap: string, limits: NetworkAttachment['limits'], fresh: boolean): Promise<void> {
    const { in_bytes_per_s: toGuest, out_bytes_per_s: fromGuest } = limits
    // A new tap has none: nothing to take away.
    if (!fresh || fromGuest !== undefined)
      await shell.nft(renderFromGuest(table, tap, fromGuest)).catch(lacking('nft_limit'))
    if (toGuest !== undefined)
      await shell.run('tc', ['-batch', '-'], { input: renderToGuest(tap, toGuest) }).catch(lacking('sch_tbf'))
    // Exit code 1 (of a batch) or 2: there was none.
    else if (!fresh) await shell.run('tc', ['-batch', '-'], { input: renderToGuest(tap, undefined), ok_codes: [1, 2] })
  }

  /** Rules of the old iptables interface, which nft does not show; '' where it is not in use. */
  async function legacyRules(): Promise<string> {
    const tables = (await shell.run('cat', ['/proc/net/ip_tables_names'], { ok_codes: [1] })).stdout
    if (!tables.includes('filter')) return ''
    return await shell.run('iptables-legacy', ['-S']).then(
      (r) => r.stdout,
      () => '',
    )
  }

  async function tapsNow(): Promise<{ ifname: string; vm: string; nic: string }[]> {
    return parseLinks(await shell.links()).flatMap((link) => {
      const owned = parseAlias(instance, link.alias)
      return owned?.kind === 'tap' ? [{ ifname: link.name, vm: owned.vm, nic: owned.nic }] : []
    })
  }

  return {
    close() {
      watch.stop()
    },

    async apply(networks, attachments, signal) {
      // Calls that come while one is at work share the next; its lists are the newest.
      if (waiting !== undefined) {
        waiting.lists = { networks, attachments }
        return await orCancelled(waiting.result, signal)
      }
      const mine: { lists: Lists; result: Promise<NetworkState[]> } = {
        lists: { networks, attachments },
        result: Promise.resolve([]),
      }
      mine.result = inTurn(async () => {
        waiting = undefined
        const states = await applyNow(mine.lists, AbortSignal.timeout(APPLY_TIMEOUT_MS))
        last = mine.lists
        watch.start()
        return states
      })
      waiting = mine
      return await orCancelled(mine.result, signal)
    },

    async support() {
      if (process.geteuid?.() !== 0) {
        return {
          nat: false,
          reason: 'nat networks need wadahd to run as root.',
          remedy: 'sudo wadahd, or use the network kind "user"',
        }
      }
      try {
        // Checks nftables and the kernel's nat without loading anything.
        const sample = renderNft(`${table}-check`, [SAMPLE], [])
        await shell.run('nft', ['-c', '-f', '-'], { input: sample })
        await shell.run('dnsmasq', ['--version'])
        await stat(TUN).catch(() => {
          throw fail('host_lacks', `There is no ${TUN}: the kernel module tun is missing.`, { remedy: 'modprobe tun' })
        })
        const chains = parseChains((await shell.run('nft', ['-j', 'list', 'chains'])).stdout)
        const bridges = (last?.networks ?? []).flatMap((n) => (n.kind === 'nat' ? [n.bridge] : []))
        const legacy = await legacyRules()
        const inTheWay = obstacles([...chains, ...parseLegacy(legacy)], table, bridges)
        if (inTheWay.length === 0) return { nat: true, notes: [...notes.values()] }
        // A bridge that is named in somebody else's rules has been let through by its administrator.
        const rules = `${(await shell.run('nft', ['list', 'ruleset'])).stdout}\n${legacy}`
        const open = bridgesInRules(rules, table, bridges)
        const closed = bridges.filter((b) => !open.has(b))
        if (bridges.length > 0 && closed.length === 0) return { nat: true, notes: [...notes.values()] }
        return {
          nat: true,
          notes: [...notes.values(), ...obstacles([...chains, ...parseLegacy(legacy)], table, closed)],
        }
      } catch (error) {
        const { detail, remedy } = toFault(error)
        return remedy === undefined ? { nat: false, reason: detail } : { nat: false, reason: detail, remedy }
      }
    },

    async propose(id, taken) {
      const routes =
        process.geteuid?.() === undefined
          ? ''
          : (await shell.run('ip', ['-json', 'route', 'show', 'table', 'all'])).stdout
      const links = parseLinks(await shell.links())
      const used = [...routedSubnets(routes), ...links.flatMap((l) => l.addresses), ...taken]
      const subnet = chooseSubnet(id, used)
      if (subnet === undefined) {
        throw fail('no_room', 'No private /24 is left that this host does not route already.', {
          field: '/subnet',
          remedy: 'give a subnet yourself',
        })
      }
      return { subnet, gateway: formatAddress((parseSubnet(subnet)?.base ?? 0) + 1), bridge: bridgeName(id) }
    },

    async judge(network) {
      if (network.kind !== 'bridge') return undefined
      if (process.geteuid?.() !== 0) {
        return {
          reason: 'bridge networks need wadahd to run as root.',
          remedy: 'sudo wadahd, or use the network kind "user"',
        }
      }
      const wrong = checkNetwork(network)
      if (wrong !== undefined) return { reason: wrong, remedy: 'ip -br link lists the interfaces of this host' }
      const plan = planOf(parseLinks(await shell.links()), await routesOut([network]), network)
      return plan.ok ? undefined : { reason: plan.reason, remedy: plan.remedy }
    },

    async portFree(protocol, address, port) {
      if (shell.netns !== undefined) {
        const kind = protocol === 'tcp' ? '-lt' : '-lu'
        return (await shell.run('ss', ['-Hn', kind, `sport = :${port}`])).stdout.trim() === ''
      }
      return await portFree(protocol, address, port)
    },

    async attach(network, nic, signal) {
      if (network.kind === 'user') throw fail('invalid', `The network kind "${network.kind}" has no taps.`)
      const wrong = checkNetwork(network) ?? checkAttachment(nic)
      if (wrong !== undefined) throw fail('invalid', wrong)
      const ifname = tapName(nic.vm, nic.nic)
      if (nic.firewall !== undefined && walled?.has(ifname) !== true) {
        throw fail('host_lacks', `The firewall of ${nic.vm_name} is not loaded: it would start without one.`, {
          remedy: `wadah host check; journalctl -u wadahd`,
        })
      }
      await allowTun(note)
      // Without a namespace sysfs answers the usual case, a tap that is not there yet, without a process.
      const absent =
        shell.netns === undefined && (await stat(`/sys/class/net/${ifname}`).catch(() => undefined)) === undefined
      const plan = planTap(instance, absent ? [] : parseLinks(await shell.links()), network, nic)
      if (!plan.ok) throw fail('in_use', plan.reason, { remedy: plan.remedy })
      const fresh = plan.lines.some((line) => line.startsWith('tuntap add'))
      try {
        await shell.ip(plan.lines, signal)
        if (portVlan(network) !== undefined) {
          await intoVlan(ifname, network, signal)
          await shell.ip([`link set dev ${ifname} up`], signal)
        }
      } catch (error) {
        if (fresh) await shell.run('ip', ['link', 'del', 'dev', ifname], { ok_codes: [1, 2] })
        if (error instanceof WadahError && error.fault.detail.includes(network.bridge)) {
          throw fail('unavailable', `Network "${network.name}" is not up: its bridge ${network.bridge} is missing.`, {
            remedy: `wadah network show ${network.name}`,
            cause: error,
          })
        }
        throw error
      }
      await setLimits(ifname, nic.limits, fresh)
      return { ifname }
    },

    async detach(vm, nic) {
      const ifname = tapName(vm, nic)
      if (process.geteuid?.() !== 0) return
      const there = (await tapsNow()).some((tap) => tap.ifname === ifname)
      await shell.nft(renderFromGuest(table, ifname, undefined))
      if (there) await shell.run('ip', ['link', 'del', 'dev', ifname], { ok_codes: [1, 2] })
    },

    async limit(vm, nic, limits) {
      const ifname = tapName(vm, nic)
      if (!(await tapsNow()).some((tap) => tap.ifname === ifname))
        throw fail('not_found', `The NIC ${nic} of ${vm} has no tap.`)
      await setLimits(ifname, limits, false)
    },

    async taps() {
      return process.geteuid?.() === 0 ? await tapsNow() : []
    },

    async removeAll() {
      watch.stop()
      if (process.geteuid?.() !== 0) return
      await inTurn(async () => {
        last = undefined
        for (const id of await dnsmasqs.known()) await dnsmasqs.remove(id)
        const ours = parseLinks(await shell.links()).filter((l) => parseAlias(instance, l.alias) !== undefined)
        await shell.ip(ours.map((l) => `link del dev ${l.name}`))
        await removeTables()
      })
    },
  }
}

const SAMPLE: NatNetwork = {
  id: 'net-aaaaaaaaaa',
  name: 'check',
  kind: 'nat',
  subnet: '192.0.2.0/24',
  gateway: '192.0.2.1',
  bridge: 'wbr-check',
  domain: 'check',
}

/** The work goes on for the others who asked for it; who has given up is told so. */
async function orCancelled<T>(work: Promise<T>, signal: AbortSignal): Promise<T> {
  return await new Promise<T>((resolve, reject) => {
    const onAbort = (): void =>
      reject(fail('cancelled', 'Cancelled while networks were being made.', { effect: 'partial' }))
    if (signal.aborted) onAbort()
    else signal.addEventListener('abort', onAbort, { once: true })
    void work.then(resolve, reject).finally(() => signal.removeEventListener('abort', onAbort))
  })
}

/** A tool that failed where the kernel's part is optional: names the part. */
function lacking(module: string): (error: unknown) => never {
  return (error) => {
    if (!(error instanceof WadahError) || error.fault.code !== 'tool_failed') throw error
    throw fail('host_lacks', `This kernel can't limit the bandwidth of a NIC (${module}): ${error.fault.detail}`, {
      remedy: `modprobe ${module}, or leave the limit out`,
      effect: 'partial',
      cause: error,
    })
  }
}

/** Where the kernel has no IPv6 nobody can be reached by it, and there are no such tables. */
async function hasIpv6(shell: Shell): Promise<boolean> {
  return (await shell.run('cat', ['/proc/net/if_inet6'], { ok_codes: [1] })).stdout.trim() !== ''
}
