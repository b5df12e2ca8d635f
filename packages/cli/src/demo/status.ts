/** The state of the demo, each service just tried with a real client. */
import { endpoints } from '@wadah/api/endpoints/all'
import { toFault } from '@wadah/api/fault'
import type { Cli } from '../cli.ts'
import { answers } from '../local/daemon.ts'
import type { Instance } from '../local/instance.ts'
import type { Api } from '../net/api.ts'
import { formatTook } from '../text/format.ts'
import { check } from './check.ts'
import {
  DEMO_SERVERS,
  type DemoServer,
  type DemoState,
  type DemoStatus,
  endpointOf,
  publishedAt,
  type ServerStatus,
} from './plan.ts'

/** Tries the three services at once. A server that was never made is left out. */
export async function demoStatus(cli: Cli, instance: Instance, state: DemoState | undefined): Promise<DemoStatus> {
  if (!state) return { servers: [] }
  const up = (await answers(cli, instance)) !== undefined
  const api = up ? await cli.api({ socket: instance.socket, remedy: 'wadah demo up' }) : undefined
  const servers = await Promise.all(DEMO_SERVERS.map((server) => serverStatus(cli, api, state, server)))
  return {
    servers: servers.filter((s) => s !== undefined),
    ...(state.snapshot === undefined ? {} : { snapshot: state.snapshot }),
  }
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
  const at =
    (typeof vm === 'object' ? publishedAt(vm, server.guestPort) : undefined) ??
    (own?.port === undefined ? undefined : { address: state.publish_address, port: own.port })
  if (!at) return undefined
  const host = at.address === '0.0.0.0' ? '127.0.0.1' : at.address
  const result =
    typeof vm === 'string'
      ? { ok: false, detail: vm }
      : await check(server.service, {
          host,
          port: at.port,
          vm: server.name,
          credentials: state.credentials,
          api,
          signal: cli.signal,
        })
  const down = api === undefined && !result.ok ? `${result.detail} (${cli.t('demo.daemon_down')})` : result.detail
  return {
    name: server.name,
    service: server.service,
    endpoint: endpointOf(server, at.address, at.port),
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
