import { endpoints } from '@wadah/api/endpoints/all'
import type { Host } from '@wadah/api/schema/host'
import type { Cli } from '../../cli.ts'
import type { Register } from '../../program.ts'
import { formatBytes } from '../../text/format.ts'

export const show: Register = (group, cli) => {
  group
    .command('show')
    .description(cli.t('cmd.host.show'))
    .option('--host <host>', cli.t('opt.host'))
    .action(async (o: { host?: string }) => {
      const { t, out } = cli
      const api = await cli.api()
      const h = await api.call(endpoints.system.host, { query: { host: o.host } })
      if (out.isJson) return out.json(h)
      const mib = (n: number) => formatBytes(n * 2 ** 20)
      await out.fields([
        [t('col.name'), { text: h.name, style: 'bold' }],
        ['id', h.id],
        ['wadahd', h.version],
        ['QEMU', h.qemu_version],
        ['CPU', `${h.cpus} × ${h.cpu_model}`],
        [
          t('col.memory'),
          t('host.memory', {
            all: mib(h.memory_mib),
            free: mib(h.memory_free_mib),
            promised: mib(h.promised_memory_mib),
          }),
        ],
        [t('col.accelerator'), `${h.accelerator} (${h.accelerator_reason})`],
        [t('col.firmware'), h.firmware.join(', ')],
        ['TPM', t(h.tpm ? 'word.yes' : 'word.no')],
        ['cgroup', h.cgroup],
        ['root', t(h.root ? 'word.yes' : 'word.no')],
      ])
      out.line()
      await out.table(
        [t('col.technique'), t('col.available'), t('col.detail')],
        h.techniques.map((x) => [x.name, t(x.available ? 'word.yes' : 'word.no'), x.detail]),
      )
      printAttention(cli, h)
    })
}

/** What the host lacks, each with its remedy. */
export function printAttention(cli: Cli, host: Host): void {
  for (const a of host.attention) {
    cli.out.note('')
    cli.out.warn(`! ${cli.out.cell(a.about)}: ${cli.out.cell(a.detail)}`)
    if (a.remedy !== undefined) cli.out.note(`  ${cli.out.cell(a.remedy)}`)
  }
}
