import { readFile } from 'node:fs/promises'
import { text } from 'node:stream/consumers'
import { fail } from '@wadah/api/fault'
import { namedInstance } from '../../local/instance.ts'
import { offline } from '../../local/offline.ts'
import { confirm } from '../../local/prompt.ts'
import type { Register } from '../../program.ts'

type Options = { instance: string; data?: string; address: string; port?: string; name?: string; yes?: boolean }
type Joined = { cluster: string; host: string; name: string; changes: string[]; kept?: string }
const JOIN_MS = 600_000

/** Takes this host into a cluster, its VMs with it. */
export const join: Register = (group, cli) => {
  const { t } = cli
  group
    .command('join <token-file>')
    .description(t('cmd.cluster.join'))
    .requiredOption('--address <address>', t('opt.cluster.address'))
    .option('--port <port>', t('opt.cluster.port'))
    .option('--name <name>', t('opt.cluster.name'))
    .option('--instance <name>', t('opt.up.instance'), 'default')
    .option('--data <dir>', t('opt.up.data'))
    .option('-y, --yes', t('opt.yes'))
    .action(async (file: string, o: Options) => {
      const instance = namedInstance(cli, o)
      // In argv everybody on this machine would read it.
      const token = (await readToken(file)).trim()
      if (!o.yes && !(await confirm(cli, t('cluster.ask_join', { data: instance.data }))))
        return cli.out.note(t('bulk.refused'))
      const args = ['--cluster-join', '--address', o.address]
      if (o.port !== undefined) args.push('--cluster-port', o.port)
      if (o.name !== undefined) args.push('--name', o.name)
      const done = await offline<Joined>(cli, instance, args, { timeout_ms: JOIN_MS, input: token })
      if (cli.out.isJson) return cli.out.json(done)
      cli.out.line(t('cluster.joined', { name: done.name }))
      for (const change of done.changes) cli.out.line(`  ${cli.out.cell(change)}`)
      if (done.kept !== undefined) cli.out.note(t('store.kept', { file: done.kept }))
    })
}

async function readToken(file: string): Promise<string> {
  if (file.startsWith('wadah-join-'))
    throw fail('invalid', 'The token itself stands on the command line, where everybody on this machine can read it', {
      field: 'token-file',
      remedy: 'make a new one; give the name of a file that holds it, or - and paste it',
    })
  try {
    return file === '-' ? await text(process.stdin) : await readFile(file, 'utf8')
  } catch (cause) {
    throw fail('not_found', `${file} can't be read: ${(cause as Error).message}`, { field: 'token-file', cause })
  }
}
