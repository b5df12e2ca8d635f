/** Records → what a machine is told: pool, volume and network definitions, launch requests. */
import { fail } from '@wadah/api/fault'
import type { Nic, VmSpec } from '@wadah/api/schema/vm'
import type { LaunchRequest } from '@wadah/ports/machine'
import type { NetworkAttachment, NetworkDefinition } from '@wadah/ports/networks'
import type { PoolDefinition, VolumeDefinition } from '@wadah/ports/volumes'
import type { Deps } from './context.ts'
import { addressBook, nicFirewall } from './networks/firewall-rules.ts'
import {
  type NetworkRecord,
  type PoolRecord,
  type SecretRecord,
  type VmRecord,
  type VolumeRecord,
  imageKind,
  networkKind,
  placementKind,
  poolKind,
  secretKind,
  vmKind,
  volumeKind,
} from './records.ts'

export function poolDefinition(pool: PoolRecord): PoolDefinition {
  return { id: pool.id, path: pool.path, direct_io: pool.direct_io }
}

export function volumeDefinition(deps: Pick<Deps, 'view'>, volume: VolumeRecord): VolumeDefinition {
  const base = volume.base === undefined ? undefined : deps.view.get(volumeKind, volume.base)?.value
  return {
    id: volume.id,
    pool: volume.pool,
    format: volume.format,
    size_bytes: volume.size_bytes,
    ...(base ? { base: { id: base.id, format: base.format } } : {}),
  }
}

export function poolOf(deps: Pick<Deps, 'view'>, id: string): PoolRecord {
  const pool = deps.view.get(poolKind, id)?.value
  if (!pool) throw fail('not_found', `The pool ${id} is not there any more.`)
  return pool
}

/** Layers of snapshots on top of an image's; the host refuses more than this too. */
const MAX_CHAIN = 40

/** The volume, then what it stands on. */
export function chainOf(deps: Pick<Deps, 'view'>, id: string): VolumeRecord[] {
  const chain: VolumeRecord[] = []
  for (let next: string | undefined = id; next !== undefined; ) {
    const volume: VolumeRecord | undefined = deps.view.get(volumeKind, next)?.value
    if (!volume) throw fail('not_found', `The volume ${next} is not there any more.`)
    if (chain.length > MAX_CHAIN) throw fail('image_corrupt', `The volume ${id} stands on too many others.`)
    chain.push(volume)
    next = volume.base
  }
  return chain
}

export function networkDefinition(network: NetworkRecord): NetworkDefinition {
  const { id, name } = network
  if (network.kind === 'user') return { id, name, kind: 'user' }
  const { subnet = '', gateway = '', bridge = '', domain = '', host_access = false, nic, vlan } = network
  if (network.kind === 'bridge') {
    return {
      id,
      name,
      kind: 'bridge',
      bridge,
      ...(nic === undefined ? {} : { nic }),
      ...(vlan === undefined ? {} : { vlan }),
      ...(host_access ? { host_access } : {}),
    }
  }
  return { id, name, kind: 'nat', subnet, gateway, bridge, domain, ...(host_access ? { host_access } : {}) }
}

export function attachment(
  deps: Pick<Deps, 'view'>,
  vm: VmRecord,
  nic: Nic,
  addressesOf = addressBook(deps),
): NetworkAttachment {
  const { in_bytes_per_s, out_bytes_per_s } = nic.limits
  return {
    vm: vm.id,
    vm_name: vm.name,
    nic: nic.name,
    network: nic.network,
    uid: vm.spec.uid,
    mac: nic.mac,
    ...(nic.address === undefined ? {} : { address: nic.address }),
    publish: nic.publish,
    limits: { ...(in_bytes_per_s ? { in_bytes_per_s } : {}), ...(out_bytes_per_s ? { out_bytes_per_s } : {}) },
    ...(vm.spec.firewall === undefined ? {} : { firewall: nicFirewall(deps, vm.spec.firewall, addressesOf) }),
  }
}

