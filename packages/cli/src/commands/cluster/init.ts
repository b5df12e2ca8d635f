import { resolve } from 'node:path'
import { namedInstance } from '../../local/instance.ts'
import { offline } from '../../local/offline.ts'
import type { Register } from '../../program.ts'

type Options = {
  instance: string
  data?: string
  address: string
  port?: string
  etcd?: string
  etcdCa?: string
  etcdCert?: string
  etcdKey?: string
  etcdPrefix?: string
}
type Initiated = { cluster: string; host: string; address: string; records: number; kept?: string }
const INIT_MS = 180_000

/** Makes a cluster of one of this host; its VMs run on. */
export const init: Register = (group, cli) => {
  const { t } = cli
  group
    .command('init')
    .description(t('cmd.cluster.init'))
    .requiredOption('--address <address>', t('opt.cluster.address'))
    .option('--port <port>', t('opt.cluster.port'))
    .option('--etcd <urls>', t('opt.cluster.etcd'))
    .option('--etcd-ca <file>', t('opt.cluster.etcd_ca'))
    .option('--etcd-cert <file>', t('opt.cluster.etcd_cert'))
    .option('--etcd-key <file>', t('opt.cluster.etcd_key'))
    .option('--etcd-prefix <path>', t('opt.cluster.etcd_prefix'))
    .option('--instance <name>', t('opt.up.instance'), 'default')
    .option('--data <dir>', t('opt.up.data'))
    .action(async (o: Options) => {
      const instance = namedInstance(cli, o)
      const args = [
        '--cluster-init',
        '--address',
        o.address,
        ...(o.port === undefined ? [] : ['--cluster-port', o.port]),
        ...(o.etcd === undefined ? [] : ['--etcd', o.etcd]),
        // Names of files: what is in them goes through no command line.
        ...(o.etcdCa === undefined ? [] : ['--etcd-ca', resolve(o.etcdCa)]),
        ...(o.etcdCert === undefined ? [] : ['--etcd-cert', resolve(o.etcdCert)]),
        ...(o.etcdKey === undefined ? [] : ['--etcd-key', resolve(o.etcdKey)]),
        ...(o.etcdPrefix === undefined ? [] : ['--etcd-prefix', o.etcdPrefix]),
      ]
      const done = await offline<Initiated>(cli, instance, args, { timeout_ms: INIT_MS })
      if (cli.out.isJson) return cli.out.json(done)
      cli.out.line(t('cluster.made', { records: done.records, address: done.address }))
      if (done.kept !== undefined) cli.out.note(t('store.kept', { file: done.kept }))
      cli.out.note(t('cluster.next'))
    })
}
