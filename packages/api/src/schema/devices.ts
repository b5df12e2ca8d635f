/** Devices of the host that a VM is given as they are. */
import Type from 'typebox'
import { NAME_PATTERN } from '../ids.ts'
import { Closed } from './common.ts'

const name = Type.String({ pattern: NAME_PATTERN, maxLength: 16, description: 'at most 16 characters' })
const pciAddress = Type.String({
  pattern: '^[0-9a-f]{4}:[0-9a-f]{2}:[01][0-9a-f]\\.[0-7]$',
  description: 'as `wadah host devices` and `lspci -D` name it: 0000:03:00.0',
})
const usbId = (what: string) =>
  Type.String({ pattern: '^[0-9a-f]{4}$', description: `${what}, four hexadecimal digits` })
const usbPort = Type.String({
  pattern: '^[1-9][0-9]{0,2}-[1-9][0-9]{0,2}(\\.[1-9][0-9]{0,2}){0,5}$',
  description: 'where it is plugged in, as `wadah host devices` names it: 1-2.3',
})

export const HostdevSchema = Type.Union([
  Closed({ name, kind: Type.Literal('pci'), address: pciAddress }),
  Closed(
    {
      name,
      kind: Type.Literal('usb'),
      port: Type.Optional(usbPort),
      vendor: Type.Optional(usbId('vendor')),
      product: Type.Optional(usbId('product')),
    },
    { description: 'by port, or by vendor and product' },
  ),
])
export type Hostdev = Type.Static<typeof HostdevSchema>

const judged = {
  serves: Type.Array(Type.String(), { description: 'what the host itself needs it for' }),
  vm: Type.Optional(Type.String({ description: 'the VM it is given to' })),
  free: Type.Boolean({ description: 'a VM can be given it now' }),
  why_not: Type.Optional(Type.String()),
  remedy: Type.Optional(Type.String()),
}
export const HostDevicesSchema = Type.Object(
  {
    iommu: Type.Boolean({ description: 'PCI devices can be given to VMs at all' }),
    pci: Type.Array(
      Type.Object({
        address: Type.String(),
        class: Type.String({ description: 'six hexadecimal digits: class, subclass, interface' }),
        vendor: Type.String(),
        product: Type.String(),
        driver: Type.Optional(Type.String({ description: 'that the host has bound to it' })),
        iommu_group: Type.Optional(Type.Integer()),
        ...judged,
      }),
    ),
    usb: Type.Array(
      Type.Object({
        port: Type.String(),
        vendor: Type.String(),
        product: Type.String(),
        text: Type.String({ description: 'as the device names itself' }),
        hub: Type.Boolean(),
        ...judged,
      }),
    ),
  },
  { title: 'HostDevices' },
)
export type HostDevices = Type.Static<typeof HostDevicesSchema>
