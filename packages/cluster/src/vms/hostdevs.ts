/** Which devices of the host a VM may be given. Pure decisions; what is there was found by the machine. */
import { type WadahError, fail } from '@wadah/api/fault'
import type { Hostdev, HostDevices } from '@wadah/api/schema/devices'
import type { DevicesFound, PciFound, UsbFound } from '@wadah/ports/devices'
import type { Deps } from '../context.ts'
import { type VmRecord, placementKind, vmKind } from '../records.ts'

/** Names of the VMs that have been given each device: by PCI address, and by USB port. */
export type Given = { pci: ReadonlyMap<string, string>; usb: ReadonlyMap<string, string> }

const MAX_HOSTDEVS = 8
const VFIO = 'vfio-pci'
const IOMMU_REMEDY =
  'switch on VT-d or AMD-Vi in the firmware set-up, and start the kernel with intel_iommu=on (Intel) or amd_iommu=on (AMD)'

const isBridge = (d: PciFound): boolean => d.class.startsWith('06')
const bind = (addresses: readonly string[]): string =>
  addresses.map((a) => `driverctl set-override ${a} ${VFIO}`).join('; ')
const said = (d: PciFound): string => `${d.address} (${d.driver ?? 'no driver'})`

/** Why a VM can't be given this PCI device; undefined when it can. */
export function pciRefusal(d: PciFound, found: DevicesFound, given: Given): WadahError | undefined {
  if (isBridge(d)) return fail('invalid', `${d.address} is a bridge of the host's own bus.`)
  if (d.serves.length > 0) return fail('in_use', `The host needs ${d.address} itself, for ${d.serves.join(', ')}.`)
  const vm = given.pci.get(d.address)
  if (vm !== undefined) return fail('in_use', `${d.address} is given to the VM "${vm}".`)
  if (!found.iommu || d.iommu_group === undefined)
    return fail(
      'host_lacks',
      `This host has no IOMMU${found.iommu ? ` for ${d.address}` : ''}, so no PCI device can be given to a VM.`,
      {
        remedy: IOMMU_REMEDY,
      },
    )
  const group = found.pci.filter((o) => o !== d && o.iommu_group === d.iommu_group && !isBridge(o))
  const together = `the IOMMU group ${d.iommu_group}, whose devices can only be given away together`
  const needed = group.find((o) => o.serves.length > 0)
  if (needed)
    return fail(
      'in_use',
      `${d.address} is in ${together}, with ${needed.address}, which the host needs for ${needed.serves.join(', ')}.`,
      {
        remedy: 'put the card into another slot',
      },
    )
  const taken = group.find((o) => given.pci.has(o.address))
  if (taken)
    return fail(
      'in_use',
      `${d.address} is in ${together}, with ${taken.address}, which is given to the VM "${given.pci.get(taken.address)}".`,
    )
  const bound = group.filter((o) => o.driver !== undefined && o.driver !== VFIO)
  if (bound.length > 0)
    return fail(
      'in_use',
      `${d.address} is in ${together}; the host uses others of it: ${bound.map(said).join(', ')}.`,
      {
        remedy: bind([d.address, ...bound.map((o) => o.address)]),
      },
    )
  if (d.driver !== VFIO)
    return fail(
      'in_use',
      `${d.address} is bound to ${d.driver === undefined ? 'no driver' : `the host's driver ${d.driver}`}.`,
      {
        remedy: bind([d.address]),
      },
    )
  return undefined
}

export function usbRefusal(d: UsbFound, given: Given): WadahError | undefined {
  if (d.hub) return fail('invalid', `${d.port} is a hub: name a device that is plugged into it.`)
  if (d.serves.length > 0) return fail('in_use', `The host needs ${d.port} itself, for ${d.serves.join(', ')}.`)
  const vm = given.usb.get(d.port)
  return vm === undefined ? undefined : fail('in_use', `${d.port} is given to the VM "${vm}".`)
}

const matches = (w: Hostdev & { kind: 'usb' }, d: UsbFound): boolean =>
  w.port === undefined ? d.vendor === w.vendor && d.product === w.product : d.port === w.port

export function givenTo(vms: readonly Pick<VmRecord, 'name' | 'spec'>[], found: DevicesFound): Given {
  const pci = new Map<string, string>()
  const usb = new Map<string, string>()
  for (const { name, spec } of vms)
    for (const w of spec.hostdevs ?? []) {
      if (w.kind === 'pci') pci.set(w.address, name)
      else for (const d of found.usb) if (matches(w, d)) usb.set(d.port, name)
    }
  return { pci, usb }
}

