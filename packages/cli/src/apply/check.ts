/** Holds a value of a file against a JSON schema of the contract; every problem in plain words, with its place. Pure. */
import { NAME_PATTERN, nameProblem } from '@wadah/api/ids'
import { nearest } from '@wadah/api/nearest'

/** The part of JSON Schema that the contract uses. */
export type Schema = {
  type?: string
  properties?: Record<string, Schema>
  required?: readonly string[]
  additionalProperties?: boolean
  patternProperties?: Record<string, Schema>
  items?: Schema
  anyOf?: readonly Schema[]
  enum?: readonly unknown[]
  const?: unknown
  pattern?: string
  minimum?: number
  maximum?: number
  minLength?: number
  maxLength?: number
  minItems?: number
  maxItems?: number
  description?: string
}
export type Path = readonly (string | number)[]
export type Problem = { path: Path; text: string }

const WORDS: Record<string, string> = {
  string: 'text',
  integer: 'a whole number',
  number: 'a number',
  boolean: 'true or false',
  object: 'a mapping',
  array: 'a list',
  null: 'null',
}

/** All that is wrong, in the order of the file; [] when it fits. */
export function check(schema: Schema, value: unknown, path: Path = []): Problem[] {
  const problem = (text: string): Problem[] => [{ path, text: text + about(schema) }]
  if (schema.anyOf) return checkUnion(schema.anyOf, value, path)
  if ('const' in schema)
    return value === schema.const
      ? []
      : problem(`${show(value, path)} cannot be used; ${show(schema.const)} is the only choice`)
  if (schema.enum) return schema.enum.includes(value) ? [] : problem(notOneOf(value, schema.enum, path))
  if (schema.type !== undefined && !isType(schema.type, value))
    return problem(`${show(value, path)} is ${kindOf(value)}; ${WORDS[schema.type] ?? schema.type} is needed`)
  switch (schema.type) {
    case 'object':
      return checkObject(schema, value as Record<string, unknown>, path)
    case 'array': {
      const list = value as unknown[]
      if (list.length > (schema.maxItems ?? Infinity))
        return problem(`${list.length} entries; ${schema.maxItems} are the most`)
      if (list.length < (schema.minItems ?? 0))
        return problem(`${list.length} entries; ${schema.minItems} are the least`)
      return list.flatMap((item, i) => check(schema.items ?? {}, item, [...path, i]))
    }
    case 'string': {
      const text = value as string
      if (text.length > (schema.maxLength ?? Infinity))
        return problem(`it has ${text.length} characters; ${schema.maxLength} are the most`)
      if (text.length < (schema.minLength ?? 0))
        return problem(`it is too short; ${schema.minLength} characters are the least`)
      if (schema.pattern === undefined || new RegExp(schema.pattern).test(text)) return []
      if (schema.pattern === NAME_PATTERN)
        return [{ path, text: nameProblem(text) ?? `${show(value, path)} is not a name` }]
      return problem(`${show(value, path)} does not have the right form`)
    }
    case 'integer':
    case 'number': {
      const n = value as number
      if (n < (schema.minimum ?? -Infinity)) return problem(`${n} is too small; ${schema.minimum} is the least`)
      if (n > (schema.maximum ?? Infinity)) return problem(`${n} is too large; ${schema.maximum} is the most`)
      return []
    }
    default:
      return []
  }
}

function checkObject(schema: Schema, value: Record<string, unknown>, path: Path): Problem[] {
  const known = schema.properties ?? {}
  const patterns = Object.entries(schema.patternProperties ?? {})
  const out: Problem[] = []
  for (const [key, inner] of Object.entries(value)) {
    const at = [...path, key]
    const own = Object.hasOwn(known, key) ? known[key] : undefined
    const matched = own ?? patterns.find(([pattern]) => new RegExp(pattern).test(key))?.[1]
    if (matched) out.push(...check(matched, inner, at))
    else if (schema.additionalProperties === false)
      out.push({ path: at, text: unknownKey(key, Object.keys(known), patterns) })
  }
  for (const key of schema.required ?? [])
    if (!Object.hasOwn(value, key)) out.push({ path, text: `"${key}" is missing${about(known[key] ?? {})}` })
  return out
}

function unknownKey(key: string, known: readonly string[], patterns: readonly [string, Schema][]): string {
  if (patterns.length > 0) return `"${key.slice(0, 80)}" cannot be a key here; keys match ${patterns[0]?.[0]}`
  const near = nearest(key, known)
  return `there is no field "${key.slice(0, 80)}"; ${near === undefined ? `there are ${known.join(', ')}` : `did you mean "${near}"?`}`
}

/** Of several choices the one that was meant: of the same type. */
function checkUnion(branches: readonly Schema[], value: unknown, path: Path): Problem[] {
  if (branches.some((b) => check(b, value, path).length === 0)) return []
  const fixed = branches.filter((b) => 'const' in b).map((b) => b.const)
  if (fixed.length > 0) return [{ path, text: notOneOf(value, fixed, path) }]
  const meant =
    branches.find((b) => b.type !== undefined && isType(b.type, value)) ?? branches.find((b) => b.type !== 'null')
  return check(meant ?? {}, value, path)
}

function notOneOf(value: unknown, choices: readonly unknown[], path: Path): string {
  const near =
    typeof value === 'string'
      ? nearest(
          value,
          choices.filter((c) => typeof c === 'string'),
        )
      : undefined
  const hint = near === undefined ? '' : ` (did you mean "${near}"?)`
  return `${show(value, path)} is not one of ${choices.map(String).join(', ')}${hint}`
}

function isType(type: string, value: unknown): boolean {
  switch (type) {
    case 'integer':
      return Number.isInteger(value)
    case 'number':
      return typeof value === 'number' && Number.isFinite(value)
    case 'array':
      return Array.isArray(value)
    case 'null':
      return value === null
    case 'object':
      return typeof value === 'object' && value !== null && !Array.isArray(value)
    default:
      return typeof value === type
  }
}

function kindOf(value: unknown): string {
  if (value === null) return 'empty'
  if (Array.isArray(value)) return 'a list'
  return typeof value === 'number' ? 'a number' : (WORDS[typeof value] ?? typeof value)
}

/** Never a secret. */
function show(value: unknown, path: Path = []): string {
  if (path.at(-1) === 'password') return 'the value'
  const text = JSON.stringify(value) ?? String(value)
  return text.length > 80 ? `${text.slice(0, 77)}…` : text
}

const about = (schema: Schema): string => (schema.description === undefined ? '' : ` (${schema.description})`)
