import { endpoints } from '@wadah/api/endpoints/all'
import { EXIT } from '../../exit.ts'
import type { Style } from '../../out/output.ts'
import type { Register } from '../../program.ts'

const STYLES: Record<'ok' | 'warn' | 'lack', Style> = { ok: 'green', warn: 'yellow', lack: 'red' }

/** What this machine can do, what it lacks, and how to get it. Exits with 9 when something that is needed is not there. */
export const check: Register = (group, cli) => {
  const { t, out } = cli
  group
    .command('check')
    .description(t('cmd.host.check'))
    .option('--host <host>', t('opt.host'))
    .action(async (o: { host?: string }) => {
      const api = await cli.api()
      const found = await api.call(endpoints.system.check, { query: { host: o.host } })
      cli.exit = found.ok ? EXIT.ok : EXIT.host_lacks
      if (cli.out.isJson) return cli.out.json(found)
      const shown = cli.options.quiet ? found.items.filter((i) => i.state !== 'ok') : found.items
      for (const item of shown) {
        const mark = out.style(STYLES[item.state], t(`check.${item.state}`).padEnd(4))
        cli.out.line(`${mark}  ${out.cell(item.name)}: ${out.cell(item.detail)}`)
        if (item.remedy !== undefined && item.state !== 'ok') cli.out.line(`      → ${out.cell(item.remedy)}`)
      }
      if (found.outdated.length === 0) return
      cli.out.line()
      await cli.out.table(
        [t('col.name'), t('col.qemu_running'), t('col.qemu_installed')],
        found.outdated.map((o) => [o.name, o.running, o.installed]),
      )
      cli.out.note(t('check.outdated'))
    })
}
