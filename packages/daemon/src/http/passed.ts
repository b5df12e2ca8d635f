/** Who asks, as one host tells another. Only believed on a connection that proved to be a host of the cluster. */
import type { IncomingHttpHeaders } from 'node:http'
import { fail } from '@wadah/api/fault'
import { SCOPES, type Subject } from '@wadah/api/schema/access'

export const SUBJECT_HEADER = 'wadah-subject'

export const passSubject = (subject: Subject): string => Buffer.from(JSON.stringify(subject)).toString('base64url')

/** @throws WadahError `malformed` */
export function passedSubject(headers: IncomingHttpHeaders): Subject {
  const text = headers[SUBJECT_HEADER]
  try {
    const s = JSON.parse(Buffer.from(String(text), 'base64url').toString('utf8')) as Subject
    if (
      ['socket', 'user', 'token'].includes(s.kind) &&
      typeof s.id === 'string' &&
      typeof s.name === 'string' &&
      SCOPES.includes(s.scope)
    )
      return { kind: s.kind, id: s.id, name: s.name, scope: s.scope }
  } catch {
    // Said below.
  }
  throw fail('malformed', `A host passed a request on without saying who asks (${SUBJECT_HEADER}).`)
}
