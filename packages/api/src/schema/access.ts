/** Who may do what: users, sessions, tokens, audit. */
import Type from 'typebox'
import { IdSchema, NameSchema } from '../ids.ts'
import { Closed } from './common.ts'

export const SCOPES = ['read', 'full'] as const
export type Scope = (typeof SCOPES)[number]
/** Who is asking, as far as it was proved. */
export type Subject = { kind: 'socket' | 'user' | 'token'; id: string; name: string; scope: Scope }

const password = Type.String({ minLength: 10, maxLength: 256 })
export const SetupSchema = Closed(
  { code: Type.String({ maxLength: 128 }), user: NameSchema, password },
  { title: 'Setup' },
)
export const SetupCodeSchema = Type.Object(
  { code: Type.String(), url: Type.String({ description: 'open it in a browser' }), expires_at: Type.String() },
  { title: 'SetupCode' },
)
export const LoginSchema = Closed(
  { user: Type.String({ maxLength: 63 }), password: Type.String({ maxLength: 256 }) },
  { title: 'Login' },
)
export const SessionSchema = Type.Object(
  { user: Type.String(), scope: Type.Enum(SCOPES), expires_at: Type.Optional(Type.String()) },
  { title: 'Session' },
)
export const TokenCreateSchema = Closed(
  {
    name: NameSchema,
    scope: Type.Enum(SCOPES),
    days: Type.Optional(
      Type.Integer({ minimum: 1, maximum: 3650, description: 'days until it ends; absent: it does not' }),
    ),
  },
  { title: 'TokenCreate' },
)
export const TokenSchema = Type.Object(
  {
    id: IdSchema,
    name: NameSchema,
    scope: Type.Enum(SCOPES),
    created_at: Type.String(),
    created_by: Type.String(),
    expires_at: Type.Optional(Type.String()),
    last_used_at: Type.Optional(Type.String()),
    /** Only in the answer to its creation. */
    secret: Type.Optional(Type.String()),
  },
  { title: 'Token' },
)
export type Token = Type.Static<typeof TokenSchema>
export const AuditSchema = Type.Object(
  {
    at: Type.String(),
    subject: Type.String(),
    method: Type.String(),
    path: Type.String(),
    status: Type.Integer(),
    code: Type.Optional(Type.String()),
    remote: Type.String(),
    request_id: Type.String(),
    suppressed: Type.Optional(
      Type.Integer({ description: 'tries without login left out before this entry, when there were too many' }),
    ),
  },
  { title: 'AuditEntry' },
)
export type AuditEntry = Type.Static<typeof AuditSchema>
