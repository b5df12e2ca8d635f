import { resolve } from 'node:path'
import { namedInstance } from '../../local/instance.ts'
import { offline } from '../../local/offline.ts'
import { confirm } from '../../local/prompt.ts'
import type { Register } from '../../program.ts'

type Options = { instance: string; data?: string; config?: string; from?: string; yes?: boolean }
type Recovered = { cluster: string; host: string; kept?: string; waiting: string[]; records?: number }
const RECOVER_MS = 300_000

/** Makes the store answer again after its majority was lost. */
export const recover: Register = (group, cli) => {
  const { t, out } = cli
  group
    .command('recover')
    .description(t('cmd.cluster.recover'))
    .option('--from <file>', t('opt.cluster.from'))
    .option('--instance <name>', t('opt.up.instance'), 'default')
    .option('--data <dir>', t('opt.up.data'))
    .option('--config <file>', t('opt.up.config'))
    .option('-y, --yes', t('opt.yes'))
    .action(async (o: Options) => {
      if (!o.yes && !(await confirm(cli, t('cluster.ask_recover')))) return out.note(t('bulk.refused'))
      const from = o.from === undefined ? [] : ['--from', resolve(o.from)]
      const args = ['--cluster-recover', ...from]
      const done = await offline<Recovered>(cli, namedInstance(cli, o), args, {
        timeout_ms: RECOVER_MS,
        ...(o.config === undefined ? {} : { config: resolve(o.config) }),
      })
      if (out.isJson) return out.json(done)
      out.line(t('cluster.recovered', { host: done.host }))
      if (done.kept !== undefined) out.note(t('store.kept', { file: done.kept }))
      if (done.waiting.length > 0) out.note(t('cluster.waiting', { list: done.waiting.join(', ') }))
    })
}
