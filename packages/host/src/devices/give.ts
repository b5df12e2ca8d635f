/** Rights of a VM's user on the nodes of the devices it is given, as long as it runs. */
import { lchown, lstat } from 'node:fs/promises'
import { fail } from '@wadah/api/fault'
import type { Hostdev } from '@wadah/api/schema/devices'
import type { DevicesFound } from '@wadah/ports/devices'
import type { LocalPlan } from '@wadah/ports/machine'

type LocalDevice = NonNullable<LocalPlan['devices']>[string]

/**
 * What this host does for the devices of a VM. Pure: judged anew at each start, for they may have been taken out or bound otherwise.
 * @throws WadahError `wrong_state`, `host_lacks`
 */
export function resolveDevices(
  wanted: readonly Hostdev[],
  found: DevicesFound,
  root: boolean,
): Record<string, LocalDevice> {
  if (wanted.length > 0 && !root)
    throw fail('host_lacks', 'Devices of the host can be given to a VM by a wadahd that runs as root only.', {
      remedy: 'sudo wadah up',
    })
  return Object.fromEntries(
    wanted.map((w): [string, LocalDevice] => {
      const gone = (what: string) =>
        fail('wrong_state', `The device "${w.name}" of this VM ${what}.`, { remedy: 'wadah host devices' })
      if (w.kind === 'pci') {
        const pci = found.pci.find((d) => d.address === w.address)
        if (!pci) throw gone(`(${w.address}) is not in this host any more`)
        if (pci.driver !== 'vfio-pci' || pci.iommu_group === undefined)
          throw fail('wrong_state', `${w.address} is not bound to vfio-pci.`, {
            remedy: `driverctl set-override ${w.address} vfio-pci`,
          })
        return [w.name, { kind: 'pci', address: pci.address, node: `/dev/vfio/${pci.iommu_group}` }]
      }
      const usb = found.usb.filter((d) =>
        w.port === undefined ? d.vendor === w.vendor && d.product === w.product : d.port === w.port,
      )
      const [first, second] = usb
      if (!first) throw gone('is not plugged in')
      if (second) throw gone(`is there twice (${usb.map((d) => d.port).join(', ')}): name it by its port`)
      const number = (n: number) => String(n).padStart(3, '0')
      return [w.name, { kind: 'usb', node: `/dev/bus/usb/${number(first.bus)}/${number(first.device)}` }]
    }),
  )
}

export const nodesOf = (devices: LocalPlan['devices']): string[] => [
  ...new Set(Object.values(devices ?? {}).map((d) => d.node)),
]

/** The VM's user may open them; nobody else may. @throws WadahError `wrong_state` when one is not there or is another's */
export async function give(nodes: readonly string[], uid: number): Promise<void> {
  for (const node of nodes) {
    const stat = await lstat(node).catch(() => undefined)
    if (!stat?.isCharacterDevice())
      throw fail('wrong_state', `There is no device ${node}.`, { remedy: 'wadah host devices' })
    if (stat.uid !== 0 && stat.uid !== uid)
      throw fail('in_use', `${node} belongs to the user ${stat.uid}.`, { remedy: 'wadah host devices' })
    await lchown(node, uid, 0)
  }
}

/** Only what still is this user's: a node may be gone, and its name another device's by now. */
export async function takeBack({ uid, nodes }: { uid: number; nodes: readonly string[] }): Promise<void> {
  for (const node of nodes) {
    const stat = await lstat(node).catch(() => undefined)
    if (stat?.isCharacterDevice() && stat.uid === uid) await lchown(node, 0, 0)
  }
}
