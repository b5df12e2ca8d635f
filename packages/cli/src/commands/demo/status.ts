import { EXIT } from '../../exit.ts'
import { requireClients } from '../../demo/check.ts'
import { DEMO_SERVERS } from '../../demo/plan.ts'
import { demoInstance, loadState } from '../../demo/state.ts'
import { demoStatus, printStatus } from '../../demo/status.ts'
import type { Register } from '../../program.ts'

export const status: Register = (group, cli) => {
  group
    .command('status')
    .description(cli.t('cmd.demo.status'))
    .action(async () => {
      const instance = demoInstance(cli)
      const state = await loadState(instance)
      if (state) await requireClients(cli.io.env['PATH'])
      const now = await demoStatus(cli, instance, state)
      await printStatus(cli, state, now)
      if (now.servers.length < DEMO_SERVERS.length || now.servers.some((s) => !s.check.ok)) cli.exit = EXIT.failed
    })
}
