/**
 * Stores of earlier releases, as their daemons wrote them: every later release opens them and shows what is in them as it was meant.
 * A new release adds a folder (`wadah store backup`); none is ever changed. What is new in an answer may be there besides.
 */
import { randomBytes } from 'node:crypto'
import {
  chmodSync,
  copyFileSync,
  existsSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { systemClock } from '@wadah/store/clock'
import { openSqliteStore } from '@wadah/store/sqlite/sqlite-store'
import { describe, expect, test } from 'vitest'
import { openCluster } from '../src/cluster.ts'
import { hostKind } from '../src/records.ts'
import { CONFIG, caller } from './kit/cluster.ts'
import { FakeWorld, fakeMachine } from './kit/fake-machine.ts'

const FOLDER = join(import.meta.dirname, 'fixtures')

describe.each(readdirSync(FOLDER))('the store of %s', (release) => {
  test('opens, and says what it said', async () => {
    const dir = mkdtempSync(join(tmpdir(), 'wadah-fixture-'))
    const file = join(dir, 'store.db')
    copyFileSync(join(FOLDER, release, 'store.db'), file)
    chmodSync(file, 0o600)
    const store = await openSqliteStore({ file })
    // No boot since: nothing starts by itself.
    const world = new FakeWorld()
    const hosts = await store.list(hostKind, { limit: 1 })
    world.boot = (hosts.type === 'page' ? hosts.items[0]?.value.boot?.id : undefined) ?? world.boot
    const cluster = await openCluster({
      store,
      machine: fakeMachine(world),
      clock: systemClock,
      randomBytes,
      config: CONFIG,
      version: '0',
      defaultPoolPath: join(dir, 'pool'),
      jobLogs: join(dir, 'jobs'),
      lanes: { start: 8, build: 2, create: 16 },
      log: () => {},
      onUnforeseen: (error) => {
        throw error
      },
    })
    try {
      await cluster.view.waitFor(await store.current())
      const { vms, networks, storage, images, jobs } = cluster.services
      // A single one has more than its place in a list.
      const all = {
        vms: vms.list(caller, {}).items.map((vm) => withoutNow(vms.get(caller, vm.id))),
        networks: networks.list(caller, {}).items,
        volumes: storage.listVolumes(caller, {}).items,
        images: images.list(caller, {}).items,
        jobs: jobs.list(caller, {}).items,
      }
      const said = join(FOLDER, release, 'said.json')
      // Written once, when the release is added.
      if (!existsSync(said) && process.env['UPDATE_GOLDEN']) writeFileSync(said, `${JSON.stringify(all, null, 2)}\n`)
      expect(all).toMatchObject(JSON.parse(readFileSync(said, 'utf8')) as object)
      // And it can be worked with.
      await vms.edit(caller, 'empty', { description: 'opened by a later release' }, undefined)
      expect(vms.get(caller, 'empty').description).toBe('opened by a later release')
    } finally {
      await cluster.stop()
      await store.close()
      rmSync(dir, { recursive: true, force: true })
    }
  })
})

/** Its state is what this machine sees now, not what the store remembers. */
function withoutNow(vm: { status: unknown; actions?: unknown }): object {
  return Object.fromEntries(Object.entries(vm).filter(([key]) => key !== 'status' && key !== 'actions'))
}
