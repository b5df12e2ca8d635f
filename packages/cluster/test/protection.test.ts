/** Protection, labels and what a clone does not take along. */
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import type { VmCreate } from '@wadah/api/schema/vm'
import { put } from '@wadah/store/store'
import { vmKind } from '../src/records.ts'
import { caller, room } from './kit/cluster.ts'

let r: Awaited<ReturnType<typeof room>>
beforeEach(async () => {
  r = await room()
})
afterEach(async () => {
  await r.close()
})
const create = (body: VmCreate) => r.done(r.vms.create(caller, body))
const names = (selector: string) =>
  r.vms
    .list(caller, { selector })
    .items.map((v) => v.name)
    .sort()

describe('a protected VM', () => {
  test('is not deleted, also not by force, until that is taken away', async () => {
    await create({ name: 'one', protected: true, start: true })
    for (const force of [false, true]) {
      await expect(r.vms.delete(caller, 'one', { force }, undefined)).rejects.toMatchObject({
        fault: { code: 'protected', effect: 'none', remedy: 'wadah vm edit one --unprotect' },
      })
    }
    await r.vms.edit(caller, 'one', { protected: false }, undefined)
    await r.done(r.vms.delete(caller, 'one', { force: true }, undefined))
    expect(r.vms.list(caller, {}).items).toEqual([])
  })
  test('stays protected when something else is edited; records of before are not', async () => {
    await create({ name: 'one', protected: true, autostart: { enabled: true, order: 5 } })
    const edited = await r.vms.edit(caller, 'one', { description: 'x', autostart: { delay_s: 9 } }, undefined)
    expect([edited.protected, edited.autostart]).toEqual([true, { enabled: true, order: 5, delay_s: 9 }])
    await create({ name: 'old' })
    const rec = r.view.get(vmKind, r.vms.get(caller, 'old').id)!
    expect('protected' in rec.value || 'autostart' in rec.value).toBe(false)
    expect(r.vms.get(caller, 'old')).toMatchObject({
      protected: false,
      autostart: { enabled: false, order: 100, delay_s: 0 },
    })
  })
  test('a clone is neither protected, nor started with the host, nor of the same set', async () => {
    await create({
      name: 'one',
      image: 'web',
      protected: true,
      autostart: { enabled: true },
      labels: { role: 'web', 'wadah.apply': 'shop' },
    })
    await r.done(r.vms.clone(caller, 'one', { name: 'two' }))
    expect(r.vms.get(caller, 'two')).toMatchObject({
      protected: false,
      autostart: { enabled: false },
      labels: { role: 'web' },
    })
    expect(r.vms.get(caller, 'two').labels['wadah.apply']).toBeUndefined()
  })
  test('when it becomes protected while its deletion is asked for, the deletion is refused', async () => {
    await create({ name: 'one' })
    const id = r.vms.get(caller, 'one').id
    const rec = r.view.get(vmKind, id)!
    // In the store, and not yet in the view that the deletion is judged by.
    const written = r.store.txn([], [put(vmKind, id, { ...rec.value, protected: true })], 'protect-at-once')
    await expect(r.vms.delete(caller, 'one', {}, undefined)).rejects.toMatchObject({ fault: { code: 'protected' } })
    await written
  })
})

test('VMs are listed by a selector', async () => {
  await create({ name: 'a', labels: { role: 'web', env: 'test' } })
  await create({ name: 'b', labels: { role: 'web' } })
  await create({ name: 'c' })
  expect([names('role=web'), names('role=web,env!=test'), names('!role')]).toEqual([['a', 'b'], ['b'], ['c']])
  expect(() => r.vms.list(caller, { selector: 'Role' })).toThrow(/no term of a selector/)
})
