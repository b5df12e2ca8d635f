import { spawn } from 'node:child_process'
import { constants } from 'node:os'
import { endpoints } from '@wadah/api/endpoints/all'
import { answers, daemonArguments, daemonProgram, startDaemon } from '../local/daemon.ts'
import { fail } from '@wadah/api/fault'
import { fingerprintOf } from '../local/fingerprint.ts'
import { namedInstance } from '../local/instance.ts'
import { listenOf, parseListen } from '../local/listen.ts'
import { setupLink } from '../local/setup-link.ts'
import type { Register } from '../program.ts'
import { printAttention } from './host/show.ts'

type Options = { instance: string; data?: string; listen?: string; config?: string; foreground?: boolean }

/** Starts the daemon of an instance, or says where it is when it runs already. */
export const register: Register = (group, cli) => {
  const { t } = cli
  group
    .option('--instance <name>', t('opt.up.instance'), 'default')
    .option('--data <dir>', t('opt.up.data'))
    .option('--listen <address:port>', t('opt.up.listen'))
    .option('--config <file>', t('opt.up.config'))
    .option('--foreground', t('opt.up.foreground'))
    .action(async (o: Options) => {
      const instance = namedInstance(cli, o)
      if (o.listen !== undefined) parseListen(o.listen)
      const start = { listen: o.listen, config: o.config }
      if (o.foreground) {
        if ((await answers(cli, instance)) !== undefined) {
          throw fail('wrong_state', t('up.already_foreground', { socket: instance.socket }), { remedy: 'wadah down' })
        }
        const child = spawn(daemonProgram(cli), daemonArguments(instance, start), { stdio: 'inherit' })
        const off = cli.io.onInterrupt(() => {})
        cli.exit = await new Promise<number>((resolve) =>
          child.once('exit', (code, signal) => resolve(code ?? 128 + constants.signals[signal ?? 'SIGTERM'])),
        )
        off()
        return
      }
      const how = await startDaemon(cli, instance, start)
      const listen = (await listenOf(instance)) ?? o.listen ?? '127.0.0.1:7443'
      if (o.listen !== undefined && o.listen !== listen) cli.out.warn(t('up.other_listen', { listen }))
      const { host, port } = parseListen(listen)
      const reach = host === '0.0.0.0' ? '127.0.0.1' : host
      const fingerprint = await fingerprintOf(reach, port)
      const api = await cli.api({ socket: instance.socket })
      const [facts, link] = await Promise.all([api.call(endpoints.system.host), setupLink(api, instance)])
      const url = `https://${listen}`
      if (cli.out.isJson) {
        return cli.out.json({
          instance: instance.name,
          started: how === 'started',
          url,
          ...(fingerprint === undefined ? {} : { fingerprint }),
          socket: instance.socket,
          data: instance.data,
          log: instance.logFile,
          ...(link === undefined ? {} : { setup_link: link }),
          attention: facts.attention,
        })
      }
      cli.out.line(t(how === 'started' ? 'up.started' : 'up.was_up', { version: facts.version }))
      await cli.out.fields([
        ['API', fingerprint === undefined ? t('up.no_tls', { url }) : url],
        ['SHA-256', fingerprint],
        ['socket', instance.socket],
        [t('col.log'), instance.logFile],
        [t('col.accelerator'), `${facts.accelerator} (${facts.accelerator_reason})`],
        [t('up.first_admin'), link],
      ])
      printAttention(cli, facts)
    })
}
