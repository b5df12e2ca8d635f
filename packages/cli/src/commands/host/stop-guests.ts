import { endpoints } from '@wadah/api/endpoints/all'
import { finish } from '../../jobs/follow.ts'
import { confirm } from '../../local/prompt.ts'
import type { Register } from '../../program.ts'
import { parseInteger } from '../../text/size.ts'

type Options = { grace?: string; total?: string; yes?: boolean }
type Result = { done: string[]; failed: { vm: string; why: string }[] }

/** What the unit wadah-guests.service calls when the host shuts down. */
export const stopGuests: Register = (group, cli) => {
  const { t } = cli
  group
    .command('stop-guests')
    .description(t('cmd.host.stop_guests'))
    .option('--grace <seconds>', t('opt.stop_guests.grace'))
    .option('--total <seconds>', t('opt.stop_guests.total'))
    .option('-y, --yes', t('opt.yes'))
    .action(async (o: Options) => {
      const body = {
        ...(o.grace === undefined ? {} : { timeout_s: parseInteger(o.grace, '--grace', 1, 3600) }),
        ...(o.total === undefined ? {} : { total_s: parseInteger(o.total, '--total', 1, 7200) }),
      }
      if (!o.yes && !(await confirm(cli, t('stop_guests.ask')))) return cli.out.note(t('bulk.refused'))
      const api = await cli.api()
      const job = await api.call(endpoints.system.stopGuests, { body })
      const ended = await finish(cli, api, job, ({ result }) =>
        t('stop_guests.done', { n: (result as Result | undefined)?.done.length ?? 0 }),
      )
      const failed = (ended?.result as Result | undefined)?.failed ?? []
      for (const { vm, why } of failed) cli.out.warn(`${cli.out.cell(vm)}: ${cli.out.cell(why)}`)
      if (failed.length > 0) cli.exit = 1
    })
}