/** Every NIC of this host's VMs that has a tap. */
export function attachments(deps: Pick<Deps, 'view' | 'hostId'>): NetworkAttachment[] {
  const addressesOf = addressBook(deps)
  return deps.view
    .list(vmKind)
    .filter((vm) => deps.view.get(placementKind, vm.id)?.value.host === deps.hostId)
    .flatMap(({ value }) => value.spec.nics.map((nic) => attachment(deps, value, nic, addressesOf)))
    .filter((a) => {
      const kind = deps.view.get(networkKind, a.network)?.value.kind
      return kind === 'nat' || kind === 'bridge'
    })
}

/** The seed the guest reads at its first boot. */
export function seedOf(vm: VmRecord, password: string | undefined): Record<string, string> {
  const { seed } = vm.spec
  const lines: Record<string, string> = { 'instance-id': vm.id, hostname: seed.hostname }
  if (seed.user !== undefined) lines['user'] = seed.user
  seed.ssh_keys.forEach((key, i) => {
    lines[i === 0 ? 'sshkey' : `sshkey${i + 1}`] = key
  })
  if (password !== undefined) lines['password'] = password
  return lines
}

/** The seed by the way that this guest takes it, and by no other. */
function seeds(vm: VmRecord, secret: SecretRecord | undefined): Pick<LaunchRequest, 'seed' | 'cloud_seed'> {
  const { seed, nics } = vm.spec
  const kind = seed.kind ?? 'wadah'
  if (kind === 'wadah') return { seed: seedOf(vm, secret?.password) }
  if (kind === 'none') return { seed: {} }
  return {
    seed: {},
    cloud_seed: {
      instance_id: vm.id,
      hostname: seed.hostname,
      ...(seed.user === undefined ? {} : { user: seed.user }),
      ...(secret?.password === undefined ? {} : { password: secret.password }),
      ssh_keys: seed.ssh_keys,
      ...(secret?.user_data === undefined ? {} : { user_data: secret.user_data }),
      nics: nics.map(({ name, mac }) => ({ name, mac })),
    },
  }
}

export function launchRequest(deps: Pick<Deps, 'view'>, vm: VmRecord): LaunchRequest {
  const { spec } = vm
  const placement = deps.view.get(placementKind, vm.id)?.value
  const kernelImage = spec.boot.kind === 'kernel' ? deps.view.get(imageKind, spec.boot.image)?.value : undefined
  if (spec.boot.kind === 'kernel' && !kernelImage)
    throw fail('not_found', 'The kernel image of this VM is not there any more.')
  return {
    vm: vm.id,
    name: vm.name,
    epoch: placement?.epoch ?? 1,
    spec,
    disks: spec.disks.map((disk) => {
      const chain = chainOf(deps, disk.volume)
      const pool = poolOf(deps, (chain[0] as VolumeRecord).pool)
      return { name: disk.name, chain: chain.map((v) => volumeDefinition(deps, v)), pool: poolDefinition(pool) }
    }),
    nics: spec.nics.map((nic) => {
      const network = deps.view.get(networkKind, nic.network)?.value
      if (!network) throw fail('not_found', `The network of ${nic.name} is not there any more.`)
      return { name: nic.name, network: networkDefinition(network), attachment: attachment(deps, vm, nic) }
    }),
    ...(spec.cdroms ? { cdroms: spec.cdroms.map(({ name, image }) => ({ name, ...(image ? { image } : {}) })) } : {}),
    ...(spec.boot.kind === 'kernel' && kernelImage
      ? {
          kernel: {
            image: kernelImage.id,
            cmdline: kernelCmdline(spec, vm.name, kernelImage.recipe !== undefined),
            has_initrd: kernelImage.has_initrd,
          },
        }
      : {}),
    ...seeds(vm, deps.view.get(secretKind, vm.id)?.value),
  }
}

/** A guest of our own that has no disk to keep its name on is told it at each start. */
function kernelCmdline(spec: VmSpec, name: string, ours: boolean): string {
  const cmdline = spec.boot.kind === 'kernel' ? spec.boot.cmdline : ''
  return ours && !cmdline.includes('wadah.hostname=') ? `${cmdline} wadah.hostname=${name}`.trim() : cmdline
}
