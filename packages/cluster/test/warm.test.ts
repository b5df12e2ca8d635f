/** Warm images over a fake machine: what is refused, what is recorded, what stands in the way. */
import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import { put } from '@wadah/store/store'
import { imageKind, indexKind } from '../src/records.ts'
import { BASE, IMAGE, POOL, caller, room } from './kit/cluster.ts'

describe('warm images', () => {
  let r: Awaited<ReturnType<typeof room>>
  beforeEach(async () => {
    r = await room()
    const image = r.view.get(imageKind, IMAGE)
    if (!image) throw new Error('no image')
    await r.store.txn([], [put(imageKind, IMAGE, { ...image.value, recipe: 'web-server' })], 'recipe')
    await r.view.waitFor(await r.store.current())
  })
  afterEach(async () => {
    await r.close()
  })
  const warm = () => r.done(r.warm.warm(caller, 'web', {}))
  const clone = (more: object = {}) =>
    r.vms.create(caller, { name: 'one', image: 'web', start: true, instant: true, ...more })

  test('the template is recorded, its user is given back, and a clone stands on its disk', async () => {
    await warm()
    const image = r.images.get(caller, 'web')
    expect(image.warm).toMatchObject({ cpus: 1, memory_mib: 512 })
    expect(JSON.stringify(image)).not.toContain('devices')
    expect(r.view.list(indexKind, 'uid/')).toEqual([])
    await r.done(clone())
    const vm = r.vms.get(caller, 'one')
    expect(vm.spec).toMatchObject({ cpus: 1, memory_mib: 512 })
    const layer = r.view.get(imageKind, IMAGE)?.value.warm?.volume
    expect(layer).not.toBe(BASE)
    expect((await r.storage.getVolume(caller, 'one-root')).base).toBe(layer)
    expect([...r.world.connected]).toEqual([vm.id])
    await expect(r.warm.unwarm(caller, 'web')).rejects.toMatchObject({ fault: { code: 'in_use' } })
    await expect(r.images.delete(caller, 'web', undefined)).rejects.toMatchObject({ fault: { code: 'in_use' } })
    await r.done(r.vms.delete(caller, 'one', { force: true, keep_disks: false }, undefined))
    await r.done(r.warm.unwarm(caller, 'web'))
    expect(r.images.get(caller, 'web').warm).toBeUndefined()
    expect([...r.world.files]).toEqual([`${POOL}/${BASE}.qcow2`])
    expect([...r.world.warm]).toEqual([])
  })

  test('an image goes with its template', async () => {
    await warm()
    await r.done(r.images.delete(caller, 'web', undefined))
    expect([...r.world.files, ...r.world.warm]).toEqual([])
  })

  test('a clone that came between asking for the end of the template and it: it stays warm', async () => {
    await warm()
    const [made, unwarmed] = await Promise.allSettled([r.done(clone()), r.warm.unwarm(caller, 'web')])
    // One of the two was refused, and what there is agrees with it.
    if (made.status === 'fulfilled') {
      if (unwarmed.status === 'fulfilled') {
        const ended = await r.cluster.engine.wait(unwarmed.value.id, { timeout_ms: 10_000 })
        expect(ended.state).toBe('failed')
        await r.view.waitFor(await r.store.current())
      }
      expect(r.images.get(caller, 'web').warm).toBeDefined()
      expect(r.world.warm.size).toBe(1)
    } else expect(unwarmed.status).toBe('fulfilled')
  })

  test.each([
    [{ start: false }, '/start'],
    [{ cpus: 2 }, '/cpus'],
    [{ memory_mib: 1024 }, '/memory_mib'],
    [{ firmware: { kind: 'uefi', secure_boot: false } }, '/firmware'],
    [{ clone: 'full' }, '/clone'],
    [{ disk_mib: 4096 }, '/disk_mib'],
    [{ disks: [{ size_mib: 64 }] }, '/disks'],
    [{ boot_order: ['root'] }, '/boot_order'],
    [{ balloon_mib: 128 }, '/balloon_mib'],
    [{ seed: { kind: 'nocloud' } }, '/seed/kind'],
    [{ nics: [] }, '/nics'],
    [{ nics: [{ name: 'lan' }] }, '/nics/0/name'],
  ])('%j is refused', async (body, field) => {
    await warm()
    await expect(clone(body)).rejects.toMatchObject({ fault: { code: 'invalid', field } })
  })

  test('not warm, warm already, not built from a recipe', async () => {
    await expect(clone()).rejects.toMatchObject({ fault: { code: 'wrong_state', field: '/instant' } })
    await expect(r.warm.unwarm(caller, 'web')).rejects.toMatchObject({ fault: { code: 'wrong_state' } })
    await warm()
    await expect(r.warm.warm(caller, 'web', {})).rejects.toMatchObject({ fault: { code: 'wrong_state' } })
    await r.done(r.warm.unwarm(caller, 'web'))
    const image = r.view.get(imageKind, IMAGE)
    if (!image) throw new Error('no image')
    const { recipe: _, ...strange } = image.value
    await r.store.txn([], [put(imageKind, IMAGE, strange)], 'strange')
    await r.view.waitFor(await r.store.current())
    await expect(r.warm.warm(caller, 'web', {})).rejects.toMatchObject({
      fault: { code: 'wrong_state', detail: expect.stringContaining('secret') },
    })
  })
})
