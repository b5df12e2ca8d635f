/** The description in an OVA (DMTF DSP0243, versions 1 and 2): which disks, in which order, and what hardware. Pure. */
import { fail } from '@wadah/api/fault'
import type { ImageHardware } from '@wadah/api/schema/imports'
import { XMLParser } from 'fast-xml-parser'

export type OvfDisk = {
  /** Name of the file in the archive; undefined for an empty disk. */
  file?: string
  size_bytes: number
}
export type Ovf = { disks: OvfDisk[]; hardware: ImageHardware; description?: string; notes: string[] }
export const MOST_OVF_BYTES = 1024 * 1024

const refuse = (why: string): Error => fail('image_corrupt', `The description of the OVA can't be used: ${why}.`)

type Node = { [key: string]: unknown }
const parser = new XMLParser({
  ignoreAttributes: false,
  attributeNamePrefix: '@',
  removeNSPrefix: true,
  processEntities: false,
  parseTagValue: false,
  parseAttributeValue: false,
  ignoreDeclaration: true,
  ignorePiTags: true,
})

/** @throws WadahError `image_corrupt` */
export function readOvf(xml: string): Ovf {
  if (xml.length > MOST_OVF_BYTES) throw refuse(`it is longer than ${MOST_OVF_BYTES / 1024} KiB`)
  if (/<!(DOCTYPE|ENTITY)/i.test(xml)) throw refuse('it has a document type, which no OVF needs')
  let root: Node
  try {
    root = parser.parse(xml) as Node
  } catch {
    throw refuse('it is not XML')
  }
  const envelope = node(root['Envelope'])
  if (!envelope) throw refuse('it is no OVF envelope')
  if (envelope['VirtualSystemCollection'] !== undefined)
    throw refuse('it describes several VMs; export each of them by itself')
  const systems = list(envelope['VirtualSystem'])
  const [system] = systems
  if (!system || systems.length > 1) throw refuse(`it describes ${systems.length} VMs; one is right`)
  const files = new Map(list(node(envelope['References'])?.['File']).map((f) => [attr(f, 'id'), f]))
  const disks = new Map(list(node(envelope['DiskSection'])?.['Disk']).map((d) => [attr(d, 'diskId'), d]))
  const hardware = list(system['VirtualHardwareSection'])[0]
  const items = [
    ...list(hardware?.['Item']),
    ...list(hardware?.['StorageItem']),
    ...list(hardware?.['EthernetPortItem']),
  ]
  const notes: string[] = []
  const ordered = diskItems(items)
    .map((item) => disks.get(/^(?:ovf:)?\/?disk\/(.+)$/.exec(word(item, 'HostResource'))?.[1] ?? ''))
    .filter((d) => d !== undefined)
  // Without hardware that names them: in the order in which they are listed.
  const chosen = ordered.length > 0 ? ordered : [...disks.values()]
  const left = disks.size - new Set(chosen).size
  if (left > 0) notes.push(`${left} disks that no controller has were left out`)
  if (chosen.length === 0) throw refuse('it has no disk')
  if (chosen.length > 16) throw refuse(`it has ${chosen.length} disks; at most 16 are taken`)
  const os = node(system['OperatingSystemSection'])
  const description = [word(os ?? {}, 'Description'), word(node(system['AnnotationSection']) ?? {}, 'Annotation')]
  return {
    disks: chosen.map((d) => ovfDisk(d, files)),
    hardware: {
      ...amount(items, '3', 'cpus'),
      ...memory(items),
      nics: items.filter((i) => word(i, 'ResourceType') === '10').length,
      firmware: isEfi(hardware ?? {}, system) ? 'uefi' : 'bios',
      ...(description[0] ? { os: description[0].slice(0, 200) } : {}),
    },
    ...(description[1] ? { description: description[1].slice(0, 4096) } : {}),
    notes,
  }
}

