import { endpoints } from '@wadah/api/endpoints/all'
import type { Register } from '../../program.ts'

/** PCI and USB devices, who uses them, and which of them a VM can be given. */
export const devices: Register = (group, cli) => {
  const { t, out } = cli
  group
    .command('devices')
    .description(t('cmd.host.devices'))
    .option('--host <host>', t('opt.host'))
    .action(async (o: { host?: string }) => {
      const api = await cli.api()
      const found = await api.call(endpoints.system.devices, { query: { host: o.host } })
      if (cli.out.isJson) return cli.out.json(found)
      const free = (d: { free: boolean; why_not?: string }) => (d.free ? t('word.yes') : (d.why_not ?? t('word.no')))
      await out.table(
        ['PCI', t('col.class'), 'ID', t('col.driver'), 'IOMMU', t('col.can_be_given')],
        found.pci.map((d) => [
          d.address,
          d.class,
          `${d.vendor}:${d.product}`,
          d.driver ?? '',
          d.iommu_group ?? '',
          free(d),
        ]),
      )
      if (found.usb.length === 0) return
      out.line()
      await out.table(
        ['USB', 'ID', t('col.name'), t('col.can_be_given')],
        found.usb.map((d) => [d.port, `${d.vendor}:${d.product}`, d.text, free(d)]),
      )
    })
}
