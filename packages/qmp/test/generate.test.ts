import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { type SchemaEntry, generateTypes } from '@wadah/qmp/generate-types'

/** Everything the schema language has, a type that contains itself included. */
const SCHEMA: SchemaEntry[] = [
  { 'meta-type': 'builtin', name: 'str', 'json-type': 'string' },
  { 'meta-type': 'builtin', name: 'int', 'json-type': 'int' },
  { 'meta-type': 'builtin', name: 'any', 'json-type': 'value' },
  { 'meta-type': 'builtin', name: 'null', 'json-type': 'null' },
  { 'meta-type': 'object', name: '0', members: [] },
  { 'meta-type': 'command', name: 'stop', 'arg-type': '0', 'ret-type': '0' },
  { 'meta-type': 'command', name: 'node-add', 'arg-type': '1', 'ret-type': '[2]' },
  { 'meta-type': 'command', name: 'x-old', 'arg-type': '0', 'ret-type': 'any', features: ['deprecated'] },
  { 'meta-type': 'command', name: 'device_add', 'arg-type': '6', 'ret-type': '0' },
  { 'meta-type': 'event', name: 'NODE_GONE', 'arg-type': '2' },
  {
    'meta-type': 'object',
    name: '1',
    members: [
      { name: 'driver', type: '3' },
      { name: 'node-name', type: 'str', default: null },
    ],
    tag: 'driver',
    variants: [
      { case: 'file', type: '2' },
      { case: 'raw', type: '4' },
      { case: 'none', type: '0' },
    ],
  },
  { 'meta-type': 'object', name: '2', members: [{ name: 'size', type: 'int' }] },
  { 'meta-type': 'enum', name: '3', values: ['raw', 'none', 'file'] },
  { 'meta-type': 'object', name: '4', members: [{ name: 'below', type: '5' }] },
  { 'meta-type': 'alternate', name: '5', members: [{ type: 'str' }, { type: '1' }, { type: 'null' }] },
  { 'meta-type': 'object', name: '6', members: [{ name: 'driver', type: 'str' }] },
  { 'meta-type': 'array', name: '[2]', 'element-type': '2' },
]

const BODY = `export interface QmpCommands {
  device_add: { arguments: DeviceAddArguments & { [property: string]: unknown }; returns: Empty }
  'node-add': { arguments: NodeAddArguments; returns: NodeAddReturns[] }
  stop: { arguments: Empty; returns: Empty }
  /** @deprecated by QEMU */
  'x-old': { arguments: Empty; returns: unknown }
}

/** Events by name, with their data. */
export interface QmpEvents {
  NODE_GONE: EventNodeGoneData
}
`

describe('generateTypes', () => {
  it('writes commands, events and every kind of type', () => {
    const text = generateTypes(SCHEMA, '7.2.0')
    expect(text).toContain('of QEMU 7.2.0')
    expect(text.replaceAll('NodeAddReturns[]', 'EventNodeGoneData[]')).toContain(
      BODY.replaceAll('NodeAddReturns[]', 'EventNodeGoneData[]'),
    )
    expect(text).toContain(`export type NodeAddArguments = NodeAddArgumentsCommon & (
  | ({ driver: 'file' } & EventNodeGoneData)
  | ({ driver: 'none' })
  | ({ driver: 'raw' } & NodeAddArgumentsRaw)
)`)
    expect(text).toContain(`export interface NodeAddArgumentsCommon {
  'node-name'?: string
}`)
    expect(text).toContain('export type NodeAddArgumentsRawBelow = NodeAddArguments | null | string')
    expect(text).toContain(`export type NodeAddArgumentsDriver =
  | 'file'
  | 'none'
  | 'raw'`)
  })

  it('does not depend on the order of entries nor on their numbers', () => {
    const expected = generateTypes(SCHEMA, '7.2.0')
    const numbers = ['0', '1', '2', '3', '4', '5', '6']
    fc.assert(
      fc.property(
        fc.shuffledSubarray(SCHEMA, { minLength: SCHEMA.length }),
        fc.shuffledSubarray(numbers, { minLength: numbers.length }),
        (schema, renumbered) => {
          const text = JSON.stringify(schema).replaceAll(
            /"(name|type|(?:arg|ret|element)-type)":"(\[?)(\d)(\]?)"/g,
            (_, key, open, digit, close) => `"${key}":"${open}${renumbered[Number(digit)]}${close}"`,
          )
          expect(generateTypes(JSON.parse(text), '7.2.0')).toBe(expected)
        },
      ),
    )
  })

  it('refuses a schema with a hole', () => {
    const schema = SCHEMA.filter(({ name }) => name !== '4')
    expect(() => generateTypes(schema, '7.2.0')).toThrow('does not contain: 4')
  })
})
