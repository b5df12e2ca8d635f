/**
 * PCI and USB devices of this host, from sysfs (Documentation/ABI/testing/sysfs-bus-pci, -usb). Nothing is changed. What the host needs
 * itself is found by where its file systems and its way out hang in the tree of devices.
 */
import { readFile, readdir, readlink, realpath } from 'node:fs/promises'
import { basename } from 'node:path'
import type { DevicesFound, PciFound, UsbFound } from '@wadah/ports/devices'

/** `root`: another place where /sys and /proc are, for tests. */
export async function findDevices(root = ''): Promise<DevicesFound> {
  const text = async (path: string) => (await readFile(`${root}${path}`, 'utf8').catch(() => '')).trim()
  const names = async (path: string) => (await readdir(`${root}${path}`).catch(() => [] as string[])).sort()
  const place = (path: string) => realpath(`${root}${path}`).catch(() => undefined)
  const link = async (path: string) => readlink(`${root}${path}`).then(basename, () => undefined)

  const served = await needed(text, place, names)
  const serves = (path: string | undefined): string[] =>
    path === undefined ? [] : [...new Set(served.filter((s) => s.path.startsWith(`${path}/`)).map((s) => s.what))]

  const pci = await Promise.all(
    (await names('/sys/bus/pci/devices')).map(async (address): Promise<PciFound> => {
      const at = `/sys/bus/pci/devices/${address}`
      const [kind, vendor, product, driver, group, path] = await Promise.all([
        text(`${at}/class`),
        text(`${at}/vendor`),
        text(`${at}/device`),
        link(`${at}/driver`),
        link(`${at}/iommu_group`),
        place(at),
      ])
      return {
        address,
        class: hex(kind),
        vendor: hex(vendor),
        product: hex(product),
        ...(driver === undefined ? {} : { driver }),
        ...(group === undefined ? {} : { iommu_group: Number(group) }),
        serves: serves(path),
      }
    }),
  )
  // Interfaces have a colon in their names, root hubs are no devices of anybody's.
  const ports = (await names('/sys/bus/usb/devices')).filter((name) => /^\d+-[\d.]+$/.test(name))
  const usb = await Promise.all(
    ports.map(async (port): Promise<UsbFound> => {
      const at = `/sys/bus/usb/devices/${port}`
      const [bus, device, vendor, product, kind, maker, model, path] = await Promise.all([
        text(`${at}/busnum`),
        text(`${at}/devnum`),
        text(`${at}/idVendor`),
        text(`${at}/idProduct`),
        text(`${at}/bDeviceClass`),
        text(`${at}/manufacturer`),
        text(`${at}/product`),
        place(at),
      ])
      return {
        port,
        bus: Number(bus),
        device: Number(device),
        vendor,
        product,
        text: `${maker} ${model}`.trim(),
        hub: kind === '09',
        serves: serves(path),
      }
    }),
  )
  return { iommu: (await names('/sys/kernel/iommu_groups')).length > 0, pci, usb }
}

type Needed = { what: string; path: string }

/** Disks of mounted file systems and swap, and the NICs of default routes: each with its place in the tree of devices. */
async function needed(
  text: (path: string) => Promise<string>,
  place: (path: string) => Promise<string | undefined>,
  names: (path: string) => Promise<string[]>,
): Promise<Needed[]> {
  const out: Needed[] = []
  const add = async (what: string, at: string) => {
    const path = await place(at)
    if (path !== undefined) out.push({ what, path })
  }
  const disk = async (what: string, number: string) => {
    await add(what, `/sys/dev/block/${number}`)
    // What a volume manager made stands on other disks.
    for (const under of await names(`/sys/dev/block/${number}/slaves`)) {
      const below = await text(`/sys/dev/block/${number}/slaves/${under}/dev`)
      if (below !== '' && below !== number) await disk(what, below)
    }
  }
  for (const line of (await text('/proc/self/mountinfo')).split('\n')) {
    const [, , number, , where] = line.split(' ')
    if (number !== undefined && !number.startsWith('0:')) await disk(`the file system ${where}`, number)
  }
  for (const line of (await text('/proc/swaps')).split('\n').slice(1)) {
    const device = basename(line.split(/\s+/)[0] ?? '')
    const number = device === '' ? '' : await text(`/sys/class/block/${device}/dev`)
    if (number !== '') await disk('swap', number)
  }
  const nics = new Set<string>()
  for (const line of (await text('/proc/net/route')).split('\n').slice(1)) {
    const [nic, to] = line.split(/\s+/)
    if (nic && to === '00000000') nics.add(nic)
  }
  for (const line of (await text('/proc/net/ipv6_route')).split('\n')) {
    const words = line.trim().split(/\s+/)
    const nic = words.at(-1)
    if (nic && nic !== 'lo' && words[1] === '00' && /^0{32}$/.test(words[0] ?? '')) nics.add(nic)
  }
  for (const nic of nics) {
    const what = `the default route (${nic})`
    await add(what, `/sys/class/net/${nic}`)
    // A bridge, bond or VLAN stands on other NICs.
    for (const name of await names(`/sys/class/net/${nic}`))
      if (name.startsWith('lower_')) await add(what, `/sys/class/net/${name.slice('lower_'.length)}`)
    for (const port of await names(`/sys/class/net/${nic}/brif`)) await add(what, `/sys/class/net/${port}`)
  }
  return out
}

const hex = (text: string): string => text.replace(/^0x/, '')
