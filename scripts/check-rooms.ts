/** Fails on an import that the table of rooms does not allow, on import cycles, and on files too long to read in one sitting. */
import { readdirSync, readFileSync } from 'node:fs'
import { dirname, join, relative, resolve } from 'node:path'

export const ROOMS: Record<string, readonly string[]> = {
  api: [],
  ports: ['api'],
  qmp: [],
  store: [],
  host: ['api', 'qmp', 'ports'],
  cluster: ['api', 'store', 'ports'],
  daemon: ['api', 'ports', 'qmp', 'store', 'host', 'cluster'],
  cli: ['api'],
}
/** Rooms that must run in a browser one day. */
const NO_NODE = new Set(['api', 'ports'])
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
): string | undefined {
  if (wanted.startsWith('.')) {
    const to = resolve('/', dirname(file), wanted)
    return to.startsWith(`/packages/${room}/`) ? undefined : `leaves its package: ${wanted}`
  }
  if (wanted.startsWith('node:'))
    return NO_NODE.has(room) ? `${room} must run in a browser too: no ${wanted}` : undefined
  const own = /^@wadah\/([a-z]+)\//.exec(wanted)?.[1]
  if (own !== undefined) {
    if (!(ROOMS[room] ?? []).includes(own))
      return `${room} may import ${(ROOMS[room] ?? []).join(', ') || 'no other room'}; not ${own}`
    return dependencies.includes(`@wadah/${own}`)
      ? undefined
      : `${wanted} is not a dependency in packages/${room}/package.json`
  }
  const name = wanted.startsWith('@') ? wanted.split('/').slice(0, 2).join('/') : (wanted.split('/')[0] as string)
  return dependencies.includes(name) ? undefined : `${name} is not a dependency in packages/${room}/package.json`
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

function main(): void {
  const root = resolve(import.meta.dirname, '..')
  const problems: string[] = []
  let count = 0
  for (const room of readdirSync(join(root, 'packages'))) {
    if (!(room in ROOMS)) {
      problems.push(`packages/${room}: this room is not on the map (scripts/check-rooms.ts, docs/architecture.md)`)
      continue
    }
    const manifest = JSON.parse(readFileSync(join(root, 'packages', room, 'package.json'), 'utf8')) as {
      dependencies?: Record<string, string>
    }
    const dependencies = Object.keys(manifest.dependencies ?? {})
    const source = join(root, 'packages', room, 'src')
    const files = readdirSync(source, { recursive: true, encoding: 'utf8' }).filter((f) => f.endsWith('.ts'))
    const graph = new Map<string, string[]>()
    for (const name of files) {
      count++
      const file = relative(root, join(source, name))
      const text = readFileSync(join(root, file), 'utf8')
      const lines = text.split('\n').length
      if (lines > MOST_LINES && !file.includes('/generated/'))
        problems.push(`${file}: ${lines} lines; ${MOST_LINES} at most`)
      const near: string[] = []
      for (const { wanted, type_only } of importsOf(text)) {
        // Tests of other rooms use what lies in testing/: it may use a test library of the root.
        if (file.includes('/testing/') && ['vitest', 'fast-check'].includes(wanted)) continue
        const problem = importProblem(room, file, wanted, dependencies)
        if (problem) problems.push(`${file}: ${problem}`)
        else if (wanted.startsWith('.') && !type_only) near.push(relative(root, resolve(root, dirname(file), wanted)))
      }
      graph.set(file, near)
    }
    const cycle = cycleOf(graph)
    if (cycle) problems.push(`import cycle: ${cycle.join(' → ')}`)
  }
  for (const problem of problems) console.error(problem)
  console.log(`rooms: ${count} files, ${problems.length} problems`)
  process.exitCode = problems.length > 0 ? 1 : 0
}

if (import.meta.main) main()
