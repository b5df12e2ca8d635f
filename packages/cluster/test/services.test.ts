import { afterEach, beforeEach, describe, expect, test } from 'vitest'
import type { VmCreate } from '@wadah/api/schema/vm'
import { caller, reader, room } from './kit/cluster.ts'

let r: Awaited<ReturnType<typeof room>>
beforeEach(async () => {
  r = await room()
})
afterEach(async () => {
  await r.close()
})

const create = (body: VmCreate) => r.done(r.vms.create(caller, body))

describe('what cannot be created is refused before anything is written', () => {
  const big = 'a'.repeat(64)
  const cases: [string, VmCreate, string, string | undefined][] = [
    ['an unknown image', { name: 'x', image: 'none' }, 'not_found', '/image'],
    ['a bad name', { name: 'X y' }, 'invalid', '/name'],
    ['a long name', { name: big }, 'invalid', '/name'],
    ['a name like an id', { name: 'vm-aaaaaaaaaa' }, 'invalid', '/name'],
    ['more memory than the host has', { name: 'x', memory_mib: 9000 }, 'invalid', '/memory_mib'],
    ['less memory than the image needs', { name: 'x', image: 'web', memory_mib: 128 }, 'invalid', '/memory_mib'],
    ['a disk smaller than the image', { name: 'x', image: 'web', disk_mib: 10 }, 'invalid', '/disk_mib'],
    ['no room in the pool', { name: 'x', disk_mib: 200 * 1024 }, 'no_room', '/disk_mib'],
    ['an unknown pool', { name: 'x', pool: 'none', disk_mib: 1 }, 'not_found', '/pool'],
    ['a kernel command line for a disk image', { name: 'x', image: 'web', cmdline: 'a' }, 'invalid', '/cmdline'],
    ['waiting for a service that is not there', { name: 'x', start: true, wait_ready: true }, 'invalid', '/wait_ready'],
    ['a balloon larger than the memory', { name: 'x', memory_mib: 512, balloon_mib: 600 }, 'invalid', '/balloon_mib'],
    ['an unknown network', { name: 'x', nics: [{ network: 'none' }] }, 'not_found', '/nics/0/network'],
    ['an address outside', { name: 'x', nics: [{ address: '10.2.0.5' }] }, 'invalid', '/nics/0/address'],
    ['the gateway as address', { name: 'x', nics: [{ address: '10.1.0.1' }] }, 'invalid', '/nics/0/address'],
    [
      'an address on a user network',
      { name: 'x', nics: [{ network: 'user', address: '10.1.0.9' }] },
      'invalid',
      '/nics/0/address',
    ],
    [
      'limits on a user network',
      { name: 'x', nics: [{ network: 'user', limits: { in_bytes_per_s: 9999 } }] },
      'invalid',
      '/nics/0/limits',
    ],
    [
      'a port another program has',
      { name: 'x', nics: [{ publish: [{ port: 999, to: 80 }] }] },
      'port_taken',
      '/nics/0/publish/0/port',
    ],
    [
      'a port named twice',
      {
        name: 'x',
        nics: [
          {
            publish: [
              { port: 80, to: 80 },
              { port: 80, to: 81 },
            ],
          },
        ],
      },
      'port_taken',
      '/nics/0/publish/1/port',
    ],
    ['a disk that is nothing', { name: 'x', disks: [{}] }, 'invalid', '/disks/0'],
    [
      'a disk that is two things',
      { name: 'x', disks: [{ volume: 'image-web', size_mib: 1 }] },
      'invalid',
      '/disks/0/volume',
    ],
    ['the base of others as a disk', { name: 'x', disks: [{ volume: 'image-web' }] }, 'in_use', '/disks/0/volume'],
  ]
  test.each(cases)('%s', async (_what, body, code, field) => {
    const before = await r.store.current()
    await expect(r.vms.create(caller, body)).rejects.toMatchObject({ fault: { code, field, effect: 'none' } })
    expect(await r.store.current()).toBe(before)
  })

  test('what another VM has', async () => {
    await create({
      name: 'one',
      nics: [{ address: '10.1.0.20', mac: '52:54:00:00:00:01', publish: [{ port: 8080, to: 80 }] }],
    })
    const refused: [VmCreate, string, string][] = [
      [{ name: 'one' }, 'name_taken', '/name'],
      [{ name: 'two', nics: [{ address: '10.1.0.20' }] }, 'address_taken', '/nics/0/address'],
      [{ name: 'two', nics: [{ mac: '52:54:00:00:00:01' }] }, 'address_taken', '/nics/0/mac'],
      [{ name: 'two', nics: [{ publish: [{ port: 8080, to: 81 }] }] }, 'port_taken', '/nics/0/publish/0/port'],
      [
        { name: 'two', nics: [{ publish: [{ address: '0.0.0.0', port: 8080, to: 81 }] }] },
        'port_taken',
        '/nics/0/publish/0/port',
      ],
    ]
    for (const [body, code, field] of refused)
      await expect(r.vms.create(caller, body)).rejects.toMatchObject({ fault: { code, field } })
  })

  test('who may only look', () => {
    expect(r.vms.list(reader, {}).items).toEqual([])
  })
})

