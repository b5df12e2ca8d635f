/** Random requests made from an OpenAPI 3.1 document: most as the document wants them, the others wrong in one place. */
import fc from 'fast-check'

type Schema = { [key: string]: any }
export type Operation = {
  method: string
  path: string
  parameters: { name: string; in: string; required: boolean; schema: Schema }[]
  body?: { type: string; schema: Schema; required: boolean }
  responses: Record<string, { content?: Record<string, { schema: Schema }> }>
}
export type Request = {
  operation: Operation
  path: string
  headers: Record<string, string>
  body?: string
  spoilt: boolean
}

/** Few names, so that requests meet each other's things. */
const NAMES = ['ani', 'budi', 'citra', 'dewi', 'eko', 'fajar', 'gita', 'hadi']
const THERE = ['tiny', 'default', 'user']
const NAME_START = '^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$'
const ID = /^[a-z]+-[a-z2-7]{10}$/

export function operations(document: Schema): Operation[] {
  const deref = (value: any): any => {
    if (Array.isArray(value)) return value.map(deref)
    if (typeof value !== 'object' || value === null) return value
    if (typeof value.$ref === 'string')
      return deref(
        value.$ref
          .slice(2)
          .split('/')
          .reduce((at: any, key: string) => at[key], document),
      )
    return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, deref(inner)]))
  }
  return Object.entries(document['paths'] as Schema).flatMap(([path, methods]) =>
    Object.entries(methods as Schema).map(([method, raw]): Operation => {
      const operation = deref(raw)
      const content = operation.requestBody?.content as Schema | undefined
      const [type, media] = Object.entries(content ?? {})[0] ?? []
      return {
        method: method.toUpperCase(),
        path,
        parameters: operation.parameters ?? [],
        responses: operation.responses,
        ...(type === undefined
          ? {}
          : { body: { type, schema: media.schema, required: operation.requestBody.required === true } }),
      }
    }),
  )
}

/** Values that a schema takes; `field` and `limits` keep them small enough for a test machine. */
export function valueOf(
  schema: Schema,
  field: string,
  limits: Record<string, fc.Arbitrary<unknown>>,
): fc.Arbitrary<any> {
  const limit = limits[field]
  if (limit) return limit
  if (schema['const'] !== undefined) return fc.constant(schema['const'])
  if (schema['enum']) return fc.constantFrom(...(schema['enum'] as unknown[]))
  const union = (schema['anyOf'] ?? schema['oneOf']) as Schema[] | undefined
  if (union) return fc.oneof(...union.map((inner) => valueOf(inner, field, limits)))
  switch (schema['type']) {
    case 'boolean':
      return fc.boolean()
    case 'null':
      return fc.constant(null)
    case 'integer':
    case 'number': {
      const [min, max] = [schema['minimum'] ?? 0, schema['maximum'] ?? 2 ** 31]
      const number = (from: number, to: number) =>
        schema['type'] === 'integer'
          ? fc.integer({ min: from, max: to })
          : fc.double({ min: from, max: to, noNaN: true })
      return fc.oneof(
        { weight: 5, arbitrary: number(min, Math.min(max, min + 200)) },
        { weight: 1, arbitrary: number(min, max) },
      )
    }
    case 'string':
      return text(schema)
    case 'array':
      return fc.array(valueOf(schema['items'], field, limits), {
        minLength: schema['minItems'] ?? 0,
        maxLength: Math.min(schema['maxItems'] ?? 3, 3),
      })
    case 'object': {
      const required = new Set<string>(schema['required'] ?? [])
      const fields = Object.entries((schema['properties'] ?? {}) as Record<string, Schema>).map(([name, inner]) => {
        const value = valueOf(inner, name, limits)
        return required.has(name)
          ? value.map((v) => [[name, v]])
          : fc.oneof({ weight: 3, arbitrary: fc.constant([]) }, { weight: 1, arbitrary: value.map((v) => [[name, v]]) })
      })
      const [pattern, inner] = Object.entries((schema['patternProperties'] ?? {}) as Record<string, Schema>)[0] ?? []
      if (pattern !== undefined && inner)
        fields.push(
          fc.array(fc.tuple(fc.stringMatching(new RegExp(pattern)), valueOf(inner, '', limits)), { maxLength: 2 }),
        )
      return fc.tuple(...fields).map((all) => Object.fromEntries(all.flat() as [string, unknown][]))
    }
    default:
      return fc.jsonValue()
  }
}

