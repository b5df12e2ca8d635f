/** Each host says of itself whether a network is up; two that differ do not write one record in turn. */
import { randomBytes } from 'node:crypto'
import { CachedView } from '@wadah/store/cache'
import { systemClock } from '@wadah/store/clock'
import { del, put } from '@wadah/store/store'
import { openMemoryStore } from '@wadah/store/testing/memory'
import { expect, onTestFinished, test } from 'vitest'
import { aliveKind } from '../../src/members/records.ts'
import { downOn, forgetStates, recordStates, stateOf } from '../../src/networks/states.ts'
import { hostKind, networkDownKind, networkKind } from '../../src/records.ts'

const [A, B] = ['host-aaaaaaaaaa', 'host-bbbbbbbbbb']
const NET = 'net-aaaaaaaaaa'
const down = { id: NET, state: 'down' as const, reason: 'There is no bridge lan0.' }
const up = { id: NET, state: 'up' as const }

async function hosts(...ids: string[]) {
  const store = openMemoryStore()
  await store.txn(
    [],
    [
      // As release 0.1.0 wrote it.
      put(networkKind, NET, { schema: 1, id: NET, name: 'lan', state: 'down', reason: 'long ago' } as never),
      ...ids.flatMap((id, i) => [
        put(hostKind, id, { schema: 1, id, name: `h${i + 1}`, created_at: '' }),
        put(aliveKind, id, { schema: 1, host: id, since_ms: 0 }),
      ]),
    ],
    'ground',
  )
  const view = await CachedView.open(store, { clock: systemClock })
  onTestFinished(async () => {
    await view.close()
    await store.close()
  })
  const says = (hostId: string, ...states: Parameters<typeof recordStates>[1]) =>
    recordStates({ store, view, randomBytes, hostId }, states)
  const write = async (...writes: Parameters<typeof store.txn>[1]) => {
    const done = await store.txn([], writes, randomBytes(8).toString('hex'))
    if (done.ok) await view.waitFor(done.revision)
  }
  return { store, view, says, write }
}

test('alone it is as this host says, and what an older release wrote counts no more', async () => {
  const { view, says } = await hosts(A)
  expect(stateOf(view, NET)).toEqual({ state: 'up' })
  await says(A, down)
  expect(stateOf(view, NET)).toEqual({ state: 'down', reason: down.reason })
  await says(A, up)
  expect(stateOf(view, NET)).toEqual({ state: 'up' })
})

test('two hosts that differ write nothing once each has said it, and never the network itself', async () => {
  const { store, view, says } = await hosts(A, B)
  const before = view.get(networkKind, NET)?.modified
  await says(A, up)
  await says(B, down)
  const settled = await store.current()
  for (let i = 0; i < 3; i++) {
    await says(A, up)
    await says(B, down)
  }
  expect(await store.current()).toBe(settled)
  expect(view.get(networkKind, NET)?.modified).toBe(before)
  expect(stateOf(view, NET)).toEqual({ state: 'down', reason: 'on h2: There is no bridge lan0.' })
  expect([downOn(view, NET, A), downOn(view, NET, B)?.host]).toEqual([undefined, B])
})

test('a host that is not there says nothing; of a network or a host that goes nothing stays', async () => {
  const { view, says, write } = await hosts(A, B)
  await says(B, down)
  await write(del(aliveKind, B))
  expect(stateOf(view, NET)).toEqual({ state: 'up' })
  expect(forgetStates(view, { host: A })).toEqual([])
  expect(forgetStates(view, { host: B })).toEqual(forgetStates(view, { network: NET }))
  await write(...forgetStates(view, { host: B }), del(networkKind, NET))
  expect(view.list(networkDownKind)).toEqual([])
  await says(A, down)
  expect(view.list(networkDownKind)).toEqual([])
})