describe('creating', () => {
  test('thirty at once get uids, MACs and addresses of their own', async () => {
    await Promise.all(Array.from({ length: 30 }, (_, i) => create({ name: `v${i}`, image: 'web', nics: [{}] })))
    const { items } = r.vms.list(caller, { limit: 100 })
    for (const values of [
      items.map((v) => v.spec.uid),
      items.map((v) => v.addresses[0]?.address),
      items.map((v) => v.spec.nics[0]?.mac),
    ]) {
      expect(new Set<string | number | undefined>(values).size).toBe(30)
    }
    expect(r.world.files.size).toBe(31)
  })

  test('a pool is not promised twice to requests that come together', async () => {
    const all = await Promise.allSettled([1, 2, 3].map((i) => create({ name: `v${i}`, disk_mib: 40 * 1024, nics: [] })))
    expect(all.map((a) => a.status).sort()).toEqual(['fulfilled', 'fulfilled', 'rejected'])
  })
})

describe('what stands on something keeps it', () => {
  test('images, networks, pools, volumes', async () => {
    await create({ name: 'one', image: 'web', disks: [{ name: 'data', size_mib: 5 }] })
    const { items } = r.storage.listVolumes(caller, { vm: 'one' })
    const refused: [Promise<unknown>, string][] = [
      [r.images.delete(caller, 'web', undefined), 'in_use'],
      [r.networks.delete(caller, 'default', undefined), 'in_use'],
      [r.storage.deletePool(caller, 'default', undefined), 'in_use'],
      [r.storage.deleteVolume(caller, 'image-web', undefined), 'in_use'],
      [r.storage.deleteVolume(caller, items[0]?.id ?? '', undefined), 'in_use'],
      [r.storage.cloneVolume(caller, items[0]?.id ?? '', { name: 'c', clone: 'linked' }), 'in_use'],
    ]
    for (const [work, code] of refused) await expect(work).rejects.toMatchObject({ fault: { code } })
    await r.done(r.vms.delete(caller, 'one', { keep_disks: true }, undefined))
    expect(r.storage.listVolumes(caller, {}).items.filter((v) => v.vm !== undefined)).toEqual([])
    const root = r.storage.listVolumes(caller, {}).items.find((v) => v.base !== undefined)
    await expect(r.images.delete(caller, 'web', undefined)).rejects.toMatchObject({ fault: { code: 'in_use' } })
    await r.done(r.storage.deleteVolume(caller, root?.id ?? '', undefined))
    await r.done(r.images.delete(caller, 'web', undefined))
    expect(r.images.list(caller, {}).items).toEqual([])
  })

  test('a full clone stands by itself', async () => {
    await create({ name: 'one', image: 'web', clone: 'full' })
    await r.done(r.images.delete(caller, 'web', undefined))
  })

  test('a linked clone makes its base read-only, as long as it is there', async () => {
    await r.done(r.storage.createVolume(caller, { name: 'base', size_mib: 5 }))
    await r.done(r.storage.cloneVolume(caller, 'base', { name: 'top', clone: 'linked' }))
    expect((await r.storage.getVolume(caller, 'base')).read_only).toBe(true)
    await expect(r.vms.create(caller, { name: 'x', disks: [{ volume: 'base' }] })).rejects.toMatchObject({
      fault: { code: 'in_use' },
    })
    await expect(r.storage.deleteVolume(caller, 'base', undefined)).rejects.toMatchObject({ fault: { code: 'in_use' } })
    await r.done(r.storage.deleteVolume(caller, 'top', undefined))
    await create({ name: 'x', disks: [{ volume: 'base' }] })
    expect((await r.storage.getVolume(caller, 'base')).read_only).toBe(false)
    await r.done(r.vms.delete(caller, 'x', { keep_disks: true }, undefined))
    await r.done(r.storage.deleteVolume(caller, 'base', undefined))
  })
})

