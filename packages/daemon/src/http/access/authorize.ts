/** The one place that decides who may do what. */
import type { Needs } from '@wadah/api/endpoint'
import { fail } from '@wadah/api/fault'
import type { Subject } from '@wadah/api/schema/access'

/** What is asked for: an endpoint's id and what it needs. */
export type Action = { id: string; needs: Needs }
/** What it is asked of. There is one project today; rules per project find their place here. */
export type Resource = { project: string; ref?: string }

/** Actions that only who is on the machine itself may take. */
const LOCAL_ONLY = new Set(['access.setupCode'])

/** @throws WadahError `unauthenticated`, `forbidden` */
export function authorize(subject: Subject | undefined, action: Action, _resource: Resource): void {
  if (action.needs === 'none') return
  if (!subject) {
    throw fail('unauthenticated', 'This needs a login, an API token, or the UNIX socket of the daemon.', {
      remedy: 'log in, or send `Authorization: Bearer wadah_…` (make one with: wadah token create)',
    })
  }
  if (LOCAL_ONLY.has(action.id) && subject.kind !== 'socket') {
    throw fail('forbidden', 'This is possible only over the UNIX socket of the daemon, on the host itself.')
  }
  if (action.needs === 'full' && subject.scope !== 'full') {
    throw fail('forbidden', `"${subject.name}" may only look; ${action.id} needs the scope "full".`, {
      remedy: 'use a token with full scope: wadah token create NAME --scope full',
    })
  }
}
