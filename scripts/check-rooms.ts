/**
 * Fails on an import that the table of rooms does not allow, on import cycles, on missing dependencies, and on files too long to read
 * in one sitting; warns of dependencies that nobody imports. Tests, benchmarks and studies are looked at too: they are clients of the
 * contract.
 */
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { dirname, join, resolve } from 'node:path'

export const ROOMS: Record<string, readonly string[]> = {
  api: [],
  ports: ['api'],
  qmp: [],
  store: [],
  scheduler: ['api'],
  host: ['api', 'qmp', 'ports'],
  cluster: ['api', 'store', 'scheduler', 'ports'],
  daemon: ['api', 'ports', 'qmp', 'store', 'scheduler', 'host', 'cluster'],
  cli: ['api'],
}
/** Rooms that may know others by their types alone: they stand by themselves once they are compiled. */
const TYPES_ONLY = new Set(['scheduler'])
/**
 * Folders beside the rooms: clients of the contract, which may start the daemon as a process and nothing closer. The scheduler is pure and
 * no part of a daemon: what measures or studies it calls it.
 */
export const CLIENTS: Record<string, readonly string[]> = {
  tests: ['api'],
  bench: ['api', 'scheduler'],
  studies: ['api', 'scheduler'],
}
/** Rooms that must run in a browser one day; of the scheduler, that it does no I/O. */
const NO_NODE = new Set(['api', 'ports', 'scheduler'])
const MANY_LINES = 600
const MOST_LINES = 800

