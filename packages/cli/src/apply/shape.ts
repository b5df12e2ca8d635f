/**
 * What a document of `wadah apply` looks like: the fields of the contract's create requests, with sizes that carry a unit
 * (`memory: 512M`) and, for a VM, what it should be doing (`state`). Made from the contract, so a field that is new there is new here.
 */
import { FirewallGroupCreateSchema } from '@wadah/api/schema/firewall'
import { ImageBuildSchema, PoolCreateSchema } from '@wadah/api/schema/storage'
import { NetworkCreateSchema } from '@wadah/api/schema/network'
import { VmCreateSchema } from '@wadah/api/schema/vm'
import type { Schema } from './check.ts'

export const KINDS = ['pool', 'network', 'firewall-group', 'image', 'vm'] as const
export type Kind = (typeof KINDS)[number]

const plain = (schema: unknown) => schema as Schema
const props = (schema: unknown): Record<string, Schema> => plain(schema).properties ?? {}
const without = (from: Record<string, Schema>, ...keys: string[]) =>
  Object.fromEntries(Object.entries(from).filter(([key]) => !keys.includes(key)))

const size: Schema = {
  type: 'string',
  pattern: '^\\d+(\\.\\d+)?[KMGTkmgt](i?B)?$',
  description: 'a size with its unit, as 512M or 10G',
}
const text = (description: string): Schema => ({ type: 'string', minLength: 1, maxLength: 1024, description })
const document = (kind: Kind, properties: Record<string, Schema>, required: string[]): Schema => ({
  type: 'object',
  additionalProperties: false,
  properties: { kind: { const: kind }, ...properties },
  required: ['name', ...required],
})
const vmFields = props(VmCreateSchema)
const diskFields = props(vmFields['disks']?.items)
const seedFields = props(vmFields['seed'])
const [labelPattern, labelValue] = Object.entries(vmFields['labels']?.patternProperties ?? {})[0] ?? ['', {}]

export const SHAPES: Record<Kind, Schema> = {
  vm: document(
    'vm',
    {
      ...without(vmFields, 'start', 'wait_ready', 'memory_mib', 'disk_mib', 'balloon_mib', 'hostdevs'),
      memory: size,
      disk: size,
      balloon: size,
      labels: {
        type: 'object',
        additionalProperties: false,
        // `null` takes a label away.
        patternProperties: { [labelPattern]: { anyOf: [labelValue, { type: 'null' }] } },
      },
      disks: {
        type: 'array',
        maxItems: 16,
        items: {
          type: 'object',
          additionalProperties: false,
          properties: { ...without(diskFields, 'size_mib'), size },
        },
      },
      seed: {
        type: 'object',
        additionalProperties: false,
        properties: { ...seedFields, password_file: text('a file beside this one, whose first line is the password') },
      },
      state: { enum: ['running', 'stopped'], description: 'left out: as it is' },
    },
    [],
  ),
  // `kind` says what the document is; what the network is stands in `type`.
  network: document(
    'network',
    { ...without(props(NetworkCreateSchema), 'kind'), type: props(NetworkCreateSchema)['kind'] ?? {} },
    ['type'],
  ),
  'firewall-group': document('firewall-group', props(FirewallGroupCreateSchema), []),
  pool: document('pool', without(props(PoolCreateSchema), 'kind'), ['path']),
  image: document('image', props(ImageBuildSchema), ['recipe']),
}
