import { join } from 'node:path'
import { fail } from '@wadah/api/fault'
import type { Apt } from './apt.ts'
import type { Recipe } from './recipe.ts'
import type { LoadedRecipe } from './recipes.ts'
import { cleanEnv, CommandError, lastLines } from './run.ts'
import type { Sandbox } from './sandbox.ts'
import { packTar } from './tar.ts'

/** What the steps of a build share. */
export interface Site {
  sandbox: Sandbox
  apt: Apt
  /** The guest's root, a path inside the sandbox. */
  root: string
  log: (line: string) => void
}

type Ready = LoadedRecipe & { recipe: Recipe }

/** Mount what package scripts need under the tree; nothing of the host's devices but the harmless ones. */
const ENTER = `set -e
root="$1"
rm -rf "$root"/dev/* "$root"/run/*
mount -t proc proc "$root/proc"
for name in null zero full random urandom tty; do
  : >"$root/dev/$name"
  mount --bind "/dev/$name" "$root/dev/$name"
done
mkdir -p "$root/dev/shm" "$root/var/cache/apt/archives"
mount -t tmpfs -o size=64m tmpfs "$root/dev/shm"
mount --bind "$2" "$root/var/cache/apt/archives"
printf '#!/bin/sh\\nexit 101\\n' >"$root/usr/sbin/policy-rc.d"
chmod 755 "$root/usr/sbin/policy-rc.d"`

const LEAVE = `set -e
root="$1"
for at in var/cache/apt/archives dev/shm dev/null dev/zero dev/full dev/random dev/urandom dev/tty proc; do
  umount -l "$root/$at"
done
rm -rf "$root"/dev/* "$root"/run/* "$root"/tmp/* "$root/usr/sbin/policy-rc.d"`

/** Lay one recipe over the tree: packages, users, files, its own scripts, units. */
export async function installRecipe(
  site: Site,
  loaded: Ready,
  packages: boolean,
  progress: (fraction: number) => void,
): Promise<void> {
  const { sandbox, root, log } = site
  const { recipe } = loaded
  await sandbox.run(['sh', '-c', ENTER, 'enter', root, site.apt.archives])
  if (packages && recipe.packages.length > 0) await installPackages(site, loaded, progress)
  for (const user of recipe.users) {
    const home = user.home === undefined ? ['--no-create-home'] : ['--create-home', '--home-dir', user.home]
    const groups = user.groups.length > 0 ? ['--groups', user.groups.join(',')] : []
    await inTree(site, loaded, 'users', [
      'useradd',
      ...(user.system ? ['--system'] : []),
      ...home,
      ...groups,
      '--',
      user.name,
    ])
  }
  const scripts = loaded.scripts.first_boot
    ? [
        {
          kind: 'file' as const,
          path: `usr/lib/wadah/first-boot.d/50-${recipe.name}`,
          mode: 0o755,
          data: loaded.scripts.first_boot,
        },
      ]
    : []
  // In the tree's own root: its links lead to places of the tree, never of this host.
  const unpack = [
    'tar',
    '-x',
    '-m',
    '-f',
    '-',
    '-C',
    '/',
    '--no-overwrite-dir',
    '--keep-directory-symlink',
    '--unlink-first',
  ]
  await inTree(
    site,
    loaded,
    'files',
    unpack.filter((a) => a !== '--unlink-first'),
    packTar([...loaded.tree, ...scripts]),
  )
  if (loaded.scripts.after_install) {
    log(`running after_install of ${recipe.name}`)
    const script = packTar([
      { kind: 'file', path: 'run/after-install', mode: 0o755, data: loaded.scripts.after_install },
    ])
    await sandbox.chroot(root, ['tar', '-x', '-f', '-', '-C', '/', '--no-overwrite-dir'], { stdin: script })
    await inTree(site, loaded, 'after_install', ['/run/after-install'])
  }
  await setUnits(site, loaded)
  await sandbox.run(['sh', '-c', LEAVE, 'leave', root])
}

async function inTree(site: Site, loaded: LoadedRecipe, key: string, argv: string[], stdin?: Buffer): Promise<void> {
  try {
    await site.sandbox.chroot(site.root, argv, { log: site.log, stdin })
  } catch (error) {
    if (!(error instanceof CommandError)) throw error
    throw fail(
      'build_failed',
      `${loaded.dir}/recipe.toml: \`${key}\`: ${lastLines(error.stderr || error.stdout, 3) || error.message}`,
      {
        field: `/recipe/${key}`,
        retryable: false,
        cause: error,
      },
    )
  }
}

/**
 * Byte-compiling Python modules is most of what installing them takes, and Python does it by itself when a module is
 * first used: during the build py3compile is a stand-in.
 */
const DIVERT = `set -e
dpkg-divert --quiet --local --rename --divert /usr/bin/py3compile.wadah --add /usr/bin/py3compile
printf '#!/bin/sh\\n' >/usr/bin/py3compile
chmod 755 /usr/bin/py3compile`
const RESTORE = `set -e
rm -f /usr/bin/py3compile
dpkg-divert --quiet --local --rename --divert /usr/bin/py3compile.wadah --remove /usr/bin/py3compile`

