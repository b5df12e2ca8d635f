/** A store in a folder of its own and an engine on it; `restart` is what a crash and a new daemon are. */
import { randomBytes } from 'node:crypto'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { AnyDefinition } from '@wadah/cluster/jobs/define'
import { type EngineOptions, JobEngine } from '@wadah/cluster/jobs/engine'
import type { Store } from '@wadah/store/store'
import { openSqliteStore } from '@wadah/store/sqlite/sqlite-store'
import { afterEach } from 'vitest'

export const quick = {
  retry: { attempts: 0, base_ms: 1, cap_ms: 5 },
  slow: { attempts: 0, base_ms: 2, cap_ms: 10 },
}
export const target = { kind: 'vm', id: 'vm-aaaaaaaaaa', name: 'web' }
export const by = { subject: 'root', target }

export type Rig<D> = {
  store: Store
  engine: JobEngine<D>
  trouble: unknown[]
  logDir: string
  /** Another engine on the same store; the first is left as it is, or stopped before. */
  another: (o?: Partial<EngineOptions<D>>) => JobEngine<D>
}

const cleanups: (() => Promise<void>)[] = []
afterEach(async () => {
  for (const cleanup of cleanups.splice(0)) await cleanup()
})

export async function rig<D>(
  definitions: AnyDefinition<D>[],
  deps: D,
  options: Partial<EngineOptions<D>> = {},
): Promise<Rig<D>> {
  const dir = mkdtempSync(join(tmpdir(), 'wadah-jobs-'))
  const store = await openSqliteStore({ file: join(dir, 'store.db') })
  const trouble: unknown[] = []
  const engines: JobEngine<D>[] = []
  const another = (o: Partial<EngineOptions<D>> = {}) => {
    const engine = new JobEngine<D>({
      store,
      hostId: 'host-a',
      definitions,
      deps,
      logDir: join(dir, 'logs'),
      randomBytes,
      patience: quick,
      onUnforeseen: (error) => trouble.push(error),
      ...options,
      ...o,
    })
    engines.push(engine)
    return engine
  }
  cleanups.push(async () => {
    for (const engine of engines) await engine.stop(200)
    await store.close()
    rmSync(dir, { recursive: true, force: true })
  })
  return { store, engine: another(), trouble, logDir: join(dir, 'logs'), another }
}
