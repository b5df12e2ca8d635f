/** The layers of a running QEMU's disks, by the files they lie in: QEMU is asked, nothing is remembered. */
import { basename } from 'node:path'
import { fail } from '@wadah/api/fault'
import type { LocalDisk, Running } from '@wadah/ports/machine'
import { blockdev } from '../argv.ts'

export type Node = { name: string; path: string }
const FILE = '.f'

/** Every format node that has a file of its own; we name the file below `NODE.f`. */
export async function nodes(running: Running): Promise<Node[]> {
  const all = (await running.execute('query-named-block-nodes', { flat: true })) as {
    'node-name': string
    drv: string
    file: string
  }[]
  return all.flatMap((n) =>
    n.drv === 'file' && n['node-name'].endsWith(FILE)
      ? [{ name: n['node-name'].slice(0, -FILE.length), path: n.file }]
      : [],
  )
}

/** The node each disk writes to. */
export async function headNodes(running: Running): Promise<Map<string, string>> {
  const devices = (await running.execute('query-block')) as { qdev?: string; inserted?: { 'node-name'?: string } }[]
  const found = new Map<string, string>()
  for (const { qdev, inserted } of devices) {
    const disk = /^\/machine\/peripheral\/disk-([a-z0-9-]+)\/virtio-backend$/.exec(qdev ?? '')?.[1]
    const node = inserted?.['node-name']
    if (disk !== undefined && node !== undefined) found.set(disk, node)
  }
  return found
}

export async function headOf(running: Running, disk: string): Promise<string> {
  const node = (await headNodes(running)).get(disk)
  if (node === undefined) throw fail('wrong_state', `The running VM has no disk "${disk}".`)
  return node
}

/** Disk → the id of the volume it writes to. */
export async function headVolumes(running: Running): Promise<Record<string, string>> {
  const [heads, all] = [await headNodes(running), await nodes(running)]
  return Object.fromEntries(
    [...heads].map(([disk, node]) => [disk, volumeOf(all.find((n) => n.name === node)?.path ?? '')]),
  )
}

const volumeOf = (path: string): string => basename(path).replace(/\.[a-z0-9]+$/, '')

/** Opens a file as a layer that can be put on top of `disk`. Returns its node. Pure but for the command. */
export async function openLayer(running: Running, disk: string, layer: LocalDisk): Promise<string> {
  const there = await nodes(running)
  const path = layer.chain[0]?.path
  const known = there.find((n) => n.path === path)
  if (known) return known.name
  const numbers = there.flatMap((n) => numberOf(disk, n.name) ?? [])
  const node = `vol-${disk}.${Math.max(0, ...numbers) + 1}`
  await running.execute('blockdev-add', blockdev(node, layer))
  return node
}

/** All at the same instant, or none. */
export async function putOnTop(running: Running, pairs: readonly { node: string; overlay: string }[]): Promise<void> {
  await running.execute('transaction', {
    actions: pairs.map((data) => ({ type: 'blockdev-snapshot', data })),
  })
}

/** Nodes of a disk that nothing uses any more. What is still in use stays. */
export async function closeNodes(running: Running, disk: string): Promise<void> {
  const own = (await nodes(running)).flatMap((n) => {
    const number = n.name === `vol-${disk}` ? 0 : numberOf(disk, n.name)
    return number === undefined ? [] : [{ name: n.name, number }]
  })
  // The newest first: it holds those below.
  own.sort((a, b) => b.number - a.number)
  for (const { name } of own) await running.execute('blockdev-del', { 'node-name': name }).catch(() => {})
}

/** `vol-DISK.7`: 7. A disk's name has no dot. */
function numberOf(disk: string, node: string): number | undefined {
  const [name, number, ...more] = node.split('.')
  return name === `vol-${disk}` && number !== undefined && more.length === 0 && /^\d+$/.test(number)
    ? Number(number)
    : undefined
}
