import { createHash, randomUUID } from 'node:crypto'
import { createReadStream } from 'node:fs'
import { mkdir, readFile, rename, rm, statfs, writeFile } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { fail } from '@wadah/api/fault'
import { download, openApt, trimArchives } from './apt.ts'
import { basePath, baseUsable, makeBase } from './base.ts'
import { makeDisk } from './disk.ts'
import { installRecipe, type Site } from './install.ts'
import { chooseRoom } from './layout.ts'
import { openWork } from './leftovers.ts'
import { apiService, type Recipe } from './recipe.ts'
import { type LoadedRecipe, recipeChain, type Recipes } from './recipes.ts'
import { CommandError, run } from './run.ts'
import { Sandbox } from './sandbox.ts'
import { missingTools } from './tools.ts'

export interface BuildOptions {
  /** Name of the recipe. */
  recipe: string
  recipes: Recipes
  /** Temporary files; cleaned by `cleanBuildLeftovers` after a crash. */
  workDir: string
  /** Package lists, packages and base trees, kept between builds. */
  cacheDir: string
  /** The finished disk; its manifest goes beside it as `<outFile>.json`. */
  outFile: string
  format: 'qcow2' | 'raw'
  /** Fetch lists and make the base anew. */
  refresh?: boolean | undefined
  /** A Debian mirror to use in place of the host's own sources. */
  mirror?: string | undefined
  signal?: AbortSignal | undefined
  /** Names of BUILD_STEPS in this order, each with a fraction from 0 to 1. */
  onProgress?: ((step: BuildStep, fraction: number) => void) | undefined
  log?: ((line: string) => void) | undefined
}

export const BUILD_STEPS = ['lists', 'base', 'packages', 'disk', 'convert'] as const
export type BuildStep = (typeof BUILD_STEPS)[number]

export interface BuildResult {
  disk: string
  format: 'qcow2' | 'raw'
  /** Size as the guest sees it. */
  virtual_size_bytes: number
  sha256: string
  /** Everything inside, sorted by name. */
  packages: { name: string; version: string }[]
  kernel_version: string
  /** RFC 3339, UTC. */
  built_at: string
  recipe: { name: string; digest: string }
  base: { name: string; digest: string }
  service?: { kind: 'http' | 'smb' | 'ipp' | 'tcp'; port: number; path?: string }
  min_memory_mib: number
  agent: boolean
}

const ARCHIVES_LIMIT_BYTES = 1024 * 1024 * 1024

/**
 * Build a disk image from a recipe. Nothing is written to `outFile` before all of it is there.
 * @throws WadahError `not_found` / `invalid` (recipe, package, unit: named), `host_lacks` (tools: packages named),
 *   `no_room`, `build_failed`; the signal's reason when aborted.
 */
export async function buildImage(options: BuildOptions): Promise<BuildResult> {
  const { signal } = options
  const log = options.log ?? (() => undefined)
  const progress = options.onProgress ?? (() => undefined)
  const chain = checkBuild(options.recipes, options.recipe)
  const room = chooseRoom(await memoryAvailable())
  await mkdir(options.workDir, { recursive: true })
  await mkdir(dirname(options.outFile), { recursive: true })
  await requireRoom(options.workDir, room.disk_bytes)
  await using work = await openWork(options.workDir)
  progress('lists', 0)
  const apt = await alone(options.cacheDir, () => openApt({ ...options, log }))
  const [bootDeb] = await alone(options.cacheDir, () => download(apt, ['systemd-boot-efi'], { signal, log }))
  await run(['dpkg-deb', '-x', bootDeb?.file ?? '', join(work.dir, 'uefi')], { signal })
  const site = { apt, log, ...(await openSite(work.dir, room.tmpfs_bytes, signal)) }
  await using _sandbox = site.sandbox
  running++
  try {
    const top = chain[chain.length - 1] as (typeof chain)[number]
    const base = chain[0] as (typeof chain)[number]
    await prepareBase(site, base, { ...options, dir: work.dir, progress: (f) => progress('base', f) })
    for (const loaded of chain.slice(1)) {
      log(`installing ${loaded.name}`)
      progress('packages', 0)
      await installRecipe(site, loaded, true, (f) => progress('packages', f))
      await site.sandbox.run(['sh', '-c', TIDY, 'tidy', site.root])
    }
    progress('disk', 0)
    const raw = join(work.dir, 'tree', 'disk.raw')
    const virtual_size_bytes = await makeDisk(site, {
      raw,
      scratch: join(work.dir, 'tree', 'esp'),
      bootx64: join(work.dir, 'uefi/usr/lib/systemd/boot/efi/systemd-bootx64.efi'),
      wanted_mib: top.recipe.disk_mib,
      uuid: randomUUID(),
    })
    const packages = await listPackages(site)
    const kernel_version = await newestKernel(site)
    progress('convert', 0)
    const part = `${options.outFile}.part`
    try {
      const convert = ['qemu-img', 'convert', '-f', 'raw', '-O', options.format, '-m', '4', '-W', raw, part]
      await site.sandbox.run(convert)
      const sha256 = await hashFile(part, signal)
      const result: BuildResult = {
        disk: options.outFile,
        format: options.format,
        virtual_size_bytes,
        sha256,
        packages,
        kernel_version,
        built_at: new Date().toISOString(),
        recipe: { name: top.name, digest: top.digest },
        base: { name: base.name, digest: base.digest },
        ...(top.recipe.service ? { service: apiService(top.recipe.service) } : {}),
        min_memory_mib: top.recipe.min_memory_mib,
        agent: top.recipe.agent,
      }
      await writeFile(`${options.outFile}.json`, `${JSON.stringify(result, null, 2)}\n`)
      await rename(part, options.outFile)
      progress('convert', 1)
      return result
    } finally {
      await rm(part, { force: true })
    }
  } catch (error) {
    signal?.throwIfAborted()
    throw await explain(error, options.workDir)
  } finally {
    running--
    // Another build may be about to install what it fetched.
    if (running === 0) await trimArchives(apt, ARCHIVES_LIMIT_BYTES)
  }
}

