/** Exit codes of `wadah`: one small number for each class of outcome. docs/cli.md has the same table. */
import type { FaultCode } from '@wadah/api/fault'

export const EXIT = {
  ok: 0,
  failed: 1,
  usage: 2,
  not_found: 3,
  refused: 4,
  no_rights: 5,
  unreachable: 6,
  timeout: 7,
  no_room: 8,
  host_lacks: 9,
  /** `wadah vm exec` failed by itself: the guest's program never ran, or its end is not known. */
  exec: 125,
  interrupted: 130,
} as const
export type ExitName = keyof typeof EXIT

const CLASSES: Record<FaultCode, ExitName> = {
  invalid: 'usage',
  malformed: 'usage',
  method_not_allowed: 'usage',
  too_large: 'usage',
  unsupported_media_type: 'usage',
  precondition_required: 'usage',
  not_found: 'not_found',
  gone: 'not_found',
  name_taken: 'refused',
  address_taken: 'refused',
  port_taken: 'refused',
  in_use: 'refused',
  protected: 'refused',
  wrong_state: 'refused',
  busy: 'refused',
  too_late: 'refused',
  conflict: 'refused',
  not_owner: 'refused',
  idempotency_mismatch: 'refused',
  does_not_converge: 'refused',
  precondition_failed: 'refused',
  cancelled: 'refused',
  rate_limited: 'refused',
  unauthenticated: 'no_rights',
  forbidden: 'no_rights',
  unreachable: 'unreachable',
  unavailable: 'unreachable',
  timeout: 'timeout',
  agent_silent: 'timeout',
  memory_lost: 'failed',
  monitor_silent: 'timeout',
  no_room: 'no_room',
  host_lacks: 'host_lacks',
  image_corrupt: 'failed',
  build_failed: 'failed',
  agent_failed: 'failed',
  qemu_failed: 'failed',
  tool_failed: 'failed',
  download_failed: 'failed',
  store_failed: 'failed',
  internal: 'failed',
}

/** The exit code for a fault; 1 for a code this CLI does not know yet (a newer daemon). */
export function exitCode(code: string): number {
  return EXIT[CLASSES[code as FaultCode] ?? 'failed']
}
