import { parse as parseToml, TomlError } from 'smol-toml'
import { fail } from '@wadah/api/fault'
import { type Field, Reader } from './recipe-reader.ts'

/** What a recipe's servers offer; where clients and checks knock. */
export type RecipeService =
  | { kind: 'http'; port: number; path: string }
  | { kind: 'smb'; port: number; share: string }
  | { kind: 'ipp'; port: number; queue: string }
  | { kind: 'tcp'; port: number }

/** How to see that a server does its work. `exec` runs inside it, through the guest agent, and must exit 0. */
export type RecipeCheck =
  | { kind: 'http'; port: number; path: string; status: number }
  | { kind: 'smb'; port: number; share: string }
  | { kind: 'ipp'; port: number; queue: string }
  | { kind: 'tcp'; port: number }
  | { kind: 'exec'; argv: string[] }

export interface RecipeFile {
  /** Absolute path in the guest. */
  path: string
  mode?: number
  owner?: { user: string; group: string }
  /** Text of the file. */
  content?: string
  /** A file of the recipe's folder. Without either, the one under files/ with the same path is meant. */
  source?: string
}

export interface RecipeUser {
  name: string
  system: boolean
  home?: string
  groups: string[]
}

/** A recipe as written in recipe.toml, checked. */
export interface Recipe {
  kind: 'disk' | 'tiny'
  name: string
  title: string
  /** Bahasa Indonesia. */
  title_id: string
  description: string
  description_id: string
  /** The recipe it stands on; none for a base system. */
  base?: string
  packages: string[]
  files: RecipeFile[]
  units: { enable: string[]; mask: string[] }
  users: RecipeUser[]
  service?: RecipeService
  check?: RecipeCheck
  min_memory_mib: number
  /** Size of the disk as the guest sees it; more when the tree needs it. */
  disk_mib: number
  /** The qemu-guest-agent is inside. */
  agent: boolean
  /** A script of the recipe's folder, run once in each new server. */
  first_boot?: string
  /** A script of the recipe's folder, run once in the image's tree, with chroot. */
  after_install?: string
}

const KEYS = [
  ...['kind', 'name', 'title', 'title_id', 'description', 'description_id', 'base', 'packages', 'files', 'units'],
  ...['users', 'service', 'check', 'min_memory_mib', 'disk_mib', 'agent', 'first_boot', 'after_install'],
]
const NAME = /^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$/
const PACKAGE = /^[a-z0-9][a-z0-9+.-]+$/
const UNIT = /^[A-Za-z0-9:_.\\@-]{1,200}\.(service|socket|timer|path|mount|target|swap|slice)$/
const USER = /^[a-z_][a-z0-9_-]{0,31}$/
const MAX_BYTES = 1024 * 1024

/**
 * Read and check a recipe.
 * @param text content of recipe.toml
 * @param file its path, for messages
 * @throws WadahError `invalid`: file, key, what was wrong and what would be right.
 */
export function parseRecipe(text: string, file: string): Recipe {
  if (text.length > MAX_BYTES) throw fail('invalid', `${file}: a recipe larger than 1 MiB is not read`)
  let table: Record<string, unknown>
  try {
    table = parseToml(text)
  } catch (error) {
    if (!(error instanceof TomlError)) throw error
    throw fail('invalid', `${file}: line ${error.line}: ${error.message.split('\n')[0]}`, {
      field: '/recipe',
      remedy: 'correct that line; the format is TOML 1.0',
      cause: error,
    })
  }
  const r = new Reader(file, table, '', KEYS)
  const kind = r.oneOf('kind', ['disk', 'tiny'] as const, 'disk')
  const recipe: Recipe = {
    kind,
    name: r.match('name', NAME, 'small letters, digits and inner hyphens, at most 63'),
    title: r.text('title'),
    title_id: r.text('title_id', r.text('title')),
    description: r.text('description', ''),
    description_id: r.text('description_id', r.text('description', '')),
    packages: r.list('packages', PACKAGE, 'the name of a Debian package'),
    files: r.tables('files', ['path', 'mode', 'owner', 'content', 'source']).map(readFile),
    units: readUnits(r),
    users: r.tables('users', ['name', 'system', 'home', 'groups']).map(readUser),
    min_memory_mib: r.integer('min_memory_mib', 64, 1_048_576, 256),
    disk_mib: r.integer('disk_mib', 256, 1_048_576, 2048),
    agent: r.flag('agent', true),
  }
  const base = r.optional('base', (f) => f.match(NAME, 'the name of another recipe'))
  if (base !== undefined) recipe.base = base
  const service = r.table('service', ['kind', 'port', 'path', 'share', 'queue'])
  if (service) recipe.service = readService(service)
  const check = r.table('check', ['kind', 'port', 'path', 'status', 'share', 'queue', 'argv'])
  if (check) recipe.check = readCheck(check)
  for (const key of ['first_boot', 'after_install'] as const) {
    const script = r.optional(key, (f) => f.relativePath())
    if (script !== undefined) recipe[key] = script
  }
  if (kind === 'tiny' && (recipe.packages.length > 0 || recipe.files.length > 0 || recipe.base !== undefined))
    throw r.wrong('kind', 'a tiny guest has no packages, files or base', 'kind = "disk", or leave those keys out')
  return recipe
}

