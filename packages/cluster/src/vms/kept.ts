/** What snapshots keep of a machine beside its disks (UEFI variables): small, on its host alone, and goes along when the VM does. */
import { setTimeout as sleep } from 'node:timers/promises'
import { fail, toFault, WadahError } from '@wadah/api/fault'
import type { Deps } from '../context.ts'
import { hostName } from '../members/where.ts'
import { snapshotsOf } from './tied.ts'

export const KEPT_PATH = '/peer/v1/kept'
const ASK_MS = 30_000
const ASK_AGAIN_MS = 60_000
const ASK_PAUSE_MS = 1_000
/** With these it has said no. */
const DECIDED: ReadonlySet<string> = new Set([
  'gone',
  'not_owner',
  'wrong_state',
  'malformed',
  'not_found',
  'host_lacks',
  'invalid',
])

/** Of a target, just before the VM is its; once more where it did not answer. @throws WadahError, effect `none` */
export async function askTarget<T>(
  deps: Deps,
  to: string,
  path: string,
  body: unknown,
  signal: AbortSignal,
): Promise<T | undefined> {
  for (const end = performance.now() + ASK_AGAIN_MS; ; ) {
    try {
      return await deps.askHost?.<T>(to, path, body, ASK_MS)
    } catch (error) {
      // A daemon that is started anew or a store that looks for its leader: hours of copying are not thrown away for that.
      if (DECIDED.has(toFault(error).code) || performance.now() > end)
        throw new WadahError({ ...toFault(error), effect: 'none' }, error)
      await sleep(ASK_PAUSE_MS, undefined, { signal })
    }
  }
}

/** On the source, before the VM is the target's. Done twice is done once. @throws WadahError, effect `none` */
export async function bringKept(
  deps: Deps,
  { job, vm, to, epoch }: { job: string; vm: string; to: string; epoch: number },
  signal: AbortSignal,
): Promise<void> {
  for (const { id } of snapshotsOf(deps.view, vm)) {
    const state = await deps.machine.snapshots.readKept(vm, id)
    if (Object.keys(state).length === 0) continue
    try {
      await askTarget(deps, to, KEPT_PATH, { job, vm, epoch, snapshot: id, state }, signal)
    } catch (error) {
      const host = hostName(deps.view, to)
      if (toFault(error).code !== 'not_found') throw error
      throw fail('host_lacks', `${host} runs an older release, which does not take what snapshots keep of UEFI.`, {
        remedy: `upgrade ${host}`,
        cause: error,
      })
    }
  }
}
