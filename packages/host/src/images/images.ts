/** What `Images` of @wadah/ports promises, over the builder: recipes, builds, and the kernels of kernel images. */
import { createHash } from 'node:crypto'
import { constants } from 'node:fs'
import { type FileHandle, mkdir, open, readFile, rename, rm, stat } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { fail } from '@wadah/api/fault'
import { isId } from '@wadah/api/ids'
import type { BuiltImage, Images } from '@wadah/ports/images'
import { errno, syncDir } from '../system/files.ts'
import { BUILD_STEPS, buildImage, checkBuild } from './build.ts'
import { cleanBuildLeftovers } from './leftovers.ts'
import { apiService } from './recipe.ts'
import { loadRecipes, recipeChain } from './recipes.ts'
import { buildTiny } from './tiny.ts'
import { missingTools, TINY_TOOLS } from './tools.ts'

export type ImagesOptions = {
  /** `images/<id>/` (kernels) and `builds/<id>/` (work in progress) are made inside. */
  dataDir: string
  /** Packages, kept between builds. */
  cacheDir: string
  /** Searched in this order. */
  recipeDirs: readonly string[]
  mirror?: string | undefined
}

const MAX_KERNEL_BYTES = 256 * 1024 * 1024
const MAX_INITRD_BYTES = 1024 * 1024 * 1024
const MAX_ISO_BYTES = 32 * 1024 * 1024 * 1024
/** The volume descriptors of a CD begin at sector 16 of 2048 bytes (ECMA-119, 7.2). */
const ISO_DESCRIPTOR = 16 * 2048
const HEAD_BYTES = ISO_DESCRIPTOR + 8

export function createImages(options: ImagesOptions): Images {
  const folder = (image: string): string => join(options.dataDir, 'images', checked(image))
  const work = (image: string): string => join(options.dataDir, 'builds', checked(image))
  const tiny = async (name: string): Promise<boolean> =>
    (await loadRecipes(options.recipeDirs)).get(name)?.recipe?.kind === 'tiny'

  return {
    async recipes() {
      const all = await loadRecipes(options.recipeDirs)
      return [...all.values()].map(({ name, dir, recipe, problem }) => ({
        name,
        title: recipe?.title ?? name,
        title_id: recipe?.title_id ?? name,
        description: recipe?.description ?? '',
        ...(recipe?.base === undefined ? {} : { base: recipe.base }),
        ...(recipe?.service ? { service: apiService(recipe.service) } : {}),
        packages: recipe?.packages ?? [],
        source: dir,
        ...(problem ? { problem: problem.detail } : {}),
      }))
    },

    async checkRecipe(name) {
      const all = await loadRecipes(options.recipeDirs)
      const top = recipeChain(all, name).at(-1)
      if (top?.recipe.kind !== 'tiny') {
        checkBuild(all, name)
        return
      }
      const missing = missingTools(TINY_TOOLS)
      if (missing.length > 0) {
        throw fail('host_lacks', `Building "${name}" needs ${missing.map((t) => t.name).join(', ')}.`, {
          remedy: `apt install ${[...new Set(missing.map((t) => t.package))].join(' ')}`,
        })
      }
    },

    async build(image, name, { refresh, signal, progress, log }): Promise<BuiltImage> {
      const recipes = await loadRecipes(options.recipeDirs)
      if (await tiny(name)) return buildKernel(image, name, signal, progress, log)
      const dir = work(image)
      await mkdir(dir, { recursive: true, mode: 0o700 })
      const built = await buildImage({
        recipe: name,
        recipes,
        workDir: dir,
        cacheDir: options.cacheDir,
        outFile: join(dir, 'disk.qcow2'),
        format: 'qcow2',
        refresh,
        mirror: options.mirror,
        signal,
        log,
        onProgress: (step, fraction) => progress(step, (BUILD_STEPS.indexOf(step) + fraction) / BUILD_STEPS.length),
      })
      return {
        kind: 'disk',
        disk: {
          file: built.disk,
          format: built.format,
          virtual_size_bytes: built.virtual_size_bytes,
          sha256: built.sha256,
        },
        kernel_version: built.kernel_version,
        packages: built.packages.map((p) => `${p.name}=${p.version}`),
        min_memory_mib: built.min_memory_mib,
        agent: built.agent,
        ...(built.service ? { service: built.service } : {}),
        description: recipes.get(name)?.recipe?.description ?? '',
      }
    },

    async cleanBuild(image) {
      await cleanBuildLeftovers(work(image))
      await rm(work(image), { recursive: true, force: true })
    },

    async putFile(image, file, data, signal) {
      const dir = folder(image)
      await mkdir(dir, { recursive: true, mode: 0o711 })
      const part = join(dir, `${file}.part`)
      const limit = { kernel: MAX_KERNEL_BYTES, initrd: MAX_INITRD_BYTES, iso: MAX_ISO_BYTES }[file]
      const flags = constants.O_WRONLY | constants.O_CREAT | constants.O_TRUNC | constants.O_NOFOLLOW
      const handle = await open(part, flags, 0o444)
      try {
        const { size_bytes, sha256, head } = await receive(handle, data, limit, file, signal)
        if (file === 'kernel' && !isKernel(head)) {
          throw fail('image_corrupt', 'This is no Linux kernel: neither a bzImage nor an x86-64 ELF file.', {
            remedy: 'take /boot/vmlinuz-… of a distribution',
          })
        }
        if (file === 'iso' && !isIso(head)) {
          throw fail('image_corrupt', 'This is no image of a CD or DVD: it has no ISO 9660 or UDF descriptor.', {
            remedy: 'take the .iso file as it was downloaded',
          })
        }
        await handle.sync()
        await rename(part, join(dir, file))
        for (const made of [dir, dirname(dir)]) await syncDir(made)
        return { size_bytes, sha256 }
      } catch (error) {
        await rm(part, { force: true })
        if (errno(error) === 'ENOSPC')
          throw fail('no_room', `There is no room for the ${file} on the file system of ${options.dataDir}.`, {
            cause: error,
            remedy: `df -h ${options.dataDir}`,
          })
        throw error
      } finally {
        await handle.close()
      }
    },

    async files(image) {
      const dir = folder(image)
      const size = async (path: string) => (await stat(path).catch(() => undefined))?.size
      const [kernel, initrd, iso] = await Promise.all(['kernel', 'initrd', 'iso'].map((name) => size(join(dir, name))))
      return {
        ...(kernel === undefined ? {} : { kernel: join(dir, 'kernel') }),
        ...(initrd === undefined ? {} : { initrd: join(dir, 'initrd') }),
        ...(iso === undefined ? {} : { iso: join(dir, 'iso') }),
        size_bytes: (kernel ?? 0) + (initrd ?? 0) + (iso ?? 0),
      }
    },

    async delete(image) {
      await rm(folder(image), { recursive: true, force: true })
    },
  }

  async function buildKernel(
    image: string,
    name: string,
    signal: AbortSignal,
    progress: (step: string, fraction: number) => void,
    log: (line: string) => void,
  ): Promise<BuiltImage> {
    const recipe = recipeChain(await loadRecipes(options.recipeDirs), name).at(-1)?.recipe
    const dir = work(image)
    await mkdir(dir, { recursive: true, mode: 0o700 })
    progress('kernel', 0.1)
    const { cacheDir, mirror } = options
    const guestPart = await readGuestPart(options.recipeDirs)
    const agent = recipe?.agent ?? true
    const guest = await buildTiny({ outDir: dir, cacheDir, agent, guestPart, mirror, signal, log })
    progress('kernel', 0.9)
    const home = folder(image)
    await mkdir(home, { recursive: true, mode: 0o711 })
    // Read by QEMU as the VM's own user; written by nobody any more.
    for (const [from, to] of [
      [guest.kernel, 'kernel'],
      [guest.initrd, 'initrd'],
    ] as const) {
      const handle = await open(from, constants.O_RDONLY | constants.O_NOFOLLOW)
      try {
        await handle.chmod(0o444)
        await handle.sync()
      } finally {
        await handle.close()
      }
      await rename(from, join(home, to))
    }
    for (const made of [home, dirname(home)]) await syncDir(made)
    return {
      kind: 'kernel',
      cmdline: guest.cmdline,
      kernel_version: guest.version,
      packages: [],
      min_memory_mib: recipe?.min_memory_mib ?? 96,
      agent: recipe?.agent ?? true,
      ...(recipe?.service ? { service: apiService(recipe.service) } : {}),
      description: recipe?.description ?? '',
    }
  }
}