describe('editing', () => {
  test('a rename frees the name, ports move, limits go by null, generations guard', async () => {
    await create({ name: 'one', nics: [{ publish: [{ port: 8080, to: 80 }] }], limits: { cpu_cap_percent: 50 } })
    const before = r.vms.get(caller, 'one')
    const after = await r.vms.edit(
      caller,
      'one',
      { name: 'uno', limits: { cpu_cap_percent: null }, nics: [{ name: 'net1', publish: [{ port: 8081, to: 80 }] }] },
      before.generation,
    )
    expect([after.name, after.spec.limits, after.spec.nics[0]?.publish.map((p) => p.port)]).toEqual(['uno', {}, [8081]])
    await expect(r.vms.edit(caller, 'uno', { cpus: 2 }, before.generation)).rejects.toMatchObject({
      fault: { code: 'precondition_failed' },
    })
    await create({ name: 'one', nics: [{ publish: [{ port: 8080, to: 80 }] }] })
    await expect(r.vms.edit(caller, 'uno', { name: 'one' }, undefined)).rejects.toMatchObject({
      fault: { code: 'name_taken' },
    })
    await expect(r.vms.edit(caller, 'uno', { disks: [{ name: 'no', limits: {} }] }, undefined)).rejects.toMatchObject({
      fault: { code: 'invalid', field: '/disks/0/name' },
    })
  })

  test('disks come and go', async () => {
    await create({ name: 'one' })
    const added = await r.vms.edit(
      caller,
      'one',
      { add_disks: [{ size_mib: 5 }, { name: 'data', size_mib: 6 }] },
      undefined,
    )
    expect(added.spec.disks.map((d) => d.name)).toEqual(['disk1', 'data'])
    const removed = await r.vms.edit(caller, 'one', { remove_disks: ['disk1'] }, undefined)
    expect(removed.spec.disks.map((d) => d.name)).toEqual(['data'])
    expect(r.storage.listVolumes(caller, { vm: 'one' }).items).toHaveLength(1)
    await create({ name: 'two', disks: [{ volume: added.spec.disks[0]?.volume ?? '' }] })
    await r.done(r.vms.delete(caller, 'one', {}, undefined))
    await r.done(r.vms.delete(caller, 'two', {}, undefined))
    expect(r.world.files.size).toBe(1)
  })
})

describe('lists', () => {
  test('pages, filters and a cursor that is none', async () => {
    for (const name of ['a', 'b', 'c']) await create({ name, labels: { role: name }, nics: [] })
    const first = r.vms.list(caller, { limit: 2 })
    const second = r.vms.list(caller, { limit: 2, cursor: first.next ?? '' })
    expect([first.items.length, second.items.length, second.next]).toEqual([2, 1, undefined])
    expect(r.vms.list(caller, { label: 'role=b' }).items.map((v) => v.name)).toEqual(['b'])
    expect(r.vms.list(caller, { state: 'running' }).items).toEqual([])
    expect(() => r.vms.list(caller, { cursor: '\u0000' })).toThrow(
      expect.objectContaining({ fault: expect.objectContaining({ code: 'invalid', field: '/cursor' }) }),
    )
  })
})

describe('the life of a VM', () => {
  test('start, refusals in each state, shutdown, clone, delete', async () => {
    await create({ name: 'one', image: 'web', start: true, wait_ready: true })
    expect(r.vms.get(caller, 'one').status).toMatchObject({ state: 'running' })
    for (const work of [
      r.vms.start(caller, 'one'),
      r.vms.delete(caller, 'one', {}, undefined),
      r.vms.clone(caller, 'one', { name: 'two' }),
    ]) {
      await expect(work).rejects.toMatchObject({ fault: { code: 'wrong_state' } })
    }
    await expect(r.vms.stop(reader, 'one')).rejects.toMatchObject({ fault: { code: 'forbidden' } })
    await r.done(r.vms.delete(caller, 'one', { force: true }, undefined))
    expect(r.vms.list(caller, {}).items).toEqual([])
    expect(r.world.snapshot()).toMatchObject({ folders: [], taps: [], running: [] })
  })

  test('a clone shares the image and has its own names', async () => {
    await create({ name: 'one', image: 'web', nics: [{ publish: [{ port: 8080, to: 80 }] }] })
    await r.done(r.vms.clone(caller, 'one', { name: 'two' }))
    const [one, two] = [r.vms.get(caller, 'one'), r.vms.get(caller, 'two')]
    expect(two.spec.nics[0]?.publish).toEqual([])
    expect([two.spec.uid, two.spec.nics[0]?.mac, two.addresses[0]?.address, two.spec.disks[0]?.volume]).not.toContain(
      one.spec.uid,
    )
    expect((await r.storage.getVolume(caller, two.spec.disks[0]?.volume ?? '')).base).toBe(
      (await r.storage.getVolume(caller, one.spec.disks[0]?.volume ?? '')).base,
    )
  })

  test.each([
    '8.8.8.0/24',
    '224.0.0.0/24',
    '0.0.0.0/16',
    '169.254.0.0/16',
    '127.0.0.0/24',
    '172.32.0.0/16',
    '11.0.0.0/24',
  ])('a network with the subnet %s would hide others', async (subnet) => {
    await expect(r.networks.create(caller, { name: 'hiding', kind: 'nat', subnet })).rejects.toMatchObject({
      fault: { code: 'invalid', field: '/subnet' },
    })
  })
})
