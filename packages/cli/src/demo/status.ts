/** The state of the demo, each service just tried with a real client. */
import { endpoints } from '@wadah/api/endpoints/all'
import { toFault } from '@wadah/api/fault'
import type { Cli } from '../cli.ts'
import { allVms } from '../commands/down.ts'
import { labInstance } from '../lab/lab.ts'
import type { LabState } from '../lab/plan.ts'
import { answers } from '../local/daemon.ts'
import type { Instance } from '../local/instance.ts'
import type { Api } from '../net/api.ts'
import { formatBytes, formatTook } from '../text/format.ts'
import { check } from './check.ts'
import { labOf } from './ground.ts'
import {
  DEMO_SERVERS,
  type DemoHost,
  type DemoMove,
  type DemoServer,
  type DemoState,
  type DemoStatus,
  endpointOf,
  reachOf,
  type ServerStatus,
} from './plan.ts'

/** Tries the three services at once. A server that was never made is left out. */
export async function demoStatus(cli: Cli, instance: Instance, state: DemoState | undefined): Promise<DemoStatus> {
  if (!state) return { servers: [], hosts: [], moves: [] }
  const api = await demoApi(cli, instance, await labOf(instance, state))
  const servers = await Promise.all(DEMO_SERVERS.map((server) => serverStatus(cli, api, state, server)))
  return {
    servers: servers.filter((s) => s !== undefined),
    hosts: api && state.lab ? await hostsOf(api) : [],
    moves: state.moves ?? [],
    ...(state.snapshot === undefined ? {} : { snapshot: state.snapshot }),
  }
}

/** Any host of a lab serves it all: the first that answers is asked. */
async function demoApi(cli: Cli, instance: Instance, lab: LabState | undefined): Promise<Api | undefined> {
  for (const one of lab ? lab.hosts.map((host) => labInstance(cli, host)) : [instance])
    if ((await answers(cli, one)) !== undefined) return await cli.api({ socket: one.socket, remedy: 'wadah demo up' })
  return undefined
}

async function hostsOf(api: Api): Promise<DemoHost[]> {
  const [cluster, vms] = await Promise.all([api.call(endpoints.cluster.get), allVms(api)])
  return cluster.hosts.map((h) => ({
    name: h.name,
    address: h.address ?? '',
    state: h.state,
    vms: vms.filter((vm) => vm.placement.host === h.id).map((vm) => vm.name),
  }))
}

async function serverStatus(
  cli: Cli,
  api: Api | undefined,
  state: DemoState,
  server: DemoServer,
): Promise<ServerStatus | undefined> {
  const own = state.servers[server.name]
  const vm = await api
    ?.call(endpoints.vms.get, { params: { vm: server.name } })
    .catch((error: unknown) => toFault(error).detail)
  const reach = reachOf(state, server, typeof vm === 'object' ? vm : undefined)
  if (!reach) return undefined
  const result =
    typeof vm === 'string'
      ? { ok: false, detail: vm }
      : await check(server.service, {
          ...reach,
          vm: server.name,
          credentials: state.credentials,
          api,
          signal: cli.signal,
        })
  const down = api === undefined && !result.ok ? `${result.detail} (${cli.t('demo.daemon_down')})` : result.detail
  return {
    name: server.name,
    service: server.service,
    endpoint: endpointOf(server, reach.host, reach.port),
    credentials: server.service === 'smb' ? state.credentials : null,
    // While the daemon is down its VMs run on, as they were last seen.
    accelerator: (typeof vm === 'object' ? vm.status.accelerator : own?.accelerator) ?? 'none',
    ready_ms: own?.ready_ms ?? 0,
    check: { ok: result.ok, detail: down },
  }
}

/** The table people see at the end of `demo up` and in `demo status`. */
export async function printStatus(cli: Cli, state: DemoState | undefined, status: DemoStatus): Promise<void> {
  const { t, out } = cli
  if (out.isJson) return out.json(status)
  if (status.servers.length === 0) return out.line(t('demo.none'))
  const kinds = { smb: t('demo.smb'), ipp: t('demo.ipp'), http: t('demo.http') }
  await out.table(
    [
      t('col.server'),
      t('col.service'),
      t('col.address'),
      t('col.time_to_service'),
      t('col.accelerator'),
      t('col.check'),
    ],
    status.servers.map((s) => [
      s.name,
      kinds[s.service],
      s.endpoint,
      s.ready_ms > 0 ? formatTook(s.ready_ms) : '',
      s.accelerator,
      s.check.ok ? { text: 'ok', style: 'green' } : { text: s.check.detail, style: 'red' },
    ]),
  )
  if (!state) return
  if (status.hosts.length > 0) await printHosts(cli, status)
  if (status.moves.length > 0) await printMoves(cli, status.moves)
  out.line()
  const { snapshot } = status
  await out.fields([
    [
      t('demo.snapshot'),
      snapshot &&
        t('demo.snapshot_text', {
          vm: snapshot.vm,
          name: snapshot.name,
          stall: formatTook(snapshot.stall_ms),
          revert: formatTook(snapshot.revert_ms),
        }),
    ],
    ['API', `https://${state.listen}`],
    [t('demo.login'), t('demo.credentials', { name: DEMO_SERVERS[0]!.name, ...state.credentials })],
    [t('demo.try'), `wadah vm list · wadah vm console ${DEMO_SERVERS[2]!.name} · wadah demo down`],
  ])
}

async function printHosts({ out, t }: Cli, { hosts }: DemoStatus): Promise<void> {
  out.line()
  await out.table(
    [t('col.host'), t('col.address'), t('col.state'), t('demo.col_vms')],
    hosts.map((h) => [h.name, h.address, h.state, h.vms.join(', ')]),
  )
}

/** What was foreseen, what QEMU claims, what was measured, and what a client saw that was at work. */
async function printMoves({ out, t }: Cli, moves: readonly DemoMove[]): Promise<void> {
  const ms = (n: number | undefined) => (n === undefined ? '–' : `${Math.round(n)} ms`)
  out.line()
  await out.table(
    [
      t('demo.col_move'),
      t('migrate.mode').toUpperCase(),
      t('demo.col_took'),
      t('demo.col_foreseen'),
      t('demo.col_sent'),
      t('demo.col_claimed'),
      t('demo.col_stall'),
      t('demo.col_gap'),
      t('demo.col_client'),
    ],
    moves.map((m) => [
      `${m.vm}: ${m.from} → ${m.to}`,
      m.how ?? m.mode,
      formatTook(m.total_ms),
      m.forecast ? `${formatTook(m.forecast.total_ms)}, ${ms(m.forecast.stall_ms)}` : '–',
      m.bytes === undefined ? '–' : formatBytes(m.bytes),
      ms(m.claimed_downtime_ms),
      ms(m.stall_ms),
      ms(m.outside?.longest_gap_ms),
      t('demo.client', { n: m.client.requests, errors: m.client_errors }),
    ]),
  )
}
