/** The only reader of the command line, the environment and the configuration file. */
import { readFile } from 'node:fs/promises'
import { existsSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { parseArgs } from 'node:util'
import { fail } from '@wadah/api/fault'
import { parse } from 'smol-toml'
import { DEFAULT_PREFIX, type GivenOptions } from './cluster/given.ts'

export type DaemonConfig = {
  instance: string
  data: string
  socket: string
  listen: { host: string; port: number }
  names: string[]
  /** Folders of the host, inside of which pools may be made. */
  pool_dirs: string[]
  recipe_dirs: string[]
  cache: string
  mirror?: string
  qemu: string
  uid_base: number
  uid_count: number
  memory_overcommit: number
  publish_address: string
  log_level: string
  starts_at_once: number
  builds_at_once: number
  /** From this host, and to it. */
  moves_at_once: number
  /** Copies of the store that are made by itself, one a day, and kept. */
  store_copies: number
  import_allow_private: boolean
  import_allow_hosts: string[]
  import_max_gib: number
  /** What this host is called, where its own host name is not it. */
  host_name?: string
  purge: boolean
  /** systemd waits to be told that it is ready. */
  notify: boolean
  /** For tests of moves: a folder (packages/cluster/src/migration/pause-point.ts). */
  pause_points?: string
  /** A copy of the store to put in place. */
  restore?: string
  /** Makes a cluster of this host, or takes it into one (the token comes on stdin). */
  cluster?: { act: 'init' | 'join'; address: string; port: number; name?: string; etcd?: GivenOptions }
  /** Makes the cluster's store answer again; from a copy in a file, or from what is on this host. */
  recover?: { from?: string }
}

export const HELP = `wadahd: the daemon of Wadah

  --instance NAME      tells several daemons on one machine apart (default: default)
  --data DIR           state (default: /var/lib/wadah, or /var/lib/wadah-NAME)
  --socket PATH        local socket (default: /run/wadah/wadahd.sock, or /run/wadah-NAME/wadahd.sock)
  --listen ADDR:PORT   HTTPS (default: 127.0.0.1:7443)
  --config FILE        TOML; default: /etc/wadah/wadahd.toml where there is one
  --purge              end this instance's VMs and remove everything of it, then exit
  --restore FILE       put a copy of the store in place (made by: wadah store backup), then exit
  --cluster-init       make a cluster of this host, then exit; VMs run on (wadah cluster init)
  --cluster-join       take this host into a cluster, then exit; the token comes on stdin (wadah cluster join)
  --address ADDR       for these two: where the other hosts reach this one
  --cluster-recover    make the store answer after its majority was lost, then exit (wadah cluster recover)
  --from FILE          for that: from this copy (wadah store backup)
  --cluster-port PORT  for init and join: the first of three ports in a row (default: 7444)
  --name NAME          for --cluster-join: what the host is called
  --etcd URL,URL       for init: the store lies in this etcd, which you run (https); hosts run none
  --etcd-ca FILE, --etcd-cert FILE, --etcd-key FILE
                       for that: whom its members are known by, and what hosts show it (PEM)
  --etcd-prefix PATH   for that: below which its keys lie (default: /wadah)
  --help               this text

  Settings of the file: ${'pool_dirs, recipe_dirs, cache, mirror, names, qemu, uid_base, uid_count, memory_overcommit,'}
  publish_address, log_level, starts_at_once, builds_at_once, moves_at_once, import_allow_private,
  import_allow_hosts, import_max_gib, host_name, store_copies. See docs/daemon.md.
`

const DEFAULT_CLUSTER_PORT = 7444

type Setting = { [key: string]: unknown }
const SETTINGS: Record<string, (value: unknown) => boolean> = {
  pool_dirs: isPaths,
  recipe_dirs: isPaths,
  names: (v) => Array.isArray(v) && v.every((x) => typeof x === 'string'),
  cache: isPath,
  mirror: (v) => typeof v === 'string' && /^https?:\/\//.test(v),
  qemu: isPath,
  uid_base: (v) => isWhole(v, 1000, 2 ** 31),
  uid_count: (v) => isWhole(v, 1, 1_000_000),
  memory_overcommit: (v) => typeof v === 'number' && v >= 0.1 && v <= 100,
  publish_address: (v) => typeof v === 'string' && /^\d+\.\d+\.\d+\.\d+$/.test(v),
  log_level: (v) => ['fatal', 'error', 'warn', 'info', 'debug', 'trace'].includes(v as string),
  starts_at_once: (v) => isWhole(v, 1, 64),
  store_copies: (v) => isWhole(v, 0, 366),
  builds_at_once: (v) => isWhole(v, 1, 16),
  moves_at_once: (v) => isWhole(v, 1, 16),
  import_allow_private: (v) => typeof v === 'boolean',
  import_allow_hosts: (v) =>
    Array.isArray(v) && v.every((x) => typeof x === 'string' && /^[0-9A-Za-z.:/_-]{1,255}$/.test(x)),
  import_max_gib: (v) => isWhole(v, 1, 1024 * 1024),
  host_name: (v) => typeof v === 'string' && /^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$/.test(v),
}
function isPath(v: unknown): v is string {
  return typeof v === 'string' && v.startsWith('/')
}
function isPaths(v: unknown): boolean {
  return Array.isArray(v) && v.every(isPath)
}
function isWhole(v: unknown, least: number, most: number): boolean {
  return Number.isInteger(v) && (v as number) >= least && (v as number) <= most
}

/** `127.0.0.1:7443`, `[::1]:7443`. */
export function parseListen(text: string): { host: string; port: number } {
  const match = /^(?:\[([0-9a-f:.]+)\]|([0-9.]+|localhost)):(\d{1,5})$/i.exec(text)
  const port = Number(match?.[3])
  if (!match || port > 65_535) {
    throw fail(
      'invalid',
      `--listen ${text}: an address and a port are wanted, such as 127.0.0.1:7443 or 0.0.0.0:7443.`,
      { field: '/listen' },
    )
  }
  return { host: (match[1] ?? match[2]) as string, port }
}

const OPTIONS = {
  instance: { type: 'string', default: 'default' },
  data: { type: 'string' },
  socket: { type: 'string' },
  listen: { type: 'string', default: '127.0.0.1:7443' },
  config: { type: 'string' },
  purge: { type: 'boolean', default: false },
  restore: { type: 'string' },
  'cluster-init': { type: 'boolean', default: false },
  'cluster-join': { type: 'boolean', default: false },
  'cluster-recover': { type: 'boolean', default: false },
  from: { type: 'string' },
  address: { type: 'string' },
  'cluster-port': { type: 'string' },
  name: { type: 'string' },
  etcd: { type: 'string' },
  'etcd-ca': { type: 'string' },
  'etcd-cert': { type: 'string' },
  'etcd-key': { type: 'string' },
  'etcd-prefix': { type: 'string' },
  help: { type: 'boolean', default: false },
} as const

/** Of an ordinary user in their own folders (XDG base directories), as the command line does it. */
function home(variable: string, otherwise: string): string {
  return process.env[variable] || `${process.env['HOME'] ?? '/nonexistent'}/${otherwise}`
}
const called = (instance: string): string => (instance === 'default' ? 'wadah' : `wadah-${instance}`)
const isRoot = (): boolean => process.geteuid?.() === 0
const dataOf = (instance: string, data: string | undefined): string =>
  data ?? `${isRoot() ? '/var/lib' : home('XDG_DATA_HOME', '.local/share')}/${called(instance)}`
/** Where its socket lies unless said. */
export const runOf = (instance: string): string =>
  `${isRoot() ? '/run' : process.env['XDG_RUNTIME_DIR'] || `/run/user/${process.geteuid?.() ?? 0}`}/${called(instance)}`

const cacheOf = (instance: string): string =>
  `${isRoot() ? '/var/cache' : home('XDG_CACHE_HOME', '.cache')}/${called(instance)}`

/** The data folder of the daemon with this command line, as another process sees it; undefined when it is no daemon's. Pure. */
export function servedBy(argv: readonly string[]): string | undefined {
  const at = argv.findIndex((a) => /(^|\/)wadahd(\.mjs)?$|daemon\/dist\/main\.js$/.test(a))
  if (at < 0) return undefined
  const { values } = parseArgs({ args: argv.slice(at + 1), strict: false, options: OPTIONS })
  const { purge, restore, help } = values
  if (purge === true || restore !== undefined || help === true) return undefined
  if (['cluster-init', 'cluster-join', 'cluster-recover'].some((act) => values[act] === true)) return undefined
  const { instance, data } = values
  return dataOf(typeof instance === 'string' ? instance : 'default', typeof data === 'string' ? data : undefined)
}

/** @throws WadahError `invalid`, naming the option or the setting; undefined when only help was wanted */
export async function readConfig(argv: string[]): Promise<DaemonConfig | undefined> {
  const { values } = parseArgs({ args: argv, strict: true, options: OPTIONS })
  if (values.help) return undefined
  const { instance } = values
  if (!/^[a-z][a-z0-9-]{0,15}$/.test(instance)) {
    throw fail(
      'invalid',
      `--instance ${instance}: small letters, digits and hyphens, at most 16, beginning with a letter.`,
      { field: '/instance' },
    )
  }
  const file = await settings(values.config)
  const text = (key: string, otherwise: string) => (file[key] as string | undefined) ?? otherwise
  const number = (key: string, otherwise: number) => (file[key] as number | undefined) ?? otherwise
  const data = dataOf(instance, values.data)
  for (const [name, path] of [
    ['--data', data],
    ['--socket', values.socket ?? '/'],
  ] as const) {
    if (!path.startsWith('/')) throw fail('invalid', `${name} ${path}: a path from / on is wanted.`)
  }
  return {
    instance,
    data,
    socket: values.socket ?? `${runOf(instance)}/wadahd.sock`,
    listen: parseListen(values.listen),
    names: (file['names'] as string[] | undefined) ?? [],
    pool_dirs: [
      join(data, 'pools'),
      ...((file['pool_dirs'] as string[] | undefined) ?? ['/srv', '/mnt', '/media', '/var/lib/wadah-pools']),
    ],
    recipe_dirs: [...builtInRecipes(), ...((file['recipe_dirs'] as string[] | undefined) ?? ['/etc/wadah/recipes'])],
    cache: text('cache', cacheOf(instance)),
    ...(file['mirror'] === undefined ? {} : { mirror: file['mirror'] as string }),
    qemu: text('qemu', '/usr/bin/qemu-system-x86_64'),
    uid_base: number(
      'uid_base',
      instance === 'default'
        ? 2_000_000
        : instance === 'demo'
          ? 2_100_000
          : 2_200_000 + (hash(instance) % 1000) * 10_000,
    ),
    uid_count: number('uid_count', 10_000),
    memory_overcommit: number('memory_overcommit', 1),
    publish_address: text('publish_address', '127.0.0.1'),
    log_level: text('log_level', 'info'),
    starts_at_once: number('starts_at_once', 3),
    builds_at_once: number('builds_at_once', 2),
    moves_at_once: number('moves_at_once', 4),
    store_copies: number('store_copies', 7),
    import_allow_private: file['import_allow_private'] === true,
    import_allow_hosts: (file['import_allow_hosts'] as string[] | undefined) ?? [],
    import_max_gib: number('import_max_gib', 64 * 1024),
    ...(file['host_name'] === undefined ? {} : { host_name: file['host_name'] as string }),
    purge: values.purge,
    notify: process.env['NOTIFY_SOCKET'] !== undefined,
    ...(process.env['WADAH_PAUSE_POINTS'] ? { pause_points: process.env['WADAH_PAUSE_POINTS'] } : {}),
    ...(values.restore === undefined ? {} : { restore: values.restore }),
    ...(values['cluster-recover'] ? { recover: values.from === undefined ? {} : { from: values.from } } : {}),
    ...(values['cluster-init'] || values['cluster-join'] ? { cluster: clusterOptions(values) } : {}),
  }
}

type GivenValues = Partial<Record<'etcd' | 'etcd-ca' | 'etcd-cert' | 'etcd-key' | 'etcd-prefix', string | undefined>>

/** All of them, or none. @throws WadahError `invalid` */
function givenOptions(v: GivenValues): GivenOptions | undefined {
  const { etcd: endpoints, 'etcd-ca': ca, 'etcd-cert': cert, 'etcd-key': key, 'etcd-prefix': prefix } = v
  if (endpoints === undefined) {
    const alone = Object.entries({ '--etcd-ca': ca, '--etcd-cert': cert, '--etcd-key': key, '--etcd-prefix': prefix })
    const first = alone.find(([, value]) => value !== undefined)?.[0]
    if (first !== undefined)
      throw fail('invalid', `${first} is for an etcd that is given.`, {
        field: '/etcd',
        remedy: '--etcd https://HOST:2379,…',
      })
    return undefined
  }
  if (ca === undefined || cert === undefined || key === undefined)
    throw fail(
      'invalid',
      '--etcd wants --etcd-ca, --etcd-cert and --etcd-key too: whoever reaches the store has the cluster.',
      {
        field: '/etcd',
        remedy: '--etcd-ca FILE --etcd-cert FILE --etcd-key FILE',
      },
    )
  return { endpoints, ca, cert, key, prefix: prefix ?? DEFAULT_PREFIX }
}

function clusterOptions(
  values: GivenValues & {
    'cluster-init': boolean
    address?: string | undefined
    'cluster-port'?: string | undefined
    name?: string | undefined
  },
): NonNullable<DaemonConfig['cluster']> {
  const port = Number(values['cluster-port'] ?? DEFAULT_CLUSTER_PORT)
  if (!isWhole(port, 1, 65_533))
    throw fail(
      'invalid',
      `--cluster-port ${values['cluster-port']}: a port from 1 to 65533 is wanted; the next two are used too.`,
    )
  if (values.address === undefined)
    throw fail('invalid', '--address is missing: the address of this host that the others reach it at.', {
      field: '/address',
      remedy: 'ip -brief address',
    })
  const { name } = values
  const etcd = givenOptions(values)
  if (etcd && !values['cluster-init'])
    throw fail('invalid', '--etcd is for the first host; those that join are told by it where the store is.', {
      field: '/etcd',
      remedy: 'leave it out',
    })
  if (name !== undefined && !/^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$/.test(name))
    throw fail('invalid', `--name ${name}: a host name is wanted.`, { field: '/name' })
  return {
    act: values['cluster-init'] ? 'init' : 'join',
    address: values.address,
    port,
    ...(name === undefined ? {} : { name }),
    ...(etcd ? { etcd } : {}),
  }
}

/** Beside the bundle or the compiled file, wherever the repository lies. */
function builtInRecipes(): string[] {
  for (let dir = import.meta.dirname; dir !== dirname(dir); dir = dirname(dir)) {
    if (existsSync(join(dir, 'recipes', 'debian-12', 'recipe.toml'))) return [join(dir, 'recipes')]
  }
  return []
}

function hash(text: string): number {
  let h = 7
  for (const c of text) h = (h * 31 + c.charCodeAt(0)) >>> 0
  return h
}

async function settings(path: string | undefined): Promise<Setting> {
  const file = path ?? '/etc/wadah/wadahd.toml'
  const text = await readFile(file, 'utf8').catch((error: NodeJS.ErrnoException) => {
    if (path === undefined && error.code === 'ENOENT') return ''
    throw fail('invalid', `${file} cannot be read: ${error.message}`, { field: '/config' })
  })
  let parsed: Setting
  try {
    parsed = parse(text)
  } catch (error) {
    throw fail('invalid', `${file} is no TOML: ${(error as Error).message}`, { field: '/config' })
  }
  for (const [key, value] of Object.entries(parsed)) {
    const check = SETTINGS[key]
    if (!check)
      throw fail('invalid', `${file}: there is no setting "${key}"; there are ${Object.keys(SETTINGS).join(', ')}.`, {
        field: `/${key}`,
      })
    if (!check(value))
      throw fail('invalid', `${file}: ${key} = ${JSON.stringify(value)} cannot be used; see docs/daemon.md.`, {
        field: `/${key}`,
      })
  }
  return parsed
}
