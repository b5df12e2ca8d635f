import { mkdir, readdir, readFile, rm, stat, utimes, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { fail } from '@wadah/api/fault'
import { cleanEnv, CommandError, run } from './run.ts'
import { chooseSources, formatSources } from './sources.ts'

/**
 * A private view of the package archive: sources, lists and downloaded packages in one cache folder, apart from the
 * host's own apt, so that it works as any user and on hosts that are not Debian.
 */
export interface Apt {
  /** The folder everything is in. */
  dir: string
  /** Value for APT_CONFIG. */
  configFile: string
  /** The package sources, one-line format. */
  sources: string
  /** Options of the host's apt that reach the network in its way (proxy and the like), as `Key "value";` lines. */
  hostAcquire: string[]
  /** Where downloaded packages are kept. */
  archives: string
  lists: string
  /** Held (flock) by whoever lets apt write into the folder, so that nobody fails for apt's own locks. */
  lock: string
}

export interface AptOptions {
  cacheDir: string
  /** A Debian mirror to use in place of the host's own sources, e.g. http://deb.debian.org/debian. */
  mirror?: string | undefined
  /** Fetch the package lists again even when they are fresh. */
  refresh?: boolean | undefined
  signal?: AbortSignal | undefined
  log?: ((line: string) => void) | undefined
}

/** Package lists younger than this are used as they are. */
const LISTS_FRESH_MS = 12 * 3600_000
const UPDATE_TIMEOUT_MS = 10 * 60_000

/**
 * Prepare the private apt folder, with package lists that are fresh, or old when the mirror can't be reached.
 * @throws a fault when there are no lists at all and none could be had.
 */
export async function openApt(options: AptOptions): Promise<Apt> {
  const dir = join(options.cacheDir, 'apt')
  if (/["\\\n]/.test(dir))
    throw fail('invalid', `the cache folder's name ${dir} holds a quote or a backslash; apt cannot take those`, {
      field: '/cacheDir',
      remedy: 'use a folder with a plain name',
    })
  const lists = join(dir, 'lists')
  const archives = join(dir, 'archives')
  await mkdir(join(lists, 'partial'), { recursive: true })
  await mkdir(join(archives, 'partial'), { recursive: true })
  for (const sub of ['etc/apt.conf.d', 'etc/preferences.d', 'empty']) await mkdir(join(dir, sub), { recursive: true })
  const sources = formatSources(chooseSources(await hostSources(), options.mirror))
  const hostAcquire = await hostAcquireSettings()
  const apt: Apt = {
    dir,
    configFile: join(dir, 'apt.conf'),
    sources,
    hostAcquire,
    archives,
    lists,
    lock: join(dir, 'flock'),
  }
  const changed = sources !== (await readFile(join(dir, 'etc', 'sources.list'), 'utf8').catch(() => ''))
  await writeFile(join(dir, 'etc', 'sources.list'), sources)
  await writeFile(join(dir, 'status'), '')
  await writeFile(apt.configFile, aptConfig(apt, process.getuid?.() === 0))
  const stamp = join(dir, 'updated')
  const age_ms = Date.now() - ((await stat(stamp).catch(() => undefined))?.mtimeMs ?? 0)
  if (!changed && !options.refresh && age_ms >= 0 && age_ms < LISTS_FRESH_MS) return apt
  try {
    await aptGet(apt, ['update', '-q'], { ...options, timeout_ms: UPDATE_TIMEOUT_MS })
    await writeFile(stamp, '')
    await utimes(stamp, new Date(), new Date())
  } catch (error) {
    if (!(error instanceof CommandError)) throw error
    const have = (await readdir(lists)).some((f) => f.includes('Packages'))
    if (changed || !have)
      throw fail('build_failed', `the package lists could not be fetched: ${error.message}`, {
        remedy: 'check that this machine reaches the package mirror (`apt-get update`), then try again',
        cause: error,
      })
    options.log?.(`package lists could not be renewed, going on with the old ones: ${error.message}`)
  }
  return apt
}

/** The text of the apt configuration for the private folder. Pure. */
export function aptConfig(apt: Apt, asRoot: boolean): string {
  return [
    `Dir "${apt.dir}/";`,
    `Dir::Etc "${apt.dir}/etc/";`,
    `Dir::Etc::sourcelist "${apt.dir}/etc/sources.list";`,
    `Dir::Etc::sourceparts "/dev/null";`,
    `Dir::State "${apt.dir}/";`,
    `Dir::State::lists "${apt.lists}/";`,
    `Dir::State::status "${apt.dir}/status";`,
    `Dir::Cache "${apt.dir}/";`,
    `Dir::Cache::archives "${apt.archives}/";`,
    `Dir::Log "${apt.dir}/";`,
    'APT::Architecture "amd64";',
    'Acquire::Languages "none";',
    'Acquire::Retries "3";',
    // As root apt drops to the user _apt, who need not reach this folder.
    ...(asRoot ? ['APT::Sandbox::User "root";'] : []),
    ...apt.hostAcquire,
    '',
  ].join('\n')
}

export async function aptGet(
  apt: Apt,
  args: readonly string[],
  options: {
    signal?: AbortSignal | undefined
    log?: ((line: string) => void) | undefined
    timeout_ms?: number
    cwd?: string
  },
): Promise<string> {
  const { stdout } = await run(['flock', '--timeout', '900', apt.lock, 'apt-get', ...args], {
    ...options,
    env: cleanEnv({ APT_CONFIG: apt.configFile }),
  })
  return stdout
}

/** The versioned kernel package that `linux-image-cloud-amd64` stands for now, e.g. linux-image-6.1.0-56-cloud-amd64. */
export async function kernelPackage(apt: Apt, signal?: AbortSignal): Promise<string> {
  const { stdout } = await run(['apt-cache', 'depends', 'linux-image-cloud-amd64'], {
    signal,
    env: cleanEnv({ APT_CONFIG: apt.configFile }),
    timeout_ms: 60_000,
  })
  const name = /Depends:\s+(linux-image-\S+)/.exec(stdout)?.[1]
  if (!name)
    throw fail('build_failed', 'the archive has no kernel under linux-image-cloud-amd64', {
      remedy: 'use a mirror that carries Debian 12 for amd64',
      retryable: false,
    })
  return name
}

export interface Deb {
  name: string
  file: string
}

/** One line of `apt-get download --print-uris`. */
export function parseUris(text: string): { file: string; size: number }[] {
  return text.split('\n').flatMap((line) => {
    const match = /^'[^']+'\s+(\S+)\s+(\d+)/.exec(line)
    return match ? [{ file: match[1] ?? '', size: Number(match[2]) }] : []
  })
}

/** Have these packages in the archive folder; what is there with the right size is not fetched again. */
export async function download(
  apt: Apt,
  names: readonly string[],
  options: { signal?: AbortSignal | undefined; log?: ((line: string) => void) | undefined },
): Promise<Deb[]> {
  const opts = { ...options, timeout_ms: UPDATE_TIMEOUT_MS }
  // Asked from an empty folder: apt leaves out what already lies in the current one.
  const uris = await aptGet(apt, ['download', '--print-uris', ...names], {
    ...opts,
    log: undefined,
    cwd: join(apt.dir, 'empty'),
  })
  const wanted = parseUris(uris)
  const debs: Deb[] = []
  const fetch: string[] = []
  for (const name of names) {
    const deb = wanted.find((w) => w.file.startsWith(`${name}_`))
    if (!deb) throw fail('build_failed', `the archive has no package ${name}`, { retryable: false })
    debs.push({ name, file: join(apt.archives, deb.file) })
    const have = await stat(join(apt.archives, deb.file)).catch(() => undefined)
    if (have?.size !== deb.size) fetch.push(name)
  }
  if (fetch.length > 0) await aptGet(apt, ['download', '-q', ...fetch], { ...opts, cwd: apt.archives })
  return debs
}

/**
 * Bound the folder of downloaded packages: the longest there go first until it is within `limit_bytes`.
 * @returns bytes removed.
 */
export async function trimArchives(apt: Apt, limit_bytes: number): Promise<number> {
  const files: { path: string; size: number; used_ms: number }[] = []
  for (const name of await readdir(apt.archives)) {
    if (!name.endsWith('.deb')) continue
    const info = await stat(join(apt.archives, name)).catch(() => undefined)
    if (info) files.push({ path: join(apt.archives, name), size: info.size, used_ms: info.ctimeMs })
  }
  const gone = pickOldest(files, limit_bytes)
  for (const file of gone) await rm(file.path, { force: true })
  return gone.reduce((sum, f) => sum + f.size, 0)
}

/** Pure part of `trimArchives`. */
export function pickOldest<T extends { size: number; used_ms: number }>(files: readonly T[], limit_bytes: number): T[] {
  let total = files.reduce((sum, f) => sum + f.size, 0)
  const gone: T[] = []
  for (const file of [...files].sort((a, b) => a.used_ms - b.used_ms)) {
    if (total <= limit_bytes) break
    gone.push(file)
    total -= file.size
  }
  return gone
}

async function hostSources(): Promise<string[]> {
  const release = await readFile('/etc/os-release', 'utf8').catch(() => '')
  if (!/^VERSION_CODENAME=bookworm$/m.test(release)) return []
  const parts = await readdir('/etc/apt/sources.list.d').catch(() => [])
  const files = [
    '/etc/apt/sources.list',
    ...parts.filter((f) => /\.(list|sources)$/.test(f)).map((f) => `/etc/apt/sources.list.d/${f}`),
  ]
  return Promise.all(files.map((f) => readFile(f, 'utf8').catch(() => '')))
}

async function hostAcquireSettings(): Promise<string[]> {
  try {
    const { stdout } = await run(['apt-config', 'dump'], { timeout_ms: 30_000 })
    return pickAcquire(stdout)
  } catch {
    return []
  }
}

/** From `apt-config dump`: how this host reaches archives (proxy) and whether it trusts its clock. */
export function pickAcquire(dump: string): string[] {
  return dump.split('\n').filter((l) => /^Acquire::(https?::|Check-(Valid-Until|Date)\b)[^\n]*";$/i.test(l))
}
