/** An etcd that is full takes no writes, and is emptied. With a real one. */
import { randomUUID } from 'node:crypto'
import { systemClock } from '@wadah/store/clock'
import { EtcdAdmin } from '@wadah/store/etcd/admin'
import { EtcdClient } from '@wadah/store/etcd/client'
import { openEtcdStore } from '@wadah/store/etcd/etcd-store'
import { Upkeep, UPKEEP } from '@wadah/store/etcd/upkeep'
import { type Kind, put } from '@wadah/store/store'
import { committed } from '@wadah/store/testing/conformance'
import { afterAll, beforeAll, expect, test } from 'vitest'
import { Etcd } from './etcd-kit.ts'

const QUOTA = 16 * 2 ** 20
const etcd = new Etcd(undefined, ['--quota-backend-bytes', String(QUOTA)])
beforeAll(() => etcd.start())
afterAll(() => etcd.stop())

test('full of history: no write, a round, writes again; what is of now is there', async () => {
  const thing: Kind<{ text: string }> = { name: 'thing' }
  const store = await openEtcdStore({ endpoints: etcd.endpoints, clock: systemClock, prefix: '/full' })
  const client = new EtcdClient({ endpoints: etcd.endpoints, clock: systemClock })
  const admin = new EtcdAdmin(client, systemClock)
  const policy = { ...UPKEEP, quota_bytes: QUOTA }
  const upkeep = new Upkeep({ admin, clock: systemClock, endpoints: () => etcd.endpoints, policy })
  const write = (id: string, text: string) => store.txn([], [put(thing, id, { text })], randomUUID())
  try {
    committed(await write('kept', 'of before'))
    expect(await upkeep.round()).toEqual({ defragmented: [], disarmed: [], corrupt: [], full: [] })
    const big = 'x'.repeat(200_000)
    const fill = async () => {
      for (let i = 0; i < 500; i++) await write('big', `${i} ${big}`)
    }
    await expect(fill()).rejects.toMatchObject({ kind: 'no_room' })
    await expect(write('more', 'one word')).rejects.toMatchObject({ kind: 'no_room' })
    const report = await upkeep.round()
    expect(report).toMatchObject({ compacted: expect.any(Number), defragmented: etcd.endpoints, full: [] })
    expect(report.disarmed).toHaveLength(1)
    committed(await write('more', 'one word'))
    expect((await store.get(thing, 'kept'))?.value.text).toBe('of before')
    expect(await upkeep.round()).toMatchObject({ disarmed: [], full: [] })
  } finally {
    client.close()
    await store.close()
  }
}, 120_000)