function text(schema: Schema): fc.Arbitrary<string> {
  const { pattern, maxLength = 40, minLength = 0 } = schema
  if (pattern === NAME_START)
    return fc.oneof(
      { weight: 6, arbitrary: fc.constantFrom(...NAMES) },
      { weight: 2, arbitrary: fc.constantFrom(...THERE) },
      { weight: 1, arbitrary: fc.stringMatching(new RegExp(pattern)) },
    )
  if (pattern !== undefined) return fc.stringMatching(new RegExp(pattern)).map((s) => s.slice(0, maxLength))
  return fc.string({ unit: 'binary', minLength, maxLength: Math.min(maxLength, 60) })
}

/** One thing wrong in a body: an unknown field, a field of another type, a field left out, or no object at all. */
function spoil(value: any): fc.Arbitrary<string> {
  const keys = typeof value === 'object' && value !== null ? Object.keys(value) : []
  const key = keys.length > 0 ? fc.constantFrom(...keys) : fc.constant('name')
  const wrong = fc.oneof(
    fc.constantFrom<unknown>(null, -1, 2 ** 60, '', '../../etc/passwd', '\u0000', 'x'.repeat(5000), [], {}, true),
    fc.jsonValue(),
  )
  return fc.oneof(
    fc.tuple(key, wrong).map(([k, v]) => JSON.stringify({ ...value, [k]: v })),
    fc.tuple(fc.string({ maxLength: 20 }), wrong).map(([k, v]) => JSON.stringify({ ...value, [k]: v })),
    key.map((k) => JSON.stringify({ ...value, [k]: undefined })),
    fc.jsonValue().map((v) => JSON.stringify(v)),
    fc.constantFrom('', '{', '[]', '{"a":1,}', '"', '{"__proto__":{"a":1}}', '\ufeff{}', '{"name":"a","name":"b"}'),
  )
}

export type FuzzOptions = {
  limits: Record<string, fc.Arbitrary<unknown>>
  /** How much more often than others an operation is asked for. */
  weight(operation: Operation): number
}

export function requests(all: readonly Operation[], o: FuzzOptions): fc.Arbitrary<Request> {
  const one = (operation: Operation): fc.Arbitrary<Request> => {
    const parameter = (place: string) =>
      fc.tuple(
        ...operation.parameters
          .filter((p) => p.in === place)
          .map((p) => {
            const any = valueOf(p.schema, p.name, o.limits).map((v) => String(v))
            // What is asked for by its name is there more often than what is about to be made.
            const named = place === 'path' && p.schema['pattern'] === NAME_START
            const right = named ? fc.oneof(fc.constantFrom(...THERE), { weight: 2, arbitrary: any }) : any
            const wrong = fc.oneof(
              fc.string({ maxLength: 30 }),
              fc.constantFrom('..', '%00', 'vm-aaaaaaaaaa', '-1', ''),
            )
            const value = fc.oneof({ weight: 9, arbitrary: right }, { weight: 1, arbitrary: wrong })
            const kept = p.required ? value : fc.option(value, { nil: undefined, freq: 2 })
            return kept.map((v) => [p.name, v] as const)
          }),
      )
    const body: fc.Arbitrary<{ text?: string; spoilt: boolean }> = !operation.body
      ? fc.constant({ spoilt: false })
      : operation.body.type !== 'application/json'
        ? fc.string({ maxLength: 2000 }).map((s) => ({ text: s, spoilt: true }))
        : valueOf(operation.body.schema, '', o.limits).chain((value) =>
            fc.oneof(
              { weight: 3, arbitrary: fc.constant({ text: JSON.stringify(value), spoilt: false }) },
              { weight: 1, arbitrary: spoil(value).map((s) => ({ text: s, spoilt: true })) },
            ),
          )
    const type = fc.oneof(
      { weight: 30, arbitrary: fc.constant(operation.body?.type) },
      { weight: 1, arbitrary: fc.constantFrom('text/plain', 'application/xml', 'application/json; charset=latin1') },
    )
    return fc
      .tuple(parameter('path'), parameter('query'), body, type)
      .map(([path, query, { text, spoilt }, contentType]) => {
        const at = path.reduce((p, [name, v]) => p.replace(`{${name}}`, encodeURIComponent(v ?? '')), operation.path)
        const search = query
          .flatMap(([name, v]) => (v === undefined ? [] : [`${name}=${encodeURIComponent(v)}`]))
          .join('&')
        return {
          operation,
          path: search === '' ? at : `${at}?${search}`,
          headers: text === undefined || contentType === undefined ? {} : { 'content-type': contentType },
          ...(text === undefined ? {} : { body: text }),
          spoilt,
        }
      })
  }
  return fc.oneof(...all.map((operation) => ({ weight: o.weight(operation), arbitrary: one(operation) })))
}

export const isId = (text: string): boolean => ID.test(text)
