import { endpoints } from '@wadah/api/endpoints/all'
import type { Fault } from '@wadah/api/fault'
import { faultLines } from '../../out/fault.ts'
import type { Register } from '../../program.ts'
import { formatTook } from '../../text/format.ts'
import { jobState } from './list.ts'

export const show: Register = (group, cli) => {
  group
    .command('show <job>')
    .description(cli.t('cmd.job.show'))
    .action(async (job: string) => {
      const { t, out } = cli
      const api = await cli.api()
      const j = await api.call(endpoints.jobs.get, { params: { job } })
      if (out.isJson) return out.json(j)
      await out.fields([
        ['id', j.id],
        [t('col.kind'), j.kind],
        [t('col.target'), `${j.target.kind} ${j.target.name ?? ''} ${j.target.id}`],
        [t('col.state'), jobState(j)],
        ['%', Math.round(j.percent)],
        [t('col.who'), j.subject],
        [t('col.created'), j.created_at],
        [t('col.ended'), j.ended_at],
      ])
      out.line()
      await out.table(
        [t('col.step'), t('col.state'), t('col.took')],
        j.steps.map((s) => [s.name, s.state, took(s.started_at, s.ended_at)]),
      )
      // What holds it up, while it goes on.
      const said = j.fault ?? j.attention?.fault
      if (said) for (const line of ['', ...faultLines(said as Fault, t)]) out.line(line)
    })
}

function took(from: string | undefined, to: string | undefined): string {
  return from === undefined || to === undefined ? '' : formatTook(Date.parse(to) - Date.parse(from))
}