function readUnits(r: Reader): Recipe['units'] {
  const units = r.table('units', ['enable', 'mask'])
  const what = 'the name of a systemd unit with its suffix, such as "nginx.service"'
  return { enable: units?.list('enable', UNIT, what) ?? [], mask: units?.list('mask', UNIT, what) ?? [] }
}

function readFile(f: Reader): RecipeFile {
  const file: RecipeFile = { path: f.field('path').guestPath() }
  const mode = f.optional('mode', (x) => x.match(/^0?[0-7]{3,4}$/, 'permissions in octal, such as "0644"'))
  if (mode !== undefined) file.mode = Number.parseInt(mode, 8)
  const owner = f.optional('owner', (x) =>
    x.match(/^[a-z_][a-z0-9_-]{0,31}:[a-z_][a-z0-9_-]{0,31}$/, 'user and group, such as "root:root"'),
  )
  if (owner !== undefined) {
    const [user, group] = owner.split(':')
    file.owner = { user: user ?? 'root', group: group ?? 'root' }
  }
  const content = f.optional('content', (x) => x.string())
  const source = f.optional('source', (x) => x.relativePath())
  if (content !== undefined && source !== undefined)
    throw f.wrong('content', 'a file has content or source, not both', 'remove one of the two')
  if (content !== undefined) file.content = content
  if (source !== undefined) file.source = source
  return file
}

function readUser(u: Reader): RecipeUser {
  const user: RecipeUser = {
    name: u.match('name', USER, 'a user name: small letters, digits, _ and -'),
    system: u.flag('system', true),
    groups: u.list('groups', USER, 'the name of a group'),
  }
  const home = u.optional('home', (x) => x.guestPath())
  if (home !== undefined) user.home = home
  return user
}

function readService(s: Reader): RecipeService {
  const kind = s.oneOf('kind', ['http', 'smb', 'ipp', 'tcp'] as const)
  const port = s.integer('port', 1, 65_535)
  if (kind === 'http') return s.only(['kind', 'port', 'path'], { kind, port, path: urlPath(s) })
  if (kind === 'smb') return s.only(['kind', 'port', 'share'], { kind, port, share: shareName(s, 'share') })
  if (kind === 'ipp') return s.only(['kind', 'port', 'queue'], { kind, port, queue: shareName(s, 'queue') })
  return s.only(['kind', 'port'], { kind, port })
}

function readCheck(c: Reader): RecipeCheck {
  const kind = c.oneOf('kind', ['http', 'smb', 'ipp', 'tcp', 'exec'] as const)
  if (kind === 'exec') {
    const argv = c.list('argv', /^[^\0]{1,4096}$/, 'a program and its arguments')
    if (argv[0] === undefined || !argv[0].startsWith('/'))
      throw c.wrong(
        'argv',
        'the first word must be the absolute path of a program in the guest',
        '["/usr/bin/test", …]',
      )
    return c.only(['kind', 'argv'], { kind, argv })
  }
  const port = c.integer('port', 1, 65_535)
  if (kind === 'http') {
    const check = { kind, port, path: urlPath(c), status: c.integer('status', 100, 599, 200) }
    return c.only(['kind', 'port', 'path', 'status'], check)
  }
  if (kind === 'smb') return c.only(['kind', 'port', 'share'], { kind, port, share: shareName(c, 'share') })
  if (kind === 'ipp') return c.only(['kind', 'port', 'queue'], { kind, port, queue: shareName(c, 'queue') })
  return c.only(['kind', 'port'], { kind, port })
}

const urlPath = (r: Reader): string =>
  r.optional('path', (f: Field) => f.match(/^\/[!-~]{0,1000}$/, 'a URL path that starts with /')) ?? '/'
const shareName = (r: Reader, key: string): string => r.match(key, /^[A-Za-z0-9_-]{1,80}$/, 'letters, digits, _ and -')

/** The service in the shape of the API: one `path` for path, share or queue. */
export function apiService(service: RecipeService): { kind: RecipeService['kind']; port: number; path?: string } {
  const { kind, port } = service
  if (service.kind === 'http') return { kind, port, path: service.path }
  if (service.kind === 'smb') return { kind, port, path: service.share }
  if (service.kind === 'ipp') return { kind, port, path: service.queue }
  return { kind, port }
}