function ovfDisk(disk: Node, files: ReadonlyMap<string, Node>): OvfDisk {
  const capacity = Number(attr(disk, 'capacity'))
  const size_bytes = capacity * unit(attr(disk, 'capacityAllocationUnits') || 'byte')
  if (!Number.isSafeInteger(size_bytes) || size_bytes <= 0 || size_bytes > 2 ** 50)
    throw refuse(`the size of the disk "${attr(disk, 'diskId').slice(0, 40)}" is not right`)
  const ref = attr(disk, 'fileRef')
  if (ref === '') return { size_bytes }
  if (attr(disk, 'parentRef') !== '') throw refuse('a disk of it is only the changes on top of another')
  const file = files.get(ref)
  if (!file) throw refuse(`a disk names the file "${ref.slice(0, 40)}", which is not listed`)
  if (attr(file, 'compression') !== '' && attr(file, 'compression') !== 'identity')
    throw refuse('a disk of it is compressed once more; export it without compression')
  if (attr(file, 'chunkSize') !== '') throw refuse('a disk of it is cut in chunks; export it in one piece')
  return { file: attr(file, 'href'), size_bytes }
}

/** By controller, then by the place on it: that is how the guest counts them. */
function diskItems(items: readonly Node[]): Node[] {
  const place = (item: Node): [number, number] => [
    Number(word(item, 'Parent') || 0),
    Number(word(item, 'AddressOnParent') || word(item, 'InstanceID') || 0),
  ]
  return items
    .filter((i) => ['17', '31'].includes(word(i, 'ResourceType')))
    .map((item) => ({ item, at: place(item) }))
    .sort((a, b) => a.at[0] - b.at[0] || a.at[1] - b.at[1])
    .map(({ item }) => item)
}

function amount(items: readonly Node[], type: string, as: 'cpus'): { cpus?: number } {
  const item = items.find((i) => word(i, 'ResourceType') === type)
  const n = Number(item ? word(item, 'VirtualQuantity') : 0)
  return Number.isInteger(n) && n >= 1 ? { [as]: Math.min(n, 256) } : {}
}

function memory(items: readonly Node[]): { memory_mib?: number } {
  const item = items.find((i) => word(i, 'ResourceType') === '4')
  if (!item) return {}
  const mib = (Number(word(item, 'VirtualQuantity')) * unit(word(item, 'AllocationUnits') || 'MegaBytes')) / 2 ** 20
  return mib >= 16 && mib <= 4 * 1024 * 1024 ? { memory_mib: Math.ceil(mib) } : {}
}

/** `byte * 2^20` (DSP0004), or the words older tools wrote. */
export function unit(text: string): number {
  const power = /^byte\s*\*\s*2\s*\^\s*(\d{1,2})$/i.exec(text.trim())?.[1]
  if (power !== undefined) return 2 ** Number(power)
  const words: Record<string, number> = { byte: 1, bytes: 1, k: 2 ** 10, m: 2 ** 20, g: 2 ** 30, t: 2 ** 40 }
  const name = text.trim().toLowerCase()
  return (
    words[name] ??
    (/^(kilo|mega|giga|tera)?(bytes?|b)$|^[kmgt]i?b$/.test(name) ? (words[name[0] as string] ?? 1) : Number.NaN)
  )
}

/** VMware says it in a Config, VirtualBox in its own section. */
function isEfi(hardware: Node, system: Node): boolean {
  const said = [...list(hardware['Config']), ...list(hardware['ExtraConfig'])].some(
    (c) => attr(c, 'key').toLowerCase() === 'firmware' && attr(c, 'value').toLowerCase() === 'efi',
  )
  const vbox = node(node(node(system['Machine'])?.['Hardware'])?.['Firmware'])
  return said || (vbox !== undefined && attr(vbox, 'type').toUpperCase().startsWith('EFI'))
}

function node(value: unknown): Node | undefined {
  const one = Array.isArray(value) ? (value[0] as unknown) : value
  return typeof one === 'object' && one !== null ? (one as Node) : undefined
}
function list(value: unknown): Node[] {
  return (Array.isArray(value) ? value : value === undefined ? [] : [value]).filter(
    (v): v is Node => typeof v === 'object' && v !== null,
  )
}
/** The five entities that XML has; no others are known. */
function plain(value: string): string {
  const entities: Record<string, string> = { lt: '<', gt: '>', quot: '"', apos: "'", amp: '&' }
  return value.replaceAll(/&(lt|gt|quot|apos|amp);/g, (_, name: string) => entities[name] ?? '')
}
function attr(of: Node, name: string): string {
  const value = of[`@${name}`]
  return typeof value === 'string' ? plain(value) : ''
}
function word(of: Node, name: string): string {
  const value = of[name]
  const one = Array.isArray(value) ? (value[0] as unknown) : value
  if (typeof one === 'string') return plain(one)
  const inner = (one as Node | undefined)?.['#text']
  return typeof inner === 'string' ? plain(inner) : ''
}