/** The same as in images from recipes; undefined where those of ours are not there. */
async function readGuestPart(recipeDirs: readonly string[]): Promise<string | undefined> {
  for (const dir of recipeDirs) {
    const text = await readFile(join(dir, 'debian-12/files/usr/lib/wadah/identity'), 'utf8').catch(() => undefined)
    if (text !== undefined) return text
  }
  return undefined
}

/** Ids become names of folders. */
function checked(image: string): string {
  if (!isId(image)) throw fail('internal', `not an id: ${image}`)
  return image
}

/** bzImage: `HdrS` at 0x202 (Documentation/x86/boot.rst); or an ELF for x86-64 (PVH). */
export function isKernel(head: Uint8Array): boolean {
  const bytes = Buffer.from(head)
  if (bytes.length >= 0x206 && bytes.toString('latin1', 0x202, 0x206) === 'HdrS') return true
  return (
    bytes.length >= 20 &&
    bytes.toString('latin1', 0, 4) === '\x7fELF' &&
    bytes[4] === 2 &&
    bytes.readUInt16LE(18) === 62
  )
}

/** ISO 9660: `CD001` in the first descriptor; a CD of UDF alone has `BEA01` there (ECMA-167, 2/9.2). */
export function isIso(head: Uint8Array): boolean {
  const mark = Buffer.from(head).toString('latin1', ISO_DESCRIPTOR + 1, ISO_DESCRIPTOR + 6)
  return mark === 'CD001' || mark === 'BEA01'
}

async function receive(
  handle: FileHandle,
  data: AsyncIterable<Uint8Array>,
  limit: number,
  what: string,
  signal: AbortSignal,
): Promise<{ size_bytes: number; sha256: string; head: Buffer }> {
  const hash = createHash('sha256')
  let head = Buffer.alloc(0)
  let size_bytes = 0
  for await (const chunk of data) {
    signal.throwIfAborted()
    size_bytes += chunk.length
    if (size_bytes > limit) throw fail('too_large', `The ${what} is larger than ${limit / 1024 / 1024} MiB.`)
    if (head.length < HEAD_BYTES) head = Buffer.concat([head, chunk]).subarray(0, HEAD_BYTES)
    hash.update(chunk)
    await handle.write(chunk)
  }
  if (size_bytes === 0) throw fail('image_corrupt', `The ${what} is empty.`)
  return { size_bytes, sha256: hash.digest('hex'), head }
}
