/** Checks params, query and body against their schemas, and says in plain words what is wrong with them. */
import { fail, type WadahError } from '@wadah/api/fault'
import { NAME_PATTERN, nameProblem } from '@wadah/api/ids'
import { Ajv, type ErrorObject, type ValidateFunction } from 'ajv'
import { nearest } from '@wadah/api/nearest'

export type Part = 'body' | 'query' | 'params'

const common = { removeAdditional: false, useDefaults: true, verbose: true, strict: false, allErrors: false } as const
const strictly = new Ajv({ ...common, coerceTypes: false })
// Query and path are text; everything else says its types itself.
const coercing = new Ajv({ ...common, coerceTypes: true })

/** Compiled at the first use: a daemon that serves five endpoints does not pay for sixty. */
export function validator(schema: object, part: Part): (value: unknown) => { value: unknown } | { error: WadahError } {
  let check: ValidateFunction | undefined
  return (given) => {
    check ??= (part === 'body' ? strictly : coercing).compile(schema)
    // Fastify gives null for a body that was left out; it may be left out where every field of it may.
    const value = part === 'body' && (given === undefined || given === null) ? {} : given
    if (check(value)) return { value }
    return { error: refusal(check.errors ?? [], part) }
  }
}

/** Ajv's errors as one fault that names the field, what was wrong with it and what would be right. Exported for tests. */
export function refusal(errors: readonly ErrorObject[], part: Part): WadahError {
  const error = mostTelling(errors)
  if (!error) return fail('invalid', 'The request does not fit its description.', { remedy: 'see /v1/openapi.json' })
  const unknown = unknownField(error)
  if (unknown !== undefined) return unknownRefusal(error, unknown, part)
  const field =
    error.keyword === 'required' ? child(error.instancePath, error.params.missingProperty) : error.instancePath
  return fail('invalid', `${label(field, part)}: ${problem(error, field)}`, { field })
}

/** Of a union's many complaints, the one about the branch that was meant. */
function mostTelling(errors: readonly ErrorObject[]): ErrorObject | undefined {
  const union = errors.findLast((e) => e.keyword === 'anyOf')
  if (!union) return errors[0]
  const branches = (union.schema as { const?: unknown; type?: string }[]) ?? []
  if (branches.every((b) => b.const !== undefined)) return union
  const inner = errors.filter((e) => e !== union && !(e.keyword === 'type' && e.params.type === 'null'))
  return inner.toSorted((a, b) => b.instancePath.length - a.instancePath.length)[0] ?? union
}

/** The first field of the object that its schema does not know. A missing field is often a mistyped one. */
function unknownField(error: ErrorObject): string | undefined {
  if (error.keyword === 'additionalProperties') return error.params.additionalProperty as string
  const { properties, additionalProperties } = (error.parentSchema ?? {}) as Record<string, unknown>
  if (error.keyword !== 'required' || additionalProperties !== false || !isObject(error.data)) return undefined
  return Object.keys(error.data).find((key) => !Object.hasOwn(properties as object, key))
}

function unknownRefusal(error: ErrorObject, name: string, part: Part): WadahError {
  const field = child(error.instancePath, name)
  const { properties, patternProperties } = (error.parentSchema ?? {}) as Record<string, object | undefined>
  const shown = show(name)
  if (patternProperties) {
    const pattern = Object.keys(patternProperties)[0]
    return fail('invalid', `${label(field, part)}: ${shown} cannot be a key here; keys match ${pattern}`, { field })
  }
  const known = Object.keys(properties ?? {})
  const near = nearest(name, known)
  const what = part === 'query' ? 'query parameter' : 'field'
  const right = near
    ? `did you mean "${near}"?`
    : known.length > 0
      ? `known are ${known.slice(0, 30).join(', ')}`
      : `there is none to give here`
  return fail('invalid', `${label(field, part)}: there is no ${what} ${shown}; ${right}`, { field })
}

const TYPES: Record<string, string> = {
  string: 'text',
  integer: 'a whole number',
  number: 'a number',
  boolean: 'true or false',
  object: 'an object',
  array: 'a list',
  null: 'null',
}

type Described = { description?: string; pattern?: string }

function problem(error: ErrorObject, field: string): string {
  const { params, data } = error
  const schema = (error.parentSchema ?? {}) as Described & { properties?: Record<string, Described> }
  const hint = schema.description ? ` (${schema.description})` : ''
  const value = isSecret(field) ? 'the value' : show(data)
  switch (error.keyword) {
    case 'type': {
      const wanted = [params.type as string | string[]].flat().map((t) => TYPES[t] ?? t)
      return `${isSecret(field) ? 'it' : show(data)} is ${kindOf(data)}; ${wanted.join(' or ')} is needed${hint}`
    }
    case 'required': {
      const about = schema.properties?.[params.missingProperty as string]?.description
      return `it is missing${about ? ` (${about})` : ''}`
    }
    case 'minimum':
      return `${value} is too small; ${params.limit} is the least${hint}`
    case 'maximum':
      return `${value} is too large; ${params.limit} is the most${hint}`
    case 'minLength':
      return `${value} is too short; ${params.limit} characters are the least`
    case 'maxLength':
      return `it is too long (${(data as string).length} characters); ${params.limit} are the most`
    case 'minItems':
      return `${params.limit} entries are the least`
    case 'maxItems':
      return `${(data as unknown[]).length} entries are too many; ${params.limit} are the most`
    case 'minProperties':
      return `give at least ${params.limit === 1 ? 'one field' : `${params.limit} fields`}`
    case 'maxProperties':
      return `${params.limit} fields are the most`
    case 'pattern':
      if (schema.pattern === NAME_PATTERN && typeof data === 'string') return nameProblem(data) ?? 'not a name'
      return `${value} does not have the right form: ${schema.description ?? `it must match ${schema.pattern}`}`
    case 'enum':
      return `${value} is not one of ${list(params.allowedValues as unknown[])}${hint}`
    case 'const':
      return `${value} cannot be used; ${show(params.allowedValue)} is the only choice`
    case 'anyOf':
      return `${value} is not one of ${list((error.schema as { const: unknown }[]).map((b) => b.const))}${hint}`
    default:
      return `${value} cannot be used${hint}`
  }
}

const list = (values: readonly unknown[]) =>
  values.map((v) => (typeof v === 'string' ? v : JSON.stringify(v))).join(', ')
const isObject = (value: unknown): value is object => typeof value === 'object' && value !== null
/** Never repeated in an answer, and so in no log. */
const isSecret = (field: string) => /\/(password|code|secret|stdin)$/.test(field)

function kindOf(value: unknown): string {
  if (value === null) return 'null'
  if (Array.isArray(value)) return 'a list'
  if (typeof value === 'number') return 'a number'
  return TYPES[typeof value] ?? typeof value
}

function show(value: unknown): string {
  let text: string
  try {
    text = JSON.stringify(value) ?? String(value)
  } catch {
    // Nested deeper than the stack.
    return Array.isArray(value) ? '[…]' : '{…}'
  }
  return text.length > 80 ? `${text.slice(0, 77)}…` : text
}

/** RFC 6901. */
function child(path: string, name: string): string {
  return `${path}/${name.replaceAll('~', '~0').replaceAll('/', '~1')}`
}

function label(field: string, part: Part): string {
  const shown = field.length > 120 ? `${field.slice(0, 117)}…` : field
  if (part === 'query') return `query parameter ${shown.slice(1) || '(all)'}`
  if (part === 'params') return `path, ${shown.slice(1)}`
  return shown === '' ? 'the body' : shown
}
