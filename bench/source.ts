/**
 * What is cloned. Image `tiny` has no disk, so a linked clone of it is: a qcow2 volume that stands on a base volume of 1 GiB
 * (the same work on disk as for an image), and a VM of `tiny` with that volume. With `--recipe NAME` it is one request:
 * a VM of that image, its disk a linked clone.
 */
import { type Daemon, type Options, TINY, tinyImage } from './kit.ts'

export type Source = {
  what: string
  clone(name: string, start: boolean): Promise<void>
  drop(name: string): Promise<void>
}

export async function source(daemon: Daemon, { recipe }: Options): Promise<Source> {
  if (recipe !== undefined) {
    if ((await daemon.call('GET', `/v1/images/${recipe}`)).status === 404)
      await daemon.job('POST', '/v1/images/build', { recipe })
    return {
      what: `image ${recipe}, one request`,
      clone: async (name, start) =>
        void (await daemon.job('POST', '/v1/vms', { name, image: recipe, start, nics: [] })),
      drop: async (name) => void (await daemon.job('DELETE', `/v1/vms/${name}?force=true`)),
    }
  }
  await tinyImage(daemon)
  if ((await daemon.call('GET', '/v1/volumes/base')).status === 404)
    await daemon.job('POST', '/v1/volumes', { name: 'base', size_mib: 1024, format: 'qcow2' })
  return {
    what: 'volume clone, then a VM of tiny with it: two jobs',
    clone: async (name, start) => {
      await daemon.job('POST', '/v1/volumes/base/clone', { name, clone: 'linked' })
      await daemon.job('POST', '/v1/vms', { name, ...TINY, disks: [{ volume: name }], start })
    },
    drop: async (name) => void (await daemon.job('DELETE', `/v1/vms/${name}?force=true`)),
  }
}
