import { endpoints } from '@wadah/api/endpoints/all'
import type { Cluster, ClusterHost } from '@wadah/api/schema/cluster'
import type { Cli } from '../../cli.ts'
import type { Cell } from '../../out/output.ts'
import type { Register } from '../../program.ts'
import { formatBytes, formatTook } from '../../text/format.ts'

export const list: Register = (group, cli) => {
  group
    .command('list')
    .alias('ls')
    .description(cli.t('cmd.host.list'))
    .action(async () => {
      const api = await cli.api()
      const cluster = await api.call(endpoints.cluster.get)
      if (cli.out.isJson) return cli.out.json({ items: cluster.hosts })
      if (cli.options.quiet) return cluster.hosts.forEach((h) => cli.out.line(cli.out.cell(h.name)))
      await hostTable(cli, cluster)
    })
}

export async function hostTable({ out, t }: Cli, cluster: Cluster): Promise<void> {
  const mib = (n: number | undefined) => (n === undefined ? '' : formatBytes(n * 2 ** 20))
  await out.table(
    [t('col.name'), t('col.state'), t('col.address'), 'VMs', 'CPU', t('col.memory'), t('col.free'), 'QEMU', 'wadahd'],
    cluster.hosts.map((h) => [
      h.id === cluster.this_host ? { text: `${h.name} *`, style: 'bold' } : h.name,
      stateOf(h),
      h.address ?? '',
      `${h.running}/${h.vms}`,
      h.cpus === undefined ? '' : h.cpu_busy === undefined ? String(h.cpus) : `${h.cpu_busy.toFixed(1)}/${h.cpus}`,
      mib(h.memory_mib),
      mib(h.memory_free_mib),
      h.qemu_version === undefined ? '' : `${h.qemu_version} ${h.accelerator ?? ''}`.trim(),
      h.version ?? '',
    ]),
  )
  const here = cluster.hosts.find((h) => h.id === cluster.this_host)?.name ?? cluster.this_host
  for (const { name, clock_off_ms: off_ms } of cluster.hosts)
    if (off_ms !== undefined)
      out.warn(
        t(off_ms > 0 ? 'cluster.clock_ahead' : 'cluster.clock_behind', {
          host: name,
          here,
          span: formatTook(Math.abs(off_ms)),
        }),
      )
  const versions = [...new Set(cluster.hosts.flatMap((h) => h.version ?? []))].toSorted()
  if (versions.length > 1) out.note(t('cluster.mixed', { list: versions.join(', ') }))
}

const STYLES = { up: 'green', down: 'red', maintenance: 'yellow' } as const
const stateOf = (h: ClusterHost): Cell => ({ text: h.state, style: STYLES[h.state] })
