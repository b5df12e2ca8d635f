/** A VM → the document that `wadah apply` would make it from. Pure. */
import type { Vm } from '@wadah/api/schema/vm'
import { stringify } from 'yaml'
import { namedFirewall } from '../text/firewall.ts'
import type { Current } from './plan.ts'

/** `1024` MiB → `1G`. */
export function sizeText(mib: number): string {
  if (mib % (1024 * 1024) === 0) return `${mib / 1024 / 1024}T`
  return mib % 1024 === 0 ? `${mib / 1024}G` : `${mib}M`
}

/** Names instead of ids, sizes with units. A password is in no answer of the daemon, so it is not here either. */
export function documentOf(vm: Vm, current: Omit<Current, 'vms'>): Record<string, unknown> {
  const { spec } = vm
  const nameOf = (list: readonly { id: string; name: string }[], id: string | undefined) =>
    list.find((x) => x.id === id)?.name ?? id
  const volumeOf = (id: string) => current.volumes.find((v) => v.id === id)
  const root = spec.disks[0]?.name === 'root' ? volumeOf(spec.disks[0].volume) : undefined
  const labels = Object.fromEntries(Object.entries(vm.labels).filter(([key]) => !key.startsWith('wadah.')))
  const some = (field: string, value: object | undefined) =>
    value && Object.keys(value).length > 0 ? { [field]: value } : {}
  const { hostname, user, ssh_keys } = spec.seed
  return {
    kind: 'vm',
    name: vm.name,
    ...(vm.description === '' ? {} : { description: vm.description }),
    ...some('labels', labels),
    ...(vm.protected ? { protected: true } : {}),
    ...(vm.autostart.enabled ? { autostart: vm.autostart } : {}),
    ...(vm.restart === 'never' ? { restart: vm.restart } : {}),
    ...some('snapshot_schedule', vm.snapshot_schedule),
    ...(spec.image === undefined ? {} : { image: nameOf(current.images, spec.image) }),
    ...(root === undefined ? {} : { disk: sizeText(root.size_bytes / 2 ** 20) }),
    cpus: spec.cpus,
    memory: sizeText(spec.memory_mib),
    ...(spec.balloon_mib === null ? {} : { balloon: sizeText(spec.balloon_mib) }),
    ...(spec.boot.kind === 'kernel' ? { cmdline: spec.boot.cmdline } : {}),
    ...some('limits', spec.limits),
    disks: spec.disks
      .filter((d) => d.name !== 'root')
      .map((d) => {
        const volume = volumeOf(d.volume)
        return {
          name: d.name,
          ...(volume === undefined
            ? { volume: d.volume }
            : {
                size: sizeText(volume.size_bytes / 2 ** 20),
                format: volume.format,
                pool: nameOf(current.pools, volume.pool),
              }),
          ...some('limits', d.limits),
        }
      }),
    nics: spec.nics.map((n) => ({
      name: n.name,
      network: nameOf(current.networks, n.network),
      mac: n.mac,
      ...(n.address === undefined ? {} : { address: n.address }),
      ...(n.publish.length === 0 ? {} : { publish: n.publish }),
      ...some('limits', n.limits),
    })),
    ...(spec.cdroms?.length
      ? {
          cdroms: spec.cdroms.map((c) => ({
            name: c.name,
            ...(c.image === undefined ? {} : { image: nameOf(current.images, c.image) }),
          })),
        }
      : {}),
    ...(spec.boot_order?.length ? { boot_order: spec.boot_order } : {}),
    ...(spec.firmware === undefined ? {} : { firmware: spec.firmware }),
    ...(spec.tpm ? { tpm: true } : {}),
    ...(spec.serial_ports === undefined ? {} : { serial_ports: spec.serial_ports }),
    ...(spec.firewall === undefined ? {} : { firewall: namedFirewall(spec.firewall, current.groups) }),
    seed: { hostname, ...(user === undefined ? {} : { user }), ...(ssh_keys.length === 0 ? {} : { ssh_keys }) },
    state: vm.status.state === 'stopped' ? 'stopped' : 'running',
  }
}

/** As YAML, one document after the other. */
export function exportText(docs: readonly Record<string, unknown>[]): string {
  return docs.map((doc) => stringify(doc, { lineWidth: 0 })).join('---\n')
}
