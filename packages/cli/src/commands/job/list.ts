import { endpoints } from '@wadah/api/endpoints/all'
import type { Job, JobState } from '@wadah/api/schema/job'
import type { Cell } from '../../out/output.ts'
import type { Register } from '../../program.ts'
import { since } from '../../text/format.ts'
import { parseInteger } from '../../text/size.ts'

type Options = { state?: JobState; target?: string; limit?: string }

export const list: Register = (group, cli) => {
  group
    .command('list')
    .alias('ls')
    .description(cli.t('cmd.job.list'))
    .option('--state <state>', cli.t('opt.job_list.state'))
    .option('--target <name-or-id>', cli.t('opt.job_list.target'))
    .option('--limit <n>', cli.t('opt.job_list.limit'))
    .action(async (o: Options) => {
      const { t, out } = cli
      const api = await cli.api()
      const limit = o.limit === undefined ? 50 : parseInteger(o.limit, '--limit', 1, 1000)
      const { items } = await api.call(endpoints.jobs.list, { query: { state: o.state, target: o.target, limit } })
      if (out.isJson) return out.json({ items })
      if (cli.options.quiet) return items.forEach((j) => out.line(out.cell(j.id)))
      if (items.length === 0) return out.note(t('job.none'))
      await out.table(
        ['id', t('col.kind'), t('col.target'), t('col.state'), '%', t('col.age'), t('col.who')],
        items.map((j) => [
          j.id,
          j.kind,
          j.target.name ?? j.target.id,
          jobState(j),
          Math.round(j.percent),
          since(j.created_at, cli.io.now()),
          j.subject,
        ]),
      )
    })
}

export function jobState(job: Job): Cell {
  if (job.state === 'done') return { text: 'done', style: 'green' }
  if (job.state === 'failed') return { text: job.fault ? `failed (${job.fault.code})` : 'failed', style: 'red' }
  return { text: job.state, style: job.state === 'running' ? 'cyan' : 'yellow' }
}
