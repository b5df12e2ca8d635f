/** A YAML file → checked documents, each problem with its line. Pure. */
import { nearest } from '@wadah/api/nearest'
import { isAlias, isMap, isScalar, isSeq, LineCounter, type Node, parseAllDocuments } from 'yaml'
import { parseMib } from '../text/size.ts'
import { check, type Path, type Problem } from './check.ts'
import { KINDS, type Kind, SHAPES } from './shape.ts'

export type Place = { file: string; line: number; column: number }
export type Doc = {
  kind: Kind
  name: string
  /** The body of the request that would make it, by the contract's names; `null`s are still in it. */
  body: Record<string, unknown>
  state?: 'running' | 'stopped'
  password_file?: string
  /** Where a field of the document stands. */
  at: (...path: Path) => Place
}
export type FileProblem = { place: Place; field: string; text: string }
export type Read = { docs: Doc[]; problems: FileProblem[] }

const pointer = (path: Path) => (path.length === 0 ? '' : `/${path.join('/')}`)

/** Several documents, or lists of them. `file` is for messages. */
export function readDocuments(text: string, file: string): Read {
  const lines = new LineCounter()
  const docs: Doc[] = []
  const problems: FileProblem[] = []
  const place = (offset: number): Place => {
    const { line, col } = lines.linePos(offset)
    return { file, line: Math.max(1, line), column: Math.max(1, col) }
  }
  const parsed = parseAllDocuments(text, { lineCounter: lines, uniqueKeys: true, prettyErrors: false })
  for (const document of Array.isArray(parsed) ? parsed : []) {
    const broken = [...document.errors, ...document.warnings]
    for (const error of broken) problems.push({ place: place(error.pos[0]), field: '', text: firstLine(error.message) })
    const root = document.contents as Node | null
    if (broken.length > 0 || root === null || (isScalar(root) && root.value === null)) continue
    for (const node of isSeq(root) ? (root.items as Node[]) : [root]) {
      let value: unknown
      try {
        value = node.toJS(document, { maxAliasCount: 100 })
      } catch (error) {
        problems.push({ place: place(node.range?.[0] ?? 0), field: '', text: firstLine((error as Error).message) })
        continue
      }
      const at = (...path: Path) => place(offsetOf(node, path))
      const found = readOne(value, at)
      if (Array.isArray(found))
        problems.push(...found.map((p) => ({ place: at(...p.path), field: pointer(p.path), text: p.text })))
      else docs.push(found)
    }
  }
  const first = new Map<string, Doc>()
  for (const doc of docs) {
    const key = `${doc.kind} ${doc.name}`
    const other = first.get(key)
    if (other)
      problems.push({
        place: doc.at('name'),
        field: '/name',
        text: `there is ${key} in line ${other.at().line} already`,
      })
    else first.set(key, doc)
  }
  return { docs, problems }
}

function readOne(value: unknown, at: Doc['at']): Doc | Problem[] {
  if (typeof value !== 'object' || value === null || Array.isArray(value))
    return [{ path: [], text: `a mapping is needed, with "kind: ${KINDS.join('|')}" and "name"` }]
  const { kind } = value as { kind?: unknown }
  if (!KINDS.includes(kind as Kind)) {
    const near = typeof kind === 'string' ? nearest(kind, KINDS) : undefined
    const hint = near === undefined ? '' : ` (did you mean "${near}"?)`
    return [
      kind === undefined
        ? { path: [], text: `"kind" is missing: ${KINDS.join(', ')}` }
        : { path: ['kind'], text: `${JSON.stringify(kind)} is not one of ${KINDS.join(', ')}${hint}` },
    ]
  }
  const problems = check(SHAPES[kind as Kind], value)
  if (problems.length > 0) return problems
  try {
    return toDoc(kind as Kind, value as Record<string, unknown>, at)
  } catch (error) {
    const { field, detail } = (error as { fault: { field?: string; detail: string } }).fault
    return [{ path: (field ?? '').split('/').slice(1), text: detail }]
  }
}

/** Sizes become MiB, `type` the network's kind; what is not of the request stands apart. */
function toDoc(kind: Kind, value: Record<string, unknown>, at: Doc['at']): Doc {
  const { kind: _, name, state, memory, disk, balloon, type, seed, disks, ...rest } = value
  const mib = (size: unknown, field: string) => parseMib(size as string, field)
  const body: Record<string, unknown> = { name, ...rest }
  if (type !== undefined) body['kind'] = type
  if (memory !== undefined) body['memory_mib'] = mib(memory, '/memory')
  if (disk !== undefined) body['disk_mib'] = mib(disk, '/disk')
  if (balloon !== undefined) body['balloon_mib'] = mib(balloon, '/balloon')
  if (disks !== undefined) {
    body['disks'] = (disks as Record<string, unknown>[]).map(({ size, ...more }, i) => ({
      ...more,
      ...(size === undefined ? {} : { size_mib: mib(size, `/disks/${i}/size`) }),
    }))
  }
  const { password_file, ...given } = (seed ?? {}) as Record<string, unknown>
  if (Object.keys(given).length > 0) body['seed'] = given
  return {
    kind,
    name: name as string,
    body,
    at,
    ...(state === undefined ? {} : { state: state as 'running' }),
    ...(password_file === undefined ? {} : { password_file: password_file as string }),
  }
}

/** Offset of the deepest part of `path` that stands in the file; of a mapping's entry its key. */
function offsetOf(root: Node, path: Path): number {
  let node: Node | null = root
  let offset = root.range?.[0] ?? 0
  for (const step of path) {
    if (isMap(node)) {
      const pair: { key: unknown; value: unknown } | undefined = node.items.find(
        (p) => isScalar(p.key) && String(p.key.value) === String(step),
      )
      if (!pair) break
      offset = (pair.key as Node).range?.[0] ?? offset
      node = pair.value as Node | null
    } else if (isSeq(node)) {
      node = (node.items[Number(step)] as Node | undefined) ?? null
      offset = node?.range?.[0] ?? offset
    } else break
    if (node === null || isAlias(node)) break
  }
  return offset
}

const firstLine = (text: string) => text.split('\n')[0] ?? text
