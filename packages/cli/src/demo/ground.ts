/** What the demo's servers stand on: three hosts of a lab where this machine can have one, otherwise one daemon. */
import { totalmem } from 'node:os'
import { setTimeout as delay } from 'node:timers/promises'
import { endpoints } from '@wadah/api/endpoints/all'
import { fail } from '@wadah/api/fault'
import { fnv1a } from '@wadah/api/fnv'
import { ipv4Of } from '@wadah/api/guest-addresses'
import type { VmCreate } from '@wadah/api/schema/vm'
import type { Cli } from '../cli.ts'
import { forward, labUp, loadLab, sharedDir } from '../lab/lab.ts'
import { apiOf, type Forward, HOST_BRIDGE, type LabState, isGuestOf } from '../lab/plan.ts'
import type { Instance } from '../local/instance.ts'
import { hasProgram, runProgram } from '../local/process.ts'
import { parseListen } from '../local/listen.ts'
import { orMissing, type Work } from './ensure.ts'
import { DEMO_NETWORK, DEMO_SERVERS, type DemoServer, type DemoState } from './plan.ts'
import { saveState } from './state.ts'

export const DEMO_HOSTS = 3
export const DEMO_POOL = 'common'
const MEMORY_MIB = 4096
const PROGRAMS = { ip: 'iproute2', nft: 'nftables', dnsmasq: 'dnsmasq-base', etcd: 'etcd-server' }
const ADDRESS_MS = 300_000
const AGAIN_MS = 500
let turn: Promise<void> = Promise.resolve()

/** The lab that is this demo's: called as it is, where that can be the name of a lab. */
export const labNameOf = (instance: Pick<Instance, 'name'>): string =>
  /^[a-z][a-z0-9]{0,9}$/.test(instance.name) ? instance.name : `d${fnv1a(instance.name).toString(36)}`

/** Why this machine can't have several hosts; undefined when it can. */
export async function labProblem(cli: Cli): Promise<string | undefined> {
  if ((process.getuid?.() ?? 0) !== 0) return cli.t('demo.lab_root')
  const memory_mib = Math.floor(totalmem() / 2 ** 20)
  if (memory_mib < MEMORY_MIB) return cli.t('demo.lab_memory', { mib: memory_mib, wanted: MEMORY_MIB })
  const missing: string[] = []
  for (const [program, pkg] of Object.entries(PROGRAMS))
    if (!(await hasProgram(program, `${cli.io.env['PATH'] ?? ''}:/usr/sbin:/sbin`))) missing.push(pkg)
  if (missing.length > 0) return cli.t('demo.lab_lacks', { list: missing.join(' ') })
  const ran = await runProgram('unshare', ['--net', 'true'], { timeout_ms: 10_000 })
  return ran.code === 0 ? undefined : cli.t('demo.lab_namespaces', { why: ran.stderr.trim() })
}

/** Brings the hosts up and makes what they have in common. The first is the demo's own instance. */
export async function ensureLab(
  cli: Cli,
  instance: Instance,
  hosts: number,
  say: (text: string) => void,
): Promise<LabState> {
  return await labUp(
    cli,
    {
      name: labNameOf(instance),
      hosts,
      cluster: true,
      instanceOf: (index) => (index === 1 ? instance.name : `${instance.name}-${index}`),
      cache: `/var/cache/wadah-${instance.name}`,
    },
    say,
  )
}

export const labOf = async (instance: Instance, state: DemoState | undefined): Promise<LabState | undefined> =>
  state?.lab === undefined ? undefined : await loadLab(labNameOf(instance))

/** A pool that all hosts see, and a network through which a server keeps its address wherever it is. */
export async function ensureCommon({ api, signal }: Work, lab: LabState): Promise<void> {
  if (!(await orMissing(api.call(endpoints.pools.get, { params: { pool: DEMO_POOL }, signal }))))
    await api.call(endpoints.pools.create, {
      body: { name: DEMO_POOL, path: sharedDir(lab.name), shared: true },
      signal,
    })
  if (!(await orMissing(api.call(endpoints.networks.get, { params: { network: DEMO_NETWORK }, signal }))))
    await api.call(endpoints.networks.create, {
      body: { name: DEMO_NETWORK, kind: 'bridge', bridge: HOST_BRIDGE },
      signal,
    })
}

/** Each server on a host of its own, as far as there are enough. */
export function placeIn(lab: LabState, server: DemoServer): Pick<VmCreate, 'host' | 'pool'> {
  const host = lab.hosts[DEMO_SERVERS.indexOf(server) % lab.hosts.length]
  return { ...(host ? { host: host.name } : {}), pool: DEMO_POOL }
}

/** Ports of this machine for the API and for each server whose address is known. */
export function forwardsOf(lab: LabState, state: DemoState): Forward[] {
  const { host, port } = parseListen(state.listen)
  const api = parseListen(apiOf(lab.hosts[0]!))
  return [
    { address: host, port, to: api.host, to_port: api.port },
    ...DEMO_SERVERS.flatMap((server): Forward[] => {
      const own = state.servers[server.name]
      if (own?.port === undefined || own.address === undefined) return []
      return [{ address: state.publish_address, port: own.port, to: own.address, to_port: server.guestPort }]
    }),
  ]
}

/** The address the server has on the hosts' common network, as its agent says; its port on this machine leads there from now on. */
export async function ensureReach(
  { cli, api, signal }: Work,
  instance: Instance,
  state: DemoState,
  lab: LabState,
  server: DemoServer,
): Promise<void> {
  const own = (state.servers[server.name] ??= {})
  const deadline = cli.io.now() + ADDRESS_MS
  for (;;) {
    const info = await api.call(endpoints.vms.guest, { params: { vm: server.name }, signal }).catch(() => undefined)
    signal.throwIfAborted()
    const address = info && ipv4Of(info).find((a) => isGuestOf(lab.name, a))
    if (address !== undefined) {
      own.address = address
      await saveState(instance, state)
      // Three servers come up side by side, and the ports are set as a whole.
      turn = turn.then(() => forward(lab, forwardsOf(lab, state)))
      return await turn
    }
    if (cli.io.now() > deadline)
      throw fail('timeout', `${server.name} has no address ${ADDRESS_MS / 1000} s after its start.`, {
        remedy: `wadah vm log ${server.name}`,
      })
    await delay(AGAIN_MS, undefined, { signal })
  }
}
