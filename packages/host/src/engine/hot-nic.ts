/** NICs that come while the guest runs; how they go is in running-vm.ts, for a guest may let go of one at any time. */
import type { BootDevice, LaunchRequest } from '@wadah/ports/machine'
import type { Networks } from '@wadah/ports/networks'
import { netdev, netdevId, nicDevice } from './argv.ts'
import { freePort } from './hotplug.ts'
import { localNic } from './plan.ts'
import type { RunningVm } from './running-vm.ts'

const ATTACH_TIMEOUT_MS = 30_000

export const nicsOf = (running: Pick<RunningVm, 'record'>): string[] =>
  running.record.devices.flatMap((d) => (d.kind === 'nic' ? [d.name] : []))

/**
 * Puts the NICs of the request that a running VM lacks behind free ports, as far as there are any.
 * @throws WadahError of the network, `qemu_failed`; then nothing of that NIC is left, and those before it are in
 */
export async function plugNics(running: RunningVm, request: LaunchRequest, networks: Networks): Promise<void> {
  for (const nic of request.nics) {
    const bus = freePort(running.record)
    if (bus === undefined) return
    if (nicsOf(running).includes(nic.name)) continue
    const { mac } = nic.attachment
    const device = { kind: 'nic' as const, id: `nic-${nic.name}`, bus, name: nic.name, mac, network: nic.network.id }
    await plugNic(running, device, nic, networks)
    await running.deviceCame(device)
  }
}

async function plugNic(
  running: RunningVm,
  device: BootDevice & { kind: 'nic' },
  nic: LaunchRequest['nics'][number],
  networks: Networks,
): Promise<void> {
  const { name, network, attachment } = nic
  const hasTap = network.kind !== 'user'
  if (hasTap) await running.noteTap(name, true)
  try {
    const tap = hasTap ? await networks.attach(network, attachment, AbortSignal.timeout(ATTACH_TIMEOUT_MS)) : undefined
    await running.execute('netdev_add', netdev(name, localNic(nic, tap?.ifname ?? '')))
    try {
      await running.execute('device_add', nicDevice(device))
    } catch (error) {
      await running.execute('netdev_del', { id: netdevId(name) }).catch(() => {})
      throw error
    }
  } catch (error) {
    if (hasTap) await dropTap(running, name, networks).catch(() => {})
    throw error
  }
}

/** The tap first: as long as it may be there, it is noted. */
export async function dropTap(running: RunningVm, nic: string, networks: Networks): Promise<void> {
  if (!running.live.taps.includes(nic)) return
  await networks.detach(running.vm, nic)
  await running.noteTap(nic, false)
}
