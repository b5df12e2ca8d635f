import { endpoints } from '@wadah/api/endpoints/all'
import { setTimeout as delay } from 'node:timers/promises'
import type { Register } from '../../program.ts'

export const log: Register = (group, cli) => {
  group
    .command('log <job>')
    .description(cli.t('cmd.job.log'))
    .option('-f, --follow', cli.t('opt.job_log.follow'))
    .action(async (job: string, options: { follow?: boolean }) => {
      const api = await cli.api()
      let from = 0
      for (;;) {
        const page = await api.call(endpoints.jobs.log, { params: { job }, query: { from } })
        if (cli.out.isJson && !options.follow && from === 0 && page.lines.length < 1) return cli.out.json(page)
        if (cli.out.isJson) cli.out.json(page)
        else for (const line of page.lines) cli.out.line(cli.out.cell(line))
        const more = page.next > from && page.lines.length > 0
        from = page.next
        if (page.ended && !more) return
        if (!more && !options.follow) return
        if (!more) await delay(500, undefined, { signal: cli.signal })
      }
    })
}
