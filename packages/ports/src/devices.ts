/** What a machine has to give away, as it was found. */
export type PciFound = {
  address: string
  class: string
  vendor: string
  product: string
  driver?: string
  iommu_group?: number
  /** What the host itself needs it for. */
  serves: string[]
}
export type UsbFound = {
  /** Where it is plugged in: its name in /sys/bus/usb/devices. */
  port: string
  /** The numbers of its node: /dev/bus/usb/BUS/DEVICE. */
  bus: number
  device: number
  vendor: string
  product: string
  text: string
  hub: boolean
  serves: string[]
}
export type DevicesFound = { iommu: boolean; pci: PciFound[]; usb: UsbFound[] }
