import { endpoints } from '@wadah/api/endpoints/all'
import { toFault, WadahError } from '@wadah/api/fault'
import type { Job } from '@wadah/api/schema/job'
import type { Vm } from '@wadah/api/schema/vm'
import type { Cli } from '../cli.ts'
import { follow, jobFault } from '../jobs/follow.ts'
import { answers, stopDaemon } from '../local/daemon.ts'
import { namedInstance } from '../local/instance.ts'
import { type Api, listAll } from '../net/api.ts'
import type { Register } from '../program.ts'

type Options = { instance: string; data?: string; vms?: boolean }
const OFF = new Set(['stopped', 'absent', 'prepared'])

/** Stops the daemon. VMs are processes of their own: they run on, unless `--vms`. */
export const register: Register = (group, cli) => {
  const { t } = cli
  group
    .option('--instance <name>', t('opt.up.instance'), 'default')
    .option('--data <dir>', t('opt.up.data'))
    .option('--vms', t('opt.down.vms'))
    .action(async (o: Options) => {
      const instance = namedInstance(cli, o)
      let running = 0
      if ((await answers(cli, instance)) !== undefined) {
        const api = await cli.api({ socket: instance.socket })
        const vms = (await allVms(api)).filter((vm) => !OFF.has(vm.status.state))
        if (o.vms) await stopVms(cli, api, vms)
        else running = vms.length
      } else if (o.vms) cli.out.warn(t('down.vms_unknown'))
      const how = await stopDaemon(cli, instance)
      if (cli.out.isJson)
        return cli.out.json({ instance: instance.name, stopped: how === 'stopped', vms_running: running })
      cli.out.line(t(how === 'stopped' ? 'down.stopped' : 'down.was_down'))
      if (running > 0) cli.out.note(t('down.running', { n: running }))
    })
}

export async function allVms(api: Api): Promise<Vm[]> {
  return await listAll<Vm>((cursor) => api.call(endpoints.vms.list, { query: { cursor, limit: 1000 } }))
}

/** All at once: shut down, and pull the plug on what has not ended by then. */
async function stopVms(cli: Cli, api: Api, vms: Vm[]): Promise<void> {
  cli.out.note(cli.t('down.shutting', { n: vms.length }))
  const timeout_s = Math.min(3600, Math.ceil(cli.timeout_s ?? 60))
  const faults = await Promise.all(
    vms.map(async (vm) => {
      const end = (job: Job) => follow(cli, api, job, { silent: true, signal: new AbortController().signal })
      const params = { vm: vm.id }
      try {
        const job = await api.call(endpoints.vms.shutdown, { params, body: { timeout_s, force: true } })
        const fault = jobFault(await end(job))
        if (!fault) return undefined
      } catch (error) {
        // One that is paused or hangs can't shut down in order; the plug works always.
        if (toFault(error).code !== 'wrong_state') return toFault(error)
      }
      try {
        return jobFault(await end(await api.call(endpoints.vms.stop, { params })))
      } catch (error) {
        return toFault(error)
      }
    }),
  )
  const first = faults.find((f) => f !== undefined)
  if (first) throw new WadahError(first)
}
