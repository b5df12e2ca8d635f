/** What a snapshot with RAM is, shown on the web server: its page and something in its memory change, and come back. */
import { setTimeout as delay } from 'node:timers/promises'
import { endpoints } from '@wadah/api/endpoints/all'
import { WadahError, fail } from '@wadah/api/fault'
import { runJob, type Work } from './ensure.ts'
import type { DemoSnapshot } from './plan.ts'

const NAME = 'demo'
const PAGE = '/var/www/html/index.html'
/** On a file system in memory: no disk knows of it. */
const MARK = '/run/wadah-demo'
const AGAIN_MS = 300
const READY_MS = 120_000
const BACK_MS = 60_000

/** Takes it, changes things, goes back, and looks. @throws WadahError when what came back is not what was */
export async function showSnapshot(work: Work, vm: string): Promise<DemoSnapshot> {
  const { api, cli, signal } = work
  const params = { vm, snapshot: NAME }
  const run = async (...argv: string[]): Promise<string> => {
    const done = await api.call(endpoints.vms.exec, { params: { vm }, body: { argv, timeout_ms: 20_000 }, signal })
    return Buffer.from(done.stdout, 'base64').toString('utf8')
  }
  await ready(work, READY_MS, async () => (await run('true')) === '')
  await run('sh', '-c', `echo here > ${MARK}`)
  const before = await run('cat', PAGE)
  const { items } = await api.call(endpoints.snapshots.list, { params: { vm }, signal })
  if (items.some((s) => s.name === NAME)) await runJob(work, api.call(endpoints.snapshots.delete, { params, signal }))
  const taken = await runJob(
    work,
    api.call(endpoints.snapshots.create, { params: { vm }, body: { name: NAME, ram: true }, signal }),
  )
  const { consistency, stall_ms = 0 } = taken.result as { consistency: string; stall_ms?: number }
  if (consistency !== 'ram')
    throw fail('qemu_failed', `The RAM of ${vm} was not saved.`, { remedy: `wadah snapshot show ${vm} ${NAME}` })
  await run('sh', '-c', `echo gone > ${PAGE}; sync; rm ${MARK}`)
  const began = cli.io.now()
  await runJob(work, api.call(endpoints.snapshots.revert, { params, body: { force: true }, signal }))
  const revert_ms = Math.round(cli.io.now() - began)
  await ready(work, BACK_MS, async () => (await run('cat', MARK)) === 'here\n')
  if ((await run('cat', PAGE)) !== before)
    throw fail('internal', `The page of ${vm} is not what it was at the snapshot.`)
  return { vm, name: NAME, stall_ms: Math.round(stall_ms), revert_ms }
}

/** The agent of a guest that has just come up, or gone back, needs a moment. */
async function ready({ cli, signal }: Work, most_ms: number, look: () => Promise<boolean>): Promise<void> {
  const deadline = cli.io.now() + most_ms
  for (;;) {
    const seen = await look().catch((error: unknown) => {
      signal.throwIfAborted()
      if (error instanceof WadahError && cli.io.now() < deadline) return false
      throw error
    })
    if (seen) return
    if (cli.io.now() > deadline) throw fail('timeout', 'The guest is not what it was at the snapshot.')
    await delay(AGAIN_MS, undefined, { signal })
  }
}
