/** The start of an instant clone, and who it is. */
import { fail } from '@wadah/api/fault'
import type { LaunchRequest } from '@wadah/ports/machine'
import type { Identity } from '@wadah/ports/warm'
import type { Deps } from '../context.ts'
import { type VmRecord, imageKind, networkKind, secretKind } from '../records.ts'
import { launchRequest, seedOf } from '../resolve.ts'

/** slirp's addresses; the guest is not told by DHCP here. */
const USER = { address: '10.0.2.15/24', gateway: '10.0.2.2', dns: '10.0.2.3' }

/** Who the clone is. */
export function identityOf(deps: Pick<Deps, 'view'>, vm: VmRecord): Identity {
  const [nic] = vm.spec.nics
  const network = nic && deps.view.get(networkKind, nic.network)?.value
  if (!nic || !network) throw fail('not_found', 'The network of the clone is not there any more.')
  const { subnet = '', gateway = '', domain } = network
  return {
    instance_id: vm.id,
    hostname: vm.spec.seed.hostname,
    mac: nic.mac,
    ...(network.kind === 'user' || nic.address === undefined
      ? USER
      : { address: `${nic.address}/${subnet.split('/')[1] ?? '24'}`, gateway, dns: gateway }),
    ...(domain === undefined ? {} : { domain }),
    seed: seedOf(vm, deps.view.get(secretKind, vm.id)?.value.password),
  }
}

/**
 * The start of a clone. Its disk belongs to the RAM of the template: unless the clone is itself already, both begin anew, for what one
 * that was cut off wrote does not fit the RAM that the next one begins with.
 */
export async function launchInstant<T>(
  deps: Deps,
  id: string,
  means: {
    dropDisks: () => Promise<void>
    makeDisks: () => Promise<void>
    launch: (requestOf: (vm: VmRecord) => LaunchRequest) => Promise<T>
  },
): Promise<T> {
  if (!(await deps.machine.warm.whole(id))) {
    await means.dropDisks()
    await means.makeDisks()
  }
  // Beside each other: both take their time, and neither needs the other before the network is up.
  const names = deps.syncNetworks()
  names.catch(() => undefined)
  const launched = await means.launch((vm) => {
    const image = vm.spec.image === undefined ? undefined : deps.view.get(imageKind, vm.spec.image)?.value
    if (!image?.warm)
      throw fail('wrong_state', 'The image is not warm any more.', {
        remedy: 'wadah image warm IMAGE',
        retryable: false,
      })
    const { boot, qemu_version, ram_bytes } = image.warm
    const instant = { boot, qemu_version, ram_bytes, image: image.id, identity: identityOf(deps, vm) }
    return { ...launchRequest(deps, vm), instant }
  })
  await names
  await deps.machine.warm.connect(id)
  return launched
}