/**
 * Everything that can be refused before anything is done.
 * @throws WadahError `not_found`, `invalid`, `host_lacks`.
 */
export function checkBuild(recipes: Recipes, name: string): (LoadedRecipe & { recipe: Recipe })[] {
  const chain = recipeChain(recipes, name)
  const tiny = chain.find((c) => c.recipe.kind === 'tiny')
  if (tiny) throw fail('invalid', `recipe ${tiny.name} makes a kernel and an initrd, not a disk`, { field: '/recipe' })
  const missing = missingTools()
  if (missing.length > 0)
    throw fail('host_lacks', `building an image needs ${missing.map((t) => t.name).join(', ')}`, {
      remedy: `apt install ${[...new Set(missing.map((t) => t.package))].join(' ')}`,
    })
  return chain
}

async function openSite(
  dir: string,
  tmpfs_bytes: number | undefined,
  signal: AbortSignal | undefined,
): Promise<{ sandbox: Sandbox; root: string }> {
  return { sandbox: await Sandbox.open({ dir, tmpfs_bytes, signal }), root: join(dir, 'tree', 'root') }
}

interface BaseOptions {
  cacheDir: string
  dir: string
  refresh?: boolean | undefined
  signal?: AbortSignal | undefined
  progress: (fraction: number) => void
}

/** The base tree in the site's root: from the cache, or made and kept. Two builds at once make it only once. */
async function prepareBase(site: Site, base: LoadedRecipe & { recipe: Recipe }, options: BaseOptions): Promise<void> {
  const tar = basePath(options.cacheDir, base, site.apt.sources)
  options.progress(0)
  const made = await alone(options.cacheDir, async () => {
    if (!options.refresh && (await baseUsable(tar, Date.now()))) return false
    site.log(`making the base system ${base.name}`)
    await makeBase(site, base, options.dir, tar, options.progress)
    return true
  })
  if (!made) {
    await site.sandbox.run(['mkdir', site.root])
    await site.sandbox.run([
      'tar',
      '--xattrs',
      '--xattrs-include=*',
      '--numeric-owner',
      '-p',
      '-C',
      site.root,
      '-xf',
      tar,
    ])
  }
  options.progress(1)
}

const TIDY = `cd "$1"
rm -rf etc/ssh/ssh_host_* var/lib/apt/lists/* var/cache/apt/*.bin var/log/*.log var/log/apt/* var/cache/debconf/*-old var/lib/dpkg/*-old
: >etc/machine-id`

async function listPackages(site: Site): Promise<BuildResult['packages']> {
  const argv = ['dpkg-query', `--admindir=${site.root}/var/lib/dpkg`, '-W', '-f', '${Package} ${Version}\\n']
  const { stdout } = await site.sandbox.run(argv)
  return stdout.split('\n').flatMap((line) => {
    const [name, version] = line.split(' ')
    return name && version ? [{ name, version }] : []
  })
}

async function newestKernel(site: Site): Promise<string> {
  const { stdout } = await site.sandbox.run([
    'sh',
    '-c',
    'cd "$1/boot" && ls -1 | sed -n "s/^vmlinuz-//p" | sort -V | tail -n 1',
    'k',
    site.root,
  ])
  return stdout.trim()
}

async function hashFile(path: string, signal: AbortSignal | undefined): Promise<string> {
  const hash = createHash('sha256')
  for await (const chunk of createReadStream(path, { highWaterMark: 1024 * 1024, signal })) hash.update(chunk)
  return hash.digest('hex')
}

async function memoryAvailable(): Promise<number> {
  const text = await readFile('/proc/meminfo', 'utf8')
  return Number(/^MemAvailable:\s+(\d+) kB/m.exec(text)?.[1] ?? 0) * 1024
}

async function requireRoom(dir: string, need_bytes: number): Promise<void> {
  const fs = await statfs(dir)
  const free = fs.bavail * fs.bsize
  if (free < need_bytes)
    throw fail(
      'no_room',
      `building needs ${Math.ceil(need_bytes / 2 ** 20)} MiB free in ${dir}; there are ${Math.floor(free / 2 ** 20)} MiB`,
      {
        remedy: 'free some space there, or set another work folder',
      },
    )
}

/** A command's failure as a fault; a full disk is named as such. */
async function explain(error: unknown, workDir: string): Promise<unknown> {
  if (!(error instanceof CommandError)) return error
  const text = `${error.stdout}\n${error.stderr}`
  if (/No space left on device/i.test(text))
    return fail('no_room', `the build ran out of space (work folder ${workDir})`, {
      remedy: 'free some space, then build again',
      cause: error,
    })
  return fail('build_failed', error.message, { remedy: 'the log of the job has all of the output', cause: error })
}

let running = 0
const queues = new Map<string, Promise<unknown>>()

/** One at a time per cache folder: lists are fetched and the base is made once, however many builds start together. */
async function alone<T>(cacheDir: string, work: () => Promise<T>): Promise<T> {
  const before = queues.get(cacheDir) ?? Promise.resolve()
  const mine = before.then(work, work)
  queues.set(
    cacheDir,
    mine.catch(() => undefined),
  )
  return mine
}
