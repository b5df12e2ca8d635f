/** What every resource has. */
import Type from 'typebox'
import { IdSchema, NameSchema } from '../ids.ts'

/** An object that refuses fields it does not know. */
export function Closed<T extends Type.TProperties>(properties: T, options: Type.TObjectOptions = {}) {
  return Type.Object(properties, { ...options, additionalProperties: false })
}

export const metaFields = {
  id: IdSchema,
  name: NameSchema,
  project: NameSchema,
  /** Grows by one with every change of what is wanted; `If-Match` and compare-and-swap use it. */
  generation: Type.Integer({ minimum: 1 }),
  created_at: Type.String({ description: 'RFC 3339' }),
}

export const LabelsSchema = Type.Record(
  Type.String({ pattern: '^[a-z0-9]([a-z0-9./_-]{0,61}[a-z0-9])?$' }),
  Type.String({ maxLength: 255 }),
  { maxProperties: 64, additionalProperties: false, description: 'free key-value marks' },
)
export const DescriptionSchema = Type.String({ maxLength: 4096 })

export const IPV4_PATTERN = '^((25[0-5]|2[0-4]\\d|1?\\d?\\d)\\.){3}(25[0-5]|2[0-4]\\d|1?\\d?\\d)$'
export const Ipv4Schema = Type.String({ pattern: IPV4_PATTERN, description: 'IPv4 address, as 192.168.5.7' })
export const MacSchema = Type.String({
  pattern: '^[0-9a-f][26ae](:[0-9a-f]{2}){5}$',
  description: 'locally administered unicast MAC, lower case',
})

export const PageQuerySchema = {
  limit: Type.Optional(Type.Integer({ minimum: 1, maximum: 1000, default: 100 })),
  cursor: Type.Optional(Type.String({ maxLength: 512 })),
}
/** A page of a list. `next` is absent on the last one. */
export function PageOf<T extends Type.TSchema>(item: T, title: string) {
  return Type.Object({ items: Type.Array(item), next: Type.Optional(Type.String()) }, { title })
}
