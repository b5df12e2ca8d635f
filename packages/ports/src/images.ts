/** Image building, as the cluster asks for it. */
import type { Recipe } from '@wadah/api/schema/storage'
import type { Service } from '@wadah/api/schema/vm'

export type BuiltImage = {
  kind: 'disk' | 'kernel'
  /** The disk, when there is one; the caller moves it into a pool. */
  disk?: { file: string; format: 'qcow2' | 'raw'; virtual_size_bytes: number; sha256: string }
  cmdline?: string
  kernel_version: string
  packages: string[]
  min_memory_mib: number
  agent: boolean
  service?: Service
  description: string
}

export interface Images {
  /** Recipes that are there; unusable ones carry their `problem`. */
  recipes(): Promise<Recipe[]>
  /** Refuses a recipe that cannot be built, before anything is done: `not_found`, `invalid`, `host_lacks` (with the packages to install). */
  checkRecipe(name: string): Promise<void>
  /** Builds into a work folder of this image id. Kernel and initrd land in the image's own folder. */
  build(
    image: string,
    recipe: string,
    options: {
      refresh: boolean
      signal: AbortSignal
      progress: (step: string, fraction: number) => void
      log: (line: string) => void
    },
  ): Promise<BuiltImage>
  /** Removes what a build of this image left, finished or not: work folder, mounts, processes. */
  cleanBuild(image: string): Promise<void>
  /** Stores one file of an image; `too_large`, `no_room`, `image_corrupt` when it is no Linux kernel or no CD. */
  putFile(
    image: string,
    file: 'kernel' | 'initrd' | 'iso',
    data: AsyncIterable<Uint8Array>,
    signal: AbortSignal,
  ): Promise<{ size_bytes: number; sha256: string }>
  files(image: string): Promise<{ kernel?: string; initrd?: string; iso?: string; size_bytes: number }>
  /** Removes the image's own folder. */
  delete(image: string): Promise<void>
}