const IMPORT =
  /^\s*(?:import|export)\b[^'"]*?\bfrom\s+['"]([^'"]+)['"]|^\s*import\s+['"]([^'"]+)['"]|\bimport\(\s*['"]([^'"]+)['"]\s*\)/gm

/** `type_only` imports are gone at run time: they count for the rooms, not for cycles. */
export function importsOf(text: string): { wanted: string; type_only: boolean }[] {
  return [...text.matchAll(IMPORT)].map((m) => ({
    wanted: (m[1] ?? m[2] ?? m[3]) as string,
    type_only: /^\s*(import|export)\s+type\b/.test(m[0]),
  }))
}

/** What is wrong with one import of a file in a room; undefined when it is allowed. Pure. */
export function importProblem(
  room: string,
  file: string,
  wanted: string,
  dependencies: readonly string[],
  type_only = false,
): string | undefined {
  if (wanted.startsWith('.')) {
    const to = resolve('/', dirname(file), wanted)
    return to.startsWith(`/packages/${room}/`) ? undefined : `leaves its package: ${wanted}`
  }
  if (wanted.startsWith('node:'))
    return NO_NODE.has(room) ? `${room} must run in a browser too: no ${wanted}` : undefined
  const own = /^@wadah\/([a-z]+)\//.exec(wanted)?.[1]
  if (own !== undefined) {
    if (/^@wadah\/[a-z]+\/(dist|src)\//.test(wanted)) return `${wanted}: name the module, not the folder it is built in`
    if (!(ROOMS[room] ?? []).includes(own))
      return `${room} may import ${(ROOMS[room] ?? []).join(', ') || 'no other room'}; not ${own}`
    if (TYPES_ONLY.has(room) && !type_only) return `${room} may import types only: import type … from '${wanted}'`
    return dependencies.includes(`@wadah/${own}`)
      ? undefined
      : `${wanted} is not a dependency in packages/${room}/package.json`
  }
  const name = packageOf(wanted)
  return dependencies.includes(name) ? undefined : `${name} is not a dependency in packages/${room}/package.json`
}

/** The npm package of an import: `@a/b/c` → `@a/b`, `ajv/dist/x` → `ajv`. */
export function packageOf(wanted: string): string {
  return wanted.split('/', wanted.startsWith('@') ? 2 : 1).join('/')
}

/** The same for a file of `tests/`, `bench/` or `studies/`. Pure. */
export function clientProblem(folder: string, file: string, wanted: string): string | undefined {
  if (wanted.startsWith('.')) {
    const to = resolve('/', dirname(file), wanted)
    // Benchmarks and tests make their labs in one way; neither comes closer to the rooms by it.
    const kit = folder === 'bench' && to.startsWith('/tests/kit/')
    return kit || to.startsWith(`/${folder}/`) ? undefined : `leaves ${folder}/: ${wanted}`
  }
  const room = /^@wadah\/([a-z]+)/.exec(wanted)?.[1]
  const allowed = CLIENTS[folder] ?? []
  if (room === undefined || allowed.includes(room)) return undefined
  return `${folder} is a client: it may import ${allowed.join(', ')}; not ${room}`
}

/** What is wrong with a file's length, and whether that is only a warning. Pure. */
export function lengthProblem(file: string, lines: number): { text: string; refused: boolean } | undefined {
  if (lines <= MANY_LINES || file.includes('/generated/')) return undefined
  const refused = lines > MOST_LINES
  return {
    text: `${file}: ${lines} lines; ${refused ? `${MOST_LINES} at most` : 'think of cutting it in two'}`,
    refused,
  }
}

/** The first circle found, as a list of files that ends with its first; undefined when there is none. Pure. */
export function cycleOf(graph: ReadonlyMap<string, readonly string[]>): string[] | undefined {
  const done = new Set<string>()
  const path: string[] = []
  const visit = (at: string): string[] | undefined => {
    if (done.has(at)) return undefined
    const seen = path.indexOf(at)
    if (seen >= 0) return [...path.slice(seen), at]
    path.push(at)
    for (const next of graph.get(at) ?? []) {
      const found = visit(next)
      if (found) return found
    }
    path.pop()
    done.add(at)
    return undefined
  }
  for (const file of graph.keys()) {
    const found = visit(file)
    if (found) return found
  }
  return undefined
}

const ROOT = resolve(import.meta.dirname, '..')
const problems: string[] = []
const warnings: string[] = []
let count = 0

/** The TypeScript files below a folder of the repository, as paths from its root. */
function sources(folder: string): string[] {
  const dir = join(ROOT, folder)
  if (!existsSync(dir)) return []
  return readdirSync(dir, { recursive: true, encoding: 'utf8' })
    .filter((name) => name.endsWith('.ts') && !name.includes('node_modules'))
    .map((name) => join(folder, name))
    .sort()
}

function read(file: string): { wanted: string; type_only: boolean }[] {
  count++
  const text = readFileSync(join(ROOT, file), 'utf8')
  const long = lengthProblem(file, text.split('\n').length)
  if (long) (long.refused ? problems : warnings).push(long.text)
  return importsOf(text)
}

function checkRoom(room: string): void {
  if (!(room in ROOMS)) {
    problems.push(`packages/${room}: this room is not on the map (scripts/check-rooms.ts, docs/architecture.md)`)
    return
  }
  const manifest = JSON.parse(readFileSync(join(ROOT, 'packages', room, 'package.json'), 'utf8')) as {
    dependencies?: Record<string, string>
  }
  const unused = new Set(Object.keys(manifest.dependencies ?? {}))
  const dependencies = [...unused]
  const graph = new Map<string, string[]>()
  for (const file of sources(`packages/${room}/src`)) {
    const near: string[] = []
    for (const { wanted, type_only } of read(file)) {
      unused.delete(packageOf(wanted))
      // Tests of other rooms use what lies in testing/: it may use a test library of the root.
      if (file.includes('/testing/') && ['vitest', 'fast-check'].includes(wanted)) continue
      const problem = importProblem(room, file, wanted, dependencies, type_only)
      if (problem) problems.push(`${file}: ${problem}`)
      else if (wanted.startsWith('.') && !type_only) near.push(join(dirname(file), wanted))
    }
    graph.set(file, near)
  }
  const cycle = cycleOf(graph)
  if (cycle) problems.push(`import cycle: ${cycle.join(' → ')}`)
  // A room's tests may use other rooms (a store in memory, say), by their names.
  for (const file of sources(`packages/${room}/test`)) {
    for (const { wanted } of read(file)) {
      unused.delete(packageOf(wanted))
      if (wanted.startsWith('.') && !resolve('/', dirname(file), wanted).startsWith(`/packages/${room}/`))
        problems.push(`${file}: leaves its package: ${wanted}`)
    }
  }
  for (const name of unused) warnings.push(`packages/${room}/package.json: nobody imports the dependency ${name}`)
}

function main(): void {
  for (const room of readdirSync(join(ROOT, 'packages'))) checkRoom(room)
  for (const folder of Object.keys(CLIENTS)) {
    for (const file of sources(folder)) {
      for (const { wanted } of read(file)) {
        const problem = clientProblem(folder, file, wanted)
        if (problem) problems.push(`${file}: ${problem}`)
      }
    }
  }
  for (const warning of warnings) console.error(`warning: ${warning}`)
  for (const problem of problems) console.error(problem)
  console.log(`rooms: ${count} files, ${problems.length} problems`)
  process.exitCode = problems.length > 0 ? 1 : 0
}

if (import.meta.main) main()
