/** What is asked of the guest agent, and consoles. */
import Type from 'typebox'
import { Closed } from './common.ts'

const base64 = (max: number) =>
  Type.String({ pattern: '^[A-Za-z0-9+/]*={0,2}$', maxLength: max, description: 'base64' })
export const ExecSchema = Closed(
  {
    argv: Type.Array(Type.String({ maxLength: 65_536 }), { minItems: 1, maxItems: 1024 }),
    stdin: Type.Optional(base64(16 * 1024 * 1024)),
    env: Type.Optional(
      Type.Array(Type.String({ maxLength: 65_536, pattern: '^[A-Za-z_][A-Za-z0-9_]*=', description: 'NAME=value' }), {
        maxItems: 256,
      }),
    ),
    timeout_ms: Type.Optional(Type.Integer({ minimum: 100, maximum: 3_600_000, default: 60_000 })),
  },
  { title: 'Exec' },
)
export type Exec = Type.Static<typeof ExecSchema>
export const ExecResultSchema = Type.Object(
  {
    exit_code: Type.Optional(Type.Integer()),
    signal: Type.Optional(Type.Integer()),
    stdout: Type.String({ description: 'base64' }),
    stderr: Type.String({ description: 'base64' }),
    truncated: Type.Boolean({ description: 'QEMU guest agent keeps 16 MiB of each' }),
  },
  { title: 'ExecResult' },
)
export type ExecResult = Type.Static<typeof ExecResultSchema>
export const GuestInfoSchema = Type.Object(
  {
    agent_version: Type.String(),
    os: Type.Optional(Type.Object({ name: Type.String(), version: Type.String(), kernel: Type.String() })),
    interfaces: Type.Array(
      Type.Object({ name: Type.String(), mac: Type.Optional(Type.String()), addresses: Type.Array(Type.String()) }),
    ),
    frozen: Type.Boolean(),
  },
  { title: 'GuestInfo' },
)
export type GuestInfo = Type.Static<typeof GuestInfoSchema>
export const ConsoleSchema = Closed(
  {
    kind: Type.Union([Type.Literal('serial'), Type.Literal('vnc')]),
    port: Type.Optional(Type.Integer({ minimum: 0, maximum: 3, default: 0, description: 'which serial port, from 0' })),
  },
  { title: 'ConsoleRequest' },
)
export const ConsoleTicketSchema = Type.Object(
  {
    ticket: Type.String({ description: 'good for one connection, within a minute' }),
    path: Type.String({ description: 'WebSocket path, ticket included' }),
    expires_at: Type.String(),
  },
  { title: 'ConsoleTicket' },
)
export const VmLogSchema = Type.Object(
  { text: Type.String({ description: 'end of what the guest wrote to its serial port' }), size_bytes: Type.Integer() },
  { title: 'VmLog' },
)
export const HealthSchema = Type.Object(
  { ok: Type.Boolean(), detail: Type.String(), took_ms: Type.Integer() },
  { title: 'Health' },
)