/**
 * The command lines that install into the tree with this side's apt and the tree's dpkg. Pure.
 * Fetching is one command, under the package cache's lock; installing is the other, and needs no lock: several builds
 * install at the same time from the one cache.
 */
export function aptInstallArgv(
  root: string,
  packages: readonly string[],
  step: 'fetch' | 'install',
  lock: string,
): string[] {
  const set = {
    'Dir::State::status': `${root}/var/lib/dpkg/status`,
    'Dir::State::extended_states': `${root}/var/lib/apt/extended_states`,
    'Dir::Cache::archives': `${root}/var/cache/apt/archives`,
    'Dir::Log': `${root}/var/log/apt`,
    'DPkg::Chroot-Directory': root,
    'DPkg::Options::': '--force-unsafe-io',
    'DPkg::Use-Pty': 'false',
  }
  const options = Object.entries(set).flatMap(([key, value]) => ['-o', `${key}=${value}`])
  const apt = ['apt-get', ...options, '-y', '-q', '--no-install-recommends']
  if (step === 'fetch') return ['flock', '--timeout', '900', lock, ...apt, '--download-only', 'install', ...packages]
  return [...apt, '-o', 'Debug::NoLocking=true', '--no-download', 'install', ...packages]
}

async function installPackages(site: Site, loaded: Ready, progress: (fraction: number) => void): Promise<void> {
  const { sandbox, root } = site
  const { packages } = loaded.recipe
  const count = aptProgress(progress)
  const apt = async (step: 'fetch' | 'install'): Promise<unknown> =>
    sandbox.run(aptInstallArgv(root, packages, step, site.apt.lock), {
      env: cleanEnv({ APT_CONFIG: site.apt.configFile }),
      log: (line) => {
        site.log(line)
        count(line)
      },
    })
  try {
    await apt('fetch')
    await sandbox.chroot(root, ['sh', '-c', DIVERT])
    await apt('install')
  } catch (error) {
    throw packageFault(error, loaded)
  }
  await sandbox.chroot(root, ['sh', '-c', RESTORE])
}

/** apt's and mmdebstrap's way of saying that a package isn't there, as a fault that names package and recipe. */
export function packageFault(error: unknown, loaded: LoadedRecipe): unknown {
  if (!(error instanceof CommandError)) return error
  const text = `${error.stdout}\n${error.stderr}`
  const missing = [
    ...text.matchAll(/Unable to locate package (\S+)|Package '?([^\s']+)'? has no installation candidate/g),
  ].map((m) => m[1] ?? m[2] ?? '')
  if (missing.length > 0) {
    const names = [...new Set(missing)]
    return fail(
      'invalid',
      `${join(loaded.dir, 'recipe.toml')}: \`packages\`: Debian 12 has no package ${names.join(', ')}`,
      {
        field: '/recipe/packages',
        remedy: `look for the right name (\`apt-cache search ${names[0]}\`), or build with refresh if it is new`,
      },
    )
  }
  const network = /(Could not resolve|Failed to fetch|Unable to connect|Temporary failure)/.test(text)
  return fail(
    'build_failed',
    `installing the packages of ${loaded.name} failed: ${lastLines(error.stderr || error.stdout, 4)}`,
    {
      field: '/recipe/packages',
      remedy: network
        ? 'check that this machine reaches the package mirror, or build with refresh'
        : 'the log of the job has all of the output',
      retryable: network,
      cause: error,
    },
  )
}

/** Counts apt's lines into a fraction of the work: each new package is fetched, unpacked and set up. */
export function aptProgress(report: (fraction: number) => void): (line: string) => void {
  let total = 0
  let done = 0
  return (line) => {
    const plan = /(\d+) newly installed/.exec(line)
    if (plan) total = Number(plan[1]) * 2
    if (!/^(Unpacking|Setting up) /.test(line) || total === 0) return
    done++
    report(Math.min(1, done / total))
  }
}

async function setUnits(site: Site, loaded: Ready): Promise<void> {
  const { units } = loaded.recipe
  const wanted = [...units.enable, ...units.mask]
  if (wanted.length === 0) return
  const { stdout } = await site.sandbox.chroot(site.root, ['sh', '-c', LIST_UNITS])
  const there = new Set(stdout.split('\n'))
  for (const key of ['enable', 'mask'] as const) {
    const missing = units[key].filter((unit) => !there.has(unit) && !there.has(unit.replace(/@[^.]*\./, '@.')))
    if (missing.length > 0)
      throw fail(
        'invalid',
        `${loaded.dir}/recipe.toml: \`units.${key}\`: the image has no unit ${missing.join(', ')}`,
        {
          field: `/recipe/units/${key}`,
          remedy: 'check its name, and that a package or file of the recipe brings it',
        },
      )
  }
  if (units.enable.length > 0)
    await inTree(site, loaded, 'units.enable', ['systemctl', 'enable', '--', ...units.enable])
  if (units.mask.length > 0) await inTree(site, loaded, 'units.mask', ['systemctl', 'mask', '--', ...units.mask])
}

const LIST_UNITS = 'ls -1 /usr/lib/systemd/system /lib/systemd/system /etc/systemd/system 2>/dev/null; exit 0'
