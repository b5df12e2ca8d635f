import { resolve } from 'node:path'
import { fail } from '@wadah/api/fault'
import { answers, daemonArguments, daemonProgram, findDaemon } from '../../local/daemon.ts'
import { namedInstance } from '../../local/instance.ts'
import { runProgram } from '../../local/process.ts'
import { confirm } from '../../local/prompt.ts'
import type { Register } from '../../program.ts'

type Options = { instance: string; data?: string; yes?: boolean }
type Restored = { store: string; revision: number; records: number; kept?: string }

/** Puts a copy in the place of this machine's store, while no daemon runs. */
export const restore: Register = (group, cli) => {
  const { t } = cli
  group
    .command('restore <file>')
    .description(t('cmd.store.restore'))
    .option('--instance <name>', t('opt.up.instance'), 'default')
    .option('--data <dir>', t('opt.up.data'))
    .option('-y, --yes', t('opt.yes'))
    .action(async (file: string, o: Options) => {
      const instance = namedInstance(cli, o)
      if ((await findDaemon(instance)) ?? (await answers(cli, instance)))
        throw fail('wrong_state', t('store.running'), { remedy: 'systemctl stop wadahd, or wadah down (VMs run on)' })
      if (!o.yes && !(await confirm(cli, t('store.ask', { file, data: instance.data }))))
        return cli.out.note(t('bulk.refused'))
      const args = [...daemonArguments(instance, {}), '--restore', resolve(file)]
      const ran = await runProgram(daemonProgram(cli), args, { timeout_ms: 600_000 })
      if (ran.code !== 0) {
        const [detail = '', remedy] = ran.stderr
          .replace(/^wadahd: /, '')
          .trim()
          .split('\n  ')
        throw fail('tool_failed', detail, remedy === undefined ? {} : { remedy })
      }
      const done = JSON.parse(ran.stdout) as Restored
      if (cli.out.isJson) return cli.out.json(done)
      cli.out.line(t('store.restored', { records: done.records, revision: done.revision }))
      if (done.kept !== undefined) cli.out.note(t('store.kept', { file: done.kept }))
      cli.out.note(t('store.next'))
    })
}
