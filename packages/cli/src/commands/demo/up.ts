import { setTimeout as delay } from 'node:timers/promises'
import { fail, toFault, WadahError } from '@wadah/api/fault'
import type { Job } from '@wadah/api/schema/job'
import type { Cli } from '../../cli.ts'
import { check, requireClients } from '../../demo/check.ts'
import { ensureImage, ensureNetwork, ensureRunning, ensureVm, type Work } from '../../demo/ensure.ts'
import { DEMO_SERVERS, type DemoServer, type DemoState, publishedAt } from '../../demo/plan.ts'
import { showSnapshot } from '../../demo/snapshot.ts'
import { demoInstance, ensureState, saveState } from '../../demo/state.ts'
import { demoStatus, printStatus } from '../../demo/status.ts'
import { EXIT } from '../../exit.ts'
import { Detached } from '../../jobs/follow.ts'
import { startDaemon } from '../../local/daemon.ts'
import type { Instance } from '../../local/instance.ts'
import type { Register } from '../../program.ts'
import { stepName } from '../../out/progress.ts'
import { formatTook } from '../../text/format.ts'

const SERVICE_MS = 600_000
const AGAIN_MS = 700

export const up: Register = (group, cli) => {
  group
    .command('up')
    .description(cli.t('cmd.demo.up'))
    .action(async () => {
      const { t, out } = cli
      await requireClients(cli.io.env['PATH'])
      const began = cli.io.now()
      const instance = demoInstance(cli)
      const state = await ensureState(cli, instance)
      const interrupt = new AbortController()
      const off = cli.io.onInterrupt(() => interrupt.abort(new Detached('interrupted')))
      const stop = new AbortController()
      const signal = AbortSignal.any([interrupt.signal, stop.signal, cli.signal])
      try {
        if ((await startDaemon(cli, instance, { listen: state.listen })) === 'started') {
          out.note(t('demo.daemon_started', { listen: state.listen }))
        }
        const api = await cli.api({ socket: instance.socket, remedy: 'wadah demo up' })
        const say = teller(cli)
        const { why } = await ensureNetwork({ cli, api, signal, onProgress: () => {} })
        if (why !== undefined) out.warn(t('demo.user_network', { why }))
        // Each server goes its own way from image to service, so that one boots while the next is still being built.
        const runs = DEMO_SERVERS.map(async (server) => {
          try {
            await bringUp(
              { cli, api, signal, onProgress: (job) => say(server.name, stepName(job), job) },
              instance,
              state,
              server,
              say,
            )
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
          const work = { cli, api, signal, onProgress: (job: Job) => say(web.name, stepName(job), job) }
          state.snapshot = await showSnapshot(work, web.name)
          await saveState(instance, state)
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

async function bringUp(work: Work, instance: Instance, state: DemoState, server: DemoServer, say: Say): Promise<void> {
  const { cli, api, signal } = work
  const { t } = cli
  await ensureImage(work, server.recipe)
  const vm = await ensureVm(work, instance, state, server)
  await ensureRunning(work, instance, state, server)
  const own = (state.servers[server.name] ??= {})
  // Served before and running since: the table at the end makes the check anyway.
  if (own.ready_ms !== undefined) return
  say(server.name, t('demo.waiting'))
  const at = publishedAt(vm, server.guestPort)
  if (!at) throw new WadahError(toFault(fail('internal', `${server.name} publishes no port`)))
  const host = at.address === '0.0.0.0' ? '127.0.0.1' : at.address
  const since = own.start_requested_ms ?? Math.round(cli.io.now())
  const deadline = cli.io.now() + SERVICE_MS
  for (;;) {
    const result = await check(server.service, {
      host,
      port: at.port,
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
