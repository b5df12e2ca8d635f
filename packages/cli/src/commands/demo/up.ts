import { setTimeout as delay } from 'node:timers/promises'
import { fail, toFault, WadahError } from '@wadah/api/fault'
import type { Job } from '@wadah/api/schema/job'
import type { Cli } from '../../cli.ts'
import { check, requireClients } from '../../demo/check.ts'
import { ensureImage, ensureNetwork, ensureRunning, ensureVm, type Work } from '../../demo/ensure.ts'
import { DEMO_HOSTS, ensureCommon, ensureLab, ensureReach, forwardsOf, labProblem, placeIn } from '../../demo/ground.ts'
import { showMove } from '../../demo/moves.ts'
import { DEMO_SERVERS, type DemoServer, type DemoState, reachOf } from '../../demo/plan.ts'
import { showSnapshot } from '../../demo/snapshot.ts'
import { demoInstance, ensureState, saveState } from '../../demo/state.ts'
import { demoStatus, printStatus } from '../../demo/status.ts'
import { EXIT } from '../../exit.ts'
import { Detached } from '../../jobs/follow.ts'
import { forward } from '../../lab/lab.ts'
import { LAB_HOSTS_MOST, type LabState } from '../../lab/plan.ts'
import { startDaemon } from '../../local/daemon.ts'
import type { Instance } from '../../local/instance.ts'
import type { Register } from '../../program.ts'
import { stepName } from '../../out/progress.ts'
import { formatTook } from '../../text/format.ts'
import { parseInteger } from '../../text/size.ts'

const SERVICE_MS = 600_000
const AGAIN_MS = 700

export const up: Register = (group, cli) => {
  group
    .command('up')
    .description(cli.t('cmd.demo.up'))
    .option('--hosts <n>', cli.t('opt.demo.hosts'), String(DEMO_HOSTS))
    .action(async (o: { hosts: string }) => {
      const { t, out } = cli
      const hosts = parseInteger(o.hosts, '--hosts', 1, LAB_HOSTS_MOST)
      await requireClients(cli.io.env['PATH'])
      const began = cli.io.now()
      const instance = demoInstance(cli)
      const state = await ensureState(cli, instance)
      const interrupt = new AbortController()
      const off = cli.io.onInterrupt(() => interrupt.abort(new Detached('interrupted')))
      const stop = new AbortController()
      const signal = AbortSignal.any([interrupt.signal, stop.signal, cli.signal])
      try {
        const lab = await standOn(cli, instance, state, hosts)
        const api = await cli.api({ socket: instance.socket, remedy: 'wadah demo up' })
        const say = teller(cli)
        const quiet: Work = { cli, api, signal, onProgress: () => {} }
        if (lab) await ensureCommon(quiet, lab)
        else {
          const { why } = await ensureNetwork(quiet)
          if (why !== undefined) out.warn(t('demo.user_network', { why }))
        }
        const workOn = (server: DemoServer): Work => ({
          ...quiet,
          onProgress: (job) => say(server.name, stepName(job), job),
        })
        // Each server goes its own way from image to service, so that one boots while the next is still being built.
        const runs = DEMO_SERVERS.map(async (server) => {
          try {
            await bringUp(workOn(server), instance, state, lab, server, say)
          } catch (error) {
            // The others are let go of: one failure is told at once, and their jobs can be resumed.
            stop.abort(error)
            throw error
          }
        })
        const ended = await Promise.allSettled(runs)
        if (ended.some((e) => e.status === 'rejected')) throw stop.signal.reason
        const web = DEMO_SERVERS.find((s) => s.service === 'http')
        if (web && state.snapshot === undefined) {
          say(web.name, t('demo.snapshotting'))
          state.snapshot = await showSnapshot(workOn(web), web.name)
          await saveState(instance, state)
        }
        for (const server of lab ? DEMO_SERVERS : []) {
          if (!lab || state.moves?.some((m) => m.vm === server.name)) continue
          say(server.name, t('demo.moving'))
          const move = await showMove(workOn(server), state, lab, server)
          ;(state.moves ??= []).push(move)
          await saveState(instance, state)
          say(server.name, t('demo.moved', { to: move.to, stall: move.stall_ms ?? '?', n: move.client.requests }))
        }
      } catch (error) {
        if (interrupt.signal.aborted) {
          out.warn(t('demo.interrupted'))
          cli.exit = EXIT.interrupted
          return
        }
        throw error
      } finally {
        off()
      }
      const status = await demoStatus(cli, instance, state)
      for (const s of status.servers) (state.servers[s.name] ??= {}).accelerator = s.accelerator
      await saveState(instance, state)
      out.note('')
      await printStatus(cli, state, status)
      out.note(t('demo.took', { took: formatTook(cli.io.now() - began) }))
      const torn = status.moves.find((m) => m.client_errors > 0)
      if (torn)
        throw fail('qemu_failed', t('demo.torn', { vm: torn.vm, what: torn.client.errors.join('; ') }), {
          remedy: `wadah job list; wadah demo down`,
        })
      const bad = status.servers.find((s) => !s.check.ok)
      if (bad) throw fail('timeout', `${bad.name}: ${bad.check.detail}`, { remedy: `wadah vm log ${bad.name}` })
    })
}

