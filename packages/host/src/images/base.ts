import { createHash } from 'node:crypto'
import { chmod, mkdir, readdir, rename, rm, stat, utimes, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import type { Apt } from './apt.ts'
import { installRecipe, packageFault, aptProgress, type Site } from './install.ts'
import type { Recipe } from './recipe.ts'
import type { LoadedRecipe } from './recipes.ts'
import { cleanEnv, run } from './run.ts'
import { SUITE } from './sources.ts'

/** Raise when a change of this program makes other trees from the same recipe. */
const BUILDER_VERSION = 1
/** A base tree older than this is made anew, so that images don't fall behind on security updates. */
const BASE_MAX_AGE_MS = 7 * 24 * 3600_000
const KEEP_BASES = 2

/** The base tree's file in the cache. */
export function basePath(cacheDir: string, base: LoadedRecipe, sources: string): string {
  const key = createHash('sha256').update(`${BUILDER_VERSION}\0${base.digest}\0${sources}`).digest('hex').slice(0, 16)
  return join(cacheDir, 'base', `${base.name}-${key}.tar`)
}

/** Whether the cached tree can be used. */
export async function baseUsable(path: string, now_ms: number): Promise<boolean> {
  const info = await stat(path).catch(() => undefined)
  return info !== undefined && now_ms - info.mtimeMs < BASE_MAX_AGE_MS
}

/**
 * The package that tells Debian's kernel packages that initial file systems are taken care of (by
 * /usr/lib/wadah/make-initrd), so that no general generator is installed.
 */
const STUB_CONTROL = `Package: wadah-initrd
Version: 1
Architecture: all
Maintainer: Wadah <root@localhost>
Provides: linux-initramfs-tool
Section: admin
Priority: optional
Description: initial file systems made by /usr/lib/wadah/make-initrd
 Stands in for initramfs-tools: kernels of this system are started by a small
 initial file system that is made whenever a kernel is installed.
`

/** Bind the host's package cache and lists into the tree that mmdebstrap sets up. Paths come by the environment. */
const BIND = `set -e
mkdir -p "$1/var/cache/apt/archives" "$1/var/lib/apt/lists"
mount --bind "$WADAH_ARCHIVES" "$1/var/cache/apt/archives"
mount --bind "$WADAH_LISTS" "$1/var/lib/apt/lists"
dpkg --root="$1" --log="$1/var/log/dpkg.log" --install "$WADAH_STUB"`
const UNBIND = 'umount "$1/var/cache/apt/archives" "$1/var/lib/apt/lists"'

/** The command line that makes a minimal system with these packages in `root`. Pure. */
export function mmdebstrapArgv(
  root: string,
  packages: readonly string[],
  apt: Pick<Apt, 'hostAcquire' | 'dir' | 'lock'>,
): string[] {
  const aptOptions = [
    'Apt::Install-Recommends "false";',
    'APT::Sandbox::User "root";',
    'Acquire::Languages "none";',
    ...apt.hostAcquire,
  ]
  return [
    'flock',
    '--timeout',
    '900',
    apt.lock,
    'mmdebstrap',
    // Without it what apt prints isn't shown.
    '--verbose',
    '--variant=minbase',
    '--mode=root',
    '--format=directory',
    '--architectures=amd64',
    // usr-is-merged in place of usrmerge, which would bring all of Perl.
    `--include=${['usr-is-merged', ...packages].join(',')}`,
    // The package cache is bound in, and the lists in it are fresh.
    '--skip=update,download/empty,essential/unlink,cleanup/apt',
    ...aptOptions.map((o) => `--aptopt=${o}`),
    '--dpkgopt=force-unsafe-io',
    '--dpkgopt=path-exclude=/usr/share/man/*',
    '--dpkgopt=path-exclude=/usr/share/doc/*',
    '--dpkgopt=path-include=/usr/share/doc/*/copyright',
    '--dpkgopt=path-exclude=/usr/share/locale/*',
    '--dpkgopt=path-include=/usr/share/locale/locale.alias',
    '--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr',
    `--setup-hook=${BIND}`,
    `--customize-hook=${UNBIND}`,
    SUITE,
    root,
    `${apt.dir}/etc/sources.list`,
  ]
}

/** What a fresh tree must not hold: traces of the build and of this host, keys, identities. */
const FINISH = `set -e
cd "$1"
rm -f etc/apt/apt.conf.d/99mmdebstrap etc/dpkg/dpkg.cfg.d/99mmdebstrap etc/ssh/ssh_host_* etc/hostname etc/resolv.conf
rm -rf var/lib/apt/lists/* var/cache/apt/*.bin var/log/*.log var/log/apt/* var/cache/debconf/*-old var/lib/dpkg/*-old
: >etc/machine-id
: >etc/resolv.conf
echo debian >etc/hostname
mkdir -p etc/wadah usr/lib/wadah/first-boot.d var/lib/wadah
chmod 700 var/lib/wadah
ln -sf /lib/systemd/system/multi-user.target etc/systemd/system/default.target`

/** Make the base tree in the site's root and keep it as a tar file at `to`. */
export async function makeBase(
  site: Site,
  base: LoadedRecipe & { recipe: Recipe },
  dir: string,
  to: string,
  progress: (fraction: number) => void,
): Promise<void> {
  const { sandbox, root, apt, log } = site
  const stub = await stubPackage(dir)
  const count = aptProgress((f) => progress(0.1 + f * 0.7))
  const argv = mmdebstrapArgv(root, base.recipe.packages, apt)
  const env = cleanEnv({
    WADAH_ARCHIVES: apt.archives,
    WADAH_LISTS: apt.lists,
    WADAH_STUB: stub,
    TMPDIR: join(dir, 'tree'),
  })
  const bootstrap = sandbox.run(argv, {
    env,
    log: (line) => {
      log(line)
      count(line)
    },
  })
  await bootstrap.catch((error: unknown) => {
    throw packageFault(error, base)
  })
  progress(0.85)
  await installRecipe(site, base, false, () => undefined)
  await sandbox.run(['sh', '-c', FINISH, 'finish', root])
  await mkdir(join(to, '..'), { recursive: true })
  const part = `${to}.${process.pid}.part`
  try {
    await sandbox.run(['tar', '--xattrs', '--xattrs-include=*', '--numeric-owner', '-C', root, '-cf', part, '.'])
    await rename(part, to)
    await utimes(to, new Date(), new Date())
  } finally {
    await rm(part, { force: true })
  }
  await dropOldBases(join(to, '..'), base.name)
}

async function stubPackage(dir: string): Promise<string> {
  const tree = join(dir, 'stub')
  await mkdir(join(tree, 'DEBIAN'), { recursive: true })
  await writeFile(join(tree, 'DEBIAN', 'control'), STUB_CONTROL)
  await chmod(join(tree, 'DEBIAN'), 0o755)
  const deb = join(dir, 'wadah-initrd_1_all.deb')
  await run(['dpkg-deb', '--root-owner-group', '-Znone', '--build', tree, deb])
  return deb
}

async function dropOldBases(dir: string, name: string): Promise<void> {
  const found: { path: string; time_ms: number }[] = []
  for (const file of await readdir(dir))
    if (file.startsWith(`${name}-`) && file.endsWith('.tar')) {
      const info = await stat(join(dir, file)).catch(() => undefined)
      if (info) found.push({ path: join(dir, file), time_ms: info.mtimeMs })
    }
  for (const old of found.sort((a, b) => b.time_ms - a.time_ms).slice(KEEP_BASES)) await rm(old.path, { force: true })
}