/**
 * What may be given of what was asked for. `there`: what the VM has; `given`: what others have.
 * @throws WadahError with the field of the one that may not
 */
export function checkHostdevs(
  wanted: readonly Hostdev[],
  there: readonly Hostdev[],
  found: DevicesFound,
  given: Given,
  under: string,
): void {
  if (there.length + wanted.length > MAX_HOSTDEVS)
    throw fail('invalid', `A VM can be given at most ${MAX_HOSTDEVS} devices.`, { field: under })
  for (const [i, w] of wanted.entries()) {
    const field = `${under}/${i}`
    const list = { field, remedy: 'wadah host devices' }
    const own = [...there, ...wanted.slice(0, i)]
    if (own.some((o) => o.name === w.name))
      throw fail('invalid', `There is a device "${w.name}" already.`, { field: `${field}/name` })
    if (w.kind === 'pci') {
      const d = found.pci.find((o) => o.address === w.address)
      if (!d) throw fail('invalid', `This host has no PCI device ${w.address}.`, list)
      if (own.some((o) => o.kind === 'pci' && o.address === w.address))
        throw fail('in_use', `${w.address} is given to this VM already.`, list)
      refuse(pciRefusal(d, found, given), list)
      continue
    }
    if ((w.port === undefined) === (w.vendor === undefined) || (w.vendor === undefined) !== (w.product === undefined))
      throw fail('invalid', 'A USB device is named by its port, or by vendor and product.', list)
    const plugged = found.usb.filter((d) => matches(w, d))
    const [d, twin] = plugged
    if (!d) throw fail('invalid', `No such USB device is plugged in: ${w.port ?? `${w.vendor}:${w.product}`}.`, list)
    if (twin)
      throw fail('invalid', `It is plugged in twice (${plugged.map((o) => o.port).join(', ')}): name its port.`, list)
    if (own.some((o) => o.kind === 'usb' && matches(o, d)))
      throw fail('in_use', `${d.port} is given to this VM already.`, list)
    refuse(usbRefusal(d, given), list)
  }
}

function refuse(why: WadahError | undefined, more: { field: string; remedy: string }): void {
  if (!why) return
  const { code, detail, remedy = more.remedy } = why.fault
  throw fail(code, detail, { field: more.field, remedy })
}

/** Judged against all VMs of this host. */
export async function judgeHostdevs(
  deps: Deps,
  wanted: readonly Hostdev[],
  there: readonly Hostdev[],
  vm: string,
  under: string,
): Promise<void> {
  if (wanted.length === 0) return
  const found = await deps.machine.devices()
  checkHostdevs(wanted, there, found, givenTo(others(deps, vm), found), under)
}

const others = (deps: Pick<Deps, 'view' | 'hostId'>, vm?: string): VmRecord[] =>
  deps.view
    .list(vmKind)
    .filter(({ id }) => id !== vm && deps.view.get(placementKind, id)?.value.host === deps.hostId)
    .map(({ value }) => value)

/** All of them, each with whether a VM can be given it now. */
export async function viewHostDevices(deps: Deps): Promise<HostDevices> {
  const found = await deps.machine.devices()
  const given = givenTo(others(deps), found)
  const judged = (why: WadahError | undefined, vm: string | undefined) => ({
    ...(vm === undefined ? {} : { vm }),
    free: why === undefined,
    ...(why === undefined ? {} : { why_not: why.fault.detail }),
    ...(why?.fault.remedy === undefined ? {} : { remedy: why.fault.remedy }),
  })
  return {
    iommu: found.iommu,
    pci: found.pci.map((d) => ({ ...d, ...judged(pciRefusal(d, found, given), given.pci.get(d.address)) })),
    usb: found.usb.map(({ bus: _b, device: _d, ...d }) => ({
      ...d,
      ...judged(usbRefusal({ ...d, bus: 0, device: 0 }, given), given.usb.get(d.port)),
    })),
  }
}

/** Only one VM may have it, whoever asks at the same moment. */
export const hostdevKey = (host: string, d: Hostdev): string =>
  d.kind === 'pci' ? `hostdev/${host}/pci/${d.address}` : `hostdev/${host}/usb/${d.port ?? `${d.vendor}:${d.product}`}`