type Say = (server: string, text: string, job?: Job) => void

/** One line for each new step of each server; nothing is rewritten, so it reads the same in a log. */
function teller(cli: Cli): Say {
  const last = new Map<string, string>()
  const began = cli.io.now()
  return (server, text) => {
    if (last.get(server) === text) return
    last.set(server, text)
    cli.out.note(`${formatTook(cli.io.now() - began).padStart(9)}  ${server.padEnd(9)} ${text}`)
  }
}

/** Several hosts where there can be several, and it is said why there are not; a demo that is there stays what it is. */
async function standOn(cli: Cli, instance: Instance, state: DemoState, hosts: number): Promise<LabState | undefined> {
  const { t, out } = cli
  const isNew = state.lab === undefined && Object.keys(state.servers).length === 0
  if (isNew && hosts > 1) {
    const why = await labProblem(cli)
    if (why === undefined) {
      state.lab = { hosts }
      await saveState(instance, state)
    } else out.warn(t('demo.one_host', { why }))
  }
  if (state.lab) {
    const lab = await ensureLab(cli, instance, state.lab.hosts, (text) => out.note(text))
    await forward(lab, forwardsOf(lab, state))
    return lab
  }
  if ((await startDaemon(cli, instance, { listen: state.listen })) === 'started')
    out.note(t('demo.daemon_started', { listen: state.listen }))
  return undefined
}

async function bringUp(
  work: Work,
  instance: Instance,
  state: DemoState,
  lab: LabState | undefined,
  server: DemoServer,
  say: Say,
): Promise<void> {
  const { cli, api, signal } = work
  const { t } = cli
  const place = lab && placeIn(lab, server)
  await ensureImage(work, server.recipe, place?.pool)
  const vm = await ensureVm(work, instance, state, server, place)
  await ensureRunning(work, instance, state, server)
  const own = (state.servers[server.name] ??= {})
  if (own.ready_ms === undefined) say(server.name, t('demo.waiting'))
  if (lab) await ensureReach(work, instance, state, lab, server)
  // Served before and running since: the table at the end makes the check anyway.
  if (own.ready_ms !== undefined) return
  const reach = reachOf(state, server, vm)
  if (!reach) throw new WadahError(toFault(fail('internal', `${server.name} publishes no port`)))
  const since = own.start_requested_ms ?? Math.round(cli.io.now())
  const deadline = cli.io.now() + SERVICE_MS
  for (;;) {
    const result = await check(server.service, {
      ...reach,
      vm: server.name,
      credentials: state.credentials,
      api,
      signal,
    })
    if (result.ok) {
      own.ready_ms = Math.round(cli.io.now() - since)
      await saveState(instance, state)
      say(server.name, t('demo.serves', { took: formatTook(own.ready_ms), detail: result.detail }))
      return
    }
    if (cli.io.now() > deadline) {
      throw fail('timeout', `${server.name} does not serve ${SERVICE_MS / 1000} s after its start: ${result.detail}`, {
        remedy: `wadah vm log ${server.name}`,
      })
    }
    await delay(AGAIN_MS, undefined, { signal })
  }
}
