/** Copies of the store that the daemon makes by itself: one a day, the last few are kept. They hold all keys: only root reads them. */
import { chmod, mkdir, readdir, rename, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { syncDir } from '@wadah/host/system/files'

const EVERY_MS = 24 * 3_600_000
const LOOK_MS = 600_000
/** A daemon that has just started has more urgent things to do. */
const FIRST_MS = 60_000
const NAME = /^store-(\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d)Z\.db$/

/** Sorts as its time does. */
export const copyName = (now_ms: number): string =>
  `store-${new Date(now_ms).toISOString().slice(0, 19).replaceAll(':', '-')}Z.db`

/** Pure: whether one is due, and which go once it is made. A clock that went back makes no flood of them, and keeps none from being made. */
export function copyPlan(names: readonly string[], now_ms: number, keep: number): { due: boolean; surplus: string[] } {
  const copies = names.filter((n) => NAME.test(n)).toSorted()
  const times = copies.map((n) => Date.parse(`${NAME.exec(n)?.[1]?.replace(/T(\d\d)-(\d\d)-/, 'T$1:$2:')}Z`))
  const due = keep > 0 && !times.some((t) => Math.abs(now_ms - t) < EVERY_MS)
  return { due, surplus: copies.slice(0, Math.max(0, copies.length + Number(due) - keep)) }
}

/** Until `signal` aborts. One that fails is tried again, and holds up nothing. */
export async function keepCopies(o: {
  backup: (file: string) => Promise<void>
  dir: string
  keep: number
  now_ms: () => number
  log: (line: string) => void
  signal: AbortSignal
  first_ms?: number
}): Promise<void> {
  for (let pause_ms = o.first_ms ?? FIRST_MS; ; pause_ms = LOOK_MS) {
    await sleep(pause_ms, undefined, { signal: o.signal, ref: false }).catch(() => undefined)
    if (o.signal.aborted) return
    try {
      await makeCopy(o)
    } catch (error) {
      if (!o.signal.aborted) o.log(`the store could not be copied to ${o.dir}: ${(error as Error).message}`)
    }
  }
}

async function makeCopy({ backup, dir, keep, now_ms }: Parameters<typeof keepCopies>[0]): Promise<void> {
  await mkdir(dir, { recursive: true, mode: 0o700 })
  const names = await readdir(dir)
  const { due, surplus } = copyPlan(names, now_ms(), keep)
  if (due) {
    // Of a try that was cut off.
    for (const name of names.filter((n) => n.startsWith('making'))) await rm(join(dir, name), { force: true })
    const making = join(dir, 'making.db')
    await backup(making)
    await chmod(making, 0o600)
    await rename(making, join(dir, copyName(now_ms())))
    await syncDir(dir)
  }
  for (const name of surplus) await rm(join(dir, name), { force: true })
}
